"""The contract of channels: namespaces with members."""

from __future__ import annotations

import pytest
from faces import join, refusal

from stonemux import generate_agent_channel_name, parse_agent_channel_name


def test_a_channel_is_created_with_its_first_members(face):
    join(face, "ann", "bob", "cat")
    channel = face.call(
        "channel.create", name="guild", created_by="ann", description="d", members=["cat", "ann"], tags=["x", "y"]
    )["channel"]
    assert channel["members"] == channel["memberIds"] == ["ann", "cat"]
    assert (channel["name"], channel["created_by"], channel["description"]) == ("guild", "ann", "d")
    assert channel["tags"] == ["x", "y"]
    assert face.call("channel.get", channel="guild") == face.call("channel.get", channel=channel["id"])
    assert face.call("channel.get", channel="guild")["channel"] == channel


def test_only_the_name_is_needed(face):
    channel = face.call("channel.create", name="guild")["channel"]
    assert (channel["members"], channel["created_by"], channel["description"]) == ([], None, None)
    assert "tags" not in channel


def test_a_name_is_given_once(face):
    face.call("channel.create", name="guild")
    assert "guild" in refusal(face, "channel_exists", "channel.create", name="guild").message
    refusal(face, "channel_exists", "channel.create", name="default")
    assert face.call("channel.create", name="Guild")


def test_agent_names_are_reserved(face):
    refusal(face, "reserved_name", "channel.create", name="agent-bob")


def test_unknown_members_and_creators_are_refused_and_nothing_is_made(face):
    join(face, "ann")
    refusal(face, "agent_not_found", "channel.create", name="guild", created_by="bob")
    refusal(face, "agent_not_found", "channel.create", name="guild", members=["ann", "bob"])
    refusal(face, "channel_not_found", "channel.get", channel="guild")


def test_joining_twice_changes_nothing_and_leaving_ends_the_membership(face):
    join(face, "ann", "bob")
    face.call("channel.create", name="guild")
    for _ in range(2):
        assert face.call("channel.join", channel="guild", agent_id="ann")["channel"]["members"] == ["ann"]
    for _ in range(2):
        assert face.call("channel.leave", channel="guild", agent_id="ann")["channel"]["members"] == []
    refusal(face, "not_in_channel", "msg.send", from_="bob", to="ann", content="x", channel="guild")


def test_mail_that_was_delivered_before_stays_after_leaving(face):
    join(face, "ann", "bob")
    sent = face.call("msg.send", from_="ann", to="bob", content="x")["message_id"]
    face.call("channel.leave", channel="default", agent_id="bob")
    assert [m["id"] for m in face.call("msg.poll", agent_id="bob", timeout=0)["messages"]] == [sent]


def test_an_agent_cannot_leave_its_own_channel_and_others_may_join_it(face):
    join(face, "ann", "bob")
    assert face.call("channel.join", channel="agent-bob", agent_id="ann")["channel"]["members"] == ["ann", "bob"]
    refusal(face, "reserved_name", "channel.leave", channel="agent-bob", agent_id="bob")
    assert face.call("channel.leave", channel="agent-bob", agent_id="ann")["channel"]["members"] == ["bob"]


def test_channels_are_listed_with_the_number_of_their_members(face):
    join(face, "ann", "bob")
    face.call("channel.create", name="guild", members=["bob"], tags=["t"])
    listed = {row["name"]: row["members"] for row in face.call("channel.list")["channels"]}
    assert listed == {"agent-ann": 1, "agent-bob": 1, "default": 2, "guild": 1}
    mine = [row["name"] for row in face.call("channel.list", agent_id="ann")["channels"]]
    assert mine == ["agent-ann", "default"]
    face.call("agent.deregister", agent_id="bob")
    listed = {row["name"]: row["members"] for row in face.call("channel.list")["channels"]}
    assert (listed["default"], listed["guild"]) == (1, 0)


@pytest.mark.parametrize("name", ["channel.get", "channel.join", "channel.leave"])
def test_an_unknown_channel_is_refused_with_the_nearest_names(face, name):
    join(face, "ann")
    face.call("channel.create", name="security")
    given = {} if name == "channel.get" else {"agent_id": "ann"}
    error = refusal(face, "channel_not_found", name, channel="secrity", **given)
    assert error.facts["known_channels"][0] == "security"
    refusal(face, "channel_not_found", name, channel="ch-nonsense", **given)


@pytest.mark.parametrize("name", ["channel.join", "channel.leave"])
def test_an_unknown_agent_is_refused(face, name):
    refusal(face, "agent_not_found", name, channel="default", agent_id="ann")


def test_an_agent_finds_its_home_by_id_too(face):
    made = face.call("channel.create", name="guild")["channel"]
    agent = face.call("agent.register", agent_id="ann", channel=made["id"])["agent"]
    assert agent["channel"] == "guild"
    assert face.call("channel.get", channel="guild")["channel"]["members"] == ["ann"]
    other = face.call("agent.get", agent_id="ann")["agent"]["agent_channel"]
    owned = face.call("channel.get", channel=other)["channel"]["id"]
    refusal(face, "reserved_name", "agent.register", agent_id="bob", channel=owned)


def test_a_channel_is_not_named_like_the_id_of_another(face):
    made = face.call("channel.create", name="guild")["channel"]
    refusal(face, "channel_exists", "channel.create", name=made["id"])


def test_the_default_channel_is_always_there__C1(face, restart):
    assert face.call("channel.get", channel="default")["channel"]["created_by"] is None
    restart()
    assert [row["name"] for row in face.call("channel.list")["channels"]] == ["default"]


def test_a_restart_keeps_channels_and_members(face, restart):
    join(face, "ann")
    face.call("channel.create", name="guild", members=["ann"], description="d", tags=["t"])
    before = face.call("channel.get", channel="guild")
    restart()
    assert face.call("channel.get", channel="guild") == before


def test_the_same_agent_in_two_channels_keeps_their_tasks_apart__C1(face):
    join(face, "ann")
    face.call("channel.create", name="lab", members=["ann"])
    task_id = face.call("task.post", description="x", posted_by="ann", channel="lab")["task_id"]
    assert face.call("task.claim", agent_id="ann")["task_id"] is None
    assert face.call("task.claim", agent_id="ann", channel="lab")["task_id"] == task_id


def test_agent_channel_names_are_made_and_read_by_public_helpers():
    assert generate_agent_channel_name("bob") == "agent-bob"
    assert parse_agent_channel_name("agent-bob") == "bob"
    assert [parse_agent_channel_name(name) for name in ("bob", "agent-", "agent", "")] == [None] * 4
    assert parse_agent_channel_name("agent-agent-bob") == "agent-bob"
