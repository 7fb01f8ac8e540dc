"""Extending, in the background, the leases of what somebody is working on.

One thread per client, started with the first thing to look after. It alone has the list; everybody else talks to it
through a queue, which even a finalizer may use, whatever else is running. It looks at each thing several times per
lease and so notices by itself what has been let go of; a holder that is done before the first look pays nothing.
"""

from __future__ import annotations

import queue
import threading
from typing import Protocol

from stonemux.clock import Clock


class Held(Protocol):
    """What is looked after."""

    every_ms: int
    """How often it wants to be renewed."""
    over: bool
    """Whether its holder has let go of it."""

    def renew(self) -> None:
        """Prolong the lease; must not raise."""

    def put_back(self) -> None:
        """Give it back, since its holder is gone; must not raise."""


class Keeper:
    """Looks after what is held. `_lock` guards the start of the thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._news: queue.SimpleQueue[Held | None] = queue.SimpleQueue()

    def keep(self, held: Held) -> None:
        """Look after this until it is `over`."""
        self._news.put(held)
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="stonemux keeper", daemon=True)
                self._thread.start()

    def put_back(self, held: Held) -> None:
        """Its holder is gone without a word; may be called from a finalizer."""
        held.over = True
        self._news.put(held)

    def forget(self) -> None:
        """In a process that was forked: the thread is its parent's, and so is what it looks after."""
        self._lock, self._thread, self._news = threading.Lock(), None, queue.SimpleQueue()

    def close(self) -> None:
        """End the thread; nothing is renewed any more."""
        with self._lock:
            if self._thread is not None:
                self._news.put(None)

    def _run(self) -> None:
        due: dict[Held, int] = {}
        while True:
            now = self._clock.ticks_ms()
            patience = max(0, min(due.values()) - now) / 1000 if due else None
            try:
                news = self._news.get(timeout=patience)
            except queue.Empty:
                self._renew(due)
                continue
            if news is None:
                return
            if news.over:
                due.pop(news, None)
                news.put_back()
            else:
                due[news] = self._clock.ticks_ms() + news.every_ms

    def _renew(self, due: dict[Held, int]) -> None:
        for held, moment in list(due.items()):
            if held.over:
                del due[held]
            elif moment <= self._clock.ticks_ms():
                held.renew()
                due[held] = self._clock.ticks_ms() + held.every_ms
