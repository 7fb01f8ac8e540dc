"""The timekeeper's disk maintenance: it does nothing while nothing has happened."""

from __future__ import annotations

import sqlite3
import threading

import pytest
from faces import join, refusal
from raw import eventually

from stonemux import timekeeper
from stonemux.chain import Entry
from stonemux.clock import DAY_MS
from stonemux.errors import MuxError
from stonemux.timekeeper import CHECK_MS, HOUSEKEEPING_MS
from stonemux.transaction import Tx
from stonemux.trays import LEASED, QUEUED


@pytest.fixture
def acts(program, monkeypatch):
    """What is done to the disk, and the log's size as it is believed to be."""
    done: list[str] = []
    store = program.store
    size = {"database_bytes": 1, "wal_bytes": 0}
    check = store.check
    monkeypatch.setattr(store, "size", lambda: size)
    monkeypatch.setattr(store, "fold", lambda: done.append("fold"))
    monkeypatch.setattr(store, "check", lambda: (done.append("check"), check()))
    monkeypatch.setattr(store, "cut_check", lambda: None)  # whoever waits for its end lets it come to it
    return done, size


def keep_house(program) -> None:
    program.clock.advance(HOUSEKEEPING_MS)
    program.timekeeper.tick()
    program.timekeeper.end_check()


def test_the_database_is_checked_once_a_week_if_something_happened(program, direct, acts):
    done, _ = acts
    join(direct, "ann")
    program.timekeeper.tick()
    assert done == [], "a start need not wait for it"
    for _ in range(3):
        keep_house(program)
    assert done == ["check"]
    direct.call("agent.heartbeat", agent_id="ann")
    join(direct, "bob")
    keep_house(program)
    assert done == ["check"], "it is a week until the next"
    program.clock.advance(CHECK_MS)
    keep_house(program)
    keep_house(program)
    assert done == ["check"] * 2


def test_a_database_that_nobody_changed_is_not_read_again(program, direct, acts):
    done, _ = acts
    join(direct, "ann")
    keep_house(program)
    store = program.store
    store.checked = (store.checked[0] - 2 * CHECK_MS, store.head)
    keep_house(program)
    assert done == ["check"]


def test_only_a_large_log_is_cut(program, acts):
    done, size = acts
    size["wal_bytes"] = timekeeper.LARGE_LOG_BYTES
    keep_house(program)
    assert "fold" not in done
    size["wal_bytes"] += 1
    keep_house(program)
    assert done.count("fold") == 1


def test_the_directory_learns_of_recorded_refusals_later_than_of_events(program, direct, clock, monkeypatch):
    join(direct, "ann")
    program.timekeeper.tick()
    noted = program.directory.read_head()
    assert noted.event_seq == program.store.head
    refusal(direct, "agent_not_found", "msg.send", from_="ann", to="bob", content="x")
    alarms = []
    monkeypatch.setattr(program.mux.alarm, "set", alarms.append)
    clock.advance(timekeeper.NOTE_HEAD_MS - 1)
    program.timekeeper.tick()
    assert program.store.audited[0] > noted.audit_seq
    assert program.directory.read_head() == noted
    assert alarms == [clock.now_ms() + timekeeper.NOTE_HEAD_MS]
    clock.advance(timekeeper.NOTE_HEAD_MS)
    program.timekeeper.tick()
    assert program.directory.read_head().audit_seq == program.store.audited[0]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("out of memory"), "the database could not be checked"),
        (MuxError("storage_full", "no room"), "the check of the database was not recorded: no room"),
    ],
)
def test_a_check_that_fails_is_told_and_the_daemon_lives_on(program, monkeypatch, caplog, error, told):
    def fail() -> None:
        raise error

    caplog.set_level("INFO", "stonemux")
    monkeypatch.setattr(program.store, "check", fail)
    keep_house(program)
    assert told in caplog.text
    keep_house(program)


def test_housekeeping_that_fails_is_told_and_tried_again_a_second_later(program, monkeypatch, caplog):
    keeper, clock, ticks = program.timekeeper, program.clock, []

    def fail() -> None:
        ticks.append(clock.now_ms())
        raise MuxError("storage_full", "no room") if len(ticks) == 1 else RuntimeError("a bug")

    monkeypatch.setattr(keeper, "tick", fail)
    keeper.start()
    try:
        for done in (1, 2, 3):
            eventually(lambda done=done: len(ticks) == done)
            clock.until_parked(1)
            clock.advance(1000)
        eventually(lambda: len(ticks) == 4)
    finally:
        keeper.stop()
    assert [at - ticks[0] for at in ticks] == [0, 1000, 2000, 3000]
    told = [record.message for record in caplog.records]
    assert told == ["housekeeping was refused: no room", *["housekeeping failed"] * 3]


def test_fault_34_a_full_disk_keeps_nobody_from_purging(program, direct, clock, monkeypatch):
    """Every second, refusals could not be entered, which was logged, and what would free space did not happen."""

    def full(*_: object) -> None:
        raise MuxError("storage_full", "no room")

    join(direct, "ann", "bob")
    direct.call("msg.send", from_="ann", to="bob", content="x")
    direct.call("inbox.update", agent_id="bob", all=True, status="read")
    program.mux.blotter.note(Entry("refused"))
    clock.advance(8 * DAY_MS)
    monkeypatch.setattr(timekeeper.audit, "enter_noted", full)
    program.mux.alarm.wait()
    program.timekeeper.tick()
    assert direct.call("msg.list")["messages"] == []
    assert program.mux.alarm._at == clock.now_ms() + 1000


def test_an_end_that_comes_before_the_check_reads_is_felt(program, direct, monkeypatch):
    join(direct, "ann")
    store, cuts, reading = program.store, threading.Semaphore(0), []
    apart, cut_check = store.apart, store.cut_check

    def seen_cutting() -> None:
        cut_check()
        cuts.release()

    def read() -> None:
        if not reading:
            reading.append(True)
            cuts.acquire(timeout=5)

    def apart_at_last() -> sqlite3.Connection:
        assert cuts.acquire(timeout=5), "nobody told the check to end"
        db = apart()
        db.set_progress_handler(read, 10)
        return db

    monkeypatch.setattr(store, "apart", apart_at_last)
    monkeypatch.setattr(store, "cut_check", seen_cutting)
    keep_house(program)
    assert reading
    assert store.checked == (0, -1)


def test_health_tells_of_damage(face, program):
    assert face.call("health")["status"] == "ok"
    program.store.damage = "wrong # of entries in index member_agent"
    assert face.call("health")["status"] == "failing"


def test_i6_a_lease_does_not_wait_until_everything_old_is_forgotten(program, direct, monkeypatch):
    join(direct, "ann", "bob")
    program.clock.advance(HOUSEKEEPING_MS)
    direct.call("msg.send", from_="ann", to="bob", content="hi")
    (message,) = direct.call("msg.poll", agent_id="bob", timeout=0, ack="manual", lease=1)["messages"]
    states = []

    def forget_some(tx: Tx, most: int) -> int:
        states.append(tx.one("select state from delivery where message_id = ?", message["id"])[0])
        program.clock.advance(1000)
        return most if len(states) == 1 else 0

    monkeypatch.setattr(timekeeper.door, "purge_idempotency", forget_some)
    program.timekeeper.tick()
    assert states == [LEASED, QUEUED]


def test_a_stop_does_not_wait_until_everything_old_is_forgotten(program, direct, monkeypatch):
    """Each piece is a commit, and there may be thousands of them."""
    join(direct, "ann")
    keeper, forgotten = program.timekeeper, []

    def forget_some(tx: Tx, most: int) -> int:
        forgotten.append(most)
        keeper._stopping = len(forgotten) == 3
        assert len(forgotten) <= 3
        return most

    monkeypatch.setattr(timekeeper.door, "purge_idempotency", forget_some)
    monkeypatch.setattr(timekeeper.documents, "purge", lambda tx, before: pytest.fail("it went on"))
    program.clock.advance(HOUSEKEEPING_MS)
    keeper.tick()
    assert len(forgotten) == 3
