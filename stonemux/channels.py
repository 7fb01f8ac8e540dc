"""Channels: namespaces with members. Every message, task, and state key belongs to exactly one."""

from __future__ import annotations

import json
from typing import Any

from stonemux import directory
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.payload import dumps
from stonemux.transaction import Snapshot, Tx
from stonemux.vocabulary import AGENT_CHANNEL_PREFIX, generate_agent_channel_name


def _view(rx: Snapshot, row: Any) -> dict[str, Any]:
    members = directory.members(rx, row["name"])
    return _shown(row, {"members": members, "memberIds": members})


def _shown(row: Any, members: dict[str, Any]) -> dict[str, Any]:
    """A channel as answers show it; `members` are the fields about its members."""
    shown: dict[str, Any] = {
        "id": row["id"],
        "name": row["name"],
        "description": row["description"],
        **members,
        "created_by": row["created_by"],
        "created_at": rfc3339(row["created_at"]),
    }
    if row["tags"]:
        shown["tags"] = json.loads(row["tags"])
    return shown


def create(
    tx: Tx,
    *,
    name: str,
    created_by: str | None,
    description: str | None,
    members: list[str] | None,
    tags: list[str] | None,
) -> dict[str, Any]:
    """Create a team channel; its creator and the listed agents are its first members."""
    if name.startswith(AGENT_CHANNEL_PREFIX):
        raise MuxError(
            "reserved_name",
            f"name begins with {AGENT_CHANNEL_PREFIX!r}, which is reserved for agents' own channels; choose another "
            "name",
            parameter="name",
        )
    first = list(dict.fromkeys(([created_by] if created_by else []) + (members or [])))
    for agent_id in first:
        directory.agent(tx, agent_id, "created_by" if agent_id == created_by else "members")
    if directory.channel_called(tx, name) is not None:
        raise MuxError("channel_exists", f"the channel {name!r} already exists; use it, or choose another name")
    directory.make_channel(tx, name, created_by=created_by, description=description, tags=tags)
    for agent_id in first:
        directory.join(tx, name, agent_id)
    return {"channel": _view(tx, directory.channel(tx, name))}


def listed(rx: Snapshot, *, agent_id: str | None) -> dict[str, Any]:
    """All channels, or those that an agent is a member of, each with its number of members."""
    if agent_id is not None:
        directory.agent(rx, agent_id)
    rows = rx.sql(
        "select c.*, (select count(*) from member m join agent a on a.id = m.agent_id where m.channel = c.name "
        "and a.deregistered_at is null) as size from channel c "
        "where ?1 is null or exists (select 1 from member where channel = c.name and agent_id = ?1) order by c.name",
        agent_id,
    )
    return {"channels": [_shown(row, {"members": row["size"]}) for row in rows]}


def get(rx: Snapshot, *, channel: str) -> dict[str, Any]:
    """One channel with its members."""
    return {"channel": _view(rx, directory.channel(rx, channel))}


def join(tx: Tx, *, channel: str, agent_id: str) -> dict[str, Any]:
    """Make an agent a member; joining twice changes nothing."""
    row = directory.channel(tx, channel)
    directory.agent(tx, agent_id)
    if directory.join(tx, row["name"], agent_id):
        _tell(tx, "channel_joined", row["name"], agent_id)
    return {"channel": _view(tx, row)}


def leave(tx: Tx, *, channel: str, agent_id: str) -> dict[str, Any]:
    """End a membership; messages that were delivered before stay in the inbox."""
    row = directory.channel(tx, channel)
    directory.agent(tx, agent_id)
    if row["name"] == generate_agent_channel_name(agent_id):
        raise MuxError("reserved_name", f"{row['name']!r} is this agent's own channel, which it cannot leave")
    tx.forget()
    if tx.run("delete from member where channel = ? and agent_id = ?", row["name"], agent_id).rowcount:
        _tell(tx, "channel_left", row["name"], agent_id)
    return {"channel": _view(tx, row)}


def _tell(tx: Tx, kind: str, channel: str, agent_id: str) -> None:
    tx.emit(kind, dumps({"channel": channel, "agent_id": agent_id}), channel=channel, agents=(agent_id,))
