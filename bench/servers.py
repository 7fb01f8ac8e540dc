"""The programs under test, each a child process with a temporary directory, and a blocking client to control them.

A server is a context manager; leaving it ends the process, even after Ctrl-C. Its output is kept, and shown if it does
not start or dies.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from bench.load import HttpPeer, http_request, load, raise_file_limit

ROOT = Path(__file__).resolve().parent.parent
START_S = 30.0

CONFIG = """\
[server]
max_connections = 4096
max_waiters = 4096

[coordination]
inbox_limit = 1000000

[logging]
level = "warning"
"""
"""Raised limits, for the rows with a thousand connections or hundreds of thousands of unread messages."""

Address = tuple[str, int]


BYTECODE = {"PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "stonemux-bench-bytecode")}
"""Where compiled files go, so that they stay out of the tree."""


class ServerFailed(Exception):
    """A server did not start, or stopped on its own."""


class Server:
    """One server process with its own directory."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.address: Address = ("127.0.0.1", 0)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def command(self, port: int) -> list[str]:
        """The command line."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Additional environment variables for the process."""
        return {}

    def spawn(self) -> None:
        """Start the process on a free port, without waiting until it answers."""
        raise_file_limit()
        port = free_port()
        self.address = ("127.0.0.1", port)
        inherited = {
            name: value
            for name, value in os.environ.items()
            # Without bytecode files, an interpreter would compile everything again at each start.
            if not name.startswith("STONEMUX_") and name != "PYTHONDONTWRITEBYTECODE"
        }
        with open(self.directory / "output.txt", "ab") as output:
            self._process = subprocess.Popen(
                self.command(port),
                cwd=ROOT,
                env=inherited | BYTECODE | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for this process, which ends its children
            )

    def start(self) -> None:
        """Start the process and wait until `/health` answers."""
        self.spawn()
        self.await_health()

    def await_health(self, pause: float = 0.002) -> None:
        """Wait until `/health` answers with 200."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                with Line(self.address) as line:
                    line.call("GET", "/health")
                return
            except (OSError, EOFError):
                self.check()
                if time.monotonic() > deadline:
                    raise ServerFailed(f"{self.name} gave no answer for {START_S:.0f} s: {self._output()}") from None
                time.sleep(pause)

    def check(self) -> None:
        """Raise if the process has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise ServerFailed(f"{self.name} ended with status {self._process.returncode}: {self._output()}")

    def stop(self) -> None:
        """End the process; its directory stays."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def memory(self) -> int:
        """Resident memory in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise ServerFailed(f"{self.name} has no resident memory")

    def processor_seconds(self) -> float:
        """Processor time used so far by all its threads, in nanoseconds if the kernel counts that precisely."""
        try:
            tasks = list(Path(f"/proc/{self.pid}/task").iterdir())
            return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
        except OSError:
            counted = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(counted[11]) + int(counted[12])) / os.sysconf("SC_CLK_TCK")

    def _output(self) -> str:
        text = (self.directory / "output.txt").read_text(errors="replace").strip()
        return text[-1500:] or "it printed nothing"

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Stonemux(Server):
    """The daemon as an operator starts it, with raised limits."""

    def __init__(self, directory: Path) -> None:
        super().__init__("stonemux", directory)
        self.data = directory / "data"
        (directory / "config.toml").write_text(CONFIG)

    def command(self, port: int) -> list[str]:
        """`python -m stonemux serve`."""
        return [
            *(sys.executable, "-m", "stonemux", "serve", "--port", str(port)),
            *("--data-dir", str(self.data), "--config", str(self.directory / "config.toml")),
        ]

    def environment(self) -> dict[str, str]:
        """A home without settings or license key."""
        return {"HOME": str(self.directory)}

    def database(self) -> sqlite3.Connection:
        """A connection to the database, to fill it while the daemon is stopped."""
        assert self._process is None
        found = list(self.data.glob("*.db"))
        if len(found) != 1:
            raise ServerFailed(f"expected one database in the data directory, found {len(found)}")
        return sqlite3.connect(found[0], isolation_level=None)


class FastApi(Server):
    """`bench.fastapi_app` under uvicorn with uvloop and httptools, one worker, without access log."""

    def __init__(self, directory: Path, connection: str) -> None:
        super().__init__(f"FastAPI ({connection})", directory)
        self._connection = connection

    def command(self, port: int) -> list[str]:
        """The uvicorn command."""
        return [
            *(sys.executable, "-m", "uvicorn", "bench.fastapi_app:app", "--port", str(port)),
            *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"),
        ]

    def environment(self) -> dict[str, str]:
        """The path of its database, and whether requests share a connection."""
        return {
            "BENCH_DATABASE": str(self.directory / "messages.db"),
            "BENCH_CONNECTION": "shared" if self._connection == "shared" else "request",
        }


def missing_for_fastapi() -> list[str]:
    """The packages that the FastAPI baseline needs and that are not installed."""
    needed = ("fastapi", "uvicorn", "uvloop", "httptools", "aiosqlite")
    return [name for name in needed if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary directory that is removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="stonemux-bench-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def stonemux() -> Iterator[Stonemux]:
    """A running daemon on an empty data directory."""
    with scratch() as directory, Stonemux(directory) as server:
        assert isinstance(server, Stonemux)
        yield server


@contextlib.contextmanager
def fastapi(connection: str) -> Iterator[Server]:
    """The running baseline on an empty database."""
    with scratch() as directory, FastApi(directory, connection) as server:
        yield server


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def get(path: str, /, *, headers: str = "", **query: object) -> bytes:
    """The bytes of a GET."""
    return http_request("GET", f"{path}?{urlencode(query)}" if query else path, headers=headers)


def post(path: str, body: Mapping[str, object], *, headers: str = "") -> bytes:
    """The bytes of a POST."""
    return http_request("POST", path, json.dumps(body, separators=(",", ":")).encode(), headers=headers)


class Line:
    """A kept connection for one caller at a time; raises `Refused` for anything but 2xx."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._peer = HttpPeer([b""])
        self.sock = self._connect()

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(self._address, timeout=30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def send(self, request: bytes) -> None:
        """Write a request."""
        if self._peer.last:
            self.close()
            self.sock = self._connect()
            self._peer.last = False
        self.sock.sendall(request)

    def receive(self) -> bytes:
        """Read the whole reply; returns its body."""
        reply = self.sock.recv(65536)
        while True:
            if reply and (used := self._peer.complete(reply)):
                assert used == len(reply)
                return reply[reply.index(b"\r\n\r\n") + 4 :]
            more = self.sock.recv(65536)
            if not more:
                raise EOFError("the connection was closed before the reply was whole")
            reply += more

    def ask(self, request: bytes) -> bytes:
        """Write a request, and read the reply's body."""
        self.send(request)
        return self.receive()

    def call(self, method: str, path: str, **fields: object) -> dict[str, Any]:
        """Make a call with JSON in and out."""
        asked = f"{path}?{urlencode(fields)}" if fields else path
        request = http_request("GET", asked) if method == "GET" else post(path, fields)
        answer: dict[str, Any] = json.loads(self.ask(request))
        return answer

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Once(HttpPeer):
    """Sends each request once."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        super().__init__(requests)
        self._next = iter([*requests, b""]).__next__


def send_all(address: Address, requests: Sequence[bytes], *, connections: int = 32) -> None:
    """Send each request once, over several connections, in no particular order."""
    connections = min(connections, len(requests))
    load(address, lambda index: _Once(requests[index::connections]), connections=connections)


def register(address: Address, agents: Iterable[str], **fields: object) -> None:
    """Register agents."""
    send_all(address, [post("/agent/register", {"agent_id": agent, **fields}) for agent in agents])
