"""The contract of messages: sending, inboxes, order, polling in both modes, history, and search."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, wait

import pytest
from faces import join, refusal

from stonemux import search


@pytest.fixture
def team(face):
    join(face, "ann", "bob", "cat")
    return face


def send(face, to="bob", content="x", from_="ann", **given):
    return face.call("msg.send", from_=from_, to=to, content=content, **given)["message_id"]


def poll(face, agent_id="bob", **given):
    return face.call("msg.poll", agent_id=agent_id, timeout=0, **given)


def ids(face, agent_id="bob", **given):
    return [message["id"] for message in poll(face, agent_id, **given)["messages"]]


# -- sending


def test_a_send_answers_id_time_and_the_recipients_status(team, clock):
    answer = team.call("msg.send", from_="ann", to="bob", content="hi")
    assert answer["recipient_status"] == "active"
    clock.advance(300_000)
    later = team.call("msg.send", from_="ann", to="bob", content="hi")
    assert later["recipient_status"] == "stale"
    assert later["message_id"] == answer["message_id"] + 1
    assert later["sent_at"] > answer["sent_at"]


def test_a_polled_message_has_the_seeds_fields_and_only_extras_that_carry_something(team):
    answer = team.call("msg.send", from_="ann", to="bob", content="hi")
    (message,) = poll(team)["messages"]
    assert message == {
        "id": answer["message_id"],
        "from": "ann",
        "to": "bob",
        "content": "hi",
        "channel": "default",
        "sent_at": answer["sent_at"],
    }


def test_every_optional_field_comes_back(team):
    first = send(team, to="cat")
    sent = {
        "subject": "s",
        "type": "question",
        "thread": "t",
        "reply_to": first,
        "priority": -3,
        "metadata": {"deep": [1, {"x": None}], "": 1.5},
    }
    send(team, **sent)
    (message,) = poll(team)["messages"]
    assert {name: message[name] for name in sent} == sent


def test_a_reply_joins_the_thread_of_the_message_it_answers(team):
    first = send(team)
    second = send(team, from_="bob", to="ann", reply_to=first)
    third = send(team, reply_to=second)
    assert [m["id"] for m in team.call("msg.list", thread=str(first))["messages"]] == [third, second, first]
    assert refusal(team, "message_not_found", "msg.send", from_="ann", to="bob", content="x", reply_to=999)


@pytest.mark.parametrize(
    "content", ["\x00", "a\x00b", "😀", '\u2028\n\r\t"\\', "e\u0301", "\ufeffx", "x" * 65536, "é" * 32768]
)
def test_content_comes_back_unchanged_up_to_the_limit__I15(team, content):
    send(team, content=content)
    assert poll(team)["messages"][0]["content"] == content


@pytest.mark.parametrize("content", ["x" * 65537, "é" * 32769, "😀" * 16385])
def test_one_byte_more_is_message_too_large__I15__fault_19(team, content):
    error = refusal(team, "message_too_large", "msg.send", from_="ann", to="bob", content=content)
    assert error.facts["limit"] == 65536
    assert error.message.endswith("store it in a document (document.create) and send its id as content_ref")
    assert poll(team)["messages"] == []


@pytest.mark.parametrize("content", ["", 5, True, ["x"], {"a": 1}])
def test_content_that_is_no_text_is_an_invalid_field_and_not_too_large(team, content):
    refusal(team, "invalid_field", "msg.send", from_="ann", to="bob", content=content)


def test_sender_and_recipient_must_be_registered__fault_25(team):
    refusal(team, "agent_not_found", "msg.send", from_="ann", to="bobb", content="x", channel="nowhere")
    error = refusal(team, "agent_not_found", "msg.send", from_="ann", to="bobb", content="x")
    assert (error.facts["parameter"], error.facts["known_agents"][0]) == ("to", "bob")
    error = refusal(team, "agent_not_found", "msg.send", from_="anne", to="bob", content="x")
    assert (error.facts["parameter"], error.facts["known_agents"][0]) == ("from", "ann")
    error = refusal(team, "agent_not_found", "msg.poll", agent_id="bobb", timeout=0)
    assert error.facts["known_agents"][0] == "bob"


def test_who_names_no_agent_as_recipient_is_told_how_to_reach_whom_it_means(team):
    join(team, "eve", role="review", group="night", capabilities=["rust"])
    team.call("channel.create", name="lab")
    for to, meant in {
        "*": "msg.broadcast sends to all members of a channel",
        "everyone": "msg.broadcast sends to all members of a channel",
        "lab": "'lab' is a channel: msg.broadcast sends to its members",
        "review": "send to 'role:review' for the agents with that role",
        "night": "send to 'group:night' for the agents with that group",
        "rust": "send to 'capability:rust' for the agents with that capability",
    }.items():
        error = refusal(team, "agent_not_found", "msg.send", from_="ann", to=to, content="x")
        assert error.message.startswith(f"no agent {to!r} is registered (to); {meant}. Known, for example: "), to


def test_the_recipient_must_be_a_member_of_the_channel_and_the_sender_need_not(team):
    join(team, "dan", channel="lab")
    error = refusal(team, "not_in_channel", "msg.send", from_="dan", to="ann", content="x", channel="lab")
    assert error.facts["channels"] == ["agent-ann", "default"]
    assert send(team, from_="ann", to="dan", channel="lab")
    assert poll(team, "dan")["messages"][0]["channel"] == "lab"
    error = refusal(team, "channel_not_found", "msg.send", from_="ann", to="bob", content="x", channel="labs")
    assert "lab" in error.facts["known_channels"]


def test_an_agents_own_channel_takes_mail_for_it_alone(team):
    send(team, channel="agent-bob")
    refusal(team, "not_in_channel", "msg.send", from_="ann", to="cat", content="x", channel="agent-bob")
    assert len(ids(team)) == 1


def test_a_channel_may_be_named_by_its_id(team):
    channel = team.call("channel.create", name="guild", members=["ann", "bob"])["channel"]
    first = send(team, channel=channel["id"])
    answer = team.call("msg.broadcast", from_="ann", content="y", channel=channel["id"])
    assert answer["recipient_ids"] == ["bob"]
    got = poll(team, channel=channel["id"])["messages"]
    assert [(m["id"], m["channel"]) for m in got] == [(first, "guild"), (answer["message_id"], "guild")]
    assert len(team.call("msg.list", channel=channel["id"])["messages"]) == 2
    assert len(team.call("msg.search", q="y", channel=channel["id"])["results"]) == 1


def test_addresses_reach_every_matching_member_but_the_sender(team):
    team.call("agent.register", agent_id="d1", role="dev", group="g", capabilities=["go"])
    team.call("agent.register", agent_id="d2", role="dev", capabilities=["go", "c"])
    team.call("agent.register", agent_id="d3", role="dev", channel="lab")
    for to, expected in {"role:dev": ["d1", "d2"], "group:g": ["d1"], "capability:c": ["d2"]}.items():
        answer = team.call("msg.send", from_="ann", to=to, content="x")
        assert answer["recipients"] == [{"agent_id": name, "status": "active"} for name in expected]
        assert "recipient_status" not in answer
        assert [m["to"] for name in expected for m in poll(team, name)["messages"]] == [to] * len(expected)
    answer = team.call("msg.send", from_="d1", to="role:dev", content="x")
    assert [r["agent_id"] for r in answer["recipients"]] == ["d2"]
    error = refusal(team, "no_recipient", "msg.send", from_="ann", to="role:boss", content="x")
    assert error.facts["present"] == ["dev"]
    refusal(team, "no_recipient", "msg.send", from_="d1", to="group:g", content="x")
    error = refusal(team, "group_not_found", "msg.send", from_="ann", to="group:h", content="x")
    assert error.facts["known_groups"] == ["g"]


def test_a_refusal_lists_some_of_many_names(direct):
    """A list of sends that each listed ten thousand capabilities took all memory."""
    join(direct, "ann", capabilities=["go"])
    join(direct, "bob", capabilities=[f"c{n:03d}" for n in range(256)])
    for n in range(30):
        direct.call("channel.create", name=f"c{n:02d}", members=["bob"])
    error = refusal(direct, "no_recipient", "msg.send", from_="ann", to="capability:x", content="x")
    assert error.facts["present"] == [f"c{n:03d}" for n in range(20)]
    direct.call("channel.create", name="lab", members=["ann"])
    error = refusal(direct, "not_in_channel", "msg.send", from_="ann", to="bob", content="x", channel="lab")
    assert error.facts["channels"] == ["agent-bob", *(f"c{n:02d}" for n in range(19))]
    assert len(error.message) < 500


def test_pick_one_chooses_the_least_busy_active_match(team, clock):
    join(team, "old", role="dev")
    clock.advance(300_000)
    join(team, "d1", "d2", role="dev")
    send(team, to="d1", from_="d2")
    answer = team.call("msg.send", from_="d1", to="role:dev", content="x", pick="one")
    assert [r["agent_id"] for r in answer["recipients"]] == ["d2"]
    answer = team.call("msg.send", from_="bob", to="role:dev", content="x", pick="one")
    assert [r["agent_id"] for r in answer["recipients"]] == ["d1"]
    clock.advance(300_000)
    error = refusal(team, "no_recipient", "msg.send", from_="bob", to="role:dev", content="x", pick="one")
    assert (error.facts["parameter"], error.facts["stale"]) == ("to", ["d1", "d2", "old"])
    assert "name it in to" in error.message


def test_without_to_the_type_decides(team):
    join(team, "boss", role="director")
    assert team.call("msg.send", from_="ann", content="x", type="blocker")["recipients"][0]["agent_id"] == "boss"
    refusal(team, "missing_field", "msg.send", from_="ann", content="x")
    assert "blocker" in refusal(team, "missing_field", "msg.send", from_="ann", content="x", type="gossip").message
    refusal(team, "no_recipient", "msg.send", from_="ann", content="x", type="review")


@pytest.mark.settings(inbox_limit=2)
def test_a_full_inbox_refuses_the_sender_and_drops_nothing__I12(team):
    kept = [send(team), send(team)]
    error = refusal(team, "inbox_full", "msg.send", from_="ann", to="bob", content="x")
    assert (error.facts["limit"], error.retry_after) == (2, 5)
    refusal(team, "inbox_full", "msg.broadcast", from_="ann", content="x")
    assert ids(team, "cat") == []
    assert ids(team) == kept
    assert send(team)


@pytest.mark.settings(inbox_limit=2)
@pytest.mark.parametrize("how", ["plain", "cursor", "lease", "ack", "through", "read"])
def test_however_mail_is_taken_it_makes_room__I12(team, how):
    sent = [send(team), send(team)]
    refusal(team, "inbox_full", "msg.send", from_="ann", to="bob", content="x")
    if how == "plain":
        ids(team)
    elif how == "cursor":
        ids(team, after=sent[1])
    elif how == "lease":
        ids(team, ack="manual")
    elif how == "ack":
        ids(team, after=0)
        team.call("msg.ack", agent_id="bob", ids=sent)
    elif how == "through":
        team.call("msg.ack", agent_id="bob", through=sent[1])
    else:
        team.call("inbox.update", agent_id="bob", all=True, status="read")
    send(team)
    send(team)
    refusal(team, "inbox_full", "msg.send", from_="ann", to="bob", content="x")


@pytest.mark.settings(inbox_limit=2)
@pytest.mark.parametrize("how", ["nack", "expiry"])
def test_mail_that_comes_back_takes_its_room_again__I12(team, clock, program, how):
    sent = send(team)
    ids(team, ack="manual", lease=1)
    send(team)
    if how == "nack":
        team.call("msg.nack", agent_id="bob", id=sent)
    else:
        clock.advance(1_000)
        program.timekeeper.tick()
    refusal(team, "inbox_full", "msg.send", from_="ann", to="bob", content="x")


@pytest.mark.settings(inbox_limit=2)
def test_mail_that_has_run_out_takes_no_room__I12(team, clock):
    for _ in range(2):
        send(team, ttl_seconds=1)
    refusal(team, "inbox_full", "msg.send", from_="ann", to="bob", content="x")
    clock.advance(1000)
    kept = [send(team), send(team)]
    refusal(team, "inbox_full", "msg.send", from_="ann", to="bob", content="x")
    assert ids(team) == kept


def test_suppress_inbox_keeps_the_channel_quiet_but_not_the_one_addressed(team):
    said = team.call("msg.broadcast", from_="ann", content="quiet", suppress_inbox=True)
    assert (said["recipients"], said["recipient_ids"]) == (0, [])
    direct = send(team, suppress_inbox=True)
    team.call("agent.register", agent_id="cat", role="tester")
    asked = team.call("msg.send", from_="ann", to="role:tester", content="quiet", suppress_inbox=True)
    assert asked["recipients"] == []
    assert (ids(team), ids(team, "cat")) == ([direct], [])
    listed = [m["id"] for m in team.call("msg.list", channel="default")["messages"]]
    assert listed == [asked["message_id"], direct, said["message_id"]]


def test_a_message_is_not_delivered_after_its_time_to_live(team, clock):
    mortal = send(team, ttl_seconds=2)
    clock.advance(1999)
    assert team.call("msg.status", id=mortal)["recipients"] == [{"agent_id": "bob", "status": "queued"}]
    clock.advance(1)
    assert ids(team) == []
    assert ids(team, after=0) == []
    assert team.call("msg.status", id=mortal)["recipients"][0]["status"] == "dead"
    assert [m["id"] for m in team.call("msg.list")["messages"]] == [mortal]


# -- broadcasts


def test_a_broadcast_reaches_every_other_member_active_or_stale__B1(team, clock):
    clock.advance(300_000)
    join(team, "dan", channel="lab")
    answer = team.call("msg.broadcast", from_="ann", content="all")
    assert (answer["recipients"], answer["recipient_ids"]) == (2, ["bob", "cat"])
    for name in ("bob", "cat"):
        (message,) = poll(team, name)["messages"]
        assert (message["id"], message["to"]) == (answer["message_id"], "*")
    assert ids(team, "ann") == ids(team, "dan") == []


def test_those_who_register_later_read_a_broadcast_in_the_history__B2(team):
    message_id = team.call("msg.broadcast", from_="ann", content="all")["message_id"]
    join(team, "dan")
    assert ids(team, "dan") == []
    assert [m["id"] for m in team.call("msg.list", channel="default")["messages"]] == [message_id]


def test_a_broadcast_to_nobody_is_no_error_but_an_unknown_group_is__B3(team):
    join(team, "dan", group="g", channel="lab")
    assert team.call("msg.broadcast", from_="ann", content="x", group="g")["recipients"] == 0
    assert team.call("msg.broadcast", from_="dan", content="x", channel="lab", group="g")["recipients"] == 0
    error = refusal(team, "group_not_found", "msg.broadcast", from_="ann", content="x", group="h")
    assert error.facts["known_groups"] == ["g"]


def test_a_broadcast_to_a_group_reaches_its_members_in_the_channel(team):
    join(team, "dan", "eve", group="g")
    join(team, "far", group="g", channel="lab")
    answer = team.call("msg.broadcast", from_="dan", content="x", group="g")
    assert answer["recipient_ids"] == ["eve"]
    assert poll(team, "eve")["messages"][0]["to"] == "group:g"


# -- polling


def test_a_poll_is_ordered_by_priority_and_then_by_id__I3(team):
    sent = [send(team, priority=p) for p in (0, 5, -1, 5, 0)]
    assert ids(team) == [sent[1], sent[3], sent[0], sent[4], sent[2]]


def test_a_plain_poll_hands_out_each_message_once__I2(team):
    sent = [send(team) for _ in range(3)]
    assert ids(team) == sent
    assert ids(team) == []


def test_more_says_that_a_poll_was_cut(team):
    sent = [send(team) for _ in range(5)]
    first = poll(team, limit=2)
    assert (first["more"], [m["id"] for m in first["messages"]]) == (True, sent[:2])
    assert poll(team, limit=2)["more"] is True
    last = poll(team, limit=2)
    assert [m["id"] for m in last["messages"]] == sent[4:]
    assert "more" not in last


def test_exactly_limit_messages_leave_nothing_more(team):
    sent = [send(team) for _ in range(2)]
    assert "more" not in poll(team, limit=2)
    got = poll(team, limit=2, after=0)
    assert [m["id"] for m in got["messages"]] == sent
    assert "more" not in got


def test_a_poll_may_be_narrowed_to_a_channel_and_leaves_the_rest(team):
    team.call("channel.create", name="lab", members=["bob"])
    plain, lab = send(team), send(team, channel="lab")
    assert ids(team, channel="lab") == [lab]
    assert ids(team) == [plain]
    refusal(team, "channel_not_found", "msg.poll", agent_id="bob", timeout=0, channel="lob")


def test_a_cursor_poll_goes_strictly_by_id_whatever_the_priority__I3(team):
    sent = [send(team, priority=p) for p in (0, 9, -9, 5)]
    assert ids(team, after=0) == sent
    assert ids(team, after=sent[1]) == sent[2:]


def test_cursor_polls_are_pure__I4(team):
    sent = [send(team) for _ in range(4)]
    assert ids(team, after=sent[0]) == ids(team, after=sent[0]) == sent[1:]
    more = send(team)
    assert ids(team, after=sent[0]) == [*sent[1:], more]


def test_a_cursor_acknowledges_everything_up_to_it__I3(team):
    sent = [send(team) for _ in range(4)]
    assert ids(team, after=sent[1]) == sent[2:]
    assert team.call("agent.get", agent_id="bob")["agent"]["unread"] == 2
    assert ids(team) == sent[2:]


def test_a_cursor_returns_settled_messages_too(team):
    sent = [send(team) for _ in range(3)]
    assert ids(team) == sent
    assert ids(team, after=0) == sent
    assert ids(team, after=sent[0]) == sent[1:]


def test_a_cursor_in_a_channel_acknowledges_only_that_channel__I2(team):
    team.call("channel.create", name="lab", members=["bob"])
    plain, lab = send(team), send(team, channel="lab")
    assert ids(team, channel="lab", after=lab) == []
    assert ids(team) == [plain]


def test_a_cursor_in_a_channel_goes_by_id_too__I3(team):
    team.call("channel.create", name="lab", members=["bob"])
    sent = [send(team, channel="lab", priority=p) for p in (0, 9, -9, 5)]
    send(team)
    assert ids(team, channel="lab", after=0) == sent
    assert ids(team, channel="lab", after=sent[1]) == sent[2:]


def test_a_cursor_shows_what_is_in_somebodys_hands_too__I3__I4(team):
    sent = [send(team, priority=p) for p in (0, 5, 0)]
    assert len(poll(team, ack="manual", limit=2)["messages"]) == 2
    assert ids(team, after=0) == ids(team, after=0) == sent


def test_paging_with_a_cursor_sees_every_message_once(team):
    sent = [send(team, priority=n % 3) for n in range(10)]
    seen, after = [], 0
    while page := poll(team, after=after, limit=3)["messages"]:
        seen += [m["id"] for m in page]
        after = seen[-1]
    assert seen == sent


def test_a_cursor_beyond_the_newest_delivered_id_is_refused__I9(team):
    refusal(team, "cursor_ahead", "msg.poll", agent_id="bob", timeout=0, after=1)
    mine = send(team)
    send(team, to="cat")
    error = refusal(team, "cursor_ahead", "msg.poll", agent_id="bob", timeout=0, after=mine + 1)
    assert error.facts["highest"] == mine
    assert team.call("agent.get", agent_id="bob")["agent"]["unread"] == 1
    assert ids(team, after=mine) == []


@pytest.mark.parametrize("after", [None, 0])
def test_a_parked_poll_returns_what_is_sent_meanwhile__I14(team, clock, background, after):
    waiting = background(team.call, "msg.poll", agent_id="bob", timeout=60, after=after)
    clock.until_parked(1)
    send(team, to="cat")
    sent = send(team)
    assert [m["id"] for m in waiting.result(5)["messages"]] == [sent]


def test_a_poll_ends_empty_when_its_time_is_up__I14(team, clock, background):
    waiting = background(team.call, "msg.poll", agent_id="bob", timeout=3)
    clock.until_parked(1)
    clock.advance(2999)
    assert not waiting.done()
    clock.until_parked(1)
    clock.advance(1)
    assert waiting.result(5) == {"messages": []}


def test_a_longer_timeout_than_the_maximum_is_taken_as_the_maximum__fault_20(team, clock, background):
    waiting = background(team.call, "msg.poll", agent_id="bob", timeout=10**9)
    clock.until_parked(1)
    clock.advance(120_000)
    assert waiting.result(5) == {"messages": []}


@pytest.mark.parametrize("timeout", [-1, "nan", "inf", "1.5", "1_0", "٣", "", 2**63])
def test_an_odd_timeout_is_refused__fault_20(team, timeout):
    refusal(team, "invalid_timeout", "msg.poll", agent_id="bob", timeout=timeout)


def test_two_parked_polls_of_one_agent_never_get_the_same_message(team, clock, background):
    waiting = [background(team.call, "msg.poll", agent_id="bob", timeout=5) for _ in range(2)]
    clock.until_parked(2)
    sent = [send(team)]
    done, _ = wait(waiting, 5, FIRST_COMPLETED)
    assert [m["id"] for future in done for m in future.result()["messages"]] == sent
    sent.append(send(team))
    clock.advance(5000)
    got = [m["id"] for future in waiting for m in future.result(5)["messages"]]
    assert sorted(got + ids(team)) == sent


# -- ids, order, restarts


def test_later_sends_have_larger_ids_and_times_never_step_back__O1__O3(team, clock):
    sent = []
    for step in (0, 1, 0, 1000):
        clock.advance(step)
        sent.append(team.call("msg.send", from_="ann", to="bob", content="x"))
        sent.append(team.call("msg.broadcast", from_="cat", content="x"))
    assert [s["message_id"] for s in sent] == sorted({s["message_id"] for s in sent})
    assert [s["sent_at"] for s in sent] == sorted(s["sent_at"] for s in sent)
    assert ids(team) == [s["message_id"] for s in sent]


def test_a_restart_keeps_mail_order_and_what_was_settled__I1(team, restart):
    sent = [send(team, priority=n % 2) for n in range(4)]
    assert ids(team, limit=1) == [sent[1]]
    restart()
    assert ids(team) == [sent[3], sent[0], sent[2]]
    restart()
    assert ids(team) == []
    assert ids(team, after=0) == sent


def test_ids_are_never_reused__I11(team, clock, program, restart):
    last = [send(team) for _ in range(3)][-1]
    assert len(ids(team)) == 3
    clock.advance(8 * 24 * 3600 * 1000)
    program.timekeeper.tick()
    assert team.call("msg.list")["messages"] == []
    restart()
    fresh = send(team)
    assert fresh == last + 1
    assert ids(team, after=last) == [fresh]


def test_a_cursor_is_good_when_what_it_points_to_was_purged__I9(team, clock, program, restart):
    mine = [send(team) for _ in range(2)][-1]
    send(team, to="cat")
    ids(team)
    clock.advance(8 * 24 * 3600 * 1000)
    program.timekeeper.tick()
    assert team.call("msg.list", agent_id="bob")["messages"] == []
    restart()
    assert ids(team, after=mine) == []
    assert refusal(team, "cursor_ahead", "msg.poll", agent_id="bob", timeout=0, after=mine + 1).facts["highest"] == mine


def test_a_purge_leaves_what_nobody_has_read__I2(team, clock, program):
    sent = send(team)
    clock.advance(30 * 24 * 3600 * 1000)
    program.timekeeper.tick()
    assert ids(team) == [sent]


def test_what_was_read_late_stays_readable_as_long_as_anything(team, clock, program):
    sent, dead = send(team), send(team, to="cat", ttl_seconds=30 * 24 * 3600)
    clock.advance(30 * 24 * 3600 * 1000)
    assert ids(team) == [sent]
    clock.advance(7 * 24 * 3600 * 1000 - 1)
    program.timekeeper.tick()
    assert ids(team, after=0) == [sent]
    assert [letter["id"] for letter in team.call("msg.dead", agent_id="cat")["messages"]] == [dead]
    clock.advance(60_000)
    program.timekeeper.tick()
    assert team.call("msg.list")["messages"] == []


# -- looking


def test_the_status_of_a_message_follows_each_recipient(team, clock):
    message_id = team.call("msg.broadcast", from_="ann", content="x")["message_id"]
    clock.advance(1000)
    ids(team)
    bob, cat = team.call("msg.status", id=message_id)["recipients"]
    assert cat == {"agent_id": "cat", "status": "queued"}
    assert (bob["agent_id"], bob["status"], bob["deliveries"]) == ("bob", "acked", 1)
    assert bob["at"] > team.call("msg.status", id=message_id)["sent_at"]
    refusal(team, "message_not_found", "msg.status", id=message_id + 1)


def test_history_is_newest_first_and_narrows_by_every_parameter(team):
    team.call("channel.create", name="lab", members=["ann", "bob"])
    first, second, third = send(team), send(team, to="cat", thread="t"), send(team, channel="lab")

    def found(**given):
        answer = team.call("msg.list", **given)
        return [m["id"] for m in answer["messages"]] + ["more"] * answer.get("more", False)

    assert found() == [third, second, first]
    assert found(limit=2) == [third, second, "more"]
    assert found(before=third) == [second, first]
    assert found(after=first) == [third, second]
    assert found(after=first, before=third) == [second]
    assert found(channel="lab") == [third]
    assert found(agent_id="cat") == [second]
    assert found(agent_id="ann") == [third, second, first]
    assert found(thread="t") == [second]


def test_search_finds_all_words_best_first_with_an_excerpt(team):
    send(team, content="the quick brown fox")
    found = send(team, content="a quick red fox", subject="Zoo")
    send(team, content="slow", to="cat")

    def search(q, **given):
        return [m["id"] for m in team.call("msg.search", q=q, **given)["results"]]

    assert search("red fox") == [found]
    assert search("zoo") == [found]
    assert len(search("quick")) == 2
    assert len(search("quick", limit=1)) == 1
    assert search('"quick fox"') == []
    assert search("slow", agent_id="bob") == []
    assert search('fox" OR slow') == []
    assert team.call("msg.search", q="red")["results"][0]["excerpt"] == "a quick **red** fox"
    refusal(team, "invalid_field", "msg.search", q="***")
    later = send(team, content="red again")
    assert search("red", channel="default") == [later, found] or search("red") == [found, later]


def test_a_search_finds_parts_of_a_sentence_that_is_written_without_spaces(team):
    chinese, japanese = (
        send(team, content="部署脚本在凌晨失败了"),
        send(team, content="明日のGPT会議は中止です", subject="予定表"),
    )
    korean, plain = send(team, content="회의는 내일"), send(team, content="Café\0 会")

    def search(q):
        return [m["id"] for m in team.call("msg.search", q=q)["results"]]

    assert search("凌晨") == search("脚本 失败") == search('"部署脚本"') == [chinese]
    assert search("会議") == search("GPT会議は") == search("gpt") == search("予定") == [japanese]
    assert search("회의") == [korean]
    assert search("cafe") == [plain]
    assert search("会") == [plain, japanese]
    assert search("議会") == search("晨凌") == []
    assert team.call("msg.search", q="会議")["results"][0]["excerpt"] == "明日のGPT**会議**は中止です"


def test_a_word_that_a_search_repeats_costs_nothing(direct):
    join(direct, "ann", "bob")
    found = direct.call("msg.send", from_="ann", to="bob", content="a " * 30_000)["message_id"]
    assert [one["id"] for one in direct.call("msg.search", q="a Á " * 200)["results"]] == [found]
    assert search._phrases("a Á " * 200) == '"Á"', "the time to rank is quadratic in their number: it took 20 s"


def test_phrases_repeat_no_more_words_than_a_search_bears(face):
    join(face, "ann", "bob")
    found = face.call("msg.send", from_="ann", to="bob", content="a b " * 60)["message_id"]
    assert [one["id"] for one in face.call("msg.search", q=f'"{"a b " * 50} a"')["results"]] == [found]
    for q in (f'"{"a b " * 51} a"', "中" * 102, f'"{"a " * 60}" "{"b " * 50}"'):
        assert "shorter phrase" in str(refusal(face, "invalid_field", "msg.search", q=q))


def test_a_typed_message_without_to_passes_over_agents_that_have_gone_stale(face, clock):
    face.call("agent.register", agent_id="worker-1")
    face.call("agent.register", agent_id="old", role="director")
    clock.advance(301_000)
    refusal(face, "no_recipient", "msg.send", from_="worker-1", type="question", content="which one?")
    face.call("agent.register", agent_id="new", role="director")
    sent = face.call("msg.send", from_="worker-1", type="question", content="which one?")
    assert sent["recipients"] == [{"agent_id": "new", "status": "active"}]


# --- polling for types


@pytest.mark.parametrize("ack", ["plain", "manual"])
def test_a_poll_for_types_leaves_the_others_queued(face, ack):
    join(face, "ann", "bob")
    for kind in ("question", None, "report", "question"):
        face.call("msg.send", from_="ann", to="bob", content=str(kind), type=kind)
    got = face.call("msg.poll", agent_id="bob", timeout=0, types=["question", "alert"], ack=ack)
    assert [message["type"] for message in got["messages"]] == ["question", "question"]
    assert face.call("msg.poll", agent_id="bob", timeout=0, types=["report"], channel="agent-bob") == {"messages": []}
    got = face.call("msg.poll", agent_id="bob", timeout=0)
    assert [message["content"] for message in got["messages"]] == ["None", "report"]


def test_a_poll_for_types_waits_for_one_of_them(face, clock, background):
    join(face, "ann", "bob")
    waiting = background(face.call, "msg.poll", agent_id="bob", timeout=60, types=["alert"])
    clock.until_parked(1)
    face.call("msg.send", from_="ann", to="bob", content="hi")
    face.call("msg.send", from_="ann", to="bob", content="fire", type="alert")
    assert [message["content"] for message in waiting.result(5)["messages"]] == ["fire"]


def test_a_cursor_cannot_leave_types_out(face):
    join(face, "bob")
    error = refusal(face, "invalid_field", "msg.poll", agent_id="bob", timeout=0, after=0, types=["alert"])
    assert error.facts["parameter"] == "types"
