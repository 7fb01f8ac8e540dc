"""Presence: which agents are registered, when each was last heard of, and which have gone stale.

Any call by an agent counts as a heartbeat, so the times are kept in memory, at the cost of a dictionary entry per call;
the daemon writes them to the database once a minute and when it stops. After a start, every agent gets a full grace
period, so that none is stale merely because the daemon was down.

`_lock` guards the set of agents; a heartbeat of a known agent is a single dictionary store and takes no lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from stonemux.clock import Clock


class Presence:
    """Last signs of life, in stored milliseconds (`Clock.now_ms`)."""

    def __init__(self, clock: Clock, threshold_s: int) -> None:
        self._clock = clock
        self._threshold = threshold_s * 1000
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}
        self._told: set[str] = set()
        self._ack: dict[str, str] = {}
        self._unsaved: set[str] = set()
        self.on_return: Callable[[], None] = lambda: None
        """Called when an agent that was reported stale is heard of again."""

    def add(self, agent_id: str, ack: str = "plain") -> None:
        """Add a registered agent; `ack` is how its polls acknowledge by default."""
        with self._lock:
            self._ack[agent_id] = ack
            self._seen[agent_id] = self._clock.now_ms()
            self._told.discard(agent_id)

    def remove(self, agent_id: str) -> None:
        """Remove a deregistered agent."""
        with self._lock:
            self._seen.pop(agent_id, None)
            self._ack.pop(agent_id, None)
            self._told.discard(agent_id)
            self._unsaved.discard(agent_id)

    def beat(self, agent_id: str) -> int:
        """Record a sign of life, unless the agent is unknown; returns the current time."""
        now = self._clock.now_ms()
        if agent_id in self._seen:
            self._seen[agent_id] = now
            self._unsaved.add(agent_id)
            if agent_id in self._told:
                self._told.discard(agent_id)
                self.on_return()
        return now

    def ack_mode(self, agent_id: str) -> str:
        """How this agent's polls acknowledge by default: plain or manual."""
        return self._ack.get(agent_id, "plain")

    def knows(self, agent_id: str) -> bool:
        """Whether an agent of that name is registered."""
        return agent_id in self._seen

    def last(self, agent_id: str) -> int:
        """When this agent was last heard of; 0 if it is not registered."""
        return self._seen.get(agent_id, 0)

    def heed(self, threshold_s: int) -> None:
        """Apply a new threshold."""
        self._threshold = threshold_s * 1000

    def status(self, agent_id: str) -> str:
        """`active`, or `stale` when nothing was heard within the threshold."""
        return "active" if self.last(agent_id) + self._threshold > self._clock.now_ms() else "stale"

    def counts(self) -> tuple[int, int]:
        """How many agents are active and how many are stale."""
        horizon = self._clock.now_ms() - self._threshold
        with self._lock:
            stale = sum(1 for seen in self._seen.values() if seen <= horizon)
            return len(self._seen) - stale, stale

    def newly_stale(self) -> list[str]:
        """Agents that have gone stale and have not been reported yet."""
        horizon = self._clock.now_ms() - self._threshold
        with self._lock:
            stale = [name for name, seen in self._seen.items() if seen <= horizon and name not in self._told]
            self._told.update(stale)
            # Heartbeats take no lock: one that came before the line above could not see its agent as reported.
            woken = [name for name in stale if self._seen[name] > horizon]
            self._told.difference_update(woken)
        return [name for name in stale if name not in woken]

    def not_told(self, agent_ids: list[str]) -> None:
        """Reporting these agents failed; report them again."""
        with self._lock:
            self._told.difference_update(agent_ids)

    def next_stale(self) -> int | None:
        """The earliest time at which an agent that is not yet reported goes stale."""
        with self._lock:
            due = [seen for name, seen in self._seen.items() if name not in self._told]
        return min(due) + self._threshold if due else None

    def unsaved(self) -> list[tuple[int, str]]:
        """(time, agent) of every agent heard of since the last call, for the database."""
        with self._lock:
            names, self._unsaved = self._unsaved, set()
            return [(self._seen[name], name) for name in names if name in self._seen]
