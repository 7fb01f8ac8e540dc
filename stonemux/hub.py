"""Waiting for changes, and waking only those whom a change concerns.

Every wait in the program has the same shape: *register, read, sleep, read again*.

    with hub.watch(("inbox", agent_id)) as watch:      # registered before the first read,
        while not (found := read()):                   # so a change between read and sleep is not missed
            if not watch.wait(deadline):
                break

A topic is a tuple, from the general to the specific. Each waiter has a Condition of its own: with a shared one, every
change would wake every waiter to look for nothing. The writer calls `wake` after the commit and outside its lock, so
that a woken waiter sees the change.

`Hub._lock` guards the registry; a watch's own lock guards its flags. Lock order: registry, then watch.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from stonemux.clock import Clock

Topic = tuple[Hashable, ...]


class Hangup(Exception):
    """The caller of a wait has gone away; there is nobody to answer."""


class Watch:
    """One waiter's registration. Subclasses define how it is woken in `_rouse`, which is called with `_lock` held."""

    __slots__ = ("_cancelled", "_fired", "_hub", "_lock", "topics")

    def __init__(self, hub: Hub, topics: tuple[Topic, ...], lock: AbstractContextManager[Any]) -> None:
        self._hub = hub
        self._lock = lock
        self.topics = topics
        self._fired = False
        self._cancelled = False

    def _rouse(self) -> None:
        raise AssertionError("a kind of waiter says how it is roused")

    def fire(self) -> bool:
        """Wake the waiter; False if it was already woken and has not looked since, or if its wait was cancelled."""
        with self._lock:
            fresh = not self._fired and not self._cancelled
            self._fired = True
            self._rouse()
            return fresh

    def take_back(self) -> bool:
        """Whether a wake-up has arrived that the waiter has not looked at; clears it."""
        with self._lock:
            fired, self._fired = self._fired, False
            return fired

    def cancel(self) -> None:
        """End the wait with `Hangup`."""
        with self._lock:
            self._cancelled = True
            self._rouse()

    def poke(self) -> None:
        """Make the waiter look at the hub and the clock again."""
        with self._lock:
            self._rouse()


class Sleep(Watch):
    """A blocking thread's registration; made by `Hub.watch`, used as a context manager."""

    __slots__ = ("_condition",)

    def __init__(self, hub: Hub, topics: tuple[Topic, ...]) -> None:
        self._condition = threading.Condition()
        super().__init__(hub, topics, self._condition)

    def __enter__(self) -> Sleep:
        self._hub.enroll(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._hub.dismiss(self)

    def _rouse(self) -> None:
        self._condition.notify()

    def wait(self, deadline: int) -> bool:
        """Sleep until a topic fires (True), or until `deadline` (ticks) or the hub closes (False).

        Raises `Hangup` when the caller has gone away.
        """
        clock = self._hub.clock
        with self._condition:
            while not self._cancelled:
                if self._fired:
                    self._fired = False
                    return True
                if self._hub.closed or clock.ticks_ms() >= deadline:
                    return False
                clock.wait(self._condition, deadline)
            raise Hangup


class Hub:
    """The registry of who waits for what."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.closed = False
        self._lock = threading.Lock()
        self._waiting: dict[Topic, dict[Watch, None]] = {}  # a dict keeps insertion order

    def watch(self, *topics: Topic) -> Sleep:
        """A registration for these topics, valid inside the `with` block."""
        return Sleep(self, topics)

    def enroll(self, watch: Watch) -> None:
        """Register a watch under its topics."""
        with self._lock:
            for topic in watch.topics:
                self._waiting.setdefault(topic, {})[watch] = None

    def dismiss(self, watch: Watch) -> None:
        """Unregister a watch; a topic without waiters is removed."""
        with self._lock:
            for topic in watch.topics:
                waiting = self._waiting.get(topic)
                if waiting is not None:
                    waiting.pop(watch, None)
                    if not waiting:
                        del self._waiting[topic]

    def wake(self, topics: Iterable[Topic]) -> None:
        """Wake every waiter of these topics."""
        if not self._waiting:
            return
        with self._lock:
            concerned = {watch: None for topic in topics for watch in self._waiting.get(topic, ())}
        for watch in concerned:
            watch.fire()

    def offer(self, topic: Topic) -> bool:
        """Wake the longest-waiting waiter of this topic that has not been woken yet; False if there is none."""
        if not self._waiting:
            return False
        with self._lock:
            for watch in self._waiting.get(topic, ()):
                if watch.fire():
                    return True
        return False

    @property
    def parked(self) -> int:
        """How many waiters there are."""
        with self._lock:
            return len({watch for waiting in self._waiting.values() for watch in waiting})

    def close(self) -> None:
        """End every wait, now and in the future, as if its deadline had passed."""
        self.closed = True
        with self._lock:
            everybody = [watch for waiting in self._waiting.values() for watch in waiting]
        for watch in everybody:
            watch.poke()
