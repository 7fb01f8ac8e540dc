"""Batches: many calls of one operation in one request, with one transaction, one flush, and an answer for each.

`door` treats each as a separate call, with its own checks, idempotency key and audit record. A refused call does not
affect the others; if the transaction fails, all of them fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stonemux import door
from stonemux.errors import MuxError
from stonemux.mux import Caller, Mux
from stonemux.schema import MOST_TOGETHER, Operation
from stonemux.transaction import Done, Job, Tx

Ending = tuple[Any, BaseException | None]
"""A call's outcome: its value, or its exception."""


def queue(
    mux: Mux, operation: Operation, given: Sequence[Any], caller: Callable[[], Caller], key: str | None, done: Done
) -> None:
    """Queue these calls, each given as a JSON object; `done` gets `{"results": [...]}` after the commit.

    `caller` makes a caller for each. Raises what refuses all of them (tier, token), `invalid_json` for an empty list or
    an entry that is not an object, `too_many_calls`, and `invalid_idempotency_key` for a `key` on the whole request.
    """
    if key is not None:
        raise MuxError(
            "invalid_idempotency_key",
            "a list of calls cannot have an Idempotency-Key header; give each entry its own idempotency_key",
            parameter="Idempotency-Key",
        )
    if not 0 < len(given) <= MOST_TOGETHER:
        raise MuxError(
            "too_many_calls" if given else "invalid_json",
            f"the list has {len(given)} entries; send from 1 to {MOST_TOGETHER} in one request",
            limit=MOST_TOGETHER,
        )
    for number, one in enumerate(given):
        if type(one) is not dict:
            raise MuxError(
                "invalid_json", f"entry {number} of the list is not a JSON object; each must be a call's body"
            )
    door.admit(mux, operation, caller())
    calls = [_checked(mux, operation, one, caller()) for one in given]

    def work(tx: Tx) -> list[Ending]:
        return [_run(tx, call) for call in calls]

    def told(value: Any, error: BaseException | None) -> None:
        if error is not None:
            value = [(None, call if isinstance(call, MuxError) else error) for call in calls]
        results = [_told(call, *one) for call, one in zip(calls, value, strict=True)]
        done({"results": results}, error)

    mux.store.submit(Job(work, told, not operation.frees))


def _checked(mux: Mux, operation: Operation, given: Mapping[str, Any], caller: Caller) -> door.Call | MuxError:
    try:
        return door.Call(mux, operation, given, caller)
    except MuxError as refusal:
        return refusal


def _run(tx: Tx, call: door.Call | MuxError) -> Ending:
    if isinstance(call, MuxError):
        return None, call
    assert call.work is not None
    mark = tx.mark()
    try:
        return call.work(tx), None
    except MuxError as refusal:
        if not tx.rewind(mark):  # it has already written, so only the whole batch can be rolled back
            raise
        return None, refusal.with_traceback(None)  # a thousand of them would keep what their frames hold


def _told(call: door.Call | MuxError, value: Any, error: BaseException | None) -> dict[str, Any]:
    replayed = {}
    if isinstance(call, door.Call):
        value, error = call.concluded(value, error)
        replayed = {"replayed": True} if call.replayed else {}
    if isinstance(error, MuxError):
        return error.body() | replayed
    return replayed if error is not None else value | replayed
