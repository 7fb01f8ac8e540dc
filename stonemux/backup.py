"""The operation that copies the running database into the data directory's `backups/`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stonemux import copies
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.mux import Caller, Mux
from stonemux.transaction import Tx


class _Fresh(Exception):
    """The call's idempotency key has not been used before."""


def take(mux: Mux, caller: Caller, *, path: str | None) -> dict[str, Any]:
    """Make a copy; `path` is its name in the folder. Blocks for as long as it takes to read the database.

    Raises `backup_exists`, `storage_full`, `backup_failed`, or `storage_busy` while another copy is being made.
    """
    if path is not None and not re.fullmatch(copies.NAME, path):
        raise MuxError(
            "invalid_field",
            "path must be a plain file name: letters, digits, dots, dashes, and underscores, beginning with a letter "
            "or digit; the copy goes into the data directory's backups folder",
            parameter="path",
        )
    if caller.once is None:
        return _take(mux, path)
    answer: dict[str, Any]
    try:
        answer = mux.store.write(caller.once(caller, _ask))
    except _Fresh:
        made = _take(mux, path)
        answer = mux.store.write(caller.once(caller, lambda tx: made))
    return answer


def _ask(tx: Tx) -> None:
    raise _Fresh


def _take(mux: Mux, name: str | None) -> dict[str, Any]:
    store = mux.store
    if not store.copying.acquire(blocking=False):
        raise MuxError("storage_busy", "another backup is in progress; try again when it is done", retry_after=5)
    try:
        now = mux.clock.now_ms()
        target = _target(copies.folder(mux.settings.data_dir), name, now)
        size, head = copies.make(store.apart, target, sum(store.size().values()))
    except OSError as trouble:
        raise MuxError("backup_failed", f"no copy could be made: {trouble}") from trouble
    finally:
        store.copying.release()
    return {"path": str(target), "bytes": size, "events_head": head, "taken_at": rfc3339(now)}


def _target(folder: Path, name: str | None, now: int) -> Path:
    """The copy's path; without a name, one that is not taken."""
    if name is not None:
        return folder / name
    target = folder / copies.default_name(now)
    return target if not target.exists() else _target(folder, None, now + 1)
