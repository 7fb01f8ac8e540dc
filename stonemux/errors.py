"""One exception and one table of failures.

Every refusal in stonemux is a `MuxError`: a code for programs, a sentence for people, and facts to retry with.
`FAILURES` says once what each code means, in words and on each face (HTTP status, exit status of a command); no handler
knows a status number, and no face invents a code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stonemux.record import Record


class Failure(Record):
    """What one error code means on the faces."""

    http: int
    """HTTP status."""
    exit: int
    """Exit status of a command that ends with it."""
    doc: str
    """What it means, in one sentence."""
    lasting: bool = False
    """True when the same request would be refused again, so that a stored idempotency record may replay it."""


EXIT_OK, EXIT_REFUSED, EXIT_USAGE, EXIT_NOT_FOUND = 0, 1, 2, 3
EXIT_LOCKED, EXIT_UNSAFE, EXIT_UNREACHABLE, EXIT_STORAGE, EXIT_DATA, EXIT_INTERRUPTED = 4, 5, 6, 70, 78, 130

FAILURES: dict[str, Failure] = {
    # the request itself
    "bad_content_length": Failure(400, EXIT_USAGE, "Content-Length is not a plain decimal number."),
    "bad_chunk": Failure(400, EXIT_USAGE, "The body's chunked encoding is broken."),
    "bad_header": Failure(400, EXIT_USAGE, "A header line is malformed."),
    "bad_request_line": Failure(400, EXIT_USAGE, "The request line is malformed."),
    "duplicate_header": Failure(400, EXIT_USAGE, "A header that may occur only once occurs twice."),
    "duplicate_key": Failure(400, EXIT_USAGE, "A JSON object names a key twice."),
    "host_required": Failure(400, EXIT_USAGE, "The Host header is missing."),
    "idempotency_key_conflict": Failure(400, EXIT_USAGE, "Header and body carry different idempotency keys."),
    "invalid_expected_version": Failure(400, EXIT_USAGE, "expected_version is not a version number."),
    "invalid_field": Failure(400, EXIT_USAGE, "A parameter has the wrong type or lies beyond its limits."),
    "invalid_idempotency_key": Failure(
        400, EXIT_USAGE, "The idempotency key is not 1 to 128 visible ASCII characters."
    ),
    "invalid_json": Failure(400, EXIT_USAGE, "The body is not one JSON object."),
    "invalid_last_event_id": Failure(400, EXIT_USAGE, "Last-Event-ID is not an event id."),
    "invalid_query": Failure(400, EXIT_USAGE, "The query string is malformed or names a parameter twice."),
    "invalid_timeout": Failure(400, EXIT_USAGE, "timeout is negative or no integer."),
    "invalid_unicode": Failure(400, EXIT_USAGE, "A text holds half a surrogate pair."),
    "invalid_utf8": Failure(400, EXIT_USAGE, "The body is not UTF-8."),
    "json_too_deep": Failure(400, EXIT_USAGE, "The body nests deeper than 64 levels."),
    "missing_field": Failure(400, EXIT_USAGE, "A required parameter is missing."),
    "reserved_name": Failure(400, EXIT_USAGE, "The name is kept for agent channels or for the daemon."),
    "te_and_cl": Failure(400, EXIT_USAGE, "The request has both Transfer-Encoding and Content-Length."),
    "tls_required": Failure(400, EXIT_USAGE, "The port speaks TLS, and the request came without."),
    "truncated_body": Failure(400, EXIT_USAGE, "The connection ended before the body did."),
    "unknown_field": Failure(
        400, EXIT_USAGE, "The operation has no parameter of that name; the answer names the nearest one."
    ),
    "webhook_url_forbidden": Failure(400, EXIT_USAGE, "The URL is malformed, or leads where nothing may be delivered."),
    "license_checksum": Failure(400, EXIT_USAGE, "The license key holds a typo."),
    "license_malformed": Failure(400, EXIT_USAGE, "The text does not have the form of a license key."),
    "token_missing": Failure(401, EXIT_REFUSED, "The daemon asks for a token, and the call shows none."),
    "token_invalid": Failure(401, EXIT_REFUSED, "The token is not one that this daemon made."),
    "token_expired": Failure(401, EXIT_REFUSED, "The token has run out."),
    "token_revoked": Failure(401, EXIT_REFUSED, "The token was taken back."),
    "token_not_yet_valid": Failure(401, EXIT_REFUSED, "The token is dated in the future."),
    "upgrade_required": Failure(402, EXIT_REFUSED, "The operation needs a higher tier."),
    "agent_limit": Failure(402, EXIT_REFUSED, "The tier allows no further agent."),
    "agent_mismatch": Failure(403, EXIT_REFUSED, "The token is bound to another agent."),
    "sigil_refused": Failure(403, EXIT_REFUSED, "The licensor's command does not count here."),
    "license_mismatch": Failure(403, EXIT_REFUSED, "The key is not that of the license that is active here."),
    "owner_only": Failure(403, EXIT_REFUSED, "Only the owner of the machine may do this."),
    "cross_site": Failure(403, EXIT_REFUSED, "A web page of another site made the request."),
    "not_claim_owner": Failure(403, EXIT_REFUSED, "Another agent holds the task."),
    "not_poster": Failure(403, EXIT_REFUSED, "Only the agent that posted the task may do this."),
    "origin_not_allowed": Failure(403, EXIT_REFUSED, "The Origin header names a foreign site."),
    "not_found": Failure(404, EXIT_NOT_FOUND, "There is no such path."),
    "agent_not_found": Failure(
        404, EXIT_NOT_FOUND, "No agent of that id is registered; the answer names near ones.", lasting=True
    ),
    "channel_not_found": Failure(
        404, EXIT_NOT_FOUND, "There is no such channel; the answer names near ones.", lasting=True
    ),
    "document_not_found": Failure(404, EXIT_NOT_FOUND, "There is no such document (any more).", lasting=True),
    "group_not_found": Failure(
        404, EXIT_NOT_FOUND, "No agent is in that group; the answer names near ones.", lasting=True
    ),
    "key_not_found": Failure(404, EXIT_NOT_FOUND, "The channel's state has no such key.", lasting=True),
    "message_not_found": Failure(404, EXIT_NOT_FOUND, "There is no such message (any more).", lasting=True),
    "no_recipient": Failure(404, EXIT_NOT_FOUND, "No agent matches the address.", lasting=True),
    "event_not_found": Failure(404, EXIT_NOT_FOUND, "The event is no longer kept, or not yet written.", lasting=True),
    "webhook_not_found": Failure(404, EXIT_NOT_FOUND, "Events are forwarded to no endpoint of that id.", lasting=True),
    "task_not_found": Failure(404, EXIT_NOT_FOUND, "There is no such task (any more).", lasting=True),
    "method_not_allowed": Failure(405, EXIT_USAGE, "The path takes another method; Allow names it."),
    "not_acceptable": Failure(406, EXIT_USAGE, "The Accept header does not list application/json."),
    "request_timeout": Failure(408, EXIT_REFUSED, "The request came too slowly."),
    "already_complete": Failure(409, EXIT_REFUSED, "The task is finished.", lasting=True),
    "channel_exists": Failure(409, EXIT_REFUSED, "A channel of that name exists.", lasting=True),
    "backup_exists": Failure(409, EXIT_REFUSED, "There is a file of that name already."),
    "cursor_ahead": Failure(409, EXIT_REFUSED, "The cursor is beyond the newest id.", lasting=True),
    "webhook_limit": Failure(409, EXIT_REFUSED, "Events are forwarded to as many endpoints as may be."),
    "not_delivered": Failure(409, EXIT_REFUSED, "The message was not delivered to this agent.", lasting=True),
    "not_in_channel": Failure(
        409, EXIT_REFUSED, "The recipient is not a member of the channel; the answer names its channels.", lasting=True
    ),
    "stale_claim": Failure(409, EXIT_REFUSED, "The claim ran out and the task went to another.", lasting=True),
    "task_conflict": Failure(409, EXIT_REFUSED, "The task's status does not allow this.", lasting=True),
    "version_conflict": Failure(
        409, EXIT_REFUSED, "The value has another version by now, which the answer names.", lasting=True
    ),
    "too_many_calls": Failure(413, EXIT_USAGE, "The list holds more calls than one request may make."),
    "body_too_large": Failure(413, EXIT_USAGE, "The body is larger than this path takes."),
    "document_too_large": Failure(413, EXIT_USAGE, "The document is larger than max_document_size."),
    "message_too_large": Failure(413, EXIT_USAGE, "The content is larger than max_message_size."),
    "uri_too_long": Failure(414, EXIT_USAGE, "The request line is longer than 8 KiB."),
    "content_type": Failure(415, EXIT_USAGE, "The body must be sent as application/json."),
    "expectation_failed": Failure(417, EXIT_USAGE, "The Expect header asks for something unknown."),
    "host_not_allowed": Failure(421, EXIT_REFUSED, "The Host header names no address of this daemon."),
    "idempotency_mismatch": Failure(422, EXIT_REFUSED, "The idempotency key was used with another body."),
    "rate_limited": Failure(429, EXIT_REFUSED, "Too many tries within a minute."),
    "inbox_full": Failure(429, EXIT_REFUSED, "The recipient has inbox_limit unsettled messages."),
    "headers_too_large": Failure(431, EXIT_USAGE, "The headers are larger than 32 KiB."),
    "too_many_headers": Failure(431, EXIT_USAGE, "The request has more than 64 headers."),
    # the daemon
    "backup_failed": Failure(500, EXIT_REFUSED, "The copy could not be made; the database itself goes on."),
    "internal": Failure(500, EXIT_REFUSED, "A fault in the daemon; its log has the request id."),
    "search_unavailable": Failure(501, EXIT_REFUSED, "This Python's SQLite has no full-text search."),
    "method_unknown": Failure(501, EXIT_USAGE, "HTTP has no such method here."),
    "shutting_down": Failure(503, EXIT_REFUSED, "The daemon is stopping."),
    "storage_busy": Failure(503, EXIT_REFUSED, "The database did not become free in time; nothing was changed."),
    "storage_error": Failure(503, EXIT_STORAGE, "Writing failed and the outcome is unknown; the daemon stops."),
    "storage_lost": Failure(503, EXIT_STORAGE, "The database file was removed or replaced; the daemon stops."),
    "too_many_connections": Failure(503, EXIT_REFUSED, "max_connections are open."),
    "too_many_waiters": Failure(503, EXIT_REFUSED, "As many calls wait as may."),
    "http_version": Failure(505, EXIT_USAGE, "Only HTTP/1.0 and HTTP/1.1 are spoken."),
    "storage_full": Failure(507, EXIT_STORAGE, "The disk is full; nothing was changed, reads go on."),
    # start-up and the command line: never seen over HTTP
    "address_in_use": Failure(500, EXIT_REFUSED, "Another program listens on the port."),
    "client_check_failed": Failure(500, EXIT_REFUSED, "The command that setup configured does not answer as it must."),
    "client_config_broken": Failure(500, EXIT_USAGE, "A client's configuration file cannot be read as what it is."),
    "client_config_unwritable": Failure(500, EXIT_REFUSED, "A client's configuration file cannot be written."),
    "bad_file": Failure(500, EXIT_REFUSED, "A file that a command was given cannot be read or written."),
    "license_invalid": Failure(500, EXIT_REFUSED, "The license document does not count; the message says why."),
    "license_unknown": Failure(404, EXIT_NOT_FOUND, "The issuer has given out no such license."),
    "bad_setting": Failure(500, EXIT_USAGE, "A setting is unknown, malformed or beyond its limits."),
    "not_understood": Failure(500, EXIT_USAGE, "The command line has a word that means nothing in its place."),
    "not_confirmed": Failure(500, EXIT_REFUSED, "Nobody agreed to what would be replaced; nothing was changed."),
    "data_dir_locked": Failure(500, EXIT_LOCKED, "Another daemon uses the data directory."),
    "data_refused": Failure(500, EXIT_DATA, "The data directory is damaged, foreign or of a newer version."),
    "service_failed": Failure(500, EXIT_REFUSED, "The system's service manager refused, or there is none."),
    "service_foreign": Failure(500, EXIT_REFUSED, "The service's file was written by somebody else."),
    "unreachable": Failure(500, EXIT_UNREACHABLE, "No daemon answers."),
    "unsafe_environment": Failure(500, EXIT_UNSAFE, "The daemon would be open to others, or its data not safe."),
}


class MuxError(Exception):
    """A refusal: `code` from `FAILURES`, a message that names parameter, limit and remedy, and facts for programs.

    A `remedy` that is given by itself ends the message, after a semicolon; `problem` is the message without it.
    `retry_after` (seconds) becomes the `Retry-After` header; `close` tells the HTTP face that the connection's
    framing can no longer be trusted. `status` is the HTTP status.
    """

    def __init__(
        self,
        code: str,
        message: str,
        /,
        *,
        remedy: str = "",
        retry_after: int | None = None,
        close: bool = False,
        **facts: Any,
    ) -> None:
        self.message = f"{message}; {remedy}" if remedy else message
        super().__init__(self.message)
        self.code = code
        self.problem = message
        self.remedy = remedy
        self.facts = facts
        self.retry_after = retry_after
        self.close = close
        self.status = self.failure.http

    @property
    def failure(self) -> Failure:
        """This code's row of the table; a newer daemon may have codes that are not in it."""
        return FAILURES.get(self.code) or Failure(500, EXIT_REFUSED, "A code of a newer version.")

    def body(self, request_id: str | None = None) -> dict[str, Any]:
        """The error object as every face shows it."""
        told: dict[str, Any] = {"code": self.code, "message": self.message}
        if request_id is not None:
            told["request_id"] = request_id
        return {"error": told | self.facts}


def read_error(told: Mapping[str, Any], retry_after: str = "") -> MuxError:
    """The refusal that a daemon has told in an answer's `error`, and in the header Retry-After."""
    error = MuxError(told["code"], told["message"])
    error.facts = {name: value for name, value in told.items() if name not in ("code", "message")}
    error.retry_after = int(retry_after) if retry_after.isdecimal() else None
    return error


CLOSE = 0.5
"""How much of two names must be the same for one to be meant by the other."""


def nearest(wanted: str, known: Iterable[str], most: int = 5) -> list[str]:
    """The known names closest to `wanted`; when nothing is close, the first few there are."""
    names = sorted(known)
    return _close(wanted, names, most, CLOSE) or names[:most]


def guess(wanted: str, known: Iterable[str], *, least: float = CLOSE) -> str:
    """The known name that was meant; "" when none is close, since to name just any leads astray."""
    return "".join(_close(wanted, sorted(known), 1, least))


def did_you_mean(name: str, then: str = "") -> str:
    """The end of a refusal: proposes a name, if there is one to propose, and goes on with `then`."""
    return " ".join(filter(None, (f"; did you mean {name}?" if name else "." * bool(then), then)))


def _close(wanted: str, names: list[str], most: int, least: float) -> list[str]:
    import difflib  # only mistakes need it, and a start need not wait for it

    return difflib.get_close_matches(wanted, names, n=most, cutoff=least)
