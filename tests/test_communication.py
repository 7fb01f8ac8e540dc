"""How a director, workers, and stewards communicate: each pattern in docs/communication.md, executed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from faces import join, refusal

from stonemux import generate_agent_channel_name, operations, parse_agent_channel_name

PAGE = (Path(__file__).parents[1] / "docs" / "communication.md").read_text(encoding="utf-8")


@pytest.fixture
def team(face):
    join(face, "director", role="director")
    join(face, "e-worker-1", "e-worker-2", role="worker", capabilities=["code"])
    join(face, "m-steward-1", role="steward")
    return face


def inbox(face, agent_id, **given):
    return face.call("inbox.list", agent_id=agent_id, **given)["items"]


def post(face, description="x"):
    return face.call("task.post", description=description, posted_by="director")["task_id"]


def claim(face, agent_id="e-worker-1"):
    return face.call("task.claim", agent_id=agent_id)


def test_the_page_names_operations_that_exist():
    named = set(re.findall(r"`((?:agent|msg|task|channel|document|inbox|state)\.\w+)`", PAGE))
    assert len(named) > 15
    assert named <= set(operations.BY_NAME)


# -- channels


def test_an_agents_channel_comes_with_its_registration(team):
    assert team.call("agent.get", agent_id="e-worker-1")["agent"]["agent_channel"] == "agent-e-worker-1"
    channel = team.call("channel.get", channel="agent-e-worker-1")["channel"]
    assert channel["members"] == channel["memberIds"] == ["e-worker-1"]
    assert team.call("channel.get", channel=channel["id"])["channel"] == channel


def test_others_join_an_agents_channel_and_hear_what_is_posted_there(team):
    team.call("channel.join", channel="agent-e-worker-1", agent_id="director")
    answer = team.call("msg.broadcast", from_="m-steward-1", channel="agent-e-worker-1", content="x")
    assert answer["recipient_ids"] == ["director", "e-worker-1"]


def test_names_of_agents_channels_are_made_and_taken_apart():
    assert generate_agent_channel_name("e-worker-1") == "agent-e-worker-1"
    assert parse_agent_channel_name("agent-e-worker-1") == "e-worker-1"
    assert parse_agent_channel_name("security-issues") is None
    assert parse_agent_channel_name("agent-") is None


def test_a_team_channel_grows(team):
    team.call(
        "channel.create",
        name="blockers",
        description="What holds us up",
        members=["director", "e-worker-1"],
        created_by="director",
        tags=["team", "blockers"],
    )
    team.call("channel.join", channel="blockers", agent_id="e-worker-2")
    (listed,) = [one for one in team.call("channel.list")["channels"] if one["name"] == "blockers"]
    assert (listed["members"], listed["description"], listed["tags"]) == (3, "What holds us up", ["team", "blockers"])
    assert {"id", "created_at"} <= set(listed)
    refusal(team, "channel_exists", "channel.create", name="blockers")


def test_a_channel_of_one_member_takes_posts(team):
    team.call("channel.create", name="notes", created_by="director")
    assert team.call("msg.broadcast", from_="director", channel="notes", content="x")["recipients"] == 0
    assert [one["content"] for one in team.call("channel.messages", channel="notes")["messages"]] == ["x"]


# -- messages


def test_a_message_by_document(team):
    made = team.call(
        "document.create",
        content="Task task-123: OAuth 2.0 or JWT?",
        created_by="e-worker-1",
        tags=["question", "task-123"],
    )["document"]
    team.call("msg.send", from_="e-worker-1", to="director", content_ref=made["id"])
    (item,) = inbox(team, "director")
    assert (item["from"], item["content_ref"]) == ("e-worker-1", made["id"])
    content = team.call("document.get", id=item["content_ref"])["document"]["content"]
    assert content == item["preview"] == "Task task-123: OAuth 2.0 or JWT?"


@pytest.mark.parametrize(
    ("role", "types"),
    [
        ("director", ("question", "status", "blocker", "report")),
        ("worker", ("assignment", "clarification", "nudge")),
        ("steward", ("review", "alert", "recovery")),
    ],
)
def test_messages_are_routed_by_their_type(team, role, types):
    who = {"director": ["director"], "worker": ["e-worker-1", "e-worker-2"], "steward": ["m-steward-1"]}
    team.call("agent.register", agent_id="somebody")
    for kind in types:
        answer = team.call("msg.send", from_="somebody", type=kind, content="x")
        assert [one["agent_id"] for one in answer["recipients"]] == who[role]


def test_an_observation_goes_to_a_team_channel_and_blocks_nobody(team):
    team.call("channel.create", name="security-issues", description="d", members=["director", "m-steward-1"])
    task_id = post(team)
    claim(team)
    team.call(
        "msg.broadcast",
        from_="e-worker-1",
        channel="security-issues",
        content=f"While on {task_id}: a key in src/config. Rotate it, @director",
    )
    (seen,) = inbox(team, "director")
    assert (seen["channel"], seen["mentioned"]) == ("security-issues", True)
    (other,) = inbox(team, "m-steward-1")
    assert "mentioned" not in other
    done = team.call("task.complete", task_id=task_id, agent_id="e-worker-1")
    assert done["status"] == "complete"


def test_a_steward_reports_an_issue_and_the_director_makes_it_a_task(team):
    team.call("msg.send", from_="m-steward-1", type="report", content="auth.login fails on main; please make a task")
    (item,) = inbox(team, "director")
    assert item["type"] == "report"
    task_id = post(team, item["preview"])
    assert team.call("inbox.update", agent_id="director", ids=[item["id"]], status="archived") == {"updated": 1}
    assert claim(team)["task_id"] == task_id


# -- work


def test_a_worker_asks_hands_off_and_goes_on_when_it_is_answered(team):
    task_id = post(team, "Build the login")
    taken = claim(team)
    question = team.call("msg.send", from_="e-worker-1", type="question", content=f"Task {task_id}: remember me?")[
        "message_id"
    ]
    team.call(
        "task.handoff",
        task_id=task_id,
        agent_id="e-worker-1",
        claim_token=taken["claim_token"],
        note="Form is done, the box is open",
        branch="agent/e-worker-1/login",
        worktree=".worktrees/e-worker-1",
        waiting_on=question,
    )
    assert claim(team)["task_id"] is None
    (item,) = inbox(team, "director")
    team.call("msg.send", from_="director", to="e-worker-1", content="Yes, 30 days", reply_to=item["message_id"])
    again = claim(team)
    assert again["task_id"] == task_id
    handoff = again["task"]["handoff"]
    assert (handoff["note"], handoff["branch"]) == ("Form is done, the box is open", "agent/e-worker-1/login")
    (answer,) = inbox(team, "e-worker-1", full=True)
    assert (answer["content"], answer["reply_to"]) == ("Yes, 30 days", question)
    refusal(
        team,
        "stale_claim",
        "task.complete",
        task_id=task_id,
        agent_id="e-worker-1",
        claim_token=taken["claim_token"],
    )
    token = again["claim_token"]
    done = team.call("task.complete", task_id=task_id, agent_id="e-worker-1", claim_token=token)
    assert done["status"] == "complete"


def test_the_director_dispatches_and_only_the_worker_hears_of_it(team):
    team.call("channel.join", channel="agent-e-worker-1", agent_id="director")
    task_id = post(team, "Fix the login")
    (result,) = team.call(
        "task.dispatch",
        task_id=task_id,
        agent_id="e-worker-1",
        priority=2,
        mark_as_started=True,
        notification_message="Task assigned: fix the login",
        metadata={"branch": "agent/e-worker-1/fix", "worktree": ".worktrees/e-worker-1"},
        dispatched_by="director",
    )["results"]
    (item,) = inbox(team, "e-worker-1", full=True)
    assert (item["message_id"], item["channel"]) == (result["notification"]["id"], result["channel"]["name"])
    assert item["metadata"]["claim_token"] == result["claim_token"]
    assert inbox(team, "director") == []


def test_a_batch_is_dispatched_to_one_agent(team):
    tasks = [post(team, str(n)) for n in range(3)]
    results = team.call("task.dispatch", task_ids=tasks, agent_id="e-worker-1", priority=2)["results"]
    assert [(one["task"]["task_id"], one["agent"]["id"]) for one in results] == [(one, "e-worker-1") for one in tasks]
    assert [claim(team)["task_id"] for _ in tasks] == tasks


def test_a_restart_signal_needs_no_task(team):
    told = team.call(
        "agent.notify",
        agent_id="e-worker-1",
        type="restart-signal",
        content="Please restart your session.",
        metadata={"reason": "config-update", "urgency": "high"},
    )
    (item,) = inbox(team, "e-worker-1", full=True)
    assert (told["channel"], item["from"], item["type"]) == ("agent-e-worker-1", "stonemux", "restart-signal")
    assert item["metadata"] == {"type": "restart-signal", "reason": "config-update", "urgency": "high"}


# -- when it does not work


def test_a_message_without_content_says_what_is_missing(team):
    error = refusal(team, "missing_field", "msg.send", from_="director", to="e-worker-1")
    assert "content_ref" in error.message


def test_an_agent_that_was_not_registered_has_no_channel_until_it_is(team):
    error = refusal(team, "channel_not_found", "channel.get", channel="agent-e-worker-9")
    assert "agent-e-worker-1" in error.facts["known_channels"]
    join(team, "e-worker-9")
    assert team.call("channel.get", channel="agent-e-worker-9")["channel"]["members"] == ["e-worker-9"]


def test_registering_anew_mends_an_agents_channel(team):
    team.call("agent.deregister", agent_id="e-worker-1")
    assert team.call("channel.get", channel="agent-e-worker-1")["channel"]["members"] == []
    join(team, "e-worker-1", role="worker")
    assert team.call("channel.get", channel="agent-e-worker-1")["channel"]["members"] == ["e-worker-1"]


def test_what_was_kept_out_of_inboxes_is_in_the_log(team):
    team.call("channel.join", channel="agent-e-worker-1", agent_id="director")
    team.call("msg.broadcast", from_="director", channel="agent-e-worker-1", content="quiet", suppress_inbox=True)
    assert inbox(team, "e-worker-1", status="all") == []
    log = team.call("channel.messages", channel="agent-e-worker-1")["messages"]
    assert [one["content"] for one in log] == ["quiet"]
