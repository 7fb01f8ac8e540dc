"""`stonemux service`: let the system start the daemon at login, and restart it after a failure.

It writes one file, a systemd user unit or a launchd agent, and the system's own command does the rest. Nothing needs
root. A file that stonemux did not write is never replaced or removed; an owner's changes go into a drop-in beside it
(`stonemux.service.d/`), which stays.

Logs go where the system puts them: to the journal, or on macOS to `daemon.log` in the data directory. The host may
rotate both; the daemon only appends.

The address and the paths of an installed service apply wherever neither a flag nor the environment overrides them, so
reinstalling it after an upgrade does not lead the daemon away from its data.
"""

from __future__ import annotations

import os
import plistlib
import shlex
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.parsers.expat import ExpatError

from stonemux import datadir, launch, pool
from stonemux.clients import home
from stonemux.clock import Clock
from stonemux.config import Settings
from stonemux.errors import MuxError
from stonemux.flags import typed
from stonemux.setup import HANDED_ON, handed_on

NAME = "stonemux"
MARK = "Written by: stonemux service install"
"""The text that a file must contain to be replaced or removed."""
START_MS = 15_000
LOOK_MS = 50
SETTLE_MS = 500
"""How long to wait while the system still removes an earlier service: launchd may need a few seconds."""
PATIENCE_S = 60
STOP_S = 30
"""How long a daemon may take to answer waiting calls and commit; then the system kills it."""

# Restarting does not help after these exits: bad usage or setting, directory held by another daemon, unsafe
# environment, data refused.
LASTING_STATUSES = (2, 4, 5, 78)

# Without namespaces (ProtectSystem, PrivateTmp, and the like): systemd has them for users only if the kernel lets users
# create namespaces, and a unit that asks for them elsewhere does not start.
UNIT = """\
# {mark}
# Change it with a drop-in: systemctl --user edit stonemux
[Unit]
Description=stonemux: the AI agents on this machine coordinate through it

[Service]
Type=exec
ExecStart={command}
ExecReload=kill -HUP $MAINPID
Restart=on-failure
RestartSec=1
RestartPreventExitStatus={lasting}
# A reload in the first moment of a start ends Python, before the daemon can heed it
RestartForceExitStatus=SIGHUP
TimeoutStopSec={stop}
NoNewPrivileges=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
{rest}
[Install]
WantedBy=default.target
"""

ALONE = """\
UMask=0077
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
"""
# A doorbell's command inherits all of the daemon's restrictions, and would end with the daemon. But Node cannot run
# without memory that becomes code, agents' sandboxes need namespaces, and work continues while the daemon restarts.
WITH_COMMANDS = """\
# Less than without webhooks.exec: commands as doorbells are bound by it, too
KillMode=process
"""


class Service(NamedTuple):
    """One system's service: a file, and the commands to load, unload, and query it."""

    file: Path
    text: str
    renew: tuple[tuple[str, ...], ...]
    """Commands that remove an earlier service before `load`; they may fail."""
    load: tuple[tuple[str, ...], ...]
    unload: tuple[tuple[str, ...], ...]
    ask: tuple[str, ...]
    """Exits with 0 if the service runs."""
    logs: str
    """The command that shows its log."""
    note: str


def describe(words: Sequence[str], settings: Settings, environ: Mapping[str, str], system: str) -> Service:
    """The service that runs `words` on this system (a name as in `sys.platform`)."""
    if any(not word.isprintable() for word in words):
        raise MuxError("bad_setting", "a service cannot use a path with control characters; choose another")
    file = file_of(environ, system)
    return _launchd(words, settings, file) if system == "darwin" else _systemd(words, settings, file)


def file_of(environ: Mapping[str, str], system: str) -> Path:
    """The path of the service's file on this system."""
    if system == "darwin":
        return home(environ) / f"Library/LaunchAgents/{NAME}.plist"
    return Path(environ.get("XDG_CONFIG_HOME") or home(environ) / ".config") / f"systemd/user/{NAME}.service"


def _systemd(words: Sequence[str], settings: Settings, file: Path) -> Service:
    unit, control = file.name, ("systemctl", "--user")
    return Service(
        file=file,
        text=UNIT.format(
            mark=MARK,
            command=" ".join([_for_systemd(words[0], variables=False), *map(_for_systemd, words[1:])]),
            lasting=" ".join(map(str, LASTING_STATUSES)),
            stop=STOP_S,
            rest=WITH_COMMANDS if settings.webhooks_exec else ALONE,
        ),
        renew=(),
        load=((*control, "daemon-reload"), (*control, "enable", unit), (*control, "restart", unit)),
        unload=((*control, "disable", "--now", unit), (*control, "daemon-reload")),
        ask=(*control, "is-active", "--quiet", unit),
        logs=f"journalctl --user -u {NAME}",
        note="it runs while you are logged in; to keep it running: loginctl enable-linger",
    )


def _for_systemd(word: str, *, variables: bool = True) -> str:
    """A word of a command line in a unit's syntax; `variables`: systemd expands them in every word but the first."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$" if variables else "$")
    return f'"{word}"' if not word or any(c in word for c in " '\";") else word


def _launchd(words: Sequence[str], settings: Settings, file: Path) -> Service:
    log = str(settings.data_dir / "daemon.log")
    told: dict[str, object] = {
        "Label": NAME,
        "ProgramArguments": list(words),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ExitTimeOut": STOP_S,
        "ProcessType": "Adaptive",
        "SoftResourceLimits": {"NumberOfFiles": 4096},
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    if not settings.webhooks_exec:  # with it, it would also apply to what a doorbell starts
        told["Umask"] = 0o077
    text = plistlib.dumps(told).decode().replace("<plist", f"<!-- {MARK} -->\n<plist", 1)
    domain = f"gui/{os.getuid()}"
    target = f"{domain}/{NAME}"
    return Service(
        file=file,
        text=text,
        renew=(("launchctl", "bootout", target),),
        load=(("launchctl", "bootstrap", domain, str(file)),),
        unload=(("launchctl", "bootout", target),),
        ask=("launchctl", "print", target),
        logs=f"tail {log}",
        note="it starts when you log in",
    )


def words_for(environ: Mapping[str, str], given: Mapping[str, str | None], folder: Path) -> list[str]:
    """The daemon's command, with the address and paths that flags or the environment name.

    A service has neither this folder nor this environment, so they go into the command (`setup.handed_on`).
    """
    words = [*launch.command(), "serve"]
    for name, value in handed_on(environ, given, folder).items():
        words += [typed(name), value]
    return words


def kept(environ: Mapping[str, str], system: str) -> dict[str, str]:
    """The address and paths of the installed service, by setting; none if there is no service of ours."""
    try:
        text = file_of(environ, system).read_text(encoding="utf-8")
        if MARK not in text:
            return {}
        words = plistlib.loads(text.encode())["ProgramArguments"] if system == "darwin" else _of_systemd(text)
        flags = words[words.index("serve") + 1 :]
        told = dict(zip(flags[::2], flags[1::2], strict=True))
    except (OSError, ValueError, KeyError, ExpatError, plistlib.InvalidFileException):
        return {}
    names = {typed(name): name for name in HANDED_ON}
    return {names[flag]: value for flag, value in told.items() if flag in names}


def _of_systemd(text: str) -> list[str]:
    """The words of the command in a unit that we wrote."""
    (line,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line.partition("=")[2])]


class Installer:
    """Installs, removes, and queries one service; reports each step to `say`."""

    def __init__(
        self, service: Service, settings: Settings, environ: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self._service = service
        self._settings = settings
        self._environ = environ
        self._say = say
        self._clock = Clock()
        self._pause = threading.Condition()

    def install(self, *, dry_run: bool, started: bool) -> None:
        """Write the file, load it, and wait until the daemon answers.

        Raises `service_foreign` for a file that stonemux did not write, `data_dir_locked` while a daemon runs that the
        system did not start, `service_failed` if the system refuses, `unreachable` if the daemon does not come up.
        """
        service, text = self._service, self._read()
        commands = service.load if started else ()
        if started and not dry_run:
            self._refuse_another()
        if text != service.text:
            self._say(f"{'would write' if dry_run else 'writing'} {service.file}:")
            self._say("".join(f"  {line}\n" for line in service.text.splitlines()).rstrip("\n"))
        else:
            self._say(f"{service.file}: already up to date")
        if dry_run:
            self._tell(commands)
            return
        if text != service.text:
            _write(service.file, service.text)
        self._make_place()
        patience_ms = 0
        for command in service.renew if started else ():
            if self._try(command):
                patience_ms = START_MS
        try:
            self._run(commands, patience_ms=patience_ms)
        except MuxError as error:
            remedy = (
                f"{service.file} stays: install again from a login session of this user (containers and su have no "
                "session), or remove it with: stonemux service remove"
            )
            raise MuxError(error.code, error.message, remedy=remedy) from error
        if started:
            self._await()
        self._say(f"log: {service.logs}")
        self._say(service.note)

    def remove(self, *, dry_run: bool) -> None:
        """Stop the service and remove its file, even if the system refuses; the data stays.

        Raises `service_foreign`.
        """
        service = self._service
        if self._read() is None:
            self._say(f"{service.file}: no such file; nothing to remove")
            return
        if dry_run:
            self._tell(service.unload[:1])
            self._say(f"would remove {service.file}")
            self._tell(service.unload[1:])
            return
        self._attempt(service.unload[:1])
        service.file.unlink()
        self._attempt(service.unload[1:])
        self._say(f"removed {service.file}; the data in {self._settings.data_dir} is kept")

    def status(self) -> dict[str, object]:
        """The status: the file, whether it is current, whether the service runs, and whether its daemon answers."""
        text = self._read()
        return {
            "file": str(self._service.file),
            "installed": text is not None,
            "current": text == self._service.text,
            "running": text is not None and self._try(self._service.ask),
            "answers": self._answers(),
        }

    def _read(self) -> str | None:
        """The file's text; None if there is no file."""
        file = self._service.file
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as trouble:
            raise MuxError("service_failed", f"{file} cannot be read: {trouble.strerror}") from trouble
        if MARK not in text:
            raise MuxError(
                "service_foreign", f"{file} was not written by stonemux, so it was left alone; move it away first"
            )
        return text

    def _refuse_another(self) -> None:
        place = self._settings.data_dir
        if place.is_dir() and datadir.is_held(place) and not self._try(self._service.ask):
            holder = datadir.noted_pid(place)
            raise MuxError(
                "data_dir_locked",
                f"a daemon{f' (pid {holder})' if holder else ''} that the system did not start is using {place}; stop "
                f"it first{f' (kill {holder})' if holder else ''}, then install again. Nothing was changed",
            )

    def _make_place(self) -> None:
        """Make the data directory, because the system opens the log in it before the daemon starts."""
        place = self._settings.data_dir
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as trouble:
            raise MuxError("service_failed", f"{place} cannot be created: {trouble.strerror or trouble}") from trouble

    def _tell(self, commands: Sequence[Sequence[str]]) -> None:
        for command in commands:
            self._say(f"would run {' '.join(command)}")

    def _run(self, commands: Sequence[Sequence[str]], *, patience_ms: int) -> None:
        deadline = self._clock.ticks_ms() + patience_ms
        for command in commands:
            self._say(f"running {' '.join(command)}")
            while (said := _outcome(command, self._environ)) is not None:
                if self._clock.ticks_ms() >= deadline:
                    raise MuxError("service_failed", f"{' '.join(command)}: {said}")
                self._rest(SETTLE_MS)

    def _rest(self, ms: int) -> None:
        with self._pause:
            self._clock.wait(self._pause, self._clock.ticks_ms() + ms)

    def _attempt(self, commands: Sequence[Sequence[str]]) -> None:
        for command in commands:
            said = _outcome(command, self._environ)
            self._say(f"running {' '.join(command)}{f': {said}' if said else ''}")

    def _try(self, command: Sequence[str]) -> bool:
        return _outcome(command, self._environ) is None

    def _answers(self) -> bool:
        return pool.answers(self._settings, timeout=2)

    def _await(self) -> None:
        deadline = self._clock.ticks_ms() + START_MS
        address = self._settings.authority
        while not self._answers():
            if self._clock.ticks_ms() >= deadline:
                raise MuxError(
                    "unreachable", f"it is installed, but no daemon answers at {address}; see {self._service.logs}"
                )
            self._rest(LOOK_MS)
        self._say(f"it answers at {address}")


def as_text(found: Mapping[str, object]) -> str:
    """A status in readable form."""
    if not found["installed"]:
        return f"not installed ({found['file']}); install it with: stonemux service install"
    lines = [str(found["file"])]
    if not found["current"]:
        lines.append("  differs from what this version would write; install it again")
    lines.append("  the system is running it" if found["running"] else "  the system is not running it")
    lines.append("  a daemon answers" if found["answers"] else "  no daemon answers")
    return "\n".join(lines)


def _outcome(command: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """None if a command succeeds, else what it printed or why it could not be run."""
    try:
        done = subprocess.run(
            command, env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S
        )
    except FileNotFoundError:
        return "there is no such command on this system; --no-start writes only the file, without it"
    except (OSError, subprocess.SubprocessError) as trouble:
        return str(trouble)
    if done.returncode == 0:
        return None
    return (done.stderr or done.stdout).strip() or f"it exited with status {done.returncode}"


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)
        os.replace(temporary, file)
    except OSError as trouble:
        raise MuxError("service_failed", f"{file} cannot be written: {trouble.strerror or trouble}") from trouble
