"""Automatic dispatch: pending tasks go to idle agents that can do them, the most urgent first."""

from __future__ import annotations

import pytest
from faces import Direct, join
from raw import eventually

from stonemux import autodispatch
from stonemux.record import replace

AUTO = pytest.mark.settings(dispatch_auto=True)
pytestmark = AUTO


@pytest.fixture
def crew(direct):
    join(direct, "director", role="director")
    join(direct, "ann", "bob", role="worker", capabilities=["write"])
    return direct


@pytest.fixture
def tick(program):
    return lambda: program.timekeeper.tick()


def post(face, description="x", by="director", **given):
    return face.call("task.post", description=description, posted_by=by, **given)["task_id"]


def claim(face, agent_id="ann", **given):
    return face.call("task.claim", agent_id=agent_id, **given)["task_id"]


def assigned(face):
    """Who has been given which open or claimed task."""
    return {one["task_id"]: one["assigned_to"] for one in face.call("task.list")["tasks"] if one["assigned_to"]}


def notices(face, agent_id):
    return face.call("msg.poll", agent_id=agent_id, timeout=0)["messages"]


def test_a_pending_task_is_assigned_to_an_idle_agent_that_is_told(crew, tick):
    task_id = post(crew, "Write it", required_capability="write", priority=4)
    tick()
    assert assigned(crew) == {task_id: "ann"}
    (notice,) = notices(crew, "ann")
    assert (notice["from"], notice["channel"], notice["type"]) == ("stonemux", "agent-ann", "task-assignment")
    assert (notice["metadata"]["task_id"], notice["metadata"]["priority"]) == (task_id, 4)
    assert notices(crew, "bob") == notices(crew, "director") == []
    assert claim(crew, "bob") is None
    assert claim(crew) == task_id


def test_a_running_daemon_assigns_what_is_posted_at_once(program, crew):
    program.timekeeper.start()
    try:
        first = post(crew)
        eventually(lambda: assigned(crew) == {first: "ann"})
        second = post(crew)
        eventually(lambda: assigned(crew) == {first: "ann", second: "bob"})
    finally:
        program.timekeeper.stop()


def test_the_most_urgent_and_then_the_oldest_come_first_one_for_each_agent(crew, tick):
    low, old, new, high = (post(crew, priority=n) for n in (0, 1, 1, 2))
    tick()
    assert assigned(crew) == {high: "ann", old: "bob"}
    claim(crew, "ann")
    crew.call("task.complete", task_id=high, agent_id="ann")
    tick()
    assert assigned(crew) == {high: "ann", old: "bob", new: "ann"}
    assert low not in assigned(crew)


def test_who_has_less_to_read_comes_first(crew, tick):
    crew.call("msg.send", from_="director", to="ann", content="x")
    task_id = post(crew)
    tick()
    assert assigned(crew) == {task_id: "bob"}


def test_only_those_who_can_do_it_are_given_it(crew, tick):
    join(crew, "pilot", capabilities=["fly"])
    join(crew, "stranger", role="worker", capabilities=["write", "swim"], channel="elsewhere")
    flight, swim = post(crew, required_capability="fly"), post(crew, required_capability="swim")
    tick()
    assert assigned(crew) == {flight: "pilot"}
    crew.call("channel.join", channel="default", agent_id="stranger")
    tick()
    assert assigned(crew) == {flight: "pilot", swim: "stranger"}


def test_a_task_that_asks_for_nothing_is_for_the_role_of_assignments(crew, tick):
    join(crew, "aaa", role="steward", capabilities=["write"])
    task_id = post(crew)
    tick()
    assert assigned(crew) == {task_id: "ann"}


def test_nobody_is_given_what_he_posted(crew, tick):
    task_id = post(crew, by="ann", required_capability="write")
    tick()
    assert assigned(crew) == {task_id: "bob"}


def test_stale_agents_are_given_nothing_until_they_return(crew, tick, clock, mux):
    clock.advance(200_000)
    crew.call("agent.heartbeat", agent_id="bob")
    clock.advance(100_000)
    first = post(crew)
    tick()
    assert assigned(crew) == {first: "bob"}
    second = post(crew)
    tick()
    assert second not in assigned(crew)
    crew.call("agent.heartbeat", agent_id="ann")
    tick()
    assert assigned(crew) == {first: "bob", second: "ann"}


def test_an_assignment_is_taken_back_from_an_agent_that_goes_stale_before_it_claims(crew, tick, clock):
    task_id = post(crew)
    tick()
    assert assigned(crew) == {task_id: "ann"}
    clock.advance(200_000)
    crew.call("agent.heartbeat", agent_id="bob")
    clock.advance(100_000)
    tick()
    assert assigned(crew) == {task_id: "bob"}
    history = crew.call("task.get", task_id=task_id)["task"]["history"]
    assert [(one["act"], one["agent_id"]) for one in history[1:]] == [
        ("assigned", "ann"),
        ("unassigned", "ann"),
        ("assigned", "bob"),
    ]
    (notice,) = notices(crew, "bob")
    assert notice["type"] == "task-assignment"


def test_an_assignment_is_taken_back_from_an_agent_that_leaves(crew, tick):
    task_id = post(crew)
    tick()
    crew.call("agent.deregister", agent_id="ann")
    tick()
    assert assigned(crew) == {task_id: "bob"}


def test_claimed_work_is_never_reassigned(crew, tick, clock):
    task_id = post(crew, claim_timeout=3600)
    tick()
    claim(crew)
    clock.advance(200_000)
    crew.call("agent.heartbeat", agent_id="bob")
    clock.advance(200_000)
    tick()
    task = crew.call("task.get", task_id=task_id)["task"]
    assert (task["status"], task["claimed_by"], task["assigned_to"]) == ("claimed", "ann", "ann")


def test_what_others_assigned_is_left_alone(crew, tick, clock):
    posted, dispatched = post(crew, assigned_to="ann"), post(crew)
    crew.call("task.dispatch", task_id=dispatched, agent_id="ann")
    clock.advance(200_000)
    crew.call("agent.heartbeat", agent_id="bob")
    clock.advance(200_000)
    tick()
    assert assigned(crew) == {posted: "ann", dispatched: "ann"}


@pytest.mark.parametrize("how", ["released", "handed off", "expired", "failed"])
def test_a_claim_that_ends_ends_the_assignment_and_another_agent_is_next(crew, tick, clock, how):
    task_id = post(crew, claim_timeout=10)
    tick()
    assert claim(crew) == task_id
    if how == "released":
        crew.call("task.release", task_id=task_id, agent_id="ann")
    elif how == "handed off":
        crew.call("task.handoff", task_id=task_id, agent_id="ann", note="n")
    elif how == "failed":
        crew.call("task.complete", task_id=task_id, agent_id="ann", status="failed", retry=True)
        join(crew, "ann", role="worker", channel="elsewhere")
        clock.advance(1000)
    else:
        clock.advance(10_000)
    tick()
    assert assigned(crew) == {task_id: "bob"}


def test_who_gave_a_task_up_is_not_given_it_again_but_may_claim_it(crew, tick):
    crew.call("agent.deregister", agent_id="bob")
    task_id = post(crew)
    tick()
    claim(crew)
    crew.call("task.release", task_id=task_id, agent_id="ann")
    other = post(crew)
    tick()
    assert assigned(crew) == {other: "ann"}
    assert claim(crew, task_id=task_id) == task_id


@pytest.mark.parametrize("early", [False, True])
def test_an_answered_question_brings_the_task_back(crew, tick, early):
    crew.call("agent.deregister", agent_id="bob")
    task_id = post(crew)
    tick()
    claim(crew)
    question = crew.call("msg.send", from_="ann", to="director", content="?")["message_id"]

    def answer():
        crew.call("msg.send", from_="director", to="ann", content="!", reply_to=question)

    if early:
        answer()
    crew.call("task.handoff", task_id=task_id, agent_id="ann", note="n", waiting_on=question)
    if not early:
        tick()
        assert assigned(crew) == {}
        answer()
    tick()
    assert assigned(crew) == {task_id: "ann"}


def test_a_full_inbox_is_passed_over(open_program):
    program = open_program(dispatch_auto=True, inbox_limit=1)
    face = Direct(program.mux)
    join(face, "director")
    join(face, "ann", role="worker")
    face.call("msg.send", from_="director", to="ann", content="x")
    post(face)
    program.timekeeper.tick()
    assert assigned(face) == {}


def test_more_tasks_than_one_transaction_takes_are_all_dispatched(direct, tick, monkeypatch):
    monkeypatch.setattr("stonemux.autodispatch.AT_ONCE", 2)
    join(direct, "director")
    names = [f"w{n}" for n in range(5)]
    join(direct, *names, role="worker")
    for _ in range(6):
        post(direct)
    tick()
    assert sorted(assigned(direct).values()) == names


@pytest.mark.settings(dispatch_auto=False)
def test_it_is_off_unless_the_settings_say_so_and_may_be_turned_on(crew, tick, mux):
    task_id = post(crew)
    tick()
    assert assigned(crew) == {}
    mux.heed(replace(mux.settings, dispatch_auto=True))
    tick()
    assert assigned(crew) == {task_id: "ann"}


def test_it_needs_the_tier_of_tasks(crew, program):
    post(crew)
    program.settings = replace(program.settings, default_tier="free")
    mux = program.reopen()
    program.timekeeper.tick()
    with mux.store.read() as rx:
        assert rx.one("select count(*) from task where assigned_to is not null")[0] == 0


def test_it_goes_on_after_a_restart(crew, program):
    task_id = post(crew)
    face = Direct(program.reopen())
    program.timekeeper.tick()
    assert assigned(face) == {task_id: "ann"}
    program.timekeeper.tick()
    assert len(notices(face, "ann")) == 1


# -- when it looks


@pytest.fixture
def rung(mux, monkeypatch):
    """When the timekeeper was last asked to look at once."""
    autodispatch.follow(mux)
    asked = []
    monkeypatch.setattr(mux.alarm, "set", asked.append)

    def since_then() -> bool:
        found = any(at <= mux.clock.now_ms() for at in asked)
        asked.clear()
        return found

    return since_then


def test_the_timekeeper_is_woken_by_what_may_free_a_task_or_an_agent_and_by_nothing_else(crew, mux, rung, clock):
    rung()
    crew.call("msg.send", from_="director", to="ann", content="x")
    crew.call("state.set", key="k", value="v")
    assert not rung()
    task_id = post(crew)
    assert rung()
    claim(crew)
    assert not rung()
    crew.call("task.complete", task_id=task_id, agent_id="ann")
    assert rung()
    join(crew, "cat")
    assert rung()
    clock.advance(300_000)
    mux.presence.newly_stale()
    crew.call("agent.heartbeat", agent_id="ann")
    assert rung()
    crew.call("agent.heartbeat", agent_id="ann")
    assert not rung()
