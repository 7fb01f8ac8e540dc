"""The same key has one effect: what is remembered, for whom, for how long, and what is not."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
from faces import join, refusal

from stonemux import door, operations
from stonemux.mux import Caller

DAY = 24 * 3600 * 1000
TASK = {"description": "x", "posted_by": "ann"}


@pytest.fixture
def crew(face):
    join(face, "ann", "bob")
    return face


def head(face):
    return face.call("events.list", after=0, limit=1)["head"]


CHANGES = [
    ("agent.register", {"agent_id": "cat"}),
    ("agent.deregister", {"agent_id": "bob"}),
    ("agent.heartbeat", {"agent_id": "bob", "status": "busy"}),
    ("agent.notify", {"agent_id": "bob", "type": "nudge", "content": "x"}),
    ("msg.send", {"from_": "ann", "to": "bob", "content": "x"}),
    ("msg.broadcast", {"from_": "ann", "content": "x"}),
    ("task.post", TASK),
    ("task.claim", {"agent_id": "bob"}),
    ("task.claim", {"agent_id": "bob", "timeout": 5}),
    ("state.set", {"key": "k", "value": "v"}),
    ("channel.create", {"name": "lab"}),
    ("channel.join", {"channel": "default", "agent_id": "bob"}),
]


@pytest.mark.parametrize(("name", "given"), CHANGES)
def test_the_same_call_again_has_the_same_answer_and_no_second_effect__P1__P2__T11(crew, clock, name, given):
    crew.call("task.post", **TASK)
    crew.call("task.post", **TASK)
    first = crew.call(name, idempotency_key="key-1", **given)
    assert not crew.replayed
    events = head(crew)
    clock.advance(1000)
    assert crew.call(name, idempotency_key="key-1", **given) == first
    assert crew.replayed
    assert head(crew) == events


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("task.complete", {"result": "done"}),
        ("task.complete", {"status": "failed", "retry": True}),
        ("task.release", {}),
        ("task.extend", {}),
    ],
)
def test_what_a_claimer_does_happens_once__P2(crew, name, given):
    task_id = crew.call("task.post", **TASK)["task_id"]
    crew.call("task.claim", agent_id="bob")
    first = crew.call(name, task_id=task_id, agent_id="bob", idempotency_key="k", **given)
    events = head(crew)
    assert crew.call(name, task_id=task_id, agent_id="bob", idempotency_key="k", **given) == first
    assert "replayed" not in first
    assert head(crew) == events


def test_a_repeated_send_is_delivered_once__P2(crew):
    for _ in range(3):
        crew.call("msg.send", from_="ann", to="bob", content="x", idempotency_key="k")
    assert len(crew.call("msg.poll", agent_id="bob", timeout=0)["messages"]) == 1


def test_another_body_is_refused_and_has_no_effect__P3__fault_31(crew):
    crew.call("msg.send", from_="ann", to="bob", content="x", idempotency_key="k")
    for other in ({"content": "y"}, {"content": "x", "priority": 1}, {"content": "x", "metadata": {"a": None}}):
        refusal(crew, "idempotency_mismatch", "msg.send", from_="ann", to="bob", idempotency_key="k", **other)
    assert len(crew.call("msg.poll", agent_id="bob", timeout=0)["messages"]) == 1


def test_order_and_nulls_do_not_make_another_body__P2(crew):
    first = crew.call("msg.send", from_="ann", to="bob", content="x", metadata={"a": 1, "b": 2}, idempotency_key="k")
    again = crew.call(
        "msg.send", idempotency_key="k", metadata={"b": 2, "a": 1}, subject=None, content="x", to="bob", from_="ann"
    )
    assert again == first


def test_a_key_belongs_to_one_agent_and_one_path__P1(crew):
    first = crew.call("msg.send", from_="ann", to="bob", content="x", idempotency_key="k")
    second = crew.call("msg.send", from_="bob", to="bob", content="y", idempotency_key="k")
    third = crew.call("msg.broadcast", from_="ann", content="z", idempotency_key="k")
    assert len({answer["message_id"] for answer in (first, second, third)}) == 3


def test_a_notifiers_key_is_its_own__P1(crew):
    given = {"agent_id": "bob", "type": "nudge", "idempotency_key": "k"}
    first = crew.call("agent.notify", from_="ann", content="x", **given)
    second = crew.call("agent.notify", from_="bob", content="y", **given)
    assert first != second


def test_a_key_is_remembered_for_a_day_and_over_restarts__P2(crew, clock, restart):
    given = {"from_": "ann", "to": "bob", "content": "x", "idempotency_key": "k"}
    first = crew.call("msg.send", **given)
    restart()
    clock.advance(DAY - 1)
    assert crew.call("msg.send", **given) == first
    clock.advance(1)
    assert crew.call("msg.send", **given)["message_id"] > first["message_id"]
    assert not crew.replayed


def test_the_purge_forgets_only_what_is_older_than_a_day__P2(crew, clock, program):
    given = {"from_": "ann", "to": "bob", "content": "x", "idempotency_key": "k"}
    first = crew.call("msg.send", **given)
    clock.advance(DAY - 1)
    program.timekeeper.tick()
    assert crew.call("msg.send", **given) == first
    clock.advance(60_001)
    program.timekeeper.tick()
    with program.mux.store.read() as rx:
        assert rx.one("select count(*) from idempotency")[0] == 0


def test_refusals_that_would_be_the_same_again_are_remembered__P5(crew):
    given = {"key": "k", "value": "v", "expected_version": 1, "idempotency_key": "i"}
    first = refusal(crew, "version_conflict", "state.set", **given)
    crew.call("state.set", key="k", value="other")
    again = refusal(crew, "version_conflict", "state.set", **given)
    assert (again.message, again.facts) == (first.message, first.facts)
    assert again.facts["current_version"] == 0


@pytest.mark.settings(inbox_limit=1)
def test_refusals_that_may_pass_are_not_remembered__P5(crew):
    given = {"from_": "ann", "to": "bob", "content": "x", "idempotency_key": "k"}
    crew.call("msg.send", from_="ann", to="bob", content="full")
    refusal(crew, "inbox_full", "msg.send", **given)
    crew.call("msg.poll", agent_id="bob", timeout=0)
    assert crew.call("msg.send", **given)["message_id"]


def test_a_malformed_call_does_not_use_up_its_key__P5(crew):
    refusal(crew, "missing_field", "msg.send", from_="ann", to="bob", idempotency_key="k")
    assert crew.call("msg.send", from_="ann", to="bob", content="x", idempotency_key="k")


def test_a_claim_that_found_nothing_may_be_tried_again_with_its_key__T11(crew):
    assert crew.call("task.claim", agent_id="bob", idempotency_key="k")["task_id"] is None
    task_id = crew.call("task.post", **TASK)["task_id"]
    assert crew.call("task.claim", agent_id="bob", idempotency_key="k")["task_id"] == task_id


def test_a_refused_blocking_claim_is_refused_again__P5(crew):
    task_id = crew.call("task.post", **TASK, assigned_to="ann")["task_id"]
    given = {"agent_id": "bob", "task_id": task_id, "timeout": 5, "idempotency_key": "k"}
    first = refusal(crew, "task_conflict", "task.claim", **given)
    assert refusal(crew, "task_conflict", "task.claim", **given).message == first.message


def test_a_lost_claim_is_found_again_by_its_key_and_stays_claimed__T11(mux, direct):
    join(direct, "ann", "bob")
    task_id = direct.call("task.post", **TASK)["task_id"]
    given = {"agent_id": "bob", "timeout": 5, "idempotency_key": "k"}
    caller = Caller()
    lost = door.call(mux, operations.BY_NAME["task.claim"], given, caller)
    if caller.flight is not None:
        caller.flight.lost()
    assert direct.call("task.claim", agent_id="ann")["task_id"] is None
    assert direct.call("task.claim", **given) == lost
    assert direct.call("task.get", task_id=task_id)["task"]["claimed_by"] == "bob"


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 129, "é", "a\n", 5, ["k"]])
def test_a_key_has_1_to_128_visible_ascii_characters__P1(crew, key):
    refusal(crew, "invalid_idempotency_key", "msg.send", from_="ann", to="bob", content="x", idempotency_key=key)


@pytest.mark.parametrize("key", ["x", "!" * 128, "~a-Z_0:/"])
def test_odd_but_visible_keys_work__P1(crew, key):
    first = crew.call("msg.send", from_="ann", to="bob", content="x", idempotency_key=key)
    assert crew.call("msg.send", from_="ann", to="bob", content="x", idempotency_key=key) == first


def test_a_null_key_is_no_key__P1(crew):
    given = {"from_": "ann", "to": "bob", "content": "x", "idempotency_key": None}
    assert crew.call("msg.send", **given) != crew.call("msg.send", **given)


def test_reads_take_no_key__P1(crew):
    refusal(crew, "unknown_field", "agent.get", agent_id="bob", idempotency_key="k")


def test_the_effect_and_its_record_are_one_transaction__P4(program, direct):
    join(direct, "ann", "bob")
    with program.mux.store.read() as rx:
        before = rx.one("select count(*) from idempotency")[0]
    refusal(direct, "agent_not_found", "msg.send", from_="ann", to="bo", content="x", idempotency_key="a")
    run = []
    program.store._db.set_trace_callback(run.append)
    direct.call("msg.send", from_="ann", to="bob", content="x", idempotency_key="b")
    program.store._db.set_trace_callback(None)
    writing = ("BEGIN", "COMMIT", "insert or fail into message", "insert or replace into idempotency")
    written = [begun for sql in run if (begun := next((begun for begun in writing if sql.startswith(begun)), None))]
    assert (written[0], sorted(written[1:-1]), written[-1]) == ("BEGIN", sorted(writing[2:]), "COMMIT")
    with program.mux.store.read() as rx:
        assert rx.one("select count(*) from idempotency")[0] == before + 2


def test_the_header_does_what_the_field_does__P1(http):
    join(http, "ann", "bob")

    def send(header, **given):
        body = {"from": "ann", "to": "bob", "content": "x"} | given
        headers = {"Content-Type": "application/json", "Idempotency-Key": header}
        status, answered, data = http.request("POST", "/msg/send", json.dumps(body).encode(), headers)
        return status, answered.get("idempotent-replayed"), json.loads(data)

    first = send("k")
    assert first[:2] == (200, None)
    assert send("k") == (200, "true", first[2])
    assert send("k", idempotency_key="k") == (200, "true", first[2])
    assert send("k", idempotency_key="other")[2]["error"]["code"] == "idempotency_key_conflict"
    assert send("k", content="y")[0] == 422
    assert send("a b")[2]["error"]["code"] == "invalid_idempotency_key"


@pytest.mark.parametrize("key", [None, "k"])
def test_a_call_is_gone_when_it_was_answered_and_waits_for_no_collector(mux, direct, key):
    class Watched(Caller):
        """A caller that can be referred to weakly."""

    def send():
        caller = Watched()
        given = {"from": "ann", "to": "ann", "content": "x"}
        door.call(mux, operations.BY_NAME["msg.send"], given, caller, key=key)
        return weakref.ref(caller)

    join(direct, "ann")
    gc.disable()
    try:
        assert send()() is None
    finally:
        gc.enable()
