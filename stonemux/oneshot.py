"""One HTTP request to an untrusted server: a connection of its own, and one deadline for everything.

Webhooks and the license server are called this way. Whatever the other side does, the request ends in time: neither a
server that sends a byte per second, nor one that hangs, nor a slow name server holds a thread beyond the deadline.
Redirects are not followed and proxies are not used; the head of an answer is read up to 8 KiB, its body as far as the
caller wants it.

The exchange is our own code because the standard library's client applies the timeout to every single read. `pool` is
different: it keeps connections to a daemon, which is trusted.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Mapping
from typing import NamedTuple, Self

from stonemux import VERSION, addresses, threads
from stonemux.addresses import Target
from stonemux.clock import Clock
from stonemux.errors import MuxError

MOST_HEAD_BYTES = 8192
MOST_TRIED = 4
"""How many addresses of one host to try to connect to."""

_STATUS = rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?"

clock = Clock()
"""The network runs in real time, whatever clock the program was given."""


class Trouble(Exception):
    """The request failed; the text says how."""


class Head(NamedTuple):
    """The status and the fields (with lower-case names) of an answer."""

    status: int
    fields: Mapping[str, str]

    @property
    def length(self) -> int | None:
        """The declared length of the body; None if it is not declared."""
        length = self.fields.get("content-length", "")
        return int(length) if re.fullmatch("[0-9]{1,12}", length) else None


class Talk:
    """A request and its answer, as a context manager around both; another thread may `cut` it short.

    Raises Trouble, or OSError: TimeoutError if the time is up or it was cut.
    """

    def __init__(self, total_ms: int) -> None:
        self._started = clock.ticks_ms()
        self._end = self._started + total_ms
        self._socket: socket.socket | None = None
        self._heard = b""
        self._head_bytes = MOST_HEAD_BYTES  # bytes left to read; interim heads count too, or there might be no end
        self.was_cut = False
        """Whether it was ended from outside, so that its result is meaningless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def cut(self) -> None:
        """End it at once."""
        self.was_cut = True
        if (sock := self._socket) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def spent_ms(self) -> int:
        """How long it has taken so far."""
        return clock.ticks_ms() - self._started

    def hurry(self, ms: int) -> None:
        """Move the deadline to at most this many milliseconds from now."""
        self._end = min(self._end, clock.ticks_ms() + ms)

    def _left(self) -> float:
        """The seconds to the deadline; raises TimeoutError if there are none, or it was cut."""
        left = self._end - clock.ticks_ms()
        if left <= 0 or self.was_cut:
            raise TimeoutError("it took too long")
        return left / 1000

    # -- connecting

    def look_up(self, target: Target) -> list[str]:
        """The addresses of a target; raises if the system cannot resolve them in time."""
        return _look_up(target, self._left())

    def connect(self, target: Target, found: list[str], *, most_ms: int | None = None) -> socket.socket:
        """Connect to the first of these addresses that accepts, waiting up to `most_ms` for each."""
        failed: OSError = OSError("no address")
        for address in found[:MOST_TRIED]:
            patience = self._left() if most_ms is None else min(most_ms / 1000, self._left())
            try:
                sock = socket.create_connection((address, target.port), patience)
            except OSError as error:
                failed = error
                continue
            self._socket = sock
            self._left()  # it may have been cut before `cut` could see the socket
            return sock
        if isinstance(failed, TimeoutError):
            raise Trouble("no connection in time")
        raise failed

    def secure(self, target: Target) -> None:
        """Start TLS if the URL asks for it; the certificate is verified for the target's host with the system's CAs."""
        if not target.secure:
            return
        try:
            import ssl  # most talks are on loopback, without TLS
        except ImportError as lacking:
            raise Trouble(f"no TLS in this Python: {lacking}") from lacking

        sock = self._connected()
        try:
            self._socket = ssl.create_default_context().wrap_socket(sock, server_hostname=target.host)
        except ssl.SSLCertVerificationError as error:
            raise Trouble(f"its certificate is not trusted: {error.verify_message}") from error
        except ssl.SSLError as error:
            raise Trouble(f"no TLS: {error.reason or error}") from error

    def _connected(self) -> socket.socket:
        """The socket, with its timeout set to the time left."""
        sock = self._socket
        assert sock is not None
        sock.settimeout(self._left())
        return sock

    # -- asking and hearing

    def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Head:
        """Send JSON, and read the final head of the answer."""
        self._send(_request(target, headers, body))
        while True:
            head = self._head()
            if head.status >= 200:
                return head

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            sock = self._connected()
            try:
                rest = rest[sock.send(rest) :]
            except (BrokenPipeError, ConnectionResetError):
                return  # the server may have answered before it read everything

    def _head(self) -> Head:
        while b"\r\n\r\n" not in self._heard and b"\n\n" not in self._heard:
            if not self._head_bytes:
                raise Trouble(f"the headers of its answer are longer than {MOST_HEAD_BYTES} bytes")
            more = self._connected().recv(self._head_bytes)
            if not more:
                raise Trouble("the connection ended without an answer")
            self._heard += more
            self._head_bytes -= len(more)
        head, self._heard = _split(self._heard)
        return head

    def body(self, most: int) -> bytes:
        """Read until there are `most` bytes of the body, or the connection ends; may return more than `most`."""
        while len(self._heard) < most:
            more = self._connected().recv(most - len(self._heard))
            if not more:
                break
            self._heard += more
        return self._heard


def _request(target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [
        f"POST {target.path} HTTP/1.1",
        f"Host: {target.authority}",
        f"User-Agent: stonemux/{VERSION}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Accept: */*",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def _split(heard: bytes) -> tuple[Head, bytes]:
    """Split what was received into the head and what came after it."""
    end = min(at for mark in (b"\r\n\r\n", b"\n\n") if (at := heard.find(mark)) >= 0)
    rest = heard[end + (4 if heard[end : end + 1] == b"\r" else 2) :]
    first, *lines = heard[:end].split(b"\n")
    found = re.fullmatch(_STATUS, first.rstrip(b"\r"))
    if found is None:
        raise Trouble("its answer is not HTTP")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            fields.setdefault(name.decode("latin-1").strip().lower(), value.decode("latin-1").strip())
    return Head(int(found[1]), fields), rest


def in_words(error: Exception) -> str:
    """What went wrong, in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "the connection was reset"
    if isinstance(error, socket.gaierror):
        return "its host name is unknown"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:200]


# -- name servers

_looking: dict[tuple[str, int], _LookUp] = {}
_lock = threading.Lock()
"""Guards the running look-ups."""


class _LookUp:
    """A name look-up. It cannot be interrupted, so it runs in its own thread; there is one per host and port."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._done = threading.Event()
        self._found: list[str] | OSError = []

    def run(self) -> None:
        try:
            found: list[str] | OSError = addresses.resolve(self._target)
        except OSError as error:
            found = error
        self.end(found)

    def end(self, found: list[str] | OSError) -> None:
        """Finish the look-up and wake every caller that waits for it."""
        self._found = found
        with _lock:
            _looking.pop((self._target.host, self._target.port), None)
        self._done.set()

    def get(self, patience_s: float) -> list[str]:
        if not self._done.wait(patience_s):
            raise Trouble("its host name could not be looked up in time")
        if isinstance(self._found, OSError):
            raise self._found
        return self._found


def _look_up(target: Target, patience_s: float) -> list[str]:
    with contextlib.suppress(OSError):
        return addresses.resolve(target, numeric=True)
    with _lock:
        question = _looking.get((target.host, target.port))
        fresh = question is None
        if question is None:
            question = _looking[(target.host, target.port)] = _LookUp(target)
    if fresh:
        try:
            threads.begin("look-up", question.run)
        except MuxError:  # otherwise later callers would wait in vain
            question.end(OSError("the system has no thread left to look up its host name"))
    return question.get(patience_s)
