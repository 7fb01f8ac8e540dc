"""Show one thing by its id; takes nothing and marks nothing as read.

Ids are numbers (messages), UUIDs (tasks), inbox-... (items), doc-... (documents), and ch-... (channels).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from typing import Any

from stonemux import flags, output, screen
from stonemux.clock import Clock
from stonemux.errors import EXIT_OK, MuxError
from stonemux.operations import BY_NAME
from stonemux.remote import Remote, of_user

KINDS = (
    (re.compile(r"inbox-.+"), "inbox.show", "id"),
    (re.compile(r"doc-.+"), "document.get", "id"),
    (re.compile(r"ch-.+"), "channel.get", "channel"),
    (re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"), "task.get", "task_id"),
    (re.compile(r"[0-9]{1,19}"), "msg.status", "id"),
)
"""The pattern of an id, the operation that shows it, and the parameter that takes it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The id, and the output format."""
    parser.add_argument("id", metavar="ID", help="the id to show")
    parser.add_argument("--json", action="store_true", help="print the daemon's answer as JSON, for programs")
    parser.add_argument("--raw", action="store_true", help="print only the content, unchanged")
    flags.add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Fetch it, and print it."""
    found = next(((name, param) for form, name, param in KINDS if form.fullmatch(options.id)), None)
    if found is None:
        raise MuxError(
            "not_understood",
            f"{options.id[:80]!r} is not an id: a number, a task's UUID, or inbox-..., doc-..., ch-...; "
            "agent.get, channel.get, and state.get show something by its name",
        )
    with of_user(flags.settings(options, environ), environ) as remote:
        answer = remote.ask(BY_NAME[found[0]], {found[1]: options.id})
        if found[0] == "msg.status":
            answer = {"message": _message(remote, int(options.id)), "recipients": answer["recipients"]}
    if options.raw:
        output.raw(output.content(answer))
    elif options.json:
        print(screen.as_json(answer, sys.stdout))
    else:
        print(_text(found[0], answer, screen.look(sys.stdout, environ, Clock().now_ms())))
    return EXIT_OK


def _message(remote: Remote, number: int) -> dict[str, Any]:
    for message in remote.ask(BY_NAME["msg.list"], {"before": number + 1, "limit": 1})["messages"]:
        if message["id"] == number:
            found: dict[str, Any] = message
            return found
    raise MuxError("message_not_found", f"message {number} is no longer kept")


def _text(name: str, answer: Mapping[str, Any], look: screen.Look) -> str:
    if name == "msg.status":
        recipients = screen.answer(BY_NAME[name], {"recipients": answer["recipients"]}, look)
        return screen.letter(answer["message"], look) + "\n\n" + recipients
    return screen.letter(answer["item"], look) if "item" in answer else screen.answer(BY_NAME[name], answer, look)
