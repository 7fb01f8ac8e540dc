"""What an operator does to a data directory from the command line: `backup` and `restore`.

Only the process that holds the directory's lock may write there. So if a daemon runs, it makes the backup; otherwise
this process does. A restore is refused while a daemon runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stonemux import copies, operations
from stonemux.clock import DAY_MS, HOUR_MS, MINUTE_MS, Clock, rfc3339
from stonemux.config import Settings
from stonemux.copies import Contents
from stonemux.datadir import DATABASE, DataDir, is_held, read_owner_token
from stonemux.errors import MuxError
from stonemux.opening import open_unchanged, read_audited
from stonemux.remote import Remote
from stonemux.screen import counted


def backup(settings: Settings, output: Path | None) -> dict[str, Any]:
    """Copy the data directory's database, to `output` if given; returns what `admin.backup` answers.

    Raises `not_found` without a database, `unreachable` when a daemon holds the directory but does not answer at the
    configured address, and what `copies.make` raises.
    """
    if not (settings.data_dir / DATABASE).exists():
        raise MuxError("not_found", f"{settings.data_dir} has no database; pass its directory as --data-dir")
    if output is not None and output.exists():
        raise MuxError("backup_exists", f"{output} already exists; name another file, or move that one away")
    try:
        directory = DataDir(settings.data_dir, allow_network_fs=settings.allow_network_fs)
    except MuxError as error:
        if error.code != "data_dir_locked":
            raise
        return _through_the_daemon(settings, output)
    try:
        return _directly(directory, output)
    finally:
        directory.close()


def _directly(directory: DataDir, output: Path | None) -> dict[str, Any]:
    now = Clock().now_ms()
    target = output or copies.folder(directory.path) / copies.default_name(now)
    size, head = copies.make(lambda: open_unchanged(directory.database), target, directory.database.stat().st_size)
    return {"path": str(target.absolute()), "bytes": size, "events_head": head, "taken_at": rfc3339(now)}


def _through_the_daemon(settings: Settings, output: Path | None) -> dict[str, Any]:
    operation = operations.BY_NAME["admin.backup"]
    with Remote(settings, read_owner_token(settings.data_dir, settings.authority)) as daemon:
        answer: dict[str, Any] = daemon.ask(operation, {})
    made = Path(answer["path"])
    if not made.exists() or not made.parent.parent.samefile(settings.data_dir):
        raise MuxError(
            "unreachable",
            f"the daemon at {settings.authority} is not the one that holds {settings.data_dir}: it copied to {made}. "
            "Pass the right --port",
        )
    if output is not None:
        copies.move(made, output)
        answer["path"] = str(output.absolute())
    return answer


def restore(
    settings: Settings, file: Path, *, say: Callable[[str], None], agreed: Callable[[], bool]
) -> dict[str, Any]:
    """Replace the data directory's database by a copy, after a preview that the user must confirm.

    Returns the file's contents, where the replaced database is kept, and where ids continue. Raises `data_dir_locked`
    while a daemon runs, `not_found` or `data_refused` for the file, `not_confirmed`, `storage_full`, `backup_failed`.
    """
    named = next((place for place in (file, settings.data_dir / copies.FOLDER / file) if place.exists()), None)
    if named is None:
        beside = "" if file.is_absolute() else f", nor is it in {settings.data_dir / copies.FOLDER}"
        raise MuxError("not_found", f"{file}: no such file{beside}", remedy="stonemux backup makes one")
    directory = DataDir(settings.data_dir, allow_network_fs=settings.allow_network_fs)
    try:
        now = Clock().now_ms()
        found = copies.inspect(named)
        say(preview(named, found, directory, now))
        if not agreed():
            raise MuxError("not_confirmed", "nothing was changed")
        kept, head = copies.restore(directory, named, found, now)
    finally:
        directory.close()
    return {
        "restored": str(named.absolute()),
        "contents": found.told(),
        "kept": str(kept) if kept is not None else None,
        "events_head": head.event_seq,
        "message_seq": head.message_seq,
    }


def anchor(settings: Settings) -> dict[str, Any]:
    """The newest record of the audit log: its number, its hash, and the current time.

    Raises `not_found` without a database, and `data_refused` for one that cannot be read.
    """
    database = settings.data_dir / DATABASE
    if not database.exists():
        raise MuxError("not_found", f"{settings.data_dir} has no database; pass its directory as --data-dir")
    seq, digest = read_audited(database, live=is_held(settings.data_dir))
    return {"seq": seq, "hash": digest, "at": rfc3339(Clock().now_ms())}


def preview(file: Path, found: Contents, directory: DataDir, now: int) -> str:
    """What a restore would replace by what, for a person to confirm."""
    lines = [f"{file} contains", *_listed(found, now)]
    old = copies.present(directory)
    if old is not None:
        lines += [f"and would replace {directory.database}, which contains", *_listed(old, now)]
    elif directory.database.exists():
        lines += [f"and would replace {directory.database}, which cannot be read"]
    else:
        lines += [f"and would become {directory.database}, which does not exist yet"]
    if directory.database.exists():
        lines += [
            "The current database is kept beside it. The copy does not contain anything that happened since it was "
            "made."
        ]
    return "\n".join(lines)


def _listed(found: Contents, now: int) -> list[str]:
    stands = found.stands
    age = f"last written {rfc3339(stands.at)}, {_ago(now - stands.at)}" if stands.at else "never used"
    held = ((found.agents, "agent"), (found.messages, "message"), (found.tasks, "task"), (found.keys, "key"))
    return [f"  {', '.join(counted(number, what) for number, what in held)}", f"  {age} (event {stands.event_seq})"]


def _ago(ms: int) -> str:
    for size, unit in ((DAY_MS, "days"), (HOUR_MS, "hours"), (MINUTE_MS, "minutes")):
        if ms >= 2 * size:
            return f"{ms // size} {unit} ago"
    return "just now"
