"""New mail is stored together until it is filed; no reader of an inbox may notice the difference."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Program
from faces import Direct

from stonemux import filing, trays
from stonemux.errors import MuxError
from stonemux.filing import FRESH
from stonemux.messages import purge
from stonemux.transaction import Tx

AGENTS = ("ann", "bob", "cat")


@pytest.fixture
def program(open_program) -> Program:
    """Whatever is sent is fresh."""
    return open_program()


@pytest.fixture
def agents(direct: Direct) -> Direct:
    for agent_id in AGENTS:
        direct.call("agent.register", agent_id=agent_id)
    return direct


@pytest.fixture
def few(monkeypatch) -> None:
    monkeypatch.setattr(filing, "MOST_FRESH", 4)


def states(program: Program) -> list[int]:
    with program.store.read() as rx:
        return [row[0] for row in rx.sql("select state from delivery order by message_id, agent_id")]


def mark(program: Program) -> int:
    with program.store.read() as rx:
        return int(rx.one(f"select {trays.FILED}")[0])


def send(face: Direct, count: int = 1, to: str = "bob", **how: Any) -> list[int]:
    return [face.call("msg.send", from_="ann", to=to, content="hi", **how)["message_id"] for _ in range(count)]


def test_so_many_are_fresh_and_then_all_of_them_are_filed(program, agents, few):
    send(agents, 4)
    assert states(program) == [FRESH] * 4
    send(agents)
    assert states(program) == [0] * 4 + [FRESH]
    assert mark(program) == 4
    send(agents, 3)
    assert states(program) == [0] * 4 + [FRESH] * 4
    send(agents)
    assert states(program) == [0] * 8 + [FRESH]
    assert mark(program) == 8


def test_one_transaction_may_send_more_than_that(program, agents, http, few):
    calls = [{"from": "ann", "to": to, "content": "hi"} for to in [*["bob"] * 10, "nobody", "cat"]]
    http.request("POST", "/msg/send", json.dumps(calls).encode(), {"Content-Type": "application/json"})
    assert states(program) == [0] * 8 + [FRESH] * 3
    assert mark(program) == 8


@pytest.mark.parametrize("how", [{}, {"after": 0}, {"ack": "manual"}])
def test_much_looking_has_them_filed_sooner(program, agents, monkeypatch, how):
    monkeypatch.setattr(filing, "MOST_SEARCHED", 8)
    send(agents, 2)
    for _ in range(4):  # each goes through two
        agents.call("msg.poll", agent_id="cat", timeout=0, **how)
    send(agents)
    assert states(program) == [FRESH] * 3
    agents.call("msg.poll", agent_id="cat", timeout=0, **how)
    send(agents)
    assert states(program) == [0] * 3 + [FRESH]
    send(agents, 3)
    assert states(program) == [0] * 3 + [FRESH] * 4


def test_each_recipient_counts(program, agents, few):
    for _ in range(2):
        agents.call("msg.broadcast", from_="ann", content="hi")
    assert states(program) == [FRESH] * 4
    agents.call("msg.broadcast", from_="ann", content="hi")
    assert states(program) == [0] * 4 + [FRESH] * 2
    send(agents, 2)
    assert states(program) == [0] * 4 + [FRESH] * 4
    send(agents)
    assert states(program) == [0] * 8 + [FRESH]


def test_what_goes_to_many_or_is_urgent_is_filed_at_once(program, agents, monkeypatch):
    monkeypatch.setattr(filing, "MOST_RECIPIENTS", 1)
    agents.call("msg.broadcast", from_="ann", content="hi")
    send(agents, priority=1)
    send(agents)
    assert states(program) == [0, 0, 0, FRESH]


def test_what_was_read_meanwhile_is_not_filed_and_the_mark_passes_it(program, agents, few):
    send(agents, 4)
    agents.call("msg.poll", agent_id="bob", timeout=0, limit=3)
    send(agents)
    assert states(program) == [2, 2, 2, 0, FRESH]
    assert mark(program) == 4


def test_what_goes_to_many_or_is_urgent_counts(program, agents, few, monkeypatch):
    """It stands behind the mark, so whoever looks into an inbox looks through it."""
    send(agents, 5, priority=1)
    assert mark(program) == 4
    send(agents, 4)
    assert mark(program) == 8
    monkeypatch.setattr(filing, "MOST_RECIPIENTS", 1)
    for _ in range(3):
        agents.call("msg.broadcast", from_="ann", content="hi")
    assert mark(program) == 10
    assert FRESH not in states(program)


def test_a_start_files_nothing_and_counts_what_the_last_run_left(program, agents, few):
    """It changes a page for each recipient: on a full disk, that would be a start that fails."""
    send(agents, 3)
    program.reopen()
    face = Direct(program.mux)
    assert states(program) == [FRESH] * 3
    send(face)
    assert states(program) == [FRESH] * 4
    send(face)
    assert states(program) == [0] * 4 + [FRESH]
    assert mark(program) == 4


def test_what_was_read_meanwhile_counts_at_a_start(program, agents, few):
    send(agents, 4)
    agents.call("msg.poll", agent_id="bob", timeout=0)
    program.reopen()
    send(Direct(program.mux))
    assert mark(program) == 4
    changes = program.store._db.total_changes
    program.store.write(filing.file)
    program.store.write(filing.file)
    assert program.store._db.total_changes == changes + 2  # the one that was fresh, and the mark


def test_a_call_that_is_taken_back_files_nothing_and_what_it_filed_counts_again(program, agents, few):
    def fails(tx: Any) -> None:
        filing.takes(tx, 1, 0)
        raise ZeroDivisionError

    send(agents, 4)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            program.store.write(fails)
        assert states(program) == [FRESH] * 4
    send(agents)
    assert states(program) == [0] * 4 + [FRESH]


def test_a_call_that_is_taken_back_leaves_nothing_fresh(program, agents):
    def fails(tx: Tx) -> None:
        tx.insert("delivery", ("bob", tx.deal_message_id(), "default", 0, FRESH))
        tx.sql("select 1 from delivery")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        program.store.write(fails)
    assert states(program) == []


def test_a_purge_of_the_newest_leaves_the_mark_where_nothing_is_fresh(program, agents):
    send(agents, 3)
    agents.call("msg.poll", agent_id="bob", timeout=0)
    program.store.write(filing.file)
    assert program.store.write(lambda tx: purge(tx, tx.now + 1, 10)) == 3
    program.store.write(filing.file)
    assert mark(program) == 3
    send(agents)
    assert [one["id"] for one in agents.call("msg.poll", agent_id="bob", timeout=0)["messages"]] == [4]


LOOKS = [
    ("msg.poll", {"timeout": 0}),
    ("msg.poll", {"timeout": 0, "limit": 2}),
    ("msg.poll", {"timeout": 0, "types": ["status"]}),
    ("msg.poll", {"timeout": 0, "channel": "lab"}),
    ("msg.poll", {"timeout": 0, "ack": "manual"}),
    ("msg.poll", {"timeout": 0, "after": 0}),
    ("msg.poll", {"timeout": 0, "after": 3, "channel": "default"}),
    ("msg.poll", {"timeout": 0, "after": 99}),
    ("msg.ack", {"through": 4}),
    ("msg.ack", {"ids": [1]}),
    ("msg.nack", {"id": 1}),
    ("agent.get", {}),
    ("agent.deregister", {}),
    ("inbox.list", {"status": "unread"}),
    ("inbox.list", {"status": "all", "limit": 2}),
    ("inbox.update", {"all": True, "status": "read"}),
    ("inbox.update", {"all": True, "status": "archived"}),
]


@pytest.mark.parametrize(("name", "how"), LOOKS, ids=[f"{name}-{how}" for name, how in LOOKS])
def test_the_same_call_answers_the_same_of_mail_that_is_filed(open_program, name, how):
    """And leaves the same behind: what is left is listed, counted and polled."""
    told = []
    for filed in (False, True):
        program = open_program()
        face = Direct(program.mux)
        for agent_id in AGENTS:
            face.call("agent.register", agent_id=agent_id)
        face.call("channel.create", name="lab", created_by="ann", members=["ann", "bob"])
        send(face, 2)
        send(face, to="cat")
        send(face, type="status", ttl_seconds=60)
        send(face, priority=1)
        send(face, channel="lab")
        if filed:
            program.store.write(filing.file)
        answers: list[Any] = []
        refused = ""
        try:
            answers.append(face.call(name, agent_id="bob", **how))
        except MuxError as refusal:
            refused = refusal.code
            answers.append(refusal.body())
        assert refused in ("", "not_delivered", "cursor_ahead")
        answers += [face.call("stats")["messages"], face.call("agent.discover")]
        answers.append(face.call("inbox.show", id="inbox-1-bob"))
        answers += [face.call("msg.status", id=message_id) for message_id in range(1, 7)]
        if name != "agent.deregister":
            answers.append(face.call("inbox.list", agent_id="bob", status="all"))
            program.clock.advance(61_000)
            answers.append(face.call("msg.poll", agent_id="bob", timeout=0))
        told.append(answers)
    assert told[0] == told[1]


def test_mail_that_ran_out_while_fresh_dies(program, agents):
    send(agents, ttl_seconds=60)
    program.clock.advance(61_000)
    assert agents.call("msg.status", id=1)["recipients"][0]["status"] == "dead"
    program.clock.advance(120_000)
    program.timekeeper.tick()
    assert states(program) == [3]


def test_mail_that_ran_out_while_fresh_takes_no_room(open_program):
    program = open_program(inbox_limit=2)
    face = Direct(program.mux)
    for agent_id in AGENTS:
        face.call("agent.register", agent_id=agent_id)
    send(face, 2, ttl_seconds=60)
    program.clock.advance(61_000)
    send(face, 2)


@pytest.mark.parametrize("how", [{}, {"after": 0}, {"ack": "manual"}])
def test_an_inbox_looks_through_what_is_fresh_and_no_further(program, agents, how):
    """Whichever bound of the ids a query has, the mark is the one that is sought."""

    def fill(tx: Tx) -> None:
        rows = [(tx.deal_message_id(), "cat", "default") for _ in range(3000)]
        tx.many("insert into delivery (message_id, agent_id, channel) values (?, ?, ?)", rows)
        filing.file(tx)

    program.store.write(fill)
    send(agents)
    with program.store.read():
        pass  # so that there is a reader to listen at
    steps = []
    for reader in program.store._readers:
        reader.set_progress_handler(lambda: steps.append(1) and None, 100)
    assert len(agents.call("msg.poll", agent_id="bob", timeout=0, **how)["messages"]) == 1
    assert len(steps) * 100 < 3000
