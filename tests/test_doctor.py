"""`doctor`: each problem is found and reported with a remedy, and checking changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from faces import command, join, say

from stonemux import VERSION, cli, datadir, doctor, surroundings, tables
from stonemux.clock import Clock
from stonemux.datadir import DataDir, check_usable
from stonemux.errors import MuxError
from stonemux.store import Store


@pytest.fixture
def look(program, capsys):
    """Runs the command on the program's directory; gives its status and its findings by check."""

    def run(*flags: Any, status: int, data: Path = program.path) -> dict[str, list[dict[str, str]]]:
        assert command("doctor", "--json", "--port", "1", *flags, data=data) == status
        answer = json.loads(capsys.readouterr().out)
        assert answer["well"] == (status == 0)
        found: dict[str, list[dict[str, str]]] = {}
        for finding in answer["findings"]:
            assert finding["found"]
            assert finding["remedy"] or finding["state"] == "ok" or finding["found"].count(" ") > 5, finding
            found.setdefault(finding["check"], []).append(finding)
        return found

    return run


@pytest.fixture
def stopped(program, direct):
    """The program's directory, left in good order."""
    join(direct, "ann", "bob")
    say(direct, "one")
    direct.call("admin.backup")
    program.close()
    yield program.path
    program.path.chmod(0o700)
    with contextlib.suppress(BaseException):
        program.open(accept_rollback=True)
        return
    program.close = lambda: None


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}


def one(found: dict[str, list[dict[str, str]]], check: str, state: str) -> dict[str, str]:
    (finding,) = [finding for finding in found[check] if finding["state"] == state]
    return finding


@pytest.mark.parametrize("full", [False, True])
def test_a_directory_in_good_order_is_well_and_left_alone(look, stopped, full, monkeypatch):
    monkeypatch.setattr(surroundings, "PYTHON_BUGS", ())  # one of them may be that of the Python that runs this
    before = contents(stopped)
    found = look(*(["--full"] if full else []), status=0)
    assert contents(stopped) == before
    for check in ("python", "search", "settings", "directory", "disk", "daemon", "database", "history", "clock", "log"):
        assert {finding["state"] for finding in found[check]} == {"ok"}, check
    assert found["backups"][0]["state"] == "ok"
    assert ("every page" in found["database"][-1]["found"]) == full


def test_a_new_machine_is_well(look, tmp_path):
    found = look(data=tmp_path / "none", status=0)
    assert not (tmp_path / "none").exists()
    assert "first start" in found["directory"][0]["found"]


def test_it_looks_while_a_daemon_runs(http, program, capsys):
    join(http, "ann", "bob")
    say(http, "one")
    assert command("doctor", "--port", http.port, data=program.path) == 0
    told = capsys.readouterr().out
    assert f"pid {os.getpid()}" in told
    assert "all is well" in told
    assert "make one with: stonemux backup" in told
    say(http, "two")


def test_a_daemon_that_is_failing_old_or_keeps_a_large_log_is_told(http, program, capsys, monkeypatch):
    join(http, "ann")

    def told() -> str:
        command("doctor", "--port", http.port, data=program.path)
        return capsys.readouterr().out

    monkeypatch.setattr(doctor, "VERSION", "9.9")
    assert f"is version {VERSION}, but this command is 9.9" in told()
    monkeypatch.setattr(doctor, "LARGE_LOG", 0)
    assert "another program may be keeping a read of the database open" in told()
    program.store.damage = "wrong # of entries"
    assert f"PROBLEM  daemon     the daemon (pid {os.getpid()}) is failing" in told()


def test_a_daemon_that_does_not_answer_is_a_problem(look, program):
    assert "no daemon answers" in one(look(status=1), "daemon", "problem")["found"]


def test_another_server_on_the_port_is_a_problem(look, stopped):
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
        found = look("--port", other.getsockname()[1], status=1)
    assert "another --port" in one(found, "daemon", "problem")["remedy"]


def test_a_daemon_of_another_directory_is_noted(look, http, tmp_path):
    found = look("--port", http.port, data=tmp_path / "other", status=0)
    assert "does not use" in one(found, "daemon", "note")["found"]


@pytest.fixture
def elsewhere(tmp_path):
    """The data directory of a daemon that listens at another port."""
    directory = DataDir(tmp_path / "elsewhere")
    (directory.path / datadir.ADDRESS).write_text("127.0.0.1:1\n")
    (directory.path / datadir.OWNER_TOKEN).write_text("a.b.c\n")
    yield directory.path
    directory.close()


def test_a_token_for_a_directory_without_data_comes_with_a_warning(tmp_path, capsys):
    for told in (f"stonemux: {tmp_path}/new held no data; the token is for a daemon that is started with it\n", ""):
        assert command("token", data=tmp_path / "new") == 0
        assert capsys.readouterr().err == told


def test_a_daemon_is_not_taken_for_the_one_that_holds_the_directory(look, http, elsewhere):
    found = look("--port", http.port, data=elsewhere, status=0)
    assert "does not use" in one(found, "daemon", "note")["found"]


def test_status_asks_a_daemon_of_another_directory_without_this_ones_token(http, elsewhere, capsys):
    assert command("status", "--port", http.port, data=elsewhere) == 0
    assert f"at 127.0.0.1:{http.port}: ok" in capsys.readouterr().out


@pytest.mark.settings(auth_tokens="required")
def test_status_says_which_directory_a_daemon_with_tokens_does_not_use(http, elsewhere, capsys):
    assert command("status", "--port", http.port, data=elsewhere) == 1
    assert f"does not use the data directory {elsewhere}; pass" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["token"], ["backup"], ["token", "rotate"]], ids=" ".join)
def test_what_the_owner_asks_of_a_daemon_of_another_directory_is_refused_with_the_reason(
    http, elsewhere, capsys, words
):
    (elsewhere / datadir.DATABASE).touch()
    assert command(*words, "--port", http.port, data=elsewhere) == 1
    told = capsys.readouterr().err
    assert f"the daemon at 127.0.0.1:{http.port} does not use the data directory {elsewhere}" in told
    assert "--data-dir" in told


def test_settings_that_cannot_be_used_are_a_problem_and_the_rest_is_looked_at(look, stopped):
    (stopped / "config.toml").write_text("[server]\nprot = 1\n")
    found = look(status=1)
    assert "did you mean server.port?" in one(found, "settings", "problem")["found"]
    assert found["database"][-1]["state"] == "ok"


def test_a_file_system_that_was_allowed_unseen_is_noted(look, stopped):
    (stopped / "config.toml").write_text("[server]\nallow_network_fs = true\n")
    assert "may be a network file system" in one(look(status=0), "disk", "note")["found"]


def test_a_directory_that_others_may_write_to_is_a_problem(look, stopped):
    stopped.chmod(0o777)
    assert "chmod 700" in one(look(status=1), "directory", "problem")["remedy"]
    stopped.chmod(0o755)
    assert "chmod 700" in one(look(status=0), "directory", "note")["remedy"]
    stopped.chmod(0o700)
    (stopped / "stonemux.db").chmod(0o644)
    assert "chmod 600" in one(look(status=0), "files", "note")["remedy"]


def test_files_of_another_user_are_one_problem(look, stopped, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    assert f"belong to another user ({os.getuid()})" in one(look(status=1), "files", "problem")["found"]


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "page", "foreign", "newer"])
def test_a_damaged_database_is_a_problem(look, stopped, damage):
    database = stopped / "stonemux.db"
    whole = bytearray(database.read_bytes())
    if damage == "missing":
        database.unlink()
    elif damage == "empty":
        database.write_bytes(b"")
    elif damage == "garbage":
        database.write_bytes(b"garbage " * 10_000)
    elif damage == "page":
        whole[8192:-4096] = b"\xa5" * (len(whole) - 12288)
        database.write_bytes(whole)
    else:
        what = "application_id=7" if damage == "foreign" else f"user_version={len(tables.MIGRATIONS) + 1}"
        with contextlib.closing(sqlite3.connect(database)) as db:
            db.execute(f"PRAGMA {what}")
    before = contents(stopped)
    found = look(status=1)
    assert contents(stopped) == before
    remedies = [finding["remedy"] for finding in found["database"] if finding["state"] == "problem"]
    assert remedies
    for remedy in remedies:
        assert {"foreign": "another directory", "newer": "run the newer"}.get(damage, "stonemux restore") in remedy
        assert ("stonemux restore FILE" in remedy) == (damage not in ("foreign", "newer"))
    assert not [finding for check in ("history", "doorbells") for finding in found.get(check, [])], "told once"


@pytest.mark.parametrize(
    ("denied", "told"),
    [(".", "written to"), ("stonemux.db", "read and written"), ("head.json", "read"), ("", "mounted read-only")],
)
def test_what_this_user_may_not_use_is_a_problem_and_the_daemon_says_the_same(look, stopped, monkeypatch, denied, told):
    """Seen from inside: the tests may run as root, who may do everything."""
    place, access, statvfs = stopped / denied, os.access, os.statvfs
    monkeypatch.setattr(os, "access", lambda path, how: Path(path) != place and access(path, how))
    if not denied:
        flags = os.ST_RDONLY
        monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((*tuple(statvfs(path))[:8], flags, 255)))
    found = one(look(status=1), "directory", "problem")
    assert told in found["found"]
    assert f"chmod u+rwX {place}" in found["remedy"] or not denied
    with closing(DataDir(stopped)) as directory, pytest.raises(MuxError, match=told) as caught:
        Store(directory, Clock())
    assert caught.value.failure.exit == 5
    if denied:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        with pytest.raises(MuxError, match=f"sudo chown 4711 {place}"):
            check_usable(stopped)


def test_only_a_full_look_sees_a_changed_index(look, stopped):
    database = stopped / "stonemux.db"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema=on")
        db.execute("update sqlite_master set sql = replace(sql, '(agent_id)', '(channel)') where name = 'member_agent'")
    assert look(status=0)["database"][-1]["state"] == "ok"
    assert "damaged" in one(look("--full", status=1), "database", "problem")["found"]


def test_a_database_that_went_back_in_time_is_a_problem(look, stopped):
    (stopped / "head.json").write_text('{"event_seq": 100000, "message_seq": 5, "at": 0}')
    assert "--accept-rollback" in one(look(status=1), "history", "problem")["remedy"]


@pytest.mark.parametrize("torn", ["", "{", '{"event_seq": null}'])
def test_a_torn_memory_of_the_directory_is_noted(look, stopped, torn):
    (stopped / "head.json").write_text(torn)
    found = one(look(status=0), "history", "note")
    assert "head.json" in found["found"]
    assert "next start" in found["remedy"]


def test_a_clock_that_went_back_is_a_problem(look, stopped, monkeypatch):
    monkeypatch.setattr(doctor.Clock, "now_ms", lambda self: 1_740_000_000_000)
    assert "ahead" in one(look(status=1), "clock", "problem")["found"]


def test_a_log_that_was_not_folded_in_is_noted_and_left(look, program, direct, tmp_path):
    join(direct, "ann", "bob")
    crashed = tmp_path / "crashed"
    crashed.mkdir(mode=0o700)
    for name in ("stonemux.db", "stonemux.db-wal", "CREATED"):
        (crashed / name).write_bytes((program.path / name).read_bytes())
        (crashed / name).chmod(0o600)
    before = contents(crashed)
    found = look(data=crashed, status=0)
    assert "not shut down cleanly" in one(found, "log", "note")["found"]
    assert f"event {program.store.head}," in found["history"][0]["found"]
    assert contents(crashed) == before
    assert len(list(crashed.iterdir())) == 3


def test_old_backups_are_noted(look, stopped, monkeypatch):
    (made,) = (stopped / "backups").iterdir()
    os.utime(made, (1_000_000_000, 1_000_000_000))
    assert "days old" in one(look(status=0), "backups", "note")["found"]


def test_a_disk_without_room_is_a_problem(look, stopped, monkeypatch):
    monkeypatch.setattr(doctor.Ballast, "free", lambda self: 1000)
    assert "storage_full" in one(look(status=1), "disk", "problem")["remedy"]


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(look, stopped, monkeypatch):
    def fail(patient: doctor.Patient) -> Any:
        raise OSError(5, "Input/output error")
        yield

    monkeypatch.setattr(doctor, "ALWAYS", (("python", fail), *doctor.ALWAYS[1:]))
    found = look(status=1)
    assert "Input/output error" in found["python"][0]["found"]
    assert found["settings"][0]["state"] == "ok"


@pytest.mark.parametrize(
    ("version", "has_it"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
    ],
)
def test_which_sqlite_has_the_wal_reset_bug(version, has_it):
    assert surroundings.has_wal_reset_bug(version) == has_it


def test_people_read_a_line_a_finding(look, stopped, capsys):
    (stopped / "head.json").write_text('{"event_seq": 100000}')
    assert cli.main(["doctor", "--port", "1", "--data-dir", str(stopped)], {"HOME": "/nowhere"}) == 1
    told = capsys.readouterr().out
    assert "PROBLEM  history" in told
    assert "-> put the right file back" in told
    assert told.endswith("1 problem\n")


def test_a_folder_in_the_databases_place_is_refused(tmp_path):
    (tmp_path / "stonemux.db").mkdir()
    with closing(DataDir(tmp_path)) as directory, pytest.raises(MuxError, match="cannot be read") as caught:
        Store(directory, Clock())
    assert caught.value.code == "data_refused"
