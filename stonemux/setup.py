"""`stonemux setup CLIENT`: writes stonemux into a client's own MCP configuration, and proves that it works there.

Rules: only the entry named `stonemux` changes, and every other byte stays; what the owner added to that entry
(timeouts, approvals, `STONEMUX_TOKEN`) stays as well. A file that cannot be parsed is refused, never replaced. Before a
change, the old file is backed up beside it; the new one replaces it atomically. Each edit is parsed before it is
written: it must contain what the old file contained, plus or minus the entry.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stonemux import jsonc, launch, probe, tomltext
from stonemux.clients import Client, home
from stonemux.errors import MuxError
from stonemux.record import Record
from stonemux.schema import KINDS, Param

NAME = "stonemux"
SYNTAXES: Mapping[str, Any] = {"json": jsonc, "toml": tomltext}
ADDRESS = ("host", "port")
HANDED_ON = (*ADDRESS, "data_dir", "config", "tls_cert", "tls_key")
"""Settings passed on to a daemon that may be started from any folder. All but the address are paths."""
VARIABLES = {name: f"STONEMUX_{name.upper()}" for name in HANDED_ON}
"""The environment variables of these settings."""
OUR_ENVIRONMENT = ("PYTHONPATH", "STONEMUX_AGENT", *VARIABLES.values())
INSTALLED = ("-P", "-m", "stonemux")
"""What starts an installed stonemux, behind the interpreter."""
FOREIGN_FORM = ("type", "url", "httpUrl", "serverUrl", "headers", "http_headers", "bearer_token_env_var")
"""Fields of an entry that reached stonemux over HTTP; they would contradict a command."""
TOKEN_REMEDY = "set STONEMUX_TOKEN in the env of its entry; make a token with: stonemux token --agent NAME"
ATTEMPTS = 5
"""How often to try: clients write their files too, and an edit that was overtaken starts over."""


class Launch(NamedTuple):
    """A command in the form that a configuration uses."""

    command: str
    args: tuple[str, ...]
    env: Mapping[str, str]


class Job(Record):
    """What one run is to do: for which client, in which scope, and with which command (None removes the entry)."""

    client: Client
    scope: str
    wanted: Launch | None
    environ: Mapping[str, str]
    folder: Path
    """The project's folder, in project scope."""

    @property
    def file(self) -> Path:
        """The configuration file to edit."""
        return self.client.file(self.scope, self.environ, self.folder)


def preview(job: Job) -> str:
    """What `write` would change, as a unified diff; empty if nothing. Raises the read errors of `write`."""
    old, new = _edit(job)
    diff = difflib.unified_diff(_lines(old or ""), _lines(new), str(job.file), str(job.file))
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in diff)


def write(job: Job) -> tuple[bool, Path | None]:
    """Edit the client's file; returns whether that changed anything, and the backup that was made, if any.

    Raises `client_config_broken` for a file that is not JSON or TOML of the expected shape, and
    `client_config_unwritable` for one that cannot be read or written; in both cases the file is unchanged.
    """
    for _ in range(ATTEMPTS):
        old, new = _edit(job)
        if new == (old or ""):
            return False, None
        _refuse_read_only(job.file)
        try:
            kept = _back_up(job.file, old) if old is not None else None
            if _replace(job.file, old, new, 0o600 if job.scope == "user" else 0o644):
                return True, kept
        except OSError as trouble:
            raise _unwritable(job.file, trouble.strerror or str(trouble)) from None
    raise _unwritable(job.file, "another program keeps changing it; close the client")


def entry(job: Job) -> Any:
    """Our entry in the file, or None. Raises the read errors of `write`."""
    return _entry(job.client, _syntax(job).read(_read(job.file) or ""))


def entry_of_folder(job: Job) -> Any:
    """The entry in the user's file for this folder alone, or None. Raises the read errors of `write`."""
    found = _syntax(job).read(_read(job.file) or "").get(job.client.by_folder)
    for name in (str(job.folder), job.client.table, NAME) if job.scope == "user" else ("",):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def started(job: Job, found: Mapping[str, Any]) -> tuple[list[str], dict[str, str], Path]:
    """The command, environment, and folder with which the client starts an entry's server.

    Raises `client_config_broken` for an entry without a usable command, and `client_check_failed` for one that names an
    unset variable.
    """
    command, args, env = found.get("command"), found.get("args") or [], found.get("env") or {}
    listed = isinstance(args, list) and all(isinstance(word, str) and "\0" not in word for word in [command, *args])
    if not listed or not isinstance(env, dict):
        raise MuxError(
            "client_config_broken",
            f"{job.file}: the entry {NAME!r} must have a command (a string); args (a list of strings) and env are "
            "optional",
        )

    def taken(text: str) -> str:
        return job.client.expand(text, job.environ, job.folder)

    environ = probe.bare(job.environ) | {name: taken(str(value)) for name, value in env.items()}
    return [*map(taken, [str(command), *args])], environ, job.folder if job.scope == "project" else home(job.environ)


def foreign(job: Job, found: Mapping[str, Any]) -> str:
    """What an entry in a project's file would start or set besides stonemux, in words; "" in any other file.

    A project's author may have written its file, and clients ask before they start what it names. So nothing is started
    here that could be another program, or could change what ours does.
    """
    if job.scope != "project":
        return ""
    words, env = [found.get("command"), *(found.get("args") or [])], found.get("env") or {}
    ours = launch.command()
    known = [ours, [ours[0], *INSTALLED], [NAME]]
    if all([*one, "mcp"] != words[: len(one) + 1] for one in known):
        return "it starts another program than this stonemux"
    others = [name for name in env if name not in (*VARIABLES.values(), "STONEMUX_AGENT", "STONEMUX_TOKEN")]
    return f"it sets {others[0]}" if others else ""


def check(job: Job, *, patience_ms: int = probe.PATIENCE_MS) -> list[str]:
    """Start the command that the file now contains, and return the names of its tools.

    Raises `client_check_failed`; the file stays as it is.
    """
    command, environ, folder = started(job, entry(job))
    try:
        return probe.list_tools(command, environ, folder, patience_ms=patience_ms)
    except MuxError as error:
        told = f"{job.file} was written, but its command does not work: {error.message}"
        remedy = TOKEN_REMEDY if error.facts.get("refused", "").startswith("token_") else ""
        raise MuxError(error.code, told, remedy=remedy, **error.facts) from None


# --- the command


def handed_on(environ: Mapping[str, str], given: Mapping[str, str | None], folder: Path) -> dict[str, str]:
    """The settings that a daemon needs when it may be started from any folder, by name (`HANDED_ON`).

    A value that is None in `given` comes from the environment, if it is there. Relative paths are resolved from
    `folder`.
    """
    found = {name: value for name in HANDED_ON if (value := given.get(name) or environ.get(VARIABLES[name]))}
    return {
        name: value if name in ADDRESS else os.path.abspath(folder / Path(value).expanduser())
        for name, value in found.items()
    }


def launch_for(environ: Mapping[str, str], given: Mapping[str, str | None], folder: Path, agent: str | None) -> Launch:
    """The command and environment that start `stonemux mcp` from any folder.

    `given` holds flags by setting, see `handed_on`. Raises `invalid_field` for an invalid agent name.
    """
    env = {VARIABLES[name]: value for name, value in handed_on(environ, given, folder).items()}
    if agent is not None:
        env["STONEMUX_AGENT"] = KINDS["name"](Param("--agent", most=120), agent, {})
    command, *args = launch.command()
    if _is_installed(environ):  # the module's name survives when another Python replaces this one, a path does not
        args = [*INSTALLED]
    return Launch(command, (*args, "mcp"), env)


def _is_installed(environ: Mapping[str, str]) -> bool:
    """Whether this interpreter, started as a client will start it, finds this very package without being told where."""
    asked = "import importlib.util as u; s = u.find_spec('stonemux'); print(s.origin if s else '')"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = [sys.executable, "-P", "-c", asked]
        found = subprocess.run(command, env=probe.bare(environ), cwd="/", capture_output=True, text=True, timeout=10)
        return bool(found.stdout.strip()) and str(Path(found.stdout.strip()).resolve().parent.parent) == launch.root()
    return False


# --- the edit


def _edit(job: Job) -> tuple[str | None, str]:
    """The file's text (None if there is no file), and the text that replaces it."""
    old = _read(job.file)
    try:
        return old, _edited(job, old or "")
    except MuxError as error:
        line = error.facts.get("line", 1)
        told = f"{job.file}, line {line}: {error.message}; nothing was changed. Repair the file, then run this again"
        raise MuxError(error.code, told, file=str(job.file), line=line) from None


def _edited(job: Job, old: str) -> str:
    syntax, path = _syntax(job), (job.client.table, NAME)
    before = syntax.read(old)
    had = _entry(job.client, before)
    wanted = None if job.wanted is None else _merged(had, job.client, job.wanted)
    if had == wanted:
        return old
    new: str = syntax.drop(old, path) if wanted is None else syntax.put(old, path, wanted)
    if any("\ud800" <= character <= "\udfff" for character in new):  # a path or an old value is not valid text
        raise MuxError("client_config_broken", f"the entry {NAME!r} would contain text that UTF-8 cannot encode")
    after = syntax.read(new)
    if _entry(job.client, after) != wanted or _others(job.client, after) != _others(job.client, before):
        raise MuxError("client_config_broken", f"this program cannot edit its form; change the entry {NAME!r} by hand")
    return new


def _others(client: Client, document: Mapping[str, Any]) -> dict[str, Any]:
    """Everything except our entry; a table that is empty without it counts as absent."""
    table = document.get(client.table, {})
    others = {name: entry for name, entry in table.items() if name != NAME} if isinstance(table, dict) else table
    rest = {key: value for key, value in document.items() if key != client.table}
    return rest | {client.table: others} if others else rest


def _entry(client: Client, document: Mapping[str, Any]) -> Any:
    """Our entry in a document, or None."""
    table = document.get(client.table)
    return table.get(NAME) if isinstance(table, dict) else None


def _merged(had: Any, client: Client, wanted: Launch) -> dict[str, Any]:
    """The entry for `wanted`, including what the owner added to the existing entry."""
    old = had if isinstance(had, dict) else {}
    added = old["env"] if isinstance(old.get("env"), dict) else {}
    env = dict(wanted.env) | {name: value for name, value in added.items() if name not in OUR_ENVIRONMENT}
    ours = {**client.fixed, "command": wanted.command, "args": list(wanted.args), "env": env}
    if not env:
        del ours["env"]
    rest = {name: value for name, value in old.items() if name not in (*ours, "env", *FOREIGN_FORM)}
    return ours | dict(client.defaults) | rest


def _syntax(job: Job) -> Any:
    return SYNTAXES[job.client.syntax]


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


# --- the file


def _read(path: Path) -> str | None:
    """The file's text, line endings unchanged; None if there is no file."""
    try:
        if path.exists() and not path.is_file():
            raise _unwritable(path, "it is not a regular file")
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as trouble:
        line = trouble.object.count(b"\n", 0, trouble.start) + 1
        told = f"{path}, line {line}: is not UTF-8; nothing was changed. Repair the file, then run this again"
        raise MuxError("client_config_broken", told, file=str(path), line=line) from None
    except OSError as trouble:
        raise _unwritable(path, trouble.strerror or str(trouble)) from None


def _refuse_read_only(path: Path) -> None:
    """Refuse a file that its owner made read-only: replacing it would need only the folder's permission."""
    if path.exists() and (not path.stat().st_mode & 0o222 or not os.access(path, os.W_OK)):
        raise _unwritable(
            path, "it is read-only; make it writable (chmod u+w), or change the source that it is generated from"
        )


def _back_up(path: Path, text: str) -> Path:
    """Back the file up beside it, under the first name that is free or already holds the same text."""
    data = text.encode()
    number = 1
    while True:
        copied = path.with_name(f"{path.name}.bak-stonemux{'' if number == 1 else f'-{number}'}")
        try:
            if copied.read_bytes() == data:
                return copied
        except FileNotFoundError:
            if not copied.is_symlink():
                break
        number += 1
    with open(os.open(copied, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
    return copied


def _replace(path: Path, old: str | None, new: str, fresh_mode: int) -> bool:
    """Put `new` in the file's place, through symbolic links, with its mode; False if it is no longer `old`."""
    real = path.resolve()
    real.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
    try:
        with open(handle, "wb") as file:
            file.write(new.encode())
            file.flush()
            os.fsync(file.fileno())
        _take_after(real, Path(name), fresh_mode)
        if _read(real) != old:
            return False
        os.replace(name, real)
    finally:
        Path(name).unlink(missing_ok=True)
    return True


def _take_after(real: Path, copied: Path, fresh_mode: int) -> None:
    """Give the new file the owner and mode of the one that it will replace."""
    try:
        was = real.stat()
    except FileNotFoundError:
        copied.chmod(fresh_mode)
        return
    with contextlib.suppress(PermissionError):
        os.chown(copied, was.st_uid, was.st_gid)
    copied.chmod(stat.S_IMODE(was.st_mode))


def _unwritable(path: Path, why: str) -> MuxError:
    return MuxError("client_config_unwritable", f"{path}: {why}; nothing was changed", file=str(path))


# --- running a job


def run(job: Job, *, dry_run: bool, checked: bool, say: Callable[[str], None]) -> None:
    """Do a job and report its steps through `say`. Raises what `preview`, `write`, and `check` raise."""
    where = f"{job.client.title}, {job.scope} scope: {job.file}"
    if dry_run:
        say(preview(job).rstrip("\n") or f"{where}: {_unchanged(job)}")
        return
    changed, kept = write(job)
    done = "removed" if job.wanted is None else "configured"
    say(f"{where}: {done if changed else _unchanged(job)}")
    if kept:
        say(f"  the previous file: {kept}")
    if job.wanted is None:
        return
    if job.scope == "project":
        say("  it contains paths on this machine")
    if job.scope == "project" or job.client.always_noted:
        say(f"  {job.client.note}")
    if checked and (problem := foreign(job, entry(job))):
        say(f"  its command was not tried: {problem}")
    elif checked:
        say(f"  its command works: {len(check(job))} tools answered")


def _unchanged(job: Job) -> str:
    return "nothing to remove" if job.wanted is None else "already configured"
