"""A clock that stands still until a test moves it."""

from __future__ import annotations

import threading
import time
import uuid

from stonemux.clock import Clock, Sleeper

STUCK_AFTER_S = 5.0
EPOCH_MS = 1_780_000_000_000


class FakeClock(Clock):
    """Time moves only by `advance`; an endless wait fails after five real seconds instead of hanging the suite."""

    def __init__(self) -> None:
        self._ticks = 1_000_000
        self._offset = EPOCH_MS
        self._ids = 0
        self._changed = threading.Condition()
        self._parked: dict[threading.Condition, int] = {}
        self._noted: dict[Sleeper, None] = {}
        self._came = 0  # how many waits have ever begun

    def anchor(self, not_before: int) -> None:
        self._offset += max(0, not_before - self.now_ms())

    def ticks_ms(self) -> int:
        return self._ticks

    def now_ms(self) -> int:
        return self._offset + self._ticks

    def wall_ms(self) -> int:
        return self.now_ms()

    def wait(self, condition: threading.Condition, deadline: int | None) -> None:
        with self._changed:
            self._parked[condition] = self._parked.get(condition, 0) + 1
            self._came += 1
            self._changed.notify_all()
        try:
            if deadline is None or deadline > self._ticks:
                ended = condition.wait(STUCK_AFTER_S)
                assert ended or deadline is None, f"waited {STUCK_AFTER_S} s for a clock that nobody moves"
        finally:
            with self._changed:
                self._parked[condition] -= 1
                if not self._parked[condition]:
                    del self._parked[condition]
                self._changed.notify_all()

    def note(self, sleeper: Sleeper) -> None:
        with self._changed:
            self._came += sleeper not in self._noted
            self._noted[sleeper] = None
            self._changed.notify_all()

    def forget(self, sleeper: Sleeper) -> None:
        with self._changed:
            self._noted.pop(sleeper, None)
            self._changed.notify_all()

    def new_id(self) -> str:
        self._ids += 1
        return str(uuid.UUID(int=self._ids))

    def new_ordered_id(self) -> str:
        return self.new_id()

    def token(self, n_bytes: int = 8) -> str:
        self._ids += 1
        return f"{self._ids:0{2 * n_bytes}x}"

    def advance(self, ms: int) -> None:
        """Move time forward, and make everything that waits look at the clock."""
        with self._changed:
            self._ticks += ms
            parked, noted = list(self._parked), list(self._noted)
        for condition in parked:
            with condition:
                condition.notify_all()
        for sleeper in noted:
            sleeper.poke()

    @property
    def parked(self) -> int:
        """How many are waiting on this clock."""
        with self._changed:
            return self._count()

    def advance_to_next_wait(self, ms: int) -> None:
        """Move time forward so far that a waiter continues, and block until something waits again."""
        came = self._came
        self.advance(ms)
        end = time.monotonic() + STUCK_AFTER_S
        with self._changed:
            while self._came == came:
                assert self._changed.wait(max(0.0, end - time.monotonic())), "nobody waits anew"

    def _count(self) -> int:
        return sum(self._parked.values()) + len(self._noted)

    def until_parked(self, count: int) -> None:
        """Block until `count` are waiting; fails if that does not happen."""
        end = time.monotonic() + STUCK_AFTER_S
        with self._changed:
            while self._count() < count:
                if not self._changed.wait(max(0.0, end - time.monotonic())):
                    raise AssertionError(f"{count} waiters were expected, {self._count()} came")
