"""One attempt at a delivery: resolve, judge every address, connect to a judged one, send, read a status.

Nobody at the other end is trusted. The connection goes to the address that was judged and not to the name once more;
no redirect is followed and no proxy asked; of the answer, the head is read up to 8 KiB and the body up to 4 KiB. One
deadline spans the whole attempt, so a receiver that sends one byte per second holds a thread no longer than one that
hangs.

The exchange is our own because the stock client gives every single read the whole timeout anew.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from stonemux import VERSION, addresses
from stonemux.addresses import Policy, Target
from stonemux.clock import Clock
from stonemux.endpoints import Outcome

MOST_HEAD_BYTES = 8192
MOST_BODY_BYTES = 4096
CLOSING_MS = 500
"""How long the rest of an answer is waited for whose status is known: some servers mind when they are cut short."""
MOST_RETRY_AFTER_S = 3600
_HEEDED = (429, 502, 503, 504)
"""Statuses whose Retry-After counts."""

_STATUS = rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?"


_clock = Clock()
"""The network keeps real time, whatever clock the program was given."""


class _Trouble(Exception):
    """The attempt failed; the text says how."""


class Attempt:
    """An attempt that another thread may cut short."""

    def __init__(self, policy: Policy, *, connect_ms: int, total_ms: int) -> None:
        self._policy = policy
        self._started = _clock.ticks_ms()
        self._end = self._started + total_ms
        self._connect_ms = connect_ms
        self._socket: socket.socket | None = None
        self._cut = False

    def cut(self) -> None:
        """End it at once."""
        self._cut = True
        if (sock := self._socket) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def was_cut(self) -> bool:
        """Whether it was ended from outside, so that its outcome means nothing."""
        return self._cut

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Deliver; never raises."""
        status: int | None = None
        error, retry_after = "", None
        try:
            target = addresses.check(url, self._policy)
            head = self._exchange(target, headers, body)
            status = head.status
            error = _verdict(status)
            if status in _HEEDED:
                retry_after = _retry_after(head.fields.get("retry-after", ""))
        except addresses.ForbiddenURL as problem:
            error = f"its URL {problem}"
        except _Trouble as trouble:
            error = str(trouble)
        except TimeoutError:
            error = "no answer in time"
        except OSError as failed:
            error = _in_words(failed)
        return Outcome(status, error, _clock.ticks_ms() - self._started, retry_after, gone=status == 410)

    def _left(self) -> float:
        """Seconds to the deadline."""
        left = self._end - _clock.ticks_ms()
        if left <= 0 or self._cut:
            raise TimeoutError
        return left / 1000

    def _exchange(self, target: Target, headers: Mapping[str, str], body: bytes) -> _Head:
        found = _look_up(target, self._left())
        addresses.judge_all(target, found, self._policy)
        sock = self._connect(target, found)
        self._socket = sock
        try:
            self._left()  # it may have been cut before it could be seen
            self._refuse_self(sock, target)
            if target.secure:
                sock = self._socket = self._secured(sock, target)
            self._send(sock, _request(target, headers, body))
            return self._hear(sock)
        finally:
            self._socket = None
            sock.close()

    def _connect(self, target: Target, found: list[str]) -> socket.socket:
        failed: OSError = OSError("no address")
        for address in found[:4]:
            try:
                return socket.create_connection((address, target.port), min(self._connect_ms / 1000, self._left()))
            except OSError as error:
                failed = error
        if isinstance(failed, TimeoutError):
            raise _Trouble("no connection in time")
        raise failed

    def _refuse_self(self, sock: socket.socket, target: Target) -> None:
        """The daemon under any address of this machine: who calls itself comes from where it goes."""
        if target.port == self._policy.own_port and sock.getsockname()[0] == sock.getpeername()[0]:
            raise addresses.ForbiddenURL("leads to the daemon's own port")

    def _secured(self, sock: socket.socket, target: Target) -> socket.socket:
        import ssl  # most doorbells are on loopback, without TLS

        sock.settimeout(self._left())
        try:
            return ssl.create_default_context().wrap_socket(sock, server_hostname=target.host)
        except ssl.SSLCertVerificationError as error:
            raise _Trouble(f"its certificate is not trusted: {error.verify_message}") from error
        except ssl.SSLError as error:
            raise _Trouble(f"no TLS: {error.reason or error}") from error

    def _send(self, sock: socket.socket, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            sock.settimeout(self._left())
            try:
                rest = rest[sock.send(rest) :]
            except (BrokenPipeError, ConnectionResetError):
                return  # it may have answered before it had everything

    def _hear(self, sock: socket.socket) -> _Head:
        """The final head of the answer; then as much of its body as is there and may be read."""
        heard = b""
        while True:
            while b"\r\n\r\n" not in heard and b"\n\n" not in heard:
                if len(heard) >= MOST_HEAD_BYTES:
                    raise _Trouble(f"the head of its answer is longer than {MOST_HEAD_BYTES} bytes")
                sock.settimeout(self._left())
                more = sock.recv(MOST_HEAD_BYTES - len(heard))
                if not more:
                    raise _Trouble("the connection ended without an answer")
                heard += more
            head, heard = _head(heard)
            if head.status >= 200:
                break
        self._end = min(self._end, _clock.ticks_ms() + CLOSING_MS)
        length = head.fields.get("content-length", "")
        wanted = min(int(length) if re.fullmatch("[0-9]{1,12}", length) else MOST_BODY_BYTES, MOST_BODY_BYTES)
        with contextlib.suppress(OSError):
            while len(heard) < wanted:
                sock.settimeout(self._left())
                more = sock.recv(wanted - len(heard))
                if not more:
                    break
                heard += more
        return head


class _Head:
    """Status and fields of an answer."""

    __slots__ = ("fields", "status")

    def __init__(self, status: int, fields: dict[str, str]) -> None:
        self.status, self.fields = status, fields


def _head(heard: bytes) -> tuple[_Head, bytes]:
    ends = [at for mark in (b"\r\n\r\n", b"\n\n") if (at := heard.find(mark)) >= 0]
    end = min(ends)
    rest = heard[end + (4 if heard[end : end + 1] == b"\r" else 2) :]
    first, *lines = heard[:end].split(b"\n")
    found = re.fullmatch(_STATUS, first.rstrip(b"\r"))
    if found is None:
        raise _Trouble("its answer is not HTTP")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            fields.setdefault(name.decode("latin-1").strip().lower(), value.decode("latin-1").strip())
    return _Head(int(found[1]), fields), rest


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


def _verdict(status: int) -> str:
    if 200 <= status < 300:
        return ""
    if status < 400:
        return f"status {status}: redirects are not followed"
    return f"status {status}"


def _retry_after(text: str) -> int | None:
    """Seconds, from a number or a date; at most an hour."""
    if re.fullmatch("[0-9]{1,12}", text):
        return min(int(text), MOST_RETRY_AFTER_S)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - _clock.wall_ms() / 1000
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0, round(seconds)), MOST_RETRY_AFTER_S)


def _in_words(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "the connection was reset"
    if isinstance(error, socket.gaierror):
        return "its host name is not known"
    return (error.strerror or str(error) or type(error).__name__)[:200]


_looking: dict[tuple[str, int], _LookUp] = {}
_lock = threading.Lock()


class _LookUp:
    """A question to the name server. It cannot be cut short, so it has a thread of its own, and one for each name."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._done = threading.Event()
        self._found: list[str] | OSError = []

    def run(self) -> None:
        try:
            self._found = addresses.resolve(self._target)
        except OSError as error:
            self._found = error
        with _lock:
            _looking.pop((self._target.host, self._target.port), None)
        self._done.set()

    def get(self, patience_s: float) -> list[str]:
        if not self._done.wait(patience_s):
            raise _Trouble("its host name could not be looked up in time")
        if isinstance(self._found, OSError):
            raise self._found
        return self._found


def _look_up(target: Target, patience_s: float) -> list[str]:
    """The addresses of a target; raises when the system does not know them in time."""
    try:
        return addresses.resolve(target, numeric=True)
    except OSError:
        pass
    with _lock:
        question = _looking.get((target.host, target.port))
        fresh = question is None
        if question is None:
            question = _looking[(target.host, target.port)] = _LookUp(target)
    if fresh:
        threading.Thread(target=question.run, name="look-up", daemon=True).start()
    return question.get(patience_s)
