"""Forwarding: all events, or those that pass a filter, delivered to an endpoint in the order of their ids.

An endpoint has a cursor into the event log, so nothing is queued for one that answers. An event whose first attempt
fails is kept in `forward` with its body, beyond the log's retention, until it succeeds or its attempts are used up;
then it is a dead letter, which is kept for `replay`. Later events wait for it, unless the endpoint is not ordered. An
endpoint that was unavailable (disabled, or not allowed by the tier) for longer than the log's retention gets a `gap`
first.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from stonemux import addresses, attempts, directory, doorbells, events
from stonemux.clock import DAY_MS, rfc3339
from stonemux.endpoints import Endpoint, Outcome
from stonemux.errors import MuxError
from stonemux.events import Filter
from stonemux.payload import dumps
from stonemux.schema import shown
from stonemux.transaction import Event, Snapshot, Tx

MOST = 50
"""How many endpoints one daemon forwards to at most."""
SCAN = 500
"""How many events one query reads, and how far the cursor in the row may lag behind the events examined. It is less
than the number of events that the log always keeps, so a filter that matches nothing causes no gap."""
DEAD_KEPT_MS = 30 * DAY_MS
LISTED_DEAD = 100

WAITING, DEAD = 0, 1
"""The states of a row of `forward`: to be sent (again), or a dead letter."""


class Delivery(NamedTuple):
    """What is to be sent next to an endpoint."""

    row: Any
    """The row of the endpoint."""
    event_id: int
    wire_id: str
    kind: str
    body: bytes
    tries: int
    stored: bool
    """Whether it has a row in `forward`, because it has failed before or is replayed."""


# -- the list of endpoints


def add(
    tx: Tx,
    *,
    url: str,
    types: list[str] | None,
    channel: str | None,
    secret: str | None,
    ordered: bool,
    since: int | None,
    id: str | None,
) -> dict[str, Any]:
    """Forward events to a URL from now on, or change an endpoint; a disabled one is enabled again."""
    _check_url(tx, url)
    doorbells.check_secret(secret, "secret")
    if channel is not None:
        channel = directory.channel(tx, channel)["name"]
    before = _row(tx, id) if id is not None else None
    if before is None and tx.one("select count(*) from webhook where agent_id is null")[0] >= MOST:
        raise MuxError(
            "webhook_limit", f"events are already forwarded to {MOST} endpoints, the limit; remove one", limit=MOST
        )
    keys = attempts.secrets(tx, before, url, secret)
    head = tx.mux.store.head
    cursor = before["cursor"] if before is not None else head
    if since is not None:
        cursor = min(since, cursor)  # events that were not delivered yet are not skipped
    endpoint_id = before["id"] if before is not None else "wh-" + tx.mux.clock.token(6)
    tx.run(
        "insert into webhook (id, url, secret, old_secret, old_until, types, channel, ordered, cursor, created_at) "
        "values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) on conflict (id) do update set url = ?2, secret = ?3, "
        "old_secret = ?4, old_until = ?5, types = ?6, channel = ?7, ordered = ?8, cursor = ?9, failures = 0, "
        "failing_since = null, last_error = null, disabled_at = null, disabled_for = null",
        endpoint_id,
        url,
        keys.secret,
        keys.old,
        keys.until,
        dumps(types) if types else None,
        channel,
        int(ordered),
        cursor,
        tx.now,
    )
    tx.run(f"update forward set due_at = ? where webhook = ? and state = {WAITING}", tx.now, endpoint_id)
    now, endpoints = tx.now, tx.mux.endpoints

    def added() -> None:
        known = endpoints.forwards.get(endpoint_id)
        if known is None:
            endpoints.put(Endpoint(endpoint_id, None, now, sound=True, ordered=ordered))
        else:
            known.ordered, known.stopped, known.quiet = ordered, False, 0
            endpoints.set_due(known, now)
        endpoints.wake()

    tx.after(added)
    answer: dict[str, Any] = {"webhook": _view(tx, _row(tx, endpoint_id)), "created": before is None}
    if keys.made is not None:
        answer["secret"] = keys.made
    return answer


def _check_url(tx: Tx, url: str) -> None:
    try:
        addresses.check(url, doorbells.policy(tx))
    except addresses.ForbiddenURL as problem:
        raise problem.refusal("url") from None


def _row(rx: Snapshot, endpoint_id: str) -> Any:
    row = rx.one("select * from webhook where id = ? and agent_id is null", endpoint_id)
    if row is None:
        raise _unknown(rx, endpoint_id)
    return row


def _unknown(rx: Snapshot, endpoint_id: str) -> MuxError:
    known = [found[0] for found in rx.sql("select id from webhook where agent_id is null order by created_at, id")]
    return MuxError(
        "webhook_not_found",
        f"no endpoint {shown(endpoint_id)} exists. Known: {', '.join(known) or 'none'}",
        known_webhooks=known,
    )


def listed(rx: Snapshot) -> dict[str, Any]:
    """All endpoints and their state."""
    rows = rx.sql("select * from webhook where agent_id is null order by created_at, id")
    return {"webhooks": [_view(rx, row) for row in rows]}


def _view(rx: Snapshot, row: Any) -> dict[str, Any]:
    dead = rx.sql(f"select event_id from forward where webhook = ? and state = {DEAD} order by event_id", row["id"])
    waiting = rx.one(f"select count(*), min(due_at) from forward where webhook = ? and state = {WAITING}", row["id"])
    told: dict[str, Any] = {
        "id": row["id"],
        "url": doorbells.shown_url(row["url"]),
        "ordered": bool(row["ordered"]),
        "status": doorbells.status(row),
        "cursor": row["cursor"],
        "retrying": waiting[0],
        "dead": len(dead),
        "created_at": rfc3339(row["created_at"]),
    }
    if row["types"]:
        told["types"] = json.loads(row["types"])
    if row["channel"]:
        told["channel"] = row["channel"]
    if dead:
        told["dead_event_ids"] = [found[0] for found in dead[:LISTED_DEAD]]
    for name in ("failures", "last_error", "disabled_for"):
        if row[name]:
            told[name] = row[name]
    if waiting[1] is not None and row["disabled_at"] is None:
        told["retry_at"] = rfc3339(waiting[1])
    return told


def remove(tx: Tx, *, id: str) -> dict[str, Any]:
    """Stop forwarding to an endpoint and delete its dead letters."""
    _row(tx, id)
    tx.run("delete from webhook where id = ?", id)
    tx.run("delete from forward where webhook = ?", id)
    endpoints = tx.mux.endpoints

    def removed() -> None:
        if (known := endpoints.forwards.get(id)) is not None:
            endpoints.drop(known)

    tx.after(removed)
    return {"id": id, "removed": True}


def list_attempts(
    rx: Snapshot, *, id: str | None, agent_id: str | None, before: int | None, limit: int
) -> dict[str, Any]:
    """The attempts, newest first, for forwarding and doorbells alike."""
    found, more = attempts.listed(rx, id, agent_id, before, limit)
    if not found and before is None:  # only then, since attempts outlive their endpoint and agent
        if agent_id is not None:
            directory.agent(rx, agent_id)
        if id is not None and rx.one("select 1 from webhook where id = ?", id) is None:
            raise _unknown(rx, id)
    answer: dict[str, Any] = {"attempts": found}
    if more:
        answer["more"] = True
    return answer


# -- replaying


def replay(tx: Tx, *, id: str, since: int | None, event_ids: list[int] | None) -> dict[str, Any]:
    """Deliver again: everything after an event, or certain events, or (without either) all dead letters."""
    row = _row(tx, id)
    if since is not None and event_ids is not None:
        raise MuxError(
            "invalid_field", "since and event_ids cannot be combined; give only one of them", parameter="since"
        )
    answer: dict[str, Any] = {"id": id}
    if since is not None:
        since = min(since, row["cursor"])  # events that were not delivered yet are not skipped
        oldest = events.oldest(tx)
        # Events still in the log come again from there; for older ones, only the dead letters remain.
        tx.run("delete from forward where webhook = ? and event_id > ? and event_id >= ?", id, since, oldest)
        queued = _revive(tx, id, "event_id > ?", since)
        tx.run("update webhook set cursor = ? where id = ?", since, id)
        answer["since"] = since
        answer["queued"] = (
            queued + tx.one("select count(*) from event where id > ? and id <= ?", since, row["cursor"])[0]
        )
    elif event_ids is not None:
        answer["queued"] = sum(_replay_one(tx, row, event_id) for event_id in event_ids)
    else:
        answer["queued"] = _revive(tx, id, "1")
    now, endpoints = tx.now, tx.mux.endpoints

    def replayed() -> None:
        known = endpoints.forwards.get(id)
        if known is not None and row["disabled_at"] is None:
            endpoints.set_due(known, now)
            endpoints.wake()

    tx.after(replayed)
    return answer


def _revive(tx: Tx, endpoint_id: str, which: str, *values: Any) -> int:
    return tx.run(
        f"update forward set state = {WAITING}, tries = 0, due_at = ? where webhook = ? and state = {DEAD} and {which}",
        tx.now,
        endpoint_id,
        *values,
    ).rowcount


def _replay_one(tx: Tx, row: Any, event_id: int) -> int:
    if _revive(tx, row["id"], "event_id = ?", event_id):
        return 1
    if tx.one("select 1 from forward where webhook = ? and event_id = ?", row["id"], event_id):
        return 1  # it is being tried
    found = events.stored(tx, event_id - 1, 1)
    if not found or found[0].id != event_id:
        raise MuxError(
            "event_not_found",
            f"event {event_id} is not in the log (any longer, or yet) and is not a dead letter of this endpoint",
            event_id=event_id,
        )
    _keep(tx, row["id"], event_id, f"evt_{event_id}", found[0].kind, _body(found[0]), 0, tx.now, None)
    return 1


def _keep(
    tx: Tx,
    endpoint_id: str,
    event_id: int,
    wire_id: str,
    kind: str,
    body: bytes,
    tries: int,
    due: int,
    error: str | None,
) -> None:
    tx.run(
        "insert or replace into forward (webhook, event_id, wire_id, kind, body, tries, due_at, error, at) "
        "values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        endpoint_id,
        event_id,
        wire_id,
        kind,
        body.decode(),
        tries,
        due,
        error,
        tx.now,
    )


# -- delivering


def next_delivery(rx: Snapshot, endpoint: Endpoint) -> Delivery | int | None:
    """What to send now, or when there will be something, or None until an event arrives."""
    row = rx.one("select * from webhook where id = ? and disabled_at is null", endpoint.id)
    if row is None:
        return None
    order = "event_id" if row["ordered"] else "due_at, event_id"
    kept = rx.one(
        f"select * from forward where webhook = ? and state = {WAITING} order by {order} limit 1", endpoint.id
    )
    if kept is not None and kept["due_at"] <= rx.now:
        return Delivery(
            row, kept["event_id"], kept["wire_id"], kept["kind"], kept["body"].encode(), kept["tries"], True
        )
    if kept is not None and row["ordered"]:
        return int(kept["due_at"])
    fresh = _from_log(rx, endpoint, row)
    return fresh if fresh is not None or kept is None else int(kept["due_at"])


def _from_log(rx: Snapshot, endpoint: Endpoint, row: Any) -> Delivery | None:
    """The next event that passes the filter; those that do not are remembered in memory as examined."""
    head = rx.mux.log.head
    base = (row["cursor"], row["types"], row["channel"])
    cursor = min(endpoint.cursor if endpoint.base == base else row["cursor"], head)
    first = events.oldest(rx)
    if cursor + 1 < first:
        return Delivery(row, first - 1, f"gap_{first - 1}", "gap", _gap(rx, cursor, first), 0, False)
    wanted = Filter(channel=row["channel"], types=tuple(json.loads(row["types"] or "[]")))
    while page := events.stored(rx, cursor, SCAN):
        for event in page:
            if wanted.wants(event):
                return Delivery(row, event.id, f"evt_{event.id}", event.kind, _body(event), 0, False)
            cursor = event.id
        endpoint.base, endpoint.cursor = base, cursor
    return None


def lags(endpoint: Endpoint) -> bool:
    """Whether the cursor in the row should be moved up to the last event examined."""
    return endpoint.base is not None and endpoint.cursor - endpoint.base[0] >= SCAN


def move_up(tx: Tx, endpoint: Endpoint) -> None:
    """Move the cursor in the row up to the last event examined; no event in between passed the filter."""
    base = endpoint.base
    assert base is not None
    tx.run(
        "update webhook set cursor = ? where id = ? and cursor = ? and types is ? and channel is ?",
        endpoint.cursor,
        endpoint.id,
        *base,
    )


def _body(event: Event) -> bytes:
    head = {"type": event.kind, "timestamp": rfc3339(event.at), "id": event.id, "channel": event.channel}
    return f'{dumps(head)[:-1]},"data":{event.data}}}'.encode()


def _gap(rx: Snapshot, cursor: int, first: int) -> bytes:
    data = {"requested": cursor, "oldest": first, "head": rx.mux.log.head, "missed": first - 1 - cursor}
    return dumps({"type": "gap", "timestamp": rfc3339(rx.now), "id": first - 1, "channel": None, "data": data}).encode()


def record(tx: Tx, endpoint: Endpoint, delivery: Delivery, outcome: Outcome) -> None:
    """Store the outcome of a delivery, and schedule what follows."""
    now, tries, event_id = tx.now, delivery.tries + 1, delivery.event_id
    delays = attempts.FORWARD_DELAYS
    used_up = tries > len(delays)
    present = tx.one("select * from webhook where id = ?", endpoint.id)
    found = attempts.verdict(present or delivery.row, outcome, 0 if used_up else delays[tries - 1], tx.mux.clock, now)
    if present is not None and attempts.says_nothing_of(present, delivery.row, outcome):
        present = None
    failed = bool(outcome.error)
    again = failed and not used_up and not found.disabled_for
    retry_at = now + found.wait_ms
    attempts.note(
        tx,
        delivery.row,
        delivery.wire_id,
        delivery.kind,
        event_id,
        tries,
        outcome,
        retry_at if again and present is not None else None,
    )
    if present is None:  # the endpoint was removed or moved meanwhile
        return
    cursor = present["cursor"]
    if delivery.stored or cursor == delivery.row["cursor"]:  # else it was replayed meanwhile, and comes again
        _keep_or_forget(tx, endpoint, delivery, tries, retry_at, outcome, dead=used_up)
        cursor = cursor if delivery.stored else event_id
    tx.run(
        "update webhook set cursor = ?, failures = ?, failing_since = ?, last_error = ?, disabled_at = ?, "
        "disabled_for = ? where id = ?",
        cursor,
        found.failures,
        found.failing_since,
        outcome.error or None,
        now if found.disabled_for else None,
        found.disabled_for,
        endpoint.id,
    )
    if found.disabled_for:
        doorbells.announce_disabled(tx, present, found)
    endpoints = tx.mux.endpoints
    due = None if found.disabled_for else now  # an earlier event may have been replayed meanwhile

    def recorded() -> None:
        endpoint.sound, endpoint.stopped = not failed, bool(found.disabled_for)
        endpoint.quiet = now + (outcome.retry_after or 0) * 1000
        if found.failures > 1 and not present["ordered"]:  # do not try it with every event that comes
            endpoint.quiet = max(endpoint.quiet, now + min(found.wait_ms, doorbells.SOON_MS))
        if endpoints.forwards.get(endpoint.id) is endpoint:
            endpoints.set_due(endpoint, due)

    tx.after(recorded)


def _keep_or_forget(
    tx: Tx, endpoint: Endpoint, delivery: Delivery, tries: int, retry_at: int, outcome: Outcome, *, dead: bool
) -> None:
    key = (endpoint.id, delivery.event_id, delivery.wire_id)
    if not outcome.error:
        if delivery.stored:
            tx.run("delete from forward where webhook = ? and event_id = ? and wire_id = ?", *key)
        return
    if not delivery.stored:
        _keep(tx, *key, delivery.kind, delivery.body, tries, retry_at, outcome.error)
        return
    tx.run(
        "update forward set tries = ?, due_at = ?, error = ?, state = ?, at = ? "
        "where webhook = ? and event_id = ? and wire_id = ?",
        tries,
        None if dead else retry_at,
        outcome.error,
        DEAD if dead else WAITING,
        tx.now,
        *key,
    )


def load(rx: Snapshot) -> list[Endpoint]:
    """All endpoints, as stored; read at startup."""
    found = []
    for row in rx.sql("select id, failures, ordered, disabled_at from webhook where agent_id is null"):
        enabled = row["disabled_at"] is None
        due = rx.now if enabled else None
        found.append(Endpoint(row["id"], None, due, sound=not row["failures"], ordered=bool(row["ordered"])))
        found[-1].stopped = not enabled
    return found


def counts(rx: Snapshot) -> dict[str, int]:
    """How many endpoints, events waiting for another attempt, and dead letters there are."""
    waiting, dead = rx.one(f"select coalesce(sum(state = {WAITING}), 0), coalesce(sum(state = {DEAD}), 0) from forward")
    return {"endpoints": len(rx.mux.endpoints.forwards), "retrying": waiting, "dead": dead}


def purge(tx: Tx, most: int) -> int:
    """Delete up to `most` dead letters that nobody replayed within a month; returns how many."""
    return tx.run(
        "delete from forward where (webhook, event_id, wire_id) in "
        f"(select webhook, event_id, wire_id from forward where state = {DEAD} and at < ? limit ?)",
        tx.now - DEAD_KEPT_MS,
        most,
    ).rowcount
