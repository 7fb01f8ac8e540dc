"""Look at an agent's inbox. Takes nothing and marks nothing as read: `stonemux inbox update` does that.

examples:
  stonemux inbox writer
  stonemux inbox writer --full
  stonemux inbox writer --follow
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from stonemux import flags, output, screen
from stonemux.clock import Clock
from stonemux.errors import EXIT_OK, MuxError
from stonemux.operations import BY_NAME
from stonemux.remote import Remote
from stonemux.tail import Tail


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose inbox, what of it, and how."""
    parser.add_argument("agent", metavar="AGENT", nargs="?", help="whose inbox (STONEMUX_AGENT, unless given)")
    parser.add_argument("--full", action="store_true", help="whole contents in place of previews")
    parser.add_argument("--status", help="unread (default), read, archived or all")
    parser.add_argument("--limit", help="how many to show at most (default 100)")
    parser.add_argument("--follow", action="store_true", help="then show whole what arrives, until interrupted")
    parser.add_argument(
        "--json", action="store_true", help="the daemon's answer, for programs; --follow: one line per item"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    flags.add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Show the inbox, and follow it if asked to."""
    agent = options.agent or environ.get("STONEMUX_AGENT")
    if not agent:
        raise MuxError("missing_field", "whose inbox? Give an agent, or set STONEMUX_AGENT")
    given: dict[str, Any] = {"agent_id": agent}
    given |= {name: value for name in ("status", "limit") if (value := getattr(options, name)) is not None}
    if options.full or options.follow:
        given["full"] = True
    with Remote(flags.settings(options, environ), environ.get("STONEMUX_TOKEN")) as remote:
        answer = remote.ask(BY_NAME["inbox.list"], given)
        if not options.follow:
            print(_text(answer, options, environ))
            return EXIT_OK
        _follow(remote, agent, given, answer["items"], options, environ)
    return EXIT_OK


def _text(answer: Mapping[str, Any], options: argparse.Namespace, environ: Mapping[str, str]) -> str:
    look = screen.look(sys.stdout, environ, Clock().now_ms())
    if options.full and not options.json and not options.quiet:
        told = [screen.letter(item, look) for item in answer["items"]] or ["no items"]
        return "\n\n".join([*told, f"unread  {answer['unread']}"])
    return output.answer(BY_NAME["inbox.list"], answer, options, look)


def _follow(
    remote: Remote,
    agent: str,
    given: dict[str, Any],
    items: list[dict[str, Any]],
    options: argparse.Namespace,
    environ: Mapping[str, str],
) -> None:
    """Show each item once, the oldest first."""
    tail = Tail(remote, {"agent_id": agent, "types": ["message"]})
    tail.begin()
    newest = 0
    while True:
        for item in sorted(items, key=lambda item: int(item["message_id"])):
            if item["message_id"] > newest:
                newest = item["message_id"]
                _print(item, options, environ)
        items = []
        while not items:
            if tail.next():
                items = tail.ask(BY_NAME["inbox.list"], given)["items"]


def _print(item: Mapping[str, Any], options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    look = screen.look(sys.stdout, environ, Clock().now_ms())
    if options.json:
        print(screen.as_json(item, sys.stdout))
    else:
        print(item["id"] if options.quiet else screen.letter(item, look) + "\n")
    sys.stdout.flush()
