"""The interface, described: OpenAPI and the Markdown reference, rendered from the operation table.

Pure functions of the table, the settings and `FAILURES`; nothing here is written by hand twice. What every operation
shares (refusals of the HTTP face, the idempotency key) is declared once below.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from stonemux import verbs
from stonemux.config import Settings
from stonemux.configtext import settings_table
from stonemux.errors import FAILURES
from stonemux.pool import in_query
from stonemux.schema import (
    IDEMPOTENCY_KEY,
    MOST_INTEGER,
    MOST_TOGETHER,
    TIERS,
    Operation,
    Param,
    param_schema,
    shape_schema,
)

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
"""Codes that any call may be answered with."""

ON_GET = ("invalid_query",)
"""Further codes of every GET."""

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
"""Further codes of every POST."""

STREAM_EVENTS: Mapping[str, str] = {
    "agent_stale": "by itself: an agent was silent for longer than stale_threshold",
    "message_dead": "by itself: the last lease that max_deliveries allows ran out",
    "task_released": "by itself: a lease ran out",
    "task_failed": "by itself: the lease of the last attempt ran out",
    "task_ready": "by itself: a handoff waited for a day",
    "task_assigned": "by itself: the daemon gave out work (dispatch.auto)",
    "webhook_disabled": "by itself: an endpoint or a doorbell failed for too long, or answered 410",
    "gap": "by itself: the stream tells that events between two ids are no longer kept",
    "reset": "by itself: the stream tells that the given id is unknown; read everything anew",
    "auth_expired": "by itself: the token that the stream was opened with has run out or was revoked",
    "upgrade_required": "by itself: the daemon's tier no longer has streams",
    "shutdown": "by itself: the daemon is stopping; connect again later",
}
"""What happens by itself: events that no operation emits, or not alone."""

_KEY = "idempotency_key"
_KEY_DOC = (
    "Makes repeating the call safe: within 24 hours the same key and body give the first answer again and have no "
    "second effect."
)
SETTINGS_HEAD = """\
## Settings

A running daemon takes over those marked \\* when it is sent SIGHUP; the others wait for its next start.

"""


MANY = (
    f"Over HTTP the body may also be a list of up to {MOST_TOGETHER} such objects: one transaction and one flush, "
    'answered with `{"results": [...]}` in the order of the list. Each is a call of its own, with its own '
    "`idempotency_key`: what is refused has `error` in its place and harms none of the others."
)


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
    """Every code that a call of the operation may be answered with, by HTTP status."""
    shared = ALWAYS + (ON_POST if operation.changes else ON_GET)
    by_status: dict[int, list[str]] = {}
    for code in sorted({*own_errors(operation), *shared}, key=lambda code: (FAILURES[code].http, code)):
        by_status.setdefault(FAILURES[code].http, []).append(code)
    return by_status


# --- OpenAPI


def openapi(operations: Sequence[Operation], settings: Settings, version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `operations`, with the limits of `settings`."""
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _api_operation(operation, settings)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "stonemux",
            "version": version,
            "description": "Agents register, talk, share work and state, and watch each other live.",
        },
        "servers": [{"url": _base(settings)}],
        "tags": [{"name": area} for area in _areas(operations)],
        "paths": paths,
        "components": {"schemas": {"Error": _error_schema(operations)}, "headers": _api_headers()},
    }


def _base(settings: Settings) -> str:
    return f"{settings.scheme}://{settings.authority}"


def _area(operation: Operation) -> str:
    return operation.name.partition(".")[0]


def _areas(operations: Iterable[Operation]) -> list[str]:
    return list(dict.fromkeys(_area(operation) for operation in operations))


def _api_operation(operation: Operation, settings: Settings) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": _api_description(operation),
        "tags": [_area(operation)],
    }
    parameters = _api_parameters(operation, settings)
    if parameters:
        told["parameters"] = parameters
    if operation.changes:
        told["requestBody"] = _api_body(operation, settings)
    errors = {str(status): _api_error(status, codes) for status, codes in all_errors(operation).items()}
    return told | {"responses": {"200": _api_answer(operation)} | errors}


def _api_description(operation: Operation) -> str:
    parts = [operation.doc]
    if operation.tier != TIERS[0]:
        parts.append(f"Needs tier {operation.tier}.")
    if operation.emits:
        parts.append(f"Emits: {', '.join(operation.emits)}.")
    return "\n\n".join(parts)


def _api_parameters(operation: Operation, settings: Settings) -> list[dict[str, Any]]:
    if operation.changes:
        return [_api_header("Idempotency-Key", _KEY_DOC, {"type": "string", "pattern": IDEMPOTENCY_KEY})]
    told = [_api_query(operation, param, settings) for param in operation.params]
    if operation.kind == "stream":
        text = "The last event that was seen; the stream goes on after it."
        told.append(_api_header("Last-Event-ID", text, {"type": "string", "pattern": "^[0-9]{1,18}$"}))
    return told


def _api_header(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def _api_query(operation: Operation, param: Param, settings: Settings) -> dict[str, Any]:
    schema = param_schema(param, settings, textual=True)
    told: dict[str, Any] = {"name": param.name, "in": "query", "required": param.required}
    if text := schema.pop("description", ""):
        told["description"] = text
    if schema["type"] == "array":  # comma-separated
        told |= {"style": "form", "explode": False}
    told["schema"] = schema
    if param.name in operation.example:
        told["example"] = operation.example[param.name]
    return told


def _api_body(operation: Operation, settings: Settings) -> dict[str, Any]:
    properties = {param.name: param_schema(param, settings) for param in operation.params}
    properties[_KEY] = {"type": ["string", "null"], "pattern": IDEMPOTENCY_KEY, "description": _KEY_DOC}
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if operation.needed:
        schema["required"] = [param.name for param in operation.needed]
    for pair in operation.either:
        schema["oneOf"] = [_given_alone(one, pair, properties) for one in pair]
    if operation.many:
        several = {"type": "array", "items": schema, "minItems": 1, "maxItems": MOST_TOGETHER}
        schema = {"anyOf": [schema, several]}
    content: dict[str, Any] = {"schema": schema}
    if operation.example:
        content["example"] = dict(operation.example)
    return {"required": True, "content": {"application/json": content}}


def _given_alone(given: Param, pair: tuple[Param, Param], properties: dict[str, Any]) -> dict[str, Any]:
    """A body that has this one of two parameters, and not the other."""
    told = {
        param.name: {"type": [t for t in properties[param.name]["type"] if (t == "null") != (param is given)]}
        for param in pair
    }
    return {"required": [given.name], "properties": told}


def _api_answer(operation: Operation) -> dict[str, Any]:
    schema: dict[str, Any]
    if operation.kind == "stream":
        kind, schema = "text/event-stream", {"type": "string"}
    elif operation.kind == "text":
        kind, schema = "text/plain", {"type": "string"}
    elif operation.kind == "lines":
        kind, schema = "application/jsonl", {"type": "string"}
    else:
        kind, schema = "application/json", shape_schema(operation.returns or "object")
        if operation.many:
            schema = {"anyOf": [schema, shape_schema({"results": ["object"]})]}
    told: dict[str, Any] = {"description": "Done.", "content": {kind: {"schema": schema}}}
    if operation.changes:
        told["headers"] = _header_refs("Idempotent-Replayed")
    return told


def _api_error(status: int, codes: Sequence[str]) -> dict[str, Any]:
    names = ["X-Request-Id"]
    names += ["WWW-Authenticate"] if status == HTTPStatus.UNAUTHORIZED else []
    names += ["Allow"] if status == HTTPStatus.METHOD_NOT_ALLOWED else []
    names += ["Retry-After"] if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE) else []
    return {
        "description": "\n".join(f"- `{code}`: {FAILURES[code].doc}" for code in codes),
        "headers": _header_refs(*names),
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }


def _header_refs(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _api_headers() -> dict[str, Any]:
    said = {
        "Allow": ("The methods that the path takes.", {"type": "string"}),
        "Idempotent-Replayed": ("`true`: the answer of an earlier call with this key.", {"type": "string"}),
        "Retry-After": ("Seconds to wait before trying again.", {"type": "integer", "minimum": 0}),
        "WWW-Authenticate": ("How to show a token.", {"type": "string"}),
        "X-Request-Id": ("The error's id, as in the daemon's log.", {"type": "string"}),
    }
    return {name: {"description": text, "schema": schema} for name, (text, schema) in said.items()}


def _error_schema(operations: Sequence[Operation]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": "Any refusal; further facts beside the message let a program go on without reading prose.",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message", "request_id"],
                "properties": {
                    "code": {"type": "string", "enum": _sent(operations)},
                    "message": {"type": "string"},
                    "request_id": {"type": "string"},
                },
            }
        },
    }


def _sent(operations: Iterable[Operation]) -> list[str]:
    """The codes that are seen over HTTP; with status 500, only those that an operation names are."""
    named = {*ALWAYS, *(code for operation in operations for code in own_errors(operation))}
    return [code for code, failure in FAILURES.items() if failure.http != 500 or code in named]


# --- Markdown


def markdown(operations: Sequence[Operation], settings: Settings) -> str:
    """The text of `docs/reference.md`."""
    parts = [_CONVENTIONS.format(base=_base(settings)), _generic_errors(), _contents(operations)]
    for area in _areas(operations):
        parts.append(f"## {area}")
        parts += [_section(operation, settings) for operation in operations if _area(operation) == area]
    parts += [_error_table(operations), _event_table(operations), SETTINGS_HEAD + settings_table()]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


_CONVENTIONS = """\
# Reference

Generated from the operation table; `make docs` rewrites it.

## Conventions

- **Address.** `{base}` unless the settings say otherwise. Bodies and answers are JSON objects in UTF-8; a POST says
  `Content-Type: application/json`. `HEAD` works wherever `GET` does: it waits for nothing and takes nothing.
- **Parameters.** In the query string of a GET, in the body of a POST. An unknown name is refused and the nearest known
  one told. `null` means absent. Types are strict in JSON (`true` is no integer); in a query string integers are written
  in decimal, booleans as `true` or `false`, lists separated by commas.
- **Names** have no control characters and neither begin nor end with a blank; they are compared exactly.
- **Times** are RFC 3339 in UTC with milliseconds, like `2026-06-10T04:30:00.000Z`.
- **Ids.** Messages and events have integer ids, each one increasing sequence in the order of commits, never reused.
  Tasks have UUIDs.
- **Errors.** A refusal looks like this on every path; `message` names the parameter, the limit and the remedy, further
  facts beside it let a program go on without reading prose, `request_id` is also the header `X-Request-Id`:

  ```json
  {{"error": {{"code": "missing_field", "message": "to is required: ...", "request_id": "...", "parameter": "to"}}}}
  ```

- **Trying again.** A status of 429 or 503 with `Retry-After` may be tried again after so many seconds. After a 5xx or a
  broken connection the outcome of a change is unknown, and repeating it with the same idempotency key is always safe.
- **Idempotency.** Every POST takes the header `Idempotency-Key` or the field `idempotency_key` (1 to 128 visible ASCII
  characters; if both are given they must be equal). Within 24 hours the same key with the same body gives the first
  answer again, with the header `Idempotent-Replayed: true`, and no second effect; with another body it is refused with
  422 `idempotency_mismatch`.
- **Tiers.** An operation or parameter that needs a higher tier than the daemon has is refused with 402, `tier` and
  `needed`.
"""


def _generic_errors() -> str:
    def listed(codes: Iterable[str]) -> str:
        return ", ".join(f"`{code}`" for code in codes)

    return (
        "### Errors of every call\n\n"
        f"Any call may be refused with {listed(ALWAYS)}.\n\n"
        f"A GET also with {listed(ON_GET)}; a POST also with {listed(ON_POST)}.\n\n"
        "They are explained under [Error codes](#error-codes); the operations below list only what they add."
    )


def _contents(operations: Sequence[Operation]) -> str:
    rows = ["## Operations", "", "| operation | HTTP | MCP tool | tier | purpose |", "|---|---|---|---|---|"]
    for one in operations:
        link = f"[{one.name}](#{_anchor(one.name)})"
        tool = f"`{one.tool}`" if one.tool else ""
        rows.append(f"| {link} | {one.method} `{one.path}` | {tool} | {one.tier} | {_cell(one.summary)} |")
    return "\n".join(rows)


def _anchor(heading: str) -> str:
    return heading.replace(".", "").lower()


def _section(operation: Operation, settings: Settings) -> str:
    told = [f"{operation.method} `{operation.path}`", f"tier {operation.tier}"]
    if operation.tool:
        told.insert(1, f"MCP tool `{operation.tool}`")
    parts = [f"### {operation.name}", " · ".join(told), operation.doc]
    if operation.many:
        parts.append(MANY)
    if operation.params:
        parts.append(_param_table(operation, settings))
    parts.append(_answer(operation))
    if errors := own_errors(operation):
        parts.append("\n".join(["Errors:", "", *(_error_line(code) for code in errors)]))
    if operation.emits:
        parts.append(f"Emits: {', '.join(f'`{event}`' for event in operation.emits)}.")
    parts.append("Example:\n\n```sh\n" + curl(operation, settings) + "\n" + verbs.example(operation) + "\n```")
    return "\n\n".join(parts)


def _error_line(code: str) -> str:
    return f"- {FAILURES[code].http} `{code}`: {FAILURES[code].doc}"


_KIND_WORDS = {"names": "list of names", "integers": "list of integers"}


def _param_table(operation: Operation, settings: Settings) -> str:
    rows = ["| parameter | type | default | limits | meaning |", "|---|---|---|---|---|"]
    for param in operation.params:
        cells = (
            f"`{param.name}`",
            _KIND_WORDS.get(param.kind, param.kind),
            _default(param),
            limits(param, settings),
            param.doc,
        )
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _default(param: Param) -> str:
    if param.required:
        return "required"
    return "" if param.default is None else f"`{json.dumps(param.default)}`"


def limits(param: Param, settings: Settings) -> str:
    """The limits of a parameter in words, the settings that decide them included."""
    most = _most(param, settings)
    told = []
    if param.choices:
        told.append(", ".join(f"`{choice}`" for choice in param.choices))
    elif param.kind == "integer":
        told += _integer_limits(param, most)
    elif param.kind == "text" and most:
        told.append(f"up to {most} bytes")
    elif param.kind == "name":
        told.append(f"1 to {most or 128} characters")
    if param.kind in ("names", "integers"):
        told.append(f"up to {most or (256 if param.kind == 'names' else 1000)} entries")
    if param.clamp and most:
        told.append("more is taken as the most")
    if param.tier != TIERS[0]:
        told.append(f"needs tier {param.tier}")
    return "; ".join(told)


def _integer_limits(param: Param, most: str) -> list[str]:
    if param.least is not None:
        return [f"{param.least} to {most}" if most else f"at least {param.least}"]
    return [f"at most {most}"] if most else []


def _most(param: Param, settings: Settings) -> str:
    """The upper limit in words; one that the settings decide is named too."""
    limit = param.upper(settings)
    if limit is None or limit == MOST_INTEGER:
        return ""
    return f"{limit} (setting `{param.most}`)" if isinstance(param.most, str) else str(limit)


def _answer(operation: Operation) -> str:
    if operation.kind == "stream":
        return "Answer: `text/event-stream`, each event with `id`, `event` and `data` (JSON)."
    if operation.kind == "text":
        return "Answer: `text/plain`."
    if operation.kind == "lines":
        return "Answer: `application/jsonl`, a JSON object a line."
    return "Answer (`?` marks what may be absent):\n\n```text\n" + sketch(operation.returns or "object") + "\n```"


_WIDTH = 100


def sketch(shape: Any, depth: int = 0) -> str:
    """An answer's shape as people read it; on one line where it fits."""
    short = _short(shape)
    if len(short) + 2 * depth <= _WIDTH or not isinstance(shape, dict | list | tuple):
        return short
    if isinstance(shape, list):
        return "[" + sketch(shape[0], depth) + "]"
    if isinstance(shape, tuple):
        return " or ".join(sketch(one, depth) for one in shape)
    indent = "  " * (depth + 1)
    lines = [f"{indent}{_field(name)}: {sketch(inner, depth + 1)}" for name, inner in shape.items()]
    return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"


def _short(shape: Any) -> str:
    if isinstance(shape, dict):
        return "{" + ", ".join(f"{_field(name)}: {_short(inner)}" for name, inner in shape.items()) + "}"
    if isinstance(shape, list):
        return f"[{_short(shape[0])}]"
    if isinstance(shape, tuple):
        return " or ".join(_short(one) for one in shape)
    return str(shape).replace("|", " or ")


def _field(name: str) -> str:
    return f'"{name.rstrip("?")}"' + ("?" if name.endswith("?") else "")


def curl(operation: Operation, settings: Settings) -> str:
    """The operation's example as a command line."""
    url = _base(settings) + operation.path
    if operation.changes:
        body = json.dumps(dict(operation.example), ensure_ascii=False)
        return f"curl -s {url} -H 'Content-Type: application/json' \\\n  -d {shlex.quote(body)}"
    query = urlencode({name: in_query(name, value) for name, value in operation.example.items()}, quote_via=quote)
    flags = "-sN" if operation.kind == "stream" else "-s"
    return f"curl {flags} {shlex.quote(url + '?' + query) if query else url}"


def _error_table(operations: Sequence[Operation]) -> str:
    sent = _sent(operations)
    rows = ["## Error codes", "", "| code | HTTP | exit status of a command | meaning |", "|---|---|---|---|"]
    for code, failure in FAILURES.items():
        rows.append(f"| `{code}` | {failure.http if code in sent else ''} | {failure.exit} | {_cell(failure.doc)} |")
    return "\n".join(rows)


def _event_table(operations: Sequence[Operation]) -> str:
    by_event: dict[str, list[str]] = {}
    for operation in operations:
        for event in operation.emits:
            by_event.setdefault(event, []).append(f"[{operation.name}](#{_anchor(operation.name)})")
    for event, text in STREAM_EVENTS.items():
        by_event.setdefault(event, []).append(text)
    told = {event: ", ".join(names) for event, names in by_event.items()}
    rows = ["## Event types", "", "| type | comes from |", "|---|---|"]
    return "\n".join(rows + [f"| `{event}` | {_cell(text)} |" for event, text in told.items()])
