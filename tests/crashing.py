"""Kills a program while it writes, and checks what must be true of its directory afterwards.

The child writes from several threads and prints the answer to each call, one line per call. `kill_rounds` kills it with
SIGKILL after a number of lines that depends on the seed, opens the directory again, and checks it against every line.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from children import BARE

from stonemux import audit, chain, door, operations, timekeeper
from stonemux.clock import Clock
from stonemux.config import Settings
from stonemux.datadir import DataDir
from stonemux.errors import MuxError
from stonemux.mux import Caller, Mux
from stonemux.record import replace
from stonemux.store import Store

ROOT = Path(__file__).parent.parent
SENDERS, WORKERS, SETTERS = 3, 2, 2


class Opened:
    """A program in a directory, without a face."""

    def __init__(self, path: Path) -> None:
        self.directory = DataDir(path)
        self.store = Store(self.directory, Clock())
        self.mux = Mux(replace(Settings(), data_dir=path), Clock(), self.store)
        timekeeper.boot(self.mux)

    def call(self, name: str, **given: Any) -> Any:
        given = {key.removesuffix("_"): value for key, value in given.items()}
        caller = Caller()
        answer = door.call(self.mux, operations.BY_NAME[name], given, caller)
        caller.arrived()
        return answer

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.store.read() as rx:
            return [tuple(row) for row in rx.sql(query)]

    def close(self) -> None:
        self.mux.hub.close()
        self.store.close()
        self.directory.close()


# -- the child


def say(*told: Any) -> None:
    os.write(1, (json.dumps(told) + "\n").encode())  # a single write, so that lines of different threads do not mix


def send(program: Opened, name: str) -> None:
    for n in itertools.count():
        content = f"{name}-{n}"
        answer = program.call("msg.send", from_=name, to="reader", content=content, idempotency_key=content)
        say("sent", answer["message_id"], content)


def work(program: Opened, name: str) -> None:
    for n in itertools.count():
        posted = program.call("task.post", description=f"{name}-{n}", posted_by=name)["task_id"]
        say("posted", posted)
        got = program.call("task.claim", agent_id=name)
        if got["task_id"] is not None:
            say("claimed", got["task_id"], got["claim_token"])
            program.call("task.complete", task_id=got["task_id"], agent_id=name, claim_token=got["claim_token"])
            say("completed", got["task_id"])


def set_keys(program: Opened, name: str) -> None:
    version = 0
    while True:
        try:
            version = program.call("state.set", key="shared", value=name, expected_version=version)["version"]
            say("set", version, name)
        except MuxError as error:
            version = error.facts["current_version"]


def child(path: Path, round_number: int) -> None:
    program = Opened(path)
    loops = [(send, f"s{round_number}.{n}") for n in range(SENDERS)]
    loops += [(work, f"w{round_number}.{n}") for n in range(WORKERS)]
    loops += [(set_keys, f"k{round_number}.{n}") for n in range(SETTERS)]
    for name in ("reader", *(name for _, name in loops)):
        program.call("agent.register", agent_id=name)
    say("ready")
    for loop, name in loops:
        threading.Thread(target=loop, args=(program, name)).start()


# -- the parent


def kill_rounds(path: Path, *, seed: int, rounds: int, most_lines: int) -> Counter[str]:
    """Kill and check repeatedly in one directory; returns how often each kind of answer occurred."""
    chance = random.Random(seed)
    told: list[list[Any]] = []
    for number in range(rounds):
        told += run_and_kill(path, number, chance.randrange(most_lines))
        check(path, told)
    return Counter(line[0] for line in told)


def run_and_kill(path: Path, number: int, lines: int) -> list[list[Any]]:
    """The output of a child until it was killed; every line was acknowledged, even those just before the kill."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(path), str(number)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**BARE, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        said = [line for _, line in zip(range(lines + 1), process.stdout, strict=False)]
        process.kill()
        said += process.stdout.readlines()
        process.wait()
    finally:
        process.kill()
        process.stdout.close()
    assert process.returncode == -9, f"the child ended by itself with {process.returncode}"
    return [json.loads(line) for line in said]


def check(path: Path, told: list[list[Any]]) -> None:
    """Check the directory against everything that was ever acknowledged."""
    program = Opened(path)
    try:
        assert program.rows("PRAGMA integrity_check") == [("ok",)]
        _check_messages(program, [line for line in told if line[0] == "sent"])
        _check_tasks(program, told)
        _check_state(program, [line for line in told if line[0] == "set"])
        _check_audit(program)
        ids = [row[0] for row in program.rows("select id from event order by id")]
        assert ids == list(range(1, len(ids) + 1)), "event ids have neither gaps nor repetitions"
    finally:
        program.close()


def _check_messages(program: Opened, sent: list[list[Any]]) -> None:
    stored = dict(program.rows("select id, content from message"))
    for _, message_id, content in sent:
        assert stored.get(message_id) == content, f"message {message_id} was acknowledged as {content!r}"
    assert len({line[1] for line in sent}) == len(sent), "an id was given out twice"
    assert len(set(stored.values())) == len(stored), "a message was written twice"
    assert [row[0] for row in program.rows("select message_id from delivery order by message_id")] == sorted(stored)
    kept = {row[0] for row in program.rows("select key from idempotency where path = '/msg/send'")}
    assert kept == set(stored.values()), "a key and its effect are kept or lost together"
    if sent:
        _, message_id, content = sent[-1]
        again = program.call(
            "msg.send", from_=content.rpartition("-")[0], to="reader", content=content, idempotency_key=content
        )
        assert again["message_id"] == message_id


def _check_tasks(program: Opened, told: list[list[Any]]) -> None:
    tasks = {row[0]: row[1:] for row in program.rows("select id, status, fence from task")}
    assert {line[1] for line in told if line[0] == "posted"} <= tasks.keys()
    tokens = [line[2] for line in told if line[0] == "claimed"]
    assert len(set(tokens)) == len(tokens), "one claim was given to two"
    for token in tokens:
        task_id, _, fence = token.rpartition(".")
        assert tasks[task_id][1] >= int(fence)
    for line in told:
        assert line[0] != "completed" or tasks[line[1]][0] == "complete"


def _check_audit(program: Opened) -> None:
    exported = "".join(audit.export(program.mux, since=None, format="jsonl"))
    chain.verify(exported.encode().splitlines(keepends=True))
    entered = dict(program.rows("select action, count(*) from audit where outcome = 'ok' group by action"))
    for table, action in (("message", "msg.send"), ("task", "task.post")):
        assert program.rows(f"select count(*) from {table}") == [(entered.get(action, 0),)], action
    current = program.rows("select version from state where key = 'shared'")
    assert entered.get("state.set", 0) == (current[0][0] if current else 0), "each version has its record"


def _check_state(program: Opened, sets: list[list[Any]]) -> None:
    versions = [line[1] for line in sets]
    assert len(set(versions)) == len(versions), "two were told the same version"
    for version, value in program.rows("select version, value from state_version where key = 'shared'"):
        assert all(line[2] == value for line in sets if line[1] == version)
    current = program.rows("select version from state where key = 'shared'")
    assert max(versions, default=0) <= (current[0][0] if current else 0)


if __name__ == "__main__":
    child(Path(sys.argv[1]), int(sys.argv[2]))
