"""`stonemux mcp`: MCP over standard input and output, for clients that start their servers.

It is a thin pipe: each line goes to the daemon's `POST /mcp`, and the answer becomes a line. It adds the identity of
this session. It starts the daemon if none answers, and reconnects after a restart; each request carries an idempotency
key, so one that was cut off is sent again without taking effect twice. A claim that waits carries none: the daemon
would keep its task for a caller who asks again, but whoever cancels it or goes away does not. As long as no daemon can
be started, messages are answered here, and tools say why they fail.

Transports, "stdio" (2025-11-25) and 2026-07-28: one message per line, nothing else on standard output, and the end of
the input ends the program.

The main thread reads and never blocks on a call; each request runs in a thread, which then waits for the next request.
Requests run concurrently, except that a tool waits for any mux_register requested before it, because it may need that
name. `_lock` guards the running calls, and is held while a line is written, so a call is either answered or cancelled.

A cancellation may cross an answer, which the client then throws away. So an answer that hands something out, such as
messages, counts as received only after the client's next message, or after a second; until then its connection is kept
open, and a cancellation resets it, which puts back what was handed out.

When the input ends, calls that do not wait for an event are still answered, so a whole session may be piped in.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from stonemux import mcp, payload
from stonemux.clock import Clock
from stonemux.config import Settings
from stonemux.errors import MuxError
from stonemux.mcp import Fault, Request
from stonemux.pool import Aborted, NoAnswer, Pool, RoundTrip
from stonemux.starter import Starter

TRIES = 5
"""How often to send a request that a daemon accepted but did not answer."""
END_MS = 15_000
"""How long calls may take after the end of the input; the daemon may have to be started for them."""
GRACE_MS = 500
"""The same for a call that waits for an event, once the daemon is running."""
RECEIPT_MS = 1000
"""How long an answer that hands something out can still be cancelled, unless another message comes first."""
MOST_LINE = 1024 * 1024

_FROM_ENVIRONMENT = {"session_id": "CLAUDE_CODE_SESSION_ID", "project_dir": "CLAUDE_PROJECT_DIR"}


class _Call:
    """A request in progress."""

    __slots__ = ("after", "line", "request", "trip")

    def __init__(self, request: Request, line: bytes, trip: RoundTrip, after: _Call | None) -> None:
        self.request = request
        self.line = line
        self.trip = trip
        self.after = after
        """The registration that it must wait for, if any."""

    @property
    def key(self) -> tuple[type, mcp.RequestId]:
        assert self.request.request_id is not None
        return type(self.request.request_id), self.request.request_id

    @property
    def tool(self) -> str:
        """The name of the called tool; "" for any other request."""
        return str(self.request.params.get("name", "")) if self.request.method == "tools/call" else ""


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
        self._ended = threading.Condition(self._lock)
        self._calls: dict[tuple[type, mcp.RequestId], _Call] = {}
        self._crossing: dict[tuple[type, mcp.RequestId], _Call] = {}
        """Calls that are answered, but whose cancellation may be on its way."""
        self._registration: _Call | None = None
        self._work: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._idle = 0

    def run(self, lines: BinaryIO) -> None:
        """Serve until the input ends; then let running calls finish, and abort those that are still waiting."""
        starting = threading.Thread(target=self._start_daemon, daemon=True)
        starting.start()
        while line := lines.readline():
            if line.strip():
                self._take(line)
        self._await(lambda call: not _waits(call), END_MS)
        if self._calls:
            starting.join(END_MS / 1000)
        self._await(lambda call: True, GRACE_MS)
        with self._lock:
            running = list(self._calls.values())
            self._calls.clear()
        for call in running:
            call.trip.abort()

    def _await(self, wanted: Callable[[_Call], bool], most_ms: int) -> None:
        """Wait until none of these calls is running, or `most_ms` have passed."""
        deadline = self._clock.ticks_ms() + most_ms
        with self._lock:
            while any(map(wanted, self._calls.values())) and self._clock.ticks_ms() < deadline:
                self._clock.wait(self._ended, deadline)

    def _start_daemon(self) -> None:
        try:
            self._starter.ensure()
        except MuxError as error:
            print(f"stonemux: {error.message}", file=sys.stderr)

    # -- reading

    def _take(self, line: bytes) -> None:
        """Handle one line; nothing in it can end the session."""
        try:
            request = mcp.read(_parsed(line))
        except Fault as fault:
            self._confirm()
            self._write(fault.response())
            return
        if request is not None and request.request_id is None and request.method == "notifications/cancelled":
            self._cancel(request.params.get("requestId"))
        self._confirm()
        if request is None or request.request_id is None:
            return
        call = _Call(request, line, self._pool.round_trip(), self._registration)
        if call.tool == "mux_register":
            self._registration = call
        with self._lock:
            self._calls[call.key] = call
            waited_for = self._idle > 0
            if waited_for:
                self._idle -= 1
        self._work.put(call)
        if not waited_for:
            threading.Thread(target=self._serve_calls, daemon=True).start()

    def _cancel(self, request_id: Any) -> None:
        if not isinstance(request_id, (str, int)):
            return
        key = type(request_id), request_id
        with self._lock:
            call = self._calls.pop(key, None) or self._crossing.pop(key, None)
            if call is not None:
                call.trip.abort()
                self._ended.notify_all()

    def _confirm(self) -> None:
        """Take the answers so far as received, because the client goes on."""
        with self._lock:
            if self._crossing:
                self._crossing.clear()
                self._ended.notify_all()

    # -- one call

    def _serve_calls(self) -> None:
        while True:
            self._serve(self._work.get())
            with self._lock:
                self._idle += 1

    def _serve(self, call: _Call) -> None:
        request, trip = call.request, call.trip
        try:
            if call.tool and call.after is not None:
                self._await(lambda running: running is call.after, END_MS)
            call.after = None
            with trip:
                try:
                    self._post(request, call.line, trip)
                    answer = self._answer(request, trip)
                except MuxError as error:
                    answer = self._answer_alone(request, error)
                except (Aborted, BrokenPipeError):
                    raise
                except Exception:
                    traceback.print_exc()
                    answer = payload.write_json(mcp.internal_fault(request.request_id).response())
                self._deliver(call, answer)
        except Aborted:
            pass  # it was cancelled, so nobody waits for an answer
        except BrokenPipeError:
            os._exit(0)  # nobody reads the output any more

    def _post(self, request: Request, line: bytes, trip: RoundTrip) -> None:
        """Send the message to the daemon, again if the daemon went away; raises `unreachable`."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            **mcp.standard_headers(request),
            **self._told,
        }
        if self._agent:
            headers[mcp.AGENT_HEADER] = mcp.encode_header(self._agent)
        if request.method == "tools/call" and not _has_key(request) and not _is_waiting_claim(request):
            headers["Idempotency-Key"] = self._clock.new_id()
        for attempt in range(TRIES):
            try:
                trip.request("POST", mcp.PATH, line.strip(), headers)
                trip.check_daemon()
                return
            except NoAnswer as error:
                if attempt + 1 == TRIES:
                    raise MuxError("unreachable", f"the daemon kept going away ({error})") from error
                self._starter.ensure()

    def _answer(self, request: Request, trip: RoundTrip) -> bytes:
        """The daemon's answer as a line; anything but a JSON-RPC response to this request is turned into one."""
        if trip.status == 200:
            if request.method == "tools/call" and request.params.get("name") == "mux_register":
                self._remember(trip.body)
            return trip.body
        try:
            message = json.loads(trip.body)
            error = message["error"]
            if not isinstance(error["code"], int):
                error = {"code": mcp.INVALID_REQUEST, "message": error["message"], "data": error}
        except (ValueError, KeyError, TypeError):
            error = {"code": mcp.INTERNAL_ERROR, "message": f"the daemon answered with status {trip.status}"}
        return payload.write_json({"jsonrpc": "2.0", "id": request.request_id, "error": error})

    def _remember(self, body: bytes) -> None:
        """Use the name that this session registered from now on, unless the environment gave it one."""
        result = json.loads(body).get("result", {})
        if not self._named and not result.get("isError") and "structuredContent" in result:
            self._agent = result["structuredContent"]["agent"]["id"]

    def _answer_alone(self, request: Request, error: MuxError) -> bytes:
        """Answer without a daemon: lists work, and everything that needs a daemon is refused with the reason."""
        from stonemux import offer

        layer = mcp.Layer(offer.registry(self._settings))
        return payload.write_json(layer.answer(request, mcp.Session(_Closed(error), self._agent)))

    def _deliver(self, call: _Call, answer: bytes) -> None:
        """Write the answer, unless the call was cancelled meanwhile; return once it counts as received, or as lost."""
        with self._lock:
            if self._calls.get(call.key) is not call:
                call.trip.abort()
                raise Aborted
            try:
                self._write_line(answer)
            except BrokenPipeError:
                call.trip.abort()
                raise
            del self._calls[call.key]
            if call.trip.parting:
                self._crossing[call.key] = call
            self._ended.notify_all()
            deadline = self._clock.ticks_ms() + RECEIPT_MS
            while self._crossing.get(call.key) is call and self._clock.ticks_ms() < deadline:
                self._clock.wait(self._ended, deadline)
            if self._crossing.get(call.key) is call:
                del self._crossing[call.key]

    def _write(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._write_line(payload.write_json(message))

    def _write_line(self, line: bytes) -> None:
        self._output.write(line + b"\n")
        self._output.flush()


class _Closed:
    """An `mcp.Desk` without a daemon: every call is refused with `error`."""

    def __init__(self, error: MuxError) -> None:
        self._error = error

    def call(self, operation: Any, given: Mapping[str, Any]) -> Any:
        raise self._error

    def unread(self, agent_id: str) -> int:
        return 0


def _parsed(line: bytes) -> Any:
    if len(line) > MOST_LINE:
        problem = f"a message may have at most {MOST_LINE} bytes, and this one has {len(line)}; send less"
        raise mcp.unreadable(line, MuxError("body_too_large", problem))
    return mcp.parse(line.strip())


def _waits(call: _Call) -> bool:
    """Whether the call may wait for an event."""
    from stonemux.operations import OPERATIONS  # most sessions end without needing it

    operation = next((one for one in OPERATIONS if one.tool == call.tool), None)
    if not call.tool or operation is None or "timeout" not in operation.by_name:
        return False
    return bool(_arguments(call.request).get("timeout", operation.by_name["timeout"].default) != 0)


def _has_key(request: Request) -> bool:
    return "idempotency_key" in _arguments(request)


def _is_waiting_claim(request: Request) -> bool:
    return request.params.get("name") == "mux_task_claim" and _arguments(request).get("timeout") not in (None, 0, "0")


def _arguments(request: Request) -> dict[str, Any]:
    arguments = request.params.get("arguments")
    return arguments if isinstance(arguments, dict) else {}


def _told_headers(environ: Mapping[str, str]) -> dict[str, str]:
    """Headers with what the environment says about the client program, and with the token."""
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
    sys.stdout = sys.stderr  # anything printed must stay out of the message stream
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    try:
        Pipe(settings, config, environ, output).run(sys.stdin.buffer)
    except BrokenPipeError:
        os._exit(0)
    return 0
