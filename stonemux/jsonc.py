"""JSON with comments, edited as text: one entry is inserted or removed, and every other byte stays.

Such files are maintained by hand: comments, trailing commas, tabs, Windows line endings, a byte order mark. So the file
is never parsed and printed again. The text is parsed into values that know their positions, and an edit cuts and
inserts only at those positions.

An insertion goes after the object's last member, after the comment on that member's line, with the members' indent; a
trailing comma is preserved. A document of one line stays on one line.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from stonemux.errors import MuxError

MAX_DEPTH = 200
"""Deeper nesting is refused; parsing uses two function calls per level."""


class Member(NamedTuple):
    """A key with its value; `comma` is the position of the comma after it, or None."""

    key: str
    start: int
    value: Node
    comma: int | None


class Node(NamedTuple):
    """A value, the positions where its text begins and ends, and its members if it is an object."""

    start: int
    end: int
    value: Any
    members: tuple[Member, ...] | None = None


def read(text: str) -> dict[str, Any]:
    """The document as an object; a text without any value counts as an empty object.

    Raises `client_config_broken` with the line in its facts, for a syntax error or if the value is not an object.
    """
    root = _document(text)
    return root.value if root else {}


def put(text: str, path: tuple[str, str], entry: dict[str, Any]) -> str:
    """The text with `entry` at `path` (object, then key), replacing what was there.

    Raises `client_config_broken` if the text cannot be read, the object is not one, or one of the two keys occurs
    twice.
    """
    root = _document(text)
    if root is None:
        gap = "" if not text.strip("\ufeff \t\r\n") or text.endswith("\n") else _newline(text)
        return text + gap + _rendered({path[0]: {path[1]: entry}}, "", "  ", _newline(text)) + _newline(text)
    table = _member(text, root, path[0])
    if table is None:
        return _insert(text, root, root, path[0], {path[1]: entry})
    old = _member(text, _object(text, table), path[1])
    if old is None:
        return _insert(text, root, table.value, path[1], entry)
    value = _shown(text, table.value, old.start, entry)
    return text[: old.value.start] + value + text[old.value.end :]


def drop(text: str, path: tuple[str, str]) -> str:
    """The text without the member at `path`; unchanged if there is none. Raises the same errors as `put`."""
    root = _document(text)
    table = _member(text, root, path[0]) if root else None
    if table is None:
        return text
    member = _member(text, _object(text, table), path[1])
    return text if member is None else _cut(text, table.value.members or (), member)


# --- finding


def _member(text: str, node: Node, key: str) -> Member | None:
    found = [member for member in node.members or () if member.key == key]
    if len(found) > 1:
        raise _broken(text, found[1].start, f'"{key}" appears twice; remove one of them')
    return found[0] if found else None


def _object(text: str, member: Member) -> Node:
    if member.value.members is None:
        raise _broken(text, member.value.start, f'"{member.key}" is not an object; make it {{}}')
    return member.value


# --- changing


def _insert(text: str, root: Node, parent: Node, key: str, entry: Any) -> str:
    """`text` with one more member at the end of `parent`."""
    if not parent.members:
        return _insert_first(text, root, parent, key, entry)
    last = parent.members[-1]
    place = last.value.end if last.comma is None else last.comma + 1
    comma, closing = (",", "") if last.comma is None else ("", ",")
    if _is_one_line(text, parent):
        after, lead = place, " "
    else:
        after, lead = _same_line(text, place), _newline(text) + _indent(text, last.start)
    member = f"{lead}{json.dumps(key)}: {_shown(text, parent, last.start, entry)}{closing}"
    return text[:place] + comma + text[place:after] + member + text[after:]


def _insert_first(text: str, root: Node, parent: Node, key: str, entry: Any) -> str:
    close = parent.end - 1
    if parent is not root and _is_one_line(text, root):
        return f"{text[:close]}{json.dumps(key)}: {json.dumps(entry, ensure_ascii=False)}{text[close:]}"
    outer, unit, newline = _indent(text, parent.start), _unit(text), _newline(text)
    place = len(text[:close].rstrip(" \t\r\n"))
    member = f"{newline}{outer}{unit}{json.dumps(key)}: {_rendered(entry, outer + unit, unit, newline)}"
    tail = text[place:close]
    return text[:place] + member + (tail if re.search(r"[\r\n]", tail) else newline + outer) + text[close:]


def _cut(text: str, members: tuple[Member, ...], member: Member) -> str:
    place, is_last = members.index(member), member is members[-1]
    end = member.value.end if member.comma is None else member.comma + 1
    kept = text[member.value.end : end - 1].rstrip(" \t")  # a comment between value and comma
    start = len(text[: member.start].rstrip(" \t"))
    if kept:
        start = member.start
    elif re.match(r"[ \t]*\r?\n", text[end:]):  # nothing follows it: remove its line and the line break before it
        start = len(re.sub(r"\r?\n\Z", "", text[:start]))
    elif not is_last:
        start, end = member.start, len(text) - len(text[end:].lstrip(" \t"))
    before = members[place - 1].comma if place else None
    if member.comma is None and before is not None:  # the previous member becomes the last
        return text[:before] + text[before + 1 : start] + text[end:]
    return text[:start] + kept + text[end:]


# --- formatting


def _is_one_line(text: str, node: Node) -> bool:
    return not re.search(r"[\r\n]", text[node.start : node.end])


def _shown(text: str, parent: Node, near: int, entry: Any) -> str:
    """`entry` formatted as a member of `parent`, like its neighbor at `near`."""
    if _is_one_line(text, parent):
        return json.dumps(entry, ensure_ascii=False)
    return _rendered(entry, _indent(text, near), _unit(text), _newline(text))


def _rendered(entry: Any, indent: str, unit: str, newline: str) -> str:
    """JSON over several lines; only objects are split, lists stay on one line."""
    if isinstance(entry, dict) and entry:
        inner = indent + unit
        rows = (f"{inner}{json.dumps(key)}: {_rendered(value, inner, unit, newline)}" for key, value in entry.items())
        return "{" + newline + ("," + newline).join(rows) + newline + indent + "}"
    return json.dumps(entry, ensure_ascii=False)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _indent(text: str, place: int) -> str:
    """The spaces and tabs at the beginning of the line of `place`."""
    line = text[max(text.rfind("\n", 0, place), text.rfind("\r", 0, place)) + 1 : place]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _unit(text: str) -> str:
    """One step of indent: that of the first indented member, or else two spaces."""
    found = re.search(r'[\r\n]([ \t]+)"', text)
    return found[1] if found else "  "


def _same_line(text: str, place: int) -> int:
    """The end of the whitespace and comments after `place` that begin on its line."""
    found = re.compile(r"(?:[ \t]+|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL).match(text, place)
    end = found.end() if found else place
    return end if text[end : end + 1] in ("\r", "\n") else place


# --- reading

# Not possessive as a whole: Python before 3.11.5 would then accept an unterminated comment.
_TRIVIA = re.compile(r"(?:[ \t\r\n]++|//[^\r\n]*+|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"')
_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]{0,4000})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def _document(text: str) -> Node | None:
    start = _skip(text, 1 if text.startswith("\ufeff") else 0)
    if start == len(text):
        return None
    root = _node(text, start, 0)
    rest = _skip(text, root.end)
    if rest != len(text):
        raise _broken(text, rest, f"{_seen(text, rest)} after the end of the document")
    if root.members is None:
        raise _broken(text, start, "the document is not an object; it must begin with {")
    return root


def _node(text: str, place: int, depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise _broken(text, place, f"is nested more than {MAX_DEPTH} levels deep")
    opening = text[place : place + 1]
    if opening == "{":
        return _read_object(text, place, depth)
    if opening == "[":
        return _read_list(text, place, depth)
    token = (_STRING if opening == '"' else _SCALAR).match(text, place)
    if token is None:
        raise _broken(text, place, f"{_seen(text, place)} where a value must be")
    return Node(place, token.end(), json.loads(token[0]))


def _read_object(text: str, start: int, depth: int) -> Node:
    members: list[Member] = []
    place = _skip(text, start + 1)
    while text[place : place + 1] != "}":
        key = _STRING.match(text, place)
        if key is None:
            raise _broken(text, place, f"{_seen(text, place)} where a key in quotes or }} must be")
        colon = _skip(text, key.end())
        if text[colon : colon + 1] != ":":
            raise _broken(text, colon, f"{_seen(text, colon)} where a colon must be")
        value = _node(text, _skip(text, colon + 1), depth + 1)
        comma, following = _comma(text, value.end, "}")
        members.append(Member(json.loads(key[0]), place, value, comma))
        place = following
    return Node(start, place + 1, {member.key: member.value.value for member in members}, tuple(members))


def _read_list(text: str, start: int, depth: int) -> Node:
    values = []
    place = _skip(text, start + 1)
    while text[place : place + 1] != "]":
        value = _node(text, place, depth + 1)
        values.append(value.value)
        _, place = _comma(text, value.end, "]")
    return Node(start, place + 1, values)


def _comma(text: str, place: int, closing: str) -> tuple[int | None, int]:
    """The position of the comma after a value, if any, and of what follows."""
    place = _skip(text, place)
    if text[place : place + 1] == ",":
        return place, _skip(text, place + 1)
    if text[place : place + 1] != closing:
        raise _broken(text, place, f"{_seen(text, place)} where a comma or {closing} must be")
    return None, place


def _skip(text: str, place: int) -> int:
    found = _TRIVIA.match(text, place)
    return found.end() if found else place


def _seen(text: str, place: int) -> str:
    if text.startswith("/*", place):
        return "an unterminated comment"
    return repr(text[place]) if place < len(text) else "the end of the file"


def _broken(text: str, place: int, why: str) -> MuxError:
    return MuxError("client_config_broken", why, line=text.count("\n", 0, place) + 1)
