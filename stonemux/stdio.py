"""`stonemux mcp`: MCP over standard input and output, for clients that start their servers.

A thin pipe: each line is handed to the daemon's `POST /mcp`, and the answer becomes a line. What it adds is who this
session is. The daemon is started if none answers, and found again when it was restarted; each request carries an
idempotency key, so one that was cut off is sent again without happening twice. While no daemon can be started, the
messages are answered here, and tools say why.

Transports, "stdio" (2025-11-25) and 2026-07-28: one message a line, nothing else on standard output, the end of the
input ends the program.

The main thread reads and never blocks on a call; each request has a thread, which then waits for the next one. `_lock`
guards the calls that run, and is held while a line is written, so a call is either answered or cancelled.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from stonemux import mcp, payload
from stonemux.clock import Clock
from stonemux.config import Settings
from stonemux.errors import MuxError
from stonemux.mcp import Fault, Request
from stonemux.pool import Aborted, Exchange, NoAnswer, Pool
from stonemux.starter import Starter

TRIES = 5
"""How often a request is sent that a daemon began and did not answer."""
GRACE_MS = 500
"""How long calls that run at the end of the input may take to end."""
MOST_LINE = 1024 * 1024

_FROM_ENVIRONMENT = {"session_id": "CLAUDE_CODE_SESSION_ID", "project_dir": "CLAUDE_PROJECT_DIR"}


class Pipe:
    """One session; `run` ends with the input."""

    def __init__(self, settings: Settings, config: Path | None, environ: Mapping[str, str], output: BinaryIO) -> None:
        self._settings = settings
        self._clock = Clock()
        self._pool = Pool(settings.host, settings.port, settings.tls_cert)
        self._starter = Starter(settings, config, environ)
        self._output = output
        self._agent = environ.get("STONEMUX_AGENT", "")
        self._named = bool(self._agent)
        self._told = _told_headers(environ)
        self._lock = threading.Lock()
        self._all_done = threading.Condition(self._lock)
        self._calls: dict[tuple[type, mcp.RequestId], Exchange] = {}
        self._work: queue.SimpleQueue[tuple[Request, bytes, Exchange]] = queue.SimpleQueue()
        self._idle = 0

    def run(self, lines: BinaryIO) -> None:
        """Serve until the input ends; then give running calls a moment and take back the rest."""
        threading.Thread(target=self._start_daemon, daemon=True).start()
        while line := lines.readline():
            if line.strip():
                self._take(line)
        deadline = self._clock.ticks_ms() + GRACE_MS
        with self._lock:
            while self._calls and self._clock.ticks_ms() < deadline:
                self._clock.wait(self._all_done, deadline)
            running = list(self._calls.values())
            self._calls.clear()
        for exchange in running:
            exchange.abort()

    def _start_daemon(self) -> None:
        try:
            self._starter.ensure()
        except MuxError as error:
            print(f"stonemux: {error.message}", file=sys.stderr)

    # -- reading

    def _take(self, line: bytes) -> None:
        """Look at one line; nothing that it holds can end the session."""
        try:
            request = mcp.read(_parsed(line))
        except Fault as fault:
            self._write(fault.response())
            return
        if request is None:
            return
        if request.request_id is None:
            if request.method == "notifications/cancelled":
                self._cancel(request.params.get("requestId"))
            return
        exchange = self._pool.exchange()
        with self._lock:
            self._calls[type(request.request_id), request.request_id] = exchange
            fresh = not self._idle
            self._idle -= not fresh
        self._work.put((request, line, exchange))
        if fresh:
            threading.Thread(target=self._serve_calls, daemon=True).start()

    def _cancel(self, request_id: Any) -> None:
        if not isinstance(request_id, (str, int)):
            return
        with self._lock:
            exchange = self._calls.pop((type(request_id), request_id), None)
        if exchange is not None:
            exchange.abort()

    # -- one call

    def _serve_calls(self) -> None:
        while True:
            self._serve(*self._work.get())
            with self._lock:
                self._idle += 1

    def _serve(self, request: Request, line: bytes, exchange: Exchange) -> None:
        try:
            with exchange:
                try:
                    self._post(request, line, exchange)
                    answer = self._answer(request, exchange)
                except MuxError as error:
                    answer = self._answer_alone(request, error)
                except (Aborted, BrokenPipeError):
                    raise
                except Exception:
                    traceback.print_exc()
                    answer = payload.write_json(mcp.internal_fault(request.request_id).response())
                self._deliver(request, exchange, answer)
        except Aborted:
            pass
        except BrokenPipeError:
            os._exit(0)  # nobody reads any more

    def _post(self, request: Request, line: bytes, exchange: Exchange) -> None:
        """Send the message to the daemon, once more when the daemon went away; raises `unreachable`."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            **mcp.standard_headers(request),
            **self._told,
        }
        if self._agent:
            headers[mcp.AGENT_HEADER] = mcp.encode_header(self._agent)
        if request.method == "tools/call" and not _has_key(request):
            headers["Idempotency-Key"] = self._clock.new_id()
        for attempt in range(TRIES):
            try:
                exchange.request("POST", "/mcp", line.strip(), headers)
                return
            except NoAnswer as error:
                if attempt + 1 == TRIES:
                    raise MuxError("unreachable", f"the daemon went away again and again ({error})") from error
                self._starter.ensure()

    def _answer(self, request: Request, exchange: Exchange) -> bytes:
        """The daemon's answer as a line; what is no JSON-RPC response to this request is made one."""
        if exchange.status == 200:
            if request.method == "tools/call" and request.params.get("name") == "mux_register":
                self._remember(exchange.body)
            return exchange.body
        try:
            message = json.loads(exchange.body)
            error = message["error"]
            if not isinstance(error["code"], int):
                error = {"code": mcp.INVALID_REQUEST, "message": error["message"], "data": error}
        except (ValueError, KeyError, TypeError):
            error = {"code": mcp.INTERNAL_ERROR, "message": f"the daemon answered with status {exchange.status}"}
        return payload.write_json({"jsonrpc": "2.0", "id": request.request_id, "error": error})

    def _remember(self, body: bytes) -> None:
        """The name that this session registered stands for it from now on, unless it was given one."""
        result = json.loads(body).get("result", {})
        if not self._named and not result.get("isError") and "structuredContent" in result:
            self._agent = result["structuredContent"]["agent"]["id"]

    def _answer_alone(self, request: Request, error: MuxError) -> bytes:
        """Answer without a daemon: everything can be listed, and whatever needs one says what is wrong."""
        from stonemux import offer

        layer = mcp.Layer(offer.registry(self._settings))
        return payload.write_json(layer.answer(request, mcp.Session(_Closed(error), self._agent)))

    def _deliver(self, request: Request, exchange: Exchange, answer: bytes) -> None:
        """Write the answer, unless the call was cancelled meanwhile."""
        assert request.request_id is not None
        with self._lock:
            if self._calls.pop((type(request.request_id), request.request_id), None) is not exchange:
                exchange.abort()
                raise Aborted
            self._write_line(answer)
            self._all_done.notify()

    def _write(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._write_line(payload.write_json(message))

    def _write_line(self, line: bytes) -> None:
        self._output.write(line + b"\n")
        self._output.flush()


class _Closed:
    """A desk with nobody behind it."""

    def __init__(self, error: MuxError) -> None:
        self._error = error

    def call(self, operation: Any, given: Mapping[str, Any]) -> Any:
        raise self._error

    def unread(self, agent_id: str) -> int:
        return 0


def _parsed(line: bytes) -> Any:
    if len(line) > MOST_LINE:
        raise Fault(mcp.PARSE_ERROR, f"Parse error: a message may have {MOST_LINE} bytes, and this one has {len(line)}")
    try:
        return payload.read_value(line.strip())
    except MuxError as error:
        raise Fault(mcp.PARSE_ERROR, f"Parse error: {error.message}", {"code": error.code}) from error


def _has_key(request: Request) -> bool:
    arguments = request.params.get("arguments")
    return isinstance(arguments, dict) and "idempotency_key" in arguments


def _told_headers(environ: Mapping[str, str]) -> dict[str, str]:
    """What the environment tells of the client's program, and the token, as headers."""
    headers = {
        mcp.CLIENT_HEADERS[name]: mcp.encode_header(environ[variable])
        for name, variable in _FROM_ENVIRONMENT.items()
        if environ.get(variable)
    }
    if token := environ.get("STONEMUX_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    return headers


def serve(settings: Settings, config: Path | None, environ: Mapping[str, str]) -> int:
    """Run a session on standard input and output; returns the exit status."""
    output = sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever prints must not end up between the messages
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    try:
        Pipe(settings, config, environ, output).run(sys.stdin.buffer)
    except BrokenPipeError:
        os._exit(0)
    return 0
