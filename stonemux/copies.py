"""Copies of the database: made in one step while it is in use, inspected, and restored.

A copy is made with `VACUUM INTO` on a separate connection: one snapshot, compact, without a write-ahead log, while
other connections continue to read and write. (SQLite's page-wise backup starts over at every write, thousands of times
on a busy database.) The copy gets its final name only when it is complete, checked and on disk; an interruption leaves
a file whose name cannot be mistaken for a copy.

A restored database begins a new epoch: its ids continue a million beyond the highest ever seen in the copy, in the
database it replaces, and in the directory's `head.json`. So no id is assigned twice, and a reader that resumes from an
old one gets a gap.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from stonemux.clock import rfc3339
from stonemux.datadir import DataDir, Head
from stonemux.errors import MuxError
from stonemux.opening import check_sound, leap, open_unchanged, stand
from stonemux.record import Record
from stonemux.schema import shown
from stonemux.tables import MIGRATIONS

FOLDER = "backups"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
SPARE_BYTES = 2 * 1024 * 1024
"""Disk space that must remain when a copy is made, so that a running daemon can continue to write."""


# -- making a copy


def folder(directory: Path) -> Path:
    """The folder for a data directory's copies, created if missing; removes what an interrupted copy has left."""
    kept = directory / FOLDER
    kept.mkdir(mode=0o700, exist_ok=True)
    for left in kept.glob(".*.new*"):  # with its journal
        left.unlink(missing_ok=True)
    return kept


def default_name(now: int) -> str:
    """The name of a copy for which the caller gave none."""
    return f"stonemux-{stamp(now)}.db"


def stamp(now: int) -> str:
    """A time in the form used in file names."""
    return rfc3339(now).replace(":", "")


def make(connect: Callable[[], sqlite3.Connection], target: Path, size: int) -> tuple[int, int]:
    """Copy the database that `connect` opens, of about `size` bytes, to a new file, mode 0600.

    Returns the copy's size in bytes and its last event's id. Raises `backup_exists`, `storage_full` or `backup_failed`.
    """
    temporary = target.with_name(f".{target.name}.new")
    if os.path.lexists(target):
        raise MuxError("backup_exists", f"{target} already exists; name another file, or move that one away")
    try:
        _check_space(target.parent, size)
        _vacuum(connect, temporary)
        head = _checked(temporary)
        settle(temporary, target)
        return target.stat().st_size, head
    except (OSError, sqlite3.Error) as trouble:
        raise _failed(target, trouble) from trouble
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _vacuum(connect: Callable[[], sqlite3.Connection], into: Path) -> None:
    """Write the contents of the database that `connect` opens into a file, mode 0600, replacing an old one."""
    _make_empty(into)
    with contextlib.closing(connect()) as db:
        db.execute("VACUUM INTO ?", (str(into),))


def _make_empty(file: Path) -> None:
    """A new file, mode 0600 from the beginning, in place of an old one: others may look into the folder, or write."""
    file.unlink(missing_ok=True)
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _check_space(place: Path, size: int) -> None:
    free = shutil.disk_usage(place).free
    if free < size + SPARE_BYTES:
        raise MuxError(
            "storage_full",
            f"the copy needs up to {_mib(size + SPARE_BYTES)}, but only {_mib(free)} are free in {place}; free some "
            "space, or choose a place on another disk",
            retry_after=60,
        )


def _mib(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MiB"


def _checked(copy: Path) -> int:
    """The last event's id in a sound copy; raises sqlite3.DatabaseError for a damaged one."""
    with contextlib.closing(open_unchanged(copy)) as db:
        if (problem := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(f"the copy is damaged: {problem}")
        return stand(db).event_seq


def _failed(target: Path, trouble: OSError | sqlite3.Error) -> MuxError:
    told = trouble.strerror if isinstance(trouble, OSError) else str(trouble)
    return MuxError("backup_failed", f"{target} could not be made: {told}; the database itself is not affected")


def settle(temporary: Path, target: Path) -> None:
    """Rename a finished file into place, so that a power failure leaves either all of it or nothing."""
    _sync(temporary)
    os.replace(temporary, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def move(made: Path, target: Path) -> None:
    """Move a copy to another place, which may be on another disk; raises `backup_exists` or `backup_failed`."""
    if os.path.lexists(target):
        raise MuxError("backup_exists", f"{target} already exists; the copy stays at {made}")
    temporary = target.with_name(f".{target.name}.new")
    try:
        _make_empty(temporary)
        shutil.copyfile(made, temporary)
        settle(temporary, target)
        made.unlink()
    except OSError as trouble:
        temporary.unlink(missing_ok=True)
        raise MuxError(
            "backup_failed", f"{target} cannot be written: {trouble.strerror}; the copy stays at {made}"
        ) from trouble


# -- inspecting a copy


class Contents(Record):
    """What a database contains."""

    agents: int
    messages: int
    tasks: int
    keys: int
    stands: Head

    def told(self) -> dict[str, Any]:
        """The contents as JSON-ready values, for display and for programs."""
        counts = {name: getattr(self, name) for name in ("agents", "messages", "tasks", "keys")}
        return counts | {"newest": rfc3339(self.stands.at), "events_head": self.stands.event_seq}


def contents(db: sqlite3.Connection) -> Contents:
    """Count what a database contains."""

    def count(what: str) -> int:
        return int(db.execute(f"select count(*) from {what}").fetchone()[0])

    return Contents(
        agents=count("agent where deregistered_at is null"),
        messages=count("message"),
        tasks=count("task"),
        keys=count("state where not deleted"),
        stands=stand(db),
    )


def inspect(file: Path) -> Contents:
    """What a copy contains, after a full check.

    Raises `not_found`, or `data_refused` for a file that is not a sound stonemux database or is of a newer version.
    """
    if not file.is_file():
        raise MuxError("not_found", f"{file}: no such file")
    try:
        with contextlib.closing(open_unchanged(file)) as db:
            _distrust(db)
            if not check_sound(db, file, marked=True):
                raise MuxError("data_refused", f"{file} is not a stonemux database; nothing was changed")
            if (problem := db.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
                raise MuxError("data_refused", f"{file} is damaged ({problem}); nothing was changed")
            _check_schema(db, file)
            found = contents(db)
            found.told()  # times that cannot be shown are refused, too
            return found
    except (sqlite3.Error, ValueError, OverflowError) as trouble:
        raise MuxError("data_refused", f"{file} cannot be read ({trouble}); nothing was changed") from trouble


def _distrust(db: sqlite3.Connection) -> None:
    """Have SQLite expect the worst of a file that may come from anybody."""
    db.execute("PRAGMA trusted_schema=OFF")
    db.execute("PRAGMA cell_size_check=ON")


_DERIVED = re.compile("message_words.*|sqlite_stat[0-9]")
"""Tables that are not ours alone: the full-text index, which a restore removes (`search` makes it anew), and SQLite's
own statistics."""


def _check_schema(db: sqlite3.Connection, file: Path) -> None:
    """Refuse a database whose schema is not exactly what the migrations make.

    A trigger or a view could act in our name, such as deal tokens, and so could a table that only looks like ours: if
    it lets a signing key have no epoch, that key outlives the restore.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        for statement in chain.from_iterable(MIGRATIONS[:version]):
            model.execute(statement)
        ours = _schema(model)
    if strange := sorted(_schema(db) ^ ours):
        kind, name, _ = strange[0]
        raise MuxError(
            "data_refused",
            f"{file} has a schema that stonemux did not make ({kind} {shown(name)}); nothing was changed",
        )


def _schema(db: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Kind, name and SQL of everything in a database's schema but the tables in `_DERIVED`."""
    rows = db.execute("select type, name, sql from sqlite_master where sql is not null")
    return {
        (kind, name, " ".join(sql.split()))
        for kind, name, sql in rows
        if kind != "table" or not _DERIVED.fullmatch(name)
    }


def present(directory: DataDir) -> Contents | None:
    """What the directory's own database contains; None if there is none or it cannot be read."""
    if not directory.database.exists():
        return None
    try:
        with contextlib.closing(open_unchanged(directory.database)) as db:
            return contents(db)
    except (sqlite3.Error, ValueError):
        return None


# -- restoring a copy


def restore(directory: DataDir, file: Path, found: Contents, now: int) -> tuple[Path | None, Head]:
    """Replace the directory's database, which must not be in use, by a copy that `inspect` has found to contain this.

    Returns where the replaced database is kept (None if there was none), and the head from which ids continue. Raises
    `data_refused`, `storage_full` or `backup_failed`; the database is then unchanged.
    """
    old = present(directory)
    work = directory.path / ".restore.new"
    try:
        _check_space(directory.path, file.stat().st_size)
        _vacuum(lambda: open_unchanged(file), work)
        with contextlib.closing(sqlite3.connect(work, isolation_level=None)) as db:
            _distrust(db)
            _check_schema(db, file)  # again: the file may be somebody else's, and another one by now
            if contents(db) != found:
                raise MuxError("data_refused", f"{file} has changed since it was inspected; nothing was changed")
            db.execute("drop table if exists message_words")
            db.execute("update searched set through = 0")
            seen = [stand(db), directory.read_head(), Head(at=now)]
            head = leap(db, *seen, *([old.stands] if old is not None else []))
        kept = _keep_old(directory, now)
        settle(work, directory.database)
        directory.mark()
        directory.write_head(head)
        return kept, head
    except (OSError, sqlite3.Error) as trouble:
        raise _failed(directory.database, trouble) from trouble
    finally:
        with contextlib.suppress(OSError):
            work.unlink(missing_ok=True)


def _keep_old(directory: DataDir, now: int) -> Path | None:
    """Keep the present database under another name, too; returns that path, or None if there is no database.

    Logs that cannot be folded into it are moved along, even those of a database that is gone: SQLite finds a log by the
    name of the database, and would apply it to the restored one.
    """
    database = directory.database
    kept = directory.path / f"before-restore-{stamp(now)}.db"
    present = database.exists()
    if present:
        with contextlib.suppress(sqlite3.Error):
            _fold(directory)
        try:
            os.link(database, kept)
        except OSError:  # a file system without hard links
            _make_empty(kept)
            shutil.copyfile(database, kept)
            _sync(kept)
    for log in ("-wal", "-journal"):
        if os.path.lexists(f"{database}{log}"):
            os.replace(f"{database}{log}", f"{kept}{log}")
    Path(f"{database}-shm").unlink(missing_ok=True)
    return kept if present else None


def _fold(directory: DataDir) -> None:
    """Checkpoint the write-ahead log into the database, if both are sound."""
    with contextlib.closing(open_unchanged(directory.database)) as db:
        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            return
    with contextlib.closing(sqlite3.connect(directory.database, isolation_level=None)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
