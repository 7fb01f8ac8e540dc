"""What handlers work on: a snapshot to read, a transaction to write, and the job that carries a piece of writing.

Ids of messages and events are dealt by the leader from counters, so their order is the order of commits and nothing can
become visible behind a larger id.

**Few statements.** Each statement gives up the interpreter lock and has to win it back from every thread that is
parsing a request, which costs more than the statement. So rows that nobody in the batch needs to read are only noted
(`Tx.insert`) and written together, many rows a statement, at the next statement that names their table or at the
commit.

**The audit log** is chained at the commit, too: what `Tx.record` noted gets its number and its hash there, in the
order of the batch, so a call that was taken back leaves no hole.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Hashable
from functools import lru_cache
from itertools import chain, compress
from typing import TYPE_CHECKING, Any, NamedTuple

from stonemux.chain import COLUMNS, START, Entry, links
from stonemux.hub import Topic

if TYPE_CHECKING:
    from stonemux.mux import Mux

CACHE_ENTRIES = 20_000

INSERTS = {
    "message": "id, channel, sender, addressed, content, subject, type, thread, reply_to, priority, metadata, "
    "sent_at, expires_at, content_ref, truncated, mentions",
    "delivery": "agent_id, message_id, channel, priority, state",
    "event": "id, kind, channel, agents, data, at",
    "audit": COLUMNS,
    "task": "id, channel, description, posted_by, required_capability, priority, metadata, assigned_to, status, "
    "max_attempts, claim_timeout_ms, created_at",
    "task_history": "task, at, act, agent_id, fence, note",
}
"""The tables that `Tx.insert` takes rows for, and their columns."""

MOST_ROWS = 64
"""Rows written by one statement."""


@lru_cache(maxsize=256)
def _insert(table: str, rows: int, given: tuple[bool, ...]) -> str:
    one = f"({', '.join(['?' if is_given else 'null' for is_given in given])})"
    # "or fail": by default SQLite keeps a copy of every page such a statement touches, to undo it alone. A row that is
    # refused here takes the batch back anyway.
    return f"insert or fail into {table} ({INSERTS[table]}) values {', '.join([one] * rows)}"


class Event(NamedTuple):
    """One row of the event log, as it is stored. `data` is JSON text."""

    id: int
    kind: str
    channel: str | None
    agents: str | None
    """The agents it concerns, one a line."""
    data: str
    at: int

    def concerns(self, agent_id: str) -> bool:
        """Whether this agent is one of those."""
        return self.agents is not None and agent_id in self.agents.split("\n")


class Snapshot:
    """A consistent view of the database, for reading."""

    __slots__ = ("_execute", "mux", "now")

    def __init__(self, db: sqlite3.Connection, mux: Mux, now: int) -> None:
        self._execute = db.execute
        self.mux = mux
        self.now = now

    def sql(self, query: str, *values: Any) -> list[Any]:
        """All rows of a statement. Always read to the end: a half-read cursor pins the write-ahead log."""
        return self._execute(query, values).fetchall()

    def one(self, query: str, *values: Any) -> Any:
        """The first row, or None."""
        rows = self._execute(query, values).fetchall()
        return rows[0] if rows else None


class Tx(Snapshot):
    """An open write transaction."""

    __slots__ = (
        "_changes",
        "_db",
        "_entries",
        "_head",
        "_hooks",
        "_inserted",
        "_lists",
        "_next_message",
        "_noted",
        "_offers",
        "_through",
        "_topics",
        "_written",
        "audited",
        "backlog",
        "cache",
        "last_message",
    )

    def __init__(
        self, db: sqlite3.Connection, mux: Mux, last_message: int, audited: tuple[int, str] = (0, START)
    ) -> None:
        super().__init__(db, mux, 0)
        self._db = db
        self.audited = audited
        """The last record of the audit log that was ever committed: its number and its hash."""
        self.last_message = last_message
        """The highest message id that was ever committed."""
        self._next_message = last_message + 1
        self._head = self._written = self._inserted = 0
        self._begin_lists()
        self.cache: dict[Hashable, Any] = {}
        """What handlers remember of slowly changing rows; dropped by `forget` and by every rollback."""
        self.backlog: dict[str, int] = {}
        """Unsettled deliveries by agent, kept by whoever changes them; dropped by every rollback."""

    def _begin_lists(self) -> None:
        """Note and announce nothing yet. The lists are new ones: those of the last commit were handed out."""
        self._entries: list[Entry] = []
        self._topics: list[Topic] = []
        self._offers: list[Topic] = []
        self._hooks: list[Callable[[], None]] = []
        self._noted: dict[str, list[tuple[Any, ...]]] = {table: [] for table in INSERTS}
        self._through = dict.fromkeys(INSERTS, 0)  # how many of them are written
        self._lists: tuple[list[Any], ...] = (
            *self._noted.values(),
            self._entries,
            self._topics,
            self._offers,
            self._hooks,
        )

    def sql(self, query: str, *values: Any) -> list[Any]:
        """All rows of a statement."""
        self._write_noted(query)
        return self._execute(query, values).fetchall()

    def one(self, query: str, *values: Any) -> Any:
        """The first row, or None."""
        rows = self.sql(query, *values)
        return rows[0] if rows else None

    def run(self, query: str, *values: Any) -> sqlite3.Cursor:
        """Execute a statement that returns no rows; the cursor tells `rowcount` and `lastrowid`."""
        self._write_noted(query)
        return self._execute(query, values)

    def many(self, query: str, rows: list[tuple[Any, ...]]) -> None:
        """Execute a statement once for each row."""
        self._write_noted(query)
        self._db.executemany(query, rows)

    def insert(self, table: str, row: tuple[Any, ...]) -> None:
        """Note a row of one of the tables in `INSERTS`; written before a statement that names it, or at the end."""
        self._noted[table].append(row)
        self._inserted += 1

    def deal_message_id(self) -> int:
        """The next message id."""
        dealt = self._next_message
        self._next_message += 1
        return dealt

    def _write_noted(self, query: str | None = None) -> None:
        """Write what is noted for the tables that a statement names, or for all of them."""
        for table, rows in self._noted.items():
            if rows and (query is None or table in query) and (at := self._through[table]) < len(rows):
                self._write_rows(table, rows, at)
                self._written += len(rows) - at
                self._through[table] = len(rows)

    def _write_rows(self, table: str, rows: list[tuple[Any, ...]], at: int) -> None:
        """Insert many rows a statement; in powers of two, so that a handful of prepared statements serves them all."""
        count = len(rows)
        while at < count:
            size = min(1 << ((count - at).bit_length() - 1), MOST_ROWS)
            columns = [*zip(*rows[at : at + size], strict=True)]
            # What is null in every row stands in the statement: binding it costs more than binding a text.
            given = tuple([column[0] is not None or column.count(None) < size for column in columns])
            values = zip(*compress(columns, given), strict=True)
            self._execute(_insert(table, size, given), tuple(chain.from_iterable(values)))
            at += size

    def emit(self, kind: str, data: str, *, channel: str | None = None, agents: tuple[str, ...] = ()) -> None:
        """Put an event (`data` is JSON text) into the log, in this transaction."""
        event_id = self._head + len(self._noted["event"]) + 1
        self.insert("event", Event(event_id, kind, channel, "\n".join(agents) or None, data, self.now))

    def record(self, entry: Entry, *, even_off: bool = False) -> None:
        """Put an entry into the audit log, in this transaction. Nothing is entered while the log is turned off."""
        if even_off or self.mux.settings.audit_enabled:
            self._entries.append(entry)

    def touch(self, topic: Topic) -> None:
        """After the commit, wake everybody who waits for this topic."""
        self._topics.append(topic)

    def offer(self, topic: Topic) -> None:
        """After the commit, wake one who waits for this topic."""
        self._offers.append(topic)

    def after(self, hook: Callable[[], None]) -> None:
        """After the commit, call this (it must be quick and must not fail)."""
        self._hooks.append(hook)

    def forget(self) -> None:
        """Drop what `cache` remembers: the rows behind it are about to change."""
        self.cache.clear()

    @property
    def changes(self) -> int:
        """How many rows this connection has changed, or will have with what is noted; differs after a write."""
        return self._db.total_changes - self._written + self._inserted

    def begin(self, now: int, head: int) -> None:
        """Open the transaction (the leader's business); `head` is the last event's id."""
        if len(self.cache) > CACHE_ENTRIES:
            self.cache.clear()
        if self._db.in_transaction:  # a leader was interrupted
            self.abandon()
        self.now, self._head = now, head
        self._execute("BEGIN IMMEDIATE")
        self._changes = self._db.total_changes

    def mark(self) -> Mark:
        """Where this transaction stands, for `rewind`."""
        return self._db.total_changes - self._written, self._inserted, self._next_message, [*map(len, self._lists)]

    def rewind(self, mark: Mark) -> bool:
        """Take back what was noted and announced since `mark`; False if rows were changed since.

        What has changed or has written its rows is undone by a rollback only. Rows that were noted before the mark and
        have been written meanwhile do no harm: they belong to others.
        """
        changes, inserted, next_message, lengths = mark
        if not self._db.in_transaction or self._db.total_changes - self._written != changes:
            return False
        if any(through > length for through, length in zip(self._through.values(), lengths, strict=False)):
            return False
        for noted, length in zip(self._lists, lengths, strict=True):
            del noted[length:]
        if self._inserted != inserted:
            self._inserted = inserted
            self.backlog.clear()
        self._next_message = next_message
        return True

    def commit(self) -> tuple[list[Event], list[Topic], list[Topic], list[Callable[[], None]]]:
        """Write what is noted, commit, and hand out what is to be announced."""
        audited = self._chain()
        self._write_noted()
        if self._db.total_changes == self._changes:
            self._execute("ROLLBACK")  # nothing to make durable: spare the fsync
        else:
            self._execute("COMMIT")
        self.audited = audited
        self.last_message = self._next_message - 1
        events: list[Any] = self._noted["event"]
        announced = (events, self._topics, self._offers, self._hooks)
        self._begin_lists()
        return announced

    def _chain(self) -> tuple[int, str]:
        """Give the entries their places in the audit log; returns the last one's."""
        seq, prev = self.audited
        if self._entries:
            rows = links(self._entries, seq, prev, self.now)
            self._noted["audit"] = rows
            seq, prev = rows[-1][0], rows[-1][-1].hex()
        return seq, prev

    def abandon(self) -> None:
        """Roll back; nothing of this transaction remains."""
        self._begin_lists()
        self._next_message = self.last_message + 1
        self.cache.clear()
        self.backlog.clear()
        if self._db.in_transaction:
            self._execute("ROLLBACK")


Mark = tuple[int, int, int, list[int]]
Work = Callable[[Tx], Any]
Done = Callable[[Any, BaseException | None], None]
"""Told of what something came to, in the end: its value, or why it failed."""


class Job(NamedTuple):
    """A function to run in a transaction, and who is told when it is done (by the leader, after the commit)."""

    work: Work
    done: Done
    grows: bool = False
    """It adds something, so it must not use up the ballast of a full disk."""
