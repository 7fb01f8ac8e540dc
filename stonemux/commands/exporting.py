"""Write messages as JSON, one per line, oldest first; `stonemux import` reads them.

A content that is stored in a document is written in full.

examples:
  stonemux export > messages.jsonl
  stonemux export --channel research --after 1200 research.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from stonemux import flags, screen
from stonemux.errors import EXIT_OK, MuxError
from stonemux.operations import BY_NAME
from stonemux.progress import Progress
from stonemux.remote import Remote, of_user

PAGE = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which messages, and where to."""
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="the file; - or omitted: standard output")
    parser.add_argument("--channel", metavar="NAME", help="only messages in this channel")
    parser.add_argument("--agent-id", metavar="NAME", help="only messages from or to this agent")
    parser.add_argument("--after", metavar="ID", type=int, default=0, help="only messages after this id")
    flags.add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Write them, a page at a time."""
    given = {name: value for name in ("channel", "agent_id") if (value := getattr(options, name)) is not None}
    if options.after < 0:
        raise MuxError("invalid_field", f"--after is {options.after}; it must be a message's id")
    with of_user(flags.settings(options, environ), environ) as remote:
        newest = remote.ask(BY_NAME["msg.list"], {"limit": 1})["messages"]
        head = newest[0]["id"] if newest else 0
        count = 0
        with _opened(options.file) as out, Progress("exporting", head - options.after) as bar:
            bar.visible = bar.visible and not out.isatty()  # the messages themselves show how far it is
            for message in messages(remote, given, options.after, head):
                out.write(screen.as_json(message, out) + "\n")
                count += 1
                bar.show(message["id"] - options.after, screen.counted(count, "message"))
    if options.file != "-":
        print(f"{screen.counted(count, 'message')} in {options.file}")
    return EXIT_OK


def messages(remote: Remote, given: Mapping[str, Any], after: int, head: int) -> Iterator[dict[str, Any]]:
    """The messages with ids above `after` and up to `head`, oldest first."""
    window = PAGE
    while after < head:
        page = {**given, "after": after, "before": min(after + window, head) + 1, "limit": PAGE}
        answer = remote.ask(BY_NAME["msg.list"], page)
        if "more" in answer:  # the window holds more than a page, and the page would be its newest part
            window = max(PAGE, window // 2)
            continue
        for message in reversed(answer["messages"]):
            yield _whole(remote, message)
        after += window
        if not answer["messages"]:
            window *= 2  # a range of ids that are no longer kept, or that a restore skipped


def _whole(remote: Remote, message: dict[str, Any]) -> dict[str, Any]:
    if message.pop("truncated", False):
        document = remote.ask(BY_NAME["document.get"], {"id": message["content_ref"]})["document"]
        message["content"] = document["content"]
    message.pop("content_ref", None)
    return message


@contextlib.contextmanager
def _opened(name: str) -> Iterator[TextIO]:
    """Standard output, or a file that appears under its name only when it is complete. A device or a pipe is written as
    it is: what took the place of /dev/null would be there for all programs."""
    if name == "-":
        if sys.stdout is None:
            raise MuxError("bad_file", "- cannot be written: it is closed")
        yield sys.stdout
        return
    path = Path(name)
    try:
        with open(path, "w", encoding="utf-8") if _is_special(path) else _appearing(path) as out:
            yield out
    except OSError as trouble:
        raise MuxError("bad_file", f"{path} cannot be written: {trouble.strerror}") from trouble


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[TextIO]:
    work = path.with_name(f".{path.name}.new")
    try:
        work.unlink(missing_ok=True)  # another user of the folder may have put it there
        fd = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as out:
            yield out
        os.replace(work, path)
    finally:
        with contextlib.suppress(OSError):
            work.unlink(missing_ok=True)
