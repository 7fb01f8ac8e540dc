"""What `stonemux doctor` examines, and what a check yields."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from stonemux import datadir
from stonemux.config import Settings
from stonemux.errors import MuxError
from stonemux.opening import open_unchanged
from stonemux.record import Record

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"


class Finding(NamedTuple):
    """What one check found."""

    check: str
    state: str
    found: str
    remedy: str = ""


class Patient(Record):
    """The installation that the checks examine."""

    settings: Settings
    environ: Mapping[str, str]
    folder: Path
    """The working directory."""
    troubles: Sequence[MuxError]
    """The settings that could not be used."""
    config: Path | None
    """The settings file that a flag names."""
    full: bool
    now: int
    held: bool
    """Whether a daemon holds the data directory."""

    @property
    def path(self) -> Path:
        """The data directory."""
        return self.settings.data_dir

    @property
    def database(self) -> Path:
        """The database file in the data directory."""
        return self.path / datadir.DATABASE

    @contextlib.contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """A connection to the database that cannot change anything."""
        with contextlib.closing(open_unchanged(self.database, live=self.held)) as db:
            yield db


Check = Callable[[Patient], Iterator[Finding]]
