"""The clock jumps, the machine sleeps, clients are slow or asleep: none of it costs an agent a lease or a message."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attack.calls import Client
from attack.victim import Victim

from stonemux.store import POOLED_READERS

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
DAY_S = 86_400


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime moves the clock; it is not installed")
def test_the_wall_clock_jumps_and_nobody_notices(tmp_path):
    knob = tmp_path / "clock"
    knob.write_text("+0\n")
    environ = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(knob),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with Victim(tmp_path / "data", environ=environ) as victim, ThreadPoolExecutor(1) as pool:
        client, poller = Client(victim.port), Client(victim.port, timeout=30)
        for name in ("a", "b"):
            client.must("/agent/register", agent_id=name)
        client.must("/task/post", description="long", posted_by="a", claim_timeout=60)
        claim = client.must("/task/claim", agent_id="b")
        stamps, ids = [], []
        for jump in (-3600, DAY_S, 3650 * DAY_S, 0):
            poll = pool.submit(poller.get, "/msg/poll", agent_id="b", timeout=20)
            knob.write_text(f"{jump:+d}\n")
            assert client.must("/task/claim", agent_id="a")["task_id"] is None  # the lease still holds
            assert client.get("/agent/get", agent_id="b")[1]["agent"]["status"] == "active"
            assert not poll.done()
            sent = client.must("/msg/send", from_="a", to="b", content="x")
            stamps.append(sent["sent_at"])
            ids.append(sent["message_id"])
            assert [message["id"] for message in poll.result(10)[1]["messages"]] == ids[-1:]
        assert stamps == sorted(stamps)
        assert ids == sorted(ids)
        done = client.must("/task/complete", agent_id="b", task_id=claim["task_id"], claim_token=claim["claim_token"])
        assert done["status"] == "complete"
        knob.write_text(f"{-DAY_S}\n")
        client.close()
        poller.close()
        assert victim.stop() == 0
        victim.start()  # a machine whose clock went back while the daemon was away
        later = client.must("/msg/send", from_="a", to="b", content="y")
        assert later["sent_at"] >= stamps[-1]
        client.close()


def test_a_daemon_that_was_stopped_goes_on_where_it_was(tmp_path):
    with Victim(tmp_path / "data") as victim, ThreadPoolExecutor(2) as pool:
        client, poller = Client(victim.port, timeout=30), Client(victim.port, timeout=30)
        for name in ("a", "b"):
            client.must("/agent/register", agent_id=name)
        poll = pool.submit(poller.get, "/msg/poll", agent_id="b", timeout=25)
        client.must("/task/post", description="held", posted_by="a", claim_timeout=30)
        claim = client.must("/task/claim", agent_id="b")
        victim.pause()
        send = pool.submit(client.must, "/msg/send", from_="a", to="b", content="while it slept")
        threading.Event().wait(5)
        assert not send.done()
        victim.resume()
        sent = send.result(10)
        assert [message["id"] for message in poll.result(10)[1]["messages"]] == [sent["message_id"]]
        client.must("/task/complete", agent_id="b", task_id=claim["task_id"], claim_token=claim["claim_token"])
        client.close()
        poller.close()
        assert victim.stop() == 0


SLEEPER = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
    sock.sendall(b"GET /msg/poll?agent_id=b&timeout=20 HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    print("asked", flush=True)
    data = sock.recv(65536)
    print(data.decode().partition("\\r\\n\\r\\n")[2], flush=True)
"""


@pytest.mark.parametrize("fate", ["wakes", "dies"])
def test_fault_27_a_client_that_was_stopped_gets_its_mail_or_leaves_it(tmp_path, fate):
    with Victim(tmp_path / "data") as victim:
        client = Client(victim.port)
        for name in ("a", "b"):
            client.must("/agent/register", agent_id=name)
        command = [sys.executable, "-c", SLEEPER, str(victim.port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sleeper:
            assert sleeper.stdout is not None
            assert sleeper.stdout.readline() == "asked\n"
            while not client.get("/stats")[1]["waiters"]:
                pass
            sleeper.send_signal(signal.SIGSTOP)
            sent = client.must("/msg/send", from_="a", to="b", content="x")["message_id"]
            threading.Event().wait(1)
            assert client.get("/msg/poll", agent_id="b", timeout=0)[1]["messages"] == []  # it is on its way to b
            if fate == "wakes":
                sleeper.send_signal(signal.SIGCONT)
                assert [message["id"] for message in json.loads(sleeper.stdout.readline())["messages"]] == [sent]
                sleeper.wait(5)
                assert client.get("/msg/poll", agent_id="b", timeout=1)[1]["messages"] == []
            else:
                sleeper.kill()
                again = client.get("/msg/poll", agent_id="b", timeout=5)[1]["messages"]
                assert [message["id"] for message in again] == [sent]
        client.close()
        assert victim.stop() == 0


# -- slow clients

SLOW = 1500
REOPENED_A_SECOND = 500
HEAD = b"POST /msg/send HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Slow: "
BODY = b"POST /msg/send HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"


class Drip(threading.Thread):
    """Slow heads and slow bodies: a byte a second each, opened anew when the daemon closes them."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.over = threading.Event()
        self.ended = 0
        """How many the daemon has ended."""
        self.most = 0
        """How many were open at once."""

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        opened, began = 0, time.monotonic()
        try:
            while not self.over.is_set():
                allowed = SLOW + REOPENED_A_SECOND * (time.monotonic() - began) - opened
                for _ in range(min(SLOW - len(selector.get_map()), int(allowed))):
                    opened += 1
                    selector.register(self._open(HEAD if opened % 2 else BODY), selectors.EVENT_READ)
                self.most = max(self.most, len(selector.get_map()))
                for key, _ in selector.select(0.05):
                    self._hear(selector, key.fileobj)
                for key in list(selector.get_map().values())[:: max(1, SLOW // 75)]:
                    try:
                        key.fileobj.send(b" ")
                    except OSError:
                        self._end(selector, key.fileobj)
        finally:
            for key in list(selector.get_map().values()):
                self._end(selector, key.fileobj)
            selector.close()

    def _open(self, opening: bytes) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        sock.setblocking(False)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # turned away already; reading will tell
            sock.send(opening)
        return sock

    def _hear(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        try:
            data = sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        assert not data or data.split(b" ")[1] in (b"408", b"503"), data
        if not data:
            self._end(selector, sock)

    def _end(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        selector.unregister(sock)
        sock.close()
        self.ended += 1


def latencies(port: int, seconds: float) -> list[float]:
    """A new connection, a send and its answer, again and again."""
    taken, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        client = Client(port, timeout=10)
        client.must("/msg/send", from_="a", to="b", content="x")
        client.close()
        taken.append(time.monotonic() - began)
    return taken


def test_fault_13_fifteen_hundred_slow_clients_slow_down_only_themselves(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * SLOW:
        pytest.skip(f"{SLOW} connections need more open files than this system allows")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * SLOW, hard))
    try:
        with Victim(tmp_path / "data") as victim:
            client = Client(victim.port)
            for name in ("a", "b"):
                client.must("/agent/register", agent_id=name)
            client.close()
            idle = latencies(victim.port, 2)
            drip = Drip(victim.port)
            drip.start()
            attacked = latencies(victim.port, 12)
            drip.over.set()
            drip.join()
            ratio = statistics.median(attacked) / statistics.median(idle)
            worst = sorted(attacked)[len(attacked) * 99 // 100] / statistics.median(idle)
            print(f"median {ratio:.1f} times idle, p99 {worst:.0f}; {drip.most} at once, {drip.ended} ended")
            assert drip.most > SLOW // 4
            assert drip.ended > SLOW // 2
            assert ratio < 30
            client = Client(victim.port)
            got = 0
            while more := client.get("/msg/poll", agent_id="b", limit=1000, timeout=1)[1]["messages"]:
                got += len(more)
            assert got == len(idle) + len(attacked)
            client.close()
            assert victim.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- for long

SOAK_S = int(os.environ.get("STONEMUX_SOAK", "60"))
WARM_S = 180
CACHES_KIB = 16 * 1024 + POOLED_READERS * 2 * 1024
"""What SQLite may keep of the pages of a growing database: the writer's cache, and the default one of each reader."""
SLACK_KIB = 10 * 1024


def resources(victim: Victim) -> dict[str, int]:
    """What the daemon uses now."""
    process = Path(f"/proc/{victim.process.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {
        "memory_kib": int(status["VmRSS"].split()[0]),
        "threads": int(status["Threads"]),
        "files": len(list((process / "fd").iterdir())),
        "log_bytes": (victim.data / "stonemux.db-wal").stat().st_size,
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells what a process uses")
def test_a_soak_leaves_memory_threads_and_files_as_they_were(tmp_path):
    """`STONEMUX_SOAK` seconds of everything at once; 1800 is what a release should pass."""
    from attack import receipts, wakeups

    with Victim(tmp_path / "data") as victim:
        fresh, most_log, rounds = resources(victim), 0, 0
        warm = fresh
        until, warm_until = time.monotonic() + SOAK_S, time.monotonic() + WARM_S
        while time.monotonic() < until:
            rounds += 1
            with ThreadPoolExecutor(3) as pool:
                left = pool.submit(receipts.attack, victim.port, seed=rounds, polls=400)
                rally = pool.submit(wakeups.attack, victim.port, seed=rounds, rallies=100)
                parked = pool.submit(park, victim.port, 40)
                assert not left.result().violations
                assert not rally.result().violations
                assert parked.result()
            most_log = max(most_log, resources(victim)["log_bytes"])
            if time.monotonic() < warm_until:
                warm = resources(victim)
        threading.Event().wait(2)
        end = resources(victim)
        print(rounds, "rounds", fresh, warm, end, "longest log", most_log)
        assert end["memory_kib"] - fresh["memory_kib"] < CACHES_KIB + SLACK_KIB
        assert end["files"] <= fresh["files"] + 3 * POOLED_READERS + 3
        assert most_log < 64 * 1024 * 1024
        if SOAK_S > 4 * WARM_S:  # by then the caches are full, and nothing may grow any more
            assert end["memory_kib"] - warm["memory_kib"] < SLACK_KIB
            assert end["threads"] <= warm["threads"] + 3
        assert victim.stop() == 0


def park(port: int, count: int) -> bool:
    """Open many polls and streams that find nothing, and close them."""
    client = Client(port)
    client.must("/agent/register", agent_id="parker")
    client.close()
    socks = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(count)]
    for number, sock in enumerate(socks):
        target = "/events" if number % 2 else f"/state/watch?key=nothing{number}&timeout=1"
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    threading.Event().wait(1.2)
    heard = all(sock.recv(20).startswith(b"HTTP/1.1 200") for sock in socks)
    for sock in socks:
        sock.close()
    return heard
