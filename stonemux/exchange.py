"""One request from routing to answer.

The attending thread runs quick operations itself and queues changes (the thread that leads the commit writes their
answers). Slow operations run on a worker thread; calls that wait are parked without a thread (see `parking`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stonemux import audit, door, monitor, operations, payload, sse, together, wire
from stonemux.chain import Entry
from stonemux.connection import SEND_MS, Connection, end
from stonemux.errors import MuxError, did_you_mean, guess
from stonemux.hub import Hangup, Watch
from stonemux.mux import Caller, Flight, Wait
from stonemux.schema import MOST_INTEGER, Operation, bind

if TYPE_CHECKING:
    from stonemux.httpd import Server

log = logging.getLogger("stonemux")

TIRED_MS = 1000
"""How long a client that leaves has waited for its turn, at least."""
LINES_TYPE = "application/jsonl"
EVENT_STREAM = ("text/event-stream", "X-Accel-Buffering: no")

Routes = Mapping[str, Mapping[str, Operation]]


def by_path(rows: Iterable[Operation]) -> Routes:
    """Index a table's operations by path, and then by method."""
    found: dict[str, dict[str, Operation]] = {}
    for row in rows:
        found.setdefault(row.path, {})[row.method] = row
    return found


ROUTES = by_path(operations.OPERATIONS)


class Exchange(Caller):
    """One request, from parsing to answer; it also serves as the `Caller` for that time."""

    __slots__ = ("_close", "_connection", "_extra", "_given", "_head", "_server")

    routes = ROUTES
    """The operations by path and method."""

    def __init__(self, server: Server, connection: Connection, head: wire.Head) -> None:
        super().__init__(server.request_id())
        self.bearer = head.headers.get("authorization")
        self._server = server
        self._connection = connection
        self._head = head
        self._extra: tuple[tuple[str, str], ...] = ()
        self._close = not head.keep_alive or connection.last or server.stopping
        self._given: Mapping[str, Any] = {}

    @contextmanager
    def park(self, watch: Watch) -> Iterator[None]:
        """For the duration of a wait, cancel `watch` if the connection ends."""
        self._connection.park(watch)
        try:
            yield
        finally:
            self._connection.unpark()

    def run(self, body: bytes) -> None:
        """Answer the request, or arrange for it to be answered."""
        try:
            asked = self._read(body)
            if asked is not None:
                self._dispatch(*asked)
        except Exception as error:
            self._refuse(error)

    def _read(self, body: bytes) -> tuple[Operation, Mapping[str, Any] | list[Any]] | None:
        """The requested operation and its parameters; None if the request has already been answered.

        A request refused here never reaches `door`, so this method notes it for the audit log.
        """
        operation = None
        try:
            wire.admit(self._head, self._server.hosts, self._server.origins)
            operation = self._route()
            if operation is None or operation.name != "health":
                self._check_reach()
            return None if operation is None else (operation, self._read_given(operation, body))
        except MuxError as error:
            self._note(error, operation)
            raise

    def _check_reach(self) -> None:
        """Calls from other machines need the enterprise tier, whatever the operation."""
        mux = self._server.mux
        if self._connection.remote and mux.tier != "enterprise":
            raise MuxError(
                "upgrade_required",
                f"calls from other machines need the enterprise tier; this daemon's tier is {mux.tier}",
                feature="other_machines",
                tier=mux.tier,
                needed="enterprise",
            )

    def _admit(self, operation: Operation) -> None:
        try:
            door.admit(self._server.mux, operation, self)
        except MuxError as error:
            self._note(error, operation)
            raise

    def _note(self, error: MuxError, operation: Operation | None) -> None:
        """Audit a refusal that came before `door`, if the operation is a change or the caller was not authorized."""
        path = self._head.path
        if (operation is not None and operation.changes) or error.failure.http in audit.GUARDED:
            what = operation.name if operation is not None else "http.request"
            target = path if operation is None and path in ROUTES else ""
            entry = Entry(what, target=target, outcome=error.code, request_id=self.request_id)
            self._server.mux.blotter.note(entry)

    # -- routing

    def _route(self) -> Operation | None:
        """The requested operation; None if the request has already been answered (OPTIONS)."""
        head = self._head
        methods = self.routes.get(head.path)
        if methods is None:
            if head.method == "OPTIONS" and head.path == "*":
                self._send(204, b"")
                return None
            raise _unknown_path(head.path, self.routes)
        operation = methods.get("GET" if head.method == "HEAD" else head.method)
        if operation is not None:
            return operation
        allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"])
        self._extra = (("Allow", allowed),)
        if head.method == "OPTIONS":
            self._send(204, b"")
            return None
        raise MuxError(
            "method_not_allowed", f"{head.path} does not answer {head.method}; it answers {allowed}", allowed=allowed
        )

    def _dispatch(self, operation: Operation, given: Mapping[str, Any] | list[Any]) -> None:
        head, mux = self._head, self._server.mux
        if isinstance(given, list):
            self._together(operation, given)
            return
        self._given = given
        if operation.kind == "stream":
            self._stream(operation)
            return
        if operation.kind == "document":
            self._admit(operation)
            bind(operation, self._given, mux.settings, textual=True)
            self._send(200, self._server.openapi)
            return
        call = door.Call(
            mux,
            operation,
            self._given,
            self,
            textual=operation.method == "GET",
            key=head.headers.get("idempotency-key"),
        )
        if head.method == "HEAD" and operation.kind == "wait" and "timeout" in operation.by_name:
            call.start()  # this refuses what GET would; the wait is not tried, so it takes nothing
            self._send(200, None)
        elif call.work is not None:
            call.queue(self._done)
        elif operation.kind == "lines":
            self._server.aside(lambda: self._run_lines(call))
        elif operation.slow and operation.kind != "act" and "timeout" not in operation.by_name:
            asked = self._server.ticks_ms()
            self._server.in_turn(lambda: self._run_in_turn(call, asked))
        elif operation.slow:
            self._server.aside(lambda: self._run_aside(call))
        else:
            self._run_here(call)

    def _together(self, operation: Operation, given: list[Any]) -> None:
        key = self._head.headers.get("idempotency-key")
        try:
            together.queue(self._server.mux, operation, given, self._another_caller, key, self._done)
        except MuxError as error:  # an error of the whole batch; `door` audits each call in it
            self._note(error, operation)
            raise

    def _another_caller(self) -> Caller:
        caller = Caller(self.request_id)
        caller.bearer = self.bearer
        return caller

    def _read_given(self, operation: Operation, body: bytes) -> Mapping[str, Any] | list[Any]:
        if operation.method == "GET":
            return payload.read_query(self._head.query)
        wire.check_content_type(self._head)
        if self._head.query:
            raise MuxError(
                "invalid_query", f"{operation.path} takes its parameters in the JSON body, not in the query string"
            )
        return payload.read_calls(body) if operation.many else payload.read_json(body)

    # -- running

    def _done(self, answer: Any, error: BaseException | None) -> None:
        """Answer a queued change, now that it has been committed or refused."""
        if error is None:
            try:
                self._answer(answer)
            except Exception as fault:  # must not harm the other changes in the group commit
                error = fault
        if error is not None:
            self._refuse(error)

    def _run_here(self, call: door.Call) -> None:
        """Run what is quick; that includes a wait that finds something at once or has no time to wait."""
        answer = call.start()
        if isinstance(answer, Wait):
            wait = answer
            held_up = wait.writes and self._server.mux.store.led
            if wait.work is not None or held_up or (answer := wait.at_once(self._server.ticks_ms())) is None:
                self._server.lot.park(wait, self._connection, lambda found, error: self._waited(call, found, error))
                return
        self._answer(answer)

    def _waited(self, call: door.Call, answer: Any, error: BaseException | None) -> None:
        """Answer a wait that has ended."""
        try:
            self._answer(call.waited(answer, error))
        except Exception as fault:
            self._refuse(fault)

    def _run_in_turn(self, call: door.Call, asked: int) -> None:
        """Run a read, unless its client got tired of waiting for its turn and left; called on a worker thread.

        A client that only closes its side behind its request looks the same, so a short wait does not count.
        """
        if self._connection.gone and self._server.ticks_ms() >= asked + TIRED_MS:
            self._connection.abandon()
        else:
            self._run_aside(call)

    def _run_aside(self, call: door.Call) -> None:
        """Run a slow operation; called on a worker thread."""
        try:
            self._answer(call.answer())
        except Exception as error:
            self._refuse(error)

    def _run_lines(self, call: door.Call) -> None:
        """Stream an answer of any length, as fast as the client takes it; called on a worker thread."""
        server = self._server
        try:
            pieces = call.start()
            if self._head.method == "HEAD":
                self._send(200, None, content_type=LINES_TYPE)
                return
            server.mux.waiters.take()
        except Exception as error:
            self._refuse(error)
            return
        sock, whole = self._connection.detach(), False
        try:
            sock.settimeout(SEND_MS / 1000)
            sock.sendall(self._open_head(LINES_TYPE))
            for piece in pieces:
                if server.stopping:
                    break
                sock.sendall(piece.encode())
            else:
                whole = True
        except OSError:
            pass  # the client has gone, or has stopped reading
        except MuxError as error:
            log.warning("request %s was cut off: %s", self.request_id, error.message)
        except Exception:
            log.exception("request %s failed", self.request_id)
        finally:
            server.mux.waiters.give()
            end(sock, whole=whole)

    def _stream(self, operation: Operation) -> None:
        """Check the request, then hand the socket to the streamer."""
        server, mux = self._server, self._server.mux
        args = dict(door.Call(mux, operation, self._given, self, textual=True).args)
        asked = args.pop("last_event_id")
        asked = self._head.headers.get("last-event-id", asked)
        wanted = monitor.event_filter(mux, **args)
        head = mux.log.head
        after = head if asked is None else _event_id(asked)
        greeting = b""
        if after > head:
            greeting = sse.special("reset", {"requested": after, "head": head, "epoch": mux.store.epoch}, head)
            after = head
        self._extra = (("X-Stonemux-Event-Head", str(head)), ("X-Stonemux-Last-Event-ID", str(after)))
        if self._head.method == "HEAD":
            self._send(200, None, content_type="text/event-stream")
            return
        mux.waiters.take()
        opening = self._open_head(*EVENT_STREAM) + f"retry: {sse.RETRY_MS}\n: head {head}\n\n".encode() + greeting
        try:
            server.streamer.begin()
            permit = sse.Permit(operation.tier, self.principal)
            server.streamer.add(self._connection.detach(), wanted, after, opening, permit)
        except BaseException:
            mux.waiters.give()
            raise

    def _open_head(self, content_type: str, *more: str) -> bytes:
        """The head of an answer whose length is not yet known."""
        lines = [
            "HTTP/1.1 200 OK",
            f"Content-Type: {content_type}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            *more,
            "Connection: close",
            f"X-Request-Id: {self.request_id}",
            *(f"{name}: {value}" for name, value in self._extra),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    # -- answering

    def _answer(self, answer: Any) -> None:
        if "timeout" in self._given:
            self._note_clamped(self._given["timeout"])
        if isinstance(answer, str):
            self._send(200, answer.encode(), content_type=monitor.METRICS_TYPE)
        else:
            self._send(200, payload.write_line(answer), flight=self.flight)

    def _note_clamped(self, timeout: Any) -> None:
        most = self._server.mux.settings.poll_timeout_max
        if timeout is not None and int(timeout) > most:
            self._extra += (("X-Stonemux-Timeout", str(most)),)

    def _refuse(self, error: BaseException) -> None:
        """Answer with an error; a caller that cannot even be told of it is hung up on, not left waiting."""
        try:
            self._tell_refusal(error)
        except Exception:
            self._connection.abandon()
            raise

    def _tell_refusal(self, error: BaseException) -> None:
        if isinstance(error, Hangup):
            self._connection.abandon()
            return
        if not isinstance(error, MuxError):
            log.error("request %s failed", self.request_id, exc_info=error)
            error = MuxError(
                "internal", "the daemon failed on this request; its log has the details under the request id"
            )
        if self.flight is not None:
            self.flight.lost()
        if error.retry_after is not None:
            self._extra += (("Retry-After", str(error.retry_after)),)
        self._extra += challenge(error)
        self._close = self._close or error.close
        self._send(error.failure.http, payload.write_line(error.body(self.request_id)))

    def _send(
        self, status: int, body: bytes | None, *, flight: Flight | None = None, content_type: str = "application/json"
    ) -> None:
        if self.replayed:
            self._extra += (("Idempotent-Replayed", "true"),)
        answer = wire.render(
            status,
            body,
            request_id=self.request_id,
            head_only=self._head.method == "HEAD",
            close=self._close,
            extra=self._extra,
            content_type=content_type,
            date=_date(self._server.mux.clock.now_ms() // 1000),
        )
        self._connection.finish(answer, close=self._close, flight=flight)


def refusal(error: MuxError, request_id: str, body: bytes | None = None) -> bytes:
    """A complete error answer, with `Connection: close`, for a request that could not be read; `body` replaces ours."""
    extra = (("Retry-After", str(error.retry_after)),) if error.retry_after is not None else ()
    return wire.render(
        error.failure.http,
        payload.write_line(error.body(request_id)) if body is None else body,
        request_id=request_id,
        close=True,
        extra=extra + challenge(error),
    )


def challenge(error: MuxError) -> tuple[tuple[str, str], ...]:
    """The WWW-Authenticate header of a refusal for lack of a valid token (RFC 6750 section 3)."""
    if error.failure.http != 401:
        return ()
    flaw = "" if error.code == "token_missing" else ' error="invalid_token"'
    return (("WWW-Authenticate", f"Bearer{flaw}"),)


def _unknown_path(path: str, known: Routes) -> MuxError:
    if path == "/":
        here = "this is stonemux, which has no web pages: /health and /stats show how it is doing"
        return MuxError("not_found", f"{here}, /openapi.json lists all")
    begun = sorted(one for one in known if one.startswith(path.rstrip("/") + "/"))
    close = begun[0] if begun else guess(path, known, least=0.6)  # a high threshold: all paths look alike
    return MuxError(
        "not_found",
        f"there is nothing at this path{did_you_mean(close, '/openapi.json lists all')}",
        nearest=close or None,
    )


def _event_id(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= MOST_INTEGER:
        return int(text)
    raise MuxError(
        "invalid_last_event_id", "the last event id must be a whole number from 0 to 2^63-1", parameter="last_event_id"
    )


@lru_cache(maxsize=4)
def _date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()
