"""The receiving end of a webhook: a local server that does what a test tells it, however rude."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from raw import PATIENCE_S


class Heard(NamedTuple):
    """One delivery as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def told(self) -> dict[str, Any]:
        return json.loads(self.body)


def status(code: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {code} X", *headers, "Content-Length: 0", "", ""]).encode()


OK = status(204)


class Receiver:
    """Listens on a free port, with one thread per connection.

    `answer` is its response to a delivery: bytes, or a function that gets the connection and sends the response.
    """

    def __init__(self, answer: bytes | Callable[[socket.socket], None] = OK) -> None:
        self.answer = answer
        self._came = threading.Condition()
        self.heard: list[Heard] = []
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self.ending = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        self.ending.set()
        with contextlib.suppress(OSError):  # a test may have closed it
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            sock.close()

    def _listen(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(sock)
            threading.Thread(target=self._hear, args=(sock,), daemon=True).start()

    def _hear(self, sock: socket.socket) -> None:
        try:
            with sock, sock.makefile("rb") as file:
                first = file.readline().decode()
                headers = {}
                while (line := file.readline().decode().strip()) != "":
                    name, _, value = line.partition(": ")
                    headers[name.lower()] = value
                body = file.read(int(headers.get("content-length", 0)))
                if not first:
                    return
                with self._came:
                    self.heard.append(Heard(first.split(" ")[1], headers, body, time.monotonic()))
                    self._came.notify_all()
                if callable(self.answer):
                    self.answer(sock)
                else:
                    sock.sendall(self.answer)
        except (OSError, ValueError):
            pass  # the other side left, or the test is over

    def until(self, count: int) -> list[Heard]:
        """Block until `count` deliveries have arrived; returns the list of them."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.heard) >= count, PATIENCE_S), (
                f"{count} deliveries were expected, {len(self.heard)} came"
            )
            return list(self.heard)
