"""Lookups of agents, channels, and memberships, with refusals that name the nearest known names.

Within a write transaction the results are cached (`tx.cache`), since every send asks the same three questions; any code
that changes these tables calls `tx.forget()`.
"""

from __future__ import annotations

import json
from typing import Any

from stonemux.errors import MuxError, nearest
from stonemux.payload import dumps
from stonemux.schema import shown
from stonemux.transaction import Snapshot, Tx

DEFAULT_CHANNEL = "default"
ADDRESS_PREFIXES = ("role:", "group:", "capability:")
AROUND = 50
"""How many names on either side of an unknown one are compared with it."""
MOST_LISTED = 20
"""How many names a refusal lists: a thousand refusals go into one answer."""
OTHERS = ("to", "members", "assigned_to")
"""Parameters that name an agent other than the caller."""

_AGENT = "select * from agent where id = ? and deregistered_at is null"
_MEMBER = (
    "select 1 from member m join agent a on a.id = m.agent_id "
    "where m.channel = ? and m.agent_id = ? and a.deregistered_at is null"
)


def _one(rx: Snapshot, query: str, *values: str) -> Any:
    """The first row, or None."""
    if not isinstance(rx, Tx):
        return rx.one(query, *values)
    found = rx.cache.get((query, values))
    if found is None and (found := rx.one(query, *values)) is not None:
        rx.cache[query, values] = found
    return found


def find_agent(rx: Snapshot, agent_id: str) -> Any:
    """The agent's row, or None if no such agent is registered."""
    return _one(rx, _AGENT, agent_id)


def agent(rx: Snapshot, agent_id: str, parameter: str = "agent_id") -> Any:
    """The agent's row; raises `agent_not_found` with the nearest known names."""
    row = _one(rx, _AGENT, agent_id)
    if row is None:
        raise unknown_agent(rx, agent_id, parameter)
    return row


def unknown_agent(rx: Snapshot, agent_id: str, parameter: str, remedy: str = "") -> MuxError:
    """The refusal of an agent that is not registered; `remedy` replaces what it says to do."""
    known = nearest(agent_id, _around(rx, "id from agent where deregistered_at is null and id", agent_id))
    listed = f"Known, for example: {', '.join(known)}" if known else "No agent is registered yet"
    if not remedy and parameter in OTHERS:  # a model told to register it would take over its name
        remedy = "agent.discover shows who is, and each agent registers itself"
    remedy = remedy or "register it with agent.register, or list the agents with agent.discover"
    return MuxError(
        "agent_not_found",
        f"no agent {shown(agent_id)} is registered ({parameter}); {remedy}. {listed}",
        parameter=parameter,
        known_agents=known,
    )


def find_channel(rx: Snapshot, name: str) -> Any:
    """The channel's row, or None."""
    return _one(rx, "select * from channel where name = ?", name)


def channel_called(rx: Snapshot, name: str) -> Any:
    """The channel's row, by name or by `ch-` id, or None."""
    row = find_channel(rx, name)
    if row is None and name.startswith("ch-"):
        row = rx.one("select * from channel where id = ?", name)
    return row


def channel(rx: Snapshot, name: str) -> Any:
    """The channel's row, by name or by `ch-` id; raises `channel_not_found` with the nearest known names."""
    row = channel_called(rx, name)
    if row is None:
        known = nearest(name, _around(rx, "name from channel where name", name))
        raise MuxError(
            "channel_not_found",
            f"no channel {shown(name)} exists (channel); create it with channel.create, or register an agent in "
            f"it. Known, for example: {', '.join(known)}",
            parameter="channel",
            known_channels=known,
        )
    return row


def is_member(rx: Snapshot, name: str, agent_id: str) -> bool:
    """Whether the agent is registered, and a member of the channel."""
    return _one(rx, _MEMBER, name, agent_id) is not None


def _around(rx: Snapshot, names: str, wanted: str) -> list[str]:
    """The names on both sides of a place in the alphabet: all of them may be too many to compare in a refusal."""
    after = rx.sql(f"select {names} >= ? order by 1 limit {AROUND}", wanted)
    return [row[0] for row in (*after, *rx.sql(f"select {names} < ? order by 1 desc limit {AROUND}", wanted))]


def channels_of(rx: Snapshot, agent_id: str) -> list[str]:
    """The names of the channels an agent is a member of."""
    return [row[0] for row in rx.sql("select channel from member where agent_id = ? order by channel", agent_id)]


def members(rx: Snapshot, name: str) -> list[str]:
    """The registered agents that are members of a channel, sorted by name."""
    return [
        row[0]
        for row in rx.sql(
            "select m.agent_id from member m join agent a on a.id = m.agent_id "
            "where m.channel = ? and a.deregistered_at is null order by m.agent_id",
            name,
        )
    ]


def member_set(tx: Tx, name: str) -> frozenset[str]:
    """The same agents as a set for lookups, cached like the rest."""
    found: frozenset[str] | None = tx.cache.get(("members", name))
    if found is None:
        found = tx.cache["members", name] = frozenset(members(tx, name))
    return found


def member_rows(tx: Tx, name: str) -> list[Any]:
    """The id, role, group, and capabilities (a list) of each member of a channel, cached like the rest."""
    found: list[Any] | None = tx.cache.get(("rows", name))
    if found is None:
        rows = tx.sql(
            "select a.id, a.role, a.grp, a.capabilities from member m join agent a on a.id = m.agent_id "
            "where m.channel = ? and a.deregistered_at is null order by a.id",
            name,
        )
        found = [(row["id"], row["role"], row["grp"], json.loads(row["capabilities"])) for row in rows]
        tx.cache["rows", name] = found
    return found


def make_channel(
    tx: Tx, name: str, *, created_by: str | None, description: str | None = None, tags: list[str] | None = None
) -> None:
    """Create a channel and announce it; the caller has checked that there is none of that name."""
    tx.forget()
    tx.run(
        "insert into channel (name, id, description, tags, created_by, created_at) values (?, ?, ?, ?, ?, ?)",
        name,
        "ch-" + tx.mux.clock.token(6),
        description,
        dumps(tags) if tags else None,
        created_by,
        tx.now,
    )
    tx.emit(
        "channel_created",
        dumps({"channel": name, "created_by": created_by}),
        channel=name,
        agents=(created_by,) if created_by else (),
    )


def join(tx: Tx, name: str, agent_id: str) -> bool:
    """Make an agent a member; returns False if it already was one."""
    tx.forget()
    return bool(
        tx.run(
            "insert or ignore into member (channel, agent_id, joined_at) values (?, ?, ?)", name, agent_id, tx.now
        ).rowcount
    )
