"""Messages and inboxes.

A message is written once and never changed. `delivery` holds what happens to it, one row for each recipient:

    queued ──(a plain poll's answer arrived, an ack, a cursor)──> settled
       └─────(its time to live expired)─────────────────────────> dead

Delivery deletes nothing, so a client that loses a message can fetch it again with `after`.

There are three kinds of poll. A *plain* poll takes what is queued, and settles it when the answer has arrived (see
`flights`). A *cursor* poll (`after=N`) settles everything up to N, because the client confirms it, and returns
everything after N, settled or not; repeating it returns the same. A *manual* poll hands out messages on a lease and
waits for an ack (see `leases`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from stonemux import directory, doorbells, filing, handoff, trays
from stonemux.clock import HOUR_MS, rfc3339
from stonemux.errors import MuxError
from stonemux.mux import Caller, Mux, Wait, fitting
from stonemux.payload import dumps, quoted
from stonemux.transaction import Job, Snapshot, Tx
from stonemux.trays import DEAD, FRESH, QUEUED, SETTLED

RECEIVED = "received"
"""The reason of a delivery that a plain poll's answer settled; `redeliver` can queue it again."""

REDELIVERED_MS = HOUR_MS
"""How far back `redeliver` reaches."""
PURGED_BYTES = 4_000_000
"""How many bytes of text one purge deletes, so that no sender waits long behind it: each word must leave the index."""
TEXT_BYTES = (
    "case when truncated then (select size from document where id = content_ref) else length(cast(content as blob)) end"
)
"""SQL: how many bytes of text a search covers of a message."""

PURGE_WITHIN_MS = 120_000
"""Expired messages are recorded as dead within this time."""

FIELDS = (
    "m.id, m.sender, m.addressed, m.content, m.channel, m.sent_at, m.subject, m.type, m.thread, m.reply_to, "
    "m.priority, m.metadata, m.content_ref, m.truncated, m.mentions"
)

PLAIN_EXTRAS = ("subject", "type", "thread", "reply_to", "priority", "content_ref")
"""Fields of a message that are shown, as they are stored, if they have a value."""
EXTRAS = (*PLAIN_EXTRAS, "truncated", "mentions", "metadata")
"""The same, and those that are stored in another form."""


ALIVE = (
    "(m.expires_at is null or m.expires_at > ?2 or exists (select 1 from delivery own "
    "where own.message_id = d.message_id and own.agent_id = d.agent_id and own.revived))"
)
"""SQL: the delivery d of message m has not expired at the time ?2, or was requeued since. The index that d is read from
has no `revived`, so it is looked up, but only once the time is over."""


def _poll(*parts: str, order: str, narrowed: str = "") -> str:
    return trays.merged(*parts, fields=FIELDS, narrowed=ALIVE + narrowed, order=order + " limit ?3")


_BY_URGENCY = "urgency desc, place"
_OPEN = _poll(*trays.WAITING, order=_BY_URGENCY)
_OPEN_IN_CHANNEL = _poll(*trays.WAITING, order=_BY_URGENCY, narrowed=" and d.channel = ?4")
_OPEN_OF_TYPES = _poll(
    *trays.WAITING,
    order=_BY_URGENCY,
    narrowed=" and (?4 is null or d.channel = ?4) and m.type in (select value from json_each(?5))",
)
_AFTER = _poll(*trays.EVERYTHING, order="place", narrowed=f" and d.message_id > ?4 and d.state < {DEAD}")
_AFTER_IN_CHANNEL = _poll(
    *trays.EVERYTHING, order="place", narrowed=f" and d.message_id > ?4 and d.state < {DEAD} and d.channel = ?5"
)
_COUNT = "select " + " + ".join(f"(select count(*) from {tray})" for tray in trays.WAITING)
_LIVING = (
    "where not exists (select 1 from message m where m.id = message_id and m.expires_at <= ?2 and not exists "
    "(select 1 from delivery d where d.message_id = m.id and d.agent_id = ?1 and d.revived))"
)
_COUNT_QUEUED = f"select count(*) from ({trays.ids(*trays.WAITING)}) {_LIVING}"
_COUNT_UNREAD = f"select ({_COUNT_QUEUED}) + (select count(*) from {trays.ON_LEASE})"
_UNSETTLED_THROUGH = trays.ids(*trays.UNSETTLED, narrowed="d.message_id <= ?2 and (?3 is null or d.channel = ?3)")
_RECEIVED_THROUGH = trays.ids(trays.REST, narrowed=f"d.state = {SETTLED} and d.settled_at >= ?3 and d.message_id <= ?4")
_HIGHEST = (
    "select max("
    + ", ".join(f"(select coalesce(max(d.message_id), 0) from {tray})" for tray in trays.EVERYTHING)
    + ", coalesce((select delivered_through from agent where id = ?1), 0))"
)
_SETTLE = (
    f"update delivery set state = {SETTLED}, settled_at = ?, deliveries = deliveries + 1, due_at = null, reason = ? "
    f"where agent_id = ? and message_id = ? and state < {SETTLED}"
)
_SETTLE_EXPIRED = (
    f"update delivery set state = {SETTLED}, settled_at = ?, deliveries = deliveries + 1, reason = ? "
    f"where agent_id = ? and message_id = ? and state = {DEAD} and reason = 'expired'"
)
"""The same for what expired on its way, so that the purge took it for a dead letter."""


def view(row: Any) -> dict[str, Any]:
    """A message as it is shown; extra fields appear only if they have a value."""
    shown = {
        "id": row["id"],
        "from": row["sender"],
        "to": row["addressed"],
        "content": row["content"],
        "channel": row["channel"],
        "sent_at": rfc3339(row["sent_at"]),
    }
    for extra in PLAIN_EXTRAS:
        if row[extra]:
            shown[extra] = row[extra]
    if row["truncated"]:
        shown["truncated"] = True
    if row["mentions"]:
        shown["mentions"] = json.loads(row["mentions"])
    if row["metadata"]:
        shown["metadata"] = json.loads(row["metadata"])
    return shown


# -- sending


def post(
    tx: Tx,
    *,
    sender: str,
    to: str,
    content: str,
    channel: str,
    recipients: Sequence[str],
    subject: str | None = None,
    type: str | None = None,
    thread: str | None = None,
    reply_to: int | None = None,
    priority: int = 0,
    metadata: dict[str, Any] | None = None,
    ttl_seconds: int | None = None,
    content_ref: str | None = None,
    truncated: bool = False,
    mentions: Sequence[str] = (),
) -> int:
    """Store a message and its deliveries, announce it, and return its id. The caller has checked who may post where."""
    answers = _thread_of(tx, reply_to) if reply_to is not None else None
    thread = thread or answers
    for agent_id in recipients:
        check_room(tx, agent_id)
    message_id = tx.deal_message_id()
    stored_metadata = dumps(metadata) if metadata else None
    expires_at = tx.now + ttl_seconds * 1000 if ttl_seconds is not None else None
    tx.insert(
        "message",
        (
            message_id,
            channel,
            sender,
            to,
            content,
            subject,
            type,
            thread,
            reply_to,
            priority,
            stored_metadata,
            tx.now,
            expires_at,
            content_ref,
            1 if truncated else None,
            dumps(mentions) if mentions else None,
        ),
    )
    if thread is not None:
        handoff.answered(tx, thread, sender, message_id)
    if answers is not None and answers != thread:  # even in another thread, it answers that message
        handoff.answered_aside(tx, answers, sender, message_id)
    _deliver(tx, message_id, channel, priority, recipients)
    extras = (subject, type, thread, reply_to, priority, content_ref, truncated, mentions, metadata)
    _announce(tx, message_id, sender, to, content, channel, recipients, extras)
    return message_id


def _deliver(tx: Tx, message_id: int, channel: str, priority: int, recipients: Sequence[str]) -> None:
    """Put a message into these inboxes, wake those who wait for them, and ring their doorbells."""
    state = FRESH if filing.takes(tx, len(recipients), priority) else QUEUED
    for agent_id in recipients:
        tx.insert("delivery", (agent_id, message_id, channel, priority, state))
        tx.backlog[agent_id] += 1
        tx.touch(("inbox", agent_id))
    if bells := tx.mux.endpoints.bells:  # sends to agents without a doorbell should cost nothing extra
        for agent_id in recipients:
            if (bell := bells.get(agent_id)) is not None:
                doorbells.ring(tx, bell, message_id, tx.backlog[agent_id])


def _announce(
    tx: Tx,
    message_id: int,
    sender: str,
    to: str,
    content: str,
    channel: str,
    recipients: Sequence[str],
    extras: tuple[Any, ...],
) -> None:
    """Append the message to the event log, in the form in which it is shown."""
    told = (
        f'{{"id":{message_id},"from":{quoted(sender)},"to":{quoted(to)},"content":{quoted(content)},'
        f'"channel":{quoted(channel)},"sent_at":"{rfc3339(tx.now)}"'
    )
    given = {name: extra for name, extra in zip(EXTRAS, extras, strict=True) if extra} if any(extras) else None
    told += f",{dumps(given)[1:]}" if given else "}"
    tx.emit("message", told, channel=channel, agents=(sender, *[r for r in recipients if r != sender]))


def _thread_of(tx: Tx, reply_to: int) -> str:
    """The thread of the message that is replied to; if it has none, its id becomes the thread."""
    row = tx.one("select id, thread from message where id = ?", reply_to)
    if row is None:
        raise MuxError("message_not_found", f"reply_to names message {reply_to}, which does not exist", id=reply_to)
    return row["thread"] or str(row["id"])


def backlog(tx: Tx, agent_id: str) -> int:
    """How many messages in an inbox are queued; expired ones count until the purge has recorded them."""
    count = tx.backlog.get(agent_id)
    if count is None:
        count = tx.backlog[agent_id] = _count_queued(tx, agent_id)
    return count


def _count_queued(rx: Snapshot, agent_id: str) -> int:
    return int(rx.one(_COUNT, agent_id)[0])


def open_mail(rx: Snapshot, agent_id: str) -> int:
    """How many messages in an inbox are queued, expired ones included."""
    return backlog(rx, agent_id) if isinstance(rx, Tx) else _count_queued(rx, agent_id)


def unread(rx: Snapshot, agent_id: str) -> int:
    """How many messages in an inbox are not settled: queued and not expired, or on a lease, which may outlast them."""
    count: int = rx.one(_COUNT_UNREAD, agent_id, rx.now)[0]
    return count


def queued(rx: Snapshot, agent_id: str) -> int:
    """How many messages a poll would find in an inbox: not expired, and not on a lease."""
    count: int = rx.one(_COUNT_QUEUED, agent_id, rx.now)[0]
    return count


def check_room(tx: Tx, agent_id: str, count: int = 1) -> None:
    """Refuse if the inbox is full; expired messages take no room, though the purge records them only later."""
    limit = tx.mux.settings.inbox_limit
    if backlog(tx, agent_id) + count > limit and backlog(tx, agent_id) - len(run_out(tx, agent_id)) + count > limit:
        raise _full(tx, agent_id)


def run_out(rx: Snapshot, agent_id: str) -> list[int]:
    """An inbox's queued messages that have expired since the last purge."""
    rows = rx.sql(
        "select m.id from message m indexed by message_expires cross join delivery d "
        "on d.message_id = m.id where m.expires_at > ?1 and m.expires_at <= ?2 and d.agent_id = ?3 "
        f"and d.state <= {QUEUED} and d.revived is null",
        rx.now - PURGE_WITHIN_MS,
        rx.now,
        agent_id,
    )
    return [row[0] for row in rows]


def find(rx: Snapshot, message_id: int) -> Any:
    """A message's row, as `view` takes it; None if there is none."""
    return rx.one(f"select {FIELDS} from message m where m.id = ?", message_id)


def _full(tx: Tx, agent_id: str) -> MuxError:
    limit = tx.mux.settings.inbox_limit
    return MuxError(
        "inbox_full",
        f"the inbox of {agent_id!r} has {limit} queued messages, the limit (coordination.inbox_limit); nothing was "
        "sent. Send again after it polls",
        retry_after=5,
        agent_id=agent_id,
        limit=limit,
    )


# -- polling


class _Arrival:
    """What a plain poll handed out: settled when the answer arrived, available again when it was lost."""

    __slots__ = ("_agent_id", "_ids", "_mux")

    def __init__(self, mux: Mux, agent_id: str, ids: list[int]) -> None:
        self._mux, self._agent_id, self._ids = mux, agent_id, ids

    def landed(self) -> None:
        settle_later(self._mux, self._agent_id, self._ids)

    def lost(self) -> None:
        self._mux.flights.end(self._agent_id, self._ids)
        self._mux.hub.wake([("inbox", self._agent_id)])


def settle_later(mux: Mux, agent_id: str, ids: list[int]) -> None:
    """Record that these messages arrived; nobody waits for it. If the disk refuses, it is retried later."""

    def written(value: Any, error: BaseException | None) -> None:
        if error is None:
            if mux.flights.end(agent_id, ids):
                mux.hub.wake([("inbox", agent_id)])
        else:
            mux.flights.owed.append((agent_id, ids))
            mux.alarm.set(mux.clock.now_ms() + 1000)

    mux.store.submit(Job(lambda tx: settle(tx, agent_id, mux.flights.unrecalled(agent_id, ids)), written))


def settle_owed(mux: Mux) -> None:
    """Retry recording the arrivals that the disk has refused."""
    for _ in range(len(mux.flights.owed)):  # a fixed number of times, since retries may add to the list
        settle_later(mux, *mux.flights.owed.pop(0))


def settle(tx: Tx, agent_id: str, ids: Iterable[int]) -> int:
    """Mark deliveries as settled; returns how many were still open."""
    count = 0
    for message_id in ids:
        settled = tx.run(_SETTLE, tx.now, RECEIVED, agent_id, message_id).rowcount
        if not settled:
            tx.run(_SETTLE_EXPIRED, tx.now, RECEIVED, agent_id, message_id)
        count += settled
    _shrink(tx, agent_id, count)
    return count


def _shrink(tx: Tx, agent_id: str, count: int) -> None:
    if count and agent_id in tx.backlog:
        tx.backlog[agent_id] -= count


def wait_for_mail(
    mux: Mux, agent_id: str, timeout: int, look: Callable[[], dict[str, Any] | None], *, writes: bool
) -> Wait:
    """The wait of a poll: it ends when `look` finds mail, at the timeout, or when the agent is deregistered."""
    deadline = mux.clock.ticks_ms() + timeout * 1000

    def attempt() -> dict[str, Any] | None:
        return look() or _nothing_yet(mux, agent_id)

    return Wait((("inbox", agent_id),), attempt, lambda: {"messages": []}, deadline, agent_id, writes=writes)


def take(
    mux: Mux, caller: Caller, agent_id: str, channel: str | None, types: list[str] | None, limit: int
) -> dict[str, Any] | None:
    """Look for a plain poll: take queued messages, which are settled when the answer has arrived."""
    rows, more = choose(mux, agent_id, channel, types, limit, caller.room)
    if not rows:
        return None
    caller.flight = _Arrival(mux, agent_id, [row["id"] for row in rows])
    return answer(rows, more=more)


def choose(
    mux: Mux, agent_id: str, channel: str | None, types: list[str] | None, limit: int, room: int
) -> tuple[list[Any], bool]:
    """Take queued messages into flight, so that no other poll gets them; returns them, and whether there are more."""
    mux.looks += 1
    with mux.flights.of(agent_id) as held:
        with mux.store.read() as rx:
            values = (agent_id, rx.now, limit + 1 + len(held))
            if types is not None:
                rows = rx.sql(_OPEN_OF_TYPES, *values, channel, dumps(types))
            else:
                rows = rx.sql(_OPEN, *values) if channel is None else rx.sql(_OPEN_IN_CHANNEL, *values, channel)
        free = [row for row in rows if row["id"] not in held] if held else rows
        taken = _fitting(free[:limit], room)
        held.update(row["id"] for row in taken)
    return taken, len(free) > len(taken)


def _fitting(rows: list[Any], room: int) -> list[Any]:
    """The first rows that together fit into `room` characters (0 for no limit), but at least one."""
    return rows[: fitting((len(row["content"]) + len(row["metadata"] or "") for row in rows), room)] if room else rows


def read_after(
    mux: Mux, agent_id: str, channel: str | None, limit: int, after: int, room: int
) -> dict[str, Any] | None:
    """Look for a cursor poll: everything after the cursor, settled or not."""
    mux.looks += 1
    with mux.store.read() as rx:
        values = (agent_id, rx.now, limit + 1, after)
        rows = rx.sql(_AFTER, *values) if channel is None else rx.sql(_AFTER_IN_CHANNEL, *values, channel)
    if not rows:
        return None
    shown = _fitting(rows[:limit], room)
    mux.flights.show(agent_id, shown[-1]["id"])
    return answer(shown, more=len(rows) > len(shown))


def _nothing_yet(mux: Mux, agent_id: str) -> dict[str, Any] | None:
    """Return None, so that the poll continues to wait; raises if its agent has been deregistered."""
    if not mux.presence.knows(agent_id):
        with mux.store.read() as rx:
            directory.agent(rx, agent_id)
    return None


def answer(rows: list[Any], *, more: bool) -> dict[str, Any]:
    """The answer of a poll or of the history."""
    answer: dict[str, Any] = {"messages": [view(row) for row in rows]}
    if more:
        answer["more"] = True
    return answer


def acknowledge_through(mux: Mux, agent_id: str, after: int, channel: str | None) -> None:
    """Durably settle everything up to a cursor, before anything after it is shown.

    A cursor in one channel settles nothing in others, because its poll never showed their mail.
    """
    with mux.store.read() as rx:
        check_cursor(rx, agent_id, after, "after")
        unsettled = rx.sql(f"{_UNSETTLED_THROUGH} limit 1", agent_id, after, channel)
    if unsettled:
        mux.store.write(lambda tx: settle_through(tx, agent_id, after, channel))


def check_cursor(rx: Snapshot, agent_id: str, cursor: int, parameter: str) -> None:
    """Refuse a cursor beyond anything this inbox ever held: it would settle mail that nobody has seen."""
    highest = delivered_through(rx, agent_id)
    if cursor > highest:
        raise MuxError(
            "cursor_ahead",
            f"{parameter} is {cursor}, but the newest message ever delivered to {agent_id!r} is {highest}; this cursor "
            f"belongs to another agent or another data directory. Start with {highest}, or poll with after=0 for all",
            highest=highest,
        )


def delivered_through(rx: Snapshot, agent_id: str) -> int:
    """The highest id ever put into this inbox."""
    return int(rx.one(_HIGHEST, agent_id)[0])


def settle_through(tx: Tx, agent_id: str, through: int, channel: str | None) -> int:
    """Settle everything up to an id, in one channel or in all; what has expired by then is dead, not read."""
    for message_id in run_out(tx, agent_id):
        note_run_out(tx, message_id)
    count = tx.run(
        f"update delivery set state = {SETTLED}, settled_at = ?4, due_at = null "
        f"where agent_id = ?1 and message_id in ({_UNSETTLED_THROUGH})",
        agent_id,
        through,
        channel,
        tx.now,
    ).rowcount
    tx.backlog.pop(agent_id, None)
    return count


def confirm(tx: Tx, agent_id: str, message_id: int) -> None:
    """Acknowledge what a plain poll may have taken: `redeliver` leaves it alone from now on."""
    _confirm(tx, agent_id, "message_id = ?3", message_id)


def confirm_through(tx: Tx, agent_id: str, through: int) -> None:
    """The same for everything up to an id."""
    _confirm(tx, agent_id, f"message_id in ({_RECEIVED_THROUGH})", tx.now - REDELIVERED_MS, through)


def _confirm(tx: Tx, agent_id: str, which: str, *values: int) -> None:
    tx.run(
        f"update delivery set reason = null where agent_id = ?1 and reason = ?2 and {which}",
        agent_id,
        RECEIVED,
        *values,
    )


# -- expiry and retention


def note_run_out(tx: Tx, message_id: int) -> bool:
    """Record a message's expiry, if its time is up, before the purge does; returns whether it did."""
    return _note_run_out(tx, "message_id = ?1", message_id)


def note_all_run_out(tx: Tx, agent_id: str) -> None:
    """Record the expiry of all of an inbox's queued messages whose time is up."""
    _note_run_out(tx, f"agent_id = ?1 and message_id in ({trays.ids(*trays.WAITING)})", agent_id)


def note_run_out_since(tx: Tx, since: int) -> None:
    """Record the expiry of everything queued whose time ran out after a time."""
    _note_run_out(tx, "message_id in (select id from message where expires_at > ?1 and expires_at <= ?2)", since)


def _note_run_out(tx: Tx, which: str, value: Any) -> bool:
    """Record as dead what is queued and expired among the deliveries that match `which`, SQL with `value` as ?1."""
    noted = tx.run(
        f"update delivery set state = {DEAD}, reason = 'expired', "
        f"settled_at = (select expires_at from message where id = message_id) where state <= {QUEUED} "
        f"and {which} and revived is null "
        "and exists (select 1 from message where id = message_id and expires_at <= ?2)",
        value,
        tx.now,
    ).rowcount
    if noted:
        tx.backlog.clear()
    return bool(noted)


def purge(
    tx: Tx,
    before: int,
    most: int,
    since: int = 0,
    forget: Callable[[Tx, list[int]], None] = lambda tx, ids: None,
) -> int:
    """Delete up to `most` messages sent before a time, if every recipient was done with them by then.

    So what was read late, or became a dead letter late, stays as long as anything else. First records messages as dead
    whose time to live expired after `since`, where the last purge stopped. `forget` is called with the ids while the
    messages are still there. Returns how many were deleted, or `most` if long ones ended it early.
    """
    note_run_out_since(tx, since)
    doomed, size = [], 0
    for row in tx.sql(
        # A later id is never older, so the search can stop at the first young message.
        f"select id, {TEXT_BYTES} from message m where id < coalesce((select id from message where sent_at >= ?1 order "
        "by id limit 1), 9223372036854775807) and not exists (select 1 from delivery d where d.message_id = m.id "
        f"and (d.state < {SETTLED} or d.settled_at > ?1)) order by id limit ?2",
        before,
        most,
    ):
        doomed.append(row[0])
        size += row[1]
        if size >= PURGED_BYTES:
            break
    forget(tx, doomed)
    if doomed:  # new ids continue after the last one, even if its message is deleted
        tx.run("insert or replace into meta values ('message_floor', ?)", str(max(tx.last_message, doomed[-1])))
    for message_id in doomed:
        tx.run(
            "update agent set delivered_through = max(delivered_through, ?1) "
            "where id in (select agent_id from delivery where message_id = ?1)",
            message_id,
        )
        tx.run("delete from delivery where message_id = ?", message_id)
        tx.run("delete from message where id = ?", message_id)
    if doomed:
        handoff.forget(tx)
    return most if size >= PURGED_BYTES else len(doomed)
