"""Claiming tasks: which one an agent gets, at once or after a wait.

What a claim reads has an index in exactly its order, so it costs the same with ten tasks and with a million.
"""

from __future__ import annotations

import json
from typing import Any

from stonemux import directory, tasks
from stonemux.errors import MuxError
from stonemux.hub import Topic
from stonemux.mux import Caller, Mux, Wait
from stonemux.transaction import Job, Snapshot, Tx
from stonemux.vocabulary import NO_TASK


def claim(tx: Tx, *, agent_id: str, channel: str, task_id: str | None, timeout: int = 0) -> dict[str, Any] | None:
    """Claim the best task that fits, at once; None when there is none."""
    row = _claim_one(tx, agent_id, channel, task_id)
    return (
        None if row is None else {"task_id": row["id"], "claim_token": tasks.claim_token(row), "task": tasks.view(row)}
    )


def await_claim(mux: Mux, caller: Caller, *, agent_id: str, channel: str, task_id: str | None, timeout: int) -> Wait:
    """Claim the best task that fits, waiting up to `timeout` seconds for one. A task wakes one waiter only."""

    def work(tx: Tx) -> dict[str, Any] | None:
        return claim(tx, agent_id=agent_id, channel=channel, task_id=task_id)

    def attempt(got: Any) -> Any:
        if got is None:
            # Registered anew with other capabilities, it would wait for the wrong tasks: the caller may ask again.
            return None if _claim_topics(mux, agent_id, channel) == topics else dict(NO_TASK)
        if isinstance(got, dict) and caller.once is None:  # with a key, the caller can ask for its claim again
            caller.flight = _Claim(mux, got["claim_token"])
        return got

    def pass_on() -> None:
        with mux.store.read() as rx:
            still_open = [topic for topic in topics if _is_open(rx, topic)]
        for topic in still_open:
            mux.hub.offer(topic)

    topics = _claim_topics(mux, agent_id, channel)
    deadline = mux.clock.ticks_ms() + timeout * 1000
    once = caller.through(work)
    awaited = (*topics, ("agent", agent_id))
    return Wait(awaited, attempt, lambda: dict(NO_TASK), deadline, agent_id, pass_on, once)


def _claim_topics(mux: Mux, agent_id: str, channel: str) -> list[Topic]:
    with mux.store.read() as rx:
        row = directory.agent(rx, agent_id)
        channel = directory.channel(rx, channel)["name"]
    return [("task-for", channel, agent_id)] + [("task", channel, capability) for capability in _capabilities(row)]


def _is_open(rx: Snapshot, topic: Topic) -> bool:
    """Whether there is a task for those who wait for this topic."""
    kind, channel, what = topic
    if kind == "task-for":
        query = (
            "select 1 from task indexed by task_assigned where status = 'pending' and assigned_to = ?2 and channel = ?1"
        )
    else:
        query = (
            "select 1 from task indexed by task_open where status = 'pending' and assigned_to is null "
            "and channel = ?1 and required_capability is ?2"
        )
    return rx.one(query + " limit 1", channel, what) is not None


def _capabilities(row: Any) -> list[str | None]:
    """What an agent can do, and None: tasks that ask for nothing are for everybody."""
    return [None, *json.loads(row["capabilities"])]


def _claim_one(tx: Tx, agent_id: str, channel: str, task_id: str | None) -> Any:
    agent = directory.agent(tx, agent_id)
    channel = directory.channel(tx, channel)["name"]
    tasks.settle_due(tx)
    seq = _best(tx, agent, channel) if task_id is None else _named(tx, agent, task_id)
    if seq is None:
        return None
    return tasks.take(tx, seq, agent_id)


def _best(tx: Tx, agent: Any, channel: str) -> int | None:
    """The seq of the most urgent, then oldest, pending task that this agent may claim; one index seek a capability.

    The indexes are named because SQLite, which knows no statistics here, would rather scan another one.
    """
    found = tx.sql(
        "select priority, seq from task indexed by task_assigned "
        "where status = 'pending' and assigned_to = ? and channel = ? "
        "and (required_capability is null or required_capability in (select value from json_each(?))) "
        "order by priority desc, seq limit 1",
        agent["id"],
        channel,
        agent["capabilities"],
    )
    for capability in _capabilities(agent):
        found += tx.sql(
            "select priority, seq from task indexed by task_open "
            "where status = 'pending' and assigned_to is null and channel = ? "
            "and required_capability is ? order by priority desc, seq limit 1",
            channel,
            capability,
        )
    return min(((-row[0], row[1]) for row in found), default=(0, None))[1]


def _named(tx: Tx, agent: Any, task_id: str) -> int:
    row = tasks.find(tx, task_id)
    tasks.move(row, "claim")
    if row["assigned_to"] not in (None, agent["id"]):
        raise MuxError(
            "task_conflict",
            f"task {task_id} is assigned to {row['assigned_to']!r}",
            status=row["status"],
            task_id=task_id,
        )
    wanted = row["required_capability"]
    if wanted is not None and wanted not in json.loads(agent["capabilities"]):
        raise MuxError(
            "task_conflict",
            f"task {task_id} needs the capability {wanted!r}, which {agent['id']!r} did not register",
            status=row["status"],
            task_id=task_id,
        )
    return int(row["seq"])


class _Claim:
    """A claim whose answer is on its way: given back, as if it had not happened, when the answer is lost."""

    __slots__ = ("_mux", "_token")

    def __init__(self, mux: Mux, token: str) -> None:
        self._mux, self._token = mux, token

    def landed(self) -> None:
        pass  # the claim stands

    def lost(self) -> None:
        def undo(tx: Tx) -> None:
            task_id, _, fence = self._token.rpartition(".")
            row = tx.one("select * from task where id = ? and fence = ? and status = 'claimed'", task_id, int(fence))
            if row is not None:
                tasks.put_back(tx, row, "pending", note="the claimer hung up")

        # Nobody waits for it, and nobody may: whoever tells us may be the thread that leads the commits.
        self._mux.store.submit(Job(undo, lambda value, error: None))
