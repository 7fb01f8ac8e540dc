"""A Unix socket that only this user can reach, and that is removed at the end.

The file outlives a daemon that was killed. A leftover socket is removed if nobody listens on it; a file that is not a
socket never is. Nobody can connect between `bind` and `listen`, so the mode is set before the first connection.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from stonemux.errors import MuxError

BACKLOG = 1024
"""How many connections the system holds until they are accepted. With a few, as is usual, those beyond them in a burst
wait a second for their system's next try."""


class Listener:
    """A listening socket at a path, mode 0600."""

    def __init__(self, path: Path) -> None:
        """Raises `address_in_use` if someone listens there, `bad_setting` if no socket can be made there."""
        self._path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _clear(path)
            self.sock.bind(str(path))
            os.chmod(path, 0o600)
            self._inode = os.stat(path).st_ino
            self.sock.listen(BACKLOG)
        except OSError as trouble:
            self.sock.close()
            raise MuxError(
                "bad_setting",
                f"server.unix_socket: no socket can be created at {path}: {trouble.strerror or trouble}; choose "
                "another path, with fewer than 100 characters",
                setting="server.unix_socket",
            ) from trouble
        except BaseException:
            self.sock.close()
            raise

    def close(self) -> None:
        """Stop listening, and remove the file if it is still this socket's."""
        with contextlib.suppress(OSError):
            if os.stat(self._path).st_ino == self._inode:
                self._path.unlink()
        self.sock.close()


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise MuxError(
            "bad_setting",
            f"server.unix_socket: {path} exists and is not a socket; it was left untouched. Choose another path",
            setting="server.unix_socket",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # BlockingIOError means a full queue, so someone listens
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
    raise MuxError(
        "address_in_use", f"another program is listening on {path}; stop it, or choose another server.unix_socket"
    )
