"""The mapping between operations and command lines.

`msg.send` is called with `stonemux msg send`, and its parameter `reply_to` with `--reply-to`. Required parameters, and
a content, may also be given without their flags, in the order of the table with the acting agent last: `stonemux state
set KEY VALUE`. A flag that takes a value takes the next word whatever it is, so a content may begin with a dash. Only
what cannot be called at all is refused here (an unknown flag, a malformed value); the daemon checks limits.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from stonemux.errors import MuxError, did_you_mean, guess
from stonemux.flags import PLACE, Flag, typed
from stonemux.schema import Operation, Param, from_decimal, meant, shown

ALIASES: Mapping[str, str] = {"message": "msg"}
"""Other spellings of areas, as used in documents."""

VERB_ALIASES: Mapping[str, str] = {"agent list": "discover"}
"""Other spellings of verbs: every other area has a list."""

SYNONYMS = (
    {"create", "post", "register", "new", "add"},
    {"get", "show", "view", "read", "members"},
    {"list", "discover", "ls", "all"},
    {"send", "reply", "write", "post", "new"},
    {"poll", "receive", "recv", "read"},
    {"complete", "finish", "done", "close", "fail"},
    {"cancel", "delete", "deregister", "remove", "rm"},
    {"dispatch", "assign"},
    {"update", "archive"},
    {"set", "put", "write", "update"},
)
"""Verbs that people confuse with each other."""

ELSEWHERE = {"msg get": "stonemux show ID", "msg show": "stonemux show ID", "msg view": "stonemux show ID"}
"""Commands that do what an area may be expected to do."""

OUTPUT = (
    Flag("json", "", "print the daemon's answer (or refusal) as JSON, for programs"),
    Flag("quiet", "", "print ids only"),
    Flag("help", "", "print this help"),
)
RAW = Flag("raw", "", "print only the content or value, unchanged")
WATCH = (
    Flag("watch", "", "repeat the call until interrupted"),
    Flag("interval", "SECONDS", "how long to wait between calls (default 2)"),
)
KEY = Flag("idempotency_key", "KEY", "makes the call safe to repeat: for 24 hours, repeating it has no second effect")

CONTENT = ("content", "value")
"""The fields that hold the substance of an answer."""

SHORT = {"-h": "--help", "-q": "--quiet"}
WIDTH = 100


class Typed(NamedTuple):
    """A parsed command line."""

    operation: Operation
    given: dict[str, Any]
    options: Any
    """The flags that are not parameters, by name."""


# --- which operation


def areas(operations: Iterable[Operation]) -> dict[str, dict[str, Operation]]:
    """A map from area to verb to operation; an operation with a one-part name has an empty verb."""
    found: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        area, _, verb = operation.name.partition(".")
        found.setdefault(area, {})[verb] = operation
    return found


def spelled(area: str, verb: str) -> str:
    """A verb's own name, if it has been typed in another spelling."""
    return VERB_ALIASES.get(f"{area} {verb}", verb)


def unknown(area: str, verb: str, here: Iterable[str]) -> str:
    """The message for a verb that an area does not have."""
    known = [known for known in here if known]
    same = [one for one in known for words in SYNONYMS if verb in words and one in words]
    close = ELSEWHERE.get(f"{area} {verb}") or (same[0] if same else guess(verb, known))
    return f"{area} has no verb {shown(verb)}" + did_you_mean(close, f"It has: {', '.join(known)}")


# --- parsing


def flag(param: Param) -> str:
    """A parameter's flag."""
    return typed(param.name)


def slots(operation: Operation) -> list[Param]:
    """The parameters that may be given without their flags, in order; a sender or poster may not."""
    loose = [param for param in operation.params if param.required or param.either]
    acting = [param for param in loose if param.name == operation.actor == "agent_id"]
    return [param for param in loose if param.name != operation.actor] + acting


def common(operation: Operation) -> tuple[Flag, ...]:
    """The flags of an operation that are not parameters."""
    key = (KEY,) if operation.changes else ()
    look = _is_look(operation)
    raw = (RAW,) if look and _has_content(operation.returns) else ()
    return (*key, *raw, *OUTPUT, *(WATCH if look else ()), *PLACE)


def _has_content(shape: Any) -> bool:
    """Whether there is one text that is the substance of an answer of this shape."""
    inner = [shape, *shape.values()] if isinstance(shape, dict) else []
    return any(isinstance(fields, dict) and name in fields for fields in inner for name in CONTENT)


def _is_look(operation: Operation) -> bool:
    """Whether repeating the call makes sense, because it neither takes anything nor waits."""
    return (
        operation.method == "GET"
        and operation.kind in ("read", "wait")
        and not operation.takes
        and "timeout" not in operation.by_name
    )


def read(
    operation: Operation,
    words: Sequence[str],
    *,
    agent: str | None = None,
    token: str | None = None,
    stdin: Callable[[], str] = lambda: "",
) -> Typed:
    """Parse the words after the verb.

    `agent` is the acting agent if the words name none; with a `token`, which may identify the agent, the daemon
    decides. A text that is `-` is replaced by what `stdin` returns. Raises `unknown_field`, `missing_field`,
    `invalid_field`, or `not_understood`.
    """
    line = _Line(operation, stdin)
    line.take(words)
    if line.options.help:
        return Typed(operation, line.given, line.options)
    line.place()
    if agent and operation.actor:
        line.given.setdefault(operation.actor, agent)
    for param in operation.needed:
        if param.name not in line.given and not (token and param.acts):
            told = f"{flag(param)} is required: {param.doc}"
            if param.name == operation.actor:
                told += " Or set STONEMUX_AGENT"
            raise MuxError("missing_field", "; ".join([told, *line.placed]), parameter=param.name)
    return Typed(operation, line.given, line.options)


class _Line:
    """Sorts words into `given` and `options`."""

    def __init__(self, operation: Operation, stdin: Callable[[], str]) -> None:
        self.given: dict[str, Any] = {}
        self.options = SimpleNamespace()
        self.placed: list[str] = []
        """What each word without a flag was taken for."""
        self._operation = operation
        self._params = {flag(param): param for param in operation.params}
        self._common = {one.typed: one for one in common(operation)}
        for one in (*OUTPUT, RAW, *WATCH, KEY, *PLACE):
            setattr(self.options, one.name, None if one.metavar else False)
        self._loose: list[str] = []
        self._stdin = stdin
        self._stdin_of = ""

    def take(self, words: Iterable[str]) -> None:
        """Take every flag with its value, and keep the words that are not flags."""
        rest = iter(words)
        for word in rest:
            if word == "--":
                self._loose += rest
            elif word.startswith("-") and len(word) > 1:
                self._take_flag(word, rest)
            else:
                self._loose.append(word)

    def place(self) -> None:
        """Assign the words without a flag to the parameters in `slots` that are not given yet."""
        words = iter(self._loose)
        for param in slots(self._operation):
            if {param.name, param.either} & {*self.given}:
                continue
            if (word := next(words, None)) is not None:
                self._put(param, self._value(param, word))
                self.placed.append(f"{shown(word)} is {flag(param)}")
        for word in words:
            alone = ", ".join(param.name.upper() for param in slots(self._operation)) or "nothing"
            problem = f"one word too many: {shown(word)}; only {alone} may be given without a flag"
            raise MuxError("not_understood", problem)

    def _take_flag(self, word: str, rest: Iterator[str]) -> None:
        name, given, text = word.partition("=")
        name = SHORT.get(name, name.replace("_", "-"))
        positive = self._params.get("--" + name.removeprefix("--no-"))
        if (param := self._params.get(name)) is not None:
            if param.kind == "boolean" and not given:
                self._put(param, True)
            else:
                self._put(param, self._value(param, text if given else _next(name, rest)))
        elif positive is not None and positive.kind == "boolean" and not given:
            self._put(positive, False)
        elif (option := self._common.get(name)) is None:
            raise self._unknown(name)
        elif option.metavar:
            setattr(self.options, option.name, text if given else _next(name, rest))
        else:
            setattr(self.options, option.name, True)

    def _put(self, param: Param, value: Any) -> None:
        before = self.given.get(param.name)
        if isinstance(before, list) and isinstance(value, list):
            value = before + value
        elif isinstance(before, dict) and isinstance(value, dict):
            value = before | value
        elif before is not None:
            raise MuxError("invalid_field", f"{flag(param)} is given twice", parameter=param.name)
        self.given[param.name] = value

    def _value(self, param: Param, text: str) -> Any:
        if text == "-" and param.kind in ("text", "object"):
            if self._stdin_of:
                raise MuxError("invalid_field", f"{self._stdin_of} and {flag(param)} cannot both read standard input")
            self._stdin_of = flag(param)
            text = self._stdin()
        return VALUES[param.kind](param, text)

    def _unknown(self, name: str) -> MuxError:
        word = name.removeprefix("--").replace("-", "_")
        accepted = [param.name for param in self._operation.params] + [KEY.name] * self._operation.changes
        known = [one.removeprefix("--").replace("-", "_") for one in (*self._params, *self._common)]
        close = meant(word, known)
        if not name.startswith("--") and slots(self._operation):
            hint = "; to give it as a value, put -- before it"
        else:
            hint = did_you_mean(close and typed(close))
        return MuxError(
            "unknown_field",
            f"unknown flag {name[:80]}{hint}",
            parameter=word[:128],
            nearest=close if close in accepted else None,
            accepted=accepted,
        )


def _next(name: str, rest: Iterator[str]) -> str:
    for word in rest:
        return word
    raise MuxError("invalid_field", f"{name} needs a value", parameter=name.removeprefix("--").replace("-", "_"))


# --- values, one function per kind of parameter


def _integer(param: Param, text: str) -> Any:
    return from_decimal(text)  # the daemon refuses what is not an integer


def _boolean(param: Param, text: str) -> Any:
    return {"true": True, "false": False}.get(text, text)


def _text(param: Param, text: str) -> Any:
    return text


def _names(param: Param, text: str) -> Any:
    return _json(param, text, list) if text.startswith("[") else [part.strip() for part in text.split(",")]


def _integers(param: Param, text: str) -> Any:
    return [_integer(param, part.strip()) for part in text.split(",")]


def _object(param: Param, text: str) -> Any:
    name, given, value = text.partition("=")
    return {name: value} if given and not name.lstrip().startswith("{") else _json(param, text, dict)


def _json(param: Param, text: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if type(value) is not kind:
        told = "a JSON list" if kind is list else "a JSON object or NAME=TEXT"
        raise MuxError("invalid_field", f"{flag(param)} must be {told}, not {shown(text)}", parameter=param.name)
    return value


VALUES: Mapping[str, Callable[[Param, str], Any]] = {
    "integer": _integer,
    "boolean": _boolean,
    "text": _text,
    "name": _text,
    "names": _names,
    "integers": _integers,
    "object": _object,
}

METAVARS: Mapping[str, str] = {
    "integer": "N",
    "text": "TEXT",
    "name": "NAME",
    "names": "NAME,...",
    "integers": "N,...",
    "object": "JSON",
}


# --- help texts


def example(operation: Operation) -> str:
    """The operation's example as a command line."""
    words = [operation.typed]
    for name, value in operation.example.items():
        words += _example_words(operation.by_name[name], value)
    return " ".join(words)


def _example_words(param: Param, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(param) if value else "--no-" + flag(param).removeprefix("--")]
    if isinstance(value, list | tuple):
        value = ",".join(str(entry) for entry in value)
    elif isinstance(value, dict):
        value = json.dumps(value)
    from shlex import quote  # only used in documents

    return [flag(param), quote(str(value))]


def listed(area: str, here: Mapping[str, Operation]) -> str:
    """The verbs of an area, with what they do."""
    rows = aligned((verb, operation.summary.replace("`", "")) for verb, operation in here.items())
    return "\n".join(["verbs:", *rows, "", f"For help on a verb: stonemux {area} VERB --help"])


def verb_help(operation: Operation) -> str:
    """How to call an operation, and what each flag means."""
    loose = "".join(f" [{param.name.upper()}]" for param in slots(operation))
    rows = [(_shape(param), _meaning(operation, param)) for param in operation.params]
    short = {long: f"{letter}, " for letter, long in SHORT.items()}
    others = [(f"{short.get(one.typed, '')}{one.typed} {one.metavar}".rstrip(), one.help) for one in common(operation)]
    return "\n".join(
        [
            f"usage: {operation.typed}{loose} [--flag value ...]",
            "",
            *textwrap.wrap(operation.doc.replace("`", ""), WIDTH),
            "",
            *(["parameters:", *aligned(rows), ""] if rows else []),
            "output and daemon:",
            *aligned(others),
            "",
            "example:",
            f"  {example(operation)}",
        ]
    )


def _shape(param: Param) -> str:
    return flag(param) if param.kind == "boolean" else f"{flag(param)} {METAVARS[param.kind]}"


def _meaning(operation: Operation, param: Param) -> str:
    told = [param.doc.replace("`", "")]
    if param.choices:
        told.append(f"One of: {', '.join(param.choices)}.")
    if param.required:
        told.append("Required.")
    elif param.default is True:
        told.append(f"Default: yes; --no-{flag(param).removeprefix('--')} for no.")
    elif param.default not in (None, False):
        told.append(f"Default: {param.default}.")
    if param.name == operation.actor:
        told.append("Default: STONEMUX_AGENT.")
    return " ".join(told)


def aligned(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Two columns; the right one is wrapped, and begins on the next line if the left one is too long."""
    rows = list(rows)
    width = min(28, max(len(left) for left, _ in rows) + 4)
    lines = []
    for left, right in rows:
        first, *more = textwrap.wrap(right, WIDTH - width) or [""]
        if len(left) + 4 > width:
            lines += [f"  {left}", f"{'':{width}}{first}"]
        else:
            lines.append(f"  {left:<{width - 2}}{first}")
        lines += [f"{'':{width}}{line}" for line in more]
    return lines
