"""What is measured: one function per topic, each yielding rows of the table. `ROWS` at the end lists them.

Comparisons run in rounds that alternate between the two sides, on servers started for that row alone, and report the
medians over the rounds of both figures and of their ratio, so that fluctuations of the machine affect both. In a row
that compares two times (or two states of stonemux), the ratio is the *extra cost*, so small is good; in a row of rates,
it is how many times faster than the baseline stonemux is, so large is good. The target shows which.
"""

from __future__ import annotations

import itertools
import json
import re
import select
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.load import CLOSE, HttpPeer, LoadFailed, Peer, Refused, Result, excerpt, http_request, load, percentile
from bench.servers import (
    ROOT,
    Line,
    Server,
    Stonemux,
    fastapi,
    get,
    missing_for_fastapi,
    post,
    register,
    scratch,
    stonemux,
)

CONTENT = "The build of branch feature/parser is green; please review the three commits on top before I merge. " * 2
"""The content of a message: 200 characters, similar to what agents write."""

RECIPIENTS = tuple(f"agent-{number:02}" for number in range(32))


@dataclass
class Plan:
    """How long and how often to measure."""

    rounds: int = 3
    seconds: float = 1.5
    warmup: float = 0.4
    samples: int = 100
    """How many single calls are timed in a round, in rows that time one call at a time."""
    many: int = 1_000_000
    """The size of the large tables."""
    idle_s: float = 5.0
    starts: int = 7


QUICK = Plan(rounds=2, seconds=0.5, warmup=0.2, samples=40, many=100_000, idle_s=2.0, starts=3)


@dataclass
class Row:
    """A line of the table; `figures` has all measurements, for `--json`."""

    name: str
    ours: str
    theirs: str = ""
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


# --- throughput, side by side


class SendAndPoll(HttpPeer):
    """Sends itself a message and polls for it; each poll must return exactly one."""

    steps = 2

    def __init__(self, agent: str) -> None:
        send = post("/msg/send", {"from": agent, "to": agent, "content": CONTENT})
        super().__init__([send, get("/msg/poll", agent_id=agent, timeout=0)])
        self._polled = itertools.cycle((False, True)).__next__

    def answered(self, buffer: bytes, start: int, end: int) -> None:
        """Check what a poll returned."""
        if self._polled() and buffer.count(b'"content"', start, end) != 1:
            raise Refused(f"a poll after one send brought {excerpt(buffer[start:end])}")


class TaskCycle(HttpPeer):
    """Posts a task, claims one, and completes it."""

    steps = 3
    _CLAIMED = re.compile(rb'"task_id": ?"([^"]+)", ?"claim_token": ?"([^"]+)"')

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._post = post("/task/post", {"description": "Run the tests of the parser", "posted_by": agent})
        self._claim = post("/task/claim", {"agent_id": agent})
        self._turn = 0
        self._claimed = ("", "")
        super().__init__([])

    def request(self) -> bytes:
        """The next of the three requests."""
        self._turn = self._turn % 3 + 1
        if self._turn < 3:
            return self._post if self._turn == 1 else self._claim
        task, token = self._claimed
        done = {"task_id": task, "agent_id": self._agent, "claim_token": token, "result": "all green"}
        return post("/task/complete", done)

    def answered(self, buffer: bytes, start: int, end: int) -> None:
        """Remember the claimed task."""
        if self._turn == 2:
            found = self._CLAIMED.search(buffer, start, end)
            if found is None:
                raise Refused(f"a claim found nothing: {excerpt(buffer[start:end])}")
            self._claimed = (found[1].decode(), found[2].decode())


class CompareAndSet(HttpPeer):
    """Sets one key repeatedly, each time expecting the version from the last answer."""

    _VERSION = re.compile(rb'"version": ?([0-9]+)')

    def __init__(self, agent: str, key: str) -> None:
        self._fields = {"key": key, "value": "in progress", "updated_by": agent, "expected_version": 0}
        super().__init__([])

    def request(self) -> bytes:
        """The next set."""
        return post("/state/set", self._fields)

    def answered(self, buffer: bytes, start: int, end: int) -> None:
        """Check and remember the version."""
        found = self._VERSION.search(buffer, start, end)
        if found is None or int(found[1]) != int(str(self._fields["expected_version"])) + 1:
            raise Refused(f"a version that is not the next: {excerpt(buffer[start:end])}")
        self._fields["expected_version"] = int(found[1])


class KeyedSend(HttpPeer):
    """Sends each message with a new idempotency key."""

    def __init__(self, index: int, sender: str, recipients: Sequence[str]) -> None:
        numbers = itertools.count()
        # Made in advance around a field of fixed width: formatting whole requests would cost more than sending them.
        mark = "0" * 16
        made = [
            post("/msg/send", _message(sender, recipient), headers=f"Idempotency-Key: {mark}\r\n").split(mark.encode())
            for recipient in recipients
        ]
        halves = itertools.cycle(made).__next__
        run = time.monotonic_ns() % 10**6

        def following() -> bytes:
            before, after = halves()
            return b"%s%06d%03d%07d%s" % (before, run, index % 1000, next(numbers), after)

        super().__init__([])
        self._next = following


def _message(sender: str, recipient: str) -> dict[str, object]:
    return {"from": sender, "to": recipient, "content": CONTENT}


def send_peer(*, headers: str = "") -> Callable[[int], Peer]:
    """A factory for peers that send one message to each of the recipients in turn."""
    made = [post("/msg/send", _message("sender", recipient), headers=headers) for recipient in RECIPIENTS]

    def make(index: int) -> Peer:
        first = index % len(made)
        return HttpPeer(made[first:] + made[:first])

    return make


@contextmanager
def _daemon_with_agents(*more: str) -> Iterator[Stonemux]:
    with stonemux() as server:
        register(server.address, ["sender", *RECIPIENTS, *more])
        yield server


def _rates(results: Sequence[Result]) -> dict[str, Any]:
    return {
        "per_second": [round(result.rate, 1) for result in results],
        "p50_ms": [round(result.percentile(0.5), 4) for result in results],
        "p99_ms": [round(result.percentile(0.99), 4) for result in results],
        "generator_busy": [round(result.busy, 3) for result in results],
        "reconnects": sum(result.reconnects for result in results),
    }


def _shown_rate(results: Sequence[Result]) -> str:
    rate = statistics.median(result.rate for result in results)
    p99 = statistics.median(result.percentile(0.99) for result in results)
    return f"{rate:,.0f}/s, p99 {p99:.1f} ms"


def _throughput(
    plan: Plan,
    name: str,
    make: Callable[[int], Peer],
    connections: int,
    *,
    against: str = "",
    least: float = 0.0,
    fresh: bool = False,
    more_agents: Sequence[str] = (),
) -> Row:
    """Units per second of stonemux, and of the FastAPI baseline in the variant `against`."""
    missing = missing_for_fastapi() if against else []
    compared = bool(against) and not missing
    ours: list[Result] = []
    theirs: list[Result] = []
    with ExitStack() as stack:
        sides: list[tuple[Server, list[Result]]] = [(stack.enter_context(_daemon_with_agents(*more_agents)), ours)]
        if compared:
            sides.append((stack.enter_context(fastapi(against)), theirs))
        for _ in range(plan.rounds):
            for server, results in sides:
                seconds, warmup = plan.seconds, plan.warmup
                got = load(server.address, make, connections=connections, seconds=seconds, warmup=warmup, fresh=fresh)
                results.append(got)
                server.check()
            sides.reverse()
    row = Row(name, _shown_rate(ours), figures={"stonemux": _rates(ours)})
    row.target = f">= {least:g}x" if least else ""
    if compared:
        ratios = [mine.rate / other.rate for mine, other in zip(ours, theirs, strict=True)]
        row.theirs = f"FastAPI {against}: {_shown_rate(theirs)}"
        row.ratio = statistics.median(ratios)
        row.met = row.ratio >= least if least else None
        row.figures |= {"fastapi": _rates(theirs), "ratios": ratios}
    elif missing:
        row.theirs = f"not installed: {', '.join(missing)}"
    return row


def health(plan: Plan) -> Iterator[Row]:
    """GET /health on 64 kept connections: the cost of HTTP alone."""
    yield _throughput(plan, "health, 64 connections", lambda _: HttpPeer([get("/health")]), 64, against="shared")


def send(plan: Plan) -> Iterator[Row]:
    """POST /msg/send of 200 characters to 32 recipients in turn; an answered message is on disk."""
    wanted = {1: 1.5, 64: 4.0}
    for connections in (1, 8, 64, 512):
        name = f"durable send, {connections} connection{'s' * (connections > 1)}"
        yield _throughput(plan, name, send_peer(), connections, against="shared", least=wanted.get(connections, 0.0))
    name = "durable send, 64 connections, second baseline"
    yield _throughput(plan, name, send_peer(), 64, against="connection a request", least=8.0)


def keyed_send(plan: Plan) -> Iterator[Row]:
    """The same with an Idempotency-Key, which stonemux stores with the answer and FastAPI ignores."""
    name = "durable send with a key, 64 connections"
    yield _throughput(plan, name, lambda index: KeyedSend(index, "sender", RECIPIENTS), 64, against="shared")


TOGETHER = 100
"""Messages per request."""


def sends_together(plan: Plan) -> Iterator[Row]:
    """Lists of 100 messages, counted in messages, against single sends to the same daemon."""
    entries = [_message("sender", recipient) for recipient in itertools.islice(itertools.cycle(RECIPIENTS), TOGETHER)]
    body = json.dumps(entries, separators=(",", ":")).encode()
    lists = http_request("POST", "/msg/send", body)
    singly: list[Result] = []
    together: list[Result] = []
    with _daemon_with_agents() as server:
        for _ in range(plan.rounds):
            for make, results in ((send_peer(), singly), (lambda _: HttpPeer([lists]), together)):
                got = load(server.address, make, connections=8, seconds=plan.seconds, warmup=plan.warmup)
                results.append(got)
                server.check()
    ratios = [TOGETHER * many.rate / one.rate for many, one in zip(together, singly, strict=True)]
    rate = statistics.median(result.rate * TOGETHER for result in together)
    row = Row("lists of 100 messages, 8 connections", f"{rate:,.0f} messages/s", f"single: {_shown_rate(singly)}")
    row.ratio = statistics.median(ratios)
    row.target, row.met = ">= 4x", row.ratio >= 4
    row.figures = {"lists": _rates(together), "single": _rates(singly), "ratios": ratios}
    yield row


def fresh_send(plan: Plan) -> Iterator[Row]:
    """The same with 16 clients that open a new connection for each request."""
    name = "send, connecting anew, 16 clients"
    yield _throughput(plan, name, send_peer(headers=CLOSE), 16, against="shared", least=2.0, fresh=True)


def round_trip(plan: Plan) -> Iterator[Row]:
    """A send and the poll that takes it, by 8 agents, each sending to itself; the unit is both."""
    make = _by_agent(SendAndPoll)
    yield _throughput(plan, "send and poll, 8 connections", make, 8, against="shared")


def tasks(plan: Plan) -> Iterator[Row]:
    """Post, claim, and complete by 8 agents from one pool; the unit is all three."""
    yield _throughput(plan, "post, claim, complete, 8 connections", _by_agent(TaskCycle), 8)


def state(plan: Plan) -> Iterator[Row]:
    """Compare-and-set of one key per connection, on 64 connections."""

    def make(index: int) -> Peer:
        return CompareAndSet(RECIPIENTS[index % len(RECIPIENTS)], f"key-{time.monotonic_ns()}-{index}")

    yield _throughput(plan, "state set with CAS, 64 connections", make, 64)


def _by_agent(kind: Callable[[str], Peer]) -> Callable[[int], Peer]:
    return lambda index: kind(RECIPIENTS[index % len(RECIPIENTS)])


# --- waiting


@contextmanager
def _parked(server: Server, agents: Iterable[str]) -> Iterator[None]:
    """Park a poll for each agent, on its own connection; the polls last for two minutes."""
    with ExitStack() as stack:
        count = 0
        for agent in agents:
            sock = stack.enter_context(socket.create_connection(server.address, timeout=10))
            sock.sendall(get("/msg/poll", agent_id=agent, timeout=120))
            count += 1
        _await_waiters(server, count)
        yield


def _await_waiters(server: Server, count: int) -> None:
    deadline = time.monotonic() + 20
    with Line(server.address) as line:
        while (waiting := int(line.call("GET", "/stats")["waiters"])) < count:
            if time.monotonic() > deadline:
                raise LoadFailed(f"only {waiting} of {count} calls are parked after 20 s")
            time.sleep(0.02)


def _crowd(count: int) -> list[str]:
    return [f"waiting-{number:04}" for number in range(count)]


class _Sleeper:
    """An agent that parks a poll and is woken by a send, over and over."""

    def __init__(self, server: Server) -> None:
        self._poll = Line(server.address)
        self._send = Line(server.address)
        self._asks = get("/msg/poll", agent_id=RECIPIENTS[0], timeout=60)
        self._sends = post("/msg/send", _message("sender", RECIPIENTS[0]))

    def wake(self) -> float:
        """Seconds from just before the send is written until the parked poll's answer is read."""
        self._poll.send(self._asks)
        time.sleep(0.008)  # long enough for it to park; asking the daemon would warm up what is being timed
        began = time.perf_counter()
        self._send.send(self._sends)
        answer = self._poll.receive()
        ended = time.perf_counter()
        self._send.receive()
        if answer.count(b'"content"') != 1:
            raise Refused(f"a parked poll woke with {excerpt(answer)}")
        return ended - began

    def close(self) -> None:
        """Close both connections."""
        self._poll.close()
        self._send.close()


def wake_up(plan: Plan) -> Iterator[Row]:
    """A parked poll woken by a send, alone and among polls parked by other agents; one daemon each, in turn."""
    crowds = (1, 100, 1000)
    rounds: dict[int, list[list[float]]] = {crowd: [] for crowd in crowds}
    with ExitStack() as stack:
        sleepers: dict[int, _Sleeper] = {}
        for crowd in crowds:
            others = _crowd(crowd - 1)
            server = stack.enter_context(_daemon_with_agents(*others))
            stack.enter_context(_parked(server, others))
            sleepers[crowd] = _Sleeper(server)
            stack.callback(sleepers[crowd].close)
        for _ in range(plan.rounds):
            for crowd, sleeper in sleepers.items():
                sleeper.wake()
                rounds[crowd].append(sorted(sleeper.wake() for _ in range(plan.samples)))
    alone = rounds[1]
    for crowd, samples in rounds.items():
        p50, p99 = _spread(samples)
        row = Row(f"wake-up of a poll, {crowd:,} parked", f"p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        row.figures = {"p50_ms": p50, "p99_ms": p99, "samples_ms": [[s * 1000 for s in part] for part in samples]}
        if crowd > 1:
            row.theirs = "1 parked"
            row.ratio = statistics.median(
                percentile(mine, 0.5) / percentile(other, 0.5) for mine, other in zip(samples, alone, strict=True)
            )
        if crowd == 1000:
            row.target, row.met = "<= 2x, p99 < 2 ms", (row.ratio or 0.0) <= 2.0 and p99 < 2.0
        yield row


def _spread(rounds: Sequence[Sequence[float]]) -> tuple[float, float]:
    """p50 and p99 of all samples, in milliseconds."""
    every = sorted(itertools.chain.from_iterable(rounds))
    return percentile(every, 0.5) * 1000, percentile(every, 0.99) * 1000


class _Audience:
    """Streams read with one epoll, which counts the message events that each has received."""

    _MARK = b"event: message\n"

    def __init__(self, server: Server, count: int) -> None:
        self._epoll = select.epoll()
        self._socks: dict[int, socket.socket] = {}
        self._tails: dict[int, bytes] = {}
        for _ in range(count):
            sock = socket.create_connection(server.address, timeout=10)
            sock.sendall(get("/events", headers="Accept: text/event-stream\r\n"))
            self._socks[sock.fileno()] = sock
        for handle, sock in self._socks.items():
            head = sock.recv(4096)
            while b"\r\n\r\n" not in head:
                head += sock.recv(4096)
            if not head.startswith(b"HTTP/1.1 200"):
                raise Refused(head[:200].decode("utf-8", "replace"))
            sock.setblocking(False)
            self._tails[handle] = b""
            self._epoll.register(handle, select.EPOLLIN)

    def quiet(self, seconds: float) -> None:
        """Read until nothing has arrived for this many seconds."""
        while events := self._epoll.poll(seconds):
            for handle, _ in events:
                self._socks[handle].recv(65536)

    def hear(self) -> float:
        """Read until every stream has received one more message event; returns the time when the last one did."""
        waiting = set(self._socks)
        while waiting:
            events = self._epoll.poll(10)
            if not events:
                raise LoadFailed(f"{len(waiting)} of {len(self._socks)} streams never got the event")
            for handle, _ in events:
                data = self._socks[handle].recv(65536)
                if not data:
                    raise LoadFailed("a stream was closed")
                data = self._tails[handle] + data
                seen = data.count(self._MARK)
                if seen:
                    if seen > 1 or handle not in waiting:
                        raise LoadFailed("a stream got an event twice")
                    waiting.discard(handle)
                    data = b""
                self._tails[handle] = data[-len(self._MARK) + 1 :]
        return time.perf_counter()

    def close(self) -> None:
        """Close the streams."""
        for sock in self._socks.values():
            sock.close()
        self._epoll.close()


def streams(plan: Plan) -> Iterator[Row]:
    """One event to N streams: from just before the send is written until the last stream has it."""
    for count in (500, 1000):
        times: list[float] = []
        with _daemon_with_agents() as server, ExitStack() as stack:
            audience = _Audience(server, count)
            stack.callback(audience.close)
            line = stack.enter_context(Line(server.address))
            asked = post("/msg/send", _message("sender", RECIPIENTS[0]))
            audience.quiet(0.3)
            for number in range(max(plan.samples // 2, 20) + 3):
                began = time.perf_counter()
                line.send(asked)
                took = audience.hear() - began
                line.receive()
                audience.quiet(0.01)
                if number >= 3:
                    times.append(took)
        p50, p99 = _spread([times])
        row = Row(f"one event to {count:,} streams", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        row.figures = {"p50_ms": p50, "p99_ms": p99, "samples_ms": [taken * 1000 for taken in times]}
        if count == 1000:
            row.target, row.met = "<= 15 ms median", p50 <= 15
        yield row


def broadcast(plan: Plan) -> Iterator[Row]:
    """POST /msg/broadcast to 500 agents on one connection; an answered broadcast is in all inboxes, on disk."""
    asked = post("/msg/broadcast", {"from": "sender", "content": CONTENT})
    crowd = _crowd(500 - len(RECIPIENTS))
    with _daemon_with_agents(*crowd) as server:
        with Line(server.address) as line:
            reached = line.call("POST", "/msg/broadcast", **{"from": "sender", "content": CONTENT})["recipients"]
        if reached != 500:
            raise LoadFailed(f"a broadcast to 500 agents reached {reached}")
        results = [
            load(server.address, lambda _: HttpPeer([asked]), connections=1, seconds=plan.seconds, warmup=plan.warmup)
            for _ in range(plan.rounds)
        ]
    row = Row("broadcast to 500 agents", _shown_rate(results), figures={"stonemux": _rates(results)})
    row.note = f"{statistics.median(result.rate for result in results) * 500:,.0f} deliveries/s"
    yield row


# --- large tables


def _multiply(database: sqlite3.Connection, table: str, where: str, count: int, **replaced: str) -> None:
    """Insert `count` more copies of the row `where`, with columns replaced by SQL in which `n` counts from 1.

    The row came through the API, so the copies have whatever columns the table has. They are inserted in steps, to keep
    the write-ahead log small.
    """
    columns = [column[1] for column in database.execute(f"pragma table_info({table})")]
    if not set(replaced) <= set(columns):
        raise LoadFailed(f"table {table} has no columns {set(replaced) - set(columns)}")
    values = ", ".join(replaced.get(column, f"model.{column}") for column in columns)
    step = 50_000
    for first in range(1, count + 1, step):
        database.execute(
            f"with recursive counted(n) as (select {first} union all select n + 1 from counted"
            f" where n < {min(first + step - 1, count)})"
            f" insert into {table} ({', '.join(columns)})"
            f" select {values} from counted, (select * from {table} where {where}) as model"
        )


def _fill_tasks(server: Stonemux, count: int) -> None:
    """Create `count` pending tasks in the default channel, with their history.

    The older half is not for the agent that will claim: a quarter needs a capability, and a quarter is assigned to
    another agent.
    """
    with Line(server.address) as line:
        line.call("POST", "/task/post", description="Run the tests of the parser", posted_by="sender")
    server.stop()
    database = server.database()
    _multiply(
        database,
        "task",
        "seq = 1",
        count - 1,
        seq="model.seq + n",
        id="printf('%08x-0000-4000-8000-%012x', n * 2654435761 % 4294967296, n)",
        required_capability=f"case when n <= {count // 4} then 'deploy' end",
        assigned_to=f"case when n between {count // 4 + 1} and {count // 2} then '{RECIPIENTS[1]}' end",
    )
    if database.execute("select count(*) from task_history where task = 1").fetchone()[0]:
        _multiply(database, "task_history", "task = 1", count - 1, task="model.task + n")
    _close(database)
    server.start()
    with Line(server.address) as line:
        pending = line.call("GET", "/stats")["tasks"]["pending"]
    if pending != count:
        raise LoadFailed(f"{count} pending tasks were to be stored, the daemon has {pending}")


def _fill_messages(server: Stonemux, count: int) -> None:
    """Create `count` stored messages: half of them the reader's, settled, the rest unread mail of the other agents."""
    with Line(server.address) as line:
        for recipient in (RECIPIENTS[0], RECIPIENTS[1]):
            line.call("POST", "/msg/send", **_message("sender", recipient))
        line.call("GET", "/msg/poll", agent_id=RECIPIENTS[0], timeout=0)
        line.call("GET", "/health")  # the next request is the receipt for the poll's answer
        deadline = time.monotonic() + 5
        while line.call("GET", "/agent/get", agent_id=RECIPIENTS[0])["agent"]["unread"]:
            if time.monotonic() > deadline:
                raise LoadFailed("a poll's message was not settled")
            time.sleep(0.01)
    server.stop()
    database = server.database()
    half = count // 2 - 1
    _multiply(database, "message", "id = 1", 2 * half, id="2 + n")
    _multiply(database, "delivery", "message_id = 1", half, message_id="2 + n")
    others = len(RECIPIENTS) - 1
    _multiply(
        database,
        "delivery",
        "message_id = 2",
        half,
        message_id=f"2 + {half} + n",
        agent_id=f"printf('agent-%02d', 1 + n % {others})",
    )
    _close(database)
    server.start()


def _close(database: sqlite3.Connection) -> None:
    database.execute("pragma wal_checkpoint(truncate)")
    database.close()


def _two_sizes(
    plan: Plan, name: str, fill: Callable[[Stonemux, int], None], timed: Callable[[Line], float], noun: str
) -> Row:
    """The same calls on a small and on a large table; one daemon each, in turn."""
    sizes = (1000, plan.many)
    rounds: dict[int, list[list[float]]] = {size: [] for size in sizes}
    with ExitStack() as stack:
        lines: dict[int, Line] = {}
        for size in sizes:
            server = stack.enter_context(_daemon_with_agents())
            fill(server, size)
            lines[size] = stack.enter_context(Line(server.address))
            for _ in range(10):
                timed(lines[size])
        for _ in range(plan.rounds):
            for size, line in lines.items():
                rounds[size].append(sorted(timed(line) for _ in range(plan.samples)))
    small, large = rounds[sizes[0]], rounds[sizes[1]]
    shown = [f"p50 {p50:.2f} ms, p99 {p99:.2f} ms" for p50, p99 in (_spread(large), _spread(small))]
    row = Row(f"{name} with {plan.many:.0e} {noun}".replace("e+0", "e"), shown[0], f"1e3: {shown[1]}")
    row.ratio = statistics.median(
        percentile(mine, 0.5) / percentile(other, 0.5) for mine, other in zip(large, small, strict=True)
    )
    row.target, row.met = "<= 1.5x", row.ratio <= 1.5
    row.figures = {
        str(size): {"p50_ms": _spread(parts)[0], "p99_ms": _spread(parts)[1]} for size, parts in rounds.items()
    }
    return row


def claim_size(plan: Plan) -> Iterator[Row]:
    """POST /task/claim; each claimed task is completed and another is posted, so that their number stays the same."""
    claim = post("/task/claim", {"agent_id": RECIPIENTS[0]})
    another = post("/task/post", {"description": "Run the tests of the parser", "posted_by": "sender"})
    found = re.compile(rb'"task_id": ?"([^"]+)"')

    def timed(line: Line) -> float:
        began = time.perf_counter()
        answer = line.ask(claim)
        took = time.perf_counter() - began
        claimed = found.search(answer)
        if claimed is None:
            raise Refused(f"a claim found nothing: {excerpt(answer)}")
        line.call("POST", "/task/complete", task_id=claimed[1].decode(), agent_id=RECIPIENTS[0], result="green")
        line.ask(another)
        return took

    yield _two_sizes(plan, "claim", _fill_tasks, timed, "pending")


def poll_size(plan: Plan) -> Iterator[Row]:
    """GET /msg/poll of an inbox with one new message."""
    sent = post("/msg/send", _message("sender", RECIPIENTS[0]))
    poll = get("/msg/poll", agent_id=RECIPIENTS[0], timeout=0)

    def timed(line: Line) -> float:
        line.ask(sent)
        began = time.perf_counter()
        answer = line.ask(poll)
        took = time.perf_counter() - began
        if answer.count(b'"content"') != 1:
            raise Refused(f"a poll after one send brought {excerpt(answer)}")
        return took

    yield _two_sizes(plan, "poll", _fill_messages, timed, "stored")


# --- over MCP


def mcp_stdio(plan: Plan) -> Iterator[Row]:
    """A mux_send through `stonemux mcp` on standard input and output, against the same send over plain HTTP."""
    with _daemon_with_agents() as server, _stdio_session(server) as session, Line(server.address) as line:
        sent = post("/msg/send", _message("sender", RECIPIENTS[0]))
        arguments = _message("sender", RECIPIENTS[0])
        call = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "mux_send", "arguments": arguments},
        }
        asked = json.dumps(call).encode() + b"\n"
        ours: list[float] = []
        theirs: list[float] = []
        for number in range(plan.rounds * plan.samples + 20):
            began = time.perf_counter()
            answer = _over_pipe(session, asked)
            over = time.perf_counter() - began
            if b'"message_id"' not in answer:
                raise Refused(f"a mux_send answered {excerpt(answer)}")
            began = time.perf_counter()
            line.ask(sent)
            plain = time.perf_counter() - began
            if number >= 20:
                ours.append(over * 1000)
                theirs.append(plain * 1000)
    more = statistics.median(ours) - statistics.median(theirs)
    row = Row("mux_send over stdio", f"p50 {statistics.median(ours):.2f} ms")
    row.theirs, row.ratio = f"plain HTTP: p50 {statistics.median(theirs):.2f} ms", None
    row.target, row.met, row.note = "<= 2 ms more", more <= 2, f"{more:+.2f} ms"
    row.figures = {"stdio_ms": ours, "http_ms": theirs}
    yield row


def _over_pipe(session: subprocess.Popen[bytes], asked: bytes) -> bytes:
    assert session.stdin is not None
    assert session.stdout is not None
    session.stdin.write(asked)
    session.stdin.flush()
    return session.stdout.readline()


@contextmanager
def _stdio_session(server: Stonemux) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "stonemux", "mcp", "--port", str(server.address[1])]
    with scratch() as unused:
        session = subprocess.Popen(
            [*command, "--data-dir", str(unused)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            yield session
        finally:
            session.communicate(timeout=10)


# --- at rest


def idle(plan: Plan) -> Iterator[Row]:
    """Memory and processor time with 1,000 polls parked, against the same daemon with its agents but no polls."""
    with stonemux() as server:
        time.sleep(0.5)
        empty = server.memory()
        crowd = _crowd(1000)
        register(server.address, crowd)
        time.sleep(1.0)
        registered = server.memory()
        calm = _processor_share(server, plan.idle_s)
        with _parked(server, crowd):
            time.sleep(0.5)
            parked = server.memory()
            used = _processor_share(server, plan.idle_s)
    mib = 2**20
    more = (parked - empty) / mib
    row = Row("memory with 1,000 polls parked", f"{parked / mib:.1f} MB", f"empty: {empty / mib:.1f} MB")
    row.ratio = parked / empty
    row.target, row.met = "<= 30 MB more", more <= 30
    row.note = f"{more:+.1f} MB, of which {(registered - empty) / mib:.1f} for registering 1,000 agents"
    row.figures = {"empty_bytes": empty, "registered_bytes": registered, "parked_bytes": parked}
    yield row
    row = Row("idle processor, 1,000 polls parked", f"{used:.2%}", f"none parked: {calm:.2%}")
    row.target, row.met = "0 %", used < 0.001
    row.figures = {"parked_share": used, "empty_share": calm}
    yield row


def _processor_share(server: Server, seconds: float) -> float:
    before, began = server.processor_seconds(), time.monotonic()
    time.sleep(seconds)
    return (server.processor_seconds() - before) / (time.monotonic() - began)


def start_up(plan: Plan) -> Iterator[Row]:
    """From starting the process to the first 200 of /health, against an interpreter that only does its imports."""
    imports = [sys.executable, "-c", "import http.server, sqlite3"]
    for name, fresh in (("start-up, existing data", False), ("start-up, new data directory", True)):
        ours: list[float] = []
        theirs: list[float] = []
        with scratch() as directory:
            for number in range(plan.starts + 1):
                home = directory / (f"start-{number}" if fresh else "start")
                home.mkdir(exist_ok=True)
                server = Stonemux(home)
                try:
                    began = time.perf_counter()
                    server.spawn()
                    server.await_health(pause=0.0005)
                    took = time.perf_counter() - began
                finally:
                    server.stop()
                began = time.perf_counter()
                subprocess.run(imports, check=True, cwd=ROOT, stdin=subprocess.DEVNULL)
                imported = time.perf_counter() - began
                if number:  # the first start compiles, and makes the data directory
                    ours.append(took * 1000)
                    theirs.append(imported * 1000)
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        row = Row(name, f"{statistics.median(ours):.0f} ms", f"imports: {statistics.median(theirs):.0f} ms")
        row.ratio = statistics.median(ratios)
        row.target, row.met = "<= 2x", row.ratio <= 2
        row.figures = {"stonemux_ms": ours, "imports_ms": theirs, "ratios": ratios}
        yield row


ROWS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "health": health,
    "send": send,
    "keyed-send": keyed_send,
    "sends-together": sends_together,
    "fresh-send": fresh_send,
    "round-trip": round_trip,
    "tasks": tasks,
    "state": state,
    "wake-up": wake_up,
    "streams": streams,
    "broadcast": broadcast,
    "claim-size": claim_size,
    "poll-size": poll_size,
    "mcp-stdio": mcp_stdio,
    "idle": idle,
    "start-up": start_up,
}
"""The topics by the name that `--only` accepts, in the order of the table."""
