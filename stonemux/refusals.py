"""The error codes that an operation may be refused with: those of every call, and those that its row adds."""

from __future__ import annotations

from collections.abc import Iterable

from stonemux.errors import FAILURES
from stonemux.schema import TIERS, Operation

ALWAYS = (
    "bad_chunk",
    "bad_content_length",
    "bad_header",
    "bad_request_line",
    "body_too_large",
    "cross_site",
    "duplicate_header",
    "expectation_failed",
    "headers_too_large",
    "host_not_allowed",
    "host_required",
    "internal",
    "invalid_unicode",
    "invalid_utf8",
    "method_not_allowed",
    "origin_not_allowed",
    "request_timeout",
    "shutting_down",
    "storage_busy",
    "storage_error",
    "storage_lost",
    "te_and_cl",
    "token_expired",
    "token_invalid",
    "token_missing",
    "token_not_yet_valid",
    "token_revoked",
    "too_many_connections",
    "too_many_headers",
    "truncated_body",
    "unknown_field",
    "uri_too_long",
)
"""Codes that any call may be refused with."""

ON_GET = ("invalid_query",)
"""Additional codes of every GET."""

ON_POST = (
    "content_type",
    "duplicate_key",
    "idempotency_key_conflict",
    "idempotency_mismatch",
    "invalid_idempotency_key",
    "invalid_json",
    "json_too_deep",
    "storage_full",
)
"""Additional codes of every POST."""


def own_errors(operation: Operation) -> tuple[str, ...]:
    """The codes that this operation adds to those of every call, sorted by status and name."""
    codes = set(operation.errors) | {param.code for param in operation.params}
    codes |= {param.too_large for param in operation.params if param.too_large}
    if operation.needed or operation.either:
        codes.add("missing_field")
    if operation.tier != TIERS[0] or any(param.tier != TIERS[0] for param in operation.params):
        codes.add("upgrade_required")
    if operation.kind == "stream" or "timeout" in operation.by_name:
        codes.add("too_many_waiters")
    if operation.acting:
        codes.add("agent_mismatch")
    if operation.owner:
        codes.add("owner_only")
    if operation.many:
        codes.add("too_many_calls")
    return tuple(sorted(codes, key=lambda code: (FAILURES[code].http, code)))


def all_errors(operation: Operation) -> dict[int, list[str]]:
    """Every code that a call of the operation may be refused with, by HTTP status."""
    shared = ALWAYS + (ON_POST if operation.changes else ON_GET)
    by_status: dict[int, list[str]] = {}
    for code in sorted({*own_errors(operation), *shared}, key=lambda code: (FAILURES[code].http, code)):
        by_status.setdefault(FAILURES[code].http, []).append(code)
    return by_status


def sent(operations: Iterable[Operation]) -> list[str]:
    """The codes that can occur over HTTP; those with status 500 only if they are listed for a call."""
    named = {*ALWAYS, *(code for operation in operations for code in own_errors(operation))}
    return [code for code, failure in FAILURES.items() if failure.http != 500 or code in named]
