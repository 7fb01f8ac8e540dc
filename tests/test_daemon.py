"""The daemon as an operator sees it: a child process that starts, reports it, refuses, stops, and comes back."""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import json
import logging
import os
import pty
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from children import BARE
from conftest import Program
from daemons import ROOT, SERVE, ChildDaemon, as_a_process, free_port, log_until, running_daemon, spawn, tried
from faces import Direct
from fake_clock import FakeClock
from raw import PATIENCE_S, Raw, eventually, get, post

from stonemux import VERSION, cli, daemon, datadir, logs, pool, timekeeper
from stonemux.config import Settings
from stonemux.datadir import DataDir, read_owner_token
from stonemux.errors import MuxError
from stonemux.ground import MOST_PATH
from stonemux.record import replace
from stonemux.store import Store

STOP_S = 2.0
SLOW_S = 20


def run(*arguments: str, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "stonemux", *arguments],
        cwd=ROOT,
        env={**BARE, "HOME": str(home), **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SLOW_S,
    )


def refusal(status: int, data: Path, *flags: str, run: Any = tried) -> str:
    """What `serve` says when it refuses to start: one line, and this exit status."""
    done = run("serve", "--port", "0", "--data-dir", str(data), *flags, home=data.parent)
    assert (done.returncode, done.stdout) == (status, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("stonemux: ")
    return line


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Start a daemon in this process that stops as soon as it has told that it listens."""
    banner = daemon.banner

    def tell(running: daemon.Daemon) -> str:
        with urllib.request.urlopen(f"{running.url}/health", timeout=PATIENCE_S) as answer:
            assert json.load(answer)["status"] == "ok"
        running.stop()
        return banner(running)

    def serve(*flags: str, home: Path | str | None) -> tuple[str, str]:
        done = tried("serve", "--port", "0", *flags, home=home)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout, capfd.readouterr().err

    monkeypatch.setattr(daemon, "banner", tell)
    return serve


def ask(daemon: ChildDaemon, data: bytes) -> Any:
    with Raw(daemon.port) as raw:
        return raw.ask(data)


def send(daemon: ChildDaemon, content: str) -> Any:
    return ask(daemon, post("/msg/send", {"from": "ann", "to": "bob", "content": content}))


def introduce(daemon: ChildDaemon) -> None:
    for agent_id in ("ann", "bob"):
        assert ask(daemon, post("/agent/register", {"agent_id": agent_id})).status == 200


def poll(daemon: ChildDaemon) -> list[str]:
    got = ask(daemon, get("/msg/poll?agent_id=bob&timeout=0&limit=1000"))
    assert got.status == 200
    return [m["content"] for m in got.json["messages"]]


def exit_status(daemon: ChildDaemon) -> int:
    """Wait for the end, in the time that a stop may take."""
    return daemon.process.wait(STOP_S)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def made(data: Path) -> Path:
    """A data directory with a past, closed in good order."""
    program = Program(data)
    direct = Direct(program.mux)
    for agent_id in ("ann", "bob"):
        direct.call("agent.register", agent_id=agent_id)
    direct.call("msg.send", from_="ann", to="bob", content="from before")
    program.close()
    return data


def contents(data: Path) -> dict[str, bytes]:
    """Every file of a directory."""
    return {path.name: path.read_bytes() for path in data.iterdir()}


# --- starting and stopping -----------------------------------------------------------------------------------------


def test_the_banner_says_where_what_and_what_next(data):
    with running_daemon(data) as daemon:
        lines = daemon.banner.splitlines()
        assert lines[0] == f"stonemux {VERSION}"
        assert f"  listening http://127.0.0.1:{daemon.port}" in lines
        assert f"  data      {data}" in lines
        assert "  tier      enterprise" in lines
        assert f"  try       python3 -m stonemux status --port {daemon.port}" in lines
        assert json.loads(daemon.get("/health"))["status"] == "ok"
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        for path in data.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert (data / "daemon.pid").read_text() == f"{daemon.process.pid}\n"
        assert read_owner_token(data, f"localhost:{daemon.port}").startswith("owner_")


def test_the_banner_names_what_status_needs(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setattr(sys, "argv", ["stonemux"])
    for required, path, certificate, flag in (
        (True, "/srv/my data", "", " --data-dir '/srv/my data'"),
        (False, "/srv/my data", "", ""),
        (True, "/home/ann/.stonemux", "", ""),
        (False, "/home/ann/.stonemux", "/srv/cert.pem", ""),
    ):
        running: Any = SimpleNamespace(
            url="http://127.0.0.1:3392",
            settings=replace(Settings(), data_dir=Path(path), tls_cert=certificate),
            mux=SimpleNamespace(tier="free", tokens=SimpleNamespace(required=required)),
            server=SimpleNamespace(port=3392),
        )
        variable = certificate and f"STONEMUX_TLS_CERT={certificate} "
        assert f"  try       {variable}stonemux status{flag}\n" in daemon.banner(running)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_e9_a_stop_answers_what_waits_and_ends_in_time(data, stop):
    with (
        running_daemon(data) as daemon,
        Raw(daemon.port) as poller,
        Raw(daemon.port) as stream,
        Raw(daemon.port) as idle,
    ):
        introduce(daemon)
        assert idle.ask(get("/health")).status == 200
        stream.send(get("/events"))
        assert stream.head()[0] == 200
        stream.read_until(b"\n\n")
        poller.send(get("/msg/poll?agent_id=bob&timeout=60"))
        eventually(lambda: json.loads(daemon.get("/stats"))["waiters"] == 2)
        begun = time.monotonic()
        daemon.process.send_signal(stop)
        assert poller.answer().json == {"messages": []}
        assert stream.read_until(b"\n\n").startswith(b"event: shutdown\ndata: {")
        assert stream.has_ended()
        assert idle.has_ended()
        assert exit_status(daemon) == 0
        assert time.monotonic() - begun < STOP_S
        assert not [file.name for file in data.iterdir() if file.name.startswith(("daemon.", "owner."))]
        assert not (data / "stonemux.db-wal").exists()


def test_a_stop_does_not_wait_for_a_program_that_has_locked_the_database(made, monkeypatch, background):
    monkeypatch.setattr("stonemux.store.BUSY_TURN_MS", 1)
    monkeypatch.setattr("stonemux.store.BUSY_TURNS", 2**62)  # as long as it runs, it waits for the end of the lock
    running = daemon.Daemon(replace(Settings(), data_dir=made, port=0))
    with contextlib.closing(sqlite3.connect(made / "stonemux.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with Raw(running.server.port) as raw:
            raw.send(post("/msg/send", {"from": "ann", "to": "bob", "content": "too late"}))
            eventually(lambda: running.mux.store.led)
            closing = background(running.close)
            assert raw.answer().json["error"]["code"] == "storage_busy"
        closing.result(PATIENCE_S)


def test_a_stop_right_after_the_start_is_heard(data):
    for _ in range(3):
        with running_daemon(data) as daemon:
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.send_signal(signal.SIGTERM)
            assert exit_status(daemon) == 0


def test_a_signal_is_heard_even_if_it_comes_just_before_the_sleep(data):
    """As it is then: the system has noted it, but Python's handler has had no chance to run."""

    def say(_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.raise_signal(signal.SIGTERM)

    with as_a_process():
        assert daemon.serve(replace(Settings(), data_dir=data, port=0), accept_rollback=False, say=say) == 0


def test_sighup_takes_over_what_may_change_and_tells_the_rest(data):
    config = data.parent / "settings.toml"
    config.write_text("[coordination]\nmax_message_size = 300\n")
    with running_daemon(data, "--config", str(config)) as daemon:
        introduce(daemon)
        letter = post("/msg/send", {"from": "ann", "to": "bob", "content": "x" * 400})
        assert ask(daemon, letter).status == 413
        config.write_text(
            '[coordination]\nmax_message_size = 500\n[server]\nmax_connections = 600\n[logging]\nlevel = "debug"'
        )
        daemon.process.send_signal(signal.SIGHUP)
        said = log_until(daemon.process, "were reloaded: 2 changed, 1 will change at the next start")
        assert "coordination.max_message_size changed from 300 to 500" in said
        assert "logging.level changed from info to debug" in said
        assert "server.max_connections will change when the daemon restarts" in said
        assert ask(daemon, letter).status == 200
        assert '"maxLength":500' in ask(daemon, get("/openapi.json")).body.decode().replace(" ", "")
        config.write_text("[coordination]\nmax_mesage_size = 600\n")
        daemon.process.send_signal(signal.SIGHUP)
        assert "did you mean coordination.max_message_size" in log_until(daemon.process, "settings are unchanged")[-1]
        config.write_text('[server]\nhost = "0.0.0.0"\n')
        daemon.process.send_signal(signal.SIGHUP)
        assert "server.tls_cert" in log_until(daemon.process, "settings are unchanged")[-1]
        assert ask(daemon, letter).status == 200


def test_sighup_while_it_starts_is_heeded_as_soon_as_it_can(data, monkeypatch):
    """By default it would end the daemon, and systemd would not start one that ended so again."""
    heard: list[int] = []

    def start(*_: Any, say: Any, **__: Any) -> int:
        signal.raise_signal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, lambda number, _: heard.append(number))
        say(None)
        return 0

    monkeypatch.setattr(daemon, "serve", start)
    monkeypatch.setattr(daemon, "banner", lambda running: "it listens")
    done = tried("serve", "--data-dir", str(data), home=data)
    assert (done.returncode, done.stdout) == (0, "it listens\n")
    assert heard == [signal.SIGHUP]


def test_a_daemon_ends_with_its_terminal(data):
    """A closed terminal sends SIGHUP, too."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [*SERVE, "--port", "0", "--data-dir", str(data)],
        cwd=ROOT,
        env={**BARE, "HOME": str(data.parent)},
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(its)
    said = b""
    while b"stop" not in said:
        said += os.read(ours, 1024)
    os.close(ours)
    assert process.wait(STOP_S) == 0
    assert not (data / "daemon.pid").exists()


def test_i1_what_was_acknowledged_survives_a_kill(data):
    with running_daemon(data) as daemon, Raw(daemon.port) as raw:
        introduce(daemon)
        for n in range(50):
            assert raw.ask(post("/msg/send", {"from": "ann", "to": "bob", "content": f"{n}"})).status == 200
        daemon.process.kill()
        assert daemon.process.wait(STOP_S) == -signal.SIGKILL
    with running_daemon(data) as daemon:
        assert poll(daemon) == [f"{n}" for n in range(50)]
        assert ask(daemon, get("/agent/get?agent_id=ann")).status == 200
    with sqlite3.connect(data / "stonemux.db") as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    db.close()


def test_a_daemon_starts_from_a_checkout_that_cannot_be_written(data, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "stonemux", checkout / "stonemux", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (checkout / "stonemux", checkout):
        path.chmod(0o555)
    try:
        before = sorted(checkout.rglob("*"))
        done = subprocess.run(
            [sys.executable, "-m", "stonemux", "status", "--data-dir", str(data)],
            cwd=checkout,
            env=BARE,
            capture_output=True,
            text=True,
            timeout=SLOW_S,
        )
        assert (done.returncode, done.stderr) == (0, "")
        with running_daemon(data, environ={"PYTHONPATH": str(checkout)}) as daemon:
            assert json.loads(daemon.get("/health"))["status"] == "ok"
        assert sorted(checkout.rglob("*")) == before
    finally:
        for path in (checkout, checkout / "stonemux"):
            path.chmod(0o755)


@pytest.mark.parametrize("home", ["", None])
def test_a_daemon_needs_no_home(data, home, served, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    assert f"data      {data}" in served("--data-dir", str(data), home=home)[0]


def test_the_data_lies_at_home_unless_said_otherwise(tmp_path):
    done = run("serve", "--host", "0.0.0.0", home=tmp_path)
    assert done.returncode == 5
    assert not (tmp_path / ".stonemux").exists(), "an unsafe start leaves nothing behind"


# --- refusing to start ---------------------------------------------------------------------------------------------


def test_a_busy_port_is_told(data):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = tried("serve", "--port", str(port), "--data-dir", str(data), home=data.parent)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert f"127.0.0.1:{port}" in line
    assert "--port" in line
    assert not (data / "daemon.pid").exists()


@pytest.mark.parametrize("name", ["committer", "timekeeper", "door"])
def test_a_start_without_a_thread_left_is_one_clear_refusal_and_leaves_nothing(made, monkeypatch, name):
    start, before = threading.Thread.start, set(threading.enumerate())

    def no_thread(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(MuxError, match="no more threads") as caught:
        daemon.serve(replace(Settings(), data_dir=made, port=0), accept_rollback=False, say=print)
    assert caught.value.failure.exit == 1, "the service tries again"
    assert not list(made.glob("*-wal")), "the database is closed"
    DataDir(made).close()
    assert not [file.name for file in made.iterdir() if file.name.startswith(("daemon.", "owner."))]
    eventually(lambda: set(threading.enumerate()) <= before, "no thread goes on without the database")


def test_fault_38_a_second_daemon_on_the_directory_names_the_first(data):
    with running_daemon(data) as daemon:
        line = refusal(4, data, run=run)
        assert f"pid {daemon.process.pid}" in line
        assert "--data-dir" in line
        assert json.loads(daemon.get("/health"))["status"] == "ok"


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--port", "abc"), "port"),
        (("--port", "70000"), "65535"),
        (("--log-level", "loud"), "loud"),
        (("--config", "/nonexistent.toml"), "nonexistent"),
    ],
)
def test_a_bad_setting_is_told(data, flags, word):
    done = tried("serve", "--data-dir", str(data), *flags, home=data.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert word in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not data.exists()


def test_a_bad_line_of_the_settings_file_is_told(data):
    data.mkdir(mode=0o700)
    (data / "config.toml").write_text("[server]\nprot = 1\n")
    line = refusal(2, data)
    assert "config.toml" in line
    assert "port" in line


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_a_daemon_open_to_others_is_refused(data, host):
    assert host in refusal(5, data, "--host", host)
    assert not data.exists()


def test_a_directory_that_others_may_write_to_is_refused(data):
    data.mkdir()
    data.chmod(0o777)
    assert "chmod 700" in refusal(5, data)
    assert contents(data) == {}


def test_a_file_in_the_place_of_the_directory_is_refused(data):
    data.write_text("a file")
    assert str(data) in refusal(5, data)
    assert data.read_text() == "a file"


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home {home} nfs4 rw 0 0
/dev/sdb1 {home}/local ext4 rw 0 0
me@host: {home}/with\\040blank fuse.sshfs rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [("data", "nfs4"), ("local/data", ""), ("localized/data", "nfs4"), ("with blank/data", "fuse.sshfs")],
)
def test_fault_38_a_network_file_system_is_refused(tmp_path, place, kind):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS.format(home=tmp_path))
    path = tmp_path / place
    if not kind:
        DataDir(path, mounts=mounts).close()
        return
    with pytest.raises(MuxError) as caught:
        DataDir(path, mounts=mounts)
    assert (caught.value.code, caught.value.failure.exit) == ("unsafe_environment", 5)
    assert f"({kind})" in caught.value.message
    DataDir(path, allow_network_fs=True, mounts=mounts).close()


def test_a_path_that_is_too_long_for_sqlite_is_refused_and_the_longest_other_can_be_backed_up(tmp_path):
    path = tmp_path.resolve() / ("ü" * 100)
    path /= "x" * (MOST_PATH - len(os.fsencode(path)) - 1)
    with pytest.raises(MuxError, match=f"{MOST_PATH + 1} bytes") as caught:
        DataDir(Path(f"{path}x"))
    assert (caught.value.code, path.parent.exists()) == ("unsafe_environment", False)
    program = Program(path)
    assert Direct(program.mux).call("admin.backup")["bytes"] > 0
    program.close()


def test_a_system_without_a_table_of_mounts_is_no_obstacle(tmp_path):
    DataDir(tmp_path / "data", mounts=tmp_path / "none").close()


def test_a_command_that_looks_whether_a_daemon_runs_does_not_keep_one_from_starting(tmp_path, monkeypatch):
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)  # as `is_held` does for an instant
    monkeypatch.setattr(datadir.Clock, "pause", lambda clock, ms: os.close(looking))
    DataDir(tmp_path).close()


def test_a_directory_that_was_moved_leaves_the_one_in_its_place_alone(tmp_path):
    moved = DataDir(tmp_path / "data")
    moved.path.rename(tmp_path / "moved")
    other = DataDir(tmp_path / "data")
    for name in datadir.ADDRESS, datadir.OWNER_TOKEN:
        other.write_passing(name, "the other's")
    other.write_head(datadir.Head(1))
    before = contents(other.path)
    with pytest.raises(OSError, match="was moved"):
        moved.write_head(datadir.Head(1000))
    moved.close()
    assert contents(other.path) == before
    other.close()
    assert set(contents(other.path)) == {datadir.HEAD}


def test_a_refused_directory_stays_unlocked(tmp_path):
    path = tmp_path / "data"
    first = DataDir(path)
    with pytest.raises(MuxError):
        DataDir(path)
    first.close()
    DataDir(path).close()


def newer(data: Path) -> None:
    db = sqlite3.connect(data / "stonemux.db")
    db.execute("pragma user_version=999")
    db.commit()
    db.close()


def garbage(data: Path) -> None:
    (data / "stonemux.db").write_bytes(b"this is no database " * 1000)


def truncated(data: Path) -> None:
    os.truncate(data / "stonemux.db", 0)


def halved(data: Path) -> None:
    path = data / "stonemux.db"
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def gone(data: Path) -> None:
    (data / "stonemux.db").unlink()


def emptied(data: Path) -> None:
    path = data / "stonemux.db"
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("vacuum")
    db.close()


def foreign(data: Path) -> None:
    shutil.rmtree(data)
    data.mkdir(mode=0o700)
    db = sqlite3.connect(data / "stonemux.db")
    db.executescript("create table theirs (x); insert into theirs values (1);")
    db.close()


def foreign_by_id(data: Path) -> None:
    shutil.rmtree(data)
    data.mkdir(mode=0o700)
    db = sqlite3.connect(data / "stonemux.db")
    db.executescript("pragma application_id=1234; pragma journal_mode=wal; create table theirs (x);")
    db.close()


def behind(data: Path) -> None:
    (data / "head.json").write_text('{"event_seq": 100000, "at": 0}\n')


FAULT_37: Sequence[tuple[Callable[[Path], None], str]] = (
    (newer, "newer"),
    (garbage, "cannot be read"),
    (truncated, "missing or empty"),
    (halved, ""),
    (gone, "missing or empty"),
    (emptied, "once held data"),
    (foreign, "another program"),
    (foreign_by_id, "another program"),
    (behind, "--accept-rollback"),
)


@pytest.mark.parametrize(("spoil", "word"), FAULT_37, ids=lambda value: getattr(value, "__name__", ""))
def test_fault_37_odd_data_is_refused_and_left_as_it_is(made, spoil, word):
    spoil(made)
    before = contents(made)
    line = refusal(78, made)
    assert word in line
    assert "stonemux.db" in line
    assert contents(made) == before


def killed(program: Program, data: Path) -> None:
    """What a kill of `program` at this moment leaves behind, in another directory."""
    data.mkdir(mode=0o700)
    for path in program.path.iterdir():
        if path.name not in ("daemon.pid", "stonemux.db-shm"):
            shutil.copy(path, data)


@pytest.mark.parametrize("spoil", [newer, behind])
def test_fault_37_a_log_that_was_not_folded_in_is_left_as_it_is(data, open_program, spoil):
    """What is refused keeps its write-ahead log, which may be all that can be saved."""
    program = open_program()
    Direct(program.mux).call("agent.register", agent_id="ann")
    if spoil is newer:
        db = sqlite3.connect(program.path / "stonemux.db")
        db.execute("pragma user_version=999")
        killed(program, data)
        db.close()
    else:
        killed(program, data)
        behind(data)
    before = contents(data)
    assert len(before["stonemux.db-wal"]) > 0
    refusal(78, data)
    after = contents(data)
    after.pop("stonemux.db-shm", None)  # an index of the log, made anew by every reader
    assert after == before


def test_a_log_that_was_not_folded_in_is_read_at_the_start(data, open_program):
    program = open_program()
    direct = Direct(program.mux)
    for agent_id in ("ann", "bob"):
        direct.call("agent.register", agent_id=agent_id)
    direct.call("msg.send", from_="ann", to="bob", content="in the log")
    killed(program, data)
    with running_daemon(data) as daemon:
        assert poll(daemon) == ["in the log"]


def test_a_rollback_may_be_accepted_and_ids_go_on(made):
    behind(made)
    with running_daemon(made, "--accept-rollback") as daemon:
        assert poll(daemon) == ["from before"]
        assert send(daemon, "after").status == 200
        head = json.loads(daemon.get("/stats"))["events"]["head"]
        assert head > 100_000
    with running_daemon(made) as daemon:
        assert json.loads(daemon.get("/stats"))["events"]["head"] == head


# --- trouble with the storage --------------------------------------------------------------------------------------


def unlink_database(data: Path) -> None:
    (data / "stonemux.db").unlink()


def unlink_log(data: Path) -> None:
    (data / "stonemux.db-wal").unlink()


def replace_database(data: Path) -> None:
    shutil.copy(data / "stonemux.db", data / "copy")
    os.replace(data / "copy", data / "stonemux.db")


def replace_both(data: Path) -> None:
    for name in ("stonemux.db", "stonemux.db-wal"):
        shutil.copy(data / name, data / "copy")
        os.replace(data / "copy", data / name)


@pytest.mark.parametrize("meddle", [unlink_database, unlink_log, replace_database, replace_both])
def test_fault_36_a_database_that_was_taken_away_is_not_written_to(data, meddle):
    with running_daemon(data) as daemon:
        introduce(daemon)
        message_id = send(daemon, "kept").json["message_id"]
        assert poll(daemon) == ["kept"]
        settled = get(f"/msg/status?id={message_id}")
        eventually(lambda: ask(daemon, settled).json["recipients"][0]["status"] == "acked")  # the last write of its own
        meddle(data)
        replaced = {name: inode(data / name) for name in ("stonemux.db", "stonemux.db-wal") if (data / name).exists()}
        before = contents(data)
        got = send(daemon, "not kept")
        assert (got.status, got.code) == (503, "storage_lost")
        assert got.headers["retry-after"]
        assert exit_status(daemon) == 70
        assert daemon.process.stderr is not None
        assert "under the running daemon" in daemon.process.stderr.read()
    if meddle is unlink_log:  # the database itself is still ours, and gets back what the lost log held
        with running_daemon(data) as daemon:
            listed = ask(daemon, get("/msg/list?agent_id=bob")).json["messages"]
            assert "kept" in [m["content"] for m in listed]
        return
    assert ("stonemux.db" in contents(data)) == (meddle is not unlink_database)
    if meddle is not unlink_database:
        assert inode(data / "stonemux.db") == replaced["stonemux.db"]
        assert contents(data)["stonemux.db"] == before["stonemux.db"], "what lies there now is not ours to touch"
    if meddle is replace_both:
        assert contents(data)["stonemux.db-wal"] == before["stonemux.db-wal"]


def inode(path: Path) -> int:
    return path.stat().st_ino


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A disk of two megabytes; needs root."""
    path.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system could be mounted: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_fault_34_a_full_disk_stops_writes_only_and_only_while_it_is_full(tmp_path):
    with small_disk(tmp_path / "disk") as disk, running_daemon(disk) as daemon:
        introduce(daemon)
        kept = [f"{n}" for n in range(5)]
        for content in kept:
            assert send(daemon, content).status == 200
        with open(disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):  # no space is left
            while True:
                filler.write(b"x" * 4096)
        for n in range(20):
            got = send(daemon, "y" * 60_000)
            if n > 2:
                assert (got.status, got.code) == (507, "storage_full")
                assert got.headers["retry-after"]
        assert ask(daemon, get("/msg/list?agent_id=bob")).status == 200
        assert ask(daemon, get("/health")).status == 200
        assert poll(daemon)[:5] == kept
        (disk / "filler").unlink()
        assert send(daemon, "there is room again").status == 200
        assert "there is room again" in poll(daemon)
        daemon.process.send_signal(signal.SIGTERM)
        assert exit_status(daemon) == 0
        assert daemon.process.stderr is not None
        assert "Traceback" not in daemon.process.stderr.read()


def test_fault_34_housekeeping_goes_on_when_the_head_cannot_be_noted(program, monkeypatch):
    Direct(program.mux).call("agent.register", agent_id="ann")
    purged: list[int] = []
    monkeypatch.setattr(program.timekeeper, "_purge", purged.append)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DataDir, "write_head", full)
    program.clock.advance(timekeeper.HOUSEKEEPING_MS)
    program.timekeeper.tick()
    assert purged
    monkeypatch.undo()
    program.timekeeper.tick()
    assert json.loads((program.path / "head.json").read_text())["event_seq"] == program.store.head


# --- logs ----------------------------------------------------------------------------------------------------------


def test_the_log_is_json_for_programs(data, served):
    banner, log = served("--log-format", "json", "--data-dir", str(data), home=data)
    entries = [json.loads(line) for line in log.splitlines()]
    assert [entry["level"] for entry in entries] == ["info", "info"]
    assert set(entries[0]) == {"at", "level", "message"}
    assert banner.count("\n") == 6


def test_the_log_is_text_for_people(data, served):
    lines = served("--log-format", "text", "--data-dir", str(data), home=data)[1].splitlines()
    assert len(lines) == 2
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info     stonemux ", line) for line in lines)


def test_the_level_silences_what_is_less_important(data, served):
    assert served("--log-level", "warning", "--data-dir", str(data), home=data)[1] == ""


@pytest.fixture
def stuck() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe that is full; reading from it does not wait."""
    heard, told = os.pipe()
    os.set_blocking(heard, False)
    fill(told)
    yield heard, told
    os.close(heard)
    os.close(told)


def fill(told: int) -> None:
    os.set_blocking(told, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(told, b"." * size)
    os.set_blocking(told, True)


def logger_to(fd: int, monkeypatch: Any) -> logging.Handler:
    monkeypatch.setattr(logs, "STANDARD_ERROR", fd)
    handler = logs._StandardError()
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


def test_a_line_of_json_holds_the_trace_of_a_failure():
    try:
        raise ZeroDivisionError("secret\nline")
    except ZeroDivisionError:
        record = logging.makeLogRecord({"msg": "it failed", "levelname": "ERROR", "exc_info": sys.exc_info()})
    line = logs._Json().format(record)
    told = json.loads(line)
    assert (told["level"], told["message"], "\n" in line) == ("error", "it failed", False)
    assert told["trace"].endswith("ZeroDivisionError: secret\nline")


def test_a_line_for_which_there_is_no_memory_fails_nobody(stuck, monkeypatch):
    def fail(record: logging.LogRecord) -> str:
        raise MemoryError

    handler = logger_to(stuck[1], monkeypatch)
    monkeypatch.setattr(handler, "format", fail)
    handler.handle(logging.makeLogRecord({"msg": "one"}))


def test_a_log_that_nobody_reads_holds_nobody_up_and_says_what_is_missing(stuck, monkeypatch, background):
    heard, told = stuck
    handler = logger_to(told, monkeypatch)

    def say(*lines: str) -> None:
        for line in lines:
            handler.handle(logging.makeLogRecord({"msg": line}))

    background(say, "one", "two", "three").result(PATIENCE_S)
    assert os.read(heard, 1 << 20).strip(b".") == b""
    say("four", "five")
    assert os.read(heard, 1 << 20).splitlines()[1:] == [b"four", b"five"]
    say("six")
    assert os.read(heard, 1 << 20) == b"six\n"


def test_a_long_line_whose_rest_nobody_took_is_ended_before_the_next(stuck, monkeypatch, background):
    heard, told = stuck
    handler = logger_to(told, monkeypatch)
    os.read(heard, 4096)  # room for its beginning
    background(handler.handle, logging.makeLogRecord({"msg": "x" * 10_000})).result(PATIENCE_S)
    os.read(heard, 1 << 20)
    handler.handle(logging.makeLogRecord({"msg": "whole"}))
    assert [line[-3:] for line in os.read(heard, 1 << 20).splitlines()] == [b"", b": 1", b"ole"]


def test_a_daemon_whose_log_nobody_reads_serves_and_stops(data, stuck):
    _, told = stuck
    port = free_port()
    with open(told, "w", closefd=False) as full:
        process = spawn(data, port=port, stderr=full)
    try:
        daemon = ChildDaemon(process, port, "")
        assert any(line.strip().startswith("stop") for line in process.stdout)
        process.send_signal(signal.SIGHUP)
        assert ask(daemon, get("/health")).status == 200
        process.terminate()
        assert process.wait(STOP_S) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.parametrize("words", [(), ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")], ids=["full", "closed"])
def test_a_log_and_a_banner_that_cannot_be_written_do_not_disturb(data, words):
    port = free_port()
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [*words, sys.executable, "-m", "stonemux", "serve", "--port", str(port), "--data-dir", str(data)],
            cwd=ROOT,
            env={**BARE, "HOME": str(data.parent)},
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=full,
        )
    try:
        daemon = ChildDaemon(process, port, "")

        def answers() -> bool:
            assert process.poll() is None, "it ended"
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", port)) == 0

        eventually(answers)
        introduce(daemon)
        assert send(daemon, "x").status == 200
        assert ask(daemon, b"\0").status == 400
        process.terminate()
        assert process.wait(STOP_S) == 0
    finally:
        process.kill()
        process.wait()


# --- status --------------------------------------------------------------------------------------------------------


def test_status_shows_a_running_daemon(data):
    with running_daemon(data) as daemon:
        introduce(daemon)
        send(daemon, "x")
        port = str(daemon.port)
        shown = run("status", "--port", port, home=data.parent)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.startswith(f"stonemux {VERSION} at 127.0.0.1:{port}: ok\n")
        assert re.search(r"agents +2 active, 0 stale", shown.stdout)
        assert re.search(r"messages +1 sent, 1 unread", shown.stdout)
        told = tried("status", "--port", port, "--json", "--check", home=data.parent)
        found = json.loads(told.stdout)
        assert (told.returncode, found["running"], found["stats"]["agents"]["total"]) == (0, True, 2)


def test_status_without_a_daemon_says_so(tmp_path):
    port = str(free_port())
    shown = tried("status", "--port", port, home=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "not running" in shown.stdout
    assert "enterprise" in shown.stdout
    told = tried("status", "--port", port, "--json", "--check", home=tmp_path)
    assert (told.returncode, json.loads(told.stdout)["running"]) == (6, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b'{"error": "no"}', b'{"detail": "x"}', b"not json", b'{"error": {"x": 1}}']
)
@pytest.mark.parametrize("status", [200, 404])
def test_status_does_not_take_another_server_for_the_daemon(tmp_path, body, status):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with pytest.raises(MuxError) as caught:
            pool.health("127.0.0.1", server.server_port)
        assert caught.value.code == "unreachable"
        environ = {"HOME": str(tmp_path)}
        assert cli.main(["status", "--port", str(server.server_port), "--check"], environ) == 6
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_store_that_failed_to_open_gives_everything_back(made):
    behind(made)
    directory = DataDir(made)
    with pytest.raises(MuxError):
        Store(directory, FakeClock())
    directory.close()
    (made / "head.json").unlink()
    again = DataDir(made)
    Store(again, FakeClock()).close()
    again.close()
    assert datadir.HEAD in contents(made)
