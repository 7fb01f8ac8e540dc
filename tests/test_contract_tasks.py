"""The contract of tasks: order, capabilities, leases, fences, retries, and the poster's side."""

from __future__ import annotations

import itertools

import pytest
from faces import join, refusal

from stonemux import claims, taskrows, tasks
from stonemux.mux import Caller

LEASE = 300_000


@pytest.fixture
def crew(face):
    join(face, "ann", "bob", "cat", capabilities=["write"])
    return face


def post(face, description="x", **given):
    return face.call("task.post", description=description, posted_by="ann", **given)["task_id"]


def claim(face, agent_id="bob", **given):
    return face.call("task.claim", agent_id=agent_id, **given)


def claimed(face, agent_id="bob", **given):
    return claim(face, agent_id, **given)["task_id"]


def complete(face, task_id, agent_id="bob", **given):
    return face.call("task.complete", task_id=task_id, agent_id=agent_id, **given)


def task(face, task_id):
    return face.call("task.get", task_id=task_id)["task"]


def kinds(face, *types):
    return [e["type"] for e in face.call("events.list", types=list(types) or None, limit=1000)["events"]]


# -- posting


def test_a_new_task_is_pending_with_all_its_fields(crew):
    answer = crew.call(
        "task.post",
        description="write it",
        posted_by="ann",
        required_capability="write",
        priority=5,
        metadata={"a": [1]},
        assigned_to="bob",
        max_attempts=3,
    )
    told = answer["task"]
    assert answer["task_id"] == told["task_id"]
    created = told.pop("created_at")
    assert created
    assert told == {
        "task_id": answer["task_id"],
        "description": "write it",
        "posted_by": "ann",
        "required_capability": "write",
        "priority": 5,
        "channel": "default",
        "metadata": {"a": [1]},
        "status": "pending",
        "assigned_to": "bob",
        "claimed_by": None,
        "attempts": 0,
        "result": None,
        "claimed_at": None,
        "lease_expires_at": None,
        "completed_at": None,
        "max_attempts": 3,
    }


def test_poster_assignee_channel_and_dependencies_must_exist(crew):
    given = {"description": "x", "posted_by": "ann"}
    assert (
        refusal(crew, "agent_not_found", "task.post", **given | {"posted_by": "al"}).facts["parameter"] == "posted_by"
    )
    assert refusal(crew, "agent_not_found", "task.post", **given, assigned_to="al").facts["parameter"] == "assigned_to"
    assert "channel.create" in refusal(crew, "channel_not_found", "task.post", **given, channel="lab").message
    refusal(crew, "task_not_found", "task.post", **given, depends_on=["nothing"])
    refusal(crew, "invalid_field", "task.post", **given | {"description": ""})
    assert crew.call("task.list")["tasks"] == []


def test_a_channel_may_be_named_by_its_id(crew):
    lab = crew.call("channel.create", name="lab")["channel"]["id"]
    task_id = post(crew, channel=lab)
    assert task(crew, task_id)["channel"] == "lab"
    assert [t["task_id"] for t in crew.call("task.list", channel=lab)["tasks"]] == [task_id]
    assert claimed(crew, channel=lab) == task_id


# -- claiming


def test_a_claim_answers_the_task_with_its_lease_and_token__T1(crew, clock):
    task_id = post(crew)
    answer = claim(crew)
    assert answer["task_id"] == task_id
    assert answer["claim_token"] == f"{task_id}.1"
    assert (answer["task"]["status"], answer["task"]["claimed_by"]) == ("claimed", "bob")
    assert answer["task"]["lease_expires_at"] > answer["task"]["claimed_at"]
    assert claimed(crew, "cat") is None


def test_claims_go_by_priority_and_then_by_age__T2(crew):
    posted = [post(crew, priority=p) for p in (0, 5, -5, 5)]
    assert [claimed(crew) for _ in range(5)] == [posted[1], posted[3], posted[0], posted[2], None]


def test_a_task_that_was_given_back_keeps_its_place__T2(crew):
    first, second = post(crew), post(crew)
    assert claimed(crew) == first
    crew.call("task.release", task_id=first, agent_id="bob")
    assert [claimed(crew), claimed(crew)] == [first, second]


def test_only_tasks_that_fit_the_capabilities_are_claimed__T3(crew):
    join(crew, "dan", capabilities=["Write", "draw"])
    join(crew, "eve")
    write, draw, free = (post(crew, required_capability=c) for c in ("write", "draw", None))
    assert [claimed(crew, "eve"), claimed(crew, "eve")] == [free, None]
    assert [claimed(crew, "dan"), claimed(crew, "dan")] == [draw, None]
    assert [claimed(crew, "bob"), claimed(crew, "bob")] == [write, None]


def test_priority_counts_across_capabilities__T2__T3(crew):
    low, high, middle = post(crew), post(crew, required_capability="write", priority=2), post(crew, priority=1)
    assert [claimed(crew) for _ in range(3)] == [high, middle, low]


def test_an_assigned_task_is_for_that_agent_alone__T3(crew):
    mine = post(crew, assigned_to="cat")
    assert claimed(crew) is None
    refusal(crew, "task_conflict", "task.claim", agent_id="bob", task_id=mine)
    assert claimed(crew, "cat") == mine


def test_an_assigned_task_needs_its_capability_too__T3(crew):
    join(crew, "eve")
    task_id = post(crew, assigned_to="eve", required_capability="write")
    assert claimed(crew, "eve") is None
    refusal(crew, "task_conflict", "task.claim", agent_id="eve", task_id=task_id)
    join(crew, "eve", capabilities=["write"])
    assert claimed(crew, "eve") == task_id


def test_an_empty_pool_answers_nulls__T3(crew):
    assert claim(crew) == {"task_id": None, "task": None}
    assert refusal(crew, "agent_not_found", "task.claim", agent_id="bo").facts["known_agents"][0] == "bob"
    refusal(crew, "channel_not_found", "task.claim", agent_id="bob", channel="lab")


def test_a_task_may_be_claimed_by_its_id(crew):
    first, second = post(crew), post(crew)
    assert claimed(crew, task_id=second) == second
    assert refusal(crew, "task_conflict", "task.claim", agent_id="cat", task_id=second).facts["status"] == "claimed"
    refusal(crew, "task_not_found", "task.claim", agent_id="cat", task_id="nothing")
    assert claimed(crew) == first


# Where a claim found nothing it does not look again until something is offered. Each way to become claimable,
# in two steps; between them, bob looks in vain.


def by_post(crew, clock):
    yield
    yield post(crew)


def by_post_for_one(crew, clock):
    yield
    yield post(crew, assigned_to="bob", required_capability="write")


def by_release(crew, clock):
    task_id = post(crew)
    claimed(crew, "cat")
    yield
    crew.call("task.release", task_id=task_id, agent_id="cat")
    yield task_id


def by_delay(crew, clock):
    task_id = post(crew)
    claimed(crew, "cat")
    yield
    crew.call("task.release", task_id=task_id, agent_id="cat", delay=5)
    assert claimed(crew) is None
    clock.advance(5_000)
    yield task_id


def by_retry(crew, clock):
    task_id = post(crew)
    claimed(crew, "cat")
    yield
    complete(crew, task_id, "cat", status="failed", retry=True)
    clock.advance(1_000)
    yield task_id


def by_a_lease_that_ran_out(crew, clock):
    task_id = post(crew)
    claimed(crew, "cat")
    yield
    clock.advance(LEASE)
    yield task_id


def by_a_shorter_lease(crew, clock):
    post(crew)
    claimed(crew, "cat")
    yield
    task_id = post(crew, claim_timeout=10)
    claimed(crew, "cat")
    assert claimed(crew) is None
    clock.advance(10_000)
    yield task_id


def by_a_completion(crew, clock):
    first = post(crew)
    claimed(crew, "cat")
    second = post(crew, depends_on=[first])
    yield
    complete(crew, first, "cat")
    yield second


def by_requeue(crew, clock):
    task_id = post(crew)
    crew.call("task.cancel", task_id=task_id)
    yield
    crew.call("task.requeue", task_id=task_id)
    yield task_id


def by_handoff(crew, clock):
    task_id = post(crew, assigned_to="cat")
    claimed(crew, "cat")
    yield
    crew.call("task.handoff", task_id=task_id, agent_id="cat", note="yours")
    yield task_id


def by_an_answer(crew, clock):
    task_id = post(crew)
    claimed(crew, "cat")
    asked = crew.call("msg.send", from_="cat", to="ann", content="?")["message_id"]
    crew.call("task.handoff", task_id=task_id, agent_id="cat", note="asked", waiting_on=asked)
    yield
    crew.call("msg.send", from_="ann", to="cat", content="!", reply_to=asked)
    yield task_id


def by_dispatch(crew, clock):
    task_id = post(crew, assigned_to="cat")
    yield
    crew.call("task.dispatch", task_id=task_id, agent_id="bob")
    yield task_id


def by_restart(crew, clock):
    task_id = post(crew)
    claimed(crew, "cat")
    yield
    crew.call("task.dispatch", task_id=task_id, agent_id="bob", restart=True)
    yield task_id


def by_a_holder_that_leaves(crew, clock):
    task_id = post(crew)
    claimed(crew, "cat")
    yield
    crew.call("agent.deregister", agent_id="cat", release_claims=True)
    yield task_id


def by_a_capability(crew, clock):
    task_id = post(crew, assigned_to="bob", required_capability="sing")
    yield
    crew.call("agent.register", agent_id="bob", capabilities=["sing"])
    yield task_id


WAYS = [way for name, way in list(globals().items()) if name.startswith("by_")]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_who_looked_in_vain_finds_what_becomes_claimable__T3__T6(crew, clock, way):
    steps = way(crew, clock)
    next(steps)
    for _ in range(2):
        assert claimed(crew) is None
    assert next(steps) == claimed(crew)


def test_a_cycle_takes_one_statement_for_each_of_its_moves(direct, program):
    join(direct, "ann", "bob")
    executed = []
    for _ in range(2):
        program.store._db.set_trace_callback(executed.append)
        executed.clear()
        task_id = post(direct)
        claimed(direct)
        complete(direct, task_id)
        program.store._db.set_trace_callback(None)
    words = [statement.split()[0].lower() for statement in executed if "task" in statement.split(" values ")[0]]
    assert words == ["insert", "update", "insert", "update", "insert"]


def test_many_claimers_get_each_task_once__T1(crew, background):
    posted = {post(crew) for _ in range(6)}
    attempts = [background(claimed, crew, agent) for agent in ("bob", "cat") * 5]
    got = [task_id for attempt in attempts if (task_id := attempt.result(5)) is not None]
    assert len(got) == 6
    assert set(got) == posted


def test_a_blocking_claim_wakes_when_a_task_is_posted__T13(crew, clock, background):
    waiting = background(claim, crew, timeout=60)
    clock.until_parked(1)
    task_id = post(crew)
    assert waiting.result(5)["claim_token"] == f"{task_id}.1"


def test_a_blocking_claim_ends_with_nulls_at_its_timeout(crew, clock, background):
    waiting = background(claim, crew, timeout=2)
    clock.until_parked(1)
    clock.advance(2000)
    assert waiting.result(5) == {"task_id": None, "task": None}


def test_a_blocking_claim_wakes_when_a_lease_runs_out(crew, clock, program, background):
    task_id = post(crew, claim_timeout=10)
    claimed(crew)
    waiting = background(claim, crew, "cat", timeout=60)
    clock.until_parked(1)
    clock.advance(10_000)
    program.timekeeper.tick()
    assert waiting.result(5)["claim_token"] == f"{task_id}.2"


def test_one_claimer_that_is_woken_for_two_tasks_hands_the_other_on__T13(crew, clock, mux, background):
    join(crew, "eve")
    first = background(claimed, crew, "bob", timeout=60)
    clock.until_parked(1)
    second = background(claimed, crew, "eve", timeout=60)
    clock.until_parked(2)

    def post_two(tx):
        given = {"posted_by": "ann", "channel": "default", "metadata": None, "depends_on": None, "assigned_to": None}
        given |= {"claim_timeout": None, "max_attempts": 10}
        plain = tasks.post(tx, description="x", required_capability=None, priority=0, **given)
        urgent = tasks.post(tx, description="x", required_capability="write", priority=1, **given)
        return [urgent["task_id"], plain["task_id"]]

    urgent, plain = mux.store.write(post_two)
    assert [first.result(5), second.result(5)] == [urgent, plain]


def test_a_claimer_that_leaves_hands_its_wake_up_on__T13(mux, direct, clock, background):
    join(direct, "ann", "bob", "cat")
    wait = claims.await_claim(mux, Caller(), agent_id="bob", channel="default", task_id=None, timeout=0)
    rivals = []

    def attempt(got):  # looks in vain; then cat comes to wait behind, and a task is posted that wakes the first in line
        rivals.append(background(claimed, direct, "cat", timeout=60))
        clock.until_parked(1)
        post(direct)

    wait = wait._replace(attempt=attempt, work=lambda tx: None)
    assert mux.wait(Caller(), wait) == {"task_id": None, "task": None}
    assert rivals[0].result(5)


# -- completing


def test_completing_stores_the_result_and_ends_the_task(crew):
    task_id = post(crew)
    token = claim(crew)["claim_token"]
    answer = complete(crew, task_id, result="done", claim_token=token)
    assert (answer["status"], answer["task"]["result"], answer["task"]["claimed_by"]) == ("complete", "done", "bob")
    assert answer["task"]["completed_at"]
    assert answer["task"]["lease_expires_at"] is None
    assert "replayed" not in answer
    assert claimed(crew) is None


def test_the_same_completion_again_is_replayed_and_another_refused__T4__T10__fault_30(crew):
    task_id = post(crew)
    token = claim(crew)["claim_token"]
    for given in ({}, {"claim_token": token}):
        first = complete(crew, task_id, result="done", **given)
        again = complete(crew, task_id, result="done", **given)
        assert (again["replayed"], again["task"]) == (True, first["task"])
    refusal(crew, "already_complete", "task.complete", task_id=task_id, agent_id="bob", result="other")
    refusal(crew, "already_complete", "task.complete", task_id=task_id, agent_id="bob", result="done", status="failed")
    refusal(crew, "not_claim_owner", "task.complete", task_id=task_id, agent_id="cat", result="done")
    refusal(crew, "already_complete", "task.extend", task_id=task_id, agent_id="bob")
    refusal(crew, "task_conflict", "task.release", task_id=task_id, agent_id="bob")
    assert kinds(crew, "task_completed") == ["task_completed"]


def test_only_the_claimer_completes__T4__T5__fault_30(crew):
    task_id = post(crew)
    refusal(crew, "not_claim_owner", "task.complete", task_id=task_id, agent_id="bob")
    claim(crew)
    error = refusal(crew, "not_claim_owner", "task.complete", task_id=task_id, agent_id="cat")
    assert error.facts["claimed_by"] == "bob"
    refusal(crew, "agent_not_found", "task.complete", task_id=task_id, agent_id="dan")
    refusal(crew, "task_not_found", "task.complete", task_id="nothing", agent_id="bob")
    assert complete(crew, task_id)["status"] == "complete"


def test_with_a_token_the_token_decides__T5(crew, clock):
    task_id = post(crew)
    old = claim(crew)["claim_token"]
    clock.advance(LEASE)
    new = claim(crew)["claim_token"]  # another process under the same id
    assert new == f"{task_id}.2"
    error = refusal(crew, "stale_claim", "task.complete", task_id=task_id, agent_id="bob", claim_token=old)
    assert error.facts["current_attempt"] == 2
    assert new not in str(error.facts)
    assert complete(crew, task_id, claim_token=new)["status"] == "complete"
    refusal(crew, "stale_claim", "task.complete", task_id=task_id, agent_id="bob", claim_token=old)
    beyond = f"{task_id}.{10**19 - 1}"
    refusal(crew, "stale_claim", "task.complete", task_id=task_id, agent_id="bob", claim_token=beyond)


def test_a_token_does_not_stand_for_the_agent_that_claimed__T4(crew):
    """It can be made up: the number in it is small, and events tell it."""
    task_id = post(crew)
    token = claim(crew)["claim_token"]
    given = {"task_id": task_id, "agent_id": "cat", "claim_token": token}
    for name in ("task.complete", "task.extend", "task.release", "task.handoff"):
        more = {"note": "mine now"} if name == "task.handoff" else {}
        assert refusal(crew, "not_claim_owner", name, **given, **more).facts["claimed_by"] == "bob"
    refusal(crew, "not_claim_owner", "task.complete", **given, status="failed", retry=True)
    assert task(crew, task_id)["claimed_by"] == "bob"
    assert complete(crew, task_id, claim_token=token)["status"] == "complete"


@pytest.mark.parametrize("token", ["nonsense", "00000000-0000-4000-8000-000000000000.1"])
def test_a_token_of_another_task_is_an_invalid_field(crew, token):
    task_id = post(crew)
    claim(crew)
    refusal(crew, "invalid_field", "task.complete", task_id=task_id, agent_id="bob", claim_token=token)


@pytest.mark.parametrize("name", ["task.complete", "task.extend", "task.release"])
@pytest.mark.parametrize("token", ["nonsense", "00000000-0000-4000-8000-000000000000.1"])
def test_a_task_that_does_not_exist_is_not_found_whatever_the_token(crew, name, token):
    refusal(
        crew, "task_not_found", name, task_id="00000000-0000-4000-8000-00000000dead", agent_id="bob", claim_token=token
    )


def test_who_was_overtaken_is_told_so_with_and_without_a_token__T4__fault_29(crew, clock):
    task_id = post(crew)
    old = claim(crew)["claim_token"]
    clock.advance(LEASE)
    assert claimed(crew, "cat") == task_id
    for given in ({}, {"claim_token": old}):
        for name in ("task.complete", "task.extend", "task.release"):
            error = refusal(crew, "stale_claim", name, task_id=task_id, agent_id="bob", **given)
            assert error.facts["current_attempt"] == 2
    assert task(crew, task_id)["claimed_by"] == "cat"
    assert complete(crew, task_id, "cat")["status"] == "complete"
    refusal(crew, "already_complete", "task.complete", task_id=task_id, agent_id="bob")


def test_a_late_completion_counts_while_nobody_else_has_claimed__T4(crew, clock, program):
    task_id = post(crew)
    claim(crew)
    clock.advance(LEASE)
    program.timekeeper.tick()
    assert task(crew, task_id)["status"] == "pending"
    assert complete(crew, task_id, result="late")["task"]["result"] == "late"


# -- leases


def test_an_unfinished_claim_is_claimable_when_its_lease_ends__T6(crew, clock):
    task_id = post(crew)
    claim(crew)
    clock.advance(LEASE - 1)
    assert claimed(crew, "cat") is None
    clock.advance(1)
    answer = claim(crew, "cat")
    assert (answer["task_id"], answer["task"]["attempts"]) == (task_id, 1)


@pytest.mark.parametrize("seconds", [1, 3600])
def test_a_task_may_have_a_lease_of_its_own__T6(crew, clock, seconds):
    task_id = post(crew, claim_timeout=seconds)
    claim(crew)
    clock.advance(seconds * 1000 - 1)
    assert claimed(crew, "cat") is None
    clock.advance(1)
    assert claimed(crew, "cat") == task_id


@pytest.mark.parametrize("how", ["claim", "extend", "release", "retry"])
def test_the_timekeeper_is_set_to_the_end_of_a_lease_or_delay__T6(crew, clock, mux, monkeypatch, how):
    post(crew, claim_timeout=10)
    told = []
    monkeypatch.setattr(mux.alarm, "set", told.append)
    task_id = claimed(crew)
    assert clock.now_ms() + 10_000 in told
    clock.advance(4_000)
    held = {"task_id": task_id, "agent_id": "bob"}
    if how == "extend":
        crew.call("task.extend", **held)
        assert clock.now_ms() + 10_000 in told
    elif how == "release":
        crew.call("task.release", delay=7, **held)
        assert clock.now_ms() + 7_000 in told
    elif how == "retry":
        crew.call("task.complete", status="failed", retry=True, **held)
        assert clock.now_ms() + tasks.BACKOFF_MS[0] in told


def test_extending_restarts_the_full_lease__T7(crew, clock):
    task_id = post(crew)
    token = claim(crew)["claim_token"]
    for given in ({}, {"claim_token": token}):
        clock.advance(LEASE - 1)
        answer = crew.call("task.extend", task_id=task_id, agent_id="bob", **given)
        assert answer["lease_expires_at"] == answer["task"]["lease_expires_at"]
        assert "cancelled" not in answer
    clock.advance(LEASE - 1)
    assert claimed(crew, "cat") is None
    clock.advance(1)
    assert claimed(crew, "cat") == task_id


def test_a_lease_that_ran_out_may_be_extended_until_somebody_else_claims__T7(crew, clock, program):
    task_id = post(crew)
    token = claim(crew)["claim_token"]
    clock.advance(LEASE)
    program.timekeeper.tick()
    assert crew.call("task.extend", task_id=task_id, agent_id="bob")["task"]["status"] == "claimed"
    assert claimed(crew, "cat") is None
    assert complete(crew, task_id, claim_token=token)["status"] == "complete"
    assert kinds(crew, "task_claimed", "task_released") == ["task_claimed", "task_released", "task_claimed"]


def test_a_lease_that_ran_out_may_still_be_released_with_a_delay_and_a_reason__T8(crew, clock, program):
    task_id = post(crew)
    token = claim(crew)["claim_token"]
    clock.advance(LEASE)
    program.timekeeper.tick()
    answer = crew.call("task.release", task_id=task_id, agent_id="bob", claim_token=token, delay=10, reason="lunch")
    assert answer["task"]["available_at"]
    assert claimed(crew, "cat") is None
    refusal(crew, "stale_claim", "task.release", task_id=task_id, agent_id="bob", claim_token=token)
    clock.advance(10_000)
    again = claim(crew, "cat")["task"]
    assert (again["task_id"], again["attempts"]) == (task_id, 1)
    history = crew.call("task.get", task_id=task_id)["task"]["history"]
    assert [(entry["act"], entry["note"]) for entry in history[2:4]] == [
        ("expired", "the lease ran out"),
        ("released", "lunch"),
    ]


def test_the_holder_of_a_cancelled_task_learns_of_it__T7(crew):
    task_id = post(crew)
    claim(crew)
    assert crew.call("task.cancel", task_id=task_id, by="ann")["status"] == "cancelled"
    answer = crew.call("task.extend", task_id=task_id, agent_id="bob")
    assert answer["cancelled"] is True
    assert "lease_expires_at" not in answer
    refusal(crew, "task_conflict", "task.complete", task_id=task_id, agent_id="bob")


def test_a_restart_gives_every_live_lease_a_full_term__T12(crew, clock, restart):
    task_id = post(crew)
    claim(crew)
    clock.advance(LEASE - 1)
    restart()
    clock.advance(LEASE - 1)
    assert claimed(crew, "cat") is None
    clock.advance(1)
    assert claimed(crew, "cat") == task_id


def test_a_restart_keeps_order_fences_and_history__T1__T2(crew, clock, restart):
    posted = [post(crew, priority=p) for p in (0, 1, 0)]
    claim(crew)
    clock.advance(LEASE)
    before = [task(crew, task_id) for task_id in posted[::2]]
    restart()
    assert [task(crew, task_id) for task_id in posted[::2]] == before
    clock.advance(LEASE)
    assert claim(crew, "cat")["claim_token"] == f"{posted[1]}.2"
    assert [claimed(crew, "cat"), claimed(crew, "cat")] == [posted[0], posted[2]]


# -- giving back, failing, trying again


def test_a_released_task_is_pending_at_once_or_after_its_delay__T8(crew, clock):
    task_id = post(crew)
    claim(crew)
    answer = crew.call("task.release", task_id=task_id, agent_id="bob", delay=10, reason="lunch")
    assert (answer["status"], answer["task"]["claimed_by"]) == ("pending", None)
    assert answer["task"]["available_at"]
    assert [t["task_id"] for t in crew.call("task.list", status="pending")["tasks"]] == [task_id]
    clock.advance(9999)
    assert claimed(crew, "cat") is None
    clock.advance(1)
    assert claimed(crew, "cat") == task_id
    assert "available_at" not in task(crew, task_id)
    crew.call("task.release", task_id=task_id, agent_id="cat")
    assert claimed(crew) == task_id
    assert [h.get("note") for h in task(crew, task_id)["history"] if h["act"] == "released"] == ["lunch", None]
    given_back = {"task_id": task_id, "channel": "default", "reason": "released"}
    assert [event["data"] for event in crew.call("events.list", types=["task_released"])["events"]] == [
        given_back | {"agent_id": "bob", "note": "lunch"},
        given_back | {"agent_id": "cat"},
    ]


@pytest.mark.parametrize("name", ["task.complete", "task.extend", "task.release"])
@pytest.mark.parametrize("with_token", [False, True])
def test_who_gave_a_task_back_no_longer_holds_it__T8(crew, name, with_token):
    task_id = post(crew)
    token = claim(crew)["claim_token"]
    crew.call("task.release", task_id=task_id, agent_id="bob")
    given = {"claim_token": token} if with_token else {}
    refusal(crew, "stale_claim", name, task_id=task_id, agent_id="bob", **given)
    assert task(crew, task_id)["status"] == "pending"


def test_giving_back_does_not_count_as_an_attempt__T9(crew, clock):
    task_id = post(crew, max_attempts=2)
    for _ in range(5):
        claim(crew)
        crew.call("task.release", task_id=task_id, agent_id="bob")
    assert claim(crew)["claim_token"] == f"{task_id}.6"
    clock.advance(LEASE)
    assert claimed(crew) == task_id
    assert task(crew, task_id)["attempts"] == 1


def test_an_agent_that_is_gone_ends_nothing(crew):
    task_id = post(crew)
    claim(crew)
    crew.call("agent.deregister", agent_id="bob")
    refusal(crew, "agent_not_found", "task.complete", task_id=task_id, agent_id="bob", result="late")
    assert task(crew, task_id)["status"] == "claimed"


def test_a_failed_task_is_final__T8__T10(crew):
    task_id = post(crew)
    claim(crew)
    answer = complete(crew, task_id, status="failed", result="no paper")
    assert (answer["status"], answer["task"]["result"]) == ("failed", "no paper")
    for again in ({}, {"retry": True}):
        assert complete(crew, task_id, status="failed", result="no paper", **again)["replayed"] is True
    assert claimed(crew) is None
    assert kinds(crew, "task_failed", "task_completed") == ["task_failed"]


def test_failing_with_retry_puts_a_task_back_later_each_time__T8(crew, clock):
    task_id = post(crew)
    for n, wait in enumerate((1_000, 5_000, 30_000, 120_000, 600_000, 600_000), 1):
        token = claim(crew)["claim_token"]
        answer = complete(crew, task_id, status="failed", retry=True, result="try again")
        assert (answer["status"], answer["task"]["attempts"], answer["task"]["result"]) == ("pending", n, None)
        refusal(crew, "stale_claim", "task.complete", task_id=task_id, agent_id="bob", claim_token=token)
        clock.advance(wait - 1)
        assert claimed(crew) is None
        clock.advance(1)
    assert claimed(crew) == task_id
    assert kinds(crew, "task_failed") == []


def test_a_late_retry_is_not_a_second_attempt__T9(crew, clock, program):
    task_id = post(crew, max_attempts=2)
    token = claim(crew)["claim_token"]
    clock.advance(LEASE)
    program.timekeeper.tick()
    assert task(crew, task_id)["attempts"] == 1
    answer = complete(crew, task_id, status="failed", retry=True)
    assert (answer["status"], answer["task"]["attempts"]) == ("pending", 1)
    refusal(crew, "stale_claim", "task.complete", task_id=task_id, agent_id="bob", claim_token=token)
    clock.advance(1_000)
    assert claimed(crew) == task_id


def test_after_max_attempts_a_retry_fails_for_good__T9(crew, clock):
    task_id = post(crew, max_attempts=2)
    claim(crew)
    complete(crew, task_id, status="failed", retry=True)
    clock.advance(1000)
    claim(crew)
    answer = complete(crew, task_id, status="failed", retry=True, result="gave up")
    assert (answer["status"], answer["task"]["error"]) == ("failed", "max_attempts_exceeded")
    assert (answer["task"]["attempts"], answer["task"]["result"]) == (2, "gave up")
    assert task(crew, task_id)["history"][-1]["note"] == "gave up"
    assert kinds(crew, "task_failed") == ["task_failed"]


def test_after_max_attempts_an_expiry_fails_for_good__T9(crew, clock, program):
    task_id = post(crew, max_attempts=1)
    claim(crew)
    clock.advance(LEASE)
    program.timekeeper.tick()
    ended = task(crew, task_id)
    assert (ended["status"], ended["error"], ended["attempts"]) == ("failed", "max_attempts_exceeded", 1)
    assert claimed(crew, "cat") is None
    refusal(crew, "already_complete", "task.complete", task_id=task_id, agent_id="bob", result="late")
    (event,) = crew.call("events.list", types=["task_failed"])["events"]
    assert (event["data"]["agent_id"], event["data"]["error"]) == ("bob", "max_attempts_exceeded")


def test_max_attempts_0_is_no_limit__T9(crew, clock):
    task_id = post(crew, max_attempts=0, claim_timeout=1)
    for n in range(12):
        assert claim(crew)["task"]["attempts"] == n
        clock.advance(1000)
    assert claimed(crew) == task_id


def test_requeueing_counts_attempts_anew_but_the_fence_goes_on__T9(crew, clock):
    task_id = post(crew, max_attempts=1)
    old = claim(crew)["claim_token"]
    clock.advance(LEASE)
    assert claimed(crew) is None
    answer = crew.call("task.requeue", task_id=task_id, by="ann")
    assert (answer["status"], answer["task"]["attempts"], answer["task"]["result"]) == ("pending", 0, None)
    assert "error" not in answer["task"]
    for given in ({}, {"claim_token": old}):
        refusal(crew, "stale_claim", "task.complete", task_id=task_id, agent_id="bob", **given)
    assert claim(crew, "cat")["claim_token"] == f"{task_id}.2"
    refusal(crew, "task_conflict", "task.requeue", task_id=task_id)


def test_only_failed_and_cancelled_tasks_are_requeued(crew):
    task_id = post(crew)
    refusal(crew, "task_conflict", "task.requeue", task_id=task_id)
    crew.call("task.cancel", task_id=task_id)
    assert crew.call("task.requeue", task_id=task_id)["status"] == "pending"
    claim(crew)
    complete(crew, task_id)
    assert refusal(crew, "task_conflict", "task.requeue", task_id=task_id).facts["status"] == "complete"


# -- the poster's side


def test_only_the_poster_cancels(crew):
    task_id = post(crew)
    assert refusal(crew, "not_poster", "task.cancel", task_id=task_id, by="bob").facts["posted_by"] == "ann"
    refusal(crew, "agent_not_found", "task.cancel", task_id=task_id, by="al")
    assert crew.call("task.cancel", task_id=task_id, by="ann")["task"]["status"] == "cancelled"
    assert crew.call("task.cancel", task_id=task_id, by="ann")["status"] == "cancelled"
    assert kinds(crew, "task_cancelled") == ["task_cancelled"]
    assert claimed(crew) is None


def test_a_finished_task_is_not_cancelled(crew):
    task_id = post(crew)
    claim(crew)
    complete(crew, task_id)
    refusal(crew, "task_conflict", "task.cancel", task_id=task_id, by="ann")


def test_a_task_waits_for_those_it_depends_on(crew):
    first, second = post(crew), post(crew)
    third = post(crew, depends_on=[first, second], priority=9)
    assert task(crew, third)["status"] == "waiting"
    assert task(crew, third)["depends_on"] == [first, second]
    refusal(crew, "task_conflict", "task.claim", agent_id="bob", task_id=third)
    assert [claimed(crew), claimed(crew), claimed(crew)] == [first, second, None]
    complete(crew, first)
    assert [t["task_id"] for t in crew.call("task.list", status="waiting")["tasks"]] == [third]
    complete(crew, second)
    assert claimed(crew) == third
    assert "depends_on" not in task(crew, third)
    assert task(crew, post(crew, depends_on=[first]))["status"] == "pending"


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_what_depends_on_a_task_that_was_not_completed_waits_for_its_second_try(crew, end):
    first = post(crew)
    second = post(crew, depends_on=[first])
    if end == "failed":
        complete(crew, first, status="failed") if claimed(crew) == first else pytest.fail("it is the first")
    else:
        crew.call("task.cancel", task_id=first, by="ann")
    assert task(crew, first)["status"] == end
    assert task(crew, second)["status"] == "waiting"
    assert claimed(crew) is None
    assert task(crew, post(crew, depends_on=[first]))["status"] == "waiting"
    crew.call("task.requeue", task_id=first, by="ann")
    assert claimed(crew) == first
    complete(crew, first)
    assert claimed(crew) == second


def test_a_cancelled_task_that_is_requeued_still_waits_for_those_it_depends_on(crew):
    first = post(crew)
    second = post(crew, depends_on=[first])
    crew.call("task.cancel", task_id=second)
    assert crew.call("task.requeue", task_id=second)["status"] == "waiting"
    assert claimed(crew) == first
    complete(crew, first)
    assert claimed(crew) == second


@pytest.mark.settings(task_retention=1000)
def test_a_finished_task_is_kept_for_its_time_and_as_long_as_another_needs_it(crew, clock, program):
    done, needed = post(crew), post(crew)
    assert [claimed(crew), claimed(crew)] == [done, needed]
    complete(crew, done)
    complete(crew, needed, status="failed")
    waiting = post(crew, depends_on=[needed])
    clock.advance(1_000_000)
    program.timekeeper.tick()
    assert task(crew, done)["status"] == "complete"
    clock.advance(60_000)
    program.timekeeper.tick()
    refusal(crew, "task_not_found", "task.get", task_id=done)
    assert task(crew, needed)["status"] == "failed"
    crew.call("task.cancel", task_id=waiting)
    clock.advance(1_060_000)
    for _ in range(2):  # the first purge takes the one that needs the other
        program.timekeeper.tick()
        clock.advance(60_000)
    assert crew.call("task.list")["tasks"] == []


# -- looking


def test_tasks_are_listed_by_priority_and_age_in_pages(crew):
    posted = [post(crew, priority=p) for p in (0, 5, 0, 5)]
    expected = [posted[1], posted[3], posted[0], posted[2]]
    seen, after = [], None
    while True:
        page = crew.call("task.list", limit=3, after=after)
        seen += [t["task_id"] for t in page["tasks"]]
        after = seen[-1]
        if "more" not in page:
            break
    assert seen == expected
    refusal(crew, "task_not_found", "task.list", after="nothing")


def test_the_list_narrows_by_every_parameter(crew):
    crew.call("channel.create", name="lab")
    plain, skilled = post(crew), post(crew, required_capability="write")
    lab, assigned = post(crew, channel="lab"), post(crew, assigned_to="cat")
    assert claimed(crew) == plain

    def found(**given):
        return [t["task_id"] for t in crew.call("task.list", **given)["tasks"]]

    assert found() == [plain, skilled, lab, assigned]
    assert found(channel="lab") == [lab]
    assert found(status="claimed") == [plain]
    assert found(status="claimed", agent_id="bob") == [plain]
    assert found(agent_id="cat") == [assigned]
    assert found(capability="write") == [skilled]
    assert found(status="complete") == []
    refusal(crew, "invalid_field", "task.list", status="open")
    refusal(crew, "channel_not_found", "task.list", channel="lob")


def test_every_narrowed_list_is_in_one_order_across_its_pages(direct):
    join(direct, "ann", "bob", "cat", capabilities=["write"])
    for name in ("lab", "den"):
        direct.call("channel.create", name=name)
    for n in range(36):
        extra = {"required_capability": "write"} if n % 4 == 0 else {}
        extra |= {"assigned_to": "cat"} if n % 5 == 0 else {}
        post(direct, priority=n % 3 - 1, channel=("default", "lab", "den")[n % 7 % 3], **extra)
    for n, act in enumerate(("complete", "failed", "retry", None, "complete", "failed")):
        for name in ("bob", "cat"):
            got = direct.call("task.claim", agent_id=name, channel=("default", "lab")[n % 2])
            given = {"task_id": got["task_id"], "agent_id": name}
            if act is not None:
                direct.call("task.complete", **given, status=act.replace("retry", "failed"), retry=act == "retry")
    with direct.mux.store.read() as rx:
        every = [taskrows.Task(*row) for row in rx.sql("select * from task order by priority desc, seq")]
    assert len({taskrows.status(row) for row in every}) == 4
    for status, channel, agent_id, capability in itertools.product(
        (None, "pending", "claimed", "complete", "failed"), (None, "lab"), (None, "cat"), (None, "write")
    ):
        narrowed = {"status": status, "channel": channel, "agent_id": agent_id, "capability": capability}
        seen, page = [], {"more": True}
        while "more" in page:
            page = direct.call("task.list", limit=3, after=seen[-1] if seen else None, **narrowed)
            assert len(page["tasks"]) <= 3
            seen += [one["task_id"] for one in page["tasks"]]
        assert seen == [
            row.id
            for row in every
            if status in (None, taskrows.status(row))
            and channel in (None, row.channel)
            and agent_id in (None, row.owner, row.assigned_to)
            and capability in (None, row.required_capability)
        ], narrowed


def test_history_tells_what_happened(crew, clock):
    task_id = post(crew)
    claim(crew)
    clock.advance(LEASE)
    claim(crew, "cat")
    complete(crew, task_id, "cat")
    history = [(h["act"], h["agent_id"], h.get("attempt")) for h in task(crew, task_id)["history"]]
    assert history == [
        ("posted", "ann", None),
        ("claimed", "bob", 1),
        ("expired", "bob", 1),
        ("claimed", "cat", 2),
        ("complete", "cat", 2),
    ]
    refusal(crew, "task_not_found", "task.get", task_id="nothing")


def test_every_move_of_a_task_has_its_event__E1(crew, clock):
    task_id = post(crew)
    claim(crew)
    crew.call("task.release", task_id=task_id, agent_id="bob")
    claim(crew)
    clock.advance(LEASE)
    claim(crew)
    complete(crew, task_id, status="failed")
    crew.call("task.requeue", task_id=task_id)
    claim(crew)
    complete(crew, task_id)
    assert [kind.removeprefix("task_") for kind in kinds(crew) if kind.startswith("task_")] == [
        *("posted", "claimed", "released", "claimed", "released", "claimed", "failed"),
        *("requeued", "claimed", "completed"),
    ]


# -- refusals that help


def test_a_refused_claim_says_what_is_in_its_way_and_what_helps(crew, clock):
    def refused(task_id, agent_id="cat"):
        return refusal(crew, "task_conflict", "task.claim", agent_id=agent_id, task_id=task_id)

    first = post(crew)
    claim(crew, task_id=first)
    error = refused(first)
    assert (error.facts["claimed_by"], error.facts["lease_expires_at"]) == (
        "bob",
        task(crew, first)["lease_expires_at"],
    )
    assert "claimed by 'bob' until 2" in error.message
    assert "task.requeue" not in error.message
    crew.call("task.release", task_id=first, agent_id="bob", delay=60)
    error = refused(first)
    assert (error.facts["status"], error.facts["available_at"]) == ("pending", task(crew, first)["available_at"])
    assert "delayed until 2" in error.message
    stale = refusal(crew, "stale_claim", "task.extend", task_id=first, agent_id="bob")
    assert stale.facts["status"] == "pending"

    waiting = post(crew, depends_on=[first])
    assert "depends on (" in refused(waiting).message
    second = post(crew)
    claim(crew, task_id=second)
    asked = crew.call("msg.send", from_="bob", to="ann", content="?")["message_id"]
    crew.call("task.handoff", task_id=second, agent_id="bob", note="n", waiting_on=asked)
    error = refused(second)
    assert (error.facts["status"], error.facts["waiting_on"]) == ("waiting", asked)
    assert f"answers message {asked}" in error.message

    crew.call("task.cancel", task_id=first)
    assert "task.requeue" in refused(first).message.partition("but ")[2]
    assigned = post(crew, assigned_to="bob")
    assert refused(assigned).facts["assigned_to"] == "bob"


def test_an_unknown_task_is_refused_with_the_name_of_its_parameter(crew):
    for parameter, operation, given in (
        ("depends_on", "task.post", {"description": "x", "posted_by": "ann", "depends_on": ["nothing"]}),
        ("after", "task.list", {"after": "nothing"}),
        ("task_id", "task.get", {"task_id": "nothing"}),
        ("task_ids", "task.dispatch", {"agent_id": "bob", "task_ids": ["nothing"]}),
    ):
        error = refusal(crew, "task_not_found", operation, **given)
        assert error.facts["parameter"] == parameter
        assert f"({parameter})" in error.message
