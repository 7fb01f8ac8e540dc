"""HTTP/1.1 parsing and rendering: bytes in, values out.

Nothing here opens a socket, starts a thread or reads the clock, so each edge case can be tested without any of them.
The HTTP server owns the sockets: it passes in what it received and writes what `render` returns.

Rules:
- Refuse whatever could make two programs see the boundary between two requests differently (RFC 9112 section 11.2),
  even where the RFC allows repair. Exactly one space, one kind of line ending, one length, one spelling.
- Client input raises only `MuxError`; a `ValueError` from `render` is a bug in stonemux. An error with `close` set
  leaves the connection unusable: answer, then close.
- Never change what is cached: requests with the same bytes share one `Head`.

`parse_head` checks in the order of trust: sizes, line endings, the request line, control characters, field lines, and
only then what the fields mean. Text is decoded as Latin-1, one character per byte, so that nothing is lost and nothing
merges; so do not call Unicode-aware methods of `str` (`strip()`, `isdigit()`, `splitlines()`) on it without an explicit
argument or a check for ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple

from stonemux.errors import MuxError
from stonemux.payload import percent_decode
from stonemux.schema import shown

MAX_REQUEST_LINE = 8192
"""Maximum bytes of the request line, without its line ending (RFC 9112 section 3 asks for at least 8000)."""
MAX_HEADERS = 64
"""Maximum number of header lines in a request."""
MAX_HEAD = 32768
"""Maximum bytes of all header lines together; the request line is counted separately."""

METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH", "QUERY", "TRACE", "CONNECT"})
"""The methods that the parser accepts; the router decides which of them a path supports."""

SINGLE = frozenset(
    {
        "authorization",
        "content-length",
        "content-type",
        "expect",
        "host",
        "idempotency-key",
        "last-event-id",
        "origin",
        "sec-fetch-site",
        "transfer-encoding",
    }
)
"""Headers that may occur only once: a repetition is refused, even an identical one. Others are joined with a comma."""

_TOKEN_CHARS = r"!#$%&'*+\-.^_`|~0-9A-Za-z"
_TOKEN = re.compile(f"[{_TOKEN_CHARS}]+")
_REQUEST_LINE = re.compile(rf"([{_TOKEN_CHARS}]+) (/[!\"$-~]*) HTTP/1\.([01])")
_ANY_REQUEST_LINE = rf"([{_TOKEN_CHARS}]+) ([^ ]+) HTTP/([0-9]\.[0-9])"
_REQUEST_LINE_BEGUN = rb"[%b]+(?: [!-~]*(?: [!-~]*)?)?\r?" % _TOKEN_CHARS.encode()
_LENGTH = re.compile("[0-9]{1,19}")
_CONTROLS = bytes(set(range(32)) - set(b"\t\r\n") | {127})
_UNSAFE = re.compile("[\x00-\x1f\x7f]")

_CACHED_BLOCK = 2048


# --- the head of a request ---------------------------------------------------------------------------------------


class Head(NamedTuple):
    """A request without its body; immutable, and shared by requests whose heads are the same byte for byte."""

    method: str
    """One of `METHODS`."""
    path: str
    """Percent-decoded; begins with `/` and is otherwise unchanged (dot segments stay, `//` stays). `*` only for
    OPTIONS."""
    query: str
    """As sent, after the first `?`; empty if there is none."""
    headers: Mapping[str, str]
    """Lower-case names; values without surrounding blanks, non-ASCII bytes as Latin-1 (RFC 9110 section 5.5)."""
    keep_alive: bool
    """False for `Connection: close` and for HTTP/1.0."""
    length: int
    """Content-Length, 0 if absent."""
    chunked: bool
    """The body is chunked: feed it to `ChunkedBody`."""
    expect_continue: bool
    """The client waits for `100 Continue` before it sends the body."""


def parse_head(block: bytes) -> Head:
    """Parse a request's head: everything before the first CRLF CRLF, not including it.

    Limits: `MAX_REQUEST_LINE`, `MAX_HEADERS`, `MAX_HEAD`. Heads up to 2 KiB are cached.

    Raises, always with `close`: `uri_too_long`, `headers_too_large`, `too_many_headers`, `bad_request_line`,
    `http_version`, `method_unknown`, `bad_header`, `duplicate_header`, `host_required`, `te_and_cl`,
    `bad_content_length`, `expectation_failed`. RFC 9112 sections 2.2 (line endings), 3 (request line, Host), 5 (field
    lines), 6 (length of the body). Stricter than section 3.2.2: a target with scheme and host is refused, as stonemux
    is not a proxy; stricter than 6.1: any transfer coding but a single `chunked` is `bad_header`.
    """
    return _parse_cached(block) if len(block) <= _CACHED_BLOCK else _parse(block)


def _parse(block: bytes) -> Head:
    lines = block.decode("latin-1").split("\r\n")
    _check_sizes(len(lines[0]), len(block) - len(lines[0]) - 2, len(lines) - 1)
    ends = len(lines) - 1
    if block.count(b"\r") != ends or block.count(b"\n") != ends:
        raise _broken("bad_header", "a line of the head ends with a bare CR or LF; end each line with CRLF")
    method, path, query, old = _request_line(lines[0])
    if len(block.translate(None, _CONTROLS)) != len(block):
        raise _broken("bad_header", "a header contains a control character; send printable text")
    headers = _fields(lines)
    length, chunked = _framing(headers, old)
    return Head(
        method,
        path,
        query,
        MappingProxyType(headers),
        not old and ("connection" not in headers or not _says_close(headers["connection"])),
        length,
        chunked,
        "expect" in headers and _expects_continue(headers["expect"], old),
    )


_parse_cached = lru_cache(maxsize=512)(_parse)


def _broken(code: str, message: str, **facts: Any) -> MuxError:
    """An error after which the start of the next request is unknown."""
    return MuxError(code, message, close=True, **facts)


def _check_sizes(line: int, fields: int, count: int) -> None:
    if line > MAX_REQUEST_LINE:
        raise _broken(
            "uri_too_long",
            f"the request line is longer than the limit of {MAX_REQUEST_LINE} bytes; send long values in a body",
            limit=MAX_REQUEST_LINE,
        )
    if fields > MAX_HEAD:
        raise _broken(
            "headers_too_large",
            f"the headers are larger than the limit of {MAX_HEAD} bytes; send fewer or shorter ones",
            limit=MAX_HEAD,
        )
    if count > MAX_HEADERS:
        raise _broken(
            "too_many_headers",
            f"the request has {count} headers, more than the limit of {MAX_HEADERS}; send fewer",
            limit=MAX_HEADERS,
        )


def _request_line(line: str) -> tuple[str, str, str, bool]:
    """Method, path, query, and whether it is HTTP/1.0 (RFC 9112 section 3)."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        return _odd_request_line(line)
    method, target, minor = match.groups()
    if method not in METHODS:
        raise _unknown_method(method)
    path, _, query = target.partition("?")
    return method, _decode_path(path) if "%" in path else path, query, minor == "0"


def _odd_request_line(line: str) -> tuple[str, str, str, bool]:
    """Explain what is wrong with a request line that did not match; accepts only `OPTIONS *`."""
    match = re.fullmatch(_ANY_REQUEST_LINE, line)
    if match is None:
        raise _broken(
            "bad_request_line",
            f"the request line {shown(line)} is not of the form: METHOD /path HTTP/1.1, with single blanks between",
        )
    method, target, version = match.groups()
    if version not in ("1.0", "1.1"):
        # RFC 9110 15.6.6: 505 is about the major version; there is no HTTP/1.2 or later.
        code = "bad_request_line" if version.startswith("1.") else "http_version"
        raise _broken(code, f"HTTP/{version} is not supported; use HTTP/1.1", accepted=["HTTP/1.1"])
    if method not in METHODS:
        raise _unknown_method(method)
    if (method, target) == ("OPTIONS", "*"):
        return method, target, "", version == "1.0"
    raise _broken(
        "bad_request_line",
        f"the request target {shown(target)} must begin with / and be printable ASCII without #; percent-encode others",
    )


def _unknown_method(method: str) -> MuxError:
    return _broken(
        "method_unknown", f"the method {shown(method)} is not known; use GET or POST", accepted=["GET", "HEAD", "POST"]
    )


def _decode_path(path: str) -> str:
    """The percent-decoded path; refuses an encoding that would add a segment or hide a control character."""
    decoded = percent_decode(path)
    if decoded is None or decoded.count("/") != path.count("/") or _UNSAFE.search(decoded):
        raise _broken(
            "bad_request_line",
            f"the path {shown(path)} must be percent-encoded UTF-8 without encoded slashes or control characters",
        )
    return decoded


def _fields(lines: list[str]) -> dict[str, str]:
    """The header lines after the request line, by lower-case name (RFC 9112 section 5)."""
    fields: dict[str, str] = {}
    is_token = _TOKEN.fullmatch
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or is_token(name) is None:
            raise _bad_field(line, lines.index(line))
        name = name.lower()
        value = value.strip(" \t")
        if name in fields:
            if name in SINGLE:
                raise _broken("duplicate_header", f"the header {name} may occur only once; send it once", header=name)
            value = f"{fields[name]}, {value}"
        fields[name] = value
    return fields


def _bad_field(line: str, number: int) -> MuxError:
    """Explain what is wrong with a header line, without quoting it: it may hold a secret."""
    name, colon, _ = line.partition(":")
    if line[:1] in (" ", "\t"):
        problem = "continues the line before it; write each header on one line"
    elif not colon:
        problem = "has no colon; write Name: value"
    elif name != name.rstrip(" \t"):
        problem = "has a blank before the colon; remove it"
    else:
        problem = "has a name that is empty or has characters other than letters, digits, and !#$%&'*+-.^_`|~"
    return _broken("bad_header", f"header line {number} {problem}")


def _framing(headers: Mapping[str, str], old: bool) -> tuple[int, bool]:
    """Content-Length (0 if absent) and whether the body is chunked (RFC 9112 section 6); checks Host as well."""
    if "host" not in headers and not old:
        raise _broken("host_required", "HTTP/1.1 requires a Host header; send Host: with the address you connect to")
    coding = headers.get("transfer-encoding")
    length = headers.get("content-length")
    if coding is not None:
        _check_coding(coding, length, old)
        return 0, True
    if length is None:
        return 0, False
    if _LENGTH.fullmatch(length) is None:
        raise _broken(
            "bad_content_length",
            f"Content-Length is {shown(length)}; it must be 1 to 19 decimal digits and nothing else",
        )
    return int(length), False


def _check_coding(coding: str, length: str | None, old: bool) -> None:
    if length is not None:
        raise _broken("te_and_cl", "the request has both Transfer-Encoding and Content-Length; send one of them")
    if old:
        raise _broken("bad_header", "HTTP/1.0 has no Transfer-Encoding; send Content-Length, or use HTTP/1.1")
    if coding.lower() != "chunked":
        raise _broken("bad_header", f"Transfer-Encoding is {shown(coding)}; only chunked is supported")


def _says_close(connection: str) -> bool:
    return any(option.strip(" \t") == "close" for option in connection.lower().split(","))


def _expects_continue(expect: str, old: bool) -> bool:
    """Whether to send `100 Continue` (RFC 9110 section 10.1.1); never to HTTP/1.0, which has no interim answers."""
    if expect.lower() != "100-continue":
        raise _broken("expectation_failed", f"Expect is {shown(expect)}; only 100-continue is supported")
    return not old


def check_partial_head(buffer: bytes) -> None:
    """Check a head that is still incomplete (no CRLF CRLF yet), so that a hopeless one is answered at once.

    Raises, always with `close`, only what `parse_head` would raise whatever followed: `uri_too_long` and
    `headers_too_large` once the limits are exceeded, the request line's errors once that line is complete,
    `bad_request_line` when these bytes cannot begin a request (a TLS ClientHello, binary, an empty line), `bad_header`
    for a bare LF. Cheap enough to call after each read.
    """
    if not buffer:
        return
    end = buffer.find(b"\n", 0, MAX_REQUEST_LINE + 2)
    line = buffer[: MAX_REQUEST_LINE + 2 if end < 0 else end]
    if re.fullmatch(_REQUEST_LINE_BEGUN, line) is None:
        raise _broken(
            "bad_request_line",
            f"{shown(line[:16].decode('latin-1'))} cannot begin a request; the first line is METHOD /path HTTP/1.1",
        )
    _check_sizes(len(line.removesuffix(b"\r")), 0, 0)
    if end < 0:
        return
    if buffer.count(b"\n") != buffer.count(b"\r\n"):
        raise _broken("bad_header", "a line of the head ends with a bare LF; end each line with CRLF")
    _request_line(line[:-1].decode("latin-1"))
    # Up to three bytes of the closing CRLF CRLF may already be here.
    _check_sizes(0, len(buffer) - (end + 1) - 3, 0)


LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""The names of the loopback interface in a Host header."""


def admit(head: Head, hosts: frozenset[str], origins: frozenset[str]) -> None:
    """Keep web pages out: refuse requests that a foreign page could make a browser send.

    `hosts` are the accepted values of Host, in lower case and with the port as clients send it (`localhost:3392`);
    `origins` are the accepted values of Origin (`http://localhost:3392`), compared exactly.

    Raises `host_not_allowed` (DNS rebinding), `origin_not_allowed` (also for `null`), and `cross_site` when
    Sec-Fetch-Site is present and is neither same-origin nor none. These errors leave `close` unset: the framing is
    intact.
    """
    headers = head.headers
    host = headers.get("host", "")
    if host not in hosts and host.lower() not in hosts:
        raise MuxError(
            "host_not_allowed",
            f"Host is {shown(host)}, which is not a name of this server; it answers to: {', '.join(sorted(hosts))}. "
            "Add other names to server.allowed_hosts in the settings",
            accepted=sorted(hosts),
        )
    origin = headers.get("origin")
    if origin is not None and origin not in origins:
        raise MuxError(
            "origin_not_allowed",
            f"pages of {shown(origin)} may not call this server; call it from a program",
            origin=origin[:256],
        )
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        raise MuxError("cross_site", "a page of another site may not call this server; call it from a program")


def check_content_type(head: Head) -> None:
    """Refuse a request not declared as JSON, with or without a body, so that an HTML form can never change anything.

    Raises `content_type` unless the type is application/json, with no charset or with UTF-8.
    """
    kind = head.headers.get("content-type", "")
    if kind != "application/json" and not _is_json(kind):
        raise MuxError(
            "content_type",
            f"Content-Type is {shown(kind)}; a POST must be sent as application/json, in UTF-8, even with an empty "
            "body",
            accepted=["application/json"],
        )


def _is_json(kind: str) -> bool:
    """Whether a Content-Type is application/json, with no charset but UTF-8 (RFC 9110 section 8.3)."""
    media, *parameters = kind.lower().split(";")
    if media.strip(" \t") != "application/json":
        return False
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip(" \t") == "charset" and value.strip(" \t") not in ("utf-8", '"utf-8"', "utf8", '"utf8"'):
            return False
    return True


# --- bodies --------------------------------------------------------------------------------------------------------


_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_SIZE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,8}\r?)?")


class ChunkedBody:
    """Decodes a chunked body, however its bytes are split in transit (RFC 9112 section 7.1).

    Stricter than the RFC: a size has 1 to 8 hexadecimal digits, no extensions, no trailers, CRLF only. The chunks
    together may hold at most `limit` bytes. After an error, discard the decoder.

    The CRLF after a chunk is read as part of the data and then removed, so the last chunk, of size 0, and the empty
    line that ends the body need no special case.
    """

    __slots__ = ("_body", "_buffer", "_last", "_left", "_limit", "body", "done", "rest")

    def __init__(self, limit: int) -> None:
        self.done = False
        """The last chunk and its end have been seen."""
        self.body = b""
        """The whole body, once `done`."""
        self.rest = b""
        """The bytes after the body, once `done`: the beginning of the next request."""
        self._limit = limit
        self._body = bytearray()
        self._buffer = b""
        self._left = 0
        self._last = False

    def feed(self, data: bytes) -> None:
        """Decode the next bytes.

        Raises, with `close`: `bad_chunk`, or `body_too_large` as soon as the chunk sizes exceed the limit.
        """
        if self.done:
            self.rest += data
            return
        data = self._buffer + data
        at, end = 0, len(data)
        while at < end and not self.done:
            if self._left:
                at = self._take(data, at)
            elif match := _SIZE.match(data, at):
                self._begin(int(match[1], 16))
                at = match.end()
            elif _SIZE_BEGUN.fullmatch(data, at):
                break
            else:
                raise _bad_chunk(data[at : at + 10], "a chunk size of 1 to 8 hexadecimal digits and CRLF")
        self._buffer = data[at:]
        if self.done:
            self.body, self.rest, self._buffer = bytes(self._body), self._buffer, b""

    def _begin(self, size: int) -> None:
        if len(self._body) + size > self._limit:
            raise _broken(
                "body_too_large",
                f"the body is larger than the limit of {self._limit} bytes; send less, or a reference to it",
                limit=self._limit,
            )
        self._left = size + 2
        self._last = size == 0

    def _take(self, data: bytes, at: int) -> int:
        part = data[at : at + self._left]
        self._body += part
        self._left -= len(part)
        if not self._left:
            if not self._body.endswith(b"\r\n"):
                raise _bad_chunk(bytes(self._body[-2:]), "CRLF")
            del self._body[-2:]
            self.done = self._last
        return at + len(part)


def _bad_chunk(found: bytes, wanted: str) -> MuxError:
    return _broken(
        "bad_chunk",
        f"the chunked body has {shown(found.decode('latin-1'))} where {wanted} must be; extensions and trailers are "
        "not accepted",
    )


# --- answers -------------------------------------------------------------------------------------------------------

_BODILESS = (204, 304)


def render(
    status: int,
    body: bytes | None,
    *,
    request_id: str,
    head_only: bool = False,
    close: bool = False,
    extra: tuple[tuple[str, str], ...] = (),
    content_type: str = "application/json",
    date: bytes = b"",
) -> bytes:
    """Render a complete answer.

    `head_only` (for HEAD) keeps Content-Length but leaves the body out; with None for the body, GET's is not known, and
    there is no Content-Length; `close` adds `Connection: close`; `extra` is more headers; `date` is the value of the
    Date header, left out if empty. Statuses 204 and 304 have neither body nor Content-Length (RFC 9110 section 8.6).
    Raises ValueError for an unknown or interim status, and for a header name or value that is not printable ASCII,
    since such a value could inject bytes into the answer.
    """
    head = _opening(status, content_type, close, date)
    if body is None:
        body = b""
    elif status not in _BODILESS:
        head += b"Content-Length: %d\r\n" % len(body)
    elif body:
        raise ValueError(f"status {status} has no body")
    more = b"".join([_line(name, value) for name, value in extra]) if extra else b""
    return b"%bX-Request-Id: %b\r\n%b\r\n%b" % (head, _checked(request_id), more, b"" if head_only else body)


@lru_cache(maxsize=256)
def _opening(status: int, content_type: str, close: bool, date: bytes) -> bytes:
    if status < 200:
        raise ValueError(f"status {status} is not a final answer")
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode("ascii")]
    if status not in _BODILESS:
        lines.append(_line("Content-Type", content_type))
    lines += [_line("Cache-Control", "no-store"), _line("X-Content-Type-Options", "nosniff")]
    if close:
        lines.append(_line("Connection", "close"))
    if date:
        lines.append(_line("Date", date.decode("ascii")))
    return b"".join(lines)


def _line(name: str, value: str) -> bytes:
    if _TOKEN.fullmatch(name) is None:
        raise ValueError(f"{name!r} is no header name")
    return b"%b: %b\r\n" % (name.encode("ascii"), _checked(value))


def _checked(value: str) -> bytes:
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{value!r} cannot be a header value")
    return value.encode("ascii")
