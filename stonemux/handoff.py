"""Handoff: a claimed task goes back to the pool with a note, optionally only after someone has answered a message.

    claimed ──(handoff)──────────────────────────────────────────────> pending
       └─────(handoff, waiting on a message)──> waiting ──(a reply)───────┤
                                                   └─────(24 hours)───────┘

An agent that has asked something ends its session this way instead of waiting for the answer. The reply wakes the task
in the reply's own transaction. Any later message in the thread of that question counts as a reply, unless it is from
the agent that handed the task off, and so does a reply to a message of that thread in another one. An answer that
arrived before the handoff counts as well.

Messages without a thread cost nothing; the others look up their thread in a cached set of awaited threads.
"""

from __future__ import annotations

import json
from typing import Any

from stonemux import taskrows, tasks
from stonemux.clock import DAY_MS, rfc3339
from stonemux.errors import MuxError
from stonemux.taskrows import Task
from stonemux.transaction import Tx

PATIENCE_MS = DAY_MS
"""How long a task waits for an answer."""

_AWAITED = ("awaited threads",)


def hand_off(
    tx: Tx,
    *,
    task_id: str,
    agent_id: str,
    note: str,
    branch: str | None,
    worktree: str | None,
    waiting_on: int | None,
    claim_token: str | None,
) -> dict[str, Any]:
    """Give a claimed task back with a note for the next claimer; this ends any assignment."""
    row = tasks.held(tx, task_id, agent_id, claim_token)
    after = taskrows.move(row, "hand off")
    thread, answer = _thread(tx, waiting_on, agent_id) if waiting_on is not None else (None, None)
    told: dict[str, Any] = {"agent_id": agent_id, "note": note, "at": rfc3339(tx.now)}
    for name, extra in (("branch", branch), ("worktree", worktree), ("waiting_on", waiting_on)):
        if extra:
            told[name] = extra
    tx.cache.pop(_AWAITED, None)
    if thread is None:
        row = tasks.put_back(tx, row, after, note=note, act="handoff", handoff=told)
        if answer is not None:
            _note_answer(tx, row, answer["sender"], answer["id"])
    else:
        until = tx.now + PATIENCE_MS
        row = tasks.put_back(tx, row, "waiting", due_at=until, note=note, act="handoff", handoff=told, thread=thread)
    return {"task_id": task_id, "status": row.status, "task": taskrows.view(row)}


def _note_answer(tx: Tx, row: Task, sender: str, message_id: int) -> None:
    tasks.note_down(tx, row.seq, "answered", sender, row.fence, f"by message {message_id}")


def _thread(tx: Tx, message_id: int, agent_id: str) -> tuple[str, None] | tuple[None, Any]:
    """The thread in which an answer to the message is awaited, or the answer if it is already there."""
    message = tx.one("select thread from message where id = ?", message_id)
    if message is None:
        raise MuxError(
            "message_not_found",
            f"waiting_on names message {message_id}, which does not exist (any longer); give the id that msg.send "
            "returned. The task is still yours",
            id=message_id,
        )
    thread: str = message[0] or str(message_id)
    answer = tx.one(
        "select id, sender from message where thread = ?1 and id > ?2 and sender <> ?3 union all "
        "select message_id, sender from aside where thread = ?1 and message_id > ?2 and sender <> ?3 "
        "order by id limit 1",
        thread,
        message_id,
        agent_id,
    )
    return (thread, None) if answer is None else (None, answer)


def answered(tx: Tx, thread: str, sender: str, message_id: int) -> None:
    """Make the tasks that wait for a reply in this thread claimable again; called for every message in a thread."""
    awaited = tx.cache.get(_AWAITED)
    if awaited is None:
        rows = tx.sql("select distinct waiting_thread from task where waiting_thread is not null")
        awaited = tx.cache[_AWAITED] = frozenset(row[0] for row in rows)
    if thread not in awaited:
        return
    for row in taskrows.rows(tx, "select * from task where waiting_thread = ? order by seq", thread):
        if row.handoff is None or json.loads(row.handoff)["agent_id"] != sender:
            _note_answer(tx, row, sender, message_id)
            tasks.resume(tx, row.seq, "reply")
    tx.cache.pop(_AWAITED, None)


def answered_aside(tx: Tx, thread: str, sender: str, message_id: int) -> None:
    """The same for a reply that is in a thread of its own; it is written down for a handoff that comes later."""
    tx.run("insert into aside (message_id, thread, sender) values (?, ?, ?)", message_id, thread, sender)
    answered(tx, thread, sender, message_id)


def forget(tx: Tx) -> None:
    """Delete what was written down about messages that have been purged."""
    tx.run("delete from aside where message_id not in (select id from message)")
