"""SQLite: one writing connection with group commit, and a pool of read-only connections.

**Who writes.** `Store.write(work)` queues a function of a transaction and returns its result after the commit. A thread
that finds no commit in progress becomes the leader: it takes everything that is queued, runs it in one `BEGIN
IMMEDIATE`, commits once, wakes the waiters, and hands each job its outcome. Threads that arrive meanwhile only queue
their jobs. So a lone writer pays no thread switch, and sixty-four writers share one fsync. A leader commits one batch;
if more is queued by then, the server's gatherer continues, or the committer thread without a server, so that no caller
is kept from its own work. A gatherer reads requests and leads, in turn: another thread that led while it reads would
compete with it for the interpreter lock at each system call.

**A refused job harms no other.** Functions check before they write, so a refused job has usually changed nothing and
the batch continues. When a job fails *after* it wrote (SQLite's change counter tells), the batch is rolled back and
each job runs again in a transaction of its own: the same isolation as a savepoint around each, without the cost.
Functions must therefore have no effect outside the transaction; what they announce (`emit`, `touch`, `offer`, `after`)
is held back until the commit.

**What an acknowledgment promises.** WAL with `synchronous=FULL`: the commit has been fsynced. After each commit, the
store checks that the open file is still the one in the directory. A disk error that leaves the outcome unknown stops
all writing for good (`storage_error`, and the daemon exits with status 70), because SQLite's own state may then differ
from what a restart finds.

**A full disk** refuses new data, while reading continues. The store then releases the ballast (see `ballast`), and jobs
that settle or end something use that space; jobs that add data (`Job.grows`) are refused until there is room again.

Threads: `_gate` guards the queue and the leadership. The writing connection, `_tx` and `cache` belong to the leader.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stonemux.ballast import ROOM_BYTES, SCARCE_BYTES, Ballast
from stonemux.clock import Clock
from stonemux.datadir import DataDir, Head, check_usable
from stonemux.errors import MuxError
from stonemux.hub import Topic
from stonemux.migration import migrate
from stonemux.opening import Connect, Row, audited, leap, open_checked, seen_beyond, stand
from stonemux.transaction import Done, Event, Job, Snapshot, Tx, Work

if TYPE_CHECKING:
    from stonemux.mux import Mux

log = logging.getLogger("stonemux")

MOST_IN_A_BATCH = 256
POOLED_READERS = 8
FAILED = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""What SQLite reports when the disk fails or pages are damaged."""
BUSY_TURN_MS = 100
BUSY_TURNS = 50
"""How often in a row a commit waits BUSY_TURN_MS for another program that has locked the database."""
LAST_BUSY_TURNS = 2
"""The same for a daemon that is stopping."""


class Led(Exception):
    """Another thread leads a commit, for which a gatherer must not wait; nothing was queued."""


def _tell(done: Done, value: Any, error: BaseException | None) -> None:
    """Deliver an outcome. A callback that fails must not cost the others their outcomes or the store its leader."""
    try:
        done(value, error)
    except Exception:
        log.exception("an outcome could not be reported")


def _tell_all(batch: list[Job], error: BaseException) -> None:
    for job in batch:
        _tell(job.done, None, error)


def _never() -> bool:
    return False


class _Result:
    """The callback of a blocking caller's job; `get` waits for the outcome."""

    __slots__ = ("_done", "error", "value")

    def __init__(self) -> None:
        self._done = threading.Lock()
        self._done.acquire()

    def __call__(self, value: Any, error: BaseException | None) -> None:
        self.value, self.error = value, error
        self._done.release()

    def is_awaited(self) -> bool:
        return self._done.locked()

    def get(self) -> Any:
        self._done.acquire()
        if self.error is not None:
            raise self.error
        return self.value


def _full() -> MuxError:
    return MuxError(
        "storage_full",
        f"the disk is full: nothing was written, and reads still work; free at least {ROOM_BYTES // 1024 // 1024} MiB "
        "and send again",
        retry_after=5,
    )


def _is_full(error: BaseException) -> bool:
    return isinstance(error, MuxError) and error.code == "storage_full"


def _refuse_growth(batch: list[Job]) -> list[Job]:
    """Refuse the jobs that would add data, because the disk is full; returns the others."""
    _tell_all([job for job in batch if job.grows], _full())
    return [job for job in batch if not job.grows]


def _stopping() -> MuxError:
    return MuxError("shutting_down", "the daemon is stopping; try again in a moment", retry_after=1)


class Store:
    """An open database. `publish(events, topics, offers)` is called after each commit that announces something."""

    def __init__(
        self, directory: DataDir, clock: Clock, *, accept_rollback: bool = False, connect: Connect = sqlite3.connect
    ) -> None:
        """Open, check and migrate the database in `directory`.

        Raises `data_refused` for a database that is damaged, empty although one was created here, written by a newer
        stonemux, or older than the directory remembers (unless `accept_rollback`).
        """
        self.directory = directory
        self._path = str(directory.database)
        self._connect = connect
        self._clock = clock
        self.mux: Mux = None  # type: ignore[assignment]  # set once, by the Mux built around this store
        self.publish: Callable[[list[Event], list[Topic], list[Topic]], None] = lambda events, topics, offers: None
        self.on_fatal: Callable[[MuxError], None] = lambda error: None
        self.fatal: MuxError | None = None
        self.damage = ""
        """What the last full check found wrong; "" for nothing."""
        self._checking: sqlite3.Connection | None = None
        self.gatherers: set[int] = set()
        """Threads whose jobs stay queued until they call `lead`, so that they can gather several."""
        self._rouse: Callable[[], None] | None = None
        self.steps = 0
        """Grows before and after the flush of each commit: while it stands still, the disk may be holding one up."""
        self._gate = threading.Lock()
        self._queue: deque[Job] = deque()
        self._leading = False
        self._busy_turns = BUSY_TURNS
        self._closed = False
        self._ended = False
        self._readers: list[sqlite3.Connection] = []
        self._files: tuple[int, int] | None = None
        self.copying = threading.Lock()
        """Held while a copy of the database is made, so that only one is made at a time."""
        check_usable(directory.path)
        self._ballast = Ballast(directory.path)
        self._tight = self._ballast.free() < SCARCE_BYTES and self._give_ballast()
        self._db = open_checked(directory, connect, accept_rollback)
        try:
            self._take_up(accept_rollback)
            self._files = self._inodes()
            if not self._tight:
                self._ballast.keep()
            self._relay = threading.Semaphore(0)
            self._committer = threading.Thread(target=self._go_on, name="committer", daemon=True)
            self._committer.start()
        except sqlite3.Error as error:
            self._db.close()
            raise self._judge(error, writing=True) from error
        except BaseException:
            self._db.close()
            raise

    def _take_up(self, accept_rollback: bool) -> None:
        """Migrate the database, and continue from its current state."""
        directory, db = self.directory, self._db
        migrate(db, directory, self._clock.now_ms())
        standing = stand(db)
        if seen_beyond(directory, db, accept_rollback):
            standing = leap(db, standing, directory.read_head())
        self.head: int = standing.event_seq
        self.newest: int = standing.at
        self.epoch: str = self._meta("epoch")
        self.skipped = int(self._meta("skipped") or 0)
        """How many message ids were skipped, see `leap`."""
        checked = self._meta("checked").split()
        self.checked: tuple[int, int] = (int(checked[0]), int(checked[1])) if checked else (0, -1)
        """When every page was last checked, and the last event id at that time."""
        self._tx = Tx(db, self.mux, standing.message_seq, audited(db))
        self._clock.anchor(self.newest)
        self._note_clock(self._tx)
        db.execute(f"PRAGMA busy_timeout={BUSY_TURN_MS}")

    def _meta(self, key: str) -> str:
        row = self._db.execute("select value from meta where key = ?", (key,)).fetchone()
        return row[0] if row else ""

    def _note_clock(self, tx: Tx) -> None:
        tx.run("insert or replace into meta values ('clock', ?)", str(self._clock.now_ms()))

    # -- writing

    def write(self, work: Work, *, grows: bool = False) -> Any:
        """Run `work(tx)` in a write transaction and return its result after the commit; raises what `work` raises.

        Raises `Led` in a gatherer that would have to wait for another thread.
        """
        result = _Result()
        gathers = threading.get_ident() in self.gatherers
        with self._gate:
            if self._closed:
                raise _stopping()
            if gathers and self._leading:
                raise Led
            self._queue.append(Job(work, result, grows))
            mine = not self._leading
            self._leading = True
        if mine:
            # A gatherer's job may be queued behind a full batch: that gatherer would be the one to lead it.
            self._lead_on(result.is_awaited if gathers else _never)
        return result.get()

    def submit(self, job: Job) -> None:
        """Queue a job; the committing thread calls its `done`, possibly this thread before `submit` returns."""
        if not self._enqueue(job):
            job.done(None, _stopping())
        elif threading.get_ident() not in self.gatherers:
            self.lead()

    def _enqueue(self, job: Job, *, last: bool = False) -> bool:
        with self._gate:
            if self._closed:
                return False
            self._closed = last
            self._queue.append(job)
            return True

    @property
    def gathered(self) -> bool:
        """Whether any job is queued."""
        return bool(self._queue)

    @property
    def led(self) -> bool:
        """Whether a commit is in progress; a thread that writes now has to wait for it."""
        return self._leading

    def lead(self) -> None:
        """Commit one batch of what is queued, unless a thread is doing so already; `leave_rest_to` says who goes on."""
        with self._gate:
            if self._leading or not self._queue:
                return
            self._leading = True
        self._lead_on(_never)

    def leave_rest_to(self, rouse: Callable[[], None] | None) -> None:
        """From now on, the gatherer that `rouse` wakes leads what is queued behind a batch; None: the committer."""
        with self._gate:
            self._rouse = rouse

    def _lead_on(self, stays: Callable[[], bool]) -> None:
        """Lead one batch, and more as long as `stays()`; then hand over."""
        leading = True
        while leading:
            try:
                self._commit_queued()
            except BaseException:  # an interrupted leader must still hand over
                self._relay.release()
                raise
            leading = self._go_on_leading(stays)

    def _go_on_leading(self, stays: Callable[[], bool]) -> bool:
        """Whether this thread leads the next batch, too; if not, and there is one, wakes the thread that does."""
        with self._gate:
            more, rouse = bool(self._queue), self._rouse
            mine = more and stays()
            self._leading = mine or (more and rouse is None)  # the committer finds itself leading
        if more and not mine:
            try:
                (rouse or self._relay.release)()
            except BaseException:  # such as too little memory: nobody was woken
                with self._gate:
                    nobody, self._leading = not self._leading, True
                if nobody:
                    self._relay.release()
                raise
        return mine

    def _go_on(self) -> None:
        """The committer thread: without a gatherer, it leads what is queued behind one caller's batch."""
        while True:
            self._relay.acquire()
            if self._ended:
                return
            try:
                self._lead_on(lambda: self._rouse is None)
            except Exception:  # whatever it is, the next batch needs a leader
                log.exception("a commit failed")

    def _commit_queued(self) -> None:
        """Commit a batch of what is queued, or its jobs one by one if one of them spoils it for the others."""
        with self._gate:
            count = min(len(self._queue), MOST_IN_A_BATCH)
            batch = [self._queue.popleft() for _ in range(count)]
        if batch and not self._attempt(batch):
            for job in batch:
                self._attempt([job])

    def _attempt(self, batch: list[Job], *, may_retry: bool = True) -> bool:
        """Run the batch in one transaction, and tell its jobs their outcomes; False if they must be run one by one."""
        if self.fatal is not None:
            _tell_all(batch, self.fatal)
            return True
        if self._tight and self._is_tight(may_retry):
            batch = _refuse_growth(batch)
            if not batch:
                return True
        tx = self._tx
        outcomes: list[tuple[Done, Any, BaseException | None]] = []
        try:
            self._begin()
            for job in batch:
                mark = tx.mark()
                try:
                    outcomes.append((job.done, job.work(tx), None))
                except Exception as error:
                    if isinstance(error, sqlite3.Error) or not tx.rewind(mark):
                        raise
                    outcomes.append((job.done, None, error))
            self.steps += 1
            events, topics, offers, hooks = tx.commit()
            self.steps += 1
        except Exception as error:
            return self._failed(batch, error, may_retry)
        if self._inodes() != self._files:
            _tell_all(batch, self._lost())
            return True
        self.head += len(events)
        for hook in hooks:
            try:
                hook()
            except Exception:
                log.exception("a commit could not be followed up")
        if events or topics or offers:
            try:
                self.publish(events, topics, offers)
            except Exception:
                log.exception("a commit could not be announced")
        for done, value, failure in outcomes:
            _tell(done, value, failure)
        return True

    def _failed(self, batch: list[Job], error: Exception, may_retry: bool) -> bool:
        """Roll back a batch that was not committed, and tell its jobs; False if they must be run one by one."""
        verdict = self._judge(error, writing=True)
        try:
            self._tx.abandon()
        except sqlite3.Error as trouble:
            verdict = self._stop(trouble)
        if verdict is error and len(batch) > 1:  # one of the jobs is to blame, not the disk
            return False
        if may_retry and _is_full(verdict) and self._give_ballast():
            self._tight = True
            for job in batch:
                self._attempt([job], may_retry=False)
        else:
            _tell_all(batch, verdict)
        return True

    def _begin(self) -> None:
        """Open the transaction, waiting for another program's lock in turns, since a stop may cut the wait short."""
        turn = 1
        while True:
            try:
                self._tx.begin(self._clock.now_ms(), self.head)
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or turn >= self._busy_turns:
                    raise
                turn += 1

    def hasten(self) -> None:
        """From now on, wait only briefly for another program's lock; any thread may call this before `close`."""
        self._busy_turns = LAST_BUSY_TURNS

    def _give_ballast(self) -> bool:
        """Release the ballast's disk space; False if there was none."""
        if not self._ballast.drop():
            return False
        log.warning("the disk is full: until there is room, only calls that settle or end something may write")
        return True

    def _is_tight(self, may_end: bool) -> bool:
        """Whether the disk is still full; checks the disk again only if `may_end`."""
        if may_end and self._ballast.has_room():
            self._ballast.keep()
            self._tight = False
            log.warning("the disk has room again")
        return self._tight

    def keep_ballast(self) -> None:
        """Set the ballast aside again, if it was released and there is room."""
        self._ballast.keep()

    def _inodes(self) -> tuple[int, int]:
        try:
            return (os.stat(self._path).st_ino, os.stat(self._path + "-wal").st_ino)
        except OSError:
            return (0, 0)

    def _lost(self) -> MuxError:
        """The database in the directory is no longer the open one: stop all writing."""
        self.fatal = MuxError(
            "storage_lost",
            f"{self._path} was moved, deleted, or replaced under the running daemon, which no longer acknowledges "
            "anything. Put the file back and restart",
            retry_after=5,
        )
        self.on_fatal(self.fatal)
        return self.fatal

    def _judge(self, error: BaseException, *, writing: bool = False) -> BaseException:
        """Translate an error for the caller; one that leaves the state of the disk unknown stops all writing."""
        if not isinstance(error, sqlite3.Error):
            return error
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if kind == sqlite3.SQLITE_FULL:
            return _full()
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return MuxError("storage_busy", "another program has locked the database; try again", retry_after=1)
        if kind == sqlite3.SQLITE_CANTOPEN:
            if self._files is not None and self._inodes() != self._files:
                return self._lost()
            return MuxError(
                "storage_busy",
                "the database cannot be opened again (too many open files?); try again",
                retry_after=1,
            )
        if kind in FAILED:
            return self._stop(error)
        # SQLite silently opens a file read-only if it cannot write it, and reports that at the first change. On a
        # connection made for reading, the error is only a caller's mistake.
        if writing and kind == sqlite3.SQLITE_READONLY:
            return self._stop(error)
        return error

    def _stop(self, error: sqlite3.Error) -> MuxError:
        self.fatal = MuxError(
            "storage_error",
            f"the disk failed ({getattr(error, 'sqlite_errorname', error)}); whether this was written is unknown. The "
            "daemon is stopping; restart it and repeat the call with the same idempotency key",
            retry_after=5,
        )
        self.on_fatal(self.fatal)
        return self.fatal

    # -- reading

    @contextlib.contextmanager
    def read(self) -> Iterator[Snapshot]:
        """Open a snapshot on a read-only connection."""
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
            if db.in_transaction:  # SQLite itself ends it when it finds no memory
                db.execute("ROLLBACK")
            self._give_back(db)
            raise
        self._give_back(db)

    def _reader(self) -> sqlite3.Connection:
        try:
            return self._readers.pop()
        except IndexError:
            db = self._connected("rw", cached_statements=256)  # not "rwc", which would create a missing file
            db.row_factory = Row
            db.execute("PRAGMA query_only=1")
            db.execute("PRAGMA wal_autocheckpoint=0")
            return db

    def _give_back(self, db: sqlite3.Connection) -> None:
        if len(self._readers) < POOLED_READERS:
            self._readers.append(db)
        else:
            db.close()
        if self._ended:  # checked last, so that none is left in a pool that was emptied meanwhile
            self._drop_readers()

    def _drop_readers(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._readers.pop().close()

    def size(self) -> dict[str, int]:
        """Sizes in bytes of the database and of its write-ahead log."""

        def measured(path: str) -> int:
            try:
                return os.stat(path).st_size
            except OSError:
                return 0

        return {"database_bytes": measured(self._path), "wal_bytes": measured(self._path + "-wal")}

    @property
    def audited(self) -> tuple[int, str]:
        """The last record of the audit log: its number and its hash."""
        return self._tx.audited

    def note_head(self) -> None:
        """Record in the data directory how far the event log has come."""
        if self.fatal is None:
            seq, digest = self.audited
            self.directory.write_head(Head(self.head, self._tx.last_message, self._clock.now_ms(), seq, digest))

    def fold(self) -> bool:
        """Checkpoint the write-ahead log and truncate it; False if some connection is writing or reading.

        Uses the writing connection, because SQLite before 3.51.3 can lose pages when another connection does it.
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
            try:
                self._db.execute(f"PRAGMA busy_timeout={BUSY_TURN_MS}")
            finally:  # whatever fails, others want to lead
                self._go_on_leading(_never)

    def check(self) -> None:
        """Check every page and index, and note in `damage` what is wrong; slow, and `close` cuts it short."""
        head = self.head
        with contextlib.closing(self.apart()) as db:
            self._checking = db
            try:
                rows = db.execute("PRAGMA integrity_check(3)").fetchall()
            except sqlite3.DatabaseError as error:
                kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if kind == sqlite3.SQLITE_INTERRUPT:
                    return
                if kind not in FAILED:  # such as too many open files, which says nothing about the database
                    raise
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
        """Interrupt a running `check`."""
        if (db := self._checking) is not None:
            with contextlib.suppress(sqlite3.Error):  # it may have ended in the meantime
                db.interrupt()

    def apart(self) -> sqlite3.Connection:
        """Open a separate read-only connection, for work that is slow or cannot run in a snapshot."""
        return self._connected("ro")

    def _connected(self, mode: str, **options: Any) -> sqlite3.Connection:
        uri = f"{Path(self._path).absolute().as_uri()}?mode={mode}"
        return self._connect(uri, uri=True, isolation_level=None, check_same_thread=False, **options)

    def tie(self, mux: Mux) -> None:
        """Connect the store to its program; transactions pass that on to the handlers."""
        self.mux = mux
        self._tx.mux = mux

    def close(self) -> None:
        """Commit what is queued, checkpoint the write-ahead log, and close everything."""
        self.leave_rest_to(None)
        result = _Result()  # queued last, so everything before it is done when it is
        if not self._enqueue(Job(self._note_clock, result), last=True):
            return
        self.hasten()
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
