"""The command line: which commands there are, and how one is run.

A command consists of a row of `COMMANDS` and a module with `add_arguments(parser)` and `run(options, environ)`, which
returns the exit status. Only the chosen command's module is imported, so that a command does not load what only others
need.

Statuses: 0 ok, 1 refused, 2 usage or settings, 3 not found, 4 data directory locked, 5 unsafe environment, 6 daemon
unreachable, 70 storage failed, 78 data refused, 130 interrupted. Errors are one line on standard error.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from errno import ENOSPC
from importlib import import_module

from stonemux import VERSION
from stonemux.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_REFUSED, EXIT_USAGE, MuxError, did_you_mean, guess
from stonemux.record import Record


class Command(Record):
    """A row: the command's name, what it does in a few words, and its module in `stonemux.commands`."""

    name: str
    help: str
    module: str
    beside: bool = False
    """Whether an area of operations has the same name; the area's verbs take precedence."""


COMMANDS: tuple[Command, ...] = (
    Command("serve", "run the daemon", "serve"),
    Command("status", "show the running daemon", "status"),
    Command("setup", "connect a client: claude, codex, gemini, cursor, vscode", "setup"),
    Command("mcp", "serve MCP on standard input and output", "mcp"),
    Command("run", "run a command for each task or message", "run"),
    Command("service", "have the system run the daemon", "service"),
    Command("inbox", "show an agent's inbox, or follow it", "inbox", beside=True),
    Command("show", "show one message, inbox item, document, task, or channel by its id", "show"),
    Command("events", "print events, or follow them", "events", beside=True),
    Command("top", "watch agents, tasks, queues, and rates", "top"),
    Command("backup", "copy the database, even while the daemon is running", "backup"),
    Command("restore", "replace the database with a backup", "restore"),
    Command("doctor", "find problems, and say how to fix them", "doctor"),
    Command("activate", "activate a license key here", "activate"),
    Command("deactivate", "deactivate the license", "deactivate"),
    Command("license", "issue licenses: issue, show, server", "license", beside=True),
    Command("sigil", "the licensor's commands: issue, apply", "sigil"),
    Command("token", "issue a token for an agent", "token", beside=True),
    Command("export", "write messages as JSON lines", "exporting"),
    Command("import", "send the messages in a file; safe to repeat", "importing"),
    Command("audit", "verify an exported audit log, or print an anchor", "audit", beside=True),
    Command("completion", "print a script for shell completion", "completion"),
    Command("reference", "print the reference", "reference"),
)


HELP = ("-h", "--help")
VERSIONS = ("--version", "-V", "version")
HABITS = {
    "start": "serve",
    "daemon": "serve",
    "ping": "health",
    "info": "status",
    "config": "doctor",
    "ps": "top",
    "monitor": "events --follow",
    "subscribe": "events --follow",
    "tail": "events --follow",
    "follow": "events --follow",
    "logs": "events --follow",
    "ls": "agent discover",
    "agents": "agent discover",
    "tasks": "task list",
    "channels": "channel list",
    "messages": "msg list",
    "keys": "state list",
    "del": "state delete",
    "publish": "msg broadcast",
    "peek": "inbox",
    "put": "task post",
    "reserve": "task claim",
    "kick": "task requeue",
}
"""What users of other programs may type, and what it is called here."""

ENDING = (
    "Ctrl-C or SIGTERM stops a daemon (its process id is in daemon.pid in the data directory); stonemux service "
    "install restarts one that the system runs, and stonemux service remove stops it"
)


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run one command and return its exit status."""
    _fill_descriptors()
    words = sys.argv[1:] if arguments is None else arguments
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 - a closed input is an empty one, from here to the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: escape what its encoding lacks
    try:
        try:
            return _run(words, environ)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a reader that went away is handled
    except MuxError as error:
        from stonemux import output

        return output.refusal(error, as_json="--json" in words)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.startswith("stonemux"):
            raise
        from stonemux import output

        return output.refusal(_lacking(missing.name), as_json="--json" in words)
    except BrokenPipeError:
        from stonemux import output

        output.mute()  # nobody reads the output any more
        return EXIT_OK
    except OSError as error:
        if error.errno != ENOSPC:
            raise
        from stonemux import output

        output.mute()
        print(f"stonemux: cannot write: {error.strerror}", file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _lacking(module: str) -> MuxError:
    """The refusal of a command that needs more than this Python was built or packaged with."""
    return MuxError(
        "unsafe_environment",
        f"this command needs the module {module}, and this Python has none: {sys.executable}",
        remedy="use a Python 3.11 or newer with the whole standard library, on Linux or macOS",
    )


def _fill_descriptors() -> None:
    """Open what is closed of standard input, output, and error: a file or socket that got its number would get the log.

    Some supervisors start programs that way.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _run(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    if not arguments or arguments[0] in HELP:
        print(_help(), file=sys.stdout if arguments else sys.stderr)
        return EXIT_OK if arguments else EXIT_USAGE
    name, *rest = arguments
    if name == "help":
        return _run([*rest, "--help"], environ)
    if name in VERSIONS:
        print(f"stonemux {VERSION}")
        return EXIT_OK
    command = next((command for command in COMMANDS if command.name == name), None)
    if command is not None and not command.beside:
        return _run_command(command, rest, environ)
    from stonemux import operations, verbs

    here = verbs.areas(operations.OPERATIONS).get(verbs.ALIASES.get(name, name), {})
    verb = verbs.spelled(name, rest[0]) if rest else ""
    if verb not in here:
        verb = ""
    if verb in here:
        from stonemux.commands import operation

        return operation.run(here[verb], rest[1:] if verb else rest, environ)
    if command is not None:
        return _run_command(command, rest, environ, verbs.listed(name, here))
    if not here:
        raise MuxError("not_understood", f"{_unknown(name)} (see stonemux --help)")
    if rest and rest[0] not in HELP:
        raise MuxError("not_understood", f"{verbs.unknown(name, rest[0], here)} (see stonemux {name} --help)")
    print(f"usage: stonemux {name} VERB ...\n\n{verbs.listed(name, here)}", file=sys.stdout if rest else sys.stderr)
    return EXIT_OK if rest else EXIT_USAGE


def _run_command(command: Command, words: Sequence[str], environ: Mapping[str, str], also: str = "") -> int:
    from stonemux.parser import Parser

    module = import_module(f"stonemux.commands.{command.module}")
    parser = Parser(prog=f"stonemux {command.name}", description=module.__doc__, epilog=also)
    module.add_arguments(parser)
    status: int = module.run(parser.read(words), environ)
    return status


def _unknown(name: str) -> str:
    from stonemux import flags, operations, verbs

    if name.startswith("-"):
        flag = name.partition("=")[0]
        if flag in (*verbs.SHORT, *(known.typed for known in (*verbs.OUTPUT, *flags.PLACE))):
            return f"{flag} goes after the command: stonemux COMMAND {flag} ..."
        return f"unknown flag {flag} before a command"
    if name in ("stop", "restart", "kill"):
        return f"unknown command {name!r}; {ENDING}"
    areas = verbs.areas(operations.OPERATIONS)
    known = [*(command.name for command in COMMANDS), *areas, *verbs.ALIASES]
    meant = [f"stonemux {area} {name}" for area, here in areas.items() if name in here]
    if name in HABITS:
        meant = [f"stonemux {HABITS[name]}"]
    if not meant:
        meant = [guess(name, known)]
    return f"unknown command {name[:80]!r}{did_you_mean(' or '.join(meant))}"


def _help() -> str:
    from stonemux import operations, verbs

    areas = {
        area: ", ".join(filter(None, here)) or here[""].summary
        for area, here in verbs.areas(operations.OPERATIONS).items()
    }
    return "\n".join(
        [
            "usage: stonemux COMMAND ...",
            "       stonemux AREA VERB [--flag VALUE ...]",
            "",
            "A daemon through which the AI agents on one machine coordinate.",
            "",
            "commands:",
            *verbs.aligned((command.name, command.help) for command in COMMANDS),
            "",
            "areas and their verbs, each an operation of the daemon (message is msg):",
            *verbs.aligned(areas.items()),
            "",
            "Start with: stonemux serve. For help: stonemux COMMAND --help, stonemux AREA VERB --help",
        ]
    )
