"""The limit on asking for a token with a license key."""

from __future__ import annotations

import threading
from collections import deque

from stonemux.clock import MINUTE_MS
from stonemux.errors import MuxError

TRIES_A_MINUTE = 10
"""By all callers together."""


class Throttle:
    """Counts the tries. `_lock` guards the times of the latest ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tries: deque[int] = deque(maxlen=TRIES_A_MINUTE)

    def take(self, ticks: int) -> None:
        """Count a try at this time; if there were too many, raises `rate_limited` and does not count it."""
        with self._lock:
            left = self._tries[0] + MINUTE_MS - ticks if len(self._tries) == TRIES_A_MINUTE else 0
            if left <= 0:
                self._tries.append(ticks)
                return
        raise MuxError(
            "rate_limited",
            f"this may be tried only {TRIES_A_MINUTE} times a minute; keep using the token you have",
            limit=TRIES_A_MINUTE,
            retry_after=-(-left // 1000),
        )
