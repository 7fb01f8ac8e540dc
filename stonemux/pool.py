"""The client side of the HTTP connection.

A `Pool` keeps connections to one daemon. A `RoundTrip` is one request and its answer. Leaving it normally gives the
receipt that the daemon waits for before it settles what it handed out. `abort` cancels the call at any time, from any
thread; the daemon then puts back what was in flight.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from stonemux import launch
from stonemux.clock import Clock
from stonemux.config import authority
from stonemux.errors import MuxError, read_error

if TYPE_CHECKING:
    from stonemux.config import Settings
    from stonemux.trust import Trust

KEPT = 8
"""Maximum number of idle connections in a pool."""
KEPT_MS = 10_000
"""How long an idle connection is reused; the daemon closes it after 15 s."""
CONNECT_S = 5.0
HEAD_S = 30.0
"""How long to wait for the head of a stream's answer."""
RECEIVE = 64 * 1024


class Aborted(Exception):
    """The call was cancelled by `abort`."""


class NoAnswer(Exception):
    """No daemon could be reached, or the connection ended before the answer did; the call's outcome is unknown."""


class Pool:
    """Connections to one daemon, for any number of threads. `_lock` guards the idle ones."""

    def __init__(self, host: str, port: int, tls_cert: str = "") -> None:
        """`tls_cert` is a file with the certificate of a daemon that uses TLS."""
        self.host = host
        self.port = port
        self.authority = authority(host, port)
        self.scheme = "https" if tls_cert else "http"
        self._tls_cert = tls_cert
        self._trust: Trust | None = None
        self._clock = Clock()
        self._lock = threading.Lock()
        self._idle: list[tuple[int, socket.socket]] = []

    def round_trip(self) -> RoundTrip:
        """A new request that has not been sent yet."""
        return RoundTrip(self)

    def unreachable(self, trouble: Exception) -> MuxError:
        """The error of a command that finds no daemon."""
        return MuxError(
            "unreachable",
            f"no stonemux daemon answers at {self.authority} ({trouble}); start one with: {launch.serving(self.port)}",
        )

    def take(self) -> socket.socket:
        """An open connection, preferably an idle one that is still usable; raises NoAnswer."""
        now = self._clock.ticks_ms()
        while True:
            with self._lock:
                if not self._idle:
                    break
                since, sock = self._idle.pop()
            if now - since < KEPT_MS and _is_quiet(sock):
                return sock
            sock.close()
        try:
            # A daemon that is told localhost listens at 127.0.0.1; anybody could listen at ::1, which may come first.
            name = "127.0.0.1" if self.host.lower() == "localhost" else self.host
            # as bytes: for a str, Python loads the IDNA codec, in case the name is not ASCII
            host: Any = name.encode() if name.isascii() else name
            sock = socket.create_connection((host, self.port), timeout=CONNECT_S)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return self._secured(sock) if self._tls_cert else sock
            except BaseException:
                sock.close()
                raise
        except (OSError, ValueError) as trouble:
            raise NoAnswer(_words(trouble)) from trouble

    def _secured(self, sock: socket.socket) -> socket.socket:
        if self._trust is None or not self._trust.is_current():
            from stonemux.trust import Trust  # loads OpenSSL

            self._trust = Trust(self._tls_cert, self.host)
        return self._trust.secure(sock)

    def keep(self, sock: socket.socket) -> None:
        """Take back a connection that is now idle."""
        with self._lock:
            if len(self._idle) < KEPT:
                self._idle.append((self._clock.ticks_ms(), sock))
                return
        sock.close()

    def forget(self) -> None:
        """Drop what belongs to the parent of a forked process: its connections, and a lock that may have been held."""
        self._lock = threading.Lock()
        self.close()

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, sock in idle:
            sock.close()


class RoundTrip:
    """One request and its answer, as a context manager around both. `_lock` guards the socket against `abort`."""

    def __init__(self, pool: Pool) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.parting = False
        """Whether the connection ends with this answer, as it does over MCP when the answer hands something out."""
        self._pool = pool
        self._lock = threading.Lock()
        self._aborted = False
        self._sock: socket.socket | None = None
        self._reusable = False
        self._old = False

    def __enter__(self) -> RoundTrip:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
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
        """Send a request and read its answer into `status`, `headers` (lower-case names) and `body`.

        `timeout` limits each wait for bytes, in seconds; None waits forever. May be called again after it has failed.
        Raises Aborted, or NoAnswer.
        """
        sock = self._connect(timeout)
        try:
            try:
                sock.sendall(_request(self._pool.authority, method, path, body, headers or {}))
            except (BrokenPipeError, ConnectionResetError) as trouble:
                try:
                    self._receive(sock)  # a daemon refuses a body that is too large without reading it
                except (OSError, ValueError):
                    raise trouble from None
                self._reusable = False
            else:
                self._receive(sock)
        except (OSError, ValueError) as trouble:
            self._check()
            raise NoAnswer(_words(trouble)) from trouble
        self._check()

    def stream(self, path: str, headers: Mapping[str, str], *, timeout: float | None = None) -> Iterator[bytes]:
        """Send a GET, read the head of its answer, and return an iterator over its body; raises like `request`.

        With a timeout, an empty chunk means that nothing has come for that many seconds.
        """
        sock = self._connect(HEAD_S)
        try:
            sock.sendall(_request(self._pool.authority, "GET", path, None, headers))
            data, wanted = self._receive_head(sock)
        except (OSError, ValueError) as trouble:
            self._check()
            raise NoAnswer(_words(trouble)) from trouble
        sock.settimeout(timeout)
        return self._pieces(sock, data, wanted)

    def received(self) -> None:
        """Confirm receipt of the answer without waiting for the next request: any further bytes are a receipt.

        An empty line is not a request (the daemon refuses it), so the connection ends with this round trip.
        """
        self.part()
        with self._lock:
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.sendall(b"\r\n")

    def _pieces(self, sock: socket.socket, data: bytes, wanted: int | None) -> Iterator[bytes]:
        got = 0
        while True:
            if data:
                yield data
            got += len(data)
            if wanted is not None and got >= wanted:
                return
            try:
                data = sock.recv(RECEIVE)
            except TimeoutError:
                data = b""
                yield data
                continue
            except OSError as trouble:
                self._check()
                raise NoAnswer(_words(trouble)) from trouble
            self._check()
            if not data and wanted is not None:
                raise NoAnswer("the connection ended before the answer did")
            if not data:
                return

    def _connect(self, timeout: float | None) -> socket.socket:
        self._end(keep=False)
        sock = self._pool.take()
        with self._lock:
            self._sock = sock
        self._check()
        sock.settimeout(timeout)
        return sock

    def _receive(self, sock: socket.socket) -> None:
        """Read an answer that ends by Content-Length or with the connection (RFC 9112 section 6.3)."""
        body, wanted = self._receive_head(sock)
        if wanted is not None:
            self.body = _until(sock, body, lambda got: len(got) >= wanted)[:wanted]
        else:
            self.body = _rest(sock, body)
        self.parting = self.headers.get("connection", "").lower() == "close" or self._old
        self._reusable = wanted is not None and not self.parting

    def _receive_head(self, sock: socket.socket) -> tuple[bytes, int | None]:
        """Read the head; returns the part of the body that came with it, and the body's length if stated."""
        data = _until(sock, b"", lambda got: b"\r\n\r\n" in got)
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        status = rest.partition(" ")[0]
        if not version.startswith("HTTP/1.") or not status.isdecimal():
            raise ValueError("this is not an HTTP server")
        self._old = version != "HTTP/1.1"
        self.status = int(status)
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "transfer-encoding" in self.headers:
            raise ValueError("the answer is chunked; a daemon's never is")
        length = self.headers.get("content-length")
        return body, int(length) if length is not None else None

    def _check(self) -> None:
        if self._aborted:
            raise Aborted

    def check_daemon(self) -> None:
        """Raise NoAnswer if the answer is not from a stonemux daemon."""
        if "x-request-id" not in self.headers:
            raise NoAnswer("it is another server")

    def part(self) -> None:
        """Close the connection after this round trip, which tells the daemon at once that the answer arrived."""
        self._reusable = False

    def abort(self) -> None:
        """Cancel the call, whether its answer is awaited, in transit or here; any thread may do so."""
        with self._lock:
            self._aborted = True
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    # So closing sends a reset, which tells the daemon that the answer was not received. A thread that
                    # reads is woken, but nothing may be sent now: after an orderly end there is no reset any more if
                    # the daemon has ended its side, too.
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self._sock.shutdown(socket.SHUT_RD)

    def _end(self, *, keep: bool) -> None:
        with self._lock:
            sock, self._sock = self._sock, None
        if sock is None:
            return
        if keep and self._reusable and not self._aborted:
            self._pool.keep(sock)
        else:
            sock.close()
        self._reusable = False


def _words(trouble: Exception) -> str:
    """What went wrong, in the system's words if there are any, without its number."""
    if isinstance(trouble, OSError) and trouble.strerror:
        return f"{trouble.filename}: {trouble.strerror}" if trouble.filename else trouble.strerror
    return str(trouble) or type(trouble).__name__


def _request(authority: str, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join(lines)
    try:
        if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
            raise ValueError(head)
        return head.encode("latin-1") + b"\r\n\r\n" + (body or b"")
    except ValueError:
        bad = next((name for name, value in headers.items() if not _is_sendable(value)), "Host")
        problem = f"the header {bad} has a line break or a character that cannot be sent; check where it comes from"
        raise MuxError("bad_header", problem + (" (STONEMUX_TOKEN)" if bad == "Authorization" else "")) from None


def _is_sendable(value: str) -> bool:
    return "\n" not in value and "\r" not in value and max(value, default="") <= "\xff"


def as_body(given: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """JSON as the body of a request; `default` as in `json.dumps`. Raises `invalid_unicode`.

    Characters are sent as they are: escaped, texts that the daemon takes would not fit into the body that it takes.
    """
    try:
        return json.dumps(given, ensure_ascii=False, default=default).encode()
    except UnicodeEncodeError:
        raise half_a_pair() from None


def half_a_pair() -> MuxError:
    """The refusal of a text that cannot be encoded."""
    return MuxError("invalid_unicode", "a string contains half a surrogate pair; send whole characters")


def with_query(path: str, given: Mapping[str, Any]) -> str:
    """A path with these parameters as its query, leaving out those that are None; raises `invalid_field`."""
    query = urlencode({name: in_query(name, value) for name, value in given.items() if value is not None})
    return f"{path}?{query}" if query else path


def in_query(name: str, value: Any) -> str:
    """A parameter's value as text for a query string, before percent-encoding; raises `invalid_field`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, list | tuple):
        return str(value)
    if any("," in str(entry) for entry in value):
        raise MuxError(
            "invalid_field",
            f"{name} has a name that contains a comma, but in a query a comma separates names; omit that one",
            parameter=name,
        )
    return ",".join(map(str, value))


def _until(sock: socket.socket, data: bytes, whole: Callable[[bytearray], bool]) -> bytes:
    pieces = bytearray(data)
    while not whole(pieces):
        more = sock.recv(RECEIVE)
        if not more:
            raise OSError("the connection ended before the answer did")
        pieces += more
    return bytes(pieces)


def _rest(sock: socket.socket, data: bytes) -> bytes:
    pieces = bytearray(data)
    while more := sock.recv(RECEIVE):
        pieces += more
    return bytes(pieces)


def _is_quiet(sock: socket.socket) -> bool:
    """Whether an idle connection is still open: if it is readable, the daemon has closed it."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return not poller.poll(0)


def health(host: str, port: int, *, tls_cert: str = "", timeout: float = 10.0) -> dict[str, Any]:
    """The answer of a daemon's health check; `timeout` limits each wait for bytes, in seconds.

    Raises `unreachable` if no daemon answers, or the daemon's own error.
    """
    pool = Pool(host, port, tls_cert)
    try:
        with pool.round_trip() as trip:
            trip.request("GET", "/health", timeout=timeout)
        trip.check_daemon()
        answer: dict[str, Any] = json.loads(trip.body)
        refusal = None if trip.status == 200 and "status" in answer else read_error(answer["error"])
    except (NoAnswer, ValueError) as trouble:
        raise pool.unreachable(trouble) from trouble
    except (KeyError, TypeError, AttributeError):
        raise pool.unreachable(NoAnswer("it is another server")) from None
    finally:
        pool.close()
    if refusal is not None:
        raise refusal
    return answer


def answers(settings: Settings, *, timeout: float) -> bool:
    """Whether a daemon answers at the configured address; `timeout` as in `health`."""
    try:
        health(settings.host, settings.port, tls_cert=settings.tls_cert, timeout=timeout)
    except MuxError:
        return False
    return True
