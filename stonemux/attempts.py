"""What follows a delivery attempt (the next attempt and its time, or the end), and the list of all attempts.

A failed delivery is retried after the delays of its kind, each moved by up to a fifth either way so that retries do not
bunch up. `Retry-After` can postpone the next attempt, by an hour at most. An endpoint is disabled once it has failed
for a day and at least twenty times in a row, or as soon as it answers 410.
"""

from __future__ import annotations

from typing import Any

from stonemux.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, Clock, rfc3339
from stonemux.endpoints import Outcome
from stonemux.record import Record
from stonemux.signature import headers, make_secret
from stonemux.transaction import Snapshot, Tx

DOORBELL_DELAYS = (
    1 * SECOND_MS,
    5 * SECOND_MS,
    30 * SECOND_MS,
    2 * MINUTE_MS,
    10 * MINUTE_MS,
    30 * MINUTE_MS,
    1 * HOUR_MS,
)
"""The first attempt is made at once; the last delay repeats until a day has passed."""
DOORBELL_ENDS_MS = DAY_MS
FORWARD_DELAYS = (
    5 * SECOND_MS,
    5 * MINUTE_MS,
    30 * MINUTE_MS,
    2 * HOUR_MS,
    5 * HOUR_MS,
    10 * HOUR_MS,
    14 * HOUR_MS,
    20 * HOUR_MS,
    24 * HOUR_MS,
)
"""The delays of Standard Webhooks; after the last one the event is a dead letter."""
DISABLED_AFTER_MS = DAY_MS
DISABLED_AFTER_FAILURES = 20
ROTATION_MS = DAY_MS
"""How long deliveries are also signed with a replaced secret."""
KEPT = 100_000
"""How many attempts are listed at most, whatever their age."""


class Verdict(Record):
    """The state of an endpoint after an attempt."""

    failures: int
    """How many attempts in a row have failed."""
    failing_since: int | None
    disabled_for: str | None
    """Why no further attempt is made; None if the endpoint stays enabled."""
    wait_ms: int
    """How long to wait before the next attempt at the same delivery, if there is one."""


def verdict(row: Any, outcome: Outcome, delay_ms: int, clock: Clock, now: int) -> Verdict:
    """Judge an attempt at the endpoint of this row; the next attempt would come after `delay_ms`."""
    if not outcome.error:
        return Verdict(0, None, None, 0)
    failures = row["failures"] + 1
    since = row["failing_since"] or now
    disabled = None
    if outcome.gone:
        disabled = "it answered 410 Gone"
    elif failures >= DISABLED_AFTER_FAILURES and now - since >= DISABLED_AFTER_MS:
        disabled = f"{failures} attempts failed in a row, for {(now - since) // HOUR_MS} hours"
    wait_ms = max(jittered(delay_ms, clock), (outcome.retry_after or 0) * 1000)
    return Verdict(failures, since, disabled, wait_ms)


def says_nothing_of(present: Any, row: Any, outcome: Outcome) -> bool:
    """Whether an attempt failed at a URL that the endpoint has since left, so the failure does not count against it.

    The delivery is still tried at the new URL. If the old URL accepted it, it counts as delivered.
    """
    return bool(outcome.error) and present["url"] != row["url"]


def jittered(delay_ms: int, clock: Clock) -> int:
    """The delay, up to a fifth shorter or longer."""
    return delay_ms * (800 + int(clock.token(2), 16) % 401) // 1000


class Secrets(Record):
    """The secrets that an endpoint's deliveries are signed with from now on."""

    secret: str
    old: str | None = None
    """The replaced secret, which signs as well until `until`."""
    until: int | None = None
    made: str | None = None
    """The secret, if it was made just now; it is shown once."""


def secrets(tx: Tx, before: Any, url: str, given: str | None) -> Secrets:
    """The secrets of an endpoint with the row `before` (None for a new one) after a call that gave a secret, or None.

    A receiver at another `url` does not know the previous secret, and with a signature made with it, it could pose as
    us to the old receiver.
    """
    if before is None or before["url"] != url:
        if given is not None:
            return Secrets(given)
        made = make_secret(tx.mux.clock.token(32))
        return Secrets(made, made=made)
    if given is None or given == before["secret"]:
        return Secrets(before["secret"], before["old_secret"], before["old_until"])
    return Secrets(given, before["secret"], tx.now + ROTATION_MS)


def signed(row: Any, wire_id: str, body: bytes, clock: Clock) -> dict[str, str]:
    """The headers of one attempt, with a second signature while this row's secret is being replaced."""
    keys = [row["secret"]]
    if row["old_secret"] and clock.now_ms() < row["old_until"]:
        keys.append(row["old_secret"])
    return headers(keys, wire_id, clock.wall_ms() // 1000, body)


def note(
    tx: Tx, row: Any, wire_id: str, kind: str, subject: int, number: int, outcome: Outcome, retry_at: int | None
) -> None:
    """Add an attempt to the list. Neither what was sent nor what was answered is kept."""
    tx.run(
        "insert into attempt (webhook, agent_id, wire_id, kind, subject, try, at, ms, status, error, retry_at) "
        "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        row["id"],
        row["agent_id"],
        wire_id,
        kind,
        subject,
        number,
        tx.now - outcome.ms,
        outcome.ms,
        outcome.status,
        outcome.error or None,
        retry_at,
    )
    outcomes = tx.mux.endpoints.outcomes
    became = "failed" if outcome.error else "delivered"
    tx.after(lambda: outcomes.update({became: outcomes[became] + 1}))


def view(row: Any) -> dict[str, Any]:
    """An attempt as it is listed."""
    shown: dict[str, Any] = {
        "attempt_id": row["id"],
        "id": row["webhook"],
        "webhook_id": row["wire_id"],
        "type": row["kind"],
        "outcome": "failed" if row["error"] else "delivered",
        "status": row["status"],
        "at": rfc3339(row["at"]),
        "ms": row["ms"],
        "try": row["try"],
    }
    shown["message_id" if row["agent_id"] else "event_id"] = row["subject"]
    if row["agent_id"]:
        shown["agent_id"] = row["agent_id"]
    if row["error"]:
        shown["error"] = row["error"]
    if row["retry_at"] is not None:
        shown["retry_at"] = rfc3339(row["retry_at"])
    return shown


def listed(
    rx: Snapshot, webhook: str | None, agent_id: str | None, before: int | None, limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """Attempts, newest first, and whether there are more."""
    where, values = ["1"], list[Any]()
    for column, value in (("webhook = ?", webhook), ("agent_id = ?", agent_id), ("id < ?", before)):
        if value is not None:
            where.append(column)
            values.append(value)
    rows = rx.sql(
        f"select * from attempt where {' and '.join(where)} order by id desc limit ?",
        *values,
        limit + 1,
    )
    return [view(row) for row in rows[:limit]], len(rows) > limit


def purge(tx: Tx, before: int, most: int) -> int:
    """Delete up to `most` attempts that are older than `before` or in excess of `KEPT`; returns how many."""
    return tx.run(
        "delete from attempt where id in (select id from attempt where at < ?1 or id <= "
        "(select coalesce(max(id), 0) from attempt) - ?2 order by id limit ?3)",
        before,
        KEPT,
        most,
    ).rowcount
