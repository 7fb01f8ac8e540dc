"""Starts an MCP server over stdio as a client would, and lists its tools: the proof that a configuration works.

The server gets only the few variables that the strictest clients pass on, so a missing variable is noticed here and not
later. Everything is bounded: time by a deadline, a line by its size.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from stonemux import VERSION
from stonemux.clock import Clock
from stonemux.errors import MuxError

PATIENCE_MS = 15_000
FAREWELL_S = 2
"""How long a server may take to exit after its input ends."""
MAX_LINE_BYTES = 4 * 1024 * 1024
TAIL_LINES = 12
PASSED_ON = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER")
PROTOCOL = "2025-11-25"


def bare(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that every client passes on to its servers."""
    return {name: environ[name] for name in PASSED_ON if name in environ}


def list_tools(
    command: Sequence[str], environ: Mapping[str, str], folder: Path, *, patience_ms: int = PATIENCE_MS
) -> list[str]:
    """The names of the tools that `command` offers, started in `folder` with `environ` and nothing else.

    Raises `client_check_failed`, with what went wrong and the end of the command's standard error, if the command
    cannot be started, exits early, refuses a request, writes anything but the protocol, or is not done after
    `patience_ms`. Its fact `refused` is stonemux's error code if stonemux refused a request, else "".
    """
    with tempfile.TemporaryFile() as errors:
        try:
            return _talk(command, environ, folder, errors, Clock().ticks_ms() + patience_ms)
        except _Trouble as trouble:
            told = f"{trouble} within {patience_ms / 1000:g} s" if trouble.is_late else str(trouble)
            told += _tail(errors)
            raise MuxError("client_check_failed", told, command=list(command), refused=trouble.code) from None


class _Trouble(Exception):
    """Why the session ended; `is_late` if only time ran out, `code` is stonemux's error code for a refusal."""

    def __init__(self, why: str, *, is_late: bool = False, code: str = "") -> None:
        super().__init__(why)
        self.is_late = is_late
        self.code = code


def _talk(
    command: Sequence[str], environ: Mapping[str, str], folder: Path, errors: IO[bytes], deadline: int
) -> list[str]:
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=dict(environ), cwd=folder
        )
    except OSError as trouble:
        raise _Trouble(f"it cannot be started: {trouble}") from None
    try:
        names = _Session(child, deadline).tools()
    except BaseException:
        child.terminate()
        raise
    finally:
        _end(child)
    return names


def _end(child: subprocess.Popen[bytes]) -> None:
    into, out = _pipes(child)
    with contextlib.suppress(OSError):  # buffered input that it no longer reads
        into.close()
    for act in (child.terminate, child.kill):
        try:
            child.wait(FAREWELL_S)
            break
        except subprocess.TimeoutExpired:
            act()
    child.wait()
    out.close()


def _pipes(child: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """The child's standard input and output."""
    assert child.stdin is not None
    assert child.stdout is not None
    return child.stdin, child.stdout


class _Session:
    """Requests to a child, one at a time, and their answers; other messages from it are ignored."""

    def __init__(self, child: subprocess.Popen[bytes], deadline: int) -> None:
        self._child = child
        self._into, self._out = _pipes(child)
        self._deadline = deadline
        self._clock = Clock()
        self._rest = b""
        self._asked = 0

    def tools(self) -> list[str]:
        who = {"name": "stonemux-setup", "version": VERSION}
        self._ask("initialize", {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": who})
        self._write({"jsonrpc": "2.0", "method": "notifications/initialized"})
        names: list[str] = []
        cursor = None
        while True:
            page = self._ask("tools/list", {"cursor": cursor} if cursor else {})
            try:
                names += [tool["name"] for tool in page["tools"]]
            except (KeyError, TypeError):
                raise _Trouble("its answer to tools/list has no list of tools") from None
            cursor = page.get("nextCursor")
            if not cursor:
                return names

    def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._asked += 1
        self._write({"jsonrpc": "2.0", "id": self._asked, "method": method, "params": params})
        while True:
            answer = self._read(method)
            if answer.get("id") == self._asked and "method" not in answer:
                break
        if not isinstance(answer.get("result"), dict):
            error = answer.get("error")
            raise _Trouble(f"it refused {method}: {_reason(error)}", code=_code(error))
        result: dict[str, Any] = answer["result"]
        return result

    def _write(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it exited, which the next read reports
            self._into.write(json.dumps(message).encode() + b"\n")
            self._into.flush()

    def _read(self, method: str) -> dict[str, Any]:
        line = self._line(method)
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise _Trouble(f"it wrote something other than the protocol to standard output: {line[:200]!r}")
        return message

    def _line(self, method: str) -> bytes:
        pipe = self._out.fileno()
        while b"\n" not in self._rest:
            left = self._deadline - self._clock.ticks_ms()
            if left <= 0 or not select.select([pipe], [], [], left / 1000)[0]:
                raise _Trouble(f"it did not answer {method}", is_late=True)
            chunk = os.read(pipe, 65536)
            if not chunk:
                raise _Trouble(f"it ended{self._status()} before it answered {method}")
            self._rest += chunk
            if len(self._rest) > MAX_LINE_BYTES:
                raise _Trouble(f"it wrote a line of more than {MAX_LINE_BYTES} bytes")
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _status(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f" with status {self._child.wait(1)}"
        return " its output"


def _reason(error: Any) -> str:
    """The words of a JSON-RPC error, with its number; whatever it is, if it has none."""
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return f"{error['message'][:500]} ({json.dumps(error.get('code'))[:20]})"
    return json.dumps(error)[:500]


def _code(error: Any) -> str:
    """stonemux's error code in a JSON-RPC error; "" if the error is another server's."""
    data = error.get("data") if isinstance(error, dict) else None
    code = data.get("code") if isinstance(data, dict) else None
    return code if isinstance(code, str) else ""


def _tail(errors: IO[bytes]) -> str:
    """The last lines that a command wrote to standard error, as text to append to a message."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - 4000))
    lines = errors.read().decode(errors="replace").rstrip().splitlines()[-TAIL_LINES:]
    return "".join(["; the end of its standard error:", *(f"\n  | {line}" for line in lines)]) if lines else ""
