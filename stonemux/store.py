"""SQLite: one writing connection with group commit, and read-only connections beside it.

**Who writes.** `Store.write(work)` hands in a function of a transaction and returns its result after the commit. A
thread that finds no commit running becomes the leader: it takes everything that is queued, runs it in one `BEGIN
IMMEDIATE`, commits once, wakes the waiters, and answers the items. Threads that come meanwhile only queue. A lone
writer therefore pays no thread switch, and sixty-four pay one fsync together. A leader leads one batch; if the queue
is not empty then, the committer thread goes on, so that no caller is kept from its own work.

**One refusal harms nobody else.** Functions check before they write, so a refused item has usually changed nothing and
the batch goes on. When an item fails *after* it wrote (SQLite counts changes for us), the batch is rolled back and each
item runs again in a transaction of its own: the same isolation as a savepoint around each, without its cost.
Functions must therefore have no effect besides the transaction; what they announce (`emit`, `touch`, `offer`, `after`)
is kept back until the commit.

**What an acknowledgement promises.** WAL with `synchronous=FULL`: the commit has been fsynced. After each commit the
file is checked to be still the one in the directory; an error of the disk that leaves the outcome unknown stops all
writing for good (`storage_error`, and the daemon ends with status 70), because SQLite's own state may then differ from
what a restart finds.

Ids of messages and events are dealt by the leader from counters, so their order is the order of commits and nothing can
become visible behind a larger id.

**Few statements.** Each statement gives the interpreter lock away and has to win it back from every thread that is
parsing a request, which costs more than the statement. So rows that nobody in the batch needs to read are only noted
(`Tx.insert`) and written together, many rows a statement, at the next other statement or at the commit.

**A full disk** refuses what was to be written, and reading goes on. What settles or ends something runs on the ballast
that is then given back (`ballast`); changes that add something (`Job.grows`) are refused until there is room again.

Threads: `_gate` guards the queue and the leadership. The writing connection, `_tx` and `cache` belong to the leader.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stonemux.ballast import ROOM_BYTES, SCARCE_BYTES, Ballast
from stonemux.clock import Clock
from stonemux.datadir import DataDir, Head
from stonemux.errors import MuxError
from stonemux.hub import Topic
from stonemux.tables import APPLICATION_ID, MIGRATIONS

if TYPE_CHECKING:
    from stonemux.mux import Mux

log = logging.getLogger("stonemux")

Row = sqlite3.Row
Connect = Callable[..., sqlite3.Connection]

MOST_IN_A_BATCH = 256
SKIPPED = 1_000_000
"""Ids left out after a database went back in time, so that none that was dealt and forgotten is dealt again."""
POOLED_READERS = 8
BUSY_S = 5.0
"""How long the writer waits for another program that holds the database."""
CACHE_ENTRIES = 20_000

PRAGMAS = (
    "synchronous=FULL",
    "foreign_keys=ON",
    "wal_autocheckpoint=1000",
    "journal_size_limit=67108864",
    "trusted_schema=OFF",
    "cell_size_check=ON",
    "mmap_size=0",
    "temp_store=MEMORY",
    "cache_size=-16384",
)


INSERTS = {
    "message": "id, channel, sender, addressed, content, subject, type, thread, reply_to, priority, metadata, "
    "sent_at, expires_at",
    "delivery": "agent_id, message_id, channel, priority",
    "event": "id, kind, channel, agents, data, at",
}
"""The tables that `Tx.insert` takes rows for, and their columns."""

MOST_ROWS = 64
"""Rows written by one statement."""


@lru_cache(maxsize=64)
def _insert(table: str, rows: int) -> str:
    columns = INSERTS[table]
    one = f"({', '.join('?' * (columns.count(',') + 1))})"
    return f"insert into {table} ({columns}) values {', '.join([one] * rows)}"


class Event(NamedTuple):
    """One row of the event log. `agents` are the agents it concerns; `data` is JSON text."""

    id: int
    kind: str
    channel: str | None
    agents: tuple[str, ...]
    data: str
    at: int


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
        "_hooks",
        "_next_message",
        "_noted",
        "_offers",
        "_pending",
        "_topics",
        "_written",
        "backlog",
        "cache",
        "last_message",
    )

    def __init__(self, db: sqlite3.Connection, mux: Mux, last_message: int) -> None:
        super().__init__(db, mux, 0)
        self._db = db
        self.last_message = last_message
        """The highest message id that was ever committed."""
        self._next_message = last_message + 1
        self._noted: dict[str, list[tuple[Any, ...]]] = {table: [] for table in INSERTS}
        self._written = 0
        self._pending: list[tuple[str, str | None, tuple[str, ...], str]] = []
        self._topics: list[Topic] = []
        self._offers: list[Topic] = []
        self._hooks: list[Callable[[], None]] = []
        self.cache: dict[Hashable, Any] = {}
        """What handlers remember of slowly changing rows; dropped by `forget` and by every rollback."""
        self.backlog: dict[str, int] = {}
        """Unsettled deliveries by agent, kept by whoever changes them; dropped by every rollback."""

    def sql(self, query: str, *values: Any) -> list[Any]:
        """All rows of a statement."""
        self._write_noted()
        return self._execute(query, values).fetchall()

    def one(self, query: str, *values: Any) -> Any:
        """The first row, or None."""
        rows = self.sql(query, *values)
        return rows[0] if rows else None

    def run(self, query: str, *values: Any) -> sqlite3.Cursor:
        """Execute a statement that returns no rows; the cursor tells `rowcount` and `lastrowid`."""
        self._write_noted()
        return self._execute(query, values)

    def many(self, query: str, rows: list[tuple[Any, ...]]) -> None:
        """Execute a statement once for each row."""
        self._write_noted()
        self._db.executemany(query, rows)

    def insert(self, table: str, row: tuple[Any, ...]) -> None:
        """Note a row of one of the tables in `INSERTS`; written before the next other statement, or at the end."""
        self._noted[table].append(row)

    def deal_message_id(self) -> int:
        """The next message id."""
        dealt = self._next_message
        self._next_message += 1
        return dealt

    def _write_noted(self) -> None:
        for table, rows in self._noted.items():
            if rows:
                self._write_rows(table, rows)
                self._written += len(rows)
                rows.clear()

    def _write_rows(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        """Insert many rows a statement; in powers of two, so that a handful of prepared statements serves them all."""
        at, count = 0, len(rows)
        while at < count:
            size = min(1 << ((count - at).bit_length() - 1), MOST_ROWS)
            self._execute(_insert(table, size), tuple(chain.from_iterable(rows[at : at + size])))
            at += size

    def emit(self, kind: str, data: str, *, channel: str | None = None, agents: tuple[str, ...] = ()) -> None:
        """Put an event (`data` is JSON text) into the log, in this transaction."""
        self._pending.append((kind, channel, agents, data))

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
        """How many rows this connection has changed; differs after a write."""
        self._write_noted()
        return self._db.total_changes

    def begin(self, now: int) -> None:
        """Open the transaction (the leader's business)."""
        if len(self.cache) > CACHE_ENTRIES:
            self.cache.clear()
        if self._db.in_transaction:  # a leader was interrupted
            self.abandon()
        self.now = now
        self._execute("BEGIN IMMEDIATE")
        self._changes = self._db.total_changes

    def mark(self) -> Mark:
        """Where this transaction stands, for `rewind`."""
        return (
            self._db.total_changes - self._written,
            self._written,
            [len(rows) for rows in self._noted.values()],
            len(self._pending),
            len(self._topics),
            len(self._offers),
            len(self._hooks),
            self._next_message,
        )

    def rewind(self, mark: Mark) -> bool:
        """Take back what was noted and announced since `mark`.

        False if rows were changed since, which only a rollback undoes. Rows that were noted before the mark and have
        been written meanwhile do no harm: they belong to others.
        """
        changes, written, noted, events, topics, offers, hooks, next_message = mark
        del self._pending[events:], self._topics[topics:], self._offers[offers:], self._hooks[hooks:]
        written_since = self._written - written
        if (
            not self._db.in_transaction
            or self._db.total_changes - self._written != changes
            or written_since not in (0, sum(noted))
        ):
            return False
        if self._next_message != next_message:
            for rows, count in zip(self._noted.values(), noted, strict=True):
                del rows[0 if written_since else count :]
            self._next_message = next_message
            self.backlog.clear()
        return True

    def commit(self, head: int) -> tuple[list[Event], list[Topic], list[Topic], list[Callable[[], None]]]:
        """Write the events, commit, and hand out what is to be announced."""
        events = [
            Event(head + n, kind, channel, agents, data, self.now)
            for n, (kind, channel, agents, data) in enumerate(self._pending, 1)
        ]
        self._noted["event"] = [(e.id, e.kind, e.channel, "\n".join(e.agents) or None, e.data, e.at) for e in events]
        self._write_noted()
        if self._db.total_changes == self._changes:
            self._execute("ROLLBACK")  # nothing to make durable: spare the fsync
        else:
            self._execute("COMMIT")
        self.last_message = self._next_message - 1
        announced = (events, self._topics, self._offers, self._hooks)
        self._pending, self._topics, self._offers, self._hooks = [], [], [], []
        return announced

    def abandon(self) -> None:
        """Roll back; nothing of this transaction remains."""
        self._pending, self._topics, self._offers, self._hooks = [], [], [], []
        for rows in self._noted.values():
            rows.clear()
        self._next_message = self.last_message + 1
        self.cache.clear()
        self.backlog.clear()
        if self._db.in_transaction:
            self._execute("ROLLBACK")


Mark = tuple[int, int, list[int], int, int, int, int, int]
Work = Callable[[Tx], Any]
Outcome = Callable[[Any, BaseException | None], None]


class Job(NamedTuple):
    """A function to run in a transaction, and who wants to know its outcome (called by the leader after the commit)."""

    work: Work
    outcome: Outcome
    grows: bool = False
    """It adds something, so it must not use up the ballast of a full disk."""


def _tell(outcome: Outcome, value: Any, error: BaseException | None) -> None:
    """Tell one caller. One that fails costs neither the others their answers nor the store its leader."""
    try:
        outcome(value, error)
    except Exception:
        log.exception("an outcome could not be told")


def _tell_all(batch: list[Job], error: BaseException) -> bool:
    for job in batch:
        _tell(job.outcome, None, error)
    return True


class _Result:
    """A blocking caller's end of a job."""

    __slots__ = ("_done", "error", "value")

    def __init__(self) -> None:
        self._done = threading.Lock()
        self._done.acquire()

    def __call__(self, value: Any, error: BaseException | None) -> None:
        self.value, self.error = value, error
        self._done.release()

    def get(self) -> Any:
        self._done.acquire()
        if self.error is not None:
            raise self.error
        return self.value


def _full() -> MuxError:
    return MuxError(
        "storage_full",
        f"the disk is full: nothing was written, reading goes on; free at least {ROOM_BYTES // 1024 // 1024} MiB and "
        "send again",
        retry_after=5,
    )


def _is_full(error: BaseException) -> bool:
    return isinstance(error, MuxError) and error.code == "storage_full"


def _refuse_growth(batch: list[Job]) -> list[Job]:
    """Tell those that would add something that the disk is full; the others."""
    _tell_all([job for job in batch if job.grows], _full())
    return [job for job in batch if not job.grows]


def _stopping() -> MuxError:
    return MuxError("shutting_down", "the daemon is stopping; try again in a moment", retry_after=1)


class Store:
    """An open database. `publish(events, topics, offers)` is called after each commit that announced something."""

    def __init__(
        self, directory: DataDir, clock: Clock, *, accept_rollback: bool = False, connect: Connect = sqlite3.connect
    ) -> None:
        """Open, check and migrate the database in `directory`.

        Raises `data_refused` for a database that is damaged, empty although one was made here, made by a newer
        stonemux, or older than the directory remembers (unless `accept_rollback`).
        """
        self._directory = directory
        self._path = str(directory.database)
        self._connect = connect
        self._clock = clock
        self.mux: Mux = None  # type: ignore[assignment]  # tied once by the Mux that is built around this store
        self.publish: Callable[[list[Event], list[Topic], list[Topic]], None] = lambda events, topics, offers: None
        self.on_fatal: Callable[[MuxError], None] = lambda error: None
        self.fatal: MuxError | None = None
        self.damage = ""
        """What the last full check found wrong."""
        self._checking: sqlite3.Connection | None = None
        self.gatherers: set[int] = set()
        """Threads whose jobs are only queued until they call `lead`: they gather several first."""
        self._gate = threading.Lock()
        self._queue: deque[Job] = deque()
        self._leading = False
        self._closed = False
        self._ended = False
        self._readers: list[sqlite3.Connection] = []
        self._ballast = Ballast(directory.path)
        self._tight = self._ballast.free() < SCARCE_BYTES and self._give_ballast()
        self._db = _open_checked(directory, connect, accept_rollback)
        try:
            self.migrated_from = _migrate(self._db, directory)
            standing = stand(self._db)
            if _seen_beyond(directory, standing.event_seq, accept_rollback):
                standing = leap(self._db, standing, directory.read_head())
            self.head: int = standing.event_seq
            self.newest: int = standing.at
            self.epoch: str = self._meta("epoch")
            self.skipped = int(self._meta("skipped") or 0)
            """Message ids that were left out, see `leap`."""
            checked = self._meta("checked").split()
            self.checked: tuple[int, int] = (int(checked[0]), int(checked[1])) if checked else (0, -1)
            """When every page was last read, and the last event then."""
            self._tx = Tx(self._db, self.mux, standing.message_seq)
            self.copying = threading.Lock()
            """Held while a copy of the database is made: one at a time."""
            clock.anchor(self.newest)
            self._note_clock(self._tx)
        except sqlite3.Error as error:
            self._db.close()
            raise self._judge(error) from error
        except BaseException:
            self._db.close()
            raise
        self._files = self._inodes()
        if not self._tight:
            self._ballast.keep()
        self._relay = threading.Semaphore(0)
        self._committer = threading.Thread(target=self._go_on, name="committer", daemon=True)
        self._committer.start()

    def _meta(self, key: str) -> str:
        row = self._db.execute("select value from meta where key = ?", (key,)).fetchone()
        return row[0] if row else ""

    def _note_clock(self, tx: Tx) -> None:
        tx.run("insert or replace into meta values ('clock', ?)", str(self._clock.now_ms()))

    # -- writing

    def write(self, work: Work, *, grows: bool = False) -> Any:
        """Run `work(tx)` in a write transaction and return its result after the commit; raises what `work` raised."""
        result = _Result()
        job = Job(work, result, grows)
        if not self._enqueue(job):
            raise _stopping()
        self.lead()
        return result.get()

    def submit(self, job: Job) -> None:
        """Queue a job; its outcome is called by whichever thread commits it, possibly this one before returning."""
        if not self._enqueue(job):
            job.outcome(None, _stopping())
        elif threading.get_ident() not in self.gatherers:
            self.lead()

    def _enqueue(self, job: Job, *, last: bool = False) -> bool:
        with self._gate:
            if self._closed:
                return False
            self._closed = last
            self._queue.append(job)
            return True

    def lead(self) -> None:
        """Commit what is queued, unless somebody is about it.

        A gatherer goes on until nothing is left; anybody else commits one batch and leaves the rest to the committer.
        """
        with self._gate:
            if self._leading or not self._queue:
                return
            self._leading = True
        more = True
        while more:
            try:
                self._lead()
            except BaseException:  # even an interrupted leader leaves somebody to lead
                self._relay.release()
                raise
            with self._gate:
                more = self._leading = bool(self._queue)
            if more and threading.get_ident() not in self.gatherers:
                self._relay.release()
                return

    def _lead(self) -> None:
        with self._gate:
            count = min(len(self._queue), MOST_IN_A_BATCH)
            batch = [self._queue.popleft() for _ in range(count)]
        if batch:
            self._commit(batch)

    def _go_on(self) -> None:
        """The committer thread: leads while there is more to commit than one caller's batch."""
        while True:
            self._relay.acquire()
            if self._ended:
                return
            more = True
            while more:
                self._lead()
                with self._gate:
                    more = self._leading = bool(self._queue)

    def _commit(self, batch: list[Job]) -> None:
        if not self._attempt(batch):
            for job in batch:
                self._attempt([job])

    def _attempt(self, batch: list[Job], *, may_retry: bool = True) -> bool:
        """Run the batch in one transaction; False if it must be run again one by one."""
        if self.fatal is not None:
            return _tell_all(batch, self.fatal)
        if self._tight and self._is_tight(may_retry):
            batch = _refuse_growth(batch)
            if not batch:
                return True
        tx = self._tx
        outcomes: list[tuple[Outcome, Any, BaseException | None]] = []
        try:
            tx.begin(self._clock.now_ms())
            for job in batch:
                mark = tx.mark()
                try:
                    outcomes.append((job.outcome, job.work(tx), None))
                except Exception as error:
                    if isinstance(error, sqlite3.Error) or not tx.rewind(mark):
                        raise
                    outcomes.append((job.outcome, None, error))
            events, topics, offers, hooks = tx.commit(self.head)
        except Exception as error:
            verdict = self._judge(error)
            try:
                tx.abandon()
            except sqlite3.Error as trouble:
                verdict = self._stop(trouble)
            if verdict is error and len(batch) > 1:  # one of them is to blame, not the disk
                return False
            if may_retry and _is_full(verdict) and self._give_ballast():
                self._tight = True
                for job in batch:
                    self._attempt([job], may_retry=False)
                return True
            return _tell_all(batch, verdict)
        if self._inodes() != self._files:
            return _tell_all(batch, self._lost())
        self.head += len(events)
        try:
            for hook in hooks:
                hook()
            if events or topics or offers:
                self.publish(events, topics, offers)
        except Exception:
            log.exception("a commit could not be announced")
        for outcome, value, failure in outcomes:
            _tell(outcome, value, failure)
        return True

    def _give_ballast(self) -> bool:
        """Give the ballast back, and with it what the write-ahead log no longer needs; False if there was none."""
        if not self._ballast.drop():
            return False
        log.warning("the disk is full: only what settles or ends something is written until there is room")
        return True

    def _is_tight(self, may_end: bool) -> bool:
        """Whether the disk is still full; looks again only if that may end now."""
        if may_end and self._ballast.has_room():
            self._ballast.keep()
            self._tight = False
            log.warning("the disk has room again")
        return self._tight

    def keep_ballast(self) -> None:
        """Put the ballast by, if it was given back and there is room."""
        self._ballast.keep()

    def _inodes(self) -> tuple[int, int]:
        try:
            return (os.stat(self._path).st_ino, os.stat(self._path + "-wal").st_ino)
        except OSError:
            return (0, 0)

    def _lost(self) -> MuxError:
        """The database in the directory is no longer the one that is open: all writing ends."""
        self.fatal = MuxError(
            "storage_lost",
            f"{self._path} was moved, deleted or replaced under the running daemon; nothing is acknowledged any more. "
            "Put the file back and start again",
            retry_after=5,
        )
        self.on_fatal(self.fatal)
        return self.fatal

    def _judge(self, error: BaseException) -> BaseException:
        """What a caller is told of an error; one that leaves the disk's state unknown ends all writing."""
        if not isinstance(error, sqlite3.Error):
            return error
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if kind == sqlite3.SQLITE_FULL:
            return _full()
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return MuxError("storage_busy", "another program holds the database; try again", retry_after=1)
        if kind == sqlite3.SQLITE_CANTOPEN:
            return MuxError(
                "storage_busy",
                "the database cannot be opened once more (too many open files?); try again",
                retry_after=1,
            )
        if kind in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self._stop(error)
        return error

    def _stop(self, error: sqlite3.Error) -> MuxError:
        self.fatal = MuxError(
            "storage_error",
            f"the disk failed ({getattr(error, 'sqlite_errorname', error)}); whether this was written is unknown. The "
            "daemon stops; start it again and repeat the call with the same idempotency key",
            retry_after=5,
        )
        self.on_fatal(self.fatal)
        return self.fatal

    # -- reading

    @contextlib.contextmanager
    def read(self) -> Iterator[Snapshot]:
        """One snapshot on a read-only connection."""
        try:
            db = self._reader()
        except sqlite3.Error as error:
            raise self._judge(error) from error
        try:
            db.execute("BEGIN")
            yield Snapshot(db, self.mux, self._clock.now_ms())
            db.execute("COMMIT")
        except sqlite3.Error as error:
            db.close()
            raise self._judge(error) from error
        except BaseException:
            db.execute("ROLLBACK")
            self._give_back(db)
            raise
        self._give_back(db)

    def _reader(self) -> sqlite3.Connection:
        try:
            return self._readers.pop()
        except IndexError:
            db = self._connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=256)
            db.row_factory = Row
            db.execute("PRAGMA query_only=1")
            db.execute("PRAGMA wal_autocheckpoint=0")
            return db

    def _give_back(self, db: sqlite3.Connection) -> None:
        if len(self._readers) < POOLED_READERS:
            self._readers.append(db)
        else:
            db.close()
        if self._ended:  # looked at last, so that none is left behind a store that closes meanwhile
            self._drop_readers()

    def _drop_readers(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._readers.pop().close()

    def size(self) -> dict[str, int]:
        """Bytes of the database and of its write-ahead log."""

        def measured(path: str) -> int:
            try:
                return os.stat(path).st_size
            except OSError:
                return 0

        return {"database_bytes": measured(self._path), "wal_bytes": measured(self._path + "-wal")}

    def note_head(self) -> None:
        """Let the data directory remember how far the event log has come."""
        if self.fatal is None:
            self._directory.write_head(Head(self.head, self._tx.last_message, self._clock.now_ms()))

    def fold(self) -> bool:
        """Take the write-ahead log into the database and cut it; False if somebody is writing or reading.

        On the writing connection, because SQLite before 3.51.3 can lose pages when another one does it.
        """
        with self._gate:
            if self._leading or self._queue or self._closed:
                return False
            self._leading = True
        try:
            self._db.execute("PRAGMA busy_timeout=0")
            return not self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0]
        except sqlite3.Error as error:
            self._judge(error)
            return False
        finally:
            self._db.execute(f"PRAGMA busy_timeout={BUSY_S * 1000:.0f}")
            with self._gate:
                more = self._leading = bool(self._queue)
            if more:
                self._relay.release()

    def check(self) -> None:
        """Read every page and index, and note in `damage` what is wrong; takes long, and `close` cuts it short."""
        head = self.head
        with contextlib.closing(self.apart()) as db:
            self._checking = db
            try:
                rows = db.execute("PRAGMA integrity_check(3)").fetchall()
            except sqlite3.DatabaseError as error:
                if self._closed:
                    return
                rows = [(str(error),)]
            finally:
                self._checking = None
        self.damage = "; ".join(row[0] for row in rows if row[0] != "ok")
        self.checked = (self._clock.now_ms(), head)
        if self.damage:
            log.critical("%s is damaged: %s. Stop the daemon and restore a backup", self._path, self.damage)
            return
        told = f"{self.checked[0]} {self.checked[1]}"
        self.write(lambda tx: tx.run("insert or replace into meta values ('checked', ?)", told))

    def cut_check(self) -> None:
        """Let a running `check` end."""
        if (db := self._checking) is not None:
            with contextlib.suppress(sqlite3.Error):  # it may have ended meanwhile
                db.interrupt()

    def apart(self) -> sqlite3.Connection:
        """A read-only connection of the caller's own, for what takes long or cannot run in a snapshot."""
        uri = f"{Path(self._path).absolute().as_uri()}?mode=ro"
        return self._connect(uri, uri=True, isolation_level=None, check_same_thread=False)

    def tie(self, mux: Mux) -> None:
        """Tell the store which program it belongs to; transactions carry it to the handlers."""
        self.mux = mux
        self._tx.mux = mux

    def close(self) -> None:
        """Commit what is queued, fold the write-ahead log into the database and close everything."""
        result = _Result()  # queued last, so when it is done everything before it is
        if not self._enqueue(Job(self._note_clock, result), last=True):
            return
        self.cut_check()
        self.lead()
        with contextlib.suppress(MuxError, sqlite3.Error):
            result.get()
        self._ended = True
        self._relay.release()
        self._committer.join()
        self._drop_readers()
        if self.fatal is None:
            with contextlib.suppress(OSError):
                self.note_head()
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()


def _open_checked(directory: DataDir, connect: Connect, accept_rollback: bool) -> sqlite3.Connection:
    """The writing connection on a database that is sound, or new in a directory that never had one."""
    path = directory.database
    if directory.marked and (not path.exists() or path.stat().st_size == 0):
        raise MuxError(
            "data_refused",
            f"{path} is missing or empty, though this directory once held data; it is left untouched. Put the file "
            f"back, or name an empty directory with --data-dir",
        )
    if not path.exists():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        looked = _look(directory, accept_rollback)
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from error
    db = connect(str(path), isolation_level=None, check_same_thread=False, timeout=BUSY_S, cached_statements=256)
    try:
        if not looked:
            check_sound(db, path, directory.marked)
        db.row_factory = Row
        mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise MuxError("unsafe_environment", f"SQLite cannot use a write-ahead log for {path} (it offers {mode!r})")
        for pragma in PRAGMAS:
            db.execute(f"PRAGMA {pragma}")
        if hasattr(os, "uname") and os.uname().sysname == "Darwin":  # plain fsync does not flush the drive there
            db.execute("PRAGMA fullfsync=1")
            db.execute("PRAGMA checkpoint_fullfsync=1")
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2
    except sqlite3.DatabaseError as error:
        db.close()
        raise _unreadable(path, error) from error
    except BaseException:
        db.close()
        raise
    return db


def _unreadable(path: Path, error: sqlite3.Error) -> MuxError:
    return MuxError(
        "data_refused",
        f"{path} cannot be read as a stonemux database ({error}); it is left untouched. Put a good copy in its place, "
        "or name another directory with --data-dir",
    )


def _look(directory: DataDir, accept_rollback: bool) -> bool:
    """Check the database through a connection that cannot change it; False when only a writer can open it.

    A writer folds the write-ahead log in and deletes it when it closes; of a database that is refused, that log may be
    all there is to save.
    """
    path = directory.database
    if Path(f"{path}-journal").exists():
        return False
    try:
        with contextlib.closing(open_unchanged(path)) as db:
            if check_sound(db, path, directory.marked):
                _seen_beyond(directory, stand(db).event_seq, accept_rollback)
    except sqlite3.OperationalError:
        return False
    return True


def open_unchanged(path: Path) -> sqlite3.Connection:
    """A connection that changes neither the database nor what lies beside it; nobody else may be writing to it."""
    log = Path(f"{path}-wal")
    # Without a log nothing may be made beside the database, not even the log's empty file.
    how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None)


def stand(db: sqlite3.Connection) -> Head:
    """How far a database has come: its last event and message, and the newest time that it knows."""
    meta = dict(db.execute("select key, value from meta where key in ('floor', 'clock')").fetchall())
    event = db.execute("select id, at from event order by id desc limit 1").fetchone() or (0, 0)
    message = db.execute("select seq from sqlite_sequence where name = 'message'").fetchone() or (0,)
    return Head(max(event[0], int(meta.get("floor", 0))), message[0], max(event[1], int(meta.get("clock", 0))))


def leap(db: sqlite3.Connection, *seen: Head) -> Head:
    """Let a database that went back in time go on where no id was ever dealt; returns where that is.

    `seen` are all that were ever seen of it. Its events go, since ids between them and the next would look as if
    nothing had been missed: whoever resumes gets a gap.
    """
    at = max(head.at for head in seen)
    to = Head(max(h.event_seq for h in seen) + SKIPPED, max(h.message_seq for h in seen) + SKIPPED, at)
    db.execute("BEGIN IMMEDIATE")
    try:
        own = stand(db).message_seq
        db.execute("delete from event")
        db.execute("delete from sqlite_sequence where name = 'message'")
        db.execute("insert into sqlite_sequence (name, seq) values ('message', ?)", (to.message_seq,))
        noted = (("floor", str(to.event_seq)), ("clock", str(to.at)))
        db.executemany("insert or replace into meta values (?, ?)", noted)
        db.execute(
            "insert into meta values ('skipped', ?) on conflict (key) do update set value = value + excluded.value",
            (str(to.message_seq - own),),
        )
        db.execute("insert or replace into meta values ('epoch', lower(hex(randomblob(8))))")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return to


def _seen_beyond(directory: DataDir, head: int, accept: bool) -> bool:
    """Whether the directory remembers events beyond the database's last; raises if so, unless that is accepted."""
    remembered = directory.read_head().event_seq
    if remembered > head and not accept:
        raise MuxError(
            "data_refused",
            f"{directory.database} ends at event {head}, but this directory has seen event {remembered}: the database "
            "is older than it was (a lost write-ahead log, or a restored copy). Put the right file back, or start once "
            "with --accept-rollback to go on from here",
        )
    return remembered > head


def check_sound(db: sqlite3.Connection, path: Path, marked: bool) -> int:
    """Refuse what is not ours or not whole; returns the schema's version, 0 for a new database.

    `marked` says that `path` is known to have been one of ours.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    owner = db.execute("PRAGMA application_id").fetchone()[0]
    empty = not db.execute("select count(*) from sqlite_master").fetchone()[0]
    if owner not in (0, APPLICATION_ID) or (owner == 0 and not empty):
        raise MuxError("data_refused", f"{path} is a database of another program; name another directory")
    if empty and marked:
        raise MuxError("data_refused", f"{path} holds no tables, though this directory once held data; left untouched")
    if version > len(MIGRATIONS):
        raise MuxError(
            "data_refused",
            f"{path} was made by a newer stonemux (schema {version}, this one knows {len(MIGRATIONS)}); it is left "
            "untouched. Run the newer version, or name another directory with --data-dir",
        )
    if (problem := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise MuxError("data_refused", f"{path} is damaged ({problem}); it is left untouched. Restore a backup")
    return int(version)


def _migrate(db: sqlite3.Connection, directory: DataDir) -> int:
    """Bring the schema up to date, a transaction a step, after a backup; returns the version that was found."""
    found = int(db.execute("PRAGMA user_version").fetchone()[0])
    if 0 < found < len(MIGRATIONS):
        backup = directory.path / f"before-schema-{found + 1}.db"
        if not backup.exists():
            db.execute("VACUUM INTO ?", (str(backup),))
            backup.chmod(0o600)
    for version in range(found, len(MIGRATIONS)):
        db.execute("BEGIN IMMEDIATE")
        try:
            for statement in MIGRATIONS[version]:
                db.execute(statement)
            if version == 0:
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                db.execute("insert into meta values ('epoch', lower(hex(randomblob(8))))")
            db.execute(f"PRAGMA user_version={version + 1}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
    directory.mark()
    return found
