"""Manual acknowledgment: messages on a lease, for several workers on one inbox, or for a worker that may crash.

    queued ──take──> leased ──ack──> settled
      ^                │ │
      ├─expire, nack───┘ └──(too many deliveries)──> dead ──requeue──> queued

A leased message is invisible to polls. Its lease is committed before the answer goes out, so no crash of the worker or
the daemon loses the message; when the lease expires, it is delivered again, with `deliveries` one higher. A message
that was delivered `max_deliveries` times without an ack becomes a dead letter.

A nack with a delay is a lease without a holder.
"""

from __future__ import annotations

from typing import Any

from stonemux import directory, doorbells, messages, trays
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.mux import Caller, Mux
from stonemux.payload import dumps
from stonemux.transaction import Job, Snapshot, Tx
from stonemux.trays import DEAD, LEASED, QUEUED, SETTLED

DUE_AT_ONCE = 500
"""Maximum number of expired leases that one transaction settles."""

_LEASE = (
    f"update delivery set state = {LEASED}, due_at = ?, deliveries = deliveries + 1, fetched_at = ? "
    f"where agent_id = ? and message_id = ? and state <= {QUEUED} returning deliveries"
)
_ACK = (
    f"update delivery set state = {SETTLED}, due_at = null, settled_at = ?, reason = null "
    f"where agent_id = ? and message_id = ? and state < {SETTLED}"
)


def take(
    mux: Mux, caller: Caller, agent_id: str, channel: str | None, types: list[str] | None, limit: int, lease: int
) -> dict[str, Any] | None:
    """Lease queued messages for `lease` seconds and return them; None if there are none."""
    rows, more = messages.choose(mux, agent_id, channel, types, limit, caller.room)
    if not rows:
        return None
    ids = [row["id"] for row in rows]
    try:
        leased: dict[int, int] = mux.store.write(lambda tx: _lease(tx, agent_id, ids, lease * 1000))
    except BaseException:
        mux.flights.end(agent_id, ids)
        mux.hub.wake([("inbox", agent_id)])  # another poll may have found nothing while we held them
        raise
    mux.flights.end(agent_id, ids)
    if not leased:  # all of them were settled in the meantime
        return None
    caller.flight = _Handed(mux, agent_id, leased)
    answer = messages.answer([row for row in rows if row["id"] in leased], more=more)
    for shown in answer["messages"]:
        shown["deliveries"] = leased[shown["id"]]
        if shown["deliveries"] > 1:
            shown["redelivered"] = True
    return answer


class _Handed:
    """Leased messages whose answer is in flight; if it is lost, the delivery does not count."""

    __slots__ = ("_agent_id", "_leased", "_mux")

    def __init__(self, mux: Mux, agent_id: str, leased: dict[int, int]) -> None:
        self._mux, self._agent_id, self._leased = mux, agent_id, leased

    def landed(self) -> None:
        pass  # the lease remains in force

    def lost(self) -> None:
        # Do not wait for the commit: the thread that calls this may be the one that leads it.
        self._mux.store.submit(Job(self._put_back, lambda value, error: None))

    def _put_back(self, tx: Tx) -> None:
        for message_id, deliveries in self._leased.items():  # skip one whose lease expired and that is leased anew
            if tx.run(
                f"update delivery set state = {QUEUED}, due_at = null, deliveries = deliveries - 1 "
                f"where agent_id = ? and message_id = ? and state = {LEASED} and deliveries = ?",
                self._agent_id,
                message_id,
                deliveries,
            ).rowcount:
                messages.note_run_out(tx, message_id)
        _changed(tx, self._agent_id)


def _lease(tx: Tx, agent_id: str, ids: list[int], lease_ms: int) -> dict[int, int]:
    """Lease those that are still queued; returns the count of deliveries by id."""
    leased: dict[int, int] = {}
    for message_id in ids:
        for row in tx.sql(_LEASE, tx.now + lease_ms, tx.now, agent_id, message_id):
            leased[message_id] = row[0]
    tx.backlog.pop(agent_id, None)
    _set_alarm(tx, tx.now + lease_ms)
    return leased


def _set_alarm(tx: Tx, at: int) -> None:
    tx.after(lambda: tx.mux.alarm.set(at))


def _queue_again(tx: Tx, agent_id: str, message_id: int) -> bool:
    """End a lease, so that the message is delivered again; False if its time to live ran out, so that it is dead."""
    tx.run(
        f"update delivery set state = {QUEUED}, due_at = null where agent_id = ? and message_id = ?",
        agent_id,
        message_id,
    )
    _changed(tx, agent_id)
    return not messages.note_run_out(tx, message_id)


def _changed(tx: Tx, agent_id: str) -> None:
    """Note that a message is queued again: wake the inbox's waiters."""
    tx.backlog.pop(agent_id, None)
    tx.touch(("inbox", agent_id))


# -- acknowledging


def ack(tx: Tx, *, agent_id: str, ids: list[int] | None, through: int | None) -> dict[str, Any]:
    """Settle messages by id, or all up to one; returns how many were not settled before."""
    directory.agent(tx, agent_id)
    if (ids is None) == (through is None):
        code = "missing_field" if ids is None else "invalid_field"
        raise MuxError(code, "give either ids or through, but not both", parameter="ids")
    if through is not None:
        messages.check_cursor(tx, agent_id, through, "through")
        messages.confirm_through(tx, agent_id, through)
        return {"acked": messages.settle_through(tx, agent_id, through, None)}
    assert ids is not None
    rows = [_delivered(tx, agent_id, message_id) for message_id in ids]
    acked = 0
    for row in rows:
        if row["reason"] == messages.RECEIVED:
            messages.confirm(tx, agent_id, row["message_id"])
        acked += tx.run(_ACK, tx.now, agent_id, row["message_id"]).rowcount
    tx.backlog.pop(agent_id, None)
    return {"acked": acked}


def _delivery(rx: Snapshot, agent_id: str, message_id: int) -> Any:
    row = rx.one("select * from delivery where agent_id = ? and message_id = ?", agent_id, message_id)
    if row is None:
        raise MuxError(
            "message_not_found",
            f"the inbox of {agent_id!r} never had a message {message_id}; nothing was changed",
            id=message_id,
        )
    return row


def _delivered(rx: Snapshot, agent_id: str, message_id: int) -> Any:
    """A delivery that the agent has seen; raises `not_delivered` if it has not been polled yet."""
    row = _delivery(rx, agent_id, message_id)
    seen = row["deliveries"] or row["state"] > QUEUED or rx.mux.flights.saw(agent_id, message_id)
    if not seen:
        raise MuxError(
            "not_delivered",
            f"message {message_id} has not been delivered to {agent_id!r} yet, so it cannot be acknowledged; poll it "
            "first. Nothing was changed",
            id=message_id,
        )
    return row


def _held(tx: Tx, agent_id: str, message_id: int) -> Any:
    directory.agent(tx, agent_id)
    row = _delivery(tx, agent_id, message_id)
    if row["state"] != LEASED:
        state = {SETTLED: "settled", DEAD: "dead"}.get(row["state"], "queued")
        raise MuxError(
            "not_delivered",
            f"message {message_id} is not on a lease of {agent_id!r} (it is {state}); only messages delivered by a "
            "poll with ack=manual can be put back or extended",
            id=message_id,
            status=state,
        )
    return row


def nack(tx: Tx, *, agent_id: str, id: int, delay: int) -> dict[str, Any]:
    """Put a leased message back, to be delivered again at once or after `delay` seconds."""
    row = _held(tx, agent_id, id)
    if _give_up(tx, row):
        return {"id": id, "status": "dead"}
    if delay:
        tx.run(
            "update delivery set due_at = ? where agent_id = ? and message_id = ?", tx.now + delay * 1000, agent_id, id
        )
        _set_alarm(tx, tx.now + delay * 1000)
    elif not _queue_again(tx, agent_id, id):
        return {"id": id, "status": "dead"}
    return {"id": id, "status": "queued"}


def extend(tx: Tx, *, agent_id: str, id: int, lease: int) -> dict[str, Any]:
    """Make a lease expire `lease` seconds from now."""
    _held(tx, agent_id, id)
    due_at = tx.now + lease * 1000
    tx.run("update delivery set due_at = ? where agent_id = ? and message_id = ?", due_at, agent_id, id)
    _set_alarm(tx, due_at)
    return {"id": id, "lease_expires_at": rfc3339(due_at)}


# -- dead letters


def _give_up(tx: Tx, row: Any) -> bool:
    """Make a message a dead letter if it was delivered too often; returns whether it was."""
    most = tx.mux.settings.max_deliveries
    if row["deliveries"] < most:
        return False
    tx.run(
        f"update delivery set state = {DEAD}, due_at = null, settled_at = ?, reason = 'max_deliveries' "
        "where agent_id = ? and message_id = ?",
        tx.now,
        row["agent_id"],
        row["message_id"],
    )
    told = {"id": row["message_id"], "agent_id": row["agent_id"], "reason": "max_deliveries", "deliveries": most}
    tx.emit("message_dead", dumps(told), channel=row["channel"], agents=(row["agent_id"],))
    return True


def dead(rx: Snapshot, *, agent_id: str, limit: int) -> dict[str, Any]:
    """An agent's dead letters, oldest first, each with its reason."""
    directory.agent(rx, agent_id)
    rows = rx.sql(
        f"select {messages.FIELDS}, d.deliveries, d.reason, d.settled_at as died_at "
        f"from message m, {trays.DEAD_LETTERS} and m.id = d.message_id order by d.message_id limit ?2",
        agent_id,
        limit + 1,
    )
    if run_out := messages.run_out(rx, agent_id):
        rows += rx.sql(
            f"select {messages.FIELDS}, d.deliveries, 'expired' as reason, m.expires_at as died_at from delivery d "
            "join message m on m.id = d.message_id "
            "where d.agent_id = ?1 and d.message_id in (select value from json_each(?2))",
            agent_id,
            dumps(sorted(run_out)[: limit + 1]),
        )
        rows.sort(key=lambda row: int(row["id"]))
    answer: dict[str, Any] = {"messages": [_dead_view(row) for row in rows[:limit]]}
    if len(rows) > limit:
        answer["more"] = True
    return answer


def _dead_view(row: Any) -> dict[str, Any]:
    return messages.view(row) | {
        "deliveries": row["deliveries"],
        "reason": row["reason"],
        "died_at": rfc3339(row["died_at"]),
    }


def requeue(tx: Tx, *, agent_id: str, ids: list[int]) -> dict[str, Any]:
    """Queue dead letters again, with their count of deliveries reset; other messages are left alone.

    One that expired no longer has a time to live in this inbox: the caller wants it delivered all the same.
    """
    directory.agent(tx, agent_id)
    for message_id in ids:
        _delivery(tx, agent_id, message_id)
    count = 0
    for message_id in ids:
        messages.note_run_out(tx, message_id)
        count += tx.run(
            f"update delivery set state = {QUEUED}, deliveries = 0, settled_at = null, reason = null, revived = "
            "(select 1 from message where id = message_id and (revived or expires_at <= ?1)) "
            f"where agent_id = ?2 and message_id = ?3 and state = {DEAD}",
            tx.now,
            agent_id,
            message_id,
        ).rowcount
    if count:
        _changed(tx, agent_id)
        _ring(tx, agent_id, max(ids))
    return {"requeued": count}


def redeliver(tx: Tx, agent_id: str, since: int) -> int:
    """Queue again what plain polls have settled since a time, unless archived or expired; returns how many."""
    count = tx.run(
        f"update delivery set state = {QUEUED}, settled_at = null, reason = null "
        "where agent_id = ?1 and reason = ?2 and archived is null "
        f"and message_id in ({trays.ids(trays.REST, narrowed=f'd.state = {SETTLED} and d.settled_at >= ?3')}) "
        "and (revived or not exists (select 1 from message where id = message_id and expires_at <= ?4))",
        agent_id,
        messages.RECEIVED,
        since,
        tx.now,
    ).rowcount
    if count:
        _changed(tx, agent_id)
    return count


def _ring(tx: Tx, agent_id: str, message_id: int) -> None:
    """Ring the doorbell as for new mail: mail is back in an inbox, and its reader may be gone."""
    if (bell := tx.mux.endpoints.bells.get(agent_id)) is not None:
        doorbells.ring(tx, bell, message_id, messages.backlog(tx, agent_id))


# -- run by the timekeeper


def settle_due(tx: Tx) -> None:
    """Handle leases and delays that have expired: queue the messages again, or make them dead letters."""
    rows = tx.sql("select * from delivery where due_at <= ? order by due_at limit ?", tx.now, DUE_AT_ONCE)
    back: dict[str, int] = {}
    for row in rows:
        if not _give_up(tx, row) and _queue_again(tx, row["agent_id"], row["message_id"]):
            back[row["agent_id"]] = max(row["message_id"], back.get(row["agent_id"], 0))
    for agent_id, newest in back.items():
        _ring(tx, agent_id, newest)


def next_due(rx: Snapshot) -> int | None:
    """When the next lease or delay expires."""
    row = rx.one("select min(due_at) from delivery where due_at is not null")
    return None if row[0] is None else int(row[0])
