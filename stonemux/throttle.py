"""A rate limit."""

from __future__ import annotations

import threading
from collections import deque

from stonemux.clock import MINUTE_MS
from stonemux.errors import MuxError


class Throttle:
    """At most `most` tries a minute by all callers together. `_lock` guards the times of the latest tries."""

    def __init__(self, most: int, remedy: str) -> None:
        """`remedy` says what to do instead of trying again."""
        self._most = most
        self._remedy = remedy
        self._lock = threading.Lock()
        self._tries: deque[int] = deque(maxlen=most)

    def take(self, ticks: int) -> None:
        """Count a try at this time; if there were too many, raises `rate_limited` and does not count it."""
        with self._lock:
            left = self._tries[0] + MINUTE_MS - ticks if len(self._tries) == self._most else 0
            if left <= 0:
                self._tries.append(ticks)
                return
        raise MuxError(
            "rate_limited",
            f"this may be tried only {self._most} times a minute; {self._remedy}",
            limit=self._most,
            retry_after=-(-left // 1000),
        )
