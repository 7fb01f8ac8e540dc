"""Claiming tasks: which one an agent gets, at once or after a wait.

Every query of a claim has an index in exactly its order, so it costs the same with ten tasks as with a million. An
agent looks under several topics (`topics`): the tasks assigned to it, those that require no capability, and those that
require one of its capabilities. A topic known to be empty is not queried again, and if only one topic is left, its
query is part of the claiming statement itself.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

from stonemux import directory, taskrows, tasks
from stonemux.errors import MuxError
from stonemux.hub import Topic
from stonemux.mux import Caller, Mux, Wait
from stonemux.taskrows import Task
from stonemux.transaction import Job, Tx
from stonemux.vocabulary import NO_TASK


def claim(tx: Tx, *, agent_id: str, channel: str, task_id: str | None, timeout: int = 0) -> dict[str, Any] | None:
    """Claim the best task that fits, at once; returns None if there is none.

    `timeout` is 0 here: with another one, `await_claim` runs instead.
    """
    row = _claim_one(tx, agent_id, channel, task_id)
    if row is None:
        return None
    return {"task_id": row.id, "claim_token": taskrows.claim_token(row), "task": taskrows.view(row)}


def await_claim(mux: Mux, caller: Caller, *, agent_id: str, channel: str, task_id: str | None, timeout: int) -> Wait:
    """Claim the best task that fits, waiting up to `timeout` seconds for one. Each task wakes only one waiter."""

    def work(tx: Tx) -> dict[str, Any] | None:
        return claim(tx, agent_id=agent_id, channel=channel, task_id=task_id)

    def attempt(got: Any) -> Any:
        if got is None:
            # After registering other capabilities the agent would be waiting for the wrong tasks, so it must ask again.
            return None if _claim_topics(mux, agent_id, channel) == awaited_tasks else dict(NO_TASK)
        if isinstance(got, dict) and caller.once is None:  # with a key, the caller can ask for its claim again
            caller.flight = _Claim(mux, got["claim_token"])
        return got

    def pass_on() -> None:
        still_open = awaited_tasks
        with suppress(MuxError), mux.store.read() as rx:  # if that fails, wake somebody for nothing rather than nobody
            still_open = tuple(topic for topic in awaited_tasks if rx.one(_best(topic[0]), *topic[1:]) is not None)
        for topic in still_open:
            mux.hub.offer(topic)

    awaited_tasks = _claim_topics(mux, agent_id, channel)
    deadline = mux.clock.ticks_ms() + timeout * 1000
    once = caller.through(work)
    awaited = (*awaited_tasks, ("agent", agent_id))
    return Wait(awaited, attempt, lambda: dict(NO_TASK), deadline, agent_id, pass_on, once)


def _claim_topics(mux: Mux, agent_id: str, channel: str) -> tuple[Topic, ...]:
    with mux.store.read() as rx:
        agent = directory.agent(rx, agent_id)
        return topics(agent_id, agent["capabilities"], directory.channel(rx, channel)["name"])


@lru_cache(maxsize=4096)
def topics(agent_id: str, capabilities: str, channel: str) -> tuple[Topic, ...]:
    """The topics that may hold a task for an agent: assigned to it, requiring nothing, or requiring what it can do."""
    able = [None, *json.loads(capabilities)]
    return (("task-for", channel, agent_id), *(("task", channel, capability) for capability in able))


@cache
def _best(kind: str, wanted: str = "priority, seq", channel: str = "?1", what: str = "?2") -> str:
    """SQL for columns of the most urgent, then oldest, pending task under a topic; a single index seek.

    The index is named because SQLite, which has no statistics here, would otherwise scan another one.
    """
    if kind == "task-for":
        where = (
            f"indexed by task_assigned where status = 'pending' and assigned_to = {what} and channel = {channel} "
            "and (required_capability is null or required_capability in "
            f"(select value from agent, json_each(agent.capabilities) where agent.id = {what}))"
        )
    else:
        where = (
            "indexed by task_open where status = 'pending' and assigned_to is null "
            f"and channel = {channel} and required_capability is {what}"
        )
    return f"select {wanted} from task {where} order by priority desc, seq limit 1"


def _claim_one(tx: Tx, agent_id: str, channel: str, task_id: str | None) -> Task | None:
    agent = directory.agent(tx, agent_id)
    channel = directory.channel(tx, channel)["name"]
    tasks.settle_due(tx)
    return (
        _claim_best(tx, agent, channel)
        if task_id is None
        else tasks.take(tx, "?4", agent_id, _named(tx, agent, task_id))
    )


def _claim_best(tx: Tx, agent: Any, channel: str) -> Task | None:
    """Claim the most urgent, then oldest, pending task that this agent may claim."""
    there = [topic for topic in topics(agent["id"], agent["capabilities"], channel) if not tasks.has_none(tx, topic)]
    if len(there) > 1:
        there = _most_urgent(tx, there)
    for topic in there:
        row = tasks.take(tx, f"({_best(topic[0], 'seq', '?4', '?5')})", agent["id"], *topic[1:])
        if row is not None:
            return row
        tasks.note_none(tx, topic)
    return None


def _most_urgent(tx: Tx, looked_under: list[Topic]) -> list[Topic]:
    """The topic of the most urgent, then oldest, task under any of these; remembers which topics are empty."""
    found = []
    for topic in looked_under:
        best = tx.one(_best(topic[0]), *topic[1:])
        if best is None:
            tasks.note_none(tx, topic)
        else:
            found.append((-best[0], best[1], topic))
    return [min(found)[2]] if found else []


def _named(tx: Tx, agent: Any, task_id: str) -> int:
    row = taskrows.find(tx, task_id)
    taskrows.move(row, "claim")
    if row.assigned_to not in (None, agent["id"]):
        raise MuxError(
            "task_conflict",
            f"task {task_id} is assigned to {row.assigned_to!r}; leave it to that agent, or assign it to "
            f"{agent['id']!r} with task.dispatch",
            status=taskrows.status(row),
            task_id=task_id,
            assigned_to=row.assigned_to,
        )
    if problem := taskrows.lack(row, agent):
        raise MuxError(
            "task_conflict",
            f"task {task_id} {problem}; leave it, or register with that capability",
            status=taskrows.status(row),
            task_id=task_id,
        )
    return row.seq


class _Claim:
    """A claim whose answer is in flight: undone, as if it had not happened, if the answer is lost."""

    __slots__ = ("_mux", "_token")

    def __init__(self, mux: Mux, token: str) -> None:
        self._mux, self._token = mux, token

    def landed(self) -> None:
        pass  # the claim stays

    def lost(self) -> None:
        def undo(tx: Tx) -> None:
            task_id, _, fence = self._token.rpartition(".")
            claimed = "select * from task where id = ? and fence = ? and status = 'claimed'"
            for row in taskrows.rows(tx, claimed, task_id, int(fence)):
                tasks.put_back(tx, row, "pending", note="the claimer hung up")

        # Do not wait for the result: this may run in the thread that leads the commits.
        self._mux.store.submit(Job(undo, lambda value, error: None))
