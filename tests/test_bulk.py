"""Exporting and importing messages as JSON lines: nothing is lost, sent twice, or hidden."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from faces import OverHttp, join

from stonemux import cli
from stonemux.commands import exporting
from stonemux.commands.importing import Import
from stonemux.config import Settings
from stonemux.errors import MuxError

Typed = Callable[..., tuple[int, str, str]]


def typist(port: int, capsys: pytest.CaptureFixture[str]) -> Typed:
    def run(*words: str | Path) -> tuple[int, str, str]:
        status = cli.main([str(word) for word in words], {"HOME": "/nowhere", "STONEMUX_PORT": str(port)})
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def typed(http: OverHttp, capsys: pytest.CaptureFixture[str]) -> Typed:
    join(http, "ann", "bob")
    return typist(http.port, capsys)


@pytest.fixture
def other(open_program: Callable[..., Program]) -> Iterator[OverHttp]:
    """Another daemon with the same agents."""
    with OverHttp(open_program().mux) as opened:
        join(opened, "ann", "bob")
        yield opened


def lines(*told: Any) -> str:
    return "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in told)


def message(content: str, **more: Any) -> dict[str, Any]:
    return {"from": "ann", "to": "bob", "content": content} | more


def contents(face: OverHttp) -> list[str]:
    return [m["content"] for m in reversed(face.call("msg.list", limit=1000)["messages"])]


def test_lines_become_messages_in_their_order(typed, http, tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text(lines(*(message(f"m{n}") for n in range(20)), "", message("last", subject="s", priority=3)))
    assert typed("import", file) == (0, "21 messages\n", "")
    assert contents(http) == [f"m{n}" for n in range(20)] + ["last"]
    assert http.call("msg.list", limit=1)["messages"][0]["subject"] == "s"


def test_doing_it_again_sends_nothing_twice(typed, http, tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text(lines(message("same"), message("same")))
    assert typed("import", file, "-q")[1] == "1\n2\n"
    assert typed("import", file) == (0, "2 messages, 2 of them already\n", "")
    file.write_text(lines(message("same"), message("same"), message("new")))
    assert typed("import", file) == (0, "3 messages, 2 of them already\n", "")
    assert contents(http) == ["same", "same", "new"]


BAD: list[tuple[Any, str]] = [
    ("nonsense", "invalid_json"),
    ("[1]", "invalid_json"),
    ("[" * 100_000, "invalid_json"),
    (message("x", to="nobody"), "agent_not_found"),
    (message("x", contnt="y"), "unknown_field"),
    (message(""), "invalid_field"),
    ({"from": "ann", "to": "bob"}, "missing_field"),
    (message("x", to=5), "invalid_field"),
    (message("x", channel="nowhere"), "channel_not_found"),
    (message("x", reply_to=99), "message_not_found"),
    ('{"from": "ann", "to": "bob", "content": "\\ud800"}', "invalid_unicode"),
    ('{"from": "ann", "to": "bob", "content": "x", "metadata": {"a": NaN}}', "invalid_json"),
    (message("x", id=1, reply_to=[1]), "invalid_field"),
    ({"from": "ann", "channel": "nowhere", "content": "x"}, "channel_not_found"),
]


def test_bad_lines_are_told_by_their_number_and_the_others_go_on(typed, http, tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text(lines(message("first"), *(bad for bad, _ in BAD), message("last")))
    status, out, err = typed("import", file)
    assert (status, out) == (1, f"2 messages; {len(BAD)} lines refused\n")
    assert [line.split(":")[1] for line in err.splitlines()] == [f" line {n}" for n in range(2, 2 + len(BAD))]
    assert "`stonemux agent discover` shows who is" in err
    status, out, _ = typed("import", file, "--json")
    told = json.loads(out)
    assert (told["imported"], told["repeated"]) == (2, 2)
    assert [(one["line"], one["code"]) for one in told["refused"]] == [(n, code) for n, (_, code) in enumerate(BAD, 2)]
    assert contents(http) == ["first", "last"]


@pytest.mark.settings(max_document_size=1000)
def test_a_line_that_is_too_long_even_for_a_document_harms_no_other(typed, http, tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text(lines(message("first"), message("x" * 300_000), message("last")))
    status, out, err = typed("import", file)
    assert (status, out, "line 2: content has 300000 bytes" in err) == (1, "2 messages; 1 line refused\n", True)
    assert contents(http) == ["first", "last"]


def test_many_bad_lines_do_not_flood_the_terminal(typed, tmp_path):
    (tmp_path / "m.jsonl").write_text("x\n" * 1000)
    status, out, err = typed("import", tmp_path / "m.jsonl")
    assert (status, out) == (1, "0 messages; 1000 lines refused\n")
    assert err.count("\n") == 20


def test_standard_input_is_read_and_a_missing_file_refused(typed, http, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines(message("hi")).encode() + b"\xff\xfe\n")))
    assert typed("import", "-")[:2] == (1, "1 message; 1 line refused\n")
    assert typed("import", tmp_path / "none")[0] == 3
    assert typed("import", tmp_path)[0] == 1
    assert contents(http) == ["hi"]


def test_a_line_without_a_recipient_is_for_its_channel(typed, http, tmp_path):
    (tmp_path / "m.jsonl").write_text(
        lines({"from": "ann", "channel": "default", "content": "all"}, message("star", to="*", channel="default"))
    )
    assert typed("import", tmp_path / "m.jsonl")[0] == 0
    assert [m["content"] for m in http.call("msg.poll", agent_id="bob", timeout=0)["messages"]] == ["all", "star"]


def test_what_was_exported_comes_back_the_same_elsewhere(typed, http, other, capsys, tmp_path):
    http.call("msg.send", from_="ann", to="bob", content="question", metadata={"a": 1})
    http.call("msg.send", from_="bob", to="ann", content="answer", reply_to=1)
    http.call("msg.broadcast", from_="ann", content="to all")
    http.call("agent.notify", agent_id="bob", type="restart-signal", content="now")
    document = http.call("document.create", content="long" * 30_000)["document"]["id"]
    http.call("msg.send", from_="ann", to="bob", content_ref=document)
    file = tmp_path / "out.jsonl"
    assert typed("export", file) == (0, f"5 messages in {file}\n", "")
    assert typed("export")[1] == file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["out.jsonl"]

    other.call("msg.send", from_="ann", to="bob", content="something before")
    there = typist(other.port, capsys)
    assert there("import", file) == (0, "5 messages\n", "")
    assert there("import", file)[1] == "5 messages, 5 of them already\n"
    kept = ("from", "to", "content", "channel", "type", "metadata")
    exported = [json.loads(line) for line in there("export")[1].splitlines()][1:]
    before = [json.loads(line) for line in file.read_text().splitlines()]
    assert [[m.get(name) for name in kept] for m in exported] == [[m.get(name) for name in kept] for m in before]
    assert exported[1]["reply_to"] == exported[0]["id"] == 2
    assert exported[1]["thread"] == "2"


def test_an_export_is_not_written_through_what_lies_there_under_its_name(typed, tmp_path):
    trap, file = tmp_path / "trap", tmp_path / "out.jsonl"
    trap.write_text("precious")
    (tmp_path / ".out.jsonl.new").symlink_to(trap)
    assert typed("export", file)[0] == 0
    assert trap.read_text() == "precious"
    assert file.lstat().st_mode & 0o777 == 0o600


def test_an_export_to_a_pipe_or_a_device_does_not_take_its_place(typed, http, tmp_path):
    http.call("msg.send", **{"from": "ann", "to": "bob", "content": "x"})
    os.mkfifo(pipe := tmp_path / "pipe")
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        assert typed("export", pipe)[0] == 0
        assert json.loads(reader.readline())["id"] == 1
    assert pipe.is_fifo()


def test_an_export_may_be_narrowed(typed, http):
    http.call("channel.create", name="quiet", members=["ann", "bob"])
    for channel in ("default", "quiet", "default"):
        http.call("msg.send", from_="ann", to="bob", content=channel, channel=channel)
    assert [json.loads(line)["id"] for line in typed("export", "--channel", "quiet")[1].splitlines()] == [2]
    assert [json.loads(line)["id"] for line in typed("export", "--after", "1")[1].splitlines()] == [2, 3]
    assert typed("export", "--agent-id", "nobody")[0] == 3
    assert typed("export", "--after", "-1")[0] == 2
    assert typed("export", "/nonexistent/file")[0] == 1


class Kept:
    """A daemon with these messages."""

    def __init__(self, *ids: int) -> None:
        self.ids = ids
        self.asked = 0

    def ask(self, operation: Any, given: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        found = [n for n in reversed(self.ids) if given["after"] < n < given["before"]]
        told: dict[str, Any] = {"messages": [{"id": n} for n in found[: given["limit"]]]}
        return told | ({"more": True} if len(found) > given["limit"] else {})


@pytest.mark.parametrize(
    "ids",
    [(), (1,), range(1, 5001), (1, 2, 1_000_003, 1_000_004), range(3_000_000, 3_002_500), (*range(1, 1500), 9_000_000)],
    ids=["none", "one", "many", "a restore's gap", "purged", "late"],
)
def test_an_export_finds_every_id_and_crosses_gaps_in_strides(ids):
    kept = Kept(*ids)
    told = exporting.messages(kept, {}, 0, max(ids, default=0))  # type: ignore[arg-type]
    assert [m["id"] for m in told] == list(ids)
    assert kept.asked < 40


class Ending:
    """A daemon that refuses whatever comes after some calls; `asked` says what was in each request."""

    replayed = False

    def __init__(self, calls: int = 10_000, code: str = "", *, whole: bool = False) -> None:
        self.calls = calls
        self.code = code
        self.whole = whole
        self.asked: list[list[str]] = []

    def ask(self, operation: Any, given: dict[str, Any]) -> dict[str, Any]:
        (told,) = self.ask_all(operation, [given])
        if isinstance(told, MuxError):
            raise told
        return told

    def ask_all(self, operation: Any, calls: list[dict[str, Any]]) -> list[Any]:
        self.asked.append([str(given["content"]) for given in calls])
        if self.whole and len(calls) > self.calls:
            raise MuxError(self.code, "gone")
        return [self._answer() for _ in calls]

    def _answer(self) -> Any:
        self.calls -= 1
        return MuxError(self.code, "gone") if self.calls < 0 else {"message_id": 10_000 - self.calls}


def take(job: Import, *told: Any) -> None:
    for number, line in enumerate(lines(*told).splitlines(), 1):
        job.take(number, line.encode())
    job.send()


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("code", ["unreachable", "storage_error", "shutting_down", "upgrade_required"])
def test_an_import_stops_where_no_line_could_be_sent_and_says_where(code, at_once, capsys):
    job = Import(Ending(2, code), Settings(), ids=False, at_once=at_once)  # type: ignore[arg-type]
    with pytest.raises(MuxError) as caught:
        take(job, *[message("x")] * 3)
    assert caught.value.code == code
    assert caught.value.message.startswith("stopped at line 3: gone")
    job.report(as_json=False, quiet=False)
    assert capsys.readouterr().out == "2 messages\n"


def test_an_import_whose_request_fails_stops_at_its_first_line():
    job = Import(Ending(2, "unreachable", whole=True), Settings(), ids=False, at_once=3)  # type: ignore[arg-type]
    with pytest.raises(MuxError) as caught:
        take(job, message("x", to="*"), *[message("y")] * 3)
    assert caught.value.message.startswith("stopped at line 2: gone")


def test_an_import_sends_many_lines_at_once_in_their_order():
    """What a reply refers to has its new id before the reply is sent."""
    daemon = Ending()
    job = Import(daemon, Settings(), ids=False, at_once=3)  # type: ignore[arg-type]
    take(
        job,
        *(message(str(n), id=n) for n in range(4)),
        message("4", id=4, thread="3"),
        message("5", id=5, thread="design", reply_to=1),
        message("6", id=6, reply_to=5),
        message("7", to="*"),
        message("8"),
    )
    assert daemon.asked == [["0", "1", "2"], ["3"], ["4", "5"], ["6"], ["7"], ["8"]]
    daemon.asked.clear()
    take(Import(daemon, Settings(), ids=False, at_once=100), *[message("x" * 60_000)] * 20)  # type: ignore[arg-type]
    assert [len(asked) for asked in daemon.asked] == [17, 3], "a request has at most 1 MiB"
