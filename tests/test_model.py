"""The program against a model of plain dictionaries, over random sequences of calls, pauses, and restarts.

`HYPOTHESIS_PROFILE=deep` makes the sequences long and random; otherwise the test takes the same short path every time.
"""

from __future__ import annotations

import os
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

from conftest import TEMPORARY, Program
from faces import Direct
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stonemux import filing
from stonemux.errors import MuxError

_ALWAYS = {"suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("model", max_examples=50, stateful_step_count=30, derandomize=True, **_ALWAYS)
settings.register_profile("deep", max_examples=500, stateful_step_count=60, print_blob=True, **_ALWAYS)
PROFILE = settings.get_profile("deep" if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else "model")

AGENTS = ("ann", "bob", "cat")
KEYS = ("k", "l")
LEASE = 300_000
agents = st.sampled_from(AGENTS)
keys = st.sampled_from(KEYS)
priorities = st.integers(-1, 1)


class ProgramAgainstModel(RuleBasedStateMachine):
    """Each rule calls the program and the model alike; the invariants compare what can be seen."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=TEMPORARY)
        self.program = Program(Path(self.folder.name) / "data")
        self.face = Direct(self.program.mux)
        self.events = 1  # the default channel's
        self.known: set[str] = set()
        self.once: set[str] = set()
        self.sent: dict[int, int] = {}  # message id -> priority
        self.inbox: dict[str, list[int]] = {name: [] for name in AGENTS}  # everything ever delivered, by id
        self.open: dict[str, set[int]] = {name: set() for name in AGENTS}  # not settled
        self.archived: dict[str, set[int]] = {name: set() for name in AGENTS}
        self.tasks: dict[str, dict[str, Any]] = {}
        self.state: dict[str, tuple[int, str | None]] = dict.fromkeys(KEYS, (0, None))

    def teardown(self) -> None:
        if hasattr(self, "program"):
            self.program.close()
            self.folder.cleanup()

    def call(self, name: str, /, **given: Any) -> Any:
        """The answer, or the code of the refusal."""
        try:
            return self.face.call(name, **given)
        except MuxError as error:
            return error.code

    # -- agents

    @rule(name=agents)
    def register(self, name: str) -> None:
        answer = self.call("agent.register", agent_id=name)
        assert answer["created"] == (name not in self.known)
        self.events += 1 if name in self.once else 2
        self.known.add(name)
        self.once.add(name)

    @rule(name=agents, release=st.booleans())
    def deregister(self, name: str, release: bool) -> None:
        answer = self.call("agent.deregister", agent_id=name, release_claims=release)
        if name not in self.known:
            assert answer == "agent_not_found"
            return
        assert answer["pending_messages"] == len(self.open[name])
        self.known.discard(name)
        self.events += 1
        for task in self.tasks.values() if release else ():
            if task["status"] == "claimed" and task["owner"] == name:
                self.give_back(task)

    # -- messages

    def deliver(self, message_id: int, recipients: list[str], priority: int) -> None:
        assert message_id == len(self.sent) + 1
        self.sent[message_id] = priority
        self.events += 1
        for name in recipients:
            self.inbox[name].append(message_id)
            self.open[name].add(message_id)

    @rule(sender=agents, to=agents, priority=priorities)
    def send(self, sender: str, to: str, priority: int) -> None:
        answer = self.call("msg.send", from_=sender, to=to, content="x", priority=priority)
        if {sender, to} <= self.known:
            self.deliver(answer["message_id"], [to], priority)
        else:
            assert answer == "agent_not_found"

    @rule(sender=agents, priority=priorities)
    def broadcast(self, sender: str, priority: int) -> None:
        answer = self.call("msg.broadcast", from_=sender, content="x", priority=priority)
        if sender in self.known:
            assert answer["recipient_ids"] == sorted(self.known - {sender})
            self.deliver(answer["message_id"], answer["recipient_ids"], priority)
        else:
            assert answer == "agent_not_found"

    @rule(name=agents, limit=st.integers(1, 3))
    def poll(self, name: str, limit: int) -> None:
        answer = self.call("msg.poll", agent_id=name, timeout=0, limit=limit)
        if name not in self.known:
            assert answer == "agent_not_found"
            return
        expected = sorted(self.open[name], key=lambda one: (-self.sent[one], one))
        assert [m["id"] for m in answer["messages"]] == expected[:limit]
        assert answer.get("more", False) == (len(expected) > limit)
        self.open[name] -= set(expected[:limit])

    @rule(name=agents, back=st.integers(-1, 4), limit=st.integers(1, 3))
    def poll_after(self, name: str, back: int, limit: int) -> None:
        newest = self.inbox[name][-1] if self.inbox[name] else 0
        after = max(0, newest - back)
        for _ in range(2):
            answer = self.call("msg.poll", agent_id=name, timeout=0, after=after, limit=limit)
            if name not in self.known:
                assert answer == "agent_not_found"
                return
            if after > newest:
                assert answer == "cursor_ahead"
                return
            expected = [one for one in self.inbox[name] if one > after]
            assert [m["id"] for m in answer["messages"]] == expected[:limit]
            assert answer.get("more", False) == (len(expected) > limit)
        self.open[name] = {one for one in self.open[name] if one > after}

    def status_of(self, name: str, message_id: int) -> str:
        if message_id in self.open[name]:
            return "unread"
        return "archived" if message_id in self.archived[name] else "read"

    @rule(name=agents, which=st.none() | st.integers(0, 5), status=st.sampled_from(("read", "unread", "archived")))
    def mark(self, name: str, which: int | None, status: str) -> None:
        held = self.inbox[name]
        if which is None or not held:
            named = [one for one in held if one not in self.archived[name]]
            answer = self.call("inbox.update", agent_id=name, all=True, status=status)
        else:
            named = [held[which % len(held)]]
            answer = self.call("inbox.update", agent_id=name, ids=[f"inbox-{named[0]}-{name}"], status=status)
        if name not in self.known:
            assert answer == "agent_not_found"
            return
        assert answer["updated"] == sum(self.status_of(name, one) != status for one in named)
        self.open[name] -= set(named)
        self.archived[name] -= set(named)
        if status == "unread":
            self.open[name] |= set(named)
        elif status == "archived":
            self.archived[name] |= set(named)

    # -- tasks

    def settle(self) -> None:
        """What a claim finds due: leases that ran out, delays that ended."""
        for task in self.tasks.values():
            if task["due"] is not None and task["due"] <= self.program.clock.now_ms():
                task["due"] = None
                if task["status"] == "claimed":
                    task["attempts"] += 1
                    self.events += 1
                    exhausted = task["most"] and task["attempts"] >= task["most"]
                    task["status"] = "failed" if exhausted else "pending"
                else:
                    task["status"] = "pending"

    def give_back(self, task: dict[str, Any], delay: int = 0) -> None:
        task["owner"] = None
        task["status"] = "delayed" if delay else "pending"
        task["due"] = self.program.clock.now_ms() + delay if delay else None
        self.events += 1

    @rule(name=agents, priority=priorities, most=st.integers(0, 2))
    def post(self, name: str, priority: int, most: int) -> None:
        answer = self.call("task.post", description="x", posted_by=name, priority=priority, max_attempts=most)
        if name not in self.known:
            assert answer == "agent_not_found"
            return
        self.events += 1
        self.tasks[answer["task_id"]] = {
            "id": answer["task_id"],
            "seq": len(self.tasks),
            "priority": priority,
            "most": most,
            "status": "pending",
            "owner": None,
            "owners": set(),
            "assigned": None,
            "fence": 0,
            "attempts": 0,
            "due": None,
        }

    @rule(name=agents)
    def claim(self, name: str) -> None:
        answer = self.call("task.claim", agent_id=name)
        if name not in self.known:
            assert answer == "agent_not_found"
            return
        self.settle()
        mine = [task for task in self.tasks.values() if task["assigned"] in (None, name)]
        ready = [task for task in mine if task["status"] == "pending"]
        if not ready:
            assert answer == {"task_id": None, "task": None}
            return
        task = min(ready, key=lambda one: (-one["priority"], one["seq"]))
        task |= {"status": "claimed", "owner": name, "fence": task["fence"] + 1}
        task["due"] = self.program.clock.now_ms() + LEASE
        task["owners"].add(name)
        self.events += 1
        assert (answer["task_id"], answer["claim_token"]) == (task["id"], f"{task['id']}.{task['fence']}")

    def holding(self, name: str, task: dict[str, Any], stale_token: bool) -> str:
        """The refusal of somebody who acts on a task, or nothing."""
        if name not in self.known:
            return "agent_not_found"
        if stale_token:
            return "stale_claim"
        if task["owner"] == name:
            return ""
        if name not in task["owners"]:
            return "not_claim_owner"
        return "already_complete" if task["status"] in ("complete", "failed") else "stale_claim"

    @precondition(lambda self: self.tasks)
    @rule(
        name=agents,
        which=st.integers(0, 9),
        act=st.sampled_from(("complete", "fail", "retry", "release", "extend", "handoff")),
        stale_token=st.sampled_from((False, False, False, True)),
    )
    def act(self, name: str, which: int, act: str, stale_token: bool) -> None:
        task = list(self.tasks.values())[which % len(self.tasks)]
        stale_token = stale_token and task["fence"] > 0
        given: dict[str, Any] = {"task_id": task["id"], "agent_id": name}
        if stale_token:
            given["claim_token"] = f"{task['id']}.{task['fence'] - 1 or task['fence'] + 1}"
        expected = self.holding(name, task, stale_token)
        if act in ("release", "extend"):
            answer = self.call(f"task.{act}", **given)
        elif act == "handoff":
            answer = self.call("task.handoff", note="n", **given)
        else:
            status = "complete" if act == "complete" else "failed"
            answer = self.call("task.complete", status=status, retry=act == "retry", **given)
        if expected:
            assert answer == expected
        elif task["status"] in ("complete", "failed"):
            self.act_on_finished(task, act, answer)
        else:
            self.act_on_held(task, act, answer)

    def act_on_finished(self, task: dict[str, Any], act: str, answer: Any) -> None:
        if act in ("release", "handoff"):
            assert answer == "task_conflict"
        elif act == task.get("ended") or (act == "retry" and task.get("ended") == "fail"):
            assert answer["replayed"] is True
        else:
            assert answer == "already_complete"

    def act_on_held(self, task: dict[str, Any], act: str, answer: Any) -> None:
        """Its owner acts on a task that it holds, or whose lease ran out without another taking it."""
        if act == "release" and task["status"] == "pending":
            assert answer == "task_conflict"
        elif act in ("release", "handoff"):
            self.give_back(task)
            task["assigned"] = None if act == "handoff" else task["assigned"]
        elif act == "extend":
            self.events += task["status"] == "pending"
            task |= {"status": "claimed", "due": self.program.clock.now_ms() + LEASE}
        elif act == "retry" and not (task["most"] and task["attempts"] + 1 >= task["most"]):
            self.give_back(task, (1_000, 5_000, 30_000, 120_000, 600_000)[min(task["attempts"], 4)])
            task["attempts"] += 1
        else:
            task["attempts"] += act == "retry"
            task |= {"status": "complete" if act == "complete" else "failed", "due": None}
            task["ended"] = act if act != "retry" else None
            self.events += 1

    @precondition(lambda self: self.tasks)
    @rule(
        name=agents,
        which=st.sets(st.integers(0, 9), min_size=1, max_size=2),
        restart=st.booleans(),
        start=st.booleans(),
    )
    def dispatch(self, name: str, which: set[int], restart: bool, start: bool) -> None:
        wanted = list({n % len(self.tasks): None for n in sorted(which)})
        wanted_ids = [list(self.tasks)[n] for n in wanted]
        answer = self.call("task.dispatch", task_ids=wanted_ids, agent_id=name, restart=restart, mark_as_started=start)
        if name not in self.known:
            assert answer == "agent_not_found"
            return
        before, events = deepcopy(self.tasks), self.events
        self.settle()
        for task in (self.tasks[one] for one in wanted_ids):
            held = task["status"] == "claimed" and task["owner"] != name and not restart
            if held or task["status"] in ("complete", "failed") or (start and task["status"] == "delayed"):
                assert answer == "task_conflict"
                self.tasks, self.events = before, events  # nothing was changed, nor settled on the way
                return
        for one, result in zip(wanted_ids, answer["results"], strict=True):
            self.give(self.tasks[one], name, restart, start, result)

    def give(self, task: dict[str, Any], name: str, restart: bool, start: bool, result: dict[str, Any]) -> None:
        before = {task["assigned"], task["owner"]} - {None}
        assert result["is_new_assignment"] == (not before)
        if restart and task["status"] == "claimed":
            self.give_back(task)
        task["assigned"] = name
        self.events += 1
        if start and task["status"] == "pending":
            task |= {"status": "claimed", "owner": name, "fence": task["fence"] + 1}
            task["due"] = self.program.clock.now_ms() + LEASE
            task["owners"].add(name)
            self.events += 1
        assert result.get("claim_token") == (f"{task['id']}.{task['fence']}" if start else None)
        kind = "task-reassignment" if before - {name} else "task-assignment"
        assert result["notification"]["metadata"]["type"] == kind
        self.deliver(result["notification"]["id"], [name], 0)

    @precondition(lambda self: self.tasks)
    @rule(which=st.integers(0, 9))
    def requeue(self, which: int) -> None:
        task = list(self.tasks.values())[which % len(self.tasks)]
        answer = self.call("task.requeue", task_id=task["id"])
        if task["status"] == "failed":
            task |= {"status": "pending", "owner": None, "attempts": 0, "ended": None}
            self.events += 1
        else:
            assert answer == "task_conflict"

    # -- state

    @rule(key=keys, value=st.sampled_from("vw"), expected=st.none() | st.integers(0, 4))
    def set(self, key: str, value: str, expected: int | None) -> None:
        version, current = self.state[key]
        live = version if current is not None else 0
        answer = self.call("state.set", key=key, value=value, expected_version=expected)
        if expected in (None, live):
            self.state[key] = (version + 1, value)
            self.events += 1
            assert answer["version"] == version + 1
        else:
            assert answer == "version_conflict"

    @rule(key=keys, expected=st.none() | st.integers(1, 4))
    def delete(self, key: str, expected: int | None) -> None:
        version, current = self.state[key]
        answer = self.call("state.delete", key=key, expected_version=expected)
        if current is None:
            assert answer == ("version_conflict" if expected else "key_not_found")
        elif expected in (None, version):
            self.state[key] = (version + 1, None)
            self.events += 1
            assert answer["version"] == version + 1
        else:
            assert answer == "version_conflict"

    # -- time

    @rule(ms=st.sampled_from((1, 999, 60_000, LEASE)))
    def advance(self, ms: int) -> None:
        self.program.clock.advance(ms)

    @rule()
    def file(self) -> None:
        self.program.store.write(filing.file)

    @rule()
    def reopen(self) -> None:
        self.face = Direct(self.program.reopen())
        for task in self.tasks.values():
            if task["status"] == "claimed":
                task["due"] = self.program.clock.now_ms() + LEASE

    # -- what always holds

    @invariant()
    def the_log_has_one_event_a_change_in_order(self) -> None:
        if hasattr(self, "program"):
            found = [event["id"] for event in self.call("events.list", after=0, limit=1000)["events"]]
            assert found == list(range(1, self.events + 1))

    @invariant()
    def every_inbox_is_as_the_model_says(self) -> None:
        for name in self.known if hasattr(self, "program") else ():
            answer = self.call("inbox.list", agent_id=name, status="all", limit=1000)
            found = [(item["message_id"], item["status"]) for item in answer["items"]]
            assert found == [(one, self.status_of(name, one)) for one in reversed(self.inbox[name])]
            assert answer["unread"] == len(self.open[name])

    @invariant()
    def every_key_is_as_the_model_says(self) -> None:
        if hasattr(self, "program"):
            live = {key: pair for key, pair in self.state.items() if pair[1] is not None}
            found = self.call("state.list")["keys"]
            assert {record["key"]: (record["version"], record["value"]) for record in found} == live

    @invariant()
    def every_task_is_as_the_model_says(self) -> None:
        if hasattr(self, "program"):
            told = {"delayed": "pending"}
            expected = [
                (t["id"], told.get(t["status"], t["status"]), t["attempts"], t["owner"] if holds(t) else None)
                for t in sorted(self.tasks.values(), key=lambda one: (-one["priority"], one["seq"]))
            ]
            found = self.call("task.list", limit=1000)["tasks"]
            assert [(t["task_id"], t["status"], t["attempts"], t["claimed_by"]) for t in found] == expected


def holds(task: dict[str, Any]) -> bool:
    return task["status"] in ("claimed", "complete", "failed")


TestModel = ProgramAgainstModel.TestCase
TestModel.settings = PROFILE
