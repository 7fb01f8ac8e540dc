"""Shared state: keys with versions that only increase, compare-and-set, and watches.

A version counts every successful set *and* delete of its key. Deleting leaves a tombstone that keeps the counter, so a
key that is deleted and created again never repeats a version, and a compare-and-set with an old version cannot succeed.
"""

from __future__ import annotations

from typing import Any

from stonemux import directory
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.mux import Caller, Mux, Wait
from stonemux.payload import dumps
from stonemux.transaction import Snapshot, Tx
from stonemux.vocabulary import KEPT_VERSIONS


def _row(rx: Snapshot, channel: str, key: str) -> Any:
    return rx.one("select * from state where channel = ? and key = ?", channel, key)


def _record(row: Any) -> dict[str, Any]:
    return {
        "key": row["key"],
        "value": row["value"],
        "version": row["version"],
        "updated_by": row["updated_by"],
        "updated_at": rfc3339(row["updated_at"]),
    }


def get(rx: Snapshot, *, key: str, channel: str) -> dict[str, Any]:
    """The key's record; the `key_not_found` error carries the version of its tombstone, or 0."""
    row = _row(rx, channel, key)
    if row is None:
        channel = directory.channel(rx, channel)["name"]  # the channel may have been given by its id
        row = _row(rx, channel, key)
    if row is None or row["deleted"]:
        version = row["version"] if row is not None else 0
        raise MuxError(
            "key_not_found",
            f"channel {channel!r} has no key {key!r}; create it with state.set and expected_version 0, or wait for it "
            f"with state.watch and after_version {version}",
            version=version,
        )
    return _record(row)


def put(
    tx: Tx, *, key: str, value: str, channel: str, expected_version: int | None, updated_by: str | None
) -> dict[str, Any]:
    """Set a key; with `expected_version`, only if it exists at exactly that version (0 means "does not exist")."""
    return _record(_change(tx, key, value, channel, expected_version, updated_by))


def delete(tx: Tx, *, key: str, channel: str, expected_version: int | None, updated_by: str | None) -> dict[str, Any]:
    """Delete a key, leaving a tombstone with the next version."""
    channel = directory.channel(tx, channel)["name"]
    row = _row(tx, channel, key)
    if row is None or row["deleted"]:
        if expected_version:
            raise _conflict(row, key, expected_version, 0)
        raise MuxError(
            "key_not_found",
            f"channel {channel!r} has no key {key!r} to delete",
            version=row["version"] if row is not None else 0,
        )
    changed = _change(tx, key, None, channel, expected_version, updated_by)
    return {"key": key, "version": changed["version"], "deleted": True}


def _change(
    tx: Tx, key: str, value: str | None, channel: str, expected: int | None, updated_by: str | None
) -> dict[str, Any]:
    channel = directory.channel(tx, channel)["name"]
    if updated_by is not None:
        directory.agent(tx, updated_by, "updated_by")
    row = _row(tx, channel, key)
    version = row["version"] if row is not None else 0
    live = version if row is not None and not row["deleted"] else 0
    if expected is not None and expected != live:
        raise _conflict(row, key, expected, live)
    deleted = value is None
    changed = {
        "channel": channel,
        "key": key,
        "value": value,
        "version": version + 1,
        "deleted": int(deleted),
        "updated_by": updated_by,
        "updated_at": tx.now,
    }
    written = tuple(changed.values())
    tx.run(
        "insert into state (channel, key, value, version, deleted, updated_by, updated_at) "
        "values (?, ?, ?, ?, ?, ?, ?) on conflict (channel, key) do update set "
        "value = excluded.value, version = excluded.version, "
        "deleted = excluded.deleted, updated_by = excluded.updated_by, updated_at = excluded.updated_at",
        *written,
    )
    tx.run(
        "insert into state_version (channel, key, value, version, deleted, updated_by, updated_at) "
        "values (?, ?, ?, ?, ?, ?, ?)",
        *written,
    )
    if version >= KEPT_VERSIONS:
        tx.run(
            "delete from state_version where channel = ? and key = ? and version <= ?",
            channel,
            key,
            version + 1 - KEPT_VERSIONS,
        )
    told: dict[str, Any] = {"key": key, "value": value, "version": version + 1, "channel": channel}
    if updated_by is not None:
        told["updated_by"] = updated_by
    if deleted:
        told["deleted"] = True
    tx.emit("state_changed", dumps(told), channel=channel, agents=(updated_by,) if updated_by else ())
    tx.touch(("state", channel, key))
    return changed


def _conflict(row: Any, key: str, expected: int, live: int) -> MuxError:
    facts: dict[str, Any] = {"current_version": live}
    if live:
        facts |= {"current_value": row["value"], "updated_by": row["updated_by"]}
        by = f" by {row['updated_by']}" if row["updated_by"] else ""
        now = f"it is at version {live}{by}; read it, merge, and retry with expected_version {live}"
    else:
        now = "it does not exist; expected_version 0 creates it"
    return MuxError("version_conflict", f"{key!r}: you sent expected_version {expected}, but {now}", **facts)


def purge(tx: Tx, since: int, before: int, most: int) -> int:
    """Delete up to `most` versions of keys that were deleted from `since` until `before`; returns how many.

    Their tombstones stay, since no version may come again.
    """
    return tx.run(
        "delete from state_version where (channel, key, version) in (select v.channel, v.key, v.version "
        "from state s indexed by state_deleted cross join state_version v on v.channel = s.channel and v.key = s.key "
        "where s.deleted = 1 and s.updated_at >= ? and s.updated_at < ? and v.version < s.version limit ?)",
        since,
        before,
        most,
    ).rowcount


def watch(
    mux: Mux, caller: Caller, *, key: str, channel: str, after_version: int, timeout: int, agent_id: str | None
) -> Wait:
    """Wait until the key's version exceeds `after_version`; answers with the latest state, not every step."""
    deadline = mux.clock.ticks_ms() + timeout * 1000
    with mux.store.read() as rx:
        if agent_id is not None:
            directory.agent(rx, agent_id)
        channel = directory.channel(rx, channel)["name"]

    def look() -> tuple[Any, int]:
        with mux.store.read() as rx:
            row = _row(rx, channel, key)
        return row, row["version"] if row is not None else 0

    def attempt() -> dict[str, Any] | None:
        row, version = look()
        if version > after_version:
            return _watched(row, changed=True)
        if version < after_version:  # a restored database, or the wrong daemon; never hang
            return _watched(row, changed=False, key=key) | {"reset": True}
        return None

    def give_up() -> dict[str, Any]:
        return _watched(look()[0], changed=False, key=key)

    return Wait((("state", channel, key),), attempt, give_up, deadline, agent_id or "")


def _watched(row: Any, *, changed: bool, key: str = "") -> dict[str, Any]:
    if row is None:
        return {"changed": changed, "key": key, "version": 0}
    return {"changed": changed, **_record(row), "deleted": bool(row["deleted"])}


def listed(rx: Snapshot, *, channel: str, prefix: str | None, limit: int, after: str | None) -> dict[str, Any]:
    """The existing keys of a channel in order, with their records."""
    channel = directory.channel(rx, channel)["name"]
    rows = rx.sql(
        "select * from state where channel = ? and not deleted and key > ? and substr(key, 1, ?) = ? "
        "order by key limit ?",
        channel,
        after or "",
        len(prefix or ""),
        prefix or "",
        limit + 1,
    )
    answer: dict[str, Any] = {"keys": [_record(row) for row in rows[:limit]]}
    if len(rows) > limit:
        answer["more"] = True
    return answer


def history(rx: Snapshot, *, key: str, channel: str, limit: int) -> dict[str, Any]:
    """The latest versions of a key, newest first, including tombstones."""
    channel = directory.channel(rx, channel)["name"]
    rows = rx.sql(
        "select * from state_version where channel = ? and key = ? order by version desc limit ?", channel, key, limit
    )
    if not rows:
        raise MuxError("key_not_found", f"channel {channel!r} never had a key {key!r}", version=0)
    return {"key": key, "versions": [_version(row) for row in rows]}


def _version(row: Any) -> dict[str, Any]:
    version = _record(row)
    del version["key"]
    if row["deleted"]:
        version["deleted"] = True
    return version
