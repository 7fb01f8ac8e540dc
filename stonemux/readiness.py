"""Readiness of sockets: the system's edge-triggered notification, behind one small interface.

Edge-triggered means that an event is reported once, when it happens. So a socket is registered once for its whole life,
nothing is re-armed after each request, and an event's handler must read the socket until it is empty. A listening
socket is level-triggered: it is reported for as long as connections wait to be accepted.

Linux has epoll(7), macOS and the BSDs have kqueue(2).
"""

from __future__ import annotations

import contextlib
import select
from typing import Any, NamedTuple

_bsd: Any = select
"""The same module as `Any`: type checkers on Linux do not see its kqueue half."""

AT_ONCE = 96
"""Maximum number of descriptors reported at once. Requests that are read together are committed together, but the
working set of a larger round exceeds the processor's caches: without a limit, 512 busy connections got half as much
done."""


class Ready(NamedTuple):
    """An event on a descriptor."""

    fd: int
    writable: bool
    """It can take more bytes."""
    ended: bool
    """The peer has closed its side, or the connection broke."""


class Epoll:
    """The implementation for Linux."""

    def __init__(self) -> None:
        self._epoll = select.epoll()

    def add(self, fd: int) -> None:
        """Register a connection; raises OSError if the system has no room for it."""
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)

    def add_listener(self, fd: int) -> None:
        """Register a listening socket, or anything else that is to be reported as long as it is readable."""
        self._epoll.register(fd, select.EPOLLIN)

    def drop(self, fd: int) -> None:
        """Forget a descriptor that is about to be closed."""
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)

    def wait(self, timeout_ms: int | None) -> list[Ready]:
        """Block until something happens, or until the timeout (None: forever)."""
        ended = select.EPOLLERR | select.EPOLLHUP | select.EPOLLRDHUP
        return [
            Ready(fd, bool(mask & select.EPOLLOUT), bool(mask & ended))
            for fd, mask in self._epoll.poll(None if timeout_ms is None else timeout_ms / 1000, AT_ONCE)
        ]

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()


class Kqueue:
    """The implementation for macOS and the BSDs."""

    def __init__(self) -> None:
        self._queue = _bsd.kqueue()

    def _change(self, fd: int, flags: int, *filters: int) -> None:
        self._queue.control([_bsd.kevent(fd, kind, flags) for kind in filters], 0)

    def add(self, fd: int) -> None:
        """Register a connection; raises OSError if the system has no room for it."""
        self._change(fd, _bsd.KQ_EV_ADD | _bsd.KQ_EV_CLEAR, _bsd.KQ_FILTER_READ, _bsd.KQ_FILTER_WRITE)

    def add_listener(self, fd: int) -> None:
        """Register a listening socket, or anything else that is to be reported as long as it is readable."""
        self._change(fd, _bsd.KQ_EV_ADD, _bsd.KQ_FILTER_READ)

    def drop(self, fd: int) -> None:
        """Forget a descriptor that is about to be closed."""
        for kind in (_bsd.KQ_FILTER_READ, _bsd.KQ_FILTER_WRITE):
            with contextlib.suppress(OSError):
                self._change(fd, _bsd.KQ_EV_DELETE, kind)

    def wait(self, timeout_ms: int | None) -> list[Ready]:
        """Block until something happens, or until the timeout (None: forever)."""
        events = self._queue.control(None, AT_ONCE, None if timeout_ms is None else timeout_ms / 1000)
        return [
            Ready(
                event.ident,
                event.filter == _bsd.KQ_FILTER_WRITE,
                bool(event.flags & _bsd.KQ_EV_EOF),
            )
            for event in events
        ]

    def close(self) -> None:
        """Close the kqueue descriptor."""
        self._queue.close()


Readiness = Epoll | Kqueue


def readiness() -> Readiness:
    """The implementation for this system."""
    return Epoll() if hasattr(select, "epoll") else Kqueue()
