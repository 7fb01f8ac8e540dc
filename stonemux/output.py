"""What a command says in the end: an answer in the form that was asked for, or a refusal."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from stonemux import screen
from stonemux.errors import MuxError
from stonemux.schema import Operation


def answer(operation: Operation, told: Any, options: Any, look: screen.Look) -> str:
    """The answer of an operation: text as it is; JSON, ids, or what people read."""
    if isinstance(told, str):
        return told.rstrip("\n")
    if options.json:
        return screen.as_json(told, sys.stdout)
    if options.quiet:
        return "\n".join(screen.ids(told))
    return screen.answer(operation, told, look)


def as_typed(message: str) -> str:
    """A message with operations named as they are typed; what it quotes stays as it is."""
    from stonemux import operations  # which only a refusal needs here

    names = "|".join(re.escape(name) for name in operations.BY_NAME if "." in name)
    named = rf"(?<!['\w./-])(?:{names})(?!['\w-])"
    return re.sub(named, lambda found: f"`{operations.BY_NAME[found[0]].typed}`", message)


def refusal(error: MuxError, *, as_json: bool) -> int:
    """Tell a refusal, to programs with all of its facts; returns the exit status."""
    print(f"stonemux: {screen.safe(as_typed(error.message))}", file=sys.stderr)
    if as_json:
        told = error.body()
        if error.retry_after is not None:
            told["error"]["retry_after"] = error.retry_after
        print(screen.as_json(told, sys.stdout))
    return error.failure.exit


def mute() -> None:
    """Let standard output's rest go nowhere, so that the interpreter's end does not try to write it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
