"""The data directory: held by one process, and verified to be the same one as last time.

The lock is an `flock` on the directory itself: a lock *file* can be unlinked and recreated by a second daemon, and
`fcntl` locks vanish when any descriptor of the file is closed. Next to the database there are `CREATED` (this directory
once held a database, so a missing database is a loss and not a beginning), `head.json` (how far the event log, the
messages and the audit log had come, so that a database that went back in time is noticed and no id is assigned twice),
and, unless audit records are kept forever, `audit.key`. While a daemon runs, there are its process id, its address, and
the owner's token as well.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from stonemux.clock import Clock
from stonemux.errors import MuxError
from stonemux.ground import check_file_system, check_length, check_owner

DATABASE = "stonemux.db"
MARKER = "CREATED"
HEAD = "head.json"
PID = "daemon.pid"
AUDIT_KEY = "audit.key"
INSTALL = "install.json"
ADDRESS = "daemon.address"
"""Where the daemon that holds the directory listens."""
OWNER_TOKEN = "owner.token"
LOOKS = 1000
"""How many milliseconds a start waits for processes that look whether the directory is held; a look is over at once."""


class Head(NamedTuple):
    """How far a database had come, as its directory remembers it; zeros where unknown."""

    event_seq: int = 0
    message_seq: int = 0
    at: int = 0
    """When this was recorded (`Clock.now_ms`)."""
    audit_seq: int = 0
    """The number of the last audit record."""
    audit_head: str = ""
    """The hash of that record; "" if there is none."""


class DataDir:
    """A locked data directory; `close` unlocks it."""

    def __init__(self, path: Path, *, allow_network_fs: bool = False, mounts: Path = Path("/proc/mounts")) -> None:
        """Create (mode 0700), check and lock the directory.

        Raises `unsafe_environment` when others may write there, it belongs to another user, or it is on a network file
        system; `data_dir_locked` when another daemon holds it.
        """
        self.path = path
        self.database = path / DATABASE
        try:
            check_length(path)
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_owner(path)
            if not allow_network_fs:
                check_file_system(path, mounts)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as trouble:
            raise MuxError(
                "unsafe_environment",
                f"the data directory {path} cannot be used: {trouble.strerror}; pass another one as --data-dir",
            ) from trouble
        self._lock()

    def _lock(self) -> None:
        if not self._take():
            os.close(self._fd)
            holder = noted_pid(self.path)
            raise MuxError(
                "data_dir_locked",
                f"the data directory {self.path} is in use by another stonemux "
                f"daemon{f' (pid {holder})' if holder else ''}; stop that daemon, or pass another directory as "
                "--data-dir",
                pid=holder or None,
            )
        with contextlib.suppress(OSError):  # only for the message above; may be missing if the disk is full
            self.write_passing(PID, f"{os.getpid()}\n")

    def _take(self) -> bool:
        """Lock the directory; False if another process holds it. One that only looks (`is_held`) is waited for."""
        for _ in range(LOOKS):
            if _locks(self._fd, fcntl.LOCK_EX):
                return True
            if not _locks(self._fd, fcntl.LOCK_SH):
                return False
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            Clock().pause(1)
        return False

    def write_file(self, name: str, text: str) -> None:
        """Atomically replace a small file, mode 0600: a reader sees the old text or the new one, never a part."""
        self._check_place()
        write_private(self.path / name, text)

    def write_passing(self, name: str, text: str) -> None:
        """The same, for a file that is meaningless after this process ends: it need not survive a power failure."""
        self._check_place()
        write_private(self.path / name, text, lasting=False)

    def _check_place(self) -> None:
        """Raise OSError if the directory was moved: what its path leads to now belongs to whoever holds that."""
        if not os.path.samestat(os.stat(self.path), os.fstat(self._fd)):
            raise FileNotFoundError(errno.ENOENT, "the data directory was moved", str(self.path))

    def audit_key(self) -> bytes:
        """The key that signs checkpoints of the audit log: outside of the database, mode 0600, created on first use."""
        try:
            return read_audit_key(self.path / AUDIT_KEY)
        except FileNotFoundError:
            self.write_file(AUDIT_KEY, os.urandom(32).hex() + "\n")
            return read_audit_key(self.path / AUDIT_KEY)

    def read_head(self) -> Head:
        """The head that `head.json` remembers."""
        return read_head(self.path)

    def write_head(self, head: Head) -> None:
        """Record how far the event log, the messages and the audit log have come."""
        self.write_file(HEAD, json.dumps(head._asdict()) + "\n")

    @property
    def marked(self) -> bool:
        """Whether a database was ever created here."""
        return (self.path / MARKER).exists()

    def mark(self) -> None:
        """Record that a database was created here."""
        if not self.marked:
            self.write_file(MARKER, "This directory contains a stonemux database. Do not delete this file.\n")

    def close(self) -> None:
        """Unlock the directory, and remove what meant something only as long as it was held."""
        with contextlib.suppress(OSError):
            self._check_place()
            for passing in (PID, ADDRESS, OWNER_TOKEN):
                (self.path / passing).unlink(missing_ok=True)
        os.close(self._fd)


def write_private(path: Path, text: str, *, lasting: bool = True) -> None:
    """Atomically replace a small file, mode 0600; if `lasting`, it is on disk before it replaces the old one."""
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if lasting:
            os.fsync(file.fileno())
    os.replace(temporary, path)


def read_owner_token(path: Path, address: str) -> str | None:
    """The owner token of the daemon that holds this directory, to be shown at this address (host:port).

    None if there is no such daemon, or the token is unreadable. Raises `token_invalid` if that daemon listens
    elsewhere: whoever listens at the address instead must not learn the token.
    """
    try:
        token = (path / OWNER_TOKEN).read_text().strip() if is_held(path) else None
    except OSError:
        return None
    if token is None:
        return None
    listening = _noted(path / ADDRESS)
    if not listening:
        told = f"the daemon that holds {path} does not say where it listens; it is of an earlier version: restart it"
        raise MuxError("token_invalid", told)
    if not _leads_to(address, listening):
        raise MuxError(
            "token_invalid",
            f"the daemon at {address} does not use the data directory {path}; pass the one that it uses as --data-dir, "
            f"or the --port of the one that uses this, which listens at {listening}",
        )
    return token


_LOCALHOST = ("localhost", "127.0.0.1")
_ALSO = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
"""The loopback addresses at which somebody who listens at all addresses is reached."""


def _leads_to(address: str, listening: str) -> bool:
    """Whether whoever connects to `address` reaches who listens at `listening`, and nobody else."""
    host, _, port = address.replace(*_LOCALHOST, 1).rpartition(":")
    own, _, its = listening.replace(*_LOCALHOST, 1).rpartition(":")
    return port == its and host in (own, _ALSO.get(own))


def read_install(path: Path, new_id: Callable[[], str]) -> tuple[str, int]:
    """The installation's id (random, without other meaning), and the time of its last heartbeat."""
    try:
        found = json.loads((path / INSTALL).read_bytes())
        return str(found["install_id"])[:64], int(found["beat_at"])
    except (OSError, ValueError, KeyError, TypeError):
        install_id = new_id()
        note_install(path, install_id, 0)
        return install_id, 0


def note_install(path: Path, install_id: str, beat_at: int) -> None:
    """Record both."""
    write_private(path / INSTALL, json.dumps({"install_id": install_id, "beat_at": beat_at}) + "\n")


def read_audit_key(file: Path) -> bytes:
    """The key in a file; raises OSError, or ValueError if the file contains none."""
    key = bytes.fromhex(file.read_text().strip())
    if len(key) != 32:
        raise ValueError(f"{file} does not contain a 32-byte key")
    return key


def read_head(path: Path) -> Head:
    """The head that a data directory remembers; the directory need not be locked."""
    return told_head(path) or Head()  # only a second witness: a torn file counts as empty


def told_head(path: Path) -> Head | None:
    """The same, but None if the file is torn; a missing file remembers nothing."""
    try:
        found = json.loads((path / HEAD).read_text())
        return Head(
            int(found["event_seq"]),
            int(found.get("message_seq", 0)),
            int(found.get("at", 0)),
            int(found.get("audit_seq", 0)),
            str(found.get("audit_head", "")),
        )
    except FileNotFoundError:
        return Head()
    except (ValueError, KeyError, TypeError):
        return None


def check_usable(path: Path) -> None:
    """Raise `unsafe_environment` if this process cannot write to the directory, or cannot use a file that it needs."""
    needed = [(path, os.W_OK | os.X_OK, "written to")]
    needed += [(path / f"{DATABASE}{end}", os.R_OK | os.W_OK, "read and written") for end in ("", "-wal", "-shm")]
    needed += [(path / name, os.R_OK, "read") for name in (HEAD, AUDIT_KEY)]
    for place, how, words in needed:
        if os.access(place, how) or not os.path.lexists(place):
            continue
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            raise MuxError(
                "unsafe_environment",
                f"the data directory {path} is on a file system that is mounted read-only",
                remedy="make it writable, or pass another directory as --data-dir",
            )
        user = os.geteuid()
        raise MuxError(
            "unsafe_environment",
            f"{place} cannot be {words} by this user ({user})",
            remedy="allow it with: "
            + (f"chmod u+rwX {place}" if os.lstat(place).st_uid == user else f"sudo chown {user} {place}"),
        )


def noted_pid(path: Path) -> str:
    """The process id of the directory's holder, if it was recorded; else ""."""
    return _noted(path / PID)


def _noted(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def is_held(path: Path) -> bool:
    """Whether a daemon holds the data directory."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return not _locks(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)  # which also unlocks it


def _locks(fd: int, how: int) -> bool:
    """Lock a file without waiting; False if another process's lock prevents that."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
