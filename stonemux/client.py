"""A caller's side of the HTTP face.

A `Pool` keeps connections to one daemon. An `Exchange` is one request and its answer; leaving it normally is the
receipt that the daemon waits for before it settles what it handed out, and `abort` takes the call back at any time,
from any thread: the daemon then puts back what was on its way.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import struct
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from stonemux.clock import Clock
from stonemux.errors import FAILURES, MuxError
from stonemux.schema import Operation

KEPT = 8
"""Most idle connections in a pool."""
KEPT_MS = 10_000
"""How long an idle connection is trusted; the daemon closes it after 15 s."""
CONNECT_S = 5.0


class Aborted(Exception):
    """The call was taken back."""


class NoAnswer(Exception):
    """Nobody could be reached, or the connection ended before the answer did: what became of the call is unknown."""


class Pool:
    """Connections to one daemon, for any number of threads. `_lock` guards the idle ones."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._clock = Clock()
        self._lock = threading.Lock()
        self._idle: list[tuple[int, http.client.HTTPConnection]] = []

    def exchange(self) -> Exchange:
        """A new request that has not been sent yet."""
        return Exchange(self)

    def take(self) -> http.client.HTTPConnection:
        """A connection that is open: an idle one if there is one that can be trusted. Raises NoAnswer."""
        now = self._clock.ticks_ms()
        while True:
            with self._lock:
                if not self._idle:
                    break
                since, connection = self._idle.pop()
            if now - since < KEPT_MS and _is_quiet(connection.sock):
                return connection
            connection.close()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=CONNECT_S)
        try:
            connection.connect()
        except OSError as trouble:
            raise NoAnswer(str(trouble)) from trouble
        return connection

    def keep(self, connection: http.client.HTTPConnection) -> None:
        """Take an idle connection back."""
        with self._lock:
            if len(self._idle) < KEPT:
                self._idle.append((self._clock.ticks_ms(), connection))
                return
        connection.close()

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()


class Exchange:
    """One request and its answer, as a context manager around both. `_lock` guards the change to aborted."""

    def __init__(self, pool: Pool) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self._pool = pool
        self._lock = threading.Lock()
        self._aborted = False
        self._connection: http.client.HTTPConnection | None = None
        self._sock: socket.socket | None = None
        self._reusable = False

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(keep=kind is None)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Send a request and read its answer into `status`, `headers` and `body`; None waits for ever.

        May be called again after it has failed. Raises Aborted, or NoAnswer.
        """
        self._end(keep=False)
        connection = self._pool.take()
        with self._lock:
            self._connection, self._sock = connection, connection.sock.dup()
        self._check()
        try:
            connection.sock.settimeout(timeout)
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            self.status, self.headers = response.status, {name.lower(): text for name, text in response.getheaders()}
            self._reusable = not response.will_close
            self.body = response.read()
        except (OSError, http.client.HTTPException) as trouble:
            self._check()
            raise NoAnswer(str(trouble) or type(trouble).__name__) from trouble
        self._check()

    def _check(self) -> None:
        if self._aborted:
            raise Aborted

    def abort(self) -> None:
        """Take the call back, whether its answer is awaited, on its way or here; any thread may do so."""
        with self._lock:
            self._aborted = True
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    # What follows is a reset: an answer that was not received, in the daemon's eyes.
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self._sock.shutdown(socket.SHUT_RDWR)

    def _end(self, *, keep: bool) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            sock, self._sock = self._sock, None
        if connection is None or sock is None:
            return
        if keep and self._reusable and not self._aborted:
            self._pool.keep(connection)
        else:
            connection.close()
        sock.close()
        self._reusable = False


def _is_quiet(sock: socket.socket) -> bool:
    """Whether an idle connection is still open: one that has something to say has been closed."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return not poller.poll(0)


def ask(host: str, port: int, operation: Operation, given: dict[str, Any], *, timeout: float = 10.0) -> dict[str, Any]:
    """Call one operation on a daemon and return its answer.

    Raises the MuxError that the daemon answered, or `unreachable` when none answers within `timeout` seconds.
    """
    query = f"?{urlencode(given)}" if operation.method == "GET" and given else ""
    body = json.dumps(given).encode() if operation.method == "POST" else None
    headers = {"Content-Type": "application/json"} if body is not None else {}
    pool = Pool(host, port)
    try:
        with pool.exchange() as exchange:
            exchange.request(operation.method, operation.path + query, body, headers, timeout=timeout)
        if "x-request-id" not in exchange.headers:
            raise NoAnswer("it is another server")
        answer = json.loads(exchange.body)
    except (NoAnswer, ValueError) as trouble:
        raise MuxError(
            "unreachable",
            f"no stonemux daemon answers at {host}:{port} ({trouble}); start one with: python -m stonemux serve",
        ) from trouble
    finally:
        pool.close()
    if exchange.status == 200:
        return answer  # type: ignore[no-any-return]
    error = answer["error"]
    code = error.pop("code")
    raise MuxError(code if code in FAILURES else "internal", error.pop("message"), **error)
