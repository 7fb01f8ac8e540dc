"""What operations and their parameters are, and how given values are checked.

`Operation` is a row of the table in `operations.py`; `Param` is one of its parameters. `bind` turns the values that a
face received into the keyword arguments of the row's function, or refuses them with a message that names the parameter,
the limit, and the remedy. Everything that describes the interface (routes, JSON Schema, OpenAPI, reference, command
line) is rendered from these two.

Shapes of answers are written in a small notation: `"string"`, `"integer"`, `"boolean"`, `"number"`, `"time"`,
`"object"` (any JSON object), `[shape]` for a list, `{"field": shape}` for an object with these fields, `(shape, shape)`
for one of these shapes. A field whose name ends in `?` may be absent; a type that ends in `|null` may be null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from functools import cache, cached_property
from importlib import import_module
from typing import Any

from stonemux.errors import MuxError, did_you_mean, guess
from stonemux.record import Record, field

REQUIRED: Any = object()
"""The default of a required parameter."""

MOST_TOGETHER = 1000
"""The most calls in one request."""

MOST_WAIT = 31_536_000
"""The longest wait, in seconds (one year); a longer one is shortened to this."""

BODY_LIMIT = 1024 * 1024
"""The most bytes in a request's body, unless its operation allows more."""

TARGETS = ("task_id", "to", "group", "key", "name", "id", "path", "jti", "lic_id", "agent_id")
"""The target of a call for the audit log: the first of these among its parameters, or else in its answer."""

TIERS = ("free", "pro", "enterprise")

MOST_INTEGER = 2**63 - 1
MOST_NAME, MOST_NAMES, MOST_INTEGERS = 128, 256, 1000
"""The most characters in a name, and entries in a list of names or integers, unless a parameter says otherwise."""
_DECIMAL = re.compile(r"-?[0-9]{1,19}\Z")
_UNSAFE_NAME = re.compile("[\x00-\x1f\x7f-\x9f]")

IDEMPOTENCY_KEY = "^[!-~]{1,128}$"
"""A pattern for idempotency keys: visible ASCII without spaces, because a header value loses its outer spaces."""

OTHER_WORDS: Mapping[str, tuple[str, ...]] = {
    "message": ("content",),
    "msg": ("content",),
    "text": ("content", "value", "description", "note"),
    "body": ("content", "description"),
    "data": ("content", "value"),
    "sender": ("from",),
    "author": ("from", "posted_by", "created_by"),
    "recipient": ("to",),
    "receiver": ("to",),
    "agent": ("agent_id", "from", "posted_by"),
    "name": ("agent_id", "key", "title", "channel"),
    "id": ("ids", "task_id", "agent_id"),
    "task": ("task_id", "description"),
    "title": ("description", "subject"),
    "output": ("result",),
    "error": ("result",),
    "wait": ("timeout",),
    "query": ("q",),
}
"""Wrong parameter names that callers may try, and what they may mean: the first one that the operation has."""

Limits = Any
"""The settings record; a limit given as a string is the name of a setting."""


class Param(Record):
    """One parameter.

    `kind` is a key of `KINDS`; `least` and `most` bound a number's value, a name's characters, a text's UTF-8 bytes, a
    list's length, or an object's bytes as JSON (a limit that is a string names a setting); `into` is the argument's
    name in Python if the wire name is a keyword there; `code` is the error code for a bad value, and `too_large` the
    one for a text that is too long, if that differs; `tier` is the tier that a value other than the default needs.
    """

    name: str
    kind: str = "text"
    default: Any = None
    least: int | None = None
    most: int | str | None = None
    choices: tuple[str, ...] = ()
    doc: str = ""
    into: str = ""
    code: str = "invalid_field"
    too_large: str = ""
    tier: str = "free"
    longest: int = MOST_NAME
    """The most characters in each entry of a list of names."""
    either: str = ""
    """The other parameter of a pair of which exactly one must be given."""
    clamp: bool = False
    """Whether a number above `most` is reduced to `most` instead of being refused."""
    brief: str = ""
    """What a tool's schema says about it, besides its limits; models pay for every word."""
    listed: bool = True
    """Whether a tool's schema lists it; a tool accepts it either way."""
    acts: bool = False
    """Whether it says who acts; a token that is bound to an agent allows no other value."""
    argument: str = field(init=False)
    """The name of the function's argument."""
    check: Callable[[Param, Any, Limits], Any] = field(init=False)
    """Returns the checked value, or raises."""

    def derive(self) -> None:
        """Set the argument's name and the function that checks values."""
        self.__dict__.update(argument=self.into or self.name, check=KINDS[self.kind])

    @cached_property
    def entry(self) -> Param:
        """An entry of a list of names, as a parameter of its own."""
        return Param(f"each of {self.name}", code=self.code, most=self.longest)

    @property
    def required(self) -> bool:
        """Whether a call without it is refused."""
        return self.default is REQUIRED

    def upper(self, limits: Limits) -> int | None:
        """The upper limit, read from the settings if it is one."""
        return getattr(limits, self.most) if isinstance(self.most, str) else self.most

    def default_within(self, limits: Limits) -> Any:
        """The default, but never more than the upper limit from the settings."""
        most = self.upper(limits)
        return min(self.default, most) if self.clamp and self.default is not None and most is not None else self.default

    def refuse(self, problem: str, **facts: Any) -> MuxError:
        """The error for a bad value of this parameter."""
        return MuxError(self.code, f"{self.name} {problem}", parameter=self.name, **facts)


class Operation(Record):
    """A row of the operation table.

    `handler` names the function that runs, as `module.function`, because some programs read the table and never run a
    function. `kind` says how it is called (the head of `operations` lists the kinds); `waiter` runs instead of a change
    that is given a timeout, and `nothing` is the answer of a change that found nothing to do. `slow` marks an operation
    that may take long, so that a face does not make others wait for it. `actor` names the parameter that holds the
    acting agent. `frees` marks a change that settles or ends something, so it must work even when the disk is full.
    `many` allows the HTTP body to be a list of up to `MOST_TOGETHER` calls, which form one transaction. `most_body` is
    the most bytes that the HTTP body may have. `open` marks an operation that never needs a token, `owner` one that
    needs the token of the machine's owner.

    For tools: `brief` describes the operation to a model; `takes` marks a GET that hands something out for good,
    `repeatable` a POST that has the same effect when it is made twice.
    """

    name: str
    method: str
    path: str
    kind: str
    handler: str
    doc: str
    params: tuple[Param, ...] = ()
    returns: Any = None
    tool: str = ""
    tier: str = "free"
    actor: str = ""
    errors: tuple[str, ...] = ()
    emits: tuple[str, ...] = ()
    example: Mapping[str, Any] = field(default={})
    waiter: str = ""
    nothing: Any = None
    slow: bool = False
    brief: str = ""
    takes: bool = False
    repeatable: bool = False
    frees: bool = False
    many: bool = False
    most_body: int = BODY_LIMIT
    open: bool = False
    owner: bool = False
    by_name: Mapping[str, Param] = field(init=False)
    by: str = field(init=False)
    """The function's argument that holds the acting agent."""
    defaults: Mapping[str, Any] = field(init=False)
    needed: tuple[Param, ...] = field(init=False)
    clamped: tuple[Param, ...] = field(init=False)
    either: tuple[tuple[Param, Param], ...] = field(init=False)
    """Pairs of parameters of which exactly one must be given."""
    acting: tuple[Param, ...] = field(init=False)
    tiered: tuple[Param, ...] = field(init=False)
    """Parameters of which some values need a higher tier."""
    targets: tuple[str, ...] = field(init=False)
    """The parameters that may hold the target of a call, in order of preference."""
    pages: str = field(init=False)
    """The list in the answer that comes in pages, if it does; each record's first field identifies it."""
    changes: bool = field(init=False)
    """Whether a call may change something, and so accepts an idempotency key."""

    def derive(self) -> None:
        """Compute what `bind` and `door` would otherwise compute for every call."""
        by_name = {param.name: param for param in self.params}
        self.__dict__.update(
            by_name=by_name,
            by=by_name[self.actor].argument if self.actor else "",
            defaults={param.argument: param.default for param in self.params if not param.required},
            needed=tuple(param for param in self.params if param.required),
            acting=tuple(param for param in self.params if param.acts),
            tiered=tuple(param for param in self.params if param.tier != "free"),
            clamped=tuple(param for param in self.params if param.clamp and not param.required),
            either=tuple((param, by_name[param.either]) for param in self.params if param.either),
            targets=tuple(name for name in TARGETS if name in by_name and name != self.actor),
            pages=next(iter(self.returns)) if self.returns and "more?" in self.returns else "",
            changes=self.method == "POST",
        )

    @property
    def area(self) -> str:
        """The group of operations that it belongs to: the first part of its name."""
        return self.name.partition(".")[0]

    @property
    def typed(self) -> str:
        """The operation as a command line."""
        return f"stonemux {self.name.replace('.', ' ')}"

    @property
    def echoes(self) -> bool:
        """Whether the texts in its answer are ones that its caller sent, or was given before."""
        return self.changes and self.nothing is None

    @property
    def summary(self) -> str:
        """The first sentence of `doc`, without its period."""
        return self.doc.partition(". ")[0].strip().rstrip(".")

    def asked_wait(self, given: Mapping[str, Any]) -> int:
        """The seconds that such a call asks to wait, at most a year; 0 if it cannot wait or gives no integer."""
        wait = given.get("timeout", self.by_name["timeout"].default) if "timeout" in self.by_name else 0
        return min(max(0, wait), MOST_WAIT) if type(wait) is int else 0

    @cached_property
    def run(self) -> Callable[..., Any]:
        """The function that `handler` names."""
        return _function(self.handler)

    @cached_property
    def wait(self) -> Callable[..., Any] | None:
        """The function that `waiter` names."""
        return _function(self.waiter) if self.waiter else None

    def load(self) -> None:
        """Import the functions, if there are any."""
        for name in filter(None, (self.handler, self.waiter)):
            _function(name)


@cache
def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(".")
    found: Callable[..., Any] = getattr(import_module(f"stonemux.{module}"), function)
    return found


def bind(operation: Operation, given: Mapping[str, Any], limits: Limits, *, textual: bool = False) -> dict[str, Any]:
    """Check `given` against the operation's parameters.

    `textual` says that the values come from a query string, where everything is text: integers in decimal, booleans as
    true or false, lists separated by commas. Returns the keyword arguments for `run`. Raises `unknown_field`,
    `missing_field`, or the parameter's own code.
    """
    values = dict(operation.defaults)
    for clamped in operation.clamped:
        values[clamped.argument] = clamped.default_within(limits)
    by_name = operation.by_name
    for name, value in given.items():
        param = by_name.get(name)
        if param is None:
            raise _unknown(operation, name)
        if value is None:
            continue
        if textual:
            value = _from_text(param, value)
        values[param.argument] = param.check(param, value, limits)
    if len(values) < len(operation.params):
        param = next(param for param in operation.params if param.argument not in values)
        raise MuxError(
            "missing_field", f"{param.name} is required: {param.doc or 'give it a value'}", parameter=param.name
        )
    for one, other in operation.either:
        if (values[one.argument] is None) == (values[other.argument] is None):
            raise _not_one(one, other, values)
    return values


def _not_one(one: Param, other: Param, values: Mapping[str, Any]) -> MuxError:
    if values[one.argument] is None:
        return MuxError(
            "missing_field",
            f"{one.name} or {other.name} is required. {one.name}: {one.doc} {other.name}: {other.doc}",
            parameter=one.name,
        )
    return MuxError("invalid_field", f"{one.name} and {other.name} are both given; give only one", parameter=other.name)


def _unknown(operation: Operation, name: str) -> MuxError:
    known = list(operation.by_name)
    if operation.changes:
        known.append("idempotency_key")
    close = meant(name, known)
    return MuxError(
        "unknown_field",
        f"{operation.name} has no parameter {shown(name)}"
        + did_you_mean(close, f"It accepts: {', '.join(known) or 'none'}"),
        parameter=name[:128],
        nearest=close or guess(name, known, least=0) or None,
        accepted=known,
    )


def malformed_key() -> MuxError:
    """The refusal of a malformed idempotency key."""
    return MuxError(
        "invalid_idempotency_key",
        "an idempotency key must have 1 to 128 printable ASCII characters, without blanks",
        parameter="idempotency_key",
    )


def meant(name: str, known: Collection[str]) -> str:
    """The parameter that an unknown name probably means, or "" if there is no good guess."""
    words = OTHER_WORDS.get(name, ())
    return next((word for word in words if word in known), "") or guess(name, known)


def shown(text: str) -> str:
    """`text` quoted for a message, truncated so that one bad name cannot fill a log."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def from_decimal(text: str) -> int | str:
    """The integer that a text denotes; any other text unchanged, for `bind` to refuse."""
    return int(text) if _DECIMAL.match(text) else text


def _from_text(param: Param, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if param.kind == "integer":
        return from_decimal(value)
    if param.kind == "boolean" and value in ("true", "false"):
        return value == "true"
    if param.kind == "names":
        return value.split(",")
    if param.kind == "integers":
        return [from_decimal(part) for part in value.split(",")]
    return value


def _integer(param: Param, value: Any, limits: Limits) -> int:
    if type(value) is not int:
        raise param.refuse(f"must be an integer{_range(param, limits)}")
    most = param.upper(limits)
    if abs(value) > MOST_INTEGER:
        raise param.refuse(f"must be an integer{_range(param, limits)}; this one has more than 63 bits")
    if most is not None and value > most:
        if param.clamp:
            return most
        raise param.refuse(f"is {value}; it must be an integer{_range(param, limits)}", limit=most)
    if param.least is not None and value < param.least:
        raise param.refuse(f"is {value}; it must be an integer{_range(param, limits)}", limit=param.least)
    return value


def _range(param: Param, limits: Limits) -> str:
    most = param.upper(limits)
    if param.least is None and most is None:
        return ""
    return f" from {param.least} to {most}" if most is not None else f" of at least {param.least}"


def _boolean(param: Param, value: Any, limits: Limits) -> bool:
    if type(value) is not bool:
        raise param.refuse("must be true or false")
    return value


def _text(param: Param, value: Any, limits: Limits) -> str:
    if type(value) is not str:
        raise param.refuse("must be a string")
    most = param.upper(limits)
    # A character is at most four bytes, so most texts pass without being encoded.
    if most is not None and len(value) * 4 > most and (size := len(value.encode())) > most:
        remedy = "send less"
        if param.most == "max_message_size":
            place = f"as {param.either}" if param.either else "instead"
            remedy = f"send less, or store it in a document (document.create) and send its id {place}"
        raise MuxError(
            param.too_large or param.code,
            f"{param.name} has {size} bytes of UTF-8, more than the limit of {most}; {remedy}",
            parameter=param.name,
            limit=most,
        )
    if param.least and len(value) < param.least:
        raise param.refuse("must not be empty", limit=param.least)
    if param.choices and value not in param.choices:
        raise param.refuse(f"is {shown(value)}, not one of: {', '.join(param.choices)}", accepted=list(param.choices))
    return value


def _name(param: Param, value: Any, limits: Limits) -> str:
    if type(value) is not str:
        raise param.refuse("must be a string")
    most = param.upper(limits) or MOST_NAME
    if not 0 < len(value) <= most:
        raise param.refuse(f"has {len(value)} characters; it must have 1 to {most}", limit=most)
    if not value.isprintable() and _UNSAFE_NAME.search(value):
        raise param.refuse("must not contain control characters")
    if value != value.strip():
        raise param.refuse("must not begin or end with a blank")
    return value


def _names(param: Param, value: Any, limits: Limits) -> list[str]:
    if type(value) is not list:
        raise param.refuse("must be a list of strings")
    most = param.upper(limits) or MOST_NAMES
    if len(value) > most:
        raise param.refuse(f"has {len(value)} entries, more than the limit of {most}; send fewer", limit=most)
    try:
        checked = list(dict.fromkeys(_name(param.entry, entry, limits) for entry in value))
    except MuxError as error:
        error.facts["parameter"] = param.name
        raise
    for entry in checked:
        if param.choices and entry not in param.choices:
            raise param.refuse(f"contains {shown(entry)}, not one of: {', '.join(param.choices)}")
    return checked


def _integers(param: Param, value: Any, limits: Limits) -> list[int]:
    if type(value) is not list or not value or any(type(entry) is not int for entry in value):
        raise param.refuse("must be a list of at least one integer")
    most = param.upper(limits) or MOST_INTEGERS
    if len(value) > most:
        raise param.refuse(f"has {len(value)} entries, more than the limit of {most}; send fewer", limit=most)
    if any(not 0 <= entry <= MOST_INTEGER for entry in value):
        raise param.refuse("contains an integer that cannot be an id")
    return list(dict.fromkeys(value))


def _object(param: Param, value: Any, limits: Limits) -> dict[str, Any]:
    if type(value) is not dict:
        raise param.refuse("must be a JSON object")
    most = param.upper(limits)
    # A character of JSON is at most four bytes, and at least one in Python's notation, so most objects pass at once.
    if most is not None and len(repr(value)) * 4 > most:
        size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass"))
        if size > most:
            raise param.refuse(f"has {size} bytes as JSON, more than the limit of {most}; send less", limit=most)
    return value


KINDS: dict[str, Callable[[Param, Any, Limits], Any]] = {
    "integer": _integer,
    "boolean": _boolean,
    "text": _text,
    "name": _name,
    "names": _names,
    "integers": _integers,
    "object": _object,
}
"""The functions that check a value of each kind. Each face has a table with the same keys for its own handling."""
