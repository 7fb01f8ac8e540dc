"""Task rows: the row itself, its state transitions, its view, and the lists and history of tasks.

The transitions are data. `delayed` is a pending task that nobody may claim before `due_at`; answers show it as
`pending`.

    post ──> pending ──claim──> claimed ──complete──> complete
               ^  ^               │  │
               │  └──release──────┤  └────fail──────> failed ──requeue──> pending
               └──expire, retry───┘
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from stonemux import directory
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.payload import dumps
from stonemux.transaction import Snapshot
from stonemux.vocabulary import MAX_ATTEMPTS, TASK_STATUSES

MOVES: dict[tuple[str, str], str] = {
    ("pending", "claim"): "claimed",
    ("claimed", "complete"): "complete",
    ("pending", "complete"): "complete",  # its lease expired, but no other agent has claimed it
    ("claimed", "fail"): "failed",
    ("pending", "fail"): "failed",
    ("claimed", "extend"): "claimed",
    ("pending", "extend"): "claimed",  # likewise
    ("claimed", "release"): "pending",
    ("pending", "release"): "pending",  # likewise
    ("claimed", "hand off"): "pending",
    ("pending", "hand off"): "pending",  # likewise
    ("claimed", "restart"): "pending",
    ("claimed", "expire"): "pending",
    ("claimed", "cancel"): "cancelled",
    ("pending", "cancel"): "cancelled",
    ("delayed", "cancel"): "cancelled",
    ("waiting", "cancel"): "cancelled",
    ("delayed", "ripen"): "pending",
    ("failed", "requeue"): "pending",
    ("cancelled", "requeue"): "pending",
}
"""(status, act) -> next status; any other combination is a conflict."""

FINAL = ("complete", "failed", "cancelled")
STORED = ("delayed", *TASK_STATUSES)
ACTIVE = frozenset(STORED) - frozenset(FINAL)
"""Of the stored statuses, those of few tasks, however many have ended."""

_EVERYWHERE = (
    "select min(channel) from task union all select (select min(channel) from task where channel > place.channel) "
    "from place where place.channel is not null"
)
"""SQL for the channels that have tasks, with one seek for each."""


class Task(NamedTuple):
    """A row of the table as a tuple, because column access by name costs more than most of what is done with a row."""

    seq: int
    id: str
    channel: str
    description: str
    posted_by: str
    required_capability: str | None
    priority: int
    metadata: str | None
    assigned_to: str | None
    status: str
    due_at: int | None = None
    owner: str | None = None
    fence: int = 0
    attempts: int = 0
    max_attempts: int = 0
    claim_timeout_ms: int | None = None
    result: str | None = None
    error: str | None = None
    created_at: int = 0
    claimed_at: int | None = None
    completed_at: int | None = None
    handoff: str | None = None
    waiting_thread: str | None = None
    auto: int | None = None


def rows(rx: Snapshot, query: str, *values: Any) -> list[Task]:
    """The tasks of a statement that selects or returns `*`."""
    return [Task(*row) for row in rx.sql(query, *values)]


def claim_token(row: Task) -> str:
    """The fencing token of the task's current claim."""
    return f"{row.id}.{row.fence}"


def status(row: Task) -> str:
    """A task's status in answers, where `available_at` shows that it is delayed."""
    return "pending" if row.status == "delayed" else row.status


def view(row: Task) -> dict[str, Any]:
    """A task as answers show it."""
    shown_status = status(row)
    shown: dict[str, Any] = {
        "task_id": row.id,
        "description": row.description,
        "posted_by": row.posted_by,
        "required_capability": row.required_capability,
        "priority": row.priority,
        "channel": row.channel,
        "metadata": json.loads(row.metadata) if row.metadata else {},
        "status": shown_status,
        "assigned_to": row.assigned_to,
        "claimed_by": row.owner if shown_status == "claimed" or shown_status in FINAL else None,
        "attempts": row.attempts,
        "result": row.result,
        "created_at": rfc3339(row.created_at),
        "claimed_at": rfc3339(row.claimed_at) if row.claimed_at else None,
        "lease_expires_at": rfc3339(row.due_at) if shown_status == "claimed" else None,
        "completed_at": rfc3339(row.completed_at) if row.completed_at else None,
    }
    if row.max_attempts != MAX_ATTEMPTS:
        shown["max_attempts"] = row.max_attempts
    if row.error:
        shown["error"] = row.error
    if row.handoff:
        shown["handoff"] = json.loads(row.handoff)
    if row.waiting_thread:
        shown["waiting_on"] = shown["handoff"]["waiting_on"]
    if row.status in ("delayed", "waiting") and row.due_at:
        shown["available_at"] = rfc3339(row.due_at)
    return shown


def find(rx: Snapshot, task_id: str, parameter: str = "task_id") -> Task:
    """The task's row; raises `task_not_found`."""
    found = rows(rx, "select * from task where id = ?", task_id)
    if not found:
        raise MuxError(
            "task_not_found",
            f"no task {task_id!r} exists ({parameter}); task.list shows the existing ones",
            parameter=parameter,
            task_id=task_id,
        )
    return found[0]


def move(row: Task, act: str) -> str:
    """The status after an act; raises `task_conflict` if the act is not possible."""
    after = MOVES.get((row.status, act))
    if after is None:
        how, facts = _standing(row)
        remedy = ", but task.requeue puts it back" if act == "claim" and (row.status, "requeue") in MOVES else ""
        raise MuxError(
            "task_conflict",
            f"task {row.id} is {how}; a {act} is not possible now{remedy}",
            status=status(row),
            task_id=row.id,
            **facts,
        )
    return after


def lack(row: Task, agent: Any) -> str:
    """Why this agent cannot do the task, as the end of a sentence; "" if it can."""
    wanted = row.required_capability
    if wanted is None or wanted in json.loads(agent["capabilities"]):
        return ""
    return f"needs the capability {wanted!r}, which {agent['id']!r} has not registered"


def _standing(row: Task) -> tuple[str, dict[str, Any]]:
    """The state of a task in words, and as facts for programs."""
    until = rfc3339(row.due_at) if row.due_at else None
    if row.status == "claimed":
        return f"claimed by {row.owner!r} until {until}", {"claimed_by": row.owner, "lease_expires_at": until}
    if row.status == "delayed":
        return f"pending, but delayed until {until}", {"available_at": until}
    if row.waiting_thread and row.handoff:
        message = json.loads(row.handoff)["waiting_on"]
        told = f"waiting until somebody answers message {message}, or until {until}"
        return told, {"waiting_on": message, "available_at": until}
    return row.status + " for tasks that it depends on (task.get)" * (row.status == "waiting"), {}


# -- reading


def listed(
    rx: Snapshot,
    *,
    status: str | None,
    channel: str | None,
    agent_id: str | None,
    capability: str | None,
    limit: int,
    after: str | None,
) -> dict[str, Any]:
    """Tasks by priority, then age; `after` is the id of the last one seen."""
    statuses = STORED if status is None else ("pending", "delayed") if status == "pending" else (status,)
    values: list[Any] = [dumps(statuses), limit + 1]

    def bound(value: Any) -> str:
        values.append(value)
        return f"?{len(values)}"

    places = _EVERYWHERE if channel is None else f"select {bound(directory.channel(rx, channel)['name'])}"
    where = ["true"]
    if agent_id is not None:
        directory.agent(rx, agent_id)
        agent = bound(agent_id)
        where.append(f"(owner = {agent} or assigned_to = {agent})")
    if capability is not None:
        where.append(f"required_capability = {bound(capability)}")
    rest = ["true"]
    if after is not None:
        last = find(rx, after, "after")
        urgency = bound(last.priority)
        rest = [f"priority = {urgency} and seq > {bound(last.seq)}", f"priority < {urgency}"]
    narrowed = " and ".join(where)
    if channel is None and len(where) > 1 and not ACTIVE.issuperset(statuses):
        found = rows(rx, _scan(narrowed, " or ".join(rest)), *values)
    else:
        found = rows(rx, _merge(places, narrowed, rest), *values)
    answer: dict[str, Any] = {"tasks": [view(row) for row in found[:limit]]}
    if len(found) > limit:
        answer["more"] = True
    return answer


def _merge(places: str, narrowed: str, rest: Sequence[str]) -> str:
    """SQL for a list: the first of each channel and status, of which each is in order in the index, merged.

    `places` is SQL for the channels. Each condition in `rest` is a range in that order; together they are the pages to
    come. The statuses are ?1 (JSON), the limit is ?2.
    """
    first = " union all ".join(
        "select seq from (select seq from task indexed by task_list where channel = place.channel "
        f"and status = kind.value and {one} and {narrowed} order by priority desc, seq limit ?2)"
        for one in rest
    )
    return (
        f"with recursive place(channel) as ({places}) select * from task where seq in ("
        f"select t.seq from place cross join json_each(?1) kind cross join task t where t.seq in ({first}) "
        "order by t.priority desc, t.seq limit ?2) order by priority desc, seq"
    )


def _scan(narrowed: str, rest: str) -> str:
    """SQL for a list that no index narrows: to read all tasks once is faster than to look up each in that order."""
    return (
        "select * from task not indexed where status in (select value from json_each(?1)) "
        f"and {narrowed} and ({rest}) order by priority desc, seq limit ?2"
    )


def get(rx: Snapshot, *, task_id: str) -> dict[str, Any]:
    """A task with its dependencies and history."""
    row = find(rx, task_id)
    shown = view(row)
    needs = rx.sql(
        "select t.id from task_need n join task t on t.seq = n.needs where n.task = ? order by t.seq", row.seq
    )
    if needs:
        shown["depends_on"] = [need[0] for need in needs]
    shown["history"] = list(_history(rx, row))
    return {"task": shown}


def _history(rx: Snapshot, row: Task) -> Iterable[dict[str, Any]]:
    yield {"at": rfc3339(row.created_at), "act": "posted", "agent_id": row.posted_by}
    for entry in rx.sql("select * from task_history where task = ? order by rowid", row.seq):
        told = {"at": rfc3339(entry["at"]), "act": entry["act"], "agent_id": entry["agent_id"]}
        if entry["fence"]:
            told["attempt"] = entry["fence"]
        if entry["note"]:
            told["note"] = entry["note"]
        yield told
