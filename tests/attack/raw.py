"""Polls over a bare socket, and the ways in which a client can abandon one."""

from __future__ import annotations

import json
import select
import socket
import struct
from typing import Any

from tls_client import TlsSocket


class Half:
    """A poll that was sent; nothing of its answer is read until a method is called.

    `tls` says how a client with TLS reads: "gulps" takes everything available, "sips" one record at a time.
    """

    def __init__(self, port: int, target: str, tls: str = "") -> None:
        self.system = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.system.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock: Any = TlsSocket(self.system, sips=tls == "sips") if tls else self.system
        self._data = b""
        try:
            self.ask(target)
        except OSError:
            self.system.close()
            raise

    def ask(self, target: str) -> None:
        """Send another request."""
        self.sock.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def read_some(self, count: int) -> None:
        """Read up to this many bytes of the answer, if any have arrived."""
        if select.select([self.system], [], [], 0.05)[0]:
            self.system.recv(count)

    def read_all(self) -> list[dict[str, Any]]:
        """The messages of the whole answer; raises ConnectionError if it never completes."""
        while b"\r\n\r\n" not in self._data:
            self._more()
        head, _, body = self._data.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            self._more()
            body = self._data.partition(b"\r\n\r\n")[2]
        self._data = body[length:]
        return json.loads(body[:length]).get("messages", [])

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError
        self._data += data

    def end(self) -> None:
        """An orderly close; if anything is unread, the system turns it into a reset."""
        self.system.close()

    def goodbye(self) -> None:
        """Over TLS: announce that nothing more will be sent or read. Many libraries do so just before they close."""
        self.sock.goodbye()

    def reset(self) -> None:
        """Close with a reset."""
        self.system.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.system.close()

    def half_close(self) -> None:
        """Announce that nothing more will be sent, and keep reading."""
        self.system.shutdown(socket.SHUT_WR)
