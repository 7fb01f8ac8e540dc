"""The reference of the interface as Markdown, rendered from the operation table.

These are pure functions of the table, the settings, and `FAILURES`, so the reference never states a fact of its own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from stonemux import verbs
from stonemux.config import Settings
from stonemux.configtext import settings_table
from stonemux.errors import FAILURES
from stonemux.pool import in_query
from stonemux.refusals import ALWAYS, ON_GET, ON_POST, own_errors, sent
from stonemux.schema import MOST_INTEGER, MOST_INTEGERS, MOST_NAME, MOST_NAMES, MOST_TOGETHER, TIERS, Operation, Param

STREAM_EVENTS: Mapping[str, str] = {
    "agent_stale": "the daemon: an agent was silent for longer than stale_threshold",
    "message_dead": "the daemon: the last lease that max_deliveries allows ran out",
    "task_released": "the daemon: a lease ran out",
    "task_failed": "the daemon: the lease of the last attempt ran out",
    "task_ready": "the daemon: a handoff waited for a day",
    "task_assigned": "the daemon: it assigned work (dispatch.auto)",
    "webhook_disabled": "the daemon: an endpoint or a doorbell failed for too long, or answered 410",
    "gap": "the stream: events between two ids are no longer kept",
    "reset": "the stream: the given id is unknown; read everything again",
    "auth_expired": "the stream: the token it was opened with expired or was revoked",
    "upgrade_required": "the stream: the daemon's tier no longer includes streams",
    "shutdown": "the stream: the daemon is stopping; reconnect later",
}
"""Events that no operation emits, or not only operations, each with its source."""

SETTINGS_HEAD = """\
## Settings

A running daemon reloads those marked \\* on SIGHUP; the others take effect at its next start.

"""

MANY = (
    f"Over HTTP the body may also be a list of up to {MOST_TOGETHER} such objects: one transaction and one flush, "
    'answered with `{"results": [...]}` in the order of the list. Each is a call of its own, with its own '
    "`idempotency_key`: what is refused has `error` in its place and harms none of the others, and what repeats an "
    "earlier call has `replayed`."
)


def markdown(operations: Sequence[Operation], settings: Settings) -> str:
    """The text of `docs/reference.md`."""
    parts = [_CONVENTIONS.format(base=settings.url), _generic_errors(), _contents(operations)]
    for area in verbs.areas(operations):
        parts.append(f"## {area}")
        parts += [_section(operation, settings) for operation in operations if operation.area == area]
    parts += [_error_table(operations), _event_table(operations), SETTINGS_HEAD + settings_table()]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


_CONVENTIONS = """\
# Reference

Every operation that the daemon offers, with its parameters, limits, answers, and errors; then all error codes, event
types, and settings. Generated from the operation table; `make docs` rewrites it.

## Conventions

- **Address.** `{base}` unless the settings say otherwise. Bodies and answers are JSON objects in UTF-8; a POST says
  `Content-Type: application/json`. `HEAD` works wherever `GET` does: it waits for nothing and takes nothing.
- **Parameters** go in the query string of a GET and in the body of a POST. An unknown name is refused, and the refusal
  suggests the nearest known one. `null` means absent. Types are strict in JSON (`true` is not an integer); in a query
  string, integers are decimal, booleans are `true` or `false`, and lists are separated by commas.
- **Names** contain no control characters and do not begin or end with a blank; they are compared exactly.
- **Times** are RFC 3339 in UTC with milliseconds, like `2026-06-10T04:30:00.000Z`.
- **Ids.** Messages and events have integer ids: one increasing sequence each, in commit order, never reused. Tasks have
  UUIDs.
- **Errors.** A refusal looks like this on every path but `/mcp`, where it is a JSON-RPC error. `message` names the
  parameter, the limit, and the remedy; further fields let a program react without parsing prose; `request_id` is also
  in the header `X-Request-Id`:

  ```json
  {{"error": {{"code": "missing_field", "message": "to is required: ...", "request_id": "...", "parameter": "to"}}}}
  ```

- **Retries.** After a 429 or 503 with `Retry-After`, retry after that many seconds. After a 5xx or a broken connection,
  the outcome of a change is unknown, and repeating it with the same idempotency key is always safe.
- **Idempotency.** Every POST accepts the header `Idempotency-Key` or the field `idempotency_key` (1 to 128 visible
  ASCII characters; if both are given, they must be equal). For 24 hours, the same key with the same body gets the first
  answer again, with the header `Idempotent-Replayed: true`, and has no second effect; with another body, it is refused
  with 422 `idempotency_mismatch`. Successes are kept for this, and most refusals with 404
  or 409; after any other refusal, the call is made again.
- **Tiers.** An operation or parameter that needs a higher tier than the daemon's is refused with 402, `tier`, and
  `needed`. Where a license has too few agents for one more, `needed_seats` says how many it must have.
"""


def _generic_errors() -> str:
    def listed(codes: Iterable[str]) -> str:
        return ", ".join(f"`{code}`" for code in codes)

    return (
        f"### Errors of every call\n\nAny call may be refused with {listed(ALWAYS)}.\n\nA GET also with "
        f"{listed(ON_GET)}; a POST also with {listed(ON_POST)}.\n\n[Error codes](#error-codes) explains them; the "
        "operations below list only their additional codes."
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
    """The limits of a parameter in words, including the settings that decide them."""
    most = _most(param, settings)
    told = []
    if param.choices:
        told.append(", ".join(f"`{choice}`" for choice in param.choices))
    elif param.kind == "integer":
        told += _integer_limits(param, most)
    elif param.kind in ("text", "object") and most:
        told.append(f"up to {most} bytes")
    elif param.kind == "name":
        told.append(f"1 to {most or MOST_NAME} characters")
    if param.kind in ("names", "integers"):
        told.append(f"up to {most or (MOST_NAMES if param.kind == 'names' else MOST_INTEGERS)} entries")
    if param.clamp and most:
        told.append("higher values are capped")
    if param.tier != TIERS[0]:
        told.append(f"needs tier {param.tier}")
    return "; ".join(told)


def _integer_limits(param: Param, most: str) -> list[str]:
    if param.least is not None:
        return [f"{param.least} to {most}" if most else f"at least {param.least}"]
    return [f"at most {most}"] if most else []


def _most(param: Param, settings: Settings) -> str:
    """The upper limit in words, with the name of the setting that decides it, if any."""
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
        return "Answer: `application/jsonl`, one JSON object per line."
    return "Answer (`?` marks optional fields):\n\n```text\n" + sketch(operation.returns or "object") + "\n```"


_WIDTH = 100


def sketch(shape: Any, depth: int = 0) -> str:
    """An answer's shape in readable form; on one line if it fits."""
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


OWNERS = '  -H "Authorization: Bearer $(cat ~/.stonemux/owner.token)" \\\n'
"""The token of an operation that only the machine's owner may call."""


def curl(operation: Operation, settings: Settings) -> str:
    """The operation's example as a command line."""
    url = settings.url + operation.path
    if operation.changes:
        body = json.dumps(dict(operation.example), ensure_ascii=False)
        token = OWNERS if operation.owner else ""
        return f"curl -s {url} -H 'Content-Type: application/json' \\\n{token}  -d {shlex.quote(body)}"
    query = urlencode({name: in_query(name, value) for name, value in operation.example.items()}, quote_via=quote)
    flags = "-sN" if operation.kind == "stream" else "-s"
    return f"curl {flags} {shlex.quote(url + '?' + query) if query else url}"


def _error_table(operations: Sequence[Operation]) -> str:
    seen = sent(operations)
    rows = ["## Error codes", "", "| code | HTTP | exit status of a command | meaning |", "|---|---|---|---|"]
    for code, failure in FAILURES.items():
        rows.append(f"| `{code}` | {failure.http if code in seen else ''} | {failure.exit} | {_cell(failure.doc)} |")
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
