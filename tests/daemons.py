"""A daemon as an operator starts it: a child process on a free port. And what needs no process of its own."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from children import BARE

from stonemux import cli, daemon

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """A free port below the range that the system assigns to clients.

    Otherwise, a client could be assigned that port before the daemon has it, and a client that connects while the
    daemon is dead could connect to itself.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class ChildDaemon:
    """A running child; `banner` is its standard output at the start."""

    def __init__(self, process: subprocess.Popen[str], port: int, banner: str) -> None:
        self.process = process
        self.port = port
        self.banner = banner

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return answer.read()

    def post(self, path: str, **given: object) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(given).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)


SERVE = (sys.executable, "-m", "stonemux", "serve")


def spawn(
    data: Path,
    *flags: str,
    environ: Mapping[str, str] | None = None,
    command: Sequence[str] = SERVE,
    port: int = 0,
    stderr: int | IO[str] = subprocess.PIPE,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, "--port", str(port), "--data-dir", str(data), *flags],
        cwd=ROOT,
        env={**BARE, "HOME": str(data.parent), **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def log_until(process: subprocess.Popen[str], what: str) -> list[str]:
    """Read messages from a daemon's log up to the first that contains `what`; fails after 20 seconds or at its end."""
    assert process.stderr is not None
    said: list[str] = []
    alarm = threading.Timer(20, process.kill)
    alarm.start()
    try:
        for line in process.stderr:
            said.append(json.loads(line)["message"])
            if what in said[-1]:
                return said
    finally:
        alarm.cancel()
    raise AssertionError(said)


@contextmanager
def running_daemon(
    data: Path, *flags: str, environ: Mapping[str, str] | None = None, command: Sequence[str] = SERVE, port: int = 0
) -> Iterator[ChildDaemon]:
    """A daemon that listens; it is ended with SIGTERM, or killed if that is not enough."""
    process = spawn(data, *flags, environ=environ, command=command, port=port)
    assert process.stdout is not None
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.strip().startswith("stop"):
                break
        found = re.search(r"listening +http://\S+:(\d+)", "".join(said))
        assert found, (said, process.stderr.read() if process.stderr else "")
        yield ChildDaemon(process, int(found[1]), "".join(said))
    finally:
        process.terminate()
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def as_a_process() -> Iterator[None]:
    """What a command that serves changes in its process is as before when this ends."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    logger = logging.getLogger("stonemux")
    logged = (logger.handlers[:], logger.level, logger.propagate, logging.raiseExceptions)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(daemon, "_calm_collector", lambda: None)
            yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in signals.items():
            signal.signal(number, handler)
        logger.handlers[:], level, logger.propagate, logging.raiseExceptions = logged
        logger.setLevel(level)
        gc.enable()
        threading.stack_size(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, files)


def tried(*words: str, home: Path | str | None, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which takes a tenth of the time."""
    out, err = io.StringIO(), io.StringIO()
    told = {**environ, **({} if home is None else {"HOME": str(home)})}
    with as_a_process(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(words, told)
        except SystemExit as ended:
            status = ended.code
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
