"""Calls one operation of the table on the daemon: `stonemux AREA VERB`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stonemux import flags, output, screen, verbs
from stonemux.clock import Clock
from stonemux.errors import EXIT_OK, MuxError
from stonemux.operations import BY_NAME
from stonemux.remote import Remote, of_user
from stonemux.schema import Operation

if TYPE_CHECKING:
    from stonemux.owner import Here


def run(operation: Operation, words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Call the operation that the words describe, and print the answer."""
    try:
        agent, token = environ.get("STONEMUX_AGENT"), environ.get("STONEMUX_TOKEN")
        typed = as_broadcast(verbs.read(operation, words, agent=agent, token=token, stdin=standard_input))
    except MuxError as error:
        error.message += f" (see {operation.typed} --help)"
        raise
    if typed.options.help:
        print(verbs.verb_help(operation))
        return EXIT_OK
    settings = flags.settings(typed.options, environ)
    if typed.operation.owner:
        from stonemux import owner  # loads the whole program, which other commands do not need

        with owner.desk(settings, environ.get("STONEMUX_TOKEN")) as desk:
            return _ask(desk, typed, environ)
    with of_user(settings, environ) as remote:
        if typed.operation.kind in ("stream", "document", "lines"):
            for piece in remote.stream(typed.operation, typed.given):
                output.unchanged(piece)
            return EXIT_OK
        return _ask(remote, typed, environ)


def as_broadcast(typed: verbs.Typed) -> verbs.Typed:
    """Turn a message to a channel without a recipient into a broadcast, unless its type determines the recipient."""
    operation, given, options = typed
    if operation.name != "msg.send" or "channel" not in given or "to" in given or "type" in given:
        return typed
    broadcast = BY_NAME["msg.broadcast"]
    for name in given:
        if name not in broadcast.by_name:
            problem = f"{verbs.flag(operation.by_name[name])} needs --to; without it, this goes to the whole channel"
            raise MuxError("missing_field", problem, parameter="to")
    return verbs.Typed(broadcast, given, options)


def standard_input() -> str:
    """All of standard input. Raises `invalid_utf8`."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise MuxError("invalid_utf8", "standard input is not UTF-8 text") from None


def _ask(remote: Remote | Here, typed: verbs.Typed, environ: Mapping[str, str]) -> int:
    operation, given, options = typed
    if options.idempotency_key is not None:
        given["idempotency_key"] = options.idempotency_key
    if operation.takes and sys.stdout is None:
        raise MuxError("bad_file", "standard output is closed, so the messages would be lost; nothing was taken")
    clock, interval = Clock(), _interval(options.interval)
    before = None
    while True:
        with remote.asked(operation, given) as answer:
            look = screen.look(sys.stdout, environ, clock.now_ms())
            if options.raw and not options.watch:
                output.raw(output.content(answer))
                return EXIT_OK
            text = output.content(answer) if options.raw else output.answer(operation, answer, options, look)
            if options.watch and look.width is not None:
                sys.stdout.write("\x1b[H\x1b[2J")
            if text and text != before:
                print(text, flush=True)  # messages count as received only once they could be written
        if remote.replayed:
            print("stonemux: this was already done; here is the first answer again", file=sys.stderr)
        if not options.watch:
            return EXIT_OK
        before = text if look.width is None else None
        clock.pause(interval)


def _interval(text: str | None) -> int:
    """The milliseconds between two calls."""
    try:
        seconds = float(text or 2)
    except ValueError:
        seconds = -1
    if not 0.1 <= seconds <= 86_400:
        raise MuxError("invalid_field", f"--interval is {text}; it must be a number of seconds from 0.1 to 86400")
    return round(seconds * 1000)
