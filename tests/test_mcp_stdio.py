"""`stonemux mcp` as clients start it: a child process with pipes, and the daemon that it starts."""

from __future__ import annotations

import http.server
import io
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from children import BARE
from daemons import ROOT, SERVE
from faces import Direct, OverHttp
from fake_clock import FakeClock
from raw import eventually
from scripted import Scripted, answer, refusal
from sessions import WITHIN_S, Place

from stonemux import datadir, mcp, operations, pool, starter, stdio
from stonemux.config import Settings
from stonemux.connection import VERDICT_MS
from stonemux.datadir import DataDir
from stonemux.errors import MuxError
from stonemux.record import replace
from stonemux.remote import Remote


@pytest.fixture
def place(tmp_path) -> Iterator[Place]:
    """A place without a daemon."""
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.fixture
def served(http, tmp_path) -> Iterator[Place]:
    """A place where a daemon answers, which runs in this process."""
    made = Place(tmp_path, http.port)
    yield made
    made.close()
    assert not made.data.exists(), "another daemon was started"


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        (b'{"error": {"code": "storage_busy", "message": "later"}}', mcp.INVALID_REQUEST, "later"),
        (b'{"error": "later"}', mcp.INTERNAL_ERROR, "the daemon answered with status 503"),
        (b"<html>", mcp.INTERNAL_ERROR, "the daemon answered with status 503"),
    ],
)
def test_whatever_a_daemon_refuses_with_is_an_answer_to_the_request(body, code, told):
    pipe = stdio.Pipe(Settings(), None, {}, io.BytesIO())
    request = mcp.read({"jsonrpc": "2.0", "id": 7, "method": "tools/list"})
    answer = json.loads(pipe._answer(request, SimpleNamespace(status=503, body=body)))
    assert (answer["id"], answer["error"]["code"], answer["error"]["message"]) == (7, code, told)


def test_a_daemon_that_cannot_be_started_is_told(tmp_path):
    (tmp_path / "data").write_text("in the way")
    settings = replace(Settings(), data_dir=tmp_path / "data", port=1)
    with pytest.raises(MuxError, match=r"the daemon cannot be started: .*File exists"):
        starter.Starter(settings, None, {}).ensure()


def test_a_daemons_log_that_has_grown_large_is_put_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(starter, "MOST_LOG_BYTES", 3)
    log = tmp_path / starter.LOG
    for text in ("long ago", "now"):
        with starter._open_log(log) as file:
            file.write(text.encode())
    assert (log.read_text(), (tmp_path / "daemon.log.1").read_text()) == ("now", "long ago")


def waiters(place: Place) -> int:
    with Remote(replace(Settings(), port=place.port), None) as daemon:
        return daemon.ask(operations.BY_NAME["stats"], {})["waiters"]


def becomes(http: OverHttp, message_id: int, status: str) -> bool:
    """Wait until the message's only recipient has this status, while time passes."""
    direct, clock = Direct(http.mux), http.mux.clock
    assert isinstance(clock, FakeClock)

    def holds() -> bool:
        clock.advance(VERDICT_MS)
        http.server.ring()
        return direct.call("msg.status", id=message_id)["recipients"][0]["status"] == status

    return bool(eventually(holds))


def test_a_daemon_that_has_found_damage_is_not_started_once_more():
    with Scripted(answer(200, {"status": "failing"})) as server:
        assert pool.answers(replace(Settings(), port=server.port), timeout=2)
    assert not pool.answers(replace(Settings(), port=server.port), timeout=2)


def test_two_sessions_talk_through_one_daemon_that_nobody_started(place):
    ann, bob = place.session(), place.session(STONEMUX_AGENT="bob")
    assert ann.answer(ann.send("initialize", protocolVersion="2025-06-18"))["result"]["protocolVersion"] == "2025-06-18"
    envelope = {mcp.PROTOCOL_VERSION: "2026-07-28", mcp.CLIENT_CAPABILITIES: {}}
    assert bob.answer(bob.send("server/discover", _meta=envelope))["result"]["resultType"] == "complete"
    ann.call("mux_register", agent_id="ann")
    bob.call("mux_register", capabilities=["drafting"])
    watching = bob.begin("mux_state_watch", key="stage", timeout=60)
    ann.call("mux_send", to="bob", content="hello")
    assert bob.call("mux_poll")["messages"][0]["from"] == "ann"
    ann.call("mux_task_post", description="draft", required_capability="drafting")
    claim = bob.call("mux_task_claim", timeout=10)
    bob.call("mux_task_complete", task_id=claim["task_id"], claim_token=claim["claim_token"], result="done")
    ann.call("mux_state_set", key="stage", value="2")
    assert bob.answer(watching)["result"]["structuredContent"]["value"] == "2"
    assert oct(os.stat(place.data / "daemon.log").st_mode & 0o777) == "0o600"


def test_ten_at_once_start_one_daemon(place):
    sessions = [place.session(STONEMUX_AGENT=f"agent-{number}x") for number in range(10)]
    asked = [session.begin("mux_register", agent_id=f"a{number}") for number, session in enumerate(sessions)]
    for session, request_id in zip(sessions, asked, strict=True):
        assert "structuredContent" in session.answer(request_id)["result"]
    assert len(sessions[0].call("mux_discover")["agents"]) == 10
    log = (place.data / "daemon.log").read_text()
    assert log.count("listening") == 1


def test_a_long_poll_does_not_hold_up_a_send(served):
    ann = served.session(STONEMUX_AGENT="ann")
    ann.call("mux_register")
    waiting = ann.begin("mux_poll", timeout=120)
    served.until(lambda: waiters(served) == 1)
    began = time.monotonic()
    ann.call("mux_send", to="ann", content="wake up")
    assert ann.answer(waiting)["result"]["structuredContent"]["messages"][0]["content"] == "wake up"
    assert time.monotonic() - began < 2


def test_a_cancelled_call_is_not_answered_and_takes_nothing(served):
    ann = served.session(STONEMUX_AGENT="ann")
    ann.call("mux_register")
    waiting = ann.begin("mux_poll", timeout=120)
    served.until(lambda: waiters(served) == 1)
    ann.cancel(waiting)
    served.until(lambda: waiters(served) == 0)
    ann.cancel(waiting)  # nobody knows it any more
    ann.call("mux_send", to="ann", content="kept")
    assert ann.call("mux_poll", timeout=0)["messages"][0]["content"] == "kept"
    assert not any(json.loads(line)["id"] == waiting for line in ann.lines)
    assert ann.end() == 0
    assert ann.process.stderr.read() == b""


def test_an_answer_is_believed_to_have_arrived_only_if_the_client_does_not_cancel_it(served, http):
    ann = served.session(STONEMUX_AGENT="ann")
    ann.call("mux_register")
    sent = ann.call("mux_send", to="ann", content="kept")["message_id"]
    for _ in range(2):
        answered = ann.begin("mux_poll", timeout=0)
        assert ann.answer(answered)["result"]["structuredContent"]["messages"][0]["id"] == sent
        ann.cancel(answered)  # it crossed the answer, which the client throws away
        assert becomes(http, sent, "queued")
    ann.call("mux_poll", timeout=0)
    assert ann.answer(ann.send("ping"))["result"] == {}
    assert becomes(http, sent, "acked")


def test_t13_a_waiting_claim_that_is_cancelled_gives_back_what_it_just_got(served, direct):
    ann = served.session(STONEMUX_AGENT="ann")
    ann.call("mux_register")
    claiming = ann.begin("mux_task_claim", timeout=60)
    served.until(lambda: waiters(served) == 1)
    task_id = direct.call("task.post", description="d", posted_by="ann")["task_id"]
    assert ann.answer(claiming)["result"]["structuredContent"]["task_id"] == task_id
    ann.cancel(claiming)
    eventually(lambda: direct.call("task.get", task_id=task_id)["task"]["status"] == "pending")


@pytest.fixture
def polls(http, direct) -> Iterator[Callable[[Callable[[bytes], Any]], int]]:
    """Starts a session in this process, with a function to write its output, in which ann polls for mail.

    Returns the id of the message that the poll gets.
    """
    direct.call("agent.register", agent_id="ann")
    with ExitStack() as stack:

        def start(write: Callable[[bytes], Any]) -> int:
            sent: int = direct.call("msg.send", from_="ann", to="ann", content="kept")["message_id"]
            reading, writing = os.pipe()
            output: Any = SimpleNamespace(write=write, flush=lambda: None)
            session = stdio.Pipe(replace(Settings(), port=http.port), None, {"STONEMUX_AGENT": "ann"}, output)
            lines = stack.enter_context(open(reading, "rb"))
            thread = threading.Thread(target=session.run, args=(lines,))
            thread.start()
            stack.callback(thread.join, WITHIN_S)
            client = stack.enter_context(open(writing, "wb", buffering=0))
            poll = {"name": "mux_poll", "arguments": {"timeout": 0}}
            client.write(
                json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": poll}).encode() + b"\n"
            )
            return sent

        yield start


def test_an_answer_that_is_not_cancelled_for_a_second_has_arrived(http, polls, monkeypatch):
    monkeypatch.setattr(stdio, "RECEIPT_MS", 20)
    answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    sent = polls(answers.put)
    assert b"kept" in answers.get(timeout=WITHIN_S)
    assert becomes(http, sent, "acked")


def test_i5_an_answer_that_nobody_reads_any_more_has_not_arrived(http, polls, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    monkeypatch.setattr(stdio, "END_MS", 20)

    def write(line: bytes) -> None:
        raise BrokenPipeError

    sent = polls(write)
    assert ended.wait(WITHIN_S)
    assert becomes(http, sent, "queued")


def test_a_restarted_daemon_is_found_again(place):
    ann = place.session()
    ann.call("mux_register", agent_id="ann")
    ann.call("mux_send", to="ann", content="before")
    os.kill(place.daemon, signal.SIGTERM)
    place.until(lambda: not (place.data / "daemon.pid").exists())
    again = subprocess.Popen(
        [*SERVE, "--port", str(place.port), "--data-dir", str(place.data)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert ann.call("mux_poll", timeout=0)["messages"][0]["content"] == "before"
    finally:
        again.terminate()
        again.wait(WITHIN_S)


def test_a_killed_daemon_is_started_again_and_a_waiting_poll_goes_on(place):
    ann = place.session(STONEMUX_AGENT="ann")
    ann.call("mux_register")
    waiting = ann.begin("mux_poll", timeout=60)
    place.until(lambda: waiters(place) == 1)
    old = place.daemon
    os.kill(old, signal.SIGKILL)
    ann.call("mux_send", to="ann", content="after")
    assert place.daemon != old
    assert ann.answer(waiting)["result"]["structuredContent"]["messages"][0]["content"] == "after"


def test_without_a_daemon_everything_is_listed_and_tools_say_why(place):
    place.data.mkdir(mode=0o700)
    place.data.chmod(0o777)
    ann = place.session()
    assert (
        ann.answer(ann.send("initialize", protocolVersion="2025-11-25"))["result"]["serverInfo"]["name"] == "stonemux"
    )
    assert ann.answer(ann.send("ping"))["result"] == {}
    assert len(ann.answer(ann.send("tools/list"))["result"]["tools"]) > 10
    result = ann.answer(ann.begin("mux_discover"))["result"]
    assert result["isError"] is True
    error = json.loads(result["content"][0]["text"])["error"]
    assert error["code"] == "unreachable"
    assert "chmod 700" in error["message"]
    place.data.chmod(0o700)
    assert ann.call("mux_discover") == {"agents": []}


@pytest.mark.parametrize("health", [b'{"status": "ok"}', b"<html>"])
def test_another_server_on_the_port_is_not_taken_for_the_daemon(place, health):
    class Other(http.server.BaseHTTPRequestHandler):
        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer(health)

        def do_POST(self) -> None:
            self.answer(b"<html>")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", place.port), Other) as other:
        serving = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        ann = place.session()
        assert ann.answer(ann.send("initialize", protocolVersion="2025-11-25"))["result"]["serverInfo"]
        error = json.loads(ann.answer(ann.begin("mux_discover"))["result"]["content"][0]["text"])["error"]
        assert error["code"] == "unreachable"
        assert "choose another port with --port" in error["message"]
        other.shutdown()
        serving.join()


def test_a_daemon_that_holds_the_directory_at_another_address_is_not_waited_for(place, monkeypatch):
    monkeypatch.setattr(starter, "HELD_MS", 0)
    held = DataDir(place.data)
    try:
        (place.data / datadir.PID).write_text("1")
        os.utime(place.data / datadir.PID, (1, 1))
        began = time.monotonic()
        with pytest.raises(MuxError, match="in use by another stonemux daemon"):
            starter.Starter(Settings(port=place.port, data_dir=place.data), None, BARE).ensure()
        assert time.monotonic() - began < WITHIN_S / 3
    finally:
        (place.data / datadir.PID).unlink()
        held.close()


@pytest.fixture
def piped(monkeypatch) -> Callable[..., dict[str, Any]]:
    """Pipes one request through a session in this process to a scripted daemon; returns the answer."""
    monkeypatch.setattr(starter.Starter, "ensure", lambda self: None)

    def pipe(server: Scripted, method: str, **params: Any) -> dict[str, Any]:
        output = io.BytesIO()
        line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        stdio.Pipe(replace(Settings(), port=server.port), None, {}, output).run(io.BytesIO(line + b"\n"))
        answered: dict[str, Any] = json.loads(output.getvalue())
        return answered

    return pipe


def test_a_daemon_that_keeps_going_away_is_asked_a_few_times_under_one_key(piped):
    with Scripted(None) as server:
        answered = piped(server, "tools/call", name="mux_send", arguments={"to": "bob", "content": "x"})
    assert "kept going away" in answered["result"]["content"][0]["text"]
    assert len(server.asked) == stdio.TRIES
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 1


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/list", {}),
        ("tools/call", {"name": "mux_task_claim", "arguments": {"timeout": 5}}),
        ("tools/call", {"name": "mux_send", "arguments": {"to": "bob", "content": "x", "idempotency_key": "mine"}}),
    ],
)
def test_a_key_is_added_only_to_a_call_that_may_be_sent_again_and_has_none(piped, method, params):
    with Scripted(answer(200, {"jsonrpc": "2.0", "id": 1, "result": {}})) as server:
        assert piped(server, method, **params)["result"] == {}
    assert "idempotency-key" not in server.asked[0].headers


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (answer(400, {"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "so it is"}}), -32602),
        (refusal(401, "token_missing"), mcp.INVALID_REQUEST),
        (answer(500, "so it is"), mcp.INTERNAL_ERROR),
        (answer(200, "so it is"), mcp.INTERNAL_ERROR),
    ],
    ids=["fault", "refusal", "text", "text with status 200"],
)
def test_whatever_the_daemon_answers_the_client_gets_a_response(piped, said, code):
    with Scripted(said) as server:
        answered = piped(server, "tools/call", name="mux_register", arguments={"agent_id": "ann"})
    assert (answered["id"], answered["error"]["code"]) == (1, code)
    assert answered["error"].get("data", {}).get("code") == ("token_missing" if b"token_missing" in said else None)


def test_a_session_in_which_nothing_was_asked_waits_for_no_daemon(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(starter.Starter, "ensure", lambda self: released.wait(WITHIN_S))
    began = time.monotonic()
    stdio.Pipe(Settings(), None, {}, io.BytesIO()).run(io.BytesIO())
    assert time.monotonic() - began < WITHIN_S / 3
    released.set()


def test_what_the_client_tells_of_itself_is_kept(served):
    ann = served.session(CLAUDE_CODE_SESSION_ID="c-1", CLAUDE_PROJECT_DIR="/tmp/ä")
    agent = ann.call("mux_register", agent_id="ann")["agent"]
    assert agent["metadata"] == {"client": {"session_id": "c-1", "project_dir": "/tmp/ä"}}


def test_a_broken_line_ends_nothing(served):
    ann = served.session()
    for line in (b"{broken", b"\xff\xfe", b"[]", b"", b'{"jsonrpc":"2.0","method":"notifications/whatever"}', b"5"):
        ann.write(line)
    assert ann.answer(ann.send("ping"))["result"] == {}
    codes = [json.loads(line)["error"]["code"] for line in ann.lines if b'"error"' in line]
    assert sorted(codes) == [mcp.PARSE_ERROR] * 2 + [mcp.INVALID_REQUEST] * 2
    assert "1048576 bytes" in ann.answer(ann.begin("mux_send", content="x" * 1_100_000))["error"]["message"]


def test_the_end_of_the_input_ends_it_within_a_second(served):
    ann = served.session(STONEMUX_AGENT="ann")
    ann.call("mux_register")
    waiting = ann.begin("mux_poll", timeout=120)
    served.until(lambda: waiters(served) == 1)
    began = time.monotonic()
    assert ann.end() == 0
    assert time.monotonic() - began < 1
    served.until(lambda: waiters(served) == 0)
    ann._reader.join(WITHIN_S)
    assert not any(json.loads(line)["id"] == waiting for line in ann.lines)


def test_what_was_asked_before_the_end_is_answered(served):
    served.session().call("mux_discover")
    last = served.session()
    asked = last.begin("mux_discover")
    last.process.stdin.close()
    assert last.answer(asked)["result"]["structuredContent"] == {"agents": []}


def test_a_session_piped_in_as_a_whole_gets_its_answers_from_a_daemon_that_it_starts(place):
    ann = place.session()
    asked = [
        ann.send("initialize", protocolVersion="2025-11-25"),
        ann.begin("mux_register", agent_id="ann"),
        ann.begin("mux_send", to="ann", content="note to myself"),  # needs the name
    ]
    assert ann.end() == 0
    answers = [ann.answer(number)["result"] for number in asked]
    assert not any(answer.get("isError") for answer in answers), answers


def test_a_cancelled_registration_holds_nothing_up(place):
    ann = place.session(STONEMUX_AGENT="ann")
    ann.call("mux_discover")
    os.kill(place.daemon, signal.SIGSTOP)
    registration = ann.begin("mux_register")
    discover = ann.begin("mux_discover")
    ann.cancel(registration)
    os.kill(place.daemon, signal.SIGCONT)
    assert "structuredContent" in ann.answer(discover)["result"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_quietly(served, number):
    ann = served.session()
    ann.call("mux_discover")
    ann.process.send_signal(number)
    assert ann.process.wait(WITHIN_S) == 0
    assert b"Traceback" not in ann.process.stderr.read()
