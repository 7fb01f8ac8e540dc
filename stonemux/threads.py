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
    """Threads that run one piece of work after another, as many as there are pieces. `_lock` guards who is idle."""

    def __init__(self) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._idle: list[threading.Lock] = []
        self._closed = False

    @property
    def idle(self) -> int:
        """How many threads wait for work."""
        return len(self._idle)

    def run(self, work: Callable[[], None]) -> None:
        """Have a thread run this; raises `too_many_waiters` if none is idle and the system allows no more."""
        self._work.append(work)
        with self._lock:
            sleeper = self._idle.pop() if self._idle else None
        if sleeper is not None:
            sleeper.release()
            return
        try:
            begin("worker", self._run)
        except MuxError:
            try:
                self._work.remove(work)
            except ValueError:  # a thread that has become free has taken it
                return
            raise

    def _run(self) -> None:
        asleep = threading.Lock()
        asleep.acquire()
        while True:
            try:
                work = self._work.popleft()
            except IndexError:
                if not self._rest(asleep):
                    return
                asleep.acquire()
                continue
            try:
                work()
            except Exception:
                with contextlib.suppress(Exception):  # without memory, not even that
                    log.exception("a worker failed")
            del work  # or its call would be kept as long as the thread rests

    def _rest(self, asleep: threading.Lock) -> bool:
        with self._lock:
            if self._closed or len(self._idle) >= MOST_IDLE:
                return False
            self._idle.append(asleep)
            return True

    def close(self) -> None:
        """End the idle threads now, and the others when they have done their work."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for sleeper in idle:
            sleeper.release()
