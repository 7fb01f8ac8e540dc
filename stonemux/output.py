"""What a command prints: an answer in the requested form, bytes as they are, or a refusal."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from stonemux import screen
from stonemux.errors import MuxError
from stonemux.schema import Operation
from stonemux.verbs import CONTENT


def answer(operation: Operation, told: Any, options: Any, look: screen.Look) -> str:
    """An operation's answer as text: text unchanged; else as JSON, as ids, or in readable form."""
    if isinstance(told, str):
        return told.rstrip("\n")
    if options.json:
        return screen.as_json(told, sys.stdout)
    if options.quiet:
        return "\n".join(screen.ids(told))
    return screen.answer(operation, told, look)


def content(told: Any) -> str:
    """The text that is the substance of an answer. Raises `not_found` if there is none."""
    for thing in (told, *told.values()):
        for name in CONTENT:
            if isinstance(thing, dict) and isinstance(thing.get(name), str):
                return str(thing[name])
    raise MuxError("not_found", "this has no content; omit --raw")


def raw(text: str) -> None:
    """Write a content unchanged; on a terminal, a line feed follows it if it has none, for the prompt."""
    at_prompt = sys.stdout is not None and sys.stdout.isatty() and not text.endswith("\n")
    unchanged((text + "\n" * at_prompt).encode())


def unchanged(data: bytes) -> None:
    """Write bytes to standard output, whatever its encoding."""
    if sys.stdout is not None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def as_typed(message: str) -> str:
    """A message with operations named the way users type them; quoted text is left unchanged."""
    from stonemux import operations  # only needed for a refusal

    names = "|".join(re.escape(name) for name in operations.BY_NAME if "." in name)
    named = rf"(?<!['\w./-])(?:{names})(?!['\w-])"
    return re.sub(named, lambda found: f"`{operations.BY_NAME[found[0]].typed}`", message)


def refusal(error: MuxError, *, as_json: bool) -> int:
    """Print a refusal, with `as_json` also all of its facts; returns the exit status."""
    print(f"stonemux: {screen.safe(as_typed(error.message))}", file=sys.stderr)
    if as_json:
        told = error.body()
        if error.retry_after is not None:
            told["error"]["retry_after"] = error.retry_after
        print(screen.as_json(told, sys.stdout))
    return error.failure.exit


def mute() -> None:
    """Discard the rest of standard output, so that the interpreter does not try to write it again on exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
