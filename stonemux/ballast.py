"""Ballast: a file that reserves disk space, so that work can still be settled and ended when the disk is full.

Emptying an inbox or completing a task means writing. So while there is room, 1 MiB is set aside; when SQLite finds the
disk full, the ballast is released, and only jobs that free or settle something may use its space until there is room
again (see `store`). The file itself is the state: if it has its full size, the ballast is there.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

BYTES = 1024 * 1024
ROOM_BYTES = 2 * BYTES
"""With at least this much free space, the ballast is created and changes of all kinds are accepted."""
SCARCE_BYTES = BYTES // 2
"""With less free space than this, a start would fail."""


class Ballast:
    """The ballast of one data directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "ballast"

    @property
    def held(self) -> bool:
        """Whether there is ballast to release."""
        try:
            return self._file.stat().st_size == BYTES
        except OSError:
            return False

    def free(self) -> int:
        """How many bytes this process may still allocate on the disk."""
        try:
            found = os.statvfs(self._directory)
        except OSError:
            return 0
        return found.f_bavail * found.f_frsize

    def has_room(self) -> bool:
        """Whether the disk is no longer full."""
        return self.free() >= ROOM_BYTES

    def keep(self) -> None:
        """Create the ballast, if it is missing and there is room."""
        if self.held or not self.has_room():
            return
        try:
            fd = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _take(fd)
            finally:
                os.close(fd)
        except OSError:  # there was no room after all
            self.drop()

    def drop(self) -> bool:
        """Release the space; False if there was none to release."""
        held = self.held
        with contextlib.suppress(OSError):
            self._file.unlink()
        return held


def _take(fd: int) -> None:
    """Allocate the file's blocks, not only its size."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, BYTES)
    else:  # macOS
        piece = b"ballast\n" * 8192
        for at in range(0, BYTES, len(piece)):
            os.pwrite(fd, piece, at)
