"""Threads for callers who must not wait: the thread at the door, and the leader of a commit.

`threading.Thread.start` waits for the first step of the new thread. If memory is so short that the thread ends before
that, whoever started it waits forever. So here nobody waits, and work waits in a queue until a thread takes it: what
one did not live to do, the next one does.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

from stonemux.errors import MuxError

log = logging.getLogger("stonemux")

MOST_IDLE = 64


def begin(name: str, run: Callable[..., None], *args: Any) -> None:
    """Run this on a new thread, which nobody joins; raises `too_many_waiters` if the system allows no more threads."""
    try:
        start_new_thread(run, args)
    except (RuntimeError, MemoryError) as trouble:
        raise MuxError(
            "too_many_waiters",
            f"the system has no thread left for this call (a {name}); try again in a moment",
            retry_after=1,
        ) from trouble


class Workers:
    """Threads that run one piece of work after another, as many as there are pieces, or up to a limit.

    `_lock` guards the pieces, and who is alive and idle.
    """

    def __init__(self, most: float = inf) -> None:
        """`most` is how many pieces may run at once; the others wait for their turn."""
        self._most = most
        self._lock = threading.Lock()
        self._work: deque[Callable[[], None]] = deque()
        self._alive = 0  # counted by the threads themselves, since one that was begun may never live
        self._idle: list[threading.Lock] = []
        self._closed = False

    @property
    def idle(self) -> int:
        """How many threads wait for work."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """How many pieces wait for a thread."""
        return len(self._work)

    def run(self, work: Callable[[], None]) -> None:
        """Have a thread run this; raises `too_many_waiters` if none is idle and the system allows no more."""
        with self._lock:
            self._work.append(work)
            sleeper = self._idle.pop() if self._idle else None
            enough = self._alive >= self._most
        if sleeper is not None:
            sleeper.release()
        elif not enough:
            try:
                begin("worker", self._run)
            except MuxError:
                with self._lock:
                    if work not in self._work:  # a thread that has become free has taken it
                        return
                    self._work.remove(work)
                raise

    def _run(self) -> None:
        with self._lock:
            if self._alive >= self._most:  # others who were begun at the same time do it all
                return
            self._alive += 1
        try:
            asleep = threading.Lock()
            asleep.acquire()
            while (work := self._next(asleep)) is not None:
                try:
                    work()
                except Exception:
                    with contextlib.suppress(Exception):  # without memory, not even that
                        log.exception("a worker failed")
                del work  # or its call would be kept as long as the thread rests
        except BaseException:
            with self._lock:
                self._alive -= 1
            raise

    def _next(self, asleep: threading.Lock) -> Callable[[], None] | None:
        """Wait for a piece of work and take it; None if the thread, no longer counted, is to end."""
        while True:
            with self._lock:
                if self._work:
                    return self._work.popleft()
                if self._closed or len(self._idle) >= MOST_IDLE:
                    self._alive -= 1
                    return None
                self._idle.append(asleep)
            asleep.acquire()

    def close(self) -> None:
        """End the idle threads now, and the others when they have done their work."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for sleeper in idle:
            sleeper.release()
