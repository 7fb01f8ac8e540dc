"""Answers in readable form: aligned tables, records, letters.

These are pure functions of an answer and its shape (`schema` explains the notation); `Look` describes the output
stream. Control characters in what agents wrote are spelled out, so that no message can tamper with a terminal.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TextIO

from stonemux.clock import moment
from stonemux.schema import Operation

GAP = "  "
MOST = 100
"""The widest that a column may be if the output is not a terminal."""
LEAST = 12
"""Columns are cut to no less than this; if that is not enough, the last columns are dropped."""
WHOLE = 40
"""A first column of ids is not cut up to this width: the next command needs the id, and a UUID has 36 characters."""

CHOSEN: Mapping[str, tuple[str, ...]] = {
    "agents": ("id", "role", "status", "activity", "capabilities", "group", "channel", "last_heartbeat"),
    "tasks": (
        "task_id",
        "status",
        "priority",
        "description",
        "required_capability",
        "assigned_to",
        "claimed_by",
        "created_at",
    ),
    "messages": ("id", "from", "to", "channel", "type", "subject", "content", "sent_at"),
    "results": ("id", "from", "channel", "excerpt", "sent_at"),
    "channels": ("id", "name", "members", "description", "created_at"),
    "items": ("id", "from", "channel", "status", "preview", "content", "received_at"),
}
"""The columns of lists whose records have more fields than fit on a line; lists whose records lack the first of these
columns, and all others, show all fields."""

TWINS = ("memberIds",)
"""Fields that only repeat another one, for programs that know it by this name."""

TONES: Mapping[str, str] = {
    "active": "32",
    "complete": "32",
    "acked": "32",
    "unread": "33",
    "pending": "33",
    "claimed": "36",
    "waiting": "35",
    "stale": "31",
    "failed": "31",
    "dead": "31",
    "cancelled": "2",
}
"""The colors of statuses, as ANSI codes."""

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Look(NamedTuple):
    """The output: the width of the terminal (None if it is none), color, and the current time in milliseconds."""

    width: int | None = None
    color: bool = False
    now_ms: int = 0

    def tone(self, code: str, text: str) -> str:
        """`text` in an ANSI color, if the output has color."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and text else text


def look(stream: TextIO, environ: Mapping[str, str], now_ms: int) -> Look:
    """The properties of a stream. NO_COLOR and TERM=dumb turn the color off."""
    if stream is None or not stream.isatty():
        return Look(None, False, now_ms)
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        width = 80
    return Look(width or 80, not environ.get("NO_COLOR") and environ.get("TERM") != "dumb", now_ms)


def as_json(value: Any, stream: TextIO) -> str:
    """JSON on one line; non-ASCII characters only if the stream can encode them, and none that a terminal obeys."""
    told = json.dumps(value, ensure_ascii=(getattr(stream, "encoding", None) or "").lower() not in ("utf-8", "utf8"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", told)


def safe(text: str) -> str:
    """`text` with control characters spelled out, except line feeds and tabs."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def counted(number: int, what: str) -> str:
    """A number with its noun: `1 key`, `2 keys`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def age(ms: int) -> str:
    """A duration in its largest unit, such as `3 min`."""
    seconds = abs(ms) // 1000
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return "0 s"


def span(seconds: int) -> str:
    """A duration in its two largest units, such as `3 d 4 h`."""
    for (size, unit), (smaller, other) in pairwise(_UNITS):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size} {unit}" + (f" {rest} {other}" if rest else "")
    return f"{seconds} s"


def relative(time: str, now_ms: int) -> str:
    """A time from an answer, relative to now: `3 min ago`, `in 2 h`."""
    try:
        ms = moment(time)
    except ValueError:
        return time
    if abs(now_ms - ms) < 1000:
        return "now"
    return f"{age(now_ms - ms)} ago" if ms < now_ms else f"in {age(ms - now_ms)}"


# --- whole answers


def answer(operation: Operation, told: Mapping[str, Any], look: Look) -> str:
    """An answer of the operation: its records and tables in order, with plain fields between them."""
    shape = _inner(operation.returns)
    inner = [value for value in told.values() if isinstance(value, dict) and value]
    thing = inner[0] if len(inner) == 1 else None
    parts: list[str] = []
    facts: dict[str, Any] = {}
    for name, value in told.items():
        if thing is not None and value is thing:
            parts.append(record(_inner(shape.get(name)), value, look))
        elif _is_list(value):
            parts += _flushed(shape, facts, look)
            rows = letters(value, look) if operation.takes else table(name, _inner(shape.get(name)), value, look)
            parts.append(rows or f"no {_label(name)}")
        elif name != "more" and (thing is None or thing.get(name) != value):
            facts[name] = value
    parts += _flushed(shape, facts, look)
    if told.get("more"):
        flags = [f"--{name}" for name in ("limit", "after", "before") if name in operation.by_name]
        how = "--limit, or poll again" if operation.takes else " and ".join(flags)
        parts.append(look.tone("2", f"there are more: see {how}"))
    return "\n\n".join(part for part in parts if part) or (f"no {_label([*told][-1])}" if told else "")


def _flushed(shape: Mapping[str, Any], facts: dict[str, Any], look: Look) -> list[str]:
    part = record(shape, facts, look)
    facts.clear()
    return [part]


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and (not value or isinstance(value[0], dict))


def ids(told: Mapping[str, Any]) -> list[str]:
    """The ids in an answer: its own, or else those of the records in it."""
    for name, value in told.items():
        if (name in ("id", "key", "path", "token") or name.endswith("_id")) and value is not None:
            return [str(value)]
    for value in told.values():
        inner = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
        if found := [one for entry in inner if isinstance(entry, dict) for one in ids(entry)]:
            return found
    return []


# --- parts of answers


def record(shape: Mapping[str, Any], told: Mapping[str, Any], look: Look) -> str:
    """One record: a line per field; a value of several lines goes below its name."""
    shown = {name: value for name, value in told.items() if value not in (None, [], {}) and name not in TWINS}
    width = max((len(_label(name)) for name in shown), default=0)
    lines = []
    for name, value in shown.items():
        if _is_list(value):
            text = table(name, _inner(shape.get(name)), value, look) + "\n"
        else:
            text = _cell(shape.get(name), value, look)
        if _is_time(shape.get(name)):
            text = f"{value} ({text})"
        if "\n" in text:
            lines += [look.tone("2", _label(name)), textwrap.indent(text.rstrip("\n"), GAP)]
        else:
            label = look.tone("2", f"{_label(name):<{width}}")
            lines.append(f"{label}{GAP}{_tone(name, text, text, look)}")
    return "\n".join(lines)


def letters(messages: Sequence[Mapping[str, Any]], look: Look) -> str:
    """Messages as letters: a line with sender, recipient, channel, and time, then the full text."""
    return "\n\n".join(letter(message, look) for message in messages)


def letter(message: Mapping[str, Any], look: Look) -> str:
    """One message, or one item of an inbox."""
    to = f" to {message['to']}" if "to" in message else ""
    when = message.get("sent_at") or message.get("received_at") or ""
    head = f"{safe(str(message['id']))}{GAP}{safe(str(message['from']))}{safe(to)}"
    about = [safe(str(message["channel"])), relative(when, look.now_ms)]
    about += [safe(f"{name} {message[name]}") for name in ("type", "thread", "reply_to", "status") if message.get(name)]
    lines = [f"{look.tone('1', head)}{GAP}{look.tone('2', ', '.join(about))}"]
    if message.get("subject"):
        lines.append(GAP + look.tone("1", " ".join(safe(message["subject"]).split())))
    lines.append(textwrap.indent(safe(str(message.get("content") or message.get("preview") or "")).rstrip("\n"), GAP))
    return "\n".join(lines)


def table(name: str, shape: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], look: Look) -> str:
    """Aligned columns under their headings; an empty string without rows."""
    if not rows:
        return ""
    fields = dict.fromkeys(field for row in rows for field in row)
    chosen = CHOSEN.get(name, ())
    columns = [
        column
        for column in (chosen if {*chosen[:1]} & fields.keys() else fields)
        if any(row.get(column) not in (None, "", [], {}) for row in rows)
    ]
    cells = [[_in_table(shape.get(column), row.get(column), look) for column in columns] for row in rows]
    headings = [_heading(column) for column in columns]
    numeric = [all(isinstance(row.get(column), int | None) for row in rows) for column in columns]
    widths = [
        max(measure(cell) for cell in (heading, *column)) for heading, *column in zip(headings, *cells, strict=True)
    ]
    if look.width is None:
        widths = [min(width, MOST) for width in widths]
    else:
        widths = fitted(widths, look.width, whole=columns[0].endswith("id") and widths[0] <= WHOLE)
    lines = [
        GAP.join(look.tone("1", fill(text, width)) for text, width in zip(headings, widths, strict=False)).rstrip()
    ]
    for row in cells:
        padded = []
        for column, text, width, right in zip(columns, row, widths, numeric, strict=False):
            padded.append(_tone(column, text, fill(text, width, right=right), look))
        lines.append(GAP.join(padded).rstrip())
    return "\n".join(lines)


def fitted(widths: Sequence[int], room: int, *, whole: bool = False) -> list[int]:
    """`widths` cut to fit a line: the widest first; if that is not enough, the last columns are dropped.

    `whole`: the first column is not cut as long as it fits.
    """
    kept_whole = 1 if whole else 0
    first, rest = list(widths[:kept_whole]), list(widths[kept_whole:])
    while rest:
        kept = _cut(rest, room - sum(first) - len(GAP) * (len(first) + len(rest) - 1))
        if kept:
            return first + kept
        rest.pop()
    return [min(widths[0], room)]


def _cut(widths: Sequence[int], room: int) -> list[int]:
    """`widths` cut to a total of `room`, none below LEAST; an empty list if that is not enough."""
    kept = list(widths)
    while (spare := room - sum(kept)) < 0:
        widest = max(kept)
        if widest <= LEAST:
            return []
        next_widest = max([width for width in kept if width < widest], default=LEAST)
        most = kept.count(widest)
        kept[kept.index(widest)] = max(LEAST, next_widest, widest + spare) if most == 1 else widest - 1
    return kept


def fill(text: str, width: int, *, right: bool = False) -> str:
    """`text` cut or padded to a width in terminal columns."""
    wide = measure(text)
    if wide > width:
        left = max(0, width - 1)
        for at, one in enumerate(text):  # forward, because it may be a long content
            left -= measure(one)
            if left < 0:
                text = text[:at]
                break
        text += "…" if width else ""
        wide = measure(text)
    return " " * (width - wide) + text if right else text + " " * (width - wide)


def measure(text: str) -> int:
    """How many terminal columns a text takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def _inner(shape: Any) -> Mapping[str, Any]:
    """The fields of a shape, of a list's entries, or of the first of several shapes."""
    while isinstance(shape, list | tuple):
        shape = shape[0]
    return {name.rstrip("?"): inner for name, inner in shape.items()} if isinstance(shape, dict) else {}


def _is_time(shape: Any) -> bool:
    return isinstance(shape, str) and shape.startswith("time")


def _cell(shape: Any, value: Any, look: Look) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_cell(None, entry, look) for entry in value)
    if isinstance(value, dict):
        return ", ".join(f"{safe(name)} {_plain(entry)}" for name, entry in value.items())
    return relative(value, look.now_ms) if _is_time(shape) else safe(str(value))


def _in_table(shape: Any, value: Any, look: Look) -> str:
    """A cell on one line; of a record that has a name or an id, only that."""
    if isinstance(value, dict) and _inner(shape):
        value = value.get("name") or "".join(ids(value)[:1]) or value
    return " ".join(_cell(shape, value, look).split())


def _plain(value: Any) -> str:
    return safe(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _tone(name: str, value: str, text: str, look: Look) -> str:
    return look.tone(TONES.get(value, ""), text) if name in ("status", "recipient_status") and value in TONES else text


def _label(name: str) -> str:
    return name.replace("_", " ")


def _heading(name: str) -> str:
    return "ID" if name == "id" else _label(name.removesuffix("_id").removesuffix("_at")).capitalize()
