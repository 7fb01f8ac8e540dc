"""The contract of the event log as JSON, and of the views for operators."""

from __future__ import annotations

import itertools

import pytest
from faces import join, refusal

from stonemux import monitor
from stonemux.events import EventLog, Filter, stored
from stonemux.transaction import Event


def events(face, **given):
    return face.call("events.list", **given | {"limit": given.get("limit", 1000)})


def kinds(face, **given):
    return [event["type"] for event in events(face, **given)["events"]]


def test_what_is_in_memory_ends_at_the_oldest_of_it__E3__E7():
    log = EventLog(7, 3)
    for event_id in range(8, 13):
        log.publish([Event(event_id, "message", None, None, "{}", 0)])
    found = [log.recent(after) for after in range(7, 14)]
    told = [None if events is None else [event.id for event in events] for events in found]
    assert told == [None, None, [10, 11, 12], [11, 12], [12], [], []]


def test_every_change_has_one_event_with_the_next_id__E1(face):
    face.call("agent.register", agent_id="ann")
    face.call("agent.register", agent_id="bob", channel="lab")
    face.call("channel.join", channel="lab", agent_id="ann")
    face.call("channel.join", channel="lab", agent_id="ann")
    face.call("channel.create", name="guild")
    face.call("msg.send", from_="ann", to="bob", content="x", channel="lab")
    face.call("msg.broadcast", from_="ann", content="x")
    face.call("state.set", key="k", value="v")
    face.call("state.delete", key="k")
    face.call("task.post", description="x", posted_by="ann")
    face.call("channel.leave", channel="lab", agent_id="ann")
    face.call("agent.deregister", agent_id="bob")
    answer = events(face)
    assert [event["id"] for event in answer["events"]] == list(range(1, len(answer["events"]) + 1))
    assert answer["head"] == answer["next"] == answer["events"][-1]["id"]
    assert [(event["type"], event["channel"]) for event in answer["events"]] == [
        ("channel_created", "default"),
        ("channel_created", "agent-ann"),
        ("agent_registered", "default"),
        ("channel_created", "lab"),
        ("channel_created", "agent-bob"),
        ("agent_registered", "lab"),
        ("channel_joined", "lab"),
        ("channel_created", "guild"),
        ("message", "lab"),
        ("message", "default"),
        ("state_changed", "default"),
        ("state_changed", "default"),
        ("task_posted", "default"),
        ("channel_left", "lab"),
        ("agent_deregistered", "lab"),
    ]


def test_reads_heartbeats_and_refusals_leave_no_event__E1(face):
    join(face, "ann")
    head = events(face)["head"]
    face.call("agent.heartbeat", agent_id="ann", status="busy")
    face.call("msg.poll", agent_id="ann", timeout=0)
    face.call("agent.discover")
    face.call("task.claim", agent_id="ann")
    refusal(face, "agent_not_found", "msg.send", from_="ann", to="bob", content="x")
    refusal(face, "key_not_found", "state.delete", key="k")
    assert events(face)["head"] == head


def test_an_event_tells_what_happened(face):
    join(face, "ann", "bob")
    sent = face.call("msg.send", from_="ann", to="bob", content="x", subject="s", priority=2, metadata={"a": 1})
    written = face.call("state.set", key="k", value="v", updated_by="ann")
    face.call("state.delete", key="k")
    message, change, end = events(face, types=["message", "state_changed"])["events"]
    assert message["data"] == {
        "id": sent["message_id"],
        "from": "ann",
        "to": "bob",
        "content": "x",
        "channel": "default",
        "sent_at": sent["sent_at"],
        "subject": "s",
        "priority": 2,
        "metadata": {"a": 1},
    }
    assert message["at"] == sent["sent_at"]
    assert change["data"] == {
        **{name: written[name] for name in ("key", "value", "version", "updated_by")},
        "channel": "default",
    }
    assert end["data"] == {"key": "k", "value": None, "version": 2, "channel": "default", "deleted": True}


def test_the_log_narrows_by_type_channel_and_agent(face):
    join(face, "ann", "bob", "cat")
    lab = face.call("channel.create", name="lab", members=["bob"])["channel"]["id"]
    face.call("msg.send", from_="ann", to="bob", content="x")
    face.call("msg.send", from_="ann", to="bob", content="x", channel="lab")
    face.call("state.set", key="k", value="v")
    assert kinds(face, types=["message"]) == ["message", "message"]
    assert kinds(face, types=["message", "state_changed"]) == ["message", "message", "state_changed"]
    assert kinds(face, channel="lab") == kinds(face, channel=lab) == ["channel_created", "message"]
    assert kinds(face, agent_id="bob", types=["message"]) == ["message", "message"]
    assert kinds(face, agent_id="cat") == ["channel_created", "agent_registered"]
    refusal(face, "invalid_field", "events.list", types=["gossip"])
    refusal(face, "channel_not_found", "events.list", channel="lob")
    refusal(face, "agent_not_found", "events.list", agent_id="dan")


def test_the_database_filters_events_as_streams_do(mux):
    names = ("ann", "an", "ann b", "%")
    happened = [
        (kind, channel, about)
        for kind in ("message", "state_changed")
        for channel in (None, "ann", "an")
        for about in ((), ("ann",), ("ann b", "an"), ("%", "ann", "bob"))
    ]
    before = mux.log.head
    mux.store.write(lambda tx: [tx.emit(kind, "{}", channel=place, agents=about) for kind, place, about in happened])
    with mux.store.read() as rx:
        every = stored(rx, before, 1000)
        assert len(every) == len(happened)
        for types in ((), ("message",), ("message", "state_changed")):
            for channel, agent_id in itertools.product((None, *names), repeat=2):
                wanted = Filter(channel=channel, agent_id=agent_id, types=types)
                assert stored(rx, before, 1000, wanted) == [event for event in every if wanted.wants(event)], wanted


def test_asking_again_after_next_sees_every_event_once(face):
    join(face, "ann", "bob", "cat")
    whole = events(face)["events"]
    seen, after = [], 0
    while True:
        page = events(face, after=after, limit=3)
        seen += page["events"]
        after = page["next"]
        if "more" not in page:
            break
    assert seen == whole
    assert events(face, after=after) == {"events": [], "head": after, "next": after}


def test_a_filtered_reader_moves_past_what_does_not_concern_it(face):
    join(face, "ann")
    answer = events(face, types=["state_changed"])
    assert (answer["events"], answer["next"]) == ([], answer["head"])


def test_the_head_is_never_behind_what_is_told(direct, mux, monkeypatch):
    join(direct, "ann")
    wanted, read = monitor.event_filter(mux, types=None, channel=None, agent_id=None), mux.store.read

    def meanwhile():
        monkeypatch.undo()
        join(direct, "bob")
        return read()

    monkeypatch.setattr(mux.store, "read", meanwhile)
    told = monitor._events_after(mux, 0, wanted, 1000)
    assert told["next"] == told["head"] == events(direct)["head"]


def test_a_parked_reader_wakes_for_an_event_that_passes_its_filter(face, clock, background):
    join(face, "ann")
    head = events(face)["head"]
    waiting = background(events, face, after=head, types=["state_changed"], timeout=60)
    clock.until_parked(1)
    join(face, "bob")
    face.call("state.set", key="k", value="v")
    answer = waiting.result(5)
    assert [event["type"] for event in answer["events"]] == ["state_changed"]
    assert answer["next"] == answer["head"]


def test_a_parked_reader_ends_empty_and_knows_where_to_go_on(face, clock, background):
    head = events(face)["head"]
    waiting = background(events, face, after=head, types=["state_changed"], timeout=2)
    clock.until_parked(1)
    join(face, "bob")
    clock.until_parked(1)
    clock.advance(2000)
    answer = waiting.result(5)
    assert (answer["events"], answer["next"]) == ([], head + 2)


def test_a_cursor_from_the_future_is_told_so(face):
    answer = events(face, after=99)
    assert answer["reset"] == {"requested": 99, "head": answer["head"]}
    assert (answer["events"], answer["next"]) == ([], answer["head"])


@pytest.mark.parametrize("step", [1, 3, 200])
def test_a_list_ends_where_its_events_are_long_and_goes_on_from_there(face, monkeypatch, step):
    monkeypatch.setattr("stonemux.events.MOST_CHARACTERS", 5000)
    monkeypatch.setattr("stonemux.events.STEP", step)
    for n in range(10):
        face.call("state.set", key="k", value="x" * (2000 if n % 2 else 10))
    seen, after, answers = [], 0, 0
    while True:
        told = face.call("events.list", after=after, types=["state_changed"], limit=100)
        seen += [event["data"]["version"] for event in told["events"]]
        answers += 1
        after = told["next"]
        if "more" not in told:
            break
    assert seen == list(range(1, 11))
    assert answers == (1 if step == 200 else 2)
    assert after == told["head"]


@pytest.mark.settings(max_event_buffer=1, event_retention=60)
def test_what_is_no_longer_kept_is_told_as_a_gap(face, clock, program):
    program.mux.store.write(lambda tx: [tx.emit("message", "{}") for _ in range(1100)])
    clock.advance(120_000)
    program.timekeeper.tick()
    answer = events(face, after=10, limit=1)
    oldest = answer["events"][0]["id"]
    assert oldest > 11
    assert answer["gap"] == {
        "requested": 10,
        "oldest": oldest,
        "head": answer["head"],
        "missed": oldest - 11,
        "resync": ["/msg/poll", "/task/list", "/state/list"],
    }
    assert answer["head"] - oldest >= 999
    assert "gap" not in events(face, after=oldest - 1, limit=1)


def test_a_restart_keeps_the_log_and_goes_on_counting__E1(face, restart):
    join(face, "ann")
    before = events(face)
    restart()
    assert events(face) == before
    face.call("state.set", key="k", value="v")
    assert [event["id"] for event in events(face, after=before["next"])["events"]] == [before["head"] + 1]


def test_what_was_read_before_a_send_has_a_smaller_event_id__O2(face):
    join(face, "ann", "bob")
    face.call("msg.send", from_="ann", to="bob", content="question")
    seen = face.call("msg.poll", agent_id="bob", timeout=0)["messages"][0]["id"]
    face.call("msg.send", from_="bob", to="ann", content="answer", reply_to=seen)
    question, answer = events(face, types=["message"])["events"]
    assert question["data"]["id"] == seen
    assert answer["data"]["reply_to"] == seen
    assert question["id"] < answer["id"]
    assert question["at"] <= answer["at"]


def test_an_agent_that_goes_stale_is_announced_once(face, clock, program):
    join(face, "ann", "bob")
    clock.advance(299_999)
    face.call("agent.heartbeat", agent_id="bob")
    clock.advance(1)
    program.timekeeper.tick()
    program.timekeeper.tick()
    (event,) = events(face, types=["agent_stale"])["events"]
    assert event["data"]["agent_id"] == "ann"
    face.call("agent.heartbeat", agent_id="ann")
    clock.advance(300_000)
    program.timekeeper.tick()
    assert len(kinds(face, types=["agent_stale"])) == 3


# -- for operators


def test_stats_count_what_there_is(face, clock):
    join(face, "old")
    clock.advance(300_000)
    join(face, "ann", "bob")
    face.call("msg.send", from_="ann", to="bob", content="x")
    for _ in range(3):
        face.call("task.post", description="x", posted_by="ann")
    claimed = face.call("task.claim", agent_id="bob")["task_id"]
    face.call("task.release", task_id=claimed, agent_id="bob", delay=60)
    face.call("task.claim", agent_id="bob")
    face.call("state.set", key="k", value="v")
    face.call("state.set", key="gone", value="v")
    face.call("state.delete", key="gone")
    stats = face.call("stats")
    assert stats["agents"] == {"active": 2, "stale": 1, "total": 3}
    assert stats["messages"] == {"stored": 1, "sent": 1, "unread": 1}
    face.call("msg.poll", agent_id="bob", ack="manual", timeout=0)
    assert face.call("stats")["messages"]["unread"] == 1, "what is leased is not settled"
    assert stats["tasks"] == {"pending": 2, "waiting": 0, "claimed": 1, "complete": 0, "failed": 0, "cancelled": 0}
    assert (stats["state_keys"], stats["channels"], stats["waiters"], stats["uptime"]) == (1, 4, 0, 300)
    assert stats["events"] == {"head": events(face)["head"], "oldest": 1}
    assert stats["storage"]["database_bytes"] > 0


def test_health_says_what_runs(face, clock):
    clock.advance(2500)
    answer = face.call("health")
    assert (answer["status"], answer["tier"], answer["uptime"]) == ("ok", "enterprise", 2)


def test_metrics_are_what_a_prometheus_parser_reads(face):
    parser = pytest.importorskip("prometheus_client.parser")
    join(face, "ann")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(face.call("metrics"))
        for sample in family.samples
    }
    assert found["stonemux_agents", "active"] == 1
    assert found["stonemux_channels",] == 2
    assert found["stonemux_tasks", "pending"] == 0
