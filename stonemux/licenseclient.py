"""Talking to a license server: one request, one answer, and three seconds for all of it.

Whatever the other side does, this ends in time and says in one exception that nothing came of it. The answer is bounded
before it is read, and no redirect is followed.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from typing import Any
from urllib.parse import urlsplit

from stonemux import VERSION
from stonemux.clock import Clock

PATIENCE_MS = 3_000
MOST_ANSWER = 32 * 1024

_clock = Clock()
"""The network keeps real time, whatever clock the program was given."""


class NoUse(Exception):
    """Nothing came of it; the text says why. `status` is the server's, 0 without one, and `answer` what it said."""

    def __init__(self, why: str, status: int = 0, answer: Any = None) -> None:
        super().__init__(why)
        self.status = status
        self.answer = answer


def post(server: str, path: str, body: dict[str, Any], *, patience_ms: int = PATIENCE_MS) -> dict[str, Any]:
    """The JSON object that the server answers with status 200. Raises NoUse."""
    parts = urlsplit(server)
    host, secure = parts.hostname or "", parts.scheme == "https"
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: stonemux/{VERSION}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    deadline = _clock.ticks_ms() + patience_ms
    try:
        with contextlib.closing(_connected(host, parts.port or (443 if secure else 80), secure, deadline)) as sock:
            sock.settimeout(_left(deadline))
            sock.sendall(head.encode() + data)
            return _answer(_read(sock, deadline))
    except (OSError, ValueError) as trouble:
        raise NoUse(str(trouble) or type(trouble).__name__) from trouble


def _connected(host: str, port: int, secure: bool, deadline: int) -> socket.socket:
    sock = socket.create_connection((host, port), timeout=_left(deadline))
    if not secure:
        return sock
    import ssl  # loads OpenSSL, which nothing else here needs

    try:
        sock.settimeout(_left(deadline))
        return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise


def _left(deadline: int) -> float:
    left = deadline - _clock.ticks_ms()
    if left <= 0:
        raise TimeoutError("it took too long")
    return left / 1000


def _read(sock: socket.socket, deadline: int) -> bytes:
    found = b""
    while len(found) <= MOST_ANSWER:
        sock.settimeout(_left(deadline))
        data = sock.recv(4096)
        found += data
        head, end, body = found.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *([0-9]{1,6})\r\n", head + b"\r\n")
        if not data or (end and length and len(body) >= int(length[1])):
            return found
    raise ValueError("its answer is too long")


def _answer(data: bytes) -> dict[str, Any]:
    head, _, body = data.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] ([0-9]{3})\b", head)
    if status is None:
        raise ValueError("it is no HTTP server")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if status[1] != b"200" or type(answer) is not dict:
        raise NoUse(f"it answered with status {status[1].decode()}", int(status[1]), answer)
    return answer
