"""The command line: `serve`, `mcp`, `status`, `setup`, `backup`, `restore`, `doctor` and `reference`.

Statuses: 0 ok, 1 refused, 2 usage or settings, 3 not found, 4 data directory locked, 5 unsafe environment, 6 daemon out
of reach, 70 storage failed, 78 data refused. Errors are one line on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stonemux import VERSION
from stonemux.clients import CLIENTS, SCOPES
from stonemux.config import Settings, load
from stonemux.errors import EXIT_OK, EXIT_REFUSED, MuxError


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options, environ))
    except MuxError as error:
        print(f"stonemux: {error.message}", file=sys.stderr)
        return error.failure.exit
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more; end without a trace
        return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stonemux",
        description="A daemon through which the AI agents on one machine coordinate.",
        epilog="Start with: stonemux serve",
    )
    parser.add_argument("--version", action="version", version=f"stonemux {VERSION}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the daemon", description="Run the daemon in the foreground.")
    _add_settings(serve)
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="least important line to log")
    serve.add_argument("--log-format", choices=("text", "json"), help="how log lines look")
    serve.add_argument(
        "--accept-rollback",
        action="store_true",
        help="start although the database is older than its directory remembers",
    )
    serve.set_defaults(run=_serve)

    status = commands.add_parser(
        "status", help="show the running daemon", description="Ask the running daemon how it is."
    )
    _add_settings(status)
    status.add_argument("--json", action="store_true", help="the daemon's own answers, for programs")
    status.add_argument("--check", action="store_true", help="exit with 6 when no daemon answers")
    status.set_defaults(run=_status)

    setup = commands.add_parser(
        "setup",
        help="connect a client: claude, codex, gemini, cursor, vscode",
        description="Write stonemux into a client's MCP configuration, then start the command and list its tools. "
        "Address, data directory and settings file, by flag or from the environment, are handed on.",
    )
    setup.add_argument("client", choices=CLIENTS, help="the client to configure")
    setup.add_argument("--scope", choices=SCOPES, default="user", help="for all of this user's work, or this folder's")
    setup.add_argument("--agent", metavar="NAME", help="the agent that this client speaks for (STONEMUX_AGENT)")
    setup.add_argument("--dry-run", action="store_true", help="print the change as a diff and do nothing")
    setup.add_argument("--remove", action="store_true", help="take the entry out again")
    setup.add_argument("--no-check", action="store_true", help="do not start the command to see whether it works")
    _add_settings(setup)
    setup.set_defaults(run=_setup)

    mcp = commands.add_parser(
        "mcp",
        help="serve MCP on standard input and output",
        description="Serve the Model Context Protocol on standard input and output, for clients that start their "
        "servers. Starts the daemon if none answers. STONEMUX_AGENT names the agent that this session speaks for.",
    )
    _add_settings(mcp)
    mcp.set_defaults(run=_mcp)

    backup = commands.add_parser(
        "backup",
        help="copy the database, also while the daemon runs",
        description="Copy the database into the data directory's backups folder: through the daemon if one runs there, "
        "else directly.",
    )
    _add_settings(backup)
    backup.add_argument("--output", metavar="FILE", type=Path, help="put the copy here instead")
    backup.add_argument("--json", action="store_true", help="the answer as JSON, for programs")
    backup.set_defaults(run=_backup)

    restore = commands.add_parser(
        "restore",
        help="put a backup in the place of the database",
        description="Show what a backup holds and what it would replace, ask, and put it in place. The daemon must be "
        "stopped. The replaced database is kept beside it.",
    )
    restore.add_argument("file", metavar="FILE", type=Path, help="the copy; also by its name in the backups folder")
    _add_settings(restore)
    restore.add_argument("--yes", action="store_true", help="do not ask")
    restore.add_argument("--json", action="store_true", help="the outcome as JSON, for programs")
    restore.set_defaults(run=_restore)

    doctor = commands.add_parser(
        "doctor",
        help="look for what is wrong, and say what to do",
        description="Check Python, SQLite, the data directory, the database, backups, settings and the daemon, and say "
        "what to do about each finding. Changes nothing; the daemon may be running. Exits with 1 on a problem.",
    )
    _add_settings(doctor)
    doctor.add_argument("--full", action="store_true", help="check the whole database, not only its structure")
    doctor.add_argument("--json", action="store_true", help="the findings as JSON, for programs")
    doctor.set_defaults(run=_doctor)

    reference = commands.add_parser(
        "reference", help="print the reference", description="Print the reference of all operations, as Markdown."
    )
    reference.add_argument("--openapi", action="store_true", help="OpenAPI 3.1 instead of Markdown")
    reference.add_argument("--config", action="store_true", help="the example of the settings file instead")
    reference.set_defaults(run=_reference)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address of the daemon (default 127.0.0.1)")
    parser.add_argument("--port", help="port of the daemon (default 3392)")
    parser.add_argument("--data-dir", help="where the data lies (default ~/.stonemux)")
    parser.add_argument("--config", metavar="FILE", help="settings file (default: config.toml in the data directory)")


def _settings(options: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    flags = {
        name: value
        for name in ("host", "port", "data_dir", "log_level", "log_format")
        if (value := getattr(options, name, None)) is not None
    }
    return load(Path(options.config) if options.config else None, environ, flags)


def _serve(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from stonemux import daemon, logs

    settings = _settings(options, environ)
    logs.set_up(settings.log_level, settings.log_format)
    return daemon.serve(
        settings, accept_rollback=options.accept_rollback, say=lambda running: print(daemon.banner(running), flush=True)
    )


def _status(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from stonemux import operations, pool

    settings = _settings(options, environ)
    try:
        health = pool.ask(settings.host, settings.port, operations.BY_NAME["health"], {})
        stats = pool.ask(settings.host, settings.port, operations.BY_NAME["stats"], {})
    except MuxError as error:
        if error.code != "unreachable":
            raise
        if options.json:
            print(json.dumps({"running": False, "tier": settings.default_tier, "version": VERSION}))
        else:
            print(f"stonemux {VERSION}: not running at {settings.host}:{settings.port} (tier {settings.default_tier})")
        return error.failure.exit if options.check else EXIT_OK
    if options.json:
        print(json.dumps({"running": True, "health": health, "stats": stats}))
    else:
        print(_status_text(f"{settings.host}:{settings.port}", health, stats))
    return EXIT_OK


def _status_text(address: str, health: Mapping[str, Any], stats: Mapping[str, Any]) -> str:
    tasks = ", ".join(f"{count} {status}" for status, count in stats["tasks"].items() if count) or "none"
    rows = [
        ("tier", health["tier"]),
        ("uptime", _duration(health["uptime"])),
        ("agents", f"{stats['agents']['active']} active, {stats['agents']['stale']} stale"),
        ("messages", f"{stats['messages']['sent']} sent, {stats['messages']['unread']} unread"),
        ("tasks", tasks),
        ("state", f"{stats['state_keys']} keys"),
        ("channels", str(stats["channels"])),
        ("waiting", f"{stats['waiters']} calls"),
        ("storage", f"{sum(stats['storage'].values()) / 1024 / 1024:.1f} MiB"),
    ]
    head = f"stonemux {health['version']} at {address}: {health['status']}"
    return "\n".join([head, *(f"  {name:<10}{value}" for name, value in rows)])


def _duration(seconds: int) -> str:
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def _setup(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from stonemux import setup

    wanted, folder = None, Path.cwd()
    if not options.remove:
        _settings(options, environ)  # refuses what the configured command would refuse
        given = {name: getattr(options, name) for name in setup.HANDED_ON}
        wanted = setup.launch_for(environ, given, folder, options.agent)
    job = setup.Job(CLIENTS[options.client], options.scope, wanted, environ, folder)
    setup.run(job, dry_run=options.dry_run, checked=not options.no_check, say=print)
    return EXIT_OK


def _mcp(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from stonemux import stdio

    return stdio.serve(_settings(options, environ), Path(options.config) if options.config else None, environ)


def _backup(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from stonemux import upkeep

    made = upkeep.backup(_settings(options, environ), options.output)
    if options.json:
        print(json.dumps(made))
    else:
        print(f"{made['path']}\n  {made['bytes'] / 1024 / 1024:.1f} MiB, up to event {made['events_head']}")
    return EXIT_OK


def _restore(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from stonemux import upkeep

    def agreed() -> bool:
        if options.yes:
            return True
        if not sys.stdin.isatty():
            raise MuxError("not_confirmed", "nobody is there to agree; say --yes to restore without asking")
        print("Replace it? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def say(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    done = upkeep.restore(_settings(options, environ), options.file, say=say, agreed=agreed)
    if options.json:
        print(json.dumps(done))
        return EXIT_OK
    print("restored; start the daemon again")
    if done["kept"]:
        print(f"  the replaced database is {done['kept']}")
    print(f"  ids go on after event {done['events_head']} and message {done['message_seq']}")
    return EXIT_OK


def _doctor(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from stonemux import doctor

    trouble = None
    try:
        settings = _settings(options, environ)
    except MuxError as error:  # a finding, too; the rest is looked at without the file
        trouble, options.config = error, os.devnull
        settings = _settings(options, environ)
    findings = doctor.examine(settings, trouble, full=options.full)
    if options.json:
        print(json.dumps(doctor.as_json(findings)))
    else:
        print(doctor.as_text(findings))
    return EXIT_OK if doctor.all_well(findings) else EXIT_REFUSED


def _reference(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from stonemux import config, operations, reference

    if options.openapi:
        print(json.dumps(reference.openapi(operations.OPERATIONS, Settings(), VERSION), indent=2))
    elif options.config:
        print(config.example(), end="")
    else:
        print(reference.markdown(operations.OPERATIONS, Settings()), end="")
    return EXIT_OK
