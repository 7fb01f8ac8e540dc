"""Server-sent events: one thread writes all streams.

The HTTP server checks a request and hands its socket over. A stream is that socket, a filter, and a cursor into the
event log. What the socket has not yet accepted waits in `unsent`, and no more events are fetched until that is empty,
so a slow reader costs one chunk of memory. A reader that has fallen behind the in-memory ring continues from the
database, and gets a `gap` event if the database no longer has what it missed. One that accepts nothing for 15 seconds
is disconnected, and can resume with its Last-Event-ID.

The format is that of the WHATWG HTML standard, section "Server-sent events": `id`, `event` and one line of `data`.

Threads: everything but `begin`, `add`, `wake`, `doubt` and `close` runs on the streamer's thread. `_lock` guards the
newcomers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from typing import Any

from stonemux import events, monitor, threads
from stonemux.connection import Socket
from stonemux.errors import MuxError
from stonemux.events import Filter
from stonemux.mux import Mux
from stonemux.payload import dumps
from stonemux.record import Record
from stonemux.schema import TIERS
from stonemux.tokens import Principal
from stonemux.transaction import Event

log = logging.getLogger("stonemux")

PAGE = 200
"""Maximum number of events fetched for one stream at a time."""
SCAN = 20_000
"""Maximum number of events that one read examines for a stream with a filter, so that no other stream waits long."""
PIECE = 256 * 1024
"""A write stops collecting events once it exceeds this many bytes."""
STALLED_MS = 15_000
CLOSING_S = 2
RETRY_MS = 2_000
NEVER = 2**62


def frame(event: Event) -> bytes:
    """One event in the stream's format; its JSON is on one line, so `data` never needs splitting."""
    return f"id: {event.id}\nevent: {event.kind}\ndata: {event.data}\n\n".encode()


class Permit(Record):
    """What a stream needs in order to stay open: the tier of its operation, and the token that it was opened with."""

    tier: str
    principal: Principal | None

    def ends_at(self, mux: Mux) -> int:
        """When the token expires."""
        return NEVER if self.principal is None else mux.tokens.ends_at(self.principal)

    def refusal(self, mux: Mux) -> MuxError | None:
        """Why the stream must end; None while it may continue."""
        if TIERS.index(self.tier) > TIERS.index(mux.tier):
            return MuxError("upgrade_required", f"streams need the {self.tier} tier", tier=mux.tier, needed=self.tier)
        try:
            if self.principal is not None:
                mux.tokens.check(self.principal)
        except MuxError as error:
            return error
        return None


def special(kind: str, data: dict[str, Any], event_id: int | None = None) -> bytes:
    """A frame that is not from the log: gap, reset, shutdown, or why the stream ends."""
    head = f"id: {event_id}\n" if event_id is not None else ""
    return f"{head}event: {kind}\ndata: {dumps(data)}\n\n".encode()


class Stream:
    """One reader."""

    __slots__ = ("blocked_since", "cursor", "permit", "sock", "spoke_at", "unsent", "wanted")

    def __init__(self, sock: Socket, wanted: Filter, cursor: int, greeting: bytes, permit: Permit) -> None:
        self.sock = sock
        self.permit = permit
        self.wanted = wanted
        self.cursor = cursor
        self.unsent = greeting
        self.spoke_at = 0
        self.blocked_since: int | None = None


class Streamer:
    """All streams, and the thread that writes them."""

    def __init__(self, mux: Mux) -> None:
        self._mux = mux
        self._lock = threading.Lock()
        self._new: list[Stream] = []
        self._streams: dict[int, Stream] = {}
        self._frames: dict[int, bytes] = {}
        self._poller = select.poll()
        self._bell, self._rope = os.pipe()
        os.set_blocking(self._rope, False)
        os.set_blocking(self._bell, False)
        self._poller.register(self._bell, select.POLLIN)
        self._rung = False
        self._closing = False
        self._count = 0
        self._begun = False
        self._over = threading.Event()
        self._doubtful = False
        self._review_at = NEVER
        mux.log.listeners.append(self.wake)
        mux.tokens.listeners.append(self.doubt)

    def __len__(self) -> int:
        return self._count

    def begin(self) -> None:
        """Start the thread if need be, before `add`; raises `too_many_waiters` if the system allows no more."""
        with self._lock:
            if not self._begun and not self._closing:
                threads.begin("streamer", self._run)
                self._begun = True

    def add(self, sock: Socket, wanted: Filter, cursor: int, greeting: bytes, permit: Permit) -> None:
        """Take over a socket: write `greeting` (including the response head), then every matching event after `cursor`.

        The stream occupies a place among the waiters, which is given back when it ends.
        """
        sock.setblocking(False)
        with self._lock:
            if self._closing:
                sock.close()
                self._mux.waiters.give()
                return
            self._count += 1
            self._new.append(Stream(sock, wanted, cursor, greeting, permit))
            self._ring()

    def wake(self) -> None:
        """Wake the streamer: there are new events."""
        if self._count:
            with self._lock:
                if not self._closing:
                    self._ring()

    def doubt(self) -> None:
        """Have every stream's permit checked again: tokens or the tier have changed."""
        self._doubtful = True
        self.wake()

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            with contextlib.suppress(BlockingIOError):
                os.write(self._rope, b"x")

    def close(self) -> None:
        """Send `shutdown` on every stream, and end."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._ring()
        if self._begun:
            self._over.wait(CLOSING_S)
        os.close(self._bell)
        os.close(self._rope)

    # -- on the streamer's thread

    def _run(self) -> None:
        behind = False
        try:
            while not self._closing:
                try:
                    behind = self._round(behind)
                except Exception:  # their readers resume with their Last-Event-ID
                    log.exception("a round of the streams failed, which ends them")
                    for stream in list(self._streams.values()):
                        self._drop(stream)
            self._admit()
            for stream in list(self._streams.values()):
                if not stream.unsent:
                    self._send(stream, special("shutdown", {"reason": "the daemon stops"}), 0)
                self._drop(stream)
        finally:
            self._over.set()

    def _round(self, behind: bool) -> bool:
        """Wait, and write what there is to write; returns whether some stream can take more at once."""
        clock = self._mux.clock
        ready = self._poller.poll(0 if behind else self._patience(clock.ticks_ms()))
        if any(fd == self._bell for fd, _ in ready):
            os.read(self._bell, 64)
            self._rung = False  # cleared before the work, so that news during it rings again
        self._admit()
        now = clock.ticks_ms()
        for fd, happened in ready:
            stream = self._streams.get(fd)
            if stream is not None:
                self._heed(stream, happened, now)
        if self._doubtful or self._review_at <= self._mux.clock.now_ms():
            self._review()
        behind = self._write_all(now)
        self._keep_alive(now)
        return behind

    def _speaks_at(self, stream: Stream) -> int:
        """When an idle stream gets its next keepalive comment."""
        return stream.spoke_at + self._mux.settings.sse_keepalive * 1000  # read each time, since it may change

    def _patience(self, now: int) -> int | None:
        """Milliseconds until the next keepalive, timeout or expiry; None when there is no stream."""
        due = [
            self._speaks_at(stream) if stream.blocked_since is None else stream.blocked_since + STALLED_MS
            for stream in self._streams.values()
        ]
        if not due:
            return None
        return max(0, min(min(due) - now, self._review_at - self._mux.clock.now_ms()))

    def _admit(self) -> None:
        with self._lock:
            new, self._new = self._new, []
        self._streams.update((stream.sock.fileno(), stream) for stream in new)
        for stream in new:
            self._review_at = min(self._review_at, stream.permit.ends_at(self._mux))
            self._poller.register(stream.sock.fileno(), select.POLLIN)
            greeting, stream.unsent = stream.unsent, b""
            self._send(stream, greeting, self._mux.clock.ticks_ms())

    def _review(self) -> None:
        """End the streams that may not continue, and schedule the next review."""
        self._doubtful = False  # cleared first, so that changes during the review cause another one
        for stream in list(self._streams.values()):
            refusal = stream.permit.refusal(self._mux)
            if refusal is not None:
                if not stream.unsent:
                    kind = "auth_expired" if refusal.failure.http == 401 else refusal.code
                    self._send(stream, special(kind, refusal.body()["error"]), 0)
                self._drop(stream)
        self._review_at = min((stream.permit.ends_at(self._mux) for stream in self._streams.values()), default=NEVER)

    def _heed(self, stream: Stream, happened: int, now: int) -> None:
        """Handle a socket event: it accepts more bytes, or the reader is gone (input from a reader is ignored)."""
        if happened & select.POLLOUT:
            unsent, stream.unsent = stream.unsent, b""
            self._send(stream, unsent, now)
            return
        try:
            gone = not stream.sock.recv(4096)
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        if gone:
            self._drop(stream)

    def _write_all(self, now: int) -> bool:
        """Write one chunk on every stream that can take one; True if some stream can take more.

        One chunk per round, so that a reader replaying a long history does not delay the others.
        """
        head = self._mux.log.head
        behind = False
        for stream in list(self._streams.values()):
            if stream.cursor < head and not stream.unsent:
                try:
                    piece, stream.cursor = self._next_piece(stream)
                except Exception as error:  # the reader resumes with its Last-Event-ID
                    known = isinstance(error, MuxError)
                    log.warning("a stream ended: its events could not be read: %s", error, exc_info=not known)
                    self._drop(stream)
                    continue
                if piece:
                    self._send(stream, piece, now)
                behind = behind or (stream.cursor < head and not stream.unsent)
        self._frames.clear()
        return behind

    def _next_piece(self, stream: Stream) -> tuple[bytes, int]:
        """The next chunk for a stream, and the stream's cursor after it."""
        after = stream.cursor
        recent = self._mux.log.recent(after)
        missed: list[bytes] = []
        if recent is None:
            head = self._mux.log.head
            with self._mux.store.read() as rx:
                if (gap := monitor.gap_after(rx, after)) is not None:
                    after = gap["oldest"] - 1
                    missed.append(special("gap", gap, after))
                through = head if stream.wanted == events.EVERYTHING else min(head, after + SCAN)
                recent = events.stored(rx, after, PAGE, stream.wanted, through)
            if not recent:  # no event up to there passes the filter
                after = max(after, through)
        size = 0
        for event in recent:
            after = event.id
            if stream.wanted.wants(event):
                missed.append(self._framed(event))
                size += len(missed[-1])
                if size > PIECE:
                    break
        return b"".join(missed), after

    def _framed(self, event: Event) -> bytes:
        """The event's frame, built once for all streams of this round."""
        framed = self._frames.get(event.id)
        if framed is None:
            framed = self._frames[event.id] = frame(event)
        return framed

    def _send(self, stream: Stream, data: bytes, now: int) -> None:
        stream.spoke_at = now
        try:
            sent = stream.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(stream)
            return
        stream.unsent = data[sent:]
        if stream.unsent:
            if sent or stream.blocked_since is None:
                stream.blocked_since = now
            self._poller.modify(stream.sock, select.POLLIN | select.POLLOUT)
        elif stream.blocked_since is not None:
            stream.blocked_since = None
            self._poller.modify(stream.sock, select.POLLIN)

    def _keep_alive(self, now: int) -> None:
        for stream in list(self._streams.values()):
            if stream.blocked_since is not None:
                if stream.blocked_since + STALLED_MS <= now:
                    self._drop(stream)
            elif self._speaks_at(stream) <= now:
                self._send(stream, b": ka\n\n", now)

    def _drop(self, stream: Stream) -> None:
        fd = stream.sock.fileno()
        if self._streams.pop(fd, None) is not None:
            self._count -= 1
            self._mux.waiters.give()
            with contextlib.suppress(KeyError):  # it could not be registered
                self._poller.unregister(fd)
            with contextlib.suppress(OSError):
                stream.sock.shutdown(socket.SHUT_WR)
            stream.sock.close()
