"""One client connection: turns bytes into requests, answers into bytes, and tracks whether each answer arrived.

A connection is a state machine driven by events; it never blocks. It runs one request at a time (*busy*) and buffers
the bytes that arrive meanwhile, so answers keep the order of the requests. The attending thread reads and parses; any
thread may `finish` a request.

**Receipt.** A successful `send` does not prove that the client has the answer. The connection's next event settles what
the answer handed out (see `mux.Flight`): more bytes or an orderly close mean received, a reset means lost. A client
that closes without having read our answer sends a reset right after its orderly close, so a close counts as a receipt
only if no reset follows within 3 ms.

**Phases.** `_phase` is what the connection waits for, and so what its deadline means (`overdue`):

    idle       the first byte of a request                  IDLE_MS        close
    head       the rest of its head                         HEAD_MS        refuse it
    body       the rest of its body                         BODY_MS        refuse it
    busy       its answer: `begin` or `finish`              (none); behind a client's close, GONE_MS, and then close
    streaming  more of the answer: `proceed` or `finish`    the next beat  send one, or close if the last is not taken
    sending    room in the socket for the end of it         SEND_MS        close
    draining   the client's end, after the last answer      DRAIN_MS       close

A request that arrives whole takes it from idle to busy, an answer that fits from there to idle. HEAD_MS and BODY_MS are
total: they run from the first byte to the last, however slowly the bytes trickle in. Draining may take SEND_MS if a
receipt is outstanding, and BODY_MS behind a body that was refused unread. When idle or draining ends, what was handed
out counts as received if the client's system has acknowledged every byte. `tls` adds phases of its own.

`lock` guards everything here. Flights are notified without it, because a notification may commit and so cause other
connections to answer.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import termios
import threading
from typing import Protocol

from stonemux import wire
from stonemux.errors import MuxError
from stonemux.hub import Hangup, Watch
from stonemux.mux import Flight
from stonemux.readiness import Ready
from stonemux.schema import BODY_LIMIT

RECEIVE = 16 * 1024
"""How many bytes are read at a time."""
HEARD_OUT = 64 * 1024
"""How many bytes of later requests are read before sending an answer that hands something out."""
IDLE_MS = 15_000
HEAD_MS = 5_000
BODY_MS = 10_000
SEND_MS = 15_000
GONE_MS = 600_000
"""After that, a request whose client has closed its side will never be answered."""
DRAIN_MS = 500
DRAIN_BYTES = 256 * 1024
"""How many bytes are discarded while draining; the connection is then closed."""
LONG_DRAIN_BYTES = 16 * 1024 * 1024
"""The same behind a body that was refused before it was read."""
LARGE = 1024 * 1024
"""A larger rest of an answer may be too much, together with others."""
VERDICT_MS = 3
"""How long after a client's orderly close a reset may still say that it left the answer unread."""
MOST_REQUESTS = 1000
"""Maximum number of requests on one connection."""


class Socket(Protocol):
    """What a connection needs of a socket: the standard library's, or one that speaks TLS (see `tls`)."""

    @property
    def family(self) -> int:
        """The address family."""

    def fileno(self) -> int:
        """The file descriptor; system calls on it see the bytes on the wire."""

    def setblocking(self, flag: bool, /) -> None:
        """Set whether calls may block."""

    def settimeout(self, seconds: float | None, /) -> None:
        """Set how long calls may block."""

    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None:
        """Set a socket option."""

    def getsockopt(self, level: int, option: int, /) -> int:
        """Read a socket option."""

    def recv(self, most: int, flags: int = ..., /) -> bytes:
        """Return the bytes received, b"" after the peer has closed; raises BlockingIOError if there is nothing yet."""

    def send(self, data: bytes, /) -> int:
        """Send what fits and return how many bytes that was; raises BlockingIOError if none fit: call again later."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of it, blocking as long as it takes; not to be mixed with `send`."""

    def shutdown(self, how: int, /) -> None:
        """Shut down one direction, or both."""

    def close(self) -> None:
        """Close the socket."""


class Attendant(Protocol):
    """What a connection needs of its server."""

    stopping: bool

    def ticks_ms(self) -> int:
        """The current time in ticks."""

    def most_body(self, head: wire.Head) -> int:
        """The maximum body size in bytes for this request."""

    def handle(self, connection: Connection, head: wire.Head, body: bytes) -> None:
        """Run a request; some thread will call `finish` for it."""

    def refuse(self, connection: Connection, error: MuxError) -> None:
        """Finish a request that could not be read."""

    def revisit(self, connection: Connection) -> None:
        """Have the attending thread look at this connection again."""

    def make_way(self) -> None:
        """Bound the memory of answers that nobody reads."""

    def await_verdict(self, connection: Connection) -> None:
        """Call `conclude` after `VERDICT_MS`."""

    def remind(self, deadline: int) -> None:
        """Call `overdue` at this moment (ticks)."""

    def ended(self, connection: Connection) -> None:
        """Forget the connection; it is over."""


class Connection:
    """A client connection; the module docstring explains it."""

    __slots__ = (
        "_answering",
        "_attendant",
        "_beat",
        "_beat_ms",
        "_buffer",
        "_busy",
        "_chunks",
        "_closed",
        "_closing",
        "_deadline",
        "_drain_ms",
        "_drained",
        "_draining",
        "_ending",
        "_flights",
        "_gone",
        "_head",
        "_heard_out",
        "_left_to_drain",
        "_phase",
        "_pile",
        "_served",
        "_unsent",
        "_verdicts",
        "_watch",
        "idle_since",
        "lock",
        "remote",
        "sock",
    )

    def __init__(self, attendant: Attendant, sock: Socket) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.remote = False
        """Whether the client is on another machine."""
        self.lock = threading.Lock()
        now = attendant.ticks_ms()
        self.idle_since: int | None = now
        """Since when no request has run (ticks); None while one runs."""
        self._attendant = attendant
        self._deadline: int | None = now + IDLE_MS
        attendant.remind(self._deadline)
        self._phase = "idle"
        self._buffer = b""
        self._head: wire.Head | None = None
        self._chunks: wire.ChunkedBody | None = None
        self._pile: bytearray | None = None  # a long body so far; extending the buffer would copy it each time
        self._busy = False  # a request is running: since its last byte came, until its whole answer is sent
        self._beat, self._beat_ms = b"", 0  # while streaming
        self._answering = False  # `_unsent` ends with the answer to the running request
        self._drained = False  # the socket was read empty, and no event has come since
        self._ending = False  # the client has closed its side
        self._gone = False  # ... while a request was running
        self._closing = False  # close after this answer
        self._draining = False  # the last answer is out; only discard what still arrives
        self._left_to_drain, self._drain_ms = DRAIN_BYTES, DRAIN_MS
        self._closed = False
        self._unsent = b""
        self._served = 0
        self._flights: list[Flight] = []
        self._heard_out = True  # all that came before the last answer with a flight was read before it
        self._verdicts: list[tuple[Flight, bool]] = []
        self._watch: Watch | None = None

    # -- events, on the attending thread

    def stir(self, ready: Ready) -> None:
        """Handle a socket event."""
        watch = None
        with self.lock:
            self._drained = False
            self._ending = self._ending or ready.ended
            if self._unsent and ready.writable:
                self._push()
            if self._busy and ready.ended:
                self._gone = True
                watch = self._watch
                if self._deadline is None:
                    self._due(GONE_MS)
            found = self._take_up()
        if watch is not None:
            watch.cancel()
        self._serve(found)

    def attend(self) -> None:
        """Read, and serve the next request if it is complete."""
        with self.lock:
            found = self._take_up()
        self._serve(found)

    def _take_up(self) -> tuple[wire.Head, bytes] | MuxError | None:
        """Take up the next request, or the error that replaces it; from here on it counts as running."""
        if self._busy or self._closed:
            return None
        found: tuple[wire.Head, bytes] | MuxError | None
        try:
            found = self._next_request()
        except MuxError as refusal:
            found = refusal
        if found is not None:
            self._busy, self._phase = True, "busy"
            self.idle_since = self._deadline = None
            self._served += 1
        return found

    def _serve(self, found: tuple[wire.Head, bytes] | MuxError | None) -> None:
        """Hand a request on; bytes after it are looked at once it is answered (`finish`)."""
        if self._verdicts:
            self._tell()
        if isinstance(found, MuxError):
            self._attendant.refuse(self, found)
        elif found is not None:
            self._attendant.handle(self, *found)

    def overdue(self, now: int) -> int | None:
        """Act if the deadline has passed; returns the next one, or None if there is none."""
        error = watch = None
        with self.lock:
            deadline = self._deadline
            if deadline is None or deadline > now or self._closed:
                return None if self._closed else deadline
            if self._phase == "streaming" and not self._unsent:
                self._deadline = now + self._beat_ms
                self._put(self._beat)
                return self._deadline
            if self._phase in ("head", "body") and not self._busy:
                most_s = (HEAD_MS if self._phase == "head" else BODY_MS) // 1000
                error = MuxError(
                    "request_timeout",
                    f"the {self._phase} of the request took more than {most_s} s to arrive; send it without pauses",
                    close=True,
                )
                self._busy, self._deadline, self.idle_since = True, None, None
            else:
                self._close(arrived=self._phase in ("idle", "draining") and _has_taken_all(self.sock))
                watch = self._watch
        self._tell()
        if watch is not None:
            watch.cancel()
        if error is not None:
            self._attendant.refuse(self, error)
        return None

    def conclude(self) -> None:
        """Settle a client's close: if it had left the answer unread, a reset would have followed by now."""
        with self.lock:
            if not self._closed:
                self._close(arrived=self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0)
        self._tell()

    @property
    def stuck_since(self) -> int | None:
        """Since when the client leaves a part of an answer unread (ticks); None if there is no such answer."""
        return self._deadline - SEND_MS if self._phase == "sending" and self._deadline is not None else None

    @property
    def unsent(self) -> int:
        """How many bytes of an answer the client has not taken."""
        return len(self._unsent)

    @property
    def gone(self) -> bool:
        """Whether the client of the running request is known to be gone."""
        return self._gone or self._closed

    def hang_up(self, *, idle: bool = False, stuck: bool = False) -> None:
        """Close at once; a running request has nobody left to answer.

        On an idle connection, an answer counts as received if the client's system has acknowledged every byte. With
        `idle`, close only if no request runs, since one may have come after the caller looked; with `stuck`, only if
        the client has still not taken its answer.
        """
        with self.lock:
            if (idle and self._busy) or (stuck and self.stuck_since is None):
                return
            self._gone = True
            watch = self._watch
            if not self._closed:
                self._close(arrived=self.idle_since is not None and _has_taken_all(self.sock))
        if watch is not None:
            watch.cancel()
        self._tell()

    # -- reading

    def _next_request(self) -> tuple[wire.Head, bytes] | None:
        while True:
            if self._buffer and not self._draining and (request := self._parse()) is not None:
                return request
            if self._drained or self._closed:
                return None
            try:
                data = self.sock.recv(RECEIVE)
            except BlockingIOError:
                self._drained = True
                return None
            except OSError:
                self._close(arrived=False)
                return None
            if not data:
                self._end_of_input()
                return None
            self._drained = len(data) < RECEIVE and not self._ending
            if self._flights and self._heard_out:
                self._judge(arrived=True)
            if self._draining:
                self._left_to_drain -= len(data)
                if self._left_to_drain < 0:
                    self._close(arrived=False)
            else:
                self._buffer = self._buffer + data if self._buffer else data

    def _end_of_input(self) -> None:
        """Handle the client's close of its side."""
        self._drained = True
        if self._phase == "body":
            raise MuxError(
                "truncated_body",
                "the body ended before its announced length; send all of it, or announce less",
                close=True,
            )
        if self._flights:
            self._deadline = None
            self._attendant.await_verdict(self)
        else:
            self._close(arrived=True)

    def _parse(self) -> tuple[wire.Head, bytes] | None:
        """Take the next request from the buffer, if it is complete."""
        head = self._head
        if head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                wire.check_partial_head(self._buffer)
                self._expect("head", HEAD_MS)
                return None
            head = wire.parse_head(self._buffer[:end])
            start, stop = end + 4, end + 4 + head.length
            if stop <= len(self._buffer) and head.length <= BODY_LIMIT and not head.chunked:  # whole, as most are
                body, self._buffer = self._buffer[start:stop], self._buffer[stop:]
                return head, body
            self._buffer = self._buffer[start:]
            self._begin_body(head)
        if self._chunks is not None:
            self._chunks.feed(self._buffer)
            self._buffer = b""
            if not self._chunks.done:
                return None
            body, self._buffer = self._chunks.body, self._chunks.rest
        elif self._pile is not None:
            self._pile += self._buffer
            self._buffer = b""
            if len(self._pile) < head.length:
                return None
            body, self._buffer = bytes(self._pile[: head.length]), bytes(self._pile[head.length :])
            self._pile = None
        elif len(self._buffer) >= head.length:
            body, self._buffer = self._buffer[: head.length], self._buffer[head.length :]
        else:
            return None
        self._head = self._chunks = None
        return head, body

    def _begin_body(self, head: wire.Head) -> None:
        self._head = head
        try:
            limit = self._attendant.most_body(head) if head.chunked or head.length > BODY_LIMIT else BODY_LIMIT
        except MuxError:
            # Nothing of it is kept, but it is taken: few clients look for an answer before they have sent everything.
            self._left_to_drain, self._drain_ms = LONG_DRAIN_BYTES, BODY_MS
            raise
        if head.length > limit:
            raise MuxError(
                "body_too_large",
                f"the body has {head.length} bytes, more than the limit of {limit}; send less, or a reference to it",
                close=True,
                limit=limit,
            )
        if head.chunked:
            self._chunks = wire.ChunkedBody(limit)
        elif head.length > BODY_LIMIT:
            self._pile = bytearray()
        if head.chunked or len(self._buffer) < head.length:
            self._expect("body", BODY_MS)
            if head.expect_continue and not self._buffer:
                self._put(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _expect(self, phase: str, within_ms: int) -> None:
        """Require the rest of the head or body within this time from now."""
        if self._phase != phase:
            self._phase = phase
            self._due(within_ms)

    # -- answering, on any thread

    @property
    def path(self) -> str:
        """The path of the request whose body is not complete; "" if there is none."""
        return self._head.path if self._head is not None else ""

    @property
    def last(self) -> bool:
        """Whether this connection has reached its maximum number of requests."""
        return self._served >= MOST_REQUESTS

    def begin(self, opening: bytes, *, beat: bytes, beat_ms: int) -> None:
        """Send the beginning of a slow answer, then `beat` whenever nothing was sent for `beat_ms`.

        A client that has not taken a beat by the time the next one is due counts as gone.
        """
        with self.lock:
            if self._closed:
                return
            self._beat, self._beat_ms, self._phase = beat, beat_ms, "streaming"
            self._due(beat_ms)
            self._put(opening)
        self._attendant.revisit(self)  # the attending thread must learn of the deadline

    def proceed(self, data: bytes) -> None:
        """Send the next piece of an answer that `begin` has started."""
        with self.lock:
            if not self._closed:
                self._due(self._beat_ms)
                self._put(data)

    def finish(self, answer: bytes, *, close: bool, flight: Flight | None = None) -> None:
        """Answer the running request. `flight` will be told whether the answer arrived."""
        with self.lock:
            if flight is not None:
                self._flights.append(flight)
                if not self._closed:
                    self._hear_out()
            self._closing = self._closing or close
            self._answering = True
            if self._closed:
                self._judge(arrived=False)
            else:
                self._put(answer)
            # No event repeats what was reported while busy, or what a full read left in the socket.
            left = bool(self._buffer) or not self._drained or self._draining
            again = left and not self._busy and not self._closed
            large = len(self._unsent) > LARGE
        if self._verdicts:
            self._tell()
        if again:
            self._attendant.revisit(self)
        if large:
            self._attendant.make_way()

    def _hear_out(self) -> None:
        """Read what the client has sent so far: only bytes it sends after an answer can acknowledge that answer.

        If that is too much, no bytes do until another answer, only the end of the connection.
        """
        self._heard_out = False
        while len(self._buffer) < HEARD_OUT:
            try:
                data = self.sock.recv(RECEIVE)
            except BlockingIOError:
                self._drained = self._heard_out = True
                return
            except OSError:
                data = b""
            if not data:
                self._close(arrived=False)
                return
            self._buffer += data

    def _put(self, data: bytes) -> None:
        self._unsent += data
        self._push()

    def _push(self) -> None:
        """Send what fits without blocking; once all of it is sent, the request is over."""
        while self._unsent:
            try:
                sent = self.sock.send(self._unsent)
            except BlockingIOError:
                if self._phase != "sending" and self._answering:
                    self._phase = "sending"
                    self._due(SEND_MS)
                return
            except OSError:
                self._close(arrived=False)
                return
            self._unsent = self._unsent[sent:]
        if self._answering:
            self._answered()

    def _answered(self) -> None:
        self._busy = self._answering = False
        self._watch = None
        self.idle_since = now = self._attendant.ticks_ms()
        if self._closing or self._attendant.stopping:
            self._draining, self._phase = True, "draining"
            self._due(SEND_MS if self._flights else self._drain_ms)
            self._end_output()
        else:
            self._phase = "idle"
            self._deadline = now + IDLE_MS
            self._attendant.remind(self._deadline)

    def _end_output(self) -> None:
        """Tell the client that no more bytes will follow."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def park(self, watch: Watch) -> None:
        """Register the `watch` that the running request is about to wait on; raises Hangup if the client is gone."""
        with self.lock:
            # The close may have come together with the request; no further event would report it.
            if self._gone or self._closed or (self._ending and _has_ended(self.sock)):
                raise Hangup
            self._watch = watch

    def unpark(self) -> None:
        """Unregister the watch; the wait is over."""
        with self.lock:
            self._watch = None

    def abandon(self) -> None:
        """Close without an answer; the client is gone."""
        with self.lock:
            self._close(arrived=False)
        self._tell()

    def detach(self) -> Socket:
        """Give the socket away: this connection is over, but the socket stays open.

        Whether earlier, pipelined answers arrived will never be known, so what they handed out counts as lost.
        """
        with self.lock:
            self._closed = True
            self._judge(arrived=False)
        self._attendant.ended(self)
        self._tell()
        return self.sock

    def _due(self, within_ms: int) -> None:
        """Have `overdue` called after this time."""
        self._deadline = self._attendant.ticks_ms() + within_ms
        self._attendant.remind(self._deadline)

    # -- closing

    def _judge(self, *, arrived: bool) -> None:
        self._verdicts += [(flight, arrived) for flight in self._flights]
        self._flights = []

    def _tell(self) -> None:
        """Tell flights whether their answers arrived, without holding the lock."""
        with self.lock:
            verdicts, self._verdicts = self._verdicts, []
        for flight, arrived in verdicts:
            if arrived:
                flight.landed()
            else:
                flight.lost()

    def _close(self, *, arrived: bool) -> None:
        if self._closed:
            return
        self._closed = True
        self._deadline = None
        self._judge(arrived=arrived)
        self._attendant.ended(self)
        self.sock.close()


def end(sock: Socket, *, whole: bool) -> None:
    """Close a detached socket: in good order after a whole answer, else with a reset, so the client notices the cut."""
    with contextlib.suppress(OSError):
        if whole:
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(DRAIN_MS / 1000)
            sock.recv(RECEIVE)  # unread bytes would turn the orderly close into a reset
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _has_ended(sock: Socket) -> bool:
    """Whether the client has closed its side (peeks; consumes nothing)."""
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _has_taken_all(sock: Socket) -> bool:
    """Whether the client is there and its system has acknowledged every byte; False where that is unknowable."""
    if not sys.platform.startswith("linux") or _has_ended(sock):
        return False
    try:
        left: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
    except OSError:
        return False
    return left == 0
