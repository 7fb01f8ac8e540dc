"""Mutated requests against a live daemon: each gets answers or a close, never a server error, and nothing hangs."""

from __future__ import annotations

import json
import random
import re
import socket
import time
import urllib.request

import pytest
from daemons import ChildDaemon, running_daemon

fuzz = pytest.importorskip("test_wire_fuzz", reason="it holds the requests and the mutations, and needs h11")

ROUNDS = 40_000
HANGS_S = 2.0
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
TOLD = {b"501", b"505"}
"""An unknown method and an unknown version of HTTP: the client's fault, in spite of the number."""


def answers(port: int, data: bytes) -> bytes:
    """All that the daemon says to these bytes and the end that follows them."""
    with socket.create_connection(("127.0.0.1", port), timeout=HANGS_S) as sock:
        said = b""
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65_536):
                said += piece
        except (ConnectionError, OSError) as trouble:
            if isinstance(trouble, TimeoutError):
                raise AssertionError(f"no end after {HANGS_S} s: {data!r}") from trouble
        return said


def call(daemon: ChildDaemon, path: str, **fields: object) -> dict[str, object]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{daemon.port}{path}", json.dumps(fields).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.load(answer))


def test_mutated_requests_are_answered_or_ended_and_the_daemon_goes_on(tmp_path):
    chance = random.Random(20)
    seen: dict[bytes, int] = {}
    with running_daemon(tmp_path / "data", "--log-level", "warning") as daemon:
        begun = time.monotonic()
        for number in range(ROUNDS):
            data = fuzz.mutate(chance, chance.choice(fuzz.SEEDS)).replace(b"3392", b"%d" % daemon.port)
            said = answers(daemon.port, data)
            assert not said or said.startswith(b"HTTP/1.1 "), (data, said)
            for status in STATUS.findall(said):
                seen[status] = seen.get(status, 0) + 1
                assert status < b"500" or status in TOLD, (number, data, said)
        assert {b"200", b"400"} <= set(seen), (seen, time.monotonic() - begun)
        call(daemon, "/agent/register", agent_id="ann")
        call(daemon, "/msg/send", **{"from": "ann", "to": "ann", "content": "still there"})
        got = json.loads(daemon.get("/msg/poll?agent_id=ann&timeout=1"))
        assert got["messages"][0]["content"] == "still there"
        daemon.process.terminate()
        _, logged = daemon.process.communicate(timeout=10)
        assert "error" not in logged.lower(), logged[-2000:]
