"""A server with scripted answers, for what a daemon rarely does: close connections, be busy, be another program."""

from __future__ import annotations

import json
import socket
import threading
from types import TracebackType
from typing import Any, NamedTuple


class Asked(NamedTuple):
    line: str
    headers: dict[str, str]
    body: bytes


def answer(status: int, body: Any, **headers: str) -> bytes:
    """An answer in the form that a daemon gives it."""
    data = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}", "X-Request-Id: r1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


def refusal(status: int, code: str, **headers: str) -> bytes:
    return answer(status, {"error": {"code": code, "message": "so it is", "request_id": "r1"}}, **headers)


class Scripted:
    """Each request gets the next of the answers; None closes the connection without one. The last answer repeats."""

    def __init__(self, *answers: bytes | None) -> None:
        self.asked: list[Asked] = []
        self._answers = list(answers)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as reader:
                connection.settimeout(5)
                self._converse(connection, reader)

    def _converse(self, connection: socket.socket, reader: Any) -> None:
        line = reader.readline().decode().strip()
        headers = {}
        while text := reader.readline().decode().strip():
            name, _, value = text.partition(": ")
            headers[name.lower()] = value
        self.asked.append(Asked(line, headers, reader.read(int(headers.get("content-length", 0)))))
        told = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if told is not None:
            connection.sendall(told)
