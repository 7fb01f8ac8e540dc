"""The only source of time, randomness, and blocking.

It offers two readings, both in integer milliseconds:

* `now_ms()` is what gets stored and shown: wall-clock time, anchored once at startup and then advanced by the monotonic
  clock. It never steps, neither when someone sets the machine's clock nor when the daemon restarts on a machine whose
  clock went back (`not_before` is the latest time that was stored). Leases, staleness, and `sent_at` use it.
* `ticks_ms()` is for the deadlines of waits: monotonic, and meaningless outside this process.

Nothing else in the program imports `time` or asks the system for random numbers, so a test that passes its own clock
controls every wait and every id. (`secrets` and `uuid` would produce the same ids but take a tenth of the startup
time.)
"""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1000, 60_000, 3_600_000, 86_400_000


class Sleeper(Protocol):
    """Something that waits without being a thread."""

    def poke(self) -> None:
        """Look at the clock again."""


class Clock:
    """The real clock."""

    def __init__(self, not_before: int = 0) -> None:
        self._anchor = max(time.time_ns() // 1_000_000, not_before) - self.ticks_ms()

    def anchor(self, not_before: int) -> None:
        """Never show a time before `not_before` (the latest time stored in the data directory)."""
        self._anchor += max(0, not_before - self.now_ms())

    def ticks_ms(self) -> int:
        """Monotonic milliseconds, for deadlines."""
        return time.monotonic_ns() // 1_000_000

    def now_ms(self) -> int:
        """Milliseconds since the epoch, never running backwards."""
        return self._anchor + time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        """The machine's own wall clock, as others see it: it may step, and it advances while the machine sleeps."""
        return time.time_ns() // 1_000_000

    def wait(self, condition: threading.Condition, deadline: int | None) -> None:
        """Wait on `condition` (held) until it is notified or `deadline` (ticks) is reached; None waits forever."""
        condition.wait(None if deadline is None else max(0, deadline - self.ticks_ms()) / 1000)

    def note(self, sleeper: Sleeper) -> None:
        """Register a waiter that is not a thread. It reads the clock itself; a test's manual clock pokes it."""

    def forget(self, sleeper: Sleeper) -> None:
        """Unregister a waiter."""

    def pause(self, ms: int) -> None:
        """Block for this many milliseconds."""
        time.sleep(ms / 1000)

    def new_id(self) -> str:
        """A fresh random UUID (version 4, RFC 9562 section 5.4)."""
        return _uuid(4, int.from_bytes(os.urandom(16)))

    def new_ordered_id(self) -> str:
        """A fresh UUID that begins with the time (version 7, RFC 9562 section 5.7).

        Unlike random ids, ids made one after another are adjacent in their index.
        """
        return _uuid(7, self.now_ms() << 80 | int.from_bytes(os.urandom(10)))

    def token(self, n_bytes: int = 8) -> str:
        """Unguessable hexadecimal text."""
        return os.urandom(n_bytes).hex()


def _uuid(version: int, number: int) -> str:
    text = f"{number & ~(0xF << 76 | 0x3 << 62) | version << 76 | 2 << 62:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def moment(text: str) -> int:
    """The milliseconds since the epoch of an RFC 3339 time; raises ValueError for anything else."""
    found = datetime.fromisoformat(text.upper())
    if found.tzinfo is None:
        raise ValueError("a time needs its offset, like Z")
    return round(found.timestamp() * 1000)


@lru_cache(maxsize=64)  # everything that one transaction writes and answers has the same time
def rfc3339(ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339 in UTC, for example `2026-06-10T04:30:00.000Z`."""
    seconds, milli = divmod(ms, 1000)
    return f"{_to_the_second(seconds)}.{milli:03d}Z"


@lru_cache(maxsize=64)  # formatting a date costs more than the rest of a small answer, and most answers share a second
def _to_the_second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
