"""Audit entries without a transaction of their own: refusals and replays.

Nobody waits for these to reach the disk, and nobody may fill the disk or slow others down by causing them. So they are
noted here, and the timekeeper records them in one transaction, about once a second. A token bucket lets `AT_ONCE`
entries through, and `A_SECOND` more per second; those are recorded one by one. Any beyond that are counted by operation
and outcome, and a record with the `count` is written once a minute. Nothing is dropped without being counted. A daemon
that is killed loses what it noted in its last second; one that stops normally does not.

`_lock` guards everything here; it is held for a few instructions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from stonemux.chain import Entry
from stonemux.clock import MINUTE_MS, Clock

ENTERED_MS = 1_000
"""How long after the first noted entry the noted entries are recorded."""
COUNTED_MS = MINUTE_MS
"""How often the entries that came too fast are recorded as counts."""
AT_ONCE = 120
A_SECOND = 2
MOST_KEPT = 1_000
"""Entries kept while the disk does not accept writes."""
MOST_COUNTED = 64
"""Kinds of calls (operation and outcome) counted separately; the rest are counted together."""

REST = ("*", "refused")


class Blotter:
    """Entries waiting to be recorded. Calls `wake(at)` with the time when `take` will have some; None disables it."""

    def __init__(self, clock: Clock, wake: Callable[[int], None] | None) -> None:
        self._clock = clock
        self._wake = wake
        self.off = wake is None
        """Whether nothing is noted."""
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._allowed = float(AT_ONCE)
        self._allowed_at = clock.ticks_ms()
        self._counts: dict[tuple[str, str], int] = {}
        self._counting_since = 0

    def note(self, entry: Entry) -> None:
        """Note an entry as happening now."""
        if self._wake is None:
            return
        now = self._clock.now_ms()
        with self._lock:
            if self._may_enter():
                self._entries.append(entry._replace(at=now))
            else:
                self._count(entry, now)
        self._wake(now + ENTERED_MS)

    def _may_enter(self) -> bool:
        now = self._clock.ticks_ms()
        self._allowed = min(AT_ONCE, self._allowed + (now - self._allowed_at) * A_SECOND / 1000)
        self._allowed_at = now
        if self._allowed < 1 or len(self._entries) >= MOST_KEPT:
            return False
        self._allowed -= 1
        return True

    def _count(self, entry: Entry, now: int) -> None:
        if not self._counts:
            self._counting_since = now
        kind = (entry.action, entry.outcome)
        if kind not in self._counts and len(self._counts) >= MOST_COUNTED:
            kind = REST
        self._counts[kind] = self._counts.get(kind, 0) + 1

    def next_due(self) -> int | None:
        """When there will be something to take; None if nothing was noted."""
        with self._lock:
            if self._entries:
                return self._entries[0].at + ENTERED_MS
            return self._counting_since + COUNTED_MS if self._counts else None

    def take(self, *, all_of_it: bool = False) -> list[Entry]:
        """What is to be recorded now; includes the counts only if they are due or `all_of_it` is set."""
        now = self._clock.now_ms()
        with self._lock:
            taken, self._entries = self._entries, []
            if self._counts and (all_of_it or now >= self._counting_since + COUNTED_MS):
                taken += [
                    Entry(action, outcome=outcome, calls=count, at=now)
                    for (action, outcome), count in self._counts.items()
                ]
                self._counts = {}
        return taken

    def give_back(self, entries: list[Entry]) -> None:
        """Keep entries that could not be recorded; they are taken again later."""
        with self._lock:
            self._entries = entries + self._entries
