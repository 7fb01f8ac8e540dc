"""Both ways to watch sockets refuse and tolerate the same; kqueue is a fake, since hardly any machine has both."""

from __future__ import annotations

import os
import select
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from stonemux import readiness


class AKqueue:
    """Keeps what is registered, and refuses what kqueue(2) refuses."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int], int] = {}

    def control(self, changes: list[Any], most: int, timeout: float | None = None) -> list[Any]:
        for change in changes:
            os.fstat(change.ident)  # EBADF
            if change.flags & 2:
                if self.kept.pop((change.ident, change.filter), None) is None:
                    raise FileNotFoundError(2, "no such event")
            else:
                self.kept[change.ident, change.filter] = change.flags
        return []

    def close(self) -> None:
        pass


BSD = SimpleNamespace(
    KQ_EV_ADD=1,
    KQ_EV_DELETE=2,
    KQ_EV_CLEAR=0x20,
    KQ_EV_EOF=0x8000,
    KQ_FILTER_READ=-1,
    KQ_FILTER_WRITE=-2,
    kqueue=AKqueue,
    kevent=lambda ident, filter, flags: SimpleNamespace(ident=ident, filter=filter, flags=flags),
)


@pytest.fixture(params=["Epoll", "Kqueue"])
def ready(request, monkeypatch):
    if request.param == "Epoll" and not hasattr(select, "epoll"):
        pytest.skip("there is no epoll here")
    if request.param == "Kqueue":
        monkeypatch.setattr(readiness, "_bsd", BSD)
    made = getattr(readiness, request.param)()
    yield made
    made.close()


@pytest.mark.parametrize("how", ["add", "add_listener"])
def test_what_cannot_be_registered_is_told_and_never_forgotten(ready, how):
    sock = socket.socket()
    fd = sock.fileno()
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        getattr(ready, how)(fd)


def test_what_is_no_longer_registered_can_be_dropped(ready):
    with socket.socket() as sock, socket.socket() as listener:
        ready.add(sock.fileno())
        ready.add_listener(listener.fileno())
        for fd in (sock.fileno(), sock.fileno(), listener.fileno()):
            ready.drop(fd)
    assert getattr(ready, "_queue", AKqueue()).kept == {}, "reading and writing, one of which a listener never had"
