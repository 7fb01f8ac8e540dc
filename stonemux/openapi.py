"""The HTTP interface as an OpenAPI 3.1 document, rendered from the table of operations.

It is a pure function of the table and the settings. Parameters and answers are described by JSON Schema (2020-12),
which accepts what `schema.bind` accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from stonemux.config import Settings
from stonemux.errors import FAILURES
from stonemux.refusals import all_errors, sent
from stonemux.schema import (
    IDEMPOTENCY_KEY,
    MOST_INTEGER,
    MOST_INTEGERS,
    MOST_NAME,
    MOST_NAMES,
    MOST_TOGETHER,
    TIERS,
    Limits,
    Operation,
    Param,
)

_KEY = "idempotency_key"
_KEY_DOC = (
    "Makes the call safe to repeat: for 24 hours, the same key and body get the first answer again and have no second "
    "effect."
)


def document(operations: Sequence[Operation], settings: Settings, version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `operations`, with the limits of `settings`."""
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, settings)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "stonemux",
            "version": version,
            "description": "Agents register, exchange messages, share tasks and state, and follow events live.",
        },
        "servers": [{"url": settings.url}],
        "tags": [{"name": area} for area in dict.fromkeys(operation.area for operation in operations)],
        "paths": paths,
        "components": {"schemas": {"Error": _error_schema(operations)}, "headers": _headers()},
    }


def _operation(operation: Operation, settings: Settings) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": _description(operation),
        "tags": [operation.area],
    }
    parameters = _parameters(operation, settings)
    if parameters:
        told["parameters"] = parameters
    if operation.changes:
        told["requestBody"] = _body(operation, settings)
    errors = {str(status): _error(status, codes) for status, codes in all_errors(operation).items()}
    return told | {"responses": {"200": _answer(operation)} | errors}


def _description(operation: Operation) -> str:
    parts = [operation.doc]
    if operation.tier != TIERS[0]:
        parts.append(f"Needs tier {operation.tier}.")
    if operation.emits:
        parts.append(f"Emits: {', '.join(operation.emits)}.")
    return "\n\n".join(parts)


def _parameters(operation: Operation, settings: Settings) -> list[dict[str, Any]]:
    if operation.changes:
        return [_header("Idempotency-Key", _KEY_DOC, {"type": "string", "pattern": IDEMPOTENCY_KEY})]
    told = [_query(operation, param, settings) for param in operation.params]
    if operation.kind == "stream":
        text = "The last event seen; the stream continues after it."
        told.append(_header("Last-Event-ID", text, {"type": "string", "pattern": "^[0-9]{1,18}$"}))
    return told


def _header(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def _query(operation: Operation, param: Param, settings: Settings) -> dict[str, Any]:
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


def _body(operation: Operation, settings: Settings) -> dict[str, Any]:
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


def _answer(operation: Operation) -> dict[str, Any]:
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


def _error(status: int, codes: Sequence[str]) -> dict[str, Any]:
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


def _headers() -> dict[str, Any]:
    said = {
        "Allow": ("The methods that the path supports.", {"type": "string"}),
        "Idempotent-Replayed": ("`true`: the answer of an earlier call with this key.", {"type": "string"}),
        "Retry-After": ("Seconds to wait before trying again.", {"type": "integer", "minimum": 0}),
        "WWW-Authenticate": ("How to present a token.", {"type": "string"}),
        "X-Request-Id": ("The error's id, as in the daemon's log.", {"type": "string"}),
    }
    return {name: {"description": text, "schema": schema} for name, (text, schema) in said.items()}


def _error_schema(operations: Sequence[Operation]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": "Any refusal; fields beside the message let a program react without parsing prose.",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message", "request_id"],
                "properties": {
                    "code": {"type": "string", "enum": sent(operations)},
                    "message": {"type": "string"},
                    "request_id": {"type": "string"},
                },
            }
        },
    }


# --- JSON Schema


def shape_schema(shape: Any) -> dict[str, Any]:
    """The JSON Schema (2020-12) of an answer's shape; `schema` explains the notation."""
    if isinstance(shape, tuple):
        return {"anyOf": [shape_schema(one) for one in shape]}
    if isinstance(shape, list):
        return {"type": "array", "items": shape_schema(shape[0])}
    if isinstance(shape, dict):
        return {
            "type": "object",
            "properties": {name.rstrip("?"): shape_schema(inner) for name, inner in shape.items()},
            "required": [name for name in shape if not name.endswith("?")],
        }
    kind, _, null = shape.partition("|")
    base: dict[str, Any] = {"type": "string", "format": "date-time"} if kind == "time" else {"type": kind}
    if null:
        base["type"] = [base["type"], "null"]
    return base


def param_schema(param: Param, limits: Limits, *, textual: bool = False) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one parameter's values, accepting what `bind` accepts.

    In JSON, null stands for an optional parameter that is not given. `textual` describes a query string instead, which
    has no null and no commas within the entries of a list. A text's limit counts bytes, which JSON Schema cannot
    express: `maxLength` is then the largest number of characters that can fit.
    """
    apart = "," if textual and param.kind in ("names", "integers") else ""
    schema = _SCHEMAS[param.kind](param, param.upper(limits), apart)
    if not textual and not param.required:
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    if param.doc:
        schema["description"] = param.doc
    if not param.required and param.default is not None:
        schema["default"] = param.default_within(limits)
    return schema


# JavaScript and Python both read these regular expressions: no \s (its meaning differs) and no look-around.
_CONTROLS = r"\u0000-\u001f\u007f-\u009f"
_BLANKS = r"\u0020\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def _name_schema(param: Param, most: int | None, without: str) -> dict[str, Any]:
    if param.choices:
        return {"type": "string", "enum": list(param.choices)}
    inner, edge = f"[^{_CONTROLS}{without}]", f"[^{_CONTROLS}{_BLANKS}{without}]"
    pattern = f"^{edge}({inner}*{edge})?$"
    return {"type": "string", "minLength": 1, "maxLength": most or MOST_NAME, "pattern": pattern}


def _text_schema(param: Param, most: int | None, without: str) -> dict[str, Any]:
    if param.choices:
        return {"type": "string", "enum": list(param.choices)}
    schema: dict[str, Any] = {"type": "string"}
    if param.least:
        schema["minLength"] = param.least
    if most is not None:
        schema["maxLength"] = most
    return schema


def _integer_schema(param: Param, most: int | None, without: str) -> dict[str, Any]:
    least = -MOST_INTEGER if param.least is None else param.least
    return {"type": "integer", "minimum": least, "maximum": MOST_INTEGER if most is None or param.clamp else most}


def _names_schema(param: Param, most: int | None, without: str) -> dict[str, Any]:
    schema = {"type": "array", "items": _name_schema(param, param.longest, without), "maxItems": most or MOST_NAMES}
    return schema | {"minItems": 1} if without else schema


def _integers_schema(param: Param, most: int | None, without: str) -> dict[str, Any]:
    item = {"type": "integer", "minimum": 0, "maximum": MOST_INTEGER}
    return {"type": "array", "items": item, "minItems": 1, "maxItems": most or MOST_INTEGERS}


_SCHEMAS: dict[str, Callable[[Param, int | None, str], dict[str, Any]]] = {
    "integer": _integer_schema,
    "boolean": lambda param, most, without: {"type": "boolean"},
    "text": _text_schema,
    "name": _name_schema,
    "names": _names_schema,
    "integers": _integers_schema,
    "object": lambda param, most, without: {"type": "object"},
}
