"""The one door through which every face calls an operation.

It does, in this order: tier, idempotency key, parameters, run. Faces translate and nothing else.

**Once.** A changing call with an idempotency key is remembered in the transaction of its effect: the same key with the
same body answers what was answered before, for 24 hours; with another body it is refused. Successes are remembered,
and refusals that would be the same again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from stonemux.directory import dumps
from stonemux.errors import MuxError
from stonemux.mux import Caller, Mux
from stonemux.schema import IDEMPOTENCY_KEY, TIERS, Operation, bind
from stonemux.store import Job, Tx, Work

IDEMPOTENCY_TTL_MS = 24 * 3600 * 1000
_KEY = re.compile(IDEMPOTENCY_KEY)

Done = Callable[[Any, BaseException | None], None]


def call(
    mux: Mux,
    operation: Operation,
    given: Mapping[str, Any],
    caller: Caller,
    *,
    textual: bool = False,
    key: str | None = None,
) -> Any:
    """Run an operation and return its answer; raises MuxError, or Hangup when the caller of a wait went away."""
    args, work = _prepare(mux, operation, given, caller, textual, key)
    if work is not None:
        return _opened(mux.store.write(work))
    if operation.kind in ("read", "text"):
        with mux.store.read() as rx:
            return operation.run(rx, **args)
    answer = operation.run(mux, caller, **args)
    _heard_of(mux, operation, args)
    return _opened(answer)


def submit(
    mux: Mux,
    operation: Operation,
    given: Mapping[str, Any],
    caller: Caller,
    done: Done,
    *,
    key: str | None = None,
) -> None:
    """Queue a change; `done(answer, error)` is called after its commit, by whichever thread led it.

    Raises MuxError for what is refused before it is queued.
    """
    _, work = _prepare(mux, operation, given, caller, False, key)
    assert work is not None

    def outcome(value: Any, error: BaseException | None) -> None:
        if isinstance(value, MuxError):
            value, error = None, value
        done(value, error)

    mux.store.submit(Job(work, outcome))


def admit(mux: Mux, operation: Operation, given: Mapping[str, Any], *, textual: bool = False) -> dict[str, Any]:
    """Tier and parameters, for what a face runs itself (the event stream)."""
    return _prepare(mux, operation, given, Caller(), textual, None)[0]


def _opened(answer: Any) -> Any:
    """A stored refusal travels through the commit as a value and is raised here."""
    if isinstance(answer, MuxError):
        raise answer
    return answer


def _prepare(
    mux: Mux, operation: Operation, given: Mapping[str, Any], caller: Caller, textual: bool, key: str | None
) -> tuple[dict[str, Any], Work | None]:
    """Tier, idempotency key and parameters; for a change also the piece of work."""
    if operation.tier != "free":
        _check_tier(mux, operation.tier, operation.name)
    if operation.changes and ("idempotency_key" in given or key is not None):
        given = dict(given)
        key = _one_key(given.pop("idempotency_key", None), key)
    args = bind(operation, given, mux.settings, textual=textual)
    if mux.tier == "free":
        _check_params(mux, operation, args)
    _heard_of(mux, operation, args)
    if key is not None:
        caller.once = _once(operation, given, args, key, caller)
    if operation.kind != "change":
        return args, None
    run = operation.run

    def work(tx: Tx) -> Any:
        return run(tx, **args)

    return args, work if caller.once is None else caller.once(work)


def _check_tier(mux: Mux, needed: str, what: str) -> None:
    if TIERS.index(needed) > TIERS.index(mux.tier):
        raise MuxError(
            "upgrade_required",
            f"{what} needs the {needed} tier; this daemon runs as {mux.tier}. Activate a key, or see [license] in the "
            "settings",
            feature=what,
            tier=mux.tier,
            needed=needed,
        )


def _check_params(mux: Mux, operation: Operation, args: Mapping[str, Any]) -> None:
    for param in operation.params:
        if param.tier != "free" and args.get(param.argument) != param.default:
            _check_tier(mux, param.tier, f"{param.name} in {operation.name}")


def _heard_of(mux: Mux, operation: Operation, args: Mapping[str, Any]) -> None:
    if operation.actor:
        actor = args.get(operation.by_name[operation.actor].argument)
        if actor is not None:
            mux.presence.beat(actor)


def _one_key(in_body: Any, in_header: str | None) -> str | None:
    if in_body is not None and in_header is not None and in_body != in_header:
        raise MuxError(
            "idempotency_key_conflict", "the Idempotency-Key header and the idempotency_key field differ; send one"
        )
    key = in_body if in_body is not None else in_header
    if key is not None and (not isinstance(key, str) or not _KEY.fullmatch(key)):
        raise MuxError(
            "invalid_idempotency_key",
            "an idempotency key has 1 to 128 printable ASCII characters without blanks",
            parameter="idempotency_key",
        )
    return key


def _once(
    operation: Operation, given: Mapping[str, Any], args: Mapping[str, Any], key: str, caller: Caller
) -> Callable[[Work], Work]:
    """What makes a piece of work happen once for this key, remembered in the work's own transaction."""
    actor = args.get(operation.by_name[operation.actor].argument) if operation.actor else None
    scope = (actor or "", operation.path, key)
    body = json.dumps({k: v for k, v in given.items() if v is not None}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(body.encode()).digest()

    def wrap(work: Work) -> Work:
        def once(tx: Tx) -> Any:
            found = tx.one("select * from idempotency where scope = ? and path = ? and key = ?", *scope)
            if found is not None and found["at"] > tx.now - IDEMPOTENCY_TTL_MS:
                return _replay(found, digest, caller)
            changes = tx.changes
            try:
                answer = work(tx)
            except MuxError as refusal:
                if not refusal.failure.lasting or tx.changes != changes:
                    raise
                _remember(tx, scope, digest, refusal.failure.http, refusal.body())
                return refusal
            if answer is not None:  # a claim that found nothing has had no effect to protect
                _remember(tx, scope, digest, 200, answer)
            return answer

        return once

    return wrap


def _remember(tx: Tx, scope: tuple[str, str, str], digest: bytes, status: int, answer: Any) -> None:
    tx.run(
        "insert or replace into idempotency values (?, ?, ?, ?, ?, ?, ?)", *scope, digest, status, dumps(answer), tx.now
    )


def _replay(found: Any, digest: bytes, caller: Caller) -> Any:
    if found["body"] != digest:
        raise MuxError(
            "idempotency_mismatch",
            f"the idempotency key {found['key']!r} was used before with another body; use a new key for a new call",
        )
    caller.replayed = True
    answer = json.loads(found["answer"])
    if found["status"] == 200:
        return answer
    error = answer["error"]
    return MuxError(error.pop("code"), error.pop("message"), **error)


def purge_idempotency(tx: Tx, most: int) -> int:
    """Forget up to `most` records older than a day; returns how many."""
    return tx.run(
        "delete from idempotency where (scope, path, key) in "
        "(select scope, path, key from idempotency where at < ? limit ?)",
        tx.now - IDEMPOTENCY_TTL_MS,
        most,
    ).rowcount
