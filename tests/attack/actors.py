"""The actors that make the load, each a thread with its own diary.

A diary records what a client can know: when it asked, when it was answered, and the answer. An answer that never came
is unknown, never a failure. `checks` judges the diaries afterwards.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from attack.calls import Client, NotSentError, UnknownError, now
from attack.linearizability import FOREVER, Op
from attack.raw import Half
from attack.victim import Victim

LEASE = 1
"""In seconds; the shortest lease that a task may have."""


class Arena:
    """What all actors share: the daemon, and the current phase."""

    def __init__(self, victim: Victim, seed: int) -> None:
        self.victim = victim
        self.seed = seed
        self.calm = threading.Event()
        """Set when there is no new work, and clients have no more accidents: existing work gets finished."""
        self.over = threading.Event()
        self.surprises: list[str] = []
        """Answers that no client should get."""

    def death_after(self, moment: int) -> int:
        """When the daemon died that was called at this moment."""
        return next((death for death in self.victim.deaths if death >= moment), FOREVER)


class Actor(threading.Thread):
    """Takes turns until the arena says that it is over."""

    ends_when_calm = False

    def __init__(self, arena: Arena, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.arena = arena
        self.chance = random.Random(f"{arena.seed}/{name}")
        self.client = Client(arena.victim.port, strict=True)
        self.failure: BaseException | None = None

    def run(self) -> None:
        end = self.arena.calm if self.ends_when_calm else self.arena.over
        try:
            while not end.is_set():
                try:
                    self.turn()
                except (NotSentError, UnknownError):
                    self.arena.over.wait(0.01)
        except BaseException as failure:  # `join_all` raises it on the test's own thread
            self.failure = failure
        finally:
            self.client.close()

    def turn(self) -> None:
        raise NotImplementedError

    def known(self, call: Callable[[], tuple[int, dict[str, Any]]]) -> tuple[int, dict[str, Any]]:
        """Repeat a call until its outcome is known."""
        while True:
            try:
                return call()
            except (NotSentError, UnknownError):
                if self.arena.over.wait(0.01):
                    raise

    def expect(self, status: int, answer: Any, *expected: int) -> None:
        """Accept only these statuses; any other ends the turn and is reported at the end."""
        if status not in expected:
            self.arena.surprises.append(f"{self.name} got {status}: {answer}")
            raise UnknownError(answer)

    def happens(self, percent: float) -> bool:
        """Whether an accident happens; never in the calm phase."""
        return not self.arena.calm.is_set() and self.chance.random() * 100 < percent


# -- shared state


class Editor(Actor):
    """Reads, sets, swaps, and deletes a few keys; every value is written only once."""

    ends_when_calm = True
    keys = ("k0", "k1", "k2")

    def __init__(self, arena: Arena, name: str) -> None:
        super().__init__(arena, name)
        self.history: dict[str, list[Op]] = {key: [] for key in self.keys}
        self.count = 0
        self.version = dict.fromkeys(self.keys, 0)
        """The last version seen. It may be outdated, so that some swaps fail and some use stale versions."""

    def turn(self) -> None:
        key, kind = self.chance.choice(self.keys), self.chance.choice(("get", "set", "swap", "swap", "swap", "delete"))
        if kind == "get":
            self.look(key)
            return
        self.count += 1
        fields: dict[str, Any] = {"key": key}
        if kind != "delete":
            fields["value"] = f"{self.name}-{self.count}"
        if kind == "swap" or (kind == "delete" and self.chance.random() < 0.5):
            fields["expected_version"] = self.version[key]
        kind = "delete" if kind == "delete" else "set"
        call = now()
        answer = None
        try:
            status, told = self.client.post(f"/state/{kind}", **fields)
            self.expect(status, told, 200, 404, 409)
            answer = self.read_change(status, told)
            self.version[key] = told.get("version", told.get("error", {}).get("current_version", 0))
        except UnknownError:
            pass
        end = now() if answer else self.arena.death_after(call)
        self.history[key].append(Op(kind, call, end, answer, fields.get("value"), fields.get("expected_version")))

    @staticmethod
    def read_change(status: int, told: dict[str, Any]) -> tuple[Any, ...]:
        if status == 200:
            return ("ok", told["version"])
        error = told["error"]
        if status == 404:
            return ("gone", error["version"])
        return ("conflict", error["current_version"], error.get("current_value"))

    def look(self, key: str) -> None:
        call = now()
        status, told = self.client.get("/state/get", key=key)
        self.expect(status, told, 200, 404)
        answer = ("live", told["version"], told["value"]) if status == 200 else ("gone", told["error"]["version"])
        self.history[key].append(Op("get", call, now(), answer))
        self.version[key] = told["version"] if status == 200 and self.chance.random() < 0.9 else 0


# -- messages


class Sent(NamedTuple):
    """A message whose sender was answered."""

    sender: str
    to: str
    number: int
    id: int
    call: int
    end: int


class Sender(Actor):
    """Sends numbered messages, each until it is acknowledged, always with the same idempotency key."""

    ends_when_calm = True

    def __init__(self, arena: Arena, name: str, inboxes: list[str]) -> None:
        super().__init__(arena, name)
        self.inboxes = inboxes
        self.count = 0
        self.sent: list[Sent] = []

    def turn(self) -> None:
        self.count += 1
        number, to, call = self.count, self.chance.choice(self.inboxes), now()
        status, told = self.known(
            lambda: self.client.post(
                "/msg/send", once=f"{self.name}-{number}", from_=self.name, to=to, content=f"{self.name} {number}"
            )
        )
        self.expect(status, told, 200)
        self.sent.append(Sent(self.name, to, number, told["message_id"], call, now()))
        if self.chance.random() < 0.1:  # a repetition although the answer came: same answer, no second message
            again = self.known(
                lambda: self.client.post(
                    "/msg/send", once=f"{self.name}-{number}", from_=self.name, to=to, content=f"{self.name} {number}"
                )
            )
            if again[1].get("message_id") != told["message_id"]:
                self.arena.surprises.append(f"{self.name} repeated a send and got {again} after {told}")
        self.arena.calm.wait(self.chance.random() * 0.01)


class Read(NamedTuple):
    """A message in an answer that was read completely."""

    id: int
    content: str
    call: int
    end: int
    incarnation: int
    """Which incarnation of the daemon answered."""
    receipt: int | None
    """When the daemon certainly knew that the answer had arrived; None if it cannot know."""


class Reader(Actor):
    """An agent with an inbox; `read` holds the messages that it got."""

    mode = ""

    def __init__(self, arena: Arena, name: str) -> None:
        super().__init__(arena, name)
        self.inbox = name
        self.read: list[Read] = []
        self.complaints: list[str] = []
        """Violations that are visible at once, as `rule: what`."""

    def note(self, messages: list[dict[str, Any]], call: int, incarnation: int, *, receipt: int | None) -> None:
        end = now()
        self.read += [Read(m["id"], m["content"], call, end, incarnation, receipt) for m in messages]


class PlainReader(Reader):
    """Polls without acknowledgements; abandons every fourth poll in some way."""

    mode = "plain"

    def turn(self) -> None:
        incarnation, call = self.arena.victim.incarnation, now()
        target = f"/msg/poll?agent_id={self.name}&timeout=1"
        try:
            poll = Half(self.arena.victim.port, target)
        except OSError as trouble:
            raise NotSentError from trouble
        try:
            while not self.arena.over.is_set():
                if self.happens(25):
                    self.leave(poll)
                    return
                messages = poll.read_all()
                here = len(self.read)
                self.note(messages, call, incarnation, receipt=None)
                if self.chance.random() < 0.1 and self.arena.victim.incarnation == incarnation:
                    poll.end()  # everything was read, so this is an orderly close
                    self.receipts(here)
                    return
                call = now()
                poll.ask(target)
                if self.arena.victim.incarnation == incarnation:
                    self.receipts(here)
        except OSError as trouble:
            raise UnknownError from trouble
        finally:
            poll.sock.close()

    def receipts(self, here: int) -> None:
        moment = now()
        self.read[here:] = [read._replace(receipt=moment) for read in self.read[here:]]

    def leave(self, poll: Half) -> None:
        if self.chance.random() < 0.5:
            poll.sock.settimeout(0.2)
            poll.read_some(self.chance.choice((1, 20, 200)))  # less than any complete answer
        self.arena.over.wait(self.chance.random() * 0.02)
        (poll.reset if self.chance.random() < 0.5 else poll.end)()


class CursorReader(Reader):
    """Acknowledges with `after`; sometimes forgets what it has just read, and must get it again."""

    mode = "cursor"

    def __init__(self, arena: Arena, name: str) -> None:
        super().__init__(arena, name)
        self.cursor = 0
        self.again: list[int] = []
        """What the last poll from this cursor returned."""

    def turn(self) -> None:
        call, incarnation, limit = now(), self.arena.victim.incarnation, self.chance.choice((1, 3, 100))
        status, told = self.client.get("/msg/poll", agent_id=self.name, after=self.cursor, timeout=1, limit=limit)
        self.expect(status, told, 200)
        ids = [message["id"] for message in told["messages"]]
        if any(after <= before for before, after in zip([self.cursor, *ids], ids, strict=False)):
            self.complaints.append(f"cursor_went_back: {self.name} got {ids} after {self.cursor}")
        shorter = min(len(ids), len(self.again))
        if ids[:shorter] != self.again[:shorter]:
            self.complaints.append(f"cursor_not_pure: after {self.cursor} first {self.again}, then {ids}")
        self.note(told["messages"], call, incarnation, receipt=None)
        if self.happens(15):
            self.again = ids
        elif ids:
            self.cursor, self.again = ids[-1], []


class Acked(NamedTuple):
    """A message whose acknowledgement was answered, or whose nack was requested."""

    id: int
    call: int
    end: int


class LeaseReader(Reader):
    """One of several workers on an inbox: acknowledges by id, puts back, or dies and does neither."""

    mode = "manual"

    def __init__(self, arena: Arena, name: str, inbox: str) -> None:
        super().__init__(arena, name)
        self.inbox = inbox
        self.acked: list[Acked] = []
        self.put_back: list[Acked] = []

    def turn(self) -> None:
        call, incarnation, limit = now(), self.arena.victim.incarnation, self.chance.choice((1, 3, 100))
        status, told = self.client.get(
            "/msg/poll", agent_id=self.inbox, ack="manual", lease=LEASE, timeout=1, limit=limit
        )
        self.expect(status, told, 200)
        self.note(told["messages"], call, incarnation, receipt=None)
        for message in told["messages"]:
            if message.get("redelivered", False) != (message["deliveries"] > 1):
                self.complaints.append(f"redelivered_flag: {message}")
        ids = [message["id"] for message in told["messages"]]
        if not ids or self.happens(15):
            return
        if self.happens(15):
            back = ids.pop()
            self.put_back.append(Acked(back, now(), FOREVER))  # noted first: it may take effect even without an answer
            status, told = self.client.post("/msg/nack", agent_id=self.inbox, id=back)
            self.expect(status, told, 200, 409)
        if not ids:
            return
        call = now()
        status, told = self.known(lambda: self.client.post("/msg/ack", agent_id=self.inbox, ids=ids))
        self.expect(status, told, 200)
        self.acked += [Acked(message_id, call, now()) for message_id in ids]


# -- tasks


class Posted(NamedTuple):
    """A task whose poster was answered."""

    name: str
    task_id: str


class Poster(Actor):
    """Posts numbered tasks, each until it is acknowledged."""

    ends_when_calm = True

    def __init__(self, arena: Arena, name: str) -> None:
        super().__init__(arena, name)
        self.count = 0
        self.posted: list[Posted] = []

    def turn(self) -> None:
        self.count += 1
        name = f"{self.name}-{self.count}"
        priority = self.chance.randrange(3)
        status, told = self.known(
            lambda: self.client.post(
                "/task/post",
                once=name,
                description=name,
                posted_by=self.name,
                priority=priority,
                claim_timeout=LEASE,
                max_attempts=0,
            )
        )
        self.expect(status, told, 200)
        self.posted.append(Posted(name, told["task_id"]))
        self.arena.calm.wait(self.chance.random() * 0.08)


class Claim(NamedTuple):
    """A claim that was granted."""

    worker: str
    task_id: str
    fence: int
    call: int
    end: int


class Completion(NamedTuple):
    """A completion that was accepted; `replayed` if it only repeats an earlier one."""

    worker: str
    task_id: str
    fence: int
    call: int
    end: int
    replayed: bool


class Worker(Actor):
    """Claims and completes; some abandon a task, hold it long, or return too late, and one turn in ten gives up."""

    def __init__(self, arena: Arena, name: str) -> None:
        super().__init__(arena, name)
        self.count = 0
        self.claims: list[Claim] = []
        self.completions: list[Completion] = []
        self.refused = 0
        """Completions that came too late and were refused."""

    def turn(self) -> None:
        self.count += 1
        key, call = f"{self.name}-{self.count}", now()
        timeout = self.chance.choice((0, 1))

        def ask() -> tuple[int, dict[str, Any]]:
            return self.client.post("/task/claim", once=key, agent_id=self.name, timeout=timeout)

        status, told = ask() if self.happens(30) else self.known(ask)
        self.expect(status, told, 200)
        if told.get("task_id") is None:
            self.arena.over.wait(0.02)
            return
        claim = Claim(self.name, told["task_id"], int(told["claim_token"].rpartition(".")[2]), call, now())
        self.claims.append(claim)
        if not self.happens(10):
            self.work(claim, told["claim_token"])

    def work(self, claim: Claim, token: str) -> None:
        held = {"task_id": claim.task_id, "agent_id": self.name, "claim_token": token}
        if self.happens(5):
            status, told = self.client.post("/task/release", **held)
            self.expect(status, told, 200, 409)
            return
        if self.happens(10):
            self.arena.over.wait(1.3 * LEASE)  # a zombie: another agent may have the task by now
        elif self.happens(
            10 if claim.fence == 1 else 70
        ):  # an agent that overtook a zombie must still be at work when the zombie returns
            self.arena.over.wait(0.7 * LEASE)  # slow, but in time
            if self.happens(30):
                status, told = self.client.post("/task/extend", **held)
                self.expect(status, told, 200, 409)
                self.arena.over.wait(0.7 * LEASE)
        call = now()
        status, told = self.known(lambda: self.client.post("/task/complete", result=f"{self.name}", **held))
        self.expect(status, told, 200, 409)
        if status == 200:
            replayed = told.get("replayed", False)
            self.completions.append(Completion(self.name, claim.task_id, claim.fence, call, now(), replayed))
        else:
            self.refused += 1


# -- the event stream


class Seen(NamedTuple):
    """One event as a stream delivered it."""

    id: int
    kind: str
    data: str


class Listener(Actor):
    """Follows the event stream across every death, with Last-Event-ID."""

    def __init__(self, arena: Arena, name: str) -> None:
        super().__init__(arena, name)
        self.seen: list[Seen] = []
        self.complaints: list[str] = []

    def turn(self) -> None:
        last = self.seen[-1].id if self.seen else 0
        try:
            for event in stream(self.arena.victim.port, last, self.arena.over.is_set):
                if event.kind in ("gap", "reset"):
                    self.complaints.append(f"event_order: {event.kind} after {last}: {event.data}")
                elif event.kind != "shutdown":
                    self.seen.append(event)
        except OSError as trouble:
            raise UnknownError from trouble


def stream(port: int, after: int, ended: Callable[[], bool]) -> Any:
    """The events of `GET /events` after an id, until the connection ends or `ended()` is true."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(f"GET /events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {after}\r\n\r\n".encode())
        sock.settimeout(0.1)
        data, head_seen = b"", False
        while not ended():
            try:
                more = sock.recv(65536)
            except TimeoutError:
                continue
            if not more:
                return
            data += more
            if not head_seen and b"\r\n\r\n" in data:
                data, head_seen = data.partition(b"\r\n\r\n")[2], True
            while head_seen and b"\n\n" in data:
                frame, _, data = data.partition(b"\n\n")
                fields = dict(line.split(": ", 1) for line in frame.decode().split("\n") if not line.startswith(":"))
                if "event" in fields:
                    yield Seen(int(fields.get("id", 0)), fields["event"], fields["data"])


def join_all(actors: list[Actor], seconds: float = 15) -> None:
    """Wait for the threads; raises the exception with which one of them ended."""
    deadline = time.monotonic() + seconds
    for actor in actors:
        actor.join(max(0.0, deadline - time.monotonic()))
        assert not actor.is_alive(), f"{actor.name} does not end"
    for actor in actors:
        if actor.failure is not None:
            raise actor.failure
