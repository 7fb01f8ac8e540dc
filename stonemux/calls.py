"""How the Python client calls a daemon: each call is one request, retried while that can help.

Every change carries an idempotency key, so it is safe to repeat. When the connection breaks, or the daemon answers 429
or 503, the same request is sent again after a growing, jittered pause (at least `Retry-After`) until its time is used
up; so callers do not notice a daemon's restart. A client that has never reached a daemon gives up after two seconds,
since then there is probably no daemon, rather than one that is restarting.

Waiting calls (`WAITING`) wait as long as they are asked to, even beyond the daemon's maximum: after an empty answer
before the time is over, the client sends another request. These are rounds of one call; each further round of a claim
has an idempotency key of its own, because its body (the `timeout`) differs from the first round's.

`_lock` guards the set of running round trips, and whether the client is closed.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from stonemux import launch
from stonemux.clock import Clock
from stonemux.config import load
from stonemux.errors import MuxError, did_you_mean, guess, read_error
from stonemux.methods import Methods
from stonemux.operations import BY_NAME
from stonemux.pool import Aborted, NoAnswer, Pool, RoundTrip, as_body, half_a_pair, with_query
from stonemux.schema import IDEMPOTENCY_KEY, MOST_TOGETHER, Operation, malformed_key, shown

FIRST_CONTACT_MS = 2000
"""How long a client that has never had an answer keeps trying."""
PAUSES_MS = (0, 50, 100, 200, 400, 800, 1000)
"""Pauses between retries; the first is 0, for an idle connection that was just closed. The last one repeats."""
ACT_MS = 600_000
"""How long an act, such as a backup, may take."""
WAITING = {"msg.poll": "messages", "task.claim": "task_id", "state.watch": "changed", "events.list": "events"}
"""The calls that wait, and the field of the answer that shows whether anything came."""
Answer = TypeVar("Answer")
_KEY = re.compile(IDEMPOTENCY_KEY)


class _Request(NamedTuple):
    method: str
    path: str
    body: bytes | None
    headers: dict[str, str]
    receipt: bool = False
    """Whether the daemon waits for a receipt of the answer."""


class Calls(Methods):
    """A client's calls; `client.Client` explains the parameters."""

    def __init__(
        self,
        url: str | None,
        *,
        agent: str | None,
        token: str | Callable[[], str] | None,
        timeout: float,
        environ: Mapping[str, str],
    ) -> None:
        host, port, tls_cert = _address(url, environ)
        self.agent = agent or environ.get("STONEMUX_AGENT") or None
        self._fresh_token = token if callable(token) else None
        self._token = (None if callable(token) else token) or environ.get("STONEMUX_TOKEN") or None
        self._budget_ms = round(timeout * 1000)
        self._clock = Clock()
        self._pool = Pool(host, port, tls_cert)
        self._reached = False
        self._closed = False
        self._lock = threading.Lock()
        self._closing = threading.Condition(self._lock)
        self._running: set[RoundTrip] = set()

    @property
    def url(self) -> str:
        """The daemon's base URL."""
        return f"{self._pool.scheme}://{self._pool.authority}"

    def forget(self) -> None:
        """Drop what belongs to the parent of a forked process."""
        self._lock = threading.Lock()
        self._closing = threading.Condition(self._lock)
        self._running = set()
        self._pool.forget()

    def ticks_ms(self) -> int:
        """The clock by which waits are measured."""
        return self._clock.ticks_ms()

    def close(self) -> None:
        """Close the connections; calls running in other threads end with `unreachable`."""
        with self._lock:
            self._closed = True
            self._closing.notify_all()
            running = list(self._running)
        for trip in running:
            trip.abort()
        self._pool.close()

    # -- calls

    def call(
        self, operation: str, given: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Any:
        """Call an operation by its name in the reference, with API field names: `call("msg.send", {"from": ...})`.

        For programs that choose operations at run time. It retries as the typed methods do, but a wait ends when the
        daemon ends it.
        """
        row = BY_NAME.get(operation)
        if row is None or row.kind == "stream":
            close = guess(operation, [name for name, one in BY_NAME.items() if one.kind != "stream"])
            raise MuxError(
                "not_found",
                f"{shown(operation)} is not an operation that can be called{did_you_mean(close)}",
                nearest=close or None,
            )
        told = self._completed(row, dict(given or {}))
        return self._round(row, told, self._key(row, told, idempotency_key), 1000 * row.asked_wait(told))

    def call_all(self, operation: str, calls: Iterable[Mapping[str, Any]]) -> list[Any]:
        """Make many calls of an operation that takes a list over HTTP (`msg.send`), each with the API's field names.

        Up to 1,000 go into one request, which is one transaction. Answers come in the order of the calls; a refused
        call has a `MuxError` in its place. Each call gets an idempotency key, so the request may be sent again.
        """
        row = BY_NAME.get(operation)
        if row is None or not row.many:
            known = ", ".join(one.name for one in BY_NAME.values() if one.many)
            raise MuxError("not_found", f"{shown(operation)} does not take a list of calls; these do: {known}")
        answers: list[Any] = []
        for bodies, key in self._parts(row, calls):
            request = _Request("POST", row.path, bodies, {"Content-Type": "application/json"})
            results = self.persist(row.name, key, 0, partial(self._once, row, request, self._budget_ms))["results"]
            answers += [read_error(told["error"]) if "error" in told else told for told in results]
        return answers

    def _parts(self, operation: Operation, calls: Iterable[Mapping[str, Any]]) -> Iterator[tuple[bytes, str]]:
        """The bodies of as few requests as the limits allow, each with the key of its first call."""
        part: list[str] = []
        size, first = 0, ""
        for given in calls:
            key = self._clock.new_id()
            told = {"idempotency_key": key} | self._completed(operation, dict(given))
            text = json.dumps(told, default=_as_json)
            if part and (len(part) == MOST_TOGETHER or size + len(text) > operation.most_body - 1024):
                yield f"[{','.join(part)}]".encode(), first
                part, size = [], 0
            first = first if part else key
            part.append(text)
            size += len(text) + 1
        if part:
            yield f"[{','.join(part)}]".encode(), first

    def _call(self, name: str, given: dict[str, Any], key: str | None = None) -> Any:
        operation = BY_NAME[name]
        told = {}
        for param in operation.params:
            value, usual = given[param.name], param.default
            if value is not None and (type(value) is not type(usual) or value != usual):
                told[param.name] = value
        told = self._completed(operation, told)
        key, wait = self._key(operation, told, key), operation.asked_wait(told)
        if not wait:
            return self._round(operation, told, key, 0)
        deadline = self._clock.ticks_ms() + wait * 1000
        first, number = key, 1
        while True:
            answer = self._round(operation, told, key, wait * 1000)
            wait = -((self._clock.ticks_ms() - deadline) // 1000)
            if wait <= 0 or answer[WAITING[name]] or "reset" in answer or "gap" in answer:
                return answer
            told["timeout"] = wait
            number += 1
            key = first and f"{first}.{number}"  # its body differs, so it is another request

    def _completed(self, operation: Operation, given: dict[str, Any]) -> dict[str, Any]:
        if self.agent is not None and operation.actor and given.get(operation.actor) is None:
            given[operation.actor] = self.agent
        return given

    def _key(self, operation: Operation, given: Mapping[str, Any], key: str | None) -> str | None:
        return self._clock.new_id() if key is None and operation.changes and "idempotency_key" not in given else key

    def _round(self, operation: Operation, given: Mapping[str, Any], key: str | None, wait_ms: int) -> Any:
        """Send one request, retried while that can help and there is time."""
        request = self._request(operation, given, key)
        patience_ms = wait_ms + (max(self._budget_ms, ACT_MS) if operation.kind == "act" else self._budget_ms)
        return self.persist(operation.name, key, wait_ms, lambda: self._once(operation, request, patience_ms))

    def persist(self, name: str, key: str | None, wait_ms: int, attempt: Callable[[], Answer]) -> Answer:
        """Call `attempt` until it returns or fails for good; transient errors are retried for a limited time."""
        begun = self._clock.ticks_ms()
        deadline = None
        renewed = False
        tries = 0
        while True:
            pause = 0
            try:
                return attempt()
            except Aborted:
                raise self._closed_error() from None
            except NoAnswer as trouble:
                failure = self.unreachable(str(trouble), name, key)
            except MuxError as error:
                if error.status == 401 and self._fresh_token is not None and not renewed:
                    self._token, renewed = self._fresh_token(), True
                    continue
                if error.status not in (429, 503):
                    raise
                failure, pause = error, (error.retry_after or 0) * 1000
            now = self._clock.ticks_ms()
            if deadline is None:
                most = self._budget_ms if self._reached else min(self._budget_ms, FIRST_CONTACT_MS)
                deadline = now + most - max(0, now - begun - wait_ms)
            pause = max(pause, self._scattered(PAUSES_MS[min(tries, len(PAUSES_MS) - 1)]))
            tries += 1
            if now + pause >= deadline:
                raise failure
            self.pause(pause)

    def _once(self, operation: Operation, request: _Request, patience_ms: int) -> Any:
        with self.round_trip() as trip:
            headers = request.headers | self.headers()
            trip.request(request.method, request.path, request.body, headers, timeout=max(patience_ms, 1000) / 1000)
            answer = self._read(operation, trip)
            if request.receipt and trip.status == 200 and answer["messages"]:
                trip.part()
        if isinstance(answer, MuxError):
            raise answer
        return answer

    @contextmanager
    def round_trip(self) -> Iterator[RoundTrip]:
        """A round trip that is aborted when the client is closed."""
        trip = self._pool.round_trip()
        with self._lock:
            if self._closed:
                raise self._closed_error()
            self._running.add(trip)
        try:
            with trip:
                yield trip
        finally:
            with self._lock:
                self._running.discard(trip)

    def headers(self) -> dict[str, str]:
        """The headers of every request: the token, from the caller's function if there is one."""
        if self._token is None and self._fresh_token is not None:
            self._token = self._fresh_token()
        return {} if self._token is None else {"Authorization": f"Bearer {self._token}"}

    def _request(self, operation: Operation, given: Mapping[str, Any], key: str | None) -> _Request:
        headers: dict[str, str] = {}
        try:
            if operation.method == "GET":
                receipt = operation.takes and "after" not in given and given.get("ack") != "manual"
                return _Request("GET", with_query(operation.path, given), None, headers, receipt)
        except UnicodeEncodeError:
            raise half_a_pair() from None
        headers["Content-Type"] = "application/json"
        if key is not None:
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise malformed_key()
            headers["Idempotency-Key"] = key
        return _Request("POST", operation.path, as_body(given, _as_json), headers)

    def _read(self, operation: Operation, trip: RoundTrip) -> Any:
        """The answer, or the error, of a completed round trip."""
        if trip.status != 200:
            return self.refusal(trip, operation.name)
        plain = operation.kind in ("text", "lines")
        answer = trip.body.decode() if plain else self._decoded(trip, operation.name)
        if "x-request-id" not in trip.headers:
            raise self.unreachable("it is another server", operation.name, None)
        self._reached = True
        return answer

    def refusal(self, trip: RoundTrip, name: str) -> MuxError:
        """The error that the daemon answered with."""
        try:
            told = self._decoded(trip, name)["error"]
            row = BY_NAME[name]
            if row.actor and (told["code"], told.get("parameter")) == ("missing_field", row.actor):
                told["message"] += f" Say it as {row.by}, in Client(agent=...), or in STONEMUX_AGENT"
            error = read_error(told, trip.headers.get("retry-after", ""))
        except (KeyError, TypeError, AttributeError):
            raise self.unreachable("it is another server", name, None) from None
        self._reached = True
        error.status = trip.status
        return error

    def _decoded(self, trip: RoundTrip, name: str) -> Any:
        try:
            return json.loads(trip.body)
        except ValueError:
            raise self.unreachable("it is another server", name, None) from None

    def unreachable(self, trouble: str, name: str, key: str | None) -> MuxError:
        """The error for a daemon that could not be reached, or that did not answer."""
        error = self._pool.unreachable(NoAnswer(trouble))
        if key is None or not self._reached:
            return error
        return MuxError(
            "unreachable",
            f"{error.message}. Whether {name} happened is unknown; repeating it with the same idempotency_key is safe",
            idempotency_key=key,
        )

    def _closed_error(self) -> MuxError:
        return MuxError("unreachable", "this client is closed; create a new one")

    def _scattered(self, pause_ms: int) -> int:
        """A random time between half of `pause_ms` and all of it, so that many clients do not retry at once."""
        return pause_ms - int(self._clock.token(2), 16) * pause_ms // 0x1FFFF

    def pause(self, ms: int) -> None:
        """Sleep for this time, or until the client is closed."""
        until = self._clock.ticks_ms() + ms
        with self._lock:
            while not self._closed and self._clock.ticks_ms() < until:
                self._clock.wait(self._closing, until)


def _address(url: str | None, environ: Mapping[str, str]) -> tuple[str, int, str]:
    """Host, port, and certificate file ("" for a daemon without TLS)."""
    if url is None:
        settings = load(None, environ, {})
        return settings.host, settings.port, settings.tls_cert
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = None, None, None
    known = parts is not None and parts.scheme in ("http", "https")
    if parts is None or not host or not known or parts.path.strip("/") or parts.query or parts.username:
        raise MuxError(
            "bad_setting", f"{shown(url)} is not a daemon's address; it must look like http://127.0.0.1:3392"
        )
    tls_cert = load(None, environ, {}).tls_cert if parts.scheme == "https" else ""
    if parts.scheme == "https" and not tls_cert:
        raise MuxError("bad_setting", f"{shown(url)} needs the daemon's certificate; set STONEMUX_TLS_CERT to its file")
    return host, launch.DEFAULT_PORT if port is None else port, tls_cert


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
