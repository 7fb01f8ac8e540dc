"""Calls over HTTP that end in one of three ways: an answer, certainly not sent, or unknown."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any
from urllib.parse import urlencode

from tls_client import trusting


class NotSentError(Exception):
    """Nothing was listening: the call had no effect."""


class UnknownError(Exception):
    """The call may or may not have taken effect. Nothing more can be said after a timeout or a broken connection."""


class Client:
    """One kept-alive connection, reopened after each accident."""

    def __init__(self, port: int, timeout: float = 10, *, tls: bool = False, strict: bool = False) -> None:
        """`strict`: an internal error of the daemon is no accident, and fails the caller."""
        self._port, self._timeout, self._tls, self._strict = port, timeout, tls, strict
        self._connection: http.client.HTTPConnection | None = None
        self.opened = 0
        """How many connections have been opened so far."""

    def get(self, path: str, **query: Any) -> tuple[int, dict[str, Any]]:
        """The status and answer of a GET."""
        return self._exchange("GET", f"{path}?{urlencode(query)}", None, {})

    def post(self, path: str, *, once: str | None = None, **body: Any) -> tuple[int, dict[str, Any]]:
        """The status and answer of a POST; `once` is its idempotency key."""
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": once} if once else {})
        given = {name.removesuffix("_"): value for name, value in body.items() if value is not None}
        return self._exchange("POST", path, json.dumps(given).encode(), headers)

    def must(self, path: str, **body: Any) -> dict[str, Any]:
        """The answer of a POST that must succeed."""
        status, answer = self.post(path, **body)
        assert status == 200, answer
        return answer

    def tool(self, name: str, **arguments: Any) -> dict[str, Any]:
        """A tool's answer over MCP, which must succeed."""
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
        status, answer = self._exchange("POST", "/mcp", json.dumps(asked).encode(), headers)
        assert status == 200, answer
        told: dict[str, Any] = answer["result"]["structuredContent"]
        return told

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, Any]]:
        connection = self._connect()
        try:
            connection.request(method, path, body, headers)
            with connection.getresponse() as response:
                data = response.read()
        except (OSError, http.client.HTTPException) as trouble:
            self.close()
            raise UnknownError from trouble
        if response.will_close:
            self.close()
        assert not (self._strict and response.status == 500), data
        if response.status >= 500 and response.status != 507:
            raise UnknownError(data)
        if response.headers["Content-Type"] == "text/event-stream":
            data = next(line for line in data.splitlines() if line.startswith(b"data: ")).removeprefix(b"data: ")
        return response.status, json.loads(data)

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout)
            if self._tls:
                connection = http.client.HTTPSConnection(
                    "127.0.0.1", self._port, timeout=self._timeout, context=trusting()
                )
            try:
                connection.connect()
            except OSError as trouble:
                connection.close()
                raise NotSentError from trouble
            self._connection = connection
            self.opened += 1
        return self._connection

    def close(self) -> None:
        """Close the connection in an orderly way."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def now() -> int:
    """Monotonic nanoseconds; all histories use them."""
    return time.monotonic_ns()
