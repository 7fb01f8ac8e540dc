"""Starting the daemon for a client that finds none.

Any number of clients may do so at once: each starts a daemon, the lock on the data directory lets only one of them
live, and all clients wait until one answers. The daemon gets its own session, so it outlives the client and whatever
kills the client's process group. Its output goes to `daemon.log` in the data directory.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from stonemux import launch, pool
from stonemux.clock import Clock
from stonemux.config import Settings
from stonemux.datadir import PID
from stonemux.errors import EXIT_LOCKED, MuxError

LOG = "daemon.log"
MOST_LOG_BYTES = 4 * 1024 * 1024
"""A larger log is renamed to `daemon.log.1` before the next start."""
START_MS = 10_000
HELD_MS = 2_000
"""How long to wait for a daemon that has held the directory for more than START_MS: it is not just starting."""
LOOK_MS = 20
HEALTH_S = 2.0


class Starter:
    """Makes sure that a daemon answers. `_lock` lets only one thread of this process start a daemon at a time."""

    def __init__(self, settings: Settings, config: Path | None, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._config = config
        self._environ = environ
        self._clock = Clock()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None  # kept, or Python would warn that it is still running
        self._pause = threading.Condition()

    def ensure(self) -> None:
        """Return once a daemon answers; start one if none does.

        Raises `unreachable`, with the daemon's last line of output, if none answers within 10 s or the new one has
        exited.
        """
        with self._lock:
            if pool.answers(self._settings, timeout=HEALTH_S):
                return
            begun = self._clock.ticks_ms()
            child = self._child = self._spawn()
            while not pool.answers(self._settings, timeout=HEALTH_S):
                status = child.poll()
                if status not in (None, EXIT_LOCKED):
                    raise self._failed(f"the daemon exited with status {status}")
                patience = HELD_MS if status == EXIT_LOCKED and self._is_held_for_long() else START_MS
                if self._clock.ticks_ms() - begun >= patience:
                    raise self._failed(f"no daemon answers at {self._settings.authority}")
                with self._pause:
                    self._clock.wait(self._pause, self._clock.ticks_ms() + LOOK_MS)

    def _is_held_for_long(self) -> bool:
        """Whether the directory's holder has run long enough to be serving another address, rather than starting up."""
        try:
            noted = os.stat(self._settings.data_dir / PID).st_mtime
        except OSError:
            return False
        return self._clock.now_ms() - noted * 1000 > START_MS

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = self._settings
        where = ["--host", settings.host, "--port", str(settings.port), "--data-dir", str(settings.data_dir.resolve())]
        config = ["--config", str(self._config.resolve())] if self._config is not None else []
        try:
            settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _open_log(settings.data_dir / LOG) as log:
                return subprocess.Popen(
                    [*launch.command(), "serve", *where, *config],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=settings.data_dir,
                    env=dict(self._environ),
                    start_new_session=True,
                )
        except OSError as trouble:
            raise MuxError("unreachable", f"the daemon cannot be started: {trouble}") from trouble

    def _failed(self, problem: str) -> MuxError:
        log = self._settings.data_dir / LOG
        said = _last_line(log)
        return MuxError("unreachable", f"{problem}{f': {said}' if said else ''}. Its log is {log}")


def _open_log(path: Path) -> BinaryIO:
    if path.exists() and path.stat().st_size > MOST_LOG_BYTES:
        os.replace(path, path.with_suffix(".log.1"))
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
