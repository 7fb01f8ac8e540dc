"""The HTTP face over real sockets: raw bytes in, raw bytes out."""

from __future__ import annotations

import contextlib
import errno
import http.client
import itertools
import json
import os
import resource
import select
import socket
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

import pytest
from conftest import Program
from faces import Direct, OverHttp
from raw import OVER_TLS, PATIENCE_S, Answer, Raw, eventually, get, post, request, unacknowledged, unread
from tls_client import trusting

from stonemux import connection, httpd, store, threads
from stonemux.connection import BODY_LIMIT, VERDICT_MS, Connection
from stonemux.errors import MuxError
from stonemux.httpd import STUCK_MS
from stonemux.operations import OPERATIONS
from stonemux.readiness import Ready
from stonemux.transaction import Job

HEALTH = get("/health")
POLL = get("/msg/poll?agent_id=bob&timeout=0")
LONG_POLL = get("/msg/poll?agent_id=bob&timeout=30")

SCHEME = "https" if OVER_TLS else "http"
AFTER_MS = 1 + httpd.SWEEP_MS * OVER_TLS
"""How much later than the last moment before it a deadline is noticed: a handshake's has just been looked for."""

_numbers = itertools.count()


def message(content: str = "hi", to: str = "bob") -> bytes:
    return post("/msg/send", {"from": "ann", "to": to, "content": content})


class Served:
    """A program with ann and bob in it, its face, and connections that are closed at the end."""

    def __init__(self, program: Program, face: OverHttp, stack: ExitStack) -> None:
        self.program, self.mux, self.clock = program, program.mux, program.clock
        self.face, self.server, self.port = face, face.server, face.port
        self.direct = Direct(program.mux)
        self._stack = stack
        for agent_id in ("ann", "bob"):
            self.direct.call("agent.register", agent_id=agent_id)

    def connect(self) -> Raw:
        return self._stack.enter_context(Raw(self.port))

    def ask(self, data: bytes, *, head: bool = False) -> Answer:
        """One answer, on a connection of its own."""
        with Raw(self.port) as raw:
            return raw.ask(data, head=head)

    def send(self, content: str = "hi", to: str = "bob") -> int:
        return int(self.direct.call("msg.send", from_="ann", to=to, content=content)["message_id"])

    def status_of(self, message_id: int) -> str:
        return str(self.direct.call("msg.status", id=message_id)["recipients"][0]["status"])

    def contents(self) -> list[str]:
        """Everything that was ever sent to bob."""
        listed = self.direct.call("msg.list", agent_id="bob", limit=1000)["messages"]
        return [m["content"] for m in reversed(listed)]

    def pass_time(self, ms: int = VERDICT_MS) -> bool:
        """Move the clock, and let the daemon look at it."""
        self.clock.advance(ms)
        self.server.ring()
        return True

    def eventually(self, holds: Callable[[], Any], step: int = VERDICT_MS) -> None:
        """Wait until `holds()`, while time passes in steps."""
        eventually(lambda: holds() or (self.pass_time(step) and False))

    def connections(self) -> list[Connection]:
        """The daemon's ends of the open connections."""
        return list(self.server._connections.values())

    def until_acknowledged(self) -> None:
        """Wait until the clients' systems have acknowledged every byte, which they may put off for 40 ms."""
        eventually(lambda: not any(unacknowledged(each.sock) for each in list(self.server._connections.values())))

    def turns_away(self) -> None:
        """A new connection is refused for want of room; over TLS there are no words, only an alert."""
        if OVER_TLS:
            with pytest.raises(ssl.SSLError, match="alert internal error"):
                self.connect()
            return
        raw = self.connect()
        got = raw.answer()
        assert (got.status, got.code) == (503, "too_many_connections")
        assert (got.headers["retry-after"], got.headers["connection"]) == ("1", "close")
        assert got.json["error"]["limit"] == 4
        assert raw.has_ended()

    def settle(self) -> None:
        """Let every connection end whose client has closed it."""
        if not self.server.stopping:
            self.eventually(lambda: not self.server.open_connections)

    def still_serves(self) -> None:
        """A normal send and a normal poll work, each on a connection of its own."""
        content = f"still there {next(_numbers)}"
        assert self.ask(message(content)).status == 200
        with Raw(self.port) as raw:
            got = raw.ask(LONG_POLL)
        assert got.status == 200
        assert content in [m["content"] for m in got.json["messages"]]

    def refuses(self, data: bytes, status: int, code: str, *, closes: bool = False) -> Answer:
        """These bytes get this one answer, nothing is written, and the daemon goes on."""
        before = self.contents()
        with Raw(self.port) as raw:
            got = raw.ask(data)
            assert (got.status, got.code) == (status, code)
            if closes:
                assert got.headers["connection"] == "close"
                assert raw.has_ended()
            else:
                assert "connection" not in got.headers
                assert raw.ask(HEALTH).status == 200
        assert self.contents() == before
        self.still_serves()
        return got


def system_socket(sock: Any) -> Any:
    """What is under the TLS, if there is any."""
    return getattr(sock, "raw", sock)


@pytest.fixture(autouse=True)
def no_fault_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever clients do, the daemon has nothing to complain of itself."""
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelname == "ERROR"] == []


@pytest.fixture
def serve(open_program: Callable[..., Program]) -> Iterator[Callable[..., Served]]:
    """Opens daemons with the settings that a test asks for."""
    with ExitStack() as stack:

        def opener(**settings: Any) -> Served:
            program = open_program(**settings)
            face = stack.enter_context(OverHttp(program.mux))
            served = Served(program, face, stack)
            stack.callback(served.settle)
            return served

        yield opener


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve()


@pytest.fixture
def held_commit(served: Served, background: Callable[..., Future[Any]]) -> Iterator[threading.Event]:
    """A commit that does not end before the event is set; changes queue up behind it."""
    begun, go_on = threading.Event(), threading.Event()

    def work(tx: Any) -> None:
        begun.set()
        assert go_on.wait(PATIENCE_S)

    done = background(served.mux.store.submit, Job(work, lambda value, error: None))
    assert begun.wait(PATIENCE_S)
    yield go_on
    go_on.set()
    done.result(PATIENCE_S)


# --- connections ---------------------------------------------------------------------------------------------------


def test_a_connection_is_kept_for_the_next_request(served):
    raw = served.connect()
    first, second = raw.ask(HEALTH), raw.ask(message())
    assert (first.status, second.status) == (200, 200)
    assert "connection" not in first.headers
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert "date" in first.headers


def test_pipelined_requests_are_answered_in_their_order(served):
    raw = served.connect()
    raw.send(message("a") + HEALTH + message("b") + get("/nowhere") + message("c") + POLL + message("d"))
    answers = [raw.answer() for _ in range(7)]
    assert [answer.status for answer in answers] == [200, 200, 200, 404, 200, 200, 200]
    ids = [answers[n].json["message_id"] for n in (0, 2, 4, 6)]
    assert ids == sorted(ids)
    assert [m["content"] for m in answers[5].json["messages"]] == ["a", "b", "c"]


def test_a_hundred_pipelined_changes_are_answered_in_their_order(served):
    raw = served.connect()
    raw.send(b"".join(message(f"{n}") for n in range(100)))
    ids = [raw.answer().json["message_id"] for _ in range(100)]
    assert ids == sorted(ids)
    assert served.contents() == [f"{n}" for n in range(100)]


def test_an_answer_waits_for_the_queued_change_before_it(served, held_commit):
    raw = served.connect()
    raw.send(message("queued") + HEALTH + get("/nowhere"))
    assert raw.is_silent()
    held_commit.set()
    assert "message_id" in raw.answer().json
    assert raw.answer().json["status"] == "ok"
    assert raw.answer().status == 404


def test_a_refusal_of_broken_bytes_waits_for_the_queued_change_before_it(served, held_commit):
    raw = served.connect()
    raw.send(message("queued") + b"rubbish\r\n\r\n")
    assert raw.is_silent()
    held_commit.set()
    assert "message_id" in raw.answer().json
    assert raw.answer().code == "bad_request_line"
    assert raw.has_ended()


def test_100_continue_waits_for_the_queued_change_before_it(served, held_commit):
    raw = served.connect()
    head, _, body = message("second").partition(b"\r\n\r\n")
    raw.send(message("first") + head + b"\r\nExpect: 100-continue\r\n\r\n")
    assert raw.is_silent()
    held_commit.set()
    assert raw.answer().status == 200
    assert raw.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert raw.ask(body).status == 200
    assert served.contents() == ["first", "second"]


def test_a_client_that_says_no_more_still_gets_the_answer_of_its_queued_change(served, held_commit):
    raw = served.connect()
    raw.send(message("queued"))
    raw.finish()
    held_commit.set()
    assert raw.answer().status == 200
    assert raw.has_ended()


def test_a_stop_waits_for_queued_changes(served, held_commit, background):
    raw = served.connect()
    raw.send(message("queued"))
    eventually(lambda: served.mux.store._queue)
    stopped = background(served.server.stop)
    eventually(lambda: served.server.stopping and served.mux.hub.closed)
    held_commit.set()
    assert raw.answer().status == 200
    raw.close()
    stopped.result(PATIENCE_S)


def test_a_stop_does_not_hang_up_on_who_has_asked_meanwhile(served, held_commit, background, monkeypatch):
    idle, late = served.connect(), served.connect()
    eventually(lambda: served.server.open_connections == 2)
    asked, told, hang_up = [], [], Connection.hang_up

    def hang_up_slowly(connection: Connection, **how: Any) -> None:
        if not asked:
            late.send(message("late"))
            asked.append(eventually(lambda: served.mux.store._queue))
        hang_up(connection, **how)
        told.append(connection)

    monkeypatch.setattr(Connection, "hang_up", hang_up_slowly)
    stopped = background(served.server.stop)
    eventually(lambda: len(told) == 2)
    assert idle.has_ended()
    held_commit.set()
    assert late.answer().status == 200
    late.close()
    stopped.result(PATIENCE_S)


def test_a_newcomer_gets_no_room_from_who_has_asked_meanwhile(served, held_commit, monkeypatch):
    """The guard makes room while the thread that it relieved is still in its round."""
    late = served.connect()
    eventually(lambda: served.server.open_connections == 1)
    hang_up = Connection.hang_up

    def hang_up_slowly(connection: Connection, **how: Any) -> None:
        late.send(message("late"))
        eventually(lambda: served.mux.store._queue)
        hang_up(connection, **how)

    monkeypatch.setattr(Connection, "hang_up", hang_up_slowly)
    assert served.server._make_room()
    held_commit.set()
    monkeypatch.undo()
    assert late.answer().status == 200


def test_two_who_accept_at_once_keep_to_the_limit_of_connections(serve, background, monkeypatch):
    """The guard accepts while the thread that it relieved still does, and both find that there is room for one."""
    served = serve(max_connections=2)
    server, ready = served.server, served.server._ready
    both, add = threading.Barrier(2), ready.add

    def add_together(fd: int) -> None:
        add(fd)
        both.wait(PATIENCE_S)

    first = served.connect()
    eventually(lambda: server.open_connections == 1)
    pairs = [socket.socketpair() for _ in range(2)]
    with monkeypatch.context() as patched:
        patched.setattr(ready, "add", add_together)
        for work in [background(server._welcome, ours, server._connect) for ours, _ in pairs]:
            work.result(PATIENCE_S)
    assert server.open_connections == 2
    assert first.has_ended(), "it was idle for longest"
    for _, theirs in pairs:
        theirs.settimeout(PATIENCE_S)
        theirs.sendall(HEALTH)
        assert theirs.recv(12) == b"HTTP/1.1 200"
        theirs.close()


def test_who_comes_while_the_daemon_stops_is_not_left_without_an_end(served, monkeypatch):
    """The thread that accepts may be held up until after `stop` has hung up on everybody."""
    server, add = served.server, served.server._ready.add

    def add_too_late(fd: int) -> None:
        add(fd)
        server.stop()

    monkeypatch.setattr(server._ready, "add", add_too_late)
    with socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S) as late:
        assert late.recv(1) == b""
    assert server.open_connections == 0


def test_a_queued_change_does_not_make_its_connection_idle(serve, background):
    served = serve(max_connections=4)
    begun, go_on = threading.Event(), threading.Event()

    def work(tx: Any) -> None:
        begun.set()
        assert go_on.wait(PATIENCE_S)

    done = background(served.mux.store.submit, Job(work, lambda value, error: None))
    assert begun.wait(PATIENCE_S)
    busy = [served.connect() for _ in range(4)]
    for raw in busy:
        raw.send(message("queued"))
    eventually(lambda: len(served.mux.store._queue) == 4)
    served.turns_away()
    go_on.set()
    assert [raw.answer().status for raw in busy] == [200] * 4
    done.result(PATIENCE_S)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(message("cut"), id="length"),
        pytest.param(
            request("POST", "/msg/send", "Content-Type: application/json", "Transfer-Encoding: chunked")
            + b'1e\r\n{"from":"ann","to":"bob","cont\r\nc\r\nent":"cut"} \r\n0\r\n\r\n',
            id="chunked",
        ),
        pytest.param(POLL, id="get"),
    ],
)
def test_a_request_may_arrive_in_two_pieces_cut_anywhere(served, data):
    raw = served.connect()
    assert raw.ask(HEALTH).status == 200
    (server_side,) = served.server._connections.values()
    for cut in range(1, len(data)):
        raw.send(data[:cut])
        eventually(lambda: not unread(server_side.sock))
        raw.send(data[cut:])
        assert raw.answer().status == 200


def test_a_request_may_arrive_byte_by_byte(served):
    raw = served.connect()
    for byte in message("drop by drop"):
        raw.send(bytes([byte]))
    assert raw.answer().status == 200
    assert served.contents() == ["drop by drop"]


def test_connection_close_is_honored(served):
    raw = served.connect()
    got = raw.ask(get("/health", "Connection: close"))
    assert got.headers["connection"] == "close"
    assert raw.has_ended()


def test_connection_close_is_honored_for_a_change(served):
    raw = served.connect()
    got = raw.ask(message().replace(b"Host:", b"Connection: close\r\nHost:"))
    assert (got.status, got.headers["connection"]) == (200, "close")
    assert raw.has_ended()


def test_what_follows_connection_close_is_not_executed(served):
    raw = served.connect()
    raw.send(get("/health", "Connection: close") + message("too late"))
    assert raw.answer().status == 200
    assert raw.has_ended()
    assert served.contents() == []


@pytest.mark.parametrize("lines", [(), ("Connection: keep-alive",)])
def test_http_10_is_answered_and_closed(served, lines):
    raw = served.connect()
    got = raw.ask(request("GET", "/health", *lines, version="1.0"))
    assert (got.status, got.headers["connection"]) == (200, "close")
    assert raw.has_ended()


def test_a_connection_ends_after_its_thousandth_request(served, monkeypatch):
    assert connection.MOST_REQUESTS == 1000
    monkeypatch.setattr(connection, "MOST_REQUESTS", 3)
    raw = served.connect()
    raw.send(HEALTH * 4)
    assert [raw.answer().headers.get("connection") for _ in range(3)] == [None, None, "close"]
    assert raw.has_ended()


def test_a_client_that_stays_silent_is_let_go(served):
    raw = served.connect()
    assert raw.ask(HEALTH).status == 200
    eventually(lambda: not any(each._busy for each in served.server._connections.values()))  # its silence begins
    served.pass_time(14_999)
    assert raw.is_silent()
    served.pass_time(AFTER_MS)
    eventually(lambda: not served.server.open_connections)
    assert raw.has_ended()


def test_a_client_that_stays_silent_after_a_parked_call_is_let_go(served):
    raw = served.connect()
    raw.send(LONG_POLL)
    served.clock.until_parked(1)
    served.eventually(lambda: served.server._next_sweep is None, step=1_000)  # nothing else is watched by now
    served.send()
    assert raw.answer().status == 200
    served.eventually(lambda: not served.server.open_connections, step=1_000)
    assert raw.has_ended()


def test_what_is_pipelined_behind_a_change_outlives_a_change_of_guard(served):
    server, publish = served.server, served.mux.store.publish
    held_up = server._attending

    def slow_disk(*announced: Any) -> None:
        eventually(lambda: server._attending != held_up)
        publish(*announced)

    served.mux.store.publish = slow_disk
    raw = served.connect()
    raw.send(post("/msg/send", json_of("slow")) + POLL)
    assert raw.answer().status == 200
    assert [m["content"] for m in raw.answer().json["messages"]] == ["slow"]
    served.mux.store.publish = publish


def test_who_was_relieved_wakes_who_attends_for_what_it_leaves_to_be_done(served, monkeypatch):
    """A call that waits was parked, or a client's end was seen, by a thread that was held up in its round."""
    server = served.server
    attempt, ring, remind, rung = served.mux.store._attempt, server.ring, server.lot.remind, []
    reminded: list[list[int]] = []

    def slow_disk(batch: Any, **more: Any) -> bool:
        held_up = threading.get_ident()
        eventually(lambda: server._attending not in (held_up, None))
        return bool(attempt(batch, **more))

    def reminding(parked: Any) -> None:
        remind(parked)
        reminded.append([thread for thread in rung if thread == attending])  # the other may be held up, too

    def ringing() -> None:
        rung.append(threading.get_ident())
        ring()

    raw = served.connect()
    assert raw.ask(HEALTH).status == 200
    attending = server._attending
    monkeypatch.setattr(served.mux.store, "_attempt", slow_disk)
    monkeypatch.setattr(server, "ring", ringing)
    monkeypatch.setattr(server.lot, "remind", reminding)
    raw.send(post("/task/claim", {"agent_id": "bob", "timeout": 60}))
    served.clock.until_parked(1)
    assert reminded == [[attending]]
    monkeypatch.setattr(served.mux.store, "_attempt", attempt)
    (ours,) = server._connections.values()
    server.await_verdict(ours)
    assert threading.get_ident() in rung


def test_who_was_relieved_leads_no_further_commit(served, monkeypatch):
    """As long as clients keep the queue from being empty, two threads would compete for the interpreter lock."""
    server, store = served.server, served.mux.store
    attempt, leaders = store._attempt, list[int]()
    slow, quick = served.connect(), served.connect()

    def slow_disk(batch: Any, **more: Any) -> bool:
        leaders.append(threading.get_ident())
        if len(leaders) == 1:
            eventually(lambda: server._attending not in (leaders[0], None))
            quick.send(post("/msg/send", json_of("quick")))
            eventually(lambda: store.gathered)
        return bool(attempt(batch, **more))

    monkeypatch.setattr(store, "_attempt", slow_disk)
    slow.send(post("/msg/send", json_of("slow")))
    assert [slow.answer().status, quick.answer().status] == [200, 200]
    assert leaders[1] == server._attending != leaders[0]


def test_what_is_queued_behind_another_threads_write_is_left_to_who_attends(served, monkeypatch):
    store = served.mux.store
    attempt, leaders = store._attempt, list[int]()
    raw = served.connect()

    def attempting(batch: Any, **more: Any) -> bool:
        leaders.append(threading.get_ident())
        if len(leaders) == 1:
            raw.send(post("/msg/send", json_of("behind it")))
            eventually(lambda: store.gathered)
        return bool(attempt(batch, **more))

    monkeypatch.setattr(store, "_attempt", attempting)
    store.write(lambda tx: None)
    assert raw.answer().status == 200
    assert leaders == [threading.get_ident(), served.server._attending]


def test_a_program_whose_server_has_ended_still_commits_what_is_queued_behind_a_write(mux, monkeypatch):
    monkeypatch.setattr(store, "MOST_IN_A_BATCH", 1)
    with OverHttp(mux):
        pass
    told: list[Any] = []
    mux.store.gatherers.add(threading.get_ident())
    for _ in range(3):
        mux.store.submit(Job(lambda tx: None, lambda value, error: told.append(error)))
    mux.store.gatherers.clear()
    mux.store.lead()
    eventually(lambda: told == [None, None, None])


def test_a_long_commit_that_makes_progress_is_not_taken_for_a_disk_that_holds_it_up(mux):
    """It keeps the processor busy, and a second thread that reads meanwhile would only compete with it."""
    server, steps = httpd.Server(mux), [1, 1, 0]

    class Watch(contextlib.nullcontext[None]):
        def wait(self, seconds: float) -> None:
            mux.store.steps += steps.pop(0)

    watch: Any = Watch()
    server._watch, server._traffic, server._in_round = watch, True, True
    server._stand_guard(1)
    assert (server._attending, steps) == (1, [])
    server.server_close()


def test_a_ring_that_another_thread_has_heard_already_holds_nobody_up(served, monkeypatch):
    """At a change of guard two threads hear of one ring, and one of them finds nothing left to read."""
    server, wait = served.server, served.server._ready.wait
    raw = served.connect()

    def wait_and_hear_a_ring(patience: int | None) -> list[Ready]:
        return [Ready(server._bell, False, False), *wait(patience)]

    monkeypatch.setattr(server._ready, "wait", wait_and_hear_a_ring)
    for _ in range(3):
        assert raw.ask(HEALTH).status == 200


def test_who_was_relieved_has_the_other_look_again_how_long_to_sleep(served, monkeypatch):
    """Both may have been asleep for a moment, and the ring that was meant for the other was heard by this one."""
    server, store = served.server, served.mux.store
    publish, lead, ring, held_up, did = store.publish, store.lead, server.ring, [], []

    def slow_disk(*announced: Any) -> None:
        held_up.append(threading.get_ident())
        eventually(lambda: server._attending != held_up[0])
        publish(*announced)

    def leading(**how: Any) -> None:
        lead(**how)
        did.append(("lead", threading.get_ident()))

    def ringing() -> None:
        did.append(("ring", threading.get_ident()))
        ring()

    monkeypatch.setattr(store, "publish", slow_disk)
    monkeypatch.setattr(store, "lead", leading)
    monkeypatch.setattr(server, "ring", ringing)
    assert served.ask(message()).status == 200
    eventually(lambda: ("lead", "ring") in itertools.pairwise([what for what, who in did if who == held_up[0]]))


def test_an_event_is_not_told_to_another_connection_that_has_got_the_descriptor_meanwhile(served, monkeypatch):
    """While a thread is held up in its round, the other may close a connection and accept one in its place."""
    server, wait, stir = served.server, served.server._ready.wait, Connection.stir
    clients = [served.connect(), served.connect()]
    assert [raw.ask(HEALTH).status for raw in clients] == [200, 200]
    (slow_fd, slow), (fd, other) = server._connections.items()
    told, stirred, waiting = [], [], []

    class Newcomer:
        def stir(self, ready: Ready) -> None:
            stirred.append("newcomer")

    def wait_for_both(patience: int | None) -> list[Ready]:
        waiting.append(True)
        happened = wait(patience)
        if any(ready.fd == slow_fd for ready in happened) and not told:
            told.append(True)
            happened = [Ready(slow_fd, False, False), Ready(fd, False, True)]
        return happened

    def stir_slowly(connection: Connection, ready: Ready) -> None:
        if told:  # not an event of the first two requests that comes late
            stirred.append("slow" if connection is slow else "other")
            if connection is slow:
                server._connections[fd] = Newcomer()
        stir(connection, ready)

    monkeypatch.setattr(Connection, "stir", stir_slowly)
    monkeypatch.setattr(server._ready, "wait", wait_for_both)
    server.ring()
    eventually(lambda: waiting)
    clients[0].send(HEALTH)
    assert clients[0].answer().status == 200
    eventually(lambda: len(stirred) > 1)
    monkeypatch.undo()
    server._connections[fd] = other
    assert stirred[:2] == ["slow", "other"]


def test_a_guard_that_cannot_be_started_is_started_later(serve, monkeypatch, caplog):
    start, tries = threading.Thread.start, []

    def no_thread_at_first(thread: threading.Thread) -> None:
        if thread.name == "guard":
            tries.append(thread)
            if len(tries) < 3:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", no_thread_at_first)
    served = serve()
    eventually(lambda: served.ask(HEALTH).status == 200 and len(tries) == 3)
    assert caplog.text.count("no thread left") == 1
    caplog.clear()


def test_the_ring_at_a_stop_is_left_for_the_other_to_hear(served, monkeypatch):
    server = served.server
    with monkeypatch.context() as deaf:
        deaf.setattr(server, "ring", lambda: None)
        server.stop()
    server.ring()
    served.face._door.join(PATIENCE_S)
    assert os.read(server._bell, 16)


def test_a_ring_after_the_end_is_written_nowhere(open_program):
    with OverHttp(open_program().mux) as face:
        rope = face.server._rope
        heard, told = os.pipe()
    try:
        os.dup2(told, rope)  # whoever opened something meanwhile may have got the same number
        face.server.ring()
        os.set_blocking(heard, False)
        with pytest.raises(BlockingIOError):
            os.read(heard, 1)
    finally:
        for fd in (heard, told, rope):
            os.close(fd)


@pytest.mark.parametrize("mode", ["ack=manual", "after=1", "redeliver=true"])
def test_a_poll_that_writes_does_not_hold_up_the_door_behind_a_commit(served, monkeypatch, mode):
    ids = [served.send(), served.send()]
    store, let_go = served.mux.store, threading.Event()
    attempt = store._attempt

    def slow_disk(batch: Any, **more: Any) -> bool:
        let_go.wait(2 * PATIENCE_S)
        return bool(attempt(batch, **more))

    sender, reader, other = served.connect(), served.connect(), served.connect()
    monkeypatch.setattr(store, "_attempt", slow_disk)
    sender.send(message("held up"))
    eventually(lambda: store.led)
    reader.send(get(f"/msg/poll?agent_id=bob&timeout=0&{mode}"))
    for _ in range(3):
        assert other.ask(HEALTH).status == 200
    let_go.set()
    assert sender.answer().status == 200
    wanted = ids[1:] if mode == f"after={ids[0]}" else ids
    assert [m["id"] for m in reader.answer().json["messages"]][: len(wanted)] == wanted


@pytest.mark.parametrize("timeout", [0, 30])
def test_polls_that_write_do_not_wait_at_the_door_for_a_commit_that_began_meanwhile(
    served, monkeypatch, held_commit, timeout
):
    """Each of them would hold up one of the two threads there."""
    polls = [f"/msg/poll?agent_id={agent_id}&timeout={timeout}&redeliver=true" for agent_id in ("ann", "bob")]
    readers = [served.connect() for _ in polls]
    other = served.connect()
    with monkeypatch.context() as patched:
        patched.setattr(type(served.mux.store), "led", False)  # it was looked at a moment too early
        for reader, poll in zip(readers, polls, strict=True):
            reader.send(get(poll))
        for _ in range(3):
            assert other.ask(HEALTH).status == 200
    held_commit.set()
    if timeout:
        served.clock.until_parked(2)
        served.pass_time(timeout * 1000)
    assert [reader.answer().json["messages"] for reader in readers] == [[], []]


def test_who_asks_during_a_round_shares_its_commit(served, monkeypatch):
    first, second = served.connect(), served.connect()
    assert second.ask(HEALTH).status == 200
    handle, publish = served.server.handle, served.mux.store.publish
    commits: list[int] = []

    def publishing(events: Any, *rest: Any) -> None:
        commits.append(len(events))
        publish(events, *rest)

    def meanwhile(connection: Any, *request: Any) -> None:
        monkeypatch.setattr(served.server, "handle", handle)
        others = [other.sock for other in served.server._connections.values() if other is not connection]
        second.send(message("b"))
        assert select.select(others, [], [], PATIENCE_S)[0]
        handle(connection, *request)

    monkeypatch.setattr(served.mux.store, "publish", publishing)
    monkeypatch.setattr(served.server, "handle", meanwhile)
    first.send(message("a"))
    assert (first.answer().status, second.answer().status) == (200, 200)
    assert commits == [2]


def test_workers_are_used_again_and_connections_leave_nothing(served):
    for _ in range(100):
        assert served.ask(HEALTH).status == 200
    served.eventually(lambda: not served.server.open_connections)
    assert served.server._workers.idle < 50


def test_the_oldest_idle_connection_makes_room_for_a_new_one(serve):
    served = serve(max_connections=4)
    connections = []
    for count in range(1, 5):
        connections.append(served.connect())
        eventually(lambda count=count: served.server.open_connections == count)
        served.clock.advance(1)
    newcomer = served.connect()
    assert newcomer.ask(HEALTH).status == 200
    assert connections[0].has_ended()
    assert [raw.ask(HEALTH).status for raw in connections[1:]] == [200] * 3
    served.still_serves()


def test_who_does_not_read_its_answers_makes_room_for_a_new_one(serve):
    """Anybody could hold all places, without a token: a refusal that nobody reads holds one just as well."""
    served = serve(max_connections=4)
    connections = []
    for count in range(1, 5):
        connections.append(served.connect())
        connections[-1].send(get("/openapi.json") * 100)
        eventually(lambda count=count: [o.stuck_since is None for o in served.connections()].count(False) == count)
        served.clock.advance(100)
    served.turns_away()
    served.clock.advance(STUCK_MS - 400)
    longest = min((other.stuck_since, other) for other in served.connections())[1]
    assert served.connect().ask(HEALTH).status == 200
    assert longest not in served.connections()
    assert len([other for other in served.connections() if other.stuck_since is not None]) == 3
    for raw in connections:
        raw.reset()


def test_large_answers_that_nobody_reads_do_not_fill_the_memory(served, monkeypatch):
    """A few hundred clients that asked for all there is, and did not read it, had the system kill the daemon."""
    monkeypatch.setattr(connection, "LARGE", 0)
    stuck = []

    def ask() -> None:
        raw = served.connect()
        raw.send(get("/openapi.json") * 100)
        eventually(lambda: len([o for o in served.connections() if o.stuck_since is not None]) > len(stuck))
        stuck.append(raw)
        served.clock.advance(1)

    ask()
    ask()
    first, second = sorted(served.connections(), key=lambda other: other.stuck_since)
    monkeypatch.setattr(httpd, "MOST_UNSENT", 0)
    raw = served.connect()
    raw.send(get("/openapi.json") * 100)
    eventually(lambda: first not in served.connections() and second not in served.connections())
    eventually(lambda: [other.stuck_since is None for other in served.connections()] == [False])
    for each in (*stuck, raw):
        each.reset()


def test_reads_that_may_take_long_wait_for_their_turn(served, monkeypatch):
    served.server._readers._most = 1
    begun, go_on, read = threading.Event(), threading.Event(), served.mux.store.read
    reads: list[None] = []

    def slow_read() -> Any:
        reads.append(None)
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return read()

    monkeypatch.setattr(served.mux.store, "read", slow_read)
    first, second, gone = (served.connect() for _ in range(3))
    first.send(get("/stats"))
    assert begun.wait(PATIENCE_S)
    for raw in (second, gone):
        raw.send(get("/stats"))
        eventually(lambda: served.server._readers.waiting)
    eventually(lambda: served.server._readers.waiting == 2)
    gone.reset()
    eventually(lambda: any(other.gone for other in served.connections()))
    served.clock.advance(1000)
    assert served.ask(HEALTH).status == 200
    assert len(reads) == 1
    go_on.set()
    assert [raw.answer().status for raw in (first, second)] == [200, 200]
    eventually(lambda: served.server._readers.idle)
    assert len(reads) == 2, "nothing is read for who has gone"


def test_who_asks_much_at_once_lets_others_have_their_turn(served, monkeypatch):
    many, one = served.connect(), served.connect()
    assert [raw.ask(HEALTH).status for raw in (many, one)] == [200, 200]
    handle, sent = served.server.handle, []

    def handling(*asked: Any) -> None:
        if not sent:
            sent.append(one.send(HEALTH))
        handle(*asked)

    monkeypatch.setattr(served.server, "handle", handling)
    many.send(HEALTH * 200)
    turns = [int(raw.answer().headers["x-request-id"].rpartition("-")[2], 16) for raw in (many, one)]
    assert turns[1] - turns[0] < 5
    assert [many.answer().status for _ in range(199)] == [200] * 199


def test_a_connection_is_refused_when_none_is_idle(serve):
    served = serve(max_connections=4)
    parked = [served.connect() for _ in range(4)]
    for raw in parked:
        raw.send(LONG_POLL)
    served.clock.until_parked(4)
    served.turns_away()
    served.pass_time(30_000)
    assert [raw.answer().json for raw in parked] == [{"messages": []}] * 4
    served.still_serves()


def test_a_connection_that_the_system_has_no_room_for_is_turned_away_and_leaves_nothing(serve, monkeypatch):
    served = serve(max_connections=4)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(served.server._ready, "add", full)
        served.turns_away()
    assert served.server.open_connections == 0
    served.still_serves()


def test_a_thread_that_cannot_be_started_costs_one_call_only(served, monkeypatch):
    raw = served.connect()
    with monkeypatch.context() as patched:

        def no_thread(*_: Any) -> None:
            raise RuntimeError("can't start new thread")

        patched.setattr(threads, "start_new_thread", no_thread)
        got = raw.ask(get("/stats"))
        assert (got.status, got.code, got.headers["retry-after"]) == (503, "too_many_waiters", "1")
    assert raw.ask(HEALTH).status == 200
    served.still_serves()


def test_reads_whose_threads_did_not_live_do_not_keep_the_places_of_all_others(served, monkeypatch):
    clients = [served.connect() for _ in range(httpd.MOST_READING)]
    with monkeypatch.context() as patched:
        patched.setattr(threads, "start_new_thread", lambda run, args: None)
        for raw in clients:
            raw.send(get("/stats"))
        assert served.ask(HEALTH).status == 200
    clients.append(served.connect())
    clients[-1].send(get("/stats"))
    assert [raw.answer().status for raw in clients] == [200] * len(clients)


def test_a_parked_call_is_answered_when_the_daemon_stops(served, background):
    raw = served.connect()
    raw.send(LONG_POLL)
    served.clock.until_parked(1)
    stopped = background(served.server.stop)
    assert raw.answer().json == {"messages": []}
    assert raw.has_ended()
    raw.close()
    stopped.result(PATIENCE_S)


# --- routes and methods --------------------------------------------------------------------------------------------

GETS = [operation for operation in OPERATIONS if operation.method == "GET"]


def test_head_answers_like_get_without_a_body(served):
    served.send()
    served.direct.call("agent.register", agent_id="writer")  # the examples' agent
    raw = served.connect()
    for operation in GETS:
        given = dict(operation.example) | ({"timeout": 30} if "timeout" in operation.by_name else {})
        target = f"{operation.path}?{urllib.parse.urlencode(given)}".rstrip("?")
        got = raw.ask(request("HEAD", target), head=True)
        unknown = operation.kind in ("stream", "lines") or "timeout=30" in target
        assert ("content-length" in got.headers) != unknown, target
        if operation.kind == "stream":
            assert (got.status, got.headers["content-type"]) == (200, "text/event-stream")
        elif operation.kind == "lines":
            assert (got.status, got.headers["content-type"]) == (200, "application/jsonl")
        elif "timeout=30" in target:
            assert got.status == 200, target  # at once, although GET waits
        else:
            same = raw.ask(get(target))
            assert same.status == got.status in (200, 404), target
            assert same.headers["content-type"] == got.headers["content-type"]
            assert same.headers["content-length"] == got.headers["content-length"]
        assert served.mux.waiters.count == 0
    assert raw.ask(HEALTH).status == 200


def test_head_takes_no_message_and_opens_no_stream(served):
    message_id = served.send()
    raw = served.connect()
    assert raw.ask(request("HEAD", "/msg/poll?agent_id=bob"), head=True).status == 200
    assert raw.ask(request("HEAD", "/events"), head=True).headers["x-stonemux-event-head"]
    assert served.status_of(message_id) == "queued"
    assert len(served.server.streamer) == 0
    assert served.mux.flights.held("bob") == frozenset()


def test_head_refuses_what_get_refuses(served):
    raw = served.connect()
    assert raw.ask(request("HEAD", "/msg/poll?agent=bob"), head=True).status == 400
    assert raw.ask(request("HEAD", "/events?last_event_id=abc"), head=True).status == 400
    for target in ("/msg/poll?agent_id=zed", "/state/watch?key=k&channel=zed", "/events/list?timeout=9&channel=zed"):
        assert raw.ask(request("HEAD", target), head=True).status == 404, target
    assert raw.ask(request("HEAD", "/nowhere"), head=True).status == 404
    assert raw.ask(HEALTH).status == 200


PATHS = sorted({operation.path for operation in OPERATIONS})


def test_a_wrong_method_is_told_the_right_ones(served):
    raw = served.connect()
    for path in PATHS:
        methods = {operation.method for operation in OPERATIONS if operation.path == path}
        got = raw.ask(request("DELETE", path))
        assert (got.status, got.code) == (405, "method_not_allowed")
        allowed = set(got.headers["allow"].split(", "))
        assert allowed == methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
        asked = raw.ask(request("OPTIONS", path))
        assert (asked.status, set(asked.headers["allow"].split(", ")), asked.body) == (204, allowed, b"")
        assert not any(name.startswith("access-control") for name in asked.headers)
        if "POST" not in methods:
            assert raw.ask(post(path, {})).status == 405
        if "GET" not in methods:
            assert raw.ask(get(path)).status == 405
            assert raw.ask(request("HEAD", path), head=True).status == 405


def test_options_of_the_whole_server_is_answered(served):
    raw = served.connect()
    assert raw.ask(request("OPTIONS", "*")).status == 204
    assert raw.ask(HEALTH).status == 200


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("/msg/snd", "/msg/send"),
        ("/message/poll", "/msg/poll"),
        ("/Health", "/health"),
        ("/task", "/task/cancel"),
        ("/agent/", "/agent/deregister"),
    ],
)
def test_an_unknown_path_is_told_the_nearest(served, path, near):
    got = served.ask(get(path))
    assert (got.status, got.code, got.json["error"]["nearest"]) == (404, "not_found", near)
    assert near in got.json["error"]["message"]


@pytest.mark.parametrize(
    ("trouble", "remedy"),
    [
        (OSError(errno.EADDRINUSE, "Address already in use"), "Stop the program that uses it, or choose another port"),
        (PermissionError(errno.EACCES, "Permission denied"), "Ports below 1024 need special privileges"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Pass an address of this machine"),
    ],
)
def test_who_cannot_listen_is_told_what_to_do(mux, monkeypatch, trouble, remedy):
    def refuse(server: httpd.Server) -> None:
        raise trouble

    monkeypatch.setattr(httpd.Server, "server_bind", refuse)
    with pytest.raises(MuxError, match=f"{trouble.strerror}. {remedy}") as caught:
        httpd.Server(mux)
    assert caught.value.code == "address_in_use"


@pytest.mark.parametrize("path", ["/", "/favicon.ico", "/docs", "/nope", "/login"])
def test_a_path_that_is_near_to_none_is_told_where_all_stand_and_no_other(served, path):
    got = served.ask(get(path))
    assert (got.status, got.code) == (404, "not_found")
    assert got.json["error"].get("nearest") is None
    assert "did you mean" not in got.json["error"]["message"]
    assert "/openapi.json" in got.json["error"]["message"]


@pytest.mark.parametrize("path", ["/", "//health", "/health/", "/msg/../health", "/%2e/health", "/health%3f"])
def test_a_path_is_taken_literally(served, path):
    assert served.ask(get(path)).code == "not_found"


def test_a_percent_encoded_path_means_the_same(served):
    assert served.ask(get("/h%65alth")).status == 200


def test_the_query_of_a_post_is_refused(served):
    got = served.ask(post("/msg/send?from=ann", {"from": "ann", "to": "bob", "content": "x"}))
    assert got.code == "invalid_query"


def test_the_body_of_a_get_is_read_and_ignored(served):
    raw = served.connect()
    raw.send(request("GET", "/health", body=b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n") + get("/nowhere"))
    assert raw.answer().json["status"] == "ok"
    assert raw.answer().code == "not_found"
    assert raw.is_silent(0)


@pytest.mark.parametrize(
    "asked",
    [get("/health"), get("/nothing"), get("/openapi.json"), get("/metrics"), message("hi"), b"nonsense\r\n\r\n"],
    ids=["answer", "refusal", "document", "metrics", "change", "unreadable"],
)
def test_an_answer_ends_its_line_so_that_a_terminal_shows_its_prompt_on_the_next(served, asked):
    body = served.ask(asked).body
    assert body.endswith(b"\n")
    assert not body.endswith(b"\n\n")


def test_openapi_is_served_and_takes_no_parameters(served):
    document = served.ask(get("/openapi.json")).json
    assert document["openapi"].startswith("3.1")
    assert document["servers"][0]["url"].endswith(f":{served.port}")
    assert served.ask(get("/openapi.json?x=1")).code == "unknown_field"


# --- headers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=UTF-8"])
def test_json_is_taken(served, kind):
    assert served.ask(post("/msg/send", json_of("x"), f"Content-Type: {kind}")).status == 200


def json_of(content: str) -> bytes:
    return json.dumps({"from": "ann", "to": "bob", "content": content}).encode()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "127.0.0.1", "127.0.0.1:{port}", "[::1]:{port}"])
def test_the_names_of_this_server_are_admitted(served, host):
    assert served.ask(request("GET", "/health", host=host.format(port=served.port))).status == 200


def test_a_configured_name_is_admitted(serve):
    served = serve(allowed_hosts=("mux.example",))
    assert served.ask(request("GET", "/health", host="mux.example")).status == 200
    assert served.ask(request("GET", "/health", host=f"mux.example:{served.port}")).status == 200
    origin = f"Origin: {SCHEME}://mux.example:{served.port}"
    assert served.ask(request("GET", "/health", origin, host="mux.example")).status == 200


def test_a_configured_name_may_have_the_port_of_a_tunnel(serve):
    served = serve(allowed_hosts=("localhost:8000", "[::1]:8000"))
    for host in ("localhost:8000", "[::1]:8000", f"localhost:{served.port}"):
        assert served.ask(request("GET", "/health", f"Origin: {SCHEME}://{host}", host=host)).status == 200
    for host in ("127.0.0.1:8000", "localhost:8001", f"localhost:8000:{served.port}"):
        assert served.ask(request("GET", "/health", host=host)).status == 421


@pytest.mark.parametrize("line", [f"Origin: {SCHEME}://localhost:{{port}}", "Sec-Fetch-Site: same-origin"])
def test_pages_of_this_server_are_admitted(served, line):
    assert served.ask(get("/health", line.format(port=served.port))).status == 200


def test_a_client_may_wait_for_100_continue(served):
    raw = served.connect()
    head, _, body = message("after 100").partition(b"\r\n\r\n")
    raw.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
    assert raw.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert raw.ask(body).status == 200
    assert served.contents() == ["after 100"]


def test_a_client_that_did_not_wait_gets_no_100_continue(served):
    raw = served.connect()
    head, _, body = message("at once").partition(b"\r\n\r\n")
    assert raw.ask(head + b"\r\nExpect: 100-continue\r\n\r\n" + body).status == 200
    assert raw.ask(HEALTH).status == 200


def test_100_continue_is_not_said_to_a_body_that_is_too_large(served):
    raw = served.connect()
    lines = ("Expect: 100-continue", "Content-Type: application/json", f"Content-Length: {BODY_LIMIT + 1}")
    got = raw.ask(request("POST", "/msg/send", *lines))
    assert (got.status, got.code) == (413, "body_too_large")
    assert raw.has_ended()


def test_a_chunked_body_is_read_and_the_next_request_stays_whole(served):
    raw = served.connect()
    head = request("POST", "/msg/send", "Content-Type: application/json", "Transfer-Encoding: chunked")
    body = json_of("in chunks")
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:8], body[8:]))
    raw.send(head + chunks + b"0\r\n\r\n" + POLL)
    assert raw.answer().status == 200
    assert [m["content"] for m in raw.answer().json["messages"]] == ["in chunks"]


def test_a_chunked_body_may_wait_for_100_continue(served):
    raw = served.connect()
    raw.send(
        request(
            "POST", "/msg/send", "Content-Type: application/json", "Transfer-Encoding: chunked", "Expect: 100-continue"
        )
    )
    assert raw.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    body = json_of("x")
    assert raw.ask(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)).status == 200


def test_the_idempotency_header_makes_a_change_happen_once(served):
    raw = served.connect()
    once = post("/msg/send", json_of("once"), "Idempotency-Key: k-1")
    first, again = raw.ask(once), raw.ask(once)
    assert first.json == again.json
    assert "idempotent-replayed" not in first.headers
    assert (again.status, again.headers["idempotent-replayed"]) == (200, "true")
    assert served.contents() == ["once"]
    other = raw.ask(post("/msg/send", json_of("other"), "Idempotency-Key: k-1"))
    assert (other.status, other.code) == (422, "idempotency_mismatch")
    body = {"from": "ann", "to": "bob", "content": "once", "idempotency_key": "k-1"}
    assert raw.ask(post("/msg/send", body)).headers["idempotent-replayed"] == "true"
    assert raw.ask(post("/msg/send", body, "Idempotency-Key: k-2")).code == "idempotency_key_conflict"
    assert raw.ask(post("/msg/send", json_of("x"), "Idempotency-Key: a b")).code == "invalid_idempotency_key"
    assert served.contents() == ["once"]


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/msg/send", {"from": "ann", "to": "zoe", "content": "x"}, 404),
        ("/task/claim", {"agent_id": "zoe"}, 404),
    ],
)
def test_a_replayed_refusal_says_that_it_is_one(served, path, fields, status):
    raw = served.connect()
    data = post(path, fields, "Idempotency-Key: k-1")
    first = raw.ask(data)
    served.direct.call("agent.register", agent_id="zoe")
    again = raw.ask(data)
    assert first.status == again.status == status
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert first.headers["x-request-id"] != again.headers["x-request-id"]


def test_a_claim_is_replayed_by_its_idempotency_header(served):
    served.direct.call("task.post", posted_by="ann", description="one")
    served.direct.call("task.post", posted_by="ann", description="two")
    raw = served.connect()
    data = post("/task/claim", {"agent_id": "bob"}, "Idempotency-Key: k-1")
    first, again = raw.ask(data), raw.ask(data)
    assert first.json["task_id"] == again.json["task_id"]
    assert again.headers["idempotent-replayed"] == "true"


def test_a_refused_sender_is_told_when_to_come_again(serve):
    served = serve(inbox_limit=1)
    served.send()
    got = served.ask(message())
    assert (got.status, got.code, got.headers["retry-after"]) == (429, "inbox_full", "5")


# --- waiting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "noted"), [("121", "120"), ("99999", "120"), ("120", None), ("0", None)])
def test_fault_20_a_timeout_beyond_the_most_is_clamped_and_noted(served, asked, noted):
    served.send()
    got = served.ask(get(f"/msg/poll?agent_id=bob&timeout={asked}"))
    assert (got.status, got.headers.get("x-stonemux-timeout")) == (200, noted)


def test_fault_20_a_clamped_wait_ends_at_the_most(served):
    raw = served.connect()
    raw.send(get("/msg/poll?agent_id=bob&timeout=121"))
    served.clock.until_parked(1)
    served.clock.advance(119_999)
    assert served.clock.parked == 1
    served.clock.advance(1)
    assert raw.answer().json == {"messages": []}


def test_a_claim_in_json_is_clamped_too(served):
    served.direct.call("task.post", posted_by="ann", description="one")
    got = served.ask(post("/task/claim", {"agent_id": "bob", "timeout": 500}))
    assert got.headers["x-stonemux-timeout"] == "120"


def test_more_waiters_than_allowed_are_refused(serve):
    served = serve(max_waiters=2)
    parked = [served.connect() for _ in range(2)]
    parked[0].send(LONG_POLL)
    parked[1].send(get("/state/watch?key=k&timeout=30"))
    served.clock.until_parked(2)
    third = served.connect()
    got = third.ask(LONG_POLL)
    assert (got.status, got.code, got.headers["retry-after"]) == (503, "too_many_waiters", "1")
    assert got.json["error"]["limit"] == 2
    assert third.ask(POLL).status == 200  # without waiting it is answered as ever
    served.send()
    assert len(parked[0].answer().json["messages"]) == 1
    third.send(LONG_POLL)  # a place is free again
    served.clock.until_parked(2)
    served.clock.advance(30_000)
    assert third.answer().json == {"messages": []}


def test_more_waiters_of_one_agent_than_allowed_are_refused(serve):
    served = serve(max_waiters_per_agent=2)
    parked = [served.connect() for _ in range(2)]
    for raw in parked:
        raw.send(LONG_POLL)
    served.clock.until_parked(2)
    got = served.ask(LONG_POLL)
    assert (got.status, got.code, got.headers["retry-after"]) == (503, "too_many_waiters", "1")
    assert "agent" in got.json["error"]["message"]
    other = served.connect()
    other.send(get("/msg/poll?agent_id=ann&timeout=30"))
    served.clock.until_parked(3)
    served.clock.advance(30_000)
    assert [raw.answer().json for raw in (*parked, other)] == [{"messages": []}] * 3


@pytest.mark.parametrize("vanish", ["close", "reset", "finish"])
def test_a_parked_client_that_vanishes_frees_its_place_and_takes_nothing(served, vanish):
    raw = served.connect()
    raw.send(LONG_POLL)
    served.clock.until_parked(1)
    getattr(raw, vanish)()
    eventually(lambda: served.mux.waiters.count == 0 and not served.clock.parked)
    served.eventually(lambda: not served.server.open_connections)
    message_id = served.send()
    assert served.status_of(message_id) == "queued"
    assert [m["id"] for m in served.ask(POLL).json["messages"]] == [message_id]


def test_a_client_that_goes_right_after_asking_holds_no_place(served):
    for n in range(30):
        raw = served.connect()
        raw.send(LONG_POLL)
        raw.close() if n % 2 else raw.finish()
    eventually(lambda: served.server.open_connections == 0 and served.mux.waiters.count == 0)


def test_a_parked_watcher_that_vanishes_frees_its_place(served):
    for target in ("/state/watch?key=k&timeout=30", "/events/list?after=1000000&timeout=30"):
        raw = served.connect()
        raw.send(get(target).replace(b"after=1000000&", b"after=%d&" % served.mux.log.head))
        served.clock.until_parked(1)
        raw.reset()
        eventually(lambda: served.mux.waiters.count == 0)


@pytest.mark.skipif(OVER_TLS, reason="the end of a TLS client comes in a record of its own")
def test_i5_a_client_whose_end_came_together_with_its_poll_does_not_wait(served, monkeypatch):
    """The system reports that end with the poll, and not again."""
    raw, other, let_go = served.connect(), served.connect(), threading.Event()
    assert raw.ask(HEALTH).status == other.ask(HEALTH).status == 200
    handle = served.server.handle

    def handling(ours: Connection, head: Any, body: bytes) -> None:
        if head.path == "/health":
            let_go.wait(PATIENCE_S)
        handle(ours, head, body)

    monkeypatch.setattr(httpd, "HELD_UP_MS", 60_000)
    monkeypatch.setattr(served.server, "handle", handling)
    other.send(HEALTH)
    raw.send(LONG_POLL)
    raw.finish()
    served.pass_time(0)
    let_go.set()
    assert other.answer().status == 200
    assert raw.has_ended()
    eventually(lambda: served.mux.waiters.count == 0)
    message_id = served.send()
    assert [m["id"] for m in served.ask(POLL).json["messages"]] == [message_id]


def test_what_a_parked_client_sends_meanwhile_is_answered_after_the_wait(served):
    raw = served.connect()
    raw.send(LONG_POLL)
    served.clock.until_parked(1)
    raw.send(HEALTH)
    assert raw.is_silent()
    served.send("woken")
    assert [m["content"] for m in raw.answer().json["messages"]] == ["woken"]
    assert raw.answer().json["status"] == "ok"


def test_a_hundred_clients_that_vanish_while_parked_leave_nothing(serve):
    served = serve(max_waiters_per_agent=100)
    parked = [served.connect() for _ in range(100)]
    for raw in parked:
        raw.send(LONG_POLL)
    served.clock.until_parked(100)
    for raw in parked:
        raw.reset()
    eventually(lambda: served.mux.waiters.count == 0 and not served.server.open_connections)
    served.still_serves()


# --- receipts ------------------------------------------------------------------------------------------------------


def taken_by(raw: Raw, data: bytes = POLL) -> None:
    """Let a poll's answer arrive without reading it."""
    raw.send(data)
    raw.until_readable()


@pytest.mark.parametrize("lines", [(), ("Connection: close",)])
@pytest.mark.parametrize("vanish", ["close", "reset"])
def test_i5_a_client_that_goes_without_reading_gets_the_same_again(served, vanish, lines):
    ids = [served.send(f"{n}") for n in range(3)]
    raw = served.connect()
    taken_by(raw, get("/msg/poll?agent_id=bob&timeout=0", *lines))
    getattr(raw, vanish)()
    got = served.ask(LONG_POLL)  # waits until the loss is noticed
    assert [m["id"] for m in got.json["messages"]] == ids


def test_i5_a_client_that_reads_half_and_goes_gets_the_same_again(served):
    message_id = served.send("x" * 1000)
    raw = served.connect()
    taken_by(raw)
    assert len(system_socket(raw.sock).recv(100)) == 100
    raw.close()
    assert [m["id"] for m in served.ask(LONG_POLL).json["messages"]] == [message_id]


def test_i5_a_client_killed_while_a_large_answer_is_written_gets_the_same_again(served):
    ids = [served.send("x" * 60_000) for _ in range(100)]
    raw = served.connect()
    taken_by(raw)
    raw.reset()
    got = served.ask(LONG_POLL)
    assert [m["id"] for m in got.json["messages"]] == ids


def test_i5_however_a_client_goes_before_the_answer_nothing_is_lost(served, background):
    for n in range(60):
        message_id = served.send(f"{n}")
        raw = served.connect()
        raw.send(LONG_POLL if n % 2 else POLL)
        if n % 3 == 0:
            raw.reset()
        elif n % 3 == 1:
            raw.close()
        else:
            raw.finish()
            raw.close()
        got = background(served.ask, LONG_POLL)
        served.eventually(got.done)
        assert [m["id"] for m in got.result().json["messages"]] == [message_id]
        served.eventually(lambda sent=message_id: served.status_of(sent) == "acked")


@pytest.mark.parametrize("lines", [(), ("Connection: close",)])
def test_i5_a_clean_end_after_reading_settles(served, lines):
    message_id = served.send()
    raw = served.connect()
    assert len(raw.ask(get("/msg/poll?agent_id=bob&timeout=0", *lines)).json["messages"]) == 1
    assert served.status_of(message_id) == "fetched"
    raw.close()
    served.eventually(lambda: served.status_of(message_id) == "acked")
    assert served.ask(POLL).json == {"messages": []}


def test_i5_the_next_request_settles(served):
    message_id = served.send()
    raw = served.connect()
    assert len(raw.ask(POLL).json["messages"]) == 1
    assert raw.ask(HEALTH).status == 200
    served.eventually(lambda: served.status_of(message_id) == "acked")
    raw.reset()  # what happens later makes no difference
    assert served.ask(POLL).json == {"messages": []}


def test_i5_silence_after_an_answer_that_arrived_settles(served):
    message_id = served.send()
    raw = served.connect()
    assert len(raw.ask(POLL).json["messages"]) == 1
    served.until_acknowledged()
    served.eventually(lambda: served.status_of(message_id) == "acked", step=5_000)


def test_i5_what_was_pipelined_behind_a_poll_is_no_receipt(served):
    message_id = served.send()
    raw = served.connect()
    raw.send(POLL + HEALTH)
    raw.until_readable()
    raw.reset()
    assert [m["id"] for m in served.ask(LONG_POLL).json["messages"]] == [message_id]


def test_i5_what_was_said_while_a_poll_waited_is_no_receipt(served):
    raw = served.connect()
    raw.send(LONG_POLL)
    served.clock.until_parked(1)
    raw.send(HEALTH)
    served.until_acknowledged()
    message_id = served.send()
    raw.until_readable()
    raw.reset()
    assert [m["id"] for m in served.ask(LONG_POLL).json["messages"]] == [message_id]


def test_i5_an_orderly_end_that_a_reset_follows_puts_back(served):
    message_id = served.send()
    raw = served.connect()
    taken_by(raw)
    raw.finish()
    eventually(lambda: served.server._verdicts)
    raw.close()  # with the answer unread
    served.eventually(lambda: not served.mux.flights.held("bob"))
    assert [m["id"] for m in served.ask(POLL).json["messages"]] == [message_id]


@pytest.mark.skipif(OVER_TLS, reason="TLS has a verdict of its own")
def test_i5_a_reset_that_nobody_has_heard_of_before_the_verdict_puts_back(served, monkeypatch):
    message_id = served.send()
    raw = served.connect()
    taken_by(raw)
    raw.finish()
    eventually(lambda: served.server._verdicts)
    (ours,) = served.server._connections.values()
    monkeypatch.setattr(Connection, "stir", lambda connection, ready: None)
    raw.close()
    poller = select.poll()
    poller.register(ours.sock, 0)
    assert poller.poll(PATIENCE_S * 1000)[0][1] & select.POLLERR
    served.pass_time()
    eventually(lambda: not served.server.open_connections)
    monkeypatch.undo()
    assert [m["id"] for m in served.ask(POLL).json["messages"]] == [message_id]


def test_i5_silence_before_an_answer_has_arrived_puts_back(served):
    ids = [served.send("x" * 60_000) for _ in range(4)]
    raw = served.connect()
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    taken_by(raw)
    (ours,) = served.server._connections.values()
    eventually(lambda: ours.idle_since is not None, "the system takes the whole answer")
    assert unacknowledged(ours.sock)
    served.eventually(lambda: not served.mux.flights.held("bob"), step=5_000)
    assert [m["id"] for m in served.ask(LONG_POLL).json["messages"]] == ids


def test_i5_a_leased_message_whose_answer_was_lost_was_never_delivered(served):
    message_id = served.send()
    raw = served.connect()
    taken_by(raw, get("/msg/poll?agent_id=bob&timeout=0&ack=manual&lease=60"))
    raw.reset()
    (again,) = served.ask(get("/msg/poll?agent_id=bob&timeout=60&ack=manual&lease=60")).json["messages"]
    assert (again["id"], again["deliveries"], "redelivered" in again) == (message_id, 1, False)


def test_i5_making_room_for_others_is_no_loss_to_one_who_has_read(serve):
    served = serve(max_connections=4)
    message_id = served.send()
    raw = served.connect()
    assert len(raw.ask(POLL).json["messages"]) == 1
    served.until_acknowledged()
    others = []
    while not others or raw.is_silent(0):
        served.pass_time(1)
        others.append(served.connect())
        assert others[-1].ask(HEALTH).status == 200
    assert len(others) == 4
    eventually(lambda: served.status_of(message_id) == "acked")


def test_i5_a_poll_pipelined_before_a_stream_is_put_back_on_doubt(served):
    message_id = served.send()
    raw = served.connect()
    raw.send(POLL + get("/events"))
    assert len(raw.answer().json["messages"]) == 1
    assert raw.head()[0] == 200
    eventually(lambda: not served.mux.flights.held("bob"))
    assert [m["id"] for m in served.ask(LONG_POLL).json["messages"]] == [message_id]


def test_two_polls_never_hold_the_same_message(served):
    ids = [served.send(f"{n}") for n in range(2)]
    one, two = served.connect(), served.connect()
    first = one.ask(get("/msg/poll?agent_id=bob&timeout=0&limit=1")).json["messages"]
    second = two.ask(POLL).json["messages"]
    assert [m["id"] for m in first + second] == ids


def test_i5_messages_in_flight_are_put_back_by_a_stop(serve, open_program):
    served = serve()
    message_id = served.send()
    raw = served.connect()
    taken_by(raw)
    raw.reset()
    served.server.stop()
    mux = served.program.reopen()
    got = Direct(mux).call("msg.poll", agent_id="bob", timeout=0)
    assert [m["id"] for m in got["messages"]] == [message_id]


# --- faults of the bytes -------------------------------------------------------------------------------------------

SMUGGLED = message("smuggled")


def test_fault_01_length_and_chunks_together(served):
    data = request(
        "POST", "/msg/send", "Content-Type: application/json", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"
    )
    served.refuses(data + SMUGGLED, 400, "te_and_cl", closes=True)


def test_fault_02_two_different_lengths(served):
    data = request("POST", "/msg/send", "Content-Length: 0", body=b"abcd")
    served.refuses(data + SMUGGLED, 400, "duplicate_header", closes=True)


@pytest.mark.parametrize("length", ["+4", "1_0", "-1", "abc", "4" * 4301])
def test_fault_03_odd_lengths(served, length):
    data = request("POST", "/msg/send", "Content-Type: application/json", f"Content-Length: {length}")
    served.refuses(data + SMUGGLED, 400, "bad_content_length", closes=True)


def test_fault_04_a_huge_length_is_refused_before_reading(served):
    data = request("POST", "/msg/send", "Content-Type: application/json", "Content-Length: 99999999999")
    got = served.refuses(data, 413, "body_too_large", closes=True)
    assert got.json["error"]["limit"] == BODY_LIMIT


def test_fault_04_a_huge_chunk_is_refused_before_reading(served):
    data = request("POST", "/msg/send", "Content-Type: application/json", "Transfer-Encoding: chunked")
    served.refuses(data + b"ffffffff\r\n", 413, "body_too_large", closes=True)


def test_fault_05_a_truncated_body_writes_nothing(served):
    raw = served.connect()
    raw.send(request("POST", "/msg/send", "Content-Type: application/json", "Content-Length: 100") + json_of("cut"))
    raw.finish()
    got = raw.answer()
    assert (got.status, got.code) == (400, "truncated_body")
    assert raw.has_ended()
    assert served.contents() == []
    served.still_serves()


@pytest.mark.parametrize(
    "data",
    [
        b"POST /msg/send HTTP/1.1\r\nHost: localhost\r\nContent-Length : 4\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\nX: a\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
    ],
    ids=["blank before colon", "obs-fold", "bare LF", "bare CR", "NUL", "no colon"],
)
def test_fault_06_malformed_headers(served, data):
    served.refuses(data + SMUGGLED, 400, "bad_header", closes=True)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (get("/" + "a" * (8192 + 1 - len("GET / HTTP/1.1"))), 414, "uri_too_long"),
        (get("/health", *(f"X-{n}: y" for n in range(64))), 431, "too_many_headers"),
        (get("/health", *(f"X-{n}: {'y' * 1000}" for n in range(33))), 431, "headers_too_large"),
    ],
)
def test_fault_07_oversized_heads(served, data, status, code):
    served.refuses(data, status, code, closes=True)


def test_fault_07_the_limits_themselves_are_fine(served):
    raw = served.connect()
    assert raw.ask(get("/" + "a" * (8192 - len("GET / HTTP/1.1")))).status == 404
    assert raw.ask(get("/health", *(f"X-{n}: y" for n in range(63)))).status == 200


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", "host_required"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", "duplicate_header"),
    ],
)
def test_fault_08_a_missing_or_second_host(served, data, code):
    served.refuses(data, 400, code, closes=True)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "localhost:1", ""])
def test_fault_08_a_foreign_host(served, host):
    got = served.refuses(request("GET", "/health", host=host), 421, "host_not_allowed")
    assert "server.allowed_hosts" in got.json["error"]["message"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("Origin: https://evil", "origin_not_allowed"),
        ("Origin: null", "origin_not_allowed"),
        ("Sec-Fetch-Site: cross-site", "cross_site"),
        ("Sec-Fetch-Site: same-site", "cross_site"),
    ],
)
def test_fault_09_a_foreign_page_polls_nothing(served, line, code):
    message_id = served.send()
    raw = served.connect()
    got = raw.ask(get("/msg/poll?agent_id=bob&timeout=30", line))
    assert (got.status, got.code) == (403, code)
    assert not any(name.startswith("access-control") for name in got.headers)
    assert served.status_of(message_id) == "queued"
    assert raw.ask(request("HEAD", "/health", line), head=True).status == 403
    assert raw.ask(request("OPTIONS", "/msg/poll", line)).status == 403
    got = raw.ask(request("POST", "/document/create", line, "Content-Length: 9000000"))
    assert (got.status, got.code, got.headers["connection"]) == (403, code, "close"), "nothing is kept of a long body"
    served.still_serves()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_fault_10_a_form_changes_nothing(served, kind):
    served.refuses(post("/msg/send", json_of("form"), f"Content-Type: {kind}"), 415, "content_type")


def test_fault_10_no_type_at_all_changes_nothing(served):
    served.refuses(b"POST /msg/send HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 415, "content_type")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (get("/health", "Expect: banana"), 417, "expectation_failed"),
        (request("BREW", "/health"), 501, "method_unknown"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http_version"),
        (request("GET", "/health", version="1.9"), 400, "bad_request_line"),
        (b"GET /health\r\n\r\n", 400, "bad_request_line"),
        (b"GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request_line"),
    ],
)
def test_fault_11_other_expectations_methods_and_versions(served, data, status, code):
    served.refuses(data, status, code, closes=True)


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("16030100b2010000ae0303") + bytes(range(167)),
        bytes(range(128, 256)) * 8,
        b"\0",
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["TLS", "binary", "NUL", "blank lines", "SSH"],
)
def test_fault_12_what_is_not_http_is_refused_at_once(served, data):
    raw = served.connect()
    got = raw.ask(data)
    assert got.status == 400
    assert raw.has_ended()
    served.still_serves()


@pytest.mark.parametrize(
    "opening",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        request("POST", "/msg/send", "Content-Type: application/json", "Content-Length: 1000") + b'{"from',
        b"",
    ],
    ids=["headers", "body", "nothing"],
)
def test_fault_13_slow_clients_make_room(serve, opening):
    served = serve(max_connections=8)
    slow = [served.connect() for _ in range(40)]
    for raw in slow:
        with contextlib.suppress(ConnectionError):
            raw.send(opening)
    served.still_serves()
    assert served.server.open_connections <= 8
    assert served.contents() == [f"still there {next(_numbers) - 1}"]


@pytest.mark.parametrize("opening", [b"GET /health HTTP/1.1\r\n", post("/msg/send", json_of("slow" * 50))[:-100]])
def test_fault_13_a_request_that_comes_drop_by_drop_has_a_total_deadline(served, opening):
    raw = served.connect()
    raw.send(opening)
    eventually(lambda: [ours._phase != "idle" for ours in served.connections()] == [True])
    for drop in b"X: " + b"y" * 100 if b"POST" not in opening else b"     ":
        with contextlib.suppress(ConnectionError):
            raw.send(bytes([drop]))
        if not raw.is_silent():
            break
        served.pass_time(4_000)
    got = raw.answer()
    assert (got.status, got.code) == (408, "request_timeout")
    assert raw.has_ended()
    served.still_serves()


def test_fault_13_a_request_that_stops_coming_is_told(served):
    for data in (HEALTH[:-4], message()[:-4]):
        raw = served.connect()
        raw.send(data)
        served.eventually(lambda raw=raw: not raw.is_silent(0), step=5_000)
        got = raw.answer()
        assert (got.status, got.code) == (408, "request_timeout")
        assert raw.has_ended()
    served.still_serves()


@pytest.mark.parametrize(("data", "phase", "ms"), [(HEALTH[:-4], "head", 5_000), (message()[:-4], "body", 10_000)])
def test_fault_13_a_head_has_5_s_and_a_body_10(served, data, phase, ms):
    raw = served.connect()
    raw.send(data)
    eventually(lambda: [ours._phase for ours in list(served.server._connections.values())] == [phase])
    served.pass_time(ms - 1)
    assert raw.is_silent()
    served.pass_time(AFTER_MS)
    assert raw.answer().code == "request_timeout"


def test_who_comes_when_no_descriptor_is_left_is_turned_away_at_once(served, caplog):
    server, (soft, hard) = served.server, resource.getrlimit(resource.RLIMIT_NOFILE)
    late = [socket.socket() for _ in range(3)]
    first_free = os.dup(late[0].fileno())
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
    try:
        for sock in late:
            sock.settimeout(PATIENCE_S)
            sock.connect(("127.0.0.1", served.port))
            assert sock.recv(65536)
        rounds = server._round
        select.select([], [], [], 0.05)
        assert server._round - rounds < 10, "nobody waits who would be reported again and again"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for sock in late:
            sock.close()
    assert caplog.messages.count("a connection was turned away: Too many open files") == 3
    caplog.clear()
    served.still_serves()


def test_fault_14_idle_connections_make_room(serve):
    served = serve(max_connections=16)
    idle = [served.connect() for _ in range(100)]
    served.still_serves()
    assert served.server.open_connections <= 16
    assert sum(raw.is_silent(0) for raw in idle) <= 16


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"from":"ann","to":"bob","content":"x","priority":NaN}', "invalid_json"),
        (b'{"from":"ann","to":"bob","content":"x","priority":Infinity}', "invalid_json"),
        (b'{"from":"ann","to":"bob","content":"x","priority":1e999}', "invalid_json"),
        (b'{"from":"ann","to":"bob","content":"x","content":"y"}', "duplicate_key"),
        (json_of("x") + b"x", "invalid_json"),
        (b"\xef\xbb\xbf" + json_of("x"), "invalid_utf8"),
        (json_of("x").decode().encode("utf-16"), "invalid_utf8"),
        (b'{"from":"ann","to":"bob","content":"\xff"}', "invalid_utf8"),
        (b"[]", "invalid_json"),
        (b"", "invalid_json"),
    ],
)
def test_fault_15_odd_json(served, body, code):
    served.refuses(post("/msg/send", body), 400, code)


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b'{"metadata":' + b"[" * 65 + b"]" * 65 + b"}"])
def test_fault_16_deep_json(served, body):
    served.refuses(post("/msg/send", body), 400, "json_too_deep")


@pytest.mark.parametrize(
    ("number", "code"), [("1" * 5000, "invalid_json"), (str(2**63), "invalid_field"), ("1001", "invalid_field")]
)
def test_fault_17_huge_integers(served, number, code):
    body = json_of("x")[:-1] + f',"priority":{number}}}'.encode()
    got = served.refuses(post("/msg/send", body), 400, code)
    if code == "invalid_field":
        assert got.json["error"]["parameter"] == "priority"


@pytest.mark.parametrize("half", ["\\ud800", "\\udc00x", "x\\ud83d\\ud83d"])
def test_fault_18_half_a_surrogate_pair(served, half):
    body = f'{{"from":"ann","to":"bob","content":"{half}"}}'.encode()
    served.refuses(post("/msg/send", body), 400, "invalid_unicode")


@pytest.mark.parametrize("content", ["x" * 65_536, "\u00e9" * 32_768, "\U0001f600" * 16_384, "a\0b\r\n\u2028"])
def test_fault_19_the_largest_content_comes_back_identical(served, content):
    raw = served.connect()
    body = json.dumps({"from": "ann", "to": "bob", "content": content}, ensure_ascii=False).encode()
    assert raw.ask(post("/msg/send", body)).status == 200
    assert [m["content"] for m in raw.ask(POLL).json["messages"]] == [content]


@pytest.mark.parametrize("content", ["x" * 65_537, "x" + "\u00e9" * 32_768])
def test_fault_19_a_byte_more_is_refused(served, content):
    body = json.dumps({"from": "ann", "to": "bob", "content": content}, ensure_ascii=False).encode()
    got = served.refuses(post("/msg/send", body), 413, "message_too_large")
    assert got.json["error"]["limit"] == 65_536


@pytest.mark.parametrize("timeout", ["nan", "inf", "-5", "1_0", "%D9%A3", "1.5", "", "+5", "5%20", "9" * 30])
def test_fault_20_odd_timeouts(served, timeout):
    served.refuses(get(f"/msg/poll?agent_id=bob&timeout={timeout}"), 400, "invalid_timeout")


def test_fault_20_a_timeout_in_other_digits_raw(served):
    data = b"GET /msg/poll?agent_id=bob&timeout=\xd9\xa3 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    served.refuses(data, 400, "bad_request_line", closes=True)


@pytest.mark.parametrize("query", ["key=%ff", "key=a&key=b", "key=%zz", "key=a&&channel=default", "key", "=x"])
def test_fault_21_queries_that_could_mean_two_things(served, query):
    served.direct.call("state.set", key="\ufffd", value="other")
    served.refuses(get(f"/state/get?{query}"), 400, "invalid_query")


def test_any_bytes_get_an_answer_or_a_close_and_no_answer_is_a_fault_of_ours(served):
    seed = (
        b"POST /msg/send HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n{x}"
    )
    for at in range(0, len(seed), 3):
        for odd in (b"\0", b"\r", b"\n", b" ", b"\xff", b":"):
            with Raw(served.port) as raw:
                raw.send(seed[:at] + odd + seed[at + 1 :])
                raw.finish()
                statuses = []
                while not (raw.at_end()):
                    statuses.append(raw.answer().status)
                assert all(400 <= status < 500 or status in (501, 505) for status in statuses)
    served.still_serves()


def out_of_memory(*_: Any, **__: Any) -> None:
    raise MemoryError


@pytest.mark.parametrize("data", [HEALTH, get("/stats"), message(), LONG_POLL], ids=["here", "aside", "change", "wait"])
def test_who_cannot_even_be_told_of_a_failure_is_hung_up_on(served, monkeypatch, caplog, data):
    served.server._readers._most = 1  # the next read needs the place of the one that failed
    raw = served.connect()
    monkeypatch.setattr("stonemux.payload.write_line", out_of_memory)
    raw.send(data)
    if data == LONG_POLL:
        served.clock.until_parked(1)
        served.send()
    assert raw.has_ended()
    monkeypatch.undo()
    eventually(lambda: len(caplog.records) == 2)  # the failure, and that it could not be told
    caplog.clear()
    assert served.ask(get("/stats")).status == 200
    served.still_serves()


@pytest.mark.parametrize("what", ["wait", "lead"])
def test_a_fault_of_the_event_loop_itself_does_not_end_it(served, monkeypatch, caplog, what):
    failed: list[bool] = []

    def fail_once(*_: Any, **__: Any) -> Any:
        monkeypatch.undo()
        failed.append(True)
        raise MemoryError

    monkeypatch.setattr(served.server._ready if what == "wait" else served.mux.store, what, fail_once)
    served.server.ring()
    eventually(lambda: failed)
    served.still_serves()
    assert "the event loop failed" in caplog.text
    caplog.clear()


def test_a_client_that_closes_its_side_behind_a_slow_read_gets_the_answer(served, monkeypatch):
    raw, in_turn, begun = served.connect(), served.server.in_turn, threading.Event()
    assert raw.ask(HEALTH).status == 200
    (ours,) = served.connections()

    def late(read: Callable[[], None]) -> None:
        begun.set()
        in_turn(lambda: eventually(lambda: ours.gone) and read())

    monkeypatch.setattr(served.server, "in_turn", late)
    raw.send(get("/stats"))
    assert begun.wait(PATIENCE_S)
    raw.finish()
    assert raw.answer().status == 200


def test_a_connection_that_fails_harms_no_other(served, monkeypatch, caplog):
    one, other = served.connect(), served.connect()
    assert one.ask(HEALTH).status == other.ask(HEALTH).status == 200
    found = list(served.server._connections.values())
    (broken,) = [each for each in found if system_socket(each.sock).getpeername() == one.sock.getsockname()]
    stir = Connection.stir

    def fail_once(self: Connection, ready: Ready) -> None:
        if self is broken:
            raise AssertionError("a fault")
        stir(self, ready)

    monkeypatch.setattr(Connection, "stir", fail_once)
    one.send(HEALTH)
    other.send(HEALTH)
    assert other.answer().status == 200
    eventually(lambda: "a connection failed" in caplog.text)
    monkeypatch.undo()
    caplog.clear()
    served.still_serves()


# --- a connection by itself ----------------------------------------------------------------------------------------


class Attendant:
    """What a connection needs of a server; remembers what it was handed."""

    stopping = False
    over = False

    def __init__(self) -> None:
        self.handled: list[bytes] = []

    def ticks_ms(self) -> int:
        return 0

    def handle(self, connection: Connection, head: Any, body: bytes) -> None:
        self.handled.append(body)

    def refuse(self, connection: Connection, error: Exception) -> None:
        raise AssertionError(error)

    def revisit(self, connection: Connection) -> None:
        connection.attend()

    def await_verdict(self, connection: Connection) -> None:
        pass

    def remind(self, deadline: int) -> None:
        pass

    def ended(self, connection: Connection) -> None:
        self.over = True


class Stuck:
    """A socket that takes nothing as long as `full` is set."""

    full = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes) -> int:
        if self.full:
            raise BlockingIOError
        return self._sock.send(data)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a connection: ours, theirs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), timeout=PATIENCE_S)
        ours = listener.accept()[0]
    with ours, theirs:
        yield ours, theirs


HEARD = Ready(-1, writable=False, ended=False)


class Verdicts:
    """Something in flight; notes what became of it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def landed(self) -> None:
        self.told.append("landed")

    def lost(self) -> None:
        self.told.append("lost")


@pytest.mark.parametrize("heard", [0, 1], ids=["never", "later"])
def test_i5_more_than_is_read_ahead_of_an_answer_is_no_receipt_of_it(pair, heard):
    """Long requests were pipelined behind a poll: what is left of them when it is answered says nothing about it."""
    ours, theirs = pair
    attendant, first, second = Attendant(), Verdicts(), Verdicts()
    kept = Connection(attendant, ours)
    size = connection.HEARD_OUT * 3 // 2
    theirs.sendall(request("POST", "/x", body=b"1"))
    eventually(lambda: unread(ours))
    kept.stir(HEARD)
    theirs.sendall(request("POST", "/x", body=b"2" * size))
    eventually(lambda: unread(ours) > size)
    kept.finish(b"answer", close=False, flight=first)
    kept.stir(HEARD)
    assert len(attendant.handled) == 2
    assert first.told == []
    if heard:  # what follows an answer before which all was read speaks for the earlier ones, too
        kept.finish(b"answer", close=False, flight=second)
        theirs.sendall(b"POST")
        eventually(lambda: unread(ours))
        kept.stir(HEARD)
        assert first.told == second.told == ["landed"]
    else:
        theirs.close()  # with an answer unread
        eventually(lambda: select.select([ours], [], [], 0)[0])
        kept.finish(b"answer", close=False)
        kept.stir(HEARD)
        kept.conclude()
        assert first.told == ["lost"]


def test_a_100_continue_that_is_late_is_not_taken_for_the_answer(pair):
    ours, theirs = pair
    attendant, stuck = Attendant(), Stuck(ours)
    kept = Connection(attendant, stuck)
    stuck.full = True
    theirs.sendall(request("POST", "/x", "Content-Length: 1", "Expect: 100-continue"))
    eventually(lambda: unread(ours))
    kept.stir(HEARD)
    theirs.sendall(b"1" + request("POST", "/x", body=b"2"))
    eventually(lambda: unread(ours))
    kept.stir(HEARD)
    assert attendant.handled == [b"1"]
    stuck.full = False
    kept.stir(HEARD._replace(writable=True))
    assert theirs.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert attendant.handled == [b"1"], "the second request must wait for the answer to the first"
    kept.finish(b"answer", close=False)
    assert theirs.recv(100) == b"answer"
    assert attendant.handled == [b"1", b"2"]


def test_a_request_that_is_never_finished_does_not_keep_its_connection_forever(pair):
    ours, theirs = pair
    attendant = Attendant()
    kept = Connection(attendant, ours)
    theirs.sendall(request("POST", "/x", body=b"1"))
    eventually(lambda: unread(ours))
    kept.stir(HEARD)
    assert kept.overdue(connection.GONE_MS) is None
    assert not attendant.over, "the client still waits"
    theirs.close()
    kept.stir(HEARD._replace(ended=True))
    assert kept.overdue(connection.GONE_MS - 1) == connection.GONE_MS
    assert not attendant.over
    kept.overdue(connection.GONE_MS)
    assert attendant.over
    kept.finish(b"answer", close=False)


def test_an_end_that_came_together_with_the_request_is_acted_on_after_the_answer(pair):
    """The system tells of it once only."""
    ours, theirs = pair
    attendant = Attendant()
    kept = Connection(attendant, ours)
    theirs.sendall(request("POST", "/x", body=b"1"))
    theirs.shutdown(socket.SHUT_WR)
    eventually(lambda: unread(ours))
    kept.stir(HEARD._replace(ended=True))
    assert attendant.handled == [b"1"]
    kept.finish(b"answer", close=False)
    assert theirs.recv(100) == b"answer"
    assert theirs.recv(100) == b""
    assert attendant.over


def test_what_a_full_read_left_behind_is_read_after_the_answer(pair):
    ours, theirs = pair
    attendant = Attendant()
    kept = Connection(attendant, ours)
    size = connection.RECEIVE - len(request("POST", "/x", body=b"1" * 16_000)) + 16_000
    first = request("POST", "/x", body=b"1" * size)
    assert len(first) == connection.RECEIVE
    theirs.sendall(first + request("POST", "/x", body=b"2"))
    eventually(lambda: unread(ours) > len(first))
    kept.stir(HEARD)
    assert len(attendant.handled) == 1
    kept.finish(b"answer", close=False)
    assert attendant.handled[1:] == [b"2"]


# --- two kinds of clients ------------------------------------------------------------------------------------------


class AnewEachTime:
    """As frameworks do it: urllib, a new connection for each call, optional fields sent as null."""

    def __init__(self, port: int) -> None:
        self._base = f"{SCHEME}://127.0.0.1:{port}"

    def post(self, path: str, **fields: Any) -> tuple[int, Any]:
        operation = next(op for op in OPERATIONS if op.path == path)
        given = {param.name: None for param in operation.params if not param.required} | fields
        data = json.dumps(given).encode()
        return self._call(
            urllib.request.Request(self._base + path, data, {"Content-Type": "application/json", "Accept": "*/*"})
        )

    def get(self, path: str, **fields: Any) -> tuple[int, Any]:
        return self._call(urllib.request.Request(f"{self._base}{path}?{urllib.parse.urlencode(fields)}"))

    def _call(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S, context=trusting()) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def close(self) -> None:
        pass


class KeptAlive:
    """One connection of http.client for everything, and only the fields that carry something."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("localhost", port, timeout=PATIENCE_S)
        if OVER_TLS:
            self._connection = http.client.HTTPSConnection("localhost", port, timeout=PATIENCE_S, context=trusting())
        self._connection.connect()
        self._sock = self._connection.sock

    def post(self, path: str, **fields: Any) -> tuple[int, Any]:
        self._connection.request("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
        return self._answer()

    def get(self, path: str, **fields: Any) -> tuple[int, Any]:
        self._connection.request("GET", f"{path}?{urllib.parse.urlencode(fields)}")
        return self._answer()

    def _answer(self) -> tuple[int, Any]:
        response = self._connection.getresponse()
        body = json.loads(response.read())
        assert self._connection.sock is self._sock, "the connection was not kept"
        return response.status, body

    def close(self) -> None:
        self._connection.close()


@pytest.mark.parametrize("kind", [AnewEachTime, KeptAlive])
def test_frameworks_and_programs_work_alike(served, kind):
    client = kind(served.port)
    try:
        _scenario(client)
    finally:
        client.close()


def _scenario(client: AnewEachTime | KeptAlive) -> None:
    for agent_id, skills in (("manager", []), ("writer", ["prose"]), ("critic", [])):
        status, made = client.post("/agent/register", agent_id=agent_id, capabilities=skills)
        assert (status, made["created"], made["agent"]["channel"]) == (200, True, "default")
    status, sent = client.post("/msg/send", **{"from": "manager", "to": "writer", "content": "begin"})
    assert (status, sent["recipient_status"]) == (200, "active")
    status, got = client.get("/msg/poll", agent_id="writer", timeout=5)
    assert (status, [m["content"] for m in got["messages"]]) == (200, ["begin"])
    assert client.get("/msg/poll", agent_id="writer", timeout=0) == (200, {"messages": []})
    status, told = client.post("/msg/broadcast", **{"from": "manager", "content": "all hands"})
    assert (status, told["recipients"]) == (200, 4)  # ann and bob are there, too
    status, posted = client.post(
        "/task/post", description="draft", posted_by="manager", required_capability="prose", priority=5
    )
    assert status == 200
    assert client.post("/task/claim", agent_id="critic")[1]["task_id"] is None
    status, claimed = client.post("/task/claim", agent_id="writer")
    assert (status, claimed["task_id"]) == (200, posted["task_id"])
    status, done = client.post("/task/complete", task_id=posted["task_id"], agent_id="writer", result="three pages")
    assert (status, done["task"]["result"]) == (200, "three pages")
    assert client.post("/state/set", key="stage", value="draft", updated_by="writer")[1]["version"] == 1
    assert client.post("/state/set", key="stage", value="final", expected_version=1)[1]["version"] == 2
    status, refused = client.post("/state/set", key="stage", value="lost", expected_version=1)
    assert (status, refused["error"]["code"], refused["error"]["current_version"]) == (409, "version_conflict", 2)
    assert client.get("/state/get", key="stage")[1]["value"] == "final"
    status, refused = client.post("/msg/send", **{"from": "manager", "to": "wroter", "content": "x"})
    assert (status, refused["error"]["known_agents"][0]) == (404, "writer")
    assert len(client.get("/agent/discover", status="active")[1]["agents"]) == 5
    assert client.get("/task/list", status="complete")[1]["tasks"][0]["task_id"] == posted["task_id"]
