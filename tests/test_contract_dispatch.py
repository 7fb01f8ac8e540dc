"""The contract of dispatch and handoff: tasks assigned to an agent, and tasks given back with a note."""

from __future__ import annotations

import re

import pytest
from faces import Direct, join, refusal

from stonemux import handoff, messages

DAY = 24 * 3600 * 1000
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def crew(face):
    join(face, "director", role="director")
    join(face, "ann", "bob", role="worker", capabilities=["write"])
    return face


def post(face, description="x", by="director", **given):
    return face.call("task.post", description=description, posted_by=by, **given)["task_id"]


def claim(face, agent_id="ann", **given):
    return face.call("task.claim", agent_id=agent_id, **given)


def get(face, task_id):
    return face.call("task.get", task_id=task_id)["task"]


def poll(face, agent_id="ann"):
    return face.call("msg.poll", agent_id=agent_id, timeout=0)["messages"]


def send(face, from_, to, content="x", **given):
    return face.call("msg.send", from_=from_, to=to, content=content, **given)["message_id"]


def dispatch(face, *task_ids, agent_id="ann", **given):
    which = {"task_id": task_ids[0]} if len(task_ids) == 1 else {"task_ids": list(task_ids)}
    return face.call("task.dispatch", agent_id=agent_id, **which, **given)["results"]


def asked(face, agent_id="ann"):
    """A task that its claimer handed off, waiting for an answer of the director: the task's and the message's id."""
    task_id = post(face)
    claim(face, agent_id)
    question = send(face, agent_id, "director", "OAuth or JWT?")
    answer = face.call("task.handoff", task_id=task_id, agent_id=agent_id, note="n", waiting_on=question)
    assert answer["status"] == "waiting"
    return task_id, question


# -- dispatch


def test_a_dispatched_task_is_the_agents_and_its_notice_says_all(crew):
    task_id = post(crew, "Implement the login")
    (result,) = dispatch(
        crew,
        task_id,
        priority=3,
        notification_message="New task: the login",
        metadata={"branch": "agent/ann/login", "worktree": ".worktrees/ann", "session_id": "s1"},
        dispatched_by="director",
    )
    assert (result["task"]["task_id"], result["task"]["assigned_to"]) == (task_id, "ann")
    assert (result["task"]["priority"], result["task"]["status"]) == (3, "pending")
    assert (result["agent"]["id"], result["channel"]["name"]) == ("ann", "agent-ann")
    assert result["channel"]["id"] == crew.call("channel.get", channel="agent-ann")["channel"]["id"]
    assert result["is_new_assignment"] is True
    assert "claim_token" not in result
    (notice,) = poll(crew)
    assert notice == result["notification"]
    assert (notice["from"], notice["to"], notice["channel"]) == ("director", "ann", "agent-ann")
    assert (notice["type"], notice["content"]) == ("task-assignment", "New task: the login")
    assert notice["metadata"] == {
        "type": "task-assignment",
        "task_id": task_id,
        "priority": 3,
        "restart": False,
        "branch": "agent/ann/login",
        "worktree": ".worktrees/ann",
        "session_id": "s1",
        "dispatched_at": result["dispatched_at"],
        "dispatched_by": "director",
    }
    assert claim(crew, "bob")["task_id"] is None
    assert claim(crew)["task_id"] == task_id


def test_without_a_dispatcher_the_daemon_sends_the_notice_and_says_the_description(crew):
    dispatch(crew, post(crew, "Write " + "x" * 300))
    (notice,) = poll(crew)
    assert (notice["from"], notice["metadata"]["dispatched_by"]) == ("stonemux", "stonemux")
    assert re.fullmatch("Task assigned: Write x+…", notice["content"])
    assert notice["metadata"]["priority"] == 0


def test_metadata_does_not_replace_what_a_notice_always_says(crew):
    task_id = post(crew)
    (result,) = dispatch(crew, task_id, metadata={"task_id": "x", "type": "y", "dispatched_by": "z", "more": 1})
    told = result["notification"]["metadata"]
    assert (told["task_id"], told["type"], told["dispatched_by"], told["more"]) == (
        task_id,
        "task-assignment",
        "stonemux",
        1,
    )


def test_only_the_assignee_receives_the_notice(crew):
    crew.call("channel.join", channel="agent-ann", agent_id="director")
    dispatch(crew, post(crew))
    assert [len(poll(crew, name)) for name in ("ann", "bob", "director")] == [1, 0, 0]
    log = crew.call("channel.messages", channel="agent-ann")["messages"]
    assert [one["to"] for one in log] == ["ann"]


def test_many_tasks_go_to_one_agent_with_a_result_each(crew):
    tasks = [post(crew, str(n)) for n in range(3)]
    results = dispatch(crew, *tasks, priority=2)
    assert [one["task"]["task_id"] for one in results] == tasks
    assert [one["agent"]["id"] for one in results] == ["ann"] * 3
    notices = poll(crew)
    assert [one["metadata"]["task_id"] for one in notices] == tasks
    assert [one["id"] for one in notices] == [one["notification"]["id"] for one in results]
    assert {get(crew, one)["priority"] for one in tasks} == {2}
    (again,) = crew.call("task.dispatch", task_ids=[tasks[0], tasks[0]], agent_id="ann")["results"]
    assert again["is_new_assignment"] is False
    assert again["notification"]["type"] == "task-assignment"
    assert crew.call("task.dispatch", task_ids=[], agent_id="ann") == {"results": []}


def test_a_started_task_is_claimed_and_the_token_travels(crew):
    task_id = post(crew)
    (result,) = dispatch(crew, task_id, mark_as_started=True)
    assert (result["task"]["status"], result["task"]["claimed_by"]) == ("claimed", "ann")
    (notice,) = poll(crew)
    token = notice["metadata"]["claim_token"]
    assert token == result["claim_token"]
    (again,) = dispatch(crew, task_id, mark_as_started=True)
    assert again["claim_token"] == token, "it was started already"
    done = crew.call("task.complete", task_id=task_id, agent_id="ann", claim_token=token)
    assert done["status"] == "complete"


def test_a_task_of_another_agent_is_reassigned(crew):
    task_id = post(crew, assigned_to="bob")
    (result,) = dispatch(crew, task_id)
    assert (result["is_new_assignment"], result["notification"]["type"]) == (False, "task-reassignment")
    assert result["notification"]["content"].startswith("Task reassigned: ")
    assert claim(crew, "bob")["task_id"] is None
    assert claim(crew)["task_id"] == task_id


def test_a_live_claim_is_never_stolen(crew):
    task_id, other = post(crew), post(crew)
    token = claim(crew, "bob")["claim_token"]
    error = refusal(crew, "task_conflict", "task.dispatch", task_ids=[other, task_id], agent_id="ann")
    assert (error.facts["claimed_by"], error.facts["task_id"]) == ("bob", task_id)
    assert "restart=true" in error.message
    assert poll(crew) == []
    assert get(crew, other)["assigned_to"] is None
    done = crew.call("task.complete", task_id=task_id, agent_id="bob", claim_token=token)
    assert done["status"] == "complete"


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("holder", ["bob", "ann"])
def test_restart_fences_the_old_claim_off(crew, start, holder):
    task_id = post(crew)
    token = claim(crew, holder)["claim_token"]
    (result,) = dispatch(crew, task_id, restart=True, mark_as_started=start)
    kind = "task-reassignment" if holder == "bob" else "task-assignment"
    assert (result["notification"]["type"], result["notification"]["metadata"]["restart"]) == (kind, True)
    assert result["is_new_assignment"] is False
    for given in ({"claim_token": token}, {}) if not (start and holder == "ann") else ({"claim_token": token},):
        for name in ("task.complete", "task.extend", "task.release"):
            refusal(crew, "stale_claim", name, task_id=task_id, agent_id=holder, **given)
    assert result["task"]["attempts"] == 0
    fresh = result["claim_token"] if start else claim(crew)["claim_token"]
    assert fresh == f"{task_id}.2"
    assert crew.call("task.complete", task_id=task_id, agent_id="ann", claim_token=fresh)["status"] == "complete"


def test_a_claim_that_ran_out_is_nobodys(crew, clock):
    task_id = post(crew)
    claim(crew, "bob")
    clock.advance(301_000)
    (result,) = dispatch(crew, task_id)
    assert (result["task"]["assigned_to"], result["notification"]["type"]) == ("ann", "task-reassignment")


def test_a_dispatch_of_ones_own_claim_leaves_it_alone(crew):
    task_id = post(crew)
    token = claim(crew)["claim_token"]
    (result,) = dispatch(crew, task_id, priority=7)
    assert (result["task"]["status"], result["task"]["claimed_by"], result["task"]["priority"]) == ("claimed", "ann", 7)
    assert crew.call("task.extend", task_id=task_id, agent_id="ann", claim_token=token)


def test_a_task_that_waits_is_assigned_but_not_started(crew):
    first = post(crew)
    second = post(crew, depends_on=[first])
    refusal(crew, "task_conflict", "task.dispatch", task_id=second, agent_id="ann", mark_as_started=True)
    (result,) = dispatch(crew, second)
    assert (result["task"]["status"], result["task"]["assigned_to"]) == ("waiting", "ann")
    claim(crew, "bob", task_id=first)
    crew.call("task.complete", task_id=first, agent_id="bob")
    assert claim(crew)["task_id"] == second


def test_a_parked_claimer_gets_what_is_dispatched_to_it__T13(crew, clock, background):
    task_id = post(crew, required_capability="write", assigned_to="bob")
    parked = background(claim, crew, timeout=30)
    clock.until_parked(1)
    dispatch(crew, task_id)
    assert parked.result(5)["task_id"] == task_id


def test_a_dispatch_that_cannot_be_does_nothing(crew):
    task_id, done = post(crew), post(crew)
    special = post(crew, required_capability="fly")
    claim(crew, "bob", task_id=done)
    crew.call("task.complete", task_id=done, agent_id="bob")
    before = crew.call("events.list", after=0)["head"]
    refusal(crew, "agent_not_found", "task.dispatch", task_id=task_id, agent_id="nobody")
    refusal(crew, "agent_not_found", "task.dispatch", task_id=task_id, agent_id="ann", dispatched_by="nobody")
    refusal(crew, "task_not_found", "task.dispatch", task_id=NOBODY, agent_id="ann")
    refusal(crew, "task_not_found", "task.dispatch", task_ids=[task_id, NOBODY], agent_id="ann")
    error = refusal(crew, "task_conflict", "task.dispatch", task_ids=[task_id, done], agent_id="ann")
    assert error.facts["status"] == "complete"
    assert "fly" in refusal(crew, "task_conflict", "task.dispatch", task_ids=[task_id, special], agent_id="ann").message
    for given in ({}, {"task_id": None}):
        assert refusal(crew, "missing_field", "task.dispatch", agent_id="ann", **given).facts["parameter"] == "task_id"
    error = refusal(crew, "invalid_field", "task.dispatch", agent_id="ann", task_id=task_id, task_ids=[task_id])
    assert error.facts["parameter"] == "task_ids"
    refusal(
        crew, "message_too_large", "task.dispatch", agent_id="ann", task_id=task_id, notification_message="x" * 65_537
    )
    assert crew.call("events.list", after=before)["events"] == []
    assert get(crew, task_id)["assigned_to"] is None
    assert poll(crew) == []


@pytest.mark.settings(inbox_limit=2)
def test_a_batch_that_an_inbox_has_no_room_for_is_refused_whole__I12(crew):
    tasks = [post(crew) for _ in range(3)]
    refusal(crew, "inbox_full", "task.dispatch", task_ids=tasks, agent_id="ann")
    assert [get(crew, one)["assigned_to"] for one in tasks] == [None] * 3
    assert len(dispatch(crew, *tasks[:2])) == 2


def test_a_dispatch_has_its_events_and_history__E1(crew):
    task_id = post(crew)
    claim(crew, "bob")
    before = crew.call("events.list", after=0)["head"]
    dispatch(crew, task_id, restart=True, mark_as_started=True, dispatched_by="director")
    events = crew.call("events.list", after=before)["events"]
    assert [one["type"] for one in events] == ["task_released", "task_assigned", "task_claimed", "message"]
    assert events[1]["data"] == {"task_id": task_id, "agent_id": "ann", "channel": "default", "by": "director"}
    acts = [(one["act"], one["agent_id"], one.get("note")) for one in get(crew, task_id)["history"]]
    assert acts[2:] == [
        ("restarted", "bob", "dispatched to ann"),
        ("assigned", "ann", "by director"),
        ("claimed", "ann", None),
    ]


def test_a_dispatch_happens_once_for_its_key__P2(crew):
    task_id = post(crew)
    first = dispatch(crew, task_id, mark_as_started=True, idempotency_key="k")
    assert dispatch(crew, task_id, mark_as_started=True, idempotency_key="k") == first
    assert len(poll(crew)) == 1


# -- handoff


def test_a_handed_off_task_is_back_in_the_pool_with_its_note(crew):
    task_id = post(crew)
    token = claim(crew)["claim_token"]
    answer = crew.call(
        "task.handoff",
        task_id=task_id,
        agent_id="ann",
        note="Half done; see the branch",
        branch="ann/x",
        worktree=".worktrees/ann",
        claim_token=token,
    )
    assert (answer["task_id"], answer["status"]) == (task_id, "pending")
    handoff = answer["task"]["handoff"]
    assert handoff == {
        "agent_id": "ann",
        "note": "Half done; see the branch",
        "branch": "ann/x",
        "worktree": ".worktrees/ann",
        "at": handoff["at"],
    }
    assert answer["task"]["claimed_by"] is None
    refusal(crew, "stale_claim", "task.complete", task_id=task_id, agent_id="ann")
    taken = claim(crew, "bob")
    assert (taken["task_id"], taken["task"]["handoff"], taken["task"]["attempts"]) == (task_id, handoff, 0)
    history = [(one["act"], one["agent_id"], one.get("note")) for one in get(crew, task_id)["history"]]
    assert history[1:] == [
        ("claimed", "ann", None),
        ("handoff", "ann", "Half done; see the branch"),
        ("claimed", "bob", None),
    ]


def test_a_second_handoff_replaces_the_note_and_the_history_keeps_both(crew):
    task_id = post(crew)
    for name in ("ann", "bob"):
        claim(crew, name)
        crew.call("task.handoff", task_id=task_id, agent_id=name, note=f"of {name}")
    task = get(crew, task_id)
    assert task["handoff"]["note"] == "of bob"
    assert [one["note"] for one in task["history"] if one["act"] == "handoff"] == ["of ann", "of bob"]


def test_a_handoff_ends_an_assignment(crew):
    task_id = post(crew)
    dispatch(crew, task_id, mark_as_started=True)
    crew.call("task.handoff", task_id=task_id, agent_id="ann", note="not mine")
    assert claim(crew, "bob")["task_id"] == task_id


def test_a_task_waits_for_an_answer_in_the_messages_thread(crew, clock):
    task_id, question = asked(crew)
    task = get(crew, task_id)
    assert (task["status"], task["waiting_on"], task["handoff"]["waiting_on"]) == ("waiting", question, question)
    assert task["available_at"] > task["created_at"]
    assert [one["task_id"] for one in crew.call("task.list", status="waiting")["tasks"]] == [task_id]
    for name in ("ann", "bob"):
        assert claim(crew, name)["task_id"] is None
    refusal(crew, "task_conflict", "task.claim", agent_id="ann", task_id=task_id)
    send(crew, "director", "ann", "JWT", reply_to=question)
    task = get(crew, task_id)
    assert task["status"] == "pending"
    assert "waiting_on" not in task
    assert "available_at" not in task
    taken = claim(crew)
    assert (taken["task_id"], taken["task"]["handoff"]["waiting_on"]) == (task_id, question)
    acts = [(one["act"], one["agent_id"]) for one in get(crew, task_id)["history"]]
    assert acts[2:4] == [("handoff", "ann"), ("answered", "director")]


def test_only_somebody_elses_later_word_in_that_thread_is_an_answer(crew):
    task_id, question = asked(crew)
    send(crew, "ann", "director", "by the way", reply_to=question)
    send(crew, "director", "ann", "something else")
    send(crew, "director", "ann", "another", thread="other")
    assert get(crew, task_id)["status"] == "waiting"
    refusal(crew, "agent_not_found", "msg.send", from_="director", to="nobody", content="x", reply_to=question)
    assert get(crew, task_id)["status"] == "waiting"
    send(crew, "bob", "director", "I know that: JWT", reply_to=question)
    assert get(crew, task_id)["status"] == "pending"


def test_a_broadcast_and_a_named_thread_answer_too(crew):
    first, question = asked(crew)
    crew.call("msg.broadcast", from_="director", content="JWT", reply_to=question)
    assert get(crew, first)["status"] == "pending"
    second = post(crew)
    claim(crew, task_id=second)
    question = send(crew, "ann", "director", thread="design")
    earlier = send(crew, "director", "bob", thread="design")
    assert earlier > question
    third = send(crew, "ann", "director", thread="design")
    crew.call("task.handoff", task_id=second, agent_id="ann", note="n", waiting_on=third)
    assert get(crew, second)["status"] == "waiting"
    send(crew, "director", "bob", thread="design")
    assert get(crew, second)["status"] == "pending"


def test_an_answer_that_goes_into_another_thread_is_one_all_the_same(crew):
    task_id = post(crew)
    claim(crew, "bob")
    asked = crew.call("msg.send", from_="bob", to="ann", content="?")["message_id"]
    crew.call("task.handoff", task_id=task_id, agent_id="bob", note="n", waiting_on=asked)
    crew.call("msg.send", from_="ann", to="bob", content="!", thread="elsewhere")
    assert crew.call("task.get", task_id=task_id)["task"]["status"] == "waiting"
    crew.call("msg.send", from_="ann", to="bob", content="!", reply_to=asked, thread="elsewhere")
    assert crew.call("task.get", task_id=task_id)["task"]["status"] == "pending"


def test_an_answer_that_was_faster_than_the_handoff_counts(crew):
    task_id = post(crew)
    claim(crew)
    question = send(crew, "ann", "director")
    send(crew, "director", "ann", reply_to=question)
    answer = crew.call("task.handoff", task_id=task_id, agent_id="ann", note="n", waiting_on=question)
    assert answer["status"] == "pending"
    assert "waiting_on" not in answer["task"]
    assert claim(crew)["task_id"] == task_id
    acts = [(one["act"], one["agent_id"]) for one in get(crew, task_id)["history"]]
    assert acts[2:4] == [("handoff", "ann"), ("answered", "director")]


def test_an_answer_in_another_thread_that_was_faster_than_the_handoff_counts(crew, program, clock):
    def handed_off(asked):
        task_id = post(crew)
        claim(crew, task_id=task_id)
        return crew.call("task.handoff", task_id=task_id, agent_id="ann", note="n", waiting_on=asked)["status"]

    question = send(crew, "ann", "director")
    more = send(crew, "ann", "director", reply_to=question)
    send(crew, "ann", "director", reply_to=more, thread="elsewhere")
    send(crew, "director", "ann", thread="elsewhere")
    assert handed_off(more) == "waiting"
    send(crew, "director", "bob", reply_to=more, thread="elsewhere")
    assert handed_off(more) == handed_off(question) == "pending"
    clock.advance(1)
    assert program.store.write(lambda tx: messages.purge(tx, tx.now, 100)) == 0, "nobody has read them"
    for agent_id in ("director", "ann", "bob"):
        crew.call("msg.poll", agent_id=agent_id, timeout=0)
    assert program.store.write(lambda tx: messages.purge(tx, tx.now, 100)) == 5
    with program.store.read() as rx:
        assert rx.one("select count(*) from aside")[0] == 0


def test_nobody_waits_for_an_answer_longer_than_a_day(crew, clock, program, background):
    task_id, _ = asked(crew)
    clock.advance(DAY - 1)
    program.timekeeper.tick()
    assert get(crew, task_id)["status"] == "waiting"
    clock.advance(1)
    program.timekeeper.tick()
    task = get(crew, task_id)
    assert (task["status"], "waiting_on" in task, task["history"][-1]["act"]) == ("pending", False, "unanswered")
    assert claim(crew, "bob")["task_id"] == task_id


def test_the_day_ends_for_a_claim_without_the_timekeeper(crew, clock):
    task_id, _ = asked(crew)
    clock.advance(DAY)
    assert claim(crew, "bob")["task_id"] == task_id


def test_an_answer_wakes_one_parked_claim__T13(crew, clock, background):
    task_id, question = asked(crew)
    parked = background(claim, crew, timeout=30)
    clock.until_parked(1)
    send(crew, "director", "ann", reply_to=question)
    assert parked.result(5)["task_id"] == task_id


def test_one_answer_resumes_all_that_waited_for_it_and_says_so__E1(crew):
    first, second = post(crew), post(crew)
    claim(crew, "ann", task_id=first)
    claim(crew, "bob", task_id=second)
    question = send(crew, "ann", "director")
    for name, task_id in (("ann", first), ("bob", second)):
        crew.call("task.handoff", task_id=task_id, agent_id=name, note="n", waiting_on=question)
    before = crew.call("events.list", after=0)["head"]
    send(crew, "director", "ann", reply_to=question)
    events = crew.call("events.list", after=before, types=["task_ready"])["events"]
    assert [(one["data"]["task_id"], one["data"]["reason"]) for one in events] == [(first, "reply"), (second, "reply")]
    assert {get(crew, first)["status"], get(crew, second)["status"]} == {"pending"}


def test_a_wait_outlives_a_restart(crew, restart):
    task_id, question = asked(crew)
    restart()
    assert get(crew, task_id)["status"] == "waiting"
    send(crew, "director", "ann", reply_to=question)
    assert get(crew, task_id)["status"] == "pending"


def test_a_waiting_task_may_be_cancelled_and_no_answer_revives_it(crew):
    task_id, question = asked(crew)
    crew.call("task.cancel", task_id=task_id)
    send(crew, "director", "ann", reply_to=question)
    assert get(crew, task_id)["status"] == "cancelled"
    assert crew.call("task.requeue", task_id=task_id)["status"] == "pending"


def test_a_lease_that_ran_out_may_still_be_handed_off__T4(crew, clock, program):
    task_id = post(crew)
    claim(crew)
    clock.advance(301_000)
    program.timekeeper.tick()
    answer = crew.call("task.handoff", task_id=task_id, agent_id="ann", note="late")
    assert (answer["status"], answer["task"]["handoff"]["note"]) == ("pending", "late")
    refusal(crew, "stale_claim", "task.handoff", task_id=task_id, agent_id="ann", note="again")


def test_only_the_holder_hands_off_and_nothing_is_half_done(crew):
    task_id = post(crew)
    refusal(crew, "not_claim_owner", "task.handoff", task_id=task_id, agent_id="ann", note="n")
    token = claim(crew, "bob")["claim_token"]
    refusal(crew, "not_claim_owner", "task.handoff", task_id=task_id, agent_id="ann", note="n")
    refusal(crew, "task_not_found", "task.handoff", task_id=NOBODY, agent_id="ann", note="n")
    refusal(crew, "agent_not_found", "task.handoff", task_id=task_id, agent_id="nobody", note="n")
    refusal(crew, "invalid_field", "task.handoff", task_id=task_id, agent_id="bob", note="")
    refusal(crew, "message_too_large", "task.handoff", task_id=task_id, agent_id="bob", note="x" * 65_537)
    refusal(crew, "stale_claim", "task.handoff", task_id=task_id, agent_id="bob", note="n", claim_token=f"{task_id}.9")
    error = refusal(crew, "message_not_found", "task.handoff", task_id=task_id, agent_id="bob", note="n", waiting_on=99)
    assert "waiting_on" in error.message
    task = get(crew, task_id)
    assert (task["status"], task["claimed_by"]) == ("claimed", "bob")
    assert "handoff" not in task
    done = crew.call("task.complete", task_id=task_id, agent_id="bob", claim_token=token)
    assert done["status"] == "complete"
    refusal(crew, "task_conflict", "task.handoff", task_id=task_id, agent_id="bob", note="n")


def test_a_message_outside_of_threads_looks_for_no_waiting_task(direct, mux, monkeypatch):
    join(direct, "director", "ann")
    task_id, question = asked(direct)
    monkeypatch.delattr(handoff, "answered")
    send(direct, "director", "ann")
    direct.call("msg.broadcast", from_="director", content="x")
    monkeypatch.undo()
    send(direct, "director", "ann", reply_to=question)
    assert get(direct, task_id)["status"] == "pending"


def test_tasks_are_not_dispatched_or_handed_off_on_free(open_program):
    face = Direct(open_program(default_tier="free").mux)
    join(face, "ann")
    refusal(face, "upgrade_required", "task.dispatch", task_id=NOBODY, agent_id="ann")
    refusal(face, "upgrade_required", "task.handoff", task_id=NOBODY, agent_id="ann", note="n")
