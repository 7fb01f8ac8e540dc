"""The runner: a command for each task or message, whatever happens to either."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from children import BARE
from daemons import ROOT, free_port, running_daemon, tried
from faces import join
from raw import eventually

from stonemux import ears, pieces, runner
from stonemux.client import Client
from stonemux.clock import rfc3339
from stonemux.commands import run
from stonemux.errors import MuxError
from stonemux.runner import LATER, Orders, Runner

SOON_S = 10


class Running:
    """A runner in a thread, with what it said and what its commands had to say to nobody."""

    def __init__(self, made: Runner, said: list[str], emitted: list[str], background: Any) -> None:
        self.runner = made
        self.said = said
        self.emitted = emitted
        self.outcome = background(made.run)

    def ends(self) -> int:
        return self.outcome.result(SOON_S)


@pytest.fixture
def place(tmp_path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def environ(http, place) -> dict[str, str]:
    return {
        **BARE,
        "HOME": str(place),
        "PATH": os.environ["PATH"],
        "PLACE": str(place),
        "STONEMUX_HOST": "127.0.0.1",
        "STONEMUX_PORT": str(http.port),
    }


@pytest.fixture
def start(environ, background) -> Iterator[Callable[..., Running]]:
    """Starts a runner whose command is a line of shell."""
    begun: list[Running] = []

    def starter(script: str, **orders: Any) -> Running:
        said: list[str] = []
        emitted: list[str] = []
        wanted = Orders(agent=orders.pop("agent", "w"), command=("sh", "-c", script), **orders)
        begun.append(Running(Runner(wanted, environ, said.append, emitted.append), said, emitted, background))
        return begun[-1]

    yield starter
    for running in begun:
        running.runner.stop(now=True)
        running.outcome.exception(SOON_S)


@pytest.fixture
def boss(direct):
    """Posts tasks, and looks at them."""
    join(direct, "boss")

    class Boss:
        def post(self, description: str = "work", **more: Any) -> str:
            return direct.call("task.post", description=description, posted_by="boss", **more)["task_id"]

        def task(self, task_id: str) -> dict[str, Any]:
            return direct.call("task.get", task_id=task_id)["task"]

        def until(self, task_id: str, status: str) -> dict[str, Any]:
            eventually(lambda: self.task(task_id)["status"] == status)
            return self.task(task_id)

        def call(self, name: str, **given: Any) -> Any:
            return direct.call(name, **given)

    return Boss()


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def pid_in(file: Path) -> int:
    eventually(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())


# -- one task


def test_a_command_gets_the_task_and_its_output_is_the_result(start, boss, place):
    task = boss.post("count the words", metadata={"words": 3})
    assert start('cat > "$PLACE/task"; env > "$PLACE/environ"; echo three', once=True).ends() == 0
    done = boss.task(task)
    assert (done["status"], done["result"], done["claimed_by"]) == ("complete", "three", "w")
    given = json.loads((place / "task").read_text())
    assert (given["task_id"], given["description"], given["metadata"]) == (task, "count the words", {"words": 3})
    environ = dict(line.split("=", 1) for line in (place / "environ").read_text().splitlines() if "=" in line)
    assert environ["STONEMUX_TASK_ID"] == task
    assert environ["STONEMUX_CLAIM_TOKEN"] == f"{task}.1"
    assert environ["STONEMUX_AGENT"] == "w"
    assert environ["STONEMUX_CHANNEL"] == "default"
    assert environ["STONEMUX_FROM"] == "boss"


def test_a_failure_tells_the_status_and_the_end_of_standard_error(start, boss):
    task = boss.post()
    assert start('printf "%05000d why\\n" 0 >&2; exit 3', once=True).ends() == 1
    done = boss.task(task)
    assert done["status"] == "failed"
    assert done["result"].startswith("exit status 3\n000")
    assert done["result"].endswith(" why")
    assert len(done["result"]) < runner.TAIL_BYTES + 20


def test_t8_a_failure_may_be_tried_again(start, boss):
    task = boss.post()
    assert start("exit 1", once=True, retry=True).ends() == 1
    done = boss.task(task)
    assert (done["status"], done["attempts"]) == ("pending", 1)


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (40, "signal 40")])
def test_a_command_that_a_signal_killed_failed(start, boss, number, name):
    task = boss.post()
    start(f"kill -{number} $$", once=True).ends()
    assert boss.task(task)["result"] == f"killed by {name}"


def test_a_command_may_ask_for_another_time(start, boss, clock):
    task = boss.post()
    start(f"echo busy >&2; exit {LATER}", once=True).ends()
    assert boss.task(task)["status"] == "pending"
    assert boss.task(task)["history"][-1]["note"] == "busy"
    assert boss.call("task.claim", agent_id="w")["task_id"] is None
    clock.advance(runner.LATER_S * 1000)
    assert boss.call("task.claim", agent_id="w")["task_id"] == task


def test_output_beyond_a_results_limit_is_kept_as_a_document(start, boss):
    task = boss.post()
    assert start("printf '%0100000d' 7", once=True).ends() == 0
    result = boss.task(task)["result"]
    assert len(result) <= pieces.MOST_RESULT
    assert "[100000 bytes in all; the whole is doc-" in result
    document = result.rpartition(" ")[2].rstrip("]")
    assert boss.call("document.get", id=document)["document"]["content"] == f"{7:0100000d}"


@pytest.mark.settings(max_document_size=50_000)
def test_output_that_is_too_long_even_for_a_document_is_cut(start, boss):
    task = boss.post()
    assert start("printf '%0100000d' 7", once=True).ends() == 0
    result = boss.task(task)["result"]
    assert (len(result), result.endswith("\n[100000 bytes in all]")) == (pieces.MOST_RESULT, True)


@pytest.mark.settings(max_message_size=300)
def test_a_daemon_that_takes_less_gets_less(start, boss):
    task = boss.post()
    assert start("printf '%0400d' 7", once=True).ends() == 0
    result = boss.task(task)["result"]
    assert len(result) <= 300
    assert "[400 bytes in all; the whole is doc-" in result


def test_what_is_no_text_is_told_as_well_as_text_can(start, boss):
    task = boss.post()
    assert start("printf 'a\\377b'", once=True).ends() == 0
    assert boss.task(task)["result"] == "a\ufffdb"


def test_a_command_may_open_its_output_anew(start, boss):
    task = boss.post()
    assert start("echo a; echo b > /dev/stdout; echo c | tee /dev/stderr", once=True).ends() == 0
    assert boss.task(task)["result"] == "a\nb\nc"


def test_however_much_a_command_says_only_so_much_is_kept(start, boss, monkeypatch):
    monkeypatch.setattr(runner, "MOST_OUTPUT", 10)
    told, failed = boss.post(priority=1), boss.post()
    running = start(
        'head -c 3000000 /dev/zero | tr "\\0" x; head -c 3000000 /dev/zero >&2; echo oh >&2; exit $S', once=True
    )
    assert running.ends() == 0
    assert boss.task(told)["result"] == "x" * 10
    running.runner.environ["S"] = "1"
    running = start("head -c 3000000 /dev/zero >&2; echo oh >&2; exit 1", once=True)
    assert running.ends() == 1
    assert len(boss.task(failed)["result"]) < runner.TAIL_BYTES + 20
    assert boss.task(failed)["result"].endswith("\0oh")


def test_nobody_waits_for_what_a_command_leaves_behind(start, boss, place):
    task = boss.post()
    left = 'sh -c "while [ ! -e $PLACE/go ]; do sleep 0.01; done; echo more; touch $PLACE/gone"'
    assert start(f"{left} & echo done", once=True).ends() == 0
    assert boss.task(task)["result"] == "done"
    (place / "go").touch()
    eventually((place / "gone").exists)  # it was not killed for writing


def test_a_command_may_give_its_task_away_itself(start, boss, environ):
    environ["STONEMUX_CLI"] = f"{sys.executable} -m stonemux"
    environ["PYTHONPATH"] = str(ROOT)
    task = boss.post()
    running = start(
        '$STONEMUX_CLI task handoff --task-id "$STONEMUX_TASK_ID" --claim-token "$STONEMUX_CLAIM_TOKEN" --note enough',
        once=True,
    )
    assert running.ends() == 0
    assert "no longer ours" in running.said[-1]
    assert boss.task(task)["status"] == "pending"


# -- leases and cancellations


def test_t7_the_lease_is_kept_while_the_command_runs(start, boss, clock, place):
    task = boss.post()
    start('while [ ! -e "$PLACE/go" ]; do sleep 0.01; done', once=True, beat_ms=20)
    first = boss.until(task, "claimed")["lease_expires_at"]
    for _ in range(3):
        clock.advance(200_000)
        eventually(lambda first=first: boss.task(task)["lease_expires_at"] > first)
        first = boss.task(task)["lease_expires_at"]
    (place / "go").touch()
    boss.until(task, "complete")


def test_a_cancelled_task_stops_its_command_and_all_that_it_started(start, boss, place):
    task = boss.post()
    running = start('sleep 60 & echo $! > "$PLACE/child"; echo $$ > "$PLACE/shell"; wait', once=True)
    child, shell = pid_in(place / "child"), pid_in(place / "shell")
    boss.call("task.cancel", task_id=task)
    assert running.ends() == 1
    assert "cancelled" in running.said[-1]
    assert has_ended(shell)
    eventually(lambda: has_ended(child))


def test_a_command_that_minds_no_sigterm_is_killed(start, boss, place):
    task = boss.post()
    running = start('trap "" TERM; echo $$ > "$PLACE/shell"; while :; do sleep 0.05; done', once=True, grace_s=0.1)
    shell = pid_in(place / "shell")
    boss.call("task.cancel", task_id=task)
    assert running.ends() == 1
    assert has_ended(shell)


def test_what_a_stopped_command_leaves_behind_is_killed(start, boss, place):
    task = boss.post()
    stubborn = 'trap "" TERM; echo $$ > "$PLACE/child"; while :; do sleep 0.05; done'
    running = start(f"sh -c '{stubborn}' & wait", once=True)
    child = pid_in(place / "child")
    boss.call("task.cancel", task_id=task)
    assert running.ends() == 1
    eventually(lambda: has_ended(child))


def test_without_the_right_to_watch_a_cancellation_is_noticed_when_the_lease_is_extended(
    start, boss, place, monkeypatch
):
    monkeypatch.setattr(Runner, "_watch", lambda *_: None)
    task = boss.post()
    running = start('touch "$PLACE/begun"; sleep 60', once=True, beat_ms=20)
    eventually((place / "begun").exists)
    boss.call("task.cancel", task_id=task)
    assert running.ends() == 1


def test_a_command_whose_task_went_to_another_is_stopped_after_a_grace(start, boss, place):
    task = boss.post()
    running = start('echo $$ > "$PLACE/shell"; sleep 60', once=True, grace_s=0.05, beat_ms=20)
    shell = pid_in(place / "shell")
    boss.call("task.release", task_id=task, agent_id="w")
    assert boss.call("task.claim", agent_id="boss")["task_id"] == task
    assert running.ends() == 1
    assert has_ended(shell)
    assert boss.task(task)["claimed_by"] == "boss"


def test_a_cancellation_that_is_seen_before_the_claim_is_noted_stops_the_command(start, boss, place, monkeypatch):
    begin, asked = Runner._begin, []
    events_list = Client.events_list

    def noted(self, **given):
        asked.append(given["after"])
        return events_list(self, **given)

    def late(self, piece):
        boss.call("task.cancel", task_id=piece.told["task_id"])
        head = boss.call("events.list", limit=1)["head"]
        eventually(lambda: asked[-1] >= head)
        return begin(self, piece)

    monkeypatch.setattr(Client, "events_list", noted)
    monkeypatch.setattr(Runner, "_begin", late)
    boss.post()
    running = start('touch "$PLACE/begun"; sleep 60', once=True)
    assert running.ends() == 1
    assert "cancelled" in running.said[-1]
    assert not (place / "begun").exists()


def test_a_cancellation_of_an_earlier_claim_stops_nothing(boss, clock):
    """The same task was cancelled, put back, and claimed again before the runner read of it."""
    task = boss.post()
    boss.call("task.cancel", task_id=task)
    (event,) = boss.call("events.list", types=["task_cancelled"])["events"]
    clock.advance(1)
    boss.call("task.requeue", task_id=task)
    piece = pieces.ClaimedTask(boss.call("task.claim", agent_id="boss"), retry=False)
    assert not piece.is_ended_by(event)
    boss.call("task.cancel", task_id=task)
    assert piece.is_ended_by(boss.call("events.list", types=["task_cancelled"])["events"][-1])


def test_a_task_that_comes_back_while_its_first_command_still_runs_is_a_second_command(start, boss, place):
    task = boss.post()
    again = 'case "$STONEMUX_CLAIM_TOKEN" in *.2) exit; esac'
    wait = 'touch "$PLACE/$STONEMUX_CLAIM_TOKEN"; while [ ! -e "$PLACE/go" ]; do sleep 0.01; done'
    running = start(f"{again}; {wait}", parallel=2)
    eventually((place / f"{task}.1").exists)
    boss.call("task.release", task_id=task, agent_id="w")
    assert boss.until(task, "complete")["claimed_by"] == "w"
    eventually(lambda: len(running.runner._jobs) == 1)  # the first one runs on
    (place / "go").touch()
    eventually(lambda: not running.runner._jobs)
    assert "no longer ours" in running.said[-1]


# -- many


def test_no_more_commands_run_than_may(start, boss, place):
    tasks = [boss.post(str(n)) for n in range(5)]
    running = start('while [ ! -e "$PLACE/go" ]; do sleep 0.01; done', parallel=2)
    eventually(lambda: running.runner._changed._waiters)  # it has taken what it may, and waits for room
    assert [boss.task(task)["status"] for task in tasks].count("claimed") == 2
    (place / "go").touch()
    for task in tasks:
        boss.until(task, "complete")
    running.runner.stop()
    assert running.ends() == 0


def test_t1_runners_side_by_side_do_each_task_once(start, boss, place):
    tasks = [boss.post(str(n)) for n in range(12)]
    for name in ("ann", "bob"):
        start('set -C; : > "$PLACE/$STONEMUX_TASK_ID" && echo "$STONEMUX_AGENT"', agent=name, parallel=3)
    for task in tasks:
        boss.until(task, "complete")
    assert {path.name for path in place.iterdir()} == set(tasks)


def test_only_what_fits_is_taken(start, boss):
    hard, easy = boss.post("hard", required_capability="magic"), boss.post("easy")
    start("true", capabilities=("sums",), once=True).ends()
    assert (boss.task(hard)["status"], boss.task(easy)["status"]) == ("pending", "complete")
    start("true", capabilities=("sums", "magic"), once=True).ends()
    assert boss.task(hard)["status"] == "complete"


def test_what_is_registered_stays_but_for_what_is_asked(start, boss):
    boss.call("agent.register", agent_id="w", role="worker", capabilities=["a"], group="g", metadata={"k": 1})
    before = boss.call("agent.get", agent_id="w")["agent"]
    boss.post()
    start("true", once=True).ends()
    after = boss.call("agent.get", agent_id="w")["agent"]
    for name in ("role", "capabilities", "group", "channel", "metadata"):
        assert after[name] == before[name]
    boss.post()
    start("true", once=True, capabilities=("b",)).ends()
    assert (
        boss.call("agent.get", agent_id="w")["agent"] | {"capabilities": ["b"]}
        == boss.call("agent.get", agent_id="w")["agent"]
    )


def test_an_agent_that_somebody_deregisters_comes_back(start, boss, clock):
    start("echo hi", capabilities=("x",))
    eventually(lambda: boss.call("stats")["waiters"] == 2)
    boss.call("agent.deregister", agent_id="w")
    clock.advance(runner.WAIT_S * 1000)
    boss.until(boss.post(required_capability="x"), "complete")


# -- the runner's own end


def test_stopping_gives_the_work_back_and_takes_no_more(start, boss, place):
    task, other = boss.post("first"), boss.post("second")
    running = start('echo $$ > "$PLACE/shell"; sleep 60')
    shell = pid_in(place / "shell")
    running.runner.stop()
    assert running.ends() == 0
    assert has_ended(shell)
    assert boss.task(task)["status"] == boss.task(other)["status"] == "pending"
    assert boss.task(task)["history"][-1]["note"] == "the runner was stopped"
    assert boss.task(task)["attempts"] == 0


def test_stopping_a_runner_that_waits_leaves_nothing_claimed(start, boss):
    running = start("true")
    eventually(lambda: boss.call("stats")["waiters"] == 2, "it waits for a task, and for cancellations")
    running.runner.stop()
    assert running.ends() == 0
    eventually(lambda: boss.call("stats")["waiters"] == 0)
    task = boss.post()
    assert boss.call("task.claim", agent_id="boss")["task_id"] == task


def test_a_command_that_does_not_exist_is_told_before_anything_is_taken(environ, boss, place):
    task = boss.post()
    (place / "text").write_text("#!/bin/sh\n")
    for command in ("no-such-command", str(place / "text"), str(place)):
        with pytest.raises(MuxError, match="does not exist") as caught:
            Runner(Orders(agent="new", command=(command,)), environ, print, print)
        assert caught.value.code == "not_found"
    assert boss.task(task)["status"] == "pending"
    with pytest.raises(MuxError):
        boss.call("agent.get", agent_id="new")


def test_a_command_that_cannot_be_started_gives_its_task_back_and_ends_the_runner(environ, boss, place, background):
    task = boss.post()
    program = place / "program"
    program.write_bytes(b"\x7fELF nonsense")
    program.chmod(0o755)
    running = Running(Runner(Orders(agent="w", command=(str(program),)), environ, print, print), [], [], background)
    with pytest.raises(MuxError, match="cannot be started"):
        running.ends()
    assert boss.task(task)["status"] == "pending"
    assert boss.task(task)["attempts"] == 0


@pytest.mark.parametrize("trouble", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("no thread")])
def test_a_machine_that_has_no_room_for_a_command_gets_the_task_back(start, boss, monkeypatch, trouble):
    def full(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr(*((tempfile, "TemporaryFile") if isinstance(trouble, OSError) else (ears, "listen")), full)
    task = boss.post()
    running = start("sleep 60")
    with pytest.raises(MuxError, match="cannot be started"):
        running.ends()
    assert boss.task(task)["status"] == "pending"


@pytest.mark.parametrize("refused", ["storage_full", "storage_busy", "inbox_full"])
def test_a_claim_that_is_refused_for_now_is_tried_again(start, boss, monkeypatch, refused):
    claim, tries = Client.task_claim, []

    def refuse_first(self, **given):
        tries.append(given)
        if len(tries) == 1:
            raise MuxError(refused, "not now")
        return claim(self, **given)

    monkeypatch.setattr(Client, "task_claim", refuse_first)
    monkeypatch.setattr(runner, "AGAIN_MS", 1)
    task = boss.post()
    assert start("true", once=True).ends() == 0
    assert boss.task(task)["status"] == "complete"


@pytest.mark.settings(default_tier="free")
def test_a_tier_that_has_no_tasks_refuses(start):
    with pytest.raises(MuxError) as caught:
        start("true").ends()
    assert caught.value.code == "upgrade_required"


def test_without_a_daemon_the_runner_says_so(environ):
    environ["STONEMUX_PORT"] = str(free_port())
    made = Runner(Orders(agent="w", command=("true",)), environ, print, print)
    made.client._budget_ms = 0
    with pytest.raises(MuxError, match="no stonemux daemon answers"):
        made.run()


# -- messages


@pytest.fixture
def letter(boss):
    """Sends a message to the runner's agent."""
    boss.call("agent.register", agent_id="w")

    def send(content: str) -> int:
        return boss.call("msg.send", **{"from": "boss"}, to="w", content=content)["message_id"]

    return send


def status_of(boss: Any, message: int) -> str:
    return boss.call("msg.status", id=message)["recipients"][0]["status"]


def test_a_message_is_acknowledged_when_its_command_has_succeeded(start, boss, letter, place):
    message = letter("hello")
    running = start('cat > "$PLACE/message"; echo "$STONEMUX_MESSAGE_ID from $STONEMUX_FROM"', messages=True, once=True)
    assert running.ends() == 0
    assert status_of(boss, message) == "acked"
    assert json.loads((place / "message").read_text())["content"] == "hello"
    assert running.emitted == [f"{message} from boss\n"]


def test_an_answer_goes_back_to_the_sender(start, boss, letter):
    message = letter("2 + 2?")
    assert start("echo 4", messages=True, reply=True, once=True).ends() == 0
    (answer,) = boss.call("msg.poll", agent_id="boss", timeout=0)["messages"]
    assert (answer["from"], answer["content"], answer["reply_to"]) == ("w", "4", message)
    assert status_of(boss, message) == "acked"


def test_an_answer_reaches_a_sender_who_is_not_in_the_channel(start, boss, letter):
    boss.call("agent.register", agent_id="far", channel="elsewhere")
    asked = boss.call("msg.send", **{"from": "far"}, to="w", content="2 + 2?")["message_id"]
    assert start("echo 4", messages=True, reply=True, once=True).ends() == 0
    (answer,) = boss.call("msg.poll", agent_id="far", timeout=0)["messages"]
    assert (answer["content"], answer["channel"], answer["reply_to"]) == ("4", "agent-far", asked)
    assert status_of(boss, asked) == "acked"


def test_an_answer_to_a_sender_who_is_gone_is_printed(start, boss, letter):
    message = letter("2 + 2?")
    boss.call("agent.deregister", agent_id="boss")
    running = start("echo 4", messages=True, reply=True, once=True)
    assert running.ends() == 0
    assert running.emitted == ["4\n"]
    assert status_of(boss, message) == "acked"


def test_a_command_whose_outcome_is_refused_has_not_succeeded(start, boss, letter, monkeypatch, clock, program):
    message = letter("2 + 2?")
    refused = MuxError("webhook_limit", "any refusal")
    monkeypatch.setattr(pieces.LeasedMessage, "_answer", lambda *_: (_ for _ in ()).throw(refused))
    assert start("echo 4", messages=True, reply=True, once=True).ends() == 1
    clock.advance(2000)  # after which it is delivered again, and not only when its lease ends
    program.timekeeper.tick()
    (again,) = boss.call("msg.poll", agent_id="w", ack="manual", timeout=0)["messages"]
    assert (again["id"], again["deliveries"]) == (message, 2)


@pytest.mark.settings(max_message_size=300)
def test_an_answer_that_is_too_long_goes_as_a_document_or_is_cut(start, boss, letter):
    message = letter("tell me all")
    assert start("printf '%0400d' 7", messages=True, reply=True, once=True).ends() == 0
    (answer,) = boss.call("msg.poll", agent_id="boss", timeout=0)["messages"]
    assert answer["content_ref"]
    assert status_of(boss, message) == "acked"


@pytest.mark.settings(max_message_size=300, max_document_size=300)
def test_an_answer_that_is_too_long_even_for_a_document_is_cut(start, boss, letter):
    message = letter("tell me all")
    assert start("printf '%0400d' 7", messages=True, reply=True, once=True).ends() == 0
    (answer,) = boss.call("msg.poll", agent_id="boss", timeout=0)["messages"]
    assert answer["content"].endswith("[400 bytes in all]")
    assert status_of(boss, message) == "acked"


def test_an_output_that_cannot_be_written_puts_the_message_back_and_ends_the_runner(environ, boss, letter, background):
    def closed(text: str) -> None:
        raise BrokenPipeError

    message = letter("hello")
    orders = Orders(agent="w", command=("echo", "hi"), messages=True)
    running = Running(Runner(orders, environ, print, closed), [], [], background)
    with pytest.raises(BrokenPipeError):
        running.ends()
    assert status_of(boss, message) == "queued"


def test_stopping_gives_a_message_back(start, boss, letter, place):
    message = letter("hello")
    running = start('echo $$ > "$PLACE/shell"; sleep 60', messages=True)
    pid_in(place / "shell")
    running.runner.stop()
    assert running.ends() == 0
    (again,) = boss.call("msg.poll", agent_id="w", ack="manual", timeout=0)["messages"]
    assert (again["id"], again["deliveries"]) == (message, 2)


def test_i6_a_message_whose_command_failed_comes_again_later(start, boss, letter, clock, program):
    message = letter("hello")
    assert start("exit 1", messages=True, once=True).ends() == 1
    assert status_of(boss, message) != "acked"
    assert boss.call("msg.poll", agent_id="w", ack="manual", timeout=0)["messages"] == []
    clock.advance(2000)
    program.timekeeper.tick()
    (again,) = boss.call("msg.poll", agent_id="w", ack="manual", timeout=0)["messages"]
    assert (again["id"], again["deliveries"]) == (message, 2)


def test_a_messages_lease_is_kept_too(start, boss, letter, clock, place, monkeypatch):
    extended: list[int] = []
    extend = pieces.LeasedMessage.extend
    monkeypatch.setattr(pieces.LeasedMessage, "extend", lambda self, client: extend(self, client) or extended.append(1))
    message = letter("slow")
    script = 'touch "$PLACE/begun"; while [ ! -e "$PLACE/go" ]; do sleep 0.01; done'
    start(script, messages=True, once=True, lease_s=60, beat_ms=20)
    eventually((place / "begun").exists)
    for _ in range(3):
        clock.advance(40_000)
        seen = len(extended)
        eventually(lambda seen=seen: len(extended) > seen + 1)
    assert boss.call("msg.poll", agent_id="w", ack="manual", timeout=0)["messages"] == []
    (place / "go").touch()
    eventually(lambda: status_of(boss, message) == "acked")


# -- as a process


@pytest.fixture
def process(environ) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `stonemux run`."""
    begun: list[subprocess.Popen[str]] = []

    def starter(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "stonemux", "run", *words]
        begun.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
            )
        )
        return begun[-1]

    yield starter
    for one in begun:
        one.kill()
        one.communicate()


def test_sigterm_ends_a_runner_in_good_order(process, boss, place):
    task = boss.post()
    running = process("--agent", "w", "--", "sh", "-c", 'echo $$ > "$PLACE/shell"; exec sleep 60')
    shell = pid_in(place / "shell")
    running.send_signal(signal.SIGTERM)
    assert running.wait(SOON_S) == 0
    assert has_ended(shell)
    assert boss.task(task)["status"] == "pending"
    assert f"task {task}: given back" in running.stderr.read()


def test_a_signal_that_comes_just_before_it_falls_asleep_is_heard(monkeypatch):
    stopped = threading.Event()

    class Runner:
        def run(self) -> int:
            return 0 if stopped.wait(SOON_S) else 1

        def stop(self, *, now: bool) -> None:
            stopped.set()

    def signal_first(fd: int, most: int) -> bytes:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGTERM)
        return os.read(fd, most)

    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    monkeypatch.setattr(run.os, "read", signal_first)
    try:
        assert run._until_signal(Runner()) == 0
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def test_t6_what_a_killed_runner_held_comes_back_after_its_lease(process, boss, place, clock):
    task = boss.post()
    running = process("--agent", "w", "--", "sh", "-c", 'echo $$ > "$PLACE/shell"; exec sleep 60')
    shell = pid_in(place / "shell")
    running.kill()
    running.wait()
    assert boss.call("task.claim", agent_id="boss")["task_id"] is None
    clock.advance(300_000)
    assert boss.call("task.claim", agent_id="boss")["task_id"] == task
    os.kill(shell, signal.SIGKILL)


def test_a_runner_beats_as_often_as_the_settings_say(process, boss, place, program):
    """With the default of a minute nothing would be extended within this test: a third of the lease is longer still."""
    task = boss.post()
    (place / ".stonemux").mkdir(mode=0o700)
    (place / ".stonemux" / "config.toml").write_text("[coordination]\nheartbeat_interval = 1\n")
    process("--agent", "w", "--", "sh", "-c", 'touch "$PLACE/begun"; while [ ! -e "$PLACE/go" ]; do sleep 0.01; done')
    eventually((place / "begun").exists)
    program.clock.advance(250_000)
    eventually(
        lambda: boss.call("agent.get", agent_id="w")["agent"]["last_heartbeat"] == rfc3339(program.clock.now_ms())
    )
    (place / "go").touch()
    boss.until(task, "complete")


def test_a_full_disk_behind_the_report_of_progress_stops_nothing(monkeypatch):
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115 - closing it fails as well
    monkeypatch.setattr(sys, "stderr", full)
    run._say("task 1: started")
    with contextlib.suppress(OSError):
        full.close()


@pytest.mark.parametrize(("beat_ms", "wait_s"), [(60_000, 30), (10_000, 10), (1000, 1), (20, 1)])
def test_a_runner_waits_for_work_no_longer_than_between_two_beats(beat_ms, wait_s):
    assert Orders(agent="w", command=("true",), beat_ms=beat_ms).wait_s == wait_s


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--agent", "w", "--", "/no/such/command"], 3, "the command '/no/such/command' does not exist"),
        (["--agent", "w"], 2, "COMMAND"),
        (["--", "true"], 2, "--agent ID"),
        (["--agent", "w", "--reply", "--", "true"], 2, "--messages"),
        (["--agent", "w", "--max-parallel", "0", "--", "true"], 2, "not a number from 1"),
        (["--agent", "w", "--capabilty", "x", "--", "true"], 2, "did you mean --capability"),
        (["--agent", "stonemux", "--", "true"], 2, "reserved"),
    ],
)
def test_bad_words_are_told_in_one_line(place, http, words, status, told):
    done = tried("run", *words, home=place, STONEMUX_PORT=str(http.port))
    assert (done.returncode, done.stdout) == (status, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_t12_a_runner_survives_a_restart_of_the_daemon(tmp_path, place, background):
    port = free_port()
    environ = {"HOME": str(place), "PATH": os.environ["PATH"], "PLACE": str(place), "STONEMUX_PORT": str(port)}
    said: list[str] = []
    script = 'echo "$STONEMUX_TASK_ID"; while [ ! -e "$PLACE/$STONEMUX_TASK_ID" ]; do sleep 0.01; done'
    data = tmp_path / "data"

    def post(made: Runner) -> str:
        return made.client.task_post(description="work", posted_by="w")["task_id"]

    def status(made: Runner, task: str) -> str:
        return made.client.task_get(task_id=task)["task"]["status"]

    with running_daemon(data, "--port", str(port)) as daemon:
        made = Runner(Orders(agent="w", command=("sh", "-c", script)), environ, said.append, print)
        outcome = background(made.run)
        eventually(lambda: made._watching._reached)
        first = post(made)
        eventually(lambda: status(made, first) == "claimed")
        daemon.process.kill()
    (place / first).touch()
    with running_daemon(data, "--port", str(port)):
        eventually(lambda: status(made, first) == "complete")
        second = post(made)
        (place / second).touch()
        eventually(lambda: status(made, second) == "complete")
        made.stop()
        assert outcome.result(SOON_S) == 0
