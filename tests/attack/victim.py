"""A real daemon that can be killed and restarted on the same port and data directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from daemons import ROOT, SERVE, free_port, spawn
from tls_client import CERT, KEY


def seeded(defect: str) -> tuple[str, ...]:
    """The command of a daemon with this defect."""
    return (sys.executable, str(ROOT / "tests/attack/seeded_daemon.py"), defect)


WITH_TLS = {"STONEMUX_TLS_CERT": CERT, "STONEMUX_TLS_KEY": KEY}
"""The environment that makes a daemon use TLS."""


class StillbornError(Exception):
    """The daemon ended before it listened: its exit status, and its output."""


class Victim:
    """A daemon; `incarnation` counts its deaths, and `deaths` are their times (monotonic nanoseconds)."""

    def __init__(
        self, data: Path, command: Sequence[str] = SERVE, *flags: str, environ: Mapping[str, str] | None = None
    ) -> None:
        self.data = data
        self.port = free_port()
        self.deaths: list[int] = []
        self.command, self.environ = command, environ
        self._flags = flags
        self.log = data.parent / f"{data.name}.log"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with self.log.open("a") as log:
            self.process = spawn(
                self.data, *self._flags, environ=self.environ, command=self.command, port=self.port, stderr=log
            )
        said = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said += line
            if line.strip().startswith("stop"):
                return
        raise StillbornError(self._buried(), said + self.log.read_text()[-2000:])

    @property
    def incarnation(self) -> int:
        return len(self.deaths)

    def kill(self) -> None:
        """Kill it at once, whatever it is doing."""
        self.process.kill()
        self._buried()

    def stop(self) -> int:
        """Stop it properly; returns its exit status."""
        self.process.terminate()
        return self.ended()

    def ended(self) -> int:
        """The exit status of a daemon that ends on its own, or was told to end."""
        try:
            return self._buried()
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def pause(self) -> None:
        """Suspend it, which stops its clock, in effect; it has stopped when this returns."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)  # the signal returns before its threads have stopped

    def resume(self) -> None:
        """Let it continue."""
        self.process.send_signal(signal.SIGCONT)

    def _buried(self) -> int:
        status = self.process.wait(timeout=10)
        self.deaths.append(time.monotonic_ns())
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
