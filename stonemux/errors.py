"""One exception class and one table of failures.

Every refusal in stonemux is a `MuxError`: a code for programs, a sentence for people, and facts for a retry. Only
`FAILURES` says what each code means, in words and on each face (HTTP status, exit status of a command); handlers never
use status numbers, and faces never invent codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stonemux.record import Record


class Failure(Record):
    """The meaning of one error code, in words and on each face."""

    http: int
    """The HTTP status."""
    exit: int
    """The exit status of a command that ends with it."""
    doc: str
    """The meaning, in one sentence."""
    lasting: bool = False
    """Whether the same request would be refused again, so that a stored idempotency record may replay the refusal."""


EXIT_OK, EXIT_REFUSED, EXIT_USAGE, EXIT_NOT_FOUND = 0, 1, 2, 3
EXIT_LOCKED, EXIT_UNSAFE, EXIT_UNREACHABLE, EXIT_STORAGE, EXIT_DATA, EXIT_INTERRUPTED = 4, 5, 6, 70, 78, 130

FAILURES: dict[str, Failure] = {
    # the request itself
    "bad_content_length": Failure(400, EXIT_USAGE, "Content-Length is not a plain decimal number."),
    "bad_chunk": Failure(400, EXIT_USAGE, "The body's chunked encoding is broken."),
    "bad_header": Failure(400, EXIT_USAGE, "A header line is malformed."),
    "bad_request_line": Failure(400, EXIT_USAGE, "The request line is malformed."),
    "duplicate_header": Failure(400, EXIT_USAGE, "A header that may appear only once appears more than once."),
    "duplicate_key": Failure(400, EXIT_USAGE, "A JSON object repeats a key."),
    "host_required": Failure(400, EXIT_USAGE, "The Host header is missing."),
    "idempotency_key_conflict": Failure(400, EXIT_USAGE, "The header and the body carry different idempotency keys."),
    "invalid_expected_version": Failure(400, EXIT_USAGE, "expected_version is not a version number."),
    "invalid_field": Failure(400, EXIT_USAGE, "A parameter has the wrong type or is out of range."),
    "invalid_idempotency_key": Failure(
        400, EXIT_USAGE, "The idempotency key is not 1 to 128 visible ASCII characters."
    ),
    "invalid_json": Failure(400, EXIT_USAGE, "The body is not one JSON object."),
    "invalid_last_event_id": Failure(400, EXIT_USAGE, "Last-Event-ID is not an event id."),
    "invalid_query": Failure(400, EXIT_USAGE, "The query string is malformed or repeats a parameter."),
    "invalid_timeout": Failure(400, EXIT_USAGE, "timeout is negative or not an integer."),
    "invalid_unicode": Failure(400, EXIT_USAGE, "A string contains half a surrogate pair."),
    "invalid_utf8": Failure(400, EXIT_USAGE, "The body is not UTF-8."),
    "json_too_deep": Failure(400, EXIT_USAGE, "The body is nested more than 64 levels deep."),
    "missing_field": Failure(400, EXIT_USAGE, "A required parameter is missing."),
    "reserved_name": Failure(400, EXIT_USAGE, "The name is reserved for agent channels or for the daemon."),
    "te_and_cl": Failure(400, EXIT_USAGE, "The request has both Transfer-Encoding and Content-Length."),
    "tls_required": Failure(400, EXIT_USAGE, "The port speaks TLS, but the request did not use it."),
    "truncated_body": Failure(400, EXIT_USAGE, "The connection ended before the body did."),
    "unknown_field": Failure(
        400, EXIT_USAGE, "The operation has no parameter with that name; the answer names the nearest one."
    ),
    "webhook_url_forbidden": Failure(400, EXIT_USAGE, "The URL is malformed or leads to a forbidden address."),
    "license_checksum": Failure(400, EXIT_USAGE, "The license key contains a typo."),
    "license_malformed": Failure(400, EXIT_USAGE, "The text is not in the form of a license key."),
    "token_missing": Failure(401, EXIT_REFUSED, "The daemon requires a token, but the call has none."),
    "token_invalid": Failure(401, EXIT_REFUSED, "The token was not issued by this daemon."),
    "token_expired": Failure(401, EXIT_REFUSED, "The token has expired."),
    "token_revoked": Failure(401, EXIT_REFUSED, "The token was revoked."),
    "token_not_yet_valid": Failure(401, EXIT_REFUSED, "The token is dated in the future."),
    "upgrade_required": Failure(402, EXIT_REFUSED, "The operation needs a higher tier."),
    "agent_limit": Failure(402, EXIT_REFUSED, "The tier or the license allows no more agents."),
    "agent_mismatch": Failure(403, EXIT_REFUSED, "The token is bound to another agent."),
    "sigil_refused": Failure(403, EXIT_REFUSED, "The licensor's command is not valid here."),
    "license_mismatch": Failure(403, EXIT_REFUSED, "The key does not belong to the license that is active here."),
    "owner_only": Failure(403, EXIT_REFUSED, "Only the owner of the machine may do this."),
    "cross_site": Failure(403, EXIT_REFUSED, "A web page of another site made the request."),
    "not_claim_owner": Failure(403, EXIT_REFUSED, "The agent does not hold the task, and never did."),
    "not_poster": Failure(403, EXIT_REFUSED, "Only the agent that posted the task may do this."),
    "origin_not_allowed": Failure(403, EXIT_REFUSED, "The Origin header names another site."),
    "not_found": Failure(404, EXIT_NOT_FOUND, "The path does not exist."),
    "agent_not_found": Failure(
        404, EXIT_NOT_FOUND, "No agent with that id is registered; the answer names similar ones.", lasting=True
    ),
    "channel_not_found": Failure(
        404, EXIT_NOT_FOUND, "The channel does not exist; the answer names similar ones.", lasting=True
    ),
    "document_not_found": Failure(404, EXIT_NOT_FOUND, "The document does not exist (any longer).", lasting=True),
    "group_not_found": Failure(
        404, EXIT_NOT_FOUND, "No agent is in that group; the answer names similar ones.", lasting=True
    ),
    "key_not_found": Failure(404, EXIT_NOT_FOUND, "The channel's state has no such key.", lasting=True),
    "message_not_found": Failure(404, EXIT_NOT_FOUND, "The message does not exist (any longer).", lasting=True),
    "no_recipient": Failure(404, EXIT_NOT_FOUND, "No agent matches the address.", lasting=True),
    "event_not_found": Failure(404, EXIT_NOT_FOUND, "The event is no longer kept or not yet written.", lasting=True),
    "webhook_not_found": Failure(404, EXIT_NOT_FOUND, "There is no forwarding endpoint with that id.", lasting=True),
    "task_not_found": Failure(404, EXIT_NOT_FOUND, "The task does not exist (any longer).", lasting=True),
    "method_not_allowed": Failure(
        405, EXIT_USAGE, "The path does not support this method; Allow names those it supports."
    ),
    "not_acceptable": Failure(406, EXIT_USAGE, "The Accept header does not list application/json."),
    "request_timeout": Failure(408, EXIT_REFUSED, "The request arrived too slowly."),
    "already_complete": Failure(409, EXIT_REFUSED, "The task is already finished.", lasting=True),
    "channel_exists": Failure(409, EXIT_REFUSED, "A channel with that name already exists.", lasting=True),
    "backup_exists": Failure(409, EXIT_REFUSED, "A file with that name already exists."),
    "cursor_ahead": Failure(409, EXIT_REFUSED, "The cursor is beyond the newest message of the inbox.", lasting=True),
    "webhook_limit": Failure(409, EXIT_REFUSED, "The maximum number of forwarding endpoints exists already."),
    "not_delivered": Failure(409, EXIT_REFUSED, "The message was not delivered to this agent.", lasting=True),
    "not_in_channel": Failure(
        409, EXIT_REFUSED, "The recipient is not a member of the channel; the answer names its channels.", lasting=True
    ),
    "stale_claim": Failure(
        409,
        EXIT_REFUSED,
        "The agent gave the task back, or its claim ran out and another agent claimed it.",
        lasting=True,
    ),
    "task_conflict": Failure(409, EXIT_REFUSED, "The task's status does not allow this.", lasting=True),
    "version_conflict": Failure(
        409, EXIT_REFUSED, "The key is at another version, which the answer names.", lasting=True
    ),
    "too_many_calls": Failure(413, EXIT_USAGE, "The list has more calls than one request may make."),
    "body_too_large": Failure(413, EXIT_USAGE, "The body is larger than this path allows."),
    "document_too_large": Failure(413, EXIT_USAGE, "The document is larger than max_document_size."),
    "message_too_large": Failure(413, EXIT_USAGE, "The content is larger than max_message_size."),
    "uri_too_long": Failure(414, EXIT_USAGE, "The request line is longer than 8 KiB."),
    "content_type": Failure(415, EXIT_USAGE, "The body must be sent as application/json."),
    "expectation_failed": Failure(417, EXIT_USAGE, "The Expect header asks for something unknown."),
    "host_not_allowed": Failure(421, EXIT_REFUSED, "The Host header does not name this daemon."),
    "idempotency_mismatch": Failure(422, EXIT_REFUSED, "The idempotency key was already used with another body."),
    "rate_limited": Failure(429, EXIT_REFUSED, "Too many attempts within a minute."),
    "inbox_full": Failure(429, EXIT_REFUSED, "The recipient has inbox_limit queued messages."),
    "headers_too_large": Failure(431, EXIT_USAGE, "The headers are larger than 32 KiB."),
    "too_many_headers": Failure(431, EXIT_USAGE, "The request has more than 64 headers."),
    # the daemon
    "backup_failed": Failure(500, EXIT_REFUSED, "The copy could not be made; the database itself is not affected."),
    "internal": Failure(500, EXIT_REFUSED, "The daemon failed; its log has the request id."),
    "search_unavailable": Failure(501, EXIT_REFUSED, "This Python's SQLite has no full-text search."),
    "method_unknown": Failure(501, EXIT_USAGE, "The HTTP method is not supported."),
    "shutting_down": Failure(503, EXIT_REFUSED, "The daemon is stopping."),
    "storage_busy": Failure(503, EXIT_REFUSED, "The database stayed locked for too long; nothing was changed."),
    "storage_error": Failure(503, EXIT_STORAGE, "A write failed and its outcome is unknown; the daemon stops."),
    "storage_lost": Failure(503, EXIT_STORAGE, "The database file was removed or replaced; the daemon stops."),
    "too_many_connections": Failure(503, EXIT_REFUSED, "max_connections are open."),
    "too_many_waiters": Failure(503, EXIT_REFUSED, "The maximum number of calls is already waiting."),
    "http_version": Failure(505, EXIT_USAGE, "Only HTTP/1.0 and HTTP/1.1 are supported."),
    "storage_full": Failure(507, EXIT_STORAGE, "The disk is full; nothing was changed, and reads still work."),
    # startup and the command line: never sent over HTTP
    "address_in_use": Failure(500, EXIT_REFUSED, "Another program is listening on the port."),
    "client_check_failed": Failure(500, EXIT_REFUSED, "The command that setup configured does not answer correctly."),
    "client_config_broken": Failure(500, EXIT_USAGE, "A client's configuration file cannot be parsed."),
    "client_config_unwritable": Failure(500, EXIT_REFUSED, "A client's configuration file cannot be written."),
    "bad_file": Failure(500, EXIT_REFUSED, "A file given to a command cannot be read or written."),
    "license_invalid": Failure(500, EXIT_REFUSED, "The license document is not valid; the message says why."),
    "license_unknown": Failure(404, EXIT_NOT_FOUND, "The issuer has not issued such a license."),
    "bad_setting": Failure(500, EXIT_USAGE, "A setting is unknown, malformed, or out of range."),
    "not_understood": Failure(500, EXIT_USAGE, "The command line has a word that cannot be understood."),
    "not_confirmed": Failure(500, EXIT_REFUSED, "The replacement was not confirmed; nothing was changed."),
    "data_dir_locked": Failure(500, EXIT_LOCKED, "Another daemon uses the data directory."),
    "data_refused": Failure(
        500, EXIT_DATA, "The data directory is damaged, belongs to another program, or comes from a newer version."
    ),
    "service_failed": Failure(500, EXIT_REFUSED, "The system's service manager refused or does not exist."),
    "service_foreign": Failure(500, EXIT_REFUSED, "The service's file was not written by stonemux."),
    "unreachable": Failure(500, EXIT_UNREACHABLE, "No daemon answers."),
    "unsafe_environment": Failure(
        500,
        EXIT_UNSAFE,
        "The daemon would be open to others, its data would not be safe, or this Python lacks a module.",
    ),
}


class MuxError(Exception):
    """A refusal: `code` from `FAILURES`, a message that names parameter, limit, and remedy, and facts for programs.

    A fact that is None is left out. A `remedy` that is given separately is appended to the message after a semicolon;
    `problem` is the message without it. `retry_after` (seconds) becomes the `Retry-After` header; `close` says that the
    framing of the HTTP connection can no longer be trusted. `status` is the HTTP status.
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
        self.facts = {name: fact for name, fact in facts.items() if fact is not None}
        self.retry_after = retry_after
        self.close = close
        self.status = self.failure.http

    @property
    def failure(self) -> Failure:
        """This code's row of the table; a newer daemon may send codes that are not in it."""
        return FAILURES.get(self.code) or Failure(500, EXIT_REFUSED, "A code of a newer version.")

    def body(self, request_id: str | None = None) -> dict[str, Any]:
        """The error object, the same on every face."""
        told: dict[str, Any] = {"code": self.code, "message": self.message}
        if request_id is not None:
            told["request_id"] = request_id
        return {"error": told | self.facts}


def read_error(told: Mapping[str, Any], retry_after: str = "") -> MuxError:
    """The refusal in the `error` of a daemon's answer, with its Retry-After header."""
    error = MuxError(told["code"], told["message"])
    error.facts = {name: value for name, value in told.items() if name not in ("code", "message")}
    error.retry_after = int(retry_after) if retry_after.isdecimal() else None
    return error


CLOSE = 0.5
"""How similar two names must be for one to be suggested for the other."""


def nearest(wanted: str, known: Iterable[str], most: int = 5) -> list[str]:
    """The known names closest to `wanted`; if none is close, the first few.

    Callers choose these names, and the time must not grow with the square of their length, as it does in `guess`. So
    names are close if half of the pairs of neighboring letters in them are the same.
    """
    names, pairs = sorted(known), _pairs(wanted)
    alike = [(2 * len(pairs & other) / (len(pairs) + len(other)), name) for name in names if (other := _pairs(name))]
    close = sorted((one for one in alike if one[0] >= CLOSE), reverse=True)
    return [name for _, name in close[:most]] or names[:most]


def _pairs(name: str) -> set[tuple[str, str]]:
    return {*zip(f" {name}", f"{name} ", strict=True)}


def guess(wanted: str, known: Iterable[str], *, least: float = CLOSE) -> str:
    """The known name that was probably meant; "" if none is close, since a random suggestion would mislead."""
    import difflib  # only needed after a mistake, so startup does not load it

    return "".join(difflib.get_close_matches(wanted, sorted(known), n=1, cutoff=least))


def did_you_mean(name: str, then: str = "") -> str:
    """The end of a refusal: suggests `name`, unless it is empty, and continues with `then`."""
    return " ".join(filter(None, (f"; did you mean {name}?" if name else "." * bool(then), then)))
