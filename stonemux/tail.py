"""The tail of the event log, for commands: batch after batch, even across restarts of the daemon.

Each batch begins where the previous one ended, so nothing is missed while the daemon is away; a gap reports events that
the daemon no longer keeps.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from stonemux.clock import Clock
from stonemux.errors import MuxError
from stonemux.operations import BY_NAME
from stonemux.remote import Remote
from stonemux.schema import Operation

WAIT_S = 25
AWAY_MS = 500
"""The interval between attempts to reach a daemon that went away."""
AWAY = ("unreachable", "shutting_down")


class Tail:
    """A position in the event log; `after` is the last id that was seen.

    `anew` says that the log started over before the events that `next` returned last: earlier ids of any kind are void.
    """

    def __init__(self, remote: Remote, given: Mapping[str, Any]) -> None:
        self.after = 0
        self.head = 0
        self.anew = False
        self._remote = remote
        self._given = dict(given)
        self._clock = Clock()
        self._away = False

    def begin(self, after: int | None = None, *, back: int = 0) -> None:
        """Start after an id, or else `back` ids before the newest."""
        self.head = self._remote.ask(BY_NAME["events.list"], {"limit": 1})["head"]
        self.after = after if after is not None else max(0, self.head - back)

    def next(self, timeout: int = WAIT_S) -> list[dict[str, Any]]:
        """The events after the previous ones; waits for the first, and returns an empty list if none came in time."""
        answer = self.ask(
            BY_NAME["events.list"], self._given | {"after": self.after, "timeout": timeout, "limit": 1000}
        )
        self.after = answer["next"]
        self.anew = "reset" in answer
        for sign in ("gap", "reset"):
            if sign in answer:
                print(f"stonemux: {_told(sign, answer[sign])}", file=sys.stderr, flush=True)
        found: list[dict[str, Any]] = answer["events"]
        return found

    def ask(self, operation: Operation, given: Mapping[str, Any]) -> Any:
        """Call an operation, waiting as long as it takes for a daemon that went away to come back."""
        while True:
            try:
                answer = self._remote.ask(operation, given)
            except MuxError as error:
                if error.code not in AWAY:
                    raise
                if not self._away:
                    print("stonemux: the daemon went away; waiting for it to return", file=sys.stderr, flush=True)
                self._away = True
                self._clock.pause(AWAY_MS)
                continue
            self._away = False
            return answer


def _told(sign: str, facts: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{name} {value}" for name, value in facts.items())
    if sign == "gap":
        return f"some events are no longer kept ({listed})"
    return f"the event log started over ({listed})"
