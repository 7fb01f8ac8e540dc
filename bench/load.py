"""A load generator: many connections, few processes, little work per request.

Each connection sends a request, waits for the whole reply, and sends the next (a closed loop without pipelining). A
*unit* consists of as many replies as the peer declares (`steps`): one for a plain request, three for a task that is
posted, claimed, and completed. Units that end inside the window count; a unit's latency runs from just before its first
byte is written (or its connection is opened) until its last byte is read.

The generator must not be the bottleneck, so a process drives all its connections with one epoll loop, requests are
encoded in advance, and replies are parsed only as far as the protocol requires. `python -m bench.load` prints how many
requests per second it makes against a server that does nothing.

A `Peer` implements a protocol; `HttpPeer` is the one for HTTP. Any refusal, lost connection, or missing reply makes
`load` raise `LoadFailed`: a run with errors did not measure what it was meant to.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import multiprocessing.connection
import resource
import select
import signal
import socket
import time
import traceback
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

STALL_S = 15.0
"""A reply that takes longer counts as missing."""

RECEIVE_BYTES = 16384

Address = tuple[str, int] | str
"""A TCP host and port, or the path of a Unix socket."""


class Peer(Protocol):
    """The client side of a protocol on one connection; it lives as long as the connection's slot."""

    steps: int
    """How many replies make up a unit."""

    last: bool
    """Whether the server closes the connection after the reply just completed."""

    def request(self) -> bytes:
        """The next request, or nothing if this peer is done."""

    def complete(self, buffer: bytes) -> int:
        """The length of the reply at the start of `buffer`, or 0 while it is incomplete. Raises `Refused`."""


class Refused(Exception):
    """A reply other than the expected success."""


class LoadFailed(Exception):
    """The run had errors, so its figures are meaningless."""


class HttpPeer:
    """HTTP/1.1 with bodies of a known length; sends `requests` in turn, forever."""

    steps = 1

    def __init__(self, requests: Sequence[bytes]) -> None:
        self.last = False
        self._next = itertools.cycle(requests).__next__

    def request(self) -> bytes:
        """The next of the requests."""
        return self._next()

    def complete(self, buffer: bytes) -> int:
        """The length of a complete 2xx reply; its body is passed to `answered`."""
        head = buffer.find(b"\r\n\r\n")
        if head < 0:
            return 0
        # "Content-Length" or "content-length": searching for the common tail avoids lowercasing the whole head.
        found = buffer.find(b"ength: ", 0, head)
        if found < 0:
            raise Refused(f"a reply without Content-Length: {buffer[:head]!r}")
        body = head + 4
        whole = body + int(buffer[found + 7 : buffer.index(b"\r", found)])
        if len(buffer) < whole:
            return 0
        if not buffer.startswith(b"HTTP/1.1 2"):
            raise Refused(f"{buffer[9:12].decode('latin-1')}: {excerpt(buffer[body:whole])}")
        self.last = buffer.find(b"onnection: close", 0, head) >= 0
        self.answered(buffer, body, whole)
        return whole

    def answered(self, buffer: bytes, start: int, end: int) -> None:
        """Take what the next request needs from the body; nothing by default."""


CLOSE = "Connection: close\r\n"
"""The header of a client that opens a connection for every request."""


def excerpt(body: bytes) -> str:
    """The beginning of a body, for a message."""
    return body[:200].decode("utf-8", "replace") + ("..." if len(body) > 200 else "")


def http_request(method: str, path: str, body: bytes = b"", *, host: str = "127.0.0.1", headers: str = "") -> bytes:
    """The bytes of one request, with the headers that a typical client sends."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: stonemux-bench\r\nAccept: */*\r\n{headers}"
    if method == "POST":
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


@dataclass
class Result:
    """The measurements of a run. Latencies are in seconds, sorted."""

    units: int = 0
    seconds: float = 0.0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)
    reconnects: int = 0
    busy: float = 0.0
    """The largest share of one processor that a generator process used; near 1.0, the generator is the bottleneck."""

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """The latency in milliseconds that `share` of the units did not exceed."""
        return percentile(self.latencies, share) * 1000


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value of a sorted sequence that `share` of it does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def load(
    address: Address,
    make: Callable[[int], Peer],
    *,
    connections: int,
    seconds: float | None = None,
    warmup: float = 0.3,
    processes: int = 1,
    fresh: bool = False,
) -> Result:
    """Drive `connections` peers, made by `make(0)`, `make(1)`, ..., for `seconds` after `warmup`.

    Without `seconds`, the run lasts until every peer is done. `fresh` opens a connection for every request instead of
    keeping one. Raises `LoadFailed` if there was any error.
    """
    raise_file_limit()
    processes = max(1, min(processes, connections))
    fork = multiprocessing.get_context("fork")
    workers: list[tuple[multiprocessing.connection.Connection, Any]] = []
    result = Result(seconds=seconds or 0.0)
    try:
        for number in range(processes):
            near, far = fork.Pipe()
            share = range(number, connections, processes)
            worker = fork.Process(target=_work, args=(far, address, make, share, fresh), daemon=True)
            worker.start()
            far.close()
            workers.append((near, worker))
        for pipe, _ in workers:
            _hear(pipe, 60)
        begin = time.perf_counter() + (warmup if seconds else 0.0)
        end = begin + seconds if seconds else math.inf
        for pipe, _ in workers:
            pipe.send((begin, end))
        for pipe, _ in workers:
            part, finished = _hear(pipe, end - begin + warmup + 2 * STALL_S if seconds else 600)
            result.units += part.units
            result.latencies.extend(part.latencies)
            result.errors.update(part.errors)
            result.reconnects += part.reconnects
            result.busy = max(result.busy, part.busy)
            if not seconds:
                result.seconds = max(result.seconds, finished - begin)
    finally:
        for pipe, worker in workers:
            pipe.close()
            worker.terminate()
            worker.join()
    if result.errors:
        listed = "; ".join(f"{count} x {error}" for error, count in result.errors.most_common(3))
        raise LoadFailed(f"{sum(result.errors.values())} errors beside {result.units} units: {listed}")
    if not result.units:
        raise LoadFailed("not one unit ended within the time measured")
    result.latencies = array("d", sorted(result.latencies))
    return result


def raise_file_limit() -> None:
    """Raise the open-file limit of this process and its children to the system's maximum."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _hear(pipe: multiprocessing.connection.Connection, patience: float) -> Any:
    if not pipe.poll(patience):
        raise LoadFailed(f"a generator process was silent for {patience:.0f} s")
    try:
        told = pipe.recv()
    except EOFError:
        raise LoadFailed("a generator process died") from None
    if isinstance(told, str):
        raise LoadFailed(told)
    return told


def _work(
    pipe: multiprocessing.connection.Connection,
    address: Address,
    make: Callable[[int], Peer],
    share: Sequence[int],
    fresh: bool,
) -> None:
    _leave_signals()
    try:
        driver = Driver(address, [make(index) for index in share], fresh=fresh)
        pipe.send(True)
        begin, end = pipe.recv()
        pipe.send((driver.run(begin, end), driver.finished))
    except Exception:
        pipe.send(traceback.format_exc())


def _leave_signals() -> None:
    """In a child process: ignore Ctrl-C, which reaches the whole group, because the parent ends its children itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Link:
    """A slot for one connection at a time."""

    __slots__ = ("began", "buffer", "peer", "replies", "sock", "step", "unsent", "wanted")

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.sock: socket.socket | None = None
        self.buffer = b""
        self.unsent = b""
        self.wanted = b""
        self.began = 0.0
        self.step = 0
        self.replies = 0


class Driver:
    """One process's connections on one epoll."""

    def __init__(self, address: Address, peers: Sequence[Peer], *, fresh: bool = False) -> None:
        self._address = address
        self._fresh = fresh
        self._epoll = select.epoll()
        self._links: dict[int, _Link] = {}
        self._idle = [_Link(peer) for peer in peers]
        self.result = Result()
        self.finished = 0.0
        if not fresh:
            for link in self._idle:
                self._open(link)

    def run(self, begin: float, end: float) -> Result:
        """Keep every connection busy until `end` (by `time.perf_counter`); count units that end from `begin` on."""
        result, links, clock, poll = self.result, self._links, time.perf_counter, self._epoll.poll
        samples = result.latencies.append
        fresh = self._fresh
        units = busy = 0
        spent = -1.0
        now = heard = clock()
        for link in self._idle:
            busy += self._ask(link, clock())
        while busy:
            events = poll(1.0)
            if events:
                heard = now
            elif clock() - heard > STALL_S:
                result.errors[f"no reply within {STALL_S:.0f} s"] += busy
                break
            for handle, flags in events:
                link = links[handle]
                if link.unsent and flags & select.EPOLLOUT:
                    self._flush(link)
                    if not flags & select.EPOLLIN:
                        continue
                sock = link.sock
                assert sock is not None
                try:
                    data = sock.recv(RECEIVE_BYTES)
                except BlockingIOError:
                    continue
                except OSError as error:
                    busy -= self._lost(link, type(error).__name__)
                    continue
                if not data:
                    busy -= self._lost(link, "connection closed without a reply")
                    continue
                if link.buffer:
                    data = link.buffer + data
                peer = link.peer
                try:
                    used = peer.complete(data)
                except Refused as error:
                    result.errors[str(error)] += 1
                    self._close(link)
                    busy -= 1
                    continue
                if not used:
                    link.buffer = data
                    continue
                if used != len(data):
                    result.errors[f"{len(data) - used} bytes after a reply"] += 1
                link.buffer = b""
                link.replies += 1
                now = clock()
                link.step += 1
                if link.step >= peer.steps:
                    link.step = 0
                    if begin <= now < end:
                        if spent < 0:
                            spent = time.process_time()
                        units += 1
                        samples(now - link.began)
                if fresh or peer.last:
                    self._close(link)
                # After the end, a unit in progress is completed, so that it leaves nothing behind on the server.
                if (now >= end and not link.step) or not self._ask(link, now):
                    busy -= 1
        self.finished = now
        result.units = units
        result.busy = (time.process_time() - spent) / max(min(now, end) - begin, 0.001) if spent >= 0 else 0.0
        for link in list(links.values()):
            self._close(link)
        return result

    def _open(self, link: _Link) -> None:
        if isinstance(self._address, str):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(self._address)
            sock.setblocking(False)
        else:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            if not self._fresh:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            sock.connect_ex(self._address)  # errors show up at the first write or read
        link.sock = sock
        link.replies = 0
        self._links[sock.fileno()] = link
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _ask(self, link: _Link, now: float) -> bool:
        """Send the next request; returns False if there is none."""
        wanted = link.peer.request()
        if not wanted:
            return False
        if not link.step:
            link.began = now
        link.wanted = wanted
        self._send(link, wanted)
        return True

    def _send(self, link: _Link, data: bytes) -> None:
        if link.sock is None:
            self._open(link)
        sock = link.sock
        assert sock is not None
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            # Not connected yet (the write will be retried), or reset (the next read will report it).
            sent = 0
        if sent < len(data):
            link.unsent = data[sent:]
            self._epoll.modify(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, link: _Link) -> None:
        sock = link.sock
        assert sock is not None
        try:
            link.unsent = link.unsent[sock.send(link.unsent) :]
        except BlockingIOError:
            return
        except OSError:
            link.unsent = b""
        if not link.unsent:
            self._epoll.modify(sock.fileno(), select.EPOLLIN)

    def _lost(self, link: _Link, why: str) -> int:
        """Handle a broken connection: returns 1 if its slot leaves the run, 0 if the request is sent again.

        A server may close a kept connection at any time; a client that notices before the first byte of the reply
        retries on a new connection.
        """
        kept = link.replies and not link.buffer
        self._close(link)
        if kept:
            self.result.reconnects += 1
            self._send(link, link.wanted)
            return 0
        self.result.errors[why] += 1
        return 1

    def _close(self, link: _Link) -> None:
        if link.sock is not None:
            del self._links[link.sock.fileno()]
            link.sock.close()
            link.sock = None
            link.buffer = link.unsent = b""


def _idle_server(listener: socket.socket) -> None:
    """Answer everything at once with the same few bytes, so that only the cost of generating load remains."""
    _leave_signals()
    reply = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'
    socks = {listener.fileno(): listener}
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    while True:
        for handle, _ in epoll.poll():
            sock = socks[handle]
            if sock is listener:
                sock, _ = listener.accept()
                sock.setblocking(False)
                socks[sock.fileno()] = sock
                epoll.register(sock.fileno(), select.EPOLLIN)
            else:
                asked = sock.recv(4096)
                if asked:
                    sock.send(reply)
                if not asked or b"Connection: close" in asked:
                    del socks[handle]
                    sock.close()


def capacity(seconds: float = 2.0, *, connections: int = 64, fresh: bool = False) -> Result:
    """The generator's rate against a server that does nothing (itself a Python loop on another processor)."""
    raise_file_limit()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        server = multiprocessing.get_context("fork").Process(target=_idle_server, args=(listener,), daemon=True)
        server.start()
        try:
            asked = [http_request("GET", "/health", headers=CLOSE if fresh else "")]
            address = listener.getsockname()
            return load(address, lambda _: HttpPeer(asked), connections=connections, seconds=seconds, fresh=fresh)
        finally:
            server.terminate()
            server.join()


def main() -> None:
    """Print the generator's own capacity."""
    for fresh in (False, True):
        for connections in (1, 64, 512):
            result = capacity(connections=connections, fresh=fresh)
            print(
                f"{'connection a request' if fresh else 'keep-alive':<20} {connections:>4} connections"
                f" {result.rate:>9,.0f} req/s  p50 {result.percentile(0.5):.3f} ms"
                f"  p99 {result.percentile(0.99):.3f} ms  generator {result.busy:.0%} busy"
            )


if __name__ == "__main__":
    main()
