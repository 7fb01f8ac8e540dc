"""The contract of inboxes: items that are unread, read, or archived, consistent with what polls deliver."""

from __future__ import annotations

import threading

import pytest
from faces import Direct, join, refusal, until_written

from stonemux import door, operations
from stonemux.mux import Caller


@pytest.fixture
def team(face):
    join(face, "ann", "bob", "cat")
    return face


def send(face, to="bob", content="x", **given):
    return face.call("msg.send", from_="ann", to=to, content=content, **given)["message_id"]


def poll(face, agent_id="bob", **given):
    return [one["id"] for one in face.call("msg.poll", agent_id=agent_id, timeout=0, **given)["messages"]]


def items(face, status="unread", agent_id="bob", **given):
    return [one["message_id"] for one in face.call("inbox.list", agent_id=agent_id, status=status, **given)["items"]]


def mark(face, status, *message_ids, agent_id="bob"):
    which = {"ids": [f"inbox-{one}-{agent_id}" for one in message_ids]} if message_ids else {"all": True}
    return face.call("inbox.update", agent_id=agent_id, status=status, **which)["updated"]


def take(mux, **given):
    """A poll whose answer is on its way: its caller, and the ids."""
    caller = Caller()
    given = {"agent_id": "bob", "timeout": 0} | given
    answer = door.call(mux, operations.BY_NAME["msg.poll"], given, caller)
    return caller, [one["id"] for one in answer["messages"]]


# -- looking


def test_an_item_has_the_fields_of_the_contract_and_extras_that_carry_something(team, clock):
    sent = send(team, content="hi")
    answer = team.call("inbox.list", agent_id="bob")
    (item,) = answer["items"]
    assert answer == {"items": [item], "unread": 1}
    message = team.call("msg.list")["messages"][0]
    assert item == {
        "id": f"inbox-{sent}-bob",
        "message_id": sent,
        "from": "ann",
        "channel": "default",
        "status": "unread",
        "received_at": message["sent_at"],
        "preview": "hi",
    }


def test_a_list_shows_previews_or_the_whole_and_one_item_is_shown_whole(team):
    extras = {"subject": "s", "type": "question", "thread": "t", "priority": 3}
    sent = send(team, content="ä" * 201, metadata={"a": 1}, **extras)
    (item,) = team.call("inbox.list", agent_id="bob")["items"]
    assert item["preview"] == "ä" * 199 + "…"
    assert extras.items() <= item.items()
    assert not {"content", "metadata"} & set(item)
    (whole,) = team.call("inbox.list", agent_id="bob", full=True)["items"]
    assert (whole["content"], whole["metadata"]) == ("ä" * 201, {"a": 1})
    assert team.call("inbox.show", id=item["id"]) == {"item": whole}
    answered = send(team, to="bob", content="y" * 200, reply_to=sent)
    item = team.call("inbox.list", agent_id="bob")["items"][0]
    assert (item["message_id"], item["thread"], item["reply_to"]) == (answered, "t", sent)
    assert item["preview"] == "y" * 200


def test_looking_takes_nothing(team):
    sent = send(team)
    for _ in range(2):
        assert items(team) == [sent]
        assert team.call("inbox.show", id=f"inbox-{sent}-bob")["item"]["status"] == "unread"
    assert poll(team) == [sent]


def test_the_newest_come_first_in_pages(team):
    sent = [send(team, priority=n % 2) for n in range(5)]
    assert items(team) == sent[::-1]
    page = team.call("inbox.list", agent_id="bob", limit=2)
    assert ([one["message_id"] for one in page["items"]], page["more"], page["unread"]) == (sent[:2:-1], True, 5)
    rest = team.call("inbox.list", agent_id="bob", limit=3, before=sent[3])
    assert ([one["message_id"] for one in rest["items"]], "more" in rest) == (sent[2::-1], False)


def test_each_recipient_has_an_item_of_its_own(team):
    sent = team.call("msg.broadcast", from_="ann", content="@cat!")["message_id"]
    assert mark(team, "read", sent) == 1
    assert (items(team, "read"), items(team, "unread", "cat")) == ([sent], [sent])
    assert "mentioned" not in team.call("inbox.show", id=f"inbox-{sent}-bob")["item"]
    assert team.call("inbox.show", id=f"inbox-{sent}-cat")["item"]["mentioned"] is True


def test_an_item_of_a_long_document_is_shown_whole(team):
    text = "word " * 20_000
    ref = team.call("document.create", content=text)["document"]["id"]
    sent = team.call("msg.send", from_="ann", to="bob", content_ref=ref)["message_id"]
    (item,) = team.call("inbox.list", agent_id="bob", full=True)["items"]
    assert (item["content"], item["truncated"], item["content_ref"]) == (text[:500], True, ref)
    item = team.call("inbox.show", id=f"inbox-{sent}-bob")["item"]
    assert (item["content"], item["content_ref"]) == (text, ref)
    assert "truncated" not in item


def test_agents_with_odd_names_have_items_too(face):
    for name in ("a-1-b c", "b" * 120, "9"):
        join(face, name)
        sent = face.call("msg.send", from_=name, to=name, content="x")["message_id"]
        (item,) = face.call("inbox.list", agent_id=name)["items"]
        assert item["id"] == f"inbox-{sent}-{name}"
        assert face.call("inbox.show", id=item["id"])["item"]["message_id"] == sent
        assert face.call("inbox.update", agent_id=name, ids=[item["id"]], status="read") == {"updated": 1}


def test_what_suppress_inbox_kept_out_is_in_no_inbox(team):
    team.call("msg.broadcast", from_="ann", content="x", suppress_inbox=True)
    assert items(team, "all") == []


# -- one state with the polls


def test_what_a_poll_delivered_is_read(team):
    sent = send(team)
    assert poll(team) == [sent]
    assert (items(team), items(team, "read")) == ([], [sent])
    assert team.call("inbox.list", agent_id="bob")["unread"] == 0


def test_what_was_acknowledged_or_passed_by_a_cursor_is_read(team):
    first, second = send(team), send(team)
    assert poll(team, ack="manual") == [first, second]
    assert items(team) == [second, first]
    team.call("msg.ack", agent_id="bob", ids=[first])
    assert (items(team), items(team, "read")) == ([second], [first])
    assert poll(team, after=second) == []
    assert items(team, "read") == [second, first]


def test_marking_as_read_acknowledges__I7(team):
    first, second = send(team), send(team)
    assert mark(team, "read", first) == 1
    assert mark(team, "read", first) == 0
    assert poll(team) == [second]
    assert team.call("msg.status", id=first)["recipients"][0]["status"] == "acked"
    assert team.call("msg.ack", agent_id="bob", ids=[first]) == {"acked": 0}


def test_marking_as_unread_queues_again(team):
    first, second = send(team), send(team)
    assert poll(team) == [first, second]
    assert mark(team, "unread", first) == 1
    assert mark(team, "unread", first) == 0
    assert (items(team), team.call("agent.get", agent_id="bob")["agent"]["unread"]) == ([first], 1)
    assert poll(team) == [first]
    assert poll(team) == []


def test_marking_as_unread_wakes_a_parked_poll__I14(team, clock, background):
    sent = send(team)
    assert poll(team) == [sent]
    parked = background(team.call, "msg.poll", agent_id="bob", timeout=30)
    clock.until_parked(1)
    mark(team, "unread", sent)
    assert [one["id"] for one in parked.result(5)["messages"]] == [sent]


def test_what_is_archived_is_acknowledged_and_put_away(team):
    first, second, third = send(team), send(team), send(team)
    assert poll(team, limit=1) == [first]
    assert mark(team, "archived", first, second) == 2
    assert mark(team, "archived", first, second) == 0
    assert poll(team) == [third]
    assert (items(team, "archived"), items(team, "read")) == ([second, first], [third])
    assert items(team, "all") == [third, second, first]
    assert mark(team, "read", first) == 1
    assert mark(team, "unread", second) == 1
    assert (items(team), items(team, "read"), items(team, "archived")) == ([second], [third, first], [])
    assert poll(team) == [second]


def test_a_cursor_still_reads_what_is_archived__I4(team):
    sent = [send(team), send(team)]
    mark(team, "archived")
    assert poll(team, after=0) == sent
    assert items(team, "archived") == sent[::-1]


def test_redeliver_leaves_alone_what_was_put_away_or_marked(team):
    sent = [send(team) for _ in range(3)]
    assert poll(team, limit=2) == sent[:2]
    mark(team, "archived", sent[0])
    mark(team, "read", sent[2])
    assert poll(team, redeliver=True) == [sent[1]]


def test_all_marks_every_item_but_the_archived(team):
    first, second, third = send(team), send(team), send(team)
    mark(team, "archived", first)
    assert poll(team, limit=1) == [second]
    assert mark(team, "read") == 1
    assert (items(team, "read"), items(team, "archived")) == ([third, second], [first])
    assert mark(team, "unread") == 2
    assert items(team) == [third, second]
    assert mark(team, "archived") == 2
    assert mark(team, "unread") == mark(team, "read") == 0
    assert items(team, "archived") == [third, second, first]


def test_a_lease_is_ended_by_read_and_left_alone_by_unread(team, clock, program):
    first, second = send(team), send(team)
    assert poll(team, ack="manual", lease=60) == [first, second]
    assert mark(team, "unread") == 0
    assert poll(team) == []
    assert mark(team, "read", first) == 1
    refusal(team, "not_delivered", "msg.nack", agent_id="bob", id=first)
    clock.advance(61_000)
    program.timekeeper.tick()
    assert poll(team) == [second]


def test_unread_mail_counts_against_the_limit_of_an_inbox__I12(open_program):
    face = Direct(open_program(inbox_limit=1).mux)
    join(face, "ann", "bob")
    sent = send(face)
    refusal(face, "inbox_full", "msg.send", from_="ann", to="bob", content="x")
    mark(face, "read", sent)
    assert poll(face, after=0) == [sent]
    other = send(face)
    mark(face, "archived", other)
    mark(face, "unread", sent)
    refusal(face, "inbox_full", "msg.send", from_="ann", to="bob", content="x")


@pytest.mark.parametrize("status", ["read", "unread", "archived"])
def test_what_has_run_out_of_time_is_not_marked_with_all(team, clock, status):
    sent, other = send(team, ttl_seconds=1), send(team)
    clock.advance(1000)
    assert mark(team, status) == (status != "unread")
    assert items(team, "all") == [other]
    assert [dead["id"] for dead in team.call("msg.dead", agent_id="bob")["messages"]] == [sent]


def test_what_has_run_out_of_time_is_in_no_inbox(team, clock):
    sent = send(team, ttl_seconds=1)
    clock.advance(1000)
    assert items(team) == items(team, "all") == []
    for call in ({"id": f"inbox-{sent}-bob"},):
        refusal(team, "message_not_found", "inbox.show", **call)
    ids = [f"inbox-{sent}-bob"]
    assert (
        "msg.dead" in refusal(team, "message_not_found", "inbox.update", agent_id="bob", ids=ids, status="read").message
    )


@pytest.mark.parametrize("by_id", [True, False])
def test_what_was_read_and_has_run_out_is_marked_unread_for_the_dead_letters(team, clock, program, by_id):
    sent, other = send(team, ttl_seconds=1), send(team)
    assert poll(team) == [sent, other]
    for _ in range(3):  # the purge passes
        clock.advance(60_000)
        program.timekeeper.tick()
    assert poll(team, redeliver=True) == [other]
    assert items(team, "read") == [other, sent]
    assert mark(team, "unread", *([sent, other] if by_id else [])) == 2
    assert items(team, "all") == [other]
    assert [dead["id"] for dead in team.call("msg.dead", agent_id="bob")["messages"]] == [sent]


def test_marks_outlive_a_restart__I1(team, restart):
    sent = [send(team) for _ in range(3)]
    mark(team, "archived", sent[0])
    mark(team, "read", sent[1])
    restart()
    assert (items(team), items(team, "read"), items(team, "archived")) == ([sent[2]], [sent[1]], [sent[0]])
    assert poll(team) == [sent[2]]


# -- in flight


def test_what_is_on_its_way_is_unread_until_it_arrived(direct, mux):
    join(direct, "ann", "bob")
    sent = send(direct)
    caller, got = take(mux)
    assert (got, items(direct)) == ([sent], [sent])
    caller.arrived()
    assert items(direct, "read") == [sent]


def test_what_is_known_to_have_arrived_is_read_even_before_that_is_written(direct, mux):
    join(direct, "ann", "bob")
    sent = send(direct)
    caller, _ = take(mux)
    mux.store.gatherers.add(threading.get_ident())  # queued, and led by whoever writes next
    caller.arrived()
    mux.store.gatherers.discard(threading.get_ident())
    assert items(direct, "read") == [sent]


@pytest.mark.parametrize("lost", [False, True])
def test_what_arrived_although_its_time_ran_out_on_the_way_is_no_dead_letter(direct, mux, clock, program, lost):
    join(direct, "ann", "bob")
    sent = send(direct, ttl_seconds=1)
    caller, _ = take(mux)
    for _ in range(3):  # the purge passes
        clock.advance(60_000)
        program.timekeeper.tick()
    caller.flight.lost() if lost else caller.flight.landed()
    until_written(mux)
    assert items(direct, "read") == ([] if lost else [sent])
    assert [dead["id"] for dead in direct.call("msg.dead", agent_id="bob")["messages"]] == ([sent] if lost else [])
    assert direct.call("agent.get", agent_id="bob")["agent"]["unread"] == 0


@pytest.mark.parametrize("status", ["read", "archived"])
@pytest.mark.parametrize("lost", [False, True])
def test_marking_what_is_on_its_way_settles_it_either_way__I7(direct, mux, status, lost):
    join(direct, "ann", "bob")
    sent = send(direct)
    caller, _ = take(mux)
    assert mark(direct, status, sent) == 1
    caller.flight.lost() if lost else caller.flight.landed()
    until_written(mux)
    assert (items(direct, status), poll(direct)) == ([sent], [])


@pytest.mark.parametrize("ids", [True, False])
def test_what_is_marked_as_unread_on_its_way_is_delivered_again__I2(direct, mux, clock, background, ids):
    join(direct, "ann", "bob")
    first, second = send(direct), send(direct)
    caller, got = take(mux)
    assert got == [first, second]
    assert mark(direct, "unread", *([first] if ids else [])) == 0
    assert poll(direct) == []
    parked = background(direct.call, "msg.poll", agent_id="bob", timeout=30)
    clock.until_parked(1)
    caller.arrived()
    assert [one["id"] for one in parked.result(5)["messages"]] == ([first] if ids else [first, second])
    assert poll(direct) == []
    assert items(direct, "read") == [second, first]


def test_a_mark_in_the_same_commit_as_the_arrival_wakes_a_parked_poll(direct, mux, clock, background):
    join(direct, "ann", "bob")
    sent = send(direct)
    caller, _ = take(mux)
    parked = background(direct.call, "msg.poll", agent_id="bob", timeout=30)
    clock.until_parked(1)
    mux.store.gatherers.add(threading.get_ident())
    caller.arrived()
    mux.store.gatherers.discard(threading.get_ident())
    assert mark(direct, "unread", sent) == 1
    assert [one["id"] for one in parked.result(5)["messages"]] == [sent]


# -- bad input


def test_unknown_agents_and_items_are_refused_and_nothing_is_changed__I8(team):
    sent, other = send(team), send(team, to="cat")
    refusal(team, "agent_not_found", "inbox.list", agent_id="dan")
    refusal(team, "agent_not_found", "inbox.update", agent_id="dan", all=True, status="read")
    for odd in (
        "inbox-1",
        "x",
        f"inbox-{sent}-cat",
        "inbox-99-bob",
        f"inbox-{2**63}-bob",
        f"inbox-0{sent}-bob",
        str(sent),
    ):
        assert odd[:20] in refusal(team, "message_not_found", "inbox.show", id=odd).message
        ids = [f"inbox-{sent}-bob", odd]
        refusal(team, "message_not_found", "inbox.update", agent_id="bob", ids=ids, status="read")
    ids = [f"inbox-{other}-cat"]
    refusal(team, "message_not_found", "inbox.update", agent_id="bob", ids=ids, status="read")
    assert (items(team), items(team, agent_id="cat")) == ([sent], [other])


def test_an_update_names_items_or_all_and_a_status(team):
    sent = send(team)
    ids = [f"inbox-{sent}-bob"]
    for given in ({}, {"all": False}, {"ids": None}):
        error = refusal(team, "missing_field", "inbox.update", agent_id="bob", status="read", **given)
        assert error.facts["parameter"] == "ids"
    error = refusal(team, "invalid_field", "inbox.update", agent_id="bob", status="read", ids=ids, all=True)
    assert error.facts["parameter"] == "all"
    error = refusal(team, "invalid_field", "inbox.update", agent_id="bob", status="gone", ids=ids)
    assert error.facts["accepted"] == ["unread", "read", "archived"]
    assert "all" in refusal(team, "invalid_field", "inbox.list", agent_id="bob", status="gone").facts["accepted"]
    assert items(team) == [sent]


def test_an_empty_list_of_items_marks_nothing(team):
    send(team)
    assert team.call("inbox.update", agent_id="bob", ids=[], status="read") == {"updated": 0}
    assert len(items(team)) == 1


def test_an_inbox_is_for_every_tier(open_program):
    face = Direct(open_program(default_tier="free").mux)
    join(face, "ann", "bob")
    sent = send(face)
    assert items(face) == [sent]
    assert mark(face, "read", sent) == 1
