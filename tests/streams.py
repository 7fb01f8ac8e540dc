"""A client of the event stream that sees the raw bytes."""

from __future__ import annotations

import json
import socket
from typing import Any, NamedTuple

from raw import OVER_TLS, PATIENCE_S, Raw, get
from tls_client import TlsSocket


class Frame(NamedTuple):
    id: int | None
    event: str
    data: Any


class Reader(Raw):
    """A client of the stream; `buffer` is the size of its receive buffer, for readers that should get stuck."""

    def __init__(self, port: int, target: str = "/events", *lines: str, buffer: int | None = None) -> None:
        if buffer is None:
            super().__init__(port)
        else:
            self.sock = socket.socket()
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            self.sock.settimeout(PATIENCE_S)
            self.sock.connect(("127.0.0.1", port))
            if OVER_TLS:
                self.sock = TlsSocket(self.sock)
            self.buffer = b""
        self.send(get(target, "Accept: text/event-stream", *lines))
        self.status, self.headers = self.head()

    def block(self) -> str:
        return self.read_until(b"\n\n")[:-2].decode()

    def begin(self) -> int:
        """Read the greeting; returns the head that it announces."""
        retry, comment = self.block().split("\n")
        assert retry == "retry: 2000"
        head = int(comment.removeprefix(": head "))
        assert self.headers["x-stonemux-event-head"] == str(head)
        return head

    def frame(self) -> Frame:
        """The next frame; skips keep-alives."""
        while (block := self.block()) == ": ka":
            pass
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        assert list(fields) in (["id", "event", "data"], ["event", "data"])
        return Frame(int(fields["id"]) if "id" in fields else None, fields["event"], json.loads(fields["data"]))

    def frames(self, count: int) -> list[Frame]:
        return [self.frame() for _ in range(count)]
