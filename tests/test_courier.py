"""One delivery attempt, against receivers that misbehave in every way."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
from receivers import OK, status

from stonemux import addresses, courier, oneshot, threads
from stonemux.addresses import Policy
from stonemux.courier import Attempt
from stonemux.endpoints import Outcome

TOTAL_MS = 400
SHORT_MS = 100
"""Enough for an attempt that is to run out of time."""


def post(
    url: str,
    body: bytes = b"{}",
    *,
    total_ms: int = TOTAL_MS,
    connect_ms: int = TOTAL_MS // 2,
    policy: Policy | None = None,
) -> Outcome:
    """One attempt; it must be over when its time is."""
    began = time.monotonic()
    found = Attempt(policy or Policy(), connect_ms=connect_ms, total_ms=total_ms).post(url, {"webhook-id": "x"}, body)
    assert time.monotonic() - began < total_ms / 1000 + 3, "far less than what the other side would take"
    return found


def said(text: bytes, *, then_close: bool = True) -> Callable[[socket.socket], None]:
    def answer(sock: socket.socket) -> None:
        sock.sendall(text)
        if not then_close:
            time.sleep(2 * TOTAL_MS / 1000)

    return answer


@pytest.mark.parametrize("code", [200, 201, 202, 204, 299])
def test_two_hundreds_are_good(receive, code):
    assert post(receive(status(code)).url)[:2] == (code, "")


@pytest.mark.parametrize("code", [300, 304, 400, 401, 404, 410, 429, 500, 503, 599])
def test_anything_else_is_a_failure(receive, code):
    found = post(receive(status(code)).url)
    assert found.status == code
    assert str(code) in found.error
    assert ("redirects are not followed" in found.error) == (code < 400)
    assert found.gone == (code == 410)


@pytest.mark.parametrize(("later_s", "seconds"), [(90, 90), (-90, 0), (90_000, 3600)])
def test_the_time_to_try_again_may_be_a_date(receive, monkeypatch, later_s, seconds):
    monkeypatch.setattr(oneshot.clock, "wall_ms", lambda: 1_780_000_000_000)
    date = formatdate(1_780_000_000 + later_s, usegmt=True)
    assert post(receive(status(503, f"Retry-After: {date}")).url).retry_after == seconds


def test_a_port_where_nobody_listens_refuses_the_connection(receive):
    receiver = receive()
    receiver.close()
    assert post(receiver.url)[:2] == (None, "connection refused")


def test_fault_39_a_black_hole_costs_no_more_than_its_time(receive):
    receiver = receive(lambda sock: receiver.ending.wait(5))
    found = post(receiver.url, total_ms=SHORT_MS)
    assert found[:2] == (None, "no answer in time")
    assert SHORT_MS <= found.ms < SHORT_MS + 500


def test_a_machine_that_does_not_answer_costs_the_time_to_connect(monkeypatch):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        holding = [socket.socket() for _ in range(4)]
        for one in holding:
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(("127.0.0.1", port))
        found = post(f"http://127.0.0.1:{port}/", connect_ms=SHORT_MS)
        assert found.error == "no connection in time"
        assert SHORT_MS <= found.ms < TOTAL_MS - 10
        for one in holding:
            one.close()


def drip(text: bytes) -> Callable[[socket.socket], None]:
    def answer(sock: socket.socket) -> None:
        for byte in text:
            sock.sendall(bytes([byte]))
            time.sleep(0.02)

    return answer


def test_a_head_a_byte_at_a_time_does_not_hold_longer(receive):
    found = post(receive(drip(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 9999)).url, total_ms=SHORT_MS)
    assert found[:2] == (None, "no answer in time")


def test_an_answer_that_says_where_it_ends_is_not_waited_for(receive, monkeypatch):
    monkeypatch.setattr(courier, "CLOSING_MS", 5_000)

    def answer(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        receiver.ending.wait(5)

    receiver = receive(answer)
    assert post(receiver.url, total_ms=5_000).ms < 2_500


def test_a_body_a_byte_at_a_time_holds_half_a_second_at_most(receive, monkeypatch):
    assert courier.CLOSING_MS == 500
    monkeypatch.setattr(courier, "CLOSING_MS", SHORT_MS)

    def answer(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        drip(b"y" * 9999)(sock)

    found = post(receive(answer).url, total_ms=5000)
    assert found[:2] == (200, "")
    assert found.ms < SHORT_MS + 1000


def test_fault_39_of_an_endless_answer_four_kilobytes_are_read__H5(receive):
    sent = []

    def answer(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                sent.append(sock.send(b"x" * 65536))

    receiver = receive(answer)
    tracemalloc.start()
    found = post(receiver.url)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[:2] == (200, "")
    assert found.ms < TOTAL_MS
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "endless", [b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000, b"y" * 20_000]
)
def test_an_endless_head_is_cut__H5(receive, endless):
    assert "longer than 8192 bytes" in post(receive(endless).url).error


def test_endless_interim_answers_are_cut__H5(receive):
    def answer(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    found = post(receive(answer).url, total_ms=5000)
    assert "longer than 8192 bytes" in found.error
    assert found.ms < 4000


@pytest.mark.parametrize(
    "garbage",
    [
        *(b"\x16\x03\x01\r\n\r\n", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/2 200\r\n\r\n"),
        *(b"HTTP/1.1 \xd9\xa2\xd9\xa0\xd9\xa0\r\n\r\n", b"\r\n\r\n", b"HTTP/1.1 200 OK\x00\r\n\r\n"),
    ],
)
def test_what_is_no_http_is_a_failure(receive, garbage):
    found = post(receive(garbage).url)
    assert found[:2] == (None, "its answer is not HTTP")


def test_a_connection_that_ends_early_is_a_failure(receive):
    assert post(receive(b"").url).error == "the connection ended without an answer"
    assert post(receive(b"HTTP/1.1 200 OK\r\n").url).error == "the connection ended without an answer"


def test_a_reset_is_a_failure(receive):
    def reset(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        sock.close()

    assert post(receive(reset).url).error in ("the connection was reset", "the connection ended without an answer")


def test_interim_answers_are_passed_over(receive):
    assert post(receive(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nX: y\r\n\r\n" + OK).url).status == 204
    found = post(receive(b"HTTP/1.1 100 Continue\r\n\r\n" * 300).url)
    assert found.error == "the connection ended without an answer"


def test_a_receiver_that_does_not_read_holds_no_longer(receive):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        found = post(f"http://127.0.0.1:{deaf.getsockname()[1]}/", b"x" * 12_000_000, total_ms=SHORT_MS)
    assert found.error == "no answer in time"


def test_an_answer_before_the_end_of_the_request_counts(receive):
    receiver = receive()
    with socket.create_server(("127.0.0.1", 0)) as hasty:

        def answer() -> None:
            sock, _ = hasty.accept()
            sock.recv(100)
            sock.sendall(status(413))
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                while sock.recv(65536):
                    pass
            sock.close()

        threading.Thread(target=answer, daemon=True).start()
        assert post(f"http://127.0.0.1:{hasty.getsockname()[1]}/", b"x" * 500_000).status == 413
    assert not receiver.heard


def test_what_cut_short_ends_at_once(receive):
    receiver = receive(lambda sock: receiver.ending.wait(5))
    attempt = Attempt(Policy(), connect_ms=2000, total_ms=5000)
    threading.Timer(0.05, attempt.cut).start()
    began = time.monotonic()
    attempt.post(receiver.url, {}, b"{}")
    assert attempt.was_cut
    assert time.monotonic() - began < 1


def test_the_daemon_under_another_address_of_this_machine_is_refused(receive, monkeypatch):
    """Bound to all addresses, it has some that nobody told us of; 127.0.0.1 stands for one."""
    receiver = receive()
    monkeypatch.setattr(addresses, "judge", lambda *_: "")
    found = post(receiver.url, policy=Policy(own_port=receiver.port))
    assert found.error == "its URL leads to the daemon's own port"
    assert not receiver.heard


def test_a_name_that_nobody_knows_is_a_failure(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert post("http://agent.example/").error == "its host name is unknown"


def test_a_name_server_that_hangs_holds_no_longer(monkeypatch):
    hanging = threading.Event()
    asked = []

    def hang(target, *, numeric=False):
        if numeric:
            raise OSError
        asked.append(target)
        hanging.wait(5)
        return []

    monkeypatch.setattr(addresses, "resolve", hang)
    for _ in range(2):
        assert "looked up in time" in post("http://agent.example/", total_ms=100).error
    assert len(asked) == 1, "one question for each name at a time"
    hanging.set()
    end = time.monotonic() + 5
    while oneshot._looking:
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_thread_that_cannot_be_started_costs_one_look_up_and_not_all_of_that_name(receive, monkeypatch):
    receiver = receive()

    def resolve(target, *, numeric=False):
        if numeric:
            raise OSError
        return ["127.0.0.1"]

    monkeypatch.setattr(addresses, "resolve", resolve)
    with monkeypatch.context() as patched:

        def no_thread(*_):
            raise RuntimeError("can't start new thread")

        patched.setattr(threads, "start_new_thread", no_thread)
        assert "no thread left" in post(f"http://agent.example:{receiver.port}/", total_ms=1000).error
    assert post(f"http://agent.example:{receiver.port}/").status == 204


def test_a_name_is_looked_up_once_and_the_judged_address_is_called(receive, monkeypatch):
    """A second look-up could answer another address than the one that was judged."""
    receiver, asked = receive(), []

    def rebind(target, *, numeric=False):
        if numeric:
            raise OSError
        asked.append(target)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    monkeypatch.setattr(addresses, "resolve", rebind)
    assert post(f"http://agent.example:{receiver.port}/").status == 204
    assert len(asked) == 1


# -- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    path = tmp_path_factory.mktemp("tls")
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=agent.example", "-addext", "subjectAltName=DNS:agent.example"),
            *("-keyout", str(path / "key"), "-out", str(path / "cert")),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no openssl here that makes a certificate")
    return path / "cert", path / "key"


def over_tls(certificate: tuple[Path, Path]) -> tuple[socket.socket, list[str | None]]:
    """A server that says 204 over TLS, and the names that it is asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    named: list[str | None] = []
    context.sni_callback = lambda sock, name, context: named.append(name)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as secured:
                    secured.recv(65536)
                    secured.sendall(OK)

    threading.Thread(target=serve, daemon=True).start()
    return listener, named


def test_tls_asks_for_the_original_name_and_trusts_only_what_vouches_for_it(certificate, monkeypatch):
    def resolve(target, *, numeric=False):
        if numeric:
            raise OSError
        return ["127.0.0.1"]

    monkeypatch.setattr(addresses, "resolve", resolve)
    listener, named = over_tls(certificate)
    port = listener.getsockname()[1]
    assert "certificate is not trusted" in post(f"https://agent.example:{port}/", total_ms=3000).error
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert post(f"https://agent.example:{port}/", total_ms=3000)[:2] == (204, "")
    assert "certificate is not trusted" in post(f"https://other.example:{port}/", total_ms=3000).error
    assert named == ["agent.example", "agent.example", "other.example"]
    listener.close()


def test_a_python_without_tls_fails_an_attempt_instead_of_repeating_it_unseen(receive, monkeypatch):
    monkeypatch.setitem(sys.modules, "ssl", None)
    assert post(receive(OK).url.replace("http:", "https:")).error.startswith("no TLS in this Python: ")


def test_tls_to_somebody_who_does_not_speak_it(receive):
    assert post(receive(OK).url.replace("http:", "https:")).error.startswith("no TLS: ")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        found = post(f"https://127.0.0.1:{deaf.getsockname()[1]}/", total_ms=SHORT_MS)
    assert found.error == "no answer in time"
