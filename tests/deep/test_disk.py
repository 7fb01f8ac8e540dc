"""The disk fails: at every single call, when it is full, and when the power goes out.

strace injects the faults, and file systems are mounted; what the machine does not allow is skipped with a reason.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from attack.calls import Client, NotSentError, UnknownError
from attack.victim import StillbornError, Victim
from daemons import SERVE

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace injects the faults; it is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount file systems")
needs_ext4 = pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="mkfs.ext4 makes the disk; it is not installed")

STRACE = ("strace", "-D", "-f", "-qq", "--seccomp-bpf")
"""`-D`: the daemon stays our child, and strace watches from aside."""

FAULTS_AT = range(1, 61)


class Script:
    """Sixty changes of all kinds, always the same; remembers which were acknowledged."""

    def __init__(self, port: int) -> None:
        self.client = Client(port)
        self.messages: list[int] = []
        self.versions: dict[str, int] = {}
        self.tasks: list[str] = []
        self.completed: list[str] = []
        self.statuses: list[int | None] = []

    def run(self) -> None:
        """Until the end, or until the daemon no longer answers."""
        try:
            for number in range(10):
                self.ask("/agent/register", agent_id=f"a{number}")
                if sent := self.ask("/msg/send", from_="a0", to="a0", content=f"message {number}"):
                    self.messages.append(sent["message_id"])
                if changed := self.ask("/state/set", key=f"k{number % 3}", value=str(number)):
                    self.versions[f"k{number % 3}"] = changed["version"]
                if posted := self.ask("/task/post", description=str(number), posted_by="a0"):
                    self.tasks.append(posted["task_id"])
                claim = self.ask("/task/claim", agent_id="a0")
                if claim and claim["task_id"]:
                    held = {"task_id": claim["task_id"], "claim_token": claim["claim_token"], "agent_id": "a0"}
                    if self.ask("/task/complete", **held):
                        self.completed.append(claim["task_id"])
        except NotSentError:
            pass
        finally:
            self.client.close()

    @property
    def broke(self) -> bool:
        """Whether the daemon said that it cannot go on, or went away."""
        return 503 in self.statuses or None in self.statuses

    def ask(self, path: str, **body: Any) -> dict[str, Any] | None:
        """The answer, if it was acknowledged."""
        try:
            status, answer = self.client.post(path, **body)
        except UnknownError as outcome:
            said = outcome.args[0] if outcome.args else b'no answer: it had ended after an answer with "storage_error"'
            if b'"storage_error"' not in said:
                raise
            self.statuses.append(503 if outcome.args else None)
            return None
        self.statuses.append(status)
        if status == 404:  # the agent that a refused registration would have made
            assert answer["error"]["code"] == "agent_not_found"
            return None
        assert status in (200, 507), answer
        return answer if status == 200 else None

    def missing(self, port: int) -> list[str]:
        """What was acknowledged, and is not there."""
        client = Client(port)
        try:
            return [
                *(f"message {one}" for one in self.messages if client.get("/msg/status", id=one)[0] != 200),
                *(
                    f"version {version} of {key}"
                    for key, version in self.versions.items()
                    if client.get("/state/get", key=key)[1].get("version", 0) < version
                ),
                *(f"task {one}" for one in self.tasks if client.get("/task/get", task_id=one)[0] != 200),
                *(
                    f"completion of {one}"
                    for one in self.completed
                    if client.get("/task/get", task_id=one)[1]["task"]["status"] != "complete"
                ),
            ]
        finally:
            client.close()


def is_sound(database: Path) -> bool:
    with sqlite3.connect(database) as db:
        verdict = db.execute("pragma integrity_check").fetchone()[0]
    db.close()
    return verdict == "ok"


def with_fault(data: Path, fault: str, when: int, *, only: tuple[str, ...] = ()) -> tuple[Script | None, int]:
    """What the script saw (None: it never listened) and the exit status, where call `when` of each thread fails.

    `only` counts calls that concern these files of the data directory alone.
    """
    call, error = fault.split(":")
    places = [word for name in only for word in ("-P", str(data / name))]
    inject = (*places, "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}", "-o", os.devnull)
    try:
        with Victim(data, (*STRACE, *inject, *SERVE)) as victim:
            script = Script(victim.port)
            script.run()
            status = victim.ended() if script.broke else victim.stop()
            assert "Traceback" not in victim.log.read_text()
            return script, status
    except StillbornError as birth:
        status, said = birth.args
        assert "Traceback" not in said
        return None, status


def check_after(data: Path, script: Script | None) -> None:
    """Without the fault it starts again, and everything is there."""
    with Victim(data) as again:
        assert script is None or not script.missing(again.port)
        assert again.stop() == 0
    assert is_sound(data / "stonemux.db")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data directory with its tables."""
    data = tmp_path_factory.mktemp("made") / "data"
    with Victim(data) as victim:
        assert victim.stop() == 0
    return data


FAULTS = ["fdatasync:EIO", "pwrite64:EIO", "pwrite64:ENOSPC"]
READING = ["pread64:EIO", "openat:EIO", "openat:EMFILE"]
"""Reading and opening may fail without harm to what is stored: whatever happens, nothing acknowledged is lost."""


@needs_strace
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_35_the_disk_fails_at_any_call(tmp_path, made, fault):
    failed = full = 0
    for when in FAULTS_AT:
        data = tmp_path / f"{when}"
        shutil.copytree(made, data)
        script, status = with_fault(data, fault, when)
        if script is None:
            assert status in (5, 70, 78), when
        else:
            # a fault that only the end meets, when the log is folded in, may end it with either
            assert status in ((70,) if script.broke else (0, 70)), (when, script.statuses)
            failed += script.broke
            full += 507 in script.statuses
        check_after(data, script)
    print(fault, "failed", failed, "full", full)
    assert full if "ENOSPC" in fault else failed


@needs_strace
@pytest.mark.parametrize("fault", READING)
def test_fault_35_reading_or_opening_fails_at_any_call(tmp_path, made, fault):
    failed = 0
    for when in FAULTS_AT[:30]:
        data = tmp_path / f"{when}"
        shutil.copytree(made, data)
        script, status = with_fault(data, fault, when, only=("stonemux.db", "stonemux.db-wal", "stonemux.db-shm"))
        assert status in ((0, 70) if script is not None else (5, 70, 78)), when
        failed += script is None or script.broke
        check_after(data, script)
    print(fault, "failed", failed)
    assert failed


@needs_strace
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_35_the_disk_fails_while_the_tables_are_made(tmp_path, fault):
    for when in FAULTS_AT[::4]:
        data = tmp_path / f"{when}"
        script, status = with_fault(data, fault, when)
        assert script is not None or status in (5, 70, 78), when
        check_after(data, script)


@needs_strace
def test_fault_35_no_answer_leaves_before_its_sync(tmp_path):
    trace = tmp_path / "trace"
    watch = ("-e", "trace=fdatasync,sendto", "-o", str(trace))
    with Victim(tmp_path / "data", (*STRACE, *watch, *SERVE)) as victim:
        client = Client(victim.port)
        client.must("/agent/register", agent_id="a")
        for number in range(200):
            client.must("/msg/send", from_="a", to="a", content=str(number))
        client.close()
        assert victim.stop() == 0
    calls = re.findall(r"(fdatasync|sendto)\(\d+(?:, \"(HTTP/1.1 200))?", trace.read_text())
    order = ["answer" if status else call for call, status in calls if status or call == "fdatasync"]
    answers = [at for at, what in enumerate(order) if what == "answer"]
    assert len(answers) >= 201
    assert all(order[at - 1] == "fdatasync" for at in answers[:201])


def test_fault_35_a_limit_on_the_size_of_files_ends_it_and_loses_nothing(tmp_path):
    """RLIMIT_FSIZE is no full disk: SQLite reports a failed write, and the daemon ends."""
    data = tmp_path / "data"
    limited = ("bash", "-c", 'ulimit -f 1600; exec "$@"', "limited", *SERVE)
    with Victim(data, limited) as victim:
        client = Client(victim.port)
        client.must("/agent/register", agent_id="a")
        sent, said = [], b""
        try:
            for number in range(5000):
                sent.append(client.must("/msg/send", from_="a", to="a", content=f"{number}" + "x" * 4000)["message_id"])
        except UnknownError as ended:
            said = ended.args[0]
        assert b'"storage_error"' in said
        client.close()
        assert victim.ended() == 70
        assert "Traceback" not in victim.log.read_text()
    assert len(sent) > 10
    with Victim(data) as again:
        client = Client(again.port)
        assert [one for one in sent if client.get("/msg/status", id=one)[0] != 200] == []
        client.close()
        assert again.stop() == 0
    assert is_sound(data / "stonemux.db")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_fault_34_a_log_that_cannot_be_written_breaks_no_request(tmp_path):
    loud = ("bash", "-c", 'exec "$@" --log-level debug 2>/dev/full', "loud", *SERVE)
    with Victim(tmp_path / "data", loud) as victim:
        client = Client(victim.port)
        client.must("/agent/register", agent_id="a")
        for number in range(50):
            client.must("/msg/send", from_="a", to="a", content=f"{number}")
        assert len(client.get("/msg/poll", agent_id="a", timeout=0)[1]["messages"]) == 50
        assert client.get("/nowhere")[0] == 404
        client.close()
        assert victim.stop() == 0


@contextmanager
def mounted(where: Path, *how: str) -> Iterator[Path]:
    """A file system of our own, for as long as the block runs."""
    where.mkdir()
    made = subprocess.run(["mount", *how, str(where)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot mount: {made.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)


@needs_root
def test_fault_34_a_full_disk_refuses_changes_and_nothing_else(tmp_path):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs") as small:
        with Victim(small / "data") as victim:
            client = Client(victim.port)
            for name in ("a", "b"):
                client.must("/agent/register", agent_id=name)
            sent = [client.must("/msg/send", from_="a", to="b", content=f"early {n}")["message_id"] for n in range(20)]
            filler = small / "filler"
            with pytest.raises(OSError, match="No space"):
                fill(filler)
            status, refused = 200, {}
            for number in range(2000):
                status, refused = client.post("/msg/send", from_="a", to="b", content="x" * 2000 + str(number))
                if status != 200:
                    break
                sent.append(refused["message_id"])
            assert (status, refused["error"]["code"]) == (507, "storage_full")
            for path, query in (("/health", {}), ("/stats", {}), ("/msg/list", {}), ("/agent/discover", {})):
                assert client.get(path, **query)[0] == 200, path
            status, polled = client.get("/msg/poll", agent_id="b", limit=5, timeout=0)
            assert (status, [m["id"] for m in polled["messages"]]) == (200, sent[:5])
            filler.unlink()
            later = client.must("/msg/send", from_="a", to="b", content="later")
            got: list[int] = []
            while more := client.get("/msg/poll", agent_id="b", limit=1000, timeout=1)[1]["messages"]:
                got += [message["id"] for message in more]
            assert got == [*sent[5:], later["message_id"]]
            client.close()
            assert victim.stop() == 0
        assert is_sound(small / "data/stonemux.db")


def power_cuts(tmp_path: Path, command: tuple[str, ...] = SERVE) -> list[tuple[Path, int, int]]:
    """Images of a mounted disk, copied under load, as a power cut leaves them behind.

    With each come how many messages had been acknowledged, and the id of the newest.
    """
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    copies: list[tuple[Path, int, int]] = []
    with mounted(tmp_path / "live", "-o", "loop", str(image)) as live, Victim(live / "data", command) as victim:
        client = Client(victim.port)
        client.must("/agent/register", agent_id="a")
        last = 0
        for number in range(3000):
            last = client.must("/msg/send", from_="a", to="a", content=f"message {number}")["message_id"]
            if number % 600 == 599:
                copy = tmp_path / f"cut{number}"
                shutil.copyfile(image, copy)
                copies.append((copy, number + 1, last))
        client.close()
        assert victim.stop() == 0
    assert len(copies) == 5
    return copies


def stored(database: Path, newest: int) -> int:
    """How many messages up to this id are in a database; none in one that is not there or is not whole."""
    if not database.exists():
        return 0
    with closing(sqlite3.connect(database)) as db:
        try:
            return int(db.execute("select count(*) from message where id <= ?", (newest,)).fetchone()[0])
        except sqlite3.DatabaseError:
            return 0


@needs_root
@needs_ext4
def test_the_power_goes_and_what_was_acknowledged_is_there(tmp_path):
    for copy, count, newest in power_cuts(tmp_path):
        with mounted(tmp_path / f"{copy.name}-mounted", "-o", "loop", str(copy)) as found:
            with Victim(found / "data") as again:
                client = Client(again.port)
                assert client.get("/msg/status", id=newest)[0] == 200
                assert client.must("/msg/send", from_="a", to="a", content="after")["message_id"] > newest
                client.close()
                assert again.stop() == 0
            assert is_sound(found / "data/stonemux.db")
            assert stored(found / "data/stonemux.db", newest) == count


@needs_root
@needs_ext4
@pytest.mark.skipif(not shutil.which("eatmydata"), reason="eatmydata takes the syncs away; it is not installed")
def test_the_power_goes_and_without_syncs_what_was_acknowledged_is_lost(tmp_path):
    """The test above can fail: a daemon whose syncs do nothing loses messages in each of the same cuts."""
    for copy, count, newest in power_cuts(tmp_path, ("eatmydata", *SERVE)):
        with mounted(tmp_path / f"{copy.name}-mounted", "-o", "loop", str(copy)) as found:
            assert stored(found / "data/stonemux.db", newest) < count
