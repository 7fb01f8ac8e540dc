"""`stonemux doctor`: what was examined, what was found, and what to do about it.

Each check is a function of a `Patient` that yields findings; a check that fails is itself a finding, and the others
continue. Nothing is changed: the database is read without touching the files beside it, even while a daemon writes to
it.

A *problem* keeps stonemux from working or puts data at risk; a *note* is worth knowing and does not change the exit
status.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stonemux import VERSION, copies, datadir, ground, pool, surroundings
from stonemux.ballast import ROOM_BYTES, Ballast
from stonemux.clock import DAY_MS, MINUTE_MS, Clock, rfc3339
from stonemux.config import Settings, check_safe
from stonemux.datadir import Head
from stonemux.errors import MuxError
from stonemux.findings import NOTE, OK, PROBLEM, Check, Finding, Patient
from stonemux.opening import RESTORE, check_sound, gone_back, stand
from stonemux.screen import counted, safe

LARGE_LOG = 64 * 1024 * 1024
"""A write-ahead log larger than this (in bytes) suggests a reader that never ends its transaction."""
OLD_BACKUP_MS = 7 * DAY_MS
FUTURE_MS = MINUTE_MS
"""How far stored times may be ahead of the machine's clock."""


def examine(
    settings: Settings,
    troubles: Sequence[MuxError] = (),
    *,
    full: bool = False,
    environ: Mapping[str, str],
    folder: Path,
    config: Path | None = None,
) -> list[Finding]:
    """Run all checks.

    `troubles` are the settings that could not be used; `full` reads the whole database; `config` is the settings file
    that a flag names.
    """
    held = _is_held(settings.data_dir)
    patient = Patient(settings, environ, folder, troubles, config, full, Clock().now_ms(), held)
    there = os.path.exists(patient.database)
    findings: list[Finding] = []
    for name, check in ALWAYS + (WITH_DATABASE if there else ()) + surroundings.AFTERWARDS:
        if name not in READING or not any(one.check == "database" and one.state == PROBLEM for one in findings):
            findings += _run(name, check, patient)
    return findings


def _is_held(path: Path) -> bool:
    try:
        return datadir.is_held(path)
    except OSError:  # missing or unreadable: the check of the directory reports it
        return False


def _run(name: str, check: Check, patient: Patient) -> list[Finding]:
    try:
        return list(check(patient))
    except MuxError as error:
        return [_told(name, error)]
    except (OSError, sqlite3.Error, ValueError) as error:
        remedy = f"check that this user may read it: ls -l {patient.path}"
        return [Finding(name, PROBLEM, f"could not be checked: {error}", remedy)]


def _told(name: str, error: MuxError, otherwise: str = "") -> Finding:
    """A refusal as a finding; `otherwise` is the remedy if the refusal has none."""
    return Finding(name, PROBLEM, error.problem, error.remedy or otherwise)


def all_well(findings: Sequence[Finding]) -> bool:
    """Whether no finding is a problem."""
    return all(finding.state != PROBLEM for finding in findings)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings for programs."""
    return {
        "well": all_well(findings),
        "findings": [finding._asdict() | {"state": finding.state.lower()} for finding in findings],
    }


def as_text(findings: Sequence[Finding]) -> str:
    """The findings for people: one line each, with the remedy below it.

    Findings quote data from agents and from other programs' files, so control characters are spelled out.
    """
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8} {finding.check:<10} {safe(finding.found)}")
        if finding.remedy:
            lines.append(f"{'':<19} -> {safe(finding.remedy)}")
    problems = sum(finding.state == PROBLEM for finding in findings)
    lines.append(counted(problems, "problem") if problems else "all is well")
    return "\n".join(lines)


# -- the data directory


def _directory(patient: Patient) -> Iterator[Finding]:
    path = patient.path
    if not path.is_dir():
        yield _to_be_made(path)
        return
    mode = path.stat().st_mode & 0o777
    if (unusable := _unusable(path)) is not None:
        yield unusable
    elif mode & 0o077:
        yield Finding("directory", NOTE, f"others may read {path} (mode {mode:o})", f"chmod 700 {path}")
    else:
        yield Finding("directory", OK, f"{path} is accessible to this user only")
    if patient.settings.allow_network_fs:
        yield Finding("disk", NOTE, "may be a network file system (server.allow_network_fs)", "prefer a local disk")
    else:
        kind = ground.check_file_system(path) or "unknown type"
        yield from _space(patient, kind)


def _unusable(path: Path) -> Finding | None:
    try:
        ground.check_length(path)
        ground.check_owner(path)
        datadir.check_usable(path)
    except MuxError as error:
        return _told("directory", error)
    return None


def _to_be_made(path: Path) -> Finding:
    """The finding for a data directory that does not exist yet, or for something else in its place."""
    if os.path.lexists(path):
        return Finding("directory", PROBLEM, f"{path} is not a directory", "pass another one as --data-dir")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        return Finding("directory", PROBLEM, f"{path} cannot be created in {above}", "pass another one as --data-dir")
    return Finding("directory", OK, f"{path} will be created at the first start")


def _space(patient: Patient, kind: str) -> Iterator[Finding]:
    ballast = Ballast(patient.path)
    free = ballast.free()
    found = f"{free / 1024 / 1024:,.0f} MiB free ({kind})"
    if free < ROOM_BYTES:
        yield Finding("disk", PROBLEM, found, "free some space; until then, changes are refused with storage_full")
    elif patient.held and not ballast.held:
        yield Finding("disk", NOTE, f"{found}; the ballast file was released", "it is created again at the next write")
    else:
        yield Finding("disk", OK, found)


def _marker(patient: Patient) -> Iterator[Finding]:
    marked, there = (patient.path / datadir.MARKER).exists(), patient.database.exists()
    if marked and (not there or not patient.database.stat().st_size):
        yield Finding(
            "database",
            PROBLEM,
            f"{patient.database} is missing or empty, although this directory once held data",
            "put the file back, or restore a backup: stonemux restore FILE",
        )
    elif there and not marked:
        yield Finding(
            "database", NOTE, f"{patient.path / datadir.MARKER} is missing", "the next start creates it again"
        )
    elif not there:
        yield Finding("database", OK, "none yet")


def _daemon(patient: Patient) -> Iterator[Finding]:
    holder = datadir.noted_pid(patient.path)
    who = f"pid {holder}" if holder else "pid unknown"
    at = patient.settings
    try:
        health = pool.health(at.host, at.port, tls_cert=at.tls_cert, timeout=3)
    except MuxError as error:
        if patient.held:
            found = f"a daemon ({who}) holds {patient.path}, but no daemon answers at {at.authority}"
            yield Finding("daemon", PROBLEM, found, "pass its --port, check its log, or restart it")
        elif _is_due_to(error, ConnectionRefusedError):
            yield _start(patient.settings)
        elif _is_due_to(error, socket.gaierror):
            found = f"the host name {patient.settings.host} cannot be resolved"
            yield Finding("daemon", PROBLEM, found, "pass another --host, or correct server.host")
        else:
            yield Finding(
                "daemon", PROBLEM, error.message, "another program may be listening there; choose another --port"
            )
        return
    if not patient.held or _is_anothers(patient):
        found = f"the daemon at {at.authority} does not use {patient.path}"
        yield Finding("daemon", NOTE, found, "pass the directory that it uses as --data-dir")
    elif health["status"] != "ok":
        yield Finding("daemon", PROBLEM, f"the daemon ({who}) is {health['status']}", "check its log and restart it")
    elif health["version"] != VERSION:
        found = f"the daemon ({who}) is version {health['version']}, but this command is {VERSION}"
        yield Finding("daemon", NOTE, found, "restart the daemon")
    else:
        yield Finding("daemon", OK, f"answering at {at.authority} ({who}), up for {health['uptime']} s")


def _is_anothers(patient: Patient) -> bool:
    """Whether the daemon that holds this data directory listens elsewhere, so that the one that answers is another."""
    try:
        datadir.read_owner_token(patient.path, patient.settings.authority)
    except MuxError:
        return True
    return False


def _start(settings: Settings) -> Finding:
    """Report that no daemon runs, and whether one could start."""
    try:
        check_safe(settings)
        if settings.tls_cert:
            from stonemux import tls  # imported only with TLS, which few use

            tls.context(settings.tls_cert, settings.tls_key)
    except MuxError as error:
        return _told("daemon", error, "correct it; no daemon can start until then")
    return Finding("daemon", OK, f"not running; {settings.authority} is free")


def _is_due_to(error: BaseException | None, kind: type[OSError]) -> bool:
    """Whether an error of this kind is the cause; tells a refused connection from a server that is not a daemon."""
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False


# -- the database


def _soundness(patient: Patient) -> Iterator[Finding]:
    remedy = f"stop the daemon, {RESTORE}"
    locked = f"check that this user may read and write the files: ls -l {patient.path}"
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
        yield _told("database", error)
    except sqlite3.Error as error:
        unopened = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN
        found = f"{patient.database} cannot be read: {error}"
        yield Finding("database", PROBLEM, found, locked if unopened else remedy)


def _rollback(patient: Patient) -> Iterator[Finding]:
    told = datadir.told_head(patient.path)  # read first: the database may only be ahead of it
    with patient.open() as db:
        stands = stand(db)
        problem = gone_back(db, told or Head(), stands)
    if told is None:
        found = f"{patient.path / datadir.HEAD} contains no JSON to tell whether the database went back in time"
        yield Finding("history", NOTE, found, "check that this is the right database; the next start rewrites the file")
    elif problem:
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
            "set the clock; the daemon never lets time run backward and continues from there",
        )
    else:
        yield Finding("clock", OK, f"stored times end at {rfc3339(stands.at)}")


def _log_size(patient: Patient) -> Iterator[Finding]:
    log = Path(f"{patient.database}-wal")
    size = log.stat().st_size if log.exists() else 0
    found = f"write-ahead log of {size / 1024 / 1024:.1f} MiB"
    if size > LARGE_LOG:
        yield Finding("log", PROBLEM, found, "another program may be keeping a read of the database open; close it")
    elif size and not patient.held:
        yield Finding(
            "log", NOTE, f"{found}: the daemon was not shut down cleanly", "nothing to do; the next start recovers it"
        )
    else:
        yield Finding("log", OK, found)


def _backups(patient: Patient) -> Iterator[Finding]:
    kept = patient.path / copies.FOLDER
    made = [file.stat().st_mtime_ns // 1_000_000 for file in kept.glob("*") if re.match(copies.NAME, file.name)]
    if not made:
        yield Finding("backups", NOTE, f"none in {kept}", "make one with: stonemux backup")
    elif patient.now - max(made) > OLD_BACKUP_MS:
        days = (patient.now - max(made)) // DAY_MS
        yield Finding("backups", NOTE, f"the newest is {days} days old", "make one with: stonemux backup")
    else:
        yield Finding("backups", OK, f"{len(made)}, the newest from {rfc3339(max(made))}")


def _files(patient: Patient) -> Iterator[Finding]:
    """Check that nobody else can read the stored messages, copies of them, and keys."""
    ours = [patient.path, patient.path / copies.FOLDER]
    open_to_all: list[Path] = []
    foreign: list[Path] = []
    for file in sorted(file for folder in ours if folder.is_dir() for file in folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            found = file.lstat()
            if not stat.S_ISREG(found.st_mode):
                continue
            if found.st_uid != os.geteuid():
                foreign.append(file)
            elif found.st_mode & 0o077:
                open_to_all.append(file)
    if foreign:
        told = f"{_first(foreign)} belong to another user ({foreign[0].lstat().st_uid})"
        yield Finding("files", PROBLEM, told, "chown them, or run as that user")
    if open_to_all:
        yield Finding("files", NOTE, f"others may read {_first(open_to_all)}", "chmod 600 them")


def _first(files: Sequence[Path]) -> str:
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(map(str, files[:3])) + more


ALWAYS: tuple[tuple[str, Check], ...] = (
    *surroundings.ALWAYS,
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
    *surroundings.WITH_DATABASE,
)
"""Checks, each with the name under which its failure is reported."""
READING = ("history", "doorbells")
"""Checks that read the database; they are skipped if it is not sound, because their results would mean nothing."""
