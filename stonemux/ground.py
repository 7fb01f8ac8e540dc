"""Checks whether a directory is safe for data: owned by this user alone, on a local disk, and not too deep down."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from stonemux.errors import MuxError

NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "ncpfs")
MOST_PATH = 440
"""Bytes in a data directory's path: SQLite opens names of at most 504, and those of backups are longest."""


def check_length(path: Path) -> None:
    """Raise `unsafe_environment` if SQLite could not open what is kept in the directory by its full name."""
    length = len(os.fsencode(path.resolve()))
    if length > MOST_PATH:
        raise MuxError(
            "unsafe_environment",
            f"the path of the data directory has {length} bytes, but SQLite can use only {MOST_PATH}",
            remedy="pass a directory with a shorter path as --data-dir",
        )


def check_owner(path: Path) -> None:
    """Raise `unsafe_environment` if a directory belongs to someone else, or others may write to it."""
    found = os.stat(path)
    if found.st_uid != os.geteuid():
        raise MuxError(
            "unsafe_environment",
            f"the data directory {path} belongs to user {found.st_uid}, not to this user ({os.geteuid()})",
            remedy="pass a directory of your own as --data-dir",
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise MuxError(
            "unsafe_environment",
            f"other users may write to the data directory {path}",
            remedy=f"prevent it with: chmod 700 {path}",
        )


def check_file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that holds `path` ("" if unknown); raises `unsafe_environment` for a network one."""
    kind = _file_system(path.resolve(), mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise MuxError(
            "unsafe_environment",
            f"the data directory {path} is on a network file system ({kind}), where SQLite's write-ahead log is not "
            "safe",
            remedy="use a local disk, or set [server] allow_network_fs = true at your own risk",
        )
    return kind


def _file_system(path: Path, mounts: Path) -> str:
    """The type of the file system that holds `path`, from the kernel's mount table; "" if there is no such table."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if (str(path) == point or str(path).startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind
