"""A disk that is really full: calls that settle and end things still work, on the ballast, and recover with the space.

Needs root, for its own small file system; skipped without it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attack.calls import Client
from daemons import running_daemon

from stonemux import ballast

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "tmpfs", str(where)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"cannot mount: {made.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def fill(file: Path) -> None:
    """Take all the space there is."""
    try:
        with file.open("wb", buffering=0) as open_file:
            for size in (65536, 4096):
                while open_file.write(b"x" * size) == size:
                    pass
    except OSError as full:
        if full.errno != 28:
            raise


def send_until_refused(client: Client) -> list[int]:
    sent = []
    while True:
        status, answer = client.post("/msg/send", from_="a", to="b", content="x" * 2000)
        if status != 200:
            assert (status, answer["error"]["code"]) == (507, "storage_full")
            return sent
        sent.append(answer["message_id"])


def test_fault_34_a_full_disk_can_be_worked_off(small):
    data = small / "data"
    with running_daemon(data) as daemon:
        client = Client(daemon.port)
        for name in ("a", "b"):
            client.must("/agent/register", agent_id=name)
        assert (data / "ballast").stat().st_size == ballast.BYTES
        tasks = [client.must("/task/post", description=str(n), posted_by="a")["task_id"] for n in range(20)]
        held = [client.must("/task/claim", agent_id="b") for _ in tasks]
        fill(small / "filler")
        sent = send_until_refused(client)
        assert not (data / "ballast").exists()
        for _ in range(50):  # no send gets through while acknowledging goes on
            assert client.post("/msg/send", from_="a", to="b", content="x")[0] == 507
            status, got = client.get("/msg/poll", agent_id="b", ack="manual", limit=10, timeout=0)
            assert status == 200
            ids = [message["id"] for message in got["messages"]]
            if ids:
                assert client.post("/msg/ack", agent_id="b", ids=ids) == (200, {"acked": len(ids)})
        for claim in held:
            done = {"task_id": claim["task_id"], "claim_token": claim["claim_token"], "agent_id": "b"}
            assert client.post("/task/complete", **done, result="y" * 100)[0] == 200
        assert client.get("/stats")[1]["tasks"]["complete"] == len(tasks)
        settled = {i: client.get("/msg/status", id=i)[1] for i in sent[:5]}
        assert all(row["recipients"][0]["status"] == "acked" for row in settled.values())
        client.close()
    with running_daemon(data) as daemon:  # stopping folded the log in, which made some room
        client = Client(daemon.port)
        assert client.post("/msg/send", from_="a", to="b", content="x")[0] == 200
        assert (data / "ballast").stat().st_size == ballast.BYTES
        client.close()


def test_fault_34_a_start_on_a_full_disk_takes_the_ballast(small):
    data = small / "data"
    with running_daemon(data) as daemon:
        client = Client(daemon.port)
        client.must("/agent/register", agent_id="a")
        sent = client.must("/msg/send", from_="a", to="a", content="x")["message_id"]
        client.close()
    fill(small / "filler")
    with running_daemon(data) as daemon:
        client = Client(daemon.port)
        assert client.post("/msg/send", from_="a", to="a", content="x")[0] == 507
        assert client.get("/msg/poll", agent_id="a", ack="manual", timeout=0)[1]["messages"][0]["id"] == sent
        assert client.post("/msg/ack", agent_id="a", ids=[sent]) == (200, {"acked": 1})
        (small / "filler").unlink()
        assert client.post("/msg/send", from_="a", to="a", content="x")[0] == 200
        assert (data / "ballast").stat().st_size == ballast.BYTES
        client.close()


def test_fault_34_a_backup_onto_a_full_disk_is_refused_and_leaves_nothing(small):
    data = small / "data"
    with running_daemon(data) as daemon:
        client = Client(daemon.port)
        client.must("/agent/register", agent_id="a")
        fill(small / "filler")
        status, answer = client.post("/admin/backup")
        assert (status, answer["error"]["code"]) == (507, "storage_full")
        assert list((data / "backups").iterdir()) == []
        (small / "filler").unlink()
        assert client.post("/admin/backup")[0] == 200
        client.close()
