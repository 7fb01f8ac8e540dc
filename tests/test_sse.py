"""Event streams as bytes: frames, resuming, gaps, slow and vanished readers. The numbers are those promised."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from conftest import Program
from faces import Direct, OverHttp
from raw import PATIENCE_S, Raw, eventually, get, request
from streams import Reader

from stonemux import events, sse, threads
from stonemux.errors import MuxError
from stonemux.record import replace
from stonemux.vocabulary import EVENT_KINDS


class Streaming:
    """A daemon with ann and bob in it, and readers that are closed at the end."""

    def __init__(self, program: Program, face: OverHttp, stack: ExitStack) -> None:
        self.program, self.mux, self.clock = program, program.mux, program.clock
        self.server, self.streamer, self.port = face.server, face.server.streamer, face.port
        self.direct = Direct(program.mux)
        self._stack = stack
        for agent_id in ("ann", "bob"):
            self.direct.call("agent.register", agent_id=agent_id)

    @property
    def head(self) -> int:
        return self.mux.log.head

    def read(self, target: str = "/events", *lines: str, buffer: int | None = None) -> Reader:
        reader = self._stack.enter_context(Reader(self.port, target, *lines, buffer=buffer))
        assert reader.status == 200
        reader.begin()
        return reader

    def refusal(self, target: str, *lines: str) -> tuple[int, str]:
        with Raw(self.port) as raw:
            got = raw.ask(get(target, *lines))
            return got.status, got.code

    def send(self, content: str = "hi", **more: Any) -> int:
        """Send a message; returns the event's id."""
        self.direct.call("msg.send", from_="ann", to="bob", content=content, **more)
        return self.head

    def pass_time(self, ms: int) -> None:
        """Move the clock and let the streamer look at it."""
        self.clock.advance(ms)
        self.streamer.wake()

    def forget(self, through: int) -> None:
        """Purge the log's table."""
        self.mux.store.write(lambda tx: events.purge(tx, through, tx.now + 1, 1_000_000))


@pytest.fixture
def open_stream(open_program: Callable[..., Program]) -> Iterator[Callable[..., Streaming]]:
    with ExitStack() as stack:

        def opener(**settings: Any) -> Streaming:
            program = open_program(**settings)
            return Streaming(program, stack.enter_context(OverHttp(program.mux)), stack)

        yield opener


@pytest.fixture
def streaming(open_stream: Callable[..., Streaming]) -> Streaming:
    return open_stream()


# --- the form ------------------------------------------------------------------------------------------------------


def test_e2_a_stream_begins_with_retry_and_the_head(streaming):
    reader = streaming.read()
    assert reader.headers["content-type"] == "text/event-stream"
    assert reader.headers["cache-control"] == "no-store"
    assert reader.headers["x-request-id"]
    assert "content-length" not in reader.headers
    assert reader.headers["x-stonemux-event-head"] == str(streaming.head)
    assert reader.headers["x-stonemux-last-event-id"] == str(streaming.head)


def test_e2_the_header_names_the_id_before_the_first_one_sent(streaming):
    reader = streaming.read("/events?last_event_id=1")
    assert reader.headers["x-stonemux-event-head"] == str(streaming.head)
    assert reader.headers["x-stonemux-last-event-id"] == "1"
    assert reader.frame().id == 2


def test_e8_a_frame_has_id_event_and_data_on_one_line(streaming):
    reader = streaming.read()
    event_id = streaming.send("two\nlines\r\n\u2028 and \0 an \u00e9")
    block = reader.block()
    sent = streaming.direct.call("msg.list", agent_id="bob")["messages"][0]
    assert block.split("\n")[:2] == [f"id: {event_id}", "event: message"]
    (line,) = block.split("\n")[2:]
    assert "\r" not in line
    assert "\0" not in line
    data = json.loads(line.removeprefix("data: "))
    assert data == {name: sent[name] for name in ("id", "from", "to", "content", "channel", "sent_at")}


def test_e1_ids_rise_by_one_and_kinds_are_of_the_list(streaming):
    reader = streaming.read("/events?last_event_id=0")
    streaming.direct.call("channel.create", name="ops", created_by="ann")
    streaming.send()
    task = streaming.direct.call("task.post", posted_by="ann", description="work")["task_id"]
    streaming.direct.call("task.claim", agent_id="bob")
    streaming.direct.call("task.complete", agent_id="bob", task_id=task)
    streaming.direct.call("state.set", key="k", value="v")
    frames = reader.frames(streaming.head)
    assert [frame.id for frame in frames] == list(range(1, streaming.head + 1))
    assert {frame.event for frame in frames} <= set(EVENT_KINDS)
    assert [frame.event for frame in frames[-6:]] == [
        "channel_created",
        "message",
        "task_posted",
        "task_claimed",
        "task_completed",
        "state_changed",
    ]


def test_a_stream_may_follow_other_requests_on_its_connection(streaming):
    with Raw(streaming.port) as raw:
        assert raw.ask(get("/health")).status == 200
        raw.send(get("/events?last_event_id=0"))
        assert raw.head()[0] == 200
        assert b"retry: 2000" in raw.read_until(b"\n\n")
        assert b"id: 1\n" in raw.read_until(b"\n\n")


# --- resuming ------------------------------------------------------------------------------------------------------


def test_e6_without_an_id_a_stream_begins_now(streaming):
    streaming.send("before")
    reader = streaming.read()
    event_id = streaming.send("after")
    assert reader.frame()[0] == event_id


@pytest.mark.parametrize("ring", [1000, 3, 1])
def test_e3_a_stream_resumes_after_the_last_id(open_stream, ring):
    streaming = open_stream(max_event_buffer=ring)
    ids = [streaming.send(f"{n}") for n in range(10)]
    reader = streaming.read("/events", f"Last-Event-ID: {ids[3]}")
    assert [frame.id for frame in reader.frames(6)] == ids[4:]
    assert reader.is_silent()
    live = streaming.send("live")
    assert reader.frame().id == live


def test_e3_the_header_wins_over_the_query(streaming):
    ids = [streaming.send(f"{n}") for n in range(3)]
    reader = streaming.read(f"/events?last_event_id={ids[0]}", f"Last-Event-ID: {ids[1]}")
    assert reader.frame().id == ids[2]


def test_e6_zero_replays_all_that_is_kept(streaming):
    reader = streaming.read("/events?last_event_id=0")
    assert [frame.id for frame in reader.frames(streaming.head)] == list(range(1, streaming.head + 1))


@pytest.mark.parametrize("ring", [1000, 7])
def test_e3_resuming_makes_neither_hole_nor_double_while_events_keep_coming(open_stream, background, ring):
    streaming = open_stream(max_event_buffer=ring)
    first = streaming.head
    total = 400

    def talk() -> None:
        for n in range(total):
            streaming.send(f"{n}")

    talking = background(talk)
    seen: list[int] = []
    last = first
    while last < first + total:
        with Reader(streaming.port, "/events", f"Last-Event-ID: {last}") as reader:
            reader.begin()
            for frame in reader.frames(min(1 + len(seen) % 29, first + total - last)):
                assert frame.event == "message"
                seen.append(frame.id)
                last = frame.id
    talking.result(PATIENCE_S)
    assert seen == list(range(first + 1, first + total + 1))
    eventually(lambda: len(streaming.streamer) == 0)


def test_e4_what_was_forgotten_is_told_as_a_gap(open_stream):
    streaming = open_stream(max_event_buffer=2)
    ids = [streaming.send(f"{n}") for n in range(10)]
    streaming.forget(ids[4])
    reader = streaming.read("/events", f"Last-Event-ID: {ids[1]}")
    gap = reader.frame()
    assert (gap.id, gap.event) == (ids[5] - 1, "gap")
    assert gap.data == {
        "requested": ids[1],
        "oldest": ids[5],
        "head": ids[9],
        "missed": ids[5] - 1 - ids[1],
        "resync": ["/msg/poll", "/task/list", "/state/list"],
    }
    assert [frame.id for frame in reader.frames(5)] == ids[5:]
    again = streaming.read("/events", f"Last-Event-ID: {gap.id}")
    assert [frame.id for frame in again.frames(5)] == ids[5:]


def test_e4_there_is_no_gap_right_before_the_oldest(open_stream):
    streaming = open_stream(max_event_buffer=2)
    ids = [streaming.send(f"{n}") for n in range(10)]
    streaming.forget(ids[4])
    assert streaming.read("/events", f"Last-Event-ID: {ids[4]}").frame().id == ids[5]


def test_e4_a_gap_reaches_a_filtered_stream_too(open_stream):
    streaming = open_stream(max_event_buffer=2)
    ids = [streaming.send(f"{n}") for n in range(10)]
    streaming.forget(ids[4])
    reader = streaming.read("/events?types=state_changed", "Last-Event-ID: 1")
    assert reader.frame().event == "gap"
    streaming.direct.call("state.set", key="k", value="v")
    assert reader.frame().event == "state_changed"


def test_e4_when_everything_was_forgotten_the_gap_reaches_the_head(open_stream):
    streaming = open_stream(max_event_buffer=1)
    head = streaming.send()
    streaming.forget(head)
    reader = streaming.read("/events?last_event_id=0")
    gap = reader.frame()
    assert (gap.event, gap.id, gap.data["missed"]) == ("gap", head, head)
    live = streaming.send("live")
    assert reader.frame().id == live


def test_e5_an_id_of_the_future_is_reset(streaming):
    ahead = streaming.head + 1000
    reader = streaming.read("/events", f"Last-Event-ID: {ahead}")
    assert reader.headers["x-stonemux-last-event-id"] == str(streaming.head)
    reset = reader.frame()
    assert (reset.id, reset.event) == (streaming.head, "reset")
    assert reset.data == {"requested": ahead, "head": streaming.head, "epoch": streaming.mux.store.epoch}
    live = streaming.send("live")
    assert reader.frame().id == live


@pytest.mark.parametrize("last", ["abc", "-1", "1.0", "+1", "", "0x1", "9223372036854775808", "9" * 30, "1 2"])
def test_fault_32_an_id_that_is_none_is_refused(streaming, last):
    assert streaming.refusal("/events", f"Last-Event-ID: {last}") == (400, "invalid_last_event_id")
    target = f"/events?last_event_id={last}".replace("+", "%2B").replace(" ", "%20")
    assert streaming.refusal(target) == (400, "invalid_last_event_id")
    assert len(streaming.streamer) == 0


def test_e5_the_largest_id_is_one(streaming):
    assert streaming.read("/events", f"Last-Event-ID: {2**63 - 1}").frame().event == "reset"


# --- filters -------------------------------------------------------------------------------------------------------


def test_a_stream_of_types_has_only_those(streaming):
    reader = streaming.read("/events?types=state_changed,task_posted")
    streaming.send()
    streaming.direct.call("state.set", key="k", value="v")
    streaming.send()
    streaming.direct.call("task.post", posted_by="ann", description="x")
    assert [frame.event for frame in reader.frames(2)] == ["state_changed", "task_posted"]


def test_a_stream_of_a_channel_has_only_its_events(streaming):
    streaming.direct.call("channel.create", name="ops", created_by="ann")
    reader = streaming.read("/events?channel=ops")
    streaming.direct.call("state.set", key="k", value="elsewhere")
    streaming.direct.call("state.set", key="k", value="here", channel="ops")
    assert reader.frame().data["value"] == "here"
    assert reader.is_silent()


def test_a_stream_of_an_agent_has_only_what_concerns_it(streaming):
    streaming.direct.call("agent.register", agent_id="cid")
    reader = streaming.read("/events?agent_id=cid")
    streaming.send("for bob")
    streaming.direct.call("msg.send", from_="ann", to="cid", content="for cid")
    streaming.direct.call("msg.send", from_="cid", to="ann", content="by cid")
    assert [frame.data["content"] for frame in reader.frames(2)] == ["for cid", "by cid"]
    assert reader.is_silent()


def test_a_filtered_stream_resumes_over_what_it_does_not_want(open_stream, monkeypatch):
    streaming = open_stream(max_event_buffer=2)
    start = streaming.head
    monkeypatch.setattr(sse, "PAGE", 20)
    for n in range(3 * sse.PAGE):
        streaming.send(f"{n}")
    streaming.direct.call("state.set", key="k", value="v")
    reader = streaming.read("/events?types=state_changed", f"Last-Event-ID: {start}")
    assert reader.frame()[:2] == (streaming.head, "state_changed")


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("types=nonsense", 400, "invalid_field"),
        ("channel=nowhere", 404, "channel_not_found"),
        ("agent_id=nobody", 404, "agent_not_found"),
        ("typ=message", 400, "unknown_field"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(streaming, query, status, code):
    assert streaming.refusal(f"/events?{query}") == (status, code)


def test_a_stream_needs_its_tier(open_program):
    program = open_program(default_tier="free")
    with OverHttp(program.mux) as face, Raw(face.port) as raw:
        got = raw.ask(get("/events"))
        assert (got.status, got.code) == (402, "upgrade_required")


# --- time ----------------------------------------------------------------------------------------------------------


def test_e8_a_silent_stream_gets_a_keepalive(streaming):
    reader = streaming.read()
    eventually(lambda: streaming.streamer._streams)
    streaming.pass_time(14_999)
    assert reader.is_silent()
    streaming.pass_time(1)
    assert reader.block() == ": ka"
    streaming.pass_time(14_999)
    assert reader.is_silent()
    streaming.pass_time(1)
    assert reader.block() == ": ka"


def test_e8_an_event_puts_the_keepalive_off(streaming):
    reader = streaming.read()
    eventually(lambda: streaming.streamer._streams)
    streaming.pass_time(10_000)
    streaming.send()
    assert reader.frame().event == "message"
    streaming.pass_time(14_999)
    assert reader.is_silent()
    streaming.pass_time(1)
    assert reader.block() == ": ka"


def test_e8_a_keepalive_that_changes_counts_for_streams_that_are_open(streaming):
    reader = streaming.read()
    eventually(lambda: streaming.streamer._streams)
    streaming.clock.advance(3_000)
    streaming.mux.heed(replace(streaming.mux.settings, sse_keepalive=3))
    streaming.server.heed()
    assert reader.block() == ": ka"


def test_e8_the_streamer_sleeps_until_the_next_keepalive(open_stream):
    streaming = open_stream(sse_keepalive=7)
    now = streaming.clock.ticks_ms()
    assert streaming.streamer._patience(now) is None
    streaming.read()
    eventually(lambda: streaming.streamer._patience(now) == 7000)  # once the greeting is out
    assert streaming.streamer._patience(now + 6999) == 1
    assert streaming.streamer._patience(now + 9999) == 0


def test_an_idle_streamer_does_nothing(streaming, monkeypatch):
    """Between two commits it does not wake: one ring, one look."""
    streaming.read()
    eventually(lambda: streaming.streamer._streams)
    looks: list[int] = []
    write_all = streaming.streamer._write_all
    monkeypatch.setattr(streaming.streamer, "_write_all", lambda now: looks.append(now) or write_all(now))
    for n in range(20):
        before = len(looks)
        streaming.send(f"{n}")
        eventually(lambda before=before: len(looks) > before)
    assert len(looks) <= 2 * 20


# --- slow, vanished and many readers -------------------------------------------------------------------------------


def stuck_reader(streaming: Streaming) -> Reader:
    """A reader that takes nothing, behind as much as the system holds for it."""
    start = streaming.head
    reader = streaming.read(buffer=4096)
    while not any(stream.unsent for stream in list(streaming.streamer._streams.values())):
        streaming.send("x" * 60_000)
        eventually(
            lambda: all(s.cursor == streaming.head or s.unsent for s in list(streaming.streamer._streams.values()))
        )
        assert streaming.head < start + 1000
    return reader


def test_e7_a_slow_reader_holds_nobody_up_and_costs_one_piece(streaming):
    slow = stuck_reader(streaming)
    quick = streaming.read()
    before = streaming.head
    for _ in range(50):
        event_id = streaming.send("y" * 60_000)
        assert quick.frame().id == event_id
    (stream,) = [stream for stream in streaming.streamer._streams.values() if stream.unsent]
    assert len(stream.unsent) <= sse.PIECE + 70_000
    assert stream.cursor <= before
    eventually(lambda: not streaming.streamer._frames)
    assert slow.frames(3)


def test_e7_a_long_replay_is_written_in_pieces(streaming, monkeypatch):
    start = streaming.head
    for _ in range(10):
        streaming.send("x" * 60_000)
    sizes = []
    next_piece = streaming.streamer._next_piece

    def measured(stream: sse.Stream) -> tuple[bytes, int]:
        piece, after = next_piece(stream)
        sizes.append(len(piece))
        return piece, after

    monkeypatch.setattr(streaming.streamer, "_next_piece", measured)
    reader = streaming.read(f"/events?last_event_id={start}")
    assert [frame.id for frame in reader.frames(10)] == list(range(start + 1, start + 11))
    assert max(sizes) <= sse.PIECE + 70_000


def test_e7_a_slow_reader_gets_everything_in_order_when_it_reads_again(open_stream):
    streaming = open_stream(max_event_buffer=5)
    start = streaming.head
    slow = stuck_reader(streaming)
    for n in range(20):
        streaming.send(f"later {n}")
    count = streaming.head - start
    assert [frame.id for frame in slow.frames(count)] == list(range(start + 1, start + count + 1))
    live = streaming.send("live")
    assert slow.frame().id == live


def test_e7_a_slow_reader_behind_the_table_is_told_of_the_gap(open_stream):
    streaming = open_stream(max_event_buffer=2)
    slow = stuck_reader(streaming)
    for n in range(20):
        streaming.send(f"later {n}")
    streaming.forget(streaming.head - 3)
    frame = slow.frame()
    while frame.event == "message":
        last = frame.id
        frame = slow.frame()
    assert (frame.event, frame.id) == ("gap", streaming.head - 3)
    assert frame.data["requested"] == last
    assert [frame.id for frame in slow.frames(3)] == [streaming.head - 2, streaming.head - 1, streaming.head]


def test_e7_a_reader_that_takes_nothing_for_15_s_is_closed_and_may_resume(streaming):
    start = streaming.head
    slow = stuck_reader(streaming)
    streaming.pass_time(14_999)
    streaming.send("still there")
    assert len(streaming.streamer) == 1
    streaming.pass_time(1)
    eventually(lambda: len(streaming.streamer) == 0)
    last = start
    with contextlib.suppress(EOFError, ConnectionError):  # what had been written, then the end
        while True:
            frame = slow.frame()
            assert frame.id == last + 1
            last = frame.id
    again = streaming.read("/events", f"Last-Event-ID: {last}")
    ids = [frame.id for frame in again.frames(streaming.head - last)]
    assert ids == list(range(last + 1, streaming.head + 1))


def test_e7_one_who_replays_much_does_not_keep_the_others_waiting(open_stream, monkeypatch):
    streaming = open_stream(max_event_buffer=1)
    monkeypatch.setattr(sse, "PAGE", 20)
    for n in range(5 * sse.PAGE):
        streaming.send(f"{n}")
    live = streaming.read()
    eventually(lambda: streaming.streamer._streams)
    (live_stream,) = streaming.streamer._streams.values()
    served: list[bool] = []
    next_piece = streaming.streamer._next_piece

    def slowly(stream: sse.Stream) -> tuple[bytes, int]:
        if not served:
            streaming.send("news")  # something happens while the first page is read
        served.append(stream is live_stream)
        return next_piece(stream)

    monkeypatch.setattr(streaming.streamer, "_next_piece", slowly)
    replaying = streaming.read("/events?last_event_id=0")
    assert live.frame().data["content"] == "news"
    assert [frame.id for frame in replaying.frames(streaming.head)] == list(range(1, streaming.head + 1))
    assert served.index(True) <= 2


@pytest.mark.parametrize("vanish", ["close", "reset", "finish"])
def test_a_reader_that_vanishes_leaves_nothing(streaming, vanish):
    reader = streaming.read()
    eventually(lambda: streaming.streamer._streams)
    getattr(reader, vanish)()
    eventually(lambda: len(streaming.streamer) == 0 and not streaming.streamer._streams)
    eventually(lambda: streaming.mux.waiters.count == 0)
    assert streaming.send() == streaming.head


def test_a_reader_that_vanishes_right_before_a_write_is_missed_by_nobody(streaming):
    live = streaming.read()
    streaming.read()
    (_, gone) = eventually(lambda: len(found := list(streaming.streamer._streams.values())) == 2 and found)

    class Vanished:
        def __getattr__(self, name: str) -> Any:
            return getattr(sock, name)

        def send(self, data: bytes) -> int:
            raise BrokenPipeError

    sock, gone.sock = gone.sock, Vanished()
    assert streaming.send("a") == live.frame().id
    eventually(lambda: len(streaming.streamer) == 1)
    assert streaming.send("b") == live.frame().id


def test_what_a_reader_says_is_of_no_interest(streaming):
    reader = streaming.read()
    reader.send(get("/health") * 100)
    event_id = streaming.send()
    assert reader.frame().id == event_id


def test_one_event_reaches_all_streams(streaming):
    readers = [streaming.read() for _ in range(60)]
    event_id = streaming.send("to all")
    assert {reader.frame().id for reader in readers} == {event_id}
    assert streaming.server.open_connections == 0


def test_more_streams_than_waiters_are_refused(open_stream):
    streaming = open_stream(max_waiters=3)
    readers = [streaming.read() for _ in range(2)]
    with Raw(streaming.port) as parked:
        parked.send(get("/msg/poll?agent_id=bob&timeout=30"))
        streaming.clock.until_parked(1)
        assert streaming.refusal("/events") == (503, "too_many_waiters")
        with Raw(streaming.port) as raw:
            got = raw.ask(get("/msg/poll?agent_id=ann&timeout=30"))
            assert (got.status, got.code, got.headers["retry-after"]) == (503, "too_many_waiters", "1")
            assert raw.ask(request("HEAD", "/events"), head=True).status == 200
        streaming.send()
        assert parked.answer().json["messages"]
    readers.append(streaming.read())
    assert streaming.refusal("/events") == (503, "too_many_waiters")
    readers[0].close()
    eventually(lambda: streaming.mux.waiters.count == 2)
    streaming.read()


def test_e9_a_stop_is_told_without_an_id(streaming):
    readers = [streaming.read() for _ in range(3)]
    streaming.server.stop()
    for reader in readers:
        assert reader.frame()[:2] == (None, "shutdown")
        assert reader.has_ended()
    assert len(streaming.streamer) == 0


def test_e9_a_stop_does_not_wait_for_a_slow_reader(streaming):
    stuck_reader(streaming)
    streaming.server.stop()
    assert len(streaming.streamer) == 0


def test_a_stream_that_comes_while_the_daemon_stops_is_closed(streaming):
    streaming.streamer.close()
    streaming.mux.waiters.take()
    ours, theirs = socket.socketpair()
    with theirs:
        streaming.streamer.add(ours, events.Filter(), 0, b"greeting", sse.Permit("free", None))
        assert theirs.recv(10) == b""
    streaming.send()  # and nobody rings a bell that is gone
    assert len(streaming.streamer) == streaming.mux.waiters.count == 0


def test_a_thread_that_cannot_be_started_costs_one_stream_and_not_all(streaming, monkeypatch):
    assert streaming.refusal("/nowhere") == (404, "not_found")  # the threads that it needs to answer are there
    with monkeypatch.context() as patched:

        def no_thread(*_: Any) -> None:
            raise RuntimeError("can't start new thread")

        patched.setattr(threads, "start_new_thread", no_thread)
        assert streaming.refusal("/events") == (503, "too_many_waiters")
    assert len(streaming.streamer) == streaming.mux.waiters.count == 0
    reader = streaming.read()
    streaming.send("later")
    assert reader.frame()[1] == "message"


def test_a_fault_of_the_streamer_itself_ends_the_streams_and_not_all_later_ones(streaming, monkeypatch, caplog):
    reader, before = streaming.read(), streaming.head
    with monkeypatch.context() as patched:

        def fail(now: int) -> None:
            """Fail once an event was written, and not in the round of the greeting, which may still be going on."""
            if any(stream.cursor > before for stream in streaming.streamer._streams.values()):
                raise MemoryError

        patched.setattr(streaming.streamer, "_keep_alive", fail)
        streaming.send("seen")
        assert reader.frame().event == "message"
        assert reader.has_ended()
        eventually(lambda: not streaming.streamer._streams)
    assert len(streaming.streamer) == streaming.mux.waiters.count == 0
    caplog.clear()
    again = streaming.read(f"/events?last_event_id={streaming.head}")
    streaming.send("later")
    assert again.frame().event == "message"


@pytest.mark.parametrize(
    "error", [MuxError("storage_busy", "another program holds the database"), sqlite3.OperationalError("of some kind")]
)
def test_a_failing_read_ends_one_stream_and_not_all(open_stream, monkeypatch, caplog, error):
    streaming = open_stream(max_event_buffer=1)
    for n in range(5):
        streaming.send(f"{n}")
    live = streaming.read()
    eventually(lambda: streaming.streamer._streams)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):

        def fail() -> None:
            raise error

        patched.setattr(streaming.mux.store, "read", fail)
        broken = Reader(streaming.port, "/events?last_event_id=1")
        broken.begin()
        assert broken.has_ended()
        broken.close()
    event_id = streaming.send("live")
    assert live.frame().id == event_id


def test_streams_of_a_restarted_daemon_resume(open_stream):
    streaming = open_stream()
    ids = [streaming.send(f"{n}") for n in range(3)]
    streaming.server.stop()
    mux = streaming.program.reopen()
    with OverHttp(mux) as face, Reader(face.port, "/events", f"Last-Event-ID: {ids[0]}") as reader:
        reader.begin()
        assert [frame.id for frame in reader.frames(2)] == ids[1:]
