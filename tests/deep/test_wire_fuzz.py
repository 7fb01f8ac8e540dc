"""Random bytes for the HTTP and JSON parsers, each compared with another program's parser.

The invariants: nothing but `MuxError` ever leaves `wire`, and the other parser also accepts whatever `wire` accepts,
with the same meaning. The reverse is not required: being stricter is the point. The seed is fixed, so failures repeat.
"""

from __future__ import annotations

import json
import random
import string
from urllib.parse import parse_qsl, unquote, urlencode

import pytest

from stonemux import payload, wire
from stonemux.errors import MuxError

h11 = pytest.importorskip("h11", reason="h11 judges the request reader; it is not installed")
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis makes the bodies and queries; it is not installed")

from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

ROUNDS = 40_000
LIMIT = 1 << 20
HOSTS = frozenset({"127.0.0.1:3392", "localhost:3392"})

# As these clients send them.
SEEDS = [
    # curl
    b"GET /msg/poll?agent_id=bob&timeout=5 HTTP/1.1\r\nHost: 127.0.0.1:3392\r\nUser-Agent: curl/7.88.1\r\n"
    b"Accept: */*\r\n\r\n",
    b"POST /msg/send HTTP/1.1\r\nHost: 127.0.0.1:3392\r\nUser-Agent: curl/7.88.1\r\nContent-Type: application/json\r\n"
    b'Accept: application/json\r\nContent-Length: 21\r\n\r\n{"from":"a","to":"b"}',
    b"POST /msg/send HTTP/1.1\r\nHost: 127.0.0.1:3392\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n"
    b'Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nc\r\n{"from":"a"}\r\n0\r\n\r\n',
    b"POST /msg/send HTTP/1.1\r\nHost: localhost:3392\r\nUser-Agent: curl/7.88.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n{ }",
    b"HEAD /health HTTP/1.1\r\nHost: 127.0.0.1:3392\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n",
    # Python: urllib, http.client
    b"GET /agent/get?agent_id=a%20b HTTP/1.1\r\nAccept-Encoding: identity\r\nHost: 127.0.0.1:3392\r\n"
    b"User-Agent: Python-urllib/3.11\r\nConnection: close\r\n\r\n",
    b"POST /msg/send HTTP/1.1\r\nAccept-Encoding: identity\r\nContent-Length: 7\r\nHost: 127.0.0.1:3392\r\n"
    b'User-Agent: Python-urllib/3.11\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{"x":1}',
    b"POST /task/claim HTTP/1.1\r\nHost: 127.0.0.1:3392\r\nAccept-Encoding: identity\r\nTransfer-Encoding: chunked\r\n"
    b'Content-Type: application/json\r\n\r\n5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n',
    # Go
    b"POST /task/claim HTTP/1.1\r\nHost: localhost:3392\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 7\r\n"
    b'Content-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n{"x":1}',
    b"POST /task/claim HTTP/1.1\r\nHost: localhost:3392\r\nUser-Agent: Go-http-client/1.1\r\n"
    b'Transfer-Encoding: chunked\r\nAccept-Encoding: gzip\r\n\r\n7\r\n{"x":1}\r\n0\r\n\r\n',
    # Node: http.request, fetch
    b"POST /msg/send HTTP/1.1\r\nContent-Type: application/json\r\nHost: 127.0.0.1:3392\r\nConnection: keep-alive\r\n"
    b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n',
    b"POST /msg/send HTTP/1.1\r\nhost: 127.0.0.1:3392\r\nconnection: keep-alive\r\ncontent-type: application/json\r\n"
    b"accept: */*\r\naccept-language: *\r\nsec-fetch-mode: cors\r\nuser-agent: node\r\n"
    b"accept-encoding: gzip, deflate\r\ncontent-length: 2\r\n\r\n{}",
    # ApacheBench
    b"GET /health HTTP/1.0\r\nConnection: Keep-Alive\r\nHost: 127.0.0.1:3392\r\nUser-Agent: ApacheBench/2.3\r\n"
    b"Accept: */*\r\n\r\n",
]

PIECES = [
    *(bytes([code]) for code in range(256)),
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\n\n", b"\r\n ", b"\r\n\t", b" :", b": ", b"  ", b"\t", b"\x00", b"\x0b"),
    *(b"GET ", b"POST ", b"OPTIONS * ", b"CONNECT a:1 ", b" HTTP/1.0", b" HTTP/1.1", b" HTTP/2.0", b"http://a/"),
    *(b"%00", b"%2f", b"%ff", b"%c3%a9", b"%", b"?", b"#", b"//", b"/../", b"\xc3\xa9", b"\xff", b"\xa0", b"\x85"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: +5\r\n", b"content-length:4, 4\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding : chunked\r\n"),
    *(b"transfer-encoding:\tCHUNKED \r\n", b"Transfer-Encoding: xchunked\r\n", b"Transfer_Encoding: chunked\r\n"),
    *(b"Host: evil\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"X:\r\n", b"X: \xe9\xa0\r\n"),
    *(b"0\r\n\r\n", b"1\r\nx\r\n", b"5;a=b\r\n", b"00000000\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"fffffffff\r\n", b"A\r\n"),
    b"GET /smuggled HTTP/1.1\r\nHost: localhost:3392\r\n\r\n",
]


def mutate(chance: random.Random, data: bytes) -> bytes:
    """`data` with one to four accidents."""
    for _ in range(chance.choice((1, 1, 2, 2, 3, 4))):
        at = chance.randrange(len(data) + 1)
        until = min(len(data), at + chance.choice((1, 1, 2, 8)))
        kind = chance.randrange(6)
        if kind == 0:
            data = data[:at] + chance.choice(PIECES) + data[at:]
        elif kind == 1:
            data = data[:at] + chance.choice(PIECES) + data[until:]
        elif kind == 2:
            data = data[:at] + data[until:]
        elif kind == 3:
            lines = data.split(b"\r\n")
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
            data = b"\r\n".join(lines)
        elif kind == 4:
            lines = data.split(b"\r\n")
            lines.insert(min(1, len(lines)), chance.choice(PIECES[256:]).rstrip(b"\r\n"))
            data = b"\r\n".join(lines)
        else:
            other = chance.choice(SEEDS)
            data = data[:at] + other[chance.randrange(len(other)) :]
    return data


def ours(data: bytes) -> tuple[wire.Head, bytes, bytes] | None:
    """The first request in `data` as `wire` reads it: head, body, rest; None if it is refused or not complete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        wire.check_partial_head(data)
        return None
    head = wire.parse_head(data[:end])
    rest = data[end + 4 :]
    if head.chunked:
        body = wire.ChunkedBody(LIMIT)
        body.feed(rest)
        return (head, body.body, body.rest) if body.done else None
    return (head, rest[: head.length], rest[head.length :]) if len(rest) >= head.length else None


def theirs(data: bytes) -> tuple[h11.Request, bytes, bytes]:
    """The same, as h11 reads it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert not list(event.headers)
    return request, body, connection.trailing_data[0]


def check_same(data: bytes, head: wire.Head, body: bytes, rest: bytes) -> None:
    request, their_body, their_rest = theirs(data)
    assert head.method == request.method.decode()
    path, _, query = request.target.decode().partition("?")
    assert (head.path, head.query) == (unquote(path, errors="strict"), query)
    joined: dict[str, str] = {}
    for name, value in request.headers:
        key, text = name.decode(), value.decode("latin-1")
        joined[key] = f"{joined[key]}, {text}" if key in joined else text
    # h11 alone writes this one value in lower case.
    headers = {key: value.lower() if key == "transfer-encoding" else value for key, value in head.headers.items()}
    assert headers == joined
    assert (body, rest) == (their_body, their_rest)


def test_whatever_is_accepted_means_the_same_to_h11():
    chance = random.Random(3392)
    accepted = 0
    for seed in SEEDS:
        check_same(seed, *ours(seed))
    for _ in range(ROUNDS):
        data = mutate(chance, chance.choice(SEEDS))
        try:
            read = ours(data)
        except MuxError:
            continue
        if read is None:
            continue
        accepted += 1
        check_same(data, *read)
    assert accepted > ROUNDS // 10


def test_no_part_of_an_acceptable_head_is_refused_early_and_admission_only_says_no():
    chance = random.Random(3393)
    refused = 0
    for _ in range(ROUNDS // 4):
        data = mutate(chance, chance.choice(SEEDS))
        end = data.find(b"\r\n\r\n")
        cut = chance.randrange(end + 4) if end >= 0 else len(data)
        early = code_of(wire.check_partial_head, data[:cut])
        if end < 0:
            continue
        late = code_of(wire.parse_head, data[:end])
        assert not (early and not late), (data, early)
        refused += bool(early)
        if not late:
            code_of(wire.admit, wire.parse_head(data[:end]), HOSTS, frozenset())
    assert refused > 100


def code_of(call, *args) -> str:
    """The code of the MuxError that a call ends with, or an empty text."""
    try:
        call(*args)
    except MuxError as error:
        payload.write_json(error.body("id"))
        return error.code
    return ""


def test_chunked_bodies_mean_the_same_in_one_piece_and_in_many():
    chance = random.Random(3394)
    seeds = [b"5\r\nhello\r\n0\r\n\r\nGET /", b"00000001\r\nx\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0\r\n\r\n"]
    for _ in range(ROUNDS // 4):
        data = mutate(chance, chance.choice(seeds))
        whole, split = wire.ChunkedBody(LIMIT), wire.ChunkedBody(LIMIT)
        at_once = code_of(whole.feed, data)
        piecewise = ""
        for code in data:
            piecewise = piecewise or code_of(split.feed, bytes([code]))
        assert at_once == piecewise
        if not at_once:
            assert (whole.done, whole.body, whole.rest) == (split.done, split.body, split.rest)


# --- JSON and queries ----------------------------------------------------------------------------------------------

thorough = settings(max_examples=2000, deadline=None, derandomize=True, database=None)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=5)
FRAGMENTS = st.sampled_from(
    [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        '"',
        '"a"',
        '"a":1',
        '"a":',
        "1",
        "-",
        "0",
        "1e999",
        "1e-999",
        "NaN",
        "Infinity",
        "null",
        "true",
        "\\",
        "\\u",
        "\\ud800",
        "\\udc00",
        "\\u0000",
        '\\"',
        "\\\\",
        " ",
        "\n",
        "\t",
        "\ufeff",
        "\x00",
        "é",
        "😀",
        "9223372036854775808",
        "-9223372036854775808",
        "1.5",
        "E+5",
        "\x0b",
        "\u2028",
        '"\\ud83d\\ude00"',
        "/**/",
        "'",
    ]
)


@thorough
@given(OBJECTS, st.booleans(), st.sampled_from([None, 1]))
def test_every_object_that_json_can_say_is_read_as_it_is(value, escaped, indent):
    body = json.dumps(value, ensure_ascii=escaped, indent=indent).encode()
    assert payload.read_json(body) == value
    assert payload.read_json(payload.write_json(value)) == value


@st.composite
def broken_bodies(draw) -> bytes:
    """A good body with fragments thrown in, or fragments alone."""
    text = draw(OBJECTS.map(lambda value: json.dumps(value, ensure_ascii=False)) | st.just('{"a":}') | st.just(""))
    for fragment in draw(st.lists(FRAGMENTS, max_size=6)):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + fragment + text[at:]
    return text.encode(draw(st.sampled_from(["utf-8"] * 8 + ["utf-16", "utf-32", "latin-1"])), "replace")


@thorough
@given(broken_bodies() | st.binary(max_size=40))
@example(b'{"a":"\\ud800"}')
@example(b"[" * 5000)
@example(b'{"a":1,"a":2}')
def test_whatever_body_is_accepted_means_the_same_to_json_loads(body):
    code = code_of(payload.read_json, body)
    if not code:
        value = payload.read_json(body)
        assert value == json.loads(body.decode())
        assert payload.read_json(payload.write_json(value)) == value
    elif code == "invalid_json":
        assert not is_plain_object(body)


def is_plain_object(body: bytes) -> bool:
    """Whether even a strict use of the standard reader finds one JSON object in `body`."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        value = json.loads(body.decode(), parse_constant=refuse)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


QUERY_TEXTS = st.text("ab=&+%;41fFeEzé \x00#?" + string.punctuation, max_size=30)


@thorough
@given(QUERY_TEXTS | st.lists(st.sampled_from(["a", "b", "=", "=1", "&", "%41", "%e2%82%ac", "%ff", "+"])).map("".join))
def test_whatever_query_is_accepted_means_the_same_to_parse_qsl(query):
    if code_of(payload.read_query, query):
        return
    pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=32)
    assert payload.read_query(query) == dict(pairs)
    assert len(dict(pairs)) == len(pairs)


@thorough
@given(st.dictionaries(TEXTS.filter(bool), TEXTS, max_size=32))
def test_every_set_of_fields_can_be_said_in_a_query(fields):
    assert payload.read_query(urlencode(fields)) == fields
