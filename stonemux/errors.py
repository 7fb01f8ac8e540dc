"""One exception and one table of failures.

Every refusal in stonemux is a `MuxError`: a code for programs, a sentence for people, and facts to retry with.
`FAILURES` says once what each code means on each face (HTTP status, exit status of a command); no handler knows a
status number, and no face invents a code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple


class Failure(NamedTuple):
    """What one error code means on the faces."""

    http: int
    """HTTP status."""
    exit: int
    """Exit status of a command that ends with it."""
    lasting: bool = False
    """True when the same request would be refused again, so that a stored idempotency record may replay it."""


EXIT_OK, EXIT_REFUSED, EXIT_USAGE, EXIT_NOT_FOUND = 0, 1, 2, 3
EXIT_LOCKED, EXIT_UNSAFE, EXIT_UNREACHABLE, EXIT_STORAGE, EXIT_DATA = 4, 5, 6, 70, 78

FAILURES: dict[str, Failure] = {
    # the request itself
    "bad_content_length": Failure(400, 2),
    "bad_chunk": Failure(400, 2),
    "bad_header": Failure(400, 2),
    "bad_request_line": Failure(400, 2),
    "duplicate_header": Failure(400, 2),
    "duplicate_key": Failure(400, 2),
    "host_required": Failure(400, 2),
    "idempotency_key_conflict": Failure(400, 2),
    "invalid_expected_version": Failure(400, 2),
    "invalid_field": Failure(400, 2),
    "invalid_idempotency_key": Failure(400, 2),
    "invalid_json": Failure(400, 2),
    "invalid_last_event_id": Failure(400, 2),
    "invalid_query": Failure(400, 2),
    "invalid_timeout": Failure(400, 2),
    "invalid_unicode": Failure(400, 2),
    "invalid_utf8": Failure(400, 2),
    "json_too_deep": Failure(400, 2),
    "missing_field": Failure(400, 2),
    "reserved_name": Failure(400, 2),
    "te_and_cl": Failure(400, 2),
    "truncated_body": Failure(400, 2),
    "unknown_field": Failure(400, 2),
    "upgrade_required": Failure(402, 1),
    "agent_limit": Failure(402, 1),
    "cross_site": Failure(403, 1),
    "not_claim_owner": Failure(403, 1),
    "origin_not_allowed": Failure(403, 1),
    "not_found": Failure(404, 3),
    "agent_not_found": Failure(404, 3, lasting=True),
    "channel_not_found": Failure(404, 3, lasting=True),
    "group_not_found": Failure(404, 3, lasting=True),
    "key_not_found": Failure(404, 3, lasting=True),
    "message_not_found": Failure(404, 3, lasting=True),
    "no_recipient": Failure(404, 3, lasting=True),
    "task_not_found": Failure(404, 3, lasting=True),
    "method_not_allowed": Failure(405, 2),
    "request_timeout": Failure(408, 1),
    "already_complete": Failure(409, 1, lasting=True),
    "channel_exists": Failure(409, 1, lasting=True),
    "cursor_ahead": Failure(409, 1, lasting=True),
    "not_delivered": Failure(409, 1, lasting=True),
    "not_in_channel": Failure(409, 1, lasting=True),
    "stale_claim": Failure(409, 1, lasting=True),
    "task_conflict": Failure(409, 1, lasting=True),
    "version_conflict": Failure(409, 1, lasting=True),
    "length_required": Failure(411, 2),
    "body_too_large": Failure(413, 2),
    "message_too_large": Failure(413, 2),
    "uri_too_long": Failure(414, 2),
    "content_type": Failure(415, 2),
    "expectation_failed": Failure(417, 2),
    "host_not_allowed": Failure(421, 1),
    "idempotency_mismatch": Failure(422, 1),
    "inbox_full": Failure(429, 1),
    "headers_too_large": Failure(431, 2),
    "too_many_headers": Failure(431, 2),
    # the daemon
    "internal": Failure(500, 1),
    "method_unknown": Failure(501, 2),
    "shutting_down": Failure(503, 1),
    "storage_busy": Failure(503, 1),
    "storage_error": Failure(503, 70),
    "storage_lost": Failure(503, 70),
    "too_many_connections": Failure(503, 1),
    "too_many_waiters": Failure(503, 1),
    "http_version": Failure(505, 2),
    "storage_full": Failure(507, 70),
    # start-up and the command line: never seen over HTTP
    "address_in_use": Failure(500, 1),
    "bad_setting": Failure(500, EXIT_USAGE),
    "data_dir_locked": Failure(500, EXIT_LOCKED),
    "data_refused": Failure(500, EXIT_DATA),
    "unreachable": Failure(500, EXIT_UNREACHABLE),
    "unsafe_environment": Failure(500, EXIT_UNSAFE),
}


class MuxError(Exception):
    """A refusal: `code` from `FAILURES`, a message that names parameter, limit and remedy, and facts for programs.

    `retry_after` (seconds) becomes the `Retry-After` header; `close` tells the HTTP face that the connection's
    framing can no longer be trusted.
    """

    def __init__(
        self, code: str, message: str, /, *, retry_after: int | None = None, close: bool = False, **facts: Any
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.facts = facts
        self.retry_after = retry_after
        self.close = close

    @property
    def failure(self) -> Failure:
        """This code's row of the table."""
        return FAILURES[self.code]

    def body(self, request_id: str | None = None) -> dict[str, Any]:
        """The error object as every face shows it."""
        told: dict[str, Any] = {"code": self.code, "message": self.message}
        if request_id is not None:
            told["request_id"] = request_id
        return {"error": told | self.facts}


def nearest(wanted: str, known: Iterable[str], most: int = 5) -> list[str]:
    """The known names closest to `wanted`; when nothing is close, the first few there are."""
    names = sorted(known)
    return difflib.get_close_matches(wanted, names, n=most, cutoff=0.5) or names[:most]
