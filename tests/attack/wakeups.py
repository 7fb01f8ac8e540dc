"""Rallies: one client waits, and another serves at about the moment when the waiter falls asleep.

Nothing else happens on what they wait for, so a later wake-up cannot hide a missed one: the waiter sleeps until its
timeout, and that is noticed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from attack.calls import Client, now
from attack.crash import Outcome

TIMEOUT_S = 4
LATE_S = 2
"""Far longer than a loaded machine needs, and well before the timeout."""


def attack(port: int, *, seed: int, rallies: int) -> Outcome:
    """Rallies over a poll, a cursor, a watch, a claim, and a poll over MCP, until the first one that is late."""
    chance = random.Random(seed)
    outcome = Outcome()
    receiver, server = Client(port), Client(port)
    for name in ("receiver", "server"):
        server.must("/agent/register", agent_id=name)
    games = {"poll": _Poll, "cursor": _Cursor, "watch": _Watch, "claim": _Claim, "tool": _Tool}
    with ThreadPoolExecutor(1) as pool:
        for kind, game_of in games.items():
            game = game_of(receiver, server, seed)
            outcome.counts[kind] = 0
            for number in range(1, rallies + 1):
                waiting = pool.submit(_timed, game.wait, number)
                _spin(chance.random() * 0.004)
                game.serve(number)
                served = now()
                began, ended, got = waiting.result()
                outcome.counts[kind] += 1
                if ended - max(began, served) > LATE_S * 1_000_000_000:
                    outcome.violations.append(f"late_wakeup: {kind} number {number} was told {got} too late")
                    break
                if not got:
                    outcome.violations.append(f"missed: {kind} number {number} ended with nothing")
                    break
    receiver.close()
    server.close()
    return outcome


def _timed(wait: Callable[[int], Any], number: int) -> tuple[int, int, Any]:
    began = now()
    got = wait(number)
    return began, now(), got


def _spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


class _Game:
    def __init__(self, receiver: Client, server: Client, seed: int) -> None:
        self.receiver, self.server, self.seed = receiver, server, seed
        self.cursor = 0


class _Poll(_Game):
    def wait(self, number: int) -> Any:
        return self.receiver.get("/msg/poll", agent_id="receiver", timeout=TIMEOUT_S)[1]["messages"]

    def serve(self, number: int) -> None:
        self.server.must("/msg/send", from_="server", to="receiver", content=str(number))


class _Tool(_Poll):
    """Over MCP, each waiter has its own thread; otherwise the thread that commits answers waiters."""

    def wait(self, number: int) -> Any:
        return self.receiver.tool("mux_poll", agent_id="receiver", timeout=TIMEOUT_S)["messages"]


class _Cursor(_Poll):
    def wait(self, number: int) -> Any:
        status, told = self.receiver.get("/msg/poll", agent_id="receiver", timeout=TIMEOUT_S, after=self.cursor)
        assert status == 200, told
        got = told["messages"]
        self.cursor = got[-1]["id"] if got else self.cursor
        return got


class _Watch(_Game):
    def wait(self, number: int) -> Any:
        key = f"rally{self.seed}"
        return self.receiver.get("/state/watch", key=key, after_version=number - 1, timeout=TIMEOUT_S)[1]["changed"]

    def serve(self, number: int) -> None:
        self.server.must("/state/set", key=f"rally{self.seed}", value=str(number))


class _Claim(_Game):
    def wait(self, number: int) -> Any:
        claim = self.receiver.must("/task/claim", agent_id="receiver", timeout=TIMEOUT_S)
        if claim["task_id"]:
            self.receiver.must(
                "/task/complete", agent_id="receiver", task_id=claim["task_id"], claim_token=claim["claim_token"]
            )
        return claim["task_id"]

    def serve(self, number: int) -> None:
        self.server.must("/task/post", description=str(number), posted_by="server")
