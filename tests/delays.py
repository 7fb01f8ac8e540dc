"""Random delays in the threads of the program, which widen the windows between them: `pytest -p delays`.

Every call and return in the program may take up to `MOST_S` longer: one in 500 on the program's own threads, and one in
2,000 on the test's. `STONEMUX_DELAYS` is the seed. Threads run as they like, so a seed does not repeat a failure; more
runs with other seeds may.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from stonemux import threads

MOST_S = 0.03
PROGRAM = str(Path(threads.__file__).parent)


class Delays:
    """The plugin; it delays nothing between tests, whose fixtures wait for real seconds."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._testing = False

    def on_a_thread(self, frame: FrameType, event: str, argument: Any) -> None:
        self._perhaps_wait(frame, event, 1 / 500)

    def in_a_test(self, frame: FrameType, event: str, argument: Any) -> None:
        self._perhaps_wait(frame, event, 1 / 2000)

    def _perhaps_wait(self, frame: FrameType, event: str, share: float) -> None:
        called = event in ("call", "return") and self._testing
        if called and self._chance.random() < share and frame.f_code.co_filename.startswith(PROGRAM):
            time.sleep(self._chance.random() * MOST_S)

    def begin(self, run: Callable[..., None], arguments: tuple[Any, ...]) -> int:
        """Begin a thread as the program does, without `threading`."""

        def delayed() -> None:
            sys.setprofile(self.on_a_thread)
            run(*arguments)

        return start_new_thread(delayed, ())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        self._testing = True
        sys.setprofile(self.in_a_test)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            self._testing = False


def pytest_configure(config: pytest.Config) -> None:
    delays = Delays(int(os.environ.get("STONEMUX_DELAYS", "1")))
    config.pluginmanager.register(delays)
    threading.setprofile(delays.on_a_thread)
    threads.start_new_thread = delays.begin
