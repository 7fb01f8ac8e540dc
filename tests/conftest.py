"""Fixtures: a program on real files with a clock that the test moves, the faces, and threads that are joined."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import children
import hypothesis
import pytest
from daemons import ROOT
from faces import Direct, OverCli, OverClient, OverHttp, OverMcp
from fake_clock import FakeClock
from raw import OVER_TLS
from receivers import Receiver
from tls_client import CERT, KEY

from stonemux import filing, opening, release, timekeeper
from stonemux.config import Settings
from stonemux.datadir import DataDir
from stonemux.mux import Mux
from stonemux.outbound import Outbound
from stonemux.record import replace
from stonemux.store import Store


@cache
def new_data() -> Path:
    """A data directory as the first start leaves it: copying it is faster than creating every table for each test."""
    keeper = TemporaryDirectory(dir=TEMPORARY)
    atexit.register(keeper.cleanup)
    path = Path(keeper.name) / "data"
    directory = DataDir(path)
    Store(directory, FakeClock()).close()
    directory.close()
    return path


MEMORY = Path("/dev/shm")
"""A file system in memory: otherwise fast tests spend most of their time flushing data that nobody needs."""
if "PYTEST_DEBUG_TEMPROOT" not in os.environ and os.access(MEMORY, os.W_OK):
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)
TEMPORARY = os.environ.get("PYTEST_DEBUG_TEMPROOT")
"""Where temporary directories are made; None for where the system makes them."""


BARE_ONCE = cache(release._bare)
"""The same module is taken apart once, however many files are made of it."""


@pytest.fixture(scope="session")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that is distributed."""
    folder: Path = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(release, "_bare", BARE_ONCE)
        release.main(["--into", str(folder)])
    return folder


class Program:
    """An open program in a directory; a test may `close` it, `open` it with options, or do both with `reopen`."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.clock = FakeClock()
        if OVER_TLS:
            settings = {"tls_cert": CERT, "tls_key": KEY, **settings}
        self.settings = replace(Settings(), data_dir=path, port=0, license_key_file=path / "license.key", **settings)
        with pytest.MonkeyPatch.context() as patch:
            if not path.exists():
                shutil.copytree(new_data(), path, ignore=shutil.ignore_patterns("ballast"))
                patch.setattr(opening, "_look", lambda *_: True)  # a copy of what is sound needs no look beforehand
            self.open()

    def open(self, **options: Any) -> None:
        """Open it, at first or after `close`; `options` are the store's."""
        self.directory = DataDir(self.path)
        self.store = Store(self.directory, self.clock, **options)
        self.mux = Mux(self.settings, self.clock, self.store)
        timekeeper.boot(self.mux)
        self.timekeeper = timekeeper.Timekeeper(self.mux)

    def close(self) -> None:
        self.mux.hub.close()
        self.timekeeper.end_check()
        self.store.close()
        self.directory.close()

    def reopen(self) -> Mux:
        self.close()
        self.open()
        return self.mux


@pytest.fixture
def open_program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Open programs with the settings that a test asks for, and close them afterwards."""
    opened: list[Program] = []

    def opener(**settings: Any) -> Program:
        path = tmp_path / f"data{len(opened)}"
        opened.append(Program(path, **settings))
        return opened[-1]

    yield opener
    for program in opened:
        program.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than processors: a tenth of the time, tests wait for processes, sockets and real seconds."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "settings(**values): the settings of this test's program")
    hypothesis.settings.register_profile("patient", hypothesis.settings(), deadline=None)
    hypothesis.settings.load_profile("patient")
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """From here on the garbage collector looks only at what tests make, not at half a million objects of modules."""
    gc.freeze()
    gc.enable()


LEFT = pytest.StashKey[dict[int, str]]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that leaves a process behind; checked by the main process, once its workers are done."""
    config = session.config
    if hasattr(config, "workerinput"):
        return
    folder = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    config.stash[LEFT] = children.left(folder)
    if config.stash[LEFT]:
        children.end(folder, signal.SIGKILL)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for pid, command in config.stash.get(LEFT, {}).items():
        terminalreporter.write_line(f"LEFT BEHIND by some test, and killed now: {pid} {command}", red=True)


@pytest.fixture
def program(
    request: pytest.FixtureRequest, open_program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch
) -> Program:
    """One program; in half of the tests, mail is filed at once, so that many tests examine each part of an inbox."""
    if crc32(request.node.nodeid.encode()) & 1:
        monkeypatch.setattr(filing, "MOST_RECIPIENTS", 0)
    marker = request.node.get_closest_marker("settings")
    return open_program(**(marker.kwargs if marker else {}))


@pytest.fixture
def mux(program: Program) -> Mux:
    return program.mux


@pytest.fixture
def clock(program: Program) -> FakeClock:
    return program.clock


@pytest.fixture
def http(mux: Mux) -> Iterator[OverHttp]:
    with OverHttp(mux) as face:
        yield face


@pytest.fixture
def direct(mux: Mux) -> Direct:
    return Direct(mux)


FACES = [OverHttp, OverMcp, OverClient, OverCli]
if not OVER_TLS:
    FACES.insert(0, Direct)  # it has no connection
EVERY_FACE = OVER_TLS or os.environ.get("STONEMUX_FACES") == "all"


@pytest.fixture(params=FACES, ids=lambda kind: kind.__name__)
def face(request: pytest.FixtureRequest, mux: Mux) -> Iterator[Direct | OverHttp]:
    """Each of the faces in turn."""
    with request.param(mux) as opened:
        yield opened


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run each scenario over one face only, with the faces taking turns; `make faces` runs them over all.

    A face only translates, and running all of them takes twice as long.
    """
    if EVERY_FACE:
        return
    left_out = [item for item in items if not _has_its_turn(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if _has_its_turn(item)]


def _has_its_turn(item: pytest.Item) -> bool:
    kind = item.callspec.params.get("face") if hasattr(item, "callspec") else None
    if kind not in FACES:
        return True
    scenario = item.nodeid.replace(kind.__name__, "")
    return FACES[crc32(scenario.encode()) % len(FACES)] is kind


@pytest.fixture
def restart(face: Direct | OverHttp, program: Program) -> Callable[[], None]:
    """Stop the program properly and start it again behind the same face."""

    def again() -> None:
        face.__exit__(None, None, None)
        face.mux = program.reopen()
        face.__enter__()

    return again


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Run a call in a thread; the future has its answer or its error."""
    with ThreadPoolExecutor(32) as pool:
        yield pool.submit


@pytest.fixture
def outbound(program: Program) -> Iterator[Outbound]:
    """Deliver to the program's webhooks, as a daemon does."""
    outbound = Outbound(program.mux)
    outbound.start()
    yield outbound
    outbound.stop()
    assert outbound.threads == 0


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    """Make webhook receivers on their own ports."""
    opened: list[Receiver] = []

    def receiver(*answer: Any) -> Receiver:
        opened.append(Receiver(*answer))
        return opened[-1]

    yield receiver
    for one in opened:
        one.close()
