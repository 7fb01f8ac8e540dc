"""The audit log: who changed what, and who was refused, in a hash chain that reveals tampering (`chain`).

A call that changes something is recorded in the same transaction as its effect: both are committed, or neither is.
Calls without an effect (refusals, and replays of an earlier answer) go through the `blotter` and are recorded within
about a second. Reads, and calls that changed nothing and were not refused (a heartbeat, a claim that found nothing),
are not recorded.

Records hold names, ids, and one hash: `body_sha256`, over the call's parameters as canonical JSON, without nulls and
the idempotency key, so it is the same over every face. Contents, tokens, and keys are never recorded.

What is not a call, such as a start or a change of the tier, is noted with `mux.blotter.note(Entry(...))`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from stonemux import chain
from stonemux.chain import START, Entry
from stonemux.clock import moment
from stonemux.errors import MuxError
from stonemux.mux import Caller, Mux
from stonemux.payload import encoder
from stonemux.schema import TARGETS, Operation, shown
from stonemux.transaction import Snapshot, Tx, Work

log = logging.getLogger("stonemux")

GUARDED = (401, 403, 421)
"""Statuses of refusals that are recorded even for a read, because the caller was not allowed to ask."""
MADE = ("webhook", "document")
"""Fields of an answer that show a newly made object in full, including its `id`."""

_canonical = encoder(sort_keys=True)


def body_of(given: Mapping[str, Any]) -> bytes:
    """The canonical JSON of a call's parameters."""
    if None in given.values():
        given = {name: value for name, value in given.items() if value is not None}
    return _canonical(given).encode("utf-8", "surrogatepass")


# -- calls


def entered(operation: Operation, args: Mapping[str, Any], body_sha256: str, caller: Caller, work: Work) -> Work:
    """The work of a call that changes something, wrapped so that it also records itself in the log."""

    def work_and_entry(tx: Tx) -> Any:
        changes = tx.changes
        answer = work(tx)
        if tx.changes != changes and answer is not None:
            tx.record(_entry(operation, args, answer, "ok", caller, body_sha256))
        return answer

    return work_and_entry


def act(operation: Operation, args: Mapping[str, Any], answer: Any, caller: Caller, body_sha256: str) -> Work:
    """The work that records a call whose effect lies outside the database and has already happened."""
    return lambda tx: tx.record(_entry(operation, args, answer, "ok", caller, body_sha256))


def _entry(
    operation: Operation, args: Mapping[str, Any], answer: Any, outcome: str, caller: Caller, body_sha256: str
) -> Entry:
    targets = operation.targets
    target = args.get(targets[0]) if targets else None
    if type(target) is not str:
        target = _target(targets, args, answer)
    return Entry(
        operation.name,
        _actor(args.get(operation.by) if operation.by else None, caller),
        target,
        args.get("channel") or "",
        outcome,
        caller.request_id,
        body_sha256,
    )


def _actor(named: str | None, caller: Caller) -> str:
    """Who acts: the token's owner, followed by the agent that the call names if that is a different one."""
    if caller.principal is None:
        return named or ""
    whose = caller.principal.name
    return whose if named is None or named == whose else f"{whose} as {named}"


def _target(targets: tuple[str, ...], args: Mapping[str, Any], answer: Any) -> str:
    found = [args[name] for name in targets]
    if type(answer) is dict:
        found += [answer.get(name) for name in TARGETS]
        found += [made["id"] for name in MADE if type(made := answer.get(name)) is dict]
    return next((str(one) for one in found if type(one) in (str, int)), "")


def note(
    mux: Mux, operation: Operation, args: Mapping[str, Any], caller: Caller, outcome: str, body_sha256: str
) -> None:
    """Note a call that had no effect: refused with the code `outcome`, or `replayed`."""
    mux.blotter.note(_entry(operation, args, None, outcome, caller, body_sha256))


def note_unread(mux: Mux, operation: Operation, given: Mapping[str, Any], caller: Caller, outcome: str) -> None:
    """Note a call that was refused before its parameters were validated; none of them is recorded."""
    actor = given.get(operation.actor) if operation.actor else None
    known = actor if isinstance(actor, str) and mux.presence.knows(actor) else None
    mux.blotter.note(Entry(operation.name, _actor(known, caller), outcome=outcome, request_id=caller.request_id))


def enter_noted(mux: Mux, *, all_of_it: bool = False) -> None:
    """Write the blotter's entries to the log; if the store raises, gives them back for the next time and re-raises."""
    entries = mux.blotter.take(all_of_it=all_of_it)
    if not entries:
        return

    def work(tx: Tx) -> None:
        for entry in entries:
            tx.record(entry)

    try:
        mux.store.write(work, grows=True)
    except BaseException:
        mux.blotter.give_back(entries)
        raise


def enter_off(tx: Tx) -> None:
    """Record, once, that nothing is recorded from here on."""
    last = tx.one("select action from audit order by seq desc limit 1")
    if last is not None and last["action"] != "audit.off":
        tx.record(Entry("audit.off"))


# -- reading


READ_AT_ONCE = 500
"""Records read in one snapshot; a client may pause for any time between two snapshots."""


def export(mux: Mux, *, since: str | None, format: str) -> Iterator[str]:
    """The log as JSON lines: a checkpoint if earlier records were purged, the records, a trailer with their count."""
    with mux.store.read() as rx:
        first, last = _ends(rx)
        after = _after(rx, since, first, last)
        opening = ""
        if after < first - 1:
            opening, after = _checkpoint(rx) + "\n", first - 1
        prev, head = _hash(rx, after, first), _hash(rx, last, first)
    return _lines(mux, opening, after, prev, last, head)


def _hash(rx: Snapshot, seq: int, first: int) -> str:
    """The hash of a record, which may be the last purged one."""
    if seq >= first:
        found: bytes = rx.one("select hash from audit where seq = ?", seq)["hash"]
        return found.hex()
    return START if seq == 0 else chain.checkpointed(_checkpoint(rx))


def _lines(mux: Mux, opening: str, after: int, prev: str, last: int, head: str) -> Iterator[str]:
    if opening:
        yield opening
    count = 0
    while after < last:
        with mux.store.read() as rx:
            rows = rx.sql(
                f"select {chain.COLUMNS} from audit where seq > ? and seq <= ? order by seq limit ?",
                after,
                last,
                READ_AT_ONCE,
            )
        if not rows or rows[0]["seq"] != after + 1:
            raise MuxError("storage_busy", "records were purged while they were exported; export again", retry_after=1)
        after = rows[-1]["seq"]
        count += len(rows)
        told = []
        for row in rows:
            told.append(chain.exported(row, prev) + "\n")
            prev = row["hash"].hex()
        yield "".join(told)
    yield chain.trailer(count, head) + "\n"


def _ends(rx: Snapshot) -> tuple[int, int]:
    """The numbers of the first and the last record that is kept; (1, 0) if there are none."""
    first, last = rx.one("select (select min(seq) from audit), (select max(seq) from audit)")
    return (first, last) if last is not None else (1, 0)


def _after(rx: Snapshot, since: str | None, first: int, last: int) -> int:
    """The number of the record before the first one to export."""
    if since is None:
        return 0
    if since.isascii() and since.isdigit():
        return min(int(since[:19]), last)
    try:
        at = moment(since)
    except ValueError:
        raise MuxError(
            "invalid_field",
            f"since is {shown(since)}; it must be the number of the last record you have, or a time like "
            "2026-06-10T04:30:00Z",
            parameter="since",
        ) from None
    low, high = first, last + 1  # times never decrease, so a binary search finds the first record that is not earlier
    while low < high:
        middle = (low + high) // 2
        if rx.one("select at from audit where seq = ?", middle)["at"] < at:
            low = middle + 1
        else:
            high = middle
    return low - 1 if low > first else 0


# -- retention


def purge(tx: Tx, before: int, most: int, key: bytes) -> int:
    """Remove up to `most` of the oldest records from before `before`, and put a signed checkpoint in their place.

    The newest record always stays, so that the chain has an end to continue from. Returns how many were removed.
    """
    first, last = _ends(tx)
    young = tx.one("select min(seq) from audit where seq >= ? and seq < ? and at >= ?", first, first + most, before)[0]
    through = min(first + most - 1 if young is None else young - 1, last - 1)
    if through < first:
        return 0
    told = chain.checkpoint(through, _hash(tx, through, first), tx.now, key)
    tx.run("insert or replace into meta values ('audit_checkpoint', ?)", told)
    return tx.run("delete from audit where seq <= ?", through).rowcount


def _checkpoint(rx: Snapshot) -> str:
    """The checkpoint that replaces the purged records."""
    told: str = rx.one("select value from meta where key = 'audit_checkpoint'")["value"]
    return told
