"""A file that takes space so that it can be given back: on a full disk, what settles and ends things must still work.

An inbox is emptied and a task completed by writing. So while there is room, 1 MiB is put by; when SQLite finds the disk
full it is given back, and only what frees or settles something may use it until there is room again (`store`).
The file itself is the state: whoever finds it of full size has ballast.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

BYTES = 1024 * 1024
ROOM_BYTES = 2 * BYTES
"""Free space beyond which the ballast is made, and changes of all kinds go on."""
SCARCE_BYTES = BYTES // 2
"""Free space below which a start would fail."""


class Ballast:
    """The ballast of one data directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "ballast"

    @property
    def held(self) -> bool:
        """Whether there is something to give back."""
        try:
            return self._file.stat().st_size == BYTES
        except OSError:
            return False

    def free(self) -> int:
        """Bytes that this process may still take on the disk."""
        try:
            found = os.statvfs(self._directory)
        except OSError:
            return 0
        return found.f_bavail * found.f_frsize

    def has_room(self) -> bool:
        """Whether the disk is not full any more."""
        return self.free() >= ROOM_BYTES

    def keep(self) -> None:
        """Put the ballast by, if it is not and there is room."""
        if self.held or not self.has_room():
            return
        try:
            fd = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _take(fd)
            finally:
                os.close(fd)
        except OSError:  # no room after all
            self.drop()

    def drop(self) -> bool:
        """Give the space back; False if there was none."""
        held = self.held
        with contextlib.suppress(OSError):
            self._file.unlink()
        return held


def _take(fd: int) -> None:
    """Let the file have its blocks, not only its size."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, BYTES)
    else:  # macOS
        piece = b"ballast\n" * 8192
        for at in range(0, BYTES, len(piece)):
            os.pwrite(fd, piece, at)
