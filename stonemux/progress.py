"""Progress of long work: a bar on standard error if that is a terminal, and nothing otherwise."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from stonemux import screen
from stonemux.clock import Clock

EVERY_MS = 100
CELLS = 24


class Progress:
    """One line that is redrawn at most ten times a second and erased at the end."""

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self._label = label
        self._total = total
        self._stream = stream or sys.stderr
        self._clock = Clock()
        self._begun = self._clock.ticks_ms()
        self._next = self._begun
        self._drawn = False
        self.visible = self._stream is not None and self._stream.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def show(self, done: int, note: str = "") -> None:
        """Draw the bar, unless it was drawn a moment ago."""
        now = self._clock.ticks_ms()
        if not self.visible or now < self._next:
            return
        self._next = now + EVERY_MS
        width = screen.look(self._stream, {}, 0).width or 80
        self._stream.write("\r" + self.line(done, note, now - self._begun)[: width - 1] + "\x1b[K")
        self._stream.flush()
        self._drawn = True

    def line(self, done: int, note: str, spent_ms: int) -> str:
        """The bar as text; `note` adds what the numbers do not say."""
        if self._total <= 0:
            return f"{self._label}  {note or done}  {screen.age(spent_ms)}"
        share = min(1.0, done / self._total)
        cells = round(share * CELLS)
        left = f", {screen.age(round(spent_ms / share - spent_ms))} left" if share > 0.02 and spent_ms > 2000 else ""
        bar = "#" * cells + "-" * (CELLS - cells)
        return f"{self._label}  [{bar}] {int(share * 100):3d} %  {note}{left}".rstrip()


@contextmanager
def growing(label: str, folder: Path, pattern: str, total: int) -> Iterator[None]:
    """Show the growth of a file that someone else writes: the one in `folder` that matches `pattern`."""
    progress = Progress(label, total)
    if not progress.visible:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_MS / 1000):
            done = max((_size(found) for found in folder.glob(pattern)), default=0)
            if done:
                progress.show(done, f"{done / 1024 / 1024:.0f} MiB")

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        progress.__exit__()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
