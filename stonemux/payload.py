"""What requests carry: JSON bodies and query strings, parsed so strictly that no two parsers could disagree.

Client input raises only `MuxError`; a `ValueError` from `write_json` is a bug in stonemux. Nothing is replaced, dropped
or repaired.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import lru_cache
from json.encoder import c_make_encoder  # type: ignore[attr-defined]
from typing import Any
from urllib.parse import unquote_to_bytes

from stonemux.errors import MuxError
from stonemux.schema import shown

MAX_DEPTH = 64
"""Maximum nesting depth of lists and objects in a body."""
MAX_QUERY_FIELDS = 32
"""Maximum number of parameters in a query string."""

_BAD_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")
_UNSAFE = re.compile("[\x00-\x1f\x7f]")
_CACHED_QUERY = 256

# --- JSON
#
# The standard library's scanner is fast but lenient. Three checks catch what it lets through: its hooks see each
# object, integer, fraction and constant during the scan; a quick look at the text before the scan finds possible depth
# problems, and one after it possible surrogate problems. Only then is the value walked.

_BRACKET = re.compile(r"[\[\]{}]")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_MOST_DIGITS = 4300
_LEAST_INTEGER, _MOST_INTEGER = -(2**63), 2**63 - 1


class _Outside(Exception):
    """An integer exceeds 64 bits; raised by a hook that does not know the integer's key."""


def read_json(body: bytes) -> dict[str, Any]:
    """Parse a body that is one JSON object.

    Raises what `read_value` raises, and `invalid_json` for anything but an object.
    """
    value = read_value(body)
    if type(value) is not dict:
        raise MuxError("invalid_json", f"the body must be a JSON object, not {_kind(value)}; wrap it in {{}}")
    return value


def read_calls(body: bytes) -> dict[str, Any] | list[Any]:
    """Parse a body that is one JSON object or a list; raises what `read_json` raises."""
    value = read_value(body)
    if type(value) not in (dict, list):
        raise MuxError(
            "invalid_json", f"the body must be a JSON object or a list of them, not {_kind(value)}; wrap it in {{}}"
        )
    found: dict[str, Any] | list[Any] = value
    return found


def read_value(body: bytes) -> Any:
    """Parse a body of any JSON value (RFC 8259), without the leniencies that let two parsers see two values.

    Limits: `MAX_DEPTH` levels, integers of 64 bits, finite numbers.

    Raises `invalid_utf8` (also for a byte order mark, UTF-16, UTF-32), `invalid_json` (also NaN, Infinity, 1e999, an
    integer of more than 4300 digits), `duplicate_key`, `invalid_field` for an integer beyond 64 bits, `invalid_unicode`
    for half a surrogate pair, `json_too_deep`.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(body, f"byte 0x{body[error.start]:02x} at offset {error.start}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        # A hostile body usually shows itself in its first page.
        _check_depth(text[:4096])
        _check_depth(text)
    try:
        value = _decode(body, text, _DECODER)
    except _Outside:
        # Parse again, slowly, to find out which key holds it.
        _decode(body, text, _NAMING_DECODER)
        raise _beyond("the body") from None
    if "\\u" in text and _HALF.search(text):
        _check_unicode(value, "")
    return value


def _decode(body: bytes, text: str, decoder: json.JSONDecoder) -> Any:
    try:
        try:
            value, end = decoder.scan_once(text, 0)  # type: ignore[attr-defined]
        except StopIteration:
            end = -1
        # `decode` skips whitespace at both ends, which costs as much as parsing a small body.
        return value if end == len(text) else decoder.decode(text)
    except json.JSONDecodeError as error:
        raise _not_json(body, text, error) from None


def _not_utf8(body: bytes, problem: str) -> MuxError:
    encoding = json.detect_encoding(body)
    if encoding != "utf-8":
        problem = {"utf-8-sig": "UTF-8 with a byte order mark"}.get(encoding, encoding.upper())
    return MuxError("invalid_utf8", f"the body must be plain UTF-8, but is or holds {problem}; encode it as UTF-8")


def _not_json(body: bytes, text: str, error: json.JSONDecodeError) -> MuxError:
    if json.detect_encoding(body) != "utf-8":
        return _not_utf8(body, "")
    if not text.strip(" \t\r\n"):
        return MuxError("invalid_json", "the body is empty; send {} if there are no parameters")
    return MuxError(
        "invalid_json",
        f"the body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}; send one JSON object",
    )


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {list: "a list", str: "a string", bool: "true or false"}.get(type(value), "a number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _repeated(pairs)
    return fields


def _repeated(pairs: list[tuple[str, Any]]) -> MuxError:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return MuxError(
                "duplicate_key",
                f"the key {shown(name)} occurs twice in one object; send it once",
                parameter=_fact(name),
            )
        seen.add(name)
    raise AssertionError("no key is repeated")


def _fact(name: str) -> str:
    """A key as a fact of an error: short, and without half surrogate pairs, which no answer could carry."""
    return name[:128].encode("utf-8", "replace").decode()


def _integer(digits: str) -> int:
    if len(digits) < 19:
        return int(digits)
    if len(digits) > _MOST_DIGITS:
        raise MuxError("invalid_json", f"a number has {len(digits)} digits; integers must fit in 64 bits")
    value = int(digits)
    if not _LEAST_INTEGER <= value <= _MOST_INTEGER:
        raise _Outside
    return value


def _real(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise MuxError("invalid_json", f"the number {shown(digits)} is too large; numbers must be finite")
    return value


def _constant(name: str) -> Any:
    raise MuxError("invalid_json", f"{name} is not JSON; send null or a finite number")


def _integer_or_mark(digits: str) -> Any:
    try:
        return _integer(digits)
    except _Outside:
        return _Outside


def _object_of_marks(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, value in pairs:
        if value is _Outside or (type(value) is list and _Outside in value):
            raise _beyond(shown(name), parameter=_fact(name))
    return _object(pairs)


def _beyond(holder: str, **facts: Any) -> MuxError:
    return MuxError(
        "invalid_field",
        f"{holder} contains an integer beyond 64 bits; the range is {_LEAST_INTEGER} to {_MOST_INTEGER}",
        **facts,
    )


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_real, parse_constant=_constant)
_NAMING_DECODER = json.JSONDecoder(
    object_pairs_hook=_object_of_marks, parse_int=_integer_or_mark, parse_float=_real, parse_constant=_constant
)


def _check_depth(text: str) -> None:
    """Refuse deep nesting before the scan: the scanner recurses, and would overflow a thread's small stack."""
    # Without escaped backslashes and escaped quotes, every other piece between quotes is a string.
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    if outside.count("[") + outside.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKET.finditer(outside):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_DEPTH:
            raise MuxError(
                "json_too_deep",
                f"lists and objects are nested more than {MAX_DEPTH} levels deep; flatten them",
                limit=MAX_DEPTH,
            )


def _check_unicode(value: Any, name: str) -> None:
    """Refuse half a surrogate pair in any text or key; `name` is the key that holds `value`."""
    if type(value) is str:
        if not _is_text(value):
            raise _half_pair(name, "holds")
    elif type(value) is list:
        for inner in value:
            _check_unicode(inner, name)
    elif type(value) is dict:
        for key, inner in value.items():
            if not _is_text(key):
                raise _half_pair(key, "is a key with")
            _check_unicode(inner, key)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _half_pair(name: str, verb: str) -> MuxError:
    return MuxError(
        "invalid_unicode",
        f"{shown(name)} {verb} half a surrogate pair, which is no character; send whole characters",
        parameter=_fact(name),
    )


quoted: Callable[[str], str] = json.encoder.encode_basestring
"""Writes a text as JSON, with its quotation marks; a C function, where there is one."""


def encoder(*, sort_keys: bool = False) -> Callable[[Any], str]:
    """A function that writes a value as compact JSON text; it raises ValueError for what JSON cannot express (NaN)."""
    stock = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=sort_keys, separators=(",", ":"))
    make = c_make_encoder
    if make is None:  # not CPython
        return stock.encode
    # `JSONEncoder.encode` creates this anew for each call, which costs as much as encoding a message.
    pieces = make(None, stock.default, quoted, None, ":", ",", sort_keys, False, False)
    return lambda value: "".join(pieces(value, 0))


dumps = encoder()
"""A value as compact JSON text, as stored and sent; raises ValueError for what JSON cannot express (NaN)."""


def write_json(value: Any) -> bytes:
    """`value` as compact JSON in UTF-8; raises ValueError for what JSON cannot express (NaN, half a surrogate pair)."""
    return dumps(value).encode()


def write_line(value: Any) -> bytes:
    """The same, ending in a newline for display in a terminal."""
    return (dumps(value) + "\n").encode()


# --- query strings


def read_query(query: str) -> dict[str, str]:
    """Parse a query string (without `?`) as form fields: `name=value&name=value`, `+` for a space, `%XX` for UTF-8.

    Limits: `MAX_QUERY_FIELDS` fields. An empty query has none; `a=` is the empty text.

    Raises `invalid_query` for a field without `=` or without a name, an empty field (`a=1&&b=2`), a repeated name, bad
    percent-encoding, bytes that are not UTF-8, and raw text that is not printable ASCII. Nothing is replaced or
    dropped, so no two different queries yield the same values by accident.
    """
    if not query:
        return {}
    return dict(_fields_cached(query) if len(query) <= _CACHED_QUERY else _query_fields(query))


def _query_fields(query: str) -> dict[str, str]:
    if not query.isascii() or _UNSAFE.search(query):
        raise _bad_query("is not printable ASCII; percent-encode it")
    if query.count("&") >= MAX_QUERY_FIELDS:
        raise _bad_query(f"has more than the limit of {MAX_QUERY_FIELDS} fields; send fewer", limit=MAX_QUERY_FIELDS)
    fields: dict[str, str] = {}
    for field in query.split("&"):
        name, equals, value = field.partition("=")
        if not name or not equals:
            raise _bad_query(f"has the field {shown(field)}, which is not of the form name=value")
        if "%" in field or "+" in field:
            name, value = _form_decode(name), _form_decode(value)
        if name in fields:
            raise _bad_query(f"has {shown(name)} twice; send it once", parameter=name[:128])
        fields[name] = value
    return fields


_fields_cached = lru_cache(maxsize=512)(_query_fields)


def _form_decode(text: str) -> str:
    decoded = percent_decode(text.replace("+", " "))
    if decoded is None:
        raise _bad_query(f"has {shown(text)}, which is not percent-encoded UTF-8")
    return decoded


def _bad_query(problem: str, **facts: Any) -> MuxError:
    return MuxError("invalid_query", f"the query string {problem}", **facts)


def percent_decode(text: str) -> str | None:
    """Decode printable ASCII with `%XX` (RFC 3986 section 2.1); None if the result is not valid UTF-8."""
    if _BAD_PERCENT.search(text):
        return None
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return None
