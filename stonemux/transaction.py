"""What handlers work on: a snapshot to read, a transaction to write, and the job that carries a piece of writing.

The leader of the group commit assigns message and event ids from counters, so ids follow the order of commits and
nothing ever becomes visible behind a larger id.

**Few statements.** Each statement releases the interpreter lock and must win it back from every thread that is parsing
a request, which costs more than the statement itself. So `Tx.insert` only buffers rows that nobody in the batch needs
to read; they are written together, many rows per statement, before the next statement that names their table or at the
commit.

**The audit log** is chained at the commit, too: the entries of `Tx.record` get their number and hash there, in the
order of the batch, so a call that was rolled back leaves no gap.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Hashable
from functools import lru_cache
from itertools import chain, compress, count
from operator import not_
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
"""Maximum number of rows in one statement."""

LEAST_ALIKE = 16
"""In so many rows, a value that all of them have is bound once; in fewer, they may all have it by chance, and too many
statements would be prepared."""


@lru_cache(maxsize=256)
def _insert(table: str, rows: int, shared: tuple[bool, ...] = ()) -> str:
    """A statement whose parameters are the values of the shared columns, and then each row's values of the others."""
    if shared:
        number = count(1)
        chosen = ["?" if is_shared else f"column{next(number)}" for is_shared in shared]
        source = f"select {', '.join(chosen)} from (values {_places(shared.count(False), rows)})"
    else:
        source = f"values {_places(INSERTS[table].count(',') + 1, rows)}"
    # "or fail": by default, SQLite copies every page that such a statement touches, to be able to undo just that
    # statement. Here a refused row rolls back the whole batch anyway.
    return f"insert or fail into {table} ({INSERTS[table]}) {source}"


def _places(columns: int, rows: int) -> str:
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


class Event(NamedTuple):
    """One row of the event log, as stored. `data` is JSON text."""

    id: int
    kind: str
    channel: str | None
    agents: str | None
    """The agents that the event concerns, one per line."""
    data: str
    at: int

    def concerns(self, agent_id: str) -> bool:
        """Whether the event concerns this agent."""
        return self.agents is not None and agent_id in self.agents.split("\n")


class Snapshot:
    """A consistent view of the database, for reading."""

    __slots__ = ("_execute", "mux", "now")

    def __init__(self, db: sqlite3.Connection, mux: Mux, now: int) -> None:
        self._execute = db.execute
        self.mux = mux
        self.now = now

    def sql(self, query: str, *values: Any) -> list[Any]:
        """All rows of a query. Always reads to the end: a half-read cursor pins the write-ahead log."""
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
        """The last committed record of the audit log: its number and its hash."""
        self.last_message = last_message
        """The highest committed message id."""
        self._next_message = last_message + 1
        self._head = self._written = self._inserted = 0
        self._begin_lists()
        self.cache: dict[Hashable, Any] = {}
        """What handlers remember of slowly changing rows; cleared by `forget` and by every rollback."""
        self.backlog: dict[str, int] = {}
        """Queued deliveries by agent, maintained by the code that changes them; cleared by every rollback."""

    def _begin_lists(self) -> None:
        """Start with nothing buffered. The lists are new ones, because those of the last commit were handed out."""
        self._entries: list[Entry] = []
        self._topics: list[Topic] = []
        self._offers: list[Topic] = []
        self._hooks: list[Callable[[], None]] = []
        self._noted: dict[str, list[tuple[Any, ...]]] = {table: [] for table in INSERTS}
        self._through = dict.fromkeys(INSERTS, 0)  # how many of them have been written
        self._lists: tuple[list[Any], ...] = (
            *self._noted.values(),
            self._entries,
            self._topics,
            self._offers,
            self._hooks,
        )

    def sql(self, query: str, *values: Any) -> list[Any]:
        """All rows of a query."""
        self._write_noted(query)
        return self._execute(query, values).fetchall()

    def one(self, query: str, *values: Any) -> Any:
        """The first row, or None."""
        rows = self.sql(query, *values)
        return rows[0] if rows else None

    def run(self, query: str, *values: Any) -> sqlite3.Cursor:
        """Execute a statement that returns no rows; the cursor has `rowcount` and `lastrowid`."""
        self._write_noted(query)
        return self._execute(query, values)

    def many(self, query: str, rows: list[tuple[Any, ...]]) -> None:
        """Execute a statement once for each row."""
        self._write_noted(query)
        self._db.executemany(query, rows)

    def insert(self, table: str, row: tuple[Any, ...]) -> None:
        """Buffer a row for a table in `INSERTS`; written before a statement that names the table, or at the commit."""
        self._noted[table].append(row)
        self._inserted += 1

    def deal_message_id(self) -> int:
        """Assign the next message id."""
        dealt = self._next_message
        self._next_message += 1
        return dealt

    def _write_noted(self, query: str | None = None) -> None:
        """Write the buffered rows of the tables that a statement names, or of all of them."""
        for table, rows in self._noted.items():
            if rows and (query is None or table in query) and (at := self._through[table]) < len(rows):
                self._write_rows(table, rows, at)
                self._written += len(rows) - at
                self._through[table] = len(rows)

    def _write_rows(self, table: str, rows: list[tuple[Any, ...]], at: int) -> None:
        """Insert many rows per statement, in powers of two so that a few prepared statements serve every count."""
        end = len(rows)
        while at < end:
            size = min(1 << ((end - at).bit_length() - 1), MOST_ROWS)
            part = rows[at : at + size]
            if size >= LEAST_ALIKE:
                self._write_many(table, part)
            else:
                self._execute(_insert(table, size), tuple(chain.from_iterable(part)))
            at += size

    def _write_many(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        """Insert rows that probably have values in common: binding a value costs more than storing it."""
        columns = [*zip(*rows, strict=True)]
        shared = tuple([column[0] == column[-1] and column.count(column[0]) == len(rows) for column in columns])
        if all(shared):  # a statement must have values for each row
            shared = (False, *shared[1:])
        values = zip(*compress(columns, map(not_, shared)), strict=True)
        same = [column[0] for column in compress(columns, shared)]
        self._execute(_insert(table, len(rows), shared), (*same, *chain.from_iterable(values)))

    def emit(self, kind: str, data: str, *, channel: str | None = None, agents: tuple[str, ...] = ()) -> None:
        """Append an event to the log in this transaction; `data` is JSON text."""
        event_id = self._head + len(self._noted["event"]) + 1
        self.insert("event", Event(event_id, kind, channel, "\n".join(agents) or None, data, self.now))

    def record(self, entry: Entry) -> None:
        """Append an entry to the audit log in this transaction; the caller knows whether the log is on."""
        self._entries.append(entry)

    def touch(self, topic: Topic) -> None:
        """After the commit, wake every waiter of this topic."""
        self._topics.append(topic)

    def offer(self, topic: Topic) -> None:
        """After the commit, wake one waiter of this topic."""
        self._offers.append(topic)

    def after(self, hook: Callable[[], None]) -> None:
        """After the commit, call `hook`; it must be quick and must not fail."""
        self._hooks.append(hook)

    def forget(self) -> None:
        """Clear `cache`: the rows behind it are about to change."""
        self.cache.clear()

    @property
    def changes(self) -> int:
        """How many rows this connection has changed, counting buffered ones; it grows with every write."""
        return self._db.total_changes - self._written + self._inserted

    def begin(self, now: int, head: int) -> None:
        """Open the transaction; only the leader calls this. `head` is the last event's id."""
        if len(self.cache) > CACHE_ENTRIES:
            self.cache.clear()
        if self._db.in_transaction:  # an earlier leader was interrupted
            self.abandon()
        self.now, self._head = now, head
        self._execute("BEGIN IMMEDIATE")
        self._changes = self._db.total_changes

    def mark(self) -> Mark:
        """The current position in this transaction, for `rewind`."""
        return self._db.total_changes - self._written, self._inserted, self._next_message, [*map(len, self._lists)]

    def rewind(self, mark: Mark) -> bool:
        """Undo what was buffered and announced since `mark`; False if rows were changed since.

        Only a rollback undoes changed rows, including rows that were buffered since the mark and then written. Rows
        that were buffered before the mark may have been written meanwhile: they belong to other jobs.
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
        """Write what is buffered, commit, and return what is to be announced."""
        audited = self._chain()
        self._write_noted()
        if self._db.total_changes == self._changes:
            self._execute("ROLLBACK")  # nothing to make durable: save the fsync
        else:
            self._execute("COMMIT")
        self.audited = audited
        self.last_message = self._next_message - 1
        events: list[Any] = self._noted["event"]
        announced = (events, self._topics, self._offers, self._hooks)
        self._begin_lists()
        return announced

    def _chain(self) -> tuple[int, str]:
        """Chain the entries onto the audit log; returns the number and hash of its new last record."""
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
"""A callback that takes the final outcome: the value, or the exception."""


class Job(NamedTuple):
    """A function to run in a transaction; the leader passes its outcome to `done` after the commit."""

    work: Work
    done: Done
    grows: bool = False
    """Whether it adds data, in which case it must not use up the ballast of a full disk."""
