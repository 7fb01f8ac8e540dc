"""Signals, heard by one thread in the order in which they come; and sent.

The system writes each one's number to a pipe at once, and the thread reads the pipe. Handlers that wake a thread would
lose some: a signal that comes just before the thread falls asleep on a lock does not wake it.
"""

from __future__ import annotations

import contextlib
import os
import signal

NONE = 0
"""The number of no signal, for `Signals.put`."""


class Signals:
    """The pipe. `listen` and `close` are for the main thread, `put` for any."""

    def __init__(self) -> None:
        self._heard, self._told = os.pipe()
        os.set_blocking(self._told, False)

    def listen(self, *numbers: int) -> None:
        """From now on, hear these signals; they have no other effect."""
        signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)

    def put(self, number: int) -> None:
        """Let `next` return this, as if it were a signal's number."""
        with contextlib.suppress(BlockingIOError):  # there is more than enough to read
            os.write(self._told, bytes([number]))

    def next(self) -> int:
        """The next number; waits for it."""
        return os.read(self._heard, 1)[0]

    def close(self) -> None:
        """Hear nothing more."""
        signal.set_wakeup_fd(-1)
        os.close(self._heard)
        os.close(self._told)


def to_session(pid: int, number: int) -> None:
    """Send a signal to a process that leads a session, and to all that it started and that stayed there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it is gone; macOS says so of a zombie, too
        os.killpg(pid, number)
