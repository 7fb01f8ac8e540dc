"""The event log as its readers see it: the newest events in memory, older ones in the database.

Ids increase by one in commit order. A reader has a cursor, never a queue of its own: normally it reads from the ring
buffer; a slow reader reads from the database; a reader that has fallen behind the oldest stored event gets a `gap`.
Memory use does not grow with the number of readers or their slowness.

`_lock` guards the ring; it is held while copying, never during a database read.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from stonemux.record import Record
from stonemux.transaction import Event, Snapshot, Tx

MOST_CHARACTERS = 4_000_000
STEP = 200
"""How much of the log one look takes from the database, and how many events one query: events carry contents and values
in full, so a thousand may be more than a hundred megabytes."""

log = logging.getLogger("stonemux")


class Filter(Record):
    """Which events a reader wants; an empty field means no restriction."""

    channel: str | None = None
    agent_id: str | None = None
    types: tuple[str, ...] = ()

    def wants(self, event: Event) -> bool:
        """Whether the event passes."""
        return (
            (not self.types or event.kind in self.types)
            and (self.channel is None or event.channel == self.channel)
            and (self.agent_id is None or event.concerns(self.agent_id))
        )

    def sql(self) -> tuple[str, list[Any]]:
        """The same as an SQL condition on a row of `event`, and the condition's values."""
        where, values = ["true"], list[Any]()
        if self.types:
            where.append(f"kind in ({', '.join('?' * len(self.types))})")
            values += self.types
        if self.channel is not None:
            where.append("channel = ?")
            values.append(self.channel)
        if self.agent_id is not None:
            where.append("instr(char(10) || agents || char(10), char(10) || ? || char(10))")
            values.append(self.agent_id)
        return " and ".join(where), values


EVERYTHING = Filter()


class EventLog:
    """The newest events. `listeners` are called after each commit that added events; they must be quick."""

    def __init__(self, head: int, size: int) -> None:
        self.head = head
        self.listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._ring: deque[Event] = deque(maxlen=size)

    def publish(self, events: list[Event]) -> None:
        """Append the committed events and notify the listeners."""
        with self._lock:
            self._ring.extend(events)
            self.head = events[-1].id
        for listener in self.listeners:
            try:
                listener()
            except Exception:  # the next ones, and everybody who waits, must hear of it all the same
                log.exception("an event could not be announced")

    def recent(self, after: int) -> list[Event] | None:
        """All events after `after` if the ring still holds them; None when they must be read from the database."""
        with self._lock:
            missing = self.head - after
            if missing <= 0:
                return []
            if missing > len(self._ring):
                return None
            return list(islice(self._ring, len(self._ring) - missing, None))


def stored(
    rx: Snapshot, after: int, limit: int, wanted: Filter = EVERYTHING, through: int | None = None
) -> list[Event]:
    """Up to `limit` retained events after `after` that pass a filter, in order, and none after `through` (the head).

    Fewer once these have `MOST_CHARACTERS`; `is_cut` tells.

    Events that are committed but not yet published are left for the next read: a cursor beyond the log's head would be
    taken for one of another database.
    """
    where, values = wanted.sql()
    query = (
        "select id, kind, channel, agents, data, at from event "
        f"where id > ? and id <= ? and {where} order by id limit ?"
    )
    through = rx.mux.log.head if through is None else through
    found: list[Event] = []
    while not is_cut(found, limit):
        asked = min(STEP, limit - len(found))
        rows = rx.sql(query, found[-1].id if found else after, through, *values, asked)
        found += [Event(*row) for row in rows]
        if len(rows) < asked:
            break
    return found


def is_cut(found: list[Event], limit: int) -> bool:
    """Whether there may be more events than these, which `stored` has found."""
    return len(found) >= limit or sum(len(event.data) for event in found) >= MOST_CHARACTERS


def oldest(rx: Snapshot) -> int:
    """The id of the oldest retained event; one past the head if there is none."""
    head = rx.mux.log.head  # before the query: what is published after it is missing there, but was not purged
    found = rx.one("select min(id) from event")[0]
    return int(found) if found is not None else head + 1


def purge(tx: Tx, through: int, before: int, most: int) -> int:
    """Delete up to `most` events with ids up to `through` that are older than `before`; returns how many."""
    return tx.run(
        # A later id is never older, so the search can stop at the first young event.
        "delete from event where id in (select id from event where id <= ? and id < coalesce((select id from event "
        "where at >= ? order by id limit 1), 9223372036854775807) order by id limit ?)",
        through,
        before,
        most,
    ).rowcount
