"""The child processes of the tests: their environment, and which of them are left over.

They inherit nothing but a folder for compiled files. All children of a run share it, so each module is compiled once,
however often a child starts and whether or not this process may write bytecode. The process that made the folder
removes it.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

if "PYTHONPYCACHEPREFIX" not in os.environ:  # a run's worker processes inherit it
    _keeper = TemporaryDirectory(prefix="stonemux-tests-")
    atexit.register(_keeper.cleanup)
    os.environ["PYTHONPYCACHEPREFIX"] = _keeper.name

BARE = {"PATH": os.defpath, "PYTHONPYCACHEPREFIX": os.environ["PYTHONPYCACHEPREFIX"]}
"""An environment with neither a home nor settings."""

ENDED_S = 3


def left(folder: Path) -> dict[int, str]:
    """The processes whose command mentions something in `folder`, by id, after waiting for any that are ending."""
    last = time.monotonic() + ENDED_S
    while (found := dict(_naming(folder))) and time.monotonic() < last:
        time.sleep(0.01)
    return found


def end(folder: Path, number: int) -> dict[int, str]:
    """Send a signal to those processes; returns them."""
    found = dict(_naming(folder))
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return found


def _naming(folder: Path) -> Iterator[tuple[int, str]]:
    for pid, words in _running():
        if any(word == str(folder) or word.startswith(f"{folder}/") for word in words):
            yield pid, " ".join(words)


def _running() -> Iterator[tuple[int, list[str]]]:
    """Every process with the words of its command."""
    if not Path("/proc/self/cmdline").exists():
        for line in subprocess.check_output(["ps", "-axo", "pid=,args="], text=True).splitlines():
            yield int(line.split()[0]), line.split()[1:]
        return
    for shown in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has just ended
            yield int(shown.parent.name), shown.read_bytes().decode(errors="replace").split("\0")
