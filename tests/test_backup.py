"""Backups and restores: what a copy contains, what a restore keeps, and that no id is assigned twice."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from faces import Direct, OverHttp, command, join, refusal, say

from stonemux import copies, tables, upkeep
from stonemux.errors import MuxError


def texts(file: Path) -> list[str]:
    """The contents of the messages in a database that nobody uses."""
    with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?immutable=1", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        return [row[0] for row in db.execute("select content from message order by id")]


@pytest.fixture
def talk(face: Direct | OverHttp) -> Direct | OverHttp:
    join(face, "ann", "bob")
    say(face, "one", "two")
    return face


def test_a_copy_that_is_not_there_is_refused_with_the_places_that_were_looked_at(tmp_path, capsys):
    data, nowhere = tmp_path / "data", tmp_path / "friday.db"
    assert command("restore", "friday.db", "--yes", data=data) == 3
    told = f"friday.db: no such file, nor is it in {data}/backups; stonemux backup makes one"
    assert told in capsys.readouterr().err
    assert command("restore", nowhere, "--yes", data=data) == 3
    assert f"{nowhere}: no such file; stonemux" in capsys.readouterr().err
    assert not data.exists()


# -- the operation


def test_a_backup_holds_what_was_committed(talk, program):
    answer = talk.call("admin.backup")
    made = Path(answer["path"])
    assert made.parent == program.path / "backups"
    assert made.name.startswith("stonemux-20")
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.parent.stat().st_mode) == 0o700
    assert answer["bytes"] == made.stat().st_size
    assert answer["events_head"] == program.store.head
    assert texts(made) == ["one", "two"]
    assert [file.name for file in made.parent.iterdir()] == [made.name], "one file, without a log"


def test_a_backup_takes_the_name_it_is_given_once(talk, program):
    assert Path(talk.call("admin.backup", path="friday.db")["path"]) == program.path / "backups" / "friday.db"
    say(talk, "three")
    refusal(talk, "backup_exists", "admin.backup", path="friday.db")
    assert texts(program.path / "backups" / "friday.db") == ["one", "two"]


def test_two_backups_in_one_millisecond_are_two_files(direct):
    first, second = (direct.call("admin.backup")["path"] for _ in range(2))
    assert first != second


@pytest.mark.parametrize("path", ["../out.db", "a/b", "/tmp/x.db", ".hidden", "-x", "a\\b", "..", "x" * 129, "ü.db"])
def test_a_backup_stays_in_its_folder(face, program, path):
    refusal(face, "invalid_field", "admin.backup", path=path)
    assert not (program.path / "backups").exists()


def test_a_backup_with_a_key_is_made_once(talk, program):
    first = talk.call("admin.backup", idempotency_key="k")
    assert not talk.replayed
    assert talk.call("admin.backup", idempotency_key="k") == first
    assert talk.replayed
    refusal(talk, "idempotency_mismatch", "admin.backup", idempotency_key="k", path="other.db")
    assert len(list((program.path / "backups").iterdir())) == 1


def test_one_backup_at_a_time(face, mux):
    with mux.store.copying:
        assert refusal(face, "storage_busy", "admin.backup").message
    face.call("admin.backup")


def test_a_backup_beside_writers_is_one_moment_of_the_database(program, direct, background):
    join(direct, "ann", "bob")
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            say(direct, "x")

    writing = background(write)
    try:
        made = [direct.call("admin.backup") for _ in range(3)]
    finally:
        done.set()
    writing.result(5)
    for answer in made:
        with contextlib.closing(sqlite3.connect(answer["path"])) as db:
            (last,) = db.execute("select max(id) from event").fetchone()
            sent, delivered = (db.execute(f"select count(*) from {t}").fetchone()[0] for t in ("message", "delivery"))
            told = db.execute("select count(*) from event where kind = 'message'").fetchone()[0]
        assert last == answer["events_head"]
        assert sent == delivered == told


def test_a_backup_that_fails_leaves_nothing_and_harms_nobody(direct, mux, program, monkeypatch):
    join(direct, "ann", "bob")

    class Failing(sqlite3.Connection):
        def execute(self, query: str, values: Any = (), /) -> sqlite3.Cursor:
            Path(values[0]).write_bytes(b"half of a cop")
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(mux.store, "apart", lambda: sqlite3.connect(program.path / "stonemux.db", factory=Failing))
    assert "disk I/O error" in refusal(direct, "backup_failed", "admin.backup").message
    assert list((program.path / "backups").iterdir()) == []
    say(direct, "goes on")


def test_a_copy_that_is_damaged_is_no_backup(direct, program, monkeypatch):
    def damage(temporary: Path, target: Path) -> None:
        raise AssertionError("it must not get its name")

    monkeypatch.setattr(copies, "settle", damage)
    monkeypatch.setattr(copies, "open_unchanged", lambda path: sqlite3.connect(":memory:"))
    assert refusal(direct, "backup_failed", "admin.backup")
    assert list((program.path / "backups").iterdir()) == []


def test_a_backup_does_not_fill_the_disk(direct, mux, monkeypatch):
    monkeypatch.setattr(copies, "SPARE_BYTES", 2**60)
    assert refusal(direct, "storage_full", "admin.backup").retry_after
    assert mux.store.fatal is None


def test_what_an_interrupted_backup_left_is_removed_by_the_next(direct, program):
    folder = program.path / "backups"
    folder.mkdir()
    for left in (".stonemux-x.db.new", ".stonemux-x.db.new-journal"):
        (folder / left).write_text("half")
    made = direct.call("admin.backup")["path"]
    assert list(folder.iterdir()) == [Path(made)]


# -- the command


def test_the_command_asks_a_running_daemon(http, program, capsys, tmp_path):
    join(http, "ann", "bob")
    say(http, "one")
    assert command("backup", "--port", http.port, "--json", data=program.path) == 0
    assert texts(Path(json.loads(capsys.readouterr().out)["path"])) == ["one"]
    out = tmp_path / "out.db"
    assert command("backup", "--port", http.port, "--output", out, data=program.path) == 0
    assert str(out) in capsys.readouterr().out
    assert texts(out) == ["one"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert command("backup", "--port", http.port, "--output", out, data=program.path) == 1
    assert len(list((program.path / "backups").iterdir())) == 1
    (tmp_path / "link.db").symlink_to(tmp_path / "nothing")
    for place in (tmp_path / "link.db", tmp_path / "no" / "out.db"):  # both are noticed only when the copy is made
        capsys.readouterr()
        assert command("backup", "--port", http.port, "--output", place, data=program.path) == 1
        kept = Path(capsys.readouterr().err.rpartition("the copy stays at ")[2].rstrip("\n"))
        assert texts(kept) == ["one"]


@pytest.mark.parametrize("held", [True, False])
def test_nobody_else_sees_a_backup_that_is_being_made(http, program, tmp_path, monkeypatch, held):
    """Its folder may be everybody's: what lies there under its name is replaced, and not written through."""
    join(http, "ann")
    trap, out = tmp_path / "trap", tmp_path / "out.db"
    trap.write_text("precious")
    (tmp_path / ".out.db.new").symlink_to(trap)
    copied = copies.shutil.copyfile

    def copy(source: Path, target: Path) -> None:
        assert stat.S_IMODE(os.lstat(target).st_mode) == 0o600
        copied(source, target)

    monkeypatch.setattr(copies.shutil, "copyfile", copy)
    before = os.umask(0)
    try:
        if not held:
            program.close()
        assert command("backup", "--port", http.port if held else 1, "--output", out, data=program.path) == 0
    finally:
        os.umask(before)
        if not held:
            program.open()
    assert trap.read_text() == "precious"
    assert stat.S_IMODE(out.lstat().st_mode) == 0o600


def test_the_command_copies_a_directory_that_no_daemon_holds(direct, program, tmp_path, capsys):
    join(direct, "ann", "bob")
    say(direct, "one")
    program.close()
    before = sorted(file.name for file in program.path.iterdir())
    assert command("backup", "--output", tmp_path / "out.db", data=program.path) == 0
    assert texts(tmp_path / "out.db") == ["one"]
    assert sorted(file.name for file in program.path.iterdir()) == before
    assert command("backup", data=program.path) == 0
    assert len(list((program.path / "backups").iterdir())) == 1
    program.open()


def test_the_command_copies_what_stands_only_in_the_log(direct, program, tmp_path):
    """After a crash the log is not folded in; a copy of the file alone would lack it."""
    join(direct, "ann", "bob")
    say(direct, "one")
    crashed = tmp_path / "crashed"
    shutil.copytree(program.path, crashed)
    assert (crashed / "stonemux.db-wal").stat().st_size
    log = (crashed / "stonemux.db-wal").read_bytes()
    assert command("backup", "--output", tmp_path / "out.db", data=crashed) == 0
    assert texts(tmp_path / "out.db") == ["one"]
    assert (crashed / "stonemux.db-wal").read_bytes() == log


def test_the_command_refuses_what_it_cannot_do(program, open_program, tmp_path, capsys):
    assert command("backup", data=tmp_path / "nothing") == 3
    assert not (tmp_path / "nothing").exists()
    assert command("backup", "--port", "1", data=program.path) == 6
    with OverHttp(open_program().mux) as another:
        assert command("backup", "--port", another.port, data=program.path) == 6
    assert "not the one" in capsys.readouterr().err


# -- restoring


@pytest.fixture
def restored(program: Program, direct: Direct, tmp_path: Path) -> Callable[[], Direct]:
    """Makes a copy with two messages, lets the program go on, and puts the copy in place."""
    join(direct, "ann", "bob")
    say(direct, "one", "two")
    direct.call("state.set", key="stage", value="1")
    copy = tmp_path / "copy.db"
    shutil.move(direct.call("admin.backup")["path"], copy)

    def go_back() -> Direct:
        program.close()
        assert command("restore", copy, "--yes", data=program.path) == 0
        program.open()
        return Direct(program.mux)

    return go_back


@pytest.mark.parametrize(
    "steps",
    [
        ["create trigger evil after insert on token_key begin insert into token_key values (1, 2, 3, 4, 5); end"],
        ["create view evil as select secret from token_key"],
        ["drop view message_text", "create view message_text as select 1 as id, null as subject, 'x' as content"],
        [
            "drop table token_key",
            "create table token_key (kid text primary key, secret blob, epoch text, made_at integer, until integer)",
            "insert into token_key values ('evil', randomblob(32), null, 0, null)",
        ],
        ["create unique index evil on event (id, kind)"],
        ["drop table token_revoked"],
        ["update meta set value = 'a lot' where key = 'clock'"],
        ["update meta set value = '999999999999999999' where key = 'clock'"],
    ],
)
def test_a_file_that_would_act_in_our_name_is_not_restored(direct, program, tmp_path, capsys, steps):
    """It comes from elsewhere, and would go on to deal tokens or show keys; a key without an epoch outlived it all."""
    join(direct, "ann")
    copy = tmp_path / "copy.db"
    shutil.move(direct.call("admin.backup")["path"], copy)
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as db:
        for step in steps:
            db.execute(step)
    program.close()
    before = (program.path / "stonemux.db").read_bytes()
    assert command("restore", copy, "--yes", data=program.path) == 78
    assert re.search("that stonemux did not make|cannot be read", capsys.readouterr().err)
    assert (program.path / "stonemux.db").read_bytes() == before
    program.open()


@pytest.mark.parametrize("step", ["create trigger evil after insert on event begin select 1; end", "delete from agent"])
def test_what_was_inspected_is_restored_or_nothing(direct, program, tmp_path, step):
    """While the user reads the preview, the owner of the file's folder may change it."""
    join(direct, "ann")
    copy = tmp_path / "copy.db"
    shutil.move(direct.call("admin.backup")["path"], copy)
    program.close()
    before = (program.path / "stonemux.db").read_bytes()

    def agreed() -> bool:
        with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as db:
            db.execute(step)
        return True

    with pytest.raises(MuxError) as caught:
        upkeep.restore(program.settings, copy, say=lambda text: None, agreed=agreed)
    assert caught.value.code == "data_refused"
    assert (program.path / "stonemux.db").read_bytes() == before
    assert not (program.path / ".restore.new").exists()
    program.open()


def test_a_search_after_a_restore_finds_what_the_copy_holds(restored, direct):
    assert len(direct.call("msg.search", q="two")["results"]) == 1
    assert len(restored().call("msg.search", q="two")["results"]) == 1


def test_no_id_is_dealt_again_after_a_restore__i11(restored, direct, program, capsys):
    direct.call("msg.poll", agent_id="bob", after=0, timeout=0)
    lost = say(direct, "three", "four")
    head = program.store.head
    for _ in range(2):
        face = restored()
        assert [m["content"] for m in face.call("msg.poll", agent_id="bob", after=0, timeout=0)["messages"]] == [
            "one",
            "two",
        ]
        dealt = say(face, "new")
        assert dealt[0] > max(lost)
        assert program.store.head > head
        lost, head = dealt, program.store.head
    kept = sorted(program.path.glob("before-restore-*.db"))
    assert len(kept) == 2
    assert texts(kept[0]) == ["one", "two", "three", "four"]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in program.path.glob("*.db"))


def test_ids_pass_what_only_the_sidecar_remembers(restored, direct, program):
    """The database that is replaced may be the one that cannot be read."""
    lost = say(direct, *"abcdefgh")
    head = program.store.head
    program.store.note_head()
    program.store.note_head = lambda: None
    program.close()
    (program.path / "stonemux.db").write_bytes(b"damaged")
    program.close = lambda: None
    face = restored()
    assert program.store.head > head + 1000
    assert say(face, "new")[0] > max(lost) + 1000
    (kept,) = program.path.glob("before-restore-*.db")
    assert kept.read_bytes() == b"damaged"


def test_counts_leave_out_the_ids_that_were_skipped(restored):
    for expected in (2, 2):
        face = restored()
        assert face.call("stats")["messages"] == {"stored": expected, "sent": expected, "unread": expected}
        say(face, "three", "four")
        assert face.call("stats")["messages"] == {"stored": 4, "sent": 4, "unread": 4}


def test_streams_resume_with_a_gap_and_cursors_are_told(restored, direct, program):
    say(direct, "three", "four")
    last, epoch = program.store.head, program.store.epoch
    direct.call("msg.poll", agent_id="bob", after=0, timeout=0)
    face = restored()
    assert program.store.epoch != epoch
    assert refusal(face, "cursor_ahead", "msg.poll", agent_id="bob", after=4, timeout=0)
    for seen in (last, last - 3, 1):
        answer = face.call("events.list", after=seen)
        assert answer["gap"]["requested"] == seen
        assert answer["gap"]["missed"] > 0
        assert answer["next"] == program.store.head
    say(face, "new")
    answer = face.call("events.list", after=last)
    assert [event["data"]["content"] for event in answer["events"] if event["type"] == "message"] in (["new"], [])
    assert answer["gap"]["missed"] > 0
    assert face.call("events.list", after=program.store.head + 5)["reset"]


def test_a_watch_from_before_a_restore_is_told_to_begin_anew__w4(restored, direct):
    for value in "234":
        direct.call("state.set", key="stage", value=value)
    face = restored()
    answer = face.call("state.watch", key="stage", after_version=4, timeout=30)
    assert (answer["reset"], answer["version"], answer["value"]) == (True, 1, "1")


def test_time_does_not_run_back_over_a_restore(restored, program, clock):
    clock.advance(3_600_000)
    late = clock.now_ms()
    program.clock.advance(0)
    restored()
    assert program.clock.now_ms() >= late


def test_a_restore_needs_the_directory_for_itself(restored, program, direct, tmp_path, capsys):
    assert command("restore", tmp_path / "copy.db", "--yes", data=program.path) == 4
    assert "in use" in capsys.readouterr().err
    say(direct, "goes on")


def test_a_restore_shows_what_it_would_do_and_asks(restored, program, tmp_path, capsys, monkeypatch):
    program.close()
    before = (program.path / "stonemux.db").read_bytes()
    assert command("restore", tmp_path / "copy.db", data=program.path) == 1
    told = capsys.readouterr()
    assert "2 agents, 2 messages, 0 tasks, 1 key" in told.out
    assert "--yes" in told.err

    class Terminal:
        def __init__(self, answer: str) -> None:
            self.answer = answer

        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return self.answer

    for answer in ("", "n\n", "\n", "what?\n"):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert command("restore", tmp_path / "copy.db", data=program.path) == 1
    assert (program.path / "stonemux.db").read_bytes() == before
    assert not list(program.path.glob("before-restore-*"))
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert command("restore", tmp_path / "copy.db", data=program.path) == 0
    program.open()


def test_a_backup_is_restored_by_its_name_alone_and_into_a_new_directory(direct, program, tmp_path, capsys):
    join(direct, "ann", "bob")
    say(direct, "one")
    made = Path(direct.call("admin.backup", path="friday.db")["path"])
    program.close()
    assert command("restore", "friday.db", "--yes", "--json", data=program.path) == 0
    assert json.loads(capsys.readouterr().out)["contents"]["messages"] == 1
    fresh = tmp_path / "fresh"
    assert command("restore", made, "--yes", "--json", data=fresh) == 0
    assert json.loads(capsys.readouterr().out)["kept"] is None
    assert (fresh / "CREATED").exists()
    assert texts(fresh / "stonemux.db") == ["one"]
    program.open()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("missing", "no such file"),
        ("folder", "no such file"),
        ("text", "cannot be read"),
        ("foreign", "another program's database"),
        ("newer", "made by a newer stonemux"),
        ("unversioned", "is not a stonemux database"),
        ("page", "cannot be read"),
        ("freelist", "is damaged"),
        ("index", "is damaged"),
        ("empty", "has no tables"),
    ],
)
def test_a_file_that_is_no_sound_backup_is_refused_and_nothing_changes(
    restored, program, tmp_path, capsys, damage, told
):
    copy = tmp_path / "copy.db"
    if damage in ("missing", "folder"):
        copy.unlink()
        if damage == "folder":
            copy.mkdir()
    elif damage == "text":
        copy.write_text("no database " * 1000)
    elif damage == "empty":
        copy.write_bytes(b"")
    elif damage == "page":
        whole = bytearray(copy.read_bytes())
        whole[8192:-4096] = b"\xa5" * (len(whole) - 12288)
        copy.write_bytes(whole)
    elif damage == "freelist":
        whole = copy.read_bytes()
        copy.write_bytes(whole[:36] + (5).to_bytes(4) + whole[40:])
    elif damage == "index":
        with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as db:
            db.execute("PRAGMA writable_schema=ON")
            db.execute(
                "update sqlite_master set sql = replace(sql, '(agent_id)', '(channel)') where name = 'member_agent'"
            )
    else:
        newer = len(tables.MIGRATIONS) + 1
        what = {"foreign": "application_id=7", "newer": f"user_version={newer}", "unversioned": "user_version=0"}
        with contextlib.closing(sqlite3.connect(copy)) as db:
            db.execute(f"PRAGMA {what[damage]}")
    program.close()
    before = {file.name: file.read_bytes() for file in program.path.iterdir() if file.is_file()}
    assert command("restore", copy, "--yes", data=program.path) == (3 if told == "no such file" else 78)
    assert told in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in program.path.iterdir() if file.is_file()} == before
    program.open()


@pytest.mark.parametrize("links", [True, False])
def test_a_log_that_was_not_folded_in_is_kept_with_what_it_belongs_to(
    restored, direct, program, tmp_path, monkeypatch, links
):
    if not links:

        def no_links(*_: object) -> None:
            raise PermissionError(1, "this file system has no hard links")

        monkeypatch.setattr(os, "link", no_links)
    say(direct, "three")
    crashed = tmp_path / "crashed"
    shutil.copytree(program.path, crashed)
    assert command("restore", tmp_path / "copy.db", "--yes", data=crashed) == 0
    assert not (crashed / "stonemux.db-wal").exists()
    assert texts(crashed / "stonemux.db") == ["one", "two"]
    (kept,) = crashed.glob("before-restore-*.db")
    assert texts(kept) == ["one", "two", "three"]


def test_a_log_whose_database_is_gone_is_not_applied_to_the_restored_one(restored, direct, program, tmp_path):
    say(direct, *(f"later {n}" for n in range(100)))
    crashed = tmp_path / "crashed"
    shutil.copytree(program.path, crashed)
    (crashed / "stonemux.db").unlink()
    log = (crashed / "stonemux.db-wal").read_bytes()
    assert command("restore", tmp_path / "copy.db", "--yes", data=crashed) == 0
    assert texts(crashed / "stonemux.db") == ["one", "two"]
    (kept,) = crashed.glob("before-restore-*.db-wal")
    assert kept.read_bytes() == log


def test_a_journal_of_a_damaged_database_is_not_played_back_into_the_restored_one(restored, program, tmp_path):
    """Another program has changed the journal mode, and was killed in a transaction."""
    program.close()
    database, journal = program.path / "stonemux.db", program.path / "stonemux.db-journal"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=DELETE")
        other.execute("PRAGMA cache_size=1")
        other.execute("BEGIN IMMEDIATE")
        other.execute("update message set content = hex(zeroblob(100000))")
        torn = bytearray(database.read_bytes())
        kept = journal.read_bytes()
    torn[40_960:61_440] = b"\xa5" * 20_480
    database.write_bytes(torn)
    journal.write_bytes(kept)
    assert command("restore", tmp_path / "copy.db", "--yes", data=program.path) == 0
    assert not journal.exists()
    program.open()
    assert texts_of(program) == ["one", "two"]


@pytest.mark.parametrize(
    ("act", "at"),  # before these replacements comes the one that notes our process id
    [("link", 0), ("replace", 1), ("replace", 2), ("fsync", 0), ("fsync", 1), ("fsync", 2)],
)
def test_a_restore_that_is_interrupted_leaves_one_database_or_the_other(
    restored, direct, program, tmp_path, monkeypatch, act, at
):
    say(direct, "three")
    program.close()
    calls = []
    real: Callable[..., Any] = getattr(os, act)

    def interrupt(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if len(calls) > at:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, act, interrupt)
        with contextlib.suppress(KeyboardInterrupt):
            command("restore", tmp_path / "copy.db", "--yes", data=program.path)
    program.open()
    assert len(calls) > at, "it was interrupted"
    assert texts_of(program) in (["one", "two", "three"], ["one", "two"])


def texts_of(program: Program) -> list[str]:
    with program.store.read() as rx:
        return [row[0] for row in rx.sql("select content from message order by id")]


def test_a_restore_that_fails_says_so_and_keeps_the_database(restored, program, tmp_path, monkeypatch, capsys):
    program.close()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert command("restore", tmp_path / "copy.db", "--yes", data=program.path) == 1
    assert "No space left" in capsys.readouterr().err
    program.open()
    assert texts_of(program) == ["one", "two"]


def test_a_database_that_went_back_and_was_accepted_begins_a_new_epoch_too(direct, program, tmp_path):
    join(direct, "ann", "bob")
    program.close()
    old = (program.path / "stonemux.db").read_bytes()
    program.open()
    last = say(Direct(program.mux), "lost")
    seen = program.store.head
    program.close()
    (program.path / "stonemux.db").write_bytes(old)
    with pytest.raises(MuxError):
        program.open()
    program.directory.close()
    program.open(accept_rollback=True)
    face = Direct(program.mux)
    assert face.call("events.list", after=seen)["gap"]["missed"] > 0
    assert say(face, "new")[0] > last[0] + 1000
    face = Direct(program.reopen())
    assert face.call("events.list", after=seen)["gap"]["missed"] > 0
