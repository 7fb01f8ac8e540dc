"""Noticing that a parked caller has hung up, without a byte read and without a thread for each.

A parked call sleeps on its condition and cannot watch its socket. This one thread watches all of them, for hang-ups
only: bytes that a client sends meanwhile stay where they are. Where the system has no epoll nobody is watched; a
vanished caller is then noticed when its answer cannot be delivered.

`_lock` guards the table of callbacks.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HUNG_UP = getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLHUP", 0) | getattr(select, "EPOLLERR", 0)


class Lookout:
    """The thread that watches parked sockets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._thread: threading.Thread | None = None
        self._bell, self._rope = socket.socketpair()
        if self._epoll is not None:
            self._epoll.register(self._bell, select.EPOLLIN)
            self._thread = threading.Thread(target=self._watch, name="lookout", daemon=True)
            self._thread.start()

    @contextmanager
    def over(self, sock: socket.socket, hung_up: Callable[[], None]) -> Iterator[None]:
        """Inside the block, `hung_up` is called (once, from the lookout's thread) when the peer of `sock` is gone."""
        epoll = self._epoll
        if epoll is None:
            yield
            return
        fd = sock.fileno()
        with self._lock:
            self._callbacks[fd] = hung_up
        epoll.register(fd, HUNG_UP | select.EPOLLONESHOT)
        try:
            yield
        finally:
            with self._lock:
                del self._callbacks[fd]
            with contextlib.suppress(OSError):
                epoll.unregister(fd)

    def _watch(self) -> None:
        assert self._epoll is not None
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._bell.fileno():
                    return
                with self._lock:
                    callback = self._callbacks.get(fd)
                if callback is not None:
                    callback()

    def close(self) -> None:
        """End the thread."""
        self._rope.send(b"x")
        if self._thread is not None:
            self._thread.join()
        if self._epoll is not None:
            self._epoll.close()
        self._bell.close()
        self._rope.close()
