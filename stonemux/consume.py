"""Work that an agent takes through the Python client: messages, one after the other, and tasks.

Both are held on a lease that is extended while the work continues (see `keeper`). They are settled when it succeeds,
and go back when it does not. If a process is killed, its work is delivered again when the lease expires: work may be
done twice, but is never lost.

`Messages` is for one thread at a time. `Claim` may be read from any thread.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stonemux.calls import Calls
from stonemux.clock import moment
from stonemux.errors import MuxError
from stonemux.keeper import Keeper
from stonemux.methods import MsgPollAnswerMessage, Names, Task

SHARE = 3
"""How many times a lease is extended during its term."""
WAIT_S = 60
"""How long one poll of the loop waits."""
STOP_S = 1
"""How long one poll waits when a stop event must be checked between polls."""
MOST_RESULT = 4000
"""Maximum number of characters of an exception in a failed task's result."""


class _Letter:
    """The message in hand, if there is one."""

    def __init__(self, calls: Calls, agent_id: str | None, lease: int) -> None:
        self.every_ms = lease * 1000 // SHARE
        self.over = False
        self.message_id: int | None = None
        self._calls = calls
        self._agent_id = agent_id
        self._lease = lease

    def renew(self) -> None:
        if (message_id := self.message_id) is not None:
            with contextlib.suppress(MuxError):  # settled by now, or unreachable: then it is delivered again
                self._calls.msg_extend(agent_id=self._agent_id, id=message_id, lease=self._lease)

    def settle(self) -> None:
        if (message_id := self.message_id) is not None:
            self.message_id = None
            self._calls.msg_ack(agent_id=self._agent_id, ids=[message_id])

    def put_back(self, delay: int = 0) -> None:
        if (message_id := self.message_id) is not None:
            self.message_id = None
            with contextlib.suppress(MuxError):  # otherwise its lease expires
                self._calls.msg_nack(agent_id=self._agent_id, id=message_id, delay=delay)


class Messages:
    """A loop over an agent's messages; made by `Client.messages`.

    A message is acknowledged when the loop asks for the next one. If an exception or `break` leaves the loop, the
    message is put back and delivered again at once; call `ack()` before a `break` to settle it. If the object outlives
    the loop, use it in a `with` block: leaving the block puts back the message in hand.
    """

    def __init__(
        self,
        calls: Calls,
        keeper: Keeper,
        agent_id: str | None,
        *,
        channel: str | None,
        types: Names | None,
        lease: int,
        timeout: float | None,
        stop: threading.Event | None,
    ) -> None:
        self._calls = calls
        self._keeper = keeper
        self._agent_id = agent_id
        self._channel = channel
        self._types = types
        self._lease = lease
        self._timeout = timeout
        self._stop = stop
        self._ended = False
        self._hand = _Letter(calls, agent_id, lease)
        self._kept = False

    def __iter__(self) -> Messages:
        self._hand.put_back()  # an earlier loop was left with a message in hand
        return self

    def __next__(self) -> MsgPollAnswerMessage:
        self.ack()
        if not self._ended and (message := self._next()) is not None:
            self._hand.message_id = message["id"]
            if not self._kept:
                self._keeper.keep(self._hand)
                self._kept = True
            return message
        self._ended = True
        raise StopIteration

    def _next(self) -> MsgPollAnswerMessage | None:
        for wait in waits(self._calls, self._timeout, self._stop):
            answer = self._calls.msg_poll(
                agent_id=self._agent_id,
                timeout=wait,
                channel=self._channel,
                types=self._types,
                limit=1,
                ack="manual",
                lease=self._lease,
            )
            if answer["messages"]:
                return answer["messages"][0]
        return None

    def ack(self) -> None:
        """Settle the message in hand now."""
        self._hand.settle()

    def nack(self, delay: int = 0) -> None:
        """Put the message in hand back, to be delivered again after `delay` seconds."""
        self._hand.put_back(delay)

    def close(self) -> None:
        """Put back the message in hand, and end the loop."""
        self._ended = True
        self._hand.over = True
        self._hand.put_back()

    def __enter__(self) -> Messages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._hand.over and self._kept:
            self._keeper.put_back(self._hand)


def waits(calls: Calls, timeout: float | None, stop: threading.Event | None) -> Iterator[int]:
    """How long each round should wait, in whole seconds; ends when `timeout` is over or `stop` is set."""
    most = WAIT_S if stop is None else STOP_S
    begun = calls.ticks_ms()
    first = True
    while stop is None or not stop.is_set():
        left = math.inf if timeout is None else timeout - (calls.ticks_ms() - begun) / 1000
        if left <= 0 and not first:
            return
        yield max(0, math.ceil(min(left, most)))
        first = False


class Claim:
    """A task in hand; made by `Client.claimed`.

    Set `result` to the outcome. `cancelled` becomes true when the task's poster has cancelled it, `lost` when the claim
    is no longer valid; both are noticed when the claim is extended, or at once by `check()`.
    """

    def __init__(self, calls: Calls, agent_id: str | None, task: Task, claim_token: str) -> None:
        self.task = task
        self.task_id = task["task_id"]
        self.description = task["description"]
        self.metadata = task["metadata"]
        self.claim_token = claim_token
        self.result: str | None = None
        self.cancelled = False
        self.lost = False
        self.over = False
        self.every_ms = _lease_ms(task) // SHARE
        self._calls = calls
        self._who: dict[str, Any] = {"task_id": self.task_id, "agent_id": agent_id, "claim_token": claim_token}

    def __repr__(self) -> str:
        return f"Claim({self.task_id!r}, {self.description!r})"

    def check(self) -> bool:
        """Extend the claim now; False when the work is no longer wanted."""
        if not self.over:
            try:
                answer = self._calls.task_extend(**self._who)
                self.cancelled = self.cancelled or answer.get("cancelled", False)
            except MuxError as error:
                if error.code not in ("stale_claim", "not_claim_owner", "already_complete", "task_not_found"):
                    raise
                self.lost = True
        return not (self.cancelled or self.lost)

    def complete(self, result: str | None = None) -> None:
        """Complete the task now, with this result or else the one in `result`."""
        self.over = True
        try:
            self._calls.task_complete(**self._who, result=self.result if result is None else result)
        except MuxError as error:
            if error.facts.get("status") != "cancelled":
                raise
            self.cancelled = True

    def fail(self, reason: str, *, retry: bool = False) -> None:
        """End the task as failed; with `retry`, it goes back to the pool after a delay."""
        self.over = True
        self._calls.task_complete(**self._who, result=reason, status="failed", retry=retry)

    def release(self, *, delay: int = 0, reason: str | None = None) -> None:
        """Give the task back to the pool."""
        self.over = True
        self._calls.task_release(**self._who, delay=delay, reason=reason)

    def hand_off(
        self, note: str, *, branch: str | None = None, worktree: str | None = None, waiting_on: int | None = None
    ) -> None:
        """Give the task back with a note for the next agent; with `waiting_on`, not before that message is answered."""
        self.over = True
        self._calls.task_handoff(**self._who, note=note, branch=branch, worktree=worktree, waiting_on=waiting_on)

    def renew(self) -> None:
        """Extend the claim in the background."""
        with contextlib.suppress(MuxError):  # unreachable; the next attempt may succeed, else the claim expires
            self.check()

    def put_back(self) -> None:
        """Do nothing: the `with` block decides how the task ends."""


@contextmanager
def claimed(
    calls: Calls, keeper: Keeper, agent_id: str | None, *, channel: str, timeout: int, task_id: str | None, retry: bool
) -> Iterator[Claim | None]:
    """Claim a task, keep the claim while the block runs, and end the task with the block."""
    answer = calls.task_claim(agent_id=agent_id, channel=channel, timeout=timeout, task_id=task_id)
    if answer["task"] is None:
        yield None
        return
    claim = Claim(calls, agent_id, answer["task"], answer["claim_token"])
    keeper.keep(claim)
    try:
        yield claim
        if not (claim.over or claim.cancelled):
            claim.complete()
    except Exception as error:
        if not claim.over:
            with contextlib.suppress(MuxError):  # the original exception says more; the claim will expire
                claim.fail(f"{type(error).__name__}: {error}"[:MOST_RESULT], retry=retry)
        raise
    except BaseException as error:
        if not claim.over:
            with contextlib.suppress(MuxError):
                claim.release(reason=f"interrupted by {type(error).__name__}")
        raise
    finally:
        claim.over = True


def _lease_ms(task: Task) -> int:
    if task["claimed_at"] is None or task["lease_expires_at"] is None:
        return WAIT_S * 1000
    return max(1000, moment(task["lease_expires_at"]) - moment(task["claimed_at"]))
