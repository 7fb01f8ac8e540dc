"""Tasks: work that exactly one agent holds at a time.

What may happen is data. `delayed` is a pending task that nobody may claim before `due_at`; on the wire it is `pending`.

    post ──> pending ──claim──> claimed ──complete──> complete
               ^  ^               │  │
               │  └──release──────┤  └────fail──────> failed ──requeue──> pending
               └──expire, retry───┘

A claim has a **fence**: a number that rises with every claim of the task and is never reset or reused. The claim token
is `<task id>.<fence>`; whoever completes with an older one was overtaken and is refused. `attempts` is another
number: it counts the tries that ended in expiry or retry, against `max_attempts`, and starts anew when a failed task is
requeued. What was given back on purpose does not count.

A **lease** that ran out makes the task claimable for somebody else; it takes nothing from its holder until somebody
does. So a late completion is accepted as long as the fence has not moved. Who gives a task back (release, retry) or
loses it for good (requeue) is no longer its owner. Leases run on the program's clock, which never steps, and each
restart gives the live ones a full term: nobody is late because the daemon was away.

Whatever is due (leases, delays) is settled by the next claim or by the timekeeper, whichever comes first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from stonemux import directory
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.hub import Topic
from stonemux.payload import dumps
from stonemux.transaction import Snapshot, Tx

MOVES: dict[tuple[str, str], str] = {
    ("pending", "claim"): "claimed",
    ("claimed", "complete"): "complete",
    ("pending", "complete"): "complete",  # its lease ran out, but nobody else has claimed it
    ("claimed", "fail"): "failed",
    ("pending", "fail"): "failed",
    ("claimed", "extend"): "claimed",
    ("pending", "extend"): "claimed",  # likewise
    ("claimed", "release"): "pending",
    ("claimed", "hand off"): "pending",
    ("pending", "hand off"): "pending",  # likewise
    ("claimed", "restart"): "pending",
    ("claimed", "expire"): "pending",
    ("claimed", "cancel"): "cancelled",
    ("pending", "cancel"): "cancelled",
    ("delayed", "cancel"): "cancelled",
    ("waiting", "cancel"): "cancelled",
    ("delayed", "ripen"): "pending",
    ("waiting", "ripen"): "pending",
    ("failed", "requeue"): "pending",
    ("cancelled", "requeue"): "pending",
}
"""(status, act) -> next status; whatever is not here is a conflict."""

FINAL = ("complete", "failed", "cancelled")

BACKOFF_MS = (1_000, 5_000, 30_000, 120_000, 600_000)
"""How long a task that failed with `retry` waits before its next attempt."""

_TOKEN = re.compile(r"(.{36})\.([1-9][0-9]{0,18})\Z")


def claim_token(row: Any) -> str:
    """The fencing token of the task's current claim."""
    return f"{row['id']}.{row['fence']}"


def view(row: Any) -> dict[str, Any]:
    """A task as it is shown."""
    status = "pending" if row["status"] == "delayed" else row["status"]
    shown: dict[str, Any] = {
        "task_id": row["id"],
        "description": row["description"],
        "posted_by": row["posted_by"],
        "required_capability": row["required_capability"],
        "priority": row["priority"],
        "channel": row["channel"],
        "metadata": json.loads(row["metadata"]) if row["metadata"] else {},
        "status": status,
        "assigned_to": row["assigned_to"],
        "claimed_by": row["owner"] if status == "claimed" or status in FINAL else None,
        "attempts": row["attempts"],
        "result": row["result"],
        "created_at": rfc3339(row["created_at"]),
        "claimed_at": rfc3339(row["claimed_at"]) if row["claimed_at"] else None,
        "lease_expires_at": rfc3339(row["due_at"]) if status == "claimed" else None,
        "completed_at": rfc3339(row["completed_at"]) if row["completed_at"] else None,
        "max_attempts": row["max_attempts"],
    }
    if row["error"]:
        shown["error"] = row["error"]
    if row["handoff"]:
        shown["handoff"] = json.loads(row["handoff"])
    if row["waiting_thread"]:
        shown["waiting_on"] = shown["handoff"]["waiting_on"]
    if row["status"] in ("delayed", "waiting") and row["due_at"]:
        shown["available_at"] = rfc3339(row["due_at"])
    return shown


def find(rx: Snapshot, task_id: str) -> Any:
    """The task's row; raises `task_not_found`."""
    row = rx.one("select * from task where id = ?", task_id)
    if row is None:
        raise MuxError(
            "task_not_found",
            f"no task {task_id!r} exists; task.list shows the ones there are",
            task_id=task_id,
        )
    return row


def move(row: Any, act: str) -> str:
    """The status after an act; raises `task_conflict` where there is none."""
    after = MOVES.get((row["status"], act))
    if after is None:
        status = "pending" if row["status"] == "delayed" else row["status"]
        raise MuxError(
            "task_conflict",
            f"task {row['id']} is {status}; a {act} is not possible now",
            status=status,
            task_id=row["id"],
        )
    return after


def note_down(tx: Tx, seq: int, act: str, agent_id: str | None, fence: int, note: str | None = None) -> None:
    """Put a line into the task's history."""
    tx.run(
        "insert into task_history (task, at, act, agent_id, fence, note) values (?, ?, ?, ?, ?, ?)",
        seq,
        tx.now,
        act,
        agent_id,
        fence,
        note,
    )


def _topic(channel: str, required_capability: str | None, assigned_to: str | None) -> Topic:
    """What those wait for who could claim such a task."""
    if assigned_to is not None:
        return ("task-for", channel, assigned_to)
    return ("task", channel, required_capability)


def offer(tx: Tx, row: Any) -> None:
    """Wake one of those who could claim this task."""
    tx.offer(_topic(row["channel"], row["required_capability"], row["assigned_to"]))


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
    """Put a task into a channel's pool; one that depends on unfinished ones waits for them."""
    directory.agent(tx, posted_by, "posted_by")
    channel = directory.channel(tx, channel)["name"]
    if assigned_to is not None:
        directory.agent(tx, assigned_to, "assigned_to")
    needs = [find(tx, task_id) for task_id in depends_on or ()]
    unmet = [need["seq"] for need in needs if need["status"] != "complete"]
    task_id = tx.mux.clock.new_id()
    seq = tx.run(
        "insert into task (id, channel, description, posted_by, required_capability, priority, metadata, assigned_to, "
        "status, max_attempts, claim_timeout_ms, created_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        task_id,
        channel,
        description,
        posted_by,
        required_capability,
        priority,
        dumps(metadata) if metadata else None,
        assigned_to,
        "waiting" if unmet else "pending",
        max_attempts,
        claim_timeout * 1000 if claim_timeout is not None else None,
        tx.now,
    ).lastrowid
    for need in unmet:
        tx.run("insert into task_need (task, needs) values (?, ?)", seq, need)
    told: dict[str, Any] = {
        "task_id": task_id,
        "description": description,
        "posted_by": posted_by,
        "required_capability": required_capability,
        "priority": priority,
        "channel": channel,
    }
    tx.emit("task_posted", dumps(told), channel=channel, agents=about(posted_by, assigned_to))
    if not unmet:
        tx.offer(_topic(channel, required_capability, assigned_to))
    row = tx.one("select * from task where seq = ?", seq)
    return {"task_id": task_id, "task": view(row)}


def about(*agents: str | None) -> tuple[str, ...]:
    """The agents that an event concerns."""
    return tuple(dict.fromkeys(agent_id for agent_id in agents if agent_id))


# -- holding


def take(tx: Tx, seq: int, agent_id: str) -> Any:
    """Claim a pending task for an agent: the fence rises, and the lease begins. Returns the row."""
    row = tx.sql(
        "update task set status = 'claimed', owner = ?, fence = fence + 1, claimed_at = ?, "
        "due_at = ? + coalesce(claim_timeout_ms, ?) where seq = ? and status = 'pending' returning *",
        agent_id,
        tx.now,
        tx.now,
        tx.mux.settings.task_claim_timeout * 1000,
        seq,
    )[0]
    _tell_claimed(tx, row, "claimed")
    return row


def _tell_claimed(tx: Tx, row: Any, act: str) -> None:
    note_down(tx, row["seq"], act, row["owner"], row["fence"])
    tx.emit(
        "task_claimed",
        dumps({"task_id": row["id"], "agent_id": row["owner"], "channel": row["channel"], "attempt": row["fence"]}),
        channel=row["channel"],
        agents=about(row["owner"], row["posted_by"]),
    )
    _set_alarm(tx, row)


def _set_alarm(tx: Tx, row: Any) -> None:
    """After the commit, let the timekeeper know when this task wants it."""
    due_at = row["due_at"]
    tx.after(lambda: tx.mux.alarm.set(due_at))


def held(tx: Tx, task_id: str, agent_id: str, token: str | None) -> Any:
    """The task's row, if this agent (or this token) has the latest claim of it."""
    directory.agent(tx, agent_id)
    row = find(tx, task_id)
    if token is not None:
        match = _TOKEN.match(token)
        if match is None or match[1] != task_id:
            raise MuxError(
                "invalid_field",
                f"claim_token does not belong to task {task_id}; send the one that task.claim answered",
                parameter="claim_token",
            )
        if int(match[2]) != row["fence"] or row["owner"] is None:
            raise _stale(row)
        return row
    if row["owner"] == agent_id:
        return row
    once = tx.one(
        "select 1 from task_history where task = ? and agent_id = ? and act = 'claimed'", row["seq"], agent_id
    )
    if once is not None:
        raise _over(row) if row["status"] in FINAL else _stale(row)
    raise MuxError(
        "not_claim_owner",
        f"{agent_id!r} has not claimed task {task_id}; claim it first with task.claim",
        task_id=task_id,
        claimed_by=row["owner"] if row["status"] == "claimed" else None,
    )


def _stale(row: Any) -> MuxError:
    return MuxError(
        "stale_claim",
        f"your claim of task {row['id']} is over: it was given back, or ran out and somebody else claimed the task "
        "since. Drop your work on it",
        task_id=row["id"],
        status=row["status"],
        current_attempt=row["fence"],
    )


def complete(
    tx: Tx, *, task_id: str, agent_id: str, result: str | None, status: str, retry: bool, claim_token: str | None
) -> dict[str, Any]:
    """End a claimed task as complete or failed; a failed one with `retry` goes back to the pool after a while."""
    row = held(tx, task_id, agent_id, claim_token)
    if row["status"] in FINAL:
        return _completed_before(row, agent_id, result, status)
    if status == "failed" and retry:
        return _retry(tx, row, agent_id, result)
    after = move(row, "complete" if status == "complete" else "fail")
    row = _finish(tx, row, after, result=result, note=None, agent_id=agent_id)
    return {"task_id": task_id, "status": after, "task": view(row)}


def _completed_before(row: Any, agent_id: str, result: str | None, status: str) -> dict[str, Any]:
    if row["status"] == status and row["owner"] == agent_id and row["result"] == result and not row["error"]:
        return {"task_id": row["id"], "status": status, "task": view(row), "replayed": True}
    if row["status"] == "cancelled":
        raise MuxError(
            "task_conflict",
            f"task {row['id']} was cancelled by its poster; drop your work on it",
            status="cancelled",
            task_id=row["id"],
        )
    raise _over(row)


def _over(row: Any) -> MuxError:
    return MuxError(
        "already_complete",
        f"task {row['id']} is {row['status']} already; drop your work on it",
        task_id=row["id"],
        status=row["status"],
        completed_at=rfc3339(row["completed_at"]),
    )


def _finish(
    tx: Tx,
    row: Any,
    status: str,
    *,
    result: str | None,
    note: str | None,
    agent_id: str | None,
    error: str | None = None,
) -> Any:
    after = tx.sql(
        "update task set status = ?, result = ?, error = ?, attempts = attempts + ?, completed_at = ?, due_at = null, "
        "waiting_thread = null, auto = null where seq = ? returning *",
        status,
        result,
        error,
        int(error is not None),
        tx.now,
        row["seq"],
    )[0]
    note_down(tx, row["seq"], status, agent_id, row["fence"], note or error)
    told: dict[str, Any] = {"task_id": row["id"], "agent_id": agent_id, "channel": row["channel"], "status": status}
    if result is not None:
        told["result"] = result
    if error is not None:
        told["error"] = error
    kind = {"complete": "task_completed", "failed": "task_failed", "cancelled": "task_cancelled"}[status]
    tx.emit(kind, dumps(told), channel=row["channel"], agents=about(agent_id, row["posted_by"], row["owner"]))
    if status == "complete":
        _free_dependents(tx, row["seq"])
    return after


def _free_dependents(tx: Tx, seq: int) -> None:
    """Tasks that waited only for this one become pending."""
    dependents = [row[0] for row in tx.sql("select task from task_need where needs = ?", seq)]
    if not dependents:
        return
    tx.run("delete from task_need where needs = ?", seq)
    for dependent in dependents:
        if tx.one("select 1 from task_need where task = ?", dependent) is None:
            resume(tx, dependent, "dependencies")


def resume(tx: Tx, seq: int, why: str) -> None:
    """What a task waited for has come, or its time is up: it is pending again, unless it was cancelled meanwhile."""
    for row in tx.sql(
        "update task set status = 'pending', due_at = null, waiting_thread = null "
        "where seq = ? and status = 'waiting' returning *",
        seq,
    ):
        told = {"task_id": row["id"], "channel": row["channel"], "reason": why}
        tx.emit("task_ready", dumps(told), channel=row["channel"], agents=about(row["posted_by"], row["assigned_to"]))
        offer(tx, row)


def _retry(tx: Tx, row: Any, agent_id: str, result: str | None) -> dict[str, Any]:
    move(row, "fail")
    if _exhausted(row):
        row = _finish(tx, row, "failed", result=result, note=result, agent_id=agent_id, error="max_attempts_exceeded")
        return {"task_id": row["id"], "status": "failed", "task": view(row)}
    delay = BACKOFF_MS[min(row["attempts"], len(BACKOFF_MS) - 1)]
    row = put_back(tx, row, "delayed", due_at=tx.now + delay, note=result or "failed, to be tried again", act="retry")
    return {"task_id": row["id"], "status": "pending", "task": view(row)}


def _exhausted(row: Any) -> bool:
    """Whether the try that ends now was the last one."""
    return bool(row["max_attempts"]) and row["attempts"] + 1 >= row["max_attempts"]


def put_back(
    tx: Tx,
    row: Any,
    status: str,
    *,
    due_at: int | None = None,
    note: str | None = None,
    act: str = "released",
    handoff: dict[str, Any] | None = None,
    thread: str | None = None,
) -> Any:
    """End a claim without finishing the task; returns the row.

    An assignment stays, unless the task is handed off or the assignment was the daemon's own. A task with a `thread`
    waits for somebody to answer in it.
    """
    after = tx.sql(
        "update task set status = ?, due_at = ?, owner = ?, claimed_at = null, attempts = attempts + ?, "
        "handoff = coalesce(?, handoff), waiting_thread = ?, "
        "assigned_to = case when auto or ? then null else assigned_to end, auto = null where seq = ? returning *",
        status,
        due_at,
        row["owner"] if act == "expired" else None,
        int(act in ("expired", "retry")),
        dumps(handoff) if handoff else None,
        thread,
        handoff is not None,
        row["seq"],
    )[0]
    note_down(tx, row["seq"], act, row["owner"], row["fence"], note)
    told: dict[str, Any] = {"task_id": row["id"], "agent_id": row["owner"], "channel": row["channel"], "reason": act}
    if note:
        told["note"] = note
    tx.emit("task_released", dumps(told), channel=row["channel"], agents=about(row["owner"], row["posted_by"]))
    if status == "pending":
        offer(tx, after)
    else:
        _set_alarm(tx, after)
    return after


def assign(
    tx: Tx, row: Any, agent_id: str, *, priority: int | None = None, by: str | None = None, auto: bool = False
) -> Any:
    """Let only this agent claim a task; returns the row. Who holds it goes on holding it."""
    after = tx.sql(
        "update task set assigned_to = ?, priority = coalesce(?, priority), auto = ? where seq = ? returning *",
        agent_id,
        priority,
        1 if auto else None,
        row["seq"],
    )[0]
    note_down(tx, row["seq"], "assigned", agent_id, row["fence"], f"by {by}" if by else None)
    told = {"task_id": row["id"], "agent_id": agent_id, "channel": row["channel"], "by": by}
    tx.emit("task_assigned", dumps(told), channel=row["channel"], agents=about(agent_id, row["posted_by"], by))
    if after["status"] == "pending":
        offer(tx, after)
    return after


def unassign(tx: Tx, row: Any, why: str) -> None:
    """Let everybody claim a task again that was assigned to one agent and not claimed."""
    agent_id = row["assigned_to"]
    (row,) = tx.sql("update task set assigned_to = null, auto = null where seq = ? returning *", row["seq"])
    note_down(tx, row["seq"], "unassigned", agent_id, row["fence"], why)
    told = {"task_id": row["id"], "agent_id": agent_id, "channel": row["channel"], "reason": "unassigned", "note": why}
    tx.emit("task_released", dumps(told), channel=row["channel"], agents=about(agent_id, row["posted_by"]))
    if row["status"] == "pending":
        offer(tx, row)


def extend(tx: Tx, *, task_id: str, agent_id: str, claim_token: str | None) -> dict[str, Any]:
    """Restart the full lease; the answer says `cancelled` when the poster no longer wants the work."""
    row = held(tx, task_id, agent_id, claim_token)
    if row["status"] == "cancelled":
        return {"task_id": task_id, "cancelled": True, "task": view(row)}
    if row["status"] in FINAL:
        raise _over(row)
    ran_out = row["status"] != "claimed"
    status = move(row, "extend")
    row = tx.sql(
        "update task set status = ?, due_at = ? + coalesce(claim_timeout_ms, ?), "
        "claimed_at = coalesce(claimed_at, ?) where seq = ? returning *",
        status,
        tx.now,
        tx.mux.settings.task_claim_timeout * 1000,
        tx.now,
        row["seq"],
    )[0]
    if ran_out:
        _tell_claimed(tx, row, "extended")
    else:
        _set_alarm(tx, row)
    return {"task_id": task_id, "lease_expires_at": rfc3339(row["due_at"]), "task": view(row)}


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
    """Give back everything an agent holds; returns how many."""
    rows = tx.sql("select * from task where owner = ? and status = 'claimed' order by seq", agent_id)
    for row in rows:
        put_back(tx, row, "pending", note=reason)
    return len(rows)


# -- the poster's side


def cancel(tx: Tx, *, task_id: str, by: str | None) -> dict[str, Any]:
    """Withdraw a task; its holder learns of it when it extends or completes."""
    row = find(tx, task_id)
    if by is not None:
        directory.agent(tx, by, "by")
        if by != row["posted_by"]:
            raise MuxError(
                "not_poster",
                f"task {task_id} was posted by {row['posted_by']!r}; only its poster cancels it",
                posted_by=row["posted_by"],
            )
    if row["status"] == "cancelled":
        return {"task_id": task_id, "status": "cancelled", "task": view(row)}
    after = move(row, "cancel")
    row = _finish(tx, row, after, result=None, note=None, agent_id=by or row["posted_by"])
    return {"task_id": task_id, "status": after, "task": view(row)}


def requeue(tx: Tx, *, task_id: str, by: str | None) -> dict[str, Any]:
    """Put a failed or cancelled task back into the pool with its attempts counted anew; the fence goes on rising."""
    if by is not None:
        directory.agent(tx, by, "by")
    row = find(tx, task_id)
    after = move(row, "requeue")
    if tx.one("select 1 from task_need where task = ?", row["seq"]) is not None:
        after = "waiting"
    row = tx.sql(
        "update task set status = ?, attempts = 0, owner = null, result = null, error = null, completed_at = null, "
        "claimed_at = null where seq = ? returning *",
        after,
        row["seq"],
    )[0]
    note_down(tx, row["seq"], "requeued", by, row["fence"])
    tx.emit(
        "task_requeued",
        dumps({"task_id": task_id, "agent_id": by, "channel": row["channel"]}),
        channel=row["channel"],
        agents=about(by, row["posted_by"]),
    )
    if after == "pending":
        offer(tx, row)
    return {"task_id": task_id, "status": after, "task": view(row)}


# -- what happens by itself


def settle_due(tx: Tx) -> None:
    """Leases that ran out and delays that ended: their tasks go back to the pool, or fail when they had their tries."""
    for row in tx.sql("select * from task where due_at <= ? order by due_at limit 500", tx.now):
        if row["status"] == "claimed":
            if _exhausted(row):
                _finish(tx, row, "failed", result=None, note=None, agent_id=row["owner"], error="max_attempts_exceeded")
            else:
                put_back(tx, row, move(row, "expire"), note="the lease ran out", act="expired")
        elif row["status"] == "waiting":
            note_down(tx, row["seq"], "unanswered", None, row["fence"])
            resume(tx, row["seq"], "time")
        else:
            for ripe in tx.sql(
                "update task set status = ?, due_at = null where seq = ? returning *", move(row, "ripen"), row["seq"]
            ):
                offer(tx, ripe)


def next_due(rx: Snapshot) -> int | None:
    """When the next lease or delay ends."""
    row = rx.one("select min(due_at) from task where due_at is not null")
    return None if row[0] is None else int(row[0])


def renew_leases(tx: Tx) -> None:
    """After a restart: every live lease gets its full term, durably, before anybody is answered."""
    tx.run(
        "update task set due_at = ? + coalesce(claim_timeout_ms, ?) where status = 'claimed'",
        tx.now,
        tx.mux.settings.task_claim_timeout * 1000,
    )


def purge(tx: Tx, before: int, most: int) -> int:
    """Forget up to `most` tasks that ended before a time; returns how many. Tasks that others wait for are kept."""
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


# -- looking


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
    where, values = ["1"], list[Any]()
    if channel is not None:
        where.append("channel = ?")
        values.append(directory.channel(rx, channel)["name"])
    if status is not None:
        where.append("status in ('pending', 'delayed')" if status == "pending" else "status = ?")
        values += [] if status == "pending" else [status]
    if agent_id is not None:
        directory.agent(rx, agent_id)
        where.append("(owner = ? or assigned_to = ?)")
        values += [agent_id, agent_id]
    if capability is not None:
        where.append("required_capability = ?")
        values.append(capability)
    if after is not None:
        last = find(rx, after)
        where.append("(priority < ? or (priority = ? and seq > ?))")
        values += [last["priority"], last["priority"], last["seq"]]
    rows = rx.sql(
        f"select * from task where {' and '.join(where)} order by priority desc, seq limit ?", *values, limit + 1
    )
    answer: dict[str, Any] = {"tasks": [view(row) for row in rows[:limit]]}
    if len(rows) > limit:
        answer["more"] = True
    return answer


def get(rx: Snapshot, *, task_id: str) -> dict[str, Any]:
    """A task with what happened to it."""
    row = find(rx, task_id)
    shown = view(row)
    needs = rx.sql(
        "select t.id from task_need n join task t on t.seq = n.needs where n.task = ? order by t.seq", row["seq"]
    )
    if needs:
        shown["depends_on"] = [need[0] for need in needs]
    shown["history"] = list(_history(rx, row))
    return {"task": shown}


def _history(rx: Snapshot, row: Any) -> Iterable[dict[str, Any]]:
    yield {"at": rfc3339(row["created_at"]), "act": "posted", "agent_id": row["posted_by"]}
    for entry in rx.sql("select * from task_history where task = ? order by rowid", row["seq"]):
        told = {"at": rfc3339(entry["at"]), "act": entry["act"], "agent_id": entry["agent_id"]}
        if entry["fence"]:
            told["attempt"] = entry["fence"]
        if entry["note"]:
            told["note"] = entry["note"]
        yield told
