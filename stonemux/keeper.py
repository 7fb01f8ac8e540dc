"""Renewing, in the background, the leases of what a client is working on.

There is one thread per client, started with the first lease to renew. It alone owns the list of leases; other threads
talk to it through a queue, which is safe to use even in a finalizer. The thread looks at each lease several times per
lease period, so it notices when a holder lets go; a holder that finishes before the first look costs nothing.
"""

from __future__ import annotations

import queue
import threading
from typing import Protocol

from stonemux.clock import Clock


class Held(Protocol):
    """A lease that the keeper renews."""

    every_ms: int
    """How often to renew it."""
    over: bool
    """Whether its holder has let go of it."""

    def renew(self) -> None:
        """Renew the lease; must not raise."""

    def put_back(self) -> None:
        """Give it back, because its holder is gone; must not raise."""


class Keeper:
    """Renews leases. `_lock` guards the start of the thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._news: queue.SimpleQueue[Held | None] = queue.SimpleQueue()

    def keep(self, held: Held) -> None:
        """Renew this lease until it is `over`."""
        self._news.put(held)
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="stonemux keeper", daemon=True)
                self._thread.start()

    def put_back(self, held: Held) -> None:
        """Give a lease back whose holder vanished without finishing; may be called from a finalizer."""
        held.over = True
        self._news.put(held)

    def forget(self) -> None:
        """Reset in a forked process: the thread and its leases belong to the parent."""
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
