"""Generates the text of `methods`: one typed method of the Python client for each row of the operation table.

The text is a pure function of the table. A method is named after its operation, with `_` for the dot; an argument is
`Param.argument` (so the wire's `from` is `sender`); an answer is a TypedDict: `Message` for the shape that the table
calls MESSAGE, `TaskClaimAnswer` for one that only task.claim has, and a subclass for one that adds fields to a named
shape.
"""

from __future__ import annotations

import json
import keyword
import textwrap
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from stonemux.config import Settings
from stonemux.errors import FAILURES
from stonemux.reference import limits
from stonemux.refusals import own_errors
from stonemux.schema import TIERS, Operation, Param

WIDTH = 120

_HEAD = '''\
"""The operations as typed methods; the Python client inherits them.

Generated from the operation table; `make docs` rewrites it. Arguments are keywords; an omitted one has the table's
default or, where the docstring says *the client's agent*, the agent of `Client(agent=...)`. Answers are plain dicts,
described by the TypedDicts below; a refusal raises `MuxError`. `events.stream` is `Client.events`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

Names = list[str] | tuple[str, ...]
Ids = list[int] | tuple[int, ...]
'''

_CLASS = '''\
class Methods:
    """One method per operation, grouped by area; the client carries out the calls."""

    __slots__ = ()

    def _call(self, name: str, given: dict[str, Any], key: str | None = None) -> Any:
        raise NotImplementedError
'''

_TYPES = {
    "string": "str",
    "time": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "object": "dict[str, Any]",
    "null": "None",
}

_ARGUMENTS = {
    "integer": "int",
    "boolean": "bool",
    "text": "str",
    "name": "str",
    "names": "Names",
    "integers": "Ids",
    "object": "Mapping[str, Any]",
}


def text(operations: Sequence[Operation], shapes: Mapping[str, Any]) -> str:
    """The whole module. `shapes` are the shapes that have a name in the table."""
    answers = _Answers(shapes)
    methods = [_method(one, answers) for one in operations if one.kind != "stream"]
    parts = [_HEAD, *(answers.written[name] for name in answers.written), _CLASS]
    return "\n\n".join(part.rstrip("\n") + "\n" for part in parts) + "".join(f"\n{one}" for one in methods)


def named_shapes(table: ModuleType) -> dict[str, Any]:
    """The shapes among a module's constants by class name: CHANNEL_ROW becomes ChannelRow."""
    return {
        _camel(name): value
        for name, value in vars(table).items()
        if name.isupper() and isinstance(value, dict) and value and all(map(_is_shape, value.values()))
    }


def _is_shape(value: Any) -> bool:
    if isinstance(value, str):
        return value.partition("|")[0] in _TYPES
    return isinstance(value, dict | list | tuple) and all(
        map(_is_shape, value.values() if isinstance(value, dict) else value)
    )


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.replace(".", "_").split("_"))


# --- answers


class _Answers:
    """The TypedDicts that have been needed so far, each after those that it uses."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self.written: dict[str, str] = {}
        self._named = named

    def type_of(self, shape: Any, name: str, doc: str) -> str:
        """The Python type of a shape; `name` is for an object that has none yet."""
        if isinstance(shape, tuple):
            return " | ".join(self.type_of(one, name, doc) for one in shape)
        if isinstance(shape, list):
            return f"list[{self.type_of(shape[0], name.removesuffix('s'), doc)}]"
        if isinstance(shape, dict):
            return self._object(shape, name, doc)
        kind, _, null = shape.partition("|")
        return _TYPES[kind] + (" | None" if null else "")

    def _object(self, shape: Mapping[str, Any], name: str, doc: str) -> str:
        known = next((one for one, fields in self._named.items() if fields == shape), None)
        name, doc = (known, "A record that several operations return.") if known else (name, doc)
        if name not in self.written:
            self.written[name] = self._typed_dict(shape, name, doc)
        return name

    def _typed_dict(self, shape: Mapping[str, Any], name: str, doc: str) -> str:
        base = self._base(shape)
        more = {field: inner for field, inner in shape.items() if field not in (self._named[base] if base else {})}
        plain = all(_is_plain(field) for field in more)
        fields = {
            field.rstrip("?"): self._field(field, inner, name, doc)
            for field, inner in (more if plain else shape).items()
        }
        if not plain:
            body = "".join(f"        {json.dumps(field)}: {kind},\n" for field, kind in fields.items())
            return f'{name} = TypedDict(\n    "{name}",\n    {{\n{body}    }},\n)\n"""{doc}"""\n'
        if base:
            self._object(self._named[base], base, "")
        body = "".join(f"    {field}: {kind}\n" for field, kind in fields.items())
        return f'class {name}({base or "TypedDict"}):\n    """{doc}"""\n\n{body}'

    def _field(self, field: str, shape: Any, owner: str, doc: str) -> str:
        name = field.rstrip("?")
        kind = self.type_of(shape, owner + _camel(name), doc.replace("What", "Part of what", 1))
        return f"NotRequired[{kind}]" if field.endswith("?") else kind

    def _base(self, shape: Mapping[str, Any]) -> str:
        """The largest named shape to which this one only adds fields."""
        fitting = {
            name: len(fields)
            for name, fields in self._named.items()
            if len(fields) < len(shape) and fields.items() <= shape.items()
        }
        return max(fitting, key=lambda name: fitting[name], default="")


def _is_plain(field: str) -> bool:
    return field.rstrip("?").isidentifier() and not keyword.iskeyword(field.rstrip("?"))


# --- methods


def _method(operation: Operation, answers: _Answers) -> str:
    answer = _answer(operation, answers)
    key = ["idempotency_key"] if operation.changes else []
    arguments = [f"{param.argument}: {_annotation(operation, param)}" for param in operation.params]
    arguments += [f"{name}: str | None = None" for name in key]
    head = f"    def {operation.name.replace('.', '_')}("
    if arguments:
        head += "\n        self,\n        *,\n" + "".join(f"        {one},\n" for one in arguments) + "    "
    else:
        head += "self"
    given = "".join(f'                "{param.name}": {param.argument},\n' for param in operation.params)
    call = f'self._call("{operation.name}", {{}})'
    if arguments:
        given = f"            {{\n{given}            }},\n" if given else "            {},\n"
        call = f'self._call(\n            "{operation.name}",\n{given}'
        call += "".join(f"            {name},\n" for name in key) + "        )"
    return f"{head}) -> {answer}:\n{_doc(operation, answer)}\n        return {call}\n"


def _answer(operation: Operation, answers: _Answers) -> str:
    if operation.returns is None:
        return "dict[str, Any]" if operation.kind == "document" else "str"
    return answers.type_of(operation.returns, _camel(operation.name) + "Answer", f"What {operation.name} returns.")


def _annotation(operation: Operation, param: Param) -> str:
    kind = _ARGUMENTS.get(param.kind, "Any")
    if param.choices and kind == "str":
        kind = f"Literal[{', '.join(json.dumps(choice) for choice in param.choices)}]"
    if param.required and param.name != operation.actor:
        return kind
    if param.required or param.default is None:
        return f"{kind} | None = None"
    return f"{kind} = {json.dumps(param.default) if isinstance(param.default, str) else repr(param.default)}"


def _doc(operation: Operation, answer: str) -> str:
    paragraphs = [_wrapped(f'"""{operation.doc}', "", "")]
    if operation.params:
        paragraphs.append("\n".join(_wrapped(_param(operation, param), "- ", "  ") for param in operation.params))
    told = f"Answers `{answer}`. `{operation.method} {operation.path}`"
    if operation.tier != TIERS[0]:
        told += f", tier {operation.tier}"
    told += "."
    if errors := own_errors(operation):
        told += f" Refusals: {', '.join(f'{FAILURES[code].http} {code}' for code in errors)}."
    paragraphs.append(_wrapped(told, "", ""))
    return textwrap.indent("\n\n".join(paragraphs) + '\n"""', " " * 8, lambda line: bool(line.strip()))


def _param(operation: Operation, param: Param) -> str:
    words = [param.doc.rstrip(".") or "See its name"]
    bounds = limits(param, Settings()).replace("`", "")
    if bounds and not param.choices:
        words.append(f" ({bounds})")
    elif param.choices and _ARGUMENTS.get(param.kind) != "str":
        words.append(f" ({', '.join(param.choices)})")
    if param.name == operation.actor:
        words.append("; the client's agent if omitted")
    return f"`{param.argument}`: {''.join(words)}."


def _wrapped(text: str, first: str, later: str) -> str:
    return textwrap.fill(
        text, WIDTH - 8, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )
