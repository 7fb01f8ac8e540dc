"""Doorbells: webhooks that notify an agent that does not poll when it has mail.

A ring is thin, because the inbox holds the mail: it says for whom, which message, and how many are unread. So one
pending ring per agent is enough; a newer ring replaces it, under its own id. The ring is written in the transaction of
its message; `outbound` delivers it.

A ring that replaces a failed one does not restart the retry schedule, or a broken doorbell would be tried with every
message to its agent. It is tried within seconds, though, since the agent may be back.
"""

from __future__ import annotations

import shlex
from typing import Any

from stonemux import addresses, attempts, bellcommand, signature
from stonemux.addresses import Policy
from stonemux.clock import rfc3339
from stonemux.endpoints import Endpoint, Outcome
from stonemux.errors import MuxError
from stonemux.payload import dumps
from stonemux.transaction import Snapshot, Tx

SOON_MS = 5_000
"""The longest wait of a new ring for a doorbell that failed."""

KIND = "inbox.message"


def policy(rx: Snapshot) -> Policy:
    """What the settings allow, and where this daemon listens."""
    settings = rx.mux.settings
    return Policy.of(settings, rx.mux.endpoints.own_port or settings.port)


# -- having one


def hang(tx: Tx, agent_id: str, url: str | None, secret: str | None) -> str | None:
    """Set an agent's doorbell, or remove it (an empty `url`); returns the secret if one was made.

    Without a `url` the agent keeps the doorbell it has. A disabled doorbell is enabled again.
    """
    if url == "":
        take_down(tx, agent_id)
        return None
    if url is None and agent_id not in tx.mux.endpoints.bells:
        return None
    before = find(tx, agent_id)
    if url is None:
        if before is None:  # removed in this very batch
            return None
        url = before["url"]
    keys = attempts.secrets(tx, before, url, secret)
    pending = before["wire_id"] if before is not None else None
    due = tx.now if pending else None
    bell_id = before["id"] if before is not None else "db-" + tx.mux.clock.token(6)
    tx.run(
        "insert into webhook (id, agent_id, url, secret, old_secret, old_until, created_at) "
        "values (?1, ?2, ?3, ?4, ?5, ?6, ?7) on conflict (id) do update set url = ?3, secret = ?4, old_secret = ?5, "
        "old_until = ?6, due_at = ?8, tries = 0, failures = 0, failing_since = null, last_error = null, "
        "disabled_at = null, disabled_for = null",
        bell_id,
        agent_id,
        url,
        keys.secret,
        keys.old,
        keys.until,
        tx.now,
        due,
    )
    endpoints = tx.mux.endpoints

    def hung() -> None:
        old = endpoints.bells.get(agent_id)
        if old is None:
            endpoints.put(Endpoint(bell_id, agent_id, due, sound=True))
        else:
            old.quiet = 0
            endpoints.set_due(old, due)
        if due is not None:
            endpoints.wake()

    tx.after(hung)
    return keys.made


def check(tx: Tx, agent_id: str, url: str | None, secret: str | None) -> None:
    """Refuse a doorbell that could never be rung, before anything is written."""
    if secret is not None and not url and (url == "" or find(tx, agent_id) is None):
        raise MuxError(
            "missing_field",
            "webhook_secret needs a webhook_url: it signs the deliveries to that URL",
            parameter="webhook_url",
        )
    try:
        if url and url.startswith(bellcommand.SCHEME):
            bellcommand.check(url, tx.mux.settings.webhooks_exec)
        elif url:
            addresses.check(url, policy(tx))
    except addresses.ForbiddenURL as problem:
        raise problem.refusal("webhook_url") from None
    check_secret(secret, "webhook_secret")


def check_secret(secret: str | None, parameter: str) -> None:
    """Refuse a secret that no receiver could verify with."""
    if secret is not None and signature.secret_bytes(secret) is None:
        raise MuxError(
            "invalid_field",
            f"{parameter} must be whsec_ and the base64 of {signature.LEAST_BYTES} to {signature.MOST_BYTES} random "
            "bytes; if omitted, one is generated",
            parameter=parameter,
        )


def take_down(tx: Tx, agent_id: str) -> None:
    """Remove an agent's doorbell along with any pending ring."""
    if agent_id not in tx.mux.endpoints.bells and find(tx, agent_id) is None:
        return
    tx.run("delete from webhook where agent_id = ?", agent_id)
    endpoints = tx.mux.endpoints

    def taken() -> None:
        endpoint = endpoints.bells.get(agent_id)
        if endpoint is not None:
            endpoints.drop(endpoint)

    tx.after(taken)


def find(rx: Snapshot, agent_id: str) -> Any:
    """The row of an agent's doorbell, or None."""
    return rx.one("select * from webhook where agent_id = ?", agent_id)


def view(rx: Snapshot, agent_id: str) -> dict[str, Any] | None:
    """An agent's doorbell as answers show it: without its secret and without the URL's query."""
    row = find(rx, agent_id)
    if row is None:
        return None
    shown: dict[str, Any] = {"id": row["id"], "url": shown_url(row["url"]), "status": status(row)}
    if row["failures"]:
        shown["failures"] = row["failures"]
    if row["last_error"]:
        shown["last_error"] = row["last_error"]
    if row["due_at"] is not None:
        shown["pending"] = row["message_id"]
    return shown


def shown_url(url: str) -> str:
    """A URL without the parts that are often secret: its query, or the arguments of a command.

    If it leads to another machine, its path is left out as well: at many services, the path is the password.
    """
    if url.startswith(bellcommand.SCHEME):
        return bellcommand.SCHEME + shlex.split(url.removeprefix(bellcommand.SCHEME))[0]
    target = addresses.parse(url)
    if addresses.is_local(target):
        base, question, _ = url.partition("?")
        return base + ("?…" if question else "")
    return url if target.path == "/" else f"{target.origin}/…"


def status(row: Any) -> str:
    """The state of an endpoint, in one word."""
    if row["disabled_at"] is not None:
        return "disabled"
    return "failing" if row["failures"] else "active"


# -- ringing


def ring(tx: Tx, bell: Endpoint, message_id: int, unread: int) -> None:
    """Make a doorbell ring for a message, in the message's transaction."""
    wire_id = "ring_" + tx.mux.clock.token(12)
    due = tx.now if bell.sound or bell.due is None else min(bell.due, tx.now + SOON_MS)
    due = max(due, bell.quiet)
    rung = tx.run(
        "update webhook set wire_id = ?, message_id = ?, unread = ?, asked_at = ?, due_at = ? "
        "where id = ? and disabled_at is null",
        wire_id,
        message_id,
        unread,
        tx.now,
        due,
        bell.id,
    ).rowcount
    if rung:
        endpoints = tx.mux.endpoints

        def asked() -> None:
            endpoints.set_due(bell, due)
            endpoints.wake()

        tx.after(asked)


def pending(rx: Snapshot, bell_id: str) -> Any:
    """The row of a doorbell with a pending ring, or None."""
    return rx.one("select * from webhook where id = ? and wire_id is not null and disabled_at is null", bell_id)


def body(row: Any) -> bytes:
    """The body of a ring; the same at every attempt."""
    return dumps(
        {
            "type": KIND,
            "timestamp": rfc3339(row["asked_at"]),
            "data": {"agent_id": row["agent_id"], "message_id": row["message_id"], "unread": row["unread"]},
        }
    ).encode()


def record(tx: Tx, bell: Endpoint, row: Any, outcome: Outcome) -> None:
    """Store the outcome of the ring that was pending in `row`, and schedule what follows."""
    now, tries = tx.now, row["tries"] + 1
    delays = attempts.DOORBELL_DELAYS
    found = attempts.verdict(row, outcome, delays[min(tries, len(delays)) - 1], tx.mux.clock, now)
    present = tx.one("select * from webhook where id = ?", bell.id)
    if present is None or attempts.says_nothing_of(present, row, outcome):  # removed or moved meanwhile
        attempts.note(tx, row, row["wire_id"], KIND, row["message_id"], tries, outcome, None)
        return
    replaced = present["wire_id"] != row["wire_id"]
    over = now - row["asked_at"] >= attempts.DOORBELL_ENDS_MS
    again = not found.disabled_for and (replaced or (bool(outcome.error) and not over))
    quiet = now + (outcome.retry_after or 0) * 1000
    due = now + found.wait_ms
    if replaced:
        due = max(min(due, now + SOON_MS), quiet)
    attempts.note(
        tx, row, row["wire_id"], KIND, row["message_id"], tries, outcome, due if again and not replaced else None
    )
    tx.run(
        "update webhook set failures = ?1, failing_since = ?2, last_error = ?3, tries = ?4, due_at = ?5, "
        "notified_through = max(notified_through, ?6), notified_at = coalesce(?7, notified_at), disabled_at = ?8, "
        "disabled_for = ?9, wire_id = case when ?5 is null then null else wire_id end where id = ?10",
        found.failures,
        found.failing_since,
        outcome.error or None,
        tries if outcome.error and again else 0,
        due if again else None,
        0 if outcome.error else row["message_id"],
        None if outcome.error else now,
        now if found.disabled_for else None,
        found.disabled_for,
        bell.id,
    )
    if found.disabled_for:
        announce_disabled(tx, row, found)

    endpoints = tx.mux.endpoints

    def recorded() -> None:
        bell.sound = not outcome.error
        bell.quiet = quiet
        endpoints.set_due(bell, due if again else None)

    tx.after(recorded)


def announce_disabled(tx: Tx, row: Any, found: attempts.Verdict) -> None:
    """Announce that an endpoint is no longer tried."""
    told = {"id": row["id"], "url": shown_url(row["url"]), "reason": found.disabled_for, "failures": found.failures}
    if row["agent_id"]:
        told["agent_id"] = row["agent_id"]
    tx.emit("webhook_disabled", dumps(told), agents=(row["agent_id"],) if row["agent_id"] else ())


def notified(rx: Snapshot, agent_id: str, message_id: int) -> int | None:
    """When an agent's doorbell rang for this message or a later one; None if it did not."""
    if agent_id not in rx.mux.endpoints.bells:
        return None
    row = rx.one("select notified_at from webhook where agent_id = ? and notified_through >= ?", agent_id, message_id)
    return int(row[0]) if row is not None else None


def load(rx: Snapshot) -> list[Endpoint]:
    """All doorbells, as stored; read at startup."""
    return [
        Endpoint(row["id"], row["agent_id"], row["due_at"], sound=not row["failures"])
        for row in rx.sql("select id, agent_id, due_at, failures from webhook where agent_id is not null")
    ]
