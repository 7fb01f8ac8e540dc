"""The HTTP face: sockets, connections, routes.

`ThreadingHTTPServer` supplies the listening socket and its life cycle; everything a request passes through is our own,
because the stock parser can be desynchronized and is slow (`wire` reads and writes the bytes).

Which thread does what:

* The *accepting* thread takes connections and hands each to a worker. When there are too many it closes the one that
  has been idle longest; it never reads, and never waits for a client.
* A *worker* serves one connection after another. It reads a request and runs it. For a change it only queues the work
  and goes back to reading: the answer is written by whichever thread leads the commit.
* The *leader* of a commit writes the answers of its batch, without ever blocking on a client: what does not fit into
  the socket at once is finished by a thread of its own.
* Streams leave their worker (`sse`), parked calls keep theirs; the *lookout* notices when a parked caller hangs up.

**Receipt.** That `send` succeeded does not mean that the client has the answer. What was handed out with one (see
`mux.Flight`) is settled by the connection's next event: more bytes or an orderly end mean received, a reset means lost.

Every timeout is a total deadline: the kernel's receive timeout is set to what is left of it before each further read.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import select
import socket
import socketserver
import struct
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stonemux import VERSION, door, monitor, operations, reference, sse, wire
from stonemux.errors import MuxError, nearest
from stonemux.hub import Hangup, Watch
from stonemux.lookout import Lookout
from stonemux.mux import Caller, Flight, Mux
from stonemux.schema import MOST_INTEGER, Operation, bind

log = logging.getLogger("stonemux")

BODY_LIMIT = 1024 * 1024
RECEIVE = 64 * 1024
IDLE_MS = 15_000
HEAD_MS = 5_000
BODY_MS = 10_000
SEND_MS = 15_000
MOST_REQUESTS = 1000
"""Requests served on one connection."""
DRAIN_BYTES = 256 * 1024
DRAIN_MS = 500
IDLE_WORKERS = 64
STOP_MS = 1000
"""How long running requests may take to end when the daemon stops."""
STACK_BYTES = 256 * 1024

ROUTES: Mapping[str, Mapping[str, Operation]] = {
    path: {operation.method: operation for operation in operations.OPERATIONS if operation.path == path}
    for path in {operation.path for operation in operations.OPERATIONS}
}


class Server(ThreadingHTTPServer):
    """The listening socket and its connections. `_lock` guards the set of connections and the idle workers."""

    request_queue_size = 1024
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, mux: Mux) -> None:
        """Bind to the address in the settings; raises `address_in_use` when somebody else listens there."""
        self.mux = mux
        host, port = mux.settings.host, mux.settings.port
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), BaseHTTPRequestHandler)
        except OSError as trouble:
            raise MuxError(
                "address_in_use",
                f"cannot listen on {host}:{port}: {trouble.strerror}. Stop whatever uses it, or choose another port "
                "with --port",
            ) from trouble
        self.port: int = self.server_address[1]
        names = {
            "localhost",
            "127.0.0.1",
            "[::1]",
            host if ":" not in host else f"[{host}]",
            *mux.settings.allowed_hosts,
        }
        local = frozenset(f"{name.lower()}:{self.port}" for name in names)
        # A browser always names a port that is not 80, so a Host without one comes from a program.
        self.hosts = local | frozenset(name.lower() for name in names)
        self.origins = frozenset(f"http://{name}" for name in local)
        self.lookout = Lookout()
        self.streamer = sse.Streamer(mux)
        self.openapi = wire.write_json(reference.openapi(operations.OPERATIONS, mux.settings, VERSION))
        self._lock = threading.Lock()
        self._all_ended = threading.Condition(self._lock)
        self._connections: set[Connection] = set()
        self._idle: list[_Worker] = []
        self._request_numbers = itertools.count(1)
        self._boot = mux.clock.token(4)
        self.stopping = False

    def server_bind(self) -> None:
        """Bind without the stock look-up of the host's name, which may ask the network."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def request_id(self) -> str:
        """A name for one request, unique while the daemon runs and hard to mistake for another run's."""
        return f"{self._boot}-{next(self._request_numbers):x}"

    # -- accepting

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Accept until `stop`; blocks in the kernel, so an idle daemon does nothing at all."""
        while not self.stopping:
            try:
                sock, address = self.socket.accept()
            except OSError:
                if self.stopping:
                    return
                continue  # the client gave up before it was accepted
            if self.stopping:
                sock.close()
                return
            self.process_request(sock, address)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a new connection to a worker, or refuse it when there is no room to be made."""
        connection = Connection(self, request)
        with self._lock:
            room = len(self._connections) < self.mux.settings.max_connections
            if room:
                self._connections.add(connection)
        if not room and not self._make_room(connection):
            self._refuse(request)
            return
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            _Worker(self, connection)
        else:
            worker.serve(connection)

    def _make_room(self, connection: Connection) -> bool:
        """Close the connection that has been idle longest in favor of a new one; False if none is idle."""
        with self._lock:
            idle = [(since, other) for other in self._connections if (since := other.idle_since) is not None]
            if not idle:
                return False
            _, oldest = min(idle, key=lambda pair: pair[0])
            self._connections.discard(oldest)
            self._connections.add(connection)
        oldest.hang_up()
        return True

    def _refuse(self, sock: socket.socket) -> None:
        error = MuxError(
            "too_many_connections",
            f"the daemon has {self.mux.settings.max_connections} connections, the limit (server.max_connections), and "
            "none is idle; try again in a moment",
            retry_after=1,
            limit=self.mux.settings.max_connections,
        )
        with contextlib.suppress(OSError):
            sock.send(refusal(error, self.request_id(), close=True), socket.MSG_DONTWAIT)
            sock.shutdown(socket.SHUT_WR)
        sock.close()

    def ended(self, connection: Connection) -> None:
        """A connection is over."""
        with self._lock:
            self._connections.discard(connection)
            if not self._connections:
                self._all_ended.notify()

    def rest(self, worker: _Worker) -> bool:
        """Keep a worker for the next connection; False when there are enough of them."""
        with self._lock:
            if len(self._idle) >= IDLE_WORKERS or self.stopping:
                return False
            self._idle.append(worker)
            return True

    @property
    def open_connections(self) -> int:
        """How many connections there are, streams apart."""
        with self._lock:
            return len(self._connections)

    # -- stopping

    def stop(self) -> None:
        """Stop accepting and answer what is waiting; parked calls end with what they have, streams say so."""
        self.stopping = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):  # where shutting a listening socket down wakes nobody
            socket.create_connection((self.server_name, self.port), timeout=0.2).close()
        self.mux.hub.close()
        self.streamer.close()
        deadline = self.mux.clock.ticks_ms() + STOP_MS
        with self._lock:
            for connection in self._connections:
                if connection.idle_since is not None:
                    connection.hang_up()
            while self._connections and self.mux.clock.ticks_ms() < deadline:
                self.mux.clock.wait(self._all_ended, deadline)
            for connection in self._connections:
                connection.hang_up()
        self.lookout.close()
        self.server_close()

    def server_close(self) -> None:
        """Close the listening socket; workers are daemon threads and end with their connections."""
        socketserver.TCPServer.server_close(self)


class _Worker:
    """A thread that serves connections, one after the other."""

    def __init__(self, server: Server, first: Connection) -> None:
        self._server = server
        self._wake = threading.Lock()
        self._wake.acquire()
        self._next: Connection | None = None
        threading.Thread(target=self._run, args=(first,), name="worker", daemon=True).start()

    def serve(self, connection: Connection) -> None:
        self._next = connection
        self._wake.release()

    def _run(self, connection: Connection | None) -> None:
        while connection is not None:
            connection.run()
            connection = None
            if not self._server.rest(self):
                return
            self._wake.acquire()
            connection, self._next = self._next, None


class _HttpCaller(Caller):
    """A caller at the other end of a connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    @contextmanager
    def park(self, watch: Watch) -> Iterator[None]:
        with self._connection.server.lookout.over(self._connection.sock, watch.cancel):
            yield


class _Closed(Exception):
    """The connection is over."""


class Connection:
    """One client's connection, served by one worker. `_gate` is held while a queued change's answer is outstanding."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.idle_since: int | None = server.mux.clock.ticks_ms()
        """Since when nothing was asked (ticks); None while a request runs."""
        self._buffer = b""
        self._flights: list[Flight] = []
        self._gate = threading.Lock()
        self._served = 0
        self._detached = False

    def run(self) -> None:
        """Serve requests until the client or we have had enough."""
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._patience(IDLE_MS)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(SEND_MS))
            while self._serve_one():
                pass
        except _Closed:
            pass
        except (Hangup, OSError):
            self._settle(arrived=False)
        except Exception:
            log.exception("a connection failed")
        finally:
            self.server.ended(self)
            if not self._detached:
                with self._gate:  # a queued change may still want to answer
                    self._close()

    def hang_up(self) -> None:
        """End the connection from another thread; its worker notices and closes it."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        self._settle(arrived=False)
        with contextlib.suppress(OSError):
            self.sock.close()

    def _patience(self, ms: int) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(ms))

    # -- reading

    def _serve_one(self) -> bool:
        """Read one request and answer it; False when the connection is to end."""
        clock = self.server.mux.clock
        try:
            head, body = self._read_request()
        except MuxError as error:
            self._wait_for_answers()
            self._refuse_and_close(error)
            return False
        self._served += 1
        self._wait_for_answers()
        self.idle_since = None
        request = _Request(self, head)
        request.answer(body)
        if self._detached:
            return False
        self.idle_since = clock.ticks_ms()
        if request.close or self.server.stopping:
            self._wait_for_answers()
            self._linger()
            return False
        return True

    def _read_request(self) -> tuple[wire.Head, bytes]:
        buffer = self._buffer or self._receive_first()
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            buffer, end = self._rest_of_head(buffer)
        head = wire.parse_head(buffer[:end])
        rest = buffer[end + 4 :]
        if head.chunked:
            return head, self._chunked(head, rest)
        length = head.length
        if length > BODY_LIMIT:
            raise MuxError(
                "body_too_large",
                f"the body has {length} bytes, more than the limit of {BODY_LIMIT}; send less, or a reference to it",
                close=True,
                limit=BODY_LIMIT,
            )
        if len(rest) < length:
            rest = self._rest_of_body(head, rest)
        self._buffer = rest[length:]
        return head, rest[:length]

    def _receive_first(self) -> bytes:
        """Wait for the next request; until it begins, the connection is idle."""
        try:
            data = self.sock.recv(RECEIVE)
        except BlockingIOError:  # the kernel's timeout
            self._settle(arrived=_all_taken(self.sock))
            raise _Closed from None
        except OSError:
            self._settle(arrived=False)
            raise _Closed from None
        if not data:
            self._settle(arrived=not _was_reset(self.sock))
            raise _Closed
        if self._flights:
            self._settle(arrived=True)
        return data

    def _more(self, deadline: int, what: str) -> bytes:
        left = deadline - self.server.mux.clock.ticks_ms()
        if left > 0:
            self._patience(left)
            try:
                data = self.sock.recv(RECEIVE)
            except BlockingIOError:
                pass
            else:
                if data:
                    return data
                if what == "body":
                    raise MuxError(
                        "truncated_body",
                        "the body is shorter than announced; send all of it, or announce less",
                        close=True,
                    )
                raise _Closed
        raise MuxError("request_timeout", f"the {what} of the request took too long to arrive", close=True)

    def _rest_of_head(self, buffer: bytes) -> tuple[bytes, int]:
        deadline = self.server.mux.clock.ticks_ms() + HEAD_MS
        while (end := buffer.find(b"\r\n\r\n")) < 0:
            wire.check_partial_head(buffer)
            buffer += self._more(deadline, "head")
        self._patience(IDLE_MS)
        return buffer, end

    def _rest_of_body(self, head: wire.Head, rest: bytes) -> bytes:
        if head.expect_continue:
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        deadline = self.server.mux.clock.ticks_ms() + BODY_MS
        parts = [rest]
        missing = head.length - len(rest)
        while missing > 0:
            parts.append(self._more(deadline, "body"))
            missing -= len(parts[-1])
        self._patience(IDLE_MS)
        return b"".join(parts)

    def _chunked(self, head: wire.Head, rest: bytes) -> bytes:
        if head.expect_continue and not rest:
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        deadline = self.server.mux.clock.ticks_ms() + BODY_MS
        chunks = wire.ChunkedBody(BODY_LIMIT)
        chunks.feed(rest)
        while not chunks.done:
            chunks.feed(self._more(deadline, "body"))
        self._patience(IDLE_MS)
        self._buffer = chunks.rest
        return chunks.body

    # -- answering

    def _wait_for_answers(self) -> None:
        """Let a change that is still being committed answer first: answers stand in the order of the requests."""
        self._gate.acquire()
        self._gate.release()

    def send(self, answer: bytes, flight: Flight | None = None) -> None:
        """Write an answer from this connection's own worker."""
        if flight is not None:
            self._flights.append(flight)
            if _has_ended(self.sock):
                raise Hangup
        self.sock.sendall(answer)

    def hold(self) -> None:
        """An answer will be written by another thread."""
        self._gate.acquire()

    def send_from_leader(self, answer: bytes) -> None:
        """Write an answer without ever waiting for the client, and let the worker go on."""
        try:
            sent = self.sock.send(answer, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.hang_up()
            self._gate.release()
            return
        if sent == len(answer):
            self._gate.release()
            return
        threading.Thread(target=self._finish, args=(answer[sent:],), name="finisher", daemon=True).start()

    def _finish(self, rest: bytes) -> None:
        try:
            self.sock.sendall(rest)
        except OSError:
            self.hang_up()
        finally:
            self._gate.release()

    def _refuse_and_close(self, error: MuxError) -> None:
        """Answer a request whose framing cannot be trusted, and see to it that the client can read the answer."""
        self.sock.sendall(refusal(error, self.server.request_id(), close=True))
        self._linger()

    def _linger(self) -> None:
        """Close in good order: say that no more comes, and read what is still on its way, within limits.

        Closing with unread bytes would reset the connection and destroy the answer. What was handed out with the last
        answer gets its receipt here.
        """
        self.sock.shutdown(socket.SHUT_WR)
        deadline = self.server.mux.clock.ticks_ms() + (SEND_MS if self._flights else DRAIN_MS)
        left = DRAIN_BYTES
        while left > 0 and (patience := deadline - self.server.mux.clock.ticks_ms()) > 0:
            self._patience(patience)
            try:
                data = self.sock.recv(RECEIVE)
            except BlockingIOError:
                break
            if not data:
                self._settle(arrived=not _was_reset(self.sock))
                return
            left -= len(data)
        self._settle(arrived=_all_taken(self.sock))

    def _settle(self, *, arrived: bool) -> None:
        """Tell what was handed out with earlier answers whether they arrived."""
        flights, self._flights = self._flights, []
        for flight in flights:
            if arrived:
                flight.landed()
            else:
                flight.lost()

    def detach(self) -> socket.socket:
        """Give the socket away; this connection is over without closing it."""
        self._detached = True
        return self.sock

    @property
    def last(self) -> bool:
        """Whether this connection has served as many requests as it may."""
        return self._served >= MOST_REQUESTS


class _Request:
    """One request on its way through: routing, running, answering."""

    __slots__ = ("_connection", "_extra", "_head", "_request_id", "close")

    def __init__(self, connection: Connection, head: wire.Head) -> None:
        self._connection = connection
        self._head = head
        self._request_id = connection.server.request_id()
        self._extra: tuple[tuple[str, str], ...] = ()
        self.close = not head.keep_alive or connection.last or connection.server.stopping

    def answer(self, body: bytes) -> None:
        """Run the request and answer it, or see to it that it gets answered."""
        try:
            self._dispatch(body)
        except MuxError as error:
            self._refuse(error)
        except (Hangup, OSError):
            raise
        except Exception:
            log.exception("request %s failed", self._request_id)
            self._refuse(_internal())

    def _dispatch(self, body: bytes) -> None:
        head, server = self._head, self._connection.server
        wire.admit(head, server.hosts, server.origins)
        operation = self._route()
        if operation is None:
            return
        key = head.headers.get("idempotency-key")
        if operation.kind == "change":
            self._change(operation, body, key)
        elif operation.kind == "stream":
            self._stream(operation)
        elif operation.kind == "document":
            wire_query = wire.read_query(head.query)
            bind(operation, wire_query, server.mux.settings, textual=True)
            self._send(200, server.openapi)
        else:
            self._run(operation, body, key)

    def _route(self) -> Operation | None:
        """The operation that is asked for; None when the request is answered already (OPTIONS)."""
        head = self._head
        methods = ROUTES.get(head.path)
        if methods is None:
            if head.method == "OPTIONS" and head.path == "*":
                self._send(204, b"")
                return None
            raise _unknown_path(head.path)
        operation = methods.get("GET" if head.method == "HEAD" else head.method)
        if operation is not None:
            return operation
        allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"])
        self._extra = (("Allow", allowed),)
        if head.method == "OPTIONS":
            self._send(204, b"")
            return None
        raise MuxError(
            "method_not_allowed", f"{head.path} does not answer {head.method}; it answers {allowed}", allowed=allowed
        )

    def _given(self, operation: Operation, body: bytes) -> dict[str, Any]:
        if operation.method == "GET":
            return dict(wire.read_query(self._head.query))
        if self._head.query:
            raise MuxError(
                "invalid_query", f"{operation.path} takes its parameters in the JSON body, not in the query string"
            )
        return wire.read_json(body)

    def _change(self, operation: Operation, body: bytes, key: str | None) -> None:
        connection = self._connection
        given = self._given(operation, body)
        caller = Caller()

        def done(answer: Any, error: BaseException | None) -> None:
            if error is None:
                if caller.replayed:
                    self._extra = (("Idempotent-Replayed", "true"),)
                rendered = self._rendered(200, wire.write_json(answer))
            else:
                rendered = self._rendered_refusal(error)
            connection.send_from_leader(rendered)

        connection.hold()
        try:
            door.submit(connection.server.mux, operation, given, caller, done, key=key)
        except BaseException as error:
            if isinstance(error, MuxError):
                connection.send_from_leader(self._rendered_refusal(error))
            else:
                log.error("request %s failed", self._request_id, exc_info=error)
                connection.send_from_leader(self._rendered_refusal(_internal()))

    def _run(self, operation: Operation, body: bytes, key: str | None) -> None:
        mux = self._connection.server.mux
        given = self._given(operation, body)
        if self._head.method == "HEAD" and operation.kind == "wait" and operation.name != "health":
            bind(operation, given, mux.settings, textual=True)  # it waits for nothing and takes nothing
            self._send(200, b"")
            return
        caller = _HttpCaller(self._connection)
        answer = door.call(mux, operation, given, caller, textual=operation.method == "GET", key=key)
        if caller.replayed:
            self._extra = (("Idempotent-Replayed", "true"),)
        if "timeout" in given:
            self._note_clamped(given["timeout"])
        if operation.kind == "text":
            self._send(200, answer.encode(), content_type=monitor.METRICS_TYPE)
        else:
            self._send(200, wire.write_json(answer), flight=caller.flight)

    def _note_clamped(self, timeout: Any) -> None:
        most = self._connection.server.mux.settings.poll_timeout_max
        if timeout is not None and int(timeout) > most:
            self._extra += (("X-Stonemux-Timeout", f"{most}"),)

    def _stream(self, operation: Operation) -> None:
        """Check the request, then hand the socket to the streamer."""
        connection, mux = self._connection, self._connection.server.mux
        given = wire.read_query(self._head.query)
        args = door.admit(mux, operation, given, textual=True)
        asked = args.pop("last_event_id")
        asked = self._head.headers.get("last-event-id", asked)
        wanted = monitor.event_filter(mux, **args)
        head = mux.log.head
        after = head if asked is None else _event_id(asked)
        greeting = b""
        if after > head:
            facts = {"requested": after, "head": head, "epoch": mux.store.epoch}
            greeting = sse.special("reset", facts, head)
            after = head
        self._extra = (("X-Stonemux-Event-Head", str(head)), ("X-Stonemux-Last-Event-ID", str(after)))
        if self._head.method == "HEAD":
            self._send(200, b"", content_type="text/event-stream")
            return
        if len(connection.server.streamer) + mux.waiters.count >= mux.settings.max_waiters:
            raise MuxError(
                "too_many_waiters",
                f"this daemon already has {mux.settings.max_waiters} waiting calls and streams, the limit; end one",
                limit=mux.settings.max_waiters,
                retry_after=1,
            )
        opening = self._stream_head() + f"retry: {sse.RETRY_MS}\n: head {head}\n\n".encode() + greeting
        connection.server.streamer.add(connection.detach(), wanted, after, opening)

    def _stream_head(self) -> bytes:
        lines = [
            "HTTP/1.1 200 OK",
            "Content-Type: text/event-stream",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "X-Accel-Buffering: no",
            "Connection: close",
            f"X-Request-Id: {self._request_id}",
            *(f"{name}: {value}" for name, value in self._extra),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    # -- answers

    def _rendered(self, status: int, body: bytes, content_type: str = "application/json") -> bytes:
        return wire.render(
            status,
            body,
            request_id=self._request_id,
            head_only=self._head.method == "HEAD",
            close=self.close,
            extra=self._extra,
            content_type=content_type,
            date=_date(self._connection.server.mux.clock.now_ms() // 1000),
        )

    def _rendered_refusal(self, error: BaseException) -> bytes:
        if not isinstance(error, MuxError):
            log.error("request %s failed", self._request_id, exc_info=error)
            error = _internal()
        if error.retry_after is not None:
            self._extra += (("Retry-After", str(error.retry_after)),)
        return self._rendered(error.failure.http, wire.write_json(error.body(self._request_id)))

    def _send(
        self, status: int, body: bytes, *, flight: Flight | None = None, content_type: str = "application/json"
    ) -> None:
        self._connection.send(self._rendered(status, body, content_type), flight)

    def _refuse(self, error: MuxError) -> None:
        self.close = self.close or error.close
        self._connection.send(self._rendered_refusal(error))


def refusal(error: MuxError, request_id: str, *, close: bool) -> bytes:
    """A complete error answer, for requests that never became one."""
    extra = (("Retry-After", str(error.retry_after)),) if error.retry_after is not None else ()
    return wire.render(
        error.failure.http, wire.write_json(error.body(request_id)), request_id=request_id, close=close, extra=extra
    )


def _internal() -> MuxError:
    return MuxError("internal", "the daemon failed on this request; its log has the details under the request id")


def _unknown_path(path: str) -> MuxError:
    close = nearest(path, ROUTES, most=1)
    return MuxError(
        "not_found", f"nothing answers at this path; did you mean {close[0]}? /openapi.json lists all", nearest=close[0]
    )


def _event_id(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= MOST_INTEGER:
        return int(text)
    raise MuxError(
        "invalid_last_event_id", "the last event id must be a whole number from 0 to 2^63-1", parameter="last_event_id"
    )


@lru_cache(maxsize=4)
def _date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


@lru_cache(maxsize=16)
def _timeval(ms: int) -> bytes:
    return struct.pack("ll", ms // 1000, ms % 1000 * 1000)


# -- what has become of a socket


def _has_ended(sock: socket.socket) -> bool:
    """Whether the client has closed its side already (nothing is taken from the socket)."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _was_reset(sock: socket.socket) -> bool:
    """After an orderly end: whether a reset follows within 3 ms, which a client sends that closed without reading."""
    poller = select.poll()
    poller.register(sock, 0)
    return any(happened & select.POLLERR for _, happened in poller.poll(3))


def _all_taken(sock: socket.socket) -> bool:
    """Whether the client's system has acknowledged every byte; False where that cannot be told."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        left = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
    except OSError:
        return False
    return bool(left == 0)
