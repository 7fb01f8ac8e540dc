"""The HTTP server: the listening socket, and the threads that serve its connections.

`ThreadingHTTPServer` supplies the listening socket and its life cycle. The request path is our own: the standard
library's parser is slow and open to request smuggling (see `wire`), and threads that are woken for every request
compete for the interpreter lock (see `readiness`). With 64 connections, a durable send cost 140 microseconds with one
thread per connection; it now costs 70.

Which thread does what, and what it must never do:

* One thread *attends*: it is the event loop. It learns from the operating system which sockets are ready, reads and
  parses their bytes, runs quick operations, queues changes, and then leads the group commit of everything it has
  queued. It never waits for a client or for another thread; it waits only for the disk.
* A second thread stands *guard*. It takes over as the attending thread when the disk has held that one up for longer
  than `HELD_UP_MS`. It looks at the clock only while there is traffic.
* *Workers* run operations that may take long, MCP calls that wait, and work that would block the event loop until a
  commit led by another thread is done. They never read from a connection's socket. Other waiting calls need no thread
  (see `parking`).
* Streams belong to the streamer (see `sse`).

Without connections, all these threads sleep: deadlines exist only for connections that are idle or in mid-request.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import socket
import socketserver
import threading
from collections import deque
from collections.abc import Callable
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

from stonemux import VERSION, addresses, audit, mcp, offer, operations, payload, sse, wire
from stonemux.chain import Entry
from stonemux.config import Settings, bracketed, is_loopback
from stonemux.connection import VERDICT_MS, Connection
from stonemux.errors import MuxError
from stonemux.exchange import ROUTES, Exchange, refusal
from stonemux.local import BACKLOG, Listener
from stonemux.mcp import PATH as MCP_PATH
from stonemux.mcphttp import CallKey, McpExchange, refused
from stonemux.mux import Mux
from stonemux.parking import Lot
from stonemux.readiness import Readiness, readiness
from stonemux.record import replace
from stonemux.schema import BODY_LIMIT
from stonemux.threads import Workers

log = logging.getLogger("stonemux")

_T = TypeVar("_T")
_Connect = Callable[[socket.socket], Connection]

SWEEP_MS = 250
"""Connection deadlines are checked at most this often, and only while there are any."""
HELD_UP_MS = 20
QUIET_ROUNDS = 10
"""After this many checks without traffic, the guard sleeps until there is traffic again."""
ACCEPTED_AT_ONCE = 64
STUCK_MS = 1000
"""How long a client may leave an answer unread before it gives way to a new connection, if all places are taken."""
MOST_READING = 8
"""How many reads that may take long run at once: each may need a few hundred megabytes, and more are no faster."""
MOST_UNSENT = 256 * 1024 * 1024
"""How many bytes of answers may wait for clients that do not read them."""
STOP_MS = 1000
"""How long the requests in progress may take to finish when the daemon stops."""
STACK_BYTES = 256 * 1024
"""Of a thread's stack, the tests touch at most 56 KiB (CPython 3.11 and 3.13); CPython 3.14 also keeps a reserve."""
PORT_REMEDIES = {
    errno.EADDRINUSE: "Stop the program that uses it, or choose another port with --port",
    errno.EACCES: "Ports below 1024 need special privileges: choose another one with --port",
}
"""What to do about a port that the daemon cannot listen on, by `errno`."""
TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x50"
"""A fatal "internal error" alert: the only thing a TLS client can be told before the handshake."""


class Server(ThreadingHTTPServer):
    """The listening socket and its connections. `_lock` guards the connections."""

    request_queue_size = BACKLOG
    allow_reuse_address = True

    def __init__(self, mux: Mux) -> None:
        """Bind to the configured address; raises `address_in_use` if the daemon cannot listen there."""
        self.mux = mux
        self.ticks_ms = mux.clock.ticks_ms
        self.stopping = False
        self._connect: _Connect = partial(Connection, self)
        self._secure: _Connect = self._connect
        """Makes a connection from a socket that was accepted on the TCP port."""
        self.read_certificate()
        host = mux.settings.host
        self._beyond = not is_loopback(host)
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, mux.settings.port), BaseHTTPRequestHandler, bind_and_activate=False)
        self._local = self._listen()
        self.port: int = self.server_address[1]
        mux.endpoints.own_port = self.port
        self.hosts, self.origins = _own_names(mux.settings, self.port)
        self.streamer = sse.Streamer(mux)
        self.lot = Lot(mux, self._ring_from_elsewhere, self.aside)
        """The calls that wait without a thread."""
        self.cancelable: dict[CallKey, Connection] = {}
        """The connections of the MCP calls in progress that a notification may cancel; each access is atomic."""
        self._openapi = b""
        self._lock = threading.Lock()
        self._all_ended = threading.Condition(self._lock)
        self._connections: dict[int, Connection] = {}
        self._workers = Workers()
        self._readers = Workers(MOST_READING)
        self._request_numbers = itertools.count(1)
        self._boot = mux.clock.token(4)
        self._ready: Readiness = readiness()
        self._bell, self._rope = os.pipe()
        for end in (self._bell, self._rope):  # at a change of guard, two threads may have heard of one ring
            os.set_blocking(end, False)
        self._spare = _spare()
        self._revisits: deque[Connection] = deque()
        self._verdicts: deque[tuple[int, Connection]] = deque()
        self._next_sweep: int | None = None
        # which thread attends; `_watch` guards the handover between it and the guard
        self._watch = threading.Condition()
        self._guard: threading.Thread | None = None
        self._guardless = False
        self._attending: int | None = None
        self._round = 0
        self._in_round = False
        self._traffic = False
        self._ended = False

    def _listen(self) -> Listener | None:
        """Listen on the port, and on the Unix socket if one is configured; returns the latter."""
        settings = self.mux.settings
        try:
            try:
                self.server_bind()
                self.server_activate()
            except OSError as trouble:
                remedy = PORT_REMEDIES.get(trouble.errno or 0, "Pass an address of this machine as --host")
                where = settings.authority
                raise MuxError("address_in_use", f"cannot listen on {where}: {trouble.strerror}. {remedy}") from trouble
            return Listener(Path(settings.unix_socket)) if settings.unix_socket else None
        except BaseException:
            self.socket.close()
            raise

    def server_bind(self) -> None:
        """Bind without the standard library's look-up of the host name, which may query the network."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    @cached_property
    def mcp(self) -> mcp.Layer:
        """The MCP layer, created on first use; a test may substitute a layer with other tools."""
        return mcp.Layer(offer.registry(self.mux.settings))

    @property
    def openapi(self) -> bytes:
        """The OpenAPI document, rendered on first use."""
        if not self._openapi:
            from stonemux.openapi import document  # imported here to keep startup fast

            here = replace(self.mux.settings, port=self.port)  # the configured port may be 0
            self._openapi = payload.write_line(document(operations.OPERATIONS, here, VERSION))
        return self._openapi

    def heed(self) -> None:
        """Apply the current settings after they have changed."""
        self._openapi = b""
        self.streamer.wake()  # it may be asleep for the old keepalive interval
        self.mcp.registry = offer.registry(self.mux.settings)

    def read_certificate(self) -> None:
        """Read the configured certificate, if there is one, and use it for all connections from now on.

        Raises `bad_setting` if the certificate cannot be used; the previous one stays in use.
        """
        settings = self.mux.settings
        if settings.tls_cert:
            from stonemux import tls  # imported only where TLS is used

            secrets = tls.context(settings.tls_cert, settings.tls_key)
            self._secure = partial(tls.SecuredConnection, self, secrets=secrets)

    def request_id(self) -> str:
        """An id for one request: unique while the daemon runs, and unlikely to repeat in another run."""
        return f"{self._boot}-{next(self._request_numbers):x}"

    # -- the event loop

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve connections until `stop`, with a guard thread running alongside."""
        self._listeners = {sock.fileno(): sock for sock in (self.socket, *([self._local.sock] if self._local else []))}
        for fd, sock in self._listeners.items():
            sock.setblocking(False)
            self._ready.add_listener(fd)
        self._ready.add_listener(self._bell)
        self.mux.store.leave_rest_to(self.ring)
        try:
            self._start_guard()
            self._take_turns(True)
            if self._guard is not None:
                self._guard.join()
        finally:
            self.mux.store.leave_rest_to(None)
            self.mux.store.lead()

    def _start_guard(self) -> None:
        self._guard = threading.Thread(target=self._take_turns, args=(False,), name="guard", daemon=True)
        try:
            self._guard.start()
        except RuntimeError as trouble:
            self._guard = None
            if not self._guardless:
                self._guardless = True
                log.warning("the system has no thread left for the guard (%s): a slow disk delays all calls", trouble)

    def _take_turns(self, attending: bool) -> None:
        me = threading.get_ident()
        self.mux.store.gatherers.add(me)
        if attending:
            self._attending = me
        try:
            while not self._ended:
                try:
                    if attending:
                        self._attend(me)
                    else:
                        self._stand_guard(me)
                except Exception:  # such as too little memory; whatever it is, somebody must attend
                    log.exception("the event loop failed")
                attending = self._attending == me
        finally:
            self.mux.store.gatherers.discard(me)  # the system may reuse this thread id

    def _attend(self, me: int) -> None:
        """Run the event loop until the server ends or the guard has taken over."""
        gathering = self.mux.store.gathered  # by a round that failed
        while not self._ended and self._attending == me:
            self._in_round = False
            happened = self._ready.wait(0 if gathering else self._patience())
            # Before the guard may take over: it could close one of these and give its descriptor to a new connection.
            concerned = [(ready, self._connections.get(ready.fd)) for ready in happened]
            self._in_round = True
            self._round += 1
            if not self._traffic:
                self._alert_guard()
            knocks = []
            for ready, connection in concerned:
                if connection is not None:
                    try:
                        connection.stir(ready)
                    except Exception:
                        log.exception("a connection failed")
                elif ready.fd == self._bell and not self._ended:  # that ring is for everybody
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._bell, 4096)
                elif ready.fd in self._listeners:
                    knocks.append(self._listeners[ready.fd])
            try:
                for listener in knocks:  # last: a new connection may get the descriptor of one that this round closes
                    self._accept(listener)
                self._see_to_the_rest()
            except Exception:
                log.exception("a round of the event loop failed")
            # Let requests that arrived during this round share its flush: poll once more before the commit.
            gathering = not gathering and self.mux.store.gathered and len(self._connections) > 1
            if not gathering:
                self.mux.store.lead()
        self.ring()  # the other leads what was gathered; and a ring that was heard here may have been for the other

    def _alert_guard(self) -> None:
        """Tell the guard that there is traffic; without one, try again to start it."""
        if self._guard is None:
            self._start_guard()
        if self._guard is not None:
            with self._watch:
                self._traffic = True
                self._watch.notify_all()

    def _stand_guard(self, me: int) -> None:
        """Sleep while there is no traffic; take over when the attending thread is held up."""
        quiet = 0
        with self._watch:
            while not self._ended:
                if not self._traffic:
                    self._watch.wait()
                    continue
                seen = self._round, self.mux.store.steps
                self._watch.wait(HELD_UP_MS / 1000)
                if (self._round, self.mux.store.steps) != seen:
                    quiet = 0
                elif self._in_round:
                    self._attending = me
                    return
                elif (quiet := quiet + 1) > QUIET_ROUNDS:
                    quiet = 0
                    self._traffic = False

    def _patience(self) -> int | None:
        """Milliseconds until the next deadline that no socket event will announce; None if there is none."""
        if self._revisits or self.lot.queue:
            return 0
        moments = [self._verdicts[0][0]] if self._verdicts else []
        if (due := self.lot.due()) is not None:
            moments.append(due)
        if self._next_sweep is not None:
            moments.append(self._next_sweep)
        return max(0, min(moments) - self.ticks_ms()) if moments else None

    def _see_to_the_rest(self) -> None:
        """Serve revisited connections, settle verdicts that are due, look at parked calls, and check deadlines."""
        for _ in range(len(self._revisits)):  # what they append, such as a pipelined request, waits for the next round
            if (connection := _taken(self._revisits)) is not None:
                connection.attend()
        now = self.ticks_ms()
        while (verdict := _taken(self._verdicts)) is not None:
            if verdict[0] > now:
                self._verdicts.appendleft(verdict)
                break
            verdict[1].conclude()
        self.lot.attend(now)
        if self._next_sweep is not None and self._next_sweep <= now:
            self._sweep(now)

    def _sweep(self, now: int) -> None:
        with self._lock:
            connections = list(self._connections.values())
            self._next_sweep = None
        waiting = [due for connection in connections if (due := connection.overdue(now)) is not None]
        if waiting:
            self.remind(max(min(waiting), now + SWEEP_MS))

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                sock, peer = listener.accept()
            except OSError as trouble:
                if trouble.errno in (errno.EMFILE, errno.ENFILE):
                    self._spend_spare(listener, trouble)
                return  # else no connection is pending, or the client gave up before it was accepted
            if self.stopping:
                sock.close()
                return
            if listener is self.socket:
                self._welcome(sock, self._secure, remote=self._beyond and is_remote(str(peer[0]), sock))
            else:
                self._welcome(sock, self._connect)

    def _spend_spare(self, listener: socket.socket, trouble: OSError) -> None:
        """Turn a client away with the descriptor kept for this: one left waiting would be reported again at once."""
        spare, self._spare = self._spare, -1
        if spare < 0:
            return
        os.close(spare)
        try:
            with contextlib.suppress(OSError):  # somebody else was faster
                sock, _ = listener.accept()
                log.warning("a connection was turned away: %s", trouble.strerror)
                tls = listener is self.socket and self._secure is not self._connect
                self._turn_away(sock, TLS_ALERT if tls else b"")
        finally:
            with contextlib.suppress(OSError):
                self._spare = _spare()

    def _welcome(self, sock: socket.socket, connect: _Connect, *, remote: bool = False) -> None:
        """Register a new connection, or turn it away when the limit is reached and no connection is idle."""
        words = TLS_ALERT if connect is not self._connect else b""
        connection = connect(sock)
        connection.remote = remote
        try:  # before the connection is recorded, so failure needs no undo; `attend` below reads what arrives meanwhile
            self._ready.add(sock.fileno())
        except OSError as trouble:
            log.warning("a connection was turned away: %s", trouble.strerror)
            self._turn_away(sock, words)
            return
        while not self._record(connection):
            if self.stopping or not self._make_room():
                self._ready.drop(sock.fileno())
                if self.stopping:
                    sock.close()
                else:
                    self._turn_away(sock, words)
                return
        connection.attend()

    def _record(self, connection: Connection) -> bool:
        """Count the connection among those that are open; False if there may be no more, or none while stopping."""
        with self._lock:  # a thread that the guard has relieved may be accepting, too
            if self.stopping or len(self._connections) >= self.mux.settings.max_connections:
                return False
            self._connections[connection.sock.fileno()] = connection
        return True

    def _make_room(self) -> bool:
        """Close the connection that has been idle longest, or else leaves an answer unread; False if there is none."""
        with self._lock:
            others = list(self._connections.values())
        idle = [(since, other) for other in others if (since := other.idle_since) is not None]
        if idle:
            min(idle, key=lambda pair: pair[0])[1].hang_up(idle=True)
            return True
        stuck = [(since, other) for other in others if (since := other.stuck_since) is not None]
        since, other = min(stuck, key=lambda pair: pair[0], default=(0, None))
        if other is None or self.ticks_ms() - since < STUCK_MS:
            return False
        other.hang_up(stuck=True)
        return True

    def _turn_away(self, sock: socket.socket, words: bytes) -> None:
        error = MuxError(
            "too_many_connections",
            f"the daemon has reached its limit of connections ({self.mux.settings.max_connections}, "
            "server.max_connections) or the system's, and none is idle; try again in a moment",
            retry_after=1,
            limit=self.mux.settings.max_connections,
        )
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.send(words or refusal(error, self.request_id()))
            sock.shutdown(socket.SHUT_WR)
            sock.recv(65536)  # unread bytes would turn the orderly end into a reset and destroy the answer
        sock.close()

    # -- what connections ask of the server

    def most_body(self, head: wire.Head) -> int:
        """The maximum body size in bytes for this request; before a large body is read, its sender must be admitted."""
        operation = ROUTES.get(head.path, {}).get(head.method)
        if operation is None or operation.most_body <= BODY_LIMIT:
            return BODY_LIMIT
        # Else strangers, or a page that a browser shows, could fill the memory with what nobody will read.
        wire.admit(head, self.hosts, self.origins)
        if self.mux.tokens.required:
            self.mux.tokens.admit(head.headers.get("authorization"))
        return operation.most_body

    def handle(self, connection: Connection, head: wire.Head, body: bytes) -> None:
        """Run a request."""
        kind = McpExchange if head.path == MCP_PATH else Exchange
        try:
            kind(self, connection, head).run(body)
        except BaseException:  # its client must not wait for an answer that nobody gives
            connection.abandon()
            raise

    def refuse(self, connection: Connection, error: MuxError) -> None:
        """Answer a request that could not be read, and end the connection."""
        request_id = self.request_id()
        if error.failure.http in audit.GUARDED:
            self.mux.blotter.note(Entry("http.request", outcome=error.code, request_id=request_id))
        body = payload.write_json(refused(error, request_id)) if connection.path == MCP_PATH else None
        connection.finish(refusal(error, request_id, body), close=True)

    def revisit(self, connection: Connection) -> None:
        """Have the attending thread look at this connection again."""
        self._revisits.append(connection)
        self._ring_from_elsewhere()

    def ring(self) -> None:
        """Wake the attending thread."""
        with contextlib.suppress(OSError):
            os.write(self._rope, b"x")

    def await_verdict(self, connection: Connection) -> None:
        """Have the attending thread call the connection's `conclude` after `VERDICT_MS`."""
        self._verdicts.append((self.ticks_ms() + VERDICT_MS, connection))
        self._ring_from_elsewhere()

    def remind(self, deadline: int) -> None:
        """Check the connections' deadlines no later than this moment (ticks)."""
        if self._next_sweep is not None and self._next_sweep <= deadline:
            return
        with self._lock:
            self._next_sweep = min(deadline, self._next_sweep or deadline)
        self._ring_from_elsewhere()

    def _ring_from_elsewhere(self) -> None:
        """Wake the attending thread, unless the caller is that thread."""
        if threading.get_ident() != self._attending:  # also a thread that the guard has relieved
            self.ring()

    def ended(self, connection: Connection) -> None:
        """A connection is over; its socket is still open."""
        fd = connection.sock.fileno()
        self._ready.drop(fd)
        with self._lock:
            self._connections.pop(fd, None)
            if not self._connections:
                self._all_ended.notify_all()

    def aside(self, work: Callable[[], None]) -> None:
        """Run this on a worker thread; raises `too_many_waiters` if there is none."""
        self._workers.run(work)

    def in_turn(self, read: Callable[[], None]) -> None:
        """Run a read on a worker thread, once fewer than `MOST_READING` others run; raises as `aside` does."""
        self._readers.run(read)

    def make_way(self) -> None:
        """Hang up on clients that leave large answers unread, if these are too large together: the oldest first."""
        with self._lock:
            others = list(self._connections.values())
        stuck = [(since, other) for other in others if (since := other.stuck_since) is not None]
        stuck.sort(key=lambda pair: pair[0])
        over = sum(other.unsent for _, other in stuck) - MOST_UNSENT
        for _, other in stuck[:-1]:  # the newest has had no time to read yet
            if over <= 0:
                return
            over -= other.unsent
            other.hang_up(stuck=True)

    @property
    def open_connections(self) -> int:
        """How many connections are open, not counting streams."""
        return len(self._connections)

    # -- stopping

    def stop(self) -> None:
        """Stop accepting, end waiting calls with what they have, send streams `shutdown`, and let requests finish."""
        if self.stopping:
            return
        self.stopping = True
        self.mux.hub.close()
        self.streamer.close()
        deadline = self.ticks_ms() + STOP_MS
        with self._lock:
            idle = [connection for connection in self._connections.values() if connection.idle_since is not None]
        for connection in idle:
            connection.hang_up(idle=True)
        with self._lock:
            while self._connections and self.ticks_ms() < deadline:
                self.mux.clock.wait(self._all_ended, deadline)
            remaining = list(self._connections.values())
        for connection in remaining:
            connection.hang_up()
        with self._watch:
            self._ended = True
            self._watch.notify_all()
        self.ring()

    def server_close(self) -> None:
        """Close the descriptors; called when no thread attends any more."""
        socketserver.TCPServer.server_close(self)
        if self._local is not None:
            self._local.close()
        self._ready.close()
        self._workers.close()
        self._readers.close()
        bell, rope = self._bell, self._rope
        self._bell = self._rope = -1  # a call that ends late still rings, and must not write to what is opened next
        for descriptor in (bell, rope, self._spare):
            if descriptor >= 0:
                os.close(descriptor)


def _spare() -> int:
    """A descriptor of nothing, which can be given up when there are no others."""
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _own_names(settings: Settings, port: int) -> tuple[frozenset[str], frozenset[str]]:
    """The accepted values of Host and Origin: the names of this server, in lower case."""
    own = (*wire.LOOPBACK, bracketed(settings.host))
    listed = {name.lower() for name in (*own, *settings.allowed_hosts)}
    elsewhere = {name for name in listed if name.rpartition(":")[2].isdecimal()}  # these come with a port of their own
    names = listed - elsewhere
    local = elsewhere | {f"{name}:{port}" for name in names}
    # A browser leaves out only port 80 (or 443 with TLS), so a Host without a port comes from another program.
    return frozenset(local | names), frozenset(f"{settings.scheme}://{name}" for name in local)


def is_remote(peer: str, sock: socket.socket) -> bool:
    """Whether a connection comes from another machine: neither over loopback nor from one of our own addresses."""
    if addresses.plain(peer).is_loopback:
        return False
    try:
        return bool(sock.getsockname()[0] != peer)
    except OSError:  # it has already been closed
        return True


def _taken(queue: deque[_T]) -> _T | None:
    """Remove and return the first item, or None; during a handover two threads may take from the queue."""
    try:
        return queue.popleft()
    except IndexError:
        return None
