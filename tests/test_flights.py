"""Messages in transit: in flight, arrived, lost, owed."""

from __future__ import annotations

import pytest

from stonemux import door, messages, operations
from stonemux.errors import MuxError
from stonemux.flights import Flights
from stonemux.mux import Caller


@pytest.fixture
def poll(mux, direct):
    """Polls without saying whether the answer arrived; returns the contents and the caller."""
    for agent_id in ("ann", "bob"):
        direct.call("agent.register", agent_id=agent_id)

    def polling(**given):
        caller = Caller()
        answer = door.call(mux, operations.BY_NAME["msg.poll"], {"agent_id": "bob", "timeout": 0} | given, caller)
        return [message["content"] for message in answer["messages"]], caller

    return polling


@pytest.fixture
def send(direct):
    return lambda content, **given: direct.call("msg.send", from_="ann", to="bob", content=content, **given)


def test_ids_are_in_flight_for_one_agent_until_they_end():
    flights = Flights()
    with flights.of("bob") as held:
        held.update([1, 2])
    assert flights.held("bob") == {1, 2}
    assert flights.held("ann") == set()
    assert [*flights._agents] == ["bob"], "nothing is kept of who is only asked about"
    flights.end("bob", [1, 3])
    assert flights.held("bob") == {2}


def test_the_end_of_a_flight_says_whether_something_is_queued_again():
    flights = Flights()
    with flights.of("bob") as held:
        held.update([1, 2, 3])
    flights.recall("bob", [1])
    assert [flights.end("bob", [one]) for one in (2, 1, 3)] == [False, True, False]


def test_what_is_in_flight_is_not_handed_out_again(poll, send, mux):
    send("a")
    first, _ = poll()
    send("b")
    second, _ = poll()
    assert (first, second) == (["a"], ["b"])
    assert len(mux.flights.held("bob")) == 2


def test_redeliver_also_brings_back_what_is_still_in_flight(poll, send):
    send("a")
    _, caller = poll()
    assert poll(redeliver=True)[0] == []
    caller.flight.landed()
    assert poll()[0] == ["a"]


def test_what_arrived_is_settled_and_no_longer_in_flight(poll, send, mux, direct):
    message_id = send("a")["message_id"]
    _, caller = poll()
    assert direct.call("msg.status", id=message_id)["recipients"][0]["status"] == "fetched"
    caller.flight.landed()
    assert mux.flights.held("bob") == set()
    assert direct.call("msg.status", id=message_id)["recipients"][0]["status"] == "acked"
    assert poll()[0] == []


def test_what_was_lost_is_handed_out_again_in_order(poll, send, mux):
    send("a")
    send("b")
    _, caller = poll(limit=1)
    caller.flight.lost()
    assert mux.flights.held("bob") == set()
    assert poll()[0] == ["a", "b"]


def test_a_lost_answer_wakes_the_poll_that_waits(poll, send, mux, clock, background):
    send("a")
    _, caller = poll()
    waiting = background(poll, timeout=60)
    clock.until_parked(1)
    caller.flight.lost()
    assert waiting.result(5)[0] == ["a"]


def test_settling_that_the_disk_refuses_is_owed_and_made_good(poll, send, mux, program, monkeypatch):
    send("a")
    _, caller = poll()

    def full(tx, agent_id, ids):
        raise MuxError("storage_full", "no space")

    with monkeypatch.context() as patch:
        patch.setattr(messages, "settle", full)
        caller.flight.landed()
        assert mux.flights.held("bob"), "nobody gets it twice meanwhile"
        assert poll()[0] == []
        program.timekeeper.tick()
        assert len(mux.flights.owed) == 1
        assert mux.alarm._at <= mux.clock.now_ms() + 1000, "it is tried again soon"
    program.timekeeper.tick()
    assert mux.flights.owed == []
    assert mux.flights.held("bob") == set()
    assert poll()[0] == []


def test_what_becomes_owed_while_debts_are_paid_is_not_forgotten(mux, poll, send, monkeypatch):
    send("a")
    _, first = poll()
    send("b")
    _, second = poll()
    real = messages.settle

    def full(tx, agent_id, ids):
        raise MuxError("storage_full", "no space")

    monkeypatch.setattr(messages, "settle", full)
    first.flight.landed()
    later = messages.settle_later

    def and_one_more(mux, agent_id, ids):
        monkeypatch.setattr(messages, "settle_later", later)
        second.flight.landed()
        monkeypatch.setattr(messages, "settle", real)
        later(mux, agent_id, ids)

    monkeypatch.setattr(messages, "settle_later", and_one_more)
    messages.settle_owed(mux)
    messages.settle_owed(mux)
    assert mux.flights.held("bob") == set()
    assert mux.flights.owed == []


def test_an_answer_that_arrives_after_the_agent_left_is_settled(poll, send, mux, direct):
    send("a")
    _, caller = poll()
    direct.call("agent.deregister", agent_id="bob")
    caller.flight.landed()
    assert mux.flights.held("bob") == set()
    direct.call("agent.register", agent_id="bob")
    assert poll()[0] == []


def test_an_answer_that_is_lost_after_the_agent_left_is_found_when_it_comes_back(poll, send, direct):
    send("a")
    _, caller = poll()
    direct.call("agent.deregister", agent_id="bob")
    caller.flight.lost()
    direct.call("agent.register", agent_id="bob")
    assert poll()[0] == ["a"]


def test_what_was_in_flight_at_the_end_is_handed_out_after_the_start(program, poll, send):
    send("a")
    poll()
    mux = program.reopen()
    answer = door.call(mux, operations.BY_NAME["msg.poll"], {"agent_id": "bob", "timeout": 0}, Caller())
    assert [message["content"] for message in answer["messages"]] == ["a"]


def test_landing_after_the_store_closed_keeps_the_message(program, poll, send):
    send("a")
    _, caller = poll()
    program.mux.store.close()
    caller.flight.landed()
    assert len(program.mux.flights.owed) == 1


def test_a_cursor_settles_what_is_in_flight(poll, send, mux):
    last = send("a")["message_id"]
    _, caller = poll()
    assert poll(after=last)[0] == []
    caller.flight.lost()
    assert poll()[0] == [], "the client itself has said that it has it"
