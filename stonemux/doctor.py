"""`stonemux doctor`: what was looked at, what was found, and what to do about it.

Each check is a function of a `Patient` that yields findings; one that fails is a finding, too, and the others go on.
Nothing is changed: the database is read without touching the files beside it, also while a daemon writes to it.

A *problem* keeps stonemux from working or puts data at risk; a *note* is worth knowing and does not change the status.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stonemux import VERSION, copies, datadir, operations, pool
from stonemux.ballast import ROOM_BYTES, Ballast
from stonemux.clock import Clock, rfc3339
from stonemux.config import Settings
from stonemux.errors import MuxError
from stonemux.opening import check_sound, gone_back, open_unchanged, stand

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"

LARGE_LOG = 64 * 1024 * 1024
"""Bytes beyond which the write-ahead log grows because somebody reads without end."""
OLD_BACKUP_MS = 7 * 86_400_000
FUTURE_MS = 60_000
"""So far may stored times lie ahead of the machine's clock."""

WAL_RESET_FIXED = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
"""SQLite from 3.7.0 on can lose pages when one connection starts the log anew while another checkpoints; fixed in the
first of these and, within their minor versions, in the others."""


class Finding(NamedTuple):
    """What one check found."""

    check: str
    state: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Patient:
    """What is looked at."""

    settings: Settings
    trouble: MuxError | None
    """Why the settings could not be read as they are."""
    full: bool
    now: int
    held: bool
    """Whether a daemon holds the data directory."""

    @property
    def path(self) -> Path:
        """The data directory."""
        return self.settings.data_dir

    @property
    def database(self) -> Path:
        """The database in it."""
        return self.path / datadir.DATABASE

    @contextlib.contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """A connection to the database that can change nothing."""
        if self.held:
            uri = f"{self.database.absolute().as_uri()}?mode=ro"
            db = sqlite3.connect(uri, uri=True, isolation_level=None)
        else:
            db = open_unchanged(self.database)
        with contextlib.closing(db):
            yield db


Check = Callable[[Patient], Iterator[Finding]]


def examine(settings: Settings, trouble: MuxError | None = None, *, full: bool = False) -> list[Finding]:
    """Run all checks. `trouble` is why the settings' file could not be used; `full` reads the whole database."""
    held = settings.data_dir.is_dir() and datadir.is_held(settings.data_dir)
    patient = Patient(settings, trouble, full, Clock().now_ms(), held)
    checks = ALWAYS + (WITH_DATABASE if patient.database.exists() else ())
    return [finding for name, check in checks for finding in _run(name, check, patient)]


def _run(name: str, check: Check, patient: Patient) -> list[Finding]:
    try:
        return list(check(patient))
    except MuxError as error:
        return [Finding(name, PROBLEM, error.message)]
    except (OSError, sqlite3.Error, ValueError) as error:
        return [Finding(name, PROBLEM, f"could not be looked at: {error}")]


def all_well(findings: Sequence[Finding]) -> bool:
    """Whether there is no problem among them."""
    return all(finding.state != PROBLEM for finding in findings)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """For programs."""
    return {
        "well": all_well(findings),
        "findings": [finding._asdict() | {"state": finding.state.lower()} for finding in findings],
    }


def as_text(findings: Sequence[Finding]) -> str:
    """For people: a line a finding, and what to do below it."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8} {finding.check:<10} {finding.found}")
        if finding.remedy:
            lines.append(f"{'':<19} -> {finding.remedy}")
    problems = sum(finding.state == PROBLEM for finding in findings)
    lines.append(f"{problems} problem{'s' if problems != 1 else ''}" if problems else "all is well")
    return "\n".join(lines)


# -- the machine


def _python(patient: Patient) -> Iterator[Finding]:
    found = f"{platform.python_version()}, {sys.executable}"
    yield Finding("python", OK, found)  # an older one could not even have come here


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Whether this SQLite can damage a database that several connections write to."""
    newest = WAL_RESET_FIXED[0]
    backported = any(version[:2] == fixed[:2] and version >= fixed for fixed in WAL_RESET_FIXED[1:])
    return (3, 7, 0) <= version < newest and not backported


def _sqlite(patient: Patient) -> Iterator[Finding]:
    version = sqlite3.sqlite_version
    if has_wal_reset_bug(sqlite3.sqlite_version_info):
        yield Finding(
            "sqlite",
            NOTE,
            f"{version} has the WAL-reset bug; stonemux writes and checkpoints on one connection, which it spares",
            "let no other program write to the database; 3.51.3, 3.50.7 and 3.44.6 have it fixed",
        )
    else:
        yield Finding("sqlite", OK, version)
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        try:
            db.execute("create virtual table words using fts5(text)")
        except sqlite3.OperationalError:
            yield Finding(
                "search", NOTE, "SQLite lacks FTS5: msg.search answers 501", "use a Python whose SQLite has it"
            )
        else:
            yield Finding("search", OK, "SQLite has FTS5")


def _settings(patient: Patient) -> Iterator[Finding]:
    if patient.trouble is not None:
        yield Finding(
            "settings", PROBLEM, patient.trouble.message, "correct it; the rest was looked at without the file"
        )
    else:
        yield Finding("settings", OK, f"data in {patient.path}, address {_address(patient)}")


def _address(patient: Patient) -> str:
    return f"{patient.settings.host}:{patient.settings.port}"


# -- the data directory


def _directory(patient: Patient) -> Iterator[Finding]:
    path = patient.path
    if not path.is_dir():
        yield Finding("directory", OK, f"{path} is made at the first start")
        return
    datadir.check_owner(path)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        yield Finding("directory", NOTE, f"others may look into {path} (mode {mode:o})", f"chmod 700 {path}")
    else:
        yield Finding("directory", OK, f"{path} is ours alone")
    if patient.settings.allow_network_fs:
        yield Finding("disk", NOTE, "may be a network file system (server.allow_network_fs)", "prefer a local disk")
    else:
        kind = datadir.check_file_system(path) or "unknown type"
        yield from _space(patient, kind)


def _space(patient: Patient, kind: str) -> Iterator[Finding]:
    ballast = Ballast(patient.path)
    free = ballast.free()
    found = f"{free / 1024 / 1024:,.0f} MiB free ({kind})"
    if free < ROOM_BYTES:
        yield Finding("disk", PROBLEM, found, "free some space; changes are refused with storage_full")
    elif patient.held and not ballast.held:
        yield Finding(
            "disk", NOTE, f"{found}; the ballast was given back", "it is made again when something is written"
        )
    else:
        yield Finding("disk", OK, found)


def _marker(patient: Patient) -> Iterator[Finding]:
    marked, there = (patient.path / datadir.MARKER).exists(), patient.database.exists()
    if marked and (not there or not patient.database.stat().st_size):
        yield Finding(
            "database",
            PROBLEM,
            f"{patient.database} is missing or empty, though this directory once held data",
            "put the file back, or restore a backup: stonemux restore FILE",
        )
    elif there and not marked:
        yield Finding("database", NOTE, f"{patient.path / datadir.MARKER} is missing", "the next start makes it anew")
    elif not there:
        yield Finding("database", OK, "there is none yet")


def _ask_health(settings: Settings) -> dict[str, Any]:
    health = operations.BY_NAME["health"]
    return pool.ask(settings.host, settings.port, health, {}, tls_cert=settings.tls_cert, timeout=3)


def _daemon(patient: Patient) -> Iterator[Finding]:
    holder = datadir.noted_pid(patient.path)
    who = f"pid {holder}" if holder else "pid unknown"
    try:
        health = _ask_health(patient.settings)
    except MuxError as error:
        if patient.held:
            found = f"a daemon ({who}) holds {patient.path}, but none answers at {_address(patient)}"
            yield Finding("daemon", PROBLEM, found, "name its --port, look at its log, or stop it and start it again")
        elif _was_refused(error):
            yield Finding("daemon", OK, f"not running; {_address(patient)} is free")
        else:
            yield Finding("daemon", PROBLEM, error.message, "something else may listen there; choose another --port")
        return
    if not patient.held:
        found = f"the daemon at {_address(patient)} does not use {patient.path}"
        yield Finding("daemon", NOTE, found, "name the directory that it uses with --data-dir")
    elif health["status"] != "ok":
        yield Finding("daemon", PROBLEM, f"the daemon ({who}) is {health['status']}", "look at its log, and restart it")
    elif health["version"] != VERSION:
        found = f"the daemon ({who}) is version {health['version']}, this is {VERSION}"
        yield Finding("daemon", NOTE, found, "restart the daemon")
    else:
        yield Finding("daemon", OK, f"answers at {_address(patient)} ({who}), up for {health['uptime']} s")


def _was_refused(error: BaseException | None) -> bool:
    """Whether nobody listens, as opposed to somebody who does not answer as a daemon does."""
    while error is not None:
        if isinstance(error, ConnectionRefusedError):
            return True
        error = error.__cause__ or error.__context__
    return False


# -- the database


def _soundness(patient: Patient) -> Iterator[Finding]:
    remedy = "stop the daemon, keep a copy of the directory, and restore a backup: stonemux restore FILE"
    try:
        with patient.open() as db:
            version = check_sound(db, patient.database, (patient.path / datadir.MARKER).exists())
            checked = "its structure is sound"
            if patient.full:
                checked = "every page and index is sound"
                if problems := [row[0] for row in db.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]:
                    yield Finding("database", PROBLEM, f"{patient.database} is damaged: {'; '.join(problems)}", remedy)
                    return
            size = patient.database.stat().st_size / 1024 / 1024
            yield Finding("database", OK, f"{checked} ({size:.1f} MiB, schema {version})")
    except MuxError as error:
        yield Finding("database", PROBLEM, error.message, remedy)


def _rollback(patient: Patient) -> Iterator[Finding]:
    remembered = datadir.read_head(patient.path)  # first: the database may only be ahead of it
    with patient.open() as db:
        stands = stand(db)
        problem = gone_back(db, remembered, stands)
    if problem:
        yield Finding(
            "history",
            PROBLEM,
            f"the database {problem}",
            "put the right file back, or start once with: stonemux serve --accept-rollback",
        )
    else:
        yield Finding("history", OK, f"event {stands.event_seq}, message {stands.message_seq}")
    ahead = stands.at - patient.now
    if ahead > FUTURE_MS:
        yield Finding(
            "clock",
            PROBLEM,
            f"stored times are ahead of this machine's clock by {ahead // 1000} s (up to {rfc3339(stands.at)})",
            "set the clock; the daemon never lets time run back, and goes on from there",
        )
    else:
        yield Finding("clock", OK, f"stored times end at {rfc3339(stands.at)}")


def _log_size(patient: Patient) -> Iterator[Finding]:
    log = Path(f"{patient.database}-wal")
    size = log.stat().st_size if log.exists() else 0
    found = f"write-ahead log of {size / 1024 / 1024:.1f} MiB"
    if size > LARGE_LOG:
        yield Finding("log", PROBLEM, found, "another program may be reading the database without end; close it")
    elif size and not patient.held:
        yield Finding("log", NOTE, f"{found}: the daemon was not stopped in order", "none; the next start takes it in")
    else:
        yield Finding("log", OK, found)


def _backups(patient: Patient) -> Iterator[Finding]:
    kept = patient.path / copies.FOLDER
    made = [file.stat().st_mtime_ns // 1_000_000 for file in kept.glob("*") if re.match(copies.NAME, file.name)]
    if not made:
        yield Finding("backups", NOTE, f"none in {kept}", "make one with: stonemux backup")
    elif patient.now - max(made) > OLD_BACKUP_MS:
        days = (patient.now - max(made)) // 86_400_000
        yield Finding("backups", NOTE, f"the newest is {days} days old", "make one with: stonemux backup")
    else:
        yield Finding("backups", OK, f"{len(made)}, the newest of {rfc3339(max(made))}")


def _files(patient: Patient) -> Iterator[Finding]:
    for name in (datadir.DATABASE, f"{datadir.DATABASE}-wal", f"{datadir.DATABASE}-shm"):
        file = patient.path / name
        with contextlib.suppress(FileNotFoundError):
            found = file.stat()
            if found.st_uid != os.geteuid():
                remedy = f"chown it, or run as user {found.st_uid}"
                yield Finding("files", PROBLEM, f"{file} belongs to user {found.st_uid}", remedy)
            elif found.st_mode & 0o077:
                yield Finding("files", NOTE, f"others may read {file}", f"chmod 600 {file}")


ALWAYS: tuple[tuple[str, Check], ...] = (
    ("python", _python),
    ("sqlite", _sqlite),
    ("settings", _settings),
    ("directory", _directory),
    ("daemon", _daemon),
    ("database", _marker),
)
WITH_DATABASE: tuple[tuple[str, Check], ...] = (
    ("database", _soundness),
    ("history", _rollback),
    ("log", _log_size),
    ("files", _files),
    ("backups", _backups),
)
"""Checks by the name that a failing one is reported under."""
