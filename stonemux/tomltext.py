"""TOML edited as text: one table is inserted or removed, and every other byte stays.

The standard library reads TOML but does not write it, and a file printed again would lose its comments. So the text is
split into statements (a header, or a key with its value), each knows the full path that it sets, and an edit removes
the statements below one path and puts a new block in their place, or at the end of the file. The caller parses every
result again.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

from stonemux.errors import MuxError


class Statement(NamedTuple):
    """Whole lines that form one statement: `path` is the table that a header opens, or what a key sets."""

    start: int
    end: int
    path: tuple[str, ...]
    is_header: bool


class Run(NamedTuple):
    """Adjacent statements of our table; only a run with a header may be replaced in place."""

    start: int
    end: int
    has_header: bool


def read(text: str) -> dict[str, Any]:
    """The document. Raises `client_config_broken` with the line in its facts."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as trouble:
        told = "is nested too deeply" if isinstance(trouble, RecursionError) else str(trouble)
        found = re.search(r" \(at line (\d+), column \d+\)$| \(at end of document\)$", told)
        line = int(found[1]) if found and found[1] else text.count("\n") + 1
        raise MuxError("client_config_broken", told.removesuffix(found[0]) if found else told, line=line) from None


def put(text: str, path: tuple[str, str], entry: dict[str, Any]) -> str:
    """The text with `entry` as the table `path`, in place of the old table, or at the end.

    Raises `client_config_broken` if the text cannot be read, or if the outer table has a form that allows no further
    table (inline, or an array).
    """
    runs = _runs(text, path)
    newline = "\r\n" if "\r\n" in text else "\n"
    block = newline.join(_block(path, entry)) + newline
    place = next((run for run in runs if run.has_header), None)
    for run in reversed(runs):
        text = text[: run.start] + block + text[run.end :] if run == place else _cut(text, run)
    if place is not None:
        return text
    gap = "" if not text.strip() else newline if text.endswith("\n") else newline * 2
    return text + gap + block


def drop(text: str, path: tuple[str, str]) -> str:
    """The text without the table `path` and the tables below it. Raises the same errors as `put`."""
    for run in reversed(_runs(text, path)):
        text = _cut(text, run)
    return text


# --- finding


def _runs(text: str, path: tuple[str, str]) -> list[Run]:
    outer = read(text).get(path[0], {})
    statements = list(_statements(text))
    for statement in statements:
        if statement.path == path[:1] and (not statement.is_header or not isinstance(outer, dict)):
            line = text.count("\n", 0, statement.start) + 1
            why = f"{path[0]} is written as one value; write it as tables, [{path[0]}.NAME]"
            raise MuxError("client_config_broken", why, line=line)
    runs = []
    for ours, group in groupby(statements, lambda statement: statement.path[:2] == path):
        if ours:
            run = list(group)
            runs.append(Run(run[0].start, run[-1].end, any(statement.is_header for statement in run)))
    return runs


def _cut(text: str, run: Run) -> str:
    """The text without a run; where two blank lines would then meet, one is removed."""
    before, after = text[: run.start], text[run.end :]
    if re.match(r"[ \t]*(\r?\n|\Z)", after):
        before = re.sub(r"(^|\n)[ \t]*\r?\n\Z", r"\1", before)
    return before + after


# --- splitting into statements; the text is known to be valid

_QUOTED = r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'"
_PART = rf"(?:[A-Za-z0-9_-]+|{_QUOTED})"
_KEY = re.compile(rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*")
_BLANK = re.compile(r"(?:[ \t]*(?:#[^\n]*|\r)?\n)*+(?:[ \t]*(?:#[^\n]*)?\Z)?")
_OPENING = re.compile(r"[ \t]*\[{0,2}[ \t]*")
_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' + r"|'''.*?'{3,5}|" + _QUOTED + r"|#[^\n]*|[\[{]|[\]}]|\n|[^\"'#\[\]{}\n]+", re.DOTALL
)


def _statements(text: str) -> Iterator[Statement]:
    table: tuple[str, ...] = ()
    place = _after(_BLANK, text, 0)
    while place < len(text):
        content = _after(_OPENING, text, place)
        key = _KEY.match(text, content)
        assert key is not None, "a statement must begin with a key"
        path, is_header = _parts(key[0]), "[" in text[place:content]
        table = path if is_header else table
        end = _value_end(text, key.end())
        yield Statement(place, end, path if is_header else table + path, is_header)
        place = _after(_BLANK, text, end)


def _parts(key: str) -> tuple[str, ...]:
    """A dotted key as a tuple of names; `tomllib` handles the quoting."""
    parts = []
    table = tomllib.loads(f"{key} = 0")
    while isinstance(table, dict):
        parts.append(next(iter(table)))
        table = table[parts[-1]]
    return tuple(parts)


def _after(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    return found.end() if found else place


def _value_end(text: str, place: int) -> int:
    """The end of the line on which a statement's strings and brackets are all closed."""
    depth = 0
    for token in _TOKEN.finditer(text, place):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth = max(0, depth - 1)  # a header's brackets were opened before `place`
        elif token[0] == "\n" and not depth:
            return token.end()
    return len(text)


# --- writing


def _block(path: tuple[str, ...], table: dict[str, Any]) -> Iterator[str]:
    """The lines of a table: its plain values, then its tables."""
    yield f"[{'.'.join(map(_name, path))}]"
    for key, value in table.items():
        if not isinstance(value, dict):
            yield f"{_name(key)} = {_literal(value)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield ""
            yield from _block((*path, key), value)


def _name(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _literal(key)


def _literal(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_name(key)} = {_literal(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
