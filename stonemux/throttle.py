"""A limit on how often something may be tried."""

from __future__ import annotations

import threading
from collections import deque

from stonemux.clock import MINUTE_MS
from stonemux.errors import MuxError


class Throttle:
    """At most `most` tries a minute, all callers together. `_lock` guards the moments of the last ones."""

    def __init__(self, most: int, remedy: str) -> None:
        """`remedy` is what to do instead of trying again."""
        self._most = most
        self._remedy = remedy
        self._lock = threading.Lock()
        self._tries: deque[int] = deque(maxlen=most)

    def take(self, ticks: int) -> None:
        """Count a try at this moment; raises `rate_limited`, and does not count it, when there were too many."""
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
