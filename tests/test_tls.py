"""TLS: handshakes that block nobody, what a client's close means, and which certificates are trusted.

Everything else about a connection is tested by running the tests of HTTP, streams, and MCP over TLS
(`deep/test_over_tls.py`).
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from children import BARE
from conftest import Program
from daemons import ROOT, log_until, spawn, tried
from faces import Direct, OverHttp
from raw import PATIENCE_S, Answer, Raw, eventually, get, post, request, unread
from tls_client import CERT, KEY, TlsSocket, trusting

import stonemux
from stonemux import config, pool, tls
from stonemux.config import Settings
from stonemux.connection import VERDICT_MS, end
from stonemux.errors import MuxError
from stonemux.record import replace
from stonemux.tls import PARTING_MS
from stonemux.trust import Trust

HEALTH = get("/health")
POLL = get("/msg/poll?agent_id=bob&timeout=0")
LAST_POLL = get("/msg/poll?agent_id=bob&timeout=0", "Connection: close")
LONG_POLL = get("/msg/poll?agent_id=bob&timeout=30")


class Client(Raw):
    """A client that speaks TLS; `sips` as in `TlsSocket`."""

    def __init__(self, port: int, *, sips: bool = False) -> None:
        self.sock = TlsSocket(plain(port), sips=sips)
        self.buffer = b""


def plain(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@pytest.fixture(autouse=True)
def no_fault_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever clients do, the daemon has nothing to complain of itself."""
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelname in ("WARNING", "ERROR")] == []


class Served:
    """A program with a certificate, ann and bob in it, and clients that are closed at the end."""

    def __init__(self, program: Program, face: OverHttp, stack: ExitStack) -> None:
        self.mux, self.clock = program.mux, program.clock
        self.server, self.port = face.server, face.port
        self.direct = Direct(program.mux)
        self._stack = stack
        for agent_id in ("ann", "bob"):
            self.direct.call("agent.register", agent_id=agent_id)

    def connect(self, *, sips: bool = False) -> Client:
        return self._stack.enter_context(Client(self.port, sips=sips))

    def plain(self) -> socket.socket:
        return self._stack.enter_context(plain(self.port))

    def ask(self, data: bytes, *, head: bool = False) -> Answer:
        with Client(self.port) as client:
            return client.ask(data, head=head)

    def send(self, content: str = "hi") -> int:
        return int(self.direct.call("msg.send", from_="ann", to="bob", content=content)["message_id"])

    def status_of(self, message_id: int) -> str:
        return str(self.direct.call("msg.status", id=message_id)["recipients"][0]["status"])

    def pass_time(self, ms: int) -> bool:
        self.clock.advance(ms)
        self.server.ring()
        return True

    def eventually(self, holds: Callable[[], Any], step: int = VERDICT_MS) -> None:
        """Wait until `holds()`, while time passes in steps."""
        eventually(lambda: holds() or (self.pass_time(step) and False))

    def settle(self) -> None:
        """Let every connection end whose client has closed it."""
        if not self.server.stopping:
            self.eventually(lambda: not self.server.open_connections)

    def comes_again(self, message_id: int) -> bool:
        """Whether another poll gets the message, which is then read."""
        eventually(lambda: not self.mux.flights.held("bob") or (self.pass_time(VERDICT_MS) and False))
        return [m["id"] for m in self.ask(LONG_POLL).json["messages"]] == [message_id]


@pytest.fixture
def served(open_program: Callable[..., Program]) -> Iterator[Served]:
    program = open_program(tls_cert=CERT, tls_key=KEY)
    with OverHttp(program.mux) as face, ExitStack() as stack:
        opened = Served(program, face, stack)
        stack.callback(opened.settle)
        yield opened


# --- what is asked and answered --------------------------------------------------------------------------------------


def test_requests_are_kept_alive_pipelined_chunked_and_headed(served):
    client = served.connect()
    assert client.ask(HEALTH).json["status"] == "ok"
    client.send(HEALTH + post("/msg/send", {"from": "ann", "to": "bob", "content": "x"}) + get("/nowhere"))
    assert [client.answer().status for _ in range(3)] == [200, 200, 404]
    assert client.ask(request("HEAD", "/health"), head=True).status == 200
    chunked = request("POST", "/msg/send", "Content-Type: application/json", "Transfer-Encoding: chunked")
    body = json.dumps({"from": "ann", "to": "bob", "content": "y"}).encode()
    for piece in (chunked, b"%x\r\n" % len(body), body[:7], body[7:] + b"\r\n", b"0\r\n\r\n"):
        client.send(piece)
    assert client.answer().status == 200
    assert [m["content"] for m in client.ask(POLL).json["messages"]] == ["x", "y"]


def test_an_answer_larger_than_all_buffers_arrives_whole(served):
    content = "x" * 60_000
    for _ in range(100):
        served.send(content)
    client = served.connect(sips=True)
    assert [len(m["content"]) for m in client.ask(POLL).json["messages"]] == [60_000] * 100
    assert client.ask(HEALTH).status == 200


def test_after_a_refusal_the_end_is_said(served):
    client = served.connect()
    assert client.ask(request("BREW", "/health")).status == 501
    assert client.sock.hears_goodbye()


def test_e9_a_stream_carries_events_and_ends_with_a_word(served):
    client = served.connect()
    client.send(get("/events?last_event_id=0"))
    assert client.head()[0] == 200
    assert b"event: agent_registered" in client.read_until(b"agent_registered")
    served.send("news")
    client.read_until(b"event: message")
    served.server.stop()
    client.read_until(b"event: shutdown")
    client.read_until(b"\n\n")
    assert client.sock.hears_goodbye()


def test_an_export_is_sent_whole_and_its_end_is_said(served):
    for number in range(50):
        served.send(f"{number}")
    client = served.connect()
    client.send(get("/audit/export"))
    assert client.head()[0] == 200
    client.read_until(b'"count":')
    assert client.sock.hears_goodbye()


@pytest.mark.parametrize(("whole", "said"), [(True, True), (False, False)])
def test_an_answer_that_was_cut_off_is_not_said_to_be_whole(whole, said):
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(1) as background:
        ours.setblocking(False)
        secured = tls.Secured(ours, tls.context(CERT, KEY))
        theirs.settimeout(PATIENCE_S)
        context = trusting()
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # some versions of Python set it, and tell of no end then
        client = background.submit(TlsSocket, theirs, context=context)
        eventually(secured.shake)
        with client.result(PATIENCE_S).raw:
            secured.settimeout(PATIENCE_S)
            secured.sendall(b"x" * 1000)
            ending = background.submit(end, secured, whole=whole)
            assert len(client.result().recv(1000)) == 1000
            assert client.result().hears_goodbye() is said
            theirs.close()
            ending.result(PATIENCE_S)


def test_a_page_of_this_server_has_an_https_origin(served):
    assert served.ask(get("/health", f"Origin: https://localhost:{served.port}")).status == 200
    assert served.ask(get("/health", f"Origin: http://localhost:{served.port}")).status == 403


# --- handshakes ------------------------------------------------------------------------------------------------------


def hello() -> bytes:
    """What a client says first."""
    outgoing = ssl.MemoryBIO()
    client = trusting().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("length", [0, 1, 50, None], ids=["nothing", "a byte", "a part", "a hello"])
def test_fault_13_a_handshake_that_does_not_go_on_delays_nobody_and_is_cut(served, length):
    idle = [served.plain() for _ in range(20)]
    for sock in idle:
        sock.sendall(hello()[:length])
    assert served.ask(HEALTH).status == 200
    served.pass_time(4_999)
    assert served.ask(HEALTH).status == 200
    served.eventually(lambda: served.server.open_connections == 0, step=5_000)
    for sock in idle:
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(65536):
                pass


def test_fault_13_the_deadline_of_a_handshake_is_total(served):
    sock = served.plain()
    eventually(lambda: served.server.open_connections == 1)  # its deadline is counted from here
    for at, byte in enumerate(hello()):
        if at * 100 > 6_000:
            break
        with contextlib.suppress(ConnectionError):
            sock.send(bytes([byte]))
        served.pass_time(100)
    else:
        pytest.fail("the hello is too short for this test")
    eventually(lambda: served.server.open_connections == 0)


def test_a_handshake_may_come_byte_by_byte(served):
    class Dripping(socket.socket):
        def sendall(self, data: bytes, *_: Any) -> None:
            for byte in data:
                super().sendall(bytes([byte]))

    sock = plain(served.port)
    client = Raw.__new__(Raw)
    drips = Dripping(fileno=sock.detach())
    drips.settimeout(PATIENCE_S)
    client.sock, client.buffer = TlsSocket(drips), b""
    with client:
        assert client.ask(HEALTH).status == 200


@pytest.mark.parametrize(
    "data", [HEALTH, b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\x00\x00\x00", bytes(range(128, 256)) * 8], ids=range(4)
)
def test_fault_12_a_client_without_tls_is_told_in_the_clear(served, data):
    client = Raw.__new__(Raw)
    client.sock, client.buffer = served.plain(), b""
    answer = client.ask(data)
    assert (answer.status, answer.code, answer.headers["connection"]) == (400, "tls_required", "close")
    assert client.has_ended()
    assert served.ask(HEALTH).status == 200


def test_fault_12_a_broken_handshake_ends_at_once(served):
    sock = served.plain()
    sock.sendall(hello()[:20] + b"\xff" * len(hello()))
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(65536):
            pass
    eventually(lambda: served.server.open_connections == 0)


def test_fault_12_a_tls_client_at_a_port_without_learns_so_at_once(mux, http):
    if mux.settings.tls_cert:
        pytest.skip("all ports have TLS in this run")
    with pytest.raises(ssl.SSLError, match=r"(?i)wrong.version.number|record layer failure"):
        TlsSocket(plain(http.port))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_versions_before_1_2_are_refused(served):
    old = trusting(maximum_version=ssl.TLSVersion.TLSv1_1, minimum_version=ssl.TLSVersion.TLSv1_1)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|NO_PROTOCOLS"):
        TlsSocket(served.plain(), context=old)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        sock = TlsSocket(served.plain(), context=trusting(maximum_version=version, minimum_version=version))
        sock.sendall(HEALTH)
        assert sock.recv(8) == b"HTTP/1.1"


def test_a_client_that_does_not_trust_us_is_no_fault(served):
    with pytest.raises(ssl.SSLCertVerificationError):
        TlsSocket(served.plain(), context=ssl.create_default_context())
    eventually(lambda: served.server.open_connections == 0)


# --- receipts --------------------------------------------------------------------------------------------------------


def taken_by(client: Client) -> None:
    """Bob's poll is answered, and nothing of it is read."""
    client.send(POLL)
    client.until_readable()


def polled(served: Served, data: bytes = POLL, *, sips: bool = False) -> tuple[int, Client]:
    """A message of which a client has read all."""
    message_id = served.send()
    client = served.connect(sips=sips)
    assert [m["id"] for m in client.ask(data).json["messages"]] == [message_id]
    return message_id, client


def acked(served: Served, message_id: int, step: int = VERDICT_MS) -> bool:
    served.eventually(lambda: served.status_of(message_id) == "acked" or not served.mux.flights.held("bob"), step)
    return served.status_of(message_id) == "acked"


def test_i5_the_next_request_settles(served):
    message_id, client = polled(served)
    assert served.status_of(message_id) != "acked"
    assert client.ask(HEALTH).status == 200
    assert acked(served, message_id)


@pytest.mark.parametrize("sips", [False, True], ids=["gulps", "sips"])
@pytest.mark.parametrize("data", [POLL, LAST_POLL], ids=["kept", "last"])
@pytest.mark.parametrize("word", [False, True], ids=["silently", "with a word"])
def test_i5_an_orderly_end_after_the_answer_settles(served, sips, data, word):
    message_id, client = polled(served, data, sips=sips)
    if word:
        client.sock.goodbye()
    client.close()
    eventually(lambda: served.server._verdicts)
    served.pass_time(VERDICT_MS)  # and no longer
    eventually(lambda: served.status_of(message_id) == "acked")


def test_i5_a_client_that_reads_to_the_end_has_the_answer(served):
    message_id = served.send()
    raw = socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S)
    with trusting().wrap_socket(raw, server_hostname="localhost") as client:
        client.sendall(LAST_POLL)
        while client.recv(65536):  # OpenSSL answers an end without close_notify with an alert
            pass
    assert acked(served, message_id, step=PARTING_MS)


def test_i5_a_word_of_goodbye_alone_settles_after_a_while(served):
    message_id, client = polled(served)
    client.sock.goodbye()
    eventually(lambda: any(each._phase == "parting" for each in list(served.server._connections.values())))
    served.pass_time(PARTING_MS - 1)
    assert served.status_of(message_id) != "acked"
    assert acked(served, message_id, step=PARTING_MS)
    assert client.sock.hears_goodbye()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_i5_a_word_of_goodbye_that_a_reset_follows_puts_back(served):
    message_id, client = polled(served)
    client.sock.goodbye()
    eventually(lambda: any(each._phase == "parting" for each in list(served.server._connections.values())))
    reset(client.sock.raw)
    assert served.comes_again(message_id)


@pytest.mark.parametrize("word", [False, True], ids=["silently", "with a word"])
def test_i5_fault_27_an_answer_left_unread_comes_again(served, word):
    message_id = served.send()
    client = served.connect()
    taken_by(client)
    if word:
        client.sock.goodbye()
    client.close()
    assert served.comes_again(message_id)


def test_i5_a_part_left_unread_comes_again(served):
    message_id = served.send("x" * 1000)
    client = served.connect()
    taken_by(client)
    assert len(client.sock.raw.recv(100)) == 100
    client.sock.raw.close()
    assert served.comes_again(message_id)


@pytest.mark.parametrize("word", [False, True], ids=["silently", "with a word"])
def test_i5_a_client_that_left_while_it_waited_takes_nothing(served, word):
    client = served.connect()
    client.send(LONG_POLL)
    served.clock.until_parked(1)
    if word:
        client.sock.goodbye()  # and it keeps the connection open, as asyncio does
    else:
        client.close()
    eventually(lambda: not served.mux.hub.parked)
    message_id = served.send()
    assert served.comes_again(message_id)


def test_i5_a_goodbye_that_came_before_the_answer_was_written_is_no_receipt(served):
    message_id = served.send()
    client = served.connect()
    client.sock._tls.write(POLL)
    with contextlib.suppress(ssl.SSLError):
        client.sock._tls.unwrap()
    client.sock.raw.sendall(client.sock._outgoing.read())  # the request and the goodbye arrive together
    assert served.comes_again(message_id)


def test_i5_what_was_pipelined_behind_a_poll_is_no_receipt(served):
    message_id = served.send()
    client = served.connect()
    client.send(POLL + HEALTH)
    client.until_readable()
    reset(client.sock.raw)
    assert served.comes_again(message_id)


def test_t13_a_claim_left_unread_is_released(served):
    served.direct.call("task.post", description="work", posted_by="ann")
    client = served.connect()
    client.send(post("/task/claim", {"agent_id": "bob", "timeout": 5}))
    client.until_readable()
    client.close()
    served.eventually(lambda: served.direct.call("task.list")["tasks"][0]["status"] == "pending")


@pytest.mark.parametrize("sips", [False, True], ids=["gulps", "sips"])
def test_a_tool_whose_answer_was_read_is_settled_over_mcp(served, sips):
    message_id = served.send()
    client = served.connect(sips=sips)
    called = {"name": "mux_poll", "arguments": {"agent_id": "bob", "timeout": 0}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": called}
    assert client.ask(post("/mcp", body, "Accept: application/json")).status == 200
    client.close()
    assert acked(served, message_id)


def test_a_tool_that_waited_ends_its_stream_with_a_word_in_the_same_breath(served, monkeypatch):
    sends, last = tls.Secured.send, []

    def noted(secured: tls.Secured, data: bytes) -> int:
        last.append(secured.farewell)
        return sends(secured, data)

    monkeypatch.setattr(tls.Secured, "send", noted)
    client = served.connect()
    called = {"name": "mux_poll", "arguments": {"agent_id": "bob", "timeout": 30}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": called}
    client.send(post("/mcp", body, "Accept: application/json, text/event-stream"))
    served.clock.until_parked(1)
    client.read_until(b": still waiting\n\n")
    message_id = served.send()
    client.read_until(b'"id":%d' % message_id)
    client.read_until(b"\n\n")
    eventually(lambda: unread(client.sock.raw) == 0)
    client.close()  # without having asked for the end, which had come along
    assert acked(served, message_id)
    assert last[-1]


def test_the_last_of_a_stream_and_its_end_are_one_segment():
    ours, theirs = socket.socketpair()
    sent: list[bytes] = []

    class Noted(socket.socket):
        def send(self, data: Any, *_: Any) -> int:
            sent.append(bytes(data))
            return super().send(data)

    with Noted(fileno=ours.detach()) as noted, ThreadPoolExecutor(1) as background:
        noted.setblocking(False)
        secured = tls.Secured(noted, tls.context(CERT, KEY))
        theirs.settimeout(PATIENCE_S)
        client = background.submit(TlsSocket, theirs)
        eventually(secured.shake)
        with client.result(PATIENCE_S).raw:
            assert secured.send(b"begun ") == 6
            sent.clear()
            secured.farewell = True
            assert secured.send(b"and ended") == 9
            assert len(sent) == 1
            assert client.result().recv(100) == b"begun "
            assert client.result().recv(100) == b"and ended"
            assert client.result().hears_goodbye()


# --- settings --------------------------------------------------------------------------------------------------------


def refused(cert: str, key: str) -> str:
    with pytest.raises(MuxError) as caught:
        tls.context(cert, key)
    assert (caught.value.code, caught.value.failure.exit) == ("bad_setting", 2)
    return caught.value.message


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def test_certificate_files_that_do_not_do_are_refused_by_name(tmp_path):
    nothing, rubbish, both = tmp_path / "none.pem", tmp_path / "rubbish.pem", tmp_path / "both.pem"
    rubbish.write_text("-----BEGIN RUBBISH-----")
    both.write_text(Path(CERT).read_text() + Path(KEY).read_text())
    assert f"server.tls_cert: {nothing} cannot be read: No such file" in refused(str(nothing), KEY)
    assert f"server.tls_key: {nothing} cannot be read" in refused(CERT, str(nothing))
    assert "must hold a certificate and its key as PEM" in refused(str(rubbish), KEY)
    assert "must hold a certificate and its key as PEM" in refused(CERT, str(rubbish))
    assert "server.tls_key is empty" in refused(CERT, "")
    assert "cannot be read: Is a directory" in refused(str(tmp_path), KEY)
    assert tls.context(str(both), "")


def test_a_key_of_another_certificate_or_under_a_password_is_refused(tmp_path):
    other, locked = tmp_path / "other.pem", tmp_path / "locked.pem"
    try:
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(other))
        openssl("pkey", "-in", KEY, "-aes128", "-passout", "pass:x", "-out", str(locked))
    except FileNotFoundError:
        pytest.skip("openssl makes the keys; it is not installed")
    assert f"{other} is not the key of {CERT}" in refused(CERT, str(other))
    assert "encrypted" in refused(CERT, str(locked))


def test_a_key_without_a_certificate_is_a_contradiction(tmp_path):
    with pytest.raises(MuxError, match=r"tls_key is set but server\.tls_cert is not"):
        config.load(None, {"HOME": str(tmp_path), "STONEMUX_TLS_KEY": KEY}, {})


def test_the_start_refuses_what_it_cannot_use_with_status_2(tmp_path):
    done = tried("serve", "--data-dir", str(tmp_path), home=tmp_path, STONEMUX_TLS_CERT=str(tmp_path / "no.pem"))
    assert done.returncode == 2
    assert "no.pem cannot be read: No such file" in done.stderr


def test_a_client_without_a_certificate_does_not_load_openssl():
    script = "import sys, stonemux.pool, stonemux.stdio, stonemux.flags; sys.exit('ssl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_beyond_loopback_there_are_tokens_and_either_tls_or_the_will_to_go_without():
    beyond = replace(Settings(), host="0.0.0.0")
    for unsafe, what in ((beyond, "set server.tls_cert"), (replace(beyond, tls_cert=CERT, auth_tokens="off"), "agent")):
        with pytest.raises(MuxError, match=what) as caught:
            config.check_safe(unsafe)
        assert (caught.value.code, caught.value.failure.exit) == ("unsafe_environment", 5)
    config.check_safe(replace(beyond, tls_cert=CERT))
    config.check_safe(replace(beyond, insecure_http=True))


# --- clients ---------------------------------------------------------------------------------------------------------


def health(port: int, host: str = "localhost", cert: str = CERT) -> dict[str, Any]:
    return pool.health(host, port, tls_cert=cert)


def unreachable(port: int, **given: Any) -> str:
    with pytest.raises(MuxError) as caught:
        health(port, **given)
    assert caught.value.code == "unreachable"
    return caught.value.message


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0"])
def test_a_client_that_knows_the_certificate_is_answered_at_any_name_of_this_machine(served, host):
    served.server.hosts = served.server.hosts | {f"{host}:{served.port}"}
    assert health(served.port, host)["status"] == "ok"


@pytest.fixture
def another(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a certificate for this machine that nobody has seen before, and of its key."""
    cert, key = tmp_path / "another-cert.pem", tmp_path / "another-key.pem"
    try:
        subject = ("-subj", "/CN=localhost", "-days", "2", "-nodes", "-newkey", "ec", "-pkeyopt")
        openssl("req", "-x509", *subject, "ec_paramgen_curve:P-256", "-out", str(cert), "-keyout", str(key))
    except FileNotFoundError:
        pytest.skip("openssl makes another certificate; it is not installed")
    return cert, key


def test_a_client_trusts_nobody_else(served, tmp_path, another):
    told = unreachable(served.port, cert=str(another[0]))
    assert "(certificate verify failed: self" in told
    assert f"; trusted is {another[0]}); start one" in told
    assert "contains no certificate" in unreachable(served.port, cert=KEY)
    assert f"({tmp_path}/none.pem: No such file or directory)" in unreachable(
        served.port, cert=str(tmp_path / "none.pem")
    )


def test_on_this_machine_only_the_very_certificate_is_trusted_and_not_what_it_signed(served):
    trust = Trust(str(CERT), "127.0.0.1")
    trust._known = [b"the one that signed it"]
    with (
        closing(served.plain()) as sock,
        pytest.raises(OSError, match=f"is not in {re.escape(str(CERT))}; send it SIGHUP"),
    ):
        trust.secure(sock)


def test_on_another_machine_the_name_in_the_certificate_counts(served, monkeypatch):
    monkeypatch.setattr("stonemux.trust._HERE", re.compile("nowhere"))

    def secure(name: str) -> None:
        with socket.create_connection(("127.0.0.1", served.port)) as sock:
            Trust(CERT, name).secure(sock).close()

    secure("localhost")
    with pytest.raises(OSError, match="Hostname mismatch"):
        secure("agent.example")


def test_a_client_without_the_certificate_is_told_what_it_lacks(served):
    with pytest.raises(MuxError) as caught:
        health(served.port, cert="")
    assert caught.value.code == "tls_required"
    assert "STONEMUX_TLS_CERT" in caught.value.message


MCP_POLL = {"name": "mux_poll", "arguments": {"agent_id": "bob", "timeout": 0}}
MCP_BODY = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": MCP_POLL}).encode()
MCP_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


def take_back(trip: pool.RoundTrip, *request: Any) -> None:
    trip.request(*request)
    assert b"hi" in trip.body
    trip.abort()
    trip._check()


@pytest.mark.parametrize(
    "asked",
    [("GET", "/msg/poll?agent_id=bob&timeout=0"), ("POST", "/mcp", MCP_BODY, MCP_HEADERS)],
    ids=["kept open", "ended by the daemon"],
)
def test_i5_a_client_that_takes_its_call_back_is_believed(served, asked):
    connections = pool.Pool("localhost", served.port, CERT)
    message_id = served.send()
    with pytest.raises(pool.Aborted), connections.round_trip() as trip:
        take_back(trip, *asked)
    assert served.comes_again(message_id)


def test_a_client_keeps_its_connection(served):
    connections = pool.Pool("localhost", served.port, CERT)
    message_id = served.send()
    for path in ("/msg/poll?agent_id=bob&timeout=0", "/health"):
        with connections.round_trip() as trip:
            trip.request("GET", path)
        assert trip.status == 200
    assert served.server.open_connections == 1
    assert acked(served, message_id)
    connections.close()


def test_the_python_client_finds_a_daemon_with_tls(served, tmp_path):
    environ = {"HOME": str(tmp_path), "STONEMUX_TLS_CERT": CERT}
    url = f"https://localhost:{served.port}"
    with stonemux.Client(url, environ=environ) as client:
        assert repr(client).startswith(f"Client('{url}'")
        assert client.agent_get(agent_id="bob")["agent"]["id"] == "bob"
    with pytest.raises(MuxError, match="needs the daemon's certificate"):
        stonemux.Client(url, environ={"HOME": str(tmp_path)})


@contextlib.contextmanager
def daemon_with(cert: str, key: str, data: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A daemon that shows this certificate, and its port."""
    data.mkdir(mode=0o700)
    data.joinpath("config.toml").write_text(f'[server]\ntls_cert = "{cert}"\ntls_key = "{key}"\n')
    process = spawn(data)
    try:
        assert process.stdout is not None
        said = ""
        while "stop" not in said:
            said += process.stdout.readline()
        assert "https://127.0.0.1:" in said
        yield process, int(said.split("https://127.0.0.1:")[1].split()[0])
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_the_commands_find_a_daemon_with_tls(tmp_path):
    data = tmp_path / "data"
    with daemon_with(CERT, KEY, data) as (_, port):
        where = ["--port", str(port), "--data-dir", str(data)]
        for verb in (["status", "--check"], ["backup"], ["doctor"]):
            ran = tried(*verb, *where, home=tmp_path)
            assert ran.returncode == 0, (verb, ran.stdout, ran.stderr)
        asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "mux_discover", "arguments": {}}}
        line = json.dumps(asked).encode() + b"\n"
        command, environ = [sys.executable, "-m", "stonemux", "mcp", *where], {**BARE, "HOME": str(tmp_path)}
        session = subprocess.run(command, cwd=ROOT, env=environ, input=line, capture_output=True, check=False)
        assert json.loads(session.stdout)["result"]["structuredContent"] == {"agents": []}


def renewed(process: subprocess.Popen[str]) -> str:
    """What the daemon says when it is told that its certificate was renewed."""
    process.send_signal(signal.SIGHUP)
    return "\n".join(log_until(process, "settings were reloaded"))


def test_a_renewed_certificate_is_read_at_sighup_by_the_daemon_and_anew_by_clients_that_know_its_file(
    tmp_path, another
):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(Path(CERT).read_bytes())
    key.write_bytes(Path(KEY).read_bytes())
    with daemon_with(str(cert), str(key), tmp_path / "data") as (process, port):
        early, late = (pool.Pool("localhost", port, str(cert)) for _ in range(2))

        def status(connections: pool.Pool) -> int:
            with connections.round_trip() as trip:
                trip.request("GET", "/health")
            return trip.status

        assert status(early) == status(late) == 200
        late.close()  # its next call opens a connection, the other's uses the one that it has
        cert.write_text("half a file")
        assert "the certificate is unchanged: server.tls_cert" in renewed(process)
        assert status(early) == 200
        for old, new in zip((cert, key), another, strict=True):
            old.write_bytes(new.read_bytes())
        with pytest.raises(pool.NoAnswer, match="certificate verify failed"):
            status(late)
        assert "certificate is unchanged" not in renewed(process)
        assert status(early) == status(late) == 200
        for connections in (early, late):
            connections.close()
