"""`stonemux mcp` as a client starts it: a child process with pipes, and the location of the daemon that it starts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import children
from children import BARE
from daemons import ROOT, free_port

WITHIN_S = 15


class Place:
    """A data directory and a port that belong together; a daemon that a session starts there is stopped at the end."""

    def __init__(self, path: Path, port: int | None = None) -> None:
        self.data = path / "data"
        self.port = port or free_port()
        self.sessions: list[Session] = []

    def session(self, **environ: str) -> Session:
        self.sessions.append(Session(self, environ))
        return self.sessions[-1]

    @property
    def daemon(self) -> int:
        return int((self.data / "daemon.pid").read_text())

    def until(self, true: Any) -> None:
        end = time.monotonic() + WITHIN_S
        while not true():
            assert time.monotonic() < end
            time.sleep(0.01)

    def close(self) -> None:
        for session in self.sessions:
            session.close()
        # A daemon that is still starting has not written its process id yet.
        self.until(lambda: not children.end(self.data, signal.SIGTERM))


class Session:
    """One `stonemux mcp`; answers are collected by id as they arrive."""

    def __init__(self, place: Place, environ: dict[str, str]) -> None:
        where = ["--port", str(place.port), "--data-dir", str(place.data)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stonemux", "mcp", *where],
            cwd=ROOT,
            env={**BARE, "HOME": str(place.data.parent), **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._id = 0
        self._answers: dict[Any, dict[str, Any]] = {}
        self.lines: list[bytes] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(WITHIN_S)
        self._reader.join(WITHIN_S)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(BrokenPipeError):
                pipe.close()

    def _read(self) -> None:
        for line in self.process.stdout:
            message = json.loads(line)  # nothing else may appear on standard output
            with self._news:
                self.lines.append(line)
                self._answers[message["id"]] = message
                self._news.notify_all()

    def write(self, line: bytes) -> None:
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def send(self, method: str, **params: Any) -> int:
        self._id += 1
        self.write(json.dumps({"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}).encode())
        return self._id

    def answer(self, request_id: Any) -> dict[str, Any]:
        with self._news:
            assert self._news.wait_for(lambda: request_id in self._answers, WITHIN_S), self.process.poll()
            return self._answers.pop(request_id)

    def begin(self, tool: str, **arguments: Any) -> int:
        return self.send("tools/call", name=tool, arguments=arguments)

    def cancel(self, request_id: int) -> None:
        notice = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}}
        self.write(json.dumps(notice).encode())

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = self.answer(self.begin(tool, **arguments))["result"]
        assert "structuredContent" in result, result
        return result["structuredContent"]

    def end(self) -> int:
        self.process.stdin.close()
        return self.process.wait(WITHIN_S)
