"""Receiving signals on one thread, in the order in which they arrive; and sending them.

The interpreter writes each signal's number to a pipe at once, and the thread reads the pipe. Handlers that wake a
thread would lose some: a signal that arrives just before the thread falls asleep on a lock does not wake it.
"""

from __future__ import annotations

import contextlib
import os
import signal

NONE = 0
"""Means "no signal", for `Signals.put`."""


class Signals:
    """The pipe. `listen` and `close` must be called on the main thread; `put` may be called on any."""

    def __init__(self) -> None:
        self._heard, self._told = os.pipe()
        os.set_blocking(self._told, False)

    def listen(self, *numbers: int) -> None:
        """From now on, receive these signals; they have no other effect."""
        signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)

    def put(self, number: int) -> None:
        """Make `next` return this, as if it were a signal's number."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full, so there is enough to read
            os.write(self._told, bytes([number]))

    def next(self) -> int:
        """Return the next number; blocks until there is one."""
        return os.read(self._heard, 1)[0]

    def close(self) -> None:
        """Stop receiving."""
        signal.set_wakeup_fd(-1)
        os.close(self._heard)
        os.close(self._told)


def to_session(pid: int, number: int) -> None:
    """Send a signal to a session leader and to all processes of its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it is gone (for a zombie, macOS raises the latter)
        os.killpg(pid, number)
