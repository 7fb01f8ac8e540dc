"""Manual acknowledgment: leases, ack, nack, extend, dead letters, requeue; and what plain polls can get again."""

from __future__ import annotations

import pytest
from faces import Direct, join, say

from stonemux.clock import rfc3339
from stonemux.errors import MuxError


@pytest.fixture
def mail(face):
    """Ann sends bob messages with the given contents; returns their ids."""
    face.call("agent.register", agent_id="ann")
    face.call("agent.register", agent_id="bob")

    def send(*contents, **fields):
        return [face.call("msg.send", from_="ann", to="bob", content=c, **fields)["message_id"] for c in contents]

    return send


def take(face, **more):
    return face.call("msg.poll", agent_id="bob", timeout=0, ack="manual", **more)["messages"]


def ids(messages):
    return [message["id"] for message in messages]


def test_i6_an_unacked_message_comes_back_when_its_lease_ends_and_not_before(face, mail, clock, program):
    (sent,) = mail("work")
    (first,) = take(face, lease=60)
    assert (first["id"], first["deliveries"], "redelivered" in first) == (sent, 1, False)
    fetched = {"agent_id": "bob", "status": "fetched", "deliveries": 1, "at": rfc3339(clock.now_ms())}
    clock.advance(59_999)
    program.timekeeper.tick()
    assert take(face) == []
    assert face.call("msg.status", id=sent)["recipients"] == [fetched]
    clock.advance(1)
    program.timekeeper.tick()
    (again,) = take(face)
    assert (again["id"], again["deliveries"], again["redelivered"]) == (sent, 2, True)


def test_i6_a_parked_poll_wakes_when_a_lease_runs_out(face, mail, clock, program, background):
    (sent,) = mail("work")
    take(face, lease=10)
    waiting = background(face.call, "msg.poll", agent_id="bob", timeout=60, ack="manual")
    clock.until_parked(1)
    clock.advance(10_000)
    program.timekeeper.tick()
    assert ids(waiting.result(5)["messages"]) == [sent]


def test_new_mail_is_not_hidden_behind_unacked_mail(face, mail):
    old = mail(*"abc")
    assert ids(take(face, limit=3)) == old
    new = mail("d")
    assert ids(take(face, limit=3)) == new


def test_i7_what_was_acked_does_not_come_back_and_acks_once(face, mail, clock, program):
    sent = mail("a", "b")
    take(face)
    assert face.call("msg.ack", agent_id="bob", ids=sent) == {"acked": 2}
    assert face.call("msg.ack", agent_id="bob", ids=sent) == {"acked": 0}
    clock.advance(120_000)
    program.timekeeper.tick()
    assert take(face) == []


def test_i7_acknowledging_through_an_id_settles_everything_up_to_it(face, mail):
    sent = mail("a", "b", "c")
    take(face)
    assert face.call("msg.ack", agent_id="bob", through=sent[1]) == {"acked": 2}
    assert face.call("agent.get", agent_id="bob")["agent"]["unread"] == 1


@pytest.mark.parametrize("how", ["through", "cursor", "read"])
def test_i7_what_was_settled_while_on_a_lease_does_not_come_back_when_that_ends(face, mail, clock, program, how):
    sent = mail("a", "b")
    take(face, lease=60)
    if how == "through":
        face.call("msg.ack", agent_id="bob", through=sent[1])
    elif how == "cursor":
        face.call("msg.poll", agent_id="bob", timeout=0, after=sent[1])
    else:
        face.call("inbox.update", agent_id="bob", all=True, status="read")
    clock.advance(60_001)
    program.timekeeper.tick()
    assert take(face) == []


@pytest.mark.parametrize("how", ["lease", "extend", "nack"])
def test_i6_the_timekeeper_is_set_to_the_end_of_a_lease(face, mail, clock, mux, monkeypatch, how):
    mail("work")
    told = []
    monkeypatch.setattr(mux.alarm, "set", told.append)
    (held,) = take(face, lease=10)
    assert clock.now_ms() + 10_000 in told
    if how == "extend":
        face.call("msg.extend", agent_id="bob", id=held["id"], lease=5)
        assert clock.now_ms() + 5_000 in told
    elif how == "nack":
        face.call("msg.nack", agent_id="bob", id=held["id"], delay=7)
        assert clock.now_ms() + 7_000 in told


def test_i8_an_ack_of_a_message_never_delivered_changes_nothing(face, mail):
    first, second = mail("a", "b")
    take(face, limit=1)
    with pytest.raises(MuxError) as refused:
        face.call("msg.ack", agent_id="bob", ids=[first, second])
    assert refused.value.code == "not_delivered"
    with pytest.raises(MuxError) as refused:
        face.call("msg.ack", agent_id="ann", ids=[first])
    assert refused.value.code == "message_not_found"
    assert face.call("msg.ack", agent_id="bob", ids=[first]) == {"acked": 1}


def test_i8_what_a_cursor_poll_showed_may_be_acked_by_id(face, mail):
    sent = mail("a", "b")
    face.call("msg.poll", agent_id="bob", timeout=0, after=0)
    assert face.call("msg.ack", agent_id="bob", ids=[sent[1]]) == {"acked": 1}
    assert ids(take(face)) == [sent[0]]


def test_i9_through_beyond_anything_delivered_is_refused(face, mail):
    (sent,) = mail("a")
    with pytest.raises(MuxError) as refused:
        face.call("msg.ack", agent_id="bob", through=sent + 1)
    assert (refused.value.code, refused.value.facts["highest"]) == ("cursor_ahead", sent)


@pytest.mark.parametrize(
    ("fields", "code"),
    [({}, "missing_field"), ({"ids": [1], "through": 1}, "invalid_field"), ({"ids": [-1]}, "invalid_field")],
)
def test_an_ack_names_ids_or_a_bound(face, mail, fields, code):
    with pytest.raises(MuxError) as refused:
        face.call("msg.ack", agent_id="bob", **fields)
    assert refused.value.code == code


def test_a_nacked_message_comes_back_at_once_or_after_a_delay(face, mail, clock, program):
    (sent,) = mail("a")
    take(face)
    assert face.call("msg.nack", agent_id="bob", id=sent) == {"id": sent, "status": "queued"}
    assert take(face)[0]["deliveries"] == 2
    face.call("msg.nack", agent_id="bob", id=sent, delay=30)
    assert take(face) == []
    clock.advance(30_000)
    program.timekeeper.tick()
    assert take(face)[0]["deliveries"] == 3


@pytest.mark.parametrize(("operation", "given"), [("msg.extend", {"lease": 10}), ("msg.nack", {"delay": 10})])
def test_an_extended_lease_or_a_delay_runs_from_now_and_no_other_does(face, mail, clock, program, operation, given):
    mail()
    face.call("agent.register", agent_id="cat")
    (other,) = mail("a")
    sent = face.call("msg.broadcast", from_="ann", content="b")["message_id"]

    def taken(agent_id):
        return ids(face.call("msg.poll", agent_id=agent_id, timeout=0, ack="manual", lease=10)["messages"])

    assert (taken("bob"), taken("cat")) == ([other, sent], [sent])
    clock.advance(9_000)
    face.call(operation, agent_id="bob", id=sent, **given)
    clock.advance(9_000)
    program.timekeeper.tick()
    assert (taken("bob"), taken("cat")) == ([other], [sent])
    clock.advance(1_000)
    program.timekeeper.tick()
    assert (taken("bob"), taken("cat")) == ([sent], [])


def test_what_a_poll_cannot_lease_is_there_for_others_who_wait_for_it(direct, mux, monkeypatch):
    join(direct, "ann", "bob")
    sent = say(direct, "a")
    looked = []

    def fail(*_, **__):
        monkeypatch.undo()
        looked.append(take(direct))
        raise OSError("the disk failed")

    monkeypatch.setattr(mux.store, "write", fail)
    with mux.hub.watch(("inbox", "bob")) as waiting:
        with pytest.raises(OSError, match="failed"):
            take(direct)
        assert looked == [[]], "it was held"
        assert waiting.wait(mux.clock.ticks_ms()), "who had found nothing looks again"
    assert ids(take(direct)) == sent


@pytest.mark.parametrize("operation", ["msg.nack", "msg.extend"])
def test_only_what_is_on_a_lease_can_be_nacked_or_extended(face, mail, operation):
    (sent,) = mail("a")
    with pytest.raises(MuxError) as refused:
        face.call(operation, agent_id="bob", id=sent)
    assert (refused.value.code, refused.value.facts["status"]) == ("not_delivered", "queued")
    with pytest.raises(MuxError) as refused:
        face.call(operation, agent_id="bob", id=sent + 1)
    assert refused.value.code == "message_not_found"


def test_i13_a_message_delivered_in_vain_too_often_becomes_a_dead_letter(open_program, background):
    program = open_program(max_deliveries=2)
    face = Direct(program.mux)
    face.call("agent.register", agent_id="ann")
    face.call("agent.register", agent_id="bob")
    sent = face.call("msg.send", from_="ann", to="bob", content="poison")["message_id"]
    for _ in range(2):
        assert ids(take(face, lease=1)) == [sent]
        program.clock.advance(1_000)
        program.timekeeper.tick()
    assert take(face) == []
    (dead,) = face.call("msg.dead", agent_id="bob")["messages"]
    assert (dead["id"], dead["content"], dead["deliveries"], dead["reason"]) == (sent, "poison", 2, "max_deliveries")
    kinds = [event["type"] for event in face.call("events.list", limit=1000)["events"]]
    assert kinds.count("message_dead") == 1
    assert face.call("msg.status", id=sent)["recipients"][0]["status"] == "dead"
    assert face.call("msg.requeue", agent_id="bob", ids=[sent]) == {"requeued": 1}
    assert face.call("msg.requeue", agent_id="bob", ids=[sent]) == {"requeued": 0}
    (again,) = take(face)
    assert (again["id"], again["deliveries"]) == (sent, 1)


def test_i13_a_nack_counts_towards_the_last_delivery_of_this_message_to_this_agent(open_program):
    program = open_program(max_deliveries=1)
    face = Direct(program.mux)
    join(face, "ann", "bob", "cat")
    sent = face.call("msg.broadcast", from_="ann", content="poison")["message_id"]
    (other,) = say(face, "fine")
    assert ids(take(face)) == [sent, other]
    assert face.call("msg.nack", agent_id="bob", id=sent) == {"id": sent, "status": "dead"}
    assert ids(face.call("msg.dead", agent_id="bob")["messages"]) == [sent]
    assert ids(face.call("msg.poll", agent_id="cat", timeout=0)["messages"]) == [sent]


@pytest.mark.parametrize("later", [1_000, 200_000])
def test_what_has_run_out_of_time_is_a_dead_letter_at_once(face, mail, clock, program, later):
    sent, urgent = mail("a", ttl_seconds=1), mail("b", ttl_seconds=1, priority=5)
    mail("c")
    assert face.call("msg.dead", agent_id="bob")["messages"] == []
    clock.advance(later)
    program.timekeeper.tick()
    dead = face.call("msg.dead", agent_id="bob")["messages"]
    assert [(one["id"], one["deliveries"], one["reason"]) for one in dead] == [
        (one, 0, "expired") for one in (*sent, *urgent)
    ]
    first = face.call("msg.dead", agent_id="bob", limit=1)
    assert (ids(first["messages"]), first["more"]) == (sent, True)
    assert "more" not in face.call("msg.dead", agent_id="bob", limit=2)


def test_what_ran_out_of_time_while_nobody_served_is_a_dead_letter_at_once(face, mail, clock, restart):
    sent = mail("a", ttl_seconds=1)
    clock.advance(200_000)
    restart()
    assert ids(face.call("msg.dead", agent_id="bob")["messages"]) == sent
    assert face.call("stats")["messages"]["unread"] == 0


@pytest.mark.parametrize("operation", ["msg.poll", "msg.ack"])
def test_what_has_run_out_of_time_is_not_acknowledged_by_passing_it(face, mail, clock, program, operation):
    (sent,) = mail("a", ttl_seconds=1)
    (read,) = mail("b")
    clock.advance(1_000)
    died = {"agent_id": "bob", "status": "dead", "at": rfc3339(clock.now_ms()), "reason": "expired"}
    given = {"through": read} if operation == "msg.ack" else {"after": read, "timeout": 0}
    answer = face.call(operation, agent_id="bob", **given)
    assert answer == ({"acked": 1} if operation == "msg.ack" else {"messages": []})
    for _ in range(3):  # the purge passes
        assert face.call("msg.status", id=sent)["recipients"] == [died]
        (dead,) = face.call("msg.dead", agent_id="bob")["messages"]
        assert (dead["id"], dead["died_at"]) == (sent, died["at"])
        clock.advance(60_000)
        program.timekeeper.tick()


def test_dead_letters_are_in_the_order_in_which_they_were_sent(open_program):
    program = open_program(max_deliveries=1)
    face = Direct(program.mux)
    face.call("agent.register", agent_id="bob")
    letter = {"from_": "bob", "to": "bob", "content": "x"}
    sent = [face.call("msg.send", **letter, priority=n % 2, ttl_seconds=1)["message_id"] for n in range(3)]
    assert ids(take(face, limit=1)) == sent[1:2]
    face.call("msg.nack", agent_id="bob", id=sent[1])
    program.clock.advance(2_000)
    assert ids(face.call("msg.dead", agent_id="bob")["messages"]) == sent


@pytest.mark.parametrize("later", [1_000, 200_000])
def test_a_requeued_letter_outlives_its_time_for_its_reader_alone(face, mail, clock, program, later):
    def letters(operation, agent_id, **given):
        return ids(face.call(operation, agent_id=agent_id, **given)["messages"])

    mail()
    for agent_id in ("cat", "dan", "eve"):
        face.call("agent.register", agent_id=agent_id)
    sent = face.call("msg.broadcast", from_="ann", content="a", ttl_seconds=1)["message_id"]
    assert letters("msg.poll", "dan", timeout=0) == letters("msg.poll", "eve", ack="manual", lease=600) == [sent]
    clock.advance(later)
    program.timekeeper.tick()
    assert face.call("msg.requeue", agent_id="bob", ids=[sent]) == {"requeued": 1}
    clock.advance(later)
    program.timekeeper.tick()
    assert letters("msg.dead", "bob") == []
    assert face.call("agent.get", agent_id="bob")["agent"]["unread"] == 1
    assert [one["message_id"] for one in face.call("inbox.list", agent_id="bob")["items"]] == [sent]
    status = {one["agent_id"]: one["status"] for one in face.call("msg.status", id=sent)["recipients"]}
    assert status == {"bob": "queued", "cat": "dead", "dan": "acked", "eve": "fetched"}
    assert letters("msg.poll", "bob", after=0) == letters("msg.poll", "bob", timeout=0) == [sent]
    assert letters("msg.poll", "bob", timeout=0, redeliver=True) == ids(take(face, redeliver=True)) == [sent]
    assert face.call("msg.nack", agent_id="bob", id=sent) == {"id": sent, "status": "queued"}
    assert ids(take(face)) == [sent]
    assert face.call("msg.ack", agent_id="bob", ids=[sent]) == {"acked": 1}
    assert letters("msg.poll", "cat", timeout=0) == letters("msg.poll", "dan", timeout=0, redeliver=True) == []
    assert letters("msg.poll", "dan", after=0, timeout=0) == []
    assert face.call("msg.nack", agent_id="eve", id=sent) == {"id": sent, "status": "dead"}
    assert letters("msg.dead", "cat") == letters("msg.dead", "eve") == [sent]


def test_a_lease_that_outlasts_the_time_to_live_ends_with_a_dead_letter(face, mail, clock, program):
    first, second = mail("a", "b", ttl_seconds=10)
    take(face, lease=300)
    for _ in range(2):  # the purge passes while both are leased
        clock.advance(149_000)
        program.timekeeper.tick()
    inbox = face.call("inbox.list", agent_id="bob")
    assert ([one["message_id"] for one in inbox["items"]], inbox["unread"]) == ([second, first], 2)
    assert face.call("inbox.show", id=f"inbox-{first}-bob")["item"]["status"] == "unread"
    assert face.call("agent.get", agent_id="bob")["agent"]["unread"] == 2
    assert face.call("msg.nack", agent_id="bob", id=first) == {"id": first, "status": "dead"}
    clock.advance(2_000)
    program.timekeeper.tick()
    dead = face.call("msg.dead", agent_id="bob")["messages"]
    assert [(one["id"], one["deliveries"], one["reason"]) for one in dead] == [
        (one, 1, "expired") for one in (first, second)
    ]


def test_requeuing_what_was_read_lifts_no_time_to_live(face, mail, clock):
    (sent,) = mail("a", ttl_seconds=10)
    take(face)
    face.call("msg.ack", agent_id="bob", ids=[sent])
    clock.advance(10_000)
    assert face.call("msg.requeue", agent_id="bob", ids=[sent]) == {"requeued": 0}
    assert face.call("msg.poll", agent_id="bob", timeout=0, after=0)["messages"] == []


def test_a_lease_outlives_a_restart(open_program):
    program = open_program()
    face = Direct(program.mux)
    face.call("agent.register", agent_id="bob")
    sent = face.call("msg.send", from_="bob", to="bob", content="work")["message_id"]
    take(face, lease=60)
    face = Direct(program.reopen())
    assert take(face) == []
    program.clock.advance(60_000)
    program.timekeeper.tick()
    (again,) = take(face)
    assert (again["id"], again["deliveries"]) == (sent, 2)


def test_an_agent_may_be_registered_for_manual_acknowledgment(face, mail):
    face.call("agent.register", agent_id="bob", ack="manual")
    (sent,) = mail("a")
    assert face.call("msg.poll", agent_id="bob", timeout=0)["messages"][0]["deliveries"] == 1
    assert face.call("msg.ack", agent_id="bob", ids=[sent]) == {"acked": 1}
    (plain,) = mail("b")
    got = face.call("msg.poll", agent_id="bob", timeout=0, ack="plain")["messages"]
    assert ids(got) == [plain]
    assert "deliveries" not in got[0]


def test_redeliver_puts_back_what_plain_polls_took_in_the_last_hour(direct, clock):
    direct.call("agent.register", agent_id="bob")
    old = direct.call("msg.send", from_="bob", to="bob", content="old")["message_id"]
    direct.call("msg.poll", agent_id="bob", timeout=0)
    clock.advance(3_600_001)
    new = direct.call("msg.send", from_="bob", to="bob", content="new")["message_id"]
    direct.call("msg.poll", agent_id="bob", timeout=0)
    acked = direct.call("msg.send", from_="bob", to="bob", content="acked")["message_id"]
    take(direct)
    direct.call("msg.ack", agent_id="bob", ids=[acked])
    again = direct.call("msg.poll", agent_id="bob", timeout=0, redeliver=True)["messages"]
    assert ids(again) == [new]
    assert old not in ids(again)


@pytest.mark.parametrize("how", ["ids", "through", "read", "all read"])
def test_i7_what_was_acked_after_a_plain_poll_took_it_is_not_redelivered(face, mail, how):
    first, second = mail("a", "b")
    face.call("msg.poll", agent_id="bob", timeout=0)
    if how in ("ids", "through"):
        acked = {"ids": [first]} if how == "ids" else {"through": first}
        assert face.call("msg.ack", agent_id="bob", **acked) == {"acked": 0}
    else:
        which = {"ids": [f"inbox-{first}-bob"]} if how == "read" else {"all": True}
        assert face.call("inbox.update", agent_id="bob", status="read", **which) == {"updated": 0}
    again = face.call("msg.poll", agent_id="bob", timeout=0, redeliver=True)["messages"]
    assert ids(again) == ([] if how == "all read" else [second])


def test_i9_a_poll_that_is_refused_redelivers_nothing(face, mail):
    (sent,) = mail("a")
    face.call("msg.poll", agent_id="bob", timeout=0)
    with pytest.raises(MuxError) as refused:
        face.call("msg.poll", agent_id="bob", timeout=0, redeliver=True, after=sent + 1)
    assert refused.value.code == "cursor_ahead"
    assert face.call("inbox.list", agent_id="bob")["unread"] == 0


def test_a_cursor_and_manual_acknowledgment_exclude_each_other(face, mail):
    with pytest.raises(MuxError) as refused:
        face.call("msg.poll", agent_id="bob", timeout=0, after=0, ack="manual")
    assert refused.value.code == "invalid_field"


def test_two_workers_on_one_inbox_never_hold_the_same_message(face, mail):
    mail(*"abcdef")
    first, second = take(face, limit=4), take(face, limit=4)
    assert len(first) == 4
    assert not set(ids(first)) & set(ids(second))
    assert len(second) == 2
