"""The contract of the directory: registering, deregistering, heartbeats, discovery."""

from __future__ import annotations

import pytest
from faces import join, refusal

from stonemux import directory
from stonemux.errors import nearest

MINUTE = 60_000


def test_registering_answers_the_whole_record(face):
    answer = face.call(
        "agent.register",
        agent_id="ann",
        role="writer",
        capabilities=["draft", "edit"],
        group="night",
        channel="team",
        metadata={"shell": "zsh"},
    )
    agent = answer["agent"]
    assert answer["created"] is True
    assert agent["registered_at"] == agent["last_heartbeat"]
    assert {name: agent[name] for name in agent if name not in ("registered_at", "last_heartbeat")} == {
        "id": "ann",
        "role": "writer",
        "capabilities": ["draft", "edit"],
        "group": "night",
        "channel": "team",
        "status": "active",
        "metadata": {"shell": "zsh"},
    }


def test_an_agent_without_extras_has_null_role_and_group_and_nothing_it_does_not_need(face):
    agent = face.call("agent.register", agent_id="ann")["agent"]
    assert (agent["role"], agent["group"], agent["capabilities"], agent["channel"]) == (None, None, [], "default")
    assert "metadata" not in agent
    assert "activity" not in agent


def test_registering_again_replaces_the_record_and_is_not_created__A1(face, clock):
    first = face.call("agent.register", agent_id="ann", role="writer", capabilities=["draft", "edit"], group="night")
    clock.advance(1000)
    second = face.call("agent.register", agent_id="ann", capabilities=["review"])
    assert second["created"] is False
    assert second["agent"]["capabilities"] == ["review"]
    assert (second["agent"]["role"], second["agent"]["group"]) == (None, None)
    assert second["agent"]["registered_at"] == first["agent"]["registered_at"]
    assert second["agent"]["last_heartbeat"] > first["agent"]["last_heartbeat"]
    assert len(face.call("agent.discover")["agents"]) == 1


def test_registration_makes_the_home_channel_and_the_agents_own(face):
    face.call("agent.register", agent_id="ann", channel="team")
    agent = face.call("agent.get", agent_id="ann")["agent"]
    assert agent["channels"] == ["agent-ann", "team"]
    assert agent["agent_channel"] == "agent-ann"
    assert face.call("channel.get", channel="team")["channel"]["members"] == ["ann"]
    assert face.call("channel.get", channel="agent-ann")["channel"]["members"] == ["ann"]


def test_a_new_home_channel_replaces_the_old_one_and_keeps_what_was_joined(face):
    face.call("agent.register", agent_id="ann", channel="old")
    face.call("channel.create", name="guild", members=["ann"])
    face.call("agent.register", agent_id="ann", channel="new")
    assert face.call("agent.get", agent_id="ann")["agent"]["channels"] == ["agent-ann", "guild", "new"]
    assert face.call("channel.get", channel="old")["channel"]["members"] == []


@pytest.mark.parametrize("agent_id", ["stonemux", "*", "role:x", "group:x", "capability:x"])
def test_ids_that_would_be_taken_for_something_else_are_reserved(face, agent_id):
    assert refusal(face, "reserved_name", "agent.register", agent_id=agent_id).facts["parameter"] == "agent_id"


def test_nobody_is_at_home_in_another_agents_channel(face):
    join(face, "bob")
    refusal(face, "reserved_name", "agent.register", agent_id="ann", channel="agent-bob")
    assert face.call("agent.register", agent_id="bob", channel="agent-bob")["agent"]["channel"] == "agent-bob"


@pytest.mark.parametrize("agent_id", ["", " ann", "ann ", "a\nb", "a\x00b", "x" * 121])
def test_an_agent_id_has_1_to_120_characters_without_controls_and_outer_blanks(face, agent_id):
    assert "agent_id" in refusal(face, "invalid_field", "agent.register", agent_id=agent_id).message


def test_the_longest_id_works_everywhere(face):
    name = "é" * 120
    join(face, name)
    face.call("msg.send", from_=name, to=name, content="to myself")
    assert len(face.call("msg.poll", agent_id=name, timeout=0)["messages"]) == 1


def test_names_are_compared_exactly(face):
    join(face, "ann", "Ann", capabilities=["Draft"])
    assert len(face.call("agent.discover")["agents"]) == 2
    assert face.call("agent.discover", capability="draft") == {"agents": []}


def test_a_deregistered_agent_is_unknown_until_it_registers_anew__I10(face):
    join(face, "ann", "bob")
    ids = [face.call("msg.send", from_="ann", to="bob", content=str(n))["message_id"] for n in range(3)]
    gone = face.call("agent.deregister", agent_id="bob")
    assert gone == {"agent_id": "bob", "deregistered": True, "pending_messages": 3}
    for name, given in {
        "msg.send": {"from_": "ann", "to": "bob", "content": "hi"},
        "msg.poll": {"agent_id": "bob", "timeout": 0},
        "agent.get": {"agent_id": "bob"},
        "agent.heartbeat": {"agent_id": "bob"},
        "agent.deregister": {"agent_id": "bob"},
    }.items():
        assert refusal(face, "agent_not_found", name, **given).facts["known_agents"] == ["ann"]
    assert face.call("agent.discover", include_stale=True)["agents"][0]["id"] == "ann"
    assert face.call("channel.get", channel="default")["channel"]["members"] == ["ann"]
    assert face.call("agent.register", agent_id="bob")["created"] is True
    assert [m["id"] for m in face.call("msg.poll", agent_id="bob", timeout=0)["messages"]] == ids


def test_a_parked_poll_of_an_agent_that_is_deregistered_ends_at_once(face, clock, background):
    join(face, "bob")
    waiting = background(refusal, face, "agent_not_found", "msg.poll", agent_id="bob", timeout=60)
    clock.until_parked(1)
    face.call("agent.deregister", agent_id="bob")
    waiting.result(5)


def test_a_heartbeat_carries_what_the_agent_is_doing(face, clock):
    join(face, "ann")
    clock.advance(5000)
    answer = face.call("agent.heartbeat", agent_id="ann", status="reading")
    agent = face.call("agent.get", agent_id="ann")["agent"]
    assert answer == {"agent_id": "ann", "status": "active", "last_heartbeat": agent["last_heartbeat"]}
    assert agent["activity"] == "reading"
    face.call("agent.heartbeat", agent_id="ann")
    assert face.call("agent.get", agent_id="ann")["agent"]["activity"] == "reading"
    face.call("agent.heartbeat", agent_id="ann", status="")
    assert "activity" not in face.call("agent.get", agent_id="ann")["agent"]


def test_an_agent_is_stale_after_the_threshold_and_active_with_its_next_call__A1(face, clock):
    join(face, "ann", "bob")
    clock.advance(5 * MINUTE - 1)
    assert [a["status"] for a in face.call("agent.discover")["agents"]] == ["active", "active"]
    face.call("msg.poll", agent_id="bob", timeout=0)
    clock.advance(1)
    assert [a["id"] for a in face.call("agent.discover")["agents"]] == ["bob"]
    assert face.call("agent.get", agent_id="ann")["agent"]["status"] == "stale"
    face.call("msg.send", from_="ann", to="bob", content="I am here")
    assert [a["id"] for a in face.call("agent.discover")["agents"]] == ["ann", "bob"]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("agent.heartbeat", {"agent_id": "ann"}),
        ("agent.notify", {"from_": "ann", "agent_id": "bob", "type": "nudge", "content": "x"}),
        ("msg.send", {"from_": "ann", "to": "bob", "content": "x"}),
        ("msg.broadcast", {"from_": "ann", "content": "x"}),
        ("msg.poll", {"agent_id": "ann", "timeout": 0}),
        ("task.post", {"posted_by": "ann", "description": "x"}),
        ("task.claim", {"agent_id": "ann"}),
        ("state.set", {"key": "k", "value": "v", "updated_by": "ann"}),
        ("channel.create", {"name": "new", "created_by": "ann"}),
        ("channel.join", {"channel": "default", "agent_id": "ann"}),
        ("channel.leave", {"channel": "default", "agent_id": "ann"}),
    ],
)
def test_any_call_by_an_agent_counts_as_a_heartbeat__A1(face, clock, name, given):
    join(face, "ann", "bob")
    clock.advance(6 * MINUTE)
    face.call(name, **given)
    assert face.call("agent.get", agent_id="ann")["agent"]["status"] == "active"


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("agent.get", {"agent_id": "ann"}),
        ("agent.notify", {"agent_id": "ann", "type": "nudge", "content": "x"}),
        ("msg.send", {"from_": "bob", "to": "ann", "content": "x"}),
        ("msg.list", {"agent_id": "ann"}),
        ("task.list", {"agent_id": "ann"}),
        ("channel.list", {"agent_id": "ann"}),
    ],
)
def test_being_named_by_others_is_no_sign_of_life__A1(face, clock, name, given):
    join(face, "ann", "bob")
    clock.advance(6 * MINUTE)
    face.call(name, **given)
    assert face.call("agent.get", agent_id="ann")["agent"]["status"] == "stale"


def test_a_restart_gives_everybody_a_full_grace_period__A1(face, clock, restart):
    join(face, "ann")
    clock.advance(5 * MINUTE - 1)
    restart()
    clock.advance(5 * MINUTE - 1)
    assert face.call("agent.get", agent_id="ann")["agent"]["status"] == "active"
    clock.advance(1)
    assert face.call("agent.get", agent_id="ann")["agent"]["status"] == "stale"


def test_a_restart_keeps_the_directory(face, restart):
    face.call("agent.register", agent_id="ann", role="r", group="g", capabilities=["c"], metadata={"a": [1, None]})
    face.call("agent.heartbeat", agent_id="ann", status="busy")
    before = face.call("agent.get", agent_id="ann")
    restart()
    assert face.call("agent.get", agent_id="ann") == before


def test_discovering_narrows_down_by_every_parameter(face, clock):
    face.call("agent.register", agent_id="old")
    clock.advance(5 * MINUTE)
    face.call("agent.register", agent_id="ann", role="writer", group="night", capabilities=["draft"])
    face.call("agent.register", agent_id="bob", role="tester", channel="lab", capabilities=["run"])
    face.call("channel.join", channel="lab", agent_id="ann")

    def found(**given):
        return [agent["id"] for agent in face.call("agent.discover", **given)["agents"]]

    assert found() == ["ann", "bob"]
    assert found(role="writer") == ["ann"]
    assert found(group="night") == ["ann"]
    assert found(capability="run") == ["bob"]
    assert found(channel="lab") == ["ann", "bob"]
    assert found(role="writer", channel="lab", capability="run") == []
    assert found(include_stale=True) == ["ann", "bob", "old"]
    assert found(status="stale") == ["old"]
    assert found(status="active", include_stale=True) == ["ann", "bob"]
    assert "lab" in refusal(face, "channel_not_found", "agent.discover", channel="labs").facts["known_channels"]
    first = face.call("agent.discover", include_stale=True, limit=2)
    assert ([agent["id"] for agent in first["agents"]], first["more"]) == (["ann", "bob"], True)
    rest = face.call("agent.discover", include_stale=True, after="bob", limit=1)
    assert ([agent["id"] for agent in rest["agents"]], "more" in rest) == (["old"], False)
    assert found(after="bob") == []


def test_one_agent_is_shown_with_its_mail_and_claims(face):
    join(face, "ann", "bob")
    face.call("msg.send", from_="ann", to="bob", content="1")
    face.call("msg.send", from_="ann", to="bob", content="2")
    face.call("task.post", description="work", posted_by="ann")
    face.call("task.claim", agent_id="bob")
    agent = face.call("agent.get", agent_id="bob")["agent"]
    assert (agent["unread"], agent["claimed_tasks"]) == (2, 1)
    face.call("msg.poll", agent_id="bob", timeout=0)
    assert face.call("agent.get", agent_id="bob")["agent"]["unread"] == 0


def test_mail_that_has_run_out_is_not_unread(face, clock):
    join(face, "ann", "bob")
    face.call("msg.send", from_="ann", to="bob", content="soon gone", ttl_seconds=1)
    clock.advance(1000)
    assert face.call("agent.get", agent_id="bob")["agent"]["unread"] == 0
    assert face.call("agent.deregister", agent_id="bob")["pending_messages"] == 0


def test_an_unknown_agent_is_refused_with_the_nearest_names__fault_25(face):
    join(face, "researcher", "writer")
    error = refusal(face, "agent_not_found", "agent.get", agent_id="resercher")
    assert error.facts["known_agents"][0] == "researcher"
    assert "researcher" in error.message


@pytest.mark.parametrize(
    ("wanted", "near"),
    [("bo", "bob"), ("bbo", "bob"), ("wroker-7", "worker-7"), ("worker", "worker-7"), ("ann", None), ("q" * 120, None)],
)
def test_names_are_near_that_have_the_same_pairs_of_letters(wanted, near):
    known = ["worker-7", "steward", "bob", "z" * 120]
    assert nearest(wanted, known, most=1) == [near or "bob"]
    assert nearest(wanted, known, most=3) == ([near] if near else ["bob", "steward", "worker-7"])


def test_only_some_of_many_names_are_compared_with_an_unknown_one(direct, mux):
    """One call with a thousand unknown names made everybody wait for minutes."""
    with mux.store.read() as rx:
        for names in ("id from agent where deregistered_at is null and id", "name from channel where name"):
            assert directory._around(rx, names, "m") == (["default"] if "channel" in names else [])
    join(direct, *(f"{letter}{number:02d}" for letter in "az" for number in range(60)))
    assert len(refusal(direct, "agent_not_found", "agent.get", agent_id="m").facts["known_agents"]) == 5
    with mux.store.read() as rx:
        found = directory._around(rx, "id from agent where deregistered_at is null and id", "m")
    assert sorted(found) == [*(f"a{n:02d}" for n in range(10, 60)), *(f"z{n:02d}" for n in range(50))]


def test_a_notification_reaches_the_agents_own_channel_and_nobody_else(face):
    join(face, "ann", "bob")
    face.call("channel.join", channel="agent-bob", agent_id="ann")
    answer = face.call(
        "agent.notify", agent_id="bob", type="restart-signal", content="Restart.", metadata={"a": 1, "type": "x"}
    )
    assert answer["channel"] == "agent-bob"
    (message,) = face.call("msg.poll", agent_id="bob", timeout=0)["messages"]
    assert (message["id"], message["from"], message["to"]) == (answer["message_id"], "stonemux", "bob")
    assert (message["channel"], message["type"]) == ("agent-bob", "restart-signal")
    assert message["metadata"] == {"a": 1, "type": "restart-signal"}
    assert face.call("msg.poll", agent_id="ann", timeout=0)["messages"] == []


def test_a_notification_may_name_its_sender(face):
    join(face, "ann", "bob")
    face.call("agent.notify", agent_id="bob", type="nudge", content="x", from_="ann")
    assert face.call("msg.poll", agent_id="bob", timeout=0)["messages"][0]["from"] == "ann"
    assert refusal(
        face, "agent_not_found", "agent.notify", agent_id="bob", type="nudge", content="x", from_="an"
    ).facts["known_agents"] == ["ann"]


def test_deregistering_may_release_the_claims_at_once__T14(face):
    join(face, "ann", "bob")
    for n in range(2):
        face.call("task.post", description=str(n), posted_by="ann")
        face.call("task.claim", agent_id="bob")
    answer = face.call("agent.deregister", agent_id="bob", release_claims=True)
    assert answer["released_claims"] == 2
    assert [task["status"] for task in face.call("task.list")["tasks"]] == ["pending", "pending"]


def test_deregistering_and_going_stale_keep_claims_until_the_lease_ends__T14(face, clock):
    join(face, "ann", "bob")
    task_id = face.call("task.post", description="x", posted_by="ann", claim_timeout=600)["task_id"]
    face.call("task.claim", agent_id="bob")
    face.call("agent.deregister", agent_id="bob")
    clock.advance(5 * MINUTE)
    assert face.call("task.claim", agent_id="ann")["task_id"] is None
    assert face.call("task.get", task_id=task_id)["task"]["claimed_by"] == "bob"
    clock.advance(5 * MINUTE)
    assert face.call("task.claim", agent_id="ann")["task_id"] == task_id


def test_an_agent_that_comes_back_is_in_its_home_channel_and_its_own_only(face):
    join(face, "ann")
    face.call("channel.create", name="guild", members=["ann"])
    face.call("agent.deregister", agent_id="ann")
    join(face, "ann", channel="lab")
    assert face.call("agent.get", agent_id="ann")["agent"]["channels"] == ["agent-ann", "lab"]
