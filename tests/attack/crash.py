"""Load, kills, and judgment.

All actors work against one daemon, which is killed at random moments and restarted on the same data. Then comes the
calm phase, in which everything is delivered and done. Finally the diaries are judged.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attack import actors, checks
from attack.calls import Client
from attack.victim import SERVE, Victim

DRAIN_S = 15


@dataclass
class Outcome:
    """What an attack did, and what it found."""

    violations: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def rules(self) -> set[str]:
        """The rules that were broken."""
        return {violation.partition(":")[0] for violation in self.violations}


class Cast:
    """The actors that take part."""

    def __init__(self, arena: actors.Arena) -> None:
        self.readers: list[actors.Reader] = [
            actors.PlainReader(arena, "plain"),
            actors.CursorReader(arena, "cursor"),
        ]
        self.lease_readers = [actors.LeaseReader(arena, f"manual{n}", "manual0") for n in range(2)]
        self.readers += self.lease_readers
        inboxes = sorted({reader.inbox for reader in self.readers})
        self.editors = [actors.Editor(arena, f"editor{n}") for n in range(4)]
        self.senders = [actors.Sender(arena, f"sender{n}", inboxes) for n in range(3)]
        self.posters = [actors.Poster(arena, f"poster{n}") for n in range(2)]
        self.workers = [actors.Worker(arena, f"worker{n}") for n in range(12)]
        self.listener = actors.Listener(arena, "listener")
        self.everybody: list[actors.Actor] = [
            *self.readers,
            *self.editors,
            *self.senders,
            *self.posters,
            *self.workers,
            self.listener,
        ]

    def register(self, client: Client) -> None:
        for actor in self.everybody:
            client.must("/agent/register", agent_id=actor.name)


def attack(data: Path, *, seed: int, kills: int, long_life: float = 2.5, command: Sequence[str] = SERVE) -> Outcome:
    """Run the whole attack. Every fifth life is long (in seconds), so that leases expire and zombies come back."""
    chance = random.Random(seed)
    with Victim(data, command) as victim:
        arena = actors.Arena(victim, seed)
        cast = Cast(arena)
        client = Client(victim.port)
        cast.register(client)
        client.close()
        try:
            for actor in cast.everybody:
                actor.start()
            for number in range(kills):
                arena.over.wait(long_life if number % 5 == 1 else chance.uniform(0.15, 0.65))
                victim.kill()
                victim.start()
            arena.over.wait(chance.uniform(0.2, 0.5))
            arena.calm.set()
            actors.join_all([actor for actor in cast.everybody if actor.ends_when_calm])
            _drain(victim.port, cast)
            for key in actors.Editor.keys:
                cast.editors[0].look(key)
            cast.editors[0].client.close()
        finally:
            arena.over.set()
            actors.join_all(cast.everybody)
        log = _whole_log(victim.port)
        status = victim.stop()
        return _judge(data, arena, cast, log, status)


def _drain(port: int, cast: Cast) -> None:
    """Wait until every message is read and every task is done, or it takes too long (which the judges will see)."""
    client = Client(port)
    wanted = {one.id for one in _sent(cast)}
    deadline = time.monotonic() + DRAIN_S
    while time.monotonic() < deadline:
        read = wanted <= {read.id for reader in cast.readers for read in reader.read}
        _, stats = client.get("/stats")
        if read and not stats["tasks"]["pending"] and not stats["tasks"]["claimed"]:
            break
        cast.listener.arena.over.wait(0.05)
    client.close()


def _sent(cast: Cast) -> list[actors.Sent]:
    return [one for sender in cast.senders for one in sender.sent]


def _whole_log(port: int) -> list[actors.Seen]:
    client = Client(port)
    head = client.get("/events/list", limit=1)[1]["head"]
    client.close()
    log: list[actors.Seen] = []
    for event in actors.stream(port, 0, lambda: bool(log) and log[-1].id >= head):
        log.append(event)
    return log


def _judge(data: Path, arena: actors.Arena, cast: Cast, log: list[actors.Seen], status: int) -> Outcome:
    sent = _sent(cast)
    posted = [one for poster in cast.posters for one in poster.posted]
    granted = [one for worker in cast.workers for one in worker.claims]
    completed = [one for worker in cast.workers for one in worker.completions]
    outcome = Outcome()
    found = outcome.violations
    found += [f"unexpected_answer: {surprise}" for surprise in arena.surprises]
    found += [f"exit_status: {status}"] if status else []
    found += checks.messages(sent, cast.readers)
    for reader in cast.readers:
        if reader.mode == "plain":
            found += checks.receipts(reader)
    found += checks.leases(cast.lease_readers)
    found += checks.claims(granted, completed)
    found += checks.state(cast.editors)
    found += checks.events(cast.listener, log)
    found += checks.database(data / "stonemux.db", sent, posted, completed)
    outcome.counts = {
        "kills": len(arena.victim.deaths) - 1,
        "sent": len(sent),
        "read": sum(len(reader.read) for reader in cast.readers),
        "state": sum(len(ops) for editor in cast.editors for ops in editor.history.values()),
        "unknown": sum(op.answer is None for editor in cast.editors for ops in editor.history.values() for op in ops),
        "posted": len(posted),
        "claims": len(granted),
        "completed": len(completed),
        "late": sum(worker.refused for worker in cast.workers),
        "events": len(log),
    }
    return outcome
