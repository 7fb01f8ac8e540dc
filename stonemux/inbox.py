"""An inbox as a person sees it: items that are unread, read or archived.

These are derived from the same deliveries that polls use: an item is *unread* while its delivery is queued, leased or
in flight, *read* once it is settled, and *archived* if it was also archived. So marking as read is an acknowledgment,
marking as unread queues the message again, and listing takes nothing. Dead letters do not appear.

An item on a lease is already unread; marking it as unread leaves the lease with its holder, and marking it as read ends
the lease, as an ack does. If an item in flight is marked as unread, it is queued again even if its answer arrives.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from stonemux import directory, documents, door, messages, trays
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.excerpts import shortened
from stonemux.mux import Caller, Mux
from stonemux.schema import MOST_INTEGER, shown
from stonemux.transaction import Snapshot, Tx
from stonemux.trays import LEASED, QUEUED, SETTLED

PREVIEW = 200
"""How many characters of a content a list shows."""

_ID = r"(?s)inbox-([1-9][0-9]{0,18})-(.{1,120})"

_FIELDS = messages.FIELDS + ", d.state, d.archived"
_SHOWN = f"(d.state in ({LEASED}, {SETTLED}) or d.state <= {QUEUED} and {messages.ALIVE})"


def _list(*parts: str, narrowed: str = _SHOWN) -> str:
    narrowed += " and d.message_id < ?3"
    return trays.merged(*parts, fields=_FIELDS, narrowed=narrowed, order="place desc limit ?4")


_LISTS = {
    "unread": _list(f"delivery d where d.agent_id = ?1 and d.message_id in ({trays.ids(*trays.UNSETTLED)})"),
    "read": _list(trays.REST, narrowed=f"d.state = {SETTLED} and d.archived is null"),
    "archived": _list(trays.REST, narrowed=f"d.state = {SETTLED} and d.archived"),
    "all": _list(*trays.EVERYTHING),
}
"""The queries for each status."""

_ITEM = (
    f"select {_FIELDS} from delivery d join message m on m.id = d.message_id "
    f"where d.agent_id = ?1 and d.message_id = ?3 and {_SHOWN}"
)

_SETTLED_NOW = f"settled_at = case when state < {SETTLED} then ?3 else settled_at end, reason = null"
_MARK = {
    "read": (
        f"update delivery set state = {SETTLED}, due_at = null, archived = null, {_SETTLED_NOW} "
        f"where agent_id = ?1 and (state < {SETTLED} or archived)"
    ),
    "archived": (
        f"update delivery set state = {SETTLED}, due_at = null, archived = 1, {_SETTLED_NOW} "
        f"where agent_id = ?1 and (state < {SETTLED} or state = {SETTLED} and archived is null)"
    ),
    "unread": (
        f"update delivery set state = {QUEUED}, due_at = null, archived = null, settled_at = null, reason = null "
        f"where agent_id = ?1 and state = {SETTLED}"
    ),
}
"""The updates that give deliveries a status; those that already have it are left alone."""

_ONE = " and message_id = ?2"
_EVERY = {
    "read": f" and ?2 is null and message_id in ({trays.ids(*trays.UNSETTLED)})",
    "archived": f" and ?2 is null and message_id in ({trays.ids(*trays.EVERYTHING)})",
    "unread": f" and ?2 is null and message_id in ({trays.ids(trays.REST)}) and archived is null",
}
"""What `all` restricts those updates to: archived items stay archived."""


def listed(
    mux: Mux, caller: Caller, *, agent_id: str, status: str, full: bool, limit: int, before: int | None
) -> dict[str, Any]:
    """List an agent's items, newest first; this takes nothing."""
    _write_down_arrivals(mux, agent_id)
    with mux.store.read() as rx:
        directory.agent(rx, agent_id)
        rows = rx.sql(_LISTS[status], agent_id, rx.now, 2**63 - 1 if before is None else before, limit + 1)
        answer: dict[str, Any] = {
            "items": [_view(row, agent_id, full) for row in rows[:limit]],
            "unread": messages.unread(rx, agent_id),
        }
    if len(rows) > limit:
        answer["more"] = True
    return answer


def _write_down_arrivals(mux: Mux, agent_id: str) -> None:
    """Commit arrivals that are known but still queued, so that they show as read."""
    if mux.flights.held(agent_id):
        with contextlib.suppress(MuxError):  # the disk refuses; show what is committed
            mux.store.write(lambda tx: None)


def show(mux: Mux, caller: Caller, *, id: str) -> dict[str, Any]:
    """One item with its full content."""
    message_id, agent_id = _parsed(id)
    if caller.principal is not None and caller.principal.agent not in ("", agent_id):
        raise door.mismatch("id", agent_id, caller.principal.agent)
    _write_down_arrivals(mux, agent_id)
    with mux.store.read() as rx:
        row = _find(rx, message_id, agent_id)
        item = _view(row, agent_id, True)
        if item.pop("truncated", False):
            item["content"] = documents.whole(rx, row["content_ref"])
    return {"item": item}


def update(tx: Tx, *, agent_id: str, ids: list[str] | None, every: bool, status: str) -> dict[str, Any]:
    """Mark items as read, unread or archived; returns how many had another status."""
    directory.agent(tx, agent_id)
    if (ids is None) != every:
        raise MuxError(
            "invalid_field" if every else "missing_field",
            "give either ids, the items to mark, or all=true, but not both",
            parameter="all" if every else "ids",
        )
    again = tx.mux.flights.held(agent_id)
    if ids is None:
        messages.note_all_run_out(tx, agent_id)
        updated = _mark(tx, status, agent_id, None)
        if status == "unread":
            messages.note_all_run_out(tx, agent_id)  # what was read before its time to live ended
        elif status == "read":
            messages.confirm_through(tx, agent_id, MOST_INTEGER)
    else:
        wanted = [_find(tx, *_parsed(one, agent_id))["id"] for one in ids]
        updated = sum(_mark(tx, status, agent_id, message_id) for message_id in wanted)
        for message_id in wanted:
            if status == "unread":
                messages.note_run_out(tx, message_id)
            elif status == "read":
                messages.confirm(tx, agent_id, message_id)
        again = again.intersection(wanted)
    tx.backlog.pop(agent_id, None)
    if status == "unread":
        tx.after(lambda: tx.mux.flights.recall(agent_id, again))
        tx.touch(("inbox", agent_id))
    return {"updated": updated}


def _mark(tx: Tx, status: str, agent_id: str, message_id: int | None) -> int:
    which = _EVERY[status] if message_id is None else _ONE
    values = (agent_id, message_id) if status == "unread" else (agent_id, message_id, tx.now)
    return tx.run(_MARK[status] + which, *values).rowcount


def _parsed(item_id: str, owner: str | None = None) -> tuple[int, str]:
    """The message and the agent in an item's id; refuses one that is not of `owner`, if given."""
    match = re.fullmatch(_ID, item_id)
    if match is None or int(match[1]) > MOST_INTEGER or owner not in (None, match[2]):
        raise _unknown(item_id)
    return int(match[1]), match[2]


def _find(rx: Snapshot, message_id: int, agent_id: str) -> Any:
    row = rx.one(_ITEM, agent_id, rx.now, message_id)
    if row is None:
        raise _unknown(f"inbox-{message_id}-{agent_id}")
    return row


def _unknown(item_id: str) -> MuxError:
    return MuxError(
        "message_not_found",
        f"this inbox has no item {shown(item_id)}; inbox.list shows its items, and msg.dead the dead letters",
        id=item_id[:160],
    )


def _view(row: Any, agent_id: str, full: bool) -> dict[str, Any]:
    status = "unread" if row["state"] != SETTLED else "archived" if row["archived"] else "read"
    text: str = row["content"]
    item: dict[str, Any] = {
        "id": f"inbox-{row['id']}-{agent_id}",
        "message_id": row["id"],
        "from": row["sender"],
        "channel": row["channel"],
        "status": status,
        "received_at": rfc3339(row["sent_at"]),
    }
    if full:
        item["content"] = text
    else:
        item["preview"] = shortened(text, PREVIEW)
    for extra in messages.PLAIN_EXTRAS:
        if row[extra]:
            item[extra] = row[extra]
    if row["truncated"]:
        item["truncated"] = True
    if row["mentions"] and agent_id in json.loads(row["mentions"]):
        item["mentioned"] = True
    if full and row["metadata"]:
        item["metadata"] = json.loads(row["metadata"])
    return item
