"""The store: group commit, the effects of faults, starting, migrating, and the query plans of hot queries."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from faces import Direct
from fake_clock import EPOCH_MS, FakeClock

from stonemux import ballast, copies, messages, migration, opening, store, tables, taskrows, tasks, transaction
from stonemux.datadir import DataDir
from stonemux.errors import MuxError
from stonemux.mux import Mux
from stonemux.store import Store
from stonemux.transaction import Job, Tx

# -- a connection that fails where a test wants it to


class Faulty(sqlite3.Connection):
    """Counts the writing connection's statements and fails at the chosen one; `Fault` drives it."""

    fault: Fault

    def execute(self, query: str, values: Any = (), /) -> sqlite3.Cursor:
        self.fault.strike(self, query)
        return super().execute(query, values)

    def executemany(self, query: str, rows: Any, /) -> sqlite3.Cursor:
        self.fault.strike(self, query)
        return super().executemany(query, rows)


class Fault:
    """Which statement fails, and how. Armed by hand, so that opening the store is left alone."""

    def __init__(self) -> None:
        self.at: int | None = None
        self.error = sqlite3.OperationalError
        self.code = sqlite3.SQLITE_FULL
        self.rolls_back = False
        self.seen: list[str] = []

    def connect(self, path: str, **options: Any) -> sqlite3.Connection:
        db = sqlite3.connect(path, factory=Faulty, **options)
        assert isinstance(db, Faulty)
        db.fault = self
        return db

    def arm(self, at: int | None, code: int = sqlite3.SQLITE_FULL, *, rolls_back: bool = False) -> None:
        self.at, self.code, self.rolls_back, self.seen = at, code, rolls_back, []

    def strike(self, db: sqlite3.Connection, query: str) -> None:
        if not hasattr(db, "fault") or query.startswith("PRAGMA"):
            return
        self.seen.append(query)
        if self.at is not None and len(self.seen) - 1 == self.at:
            if self.rolls_back and db.in_transaction:
                sqlite3.Connection.execute(db, "ROLLBACK")
            trouble = sqlite3.OperationalError(f"injected at {query!r}")
            trouble.sqlite_errorcode = self.code
            trouble.sqlite_errorname = "INJECTED"
            raise trouble


@pytest.fixture
def fault() -> Fault:
    return Fault()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Opens stores in one directory, one after the other, and closes the last."""
    path = tmp_path / "data"
    held: list[tuple[Store, DataDir]] = []

    def close() -> None:
        while held:
            opened, locked = held.pop()
            opened.close()
            locked.close()

    def opener(**options: Any) -> Store:
        close()
        clock = options.pop("clock", None) or FakeClock()
        locked = DataDir(path)
        try:
            held.append((Store(locked, clock, **options), locked))
        except BaseException:
            locked.close()
            raise
        return held[-1][0]

    opener.path = path  # type: ignore[attr-defined]
    opener.close = close  # type: ignore[attr-defined]
    yield opener
    close()


def note(text: str) -> Callable[[Tx], str]:
    """Writes a row, an event and a topic, and returns the text."""

    def work(tx: Tx) -> str:
        tx.run("insert into meta values (?, 'x')", text)
        tx.emit("message", f'"{text}"')
        tx.touch(("note", text))
        return text

    return work


def notes(opened: Store) -> list[str]:
    with opened.read() as rx:
        return [row[0] for row in rx.sql("select key from meta where value = 'x' order by key")]


class Batch:
    """Jobs that are committed together: the first holds the leader back until all the others are queued."""

    def __init__(self, opened: Store) -> None:
        self.store = opened
        self.told: dict[Any, tuple[Any, BaseException | None]] = {}

    def run(self, *works: Callable[[Tx], Any]) -> list[tuple[Any, BaseException | None]]:
        me = threading.get_ident()
        self.store.gatherers.add(me)
        for n, work in enumerate(works):
            self.store.submit(Job(work, lambda value, error, n=n: self.told.__setitem__(n, (value, error)), True))
        self.store.lead()
        self.store.gatherers.discard(me)
        return [self.told[n] for n in range(len(works))]


# -- group commit


def test_many_threads_share_commits_and_each_gets_its_own_result(opened, fault):
    store = opened(connect=fault.connect)
    first_in, everybody_queued = threading.Event(), threading.Event()

    def slow(tx: Tx) -> str:
        first_in.set()
        assert everybody_queued.wait(5)
        return note("first")(tx)

    fault.arm(None)
    with ThreadPoolExecutor(33) as pool:
        leader = pool.submit(store.write, slow)
        assert first_in.wait(5)
        others = [pool.submit(store.write, note(f"n{n:02}")) for n in range(32)]
        while len(store._queue) < 32:
            pass
        everybody_queued.set()
        assert leader.result(5) == "first"
        assert [other.result(5) for other in others] == [f"n{n:02}" for n in range(32)]
    assert fault.seen.count("COMMIT") == 2
    assert len(notes(store)) == 33
    assert store.head == 33


def test_a_lone_writer_commits_on_its_own_thread(opened):
    assert opened().write(lambda tx: threading.get_ident()) == threading.get_ident()


def test_a_batch_that_changes_nothing_is_not_committed(opened, fault):
    store = opened(connect=fault.connect)
    fault.arm(None)
    assert store.write(lambda tx: tx.one("select 7")[0]) == 7
    assert "COMMIT" not in fault.seen


def test_a_refusal_harms_nobody_else_in_its_batch(opened, fault):
    store = opened(connect=fault.connect)

    announced: list[Any] = []
    store.publish = lambda events, topics, offers: announced.append(([e.data for e in events], topics, offers))

    def refuse(tx: Tx) -> None:
        tx.emit("message", '"never"')
        tx.touch(("never",))
        tx.offer(("never",))
        tx.after(lambda: announced.append("never"))
        raise MuxError("not_found", "no")

    fault.arm(None)
    (a, _), (_, refusal), (b, _) = Batch(store).run(note("a"), refuse, note("b"))
    assert (a, b) == ("a", "b")
    assert isinstance(refusal, MuxError)
    assert refusal.code == "not_found"
    assert fault.seen.count("BEGIN IMMEDIATE") == 1, "nothing had to be run again"
    assert notes(store) == ["a", "b"]
    assert announced == [(['"a"', '"b"'], [("note", "a"), ("note", "b")], [])]


@pytest.mark.parametrize("error", [MuxError("not_found", "no"), ValueError("a bug"), sqlite3.IntegrityError("a bug")])
def test_what_fails_after_it_wrote_is_rolled_back_alone(opened, error):
    store = opened()
    told: list[Any] = []
    store.publish = lambda events, topics, offers: told.append(([e.data for e in events], list(topics), list(offers)))

    def fail(tx: Tx) -> None:
        note("wrong")(tx)
        tx.offer(("wrong",))
        tx.after(lambda: told.append("hook of a job that failed"))
        raise error

    (a, _), (_, raised), (b, _) = Batch(store).run(note("a"), fail, note("b"))
    assert (a, b) == ("a", "b")
    assert raised is error
    assert notes(store) == ["a", "b"]
    assert told == [(['"a"'], [("note", "a")], []), (['"b"'], [("note", "b")], [])]
    with store.read() as rx:
        assert [row[0] for row in rx.sql("select id from event")] == [1, 2] == list(range(1, store.head + 1))


def test_a_row_that_cannot_be_written_fails_only_its_own_call(opened):
    """Rows that are only noted are written later, at somebody else's statement or at the commit."""
    store = opened()

    def deliver(agent_id: str) -> Callable[[Tx], int]:
        def work(tx: Tx) -> int:
            tx.insert("delivery", (agent_id, tx.deal_message_id(), "default", 0, 0))
            return 1

        return work

    def twice(tx: Tx) -> None:
        tx.insert("delivery", ("bob", 1, "default", 0, 0))
        tx.insert("delivery", ("bob", 1, "default", 0, 0))

    for works in ((deliver("ann"), twice, note("a"), deliver("cid")), (deliver("ann"), twice, deliver("cid"))):
        outcomes = Batch(store).run(*works)
        assert [n for n, (_, error) in enumerate(outcomes) if error is not None] == [1]
        assert isinstance(outcomes[1][1], sqlite3.IntegrityError)


def test_noted_rows_are_written_before_a_statement_that_names_their_table(opened):
    store = opened()
    executed: list[str] = []

    def work(tx: Tx) -> int:
        tx.insert("task_history", (1, 0, "x", None, 0, None))
        tx.insert("delivery", ("bob", 1, "default", 0, 0))
        store._db.set_trace_callback(executed.append)
        tx.one("select 1 from meta")
        tx.insert("task_history", (1, 0, "y", None, 0, None))
        found: int = tx.one("select count(*) from task_history")[0]
        store._db.set_trace_callback(None)
        return found

    assert store.write(work) == 2
    assert [statement.split()[0] for statement in executed] == ["select", "insert", "select"]
    with store.read() as rx:
        assert rx.one("select count(*) from task_history")[0] == 2
        assert rx.one("select count(*) from delivery")[0] == 1


@pytest.mark.parametrize("look", ["delivery", "task_history", "meta"])
def test_rows_noted_by_a_refused_call_are_dropped_and_nobody_elses(opened, look):
    """Whatever was written meanwhile: others' rows of one table, this call's of another, or nothing."""
    store = opened()

    def deliver(name: str) -> Callable[[Tx], None]:
        return lambda tx: tx.insert("delivery", (name, 1, "default", 0, 0))

    def refused(tx: Tx) -> None:
        tx.one(f"select 1 from {look}")
        tx.insert("task_history", (1, 0, "x", None, 0, None))
        tx.insert("delivery", ("bad", 1, "default", 0, 0))
        if look == "task_history":
            tx.one(f"select 1 from {look}")
        raise MuxError("not_found", "no")

    executed: list[str] = []
    store._db.set_trace_callback(executed.append)
    outcomes = Batch(store).run(deliver("ann"), refused, deliver("cid"))
    assert [error is not None for _, error in outcomes] == [False, True, False]
    again = 0 if look != "task_history" else 3
    assert executed.count("BEGIN IMMEDIATE") == 1 + again, "they run again only if one's own rows were written"
    with store.read() as rx:
        assert [row[0] for row in rx.sql("select agent_id from delivery order by 1")] == ["ann", "cid"]
        assert rx.one("select count(*) from task_history")[0] == 0


def test_a_refused_call_that_noted_rows_leaves_no_count_behind(opened):
    store = opened()

    def refused(tx: Tx) -> None:
        tx.insert("delivery", ("ann", 1, "default", 0, 0))
        tx.backlog["ann"] = 1
        raise MuxError("not_found", "no")

    assert Batch(store).run(refused, lambda tx: tx.backlog.get("ann"))[1] == (None, None)


@pytest.mark.parametrize("count", [1, 2, 3, 64, 71])
def test_rows_keep_what_they_hold_whatever_the_others_leave_out(opened, count):
    store = opened()
    chance = random.Random(count)
    rows = [
        (number, 0, "x", chance.choice([None, "ann"]), 0, chance.choice([None, "", "note"])) for number in range(count)
    ]

    def note_all(tx: Tx) -> None:
        for row in rows:
            tx.insert("task_history", row)

    store.write(note_all)
    with store.read() as rx:
        found = rx.sql("select task, at, act, agent_id, fence, note from task_history order by task")
    assert [tuple(row) for row in found] == rows


def test_a_message_id_that_was_dealt_in_vain_is_dealt_again_but_never_twice(opened):
    store = opened()

    def deal(tx: Tx) -> int:
        message_id = tx.deal_message_id()
        tx.insert("message", (message_id, "c", "ann", "bob", "hi", *[None] * 4, 0, None, tx.now, *[None] * 4))
        return message_id

    def deal_and_refuse(tx: Tx) -> None:
        deal(tx)
        raise MuxError("not_found", "no")

    def deal_look_and_refuse(tx: Tx) -> None:
        deal(tx)
        tx.one("select count(*) from message")
        raise MuxError("not_found", "no")

    assert [v for v, _ in Batch(store).run(deal, deal_and_refuse, deal)] == [1, None, 2]
    assert [v for v, _ in Batch(store).run(deal, deal_look_and_refuse, deal)] == [3, None, 4]
    with store.read() as rx:
        assert [row[0] for row in rx.sql("select id from message order by id")] == [1, 2, 3, 4]


def test_what_is_remembered_of_rows_does_not_outlive_a_rollback(opened):
    store = opened()

    def remember_and_fail(tx: Tx) -> None:
        tx.run("insert into meta values ('k', 'x')")
        tx.cache["k"] = "x"
        tx.backlog["ann"] = 7
        raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        store.write(remember_and_fail)
    assert store.write(lambda tx: (dict(tx.cache), dict(tx.backlog))) == ({}, {})


def test_what_is_remembered_of_rows_is_bounded(opened, monkeypatch):
    monkeypatch.setattr(transaction, "CACHE_ENTRIES", 2)
    store = opened()

    def remember(tx: Tx) -> int:
        tx.cache[object()] = "row"
        return len(tx.cache)

    assert [store.write(remember) for _ in range(5)] == [1, 2, 3, 1, 2]


def test_more_than_a_batch_is_finished_by_the_committer(opened, monkeypatch):
    monkeypatch.setattr(store, "MOST_IN_A_BATCH", 2)
    opened_store = opened()
    done = [threading.Event() for _ in range(7)]
    opened_store.gatherers.add(threading.get_ident())
    for n, event in enumerate(done):
        opened_store.submit(Job(note(f"n{n}"), lambda value, error, event=event: event.set()))
    opened_store.gatherers.clear()
    opened_store.lead()
    assert all(event.wait(5) for event in done)
    assert len(notes(opened_store)) == 7


def queue(opened_store: Store, works: list[transaction.Work]) -> list[Any]:
    """Queue these without leading; returns the list that their outcomes go to."""
    told: list[Any] = []
    opened_store.gatherers.add(threading.get_ident())
    for work in works:
        opened_store.submit(Job(work, lambda value, error: told.append(value)))
    opened_store.gatherers.clear()
    return told


def test_a_commit_makes_progress_before_and_after_its_flush(opened):
    opened_store = opened()
    commit, before = opened_store._tx.commit, []

    def committing() -> Any:
        before.append(opened_store.steps)
        return commit()

    at_work = opened_store.write(lambda tx: opened_store.steps)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Tx, "commit", lambda tx: committing())
        opened_store.write(note("a"))
    assert (before, opened_store.steps) == ([at_work + 3], at_work + 4)


def test_what_is_queued_behind_a_batch_is_left_to_the_gatherer(opened, monkeypatch):
    monkeypatch.setattr(store, "MOST_IN_A_BATCH", 1)
    opened_store = opened()
    told = queue(opened_store, [note("a"), note("b"), note("c")])
    roused: list[bool] = []
    opened_store.leave_rest_to(lambda: roused.append(opened_store.led))
    opened_store.lead()
    assert (told, roused) == (["a"], [False])
    opened_store.lead()
    opened_store.lead()
    assert (told, roused) == (["a", "b", "c"], [False, False])


def test_a_gatherer_that_writes_behind_a_full_batch_does_not_wait_for_itself(opened, background, monkeypatch):
    monkeypatch.setattr(store, "MOST_IN_A_BATCH", 2)
    opened_store = opened()
    opened_store.leave_rest_to(lambda: None)

    def gather() -> Any:
        opened_store.gatherers.add(threading.get_ident())
        for name in "abc":
            opened_store.submit(Job(note(name), lambda value, error: None))
        return opened_store.write(note("mine"))

    assert background(gather).result(5) == "mine"


def test_a_gatherer_that_cannot_be_roused_is_replaced_by_the_committer(opened, monkeypatch):
    monkeypatch.setattr(store, "MOST_IN_A_BATCH", 1)
    opened_store, ended = opened(), threading.Event()

    def rouse() -> None:
        opened_store.leave_rest_to(None)
        raise MemoryError

    opened_store.leave_rest_to(rouse)
    told = queue(opened_store, [note("a"), lambda tx: opened_store.led, lambda tx: tx.after(ended.set)])
    with pytest.raises(MemoryError):
        opened_store.lead()
    assert ended.wait(5)
    assert told[:2] == ["a", True]


def test_who_has_taken_the_lead_while_a_ring_failed_leads_alone(opened, background, monkeypatch):
    monkeypatch.setattr(store, "MOST_IN_A_BATCH", 1)
    opened_store, begun, go_on, written = opened(), threading.Event(), threading.Event(), []

    def slow(tx: Tx) -> str:
        begun.set()
        assert go_on.wait(5)
        return "b"

    def rouse() -> None:
        opened_store.leave_rest_to(None)
        written.append(background(opened_store.write, note("d")))
        assert begun.wait(5)  # that thread leads
        raise MemoryError

    opened_store.leave_rest_to(rouse)
    told = queue(opened_store, [note("a"), slow, note("c")])
    try:
        with pytest.raises(MemoryError):
            opened_store.lead()
        nobody_else = not opened_store._relay.acquire(timeout=0.05)
        assert (opened_store.led, nobody_else, told) == (True, True, ["a"])
    finally:
        go_on.set()
    assert written[0].result(5) == "d"
    assert told == ["a", "b", "c"]


def test_the_committer_makes_way_for_a_gatherer(opened, monkeypatch):
    monkeypatch.setattr(store, "MOST_IN_A_BATCH", 1)
    opened_store, begun, go_on, roused = opened(), threading.Event(), threading.Event(), threading.Event()

    def slow(tx: Tx) -> str:
        begun.set()
        assert go_on.wait(5)
        return "b"

    told = queue(opened_store, [note("a"), slow, note("c")])
    opened_store.lead()
    assert begun.wait(5)
    opened_store.leave_rest_to(roused.set)
    go_on.set()
    assert roused.wait(5)
    assert (told, opened_store.led) == (["a", "b"], False)


def test_what_was_left_to_a_gatherer_is_committed_before_the_store_closes(opened, monkeypatch):
    monkeypatch.setattr(store, "MOST_IN_A_BATCH", 1)
    opened_store = opened()
    told = queue(opened_store, [note("a"), note("b"), note("c")])
    opened_store.leave_rest_to(lambda: None)
    opened_store.lead()
    opened_store.close()
    assert told == ["a", "b", "c"]


def test_a_batch_that_fails_in_an_unexpected_way_leaves_the_store_a_leader(opened, monkeypatch, caplog):
    monkeypatch.setattr(store, "MOST_IN_A_BATCH", 1)
    opened_store = opened()
    attempt, leaders = opened_store._attempt, []

    def fail_second(batch: Any, **how: Any) -> bool:
        leaders.append(threading.current_thread().name)
        if len(leaders) == 2:
            raise MemoryError
        return bool(attempt(batch, **how))

    monkeypatch.setattr(opened_store, "_attempt", fail_second)
    told: list[Any] = []
    opened_store.gatherers.add(threading.get_ident())
    for name in "abc":
        opened_store.submit(Job(note(name), lambda value, error: told.append(value), True))
    opened_store.gatherers.clear()
    assert opened_store.write(note("d")) == "d"
    assert told == ["a", "c"]
    assert leaders[1:] == ["committer"] * 3
    assert "a commit failed" in caplog.text


def test_a_gatherer_that_writes_leads_its_own_batch_only(opened):
    """What was read with its request still waits for it, and others may go on queueing for as long as they like."""
    opened_store, leaders, ended = opened(), [], threading.Event()
    opened_store.gatherers.add(threading.get_ident())

    def queue_more(value: Any, error: BaseException | None) -> None:
        leaders.append(threading.get_ident())
        if len(leaders) < 20:
            opened_store.submit(Job(note(f"n{len(leaders)}"), queue_more))
        else:
            ended.set()

    opened_store.submit(Job(note("n0"), queue_more))
    assert opened_store.write(note("mine")) == "mine"
    assert ended.wait(5)
    assert leaders.count(threading.get_ident()) == 1


def test_a_gatherer_does_not_wait_for_another_leader(opened, background):
    opened_store, begun, go_on = opened(), threading.Event(), threading.Event()

    def work(tx: Tx) -> None:
        begun.set()
        assert go_on.wait(5)

    other = background(opened_store.write, work)
    assert begun.wait(5)
    opened_store.gatherers.add(threading.get_ident())
    with pytest.raises(store.Led):
        opened_store.write(note("n0"))
    go_on.set()
    other.result(5)
    assert notes(opened_store) == []


def test_a_caller_that_fails_to_take_its_answer_costs_nobody_theirs(opened, caplog):
    store = opened()

    def fail(value: Any, error: BaseException | None) -> None:
        raise RuntimeError("can't start new thread")

    told: list[Any] = []
    store.gatherers.add(threading.get_ident())
    store.submit(Job(note("a"), fail))
    store.submit(Job(note("b"), lambda value, error: told.append(value)))
    store.lead()
    store.gatherers.clear()
    assert told == ["b"]
    assert store.write(note("c")) == "c", "somebody leads"
    assert "could not be reported" in caplog.text


def test_listeners_that_fail_cost_nobody_an_answer(opened, caplog):
    store = opened()
    store.publish = lambda events, topics, offers: 1 / 0
    assert store.write(note("a")) == "a"
    assert store.write(note("b")) == "b"
    assert "could not be announced" in caplog.text


def test_a_hook_that_fails_keeps_neither_the_next_nor_the_news_from_anybody(opened, caplog):
    store, did = opened(), []
    store.publish = lambda events, topics, offers: did.append(topics)

    def work(tx: Tx) -> None:
        note("a")(tx)
        tx.after(lambda: 1 / 0)
        tx.after(lambda: did.append("hooked"))

    store.write(work)
    assert did == ["hooked", [("note", "a")]]
    assert "could not be followed up" in caplog.text


def test_an_interrupted_leader_leaves_the_store_usable(opened):
    store = opened()

    def interrupt(tx: Tx) -> None:
        note("never")(tx)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(interrupt)
    assert store.write(note("a")) == "a"
    assert notes(store) == ["a"]


def test_an_outcome_may_queue_more_work(opened):
    store = opened()
    again = threading.Event()
    store.submit(Job(note("a"), lambda v, e: store.submit(Job(note("b"), lambda v, e: again.set()))))
    assert again.wait(5)
    assert notes(store) == ["a", "b"]


def test_a_closed_store_refuses_and_does_not_hang(opened):
    store = opened()
    opened.close()
    with pytest.raises(MuxError) as caught:
        store.write(note("late"))
    assert caught.value.code == "shutting_down"
    told: list[Any] = []
    store.submit(Job(note("late"), lambda value, error: told.append(error.code)))
    assert told == ["shutting_down"]


def test_closing_commits_what_is_queued(opened):
    store = opened()
    store.gatherers.add(threading.get_ident())
    told: list[Any] = []
    for n in range(5):
        store.submit(Job(note(f"n{n}"), lambda value, error: told.append(value)))
    store.gatherers.clear()
    opened.close()
    assert told == [f"n{n}" for n in range(5)]
    assert len(notes(opened())) == 5


def test_a_reader_that_ends_after_the_close_leaves_nothing_open(opened):
    store = opened()
    with store.read() as rx:
        assert rx.one("select 1")[0] == 1
        closing = threading.Thread(target=opened.close)
        closing.start()
        while not store._ended:
            pass
    closing.join(8)
    assert not closing.is_alive()
    assert store._readers == []


def test_of_readers_that_were_busy_at_once_only_a_few_stay_open(opened):
    made: list[sqlite3.Connection] = []

    def connect(*given: Any, **options: Any) -> sqlite3.Connection:
        made.append(sqlite3.connect(*given, **options))
        return made[-1]

    reading = opened(connect=connect)
    with contextlib.ExitStack() as reads:
        for _ in range(store.POOLED_READERS + 1):
            reads.enter_context(reading.read())
    assert len(reading._readers) == store.POOLED_READERS
    (left_over,) = set(made) - {reading._db, *reading._readers}
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        left_over.execute("select 1")


# -- faults


WRITES = 6
"""The statements of the transaction below: BEGIN, four that write, COMMIT."""

HOOKED: list[int] = []


@pytest.fixture(autouse=True)
def _nothing_hooked() -> None:
    HOOKED.clear()


def change(tx: Tx) -> int:
    """Writes with every way there is: run, noted rows, many; an event, a topic, an offer, a hook."""
    tx.run("insert into meta values ('k', 'x')")
    message_id = tx.deal_message_id()
    tx.insert("message", (message_id, "c", "ann", "bob", "hi", *[None] * 4, 0, None, tx.now, *[None] * 4))
    tx.many("insert into meta values (?, 'x')", [("m1",), ("m2",)])
    tx.cache["k"] = "x"
    tx.emit("message", "{}")
    tx.touch(("inbox", "bob"))
    tx.offer(("task", "c", None))
    tx.after(lambda: HOOKED.append(message_id))
    return message_id


@pytest.mark.parametrize("rolls_back", [False, True], ids=["stays open", "rolled back by SQLite"])
@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN])
@pytest.mark.parametrize("at", range(WRITES))
def test_a_fault_at_any_statement_changes_nothing_and_passes(opened, fault, at, code, rolls_back, monkeypatch):
    monkeypatch.setattr("stonemux.store.BUSY_TURNS", 1)  # its patience is at an end
    store = opened(connect=fault.connect)
    announced: list[Any] = []
    store.publish = lambda *what: announced.append(what)
    fault.arm(at, code, rolls_back=rolls_back)
    with pytest.raises(MuxError) as caught:
        store.write(change, grows=True)
    assert len(fault.seen) > at, "the statement was reached"
    assert caught.value.code == ("storage_full" if code == sqlite3.SQLITE_FULL else "storage_busy")
    assert caught.value.retry_after
    fault.arm(None)
    assert announced == HOOKED == []
    assert notes(store) == []
    assert store.head == 0
    assert store.fatal is None
    assert store.write(lambda tx: (dict(tx.cache), change(tx))) == ({}, 1), "no message id was used up"
    assert store.head == 1, "no event id was used up"
    assert notes(store) == ["k", "m1", "m2"]
    assert len(announced) == 1


def test_a_commit_waits_for_another_programs_lock(opened, fault, background, monkeypatch):
    monkeypatch.setattr("stonemux.store.BUSY_TURN_MS", 5)
    store = opened(connect=fault.connect)
    with contextlib.closing(sqlite3.connect(opened.path / "stonemux.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        fault.arm(None)
        writing = background(store.write, note("a"))
        while len(fault.seen) < 2:
            pass
        other.execute("ROLLBACK")
        assert writing.result(5) == "a"


def test_the_faults_above_strike_every_statement(opened, fault):
    store = opened(connect=fault.connect)
    fault.arm(None)
    store.write(change)
    assert len(fault.seen) == WRITES
    assert fault.seen[0] == "BEGIN IMMEDIATE"
    assert fault.seen[-1] == "COMMIT"


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR | 4 << 8, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB])
@pytest.mark.parametrize("at", range(WRITES))
def test_a_failing_disk_ends_all_writing(opened, fault, at, code):
    store = opened(connect=fault.connect)
    announced: list[Any] = []
    fatal: list[str] = []
    store.publish = lambda *what: announced.append(what)
    store.on_fatal = lambda error: fatal.append(error.code)
    fault.arm(at, code)
    with pytest.raises(MuxError) as caught:
        store.write(change)
    assert caught.value.code == "storage_error"
    fault.arm(None)
    assert fatal == ["storage_error"]
    assert announced == HOOKED == []
    with pytest.raises(MuxError) as caught:
        store.write(note("late"))
    assert caught.value.code == "storage_error"
    assert fault.seen == [], "the disk is not touched any more"
    assert notes(store) == [], "reading goes on"
    assert store.head == 0


def test_a_failing_disk_lets_nobody_in_the_batch_through(opened, fault):
    store = opened(connect=fault.connect)

    def fail_late(tx: Tx) -> None:
        note("x")(tx)
        raise ValueError("so that all are run one by one")

    fault.arm(8, sqlite3.SQLITE_IOERR)  # after the batch's three statements and its rollback: the second one's insert
    outcomes = Batch(store).run(note("a"), fail_late, note("b"), note("c"))
    assert store.fatal is not None
    codes = [getattr(error, "code", type(error).__name__) for _, error in outcomes]
    assert "storage_error" in codes
    first = codes.index("storage_error")
    assert codes[first:] == ["storage_error"] * (4 - first)
    assert notes(store) == [value for value, error in outcomes if error is None]


def test_a_full_disk_refuses_the_whole_batch_and_is_over_when_there_is_space(opened, fault):
    store = opened(connect=fault.connect)
    fault.arm(4)  # BEGIN, two notes, the events, COMMIT
    outcomes = Batch(store).run(note("a"), note("b"))
    assert [error.code for _, error in outcomes] == ["storage_full"] * 2
    assert fault.seen[4] == "COMMIT"
    assert Batch(store).run(note("a"), note("b")) == [("a", None), ("b", None)]


class Disk:
    """A disk that is full for writers until the ballast is given back, and has room when a test says so."""

    def __init__(self, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = path / "ballast"
        self.free = 0
        monkeypatch.setattr(store._ballast, "free", lambda: self.free)


@pytest.fixture
def full(opened, fault, monkeypatch) -> tuple[Store, Disk]:
    store = opened(connect=fault.connect)
    return store, Disk(store, opened.path, monkeypatch)


@pytest.mark.parametrize("at", range(WRITES))
def test_fault_34_what_frees_something_is_written_on_a_full_disk(full, fault, at):
    store, disk = full
    assert disk.file.stat().st_blocks * 512 >= ballast.BYTES, "it takes space"
    fault.arm(at)
    assert store.write(change) == 1
    assert len(fault.seen) > at
    assert not disk.file.exists()
    assert notes(store) == ["k", "m1", "m2"]
    assert store.head == 1
    with pytest.raises(MuxError) as caught:
        store.write(note("more"), grows=True)
    assert caught.value.code == "storage_full"
    assert store.write(note("settled")) == "settled"


def test_fault_34_a_batch_on_a_full_disk_loses_only_what_would_grow(full, fault):
    store, _ = full
    told: dict[str, Any] = {}
    store.gatherers.add(threading.get_ident())
    for name, grows in (("a", True), ("b", False), ("c", True), ("d", False)):
        store.submit(
            Job(note(name), lambda value, error, name=name: told.__setitem__(name, value or error.code), grows)
        )
    fault.arm(5)
    store.lead()
    store.gatherers.clear()
    assert told == {"a": "storage_full", "b": "b", "c": "storage_full", "d": "d"}
    assert notes(store) == ["b", "d"]


def test_fault_34_a_disk_that_is_full_beyond_the_ballast_refuses_that_too(full, fault, monkeypatch):
    store, _ = full

    def always(db: sqlite3.Connection, query: str) -> None:
        if query == "COMMIT":
            trouble = sqlite3.OperationalError("full")
            trouble.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise trouble

    with monkeypatch.context() as patched:
        patched.setattr(fault, "strike", always)
        for _ in range(3):
            with pytest.raises(MuxError) as caught:
                store.write(note("a"))
            assert caught.value.code == "storage_full"
    assert store.fatal is None
    assert store.write(note("a")) == "a"


def test_fault_34_all_is_as_ever_when_there_is_room_again(full, fault, opened):
    store, disk = full
    fault.arm(1)
    store.write(note("settled"))
    store.keep_ballast()
    assert not disk.file.exists(), "there is no room for it"
    disk.free = ballast.ROOM_BYTES
    assert store.write(note("more"), grows=True) == "more"
    assert disk.file.stat().st_size == ballast.BYTES
    assert stat.S_IMODE(disk.file.stat().st_mode) == 0o600
    fault.arm(1)
    assert store.write(note("settled again")) == "settled again", "and it serves once more"


def test_the_ballast_is_kept_over_a_restart_and_given_to_one_on_a_full_disk(opened, monkeypatch):
    opened()
    opened.close()
    assert (opened.path / "ballast").exists()
    monkeypatch.setattr(ballast.Ballast, "free", lambda self: 1000)
    store = opened()
    assert not (opened.path / "ballast").exists()
    with pytest.raises(MuxError) as caught:
        store.write(note("more"), grows=True)
    assert caught.value.code == "storage_full"
    assert store.write(note("settled")) == "settled"


def test_no_ballast_is_made_where_there_is_no_room(opened, monkeypatch):
    monkeypatch.setattr(ballast.Ballast, "free", lambda self: ballast.ROOM_BYTES - 1)
    store = opened()
    store.keep_ballast()
    assert not (opened.path / "ballast").exists()
    assert store.write(note("a"), grows=True) == "a", "it may still fit"
    monkeypatch.undo()
    store.keep_ballast()
    assert (opened.path / "ballast").exists(), "set aside as soon as there is room"


def test_ballast_that_does_not_fit_after_all_is_not_kept(opened, monkeypatch):
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ballast, "_take", full)
    assert opened().write(note("a"), grows=True) == "a"
    assert not (opened.path / "ballast").exists()


def test_a_rollback_that_fails_ends_all_writing(opened, fault):
    store = opened(connect=fault.connect)

    def fail(tx: Tx) -> None:
        note("x")(tx)
        fault.arm(0, sqlite3.SQLITE_IOERR)
        raise ValueError("now the rollback fails, too")

    with pytest.raises(MuxError) as caught:
        store.write(fail)
    assert caught.value.code == "storage_error"
    assert store.fatal is not None


def test_a_reader_that_cannot_open_the_database_is_told_to_come_again(opened, fault):
    """Running out of descriptors is no failure of the disk."""
    store = opened(connect=fault.connect)
    for at in (0, 1):
        fault.arm(at, sqlite3.SQLITE_CANTOPEN)
        with pytest.raises(MuxError) as caught, store.read() as rx:
            rx.sql("select * from meta")
        assert caught.value.code == "storage_busy"
    assert store.fatal is None
    assert store.write(note("a")) == "a"


def test_a_read_for_which_sqlite_finds_no_memory_leaves_its_connection_usable(opened):
    store = opened()

    def starve(rx: Any) -> None:
        rx._execute("ROLLBACK")  # as SQLite then does itself
        raise MemoryError

    with pytest.raises(MemoryError), store.read() as rx:
        starve(rx)
    assert notes(store) == []
    assert len(store._readers) == 1


def test_a_reader_that_finds_the_disk_failing_ends_all_writing(opened, fault):
    store = opened(connect=fault.connect)
    fault.arm(1, sqlite3.SQLITE_IOERR)
    with pytest.raises(MuxError) as caught, store.read() as rx:
        rx.sql("select * from meta")
    assert caught.value.code == "storage_error"
    with pytest.raises(MuxError):
        store.write(note("a"))


@pytest.mark.parametrize("name", ["stonemux.db", "stonemux.db-wal"])
@pytest.mark.parametrize("act", ["unlink", "replace"])
def test_a_file_that_was_taken_away_gets_no_acknowledgment(opened, name, act):
    """Fault 36."""
    store = opened()
    fatal: list[str] = []
    announced: list[Any] = []
    store.on_fatal = lambda error: fatal.append(error.code)
    store.publish = lambda *what: announced.append(what)
    store.write(note("before"))
    announced.clear()
    file = opened.path / name
    if act == "unlink":
        file.unlink()
    else:
        copy = opened.path / "copy"
        copy.write_bytes(file.read_bytes())
        copy.rename(file)
    for _ in range(2):
        with pytest.raises(MuxError) as caught:
            store.write(note("after"))
        assert caught.value.code == "storage_lost"
    assert fatal == ["storage_lost"]
    assert announced == []


@pytest.mark.parametrize("gone", [True, False])
def test_a_reader_makes_no_empty_file_where_the_database_was(opened, gone):
    """Fault 36: what is opened anew then would be taken for the database, and have no tables."""
    store = opened()
    store._drop_readers()
    (opened.path / "stonemux.db").rename(opened.path / "kept.db")
    if not gone:
        (opened.path / "stonemux.db").mkdir()
    with pytest.raises(MuxError) as caught, store.read() as rx:
        rx.one("select * from meta")
    assert caught.value.code == "storage_lost"
    assert (opened.path / "stonemux.db").exists() != gone
    assert store.fatal is not None


# -- upkeep


def grown(opened: Callable[..., Store], **options: Any) -> Store:
    """A store whose write-ahead log has grown, because somebody reads."""
    store = opened(**options)
    with store.read() as rx:
        rx.one("select 1 from meta")
        for n in range(5):
            store.write(lambda tx, n=n: tx.run("insert into meta values (?, ?)", f"k{n}", "x" * 1_000_000))
    return store


def test_a_log_that_has_grown_is_folded_in_when_all_is_quiet(opened):
    store = grown(opened)
    assert store.size()["wal_bytes"] > 4_000_000
    assert store.fold()
    assert store.size()["wal_bytes"] == 0
    assert store.write(note("a")) == "a"
    assert notes(store) == ["a"]


def test_folding_waits_for_nobody(opened, background):
    store = grown(opened)
    with store.read() as rx:
        rx.one("select 1 from meta")
        store.write(note("a"))
        assert not store.fold(), "somebody reads"
    leading, go_on = threading.Event(), threading.Event()

    def slow(tx: Tx) -> str:
        leading.set()
        assert go_on.wait(5)
        return note("b")(tx)

    writing = background(store.write, slow)
    assert leading.wait(5)
    assert not store.fold(), "somebody writes"
    go_on.set()
    assert writing.result(5) == "b"
    opened.close()
    assert not store.fold()


def test_who_writes_while_the_log_is_folded_is_served_after_it(opened, fault, background):
    store = grown(opened, connect=fault.connect)
    folding, go_on = threading.Event(), threading.Event()
    execute = store._db.execute

    class Slow:
        def execute(self, query: str) -> Any:
            if "wal_checkpoint" in query:
                folding.set()
                assert go_on.wait(5)
            return execute(query)

    store._db, kept = Slow(), store._db
    folded = background(store.fold)
    assert folding.wait(5)
    writing = [background(store.write, note(name)) for name in "ab"]
    while len(store._queue) < 2:
        pass
    go_on.set()
    assert folded.result(5)
    assert [future.result(5) for future in writing] == ["a", "b"]
    store._db = kept


def test_a_disk_that_fails_while_the_log_is_folded_ends_all_writing(opened, monkeypatch):
    store = grown(opened)
    told: list[str] = []
    store.on_fatal = lambda error: told.append(error.code)
    kept = store._db

    class Broken:
        def execute(self, query: str) -> Any:
            if "wal_checkpoint" in query:
                trouble = sqlite3.OperationalError("disk I/O error")
                trouble.sqlite_errorcode = sqlite3.SQLITE_IOERR
                raise trouble
            return kept.execute(query)

    store._db = Broken()
    assert not store.fold()
    store._db = kept
    assert told == ["storage_error"]


def test_a_fold_that_fails_in_an_unexpected_way_leaves_the_lead_to_others(opened):
    store = grown(opened)
    kept = store._db

    class Starved:
        def execute(self, query: str) -> Any:
            raise MemoryError

    store._db = Starved()
    with pytest.raises(MemoryError):
        store.fold()
    store._db = kept
    assert not store.led


def test_a_check_of_the_whole_database_is_noted(opened):
    store = opened()
    store.write(note("a"))
    assert store.checked == (0, -1)
    store.check()
    assert store.checked[1] == store.head == 1
    assert store.damage == ""
    checked = store.checked
    opened.close()
    assert opened().checked == checked


def test_a_check_that_finds_damage_says_so_and_serving_goes_on(opened, caplog):
    opened()
    opened.close()
    with contextlib.closing(sqlite3.connect(opened.path / "stonemux.db", isolation_level=None)) as db:
        db.execute("insert into member values ('c', 'ann', 1)")
        db.execute("PRAGMA writable_schema=on")
        db.execute("update sqlite_master set sql = replace(sql, '(agent_id)', '(channel)') where name = 'member_agent'")
    store = opened()
    store.check()
    assert "member_agent" in store.damage
    assert "restore a backup" in caplog.text
    assert store.write(note("a")) == "a"
    assert store.checked[0] > 0, "it is not read again and again"
    opened.close()
    assert opened().checked == (0, -1), "but again after a start"


def test_a_check_that_cannot_open_the_files_does_not_call_them_damaged(opened, fault, monkeypatch):
    store = opened(connect=fault.connect)
    trouble = sqlite3.OperationalError("unable to open database file")
    trouble.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN

    def no_descriptor(*_: Any) -> None:
        raise trouble

    monkeypatch.setattr(Faulty, "execute", no_descriptor)
    with pytest.raises(sqlite3.OperationalError):
        store.check()
    assert (store.damage, store.checked) == ("", (0, -1))
    trouble.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    store.check()
    assert store.damage == str(trouble), "what cannot be read to its end is damaged"
    assert store.checked[0] > 0


@pytest.mark.parametrize("whose", ["store", "timekeeper"])
def test_the_end_cuts_a_check_short(opened, caplog, whose):
    store = opened()
    apart, cut_check, cut = store.apart, store.cut_check, threading.Event()
    # the timekeeper ends first, while the store is open
    end = threading.Thread(target=opened.close if whose == "store" else lambda: store.cut_check())

    def seen_cutting() -> None:
        cut_check()
        cut.set()

    def checking() -> None:
        if end.ident is None:
            end.start()
            cut.wait(5)

    def ended_meanwhile() -> sqlite3.Connection:
        db = apart()
        db.set_progress_handler(checking, 10)
        return db

    store.apart, store.cut_check = ended_meanwhile, seen_cutting
    store.check()
    end.join()
    assert store.damage == ""
    assert store.checked == (0, -1)
    assert "damaged" not in caplog.text


# -- starting


def refused(opened: Callable[..., Store], **options: Any) -> MuxError:
    with pytest.raises(MuxError) as caught:
        opened(**options)
    assert caught.value.failure.exit == 78
    return caught.value


def test_the_files_are_for_us_alone(opened):
    old = os.umask(0)
    try:
        opened().write(note("a"))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in opened.path.iterdir()}
    finally:
        os.umask(old)
    assert stat.S_IMODE(opened.path.stat().st_mode) == 0o700
    assert modes.keys() >= {"stonemux.db", "stonemux.db-wal", "stonemux.db-shm", "CREATED", "daemon.pid"}
    assert set(modes.values()) == {0o600}


def test_the_writer_is_durable_and_the_readers_cannot_write(opened):
    store = opened()
    pragma = lambda name: store._db.execute(f"PRAGMA {name}").fetchone()[0]  # noqa: E731
    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 2
    assert pragma("foreign_keys") == 1
    assert pragma("trusted_schema") == 0
    assert pragma("mmap_size") == 0
    with pytest.raises(sqlite3.OperationalError, match="readonly"), store.read() as rx:
        rx._execute("insert into meta values ('a', 'b')")
    with store.read() as rx:
        assert rx.one("PRAGMA query_only")[0] == 1
        assert rx.one("PRAGMA wal_autocheckpoint")[0] == 0


class Lax(sqlite3.Connection):
    """A SQLite that was built to flush less than it is told."""

    def execute(self, query: str, values: Any = (), /) -> sqlite3.Cursor:
        return super().execute("PRAGMA synchronous=NORMAL" if query == "PRAGMA synchronous=FULL" else query, values)


def test_a_sqlite_that_does_not_flush_at_each_commit_is_refused(opened):
    with pytest.raises(MuxError, match="flush") as caught:
        opened(connect=partial(sqlite3.connect, factory=Lax))
    assert caught.value.code == "unsafe_environment"


def test_a_sqlite_without_strict_tables_is_refused_before_anything_is_made(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    with pytest.raises(MuxError, match=r"SQLite 3\.37 or newer") as caught:
        opened()
    assert caught.value.code == "unsafe_environment"
    assert not (tmp_path / "data/stonemux.db").exists()


def test_a_database_that_another_program_has_to_itself_is_not_called_unreadable(opened, monkeypatch):
    monkeypatch.setattr(opening, "BUSY_S", 0.01)
    opened()
    opened.close()
    with contextlib.closing(sqlite3.connect(opened.path / "stonemux.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("insert into meta values ('a', 'b')")
        with pytest.raises(MuxError, match="another program has locked") as caught:
            opened()
    assert caught.value.code == "storage_busy"


@pytest.mark.parametrize(
    "damage", ["empty", "garbage", "garbage page", "missing", "foreign", "foreign with a journal", "no tables"]
)
def test_a_database_that_is_not_ours_or_not_whole_is_refused_and_left_alone(opened, damage):
    """Fault 37."""
    store = opened()
    for n in range(50):
        store.write(note(f"a note that fills a page before long {n:09}" * 20))
    opened.close()
    database = opened.path / "stonemux.db"
    if damage == "missing":
        database.unlink()
    elif damage == "empty":
        database.write_bytes(b"")
    elif damage == "garbage":
        database.write_bytes(b"not a database, whatever its name says " * 1000)
    elif damage == "garbage page":
        whole = bytearray(database.read_bytes())
        whole[8192 : len(whole) - 4096] = b"\xa5" * (len(whole) - 12288)
        database.write_bytes(whole)
    else:
        database.unlink()
        with sqlite3.connect(database) as other:
            if damage.startswith("foreign"):
                other.execute("create table theirs (a)")
            else:
                other.execute(f"PRAGMA application_id={tables.APPLICATION_ID}")
        other.close()
    if damage.endswith("journal"):
        Path(f"{database}-journal").write_bytes(bytes(512))
    before = database.read_bytes() if database.exists() else None
    error = refused(opened)
    assert error.code == "data_refused"
    assert str(database) in error.message
    assert (database.read_bytes() if database.exists() else None) == before


def test_a_newer_database_is_refused_and_left_alone(opened):
    opened()
    opened.close()
    with sqlite3.connect(opened.path / "stonemux.db") as db:
        db.execute(f"PRAGMA user_version={len(tables.MIGRATIONS) + 1}")
    db.close()
    before = (opened.path / "stonemux.db").read_bytes()
    assert "newer" in refused(opened).message
    assert (opened.path / "stonemux.db").read_bytes() == before


def test_a_database_that_went_back_in_time_is_refused_until_that_is_accepted(opened):
    store = opened()
    store.write(note("a"))
    opened.close()
    old = (opened.path / "stonemux.db").read_bytes()
    store = opened()
    store.write(lambda tx: change(tx))
    opened.close()
    (opened.path / "stonemux.db").write_bytes(old)
    assert "--accept-rollback" in refused(opened).message
    store = opened(accept_rollback=True)
    assert store.head > 2, "an id that was dealt once is not dealt again"
    assert store.write(change) > 1, "nor is a message's"
    head = store.head
    opened.close()
    assert opened().head == head, "from here on all is as ever"


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"event_seq": null}', b'{"event_seq": "x"}', b"\xff"])
def test_a_torn_sidecar_says_nothing(opened, torn):
    opened().write(note("a"))
    opened.close()
    (opened.path / "head.json").write_bytes(torn)
    assert opened().head == 1


def test_a_full_disk_at_the_start_is_one_clear_refusal(opened, fault):
    for at in range(20):
        opened()
        opened.close()
        fault.arm(at)
        try:
            opened(connect=fault.connect)
        except MuxError as error:
            assert error.code in ("storage_full", "data_refused")  # noqa: PT017
        else:
            assert len(fault.seen) <= at
            break
    else:
        pytest.fail("a start has fewer statements than that")


# -- migrations


STEPS = (
    *tables.MIGRATIONS,
    ("create table extra (a integer) strict", "insert into extra values (1)"),
    ("alter table extra add column b text", "update extra set b = 'new'"),
)


@pytest.fixture
def newer(monkeypatch):
    """Makes this a newer version of the program, with these migrations, or (none given) the one that it is again."""

    def become(steps: tuple[tuple[str, ...], ...] = tables.MIGRATIONS) -> None:
        for module in (opening, migration):
            monkeypatch.setattr(module, "MIGRATIONS", steps)

    return become


def copies_made(opened: Any) -> list[Path]:
    return sorted((opened.path / "backups").glob("*"))


def test_fault_34_new_tables_take_their_room_at_once(opened):
    """Else a stop on a full disk could not fold the log in, and the next start would find no room at all."""
    store = opened()
    with store.read() as rx:
        pages = rx.one("PRAGMA page_count")[0]
    assert (opened.path / "stonemux.db").stat().st_size == pages * 4096
    assert (opened.path / "stonemux.db-wal").stat().st_size < pages * 4096 // 4


def test_a_new_database_is_made_whole_or_not_at_all(opened, newer):
    newer((*tables.MIGRATIONS, ("create table extra (a integer) strict", "insert into extra values ('not one')")))
    with pytest.raises(sqlite3.IntegrityError):
        opened()
    with contextlib.closing(sqlite3.connect(opened.path / "stonemux.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (0,)
        assert db.execute("select * from sqlite_master").fetchall() == []
    newer(STEPS)
    opened().write(note("kept"))


def test_a_migration_goes_step_by_step_and_keeps_a_copy(opened, newer):
    opened().write(note("kept"))
    newer(STEPS)
    migrated = opened()
    assert notes(migrated) == ["kept"]
    with migrated.read() as rx:
        assert tuple(rx.one("select * from extra")) == (1, "new")
        assert rx.one("PRAGMA user_version")[0] == len(STEPS)
    (copy,) = copies_made(opened)
    assert copy.name.startswith(f"schema-{len(tables.MIGRATIONS)}-")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    db = sqlite3.connect(copy)
    assert db.execute("PRAGMA user_version").fetchone()[0] == len(tables.MIGRATIONS)
    assert db.execute("select key from meta where value = 'x'").fetchall() == [("kept",)]
    db.close()
    opened()
    assert copies_made(opened) == [copy]


def test_a_copy_that_was_interrupted_is_taken_for_none(opened, newer):
    opened().write(note("kept"))
    opened.close()
    (opened.path / "backups").mkdir()
    (opened.path / "backups" / f".schema-{len(tables.MIGRATIONS)}-2026.db.new").write_bytes(b"half")
    newer(STEPS)
    opened()
    (copy,) = copies_made(opened)
    assert copies.inspect(copy).stands.event_seq


def test_the_way_back_from_a_newer_version_and_forward_again(opened, newer):
    opened().write(note("before"))
    newer(STEPS)
    opened().write(note("after"))
    newer()
    with pytest.raises(MuxError, match="made by a newer stonemux") as caught:
        opened()
    (copy,) = copies_made(opened)
    assert f"stonemux restore {copy.name}" in caught.value.message
    locked = DataDir(opened.path)
    kept, _ = copies.restore(locked, copy, copies.inspect(copy), FakeClock().now_ms())
    locked.close()
    assert kept is not None
    store = opened()
    assert notes(store) == ["before"]
    store.write(note("more"))
    newer(STEPS)
    clock = FakeClock()
    clock.advance(5000)
    assert notes(opened(clock=clock)) == ["before", "more"]
    latest = copies_made(opened)[-1]
    assert latest != copy
    db = sqlite3.connect(latest)
    assert db.execute("select count(*) from meta where value = 'x'").fetchall() == [(2,)]
    db.close()


@pytest.mark.parametrize("broken", [0, 1])
def test_a_migration_that_fails_leaves_the_steps_before_it_and_tells_the_way_back(opened, newer, broken):
    opened().write(note("kept"))
    steps = list(STEPS)
    at = len(tables.MIGRATIONS) + broken
    steps[at] = (*steps[at], "this is no SQL")
    newer(tuple(steps))
    with pytest.raises(MuxError, match="cannot be migrated from schema") as caught:
        opened()
    assert caught.value.code == "data_refused"
    if broken:
        (copy,) = copies_made(opened)
        assert caught.value.message.endswith(f"stonemux restore {copy.name} --data-dir {copy.parent.parent}")
    else:
        assert not copies_made(opened)
        assert caught.value.message.endswith("nothing was changed")
    db = sqlite3.connect(opened.path / "stonemux.db")
    assert db.execute("PRAGMA user_version").fetchone()[0] == at
    assert bool(db.execute("select count(*) from sqlite_master where name = 'extra'").fetchone()[0]) is bool(broken)
    db.close()
    newer(STEPS)
    assert notes(opened()) == ["kept"]


def test_without_room_for_the_copy_nothing_is_changed(opened, newer, monkeypatch):
    opened().write(note("kept"))
    newer(STEPS)
    monkeypatch.setattr(copies, "SPARE_BYTES", 2**62)
    with pytest.raises(MuxError, match="the copy needs") as caught:
        opened()
    assert caught.value.code == "storage_full"
    newer()
    assert notes(opened()) == ["kept"]


def test_fault_34_a_disk_that_fills_up_while_tables_are_rebuilt_keeps_no_copy(opened, newer, fault):
    """Nothing was changed, and the copy would take the room that the next attempt needs."""
    opened().write(note("kept"))
    newer(STEPS)
    fault.arm(1)  # the statement after BEGIN
    with pytest.raises(MuxError) as caught:
        opened(connect=fault.connect)
    assert (caught.value.code, fault.seen[1][:18]) == ("storage_full", "create table extra")
    assert not copies_made(opened)
    assert notes(opened()) == ["kept"]


def test_messages_of_the_first_schema_are_found_by_a_search(tmp_path, newer):
    newer(tables.MIGRATIONS[:1])
    directory = DataDir(tmp_path / "data")
    Store(directory, FakeClock()).close()
    directory.close()
    newer()
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "stonemux.db")) as db:
        db.execute(
            "insert into message (id, channel, sender, addressed, content, sent_at) values (7, 'default', 'a', 'b', "
            "'old words', 1)"
        )
        db.execute("create virtual table message_words using fts5(content, subject, content='message')")
        db.execute("update searched set through = 7")
        db.commit()
    program = Program(tmp_path / "data")
    try:
        face = Direct(program.mux)
        (found,) = face.call("msg.search", q="words")["results"]
        assert (found["id"], found["excerpt"]) == (7, "old **words**")
    finally:
        program.close()


SCATTERED = next(n for n, step in enumerate(tables.MIGRATIONS) if "message_floor" in step[0])
"""The last schema in which deliveries lay in the order of agents, and SQLite kept the highest id of a message."""


@pytest.fixture
def old_mail(tmp_path, newer) -> Path:
    """A database of that schema with mail in every state for bob: ids 1 to 9, the tenth was purged."""
    newer(tables.MIGRATIONS[:SCATTERED])
    directory = DataDir(tmp_path / "data")
    Store(directory, FakeClock()).close()
    directory.close()
    newer()
    now = EPOCH_MS + 1000
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "stonemux.db")) as db:
        db.execute(f"insert into channel (name, id, created_at) values ('lab', 'chan-1', {now})")
        for agent_id in ("ann", "bob"):
            db.execute(
                "insert into agent (id, capabilities, channel, ack, registered_at, last_heartbeat) "
                f"values ('{agent_id}', '[]', 'lab', 'plain', {now}, {now})"
            )
            db.execute(f"insert into member values ('lab', '{agent_id}', {now})")
        for message_id, priority in enumerate((0, 5, 0, -1, 0, 5, 0, 0, 0, 0), 1):
            db.execute(
                "insert into message (id, channel, sender, addressed, content, priority, sent_at, metadata, mentions) "
                "values (?, 'lab', 'ann', 'bob', ?, ?, ?, ?, ?)",
                (message_id, f"word{message_id}", priority, now, '{"a":1}', '["bob"]'),
            )
            db.execute(
                "insert into delivery (agent_id, message_id, channel, priority) values ('bob', ?, 'lab', ?)",
                (message_id, priority),
            )
        for message_id, change in (
            (5, f"state = 1, deliveries = 1, due_at = {now + 60_000}"),
            (6, f"state = 2, deliveries = 1, settled_at = {now}, reason = 'received'"),
            (7, f"state = 2, settled_at = {now}, archived = 1"),
            (8, f"state = 3, deliveries = 20, settled_at = {now}, reason = 'max_deliveries'"),
        ):
            db.execute(f"update delivery set {change} where message_id = {message_id}")
        db.execute("delete from message where id = 10")
        db.execute("delete from delivery where message_id = 10")
        db.commit()
    return tmp_path / "data"


def test_mail_of_an_older_schema_is_all_there_and_in_its_order(old_mail):
    program = Program(old_mail)
    try:
        assert list((old_mail / "backups").glob(f"schema-{SCATTERED}-*"))
        with program.store.read() as rx:
            assert rx.one("PRAGMA integrity_check")[0] == "ok"
            assert rx.sql("select 1 from sqlite_master where name = 'kept'") == []
        bob = {"agent_id": "bob"}
        face = Direct(program.mux)

        def ids(name: str, list_name: str = "messages", **how: Any) -> list[int]:
            return [shown.get("message_id", shown.get("id")) for shown in face.call(name, **bob, **how)[list_name]]

        assert ids("msg.dead") == [8]
        assert ids("inbox.list", "items", status="unread") == [9, 5, 4, 3, 2, 1]
        assert ids("inbox.list", "items", status="read") == [6]
        assert ids("inbox.list", "items", status="archived") == [7]
        assert ids("inbox.list", "items", status="all") == [9, 7, 6, 5, 4, 3, 2, 1]
        assert face.call("agent.get", **bob)["agent"]["unread"] == 6
        assert face.call("stats")["messages"]["unread"] == 6
        assert [found["id"] for found in face.call("msg.search", q="word9")["results"]] == [9]
        assert ids("msg.poll", timeout=0, ack="manual") == [2, 1, 3, 9, 4]
        program.clock.advance(61_000)
        program.timekeeper.tick()
        assert ids("msg.poll", timeout=0) == [2, 1, 3, 5, 9, 4]
        assert ids("msg.poll", timeout=0, after=0) == [1, 2, 3, 4, 5, 6, 7, 9]
        whole = face.call("msg.list")["messages"][0]
        assert (whole["metadata"], whole["mentions"], whole["content"]) == ({"a": 1}, ["bob"], "word9")
        assert face.call("msg.send", from_="ann", to="bob", channel="lab", content="x")["message_id"] == 11
        assert ids("msg.poll", timeout=0) == [11]
    finally:
        program.close()


def test_I11_a_restored_copy_of_an_older_schema_deals_no_id_again(old_mail, tmp_path):
    directory = DataDir(tmp_path / "fresh")
    copy = old_mail / "stonemux.db"
    copies.restore(directory, copy, copies.inspect(copy), FakeClock().now_ms())
    directory.close()
    program = Program(tmp_path / "fresh")
    try:
        sent = Direct(program.mux).call("msg.send", from_="ann", to="bob", channel="lab", content="x")
        assert sent["message_id"] == 10 + opening.SKIPPED + 1
    finally:
        program.close()


def test_I11_what_was_purged_is_remembered_in_the_same_transaction(opened):
    store = opened()

    def say(tx: Tx) -> int:
        message_id = tx.deal_message_id()
        tx.insert("message", (message_id, "c", "ann", "bob", "hi", *[None] * 4, 0, None, tx.now, *[None] * 4))
        return message_id

    assert [store.write(say) for _ in range(3)] == [1, 2, 3]
    store.write(lambda tx: tx.insert("delivery", ("bob", 1, "c", 0, 0)))
    assert store.write(lambda tx: messages.purge(tx, tx.now + 1, 10)) == 2
    store = opened()
    assert store.write(lambda tx: tx.run("update delivery set state = 2").rowcount) == 1
    assert store.write(lambda tx: messages.purge(tx, tx.now + 1, 10)) == 1
    store = opened()
    assert store.write(say) == 4


# -- time


def test_time_does_not_run_back_across_a_restart(opened):
    clock = FakeClock()
    store = opened(clock=clock)
    clock.advance(3_600_000)
    store.write(note("a"))
    late = clock.now_ms()
    opened.close()
    slow = FakeClock()
    assert slow.now_ms() < late
    store = opened(clock=slow)
    assert slow.now_ms() >= late
    assert store.write(lambda tx: tx.now) >= late


def test_time_does_not_run_back_after_a_crash(opened):
    """Nothing was noted at the end: the newest event tells the time."""
    clock = FakeClock()
    store = opened(clock=clock)
    clock.advance(3_600_000)
    store.write(note("a"))
    store._note_clock = lambda tx: None
    late = clock.now_ms()
    opened.close()
    slow = FakeClock()
    opened(clock=slow)
    assert slow.now_ms() >= late > EPOCH_MS


def test_time_does_not_run_back_after_a_crash_without_an_event(opened):
    clock = FakeClock()
    clock.advance(3_600_000)
    store = opened(clock=clock)
    store._note_clock = lambda tx: None
    opened.close()
    slow = FakeClock()
    opened(clock=slow)
    assert slow.now_ms() >= clock.now_ms()


# -- the plans of the hot queries


@pytest.fixture
def plan(mux: Mux, monkeypatch) -> Callable[..., list[str]]:
    """The plans of the queries that contain some words, while something runs."""

    def planner(act: Callable[[], Any], *words: str) -> list[str]:
        explained: list[str] = []

        def listen(execute: Callable[..., Any]) -> Callable[..., Any]:
            def listening(query: str, values: Any = ()) -> Any:
                if all(word in query for word in words) and not query.startswith("explain"):
                    rows = execute("explain query plan " + query, values).fetchall()
                    explained.append(" | ".join(row[3] for row in rows))
                return execute(query, values)

            return listening

        original = transaction.Snapshot.__init__

        def attached(self: Any, db: sqlite3.Connection, mux: Mux, now: int) -> None:
            original(self, db, mux, now)
            self._execute = listen(self._execute)

        monkeypatch.setattr(transaction.Snapshot, "__init__", attached)
        tx = mux.store._tx
        kept, tx._execute = tx._execute, listen(tx._execute)
        try:
            act()
        finally:
            tx._execute = kept
            monkeypatch.setattr(transaction.Snapshot, "__init__", original)
        assert explained, "no such query ran"
        return explained

    return planner


@pytest.fixture
def agents(direct: Any) -> Any:
    for agent_id in ("ann", "bob"):
        direct.call("agent.register", agent_id=agent_id, capabilities=["a", "b"])
    return direct


def assert_sought(plans: list[str], *indexes: str) -> None:
    """Each plan seeks in one of these indexes; nothing is scanned or sorted."""
    for found in plans:
        assert any(index in found for index in indexes), found
        assert "SCAN" not in re.sub(r"SCAN (json_each|CONSTANT ROW|\(subquery-\d+\))", "", found), found
        assert "TEMP B-TREE" not in found, found


@pytest.mark.parametrize("channel", [None, "default"])
@pytest.mark.parametrize("how", [{}, {"types": ["status"]}, {"ack": "manual"}])
def test_a_poll_merges_what_came_in_order_and_what_is_urgent(agents, plan, channel, how):
    agents.call("msg.send", from_="ann", to="bob", content="hi")
    plans = plan(lambda: agents.call("msg.poll", agent_id="bob", timeout=0, channel=channel, **how), "urgency desc")
    for index in ("delivery_open (agent_id=?)", "delivery_urgent (agent_id=?)"):
        assert_sought(plans, f"COVERING INDEX {index}")


@pytest.mark.parametrize("channel", [None, "default"])
def test_a_cursor_poll_seeks_behind_its_cursor(agents, plan, channel):
    agents.call("msg.send", from_="ann", to="bob", content="hi")
    plans = plan(lambda: agents.call("msg.poll", agent_id="bob", timeout=0, after=0, channel=channel), "d.state < 3")
    for index in ("delivery_open", "delivery_rest"):
        assert_sought(plans, f"COVERING INDEX {index} (agent_id=? AND message_id>?)")


TRAYS = ("INDEX delivery_", "delivery USING PRIMARY KEY (message_id=?", "d USING PRIMARY KEY (message_id=?")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("msg.poll", {"timeout": 0, "after": 1}),
        ("msg.poll", {"timeout": 0, "redeliver": True}),
        ("msg.ack", {"through": 1}),
        ("msg.ack", {"ids": [1]}),
        ("msg.dead", {}),
        ("msg.requeue", {"ids": [1]}),
        ("inbox.list", {"status": "unread"}),
        ("inbox.list", {"status": "read"}),
        ("inbox.list", {"status": "archived"}),
        ("inbox.list", {"status": "all"}),
        ("inbox.update", {"all": True, "status": "read"}),
        ("inbox.update", {"all": True, "status": "archived"}),
        ("inbox.update", {"all": True, "status": "unread"}),
        ("agent.get", {}),
    ],
)
def test_whatever_looks_into_an_inbox_seeks(agents, plan, name, how):
    for priority in (0, 1):
        agents.call("msg.send", from_="ann", to="bob", content="hi", priority=priority)
    agents.call("msg.poll", agent_id="bob", timeout=0, ack="manual", limit=1)
    agents.call("msg.poll", agent_id="bob", timeout=0, after=0)
    assert_sought(plan(lambda: agents.call(name, agent_id="bob", **how), " delivery "), *TRAYS)


def test_a_purge_finds_the_deliveries_of_its_messages(agents, plan, mux):
    agents.call("msg.send", from_="ann", to="bob", content="hi")
    agents.call("msg.poll", agent_id="bob", timeout=0, ack="manual")
    agents.call("msg.ack", agent_id="bob", ids=[1])
    plans = plan(lambda: mux.store.write(lambda tx: messages.purge(tx, tx.now + 1, 10)), " delivery ")
    assert len(plans) == 4
    plans[1] = plans[1].replace("SCAN message", "")  # in order, up to the first that is young
    assert_sought(plans, *TRAYS)


@pytest.mark.parametrize(
    "given", [{}, {"status": "complete"}, {"channel": "default"}, {"status": "pending", "capability": "a"}]
)
def test_a_list_of_tasks_reads_as_many_of_each_status_as_it_shows(agents, plan, given):
    last = agents.call("task.post", description="x", posted_by="ann")["task_id"]
    for after in (None, last):
        for found in plan(lambda: agents.call("task.list", after=after, **given), "from task", "order by"):  # noqa: B023
            assert "INDEX task_list (channel=? AND status=?" in found
            assert "SCAN task" not in found


@pytest.mark.parametrize("given", [{}, {"channel": "default"}, {"agent_id": "ann"}])
def test_a_thread_is_read_by_its_index(agents, plan, given):
    for found in plan(lambda: agents.call("msg.list", thread="1", **given), "from message m", "order by"):
        assert "INDEX message_thread (thread=?)" in found


def test_a_claim_seeks_once_a_capability(agents, plan):
    plans = plan(lambda: agents.call("task.claim", agent_id="bob"), "select priority, seq from task")
    assert len(plans) == 4
    assert_sought(plans, "task_open", "task_assigned")


def test_claiming_and_completing_seek_what_they_change(agents, plan):
    """The agent looked once, so that is all there is to it."""
    agents.call("task.claim", agent_id="bob")
    agents.call("task.post", description="x", posted_by="ann")
    assert_sought(plan(lambda: agents.call("task.claim", agent_id="bob"), "update task"), "task_open")
    given = {"task_id": agents.call("task.list")["tasks"][0]["task_id"], "agent_id": "bob"}
    assert_sought(plan(lambda: agents.call("task.complete", **given), "update task"), "sqlite_autoindex_task_1")


def test_what_is_due_is_found_by_its_time(agents, plan, mux):
    assert_sought(plan(lambda: mux.store.write(tasks.settle_due), "due_at <= ?"), "task_due")


def test_unread_mail_is_counted_without_the_read(agents, plan, mux):
    plans = plan(lambda: mux.store.write(lambda tx: messages.backlog(tx, "bob")), "count(*) from delivery")
    for index in ("delivery_open", "delivery_urgent"):
        assert_sought(plans, f"COVERING INDEX {index} (agent_id=?)")


def test_tasks_are_counted_without_being_sorted(agents, plan):
    (found,) = plan(lambda: agents.call("stats"), "from task group")
    assert "COVERING INDEX task_list" in found
    assert "TEMP B-TREE" not in found


def test_events_are_read_by_their_ids(agents, plan):
    assert_sought(plan(lambda: agents.call("events.list", after=0), "from event where id >"), "INTEGER PRIMARY KEY")


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 64, 65, 131])
def test_buffered_rows_are_stored_as_given_whatever_they_have_in_common(opened, count):
    """A statement spells out what is null in all of its rows, and takes a value that all of them have only once."""
    opened_store = opened()
    texts: list[list[str | None]] = [
        [None] * count,
        ["same"] * count,
        ["same", *("other" for _ in range(count - 2)), "same"][:count],
        [None, *("value" for _ in range(count - 2)), None][:count],
        [None if number % 2 else "value" for number in range(count)],
        [str(number) for number in range(count)],
    ]
    for agents, notes, fences in itertools.product(texts, texts, (1, 3)):
        rows = [(7, 1000, "act", agents[number], number % fences, notes[number]) for number in range(count)]

        def insert(tx: Tx, rows: list[tuple[Any, ...]] = rows) -> None:
            tx.run("delete from task_history")
            for row in rows:
                tx.insert("task_history", row)

        opened_store.write(insert)
        with opened_store.read() as rx:
            assert [tuple(row) for row in rx.sql("select * from task_history order by rowid")] == rows


def test_the_columns_of_noted_rows_exist():
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for statement in itertools.chain(*tables.MIGRATIONS):
            db.execute(statement)
        for table, columns in transaction.INSERTS.items():
            known = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
            assert {column.strip() for column in columns.split(",")} <= known


def test_the_fields_of_a_task_are_its_columns():
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for statement in itertools.chain(*tables.MIGRATIONS):
            db.execute(statement)
        assert [row[1] for row in db.execute("PRAGMA table_info(task)")] == list(taskrows.Task._fields)
        assert transaction.INSERTS["task"].split(", ")[:9] == list(taskrows.Task._fields[1:10])
