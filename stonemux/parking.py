"""Waiting calls, parked without a thread.

What a call waits for is data (`mux.Wait`). A change does not wake a thread; it fires the call's registration, which
puts the call into a queue, and the attending thread looks at it from there. A thread for each call would cost three
times the memory, plus a thread switch between the commit and the answer.

A call is always in one of four states, so that only one thread looks at it at a time and no change goes unnoticed:

    RESTING ──(fired)──> QUEUED ──(attended to)──> RUNNING ──(nothing yet)──> RESTING
                           └──────(nothing yet, but fired meanwhile: TOLD)──────┘

`Parked._lock` guards the state and the flags. A wait that writes queues its transaction like any change, and is
RUNNING until that is committed.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from stonemux.errors import MuxError
from stonemux.hub import Hangup, Watch
from stonemux.mux import Mux, Wait
from stonemux.store import Led
from stonemux.transaction import Done, Job

AT_ONCE = 64
"""How many calls are looked at before the sockets get their turn again."""
LEAST_OVER = 64
"""Entries of ended calls are purged when they exceed this number plus half of all entries."""
RESTING, QUEUED, RUNNING, TOLD = range(4)


class Seat(Protocol):
    """A caller's connection, which may close during the wait."""

    def park(self, watch: Watch) -> None:
        """From now on, cancel `watch` if the caller goes away; raises Hangup if it already has."""

    def unpark(self) -> None:
        """The wait is over."""


class Lot:
    """The parked calls of a server. `_lock` guards the deadlines.

    `ring` wakes the attending thread; `aside` runs on another thread what would block that one.
    """

    def __init__(self, mux: Mux, ring: Callable[[], None], aside: Callable[[Callable[[], None]], None]) -> None:
        self.mux = mux
        self.ring = ring
        self.aside = aside
        self.queue: deque[Parked] = deque()
        self._lock = threading.Lock()
        self._deadlines: list[tuple[int, int, list[Parked]]] = []
        self._numbers = itertools.count()
        self._over = 0  # entries in the heap whose call has ended

    def park(self, wait: Wait, seat: Seat, done: Done) -> None:
        """Wait for this without a thread; at the end, `done(answer, error)` is called by any thread."""
        parked = Parked(self, wait, seat, done)
        self.mux.hub.enroll(parked)  # before the first look, or a change in between is missed
        parked.look()

    def due(self) -> int | None:
        """The earliest deadline (ticks); None if no call waits."""
        deadlines = self._deadlines
        return deadlines[0][0] if deadlines else None

    def attend(self, now: int) -> None:
        """Look at the calls that have been fired, and at those whose deadline has passed."""
        for parked in self._overdue(now):
            parked.poke()
        for _ in range(AT_ONCE):
            try:
                parked = self.queue.popleft()
            except IndexError:
                return
            parked.run()

    def _overdue(self, now: int) -> list[Parked]:
        overdue = []
        with self._lock:
            while self._deadlines and self._deadlines[0][0] <= now:
                overdue += heapq.heappop(self._deadlines)[2]
        return overdue

    def remind(self, parked: Parked) -> None:
        """Look at this call when its deadline has passed."""
        with self._lock:
            parked.reminder.append(parked)
            heapq.heappush(self._deadlines, (parked.wait.deadline, next(self._numbers), parked.reminder))
            first = self._deadlines[0][2] is parked.reminder
        if first:  # the attending thread may be asleep until a later deadline: another thread has led the commit
            self.ring()

    def dismiss(self, parked: Parked) -> None:
        """Remove this call's reminder; the call has ended."""
        with self._lock:
            parked.reminder.clear()
            self._over += 1
            if self._over > len(self._deadlines) // 2 + LEAST_OVER:
                self._over = 0
                self._deadlines = [entry for entry in self._deadlines if entry[2]]
                heapq.heapify(self._deadlines)


class Parked(Watch):
    """One waiting call."""

    __slots__ = ("_done", "_lot", "_seat", "_seated", "_state", "_woken", "reminder", "wait")

    def __init__(self, lot: Lot, wait: Wait, seat: Seat, done: Done) -> None:
        super().__init__(lot.mux.hub, wait.topics, threading.Lock())
        self.wait = wait
        self.reminder: list[Parked] = []
        """This call's entry in the heap of deadlines: itself while it waits, empty once it has ended."""
        self._lot = lot
        self._seat = seat
        self._done = done
        self._state = RUNNING
        self._seated = self._woken = False

    def _rouse(self) -> None:
        if self._state == RESTING:
            self._enqueue()
        elif self._state == RUNNING:
            self._state = TOLD

    def _enqueue(self) -> None:
        self._state = QUEUED
        self._lot.queue.append(self)
        self._lot.ring()

    def run(self) -> None:
        """Look again, if there is a reason to; the attending thread calls this for a call from the queue."""
        with self._lock:
            self._state = RUNNING
            cancelled, fired, self._fired = self._cancelled, self._fired, False
        self._woken = self._woken or fired
        if cancelled:
            self._end(None, Hangup())
        elif fired:
            self.look()
        else:
            self._settle(None)

    def look(self) -> None:
        """Try to answer."""
        if self.wait.work is not None:
            self._lot.mux.store.submit(Job(self.wait.work, self._written, grows=True))
        elif self.wait.writes and self._lot.mux.store.led:
            self._attempt_aside()
        else:
            self._attempt()

    def _attempt_aside(self) -> None:
        try:
            self._lot.aside(self._attempt)
        except MuxError as error:
            self._end(None, error)

    def _attempt(self) -> None:
        try:
            answer = self.wait.attempt()
        except Led:
            self._attempt_aside()
        except Exception as error:
            self._end(None, error)
        else:
            self._settle(answer)

    def _written(self, value: Any, error: BaseException | None) -> None:
        """Go on after the queued work has been committed or refused."""
        try:
            answer = self.wait.attempt(value) if error is None else None
        except Exception as fault:
            error = fault
        if error is not None:
            self._end(None, error)
        else:
            self._settle(answer)

    def _settle(self, answer: Any) -> None:
        """Finish with the answer; without one, go on waiting unless the deadline has passed."""
        mux = self._lot.mux
        try:
            if answer is None and (mux.hub.closed or mux.clock.ticks_ms() >= self.wait.deadline):
                answer = self.wait.give_up()
            if answer is None:
                self._take_seat()
        except Exception as error:
            self._end(None, error)
            return
        if answer is not None:
            self._end(answer, None)
            return
        with self._lock:
            if self._state == TOLD:
                self._enqueue()
            else:
                self._state = RESTING

    def _take_seat(self) -> None:
        """Count as a waiter; raises `too_many_waiters`, or Hangup when the caller is gone."""
        if self._seated:
            return
        mux = self._lot.mux
        mux.waiters.take(self.wait.agent_id)
        self._seated = True
        self._seat.park(self)
        self._lot.remind(self)
        mux.clock.note(self)

    def _end(self, answer: Any, error: BaseException | None) -> None:
        wait, mux = self.wait, self._lot.mux
        mux.hub.dismiss(self)  # or an offer would wake this call instead of the next one
        if self._seated:
            mux.clock.forget(self)
            mux.waiters.give(wait.agent_id)
            self._seat.unpark()
            self._lot.dismiss(self)
        try:
            if wait.pass_on is not None and (self.take_back() or self._woken):
                wait.pass_on()
        finally:
            self._done(answer, error)
