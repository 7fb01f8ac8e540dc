"""Following changes through the Python client: a key of shared state, and the event log.

Both resume where they were after the daemon was away.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypedDict

from stonemux.calls import Calls
from stonemux.consume import STOP_S, waits
from stonemux.errors import MuxError
from stonemux.methods import Names, Record, StateWatchAnswer
from stonemux.operations import BY_NAME
from stonemux.pool import Aborted, NoAnswer, RoundTrip, with_query

QUIET_S = 60
"""A stream that sends nothing for this long, not even a keep-alive, is reopened."""
CATCH_UP_S = 1
"""How long a stream may take to send what the log already holds, even if `timeout` is shorter."""
CONFLICTS = 1000
"""How many version conflicts `update` tolerates before it gives up."""


class StreamedEvent(TypedDict):
    """An event as the stream sends it; `gap` and `reset` are types, too."""

    id: int
    type: str
    data: dict[str, Any]


def watch(
    calls: Calls,
    key: str,
    *,
    channel: str,
    after_version: int,
    timeout: float | None,
    stop: threading.Event | None,
) -> Iterator[StateWatchAnswer]:
    """Yield each new version of a key, until nothing changes for `timeout` seconds."""
    version = after_version
    while True:
        for wait in waits(calls, timeout, stop):
            answer = calls.state_watch(key=key, channel=channel, after_version=version, timeout=wait)
            if answer["changed"] or answer.get("reset"):
                break
        else:
            return
        version = answer["version"]
        yield answer


def update(calls: Calls, key: str, function: Callable[[str | None], str | None], *, channel: str) -> Record | None:
    """Compare-and-set in a loop: read, ask the function for the new value, write; start over on a version conflict."""
    lost = 0
    while True:
        value, version = _current(calls, key, channel)
        wanted = function(value)
        if wanted is None:
            return None
        try:
            return calls.state_set(key=key, value=wanted, channel=channel, expected_version=version)
        except MuxError as error:
            lost += 1
            if error.code != "version_conflict" or lost == CONFLICTS:
                raise
            calls.pause(min(lost, 20))


def _current(calls: Calls, key: str, channel: str) -> tuple[str | None, int]:
    try:
        record = calls.state_get(key=key, channel=channel)
    except MuxError as error:
        if error.code != "key_not_found":
            raise
        return None, 0
    return record["value"], record["version"]


# --- events


def events(
    calls: Calls,
    after: int | None,
    *,
    types: Names | None,
    channel: str | None,
    agent_id: str | None,
    timeout: float | None,
    stop: threading.Event | None,
) -> Iterator[StreamedEvent]:
    """Yield events as they happen; after the events that follow the id `after`, if one is given.

    A stream is reopened one event early, because ids alone do not tell one log from another: where an older copy of the
    data was put back, they start over and soon pass the last one that was seen.
    """
    filters = {"types": types or None, "channel": channel, "agent_id": agent_id}
    path = with_query(BY_NAME["events.stream"].path, filters)
    patience = min(QUIET_S if timeout is None else timeout, QUIET_S if stop is None else STOP_S) + 0.001
    last, seen, heard = after, "", calls.ticks_ms()
    while True:
        with calls.round_trip() as trip:
            attempt = partial(_open, calls, trip, path, last - 1 if last and seen else last, patience)
            begun, pieces = calls.persist("events.stream", None, 0, attempt)
            opened, head = calls.ticks_ms(), int(trip.headers["x-stonemux-event-head"])
            found = _events(calls, pieces)
            if last is None:
                last = begun
            elif seen:
                found = _continued(found, last, seen, head)
            behind = last != head
            with suppress(NoAnswer, Aborted):  # reopen the stream where it ended
                for event in found:
                    if event is not None and event["type"] == "shutdown":
                        break
                    if event is not None:
                        if event["id"]:
                            last, seen = event["id"], "" if event["type"] in ("gap", "reset") else json.dumps(event)
                            behind = behind and last < head
                        yield event
                        heard = calls.ticks_ms()
                    if stop is not None and stop.is_set():
                        return
                    now = calls.ticks_ms()
                    settled = not behind or now - opened >= CATCH_UP_S * 1000
                    if timeout is not None and settled and now - heard >= timeout * 1000:
                        return


def _open(calls: Calls, trip: RoundTrip, path: str, last: int | None, patience: float) -> tuple[int, Iterator[bytes]]:
    """Open the stream; returns the id after which it begins, and its bytes."""
    headers = {"Accept": "text/event-stream", **calls.headers()}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    pieces = trip.stream(path, headers, timeout=patience)
    if trip.status != 200:
        trip.body = b"".join(pieces)
        raise calls.refusal(trip, "events.stream")
    return last if last is not None else int(trip.headers["x-stonemux-last-event-id"]), pieces


def _events(calls: Calls, pieces: Iterator[bytes]) -> Iterator[StreamedEvent | None]:
    """The events of one stream, with None in between so that the reader can check its timeout.

    Ends when the stream ends or has been silent for too long.
    """
    frames = Frames()
    alive = calls.ticks_ms()
    for piece in pieces:
        yield from frames.take(piece)
        yield None
        if piece:
            alive = calls.ticks_ms()
        elif calls.ticks_ms() - alive > QUIET_S * 1000:
            return


def _continued(
    found: Iterator[StreamedEvent | None], last: int, seen: str, head: int
) -> Iterator[StreamedEvent | None]:
    """The events of a stream that was opened one event early: those after the event `last`, which must come as `seen`.

    If it does not, the log is another one, which is told as a `reset` to its head.
    """
    for event in found:
        if event is None or not event["id"]:
            yield event
            continue
        if event["type"] == "gap":  # to us, one event less is missing
            event["data"] |= {"requested": last, "missed": event["data"]["missed"] - 1}
            if event["data"]["missed"]:
                yield event
        elif event["type"] == "reset":
            event["data"]["requested"] = last
            yield event
        elif json.dumps(event) != seen:
            yield {"id": head, "type": "reset", "data": {"requested": last, "head": head}}
            return
        break
    yield from found


class Frames:
    """A parser for server-sent events that arrive in arbitrary pieces (WHATWG HTML, "Server-sent events").

    It handles only what the daemon sends: lines end in a line feed, and `data` is one line of JSON.
    """

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> Iterator[StreamedEvent]:
        """The events that these bytes complete."""
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        for frame in whole:
            fields = dict(line.split(": ", 1) for line in frame.decode().split("\n") if not line.startswith(":"))
            if "event" in fields:
                yield {"id": int(fields.get("id", 0)), "type": fields["event"], "data": json.loads(fields["data"])}
