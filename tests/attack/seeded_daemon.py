"""A daemon with one defect, to test whether the attacks find it: `seeded_daemon.py DEFECT [flags of serve]`.

The released program contains none of this. Each defect is one that real programs of this kind have had; if its window
is too short to be hit within seconds, it is extended by a few milliseconds, which changes the odds but not the defect.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from stonemux import (
    claims,
    cli,
    connection,
    directory,
    door,
    leases,
    messages,
    mux,
    operations,
    parking,
    state,
    store,
    taskrows,
    tasks,
    transaction,
)

STRETCH_S = 0.004


def change_run(name: str, run: Callable[..., Any]) -> None:
    """Make an operation run another function."""
    module, _, function = operations.BY_NAME[name].handler.partition(".")
    setattr(import_module(f"stonemux.{module}"), function, run)


def replaced(text: str, old: str, new: str) -> str:
    """Like `replace`, but fails if there is nothing to replace."""
    assert old in text
    return text.replace(old, new)


def cas_race() -> None:
    """The version is checked when the call arrives, but the value is written later."""
    init = door.Call.__init__

    def checked_early(self: Any, program: Any, operation: Any, given: Any, caller: Any, **more: Any) -> None:
        if operation.name == "state.set" and given.get("expected_version") is not None:
            given = dict(given)
            expected = given.pop("expected_version")
            with program.store.read() as rx:
                row = state._row(rx, given.get("channel", "default"), given["key"])
            live = row["version"] if row is not None and not row["deleted"] else 0
            if expected != live:
                raise state._conflict(row, given["key"], expected, live)
        init(self, program, operation, given, caller, **more)

    door.Call.__init__ = checked_early


def aba() -> None:
    """A deleted key leaves no tombstone, so its versions start over."""
    delete = state.delete

    def forget(tx: Any, **given: Any) -> Any:
        answer = delete(tx, **given)
        for table in ("state", "state_version"):
            tx.run(
                f"delete from {table} where channel = ? and key = ?",
                directory.channel(tx, given["channel"])["name"],
                given["key"],
            )
        return answer

    change_run("state.delete", forget)


def claim_race() -> None:
    """The task is chosen from an earlier snapshot, and claimed without checking that it is still available."""

    def chosen_early(tx: Any, agent: Any, channel: str) -> Any:
        with tx.mux.store.read() as rx:
            row = rx.one(
                "select seq, fence from task where status = 'pending' and channel = ? order by priority desc, seq",
                channel,
            )
        if row is None:
            return None
        tx.run("update task set status = 'pending', fence = ? where seq = ?", row["fence"], row["seq"])
        return tasks.take(tx, "?4", agent["id"], row["seq"])

    claims._claim_best = chosen_early


def zombie_complete() -> None:
    """A completion is accepted from any agent that once held the task."""
    held = tasks.held

    def anybody(tx: Any, task_id: str, agent_id: str, token: str | None) -> Any:
        row = taskrows.find(tx, task_id)
        return row if token is not None and row.status == "claimed" else held(tx, task_id, agent_id, token)

    tasks.held = anybody


def no_idempotency() -> None:
    """Keys are accepted but not remembered."""
    door._remember = lambda *_: None


def auto_ack() -> None:
    """Everything written to a socket counts as delivered."""
    finish = connection.Connection.finish

    def settled(self: Any, answer: bytes, *, close: bool, flight: Any = None) -> None:
        if flight is not None:
            flight.landed()
        finish(self, answer, close=close)

    connection.Connection.finish = settled


def ack_before_commit() -> None:
    """The caller is answered before the transaction is committed."""
    attempt, commit = store.Store._attempt, transaction.Tx.commit
    early: list[tuple[Any, Any]] = []

    def eager(job: Any) -> Any:
        told = []

        def work(tx: Any) -> Any:
            value = job.work(tx)
            early.append((job.done, value))
            told.append(True)
            return value

        return transaction.Job(work, lambda value, error: None if told else job.done(value, error))

    def commit_late(self: Any) -> Any:
        for done, value in early:
            done(value, None)
        early.clear()
        time.sleep(5 * STRETCH_S)  # a kill must hit this window
        return commit(self)

    store.Store._attempt = lambda self, batch: attempt(self, [eager(job) for job in batch])
    transaction.Tx.commit = commit_late


def lost_wakeup() -> None:
    """A waiter reads first, and registers afterwards."""

    take_seat = parking.Parked._take_seat

    def park(self: Any, wait: Any, seat: Any, done: Any) -> None:
        parking.Parked(self, wait, seat, done).look()

    def register(self: Any) -> None:
        if not self._seated:
            take_seat(self)
            threading.Timer(STRETCH_S, self._lot.mux.hub.enroll, [self]).start()

    parking.Lot.park = park
    parking.Parked._take_seat = register


def wake_before_commit() -> None:
    """Waiters are woken before what they wait for is visible."""
    commit = transaction.Tx.commit

    def early(self: Any) -> Any:
        topics, offers = self._topics, self._offers
        self._topics, self._offers = [], []
        self.mux.hub.wake(topics)
        for topic in offers:
            self.mux.hub.offer(topic)
        time.sleep(STRETCH_S)
        return commit(self)

    transaction.Tx.commit = early


def receipt_ignored() -> None:
    """A client that vanished counts as having received the answer."""
    connection._has_ended = lambda sock: False

    def judge(self: Any, *, arrived: bool) -> None:
        self._verdicts += [(flight, True) for flight in self._flights]
        self._flights = []

    connection.Connection._judge = judge


def cursor_skips() -> None:
    """The message right after a cursor is left out."""
    messages._AFTER = replaced(messages._AFTER, "d.message_id > ?4", "d.message_id > ?4 + 1")


def forgotten_ack() -> None:
    """An acknowledgement is counted but not stored."""
    ack = leases.ack

    def forget(tx: Any, **given: Any) -> Any:
        if given["ids"] is None:
            return ack(tx, **given)
        return {"acked": len(given["ids"])}

    change_run("msg.ack", forget)


def short_lease() -> None:
    """A lease ends as soon as it begins."""
    lease = leases._lease
    leases._lease = lambda tx, agent_id, ids, lease_ms: lease(tx, agent_id, ids, 0)


def event_id_before_commit() -> None:
    """Streams show events, with their ids, before a commit that may never happen."""
    commit = transaction.Tx.commit

    def early(self: Any) -> Any:
        if events := self._noted["event"]:
            self.mux.log.publish(events)
        time.sleep(5 * STRETCH_S)  # a kill must hit this window
        return commit(self)

    transaction.Tx.commit = early
    publish = mux.Mux._publish

    def without_events(self: Any, events: list[Any], topics: list[Any], offers: list[Any]) -> None:
        publish(self, [], [*topics, ("events",)] if events else topics, offers)

    mux.Mux._publish = without_events


DEFECTS = {
    defect.__name__: defect
    for defect in (
        cas_race,
        aba,
        claim_race,
        zombie_complete,
        no_idempotency,
        auto_ack,
        ack_before_commit,
        lost_wakeup,
        wake_before_commit,
        receipt_ignored,
        cursor_skips,
        forgotten_ack,
        short_lease,
        event_id_before_commit,
    )
}


def main() -> int:
    """Install the defect and serve."""
    DEFECTS[sys.argv[1]]()
    return cli.main(["serve", *sys.argv[2:]])


if __name__ == "__main__":
    sys.exit(main())
