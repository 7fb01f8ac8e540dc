"""The directory of agents: registering, deregistering, heartbeats, and discovery."""

from __future__ import annotations

import json
from typing import Any

from stonemux import directory, doorbells, messages, tasks
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.payload import dumps
from stonemux.transaction import Snapshot, Tx
from stonemux.vocabulary import AGENT_CHANNEL_PREFIX, EVERYBODY, SYSTEM, generate_agent_channel_name


def view(rx: Snapshot, row: Any) -> dict[str, Any]:
    """An agent as answers show it."""
    shown: dict[str, Any] = {
        "id": row["id"],
        "role": row["role"],
        "capabilities": json.loads(row["capabilities"]),
        "group": row["grp"],
        "channel": row["channel"],
        "status": rx.mux.presence.status(row["id"]),
        "registered_at": rfc3339(row["registered_at"]),
        "last_heartbeat": rfc3339(max(row["last_heartbeat"], rx.mux.presence.last(row["id"]))),
    }
    if row["activity"]:
        shown["activity"] = row["activity"]
    if row["ack"] != "plain":
        shown["ack"] = row["ack"]
    if row["metadata"]:
        shown["metadata"] = json.loads(row["metadata"])
    return shown


def register(
    tx: Tx,
    *,
    agent_id: str,
    role: str | None,
    capabilities: list[str] | None,
    group: str | None,
    channel: str,
    ack: str,
    metadata: dict[str, Any] | None,
    webhook_url: str | None,
    webhook_secret: str | None,
) -> dict[str, Any]:
    """Add an agent to the directory or replace its record; creates and joins its home channel and its own channel."""
    if (home := directory.channel_called(tx, channel)) is not None:
        channel = home["name"]
    _check_names(agent_id, channel)
    doorbells.check(tx, agent_id, webhook_url, webhook_secret)
    before = directory.find_agent(tx, agent_id)
    if before is None:
        _check_limit(tx)
    tx.forget()
    tx.run(
        "insert into agent (id, role, capabilities, grp, channel, metadata, ack, registered_at, last_heartbeat) "
        "values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8) on conflict (id) do update set role = ?2, capabilities = ?3, "
        "grp = ?4, channel = ?5, metadata = ?6, ack = ?7, last_heartbeat = ?8, deregistered_at = null, "
        "registered_at = case when deregistered_at is null then registered_at else ?8 end",
        agent_id,
        role,
        dumps(capabilities or []),
        group,
        channel,
        dumps(metadata) if metadata else None,
        ack,
        tx.now,
    )
    if before is not None and before["channel"] != channel:
        tx.run("delete from member where channel = ? and agent_id = ?", before["channel"], agent_id)
    for name in (channel, generate_agent_channel_name(agent_id)):
        if directory.find_channel(tx, name) is None:
            directory.make_channel(tx, name, created_by=agent_id)
        directory.join(tx, name, agent_id)
    tx.after(lambda: tx.mux.presence.add(agent_id, ack))
    made = doorbells.hang(tx, agent_id, webhook_url, webhook_secret)
    tx.touch(("agent", agent_id))  # its waiting claims check whether they still wait for the right tasks
    created = before is None
    tx.emit(
        "agent_registered",
        dumps({"agent_id": agent_id, "role": role, "channel": channel, "created": created}),
        channel=channel,
        agents=(agent_id,),
    )
    shown = view(tx, directory.agent(tx, agent_id))
    shown["status"] = "active"  # presence, which `view` asks, learns of it only after the commit
    shown["last_heartbeat"] = rfc3339(tx.now)
    answer: dict[str, Any] = {"agent": shown, "created": created}
    if made is not None:
        answer["webhook_secret"] = made
    return answer


def _check_names(agent_id: str, channel: str) -> None:
    """Refuse an id that has another meaning, and a home channel that is another agent's own channel."""
    if agent_id in (SYSTEM, EVERYBODY) or agent_id.startswith(directory.ADDRESS_PREFIXES):
        raise MuxError(
            "reserved_name",
            f"agent_id {agent_id!r} is reserved: it must not be {SYSTEM!r} or {EVERYBODY!r} or begin with "
            f"{', '.join(directory.ADDRESS_PREFIXES)}",
            parameter="agent_id",
        )
    if channel.startswith(AGENT_CHANNEL_PREFIX) and channel != generate_agent_channel_name(agent_id):
        raise MuxError(
            "reserved_name",
            f"channel begins with {AGENT_CHANNEL_PREFIX!r}, which is reserved for agents' own channels; choose "
            "another home channel, or join this one later with channel.join",
            parameter="channel",
        )


def _check_limit(tx: Tx) -> None:
    tier, seats = tx.mux.entitlement.tier, tx.mux.entitlement.seats
    if seats is None:
        return
    count = tx.one("select count(*) from agent where deregistered_at is null")[0]
    if count >= seats:
        whose, remedy = "the free tier", "a Pro or Enterprise key"
        needed: dict[str, Any] = {"needed": "pro"}
        if tier != "free":  # a higher tier alone would not help
            whose, remedy = "this license", "a license for more agents"
            needed = {"needed": tier, "needed_seats": count + 1}
        raise MuxError(
            "agent_limit",
            f"{whose} allows {seats} agent{'s' * (seats != 1)}; registered: {count}; deregister one that you do not "
            f"need, or activate {remedy}",
            limit=seats,
            tier=tier,
            **needed,
        )


def deregister(tx: Tx, *, agent_id: str, release_claims: bool) -> dict[str, Any]:
    """Remove an agent from the directory. Its pending messages are kept for when it registers again."""
    row = directory.agent(tx, agent_id)
    tx.forget()
    tx.run("update agent set deregistered_at = ?, last_heartbeat = ? where id = ?", tx.now, tx.now, agent_id)
    tx.run("delete from member where agent_id = ?", agent_id)
    released = tasks.release_all(tx, agent_id, "its agent was deregistered") if release_claims else 0
    doorbells.take_down(tx, agent_id)
    tx.after(lambda: tx.mux.presence.remove(agent_id))
    tx.touch(("inbox", agent_id))  # its parked polls and claims look again and find that their agent is gone
    tx.touch(("agent", agent_id))
    tx.emit("agent_deregistered", dumps({"agent_id": agent_id}), channel=row["channel"], agents=(agent_id,))
    answer: dict[str, Any] = {
        "agent_id": agent_id,
        "deregistered": True,
        "pending_messages": messages.unread(tx, agent_id),
    }
    if released:
        answer["released_claims"] = released
    return answer


def heartbeat(tx: Tx, *, agent_id: str, status: str | None) -> dict[str, Any]:
    """Record a heartbeat, optionally with a line on what the agent is doing."""
    row = directory.agent(tx, agent_id)
    if status is not None and status != row["activity"]:
        tx.forget()
        tx.run("update agent set activity = ? where id = ?", status or None, agent_id)
    now = tx.mux.presence.beat(agent_id)
    return {"agent_id": agent_id, "status": "active", "last_heartbeat": rfc3339(now)}


def discover(
    rx: Snapshot,
    *,
    role: str | None,
    group: str | None,
    capability: str | None,
    status: str | None,
    channel: str | None,
    include_stale: bool,
    limit: int | None,
    after: str | None,
) -> dict[str, Any]:
    """Registered agents that match the filters, by id; stale ones only when asked for."""
    where, values = ["deregistered_at is null and id > ?"], [after or ""]
    if role is not None:
        where.append("role = ?")
        values.append(role)
    if group is not None:
        where.append("grp = ?")
        values.append(group)
    if capability is not None:
        where.append("exists (select 1 from json_each(capabilities) where value = ?)")
        values.append(capability)
    if channel is not None:
        name = directory.channel(rx, channel)["name"]
        where.append("exists (select 1 from member where channel = ? and agent_id = agent.id)")
        values.append(name)
    wanted = (status,) if status else ("active", "stale") if include_stale else ("active",)
    found = (view(rx, row) for row in rx.sql(f"select * from agent where {' and '.join(where)} order by id", *values))
    agents = [agent for agent in found if agent["status"] in wanted]
    if limit is not None and len(agents) > limit:
        return {"agents": agents[:limit], "more": True}
    return {"agents": agents}


def get(rx: Snapshot, *, agent_id: str) -> dict[str, Any]:
    """One agent with its unread count, claims, and channels."""
    row = directory.agent(rx, agent_id)
    shown = view(rx, row)
    shown["unread"] = messages.unread(rx, agent_id)
    shown["claimed_tasks"] = rx.one("select count(*) from task where owner = ? and status = 'claimed'", agent_id)[0]
    shown["channels"] = directory.channels_of(rx, agent_id)
    shown["agent_channel"] = generate_agent_channel_name(agent_id)
    if (doorbell := doorbells.view(rx, agent_id)) is not None:
        shown["doorbell"] = doorbell
    return {"agent": shown}


def notify(
    tx: Tx, *, agent_id: str, type: str, content: str, metadata: dict[str, Any] | None, sender: str | None
) -> dict[str, Any]:
    """Put a notification into an agent's own channel, and so into its inbox only."""
    directory.agent(tx, agent_id)
    if sender is not None:
        directory.agent(tx, sender, "from")
    channel = generate_agent_channel_name(agent_id)
    message_id = messages.post(
        tx,
        sender=sender or SYSTEM,
        to=agent_id,
        content=content,
        channel=channel,
        type=type,
        metadata=(metadata or {}) | {"type": type},
        recipients=[agent_id],
    )
    return {"message_id": message_id, "channel": channel}


def stale(tx: Tx, agent_ids: list[str]) -> None:
    """Announce agents that have not been heard from for too long."""
    for agent_id in agent_ids:
        row = directory.find_agent(tx, agent_id)
        if row is not None:
            tx.emit(
                "agent_stale",
                dumps({"agent_id": agent_id, "last_heartbeat": rfc3339(tx.mux.presence.last(agent_id))}),
                channel=row["channel"],
                agents=(agent_id,),
            )


def note_heartbeats(tx: Tx, seen: list[tuple[int, str]]) -> None:
    """Store when agents were last heard from."""
    tx.many("update agent set last_heartbeat = ? where id = ?", [(at, agent_id) for at, agent_id in seen])


def registered(rx: Snapshot) -> list[tuple[str, str]]:
    """The ids of all registered agents, each with how its polls acknowledge (its `ack`)."""
    return [(row[0], row[1]) for row in rx.sql("select id, ack from agent where deregistered_at is null")]
