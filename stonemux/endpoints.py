"""What the program knows in memory of where it delivers to: agents' doorbells and forwarding endpoints.

The rows are the truth (`doorbells`, `webhooks`), and this follows them: it is changed only by what runs after a commit,
one commit after the other. So a send to an agent without a doorbell learns from a dictionary that there is nothing to
write, and whoever delivers finds the next that is due without asking the database.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple


class Outcome(NamedTuple):
    """What became of one attempt; it was good if `error` is empty."""

    status: int | None
    """HTTP status, or exit status of a command."""
    error: str
    """What went wrong, in one line; empty if nothing did."""
    ms: int
    retry_after: int | None = None
    """Seconds that the other side asks to be left alone."""
    gone: bool = False
    """The other side never wants to be called again."""


class Endpoint:
    """One place to deliver to."""

    __slots__ = ("agent_id", "base", "busy", "counted", "cursor", "due", "id", "ordered", "quiet", "sound", "stopped")

    def __init__(
        self, endpoint_id: str, agent_id: str | None, due: int | None, *, sound: bool, ordered: bool = True
    ) -> None:
        self.id = endpoint_id
        self.agent_id = agent_id
        """Whose doorbell it is; None for one that events are forwarded to."""
        self.due = due
        """When to try next (`Clock.now_ms` time); None while there is nothing to deliver, or it is disabled."""
        self.busy = False
        """A thread is about it."""
        self.counted = False
        """That thread is one of those for endpoints that are not sound."""
        self.quiet = 0
        """Until when it asked to be left alone."""
        self.sound = sound
        """Its last attempt was good, or there was none."""
        self.ordered = ordered
        """An event that failed holds up those after it."""
        self.stopped = False
        """It is disabled; events do not wake it."""
        self.cursor = 0
        """The last event that was looked at for it and not wanted, counting from `base`."""
        self.base: tuple[int, str | None, str | None] | None = None
        """The cursor and the filter in its row at that time."""


class Endpoints:
    """All of them. Changed after commits, by one leader at a time; `busy`, `base` and `cursor` are `outbound`'s."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # between what comes and going to sleep because nothing did
        self.bells: dict[str, Endpoint] = {}
        """By agent."""
        self.forwards: dict[str, Endpoint] = {}
        """By id."""
        self.waiting: dict[Endpoint, None] = {}
        """Those with something due, now or later."""
        self.outcomes = {"delivered": 0, "failed": 0}
        """Attempts since the start."""
        self.own_port = 0
        """Where the daemon listens; nothing is delivered there."""
        self.wake: Callable[[], None] = lambda: None
        """Called when something may be due now."""

    def put(self, endpoint: Endpoint) -> None:
        """Take an endpoint in; an agent's doorbell replaces the one that it had."""
        if endpoint.agent_id is not None:
            self.bells[endpoint.agent_id] = endpoint
        else:
            self.forwards[endpoint.id] = endpoint
        self.set_due(endpoint, endpoint.due)

    def drop(self, endpoint: Endpoint) -> None:
        """Forget an endpoint."""
        self.set_due(endpoint, None)
        self.bells.pop(endpoint.agent_id or "", None)
        self.forwards.pop(endpoint.id, None)

    def set_due(self, endpoint: Endpoint, due: int | None) -> None:
        """Say when an endpoint is to be tried next; None: not until something comes."""
        endpoint.due = due
        if due is None:
            self.waiting.pop(endpoint, None)
        else:
            self.waiting[endpoint] = None

    def sleep(self, endpoint: Endpoint, until: int) -> None:
        """Say when to look at an endpoint again, unless something came meanwhile."""
        with self._lock:
            if endpoint.due is None:
                self.set_due(endpoint, until)

    def events_came(self, now: int) -> None:
        """Events were committed: those that wait for some are due."""
        if not self.forwards:
            return
        came = False
        with self._lock:
            for endpoint in list(self.forwards.values()):
                if endpoint.stopped:
                    continue
                if endpoint.due is None or (endpoint.due > now and not endpoint.ordered):
                    self.set_due(endpoint, now)
                    came = True
        if came:
            self.wake()
