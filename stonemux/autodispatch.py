"""Automatic dispatch (`[dispatch] auto`): the daemon assigns pending tasks to idle agents, the most urgent first.

An agent is eligible for a task if it is active, holds no task and has none assigned, is a member of the task's channel,
has the capability that the task requires, and did not post it. A task that requires no capability goes to agents of the
role that the routing table names for assignments. A task is never assigned to the agent that just released it, handed
it off without waiting for an answer, or let its lease expire; that agent may still claim it.

An assignment is taken back if its agent goes stale before claiming the task, and ends with the claim. Assignments made
by anyone else are left alone.

There is no periodic sweep: the timekeeper looks when something happens that may have freed an agent or a task.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from typing import Any

from stonemux import directory, dispatch, messages, taskrows, tasks
from stonemux.mux import Mux
from stonemux.taskrows import Task
from stonemux.transaction import Snapshot, Tx

CAUSES = frozenset(
    {
        "task_posted",
        "task_released",
        "task_requeued",
        "task_ready",
        "task_completed",
        "task_failed",
        "task_cancelled",
        "agent_registered",
        "agent_deregistered",
        "agent_stale",
        "channel_joined",
    }
)
"""Events after which there may be something to dispatch."""

AT_ONCE = 100
"""Tasks dispatched in one transaction; a limit so that no sender waits long behind it."""
LOOKED_AT = 20
"""How many tasks per channel and capability are examined for one that the agent has not just given up."""


def is_on(mux: Mux) -> bool:
    """Whether the daemon dispatches automatically."""
    return mux.settings.dispatch_auto and mux.tier != "free"


def follow(mux: Mux) -> None:
    """From now on, wake the timekeeper when there may be something to dispatch."""
    mux.log.listeners.append(_listener(mux))
    mux.presence.on_return = lambda: _wake(mux)


def _listener(mux: Mux) -> Callable[[], None]:
    seen = mux.log.head

    def heard() -> None:
        nonlocal seen
        after, seen = seen, mux.log.head
        if is_on(mux):
            events = mux.log.recent(after)
            if events is None or any(event.kind in CAUSES for event in events):
                _wake(mux)

    return heard


def _wake(mux: Mux) -> None:
    if is_on(mux):
        mux.alarm.set(mux.clock.now_ms())


def run(mux: Mux) -> None:
    """Take back assignments that nobody will claim, and dispatch every task that can be."""
    if not is_on(mux):
        return
    with mux.store.read() as rx:
        busy = bool(_forsaken(rx) or _plan(rx))
    while busy:
        busy = mux.store.write(_round, grows=True)


def _round(tx: Tx) -> bool:
    """One transaction's share of the work; returns whether there may be more."""
    for row in _forsaken(tx):
        tasks.unassign(tx, row, "its agent went stale or left")
    plan = _plan(tx)
    given = 0
    while plan and given < AT_ONCE:
        _, seq, _, agent_id, agent = heapq.heappop(plan)
        (row,) = taskrows.rows(tx, "select * from task where seq = ?", seq)
        if row.status == "pending" and row.assigned_to is None:
            dispatch.give(tx, row, agent, auto=True)
            given += 1
        elif (best := _best_for(tx, agent)) is not None:  # another agent got the task
            heapq.heappush(plan, (*best, messages.open_mail(tx, agent_id), agent_id, agent))
    return given == AT_ONCE


def _forsaken(rx: Snapshot) -> list[Task]:
    """Tasks that the daemon assigned to agents that are no longer there to claim them."""
    given = "select * from task where auto = 1 and status in ('pending', 'delayed', 'waiting') order by seq"
    return [row for row in taskrows.rows(rx, given) if not _is_there(rx, row.assigned_to)]


def _is_there(rx: Snapshot, agent_id: str | None) -> bool:
    presence = rx.mux.presence
    return agent_id is not None and presence.knows(agent_id) and presence.status(agent_id) == "active"


def _plan(rx: Snapshot) -> list[tuple[int, int, int, str, Any]]:
    """A heap of the best task for each idle agent, ordered by priority, age, and how much unread mail the agent has."""
    anything = "select 1 from task indexed by task_open where status = 'pending' and assigned_to is null limit 1"
    if rx.one(anything) is None:
        return []
    busy = {row[0] for row in rx.sql("select distinct owner from task where status = 'claimed'")}
    busy |= {
        row[0]
        for row in rx.sql("select distinct assigned_to from task where status = 'pending' and assigned_to is not null")
    }
    plan = []
    for agent in rx.sql("select * from agent where deregistered_at is null"):
        if agent["id"] not in busy and _is_there(rx, agent["id"]) and (best := _best_for(rx, agent)) is not None:
            mail = messages.open_mail(rx, agent["id"])
            if mail < rx.mux.settings.inbox_limit:
                plan.append((*best, mail, agent["id"], agent))
    heapq.heapify(plan)
    return plan


def _best_for(rx: Snapshot, agent: Any) -> tuple[int, int] | None:
    """The most urgent, then oldest, task for this agent, as (-priority, seq)."""
    able: list[str | None] = list(json.loads(agent["capabilities"]))
    if agent["role"] is not None and agent["role"] == rx.mux.settings.routing.get("assignment"):
        able.append(None)
    found = []
    for channel in directory.channels_of(rx, agent["id"]):
        for capability in able:
            rows = rx.sql(
                "select priority, seq from task indexed by task_open where status = 'pending' and assigned_to is null "
                "and channel = ? and required_capability is ? and posted_by <> ? order by priority desc, seq limit ?",
                channel,
                capability,
                agent["id"],
                LOOKED_AT,
            )
            fit = ((-row[0], row[1]) for row in rows if not _gave_up(rx, row[1], agent["id"]))
            found += [best for best in (next(fit, None),) if best is not None]
    return min(found, default=None)


def _gave_up(rx: Snapshot, seq: int, agent_id: str) -> bool:
    """Whether the latest entry in the task's history is that this agent gave it up."""
    last = rx.one("select act, agent_id from task_history where task = ? order by rowid desc limit 1", seq)
    return last is not None and last[1] == agent_id and last[0] in ("released", "handoff", "expired")
