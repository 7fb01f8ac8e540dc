"""Ask the running daemon how it is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from stonemux import VERSION, flags
from stonemux.errors import EXIT_OK, MuxError
from stonemux.screen import span


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings and the form of the answer."""
    flags.add_settings(parser)
    parser.add_argument("--json", action="store_true", help="the daemon's own answers, for programs")
    parser.add_argument("--check", action="store_true", help="exit with 6 when no daemon answers")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask, and print what was answered; that nobody answered is an answer, too."""
    from stonemux import operations
    from stonemux.datadir import read_owner_token
    from stonemux.remote import Remote

    settings = flags.settings(options, environ)
    try:
        token = environ.get("STONEMUX_TOKEN") or read_owner_token(settings.data_dir)
        with Remote(settings, token) as daemon:
            health, stats, license = (
                daemon.ask(operations.BY_NAME[name], {}) for name in ("health", "stats", "license.status")
            )
    except MuxError as error:
        if error.code != "unreachable":
            raise
        from stonemux import activation

        here = activation.standing(settings)
        if options.json:
            print(json.dumps({"running": False, "tier": here["tier"], "license": here, "version": VERSION}))
        else:
            print(f"stonemux {VERSION}: not running at {settings.host}:{settings.port}")
            print(f"  {'license':<10}{activation.standing_words(here)}")
        return error.failure.exit if options.check else EXIT_OK
    if options.json:
        print(json.dumps({"running": True, "health": health, "license": license, "stats": stats}))
    else:
        print(_text(f"{settings.host}:{settings.port}", health, license, stats))
    return EXIT_OK


def _text(address: str, health: Mapping[str, Any], license: Mapping[str, Any], stats: Mapping[str, Any]) -> str:
    tasks = ", ".join(f"{count} {status}" for status, count in stats["tasks"].items() if count) or "none"
    rows = [
        ("tier", health["tier"]),
        ("license", _license(license)),
        ("uptime", span(health["uptime"])),
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


def _license(told: Mapping[str, Any]) -> str:
    if "problem" in told:
        return str(told["problem"])
    granted = told["license"]
    if granted is None:
        return "none, the settings decide"
    until = f"until {granted['not_after']}" if granted["not_after"] else "for ever"
    return f"{granted['lic_id']}, {granted['tier']}, {granted['status']}, {until}"
