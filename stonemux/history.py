"""Looking up messages later: what was said, and what became of it."""

from __future__ import annotations

from typing import Any

from stonemux import directory, doorbells, messages
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.transaction import Snapshot
from stonemux.trays import DEAD, FRESH, LEASED, QUEUED, SETTLED

STATUSES = {FRESH: "queued", QUEUED: "queued", LEASED: "fetched", SETTLED: "acked", DEAD: "dead"}
"""A delivery's status in answers, by its stored state; what is in flight, expired, or rung for differs."""


def status(rx: Snapshot, *, id: int) -> dict[str, Any]:
    """What became of a message, for each of its recipients."""
    message = rx.one("select * from message where id = ?", id)
    if message is None:
        raise MuxError(
            "message_not_found",
            f"no message {id} exists (id), or it is older than what is kept; msg.list shows those that are",
            id=id,
        )
    rows = rx.sql("select * from delivery where message_id = ? order by agent_id", id)
    return {
        "message_id": id,
        "sent_at": rfc3339(message["sent_at"]),
        "recipients": [_delivery_view(rx, row, message) for row in rows],
    }


def _delivery_view(rx: Snapshot, row: Any, message: Any) -> dict[str, Any]:
    state = STATUSES[row["state"]]
    at, reason = row["fetched_at" if row["state"] == LEASED else "settled_at"], row["reason"]
    if state == "queued" and message["id"] in rx.mux.flights.held(row["agent_id"]):
        state = "fetched"
    elif state == "queued" and not row["revived"] and message["expires_at"] and message["expires_at"] <= rx.now:
        state, at, reason = "dead", message["expires_at"], "expired"  # as the next purge will record it
    elif state == "queued" and (rung := doorbells.notified(rx, row["agent_id"], message["id"])) is not None:
        state, at = "notified", rung
    told: dict[str, Any] = {"agent_id": row["agent_id"], "status": state}
    if row["deliveries"]:
        told["deliveries"] = row["deliveries"]
    if at:
        told["at"] = rfc3339(at)
    if reason and reason != messages.RECEIVED:
        told["reason"] = reason
    return told


def listed(
    rx: Snapshot,
    *,
    channel: str | None,
    agent_id: str | None,
    thread: str | None,
    before: int | None,
    after: int | None,
    limit: int,
) -> dict[str, Any]:
    """Message history, newest first, whatever the state of the deliveries."""
    where, values = narrow(rx, channel, agent_id, sought=thread is None)
    if thread is not None:
        root = int(thread) if thread.isascii() and thread.isdigit() and len(thread) < 19 else -1
        where.append("(m.thread = ? or m.id = ?)")
        values += [thread, root]
    if before is not None:
        where.append("m.id < ?")
        values.append(before)
    if after is not None:
        where.append("m.id > ?")
        values.append(after)
    rows = rx.sql(
        f"select {messages.FIELDS} from message m where {' and '.join(where) or '1'} order by m.id desc limit ?",
        *values,
        limit + 1,
    )
    return messages.answer(rows[:limit], more=len(rows) > limit)


def log(rx: Snapshot, *, channel: str, before: int | None, limit: int) -> dict[str, Any]:
    """The messages of a channel, newest first, whoever received them."""
    return listed(rx, channel=channel, agent_id=None, thread=None, before=before, after=None, limit=limit)


def narrow(
    rx: Snapshot, channel: str | None, agent_id: str | None, *, sought: bool = True
) -> tuple[list[str], list[Any]]:
    """Conditions and their values that narrow a query of `message m` to a channel and to an agent, if they are given.

    With `sought` false, the messages are not looked for in the index of channels, because another index has fewer.
    Raises `channel_not_found` or `agent_not_found`.
    """
    where: list[str] = []
    values: list[Any] = []
    if channel is not None:
        where.append("m.channel = ?" if sought else "+m.channel = ?")
        values.append(directory.channel(rx, channel)["name"])
    if agent_id is not None:
        directory.agent(rx, agent_id)
        where.append("(m.sender = ? or exists (select 1 from delivery d where d.agent_id = ? and d.message_id = m.id))")
        values += [agent_id, agent_id]
    return where, values
