"""Dispatch: assigning tasks to an agent and notifying it.

All assignments and notices of one call are one transaction: all of its tasks are dispatched, or none is. A notice goes
into the agent's own channel, to it alone, and its metadata holds what the agent needs to begin.

A live claim is never taken from another agent unless `restart` is set: then the claim ends, and later calls that use
its fencing token are refused.
"""

from __future__ import annotations

from typing import Any

from stonemux import agents, directory, messages, taskrows, tasks
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.excerpts import shortened
from stonemux.taskrows import Task
from stonemux.transaction import Tx
from stonemux.vocabulary import SYSTEM, generate_agent_channel_name

SHOWN = 200
"""How many characters of a description a notice shows if it has no text of its own."""


def dispatch(
    tx: Tx,
    *,
    task_id: str | None,
    task_ids: list[str] | None,
    agent_id: str,
    priority: int | None,
    restart: bool,
    mark_as_started: bool,
    notification_message: str | None,
    metadata: dict[str, Any] | None,
    dispatched_by: str | None,
) -> dict[str, Any]:
    """Assign tasks to an agent, claim them for it if they are to be started, and notify it."""
    agent = directory.agent(tx, agent_id)
    if dispatched_by is not None:
        directory.agent(tx, dispatched_by, "dispatched_by")
    wanted = [task_id] if task_id is not None else task_ids or []
    for one in wanted:
        taskrows.find(tx, one, "task_id" if task_id is not None else "task_ids")
    messages.check_room(tx, agent_id, len(wanted))
    tasks.settle_due(tx)  # an expired claim has no holder any more
    rows = [taskrows.find(tx, one) for one in wanted]
    for row in rows:
        _check(row, agent, restart, mark_as_started)
    results = [
        give(
            tx,
            row,
            agent,
            priority=priority,
            restart=restart,
            start=mark_as_started,
            text=notification_message,
            metadata=metadata,
            by=dispatched_by,
        )
        for row in rows
    ]
    return {"results": results}


def _check(row: Task, agent: Any, restart: bool, start: bool) -> None:
    holder = row.owner if row.status == "claimed" else None
    if row.status in taskrows.FINAL:
        problem = f"is {row.status}; task.requeue returns a failed or cancelled one to the pool"
    elif holder not in (None, agent["id"]) and not restart:
        problem = f"is claimed by {holder!r} until {rfc3339(row.due_at or 0)}; restart=true ends that claim"
    elif lack := taskrows.lack(row, agent):
        problem = lack
    elif start and row.status in ("waiting", "delayed"):
        problem = f"is {taskrows.status(row)} and cannot be started yet; dispatch it without mark_as_started"
    else:
        return
    raise MuxError(
        "task_conflict",
        f"task {row.id} {problem}. Nothing was dispatched",
        task_id=row.id,
        status=taskrows.status(row),
        claimed_by=holder,
    )


def give(
    tx: Tx,
    row: Task,
    agent: Any,
    *,
    priority: int | None = None,
    restart: bool = False,
    start: bool = False,
    text: str | None = None,
    metadata: dict[str, Any] | None = None,
    by: str | None = None,
    auto: bool = False,
) -> dict[str, Any]:
    """Give one task, which was checked to be assignable, to an agent; returns what happened."""
    agent_id = agent["id"]
    before = {row.assigned_to, row.owner} - {None}
    kind = "task-reassignment" if before - {agent_id} else "task-assignment"
    if restart and row.status == "claimed":
        row = tasks.put_back(tx, row, taskrows.move(row, "restart"), note=f"dispatched to {agent_id}", act="restarted")
    row = tasks.assign(tx, row, agent_id, priority=priority, by=by, auto=auto)
    if start:
        row = tasks.take(tx, "?4", agent_id, row.seq) or row  # otherwise the agent has claimed it already
    told = (metadata or {}) | {
        "type": kind,
        "task_id": row.id,
        "priority": row.priority,
        "restart": restart,
        "dispatched_at": rfc3339(tx.now),
        "dispatched_by": by or SYSTEM,
    }
    result: dict[str, Any] = {"task": taskrows.view(row), "agent": agents.view(tx, agent)}
    if start:
        told["claim_token"] = result["claim_token"] = taskrows.claim_token(row)
    channel = generate_agent_channel_name(agent_id)
    message_id = messages.post(
        tx,
        sender=by or SYSTEM,
        to=agent_id,
        content=text or _sentence(kind, row.description),
        channel=channel,
        recipients=[agent_id],
        type=kind,
        metadata=told,
    )
    return result | {
        "channel": {"id": directory.channel(tx, channel)["id"], "name": channel},
        "notification": messages.view(messages.find(tx, message_id)),
        "is_new_assignment": not before,
        "dispatched_at": told["dispatched_at"],
    }


def _sentence(kind: str, description: str) -> str:
    done = "Task assigned" if kind == "task-assignment" else "Task reassigned"
    return f"{done}: {shortened(description, SHOWN)}"
