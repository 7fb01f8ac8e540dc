"""Entries of the audit log that have no effect to be written with: refusals and replays.

Nobody waits for these to be on the disk, and nobody may fill the disk or slow the others down with them. So they are
noted here, and the timekeeper enters them in one transaction, about once a second. `AT_ONCE` of them, and `A_SECOND`
after that, are entered one by one; what comes faster is counted by operation and outcome, and a record with the `count`
is entered once a minute. Nothing is left out without being counted. A daemon that is killed loses what it noted in its
last second; one that stops does not.

`_lock` guards everything here; it is held for a few instructions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from stonemux.chain import Entry
from stonemux.clock import MINUTE_MS, Clock

ENTERED_MS = 1_000
"""How long after the first of them noted entries are entered."""
COUNTED_MS = MINUTE_MS
"""How often what came too fast is entered as a count."""
AT_ONCE = 120
A_SECOND = 2
MOST_KEPT = 1_000
"""Entries kept while the disk takes none."""
MOST_COUNTED = 64
"""Kinds of calls counted apart; the rest are counted together."""

REST = ("*", "refused")


class Blotter:
    """What waits to be entered. `wake(at)` is told when `take` has something to give; None turns everything off."""

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
        """Note what happened just now."""
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
        """When there will be something to take; None when nothing was noted."""
        with self._lock:
            if self._entries:
                return self._entries[0].at + ENTERED_MS
            return self._counting_since + COUNTED_MS if self._counts else None

    def take(self, *, all_of_it: bool = False) -> list[Entry]:
        """What is to be entered now; the counts only when they are due, or `all_of_it` is asked for."""
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
        """These could not be entered; they are taken again later."""
        with self._lock:
            self._entries = entries + self._entries
