"""A list of calls in one request: one transaction, and an answer for each call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from faces import OverHttp, join

from stonemux.schema import MOST_TOGETHER

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def crew(http):
    join(http, "ann", "bob", "cat")
    return http


def send(face: OverHttp, calls: Any, **headers: str) -> tuple[int, Any]:
    status, _, body = face.request("POST", "/msg/send", json.dumps(calls).encode(), JSON | headers)
    return status, json.loads(body)


def inbox(face: OverHttp, agent_id: str) -> list[str]:
    return [message["content"] for message in face.call("msg.poll", agent_id=agent_id, timeout=0)["messages"]]


def hi(to: str, content: str = "hi", **more: Any) -> dict[str, Any]:
    return {"from": "ann", "to": to, "content": content, **more}


def test_a_list_of_messages_is_delivered_in_its_order_by_one_transaction(crew, mux, monkeypatch):
    batches = []
    real = mux.store._attempt
    monkeypatch.setattr(
        mux.store, "_attempt", lambda batch, **given: batches.append(len(batch)) or real(batch, **given)
    )
    status, answer = send(crew, [hi("bob", "one"), hi("cat", "two"), hi("bob", "three")])
    assert status == 200
    ids = [result["message_id"] for result in answer["results"]]
    assert ids == [1, 2, 3]
    assert batches == [1]
    assert (inbox(crew, "bob"), inbox(crew, "cat")) == (["one", "three"], ["two"])


def test_what_is_refused_has_its_error_in_its_place_and_harms_nobody(crew):
    status, answer = send(crew, [hi("bob", "one"), hi("nobody"), {"from": "ann", "nonsense": 1}, hi("bob", "two")])
    assert status == 200
    codes = [result.get("error", {}).get("code") for result in answer["results"]]
    assert codes == [None, "agent_not_found", "unknown_field", None]
    assert answer["results"][1]["error"]["known_agents"]
    assert inbox(crew, "bob") == ["one", "two"]


def test_each_has_an_idempotency_key_of_its_own(crew):
    again = hi("bob", "once", idempotency_key="k")
    first = send(crew, [again, hi("bob", "each time")])[1]["results"]
    second = send(crew, [again, hi("bob", "each time")])[1]["results"]
    assert second[0] == first[0] | {"replayed": True}
    assert first[1]["message_id"] != second[1]["message_id"]
    assert inbox(crew, "bob") == ["once", "each time", "each time"]
    status, answer = send(crew, [again], **{"Idempotency-Key": "whole"})
    assert (status, answer["error"]["code"]) == (400, "invalid_idempotency_key")


def test_what_is_no_list_of_calls_is_refused_whole(crew):
    for calls, code in (
        ([], "invalid_json"),
        ([hi("bob"), 7], "invalid_json"),
        ([hi("bob")] * (MOST_TOGETHER + 1), "too_many_calls"),
        ("text", "invalid_json"),
    ):
        status, answer = send(crew, calls)
        assert status in (400, 413)
        assert answer["error"]["code"] == code
    assert inbox(crew, "bob") == []


def test_only_operations_that_say_so_take_a_list(crew):
    status, _, body = crew.request("POST", "/agent/heartbeat", b'[{"agent_id":"ann"}]', JSON)
    assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_json")


def test_a_transaction_that_fails_has_delivered_none_of_them(crew, mux, monkeypatch):
    real = type(mux.store._tx).commit

    def failing(tx: Any, head: int) -> Any:
        monkeypatch.setattr(type(mux.store._tx), "commit", real)
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(mux.store._tx), "commit", failing)
    status, answer = send(crew, [hi("bob"), hi("cat")])
    assert (status, answer["error"]["code"]) == (500, "internal")
    assert inbox(crew, "bob") == []


def test_each_is_entered_in_the_audit_log(crew, mux):
    before = len(entries(mux))
    send(crew, [hi("bob"), hi("cat")])
    assert [entry["target"] for entry in entries(mux)[before:]] == ["bob", "cat"]


def entries(mux: Any) -> list[Any]:
    with mux.store.read() as rx:
        return [dict(row) for row in rx.sql("select * from audit order by seq")]


@pytest.mark.settings(auth_tokens="required")
def test_s2_a_token_holds_for_each_of_them(http):
    for agent_id in ("ann", "bob"):
        token = http.call("token.issue", agent_id=agent_id)["token"]
        bearer = {"Authorization": f"Bearer {token}"}
        body = json.dumps({"agent_id": agent_id}).encode()
        assert http.request("POST", "/agent/register", body, JSON | bearer)[0] == 200
    assert send(http, [hi("bob")])[1]["error"]["code"] == "token_missing"
    status, answer = send(http, [hi("bob"), hi("bob") | {"from": "bob"}], **bearer)
    codes = [result.get("error", {}).get("code") for result in answer["results"]]
    assert (status, codes) == (200, ["agent_mismatch", None])
