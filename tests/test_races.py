"""Forced interleavings: a replaced function puts the competing call exactly between two steps.

Nothing here hopes for a race, and nothing sleeps. A lost wake-up fails its test after the five seconds for which the
fake clock tolerates standing still.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import pytest
from faces import Direct, join, until_written

from stonemux import agents, claims, door, messages, operations, sse, state
from stonemux.errors import MuxError
from stonemux.events import Filter
from stonemux.hub import Hangup, Hub
from stonemux.mux import Alarm, Caller, Mux, Wait
from stonemux.opening import SKIPPED
from stonemux.parking import Lot
from stonemux.transaction import Job, Snapshot

BLOCKED_S = 0.05
"""How long a rival is given that is expected to wait for us; when it is not made to wait, it needs a millisecond."""


@pytest.fixture
def once_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts an act directly behind the nth return of a function."""

    def put(owner: Any, name: str, act: Callable[[], Any], nth: int = 1) -> None:
        real, left = getattr(owner, name), [nth]

        def acting(*args: Any, **given: Any) -> Any:
            result = real(*args, **given)
            left[0] -= 1
            if left[0] == 0:
                act()
            return result

        monkeypatch.setattr(owner, name, acting)

    return put


@pytest.fixture
def once_before(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts an act directly before the first call of a function."""

    def put(owner: Any, name: str, act: Callable[[], Any]) -> None:
        real, left = getattr(owner, name), [1]

        def acting(*args: Any, **given: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                act()
            return real(*args, **given)

        monkeypatch.setattr(owner, name, acting)

    return put


@pytest.fixture
def once_looked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Puts an act between a waiting call's first look and whatever it does then."""

    def put(act: Callable[[], Any]) -> None:
        left = [act]

        def armed(wait: Wait) -> Wait:
            look = wait.attempt

            def looking(*got: Any) -> Any:
                found = look(*got)
                if left:
                    left.pop()()
                return found

            return wait._replace(attempt=looking)

        asleep, parked = Mux.wait, Lot.park
        monkeypatch.setattr(Mux, "wait", lambda mux, caller, wait: asleep(mux, caller, armed(wait)))
        monkeypatch.setattr(Lot, "park", lambda lot, wait, *others: parked(lot, armed(wait), *others))

    return put


@pytest.fixture
def after_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts an act behind the first reading of a query: the rows are there, and nothing was made of them yet."""

    def put(words: str, act: Callable[[], Any]) -> None:
        real, left = Snapshot.sql, [1]

        def acting(self: Snapshot, query: str, *values: Any) -> list[Any]:
            rows = real(self, query, *values)
            if words in query:
                left[0] -= 1
                if left[0] == 0:
                    act()
            return rows

        monkeypatch.setattr(Snapshot, "sql", acting)

    return put


def together(mux: Mux, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """Commits changes in one batch; each one's answer, or its error's code."""
    me, told = threading.get_ident(), dict[int, Any]()
    mux.store.gatherers.add(me)
    for n, (name, given) in enumerate(calls):

        def done(answer: Any, error: Any, n: int = n) -> None:
            told[n] = answer if error is None else error.code

        door.Call(mux, operations.BY_NAME[name], given, Caller()).queue(done)
    mux.store.lead()
    mux.store.gatherers.discard(me)
    return [told[n] for n in range(len(calls))]


def queued_behind(mux: Mux, background: Any, call: Callable[..., Any], *args: Any, **given: Any) -> Future[Any]:
    """A rival's change, started and queued while we hold the writer."""
    rival = background(call, *args, **given)
    while not mux.store._queue and not rival.done():
        pass
    return rival


# -- waiting and waking


@pytest.mark.parametrize("after", [None, 0], ids=["plain", "cursor"])
def test_a_send_between_reading_and_sleeping_is_not_lost(face, mux, once_looked, after):
    join(face, "ann", "bob")
    once_looked(lambda: Direct(mux).call("msg.send", from_="ann", to="bob", content="hi"))
    got = face.call("msg.poll", agent_id="bob", timeout=60, after=after)
    assert [message["content"] for message in got["messages"]] == ["hi"]


@pytest.mark.parametrize("after", [None, 0], ids=["plain", "cursor"])
def test_a_send_between_a_faces_own_look_and_the_wait_is_not_lost(face, mux, once_before, after):
    """The HTTP face looks once before it parks the call."""
    join(face, "ann", "bob")
    for owner, name in ((Mux, "wait"), (Lot, "park")):
        once_before(owner, name, lambda: Direct(mux).call("msg.send", from_="ann", to="bob", content="hi"))
    got = face.call("msg.poll", agent_id="bob", timeout=60, after=after)
    assert [message["content"] for message in got["messages"]] == ["hi"]


def test_a_set_between_reading_and_sleeping_is_not_lost(face, mux, once_looked):
    seen = face.call("state.set", key="k", value="1")["version"]
    once_looked(lambda: Direct(mux).call("state.set", key="k", value="2"))
    got = face.call("state.watch", key="k", after_version=seen, timeout=60)
    assert (got["changed"], got["value"]) == (True, "2")


def test_a_task_posted_between_trying_and_sleeping_is_not_lost(direct, once_looked):
    join(direct, "ann", "bob")
    once_looked(lambda: post(direct))
    assert direct.call("task.claim", agent_id="bob", timeout=60)["task"]["description"] == "x"


def test_an_event_between_reading_and_sleeping_is_not_lost(direct, mux, once_looked):
    once_looked(lambda: direct.call("state.set", key="k", value="1"))
    got = direct.call("events.list", after=mux.log.head, timeout=60)
    assert [event["type"] for event in got["events"]] == ["state_changed"]


def test_nobody_is_woken_before_the_commit(direct, clock, background, once_after):
    """The sender does not go on from waking before the sleeper has looked: it must find the message then."""
    join(direct, "ann", "bob")
    waiting = background(direct.call, "msg.poll", agent_id="bob", timeout=60)
    clock.until_parked(1)
    looked: list[Any] = []
    once_after(Hub, "wake", lambda: looked.append(waiting.result(5)))
    direct.call("msg.send", from_="ann", to="bob", content="hi")
    assert [message["content"] for message in looked[0]["messages"]] == ["hi"]


def test_nobody_is_answered_before_the_waiters_are_woken_and_the_event_is_out(mux, direct):
    join(direct, "ann", "bob")
    seen: list[int] = []
    call = door.Call(mux, operations.BY_NAME["msg.send"], {"from": "ann", "to": "bob", "content": "x"}, Caller())
    with mux.hub.watch(("inbox", "bob")) as watch:
        call.queue(lambda answer, error: seen.extend((mux.log.head, int(watch.take_back()))))
        mux.store.lead()
    assert seen == [mux.store.head, 1]


def test_a_refused_send_wakes_nobody(direct, mux, clock, background):
    join(direct, "ann", "bob")
    with mux.hub.watch(("inbox", "bob"), ("events",)) as watch:
        outcomes = together(
            mux,
            ("msg.send", {"from": "ann", "to": "bob", "content": "x", "reply_to": 99}),
            ("msg.send", {"from": "ann", "to": "nobody", "content": "x"}),
        )
        assert outcomes == ["message_not_found", "agent_not_found"]
        assert not watch.take_back()


# -- one of two


def test_of_two_claims_of_one_task_one_gets_it(mux, direct, background, once_after):
    join(direct, "ann", "bob", "cid")
    direct.call("task.post", description="x", posted_by="ann")
    rivals: list[Future[Any]] = []
    once_after(
        claims,
        "_best",
        lambda: rivals.append(queued_behind(mux, background, direct.call, "task.claim", agent_id="cid")),
    )
    mine = direct.call("task.claim", agent_id="bob")
    assert mine["task"]["claimed_by"] == "bob"
    assert rivals[0].result(5) == {"task_id": None, "task": None}


def test_of_two_claims_in_one_batch_one_gets_it(mux, direct):
    join(direct, "ann", "bob", "cid")
    direct.call("task.post", description="x", posted_by="ann")
    first, second = together(mux, ("task.claim", {"agent_id": "bob"}), ("task.claim", {"agent_id": "cid"}))
    assert first["task"]["claimed_by"] == "bob"
    assert second["task"] is None


def test_of_two_sets_on_one_version_one_succeeds(mux, direct, background, once_after):
    rivals: list[Future[Any]] = []
    change = {"key": "k", "expected_version": 0}
    once_after(
        state,
        "_row",
        lambda: rivals.append(queued_behind(mux, background, direct.call, "state.set", value="theirs", **change)),
    )
    assert direct.call("state.set", value="mine", **change)["version"] == 1
    with pytest.raises(MuxError) as caught:
        rivals[0].result(5)
    assert caught.value.code == "version_conflict"
    assert direct.call("state.get", key="k")["value"] == "mine"


def test_of_two_sets_in_one_batch_one_succeeds(mux, direct):
    first, second = together(
        mux,
        ("state.set", {"key": "k", "value": "1", "expected_version": 0}),
        ("state.set", {"key": "k", "value": "2", "expected_version": 0}),
    )
    assert (first["value"], second) == ("1", "version_conflict")


@pytest.mark.settings(default_tier="free")
def test_two_registrations_at_once_do_not_pass_the_limit(mux, direct, background, once_after):
    join(direct, "ann")
    rivals: list[Future[Any]] = []
    once_after(
        agents,
        "_check_limit",
        lambda: rivals.append(queued_behind(mux, background, direct.call, "agent.register", agent_id="cid")),
    )
    direct.call("agent.register", agent_id="bob")
    with pytest.raises(MuxError) as caught:
        rivals[0].result(5)
    assert caught.value.code == "agent_limit"


@pytest.mark.settings(default_tier="free")
def test_registrations_in_one_batch_do_not_pass_the_limit(mux):
    outcomes = together(mux, *(("agent.register", {"agent_id": f"a{n}"}) for n in range(4)))
    assert outcomes[2:] == ["agent_limit", "agent_limit"]
    assert [mux.presence.knows(f"a{n}") for n in range(4)] == [True, True, False, False]


@pytest.mark.settings(inbox_limit=3)
def test_sends_in_one_batch_do_not_pass_the_inbox_limit(mux, direct):
    join(direct, "ann", "bob")
    sends = [("msg.send", {"from": "ann", "to": "bob", "content": "x"})] * 5
    assert together(mux, *sends)[3:] == ["inbox_full", "inbox_full"]


def test_the_same_key_twice_in_one_batch_has_one_effect(mux, direct):
    join(direct, "ann", "bob")
    send = ("msg.send", {"from": "ann", "to": "bob", "content": "x", "idempotency_key": "k"})
    first, second = together(mux, send, send)
    assert first == second
    assert len(direct.call("msg.poll", agent_id="bob", timeout=0)["messages"]) == 1


def test_the_same_key_while_the_first_call_runs_has_one_effect(mux, direct, background, once_after):
    join(direct, "ann", "bob")
    send = {"from_": "ann", "to": "bob", "content": "x", "idempotency_key": "k"}
    rivals: list[Future[Any]] = []
    once_after(
        messages,
        "post",
        lambda: rivals.append(queued_behind(mux, background, direct.call, "msg.send", **send)),
    )
    assert direct.call("msg.send", **send) == rivals[0].result(5)
    assert len(direct.call("msg.poll", agent_id="bob", timeout=0)["messages"]) == 1


def test_the_same_key_with_another_body_in_one_batch_has_no_effect(mux, direct):
    join(direct, "ann", "bob")
    outcomes = together(
        mux,
        ("msg.send", {"from": "ann", "to": "bob", "content": "x", "idempotency_key": "k"}),
        ("msg.send", {"from": "ann", "to": "bob", "content": "y", "idempotency_key": "k"}),
    )
    assert outcomes[1] == "idempotency_mismatch"
    assert len(direct.call("msg.poll", agent_id="bob", timeout=0)["messages"]) == 1


@pytest.mark.parametrize("again", [True, False])
def test_a_key_whose_effect_was_rolled_back_is_free_again(mux, direct, monkeypatch, again):
    """The batch is run again one by one after a bug; what was remembered in the first run is gone with it."""
    join(direct, "ann", "bob")
    post, posts = messages.post, []

    def post_unless_again(tx, **given):
        posts.append(1)
        if len(posts) == 2 and not again:
            raise ValueError("a bug that shows only the second time")
        return post(tx, **given)

    monkeypatch.setattr(messages, "post", post_unless_again)
    calls = [Caller(), Caller()]
    send = {"from": "ann", "to": "bob", "content": "x", "idempotency_key": "k"}
    told: list[Any] = []

    def bug(tx):
        tx.run("insert into meta values ('bug', 'x')")
        raise ValueError("a bug")

    mux.store.gatherers.add(threading.get_ident())
    for caller in calls:
        door.Call(mux, operations.BY_NAME["msg.send"], send, caller).queue(lambda answer, error: told.append(answer))
    mux.store.submit(Job(bug, lambda value, error: None))
    mux.store.lead()
    mux.store.gatherers.clear()
    assert told[0] == (told[1] if again else None)
    assert [caller.replayed for caller in calls] == [False, again]
    assert len(direct.call("msg.poll", agent_id="bob", timeout=0)["messages"]) == 1


def test_one_key_in_two_waiting_claims_claims_once(mux, direct, clock, background):
    join(direct, "ann", "bob")
    waiting = [background(direct.call, "task.claim", agent_id="bob", timeout=60, idempotency_key="k") for _ in range(2)]
    clock.until_parked(2)
    for n in range(2):
        direct.call("task.post", description=f"x{n}", posted_by="ann")
    first, second = (each.result(5) for each in waiting)
    assert first == second
    assert direct.call("stats")["tasks"]["claimed"] == 1


# -- inboxes


def poll(mux: Mux, **given: Any) -> tuple[list[str], Caller]:
    caller = Caller()
    call = door.Call(mux, operations.BY_NAME["msg.poll"], {"agent_id": "bob", "timeout": 0} | given, caller)
    return [message["content"] for message in call.answer()["messages"]], caller


def test_a_poll_whose_mail_is_settled_before_it_is_leased_goes_on_waiting(direct, clock, background, once_after):
    join(direct, "ann", "bob")
    sent = direct.call("msg.send", from_="ann", to="bob", content="hi")["message_id"]
    once_after(messages, "choose", lambda: direct.call("msg.ack", agent_id="bob", through=sent))
    waiting = background(direct.call, "msg.poll", agent_id="bob", timeout=60, ack="manual")
    clock.until_parked(1)
    direct.call("msg.send", from_="ann", to="bob", content="new")
    assert [message["content"] for message in waiting.result(5)["messages"]] == ["new"]


def test_of_two_polls_of_one_inbox_one_gets_the_message(mux, direct, background, after_reading):
    join(direct, "ann", "bob")
    direct.call("msg.send", from_="ann", to="bob", content="hi")
    rivals: list[Future[Any]] = []

    def rival() -> None:
        rivals.append(background(poll, mux))
        wait(rivals, BLOCKED_S)

    after_reading("d.state = 0", rival)
    assert poll(mux)[0] == ["hi"]
    assert rivals[0].result(5)[0] == []


def test_a_message_that_is_settled_while_a_poll_reads_is_not_handed_out_again(mux, direct, background, after_reading):
    """The poll has read it as queued; it is settled before the poll has looked at what is in flight."""
    join(direct, "ann", "bob")
    direct.call("msg.send", from_="ann", to="bob", content="hi")
    _, first = poll(mux)

    def settle() -> None:
        wait([background(first.flight.landed)], BLOCKED_S)
        with mux.store.read() as rx:
            assert rx.one("select count(*) from delivery where state = 2")[0] == 1

    after_reading("d.state = 0", settle)
    assert poll(mux)[0] == []


def test_a_message_is_not_handed_out_between_its_settling_and_the_end_of_its_flight(mux, direct, once_before):
    join(direct, "ann", "bob")
    direct.call("msg.send", from_="ann", to="bob", content="hi")
    _, first = poll(mux)
    between: list[Any] = []
    once_before(mux.flights.__class__, "end", lambda: between.append(poll(mux)[0]))
    first.flight.landed()
    assert between == [[]]
    assert mux.flights.held("bob") == set()


def test_what_comes_back_between_reading_and_sleeping_is_not_lost(mux, direct, once_looked):
    join(direct, "ann", "bob")
    direct.call("msg.send", from_="ann", to="bob", content="hi")
    _, first = poll(mux)
    once_looked(first.flight.lost)
    assert poll(mux, timeout=60)[0] == ["hi"]


def test_a_poll_ends_when_its_agent_is_deregistered(mux, direct, clock, background):
    join(direct, "bob")
    waiting = background(direct.call, "msg.poll", agent_id="bob", timeout=60)
    clock.until_parked(1)
    direct.call("agent.deregister", agent_id="bob")
    with pytest.raises(MuxError) as caught:
        waiting.result(5)
    assert caught.value.code == "agent_not_found"


def test_an_agent_that_leaves_between_its_polls_reading_and_sleeping_is_noticed(direct, once_looked):
    join(direct, "bob")
    once_looked(lambda: direct.call("agent.deregister", agent_id="bob"))
    with pytest.raises(MuxError) as caught:
        direct.call("msg.poll", agent_id="bob", timeout=60)
    assert caught.value.code == "agent_not_found"


def test_an_agent_that_leaves_with_a_message_in_flight_finds_it_again(mux, direct, once_looked):
    join(direct, "ann", "bob")
    direct.call("msg.send", from_="ann", to="bob", content="hi")
    once_looked(lambda: direct.call("agent.deregister", agent_id="bob"))
    contents, caller = poll(mux)
    assert contents == ["hi"]
    caller.flight.lost()
    direct.call("agent.register", agent_id="bob")
    assert poll(mux)[0] == ["hi"]


# -- events


def test_an_event_is_not_seen_before_it_is_published(mux, direct, once_before):
    """Else its reader's cursor would stand beyond the head, as if it came from another database."""
    join(direct, "ann")
    early: list[Any] = []

    def look() -> None:
        early.append(direct.call("events.list", after=0))
        early.append(direct.call("events.list", after=early[0]["next"]))

    once_before(type(mux.log), "publish", look)
    direct.call("state.set", key="k", value="1")
    first, second = early
    assert "reset" not in second
    assert first["next"] <= first["head"]
    after = direct.call("events.list", after=second["next"])
    assert [event["type"] for event in after["events"]] == ["state_changed"]


def test_a_listener_of_events_that_fails_keeps_no_message_from_who_waits(mux, direct, clock, background, caplog):
    join(direct, "ann", "bob")
    heard = []
    mux.log.listeners[:] = [lambda: 1 / 0, lambda: heard.append(mux.log.head)]
    polling = background(direct.call, "msg.poll", agent_id="bob", timeout=60)
    clock.until_parked(1)
    direct.call("msg.send", from_="ann", to="bob", content="hi")
    assert [m["content"] for m in polling.result(5)["messages"]] == ["hi"]
    assert heard == [mux.log.head]
    assert "could not be announced" in caplog.text


def test_events_reach_the_ring_in_the_order_of_their_ids(mux, direct, background, once_before):
    """A second leader may not publish before the first has."""
    join(direct, "ann")
    rivals: list[Future[Any]] = []

    def rival() -> None:
        rivals.append(background(direct.call, "state.set", key="k2", value="1"))
        wait(rivals, BLOCKED_S)

    once_before(type(mux.log), "publish", rival)
    direct.call("state.set", key="k1", value="1")
    rivals[0].result(5)
    ids = [event.id for event in mux.log.recent(0) or ()]
    assert ids == list(range(1, mux.store.head + 1))


def test_a_stream_passes_over_ids_that_were_left_out(mux, direct):
    """After a database went back in time the head lies far beyond its newest event: no reason to spin."""
    join(direct, "ann")
    mux.store.head += SKIPPED
    mux.log.head += SKIPPED
    mux.log._ring.clear()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = sse.Stream(ours, Filter(), 0, b"", sse.Permit("free", None))
        streamer = sse.Streamer(mux)
        piece, stream.cursor = streamer._next_piece(stream)
        assert b"agent_registered" in piece
        assert streamer._next_piece(stream) == (b"", mux.log.head)
        streamer.close()


def test_the_first_event_after_a_restore_is_not_taken_for_purged_by_who_reads_at_that_moment(mux, direct, once_after):
    join(direct, "ann", "bob")
    head = mux.log.head
    mux.store.write(lambda tx: tx.run("delete from event"))
    once_after(Snapshot, "one", lambda: direct.call("msg.send", from_="ann", to="bob", content="first"))
    assert "gap" not in direct.call("events.list", after=head)
    assert [event["id"] for event in direct.call("events.list", after=head)["events"]] == [head + 1]


# -- a task wakes one waiter, and no wake-up is lost


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who tried to claim, in order."""
    tried: list[str] = []
    real = claims._claim_one

    def counting(tx: Any, agent_id: str, *rest: Any) -> Any:
        tried.append(agent_id)
        return real(tx, agent_id, *rest)

    monkeypatch.setattr(claims, "_claim_one", counting)
    return tried


@pytest.fixture
def waiting(mux, direct, clock, background):
    """Starts a waiting claim and returns its future when it is parked."""

    def start(agent_id: str, **given: Any) -> Future[Any]:
        before = clock.parked
        future = background(direct.call, "task.claim", agent_id=agent_id, timeout=given.pop("timeout", 60), **given)
        clock.until_parked(before + 1)
        return future

    return start


def post(direct: Direct, description: str = "x", **given: Any) -> str:
    answer: str = direct.call("task.post", description=description, posted_by="ann", **given)["task_id"]
    return answer


def test_a_task_wakes_the_one_who_has_waited_longest_and_nobody_else(direct, clock, waiting, tries):
    """T13."""
    names = [f"w{n}" for n in range(5)]
    join(direct, "ann", *names)
    futures = [waiting(name) for name in names]
    tries.clear()
    for n in range(len(names)):
        post(direct, f"task {n}")
        assert futures[n].result(5)["task"]["description"] == f"task {n}"
        assert tries == names[: n + 1], "one woke and looked, nobody else did"
        assert clock.parked == 4 - n


def test_a_task_posted_while_its_waiter_leaves_wakes_the_next(mux, direct, clock, waiting, once_before):
    """The leaving one has seen its deadline, but is still registered."""
    join(direct, "ann", "bob", "cid")
    leaving = waiting("bob", timeout=1)
    staying = waiting("cid")
    once_before(Hub, "dismiss", lambda: post(direct))
    clock.advance(1000)
    assert leaving.result(5)["task"] is None
    assert staying.result(5)["task"]["claimed_by"] == "cid"


@pytest.mark.parametrize("readable", [True, False])
def test_a_woken_waiter_that_takes_another_task_passes_the_wake_up_on(
    mux, direct, waiting, once_before, monkeypatch, readable
):
    """bob can do p and q and is woken for p; he takes the more urgent q, and dan, who can do p, must hear of it.

    Even if bob's thread cannot read whether p is still there.
    """

    def fail_to_read() -> Any:
        monkeypatch.undo()
        raise MuxError("storage_busy", "too many open files")

    if not readable:
        once_before(Hub, "dismiss", lambda: monkeypatch.setattr(mux.store, "read", fail_to_read))
    join(direct, "ann")
    join(direct, "bob", capabilities=["p", "q"])
    join(direct, "dan", capabilities=["p"])
    bob, dan = waiting("bob"), waiting("dan")
    p = {"description": "p", "posted_by": "ann", "required_capability": "p"}
    q = {"description": "q", "posted_by": "ann", "required_capability": "q", "priority": 5}
    together(mux, ("task.post", p), ("task.post", q))
    assert bob.result(5)["task"]["description"] == "q"
    assert dan.result(5)["task"]["description"] == "p"


@pytest.mark.parametrize(
    ("given", "topic"), [({}, ("task", "default", None)), ({"assigned_to": "bob"}, ("task-for", "default", "bob"))]
)
def test_a_wake_up_is_passed_on_only_for_a_task_that_is_still_there(mux, direct, given, topic):
    join(direct, "ann", "bob")
    leaving = claims.await_claim(mux, Caller(), agent_id="bob", channel="default", task_id=None, timeout=60)
    with mux.hub.watch(topic) as other:
        leaving.pass_on()
        assert not other.wait(mux.clock.ticks_ms())
        post(direct, **given)
        assert other.wait(mux.clock.ticks_ms())
        leaving.pass_on()
        assert other.wait(mux.clock.ticks_ms())


def test_a_waiter_that_is_deregistered_passes_the_wake_up_on(mux, direct, waiting):
    join(direct, "ann", "bob", "cid")
    bob, cid = waiting("bob"), waiting("cid")
    together(mux, ("agent.deregister", {"agent_id": "bob"}), ("task.post", {"description": "x", "posted_by": "ann"}))
    assert cid.result(5)["task"]["claimed_by"] == "cid"
    with pytest.raises(MuxError) as caught:
        bob.result(5)
    assert caught.value.code == "agent_not_found"


def test_a_claim_ends_when_its_agent_is_deregistered(direct, waiting):
    join(direct, "bob")
    bob = waiting("bob")
    direct.call("agent.deregister", agent_id="bob")
    with pytest.raises(MuxError) as caught:
        bob.result(5)
    assert caught.value.code == "agent_not_found"


def test_a_waiter_that_can_do_other_things_now_does_not_sit_on_a_wake_up(mux, direct, waiting):
    join(direct, "ann")
    join(direct, "bob", "cid", capabilities=["q"])
    bob, cid = waiting("bob"), waiting("cid")
    together(
        mux,
        ("agent.register", {"agent_id": "bob", "capabilities": ["z"]}),
        ("task.post", {"description": "x", "posted_by": "ann", "required_capability": "q"}),
    )
    assert cid.result(5)["task"]["claimed_by"] == "cid"
    assert bob.result(5)["task"] is None, "its caller asks again and then waits for what it can do now"


def test_registering_anew_with_the_same_capabilities_disturbs_no_claim(direct, clock, waiting):
    join(direct, "ann")
    join(direct, "bob", capabilities=["q"])
    bob = waiting("bob")
    direct.call("agent.register", agent_id="bob", capabilities=["q"])
    clock.until_parked(1)
    assert not bob.done()
    post(direct, required_capability="q")
    assert bob.result(5)["task"]["claimed_by"] == "bob"


class Vanishing(Caller):
    """A caller that hangs up as soon as it sleeps, or when it is told to."""

    watch: Any = None

    def park(self, watch: Any) -> Any:
        self.watch = watch
        return super().park(watch)


def claim_as(mux: Mux, caller: Caller, agent_id: str) -> Any:
    return door.Call(mux, operations.BY_NAME["task.claim"], {"agent_id": agent_id, "timeout": 60}, caller).answer()


def test_a_caller_that_hangs_up_as_it_is_woken_passes_the_wake_up_on(
    mux, direct, clock, waiting, background, once_after
):
    join(direct, "ann", "bob", "cid")
    caller = Vanishing()
    gone = background(claim_as, mux, caller, "bob")
    clock.until_parked(1)
    staying = waiting("cid")
    once_after(Hub, "offer", lambda: None)
    with caller.watch._condition:  # bob cannot look before he has both: the wake-up, and nobody to answer
        assert mux.hub._waiting
        caller.watch._fired, caller.watch._cancelled = True, True
        post_done = background(post, direct)
        caller.watch._condition.notify_all()
    post_done.result(5)
    with pytest.raises(Hangup):
        gone.result(5)
    assert staying.result(5)["task"]["claimed_by"] == "cid"


def test_a_claim_whose_answer_is_lost_goes_to_the_next(mux, direct, waiting):
    join(direct, "ann", "bob", "cid")
    post(direct)
    caller = Caller()
    claim_as(mux, caller, "bob")
    staying = waiting("cid")
    caller.flight.lost()
    got = staying.result(5)["task"]
    assert (got["claimed_by"], got["attempts"]) == ("cid", 0)


def test_a_claim_whose_answer_is_lost_late_leaves_the_next_ones_claim_alone(mux, direct, clock):
    """T13, T1: it is another claim by then."""
    join(direct, "ann", "bob", "cid")
    post(direct, claim_timeout=10)
    late = Caller()
    claim_as(mux, late, "bob")
    clock.advance(10_001)
    second = direct.call("task.claim", agent_id="cid")
    late.flight.lost()
    assert direct.call("task.get", task_id=second["task_id"])["task"]["claimed_by"] == "cid"


def test_a_claim_with_a_key_stands_when_its_answer_is_lost(mux, direct):
    """T11: who lost the answer asks again with the key and has its claim."""
    join(direct, "ann", "bob")
    post(direct)
    caller = Caller()
    given = {"agent_id": "bob", "timeout": 60, "idempotency_key": "k"}
    first = door.Call(mux, operations.BY_NAME["task.claim"], given, caller).answer()
    assert caller.flight is None
    again = direct.call("task.claim", **given)
    assert again == first
    assert direct.replayed
    done = direct.call("task.complete", task_id=first["task_id"], agent_id="bob", claim_token=first["claim_token"])
    assert done["status"] == "complete"


@pytest.mark.parametrize(
    ("operation", "given"),
    [("task.claim", {}), ("msg.poll", {}), ("msg.poll", {"ack": "manual"})],
    ids=["claim", "plain", "manual"],
)
def test_what_was_handed_out_may_be_lost_while_a_commit_is_led(mux, direct, background, operation, given):
    """The leader writes answers, learns that a client is gone, and tells what was handed out: it must not wait."""
    join(direct, "ann", "bob")
    post(direct)
    direct.call("msg.send", from_="ann", to="bob", content="hi")
    caller = Caller()
    given = given | {"agent_id": "bob", "timeout": 60}
    door.Call(mux, operations.BY_NAME[operation], given, caller).answer()

    def lose(value: Any, error: Any) -> None:
        caller.flight.lost()

    background(mux.store.submit, Job(lambda tx: tx.run("insert into meta values ('k', 'x')"), lose)).result(5)
    got = background(direct.call, operation, **given).result(5)
    assert got.get("messages") or got.get("task")


def test_an_answer_that_is_lost_late_leaves_the_next_ones_lease_alone(program, mux, direct, clock):
    """Its own lease has run out meanwhile, and another worker has the message."""
    join(direct, "ann", "bob")
    direct.call("msg.send", from_="ann", to="bob", content="hi")
    _, late = poll(mux, ack="manual", lease=1)
    clock.advance(1000)
    program.timekeeper.tick()
    contents, _ = poll(mux, ack="manual")
    assert contents == ["hi"]
    late.flight.lost()
    until_written(mux)
    assert poll(mux, ack="manual")[0] == [], "the second worker is about it"


def test_an_answer_that_is_lost_after_the_time_to_live_leaves_a_dead_letter(program, mux, direct, clock):
    join(direct, "ann", "bob")
    direct.call("msg.send", from_="ann", to="bob", content="hi", ttl_seconds=1)
    _, late = poll(mux, ack="manual", lease=600)
    for _ in range(3):  # the purge passes
        clock.advance(60_000)
        program.timekeeper.tick()
    late.flight.lost()
    until_written(mux)
    assert [dead["reason"] for dead in direct.call("msg.dead", agent_id="bob")["messages"]] == ["expired"]


def test_a_lease_that_runs_out_wakes_a_waiter(program, direct, clock, waiting):
    join(direct, "ann", "bob", "cid")
    post(direct, claim_timeout=10)
    direct.call("task.claim", agent_id="bob")
    staying = waiting("cid")
    clock.advance(10_000)
    program.timekeeper.tick()
    assert staying.result(5)["task"]["claimed_by"] == "cid"


# -- the end


@pytest.mark.parametrize(
    ("operation", "given", "empty"),
    [
        ("msg.poll", {"agent_id": "bob"}, {"messages": []}),
        ("task.claim", {"agent_id": "bob"}, {"task_id": None, "task": None}),
        ("state.watch", {"key": "k", "after_version": 0}, None),
        ("events.list", {"after": 1000}, None),
    ],
)
def test_the_end_answers_who_waits(mux, direct, clock, background, operation, given, empty):
    join(direct, "bob")
    if operation == "events.list":
        given = {"after": mux.log.head}
    waiting = background(direct.call, operation, timeout=60, **given)
    clock.until_parked(1)
    mux.hub.close()
    got = waiting.result(5)
    assert empty is None or got == empty


def test_the_end_between_reading_and_sleeping_is_not_missed(mux, direct, once_looked):
    join(direct, "bob")
    once_looked(mux.hub.close)
    assert direct.call("msg.poll", agent_id="bob", timeout=60) == {"messages": []}


def test_the_end_between_trying_and_sleeping_is_not_missed(mux, direct, once_after):
    join(direct, "bob")
    once_after(Caller, "park", mux.hub.close)
    assert direct.call("task.claim", agent_id="bob", timeout=60)["task"] is None


def test_a_waiting_claim_that_is_woken_when_the_store_has_closed_is_refused(mux, direct, clock, background):
    join(direct, "bob")
    bob = background(claim_as, mux, Caller(), "bob")
    clock.until_parked(1)
    mux.store.close()
    mux.hub.wake([("agent", "bob")])
    with pytest.raises(MuxError) as caught:
        bob.result(5)
    assert caught.value.code == "shutting_down"


# -- the alarm


def test_an_alarm_set_between_the_look_and_the_sleep_is_heard(clock, background, monkeypatch):
    alarm = Alarm(clock)
    alarm.wait()
    alarm.set(clock.now_ms() + 60_000)
    setting: list[threading.Thread] = []
    real = clock.wait

    def set_now(condition: Any, deadline: int) -> None:
        if not setting:
            setting.append(threading.Thread(target=alarm.set, args=(clock.now_ms() - 1,)))
            setting[0].start()
        real(condition, deadline)

    monkeypatch.setattr(clock, "wait", set_now)
    alarm.wait()
    setting[0].join()


def test_an_alarm_rings_at_its_earliest_moment_and_once(clock, background):
    alarm = Alarm(clock)
    alarm.wait()
    alarm.set(clock.now_ms() + 2000)
    alarm.set(clock.now_ms() + 1000)
    alarm.set(clock.now_ms() + 3000)
    ringing = background(alarm.wait)
    clock.until_parked(1)
    clock.advance(999)
    assert not ringing.done()
    clock.advance(1)
    ringing.result(5)
    assert alarm._at == 2**62


def test_what_is_due_is_settled_however_much_it_is(program, direct, clock, mux):
    """More than one round takes, and nothing of it is left until something else rings."""
    join(direct, "ann", "bob")
    for n in range(3):
        post(direct, f"x{n}", claim_timeout=1)
        direct.call("task.claim", agent_id="bob")
    clock.advance(1000)
    mux.alarm.wait()
    program.timekeeper.tick()
    assert direct.call("stats")["tasks"]["pending"] == 3
    assert mux.alarm._at > mux.clock.now_ms(), "it does not spin"
