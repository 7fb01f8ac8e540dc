"""The owner's operations from the command line: through the daemon if it holds the data directory, else in-process.

Anyone who can read the data directory is its owner. A running daemon keeps a token there as proof; without a daemon,
the same operations run in this process, which holds the directory meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Self

from stonemux import audit, door, operations, timekeeper
from stonemux.clock import Clock
from stonemux.config import Settings
from stonemux.datadir import read_owner_token
from stonemux.mux import Caller, opened
from stonemux.remote import Remote
from stonemux.schema import Operation
from stonemux.tokens import OWNER


def desk(settings: Settings, token: str | None = None) -> Remote | Here:
    """Where to call the owner's operations; `token` is used if the data directory holds none."""
    shown = read_owner_token(settings.data_dir, settings.authority) or token
    return Here(settings) if shown is None else Remote(settings, shown)


def call(settings: Settings, name: str, given: Mapping[str, Any]) -> Any:
    """Call one operation as the owner and return its answer."""
    with desk(settings) as at, at.asked(operations.BY_NAME[name], given) as answer:
        return answer


class Here:
    """The program without its network interfaces, in this process."""

    replayed = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._mux = undo.enter_context(opened(self._settings, Clock()))
            timekeeper.boot(self._mux)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            audit.enter_noted(self._mux, all_of_it=True)
        finally:
            self._undo.close()

    @contextlib.contextmanager
    def asked(self, operation: Operation, given: Mapping[str, Any]) -> Iterator[Any]:
        """Call an operation; raises the same refusals as the daemon."""
        caller = Caller()
        caller.principal = OWNER
        yield door.call(self._mux, operation, given, caller)
        caller.arrived()
