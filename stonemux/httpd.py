"""The HTTP face: the listening socket, and the threads at the door.

`ThreadingHTTPServer` supplies the listening socket and its life cycle. What a request passes through is our own: the
stock parser can be desynchronized and is slow (`wire`), and threads that are woken for every request fight for the
interpreter lock (`readiness`; with 64 connections, a durable send cost 140 microseconds with a thread per connection,
and costs 70 now).

Which thread does what, and never does:

* One thread *attends*: it hears from the system which sockets have something to say, reads and parses it, runs what is
  quick, queues changes, and then leads the commit of everything it has queued. It never waits for a client or another
  thread; the one thing it waits for is the disk.
* Another stands *guard*, and attends in its place when it has been held up for longer than `HELD_UP_MS` by the disk. It
  looks at the clock only while there is traffic.
* *Workers* run what may take long, calls over MCP that wait, and what would wait at the door for a commit that another
  thread leads. They never read from a socket. Other calls that wait have no thread (`parking`).
* Streams belong to the streamer (`sse`).

An idle daemon does nothing at all: deadlines exist only for connections that are idle or half-way through a request.
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
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TypeVar

from stonemux import VERSION, mcp, offer, operations, payload, sse, wire
from stonemux.config import Settings, bracketed, is_loopback
from stonemux.connection import VERDICT_MS, Connection
from stonemux.errors import MuxError
from stonemux.exchange import ROUTES, Exchange, refusal
from stonemux.local import Listener
from stonemux.mcp import PATH as MCP_PATH
from stonemux.mcphttp import McpExchange
from stonemux.mux import Mux
from stonemux.parking import Lot
from stonemux.readiness import Readiness, readiness
from stonemux.record import replace
from stonemux.schema import BODY_LIMIT

log = logging.getLogger("stonemux")

_T = TypeVar("_T")
_Connect = Callable[[socket.socket], Connection]

SWEEP_MS = 250
"""Deadlines of connections are looked at no more often than this, and only while there are any."""
HELD_UP_MS = 20
QUIET_ROUNDS = 10
"""After so many looks without traffic the guard sleeps until there is some."""
ACCEPTED_AT_ONCE = 64
STOP_MS = 1000
"""How long running requests may take to end when the daemon stops."""
IDLE_WORKERS = 64
STACK_BYTES = 256 * 1024
PORT_REMEDIES = {
    errno.EADDRINUSE: "Stop whatever uses it, or choose another port with --port",
    errno.EACCES: "Ports below 1024 are not for everybody: choose another one with --port",
}
"""What to do about a port that cannot be listened on, by the reason."""
TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x50"
"""A fatal "internal error": all that can be said to a TLS client without a handshake."""


class Server(ThreadingHTTPServer):
    """The listening socket and its connections. `_lock` guards the connections and the idle workers."""

    request_queue_size = 1024
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, mux: Mux) -> None:
        """Bind to the address in the settings; raises `address_in_use` when somebody else listens there."""
        self.mux = mux
        self.ticks_ms = mux.clock.ticks_ms
        self.stopping = False
        self._connect: _Connect = partial(Connection, self)
        self._secure: _Connect = self._connect
        """What makes a connection out of a socket that came over the network."""
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
        """The calls that wait."""
        self._openapi = b""
        self._lock = threading.Lock()
        self._all_ended = threading.Condition(self._lock)
        self._connections: dict[int, Connection] = {}
        self._idle_workers: list[_Worker] = []
        self._request_numbers = itertools.count(1)
        self._boot = mux.clock.token(4)
        self._ready: Readiness = readiness()
        self._bell, self._rope = os.pipe()
        os.set_blocking(self._rope, False)
        self._revisits: deque[Connection] = deque()
        self._verdicts: deque[tuple[int, Connection]] = deque()
        self._next_sweep: int | None = None
        # which thread attends; `_watch` guards the change of guard
        self._watch = threading.Condition()
        self._attending: int | None = None
        self._round = 0
        self._in_round = False
        self._traffic = False
        self._ended = False

    def _listen(self) -> Listener | None:
        """Listen on the port, and on the Unix socket if there is to be one, which is returned."""
        settings = self.mux.settings
        try:
            try:
                self.server_bind()
                self.server_activate()
            except OSError as trouble:
                remedy = PORT_REMEDIES.get(trouble.errno or 0, "Name an address of this machine with --host")
                where = settings.authority
                raise MuxError("address_in_use", f"cannot listen on {where}: {trouble.strerror}. {remedy}") from trouble
            return Listener(Path(settings.unix_socket)) if settings.unix_socket else None
        except BaseException:
            self.socket.close()
            raise

    def server_bind(self) -> None:
        """Bind without the stock look-up of the host's name, which may ask the network."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    @cached_property
    def mcp(self) -> mcp.Layer:
        """What answers MCP, made when somebody first asks; a test may put a layer with other things in its place."""
        return mcp.Layer(offer.registry(self.mux.settings))

    @property
    def openapi(self) -> bytes:
        """The OpenAPI document, rendered when somebody first asks for it."""
        if not self._openapi:
            from stonemux.openapi import document  # a start need not wait for it

            here = replace(self.mux.settings, port=self.port)  # that of the settings may be 0
            self._openapi = payload.write_line(document(operations.OPERATIONS, here, VERSION))
        return self._openapi

    def heed(self) -> None:
        """Go by the program's settings as they are now."""
        self._openapi = b""
        self.streamer.wake()  # it sleeps as long as the keepalive was
        self.mcp.registry = offer.registry(self.mux.settings)

    def read_certificate(self) -> None:
        """Show the certificate in the files to whoever connects from now on, if there is one.

        Raises `bad_setting` for one that cannot be used; the one that was shown before stays.
        """
        settings = self.mux.settings
        if settings.tls_cert:
            from stonemux import tls  # no other start need wait for it

            secrets = tls.context(settings.tls_cert, settings.tls_key)
            self._secure = partial(tls.SecuredConnection, self, secrets=secrets)

    def request_id(self) -> str:
        """A name for one request, unique while the daemon runs and hard to mistake for another run's."""
        return f"{self._boot}-{next(self._request_numbers):x}"

    # -- at the door

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Attend to the door until `stop`, with a guard beside."""
        self._listeners = {sock.fileno(): sock for sock in (self.socket, *([self._local.sock] if self._local else []))}
        for fd, sock in self._listeners.items():
            sock.setblocking(False)
            self._ready.add_listener(fd)
        self._ready.add_listener(self._bell)
        guard = threading.Thread(target=self._take_turns, args=(False,), name="guard", daemon=True)
        guard.start()
        self._take_turns(True)
        guard.join()

    def _take_turns(self, attending: bool) -> None:
        me = threading.get_ident()
        self.mux.store.gatherers.add(me)
        if attending:
            self._attending = me
        try:
            while not self._ended:
                if attending:
                    self._attend(me)
                else:
                    self._stand_guard(me)
                attending = not attending
        finally:
            self.mux.store.gatherers.discard(me)  # the next thread of this number is none

    def _attend(self, me: int) -> None:
        """Attend until the end, or until the guard has taken over."""
        gathering = False
        while not self._ended and self._attending == me:
            self._in_round = False
            happened = self._ready.wait(0 if gathering else self._patience())
            self._in_round = True
            self._round += 1
            if not self._traffic:
                with self._watch:
                    self._traffic = True
                    self._watch.notify_all()
            knocks = []
            for ready in happened:
                connection = self._connections.get(ready.fd)
                if connection is not None:
                    try:
                        connection.stir(ready)
                    except Exception:
                        log.exception("a connection failed")
                elif ready.fd == self._bell:
                    with contextlib.suppress(OSError):
                        os.read(self._bell, 4096)
                elif ready.fd in self._listeners:
                    knocks.append(self._listeners[ready.fd])
            try:
                for listener in knocks:  # last: a new connection may get the number of one that this round will close
                    self._accept(listener)
                self._see_to_the_rest()
            except Exception:
                log.exception("a round at the door failed")
            # Whoever has asked during this round shares its flush: one more look before the commit.
            gathering = not gathering and self.mux.store.gathered and len(self._connections) > 1
            if not gathering:
                self.mux.store.lead()
        self.mux.store.lead()  # what was gathered when the guard took over

    def _stand_guard(self, me: int) -> None:
        """Sleep while all is quiet; take over from an attending thread that is held up."""
        quiet = 0
        with self._watch:
            while not self._ended:
                if not self._traffic:
                    self._watch.wait()
                    continue
                seen = self._round
                self._watch.wait(HELD_UP_MS / 1000)
                if self._round != seen:
                    quiet = 0
                elif self._in_round:
                    self._attending = me
                    return
                elif (quiet := quiet + 1) > QUIET_ROUNDS:
                    quiet = 0
                    self._traffic = False

    def _patience(self) -> int | None:
        """Milliseconds until something is due that no socket will announce."""
        if self._revisits or self.lot.queue:
            return 0
        moments = [self._verdicts[0][0]] if self._verdicts else []
        if (due := self.lot.due()) is not None:
            moments.append(due)
        if self._next_sweep is not None:
            moments.append(self._next_sweep)
        return max(0, min(moments) - self.ticks_ms()) if moments else None

    def _see_to_the_rest(self) -> None:
        """Connections that wait to be looked at again, verdicts that are due, deadlines."""
        while (connection := _taken(self._revisits)) is not None:
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
            except OSError:  # nobody is left, or the client gave up before it was accepted
                return
            if self.stopping:
                sock.close()
                return
            if listener is self.socket:
                self._welcome(sock, self._secure, remote=self._beyond and is_remote(str(peer[0]), sock))
            else:
                self._welcome(sock, self._connect)

    def _welcome(self, sock: socket.socket, connect: _Connect, *, remote: bool = False) -> None:
        """Take a new connection in, or refuse it when there is no room to be made."""
        words = TLS_ALERT if connect is not self._connect else b""
        if self.open_connections >= self.mux.settings.max_connections and not self._make_room():
            self._turn_away(sock, words)
            return
        connection = connect(sock)
        connection.remote = remote
        try:  # first, so that nobody has to take it out again; what it tells of meanwhile is read below
            self._ready.add(sock.fileno())
        except OSError as trouble:
            log.warning("a connection was turned away: %s", trouble.strerror)
            self._turn_away(sock, words)
            return
        with self._lock:
            self._connections[sock.fileno()] = connection
        connection.attend()

    def _make_room(self) -> bool:
        """Close the connection that has been idle longest in favor of a new one; False if none is idle."""
        with self._lock:
            idle = [(since, other) for other in self._connections.values() if (since := other.idle_since) is not None]
        if not idle:
            return False
        min(idle, key=lambda pair: pair[0])[1].hang_up(idle=True)
        return True

    def _turn_away(self, sock: socket.socket, words: bytes) -> None:
        error = MuxError(
            "too_many_connections",
            f"the daemon has as many connections as it may have ({self.mux.settings.max_connections}, "
            "server.max_connections) or as the system has room for, and none is idle; try again in a moment",
            retry_after=1,
            limit=self.mux.settings.max_connections,
        )
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.send(words or refusal(error, self.request_id()))
            sock.shutdown(socket.SHUT_WR)
            sock.recv(65536)  # unread bytes would turn the orderly end into a reset and destroy the answer
        sock.close()

    # -- what connections ask for

    def most_body(self, head: wire.Head) -> int:
        """How many bytes the body of such a request may have."""
        operation = ROUTES.get(head.path, {}).get(head.method)
        return BODY_LIMIT if operation is None else operation.most_body

    def handle(self, connection: Connection, head: wire.Head, body: bytes) -> None:
        """Run a request."""
        kind = McpExchange if head.path == MCP_PATH else Exchange
        kind(self, connection, head).run(body)

    def refuse(self, connection: Connection, error: MuxError) -> None:
        """Answer a request that could not be read, and end the connection."""
        connection.finish(refusal(error, self.request_id()), close=True)

    def revisit(self, connection: Connection) -> None:
        """Let the attending thread look at this connection again."""
        self._revisits.append(connection)
        self._ring_from_elsewhere()

    def ring(self) -> None:
        """Wake the attending thread."""
        with contextlib.suppress(OSError):
            os.write(self._rope, b"x")

    def await_verdict(self, connection: Connection) -> None:
        """Ask the connection for its verdict in a moment."""
        self._verdicts.append((self.ticks_ms() + VERDICT_MS, connection))
        self._ring_from_elsewhere()

    def remind(self, deadline: int) -> None:
        """Look at the connections' deadlines when this moment has come."""
        if self._next_sweep is not None and self._next_sweep <= deadline:
            return
        with self._lock:
            self._next_sweep = min(deadline, self._next_sweep or deadline)
        self._ring_from_elsewhere()

    def _ring_from_elsewhere(self) -> None:
        """Wake the attending thread, unless that is the one which asks for it."""
        if threading.get_ident() != self._attending:  # a thread that was relieved in its round is one of the others
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
        """Run this on a worker."""
        with self._lock:
            worker = self._idle_workers.pop() if self._idle_workers else None
        if worker is not None:
            worker.give(work)
            return
        try:
            _Worker(self, work)
        except RuntimeError as trouble:
            raise MuxError(
                "too_many_waiters", "the system has no thread left for this call; try again in a moment", retry_after=1
            ) from trouble

    def rest(self, worker: _Worker) -> bool:
        """Keep a worker for the next piece of work; False when there are enough of them."""
        with self._lock:
            if len(self._idle_workers) >= IDLE_WORKERS or self.stopping:
                return False
            self._idle_workers.append(worker)
            return True

    @property
    def open_connections(self) -> int:
        """How many connections there are, streams apart."""
        return len(self._connections)

    # -- stopping

    def stop(self) -> None:
        """Stop accepting and answer what is waiting; parked calls end with what they have, streams say so."""
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
        """Give the descriptors back; called when nobody attends any more."""
        socketserver.TCPServer.server_close(self)
        if self._local is not None:
            self._local.close()
        self._ready.close()
        with self._lock:
            workers, self._idle_workers = self._idle_workers, []
        for worker in workers:
            worker.give(None)
        os.close(self._bell)
        os.close(self._rope)


def _own_names(settings: Settings, port: int) -> tuple[frozenset[str], frozenset[str]]:
    """What Host and Origin may say: the names by which this server is called, lower-case."""
    own = (*wire.LOOPBACK, bracketed(settings.host))
    listed = {name.lower() for name in (*own, *settings.allowed_hosts)}
    elsewhere = {name for name in listed if name.rpartition(":")[2].isdecimal()}  # these bring a port of their own
    names = listed - elsewhere
    local = elsewhere | {f"{name}:{port}" for name in names}
    # A browser always names a port that is not 80, so a Host without one comes from a program.
    return frozenset(local | names), frozenset(f"{settings.scheme}://{name}" for name in local)


def is_remote(peer: str, sock: socket.socket) -> bool:
    """Whether a connection comes from another machine: neither over loopback nor from one of our own addresses."""
    address = ip_address(peer.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return False
    try:
        return bool(sock.getsockname()[0] != peer)
    except OSError:  # it has ended already
        return True


def _taken(queue: deque[_T]) -> _T | None:
    """The first of a queue; at a change of guard two threads may take from it."""
    try:
        return queue.popleft()
    except IndexError:
        return None


class _Worker:
    """A thread that runs one piece of work after another."""

    __slots__ = ("_next", "_server", "_wake")

    def __init__(self, server: Server, first: Callable[[], None]) -> None:
        self._server = server
        self._wake = threading.Lock()
        self._wake.acquire()
        self._next: Callable[[], None] | None = first
        threading.Thread(target=self._run, name="worker", daemon=True).start()

    def give(self, work: Callable[[], None] | None) -> None:
        """The next piece of work; None to end."""
        self._next = work
        self._wake.release()

    def _run(self) -> None:
        while (work := self._next) is not None:
            work()
            self._next = work = None
            if not self._server.rest(self):
                return
            self._wake.acquire()
