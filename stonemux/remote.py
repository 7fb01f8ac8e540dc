"""A command's connection to a daemon: one operation after another, over a connection that is kept open.

Nothing is retried here: the user sees what happened and decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from stonemux.errors import MuxError, read_error
from stonemux.pool import NoAnswer, Pool, RoundTrip, as_body, with_query
from stonemux.schema import Operation

if TYPE_CHECKING:
    from stonemux.config import Settings

PATIENCE_S = 30.0
"""How long a call may take beyond the wait that it asks for."""
ACT_S = 3600.0
"""How long an act, such as a backup, may take."""


Given = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""The parameters of a call, or of each call in a list."""


class Remote:
    """A daemon, and the token to use, if any. `replayed` says whether the last answer was that of an earlier call."""

    def __init__(self, settings: Settings, token: str | None) -> None:
        self._pool = Pool(settings.host, settings.port, settings.tls_cert)
        self._token = token
        self.replayed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def ask(self, operation: Operation, given: Mapping[str, Any]) -> Any:
        """Call an operation and return its answer: text if it answers with text, else an object.

        Raises the MuxError that the daemon answered, or `unreachable`.
        """
        with self.asked(operation, given) as answer:
            return answer

    def ask_all(self, operation: Operation, calls: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Call an operation that takes a list; returns the answers in their order, a MuxError for each refused call.

        Raises what `ask` raises if the whole request failed.
        """
        with self.asked(operation, calls) as answer:
            return [read_error(told["error"]) if "error" in told else told for told in answer["results"]]

    @contextmanager
    def asked(self, operation: Operation, given: Given) -> Iterator[Any]:
        """Call an operation; what it delivers counts as received when the block ends, and goes back if it fails."""
        path, body, headers = self._request(operation, given)
        with self._pool.round_trip() as trip:
            try:
                trip.request(operation.method, path, body, headers, timeout=_patience(operation, given))
                answer = self._read(operation, trip)
            except (NoAnswer, ValueError) as trouble:
                raise self._pool.unreachable(trouble) from trouble
            try:
                yield answer
            except BaseException:
                trip.abort()
                raise
            if operation.takes:
                trip.received()

    def _read(self, operation: Operation, trip: RoundTrip) -> Any:
        trip.check_daemon()
        self.replayed = trip.headers.get("idempotent-replayed") == "true"
        if operation.kind == "text" and trip.status == 200:
            return trip.body.decode()
        answer = json.loads(trip.body)
        if trip.status != 200:
            raise _refusal(trip, answer)
        return answer

    def stream(self, operation: Operation, given: Mapping[str, Any]) -> Iterator[bytes]:
        """Call an operation whose answer may never end; yields it piece by piece."""
        path, _, headers = self._request(operation, given)
        try:
            with self._pool.round_trip() as trip:
                pieces = trip.stream(path, headers)
                trip.check_daemon()
                if trip.status != 200:
                    raise _refusal(trip, json.loads(b"".join(pieces)))
                yield from pieces
        except (NoAnswer, ValueError) as trouble:
            raise self._pool.unreachable(trouble) from trouble

    def _request(self, operation: Operation, given: Given) -> tuple[str, bytes | None, dict[str, str]]:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if operation.method == "GET" and isinstance(given, Mapping):
            try:
                return with_query(operation.path, given), None, headers
            except UnicodeEncodeError:
                raise MuxError("invalid_utf8", "the command line is not UTF-8; set a UTF-8 locale") from None
        return operation.path, as_body(given), headers | {"Content-Type": "application/json"}


def of_user(settings: Settings, environ: Mapping[str, str]) -> Remote:
    """The daemon for a user's command, with the token from the user's environment."""
    return Remote(settings, environ.get("STONEMUX_TOKEN"))


def _refusal(trip: RoundTrip, answer: Any) -> MuxError:
    return read_error(answer["error"], trip.headers.get("retry-after", ""))


def _patience(operation: Operation, given: Given) -> float:
    if operation.kind == "act":
        return ACT_S
    return PATIENCE_S + (operation.asked_wait(given) if isinstance(given, Mapping) else 0)
