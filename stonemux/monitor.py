"""Monitoring: the event log as JSON, counts, health, and Prometheus metrics."""

from __future__ import annotations

import json
from typing import Any

from stonemux import VERSION, directory, events, trays, webhooks
from stonemux.clock import rfc3339
from stonemux.events import Filter
from stonemux.mux import Caller, Mux, Wait
from stonemux.transaction import Event, Snapshot
from stonemux.trays import FRESH, LEASED, QUEUED
from stonemux.vocabulary import TASK_STATUSES


def event_filter(mux: Mux, *, types: list[str] | None, channel: str | None, agent_id: str | None) -> Filter:
    """A validated filter; raises for unknown channels and agents."""
    if channel is not None or agent_id is not None:
        with mux.store.read() as rx:
            if channel is not None:
                channel = directory.channel(rx, channel)["name"]
            if agent_id is not None:
                directory.agent(rx, agent_id)
    return Filter(channel=channel, agent_id=agent_id, types=tuple(types or ()))


def list_events(
    mux: Mux,
    caller: Caller,
    *,
    after: int,
    types: list[str] | None,
    channel: str | None,
    agent_id: str | None,
    limit: int,
    timeout: int,
) -> Wait:
    """The event log after an id, as JSON; with `timeout`, waits for the first event that passes the filter."""
    wanted = event_filter(mux, types=types, channel=channel, agent_id=agent_id)
    deadline = mux.clock.ticks_ms() + timeout * 1000
    cursor = after

    def attempt() -> dict[str, Any] | None:
        nonlocal cursor
        answer = _events_after(mux, cursor, wanted, limit)
        if answer["events"] or "gap" in answer or "reset" in answer:
            return answer
        cursor = answer["next"]
        return None

    def give_up() -> dict[str, Any]:
        return {"events": [], "head": mux.log.head, "next": cursor}

    return Wait((("events",),), attempt, give_up, deadline, agent_id or "")


def _events_after(mux: Mux, after: int, wanted: Filter, limit: int) -> dict[str, Any]:
    head = mux.log.head
    if after > head:
        return {"events": [], "head": head, "next": head, "reset": {"requested": after, "head": head}}
    with mux.store.read() as rx:
        head = mux.log.head  # before the first query, with which the snapshot begins: it has every event up to here
        gap = gap_after(rx, after)
        found = events.stored(rx, after if gap is None else gap["oldest"] - 1, limit, wanted, head)
    through = found[-1].id if events.is_cut(found, limit) else head
    answer: dict[str, Any] = {"events": [event_view(event) for event in found], "head": head, "next": through}
    if gap is not None:
        answer["gap"] = gap
    if through < head:
        answer["more"] = True
    return answer


def gap_after(rx: Snapshot, after: int) -> dict[str, Any] | None:
    """What a reader at `after` has missed because it is no longer stored; None if nothing is missing."""
    first = events.oldest(rx)
    if after + 1 >= first:
        return None
    return {
        "requested": after,
        "oldest": first,
        "head": rx.mux.log.head,
        "missed": first - 1 - after,
        "resync": ["/msg/poll", "/task/list", "/state/list"],
    }


def event_view(event: Event) -> dict[str, Any]:
    """An event in its JSON form."""
    return {
        "id": event.id,
        "type": event.kind,
        "channel": event.channel,
        "at": rfc3339(event.at),
        "data": json.loads(event.data),
    }


_UNREAD = (
    f"select (select count(*) from delivery indexed by delivery_open where state = {QUEUED} and priority = 0) "
    f"+ (select count(*) from delivery indexed by delivery_urgent where state = {QUEUED} and priority <> 0) "
    f"+ (select count(*) from delivery indexed by delivery_leased where state = {LEASED}) "
    f"+ (select count(*) from delivery where message_id > {trays.FILED} and state = {FRESH})"
)


def stats(rx: Snapshot) -> dict[str, Any]:
    """Counts of everything there is."""
    mux = rx.mux
    active, stale = mux.presence.counts()
    by_status = dict.fromkeys(TASK_STATUSES, 0)
    for status, count in rx.sql("select status, count(*) from task group by channel, status"):  # as in the index
        by_status["pending" if status == "delayed" else status] += count
    stored, last = rx.one("select count(*), coalesce(max(id), 0) from message")
    return {
        "version": VERSION,
        "tier": mux.tier,
        "uptime": (rx.now - mux.started_at) // 1000,
        "agents": {"active": active, "stale": stale, "total": active + stale},
        "messages": {
            "stored": stored,
            "sent": max(stored, last - mux.store.skipped),  # ids jump when a database goes back in time
            "unread": rx.one(_UNREAD)[0],
        },
        "tasks": by_status,
        "state_keys": rx.one("select count(*) from state where not deleted")[0],
        "channels": rx.one("select count(*) from channel")[0],
        "waiters": mux.waiters.count,
        "doorbells": {
            "hung": len(mux.endpoints.bells),
            "pending": rx.one("select count(*) from webhook where wire_id is not null and disabled_at is null")[0],
        },
        "forwarding": webhooks.counts(rx),
        "deliveries": dict(mux.endpoints.outcomes),
        "events": {"head": mux.log.head, "oldest": events.oldest(rx)},
        "storage": mux.store.size(),
    }


def health(mux: Mux, caller: Caller) -> dict[str, Any]:
    """Whether the daemon works; does not touch the disk, so that it answers even when the disk does not."""
    return {
        "status": "failing" if mux.store.fatal is not None or mux.store.damage else "ok",
        "version": VERSION,
        "tier": mux.tier,
        "uptime": (mux.clock.now_ms() - mux.started_at) // 1000,
    }


METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics(rx: Snapshot) -> str:
    """The counts of `stats` in the Prometheus text format, version 0.0.4."""
    found = stats(rx)
    lines: list[str] = []

    def metric(name: str, kind: str, text: str, values: dict[str, int]) -> None:
        lines.append(f"# HELP stonemux_{name} {text}")
        lines.append(f"# TYPE stonemux_{name} {kind}")
        lines.extend(f"stonemux_{name}{labels} {value}" for labels, value in values.items())

    def labeled(label: str, values: dict[str, int]) -> dict[str, int]:
        return {f'{{{label}="{name}"}}': value for name, value in values.items()}

    metric(
        "info",
        "gauge",
        "Version and tier of the running daemon.",
        {f'{{version="{VERSION}",tier="{found["tier"]}"}}': 1},
    )
    metric("uptime_seconds", "gauge", "Seconds since the start.", {"": found["uptime"]})
    agents = {name: found["agents"][name] for name in ("active", "stale")}
    metric("agents", "gauge", "Registered agents.", labeled("status", agents))
    metric("messages_sent_total", "counter", "Messages ever sent.", {"": found["messages"]["sent"]})
    metric("messages_unread", "gauge", "Deliveries that are not settled.", {"": found["messages"]["unread"]})
    metric("tasks", "gauge", "Tasks that are kept.", labeled("status", found["tasks"]))
    metric("state_keys", "gauge", "Live keys of shared state.", {"": found["state_keys"]})
    metric("channels", "gauge", "Channels.", {"": found["channels"]})
    metric("waiters", "gauge", "Parked calls and streams.", {"": found["waiters"]})
    metric("doorbells", "gauge", "Agents with a doorbell.", {"": found["doorbells"]["hung"]})
    metric("doorbells_pending", "gauge", "Doorbells that are to ring.", {"": found["doorbells"]["pending"]})
    metric("forwarding", "gauge", "Forwarding endpoints, and their events.", labeled("what", found["forwarding"]))
    outcomes = labeled("outcome", found["deliveries"])
    metric("deliveries_total", "counter", "Attempts at deliveries to webhooks since the start.", outcomes)
    metric("events_total", "counter", "Events ever written.", {"": found["events"]["head"]})
    metric("storage_bytes", "gauge", "Size of the files.", labeled("file", found["storage"]))
    return "\n".join(lines) + "\n"
