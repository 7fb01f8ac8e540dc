"""A client that works with raw bytes: it sends what it is given and reads what arrives, one answer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from tls_client import TlsSocket

PATIENCE_S = 5.0
OVER_TLS = bool(os.environ.get("STONEMUX_TESTS_OVER_TLS"))
"""Whether the tests' programs have a certificate, and their clients use TLS (`deep/test_over_tls.py`)."""


def eventually(holds: Callable[[], Any], what: str = "") -> Any:
    """Wait until `holds()` is true and return its value; fails after five seconds. For effects of other threads."""
    end = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not (found := holds()):
        assert time.monotonic() < end, what or "it did not come to pass"
        pause.wait(0.001)
    return found


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error code; "" for a success."""
        return str(self.json["error"]["code"]) if self.status >= 400 else ""


def request(
    method: str, target: str, *lines: str, body: bytes | None = None, host: str = "localhost", version: str = "1.1"
) -> bytes:
    """The bytes of a request; a body adds Content-Type and Content-Length."""
    head = [f"{method} {target} HTTP/{version}", f"Host: {host}", *lines]
    if body is not None:
        if not any(line.lower().startswith("content-type:") for line in lines):
            head.append("Content-Type: application/json")
        head.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + (body or b"")


def get(target: str, *lines: str) -> bytes:
    return request("GET", target, *lines)


def post(path: str, fields: dict[str, Any] | bytes, *lines: str) -> bytes:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return request("POST", path, *lines, body=body)


class Raw:
    """One connection."""

    def __init__(self, port: int, *, tls: bool = OVER_TLS) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.sock = TlsSocket(self.sock)
        self.buffer = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def ask(self, data: bytes, *, head: bool = False) -> Answer:
        self.send(data)
        return self.answer(head=head)

    def read_until(self, mark: bytes) -> bytes:
        """Read everything up to and including `mark`."""
        while mark not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError(f"the connection ended after {self.buffer[-200:]!r}")
            self.buffer += data
        found, _, self.buffer = self.buffer.partition(mark)
        return found + mark

    def head(self) -> tuple[int, dict[str, str]]:
        """The status and headers of the next answer."""
        first, *lines = self.read_until(b"\r\n\r\n")[:-4].decode("ascii").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers
            headers[name.lower()] = value
        return int(status), headers

    def answer(self, *, head: bool = False) -> Answer:
        """Read the next answer and check what every answer must have; `head` if it answers a HEAD."""
        status, headers = self.head()
        length = 0 if head or status == 204 else int(headers["content-length"])
        while len(self.buffer) < length:
            data = self.sock.recv(65536)
            assert data, "the answer is shorter than it says"
            self.buffer += data
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        assert headers["x-request-id"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        if status >= 400 and not head:
            assert headers["content-type"] == "application/json"
            error = json.loads(body)["error"]
            assert error["request_id"] == headers["x-request-id"]
            assert len(error["message"]) > 10
            assert "Traceback" not in error["message"]
        return Answer(status, headers, body)

    def has_ended(self) -> bool:
        """Wait for the end of the connection; False if more bytes arrive instead."""
        if self.buffer:
            return False
        try:
            return not self.sock.recv(1)
        except ConnectionResetError:
            return True

    def at_end(self) -> bool:
        """Whether the connection has ended; if not, waits until more has arrived and keeps it."""
        if not self.buffer:
            with contextlib.suppress(ConnectionResetError):
                self.buffer = self.sock.recv(65536)
        return not self.buffer

    def until_readable(self) -> None:
        """Wait until something has arrived, without reading it."""
        assert select.select([self.sock], [], [], PATIENCE_S)[0]

    def is_silent(self, for_s: float = 0.02) -> bool:
        """Whether nothing has arrived, and nothing arrives in this short time."""
        return not self.buffer and not select.select([self.sock], [], [], for_s)[0]

    def finish(self) -> None:
        """Announce the end of what this client sends (a half-close)."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Vanish like a killed client with unread data."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


def unread(sock: socket.socket) -> int:
    """How many bytes in a socket are waiting to be read."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0\0\0\0"))[0])


def unacknowledged(sock: socket.socket) -> int:
    """How many bytes a socket has sent, or will send, that the other side has not acknowledged."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0])
