"""Opening a database: is it ours, intact, of a known schema version, and as recent as this directory has seen it?

A refused database is left untouched, byte for byte: the checks use a connection that cannot change anything.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

from stonemux.chain import COLUMNS, START, Entry, links
from stonemux.datadir import DataDir, Head
from stonemux.errors import MuxError
from stonemux.tables import APPLICATION_ID, MIGRATIONS

Row = sqlite3.Row
Connect = Callable[..., sqlite3.Connection]

LEAST_SQLITE = (3, 37, 0)
"""The first version with strict tables."""
SKIPPED = 1_000_000
"""How many ids are skipped after a database went back in time, so that none is assigned twice."""
RESTORE = "copy the directory aside, then restore a backup: stonemux restore FILE"
"""The remedy for a damaged database."""
BUSY_S = 5.0
"""How long a start waits for another program that has locked the database."""
FULL = 2
"""SQLite's number for `synchronous=FULL`, which flushes at each commit."""
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


def _itself(value: Any) -> Any:
    return value


# For a value without an adapter, sqlite3 looks up two methods that do not exist and discards the errors. For the dozen
# nulls and hashes in a stored message, that took twice as long as binding all of its values.
sqlite3.register_adapter(type(None), _itself)
sqlite3.register_adapter(bytes, _itself)


def open_checked(directory: DataDir, connect: Connect, accept_rollback: bool) -> sqlite3.Connection:
    """Open the writing connection to a database that is sound, or new in a directory that never held one.

    Raises `data_refused` (unless `accept_rollback`, also for one that is older than the directory remembers) and
    `unsafe_environment`, where SQLite is too old, or cannot write durably.
    """
    _check_library()
    path = directory.database
    if directory.marked and (not path.exists() or path.stat().st_size == 0):
        raise MuxError(
            "data_refused",
            f"{path} is missing or empty, although this directory once held data; it was left untouched",
            remedy="put the file back, restore a backup with: stonemux restore FILE, or pass an empty directory as "
            "--data-dir",
        )
    if not path.exists():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        looked = _look(directory, accept_rollback)
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from error
    try:
        db = connect(str(path), isolation_level=None, check_same_thread=False, timeout=BUSY_S, cached_statements=256)
    except sqlite3.OperationalError as error:  # for example, a directory of that name
        raise _unreadable(path, error) from error
    try:
        if not looked:
            check_sound(db, path, directory.marked)
        _make_durable(db, path)
    except sqlite3.DatabaseError as error:
        db.close()
        raise _unreadable(path, error) from error
    except BaseException:
        db.close()
        raise
    db.row_factory = Row
    return db


def _check_library() -> None:
    if sqlite3.sqlite_version_info < LEAST_SQLITE:
        raise MuxError(
            "unsafe_environment",
            f"stonemux needs SQLite 3.37 or newer, and this Python has {sqlite3.sqlite_version}: {sys.executable}",
            remedy="use a Python that was built with a newer SQLite",
        )


def _make_durable(db: sqlite3.Connection, path: Path) -> None:
    """Set up the writing connection: a write-ahead log that each commit flushes; raises `unsafe_environment`."""
    if not path.stat().st_size:  # the first page of a new database overwrites nothing that a journal could restore
        db.execute("PRAGMA journal_mode=MEMORY")
    mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise MuxError("unsafe_environment", f"SQLite cannot use a write-ahead log for {path} (it offers {mode!r})")
    for pragma in PRAGMAS:
        db.execute(f"PRAGMA {pragma}")
    if hasattr(os, "uname") and os.uname().sysname == "Darwin":  # plain fsync does not flush the drive there
        db.execute("PRAGMA fullfsync=1")
        db.execute("PRAGMA checkpoint_fullfsync=1")
    if db.execute("PRAGMA synchronous").fetchone()[0] != FULL:
        raise MuxError("unsafe_environment", f"SQLite cannot be made to flush each commit of {path} to the disk")


def _unreadable(path: Path, error: sqlite3.Error) -> MuxError:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
        return MuxError("storage_busy", f"another program has locked {path}; end it, or try again later", retry_after=1)
    return MuxError(
        "data_refused",
        f"{path} cannot be read as a stonemux database ({error}); it was left untouched",
        remedy=f"{RESTORE}, or pass another directory as --data-dir",
    )


def _look(directory: DataDir, accept_rollback: bool) -> bool:
    """Check the database through a connection that cannot change it; False when only a writer can open it.

    A writer checkpoints the write-ahead log and deletes it on closing; in a database that is refused, that log may hold
    all that can still be saved.
    """
    path = directory.database
    if Path(f"{path}-journal").exists():
        return False
    try:
        with contextlib.closing(open_unchanged(path)) as db:
            if check_sound(db, path, directory.marked):
                seen_beyond(directory, db, accept_rollback)
    except sqlite3.OperationalError:
        return False
    return True


def open_unchanged(path: Path, *, live: bool = False) -> sqlite3.Connection:
    """Open a connection that changes neither the database nor the files next to it; `live`: a daemon writes to it."""
    log = Path(f"{path}-wal")
    if not live and log.exists() and log.stat().st_size and not Path(f"{path}-shm").exists():
        with contextlib.suppress(OSError):
            return _open_apart(path)
    # Without a log, create nothing next to the database, not even an empty log.
    how = "mode=ro" if live or (log.exists() and log.stat().st_size) else "immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None, timeout=BUSY_S)


def _open_apart(path: Path) -> sqlite3.Connection:
    """Open through temporary hard links: SQLite then creates the log's index (-shm) by those names, which are removed.

    Safe because no other program uses a log without an index.
    """
    import tempfile  # needed only for a copied directory, or after a power failure

    with tempfile.TemporaryDirectory(prefix=".look-", dir=path.parent) as apart:
        for end in ("", "-wal"):
            os.link(f"{path}{end}", f"{apart}/{path.name}{end}")
        file = Path(apart, path.name).absolute().as_uri()
        db = sqlite3.connect(f"{file}?mode=ro", uri=True, isolation_level=None, timeout=BUSY_S)
        try:
            db.execute("select count(*) from sqlite_master").fetchone()  # makes SQLite open all the files it needs
        except BaseException:
            db.close()
            raise
        return db


def stand(db: sqlite3.Connection) -> Head:
    """How far a database has come: its last event and message id, the newest time it knows, and its audit log's end."""
    meta = dict(db.execute("select key, value from meta where key in ('floor', 'message_floor', 'clock')").fetchall())
    event = db.execute("select id, at from event order by id desc limit 1").fetchone() or (0, 0)
    # `meta` remembers what was purged; in a copy from an older version, the sequence does
    message = db.execute(
        "select max((select coalesce(max(id), 0) from message), "
        "coalesce((select seq from sqlite_sequence where name = 'message'), 0))"
    ).fetchone()
    seq, digest = audited(db)
    at = max(event[1], int(meta.get("clock", 0)))
    return Head(
        max(event[0], int(meta.get("floor", 0))), max(message[0], int(meta.get("message_floor", 0))), at, seq, digest
    )


def audited(db: sqlite3.Connection) -> tuple[int, str]:
    """The last audit record's number and hash; a copy from an older version may have no audit log."""
    if _has_audit(db):
        row = db.execute("select seq, hash from audit order by seq desc limit 1").fetchone()
        if row is not None:
            return (row[0], row[1].hex())
    return (0, START)


def read_audited(path: Path, *, live: bool) -> tuple[int, str]:
    """The same for a database file; raises `data_refused` for one that cannot be read."""
    try:
        with contextlib.closing(open_unchanged(path, live=live)) as db:
            return audited(db)
    except sqlite3.Error as error:
        raise _unreadable(path, error) from error


def _has_audit(db: sqlite3.Connection) -> bool:
    return db.execute("select 1 from sqlite_master where type = 'table' and name = 'audit'").fetchone() is not None


def leap(db: sqlite3.Connection, *seen: Head) -> Head:
    """Let a database that went back in time continue with ids that were never assigned; returns its new head.

    `seen` are all the heads ever seen of it. Its events are deleted: with them, a reader that resumes would find ids
    that look as if it had missed nothing; without them, it gets a gap. Its audit log continues from its end with a
    record of this jump that names the last record that was lost.
    """
    at = max(head.at for head in seen)
    to = Head(max(h.event_seq for h in seen) + SKIPPED, max(h.message_seq for h in seen) + SKIPPED, at)
    db.execute("BEGIN IMMEDIATE")
    try:
        own = stand(db).message_seq
        _record_leap(db, max(seen, key=lambda head: head.audit_seq), at)
        db.execute("delete from event")
        noted = (("floor", str(to.event_seq)), ("message_floor", str(to.message_seq)), ("clock", str(to.at)))
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
    seq, digest = audited(db)
    return to._replace(audit_seq=seq, audit_head=digest)


def _record_leap(db: sqlite3.Connection, furthest: Head, at: int) -> None:
    if not _has_audit(db):
        return
    seq, prev = audited(db)
    lost = f"{furthest.audit_seq} {furthest.audit_head}" if furthest.audit_seq > seq else ""
    (row,) = links([Entry("storage.went_back", target=lost)], seq, prev, at)
    db.execute(f"insert into audit ({COLUMNS}) values ({', '.join('?' * len(row))})", row)


def seen_beyond(directory: DataDir, db: sqlite3.Connection, accept: bool) -> bool:
    """Whether the directory remembers more than the database holds; raises `data_refused` then, unless `accept`."""
    remembered, stands = directory.read_head(), stand(db)
    problem = gone_back(db, remembered, stands)
    if problem and not accept:
        raise MuxError(
            "data_refused",
            f"{directory.database} {problem}. Put the right file back, or start once with --accept-rollback to "
            "continue from here",
        )
    return bool(problem)


def gone_back(db: sqlite3.Connection, remembered: Head, stands: Head) -> str:
    """What the database lacks compared with the directory's record, as the rest of a sentence; "" if nothing."""
    if remembered.event_seq > stands.event_seq:
        return (
            f"ends at event {stands.event_seq}, but this directory has seen event {remembered.event_seq}: the "
            "database is older than before (a lost write-ahead log, or a restored copy)"
        )
    if stands.event_seq >= remembered.event_seq + SKIPPED:  # a restore was cut short before it noted the head
        return ""
    if remembered.audit_seq > stands.audit_seq:
        return (
            f"has an audit log that ends at record {stands.audit_seq}, but this directory has seen record "
            f"{remembered.audit_seq}: the database is older than before, or records were removed"
        )
    if remembered.audit_head and _has_audit(db):
        row = db.execute("select hash from audit where seq = ?", (remembered.audit_seq,)).fetchone()
        # A purged record cannot be compared.
        if row is not None and row[0].hex() != remembered.audit_head:
            return (
                f"has an audit log whose record {remembered.audit_seq} is not the one that this directory has seen: "
                "it was rewritten, or it belongs to another database"
            )
    return ""


def _way_back(path: Path) -> str:
    """The command that restores the newest copy a newer program made before it migrated a database of our version."""
    kept = sorted(path.parent.glob(f"backups/schema-{len(MIGRATIONS)}-*.db"))
    if not kept:
        return ""
    return (
        f"go back to the copy from before the upgrade with: stonemux restore {kept[-1].name} --data-dir "
        f"{quote(str(path.parent))}, "
    )


def check_sound(db: sqlite3.Connection, path: Path, marked: bool) -> int:
    """Refuse a database that is not ours or is damaged; returns the schema's version, 0 for a new database.

    `marked`: a stonemux database is known to have been at `path`.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    owner = db.execute("PRAGMA application_id").fetchone()[0]
    empty = not db.execute("select count(*) from sqlite_master").fetchone()[0]
    if owner not in (0, APPLICATION_ID) or (owner == 0 and not empty):
        raise MuxError(
            "data_refused", f"{path} is another program's database", remedy="pass another directory as --data-dir"
        )
    if empty and marked:
        problem = f"{path} has no tables, although this directory once held data; it was left untouched"
        raise MuxError("data_refused", problem, remedy=RESTORE)
    if version > len(MIGRATIONS):
        raise MuxError(
            "data_refused",
            f"{path} was made by a newer stonemux (schema {version}; this one knows {len(MIGRATIONS)}); it was left "
            "untouched",
            remedy=f"run the newer version, {_way_back(path)}or pass another directory as --data-dir",
        )
    if (problem := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise MuxError("data_refused", f"{path} is damaged ({problem}); it was left untouched", remedy=RESTORE)
    return int(version)
