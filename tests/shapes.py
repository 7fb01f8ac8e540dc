"""Checks answers against the shapes that the operation table promises, and refusals against its error codes.

The faces' `call` uses `check` and `check_refusal`, so every answer that any test gets is checked against its row.
"""

from __future__ import annotations

import re
from typing import Any

from stonemux.errors import MuxError
from stonemux.schema import Operation

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")
TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "number": (int, float),
    "object": dict,
}
ANYWHERE = {
    "unknown_field",
    "missing_field",
    "invalid_field",
    "upgrade_required",
    "token_missing",
    "token_invalid",
    "token_expired",
    "token_revoked",
    "token_not_yet_valid",
    "agent_mismatch",
    "owner_only",
    "idempotency_mismatch",
    "idempotency_key_conflict",
    "invalid_idempotency_key",
}
"""Codes that any operation may refuse with, in addition to those of its row and its parameters."""


def problems(shape: Any, value: Any, where: str = "answer") -> list[str]:
    """What is wrong with `value`; uses the notation of `stonemux.schema`, and unknown fields are errors."""
    if isinstance(shape, tuple):
        tried = [problems(one, value, where) for one in shape]
        return [] if [] in tried else tried[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where} is no list: {value!r}"]
        return [wrong for n, one in enumerate(value) for wrong in problems(shape[0], one, f"{where}[{n}]")]
    if isinstance(shape, dict):
        return _object_problems(shape, value, where)
    kind, _, null = shape.partition("|")
    if value is None:
        return [] if null or kind == "null" else [f"{where} is null"]
    if kind == "null":
        return [f"{where} is not null: {value!r}"]
    if kind == "time":
        return [] if isinstance(value, str) and TIME.match(value) else [f"{where} is no time: {value!r}"]
    right = isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
    return [] if right else [f"{where} is no {kind}: {value!r}"]


def _object_problems(shape: dict[str, Any], value: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where} is no object: {value!r}"]
    inner = {name.removesuffix("?"): one for name, one in shape.items()}
    wrong = [f"{where} lacks {name}" for name in shape if not name.endswith("?") and name not in value]
    wrong += [f"{where} has {name}, which its shape does not" for name in value if name not in inner]
    return wrong + [
        bad for name, one in value.items() if name in inner for bad in problems(inner[name], one, f"{where}.{name}")
    ]


def check(operation: Operation, answer: Any) -> None:
    """Fail unless the answer has the shape that its row declares."""
    if operation.returns is None:
        return
    wrong = problems(operation.returns, answer, operation.name)
    assert not wrong, "; ".join(wrong)


def check_refusal(operation: Operation, error: MuxError) -> None:
    """Fail unless the row (or one of its parameters) declares this error code."""
    known = ANYWHERE | set(operation.errors) | {code for p in operation.params for code in (p.code, p.too_large)}
    assert error.code in known, f"{operation.name} does not say that it refuses with {error.code}: {error.message}"
