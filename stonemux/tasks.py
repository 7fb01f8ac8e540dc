"""Tasks: work that exactly one agent holds at a time. `taskrows` has the state transitions.

A claim has a **fence**: a number that increases with every claim of the task and is never reset or reused. The claim
token is `<task id>.<fence>`; an agent that completes with an older token was overtaken and is refused. `attempts` is a
different number: it counts the tries that ended in expiry or retry, against `max_attempts`, and restarts when a failed
task is requeued. Tasks given back on purpose do not count.

An expired **lease** makes the task claimable for other agents; it takes nothing from its holder until one of them
claims it. So a late completion is accepted as long as the fence has not changed. An agent that gives a task back
(release, retry), or loses it for good (requeue), is no longer its owner. Leases run on the program's clock, which never
steps, and each restart gives live leases a full term, so nobody is late because the daemon was away.

Whatever is due (leases, delays) is settled by the next claim or by the timekeeper, whichever comes first. To avoid
needless queries, claims remember when something will next be due (`_DUE`) and for which topics there is no task
(`has_none`). Code that sets an earlier deadline, or makes a task claimable (`offer`), updates what is remembered.
"""

from __future__ import annotations

import re
from typing import Any

from stonemux import directory, taskrows
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.hub import Topic
from stonemux.payload import dumps
from stonemux.taskrows import FINAL, Task, find, move, rows, view
from stonemux.transaction import Snapshot, Tx

BACKOFF_MS = (1_000, 5_000, 30_000, 120_000, 600_000)
"""How long a task that failed with `retry` waits before its next attempt."""

EXHAUSTED = "max_attempts_exceeded"

_TOKEN = re.compile(r"(.{36})\.([1-9][0-9]{0,18})\Z")

_DUE = ("tasks due",)
"""The cache key for a time before which no lease and no delay ends."""

_NEVER = 2**62


def note_down(tx: Tx, seq: int, act: str, agent_id: str | None, fence: int, note: str | None = None) -> None:
    """Add a line to the task's history."""
    tx.insert("task_history", (seq, tx.now, act, agent_id, fence, note))


def offer(tx: Tx, row: Task) -> None:
    """Wake one of the agents that could claim this task; call this whenever a task becomes claimable."""
    topic: Topic = ("task", row.channel, row.required_capability)
    if row.assigned_to is not None:
        topic = ("task-for", row.channel, row.assigned_to)
    tx.cache.pop(topic, None)
    tx.offer(topic)


def has_none(tx: Tx, topic: Topic) -> bool:
    """Whether this topic is known to have no task."""
    return topic in tx.cache


def note_none(tx: Tx, topic: Topic) -> None:
    """Remember that this topic has no task, until one is offered."""
    tx.cache[topic] = True


# -- posting


def post(
    tx: Tx,
    *,
    description: str,
    posted_by: str,
    required_capability: str | None,
    priority: int,
    channel: str,
    metadata: dict[str, Any] | None,
    depends_on: list[str] | None,
    assigned_to: str | None,
    claim_timeout: int | None,
    max_attempts: int,
) -> dict[str, Any]:
    """Add a task to a channel's pool; a task that depends on unfinished ones waits for them."""
    directory.agent(tx, posted_by, "posted_by")
    channel = directory.channel(tx, channel)["name"]
    if assigned_to is not None:
        directory.agent(tx, assigned_to, "assigned_to")
    needs = [find(tx, task_id, "depends_on") for task_id in depends_on or ()]
    unmet = [need.seq for need in needs if need.status != "complete"]
    task = Task(
        0,  # the database assigns it
        tx.mux.clock.new_ordered_id(),
        channel,
        description,
        posted_by,
        required_capability,
        priority,
        dumps(metadata) if metadata else None,
        assigned_to,
        "waiting" if unmet else "pending",
        max_attempts=max_attempts,
        claim_timeout_ms=claim_timeout * 1000 if claim_timeout is not None else None,
        created_at=tx.now,
    )
    tx.insert("task", (*task[1:10], task.max_attempts, task.claim_timeout_ms, task.created_at))
    if unmet:
        seq = find(tx, task.id).seq
        tx.many("insert into task_need (task, needs) values (?, ?)", [(seq, need) for need in unmet])
    else:
        offer(tx, task)
    told: dict[str, Any] = {
        "task_id": task.id,
        "description": description,
        "posted_by": posted_by,
        "required_capability": required_capability,
        "priority": priority,
        "channel": channel,
    }
    tx.emit("task_posted", dumps(told), channel=channel, agents=about(posted_by, assigned_to))
    return {"task_id": task.id, "task": view(task)}


def about(*agents: str | None) -> tuple[str, ...]:
    """The agents that an event concerns."""
    return tuple(dict.fromkeys(agent_id for agent_id in agents if agent_id))


# -- holding


def take(tx: Tx, which: str, agent_id: str, *values: Any) -> Task | None:
    """Claim a pending task for an agent: the fence increases, and the lease begins.

    `which` is SQL for its seq, in which `values` are ?4 and so on. Returns the task, or None if it is not pending.
    """
    lease = tx.mux.settings.task_claim_timeout * 1000
    for row in rows(
        tx,
        "update task set status = 'claimed', owner = ?1, fence = fence + 1, claimed_at = ?2, "
        f"due_at = ?2 + coalesce(claim_timeout_ms, ?3) where status = 'pending' and seq = {which} returning *",
        agent_id,
        tx.now,
        lease,
        *values,
    ):
        _tell_claimed(tx, row, "claimed")
        return row
    return None


def _tell_claimed(tx: Tx, row: Task, act: str) -> None:
    note_down(tx, row.seq, act, row.owner, row.fence)
    tx.emit(
        "task_claimed",
        dumps({"task_id": row.id, "agent_id": row.owner, "channel": row.channel, "attempt": row.fence}),
        channel=row.channel,
        agents=about(row.owner, row.posted_by),
    )
    _set_alarm(tx, row)


def _set_alarm(tx: Tx, row: Task) -> None:
    """After the commit, set the timekeeper's alarm for this task."""
    due_at = row.due_at
    if due_at is not None:
        if due_at < tx.cache.get(_DUE, 0):
            tx.cache[_DUE] = due_at
        tx.after(lambda: tx.mux.alarm.set(due_at))


def held(tx: Tx, task_id: str, agent_id: str, token: str | None) -> Task:
    """The task's row, if this agent has its latest claim, and the token (if one is given) is that claim's.

    A token can be guessed, so it distinguishes the processes of one agent but never identifies an agent.
    """
    directory.agent(tx, agent_id)
    row = find(tx, task_id)
    if token is not None:
        fence = _fence(task_id, token)
        if fence is None:
            raise MuxError(
                "invalid_field",
                f"claim_token does not belong to task {task_id}; send the one that task.claim returned",
                parameter="claim_token",
            )
        if fence != row.fence or row.owner is None:
            raise _stale(row)
    if row.owner == agent_id:
        return row
    once = tx.one("select 1 from task_history where task = ? and agent_id = ? and act = 'claimed'", row.seq, agent_id)
    if once is not None:
        raise _over(row) if row.status in FINAL else _stale(row)
    holder = row.owner if row.status == "claimed" else None
    remedy = "claim it first with task.claim" if holder is None else f"{holder!r} holds it, so leave it to that agent"
    raise MuxError(
        "not_claim_owner",
        f"{agent_id!r} has not claimed task {task_id}",
        remedy=remedy,
        task_id=task_id,
        claimed_by=holder,
    )


def _fence(task_id: str, token: str) -> int | None:
    """The fence in a claim token, or None if the token does not belong to this task."""
    match = _TOKEN.match(token)
    if match is None or match[1] != task_id:
        return None
    return min(int(match[2]), _NEVER)  # larger than any fence that the database can hold


def _stale(row: Task) -> MuxError:
    return MuxError(
        "stale_claim",
        f"your claim of task {row.id} is over: it was given back, or ran out and somebody else claimed the task "
        "since. Drop your work on it",
        task_id=row.id,
        status=taskrows.status(row),
        current_attempt=row.fence,
    )


def complete(
    tx: Tx, *, task_id: str, agent_id: str, result: str | None, status: str, retry: bool, claim_token: str | None
) -> dict[str, Any]:
    """End a claimed task as complete or failed; a failed one with `retry` goes back to the pool after a delay."""
    if status == "failed" and retry:
        return _retry(tx, held(tx, task_id, agent_id, claim_token), agent_id, result)
    directory.agent(tx, agent_id)
    fence = -1 if claim_token is None else _fence(task_id, claim_token)
    # nearly always the claim is still valid, and a single statement checks that and ends the task
    standing = "id = ?6 and status = 'claimed' and owner = ?7 and ?8 in (fence, -1)"
    for row in _end(tx, standing, task_id, agent_id, fence, status=status, by=agent_id, result=result):
        return {"task_id": task_id, "status": status, "task": view(row)}
    row = held(tx, task_id, agent_id, claim_token)
    if row.status in FINAL:
        return _completed_before(row, agent_id, result, status)
    move(row, "complete" if status == "complete" else "fail")
    (row,) = _end(tx, "seq = ?6", row.seq, status=status, by=agent_id, result=result)
    return {"task_id": task_id, "status": status, "task": view(row)}


def _completed_before(row: Task, agent_id: str, result: str | None, status: str) -> dict[str, Any]:
    if row.status == status and row.owner == agent_id and row.result == result and not row.error:
        return {"task_id": row.id, "status": status, "task": view(row), "replayed": True}
    if row.status == "cancelled":
        raise MuxError(
            "task_conflict",
            f"task {row.id} was cancelled; drop your work on it",
            status="cancelled",
            task_id=row.id,
        )
    raise _over(row)


def _over(row: Task) -> MuxError:
    return MuxError(
        "already_complete",
        f"task {row.id} is already {row.status}; drop your work on it",
        task_id=row.id,
        status=row.status,
        completed_at=rfc3339(row.completed_at),
    )


def _end(
    tx: Tx,
    which: str,
    *values: Any,
    status: str,
    by: str | None,
    result: str | None = None,
    error: str | None = None,
    note: str | None = None,
) -> list[Task]:
    """End the tasks that match `which`, an SQL condition in which `values` are ?6 and so on; returns them."""
    ended = []
    for *row, needed in tx.sql(
        "update task set status = ?1, result = ?2, error = ?3, attempts = attempts + ?4, completed_at = ?5, "
        f"due_at = null, waiting_thread = null, auto = null where {which} "
        "returning *, exists (select 1 from task_need where needs = task.seq)",
        status,
        result,
        error,
        int(error is not None),
        tx.now,
        *values,
    ):
        task = Task(*row)
        note_down(tx, task.seq, status, by, task.fence, note or error)
        told: dict[str, Any] = {"task_id": task.id, "agent_id": by, "channel": task.channel, "status": status}
        if result is not None:
            told["result"] = result
        if error is not None:
            told["error"] = error
        kind = {"complete": "task_completed", "failed": "task_failed", "cancelled": "task_cancelled"}[status]
        tx.emit(kind, dumps(told), channel=task.channel, agents=about(by, task.posted_by, task.owner))
        if needed and status == "complete":
            _free_dependents(tx, task.seq)
        ended.append(task)
    return ended


def _free_dependents(tx: Tx, seq: int) -> None:
    """Make the tasks that waited only for this one pending."""
    dependents = [row[0] for row in tx.sql("delete from task_need where needs = ? returning task", seq)]
    for dependent in sorted(dependents):
        if tx.one("select 1 from task_need where task = ?", dependent) is None:
            resume(tx, dependent, "dependencies")


def resume(tx: Tx, seq: int, why: str) -> None:
    """Make a waiting task pending, because its wait is over or timed out; a cancelled one stays cancelled."""
    for row in rows(
        tx,
        "update task set status = 'pending', due_at = null, waiting_thread = null "
        "where seq = ? and status = 'waiting' returning *",
        seq,
    ):
        told = {"task_id": row.id, "channel": row.channel, "reason": why}
        tx.emit("task_ready", dumps(told), channel=row.channel, agents=about(row.posted_by, row.assigned_to))
        offer(tx, row)


def _retry(tx: Tx, row: Task, agent_id: str, result: str | None) -> dict[str, Any]:
    if row.status in FINAL:
        return _completed_before(row, agent_id, result, "failed")
    move(row, "fail")
    if _exhausted(row):
        (row,) = _end(
            tx, "seq = ?6", row.seq, status="failed", by=agent_id, result=result, error=EXHAUSTED, note=result
        )
        return {"task_id": row.id, "status": "failed", "task": view(row)}
    delay = BACKOFF_MS[min(_tries(row), len(BACKOFF_MS)) - 1]
    row = put_back(tx, row, "delayed", due_at=tx.now + delay, note=result or "failed, to be retried", act="retry")
    return {"task_id": row.id, "status": "pending", "task": view(row)}


def _exhausted(row: Task) -> bool:
    """Whether the try that ends now was the last one."""
    return bool(row.max_attempts) and _tries(row) >= row.max_attempts


def _tries(row: Task) -> int:
    """How many tries there were, with the one that ends now; if its lease ran out before, that has counted it."""
    return row.attempts + (row.status == "claimed")


def put_back(
    tx: Tx,
    row: Task,
    status: str,
    *,
    due_at: int | None = None,
    note: str | None = None,
    act: str = "released",
    handoff: dict[str, Any] | None = None,
    thread: str | None = None,
) -> Task:
    """End a claim without finishing the task; returns the row.

    An assignment stays, unless the task is handed off or the daemon made the assignment. A task with a `thread` waits
    for an answer in it.
    """
    (after,) = rows(
        tx,
        "update task set status = ?, due_at = ?, owner = ?, claimed_at = null, attempts = attempts + ?, "
        "handoff = coalesce(?, handoff), waiting_thread = ?, "
        "assigned_to = case when auto or ? then null else assigned_to end, auto = null where seq = ? returning *",
        status,
        due_at,
        row.owner if act == "expired" else None,
        _tries(row) - row.attempts if act in ("expired", "retry") else 0,
        dumps(handoff) if handoff else None,
        thread,
        handoff is not None,
        row.seq,
    )
    note_down(tx, row.seq, act, row.owner, row.fence, note)
    told: dict[str, Any] = {"task_id": row.id, "agent_id": row.owner, "channel": row.channel, "reason": act}
    if note:
        told["note"] = note
    tx.emit("task_released", dumps(told), channel=row.channel, agents=about(row.owner, row.posted_by))
    if status == "pending":
        offer(tx, after)
    else:
        _set_alarm(tx, after)
    return after


def assign(
    tx: Tx, row: Task, agent_id: str, *, priority: int | None = None, by: str | None = None, auto: bool = False
) -> Task:
    """Let only this agent claim a task; returns the row. A current holder keeps its claim."""
    (after,) = rows(
        tx,
        "update task set assigned_to = ?, priority = coalesce(?, priority), auto = ? where seq = ? returning *",
        agent_id,
        priority,
        1 if auto else None,
        row.seq,
    )
    note_down(tx, row.seq, "assigned", agent_id, row.fence, f"by {by}" if by else None)
    told = {"task_id": row.id, "agent_id": agent_id, "channel": row.channel, "by": by}
    tx.emit("task_assigned", dumps(told), channel=row.channel, agents=about(agent_id, row.posted_by, by))
    if after.status == "pending":
        offer(tx, after)
    return after


def unassign(tx: Tx, row: Task, why: str) -> None:
    """Let every agent claim a task again that was assigned to one agent and not claimed."""
    agent_id = row.assigned_to
    (row,) = rows(tx, "update task set assigned_to = null, auto = null where seq = ? returning *", row.seq)
    note_down(tx, row.seq, "unassigned", agent_id, row.fence, why)
    told = {"task_id": row.id, "agent_id": agent_id, "channel": row.channel, "reason": "unassigned", "note": why}
    tx.emit("task_released", dumps(told), channel=row.channel, agents=about(agent_id, row.posted_by))
    if row.status == "pending":
        offer(tx, row)


def extend(tx: Tx, *, task_id: str, agent_id: str, claim_token: str | None) -> dict[str, Any]:
    """Renew the full lease; the answer says `cancelled` if the poster no longer wants the work."""
    row = held(tx, task_id, agent_id, claim_token)
    if row.status == "cancelled":
        return {"task_id": task_id, "cancelled": True, "task": view(row)}
    if row.status in FINAL:
        raise _over(row)
    ran_out = row.status != "claimed"
    status = move(row, "extend")
    (row,) = rows(
        tx,
        "update task set status = ?, due_at = ? + coalesce(claim_timeout_ms, ?), "
        "claimed_at = coalesce(claimed_at, ?) where seq = ? returning *",
        status,
        tx.now,
        tx.mux.settings.task_claim_timeout * 1000,
        tx.now,
        row.seq,
    )
    if ran_out:
        _tell_claimed(tx, row, "extended")
    else:
        _set_alarm(tx, row)
    return {"task_id": task_id, "lease_expires_at": rfc3339(row.due_at), "task": view(row)}


def release(
    tx: Tx, *, task_id: str, agent_id: str, claim_token: str | None, delay: int, reason: str | None
) -> dict[str, Any]:
    """Give a claimed task back to the pool, claimable at once or after `delay` seconds."""
    row = held(tx, task_id, agent_id, claim_token)
    move(row, "release")
    if delay:
        row = put_back(tx, row, "delayed", due_at=tx.now + delay * 1000, note=reason)
    else:
        row = put_back(tx, row, "pending", note=reason)
    return {"task_id": task_id, "status": "pending", "task": view(row)}


def release_all(tx: Tx, agent_id: str, reason: str) -> int:
    """Give back everything that an agent holds; returns how many tasks."""
    held_ones = rows(tx, "select * from task where owner = ? and status = 'claimed' order by seq", agent_id)
    for row in held_ones:
        put_back(tx, row, "pending", note=reason)
    return len(held_ones)


# -- the poster's side


def cancel(tx: Tx, *, task_id: str, by: str | None) -> dict[str, Any]:
    """Withdraw a task; its holder learns of it on the next extend or complete."""
    row = find(tx, task_id)
    if by is not None:
        directory.agent(tx, by, "by")
        if by != row.posted_by:
            raise MuxError(
                "not_poster",
                f"task {task_id} was posted by {row.posted_by!r}; only its poster may cancel it",
                posted_by=row.posted_by,
            )
    if row.status == "cancelled":
        return {"task_id": task_id, "status": "cancelled", "task": view(row)}
    after = move(row, "cancel")
    (row,) = _end(tx, "seq = ?6", row.seq, status=after, by=by or row.posted_by)
    return {"task_id": task_id, "status": after, "task": view(row)}


def requeue(tx: Tx, *, task_id: str, by: str | None) -> dict[str, Any]:
    """Put a failed or cancelled task back into the pool with its attempts reset; the fence keeps increasing."""
    if by is not None:
        directory.agent(tx, by, "by")
    row = find(tx, task_id)
    after = move(row, "requeue")
    if tx.one("select 1 from task_need where task = ?", row.seq) is not None:
        after = "waiting"
    (row,) = rows(
        tx,
        "update task set status = ?, attempts = 0, owner = null, result = null, error = null, completed_at = null, "
        "claimed_at = null where seq = ? returning *",
        after,
        row.seq,
    )
    note_down(tx, row.seq, "requeued", by, row.fence)
    tx.emit(
        "task_requeued",
        dumps({"task_id": task_id, "agent_id": by, "channel": row.channel}),
        channel=row.channel,
        agents=about(by, row.posted_by),
    )
    if after == "pending":
        offer(tx, row)
    return {"task_id": task_id, "status": after, "task": view(row)}


# -- what happens without a call


def settle_due(tx: Tx) -> None:
    """Settle expired leases and ended delays: tasks go back to the pool, or fail when their attempts are used up."""
    if tx.now < tx.cache.get(_DUE, 0):
        return
    for row in rows(tx, "select * from task where due_at <= ? order by due_at limit 500", tx.now):
        if row.status == "claimed":
            if _exhausted(row):
                _end(tx, "seq = ?6", row.seq, status="failed", by=row.owner, error=EXHAUSTED)
            else:
                put_back(tx, row, move(row, "expire"), note="the lease ran out", act="expired")
        elif row.status == "waiting":
            note_down(tx, row.seq, "unanswered", None, row.fence)
            resume(tx, row.seq, "time")
        else:
            tx.run("update task set status = ?, due_at = null where seq = ?", move(row, "ripen"), row.seq)
            offer(tx, row)
    due_at = next_due(tx)
    tx.cache[_DUE] = _NEVER if due_at is None else due_at


def next_due(rx: Snapshot) -> int | None:
    """When the next lease or delay ends."""
    row = rx.one("select min(due_at) from task where due_at is not null")
    return None if row[0] is None else int(row[0])


def renew_leases(tx: Tx) -> None:
    """After a restart, give every live lease its full term, durably, before any call is answered."""
    tx.cache.pop(_DUE, None)
    tx.run(
        "update task set due_at = ? + coalesce(claim_timeout_ms, ?) where status = 'claimed'",
        tx.now,
        tx.mux.settings.task_claim_timeout * 1000,
    )


def purge(tx: Tx, before: int, most: int) -> int:
    """Delete up to `most` tasks that ended before a time; returns how many. Tasks that others depend on are kept."""
    doomed = [
        row[0]
        for row in tx.sql(
            "select seq from task where completed_at < ? and seq not in (select needs from task_need) limit ?",
            before,
            most,
        )
    ]
    for seq in doomed:
        tx.run("delete from task_history where task = ?", seq)
        tx.run("delete from task_need where task = ?", seq)
        tx.run("delete from task where seq = ?", seq)
    return len(doomed)
