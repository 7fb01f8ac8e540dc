"""Messages in flight: handed to a poll whose answer is not yet known to have arrived.

A plain poll takes messages without writing anything. When the HTTP server sees that the answer arrived, they are
settled (one write, for which no caller waits); when it did not arrive, they become available again. Messages in flight
are invisible to other polls of the same agent, so two polls never get the same message at once.

Each agent's ids have a lock of their own, held during the database read that chooses from them: no poll of that agent
can look between "settled in the database" and "no longer in flight".
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Flights:
    """The ids in flight, by agent. `_lock` guards the registry, each entry's lock its ids."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._agents: dict[str, tuple[threading.Lock, set[int]]] = {}
        self._shown: dict[str, int] = {}
        self._recalled: dict[str, set[int]] = {}
        self.owed: list[tuple[str, list[int]]] = []
        """Arrived, but not yet settled because the disk refused; retried later."""

    def _entry(self, agent_id: str) -> tuple[threading.Lock, set[int]]:
        entry = self._agents.get(agent_id)
        if entry is None:
            with self._lock:
                entry = self._agents.setdefault(agent_id, (threading.Lock(), set()))
        return entry

    @contextmanager
    def of(self, agent_id: str) -> Iterator[set[int]]:
        """This agent's ids in flight, locked while the block runs."""
        lock, ids = self._entry(agent_id)
        with lock:
            yield ids

    def end(self, agent_id: str, ids: Iterable[int]) -> bool:
        """End the flight of these ids; returns whether one of them is queued again."""
        lock, held = self._entry(agent_id)
        with lock:
            held.difference_update(ids)
            recalled = self._recalled.get(agent_id)
            if not recalled:
                return False
            left = recalled & held
            self._recalled[agent_id] = left
            return len(left) < len(recalled)

    def recall(self, agent_id: str, ids: Iterable[int]) -> None:
        """Have those of these ids that are in flight queued again afterward, even if their answer arrives."""
        lock, held = self._entry(agent_id)
        with lock:
            if wanted := held.intersection(ids):
                self._recalled.setdefault(agent_id, set()).update(wanted)

    def unrecalled(self, agent_id: str, ids: list[int]) -> list[int]:
        """The ids that were not recalled, and so are settled on arrival."""
        recalled = self._recalled.get(agent_id)
        return [message_id for message_id in ids if message_id not in recalled] if recalled else ids

    def show(self, agent_id: str, through: int) -> None:
        """Note that a cursor poll, which writes nothing, has shown this agent everything up to this id."""
        self._shown[agent_id] = max(through, self._shown.get(agent_id, 0))

    def saw(self, agent_id: str, message_id: int) -> bool:
        """Whether a poll has handed this message out, as far as memory knows."""
        return message_id <= self._shown.get(agent_id, 0) or message_id in self.held(agent_id)

    def held(self, agent_id: str) -> frozenset[int]:
        """A copy of this agent's ids in flight; anybody may ask, so nothing is kept of a name that is not known."""
        if agent_id not in self._agents:
            return frozenset()
        lock, held = self._entry(agent_id)
        with lock:
            return frozenset(held)
