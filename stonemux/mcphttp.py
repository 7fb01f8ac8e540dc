"""MCP over HTTP: one POST carries one message, and nothing is remembered between requests.

This is Streamable HTTP as in 2025-11-25 ("Transports") and 2026-07-28 ("Streamable HTTP"), without sessions: GET and
DELETE are refused, and no session id is issued. The newer revision's standard headers are checked against the body.

Quick requests are answered on the thread that read them; tools and resources get a worker. An answer is plain JSON
unless it must wait or a notification precedes it: then it turns into an event stream at once, with a comment every 15
s, since clients give up on a silent answer after a minute. An answer that delivers messages closes its connection,
because the client's own close soon shows whether they arrived.

A client that hangs up cancels its call. A legacy client that gives up does not hang up: it sends a notification on
another connection, and throws away an answer that still comes. Request ids repeat between clients, so that
notification reaches only calls of the agent that both name in `mcp.AGENT_HEADER`, or that both have a token of.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stonemux import audit, door, mcp, messages, payload, wire
from stonemux.chain import Entry
from stonemux.connection import Connection
from stonemux.errors import MuxError
from stonemux.exchange import EVENT_STREAM, Exchange, challenge
from stonemux.hub import Hangup, Watch
from stonemux.mcp import Fault, Request
from stonemux.mux import Caller, Mux
from stonemux.schema import Operation, shown

if TYPE_CHECKING:
    from stonemux.httpd import Server

log = logging.getLogger("stonemux")

CallKey = tuple[str, type[mcp.RequestId], mcp.RequestId]
"""A call in progress: its agent, and the type and value of its request id (1 and "1" are two ids)."""

COMMENT = b": still waiting\n\n"

ROOM = 20_000
"""Characters of messages in an answer; clients truncate or drop what does not fit into a model's context."""


class McpExchange(Exchange):
    """A request to `mcp.PATH` until it is answered."""

    __slots__ = ("_key", "_streaming")

    def __init__(self, server: Server, connection: Connection, head: wire.Head) -> None:
        super().__init__(server, connection, head)
        self.room = ROOM
        self._streaming = False
        self._key: CallKey | None = None

    @contextmanager
    def park(self, watch: Watch) -> Iterator[None]:
        """Park as usual, but turn the answer into a stream first, because it has to wait."""
        self.stream()
        with super().park(watch):
            yield

    def run(self, body: bytes) -> None:
        """Answer the message, or hand it to a worker."""
        try:
            wire.admit(self._head, self._hosts(), self._server.origins)
            self._check_reach()
            if self._is_post():
                self._handle(body)
        except Fault as fault:
            self._send_message(fault.response(), self._faulty_status(fault))
        except Exception as error:
            self._refuse(error)

    def _faulty_status(self, fault: Fault) -> int:
        """The HTTP status for a message at fault; a 400 ends the whole session of a legacy client (Python SDK 1)."""
        in_message = fault.request_id is not None and fault.code in (mcp.PARSE_ERROR, mcp.INVALID_PARAMS)
        return 200 if in_message and not self._is_modern() else _refused_status(fault.code)

    def _is_modern(self) -> bool:
        """Whether the headers name a revision without a handshake."""
        return self._head.headers.get("mcp-protocol-version") in mcp.MODERN

    def _hosts(self) -> frozenset[str]:
        """The accepted values of Host: as in the SDKs, loopback names with any port, such as that of a tunnel."""
        host = self._head.headers.get("host", "")
        name, _, port = host.rpartition(":")
        tunneled = name.lower() in wire.LOOPBACK and port.isdecimal()
        return self._server.hosts | {host} if tunneled else self._server.hosts

    def _is_post(self) -> bool:
        """True for POST; False if the request was answered already (OPTIONS). Every other method is refused."""
        if self._head.method == "POST":
            return True
        self._extra = (("Allow", "POST"),)
        if self._head.method == "OPTIONS":
            self._send(204, b"")
            return False
        raise MuxError(
            "method_not_allowed", f"{mcp.PATH} answers only POST, with one message each; there are no sessions"
        )

    def _handle(self, body: bytes) -> None:
        headers = self._head.headers
        tokens = self._server.mux.tokens
        if tokens.asks:
            self.principal = tokens.admit(self.bearer)
        wire.check_content_type(self._head)
        check_accept(headers)
        request = mcp.read(mcp.parse(body))
        if request is None or request.request_id is None:
            if request is None and self._is_modern():
                raise Fault(mcp.INVALID_REQUEST, "responses are not accepted: this server sends no requests")
            if request is not None and request.method == "notifications/cancelled":
                self._cancel(request)
            self._send(202, b"")
            return
        request = check_headers(request, headers)
        session = self._session(request)
        if self._server.mcp.is_quick(request):
            self._answer_message(request, session)
        else:
            self._enlist(request, session.agent)
            self._server.aside(lambda: self._answer_aside(request, session))

    def _enlist(self, request: Request, agent: str) -> None:
        """Let a notification of the same agent's legacy client cancel this call until it is answered."""
        if agent and not request.modern and request.request_id is not None:
            self._key = agent, type(request.request_id), request.request_id
            self._server.cancelable[self._key] = self._connection

    def _cancel(self, notification: Request) -> None:
        """Cancel a call of the same agent as if its client had hung up; an unknown id is ignored (Cancellation).

        Of two calls of one agent with the same id, from two clients, it is the later one.
        """
        agent, request_id = self._agent(notification), notification.params.get("requestId")
        if agent and isinstance(request_id, (str, int)):
            connection = self._server.cancelable.pop((agent, type(request_id), request_id), None)
            if connection is not None:
                connection.hang_up()

    def _answer_aside(self, request: Request, session: mcp.Session) -> None:
        """Answer on a worker thread; a caller that cannot even be told of a failure is hung up on."""
        try:
            self._answer_message(request, session)
        except BaseException:
            self._connection.abandon()
            raise

    def _answer_message(self, request: Request, session: mcp.Session) -> None:
        try:
            message = self._server.mcp.answer(request, session)
        except Hangup:
            self._delist()
            self._connection.abandon()
            return
        except Exception:
            log.exception("request %s failed", self.request_id)
            message = mcp.internal_fault(request.request_id).response()
        self._send_message(message, _status(request, message))

    def _agent(self, request: Request) -> str:
        """The agent that the request acts for, or ""; raises `agent_mismatch` if it is not that of the token."""
        agent = request.meta.get(mcp.AGENT_META)
        if not isinstance(agent, str):
            agent = _decoded(self._head.headers, mcp.AGENT_HEADER, request) or ""
        bound = self.principal.agent if self.principal is not None else ""
        if bound and agent not in ("", bound):
            raise door.mismatch(mcp.AGENT_HEADER, agent, bound)
        return agent or bound

    def _session(self, request: Request) -> mcp.Session:
        headers = self._head.headers
        agent = self._agent(request)
        told = {name: _decoded(headers, header, request) for name, header in mcp.CLIENT_HEADERS.items()}
        client = {name: value[:256] for name, value in told.items() if value}
        notify = self._notify if takes_stream(headers) else None
        desk = _Desk(self._server.mux, self, headers.get("idempotency-key"))
        return mcp.Session(desk, agent, client, notify)

    # -- answering

    def stream(self) -> None:
        """Turn the answer into a stream, unless it is one already or the client does not accept one."""
        if self._streaming or not takes_stream(self._head.headers):
            return
        self._streaming = True
        beat_ms = self._server.mux.settings.sse_keepalive * 1000
        self._connection.begin(self._open_head(*EVENT_STREAM) + COMMENT, beat=COMMENT, beat_ms=beat_ms)

    def _notify(self, message: dict[str, Any]) -> None:
        self.stream()
        self._connection.proceed(_event(message))

    def _delist(self) -> None:
        """The call can no longer be cancelled: its connection may soon carry another one."""
        if self._key is not None:
            self._server.cancelable.pop(self._key, None)
            self._key = None

    def _send_message(self, message: dict[str, Any], status: int) -> None:
        self._delist()
        flight, self.flight = self.flight, None
        if flight is not None and "error" in message:
            flight.lost()
            flight = None
        self._close = self._close or flight is not None
        if self._streaming:
            self._connection.finish(_event(message), close=True, flight=flight)
        else:
            self._send(status, payload.write_json(message), flight=flight)

    def _refuse(self, error: BaseException) -> None:
        """Answer HTTP-level refusals, and bugs, with JSON-RPC errors without an id."""
        if not isinstance(error, MuxError):
            log.error("request %s failed", self.request_id, exc_info=error)
            self._send_message(mcp.internal_fault(None).response(), 500)
            return
        if error.failure.http in audit.GUARDED:
            entry = Entry("mcp.request", outcome=error.code, request_id=self.request_id)
            self._server.mux.blotter.note(entry)
        self._close = self._close or error.close
        self._extra += challenge(error)
        self._send_message(refused(error, self.request_id), error.failure.http)


class _Desk:
    """The daemon's own `mcp.Desk`; `key` is the idempotency key of the whole request."""

    def __init__(self, mux: Mux, caller: Caller, key: str | None) -> None:
        self._mux = mux
        self._caller = caller
        self._key = key

    def call(self, operation: Operation, given: Mapping[str, Any]) -> Any:
        return door.call(self._mux, operation, given, self._caller, key=self._key if operation.changes else None)

    def unread(self, agent_id: str) -> int:
        mux = self._mux
        principal = self._caller.principal
        if not mux.presence.knows(agent_id) or (principal is not None and principal.agent not in ("", agent_id)):
            return 0
        mux.presence.beat(agent_id)
        with mux.flights.of(agent_id) as held, mux.store.read() as rx:
            return max(0, messages.queued(rx, agent_id) - len(held))


def refused(error: MuxError, request_id: str) -> dict[str, Any]:
    """The message for a request that HTTP refuses, whatever message it carries."""
    return Fault(mcp.INVALID_REQUEST, error.message, error.body(request_id)["error"]).response()


def _event(message: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % payload.write_json(message)


def _status(request: Request, message: dict[str, Any]) -> int:
    """The HTTP status: 2026-07-28 gives errors their own; before that, every answer had 200."""
    if "error" not in message or not request.modern:
        return 200
    return _refused_status(message["error"]["code"])


def _refused_status(code: int) -> int:
    return {mcp.METHOD_NOT_FOUND: 404, mcp.INTERNAL_ERROR: 500}.get(code, 400)


# -- headers


def check_accept(headers: Mapping[str, str]) -> None:
    """Refuse a client that does not accept JSON; raises `not_acceptable`."""
    if not _takes(headers, "application/json"):
        raise MuxError(
            "not_acceptable",
            "Accept must list application/json and text/event-stream; an answer may be either",
            accepted=["application/json", "text/event-stream"],
        )


def takes_stream(headers: Mapping[str, str]) -> bool:
    """Whether the client accepts an event stream as an answer."""
    return _takes(headers, "text/event-stream")


def _takes(headers: Mapping[str, str], kind: str) -> bool:
    accept = headers.get("accept")
    if accept is None:
        return True
    ranges = {part.partition(";")[0].strip(" \t").lower() for part in accept.split(",")}
    return not ranges.isdisjoint((kind, "*/*", kind.partition("/")[0] + "/*"))


def check_headers(request: Request, headers: Mapping[str, str]) -> Request:
    """Check the standard headers against the body (2026-07-28, "Server Validation"); returns the request to answer.

    A legacy request may omit its one header, as several clients do. Raises Fault -32020 if a header of a modern request
    is missing or differs from the body, and -32022 for an unsupported version.
    """
    version = headers.get("mcp-protocol-version")
    if not request.modern:
        if version in mcp.MODERN:  # the envelope is missing, which the layer will report
            return Request(request.request_id, request.method, request.params, True)
        if version is not None and version not in mcp.LEGACY and request.method != "initialize":
            data = {"supported": list(mcp.SUPPORTED), "requested": version[:64]}
            raise Fault(mcp.UNSUPPORTED_VERSION, "Unsupported protocol version", data, request.request_id)
        return request
    _compare(request, "MCP-Protocol-Version", version, request.meta.get(mcp.PROTOCOL_VERSION))
    _compare(request, "Mcp-Method", headers.get("mcp-method"), request.method)
    name = request.params.get(mcp.NAMED_BY.get(request.method, ""))
    if isinstance(name, str):
        _compare(request, "Mcp-Name", _decoded(headers, "mcp-name", request), name)
    return request


def _compare(request: Request, header: str, value: str | None, wanted: Any) -> None:
    if value is None:
        raise _mismatch(request, f"the header {header} is missing")
    if value != wanted:
        raise _mismatch(request, f"{header} is {shown(value)}, but the body says {shown(str(wanted))}")


def _mismatch(request: Request, problem: str) -> Fault:
    return Fault(mcp.HEADER_MISMATCH, f"Header mismatch: {problem}", None, request.request_id)


def _decoded(headers: Mapping[str, str], header: str, request: Request) -> str | None:
    value = headers.get(header)
    try:
        return None if value is None else mcp.decode_header(value)
    except ValueError as error:
        raise _mismatch(request, f"{header} {error}") from None
