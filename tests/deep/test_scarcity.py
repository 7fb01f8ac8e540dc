"""Memory or descriptors run out under load, and there are enough again: the daemon serves as before, or has ended."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attack.calls import Client, NotSentError, UnknownError
from attack.victim import Victim

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prlimit(2) and /proc")

CLIENTS = 24
LOAD_S = 4


def address_space(pid: int) -> int:
    """How many bytes of address space a process uses."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def load(port: int, seed: int) -> None:
    """Ask for much for a few seconds, whatever the answers."""
    chance, client = random.Random(seed), Client(port, timeout=5)
    until = time.monotonic() + LOAD_S
    while time.monotonic() < until:
        with contextlib.suppress(NotSentError, UnknownError):
            match chance.randrange(5):
                case 0:
                    client.post("/msg/send", from_="a", to="b", content="x" * 60_000)
                case 1:
                    client.get("/msg/poll", agent_id="b", timeout=1)
                case 2:
                    client.post("/document/create", created_by="a", content="x" * chance.randrange(4_000_000))
                case 3:
                    client.get("/stats")
                case 4:
                    client.get("/msg/list", agent_id="b", limit=1000)
    client.close()


def starve(victim: Victim, what: int, limit: int) -> None:
    pid = victim.process.pid
    _, most = usual = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (limit, most))
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda seed: load(victim.port, seed), range(CLIENTS)))
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, what, usual)


def serves(victim: Victim) -> None:
    """A waiting poll is answered by a send, an expired lease brings its message back, and a stop ends it."""
    client, poller = Client(victim.port), Client(victim.port)
    client.must("/agent/register", agent_id="later")
    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(poller.get, "/msg/poll", agent_id="later", timeout=10)
        client.must("/msg/send", from_="a", to="later", content="one")
        assert [message["content"] for message in poll.result()[1]["messages"]] == ["one"]
    client.must("/msg/send", from_="a", to="later", content="two")
    for _ in range(2):
        (message,) = client.get("/msg/poll", agent_id="later", timeout=5, ack="manual", lease=1)[1]["messages"]
        assert message["content"] == "two"
    assert client.get("/stats")[0] == 200
    client.close()
    poller.close()
    assert victim.stop() == 0


@pytest.mark.parametrize("spare", [6, 8, 9, 10, 12, 20])
def test_memory_runs_out(tmp_path, spare):
    """Python itself gives up where it can find none even to say so; a daemon that ended is started again.

    Python 3.11 may even end with SIGSEGV: once its sixteen spare MemoryErrors are in use, making one fails for lack of
    memory, which makes another, until the stack is full, however large. Python 3.12 has one of last resort.
    """
    with Victim(tmp_path / "data") as victim:
        client = Client(victim.port)
        for name in ("a", "b"):
            client.must("/agent/register", agent_id=name)
        client.close()
        starve(victim, resource.RLIMIT_AS, address_space(victim.process.pid) + spare * 1024 * 1024)
        if victim.process.poll() is not None:
            victim.ended()
            victim.start()
        serves(victim)


@pytest.mark.parametrize("spare", [0, 1, 3, 8])
def test_descriptors_run_out(tmp_path, spare):
    with Victim(tmp_path / "data") as victim:
        client = Client(victim.port)
        for name in ("a", "b"):
            client.must("/agent/register", agent_id=name)
        client.close()
        starve(victim, resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{victim.process.pid}/fd")) + spare)
        assert victim.process.poll() is None
        serves(victim)
