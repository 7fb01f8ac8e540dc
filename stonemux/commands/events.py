"""Print the newest events, one per line; --follow continues with new ones.

examples:
  stonemux events --follow
  stonemux events --follow --types message,task_posted --channel default
  stonemux events --after 120 --json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from stonemux import flags, screen
from stonemux.clock import Clock
from stonemux.errors import EXIT_OK, MuxError
from stonemux.excerpts import shortened
from stonemux.remote import of_user
from stonemux.tail import WAIT_S, Tail

BACK = 20
EMPTY: tuple[Any, ...] = (None, [], {})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which events, and in which form."""
    parser.add_argument("-f", "--follow", action="store_true", help="keep printing new events until interrupted")
    parser.add_argument("--types", metavar="TYPE,...", help="only events of these types")
    parser.add_argument("--channel", metavar="NAME", help="only events in this channel")
    parser.add_argument("--agent-id", metavar="NAME", help="only events that concern this agent")
    parser.add_argument("--after", metavar="ID", help=f"start after this id (default: {BACK} events ago)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line, for programs")
    flags.add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the existing events, and follow if asked to."""
    given = {name: value for name in ("types", "channel", "agent_id") if (value := getattr(options, name)) is not None}
    with of_user(flags.settings(options, environ), environ) as remote:
        tail = Tail(remote, given)
        tail.begin(_id(options.after), back=BACK)
        while options.follow or tail.after < tail.head:
            for event in tail.next(timeout=WAIT_S if options.follow else 0):
                print(_line(event, options, environ))
            print(end="", flush=True)
    return EXIT_OK


def _id(text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise MuxError("invalid_field", f"--after is {text[:80]!r}; it must be an event's id")
    return None if text is None else int(text)


def _line(event: Mapping[str, Any], options: argparse.Namespace, environ: Mapping[str, str]) -> str:
    if options.json:
        return screen.as_json(event, sys.stdout)
    look = screen.look(sys.stdout, environ, Clock().now_ms())
    at = datetime.fromisoformat(event["at"]).astimezone().strftime("%H:%M:%S")
    told = ", ".join(
        f"{name} {screen.safe(_short(value))}" for name, value in event["data"].items() if value not in EMPTY
    )
    kind = look.tone("1", f"{event['type']:<18}")
    head = f"{look.tone('2', at)}  {event['id']:>6}  {kind}"
    return f"{head}  {screen.safe(event['channel'] or '-')}  {told}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else screen.as_json(value, sys.stdout)
    return shortened(" ".join(text.split()), 80)
