"""Migrating an older database to the current schema, after a copy of it was made: the way back to the older program.

The copy comes first and is made like every other (see `copies`), so it is complete, checked and on disk before anything
changes. Each step is one transaction, so an interrupted start resumes where it stopped; for a new database, all steps
share one transaction, since one flush costs a tenth of ten. No existing copy is reused: each start that migrates makes
its own, since much may have happened since an earlier attempt.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from shlex import quote

from stonemux import copies
from stonemux.datadir import DataDir
from stonemux.errors import MuxError
from stonemux.opening import open_unchanged
from stonemux.tables import APPLICATION_ID, MIGRATIONS

log = logging.getLogger("stonemux")

OURS = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT)
"""SQLite errors of a step itself, as opposed to those of the disk."""


def migrate(db: sqlite3.Connection, directory: DataDir, now: int) -> None:
    """Bring the schema up to date.

    Raises `data_refused` when a step fails, and `storage_full` or `backup_failed` when the copy cannot be made; the
    database then has only the changes of the steps before, if any.
    """
    found = int(db.execute("PRAGMA user_version").fetchone()[0])
    kept = _keep(directory, found, now) if 0 < found < len(MIGRATIONS) else None
    versions = range(found, len(MIGRATIONS))
    for steps in [versions] if found == 0 else [[version] for version in versions]:
        try:
            _take(db, steps)
        except sqlite3.Error as trouble:
            kind = trouble.sqlite_errorcode & 0xFF
            unchanged = steps[0] == found
            if kept is not None and unchanged and kind in (*OURS, sqlite3.SQLITE_FULL):
                kept.unlink()  # one copy per attempt would fill the disk
            if kept is None or kind not in OURS:
                raise
            (version,) = steps
            back = (
                "continue; nothing was changed"
                if unchanged
                else f"run there: stonemux restore {kept.name} --data-dir {quote(str(directory.path))}"
            )
            raise MuxError(
                "data_refused",
                f"{directory.database} cannot be migrated from schema {version} to {version + 1} ({trouble}). Go back "
                f"to the stonemux version that it was used with, and {back}",
            ) from trouble
    directory.mark()
    if found < len(MIGRATIONS):
        _fold(db)
    if kept is not None:
        log.info(
            "the database was migrated from schema %d to %d; a copy from before is kept in %s",
            found,
            len(MIGRATIONS),
            kept,
        )


def _fold(db: sqlite3.Connection) -> None:
    """Checkpoint the new tables into the database file, so that their space is allocated before a disk fills up.

    Otherwise the checkpoint at shutdown needs more space than the ballast gives, and the next start finds none.
    """
    try:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError as trouble:
        if trouble.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
            raise


def _keep(directory: DataDir, version: int, now: int) -> Path:
    """Copy the database before it is migrated; returns the copy's path."""
    target = copies.folder(directory.path) / f"schema-{version}-{copies.stamp(now)}.db"
    if target.exists():
        return _keep(directory, version, now + 1)
    size = sum(file.stat().st_size for file in directory.path.glob(f"{directory.database.name}*"))
    copies.make(lambda: open_unchanged(directory.database), target, size)
    return target


def _take(db: sqlite3.Connection, steps: Iterable[int]) -> None:
    """Run these migration steps in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    try:
        for version in steps:
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
