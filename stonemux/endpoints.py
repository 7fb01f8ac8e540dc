"""The in-memory state of delivery endpoints: agents' doorbells and forwarding endpoints.

The rows in the database are authoritative (`doorbells`, `webhooks`), and this state follows them: it is changed only by
callbacks that run after a commit, one commit after the other. So a dictionary lookup tells a send to an agent without a
doorbell that there is nothing to write, and a delivery thread finds the next due endpoint without asking the database.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple


class Outcome(NamedTuple):
    """The result of one attempt; it succeeded if `error` is empty."""

    status: int | None
    """The HTTP status, or the exit status of a command."""
    error: str
    """What went wrong, in one line; empty on success."""
    ms: int
    retry_after: int | None = None
    """The seconds for which the receiver asked not to be called."""
    gone: bool = False
    """The receiver asked never to be called again."""


class Endpoint:
    """One endpoint to deliver to."""

    __slots__ = ("agent_id", "base", "busy", "counted", "cursor", "due", "id", "ordered", "quiet", "sound", "stopped")

    def __init__(
        self, endpoint_id: str, agent_id: str | None, due: int | None, *, sound: bool, ordered: bool = True
    ) -> None:
        self.id = endpoint_id
        self.agent_id = agent_id
        """The agent whose doorbell it is; None for a forwarding endpoint."""
        self.due = due
        """When to try next (`Clock.now_ms` time); None while there is nothing to deliver, or it is disabled."""
        self.busy = False
        """Whether a thread is delivering to it."""
        self.counted = False
        """Whether that thread counts toward the limit for endpoints that are not sound."""
        self.quiet = 0
        """The time until which it asked not to be called."""
        self.sound = sound
        """Whether its last attempt succeeded, or there was none."""
        self.ordered = ordered
        """Whether an event that failed holds up those after it."""
        self.stopped = False
        """Whether it is disabled, so that events do not wake it."""
        self.cursor = 0
        """The last event that was examined for it and filtered out; valid only while its row matches `base`."""
        self.base: tuple[int, str | None, str | None] | None = None
        """The cursor and the filter in its row at that time."""


class Endpoints:
    """All endpoints. Changed after commits, one leader at a time; `outbound` changes `busy`, `base`, and `cursor`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # an endpoint must not go to sleep while an event arrives for it
        self.bells: dict[str, Endpoint] = {}
        """Doorbells by agent."""
        self.forwards: dict[str, Endpoint] = {}
        """Forwarding endpoints by id."""
        self.waiting: dict[Endpoint, None] = {}
        """Endpoints with something due, now or later."""
        self.outcomes = {"delivered": 0, "failed": 0}
        """Attempts since startup."""
        self.own_port = 0
        """The port that the daemon listens on; nothing is delivered there."""
        self.wake: Callable[[], None] = lambda: None
        """Called when something may be due now."""

    def put(self, endpoint: Endpoint) -> None:
        """Add an endpoint; an agent's doorbell replaces its previous one."""
        if endpoint.agent_id is not None:
            self.bells[endpoint.agent_id] = endpoint
        else:
            self.forwards[endpoint.id] = endpoint
        self.set_due(endpoint, endpoint.due)

    def drop(self, endpoint: Endpoint) -> None:
        """Remove an endpoint."""
        self.set_due(endpoint, None)
        self.bells.pop(endpoint.agent_id or "", None)
        self.forwards.pop(endpoint.id, None)

    def set_due(self, endpoint: Endpoint, due: int | None) -> None:
        """Set when an endpoint is to be tried next; None means not until there is something new."""
        endpoint.due = due
        if due is None:
            self.waiting.pop(endpoint, None)
        else:
            self.waiting[endpoint] = None

    def sleep(self, endpoint: Endpoint, until: int) -> None:
        """Set when to look at an endpoint again, unless something became due meanwhile."""
        with self._lock:
            if endpoint.due is None:
                self.set_due(endpoint, until)

    def events_came(self, now: int) -> None:
        """Mark the endpoints that wait for events as due, because events were committed."""
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
