"""Send the messages in a file: JSON objects, one per line, with the parameters of msg.send.

A line without `to`, or to *, goes to all members of its channel. It accepts what `stonemux export` writes: replies stay
replies, long contents become documents. A refused line is reported by its number, and the import continues.

Repeating an import is safe: for 24 hours, a line that was sent is not sent again.

A file is sent a hundred messages at a time, lines from a pipe as they come.

examples:
  stonemux import messages.jsonl
  printf '{"from": "ann", "to": "bob", "content": "hi"}' | stonemux import -
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from stonemux import flags, output, screen
from stonemux.errors import EXIT_NOT_FOUND, EXIT_OK, EXIT_REFUSED, EXIT_USAGE, MuxError
from stonemux.operations import BY_NAME
from stonemux.progress import Progress
from stonemux.remote import Remote, of_user
from stonemux.schema import shown
from stonemux.vocabulary import EVERYBODY, SYSTEM

if TYPE_CHECKING:
    from stonemux.config import Settings
    from stonemux.schema import Operation

AT_ONCE = 100
"""How many messages are sent in one request; more would gain little, and hold up other senders."""
MOST_TOLD = 20
"""How many refused lines are reported one by one."""
OF_A_LINE = (EXIT_REFUSED, EXIT_USAGE, EXIT_NOT_FOUND)
"""Exit statuses of refusals that may concern a single line only."""
SEND, BROADCAST, NOTIFY = BY_NAME["msg.send"], BY_NAME["msg.broadcast"], BY_NAME["agent.notify"]
MADE = frozenset(name.rstrip("?") for name in BY_NAME["msg.list"].returns["messages"][0]) - frozenset(SEND.by_name)
"""The fields of an exported message that sending creates anew."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, and the output format."""
    parser.add_argument("file", metavar="FILE", help="the file; -: standard input")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON, for programs")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the ids of the messages")
    flags.add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Send line by line, and report the outcome."""
    settings = flags.settings(options, environ)
    with _opened(options.file) as lines, of_user(settings, environ) as remote:
        total = _size(lines)
        job = Import(remote, settings, ids=options.quiet, at_once=AT_ONCE if total else 1)
        try:
            with Progress("importing", total) as bar:
                done = 0
                for number, line in enumerate(lines, 1):
                    job.take(number, line)
                    done += len(line)
                    bar.show(done, f"{number} lines" + (f", {len(job.refused)} refused" if job.refused else ""))
                job.send()
        finally:
            job.report(as_json=options.json, quiet=options.quiet)
    return EXIT_REFUSED if job.refused else EXIT_OK


class _Waiting(NamedTuple):
    """A line that is ready to be sent."""

    number: int
    call: dict[str, Any]
    exported_id: Any


class Import:
    """Turns lines into messages; `refused` holds the lines that were refused.

    Up to `at_once` messages are sent in one request. A line that has to follow them, because it is another kind of call
    or refers to one of them, has them sent first.
    """

    def __init__(self, remote: Remote, settings: Settings, *, ids: bool, at_once: int) -> None:
        self.refused: list[dict[str, Any]] = []
        self.imported = 0
        self.repeated = 0
        self._remote = remote
        self._most = settings.max_message_size
        self._ids = ids
        self._anew: dict[int, int] = {}
        """The new ids of messages by their exported ids."""
        self._at_once = at_once
        self._waiting: list[_Waiting] = []
        self._size = 0  # of those, as JSON

    def take(self, number: int, line: bytes) -> None:
        """Send one line, at once or with later ones. Raises errors that would affect every other line, too."""
        if not line.strip():
            return
        try:
            told = _object(line)
        except MuxError as error:
            self.send()
            self._refuse(number, error)
            return
        if self._refers_to_waiting(told):
            self.send()
        key = f"import-{number}-{sha256(line).hexdigest()[:40]}"
        try:
            operation, call = self._call(told, key)
        except MuxError as error:
            self.send()
            self._fail(number, error)
            return
        waiting = _Waiting(number, call, told.get("id"))
        if operation is SEND:
            self._wait(waiting)
            return
        self.send()
        try:
            made = self._remote.ask(operation, call)
        except MuxError as error:
            self._fail(number, error)
            return
        self._count(waiting, made, repeated=self._remote.replayed)

    def _wait(self, waiting: _Waiting) -> None:
        size = len(json.dumps(waiting.call)) + 2
        if self._size + size > SEND.most_body - 2:
            self.send()
        self._waiting.append(waiting)
        self._size += size
        if len(self._waiting) == self._at_once:
            self.send()

    def send(self) -> None:
        """Send the lines that wait. Raises what `take` raises."""
        sent, self._waiting, self._size = self._waiting, [], 0
        if sent:
            self._send(sent)

    def _send(self, sent: list[_Waiting]) -> None:
        try:
            answers = self._remote.ask_all(SEND, [waiting.call for waiting in sent])
        except MuxError as error:
            if len(sent) == 1 or _concerns_all(error):
                self._fail(sent[0].number, error)
                return
            for waiting in sent:  # one of them makes the whole request unreadable
                self._send([waiting])
            return
        stopped = None
        for waiting, made in zip(sent, answers, strict=True):
            if not isinstance(made, MuxError):
                self._count(waiting, made, repeated="replayed" in made)
                continue
            try:
                self._fail(waiting.number, made)
            except MuxError as error:
                stopped = stopped or error
        if stopped is not None:
            raise stopped

    def _count(self, waiting: _Waiting, made: Mapping[str, Any], *, repeated: bool) -> None:
        self.imported += 1
        self.repeated += repeated
        if type(waiting.exported_id) is int:
            self._anew[waiting.exported_id] = made["message_id"]
        if self._ids:
            print(made["message_id"])

    def _fail(self, number: int, error: MuxError) -> None:
        """Note that a line was refused, or stop if the others would be, too."""
        if _concerns_all(error):
            error.message = f"stopped at line {number}: {error.message}. Run it again later: nothing is sent twice"
            raise error
        self._refuse(number, error)

    def _refers_to_waiting(self, told: Mapping[str, Any]) -> bool:
        named = (str(told.get("reply_to")), str(told.get("thread")))
        return "id" in told and any(str(waiting.exported_id) in named for waiting in self._waiting)

    def _call(self, told: dict[str, Any], key: str) -> tuple[Operation, dict[str, Any]]:
        """The operation that sends a line, and its parameters; a content that is too long becomes a document."""
        given = {name: value for name, value in told.items() if name not in MADE}
        if "id" in told:
            self._translate(given)
        content = given.get("content")
        if isinstance(content, str) and len(content.encode("utf-8", "replace")) > self._most:
            document = {"content": given.pop("content"), "idempotency_key": f"{key}-document"}
            given["content_ref"] = self._remote.ask(BY_NAME["document.create"], document)["document"]["id"]
        operation = SEND
        if given.get("from") == SYSTEM and "to" in given:
            operation = NOTIFY
            told = {name: given[name] for name in ("type", "content", "metadata") if name in given}
            given = {"agent_id": given["to"]} | told
        elif given.get("to") == EVERYBODY or ("to" not in given and "channel" in given and "type" not in given):
            operation = BROADCAST
            given.pop("to", None)
        return operation, given | {"idempotency_key": key}

    def _translate(self, given: dict[str, Any]) -> None:
        """Replace the exported ids in a reply by the new ids of the messages that it refers to."""
        if type(given.get("reply_to")) is int:
            given["reply_to"] = self._anew.get(given["reply_to"], given["reply_to"])
            given.pop("thread", None)  # the reply joins that message's thread
        elif str(given.get("thread", "")).isdecimal():
            number = int(given["thread"])
            given["thread"] = str(self._anew.get(number, number))

    def _refuse(self, number: int, error: MuxError) -> None:
        self.refused.append({"line": number} | error.body()["error"])
        if len(self.refused) <= MOST_TOLD:
            print(f"stonemux: line {number}: {screen.safe(output.as_typed(error.message))}", file=sys.stderr)

    def report(self, *, as_json: bool, quiet: bool) -> None:
        """Print the outcome."""
        if as_json:
            told = {"imported": self.imported, "repeated": self.repeated, "refused": self.refused}
            print(screen.as_json(told, sys.stdout))
        elif not quiet:
            before = f", {self.repeated} of them already" if self.repeated else ""
            refused = f"; {screen.counted(len(self.refused), 'line')} refused" if self.refused else ""
            print(f"{screen.counted(self.imported, 'message')}{before}{refused}")


def _concerns_all(error: MuxError) -> bool:
    failure = error.failure
    return failure.exit not in OF_A_LINE or failure.http in (401, 402) or failure.http >= 501


def _object(line: bytes) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError) as trouble:
        raise MuxError("invalid_json", f"is not JSON: {trouble}") from None
    if type(told) is not dict:
        raise MuxError("invalid_json", f"is not a JSON object: {shown(line.decode('utf-8', 'replace').strip())}")
    return told


def _opened(name: str) -> BinaryIO:
    if name == "-":
        return sys.stdin.buffer
    try:
        return open(name, "rb")
    except OSError as trouble:
        code = "not_found" if isinstance(trouble, FileNotFoundError) else "bad_file"
        raise MuxError(code, f"{name} cannot be read: {trouble.strerror}") from trouble


def _size(lines: BinaryIO) -> int:
    """The size in bytes; 0 if it cannot be known."""
    try:
        size = lines.seek(0, 2)
        lines.seek(0)
    except (OSError, ValueError):
        return 0
    return size
