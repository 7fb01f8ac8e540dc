"""Show an agent's inbox. Takes nothing and marks nothing as read: `stonemux inbox update` does that.

examples:
  stonemux inbox writer
  stonemux inbox writer --full
  stonemux inbox writer --follow
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from stonemux import flags, output, screen
from stonemux.clock import Clock
from stonemux.errors import EXIT_OK, MuxError
from stonemux.operations import BY_NAME
from stonemux.remote import Remote, of_user
from stonemux.tail import Tail


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose inbox, which items, and in which form."""
    parser.add_argument("agent", metavar="AGENT", nargs="?", help="whose inbox (default: STONEMUX_AGENT)")
    parser.add_argument("--full", action="store_true", help="print full contents instead of previews")
    parser.add_argument(
        "--status",
        help="unread (default), read, archived, or all; with --follow also for new items, where all is the default",
    )
    parser.add_argument("--limit", help="maximum number of existing items to show (default 100)")
    parser.add_argument("--before", metavar="ID", help="only existing items of messages whose ids are below this one")
    parser.add_argument("-f", "--follow", action="store_true", help="then show new items in full until interrupted")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the daemon's answer as JSON, for programs; --follow: one line per item",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    flags.add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Show the inbox, and follow it if asked to."""
    given = {name: value for name in ("status", "limit", "before") if (value := getattr(options, name)) is not None}
    if options.full or options.follow:
        given["full"] = True
    with of_user(flags.settings(options, environ), environ) as remote:
        given["agent_id"] = options.agent or environ.get("STONEMUX_AGENT") or _bound(remote, environ)
        if options.follow:
            _follow(remote, given, options, environ)
        print(_text(remote.ask(BY_NAME["inbox.list"], given), options, environ))
    return EXIT_OK


def _bound(remote: Remote, environ: Mapping[str, str]) -> str:
    """The agent that the user's token is bound to."""
    missing = MuxError("missing_field", "whose inbox? Pass an agent, or set STONEMUX_AGENT")
    if not environ.get("STONEMUX_TOKEN"):
        raise missing
    try:
        return str(remote.ask(BY_NAME["agent.heartbeat"], {})["agent_id"])
    except MuxError as error:
        raise missing if error.code == "missing_field" else error from None


def _text(answer: Mapping[str, Any], options: argparse.Namespace, environ: Mapping[str, str]) -> str:
    look = screen.look(sys.stdout, environ, Clock().now_ms())
    if options.full and not options.json and not options.quiet:
        told = [screen.letter(item, look) for item in answer["items"]] or ["no items"]
        return "\n\n".join([*told, f"unread  {answer['unread']}"])
    return output.answer(BY_NAME["inbox.list"], answer, options, look)


def _follow(remote: Remote, given: dict[str, Any], options: argparse.Namespace, environ: Mapping[str, str]) -> NoReturn:
    """Show each item once, oldest first: the existing ones, and then all that arrive."""
    tail = Tail(remote, {"agent_id": given["agent_id"], "types": ["message"]})
    tail.begin()
    while True:
        for items in _arriving(tail, given):
            for item in reversed(items):
                _print(item, options, environ)


def _arriving(tail: Tail, given: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Yield the existing items, then those that arrive, newest first each time; ends if the daemon's log started over.

    The daemon then has other data, for example from a backup: its ids may start lower, and an earlier id may belong to
    another message.
    """
    agent = {"agent_id": given["agent_id"]}
    newest = max(_ids(tail.ask(BY_NAME["inbox.list"], agent | {"status": "all", "limit": 1})["items"]), default=0)
    items = tail.ask(BY_NAME["inbox.list"], given)["items"]
    shown = _ids(items)
    # An item that the agent's own poll takes at once is already read when we look for it, so look at all of them.
    later = agent | {"status": given.get("status", "all"), "full": True}
    while True:
        yield items
        while not tail.next():
            if tail.anew:
                return
        items = [item for item in _after(tail, later, newest) if item["message_id"] not in shown]
        newest = max(_ids(items), default=newest)


def _after(tail: Tail, given: dict[str, Any], newest: int) -> list[dict[str, Any]]:
    """All items of messages newer than `newest`, newest first."""
    items: list[dict[str, Any]] = []
    before: dict[str, int] = {}
    while True:
        answer = tail.ask(BY_NAME["inbox.list"], given | before)
        items += [item for item in answer["items"] if item["message_id"] > newest]
        if "more" not in answer or answer["items"][-1]["message_id"] <= newest:
            return items
        before = {"before": answer["items"][-1]["message_id"]}


def _ids(items: list[dict[str, Any]]) -> set[int]:
    return {item["message_id"] for item in items}


def _print(item: Mapping[str, Any], options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    look = screen.look(sys.stdout, environ, Clock().now_ms())
    if options.json:
        print(screen.as_json(item, sys.stdout), flush=True)
    else:
        print(item["id"] if options.quiet else screen.letter(item, look) + "\n", flush=True)
