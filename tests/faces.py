"""The faces: each calls operations by name with the wire's parameter names, and raises the MuxError that came back.

`from` is a Python keyword, so tests write `from_`; every face strips one trailing underscore.
"""

from __future__ import annotations

import http.client
import inspect
import io
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, TextIO
from urllib.parse import urlencode

import pytest
import shapes
from fake_clock import FakeClock
from raw import OVER_TLS
from tls_client import CERT, trusting

from stonemux import cli, door, operations, output, screen
from stonemux.client import Client
from stonemux.errors import MuxError
from stonemux.httpd import Server
from stonemux.mux import Caller, Mux
from stonemux.pool import RoundTrip
from stonemux.schema import Operation


def wire_names(given: dict[str, Any]) -> dict[str, Any]:
    return {name.removesuffix("_"): value for name, value in given.items()}


def refusal(face: Direct | OverHttp, code: str, name: str, /, **given: Any) -> MuxError:
    """Make a call that must be refused with this code; returns the refusal."""
    with pytest.raises(MuxError) as caught:
        face.call(name, **given)
    assert caught.value.code == code, f"{name}: {caught.value.message}"
    return caught.value


def until_written(mux: Mux) -> None:
    """Wait for what nobody else waits for, such as the fate of an answer: another thread may be committing it."""
    mux.store.write(lambda tx: None)


def join(face: Direct | OverHttp, *agents: str, **given: Any) -> None:
    """Register agents."""
    for agent_id in agents:
        face.call("agent.register", agent_id=agent_id, **given)


def say(face: Direct | OverHttp, *contents: str) -> list[int]:
    """Send messages from ann to bob; returns their ids."""
    return [face.call("msg.send", from_="ann", to="bob", content=content)["message_id"] for content in contents]


def command(*arguments: str | Path, data: Path, **environ: str) -> int:
    """Run a command in this process, on a data directory; returns its exit status."""
    environ = {"HOME": str(data.parent), "STONEMUX_DATA_DIR": str(data), **environ}
    return cli.main([str(argument) for argument in arguments], environ)


def connect(port: int) -> http.client.HTTPConnection:
    """A new connection; uses TLS if the tests' programs do."""
    if OVER_TLS:
        return http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=trusting())
    return http.client.HTTPConnection("127.0.0.1", port, timeout=10)


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Any = MappingProxyType({}),
) -> tuple[int, dict[str, str], bytes]:
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    data = response.read()
    return response.status, _headers(response), data


def _headers(response: http.client.HTTPResponse) -> dict[str, str]:
    """The headers by lowercase name; no name may occur twice."""
    pairs = [(name.lower(), value) for name, value in response.getheaders()]
    headers = dict(pairs)
    assert len(headers) == len(pairs), pairs
    return headers


def _in_query(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, list) else value


def bearer_of(face: Direct | OverHttp, operation: Operation) -> str | None:
    """The token that a face presents: the test's, or the owner's if the operation requires it."""
    token = face.token
    if token is None and operation.owner:
        token = face.mux.tokens.owner
    return None if token is None else f"Bearer {token}"


class Direct:
    """Calls the door directly, without a face."""

    token: str | None = None
    """The token that calls present."""
    replayed = False
    """Whether the last answer was the stored answer of an earlier call."""

    def __init__(self, mux: Mux) -> None:
        self.mux = mux

    def __enter__(self) -> Direct:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def call(self, name: str, /, **given: Any) -> Any:
        operation, caller = operations.BY_NAME[name], Caller()
        caller.bearer = bearer_of(self, operation)
        try:
            answer = door.call(self.mux, operation, wire_names(given), caller)
        except MuxError as error:
            shapes.check_refusal(operation, error)
            raise
        if operation.kind == "lines":
            return "".join(answer)
        caller.arrived()
        self.replayed = caller.replayed
        shapes.check(operation, answer)
        return answer


class OverHttp:
    """A server on a free port; every call uses a new connection."""

    token: str | None = None
    replayed = False

    def __init__(self, mux: Mux) -> None:
        self.mux = mux

    def __enter__(self) -> OverHttp:
        self.server = Server(self.mux)
        self.port = self.server.port
        self._door = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._door.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        stopping = threading.Thread(target=self.server.stop, daemon=True)
        stopping.start()
        stopping.join(0.1)
        while stopping.is_alive() and isinstance(self.mux.clock, FakeClock):
            self.mux.clock.advance(3)  # it waits 3 ms for a verdict, on a clock that stands still
            stopping.join(0.1)
        self._door.join(5)
        self.server.server_close()

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Make one request on its own connection; returns status, headers (lowercase names), and body."""
        connection = connect(self.port)
        try:
            answer = _exchange(connection, method, path, body, headers or {})
            if path.startswith("/msg/poll"):
                _exchange(connection, "GET", "/health")  # the next request is the receipt for the previous answer
            return answer
        finally:
            connection.close()

    def _until_received(self, agent_id: str) -> None:
        """Block until the server has recorded that the answer of a poll arrived."""
        patience = 5000
        while self.mux.flights.held(agent_id):
            patience -= 1
            assert patience, "a poll's answer was never settled"
            time.sleep(0.001)

    def call(self, name: str, /, **given: Any) -> Any:
        operation = operations.BY_NAME[name]
        given = wire_names(given)
        bearer = bearer_of(self, operation)
        headers = {} if bearer is None else {"Authorization": bearer}
        if operation.method == "GET":
            query = urlencode({key: _in_query(value) for key, value in given.items() if value is not None})
            path = operation.path + (f"?{query}" if query else "")
            status, headers, body = self.request("GET", path, headers=headers)
        else:
            sent = json.dumps(given).encode()
            headers["Content-Type"] = "application/json"
            status, headers, body = self.request("POST", operation.path, sent, headers)
        if operation.kind in ("text", "lines") and status == 200:
            return body.decode()
        answer = json.loads(body)
        self.replayed = headers.get("idempotent-replayed") == "true"
        if status == 200:
            if name == "msg.poll":
                self._until_received(given["agent_id"])
            shapes.check(operation, answer)
            return answer
        error = answer["error"]
        assert error.pop("request_id") == headers["x-request-id"]
        raised = MuxError(error.pop("code"), error.pop("message"), **error)
        raised.retry_after = int(headers["retry-after"]) if "retry-after" in headers else None
        assert raised.failure.http == status
        shapes.check_refusal(operation, raised)
        raise raised


def post_mcp(port: int, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    """Make one POST /mcp, acknowledged without moving a clock; returns status, headers (lowercase names), and body."""
    connection = connect(port)
    try:
        connection.request("POST", "/mcp", body, headers)
        sock = connection.sock
        with sock.makefile():  # keeps the socket open when the answer closes the connection
            response = connection.getresponse()
            data = response.read()
            with suppress(BrokenPipeError):
                sock.sendall(b"\r\n")  # a client that sends more has received the answer
    finally:
        connection.close()
    return response.status, _headers(response), data


MCP_EXTRAS = ("unread", "next", "truncated")
"""What answers over MCP tell models in addition."""


class OverMcp(OverHttp):
    """Tools, called over MCP; operations that are not tools go over plain HTTP."""

    def call(self, name: str, /, **given: Any) -> Any:
        operation = operations.BY_NAME[name]
        if not operation.tool:
            return super().call(name, **given)
        given = wire_names(given)
        if any(_differs_over_mcp(operation, key, value) for key, value in given.items()):
            pytest.skip("MCP takes decimal texts for integers, and refuses larger integers before it looks at the call")
        headers, result = self._call_tool(operation.tool, given)
        self.replayed = headers.get("idempotent-replayed") == "true"
        told = json.loads(result["content"][0]["text"])
        for extra in MCP_EXTRAS:
            told.pop(extra, None)
        if result.get("isError"):
            raise self._refusal(operation, told["error"])
        if name == "msg.poll":
            self._until_received(given["agent_id"])
        assert told == {key: value for key, value in result["structuredContent"].items() if key not in MCP_EXTRAS}
        shapes.check(operation, told)
        return told

    def _call_tool(self, tool: str, arguments: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        wanted = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self.token is not None:
            wanted["Authorization"] = f"Bearer {self.token}"
        status, headers, body = post_mcp(self.port, json.dumps(message).encode(), wanted)
        if status != 200:
            error = json.loads(body)["error"]["data"]
            assert error.pop("request_id") == headers["x-request-id"]
            raised = MuxError(error.pop("code"), error.pop("message"), **error)
            assert raised.failure.http == status
            raise raised
        if headers["content-type"] == "text/event-stream":
            body = next(line for line in body.split(b"\n") if line.startswith(b"data: ")).removeprefix(b"data: ")
        return headers, json.loads(body)["result"]

    def _refusal(self, operation: Operation, error: dict[str, Any]) -> MuxError:
        message = error.pop("message")
        for other in operations.OPERATIONS:
            if other.tool:  # agents read the names of tools, but the contract's tests look for operations
                message = re.sub(rf"\b{other.tool}\b", other.name, message)
        message = re.sub(r"`stonemux (\w+) (\w+)`", r"\1.\2", message)  # non-tools are named as commands
        raised = MuxError(error.pop("code"), message, retry_after=error.pop("retry_after", None), **error)
        shapes.check_refusal(operation, raised)
        return raised


class OverClient(OverHttp):
    """The Python client, with its typed methods where the arguments fit; its waits run on the test's clock."""

    def __enter__(self) -> OverClient:
        super().__enter__()
        self.client = _OneTry(f"127.0.0.1:{self.port}", self.mux)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.client.close()
        super().__exit__(kind, error, tb)

    def call(self, name: str, /, **given: Any) -> Any:
        operation = operations.BY_NAME[name]
        given = wire_names(given)
        try:
            answer = self._call(operation, dict(given))
        except MuxError as error:
            error.facts.pop("request_id", None)  # refusals by the client itself have none
            shapes.check_refusal(operation, error)
            raise
        self.replayed = self.client.replayed
        if name == "msg.poll":
            self._until_received(given["agent_id"])
        shapes.check(operation, answer)
        return answer

    def _call(self, operation: Operation, given: dict[str, Any]) -> Any:
        """Use the typed method, unless Python would reject the arguments, or the client would wait past the maximum."""
        bearer = bearer_of(self, operation)
        self.client._token = None if bearer is None else bearer.removeprefix("Bearer ")
        names = {param.name: param.argument for param in operation.params}
        arguments = {names.get(name, name): value for name, value in given.items()}
        method, timeout = getattr(self.client, operation.name.replace(".", "_")), given.get("timeout")
        waits_on = type(timeout) is int and timeout > self.mux.settings.poll_timeout_max
        if waits_on or not _fits(method, arguments):
            return self.client.call(operation.name, given)
        return method(**arguments)


def _fits(method: Any, arguments: dict[str, Any]) -> bool:
    try:
        inspect.signature(method).bind(**arguments)
    except TypeError:
        return False
    return True


class _OneTry(Client):
    """A client that never retries, so that a test sees each answer; it records whether the last was replayed."""

    replayed = False

    def __init__(self, authority: str, mux: Mux) -> None:
        scheme = "https" if OVER_TLS else "http"
        super().__init__(f"{scheme}://{authority}", timeout=0, environ={"STONEMUX_TLS_CERT": CERT} if OVER_TLS else {})
        self._clock = self._pool._clock = mux.clock  # the daemon ends idle connections by this clock

    def _once(self, operation: Operation, request: Any, patience_ms: int) -> Any:
        return super()._once(operation, request, max(patience_ms, 30_000))

    def _read(self, operation: Operation, trip: RoundTrip) -> Any:
        self.replayed = trip.headers.get("idempotent-replayed") == "true"
        if operation.takes and trip._sock is not None:
            trip._sock.sendall(b"\r\n")  # a client that sends more has received the answer, so no clock must move
            trip.part()
        return super()._read(operation, trip)


def _differs_over_mcp(operation: Operation, name: str, value: Any) -> bool:
    param = operation.by_name.get(name)
    if param is None or param.kind != "integer":
        return False
    return (isinstance(value, str) and value.lstrip("-").isdigit()) or (type(value) is int and abs(value) >= 2**63)


class OverCli(OverHttp):
    """Command lines, run in this process; each thread's output goes to the call that it makes."""

    def call(self, name: str, /, **given: Any) -> Any:
        operation = operations.BY_NAME[name]
        given = wire_names(given)
        environ = {"HOME": "/nowhere", "STONEMUX_PORT": str(self.port), "STONEMUX_TLS_CERT": CERT if OVER_TLS else ""}
        if (bearer := bearer_of(self, operation)) is not None:
            environ["STONEMUX_TOKEN"] = bearer.removeprefix("Bearer ")
        with _caught() as (out, err):
            status = cli.main([*name.split("."), *_words(operation, given), "--json"], environ)
        if operation.kind in ("text", "lines") and status == 0:
            return out.getvalue()
        answer = json.loads(out.getvalue())
        self.replayed = "already done" in err.getvalue()
        if status == 0:
            if name == "msg.poll":
                self._until_received(given["agent_id"])
            shapes.check(operation, answer)
            return answer
        error = answer["error"]
        error.pop("request_id", None)
        message = error.pop("message")
        named = re.sub(r"--([a-z-]+)", lambda found: found[1].replace("-", "_"), message)  # flags for parameters
        raised = MuxError(error.pop("code"), named, retry_after=error.pop("retry_after", None), **error)
        assert (status, err.getvalue()) == (raised.failure.exit, f"stonemux: {screen.safe(output.as_typed(message))}\n")
        shapes.check_refusal(operation, raised)
        raise raised


class _PerThread(io.TextIOBase):
    """A stream that each thread can capture separately."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.usual: TextIO | None = None
        self.own = threading.local()

    def write(self, text: str) -> int:
        return self._stream().write(text)

    @property
    def buffer(self) -> BinaryIO:
        """Where bytes are written."""
        return self._stream().buffer

    def _stream(self) -> TextIO:
        stream = getattr(self.own, "stream", None) or self.usual
        assert stream is not None
        return stream


class _Caught(io.TextIOWrapper):
    """A stream whose text can be read."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="backslashreplace", newline="", write_through=True)

    def getvalue(self) -> str:
        """Everything that was written."""
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode()


_OUT, _ERR = _PerThread(), _PerThread()


@contextmanager
def _caught() -> Iterator[tuple[_Caught, _Caught]]:
    """Capture what this thread writes to standard output and standard error."""
    if sys.stdout is not _OUT:  # pytest installs its own streams before each test
        _OUT.usual, sys.stdout = sys.stdout, _OUT
    if sys.stderr is not _ERR:
        _ERR.usual, sys.stderr = sys.stderr, _ERR
    _OUT.own.stream, _ERR.own.stream = caught = _Caught(), _Caught()
    try:
        yield caught
    finally:
        _OUT.own.stream = _ERR.own.stream = None


def _words(operation: Operation, given: dict[str, Any]) -> list[str]:
    """The command-line words for the given values; skips the test if a value cannot be typed."""
    words: list[str] = []
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        param = operation.by_name.get(name)
        kind = param.kind if param is not None else "text"
        if value is None:
            continue
        if kind == "boolean" and isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif kind in ("text", "name") and isinstance(value, str) and "\0" not in value and value != "-":
            words += [flag, value]
        elif kind == "integer" and type(value) in (int, float):
            words += [flag, str(value)]
        elif kind == "integers" and isinstance(value, list) and all(type(one) is int for one in value):
            words += [flag, ",".join(map(str, value))]
        elif kind == "object" or (kind == "names" and isinstance(value, list)):
            words += [flag, json.dumps(value)]
        else:
            pytest.skip("everything that is typed is text: this value would arrive as another")
    return words
