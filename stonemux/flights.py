"""Messages that are on their way: handed to a poll, whose answer is not yet known to have arrived.

A plain poll takes messages without writing anything; only when the face sees that the answer arrived are they settled
(one write, nobody waits for it), and when it did not they are simply free again. What is in flight is invisible to
other polls of the same agent, so two polls never get the same message at once.

Each agent's ids have a lock of their own, held over the read that chooses from them: between "settled in the database"
and "no longer in flight" no poll of that agent can look.
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
        """Arrived, but not yet written down because the disk refused; written with the next chance."""

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
        """These are no longer in flight; returns whether one of them is queued again."""
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
        """Of these, what is in flight shall be queued again at the end of its flight, even if it arrives."""
        lock, held = self._entry(agent_id)
        with lock:
            if wanted := held.intersection(ids):
                self._recalled.setdefault(agent_id, set()).update(wanted)

    def unrecalled(self, agent_id: str, ids: list[int]) -> list[int]:
        """Those whose arrival settles them."""
        recalled = self._recalled.get(agent_id)
        return [message_id for message_id in ids if message_id not in recalled] if recalled else ids

    def show(self, agent_id: str, through: int) -> None:
        """A cursor poll, which writes nothing, has shown this agent everything up to here."""
        self._shown[agent_id] = max(through, self._shown.get(agent_id, 0))

    def saw(self, agent_id: str, message_id: int) -> bool:
        """Whether a poll has handed this message out, as far as memory goes."""
        return message_id <= self._shown.get(agent_id, 0) or message_id in self.held(agent_id)

    def held(self, agent_id: str) -> frozenset[int]:
        """A copy of what is in flight for this agent."""
        lock, held = self._entry(agent_id)
        with lock:
            return frozenset(held)
