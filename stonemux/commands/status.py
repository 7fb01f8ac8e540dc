"""Show the state of the running daemon."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stonemux import VERSION, flags
from stonemux.errors import EXIT_OK, MuxError
from stonemux.screen import counted, safe, span

if TYPE_CHECKING:
    from stonemux.config import Settings
    from stonemux.remote import Remote


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings and the output format."""
    flags.add_settings(parser)
    parser.add_argument("--json", action="store_true", help="print the daemon's own answers as JSON, for programs")
    parser.add_argument("--check", action="store_true", help="exit with status 6 if no daemon answers")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask, and print the answers; the absence of a daemon is an answer, too."""
    settings = flags.settings(options, environ)
    try:
        health, stats, license = _answers(settings, environ.get("STONEMUX_TOKEN"))
    except MuxError as error:
        if error.code != "unreachable":
            raise
        from stonemux import activation

        here = activation.standing(settings)
        if options.json:
            print(json.dumps({"running": False, "tier": here["tier"], "license": here, "version": VERSION}))
        else:
            print(f"stonemux {VERSION}: not running at {settings.authority}")
            print(f"  {'license':<10}{activation.standing_words(here)}")
        return error.failure.exit if options.check else EXIT_OK
    if options.json:
        print(json.dumps({"running": True, "health": health, "license": license, "stats": stats}))
    else:
        print(safe(_text(settings.authority, health, license, stats)))  # whoever listens there may not be a daemon
    return EXIT_OK


def _answers(settings: Settings, token: str | None) -> list[Any]:
    """Health, stats, and license. Uses the owner's token if no token is given; another daemon may need none."""
    from stonemux.datadir import read_owner_token
    from stonemux.remote import Remote

    foreign = None
    try:
        token = token or read_owner_token(settings.data_dir, settings.authority)
    except MuxError as error:
        foreign = error
    try:
        with Remote(settings, token) as daemon:
            return _ask(daemon)
    except MuxError as error:
        raise foreign if foreign is not None and error.code == "token_missing" else error from None


def _ask(daemon: Remote) -> list[Any]:
    from stonemux import operations

    return [daemon.ask(operations.BY_NAME[name], {}) for name in ("health", "stats", "license.status")]


def _text(address: str, health: Mapping[str, Any], license: Mapping[str, Any], stats: Mapping[str, Any]) -> str:
    tasks = ", ".join(f"{count} {status}" for status, count in stats["tasks"].items() if count) or "none"
    rows = [
        ("tier", health["tier"]),
        ("license", _license(license)),
        ("uptime", span(health["uptime"])),
        ("agents", f"{stats['agents']['active']} active, {stats['agents']['stale']} stale"),
        ("messages", f"{stats['messages']['sent']} sent, {stats['messages']['unread']} unread"),
        ("tasks", tasks),
        ("state", counted(stats["state_keys"], "key")),
        ("channels", str(stats["channels"])),
        ("waiting", counted(stats["waiters"], "call")),
        ("storage", f"{sum(stats['storage'].values()) / 1024 / 1024:.1f} MiB"),
    ]
    head = f"stonemux {health['version']} at {address}: {health['status']}"
    return "\n".join([head, *(f"  {name:<10}{value}" for name, value in rows)])


def _license(told: Mapping[str, Any]) -> str:
    if "problem" in told:
        return str(told["problem"])
    granted = told["license"]
    if granted is None:
        return "none; the settings decide"
    until = f"until {granted['not_after']}" if granted["not_after"] else "no expiration"
    return f"{granted['lic_id']}, {granted['tier']}, {granted['status']}, {until}"
