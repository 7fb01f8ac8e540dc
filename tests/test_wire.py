"""HTTP and JSON as bytes: what is read, what is refused and with which code, and what is written."""

from __future__ import annotations

import json
import re

import pytest

from stonemux import payload, wire
from stonemux.errors import FAILURES, MuxError

HOSTS = frozenset({"127.0.0.1:3392", "localhost:3392", "[::1]:3392"})
ORIGINS = frozenset({"http://localhost:3392"})


def block(*lines: str, start: str = "GET /health HTTP/1.1", host: str = "Host: localhost:3392") -> bytes:
    """A head's bytes: the request line, Host, and the given lines."""
    return "\r\n".join([start, *([host] if host else []), *lines]).encode("latin-1")


def refusal(call, *args, **kwargs) -> MuxError:
    """The error that a call ends with; its code is a known one and its message is a sentence for people."""
    with pytest.raises(MuxError) as caught:
        call(*args, **kwargs)
    assert caught.value.code in FAILURES
    assert len(caught.value.message) > 10
    payload.write_json(caught.value.body("id"))
    return caught.value


def head_refusal(data: bytes) -> str:
    """The code with which `parse_head` refuses `data`; the connection is always to be closed."""
    error = refusal(wire.parse_head, data)
    assert error.close
    return error.code


# --- heads that are read -------------------------------------------------------------------------------------------


def test_a_head_is_read_into_its_parts():
    head = wire.parse_head(block("X-A: \t one two \t", "CONTENT-length: 12", start="POST /msg/send?a=b?c HTTP/1.1"))
    assert (head.method, head.path, head.query) == ("POST", "/msg/send", "a=b?c")
    assert dict(head.headers) == {"host": "localhost:3392", "x-a": "one two", "content-length": "12"}
    assert (head.length, head.chunked) == (12, False)
    assert (head.keep_alive, head.expect_continue) == (True, False)


@pytest.mark.parametrize("method", sorted(wire.METHODS))
def test_each_known_method_is_parsed(method):
    assert wire.parse_head(block(start=f"{method} /x HTTP/1.1")).method == method


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/?", "/", ""),
        ("//evil.example/a", "//evil.example/a", ""),
        ("/a/../b", "/a/../b", ""),
        ("/a%20b%c3%A9", "/a bé", ""),
        ("/a?x=%zz&y", "/a", "x=%zz&y"),
        ("/a+b", "/a+b", ""),
        ('/{a}|^`\\"', '/{a}|^`\\"', ""),
        ("/a?/b?c", "/a", "/b?c"),
    ],
)
def test_a_target_is_split_and_only_the_path_is_decoded(target, path, query):
    head = wire.parse_head(block(start=f"GET {target} HTTP/1.1"))
    assert (head.path, head.query) == (path, query)


def test_options_may_ask_about_the_whole_server():
    assert wire.parse_head(block(start="OPTIONS * HTTP/1.1")).path == "*"
    assert wire.parse_head(block(start="OPTIONS * HTTP/1.1")).keep_alive is True
    assert wire.parse_head(block(start="OPTIONS * HTTP/1.0")).keep_alive is False
    assert head_refusal(block(start="OPTIONS * HTTP/1.1x")) == "bad_request_line"
    assert head_refusal(block(start="GET * HTTP/1.1")) == "bad_request_line"


@pytest.mark.parametrize(
    ("line", "start", "kept"),
    [
        ("X: y", "GET / HTTP/1.1", True),
        ("Connection: keep-alive", "GET / HTTP/1.1", True),
        ("Connection: close", "GET / HTTP/1.1", False),
        ("Connection: Keep-Alive, CLOSE", "GET / HTTP/1.1", False),
        ("Connection: enclosed", "GET / HTTP/1.1", True),
        ("Connection: close\xa0", "GET / HTTP/1.1", True),
        ("X: y", "GET / HTTP/1.0", False),
        ("Connection: keep-alive", "GET / HTTP/1.0", False),
    ],
)
def test_a_connection_is_kept_unless_close_or_http_10(line, start, kept):
    assert wire.parse_head(block(line, start=start)).keep_alive is kept


def test_connection_in_two_lines_counts_as_one_list():
    assert wire.parse_head(block("Connection: te", "Connection: close")).keep_alive is False


def test_a_request_without_length_or_coding_has_no_body():
    head = wire.parse_head(block("X: no body"))
    assert (head.length, head.chunked) == (0, False)


def test_http_10_needs_no_host():
    assert wire.parse_head(b"GET / HTTP/1.0").headers == {}


def test_a_chunked_body_is_announced_in_any_case():
    head = wire.parse_head(block("Transfer-Encoding: ChunKed"))
    assert (head.chunked, head.length) == (True, 0)


@pytest.mark.parametrize(("start", "waits"), [("POST / HTTP/1.1", True), ("POST / HTTP/1.0", False)])
def test_a_client_may_wait_for_100_continue_except_in_http_10(start, waits):
    assert wire.parse_head(block("Expect: 100-Continue", start=start)).expect_continue is waits


@pytest.mark.parametrize("length", ["0", "4", "00004", "99999999999", "9" * 19])
def test_fault_04_a_huge_length_is_only_a_number_here(length):
    head = wire.parse_head(block(f"Content-Length: {length}"))
    assert head.length == int(length)


def test_bytes_beyond_ascii_in_a_value_are_kept_one_for_one():
    assert wire.parse_head(block("X: \xa0\xe9\x85")).headers["x"] == "\xa0\xe9\x85"


def test_a_repeated_header_is_joined():
    assert wire.parse_head(block("Accept: a", "accept: b")).headers["accept"] == "a, b"


def test_equal_heads_are_read_once_and_cannot_be_changed():
    head = wire.parse_head(block("X: shared"))
    assert wire.parse_head(block("X: shared")) is head
    with pytest.raises(TypeError):
        head.headers["x"] = "other"
    with pytest.raises(AttributeError):
        head.path = "/other"


def test_large_heads_are_not_kept():
    data = block("X: " + "y" * 3000)
    assert wire.parse_head(data) is not wire.parse_head(data)


# --- heads that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("Content-Length: 4", "Transfer-Encoding: chunked")])
@pytest.mark.parametrize("start", ["POST / HTTP/1.1", "POST / HTTP/1.0"])
def test_fault_01_length_and_chunks_together_are_refused(order, start):
    assert head_refusal(block(*order, start=start)) == "te_and_cl"
    assert head_refusal(block(*reversed(order), start=start)) == "te_and_cl"


@pytest.mark.parametrize(("first", "second"), [("4", "0"), ("4", "4"), ("4", "")])
def test_fault_02_two_lengths_are_refused_even_if_equal(first, second):
    assert head_refusal(block(f"Content-Length: {first}", f"content-length: {second}")) == "duplicate_header"


@pytest.mark.parametrize(
    "length",
    [
        "+4",
        "1_0",
        "-1",
        "abc",
        "",
        "4, 4",
        "4,4",
        "0x4",
        "4.0",
        "1e3",
        "4 4",
        '"4"',
        "\xb2",
        "\xb9\xb2",
        "9" * 20,
        "٣".encode().decode("latin-1"),
        "\uff14".encode().decode("latin-1"),
        "4\xa0",
        "9" * 4301,
        "-0",
    ],
)
def test_fault_03_a_length_is_decimal_digits_only(length):
    assert head_refusal(block(f"Content-Length: {length}")) == "bad_content_length"


@pytest.mark.parametrize(
    "coding",
    ["gzip", "identity", "", "chunked, chunked", "gzip, chunked", "chunked;q=1", "xchunked", "\xa0chunked", "chunked,"],
)
def test_fault_01_a_coding_other_than_chunked_is_refused(coding):
    assert head_refusal(block(f"Transfer-Encoding: {coding}")) == "bad_header"


def test_fault_01_chunks_in_http_10_are_refused():
    assert head_refusal(block("Transfer-Encoding: chunked", start="POST / HTTP/1.0")) == "bad_header"


@pytest.mark.parametrize(
    "line",
    [
        "Content-Length : 4",
        "Content-Length\t: 4",
        "X: a\r\n folded",
        "X: a\r\n\tfolded",
        " X: first line folded",
        "X: a\nY: b",
        "X: a\rY: b",
        "X: a\r",
        "X: a\n",
        "X: a\r\r\nY: b",
        "X: a\x00b",
        "X: a\x01b",
        "X: a\x7fb",
        "X: a\x0bb",
        "Transfer-Encoding:\x0bchunked",
        "no colon",
        "nocolon",
        ": no name",
        "(X): y",
        "X\xe9: y",
        "X Y: z",
        "X\x00: y",
        "",
        "X: a\r\n\r\nY: b",
    ],
)
def test_fault_06_a_malformed_header_line_is_refused(line):
    assert head_refusal(block(line)) == "bad_header"


def test_fault_06_a_refused_header_line_is_not_quoted_because_it_may_be_secret():
    for line in ("Authorization : Bearer hunter2", "Authorization: x\r\n hunter2", "Bearer hunter2"):
        assert "hunter2" not in refusal(wire.parse_head, block(line)).message


@pytest.mark.parametrize(
    ("line", "hint"),
    [("X : y", "before the colon"), ("X: a\r\n b", "continues"), ("nocolon", "no colon"), ("X\xa0: y", "a name that")],
)
def test_fault_06_the_message_says_what_is_wrong_with_which_line(line, hint):
    message = refusal(wire.parse_head, block(line)).message
    assert hint in message
    assert f"line {3 if hint == 'continues' else 2} " in message


def test_fault_07_limits_of_the_request_line_are_exact():
    longest = "GET /" + "a" * (wire.MAX_REQUEST_LINE - len("GET / HTTP/1.1")) + " HTTP/1.1"
    assert len(wire.parse_head(block(start=longest)).path) > 8000
    assert head_refusal(block(start=longest.replace("/a", "/aa"))) == "uri_too_long"


def test_fault_07_limits_of_the_headers_are_exact():
    lines = [f"X{number}: y" for number in range(wire.MAX_HEADERS - 1)]
    assert len(wire.parse_head(block(*lines)).headers) == wire.MAX_HEADERS
    assert head_refusal(block(*lines, "One: more")) == "too_many_headers"
    room = wire.MAX_HEAD - len("Host: localhost:3392\r\nX: ")
    assert wire.parse_head(block("X: " + "y" * room)).headers["x"] == "y" * room
    assert head_refusal(block("X: " + "y" * (room + 1))) == "headers_too_large"


def test_fault_08_a_missing_or_second_host_is_refused():
    assert head_refusal(block(host="")) == "host_required"
    assert head_refusal(block("Host: localhost:3392")) == "duplicate_header"
    assert head_refusal(block("hOST: evil.example")) == "duplicate_header"


@pytest.mark.parametrize("name", sorted(wire.SINGLE))
def test_headers_that_decide_something_may_stand_once_only(name):
    assert head_refusal(block(f"{name}: 1", f"{name.upper()}: 1", host="")) == "duplicate_header"


@pytest.mark.parametrize("expect", ["banana", "", "100-continue, 100-continue", "100-continue;x"])
def test_fault_11_an_expectation_that_cannot_be_met_is_refused(expect):
    assert head_refusal(block(f"Expect: {expect}")) == "expectation_failed"


@pytest.mark.parametrize(
    ("start", "code"),
    [
        ("BREW /pot HTTP/1.1", "method_unknown"),
        ("get / HTTP/1.1", "method_unknown"),
        ("A" * 4000 + " / HTTP/1.1", "method_unknown"),
        ("PRI * HTTP/2.0", "http_version"),
        ("GET / HTTP/1.9", "bad_request_line"),
        ("GET / HTTP/0.9", "http_version"),
        ("GET / HTTP/3.0", "http_version"),
    ],
)
def test_fault_11_unknown_methods_and_versions_are_refused(start, code):
    assert head_refusal(block(start=start)) == code


@pytest.mark.parametrize(
    "start",
    [
        "",
        "GET",
        "GET /",
        "GET / ",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET\t/\tHTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /a\tb HTTP/1.1",
        "GET /\xff HTTP/1.1",
        "GET /é HTTP/1.1",
        "GET /\x00 HTTP/1.1",
        "GET /\x7f HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET a HTTP/1.1",
        "GET http://localhost:3392/ HTTP/1.1",
        "CONNECT localhost:3392 HTTP/1.1",
        "GET / HTTP/01.1",
        "GET / HTTP/1.01",
        "GET / HTTP/1",
        "GET / HTTP/1.\xb9",
        "GET / http/1.1",
        "GET / HTTP/1.1\x00",
        "GET / HTTPS/1.1",
        "G(T / HTTP/1.1",
        "GÉT / HTTP/1.1",
        "GET /%ff HTTP/1.1",
        "GET /%ed%a0%80 HTTP/1.1",
        "GET /%c0%af HTTP/1.1",
        "GET /%2 HTTP/1.1",
        "GET /% HTTP/1.1",
        "GET /%+1 HTTP/1.1",
        "GET /admin%2fbackup HTTP/1.1",
        "GET /%00 HTTP/1.1",
        "GET /%0d%0aX:y HTTP/1.1",
        "GET /%7f HTTP/1.1",
    ],
)
def test_a_malformed_request_line_is_refused(start):
    assert head_refusal(block(start=start)) == "bad_request_line"


# --- heads that have begun -----------------------------------------------------------------------------------------


def test_any_beginning_of_a_good_request_is_waited_for():
    data = block("Content-Length: 4", "X: a b", start="POST /msg/send?a=%20 HTTP/1.1") + b"\r\n\r"
    for cut in range(len(data) + 1):
        wire.check_partial_head(data[:cut])


@pytest.mark.parametrize(
    ("buffer", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "bad_request_line"),
        (b"\x16", "bad_request_line"),
        (b"\x80.\x01\x03\x01", "bad_request_line"),
        (b"\r\nGET / HTTP/1.1\r\n", "bad_request_line"),
        (b"\r", "bad_request_line"),
        (b"\n", "bad_request_line"),
        (b"\x00" * 10, "bad_request_line"),
        (b"GET\t", "bad_request_line"),
        (b"GET /\xff", "bad_request_line"),
        (b"GET /a b c", "bad_request_line"),
        (b"GET / HTTP/1.1\rX", "bad_request_line"),
        (b"GET /a\r\n", "bad_request_line"),
        (b"EHLO mail.example\r\n", "bad_request_line"),
        (b"*1\r\n$4\r\nPING\r\n", "bad_request_line"),
        (b'{"jsonrpc":"2.0"', "bad_request_line"),
        (b"BREW / HTTP/1.1\r\n", "method_unknown"),
        (b"GET / HTTP/2.0\r\n", "http_version"),
    ],
)
def test_fault_12_what_cannot_become_a_request_is_refused_at_once(buffer, code):
    error = refusal(wire.check_partial_head, buffer)
    assert (error.code, error.close) == (code, True)


@pytest.mark.parametrize("buffer", [b"GET / HTTP/1.1\nHost: x\n\n", b"GET / HTTP/1.1\r\nHost: x\n\n", b"GET /\n"])
def test_fault_06_a_client_with_wrong_line_ends_is_told_at_once(buffer):
    assert refusal(wire.check_partial_head, buffer).code == "bad_header"


def test_fault_07_a_begun_head_is_refused_as_soon_as_it_is_too_large():
    line = b"GET /" + b"a" * (wire.MAX_REQUEST_LINE - 5)
    wire.check_partial_head(line)
    wire.check_partial_head(line + b"\r")
    assert refusal(wire.check_partial_head, line + b"a").code == "uri_too_long"
    assert refusal(wire.check_partial_head, line + b"a" * 100_000).code == "uri_too_long"
    head = b"GET / HTTP/1.1\r\nX: "
    room = wire.MAX_HEAD - 3
    wire.check_partial_head(head + b"y" * room + b"\r\n\r")
    assert refusal(wire.check_partial_head, head + b"y" * (room + 4)).code == "headers_too_large"
    assert refusal(wire.check_partial_head, head + b"y" * 1_000_000).code == "headers_too_large"


def test_the_longest_request_line_may_arrive_in_any_pieces():
    line = b"GET /" + b"a" * (wire.MAX_REQUEST_LINE - 14) + b" HTTP/1.1\r\nHost: x\r\n\r"
    for cut in range(wire.MAX_REQUEST_LINE - 12, len(line) + 1):
        wire.check_partial_head(line[:cut])


# --- browsers ------------------------------------------------------------------------------------------------------


def admit(*lines: str, start: str = "GET /msg/poll HTTP/1.1", host: str = "Host: localhost:3392") -> None:
    head = wire.parse_head(block(*lines, start=start, host=host))
    wire.admit(head, HOSTS, ORIGINS)
    if head.method == "POST":
        wire.check_content_type(head)


@pytest.mark.parametrize("host", [*sorted(HOSTS), "LOCALHOST:3392"])
def test_a_program_that_names_this_server_is_admitted(host):
    admit(host=f"Host: {host}")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost",
        "localhost:80",
        "",
        "localhost:3392.",
        "localhost:3392, evil",
        "a@localhost:3392",
        "localhost:03392",
        "localhost.evil.example:3392",
        "[::1]",
        "127.1:3392",
    ],
)
def test_fault_08_a_foreign_host_is_refused(host):
    assert refusal(admit, host=f"Host: {host}").code == "host_not_allowed"


def test_fault_08_no_host_at_all_is_foreign_in_http_10_too():
    assert refusal(admit, start="GET / HTTP/1.0", host="").code == "host_not_allowed"


def test_a_host_without_port_is_admitted_only_if_listed():
    head = wire.parse_head(block(host="Host: MUX.example"))
    wire.admit(head, frozenset({"mux.example"}), ORIGINS)


@pytest.mark.parametrize("origin", ["https://evil", "null", "", "http://localhost:3000", "http://localhost:3392/"])
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "HEAD"])
def test_fault_09_a_foreign_origin_is_refused(origin, method):
    assert refusal(admit, f"Origin: {origin}", start=f"{method} / HTTP/1.1").code == "origin_not_allowed"


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", "", "anything"])
def test_fault_09_a_page_of_another_site_is_refused(site):
    assert refusal(admit, f"Sec-Fetch-Site: {site}").code == "cross_site"
    assert refusal(admit, f"Sec-Fetch-Site: {site}", "Origin: http://localhost:3392").code == "cross_site"


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_own_pages_are_admitted(site):
    admit(f"Sec-Fetch-Site: {site}", "Origin: http://localhost:3392")


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json ; charset=utf8",
        "application/json;",
        "application/json; v=1",
    ],
)
def test_a_post_of_json_is_admitted(kind):
    admit(f"Content-Type: {kind}", start="POST / HTTP/1.1")


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "json",
        "*/*",
        "application/jsonp",
        "application/json, text/plain",
        "text/plain; application/json",
        "application/json-seq",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        "application/json; charset",
        "application/json; charset=utf-8; charset=latin-1",
        "application/json\xa0",
        "application/json; charset=utf-8\xa0",
    ],
)
def test_fault_10_a_post_of_anything_else_is_refused(kind):
    assert refusal(admit, f"Content-Type: {kind}", start="POST / HTTP/1.1").code == "content_type"


def test_fault_10_a_post_without_a_type_is_refused_even_if_empty():
    assert refusal(admit, "Content-Length: 0", start="POST / HTTP/1.1").code == "content_type"
    admit("Content-Type: text/plain", start="GET / HTTP/1.1")


# --- chunked bodies ------------------------------------------------------------------------------------------------


CHUNKED = b"4\r\nWiki\r\n00000005\r\npedia\r\nA\r\n\r\n01234567\r\n0\r\n\r\n"


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_a_chunked_body_is_the_same_however_it_is_split(step):
    body = wire.ChunkedBody(100)
    for at in range(0, len(CHUNKED), step):
        assert not body.done
        body.feed(CHUNKED[at : at + step])
    assert (body.done, body.body, body.rest) == (True, b"Wikipedia\r\n01234567", b"")


@pytest.mark.parametrize("cut", range(len(CHUNKED) + 1))
def test_a_chunked_body_may_be_cut_at_each_byte_and_leaves_the_next_request(cut):
    body = wire.ChunkedBody(19)
    body.feed(CHUNKED[:cut])
    assert body.done is (cut == len(CHUNKED))
    body.feed(CHUNKED[cut:] + b"GET / ")
    body.feed(b"HTTP/1.1")
    assert (body.done, body.body, body.rest) == (True, b"Wikipedia\r\n01234567", b"GET / HTTP/1.1")


def test_an_empty_chunked_body_is_empty():
    body = wire.ChunkedBody(0)
    body.feed(b"")
    body.feed(b"0\r\n\r\n")
    assert (body.done, body.body) == (True, b"")


BAD_CHUNKS = [
    b"\r\n",
    b"\n",
    b"\r",
    b" 4\r\nWiki\r\n",
    b"4 \r\nWiki\r\n",
    b"4;name=value\r\nWiki\r\n",
    b"4\nWiki\r\n",
    b"4\r\nWikiX",
    b"4\r\nWiki\n0\r\n\r\n",
    b"4\r\nWiki\r0\r\n\r\n",
    b"4\r\nWiki0\r\n\r\n",
    b"0x4\r\nWiki\r\n",
    b"+4\r\nWiki\r\n",
    b"-4\r\nWiki\r\n",
    b"1_0\r\n0123456789abcdef\r\n",
    b"g\r\n",
    b"\xb2\r\n",
    b"\xd9\xa3\r\nabc\r\n",
    b"000000004\r\nWiki\r\n0\r\n\r\n",
    b"4\r\r\nWiki\r\n",
    b"0\r\nTrailer: x\r\n\r\n",
    b"0\r\n\n\n",
    b"\x004\r\n",
]


@pytest.mark.parametrize("data", BAD_CHUNKS)
def test_a_malformed_chunk_is_refused_however_it_is_split(data):
    for step in (1, 2, 1000):
        error = refusal(_feed_all, wire.ChunkedBody(100), data + b"xx", step)
        assert (error.code, error.close) == ("bad_chunk", True)


def _feed_all(body: wire.ChunkedBody, data: bytes, step: int) -> None:
    for at in range(0, len(data), step):
        body.feed(data[at : at + step])


@pytest.mark.parametrize("data", [b"5\r\n", b"4\r\nWiki\r\n1\r\n", b"ffffffff\r\n", b"2\r\nab\r\n3\r\n"])
def test_fault_04_a_chunk_beyond_the_limit_is_refused_before_it_arrives(data):
    error = refusal(_feed_all, wire.ChunkedBody(4), data, 1)
    assert (error.code, error.close, error.facts["limit"]) == ("body_too_large", True, 4)


# --- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"{}", {}),
        (b' \t\r\n{"a": [1, -2.5, true, null]} \n', {"a": [1, -2.5, True, None]}),
        (b'{"a":"\\u0000"}', {"a": "\x00"}),
        ('{"😀":"é😀"}'.encode(), {"😀": "é😀"}),
        (b'{"a":"\\ud83d\\ude00"}', {"a": "😀"}),
        (b'{"a":"\\\\ud800"}', {"a": "\\ud800"}),
        (b'{"a":9223372036854775807,"b":-9223372036854775808}', {"a": 2**63 - 1, "b": -(2**63)}),
        (b'{"a":1e300}', {"a": 1e300}),
        (b'{"a":{"a":{"a":1}}}', {"a": {"a": {"a": 1}}}),
    ],
)
def test_an_object_is_read(body, value):
    assert payload.read_json(body) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"[]",
        b'"a"',
        b"1",
        b"true",
        b"null",
        b"{",
        b"{}}",
        b"{} {}",
        b"{}x",
        b"{'a':1}",
        b"{a:1}",
        b'{"a":1,}',
        b'{"a":01}',
        b'{"a":+1}',
        b'{"a":.5}',
        b'{"a":1_0}',
        b'{"a":"\n"}',
        b'{"a":"\\x"}',
        b"{}\x00",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":-1e999}',
        b"a=1",
        b"{}\x0b",
        b'{"a":"\\u12"}',
        b'{"a":0x10}',
        b"{}/**/",
        '{"a":٣}'.encode(),
        b'{"a" 1}',
        b"\x0c{}",
    ],
)
def test_fault_15_what_is_not_one_json_object_is_refused(body):
    assert refusal(payload.read_json, body).code == "invalid_json"


def test_fault_15_an_empty_body_is_told_what_to_send():
    assert "send {}" in refusal(payload.read_json, b"").message
    assert "not a list" in refusal(payload.read_json, b"[]").message


@pytest.mark.parametrize("body", [b'{"k":1,"k":1}', b'{"x":{"k":1,"k":2}}', b'{"k":1,"\\u006b":2}'])
def test_fault_15_a_repeated_key_is_named(body):
    error = refusal(payload.read_json, body)
    assert (error.code, error.facts["parameter"]) == ("duplicate_key", "k")


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"\xef\xbb\xbf", "byte order mark"),
        ("{}".encode("utf-16"), "UTF-16"),
        ('{"a":"é"}'.encode("utf-16-le"), "UTF-16-LE"),
        ('{"a":1}'.encode("utf-16-be"), "UTF-16-BE"),
        ("{}".encode("utf-32"), "UTF-32"),
        ('{"a":1}'.encode("utf-32-be"), "UTF-32-BE"),
        ('{"a":"é"}'.encode("latin-1"), "0xe9"),
        (b'{"a":"\xed\xa0\x80"}', "0xed"),
        (b'{"a":"\xc0\xaf"}', "0xc0"),
        (b'{"a":"\xf4\x90\x80\x80"}', "0xf4"),
    ],
)
def test_fault_15_other_encodings_are_refused_by_name(body, name):
    error = refusal(payload.read_json, body)
    assert error.code == "invalid_utf8"
    assert name in error.message


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":"\\\\\\"","b":' + b"[" * 64 + b"]" * 64 + b"}",
        b'{"n":99999999999999999999,"a":' + b"[" * 100_000,
        b"[" * 65 + b"]" * 65,
    ],
)
def test_fault_16_deep_nesting_is_refused_quickly(body, monkeypatch):
    examined, check = [], payload._check_depth
    monkeypatch.setattr(payload, "_check_depth", lambda text: examined.append(len(text)) or check(text))
    assert refusal(payload.read_json, body).code == "json_too_deep"
    assert sum(examined) <= 4096


def test_fault_16_the_limit_of_nesting_is_exact():
    deepest = b'{"a":' + b"[" * (payload.MAX_DEPTH - 1) + b"]" * (payload.MAX_DEPTH - 1) + b"}"
    assert payload.read_json(deepest)
    assert payload.read_json(deepest.replace(b"{", b'{"b":[],'))
    assert refusal(payload.read_json, deepest.replace(b"[]", b"[[]]")).code == "json_too_deep"


def test_fault_16_brackets_in_texts_and_side_by_side_are_no_nesting():
    for value in ({"a": "[" * 1000}, {"a": '\\"[{' * 1000}, {"[" * 100: "\\"}, {"a": [[]] * 1000}):
        assert payload.read_json(json.dumps(value).encode()) == value


def test_fault_17_an_integer_of_5000_digits_is_refused():
    assert refusal(payload.read_json, b'{"a":' + b"1" * 5000 + b"}").code == "invalid_json"
    assert refusal(payload.read_json, b'{"a":-' + b"1" * 1_000_000 + b"}").code == "invalid_json"


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        (b'{"priority":9223372036854775808}', "priority"),
        (b'{"x":1,"priority":-9223372036854775809}', "priority"),
        (b'{"m":{"size":99999999999999999999}}', "size"),
        (b'{"ids":[1,99999999999999999999]}', "ids"),
        (b'{"ids":[[99999999999999999999]]}', None),
        (b'{"\\ud800":99999999999999999999}', "?"),
    ],
)
def test_fault_17_an_integer_beyond_64_bits_is_refused_by_name(body, parameter):
    error = refusal(payload.read_json, body)
    assert (error.code, error.facts.get("parameter")) == ("invalid_field", parameter)


def test_fault_17_a_later_fault_does_not_hide_behind_a_large_integer():
    assert refusal(payload.read_json, b'{"a":99999999999999999999').code == "invalid_json"
    assert refusal(payload.read_json, b"99999999999999999999").code == "invalid_field"


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        (b'{"content":"\\ud800"}', "content"),
        (b'{"content":"a\\uDFFFb"}', "content"),
        (b'{"content":"\\ude00\\ud83d"}', "content"),
        (b'{"m":{"list":["ok","\\udbff"]}}', "list"),
        (b'{"\\ud800":1}', "?"),
        (b'{"content":"\\ud83d\\\\ude00"}', "content"),
    ],
)
def test_fault_18_half_a_surrogate_pair_is_refused(body, parameter):
    error = refusal(payload.read_json, body)
    assert (error.code, error.facts["parameter"]) == ("invalid_unicode", parameter)


def test_fault_18_an_error_about_a_bad_key_can_itself_be_sent():
    error = refusal(payload.read_json, b'{"\\ud800":1,"\\ud800":2}')
    assert error.code == "duplicate_key"
    assert b"?" in payload.write_json(error.body("id"))


def test_fault_19_a_content_of_65536_bytes_comes_back_identical():
    content = 'é\x00\U0001f600 "\\[{\n' * 5041 + "x" * 3
    assert len(content.encode()) == 65536
    assert payload.read_json(payload.write_json({"content": content})) == {"content": content}


def test_json_is_written_compactly_in_utf_8():
    assert payload.write_json({"a": [1, "é😀\x00"], "b": None}) == '{"a":[1,"é😀\\u0000"],"b":null}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_json_cannot_say_is_never_written(value):
    with pytest.raises(ValueError, match=r".+"):
        payload.write_json({"a": value})


# --- query strings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("", {}),
        ("a=1", {"a": "1"}),
        ("a=&b=x", {"a": "", "b": "x"}),
        ("a=1+2%2B3%20", {"a": "1 2+3 "}),
        ("a=b=c", {"a": "b=c"}),
        ("a=1;b=2", {"a": "1;b=2"}),
        ("key=%E2%82%ac%f0%9f%98%80", {"key": "€😀"}),
        ("a%26=%3d", {"a&": "="}),
        ("a=%00", {"a": "\x00"}),
        ("a=?/:@", {"a": "?/:@"}),
    ],
)
def test_a_query_is_read(query, fields):
    assert payload.read_query(query) == fields


@pytest.mark.parametrize(
    "query",
    [
        "key=%ff",
        "key=%fe",
        "key=1&key=1",
        "key=1&%6bey=2",
        "a+b=1&a%20b=2",
        "a",
        "=1",
        "&",
        "a=1&",
        "&a=1",
        "a=1&&b=2",
        "a=%",
        "a=%4",
        "a=%zz",
        "a=%+1",
        "a=% 1",
        "a=%%41",
        "%ff=1",
        "a=é",
        "é=1",
        "a=\x00",
        "a=\t",
        "a=%ed%a0%80",
        "a=%c0%80",
        "a=%u0041",
        "&".join(f"k{number}=v" for number in range(33)),
        "a=\U0001d7d9",
    ],
)
def test_fault_21_a_query_that_could_mean_two_things_is_refused(query):
    assert refusal(payload.read_query, query).code == "invalid_query"


def test_fault_21_thirty_two_fields_are_the_limit():
    assert len(payload.read_query("&".join(f"k{number}=v" for number in range(payload.MAX_QUERY_FIELDS)))) == 32


def test_a_query_that_was_read_may_be_changed_without_harm():
    payload.read_query("once=1")["once"] = "2"
    assert payload.read_query("once=1") == {"once": "1"}


def test_a_long_query_is_read_too():
    assert payload.read_query("a=" + "%41" * 2000) == {"a": "A" * 2000}


# --- answers -------------------------------------------------------------------------------------------------------


def test_an_answer_has_its_headers_and_its_body():
    answer = wire.render(200, b'{"a":1}', request_id="r1", date=b"Tue, 15 Nov 1994 08:12:31 GMT")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b'{"a":1}'
    assert sorted(head.split(b"\r\n")) == sorted(
        [
            b"HTTP/1.1 200 OK",
            b"Content-Type: application/json",
            b"Content-Length: 7",
            b"X-Request-Id: r1",
            b"Date: Tue, 15 Nov 1994 08:12:31 GMT",
            b"Cache-Control: no-store",
            b"X-Content-Type-Options: nosniff",
        ]
    )


def test_an_answer_to_head_says_the_length_of_what_it_leaves_out():
    answer = wire.render(200, b"{}", request_id="r1", head_only=True)
    assert b"Content-Length: 2\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_close_and_further_headers_are_written():
    answer = wire.render(405, b"{}", request_id="r", close=True, extra=(("Allow", "GET, HEAD"),), content_type="text/x")
    assert answer.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    for line in (b"Connection: close", b"Allow: GET, HEAD", b"Content-Type: text/x"):
        assert b"\r\n" + line + b"\r\n" in answer
    assert b"Connection" not in wire.render(200, b"", request_id="r")
    assert b"Date" not in wire.render(200, b"", request_id="r")


def test_an_answer_without_content_has_no_length():
    answer = wire.render(204, b"", request_id="r")
    assert b"Content-Length" not in answer
    assert b"Content-Type:" not in answer
    with pytest.raises(ValueError, match="no body"):
        wire.render(204, b"{}", request_id="r")


@pytest.mark.parametrize("bad", ["a\r\nX: y", "a\n", "a\r", "\x00", "é", "a\u2028b", "a\tb"])
def test_no_value_can_write_a_header_of_its_own(bad):
    for wrong in (
        {"request_id": bad},
        {"request_id": "r", "extra": (("X", bad),)},
        {"request_id": "r", "extra": ((bad, "x"),)},
        {"request_id": "r", "content_type": bad},
        {"request_id": "r", "date": bad.encode()},
    ):
        with pytest.raises(ValueError, match=r".+"):
            wire.render(200, b"", **wrong)


@pytest.mark.parametrize("status", sorted({failure.http for failure in FAILURES.values()}))
def test_each_failure_has_a_status_line(status):
    assert re.match(rb"HTTP/1\.1 %d [A-Z][A-Za-z' -]+\r\n" % status, wire.render(status, b"", request_id="r"))


@pytest.mark.parametrize("status", [100, 101, 299, 0, -1, 1000])
def test_an_unknown_or_interim_status_is_a_bug(status):
    with pytest.raises(ValueError, match=str(status)):
        wire.render(status, b"", request_id="r")
