"""The commands that show what the daemon has: inbox, show, events, top, completion, and operations as commands."""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from children import BARE
from daemons import ROOT, running_daemon
from faces import OverHttp, join
from licensed import put
from scripted import Scripted, refusal

from stonemux import cli, flags, progress, tail, verbs
from stonemux.commands import inbox, top
from stonemux.commands.completion import SHELLS, tree
from stonemux.config import Settings
from stonemux.errors import FAILURES, MuxError
from stonemux.operations import BY_NAME, OPERATIONS
from stonemux.record import replace
from stonemux.remote import Remote
from stonemux.screen import Look

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(http: OverHttp, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command at a daemon that has ann and bob; answers status, output and errors."""
    join(http, "ann", "bob")

    def run(*words: str, **environ: str) -> tuple[int, str, str]:
        status = cli.main(words, {"HOME": "/nowhere", "STONEMUX_PORT": str(http.port), **environ})
        return status, *capsys.readouterr()

    return run


# --- operations


def test_statuses_tell_what_kind_of_refusal_it_was(typed, http):
    assert typed("msg", "send", "hi", "--from", "ann", "--to", "bob", "--priority", "9999")[0] == 2  # 400
    assert typed("msg", "send", "hi", "--from", "ann", "--to", "nobody")[0] == 3  # 404
    assert typed("channel", "create", "default")[0] == 1  # 409
    assert typed("health", STONEMUX_PORT="1")[0] == 6
    status, out, err = typed("agent", "get", "nobody", "--json")
    assert (status, json.loads(out)["error"]["code"]) == (3, "agent_not_found")
    assert err.startswith("stonemux: ")


def test_the_acting_agent_comes_from_the_environment(typed):
    assert typed("msg", "send", "hi", "--to", "bob", "-q", STONEMUX_AGENT="ann") == (0, "1\n", "")
    assert "1  ann to bob" in typed("msg", "poll", "--timeout", "0", STONEMUX_AGENT="bob")[1]


def test_the_documents_spellings_work(typed):
    assert typed("message", "send", "--from", "ann", "--to", "bob", "--content", "one", "-q")[1] == "1\n"
    assert typed("channel", "create", "--name", "sec", "--description", "Security", "--members", "ann,bob")[0] == 0
    assert "sec " in typed("channel", "list")[1]
    assert "recipient ids  bob" in typed("message", "send", "--from", "ann", "--channel", "sec", "--content", "two")[1]
    assert "one" in typed("inbox", "bob")[1]
    assert "  two" in typed("inbox", "bob", "--full")[1]
    assert typed("show", "inbox-1-bob")[1].startswith("inbox-1-bob  ann  default")


def test_a_call_that_was_made_before_says_so(typed):
    words = ("msg", "send", "hi", "--from", "ann", "--to", "bob", "-q", "--idempotency-key", "k")
    assert typed(*words) == (0, "1\n", "")
    assert typed(*words) == (0, "1\n", "stonemux: this was already done; here is the first answer again\n")


def test_a_content_is_read_from_standard_input(typed, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a\nü\n".encode())))
    typed("msg", "send", "--content", "-", "--from", "ann", "--to", "bob")
    assert typed("show", "1", "--raw")[1] == "a\nü\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert typed("msg", "send", "--content", "-", "--from", "ann", "--to", "bob")[0] == 2


def test_a_poll_whose_output_fails_takes_nothing(typed, http, clock, monkeypatch):
    typed("msg", "send", "hi", "--from", "ann", "--to", "bob")

    class Broken(io.StringIO):
        def flush(self) -> None:
            raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Broken())
        with pytest.raises(RuntimeError):
            typed("msg", "poll", "bob", "--timeout", "0")
    deadline = time.monotonic() + 5
    while http.mux.flights.held("bob") and time.monotonic() < deadline:
        clock.advance(100)
        time.sleep(0.001)
    assert typed("msg", "poll", "bob", "--timeout", "0", "-q")[1] == "1\n"


def test_a_stream_that_cannot_encode_a_text_gets_an_escaped_one_and_contents_unchanged(typed, http, monkeypatch):
    http.call("msg.send", from_="ann", to="bob", content="café \U0001f389")

    def out(*words: str) -> bytes:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert typed(*words) == (0, "", "")
        return stream.buffer.getvalue()  # type: ignore[attr-defined]

    assert b"  caf\xe9 \\U0001f389  " in out("msg", "list")
    assert out("show", "1", "--raw") == "café \U0001f389".encode()
    assert json.loads(out("export").decode("ascii"))["content"] == "café \U0001f389"
    http.call("channel.create", name="\U0001f389", created_by="ann")
    assert "\U0001f389".encode() in out("audit", "export"), "a changed byte would break the chain"


def test_a_closed_standard_input_is_an_empty_one(typed, monkeypatch):
    for words in (["import", "-"], ["audit", "verify", "-"], ["msg", "send", "-", "--from", "ann", "--to", "bob"]):
        monkeypatch.setattr(sys, "stdin", None)
        status, _, err = typed(*words)
        assert (status in (0, 1, 2), err.count("\n")) == (True, status != 0)
        sys.stdin.close()


def test_with_standard_output_closed_nothing_is_printed_and_no_mail_is_taken(typed, http, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert typed("msg", "send", "hi", "--from", "ann", "--to", "bob") == (0, "", "")
        for words in (["show", "1", "--raw"], ["openapi"], ["msg", "list"], ["inbox", "bob"], ["events"], ["top"]):
            assert typed(*words) == (0, "", "")
        told = "stonemux: standard output is closed, so the messages would be lost; nothing was taken\n"
        assert typed("msg", "poll", "bob", "--timeout", "0") == (1, "", told)
        assert typed("export")[::2] == (1, "stonemux: - cannot be written: it is closed\n")
        assert typed("mcp")[::2] == (1, "stonemux: standard output, where the answers go, is closed\n")
    assert typed("msg", "poll", "bob", "--timeout", "0", "-q")[1] == "1\n"


def test_commands_that_are_named_like_an_area_say_so():
    assert {row.name for row in cli.COMMANDS if row.beside} == {row.name for row in cli.COMMANDS} & set(
        verbs.areas(OPERATIONS)
    )


def test_an_area_lists_its_verbs_and_a_wrong_verb_is_told_the_nearest(typed):
    status, out, _ = typed("task", "--help")
    assert status == 0
    assert "\n  requeue " in out
    assert typed("task")[0] == 2
    status, _, err = typed("task", "requeu")
    assert (status, err.count("\n")) == (2, 1)
    assert "did you mean requeue?" in err
    assert "did you mean --priority?" in typed("task", "post", "x", "--priorty", "1")[2]
    assert typed("help", "task", "post")[1].startswith("usage: stonemux task post [DESCRIPTION] [--flag")


def test_a_refusal_names_operations_as_they_are_typed(typed, http):
    http.call("agent.register", agent_id="ann")
    told = typed("msg", "send", "hi", "--from", "nobody", "--to", "ann")[2]
    assert "register it with `stonemux agent register`, or list the agents with `stonemux agent discover`." in told
    told = typed("state", "get", "state.set")[2]
    assert "has no key 'state.set'; create it with `stonemux state set` and" in told
    told = json.loads(typed("state", "get", "k", "--json")[1])["error"]["message"]
    assert "create it with state.set and" in told


def test_agents_are_listed_like_everything_else(typed):
    assert typed("agent", "list", "-q") == (0, "ann\nbob\n", "")
    assert typed("help", "agent", "list")[1].startswith("usage: stonemux agent discover")


def test_members_are_told_once(typed):
    assert "memberIds" not in typed("channel", "get", "default")[1]
    assert "memberIds" in typed("channel", "get", "default", "--json")[1]


def test_help_says_how_it_is_typed(typed, capsys):
    told = typed("webhook", "add", "--help")[1]
    assert "Default: yes; --no-ordered for no." in told
    assert "  -q, --quiet " in told
    assert re.search(r"\n  health    Whether the daemon is serving", typed("--help")[1])
    with pytest.raises(SystemExit):
        typed("help", "run")
    assert "usage: stonemux run [--flag VALUE ...] -- COMMAND [ARGUMENT ...]\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["license"], "issue|show|server"),
        (["sigil"], "issue|apply, die|live|FILE"),
        (["setup"], "claude|codex|gemini|cursor|vscode"),
        (["completion"], "bash|zsh|fish"),
        (["restore"], "FILE"),
    ],
)
def test_a_missing_word_is_told_with_what_it_may_be(capsys, words, missing):
    with pytest.raises(SystemExit):
        cli.main(words, {"HOME": "/nowhere"})
    assert f": the following arguments are required: {missing} (see " in capsys.readouterr().err


def test_watching_prints_again_when_the_answer_changes(typed, http, monkeypatch):
    rounds = iter(range(3))

    def pause(self: object, ms: int) -> None:
        assert ms == 500
        if next(rounds) == 2:
            raise KeyboardInterrupt
        http.call("state.set", key="k", value="v")

    monkeypatch.setattr("stonemux.clock.Clock.pause", pause)
    status, out, _ = typed("state", "list", "--watch", "--interval", "0.5", "-q")
    assert (status, out) == (130, "k\n")
    for interval in ("0", "x"):
        assert typed("state", "list", "--watch", "--interval", interval)[0] == 2
    assert "--watch" not in typed("msg", "poll", "--help")[1]


def test_watching_on_a_terminal_draws_each_time_from_the_top(typed, http, monkeypatch):
    http.call("state.set", key="k", value="v")
    rounds = iter(range(3))

    def pause(self: object, ms: int) -> None:
        if next(rounds) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("stonemux.clock.Clock.pause", pause)
    monkeypatch.setattr(sys, "stdout", stream := Terminal())
    assert typed("state", "list", "--watch", "-q")[0] == 130
    assert stream.getvalue() == "\x1b[H\x1b[2Jk\n" * 3


def test_a_refusal_of_what_is_printed_as_it_comes_is_told_like_any_other(typed):
    assert typed("audit", "export", "--since", "soon")[0] == 2
    assert typed("audit", "export", STONEMUX_PORT="1")[0] == 6


def test_a_word_that_no_query_can_hold_is_refused(typed):
    assert "the command line is not UTF-8" in typed("agent", "get", "\udcff")[2]


def test_the_status_says_what_is_wrong_with_a_license(typed, http):
    put(http, "x")
    status, out, _ = typed("status")
    assert (status, "license   the license is not valid: " in out) == (0, True)


def test_texts_and_documents_are_printed_as_they_are(typed):
    assert typed("metrics")[1].startswith("# HELP stonemux_info")
    assert json.loads(typed("openapi")[1])["openapi"] == "3.1.0"


def test_the_guides_session_is_true(http, capsys):
    guide = (ROOT / "docs" / "cli.md").read_text().split("```console\n")[1].split("```")[0]
    for command, _, shown in (part.partition("\n") for part in guide.split("$ ")[1:]):
        program, *words = shlex.split(command)
        assert program == "stonemux"
        assert cli.main(words, {"HOME": "/nowhere", "STONEMUX_PORT": str(http.port)}) == 0
        told = capsys.readouterr().out
        if shown:
            assert re.sub(r"\d+ d ago", "now", told).split() == shown.split()


@pytest.mark.parametrize("code", ["task_conflict", "missing_field", "task_not_found", "unreachable", "data_refused"])
def test_the_guide_tells_the_statuses(code):
    guide = (ROOT / "docs" / "cli.md").read_text()
    assert f"\n| {FAILURES[code].exit} | " in guide


# --- show


def test_each_kind_of_id_is_shown(typed, http):
    http.call("msg.send", from_="ann", to="bob", content="hello", subject="News")
    task = http.call("task.post", description="write", posted_by="ann")["task_id"]
    document = http.call("document.create", content="all of it\n")["document"]["id"]
    channel = http.call("channel.get", channel="default")["channel"]["id"]
    told = typed("show", "1")[1].splitlines()
    assert told[0].startswith("1  ann to bob  default, ")
    assert told[1:] == ["  News", "  hello", "", "Agent  Status", "bob    queued"]
    assert "description  write" in typed("show", task)[1]
    assert typed("show", document, "--raw")[1] == "all of it\n"
    assert "name        default" in typed("show", channel)[1]
    assert json.loads(typed("show", "1", "--json")[1])["message"]["content"] == "hello"
    assert typed("inbox", "bob", "-q")[1] == "inbox-1-bob\n", "nothing was taken"


def test_what_is_no_id_or_not_there_is_refused(typed):
    status, _, err = typed("show", "nonsense")
    assert (status, "`stonemux state get` show something by its name" in err) == (2, True)
    assert typed("show", "99")[0] == 3
    assert typed("show", "doc-99")[0] == 3
    assert typed("show", "inbox-99-bob")[0] == 3
    assert typed("show", "9" * 19)[0] in (2, 3)


def test_a_value_and_a_content_are_printed_alone_and_unchanged(typed, http, monkeypatch):
    http.call("state.set", key="k", value="one\ntwo ")
    http.call("msg.send", from_="ann", to="bob", content="hi")
    assert typed("state", "get", "k", "--raw") == (0, "one\ntwo ", "")
    assert typed("inbox", "show", "inbox-1-bob", "--raw") == (0, "hi", "")
    with monkeypatch.context() as patch:
        stream = io.TextIOWrapper(io.BytesIO())
        patch.setattr(stream, "isatty", lambda: True)
        patch.setattr(sys, "stdout", stream)
        assert typed("show", "1", "--raw")[0] == 0
        assert stream.buffer.getvalue() == b"hi\n"  # type: ignore[attr-defined]
    assert "--raw" not in typed("task", "get", "--help")[1]


def test_what_has_no_content_has_no_raw_form(typed, http):
    task = http.call("task.post", description="write", posted_by="ann")["task_id"]
    assert typed("show", task, "--raw")[0] == 3


# --- inbox and events


def test_an_inbox_is_listed_by_status(typed, http):
    for text in ("one", "two"):
        http.call("msg.send", from_="ann", to="bob", content=text)
    http.call("inbox.update", agent_id="bob", ids=["inbox-1-bob"], status="read")
    assert typed("inbox", STONEMUX_AGENT="bob")[1].splitlines()[1].startswith("inbox-2-bob")
    assert typed("inbox", "bob", "--status", "read", "-q")[1] == "inbox-1-bob\n"
    assert json.loads(typed("inbox", "bob", "--json")[1])["unread"] == 1
    assert typed("inbox", "ann")[1] == "no items\n\nunread  0\n"
    assert typed("inbox")[0] == 2
    assert typed("inbox", "nobody")[0] == 3
    assert typed("inbox", "bob", "--limit", "0")[0] == 2


def test_an_inbox_is_paged_with_the_flags_that_it_names(typed, http):
    for number in range(3):
        http.call("msg.send", from_="ann", to="bob", content=str(number))
    told = typed("inbox", "bob", "--limit", "2")[1]
    assert "there are more: see --limit and --before" in told
    assert typed("inbox", "bob", "--limit", "2", "--before", "2", "-q")[1] == "inbox-1-bob\n"


def test_a_bound_token_says_whose_inbox_it_is(typed, http):
    http.call("msg.send", from_="ann", to="bob", content="hi")
    assert typed("inbox", "-q", STONEMUX_TOKEN=http.call("token.issue", agent_id="bob")["token"])[1] == "inbox-1-bob\n"
    status, _, err = typed("inbox", STONEMUX_TOKEN=http.call("token.issue")["token"])
    assert (status, err) == (2, "stonemux: whose inbox? Pass an agent, or set STONEMUX_AGENT\n")


@pytest.mark.parametrize("token", ["a\nb", "“a”"])
def test_a_token_that_cannot_be_sent_is_told_apart_from_a_daemon_that_is_away(typed, token):
    status, _, err = typed("msg", "list", STONEMUX_TOKEN=token)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("stonemux: the header Authorization has a line break or a character that cannot be sent")


def test_the_newest_events_are_a_line_each(typed, http):
    http.call("msg.send", from_="ann", to="bob", content="a\x1b[2J\nb")
    lines = typed("events", "--types", "message")[1].splitlines()
    assert len(lines) == 1
    assert "message" in lines[0]
    assert "content a\\x1b[2J b" in lines[0]
    (event,) = map(json.loads, typed("events", "--types", "message", "--json")[1].splitlines())
    assert event["data"]["to"] == "bob"
    assert typed("events", "--after", str(event["id"]))[1] == ""
    assert typed("events", "--types", "nonsense")[0] == 2
    assert typed("events", "--after", "x")[0] == 2


def test_color_moves_no_column_of_the_events(typed, http, monkeypatch):
    http.call("channel.create", name="sec", created_by="ann")
    plain = typed("events")[1]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", colored := Terminal())
        typed("events")
    assert "\x1b[" in colored.getvalue()
    assert re.sub(r"\x1b\[\d+m", "", colored.getvalue()) == plain


class AFollowed:
    """A daemon that answers what it was told to."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def ask(self, operation: Any, given: dict[str, Any]) -> Any:
        self.asked.append(given)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def test_following_goes_on_where_it_was_when_the_daemon_comes_back(capsys, monkeypatch):
    monkeypatch.setattr(tail, "AWAY_MS", 0)
    away = MuxError("unreachable", "no")
    daemon = AFollowed(
        {"head": 30},
        {"events": [{"id": 11}], "next": 11},
        away,
        MuxError("shutting_down", "no"),
        {"events": [{"id": 12}], "next": 12, "gap": {"from": 5, "to": 9}},
        away,
        {"events": [], "next": 12, "reset": {"head": 3}},
    )
    follower = tail.Tail(daemon, {"channel": "c"})  # type: ignore[arg-type]
    follower.begin(10)
    assert [follower.next(), follower.next(), follower.next()] == [[{"id": 11}], [{"id": 12}], []]
    assert [asked["after"] for asked in daemon.asked[1:]] == [10, 11, 11, 11, 12, 12]
    assert capsys.readouterr().err.splitlines() == [
        "stonemux: the daemon went away; waiting for it to return",
        "stonemux: some events are no longer kept (from 5, to 9)",
        "stonemux: the daemon went away; waiting for it to return",
        "stonemux: the event log started over (head 3)",
    ]


def test_an_inbox_is_followed_on_where_a_restored_copy_counts_from_lower_ids(capsys, monkeypatch):
    letter = lambda number: {"id": f"in-{number}", "message_id": number}  # noqa: E731
    daemon = AFollowed(
        {"head": 90},
        {"items": [letter(40)]},
        {"items": [letter(40)]},
        {"events": [], "next": 8, "reset": {"requested": 90, "head": 8}},
        {"items": [letter(3)]},
        {"items": [letter(3)]},
        {"events": [{"id": 9}], "next": 9},
        {"items": [letter(4), letter(3)]},
        KeyboardInterrupt(),
    )
    monkeypatch.setattr(inbox, "of_user", lambda *_: contextlib.nullcontext(daemon))
    assert cli.main(["inbox", "bob", "--follow", "--quiet"], BARE) == 130
    assert capsys.readouterr().out.split() == ["in-40", "in-3", "in-4"]


def test_following_ends_with_a_real_refusal():
    daemon = AFollowed({"head": 30}, MuxError("upgrade_required", "no"))
    follower = tail.Tail(daemon, {})  # type: ignore[arg-type]
    follower.begin(back=20)
    assert follower.after == 10
    with pytest.raises(MuxError):
        follower.next()


def test_inbox_and_events_are_followed_until_an_interrupt(tmp_path):
    with running_daemon(tmp_path / "data") as daemon:
        environ = {**BARE, "HOME": str(tmp_path), "STONEMUX_PORT": str(daemon.port)}
        command = [sys.executable, "-m", "stonemux"]

        def call(*words: str) -> None:
            assert cli.main([*words, "--quiet"], environ) == 0

        for agent in ("ann", "bob"):
            call("agent", "register", agent)
        call("msg", "send", "before", "--from", "ann", "--to", "bob")
        followers = [
            subprocess.Popen([*command, *words], cwd=ROOT, env=environ, stdout=-1, stderr=-1, text=True)
            for words in (["inbox", "bob", "--follow"], ["events", "--follow", "--types", "message", "--json"])
        ]
        try:
            inbox, events = (follower.stdout for follower in followers)
            assert inbox is not None
            assert events is not None
            assert [inbox.readline() for _ in range(3)][1] == "  before\n"
            assert json.loads(events.readline())["data"]["content"] == "before"
            call("msg", "send", "after", "--from", "ann", "--to", "bob")
            assert [inbox.readline() for _ in range(3)][1] == "  after\n"
            assert json.loads(events.readline())["data"]["content"] == "after"
            for follower in followers:
                follower.send_signal(signal.SIGINT)
                assert follower.communicate(timeout=10)[1] == ""
                assert follower.returncode == 130
        finally:
            for follower in followers:
                follower.kill()
                follower.communicate()


def test_following_an_inbox_misses_neither_a_burst_nor_what_is_read_at_once(tmp_path):
    with running_daemon(tmp_path / "data") as daemon:
        environ = {**BARE, "HOME": str(tmp_path), "STONEMUX_PORT": str(daemon.port)}

        def call(*words: str) -> None:
            assert cli.main([*words, "--quiet"], environ) == 0

        for agent in ("ann", "bob"):
            call("agent", "register", agent)
        for content in ("old", "there"):
            call("msg", "send", content, "--from", "ann", "--to", "bob")
        words = [sys.executable, "-m", "stonemux", "inbox", "bob", "--follow", "--limit", "1", "--json"]
        follower = subprocess.Popen(words, cwd=ROOT, env=environ, stdout=-1, text=True)
        try:
            out = follower.stdout
            assert out is not None
            assert json.loads(out.readline())["content"] == "there"
            follower.send_signal(signal.SIGSTOP)
            for number in range(102):
                call("msg", "send", f"new {number}", "--from", "ann", "--to", "bob")
            call("inbox", "update", "read", "bob", "--all")
            follower.send_signal(signal.SIGCONT)
            assert [json.loads(out.readline())["content"] for _ in range(102)] == [f"new {n}" for n in range(102)]
        finally:
            follower.kill()
            follower.communicate()


# --- top

STATS = {
    "version": "1",
    "tier": "pro",
    "uptime": 61,
    "agents": {"active": 2, "stale": 0},
    "messages": {"sent": 10, "unread": 3},
    "tasks": {"pending": 1, "claimed": 0},
    "state_keys": 4,
    "channels": 5,
    "waiters": 6,
    "events": {"head": 100},
}
AT = "2025-12-06T05:43:40.000Z"
AGENTS = [{"id": f"agent{n}", "status": "active", "unread": n, "claimed": 0, "last_heartbeat": AT} for n in range(9)]
TASKS = [{"task_id": f"t{n}", "status": "pending", "description": "x" * 99, "created_at": AT} for n in range(9)]


def test_rates_are_told_by_two_views():
    before = top.View(1000, STATS, [], [])
    now = STATS | {"messages": {"sent": 15, "unread": 3}, "events": {"head": 103}}
    look = Look(None, False, 0)
    told = "\n".join(top.frame("here", top.View(3000, now, [], []), before, look, 99))
    assert "messages  15 sent (2.5/s), 3 unread" in told
    assert "events    103 (1.5/s), 6 calls waiting, 4 keys, 5 channels" in told
    assert "(" not in "\n".join(top.frame("here", before, None, look, 99))


def test_a_view_fits_the_terminal():
    for width, height in itertools.product((10, 40, 80, 200), range(1, 40)):
        lines = top.frame("here", top.View(0, STATS, AGENTS, TASKS), None, Look(width, False, 0), height)
        assert (len(lines) <= height, max(map(len, lines)) <= width) == (True, True), (width, height)
        if (width, height) == (80, 30):
            assert sum("agent" in line for line in lines) == 10
            assert sum("xxx" in line for line in lines) == 9
        if (width, height) == (80, 15):
            assert "more" in "\n".join(lines)


@pytest.mark.parametrize(
    "words", ["agent discover", "status", "doctor", "service status", "setup gemini --dry-run --no-check"]
)
def test_a_folder_that_was_removed_from_under_the_shell_is_no_trouble(typed, tmp_path, monkeypatch, words):
    """An agent's worktree, say."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    status, out, err = typed(*words.split(), HOME=str(tmp_path))
    assert (status, err) == (3 if words == "service status" else 0, "")
    assert out


def test_top_prints_one_view_where_there_is_no_terminal(typed, http):
    http.call("msg.send", from_="ann", to="bob", content="x")
    http.call("task.post", description="write", posted_by="ann")
    status, out, err = typed("top")
    assert (status, err) == (0, "")
    assert "agents    2 active, 0 stale" in out
    assert [line.split()[:4] for line in out.splitlines() if line.startswith("bob")] == [["bob", "active", "1", "0"]]
    assert "pending" in out
    assert "\x1b" not in out
    for interval in ("0", "nan", "3601"):
        assert typed("top", "--interval", interval)[0] == 2


@pytest.mark.settings(default_tier="free")
def test_top_leaves_out_what_the_tier_does_not_allow(typed):
    assert "2 active" in typed("top")[1]


@contextlib.contextmanager
def terminal(*words: str, environ: dict[str, str], size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """A command on a terminal of its own: process id and the terminal's other end."""
    pid, end = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-m", "stonemux", *words], environ)
    try:
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        yield pid, end
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(end)


def read_until(end: int, wanted: bytes) -> bytes:
    found = b""
    while wanted not in found:
        assert select.select([end], [], [], 10)[0], found
        try:
            found += os.read(end, 65536)
        except OSError:
            break
    return found


def test_top_draws_on_a_terminal_follows_its_size_and_leaves_it_as_it_was(tmp_path):
    with running_daemon(tmp_path / "data") as daemon:
        environ = {"HOME": str(tmp_path), "STONEMUX_PORT": str(daemon.port), "TERM": "xterm"}
        with terminal("top", environ=environ, size=(0, 0)) as (pid, end):  # one that does not tell its size
            usual = termios.tcgetattr(end)
            assert b"agents" in read_until(end, b"\x1b[J")
            fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 6, 30, 0, 0))
            time.sleep(0.01)
            assert "…".encode() in read_until(end, b"\x1b[J")
            os.write(end, b"q")
            assert read_until(end, top.LEAVE.encode()).endswith(top.LEAVE.encode())
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert termios.tcgetattr(end) == usual


# --- completion


def completed(*words: str) -> list[str]:
    """What a real bash offers for the last word."""
    script = f"""
    {SHELLS["bash"](tree())}
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _stonemux; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


COMPLETED = [
    (["mess"], ["message"]),
    (["message", "bro"], ["broadcast"]),
    (["msg", "send", "--pri"], ["--priority"]),
    (["msg", "send", "--from", "ann", "--prio"], ["--priority"]),
    (["task", "list", "--status", "cl"], ["claimed"]),
    (["task", "list", "--limit", ""], []),
    (["stats", "--js"], ["--json"]),
    (["inbox", "li"], ["list"]),
    (["agent", "li"], ["list"]),
    (["agent", "list", "--inc"], ["--include-stale"]),
    (["inbox", "--fol"], ["--follow"]),
    (["setup", "cu"], ["cursor"]),
    (["nonsense", ""], []),
]


@pytest.mark.parametrize(("words", "offered"), COMPLETED)
def test_bash_completes(words, offered):
    assert completed("stonemux", *words) == offered


def test_fish_completes():
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("there is no fish here")
    asked = "".join(
        f"echo (complete -C {shlex.quote(shlex.join(['stonemux', *words]))} | cut -f1)\n" for words, _ in COMPLETED
    )
    script = SHELLS["fish"](tree()) + asked.replace("''", "")
    done = subprocess.run([fish, "--no-config"], input=script, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert [line.split() for line in done.stdout.splitlines()] == [offered for _, offered in COMPLETED]


def test_zsh_understands_its_script():
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("there is no zsh here")
    done = subprocess.run([zsh, "-n"], input=SHELLS["zsh"](tree()), capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes_files_where_a_flag_takes_one(tmp_path):
    (tmp_path / "copy.db").touch()
    assert completed("stonemux", "backup", "--output", f"{tmp_path}/co") == [f"{tmp_path}/copy.db"]


def test_every_command_verb_and_flag_can_be_completed():
    known = tree()
    assert {row.name for row in cli.COMMANDS} | set(verbs.areas(OPERATIONS)) <= {word.text for word in known[""]}
    for operation in OPERATIONS:
        offered = {word.text for word in known[operation.name.replace(".", " ")]}
        assert {verbs.flag(param) for param in operation.params} <= offered
        assert {flag.typed for flag in (*flags.PLACE, *verbs.OUTPUT)} <= offered


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_names_everything(shell, capsys):
    assert cli.main(["completion", shell], {}) == 0
    told = capsys.readouterr().out
    for text in ("requeue", "restore", "message", "accept-rollback", "claimed"):
        assert text in told
    assert not any(ord(one) < 32 and one != "\n" for one in told)


# --- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_mcp_tells_a_person_that_it_waits_for_a_program(capsys, monkeypatch, stream):
    monkeypatch.setattr("stonemux.stdio.serve", lambda *_: 0)
    monkeypatch.setattr(sys, "stdin", stream)
    assert cli.main(["mcp"], {"HOME": "/nowhere"}) == 0
    out, err = capsys.readouterr()
    assert (out, "stonemux setup" in err) == ("", stream.isatty())


def test_a_bar_is_drawn_on_a_terminal_only_and_wiped_away():
    stream = Terminal()
    with progress.Progress("copying", 200, stream) as bar:
        bar.show(50, "1 MiB")
        bar.show(60, "2 MiB")
    assert stream.getvalue() == "\rcopying  [######------------------]  25 %  1 MiB\x1b[K\r\x1b[K"
    silent = io.StringIO()
    with progress.Progress("copying", 200, silent) as bar:
        bar.show(50)
    assert silent.getvalue() == ""


def test_a_bar_never_passes_its_end_and_tells_the_time_left():
    bar = progress.Progress("x", 100, io.StringIO())
    assert bar.line(500, "", 0) == f"x  [{'#' * 24}] 100 %"
    assert bar.line(25, "a", 10_000) == f"x  [{'#' * 6}{'-' * 18}]  25 %  a, 30 s left"
    assert progress.Progress("x", 0, io.StringIO()).line(7, "", 3000) == "x  7  3 s"


def test_no_bar_is_drawn_between_the_messages_that_an_export_prints(typed, http, monkeypatch):
    http.call("msg.send", from_="ann", to="bob", content="hi")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out := Terminal())
        patch.setattr(sys, "stderr", err := Terminal())
        assert typed("export")[0] == 0
    assert (json.loads(out.getvalue())["content"], err.getvalue()) == ("hi", "")


def test_a_growing_file_is_watched(tmp_path, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.growing("copying", tmp_path, ".*.new", 4 * 2**20):
        (tmp_path / ".a.new").write_bytes(bytes(2**20))
        deadline = time.monotonic() + 5
        while "25 %" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "copying  [######------------------]  25 %  1 MiB" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_command_tells_what_it_was_refused_with_whatever_that_is():
    with Scripted(refusal(409, "a_code_of_tomorrow", Retry_After="3")) as server:
        with Remote(replace(Settings(), port=server.port), None) as remote, pytest.raises(MuxError) as caught:
            remote.ask(BY_NAME["health"], {})
        error = caught.value
        assert (error.code, error.message, error.retry_after) == ("a_code_of_tomorrow", "so it is", 3)
        assert error.failure.exit == 1
        assert error.facts == {"request_id": "r1"}


def test_a_name_with_a_comma_is_not_taken_for_two_in_a_query(typed: Typed):
    status, _, said = typed("message", "poll", "ann", "--timeout", "0", "--types", '["a,b"]')
    assert status == 2
    assert "types has a name that contains a comma" in said


def test_a_command_gets_the_answer_to_its_own_call_after_a_poll(http: OverHttp):
    join(http, "ann")
    with Remote(replace(Settings(), port=http.port), None) as remote:
        for number in range(50):
            http.call("msg.send", from_="ann", to="ann", content=str(number))
            polled = remote.ask(BY_NAME["msg.poll"], {"agent_id": "ann", "timeout": 0})
            assert [message["content"] for message in polled["messages"]] == [str(number)]
            assert "status" in remote.ask(BY_NAME["health"], {})
