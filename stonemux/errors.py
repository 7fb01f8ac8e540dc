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
    "bad_content_length": Failure(400, 2, "Content-Length is no plain decimal number."),
    "bad_chunk": Failure(400, 2, "The body's chunked encoding is broken."),
    "bad_header": Failure(400, 2, "A header line is malformed."),
    "bad_request_line": Failure(400, 2, "The request line is malformed."),
    "duplicate_header": Failure(400, 2, "A header that may stand once stands twice."),
    "duplicate_key": Failure(400, 2, "A JSON object names a key twice."),
    "host_required": Failure(400, 2, "The Host header is missing."),
    "idempotency_key_conflict": Failure(400, 2, "Header and body carry different idempotency keys."),
    "invalid_expected_version": Failure(400, 2, "expected_version is no version number."),
    "invalid_field": Failure(400, 2, "A parameter has the wrong type or lies beyond its limits."),
    "invalid_idempotency_key": Failure(400, 2, "The idempotency key is not 1 to 128 visible ASCII characters."),
    "invalid_json": Failure(400, 2, "The body is not one JSON object."),
    "invalid_last_event_id": Failure(400, 2, "Last-Event-ID is no event id."),
    "invalid_query": Failure(400, 2, "The query string is malformed or names a parameter twice."),
    "invalid_timeout": Failure(400, 2, "timeout is negative or no integer."),
    "invalid_unicode": Failure(400, 2, "A text holds half a surrogate pair."),
    "invalid_utf8": Failure(400, 2, "The body is not UTF-8."),
    "json_too_deep": Failure(400, 2, "The body nests deeper than 64 levels."),
    "missing_field": Failure(400, 2, "A required parameter is missing."),
    "reserved_name": Failure(400, 2, "The name is kept for agent channels or for the daemon."),
    "te_and_cl": Failure(400, 2, "The request has both Transfer-Encoding and Content-Length."),
    "tls_required": Failure(400, 2, "The port speaks TLS, and the request came without."),
    "truncated_body": Failure(400, 2, "The connection ended before the body did."),
    "unknown_field": Failure(400, 2, "The operation has no parameter of that name; the nearest one is told."),
    "webhook_url_forbidden": Failure(400, 2, "The URL is malformed, or leads where nothing may be delivered."),
    "upgrade_required": Failure(402, 1, "The operation needs a higher tier."),
    "token_missing": Failure(401, 1, "The daemon asks for a token, and the call shows none."),
    "token_invalid": Failure(401, 1, "The token is not one that this daemon made."),
    "token_expired": Failure(401, 1, "The token has run out."),
    "token_revoked": Failure(401, 1, "The token was taken back."),
    "token_not_yet_valid": Failure(401, 1, "The token is dated in the future."),
    "agent_limit": Failure(402, 1, "The tier allows no further agent."),
    "agent_mismatch": Failure(403, 1, "The token is bound to another agent."),
    "sigil_refused": Failure(403, 1, "The licensor's command does not count here."),
    "license_mismatch": Failure(403, 1, "The key is not that of the license that is active here."),
    "owner_only": Failure(403, 1, "Only the owner of the machine may do this."),
    "cross_site": Failure(403, 1, "A web page of another site made the request."),
    "not_claim_owner": Failure(403, 1, "Another agent holds the task."),
    "not_poster": Failure(403, 1, "Only the agent that posted the task may do this."),
    "origin_not_allowed": Failure(403, 1, "The Origin header names a foreign site."),
    "not_found": Failure(404, 3, "There is no such path."),
    "agent_not_found": Failure(404, 3, "No agent of that id is registered; near ones are told.", lasting=True),
    "channel_not_found": Failure(404, 3, "There is no such channel; near ones are told.", lasting=True),
    "document_not_found": Failure(404, 3, "There is no such document (any more).", lasting=True),
    "group_not_found": Failure(404, 3, "No agent is in that group; near ones are told.", lasting=True),
    "key_not_found": Failure(404, 3, "The channel's state has no such key.", lasting=True),
    "message_not_found": Failure(404, 3, "There is no such message (any more).", lasting=True),
    "no_recipient": Failure(404, 3, "No agent matches the address.", lasting=True),
    "event_not_found": Failure(404, 3, "The event is no longer kept, or not yet written.", lasting=True),
    "webhook_not_found": Failure(404, 3, "Events are forwarded to no endpoint of that id.", lasting=True),
    "task_not_found": Failure(404, 3, "There is no such task (any more).", lasting=True),
    "method_not_allowed": Failure(405, 2, "The path takes another method; Allow names it."),
    "not_acceptable": Failure(406, 2, "The Accept header does not list application/json."),
    "request_timeout": Failure(408, 1, "The request came too slowly."),
    "already_complete": Failure(409, 1, "The task is finished.", lasting=True),
    "channel_exists": Failure(409, 1, "A channel of that name exists.", lasting=True),
    "backup_exists": Failure(409, EXIT_REFUSED, "There is a file of that name already."),
    "cursor_ahead": Failure(409, 1, "The cursor is beyond the newest id.", lasting=True),
    "webhook_limit": Failure(409, 1, "Events are forwarded to as many endpoints as may be."),
    "not_delivered": Failure(409, 1, "The message was not delivered to this agent.", lasting=True),
    "not_in_channel": Failure(
        409, 1, "The recipient is no member of the channel; its channels are told.", lasting=True
    ),
    "stale_claim": Failure(409, 1, "The claim ran out and the task went to another.", lasting=True),
    "task_conflict": Failure(409, 1, "The task's status does not allow this.", lasting=True),
    "version_conflict": Failure(409, 1, "The value has another version by now; it is told.", lasting=True),
    "license_checksum": Failure(400, 2, "The license key holds a typo."),
    "license_malformed": Failure(400, 2, "The text has not the form of a license key."),
    "too_many_calls": Failure(413, 2, "The list holds more calls than one request may make."),
    "body_too_large": Failure(413, 2, "The body is larger than this path takes."),
    "document_too_large": Failure(413, 2, "The document is larger than max_document_size."),
    "message_too_large": Failure(413, 2, "The content is larger than max_message_size."),
    "uri_too_long": Failure(414, 2, "The request line is longer than 8 KiB."),
    "content_type": Failure(415, 2, "The body must be sent as application/json."),
    "expectation_failed": Failure(417, 2, "The Expect header asks for something unknown."),
    "host_not_allowed": Failure(421, 1, "The Host header names no address of this daemon."),
    "idempotency_mismatch": Failure(422, 1, "The idempotency key was used with another body."),
    "rate_limited": Failure(429, 1, "Too many tries within a minute."),
    "inbox_full": Failure(429, 1, "The recipient has inbox_limit unsettled messages."),
    "headers_too_large": Failure(431, 2, "The headers are larger than 32 KiB."),
    "too_many_headers": Failure(431, 2, "The request has more than 64 headers."),
    # the daemon
    "backup_failed": Failure(500, EXIT_REFUSED, "The copy could not be made; the database itself goes on."),
    "internal": Failure(500, 1, "A fault in the daemon; its log has the request id."),
    "search_unavailable": Failure(501, 1, "This Python's SQLite has no full-text search."),
    "method_unknown": Failure(501, 2, "HTTP has no such method here."),
    "shutting_down": Failure(503, 1, "The daemon is stopping."),
    "storage_busy": Failure(503, 1, "The database did not become free in time; nothing was changed."),
    "storage_error": Failure(503, 70, "Writing failed and the outcome is unknown; the daemon stops."),
    "storage_lost": Failure(503, 70, "The database file was removed or replaced; the daemon stops."),
    "too_many_connections": Failure(503, 1, "max_connections are open."),
    "too_many_waiters": Failure(503, 1, "As many calls wait as may."),
    "http_version": Failure(505, 2, "Only HTTP/1.0 and HTTP/1.1 are spoken."),
    "storage_full": Failure(507, 70, "The disk is full; nothing was changed, reads go on."),
    # start-up and the command line: never seen over HTTP
    "address_in_use": Failure(500, 1, "Another program listens on the port."),
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
