"""The checks of `stonemux doctor` beyond the data: Python, SQLite, settings, limits, clients, doorbells, the service.

A client's MCP configuration is tested as the client uses it, by starting its command, but never a foreign command from
a project's file. If no daemon answers, the command would start one, so it is only asked for its version. A doorbell is
not rung, because that would wake its agent; the check only tests whether something listens there.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stonemux import addresses, bellcommand, config, flags, pool, probe, service, setup
from stonemux.clients import CLIENTS, SCOPES, home
from stonemux.clock import rfc3339
from stonemux.config import SETTINGS, Settings
from stonemux.errors import MuxError, guess
from stonemux.findings import NOTE, OK, PROBLEM, Check, Finding, Patient
from stonemux.opening import LEAST_SQLITE

PYTHON_BUGS: tuple[tuple[tuple[int, int, int], tuple[int, int, int], str], ...] = (
    ((3, 11, 0), (3, 11, 5), "a TLS server may accept data sent before the handshake (CVE-2023-40217)"),
)
"""Known Python bugs that affect stonemux: the first version with the bug, the first without, and its effect."""

WAL_RESET_FIXED = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
"""SQLite from 3.7.0 on can lose pages when one connection restarts the log while another checkpoints. The first of
these versions fixes it, and so do the others within their minor versions."""
WITHDRAWN_SQLITE = (3, 52, 0)
LEAST_TIME = 1_735_689_600_000
"""The beginning of 2025: a clock that shows an earlier time was never set."""
CLIENT_MS = 8_000
"""How long a client's command may take."""
BELL_S = 1.0
MOST_BELLS = 20
OTHERS = ("STONEMUX_AGENT", "STONEMUX_TOKEN", "STONEMUX_CONFIG", "STONEMUX_CLI", "STONEMUX_SEED", "STONEMUX_SOAK")
"""Variables that have a meaning but set no setting; the tests use the last two."""
GIVEN = ("TASK_ID", "CLAIM_TOKEN", "MESSAGE_ID", "FROM", "CHANNEL", "UNREAD", "WEBHOOK_ID")
"""Variables that stonemux sets for the commands it starts."""


# -- the machine


def python(patient: Patient) -> Iterator[Finding]:
    """Check the interpreter."""
    found = f"{platform.python_version()}, {sys.executable}"
    bugs = [bug for first, fixed, bug in PYTHON_BUGS if first <= sys.version_info[:3] < fixed]
    for bug in bugs:
        yield Finding("python", NOTE, f"{found}: {bug}", "use a newer bug-fix release of this Python")
    if platform.python_implementation() != "CPython":
        yield Finding("python", NOTE, f"{found} is {platform.python_implementation()}", "stonemux is tested on CPython")
    elif not bugs:
        yield Finding("python", OK, found)  # an older Python would have failed before this check


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Whether this SQLite can corrupt a database that several connections write to."""
    newest = WAL_RESET_FIXED[0]
    backported = any(version[:2] == fixed[:2] and version >= fixed for fixed in WAL_RESET_FIXED[1:])
    return (3, 7, 0) <= version < newest and not backported


def sqlite(patient: Patient) -> Iterator[Finding]:
    """Check the SQLite library and its features."""
    version, number = sqlite3.sqlite_version, sqlite3.sqlite_version_info
    if number < LEAST_SQLITE:
        yield Finding("sqlite", PROBLEM, f"{version} is too old", "use a Python whose SQLite is 3.37 or newer")
    elif number == WITHDRAWN_SQLITE:
        yield Finding("sqlite", NOTE, f"{version} was withdrawn by its developers", "use 3.51.3 or newer")
    elif has_wal_reset_bug(number):
        yield Finding(
            "sqlite",
            NOTE,
            f"{version} has the WAL-reset bug; stonemux avoids it by writing and checkpointing on one connection",
            "let no other program write to the database; 3.51.3, 3.50.7, and 3.44.6 fix it",
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


def limits(patient: Patient) -> Iterator[Finding]:
    """Check the open-file limit and the clock."""
    needed = patient.settings.open_files
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < needed:
        yield Finding(
            "limits",
            PROBLEM,
            f"the settings need {needed} open files, but this system allows {hard}",
            "raise the limit (ulimit -n), or lower server.max_connections and server.max_waiters",
        )
    else:
        yield Finding("limits", OK, f"{needed} open files are allowed")
    if patient.now < LEAST_TIME:
        yield Finding("clock", PROBLEM, f"this machine's clock says {rfc3339(patient.now)}", "set the clock")


# -- settings


def settings(patient: Patient) -> Iterator[Finding]:
    """Report settings that cannot be read, have no effect, or are misspelled."""
    for trouble in patient.troubles:
        yield Finding("settings", PROBLEM, trouble.message, "correct it; the other checks ran without it")
    if not patient.troubles:
        yield Finding("settings", OK, f"data in {patient.path}, address {patient.settings.authority}")
        yield from _overridden(patient)
    yield from _misspelled(patient.environ)
    named = patient.config or patient.environ.get("STONEMUX_CONFIG")
    for usual in dict.fromkeys((home(patient.environ) / ".stonemux/config.toml", patient.path / "config.toml")):
        if named and usual.exists() and usual.resolve() != Path(named).resolve():
            yield Finding(
                "settings", NOTE, f"{usual} is not read, because {named} is used instead", "remove one of them"
            )


def _overridden(patient: Patient) -> Iterator[Finding]:
    """Settings in the file that the environment or a flag overrides."""
    kept = {name: patient.environ[name] for name in ("HOME", "STONEMUX_CONFIG") if name in patient.environ}
    kept["STONEMUX_DATA_DIR"] = str(patient.path)  # the file is looked for in this folder
    alone = config.load(patient.config, kept, {})
    usual = config.load(Path(os.devnull), kept, {})
    for setting in SETTINGS:
        stated, used = getattr(alone, setting.attribute), getattr(patient.settings, setting.attribute)
        if stated != getattr(usual, setting.attribute) and stated != used and setting.attribute != "data_dir":
            yield Finding(
                "settings",
                NOTE,
                f"{setting.name} in the file has no effect: the environment or a flag overrides it",
                f"remove it from the file, or unset {setting.environment or setting.flag}",
            )


def _misspelled(environ: Mapping[str, str]) -> Iterator[Finding]:
    known = {setting.environment for setting in SETTINGS if setting.environment}
    known |= {*OTHERS, *(f"STONEMUX_{name}" for name in GIVEN)}
    for name in sorted(environ):
        if name.startswith("STONEMUX_") and name not in known:
            close = guess(name, known)
            remedy = f"did you mean {close}?" if close else "unset it"
            yield Finding("settings", NOTE, f"nothing reads the variable {name}", remedy)


# -- clients


def clients(patient: Patient) -> Iterator[Finding]:
    """Test what each client that is configured for stonemux starts."""
    seen = False
    for client in CLIENTS.values():
        for scope in SCOPES:
            job = setup.Job(client, scope, None, patient.environ, patient.folder)
            if scope == "project" and job.file == client.file("user", patient.environ, patient.folder):
                continue
            for finding in _client(patient, job):
                seen = True
                yield finding
    if not seen:
        yield Finding("clients", OK, "none configured; connect one with: stonemux setup CLIENT")


def _client(patient: Patient, job: setup.Job) -> Iterator[Finding]:
    again = f"stonemux setup {next(name for name, row in CLIENTS.items() if row is job.client)}"
    if job.scope == "project":
        again += " --scope project"
    where = f"{job.client.title} ({job.file})"
    if not job.file.exists():
        return
    try:
        entry, alone = setup.entry(job), setup.entry_of_folder(job)
    except MuxError as error:
        yield Finding("clients", NOTE, f"{where}: {error.message}", "repair the file; the client cannot read it either")
        return
    if entry is not None:
        yield _entry(patient, job, entry, where, f"rewrite it with: {again}")
    if alone is not None:
        remedy = f"remove it from {job.client.by_folder!r} in that file; write one for all folders with: {again}"
        yield _entry(patient, job, alone, f"{where}, for {job.folder}", remedy)


def _entry(patient: Patient, job: setup.Job, entry: Any, where: str, remedy: str) -> Finding:
    try:
        if not isinstance(entry, dict):
            raise MuxError(
                "client_config_broken", f"{job.file}: the entry {setup.NAME!r} must be a table or object of settings"
            )
        if (url := _url(entry)) is not None:
            return _over_http(patient, job, where, job.client.expand(url, job.environ, job.folder), remedy)
        if isinstance(entry.get("args") or [], list) and (problem := setup.foreign(job, entry)):
            return _untried(where, problem, remedy)
        return Finding("clients", OK, f"{where}: {_tried(job, entry)}")
    except MuxError as error:
        if unset := error.facts.get("unset"):
            problem = f"{where} cannot be tried: {error.message}"
            return Finding(
                "clients", NOTE, problem, f"set {unset} in the environment of {job.client.title}, and in this one"
            )
        if error.facts.get("untried"):
            return _untried(where, error.message, remedy)
        lacks_token = error.facts.get("refused", "").startswith("token_")
        return Finding("clients", PROBLEM, error.message, setup.TOKEN_REMEDY if lacks_token else remedy)


def _url(entry: Mapping[str, Any]) -> str | None:
    """The URL of an entry without a command, under any client's name for that field."""
    named = (entry[name] for name in ("url", "httpUrl", "serverUrl") if "command" not in entry and name in entry)
    return next((url for url in named if isinstance(url, str)), None)


def _untried(where: str, problem: str, remedy: str) -> Finding:
    return Finding("clients", NOTE, f"{where} was not tried: {problem}", f"see that you trust this folder, or {remedy}")


def _over_http(patient: Patient, job: setup.Job, where: str, url: str, remedy: str) -> Finding:
    """Check that a daemon answers, for a client that connects over HTTP and starts nothing."""
    try:
        parts = urlsplit(url)
        if job.scope == "project" and not config.is_loopback(parts.hostname or ""):
            return _untried(where, f"it leads to another machine ({parts.hostname})", remedy)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        cert = patient.settings.tls_cert if parts.scheme == "https" else ""
        pool.health(parts.hostname or "", port, tls_cert=cert, timeout=2)
    except (MuxError, ValueError):
        return Finding("clients", NOTE, f"{where}: no daemon answers at {url}", f"start one there, or {remedy}")
    return Finding("clients", OK, f"{where}: a daemon answers at {url}")


def _tried(job: setup.Job, entry: Mapping[str, Any]) -> str:
    command, environ, folder = setup.started(job, entry)
    try:
        place = _place(job, command)
        there = config.load(Path(place.pop("config")) if "config" in place else None, environ, place)
    except MuxError as error:
        raise MuxError("client_check_failed", f"{job.file}: its command does not work: {error.message}") from error
    if job.scope == "project" and not config.is_loopback(there.host):  # it could be sent any variable as a token
        raise MuxError("client_check_failed", f"it leads to another machine ({there.host})", untried=True)
    if not pool.answers(there, timeout=2):
        return _version(job, command, environ, folder)
    try:
        return f"{len(probe.list_tools(command, environ, folder, patience_ms=CLIENT_MS))} tools answered"
    except MuxError as error:
        raise MuxError(error.code, f"{job.file}: its command does not work: {error.message}", **error.facts) from error


def _around(job: setup.Job, command: list[str]) -> tuple[list[str], list[str]]:
    """The words before and after the verb `mcp`; two empty lists if it does not occur.

    Of a project's command, the beginning is known (`setup.foreign`), and what follows may be made to mislead. Of any
    other, which may begin with a wrapper, the verb is the last such word.
    """
    if "mcp" not in command:
        return [], []
    at = command.index("mcp") if job.scope == "project" else len(command) - 1 - command[::-1].index("mcp")
    return command[:at], command[at + 1 :]


def _place(job: setup.Job, command: list[str]) -> dict[str, str]:
    """The address and paths from the flags after `mcp`: where a daemon would be started if none answers."""
    words = iter(_around(job, command)[1])
    known = {flag.typed: flag.name for flag in flags.PLACE}
    place = {}
    for word in words:
        name, given, value = word.partition("=")
        if name in known:
            place[known[name]] = value if given else next(words, "")
    return place


def _version(job: setup.Job, command: list[str], environ: Mapping[str, str], folder: Path) -> str:
    """Start the command only for its version, which does not start a daemon."""
    start, _ = _around(job, command)
    if not start:
        return "not tested, because no daemon answers"
    try:
        done = subprocess.run(
            [*start, "--version"],
            env=dict(environ),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CLIENT_MS / 1000,
        )
    except (OSError, subprocess.SubprocessError) as trouble:
        told = getattr(trouble, "strerror", None) or str(trouble)
        raise MuxError("client_check_failed", f"{job.file}: {command[0]} cannot be started: {told}") from trouble
    if done.returncode or not done.stdout.startswith("stonemux "):
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it printed nothing"]
        raise MuxError("client_check_failed", f"{job.file}: its command does not start stonemux: {said[0][:300]}")
    return f"its command is {done.stdout.strip()} (no daemon answers, so it was not tested further)"


# -- doorbells, the service


def doorbells(patient: Patient) -> Iterator[Finding]:
    """Check that something listens at each doorbell and forwarding endpoint."""
    with patient.open() as db:
        if not db.execute("select 1 from sqlite_master where name = 'webhook'").fetchone():
            return
        rows = db.execute(
            "select coalesce(agent_id, id), url, disabled_for, last_error from webhook "
            "order by created_at desc limit ?",
            (MOST_BELLS,),
        ).fetchall()
        total = db.execute("select count(*) from webhook").fetchone()[0]
    sound = 0
    for whose, url, disabled, error in rows:
        if disabled is not None:
            found = f"{whose}: disabled: {disabled}"
            yield Finding("doorbells", NOTE, found, "fix its receiver, then register it again")
        elif trouble := _unreachable(url, patient.settings):
            found, remedy = trouble
            yield Finding("doorbells", NOTE, f"{whose}: {found}", remedy)
        elif error:
            found = f"{whose}: reachable, but its last delivery failed: {error}"
            yield Finding("doorbells", NOTE, found, "see: stonemux webhook attempts")
        else:
            sound += 1
    if sound:
        yield Finding("doorbells", OK, f"{sound} reachable")
    if total > len(rows):
        yield Finding("doorbells", OK, f"only the newest {len(rows)} of {total} were checked")


def _unreachable(url: str, settings: Settings) -> tuple[str, str] | None:
    """Why a delivery would not arrive, and what to do about it; None if something listens there."""
    if url.startswith(bellcommand.SCHEME):
        try:
            command = bellcommand.check(url, settings.webhooks_exec)[0]
        except addresses.ForbiddenURL as problem:
            return f"its URL {problem}", "register another one"
        if shutil.which(command):
            return None
        return f"{command} does not exist or is not executable", "install it and make it executable (chmod +x)"
    policy = addresses.Policy.of(settings, settings.port)
    try:
        target = addresses.check(url, policy)
        found = addresses.resolve(target)
        addresses.judge_all(target, found, policy)
        socket.create_connection((found[0], target.port), timeout=BELL_S).close()
    except addresses.ForbiddenURL as problem:
        return f"its URL {problem}", "register another one"
    except OSError as trouble:
        told = f"nobody answers at its address ({trouble.strerror or trouble})"
        return told, "start its receiver, or register another one"
    return None


def system_service(patient: Patient) -> Iterator[Finding]:
    """Check the installed service, if there is one: is it what this version writes, and does it run?"""
    words = service.words_for(patient.environ, service.kept(patient.environ, sys.platform), patient.folder)
    described = service.describe(words, patient.settings, patient.environ, sys.platform)
    if not described.file.exists():
        return
    told = service.Installer(described, patient.settings, patient.environ, lambda text: None).status()
    if told["running"] and told["current"]:
        yield Finding("service", OK, f"{described.file}: the system runs it")
    elif told["running"]:
        found = f"{described.file}: the system runs it, but this version and these settings would write a different one"
        yield Finding("service", NOTE, found, "rewrite it with: stonemux service install")
    else:
        found = f"{described.file}: installed, but the system does not run it"
        yield Finding("service", NOTE, found, f"check its log ({described.logs}), then run: stonemux service install")


ALWAYS: tuple[tuple[str, Check], ...] = (
    ("python", python),
    ("sqlite", sqlite),
    ("limits", limits),
    ("settings", settings),
)
AFTERWARDS: tuple[tuple[str, Check], ...] = (("service", system_service), ("clients", clients))
WITH_DATABASE: tuple[tuple[str, Check], ...] = (("doorbells", doorbells),)
"""Checks, each with the name under which its failure is reported."""
