"""The Unix socket: it serves the same daemon, only to this user, and never damages other files."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faces import OverHttp, join
from fake_clock import FakeClock
from raw import PATIENCE_S, Raw, eventually, get, post

from stonemux import config
from stonemux.connection import VERDICT_MS
from stonemux.errors import MuxError
from stonemux.local import Listener


class OnSocket(Raw):
    """A connection over a Unix socket."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(str(path))
        self.buffer = b""


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A short one: the system allows hardly a hundred characters."""
    folder = Path(os.path.realpath("/tmp")) / f"sx{os.getpid()}"
    folder.mkdir(mode=0o700)
    yield folder / "mux.sock"
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()


@pytest.fixture
def served(open_program: Callable[..., Any], path: Path) -> Iterator[OverHttp]:
    with OverHttp(open_program(unix_socket=str(path)).mux) as face:
        join(face, "ann", "bob")
        yield face


def test_the_daemon_answers_on_both(served, path):
    with OnSocket(path) as raw:
        assert raw.ask(get("/health")).json["status"] == "ok"
        sent = raw.ask(post("/msg/send", {"from": "ann", "to": "bob", "content": "over the socket"})).json
    got = served.call("msg.poll", agent_id="bob", timeout=0)["messages"]
    assert [m["id"] for m in got] == [sent["message_id"]]


def test_only_this_user_can_reach_it(served, path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_parked_poll_is_woken_and_a_page_of_another_site_is_kept_out(served, path):
    with OnSocket(path) as raw:
        raw.send(get("/msg/poll?agent_id=bob&timeout=30"))
        eventually(lambda: served.mux.waiters.count == 1)
        served.call("msg.send", from_="ann", to="bob", content="hi")
        assert [m["content"] for m in raw.answer().json["messages"]] == ["hi"]
        assert raw.ask(get("/msg/poll?agent_id=bob&timeout=0", "Origin: https://evil.example")).status == 403
        assert raw.ask(get("/health", "Host: evil.example")).status in (400, 421)


def test_a_stream_flows_over_it(served, path):
    with OnSocket(path) as raw:
        raw.send(get("/events"))
        raw.head()
        raw.read_until(b"\n\n")
        served.call("msg.send", from_="ann", to="bob", content="hi")
        assert b'"hi"' in raw.read_until(b"}\n\n")


@pytest.mark.parametrize("reads", [False, True])
def test_i5_what_was_not_read_comes_again(served, path, reads):
    """The receipt is that of the system here, too: a close with the answer unread is told as a reset."""
    sent = served.call("msg.send", from_="ann", to="bob", content="hi")["message_id"]
    raw = OnSocket(path)
    raw.send(get("/msg/poll?agent_id=bob&timeout=0"))
    raw.until_readable()
    if reads:
        assert raw.answer().json["messages"]
    raw.close()
    clock = served.mux.clock
    assert isinstance(clock, FakeClock)

    def concluded() -> bool:
        clock.advance(VERDICT_MS)
        served.server.ring()
        return not served.mux.flights.held("bob")

    eventually(concluded)
    again = served.call("msg.poll", agent_id="bob", timeout=0)["messages"]
    assert [m["id"] for m in again] == ([] if reads else [sent])


def test_the_file_goes_with_the_daemon(open_program, path):
    with OverHttp(open_program(unix_socket=str(path)).mux):
        assert path.is_socket()
    assert not path.exists()


def test_a_file_that_is_another_by_now_is_left(path):
    first = Listener(path)
    path.unlink()
    second = Listener(path)
    first.close()
    assert path.is_socket()
    with OnSocket(path):
        pass
    second.close()
    assert not path.exists()


def test_what_a_killed_daemon_left_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    Listener(path).close()


@pytest.mark.parametrize("busy", [False, True])
def test_a_socket_that_somebody_listens_on_is_left(path, busy):
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as waiting:
        other.bind(str(path))
        other.listen(0)
        if busy:
            waiting.connect(str(path))
        with pytest.raises(MuxError) as caught:
            Listener(path)
        assert caught.value.code == "address_in_use"
        assert path.is_socket()


@pytest.mark.parametrize("what", ["file", "folder", "link", "nowhere", "long"])
def test_a_place_that_is_not_for_sockets_is_refused_and_left_alone(path, what):
    target = path.with_name("precious")
    target.write_text("precious")
    if what == "file":
        path.write_text("precious")
    elif what == "folder":
        path = path.parent
    elif what == "link":
        path.symlink_to(target)
    elif what == "nowhere":
        path = path.parent / "no" / "where"
    else:
        path = path.with_name("x" * 120)
    with pytest.raises(MuxError) as caught:
        Listener(path)
    assert caught.value.code == "bad_setting"
    assert caught.value.facts["setting"] == "server.unix_socket"
    assert target.read_text() == "precious"


def test_a_daemon_that_cannot_have_its_socket_gives_its_port_back(open_program, path):
    path.write_text("precious")
    with pytest.raises(MuxError), OverHttp(open_program(unix_socket=str(path)).mux):
        pass
    path.unlink()


def test_an_idle_connection_blocks_nobody(served, path):
    with OnSocket(path) as idle, OnSocket(path) as slow:
        slow.send(b"GET /hea")
        with OnSocket(path) as raw:
            assert raw.ask(get("/health")).status == 200
        assert idle.ask(get("/health")).status == 200
        slow.send(b"lth HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert json.loads(slow.answer().body)["status"] == "ok"


def test_the_setting_is_a_path_or_nothing(tmp_path):
    file = tmp_path / "config.toml"
    for text, wanted in (('""', ""), ('"run/mux.sock"', str(tmp_path / "run/mux.sock")), ('"/run/m.s"', "/run/m.s")):
        file.write_text(f"[server]\nunix_socket = {text}\n")
        assert config.load(file, {}, {}).unix_socket == wanted
    file.write_text("[server]\nunix_socket = 5\n")
    with pytest.raises(MuxError):
        config.load(file, {}, {})
