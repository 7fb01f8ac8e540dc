"""The forty faults by number: those that concern an operation, over every face, and whether all have a test."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faces import join, refusal

from stonemux.errors import MuxError


def test_every_fault_has_a_test_of_its_number():
    here = Path(__file__).parent
    text = "".join(path.read_text() for path in here.rglob("test_*.py"))
    tested = {int(number) for number in re.findall(r"def test_fault_(\d\d)_", text)}
    assert sorted(set(range(1, 41)) - tested) == []


@pytest.mark.parametrize("version", [-1, 1.0, "3", True, []])
def test_fault_22_an_expected_version_is_a_whole_number_from_0(face, version):
    for name, given in (("state.set", {"value": "v"}), ("state.delete", {})):
        refusal(face, "invalid_expected_version", name, key="k", expected_version=version, **given)
    assert refusal(face, "key_not_found", "state.get", key="k").facts["version"] == 0


def test_fault_23_of_two_swaps_of_one_version_one_wins(face):
    face.call("state.set", key="k", value="start")

    def swap(value: str) -> str:
        try:
            face.call("state.set", key="k", value=value, expected_version=1)
        except MuxError as error:
            return f"{error.code}, now at {error.facts.get('current_version')}"
        return value

    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(swap, "abcdefgh"))
    won = [end for end in ended if len(end) == 1]
    assert sorted(ended, key=len) == [*won, *["version_conflict, now at 2"] * 7]
    now = face.call("state.get", key="k")
    assert (now["value"], now["version"]) == (won[0], 2)


def test_fault_24_a_version_from_before_a_deletion_never_fits_again(face):
    face.call("state.set", key="k", value="first")
    face.call("state.delete", key="k", expected_version=1)
    again = face.call("state.set", key="k", value="second", expected_version=0)
    assert again["version"] == 3
    told = refusal(face, "version_conflict", "state.set", key="k", value="third", expected_version=1)
    assert (told.facts["current_version"], told.facts["current_value"]) == (3, "second")


def test_fault_25_senders_and_recipients_are_registered(face):
    join(face, "bob")
    refusal(face, "agent_not_found", "msg.send", from_="bob", to="ghost", content="x")
    refusal(face, "agent_not_found", "msg.send", from_="ghost", to="bob", content="x")
    assert face.call("msg.poll", agent_id="bob", timeout=0)["messages"] == []


@pytest.mark.settings(default_tier="free")
def test_fault_26_the_free_tier_ends_at_two_agents_and_at_what_it_has(face):
    join(face, "a", "b")
    refusal(face, "agent_limit", "agent.register", agent_id="c")
    join(face, "a")
    for name, given in (
        ("msg.broadcast", {"from_": "a", "content": "x"}),
        ("task.post", {"description": "x", "posted_by": "a"}),
        ("state.set", {"key": "k", "value": "v"}),
    ):
        assert refusal(face, "upgrade_required", name, **given).facts["feature"] == name


def test_fault_28_a_reader_that_crashed_before_its_ack_gets_the_message_again(face, clock, program):
    join(face, "a", "b")
    sent = face.call("msg.send", from_="a", to="b", content="x")["message_id"]
    (first,) = face.call("msg.poll", agent_id="b", ack="manual", lease=60, timeout=0)["messages"]
    assert (first["id"], first["deliveries"]) == (sent, 1)
    clock.advance(59_000)
    assert face.call("msg.poll", agent_id="b", ack="manual", timeout=0)["messages"] == []
    clock.advance(1_001)
    program.timekeeper.tick()
    (second,) = face.call("msg.poll", agent_id="b", ack="manual", lease=60, timeout=0)["messages"]
    assert (second["id"], second["deliveries"], second["redelivered"]) == (sent, 2, True)


def overtaken(face, clock):
    """A task whose first claim ran out and which another agent has by now: the two claims."""
    join(face, "poster", "slow", "quick")
    face.call("task.post", description="x", posted_by="poster", claim_timeout=10)
    first = face.call("task.claim", agent_id="slow")
    clock.advance(10_001)
    second = face.call("task.claim", agent_id="quick")
    assert second["task_id"] == first["task_id"]
    return first, second


def test_fault_29_a_worker_that_was_overtaken_changes_nothing(face, clock):
    first, second = overtaken(face, clock)
    held = {"task_id": first["task_id"], "agent_id": "slow", "claim_token": first["claim_token"]}
    for name in ("task.complete", "task.extend", "task.release"):
        told = refusal(face, "stale_claim", name, **held)
        assert second["claim_token"] not in str(told.body())
    done = face.call(
        "task.complete",
        task_id=second["task_id"],
        agent_id="quick",
        claim_token=second["claim_token"],
        result="good",
    )
    assert (done["task"]["status"], done["task"]["result"]) == ("complete", "good")


def test_fault_30_a_task_is_completed_once_and_by_its_holder(face):
    join(face, "poster", "holder", "other")
    face.call("task.post", description="x", posted_by="poster")
    claim = face.call("task.claim", agent_id="holder")
    refusal(face, "not_claim_owner", "task.complete", task_id=claim["task_id"], agent_id="other")
    held = {"task_id": claim["task_id"], "agent_id": "holder", "claim_token": claim["claim_token"]}
    face.call("task.complete", result="1", **held)
    assert face.call("task.complete", result="1", **held)["replayed"] is True
    refusal(face, "already_complete", "task.complete", result="2", **held)
    assert face.call("task.get", task_id=claim["task_id"])["task"]["result"] == "1"


def test_fault_31_a_key_with_another_body_has_no_effect(face):
    join(face, "a", "b")
    sent = {"from_": "a", "to": "b", "idempotency_key": "once"}
    first = face.call("msg.send", content="x", **sent)
    assert face.call("msg.send", content="x", **sent) == first
    refusal(face, "idempotency_mismatch", "msg.send", content="y", **sent)
    assert [m["content"] for m in face.call("msg.poll", agent_id="b", timeout=0)["messages"]] == ["x"]
