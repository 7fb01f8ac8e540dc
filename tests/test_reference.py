"""The rendered documents: exact schemas, one error shape, nothing left out."""

from __future__ import annotations

import json
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stonemux import reference
from stonemux.config import SETTINGS, Settings
from stonemux.errors import FAILURES, MuxError
from stonemux.operations import OPERATIONS
from stonemux.schema import MOST_INTEGER, REQUIRED, Operation, Param, bind, param_schema, shape_schema
from stonemux.vocabulary import EVENT_KINDS

TOP = Path(__file__).parent.parent
SETTINGS_HERE = Settings()


def nothing() -> None:
    """What no test here calls."""


NOTE = {"id": "integer", "text": "string", "from": "string|null", "made_at": "time", "tags?": ["string"]}
TABLE = (
    Operation(
        "note.post",
        "POST",
        "/note/post",
        "change",
        nothing,
        "Post a note. It stays until it is removed.",
        params=(
            Param("from", "name", REQUIRED, most=120, into="sender", doc="Who posts."),
            Param("text", "text", REQUIRED, least=1, most="max_message_size", doc="What to say."),
            Param("color", "text", "red", choices=("red", "blue"), doc="Red | blue."),
            Param("tags", "names", doc="Words to find it by."),
            Param("after", "integers", doc="Notes that come before it."),
            Param("pinned", "boolean", False),
            Param("priority", "integer", 0, tier="pro"),
            Param("metadata", "object"),
        ),
        returns={"note": NOTE, "first": (NOTE, "null")},
        tool="mux_note_post",
        tier="pro",
        errors=("agent_not_found", "inbox_full"),
        emits=("note",),
        example={"from": "writer", "text": "it's done", "tags": ["a", "b"]},
    ),
    Operation(
        "note.list",
        "GET",
        "/note/list",
        "wait",
        nothing,
        "List notes.",
        params=(
            Param("agent_id", "name", REQUIRED, most=120),
            Param("tags", "names"),
            Param("timeout", "integer", 30, least=0, most="poll_timeout_max", code="invalid_timeout", clamp=True),
            Param("limit", "integer", 100, least=1, most=1000),
        ),
        returns={"notes": [NOTE]},
        errors=("agent_not_found",),
        example={"agent_id": "a b", "tags": ["x", "y"], "limit": 5},
    ),
    Operation("events.stream", "GET", "/events", "stream", nothing, "Watch live.", tier="pro"),
    Operation("metrics", "GET", "/metrics", "text", nothing, "Numbers for Prometheus."),
)
POST, LIST, STREAM, METRICS = TABLE


def document() -> dict[str, Any]:
    """The OpenAPI document of the table above, as a client reads it."""
    read: dict[str, Any] = json.loads(json.dumps(reference.openapi(TABLE, SETTINGS_HERE, "1.2.3")))
    return read


def described(operation: Operation) -> dict[str, Any]:
    """The operation's entry in the OpenAPI document."""
    entry: dict[str, Any] = document()["paths"][operation.path][operation.method.lower()]
    return entry


# --- OpenAPI


def test_the_document_is_valid_openapi() -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(document())


def test_every_operation_is_there_under_its_name() -> None:
    told = document()
    assert told["info"]["version"] == "1.2.3"
    assert [tag["name"] for tag in told["tags"]] == ["note", "events", "metrics"]
    for operation in TABLE:
        assert described(operation)["operationId"] == operation.name
    assert described(POST)["summary"] == "Post a note"
    assert described(POST)["description"].endswith("Needs tier pro.\n\nEmits: note.")


def test_a_post_takes_exactly_its_parameters_and_a_key() -> None:
    body = described(POST)["requestBody"]
    content = body["content"]["application/json"]
    assert body["required"] is True
    assert content["example"] == POST.example
    schema = content["schema"]
    assert schema["required"] == ["from", "text"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {param.name for param in POST.params} | {"idempotency_key"}
    assert [one["name"] for one in described(POST)["parameters"]] == ["Idempotency-Key"]


def test_optional_body_fields_may_be_null_and_required_ones_not() -> None:
    properties = described(POST)["requestBody"]["content"]["application/json"]["schema"]["properties"]
    for param in POST.params:
        assert ("null" in properties[param.name]["type"]) is not param.required
    assert properties["color"]["enum"] == ["red", "blue", None]


def test_a_get_takes_its_parameters_in_the_query() -> None:
    parameters = {one["name"]: one for one in described(LIST)["parameters"]}
    assert set(parameters) == {param.name for param in LIST.params}
    assert {one["in"] for one in parameters.values()} == {"query"}
    assert parameters["agent_id"]["required"] is True
    assert parameters["agent_id"]["example"] == "a b"
    assert (parameters["tags"]["style"], parameters["tags"]["explode"]) == ("form", False)
    assert parameters["limit"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
    assert parameters["timeout"]["schema"]["maximum"] == MOST_INTEGER, "a larger one is clamped, not refused"


def test_answers_have_their_media_type() -> None:
    assert list(described(STREAM)["responses"]["200"]["content"]) == ["text/event-stream"]
    assert list(described(METRICS)["responses"]["200"]["content"]) == ["text/plain"]
    schema = described(LIST)["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == shape_schema(LIST.returns)


def test_the_stream_takes_the_last_event_id_as_a_header() -> None:
    assert [one["name"] for one in described(STREAM)["parameters"]] == ["Last-Event-ID"]


def test_every_refusal_has_its_status_and_the_one_error_shape() -> None:
    for operation in TABLE:
        told = described(operation)["responses"]
        known = {*operation.errors, *reference.own_errors(operation), *reference.ALWAYS}
        assert {str(FAILURES[code].http) for code in known} <= set(told)
        for status, answer in told.items():
            if status != "200":
                assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}
    assert {"402", "404", "415", "422", "429", "507"} <= set(described(POST)["responses"])
    assert not {"415", "422", "429", "507"} & set(described(LIST)["responses"])
    assert "404" not in described(METRICS)["responses"]


def test_what_only_start_up_refuses_with_is_not_in_the_error_shape() -> None:
    codes = document()["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]
    assert "internal" in codes
    assert not {"bad_setting", "data_dir_locked", "unreachable"} & set(codes)


def test_the_error_shape_knows_every_code_that_an_operation_refuses_with() -> None:
    told = reference.openapi(OPERATIONS, SETTINGS_HERE, "1")
    codes = told["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]
    assert {code for row in OPERATIONS for code in reference.own_errors(row)} <= set(codes)


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"host": "::1", "port": 4000}, "http://[::1]:4000"),
        ({"tls_cert": "daemon.pem"}, "https://127.0.0.1:3392"),
    ],
)
def test_the_document_says_where_the_daemon_is(settings: dict[str, Any], url: str) -> None:
    assert reference.openapi(TABLE, Settings(**settings), "1")["servers"] == [{"url": url}]


def test_a_limit_follows_the_setting() -> None:
    small = reference.openapi(TABLE, Settings(max_message_size=300), "1")
    body = small["paths"]["/note/post"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["text"]["maxLength"] == 300


# --- the schemas accept what `bind` accepts


NAME = Param("name", "name", REQUIRED, most=12)
PATTERN = param_schema(NAME, SETTINGS_HERE)["pattern"]


def accepts(param: Param, value: Any, *, textual: bool = False) -> bool:
    """Whether `bind` takes the value."""
    operation = Operation("x.y", "GET", "/x", "read", nothing, "X.", params=(param,))
    try:
        bind(operation, {param.name: value}, SETTINGS_HERE, textual=textual)
    except MuxError:
        return False
    return True


def fits(text: str) -> bool:
    """Whether the schema of a name takes the text (`$` is the very end in ECMAScript)."""
    return 1 <= len(text) <= 12 and re.search(PATTERN.replace("$", r"\Z"), text) is not None


def test_the_pattern_of_names_agrees_with_the_check_for_all_blanks_and_controls() -> None:
    for number in [*range(0x100), *range(0x1600, 0x1700), *range(0x2000, 0x3100), 0xFEFF, 0x10FFFF]:
        char = chr(number)
        for text in (f"a{char}", f"{char}a", f"a{char}a"):
            assert fits(text) == accepts(NAME, text), ascii(text)


@given(st.text(max_size=14))
def test_the_pattern_of_names_agrees_with_the_check(text: str) -> None:
    assert fits(text) == accepts(NAME, text)


@pytest.mark.parametrize(
    "param",
    [
        Param("n", "integer"),
        Param("n", "integer", least=0),
        Param("n", "integer", least=1, most=10),
        Param("n", "integer", least=0, most=10, clamp=True),
    ],
)
def test_integers_are_taken_up_to_the_limits_of_their_schema(param: Param) -> None:
    for textual in (False, True):
        schema = param_schema(param, SETTINGS_HERE, textual=textual)
        least, most = schema["minimum"], schema["maximum"]
        tried = {value: accepts(param, str(value) if textual else value, textual=textual) for value in _around(schema)}
        assert tried == {least - 1: False, least: True, most: True, most + 1: False}


def _around(schema: dict[str, Any]) -> list[int]:
    return [schema["minimum"] - 1, schema["minimum"], schema["maximum"], schema["maximum"] + 1]


@pytest.mark.parametrize("kind", ["names", "integers"])
def test_lists_are_taken_up_to_the_length_of_their_schema(kind: str) -> None:
    param = Param("list", kind)
    most = param_schema(param, SETTINGS_HERE)["maxItems"]
    entries: list[Any] = [str(number) if kind == "names" else number for number in range(most + 1)]
    assert accepts(param, entries[:-1])
    assert not accepts(param, entries)
    assert accepts(param, []) is (kind == "names")


def test_a_list_in_a_query_has_entries_without_commas() -> None:
    param = Param("tags", "names")
    schema = param_schema(param, SETTINGS_HERE, textual=True)
    assert schema["minItems"] == 1
    assert not re.search(schema["items"]["pattern"], "a,b")
    assert accepts(param, "a,b", textual=True)
    assert not accepts(param, "", textual=True)
    assert not accepts(param, "a,,b", textual=True)


def test_shapes_become_schemas() -> None:
    assert shape_schema(({"a?": "time|null"}, "null")) == {
        "anyOf": [
            {
                "type": "object",
                "properties": {"a": {"type": ["string", "null"], "format": "date-time"}},
                "required": [],
            },
            {"type": "null"},
        ]
    }


# --- Markdown


def test_every_operation_parameter_and_error_is_explained() -> None:
    text = reference.markdown(TABLE, SETTINGS_HERE)
    for operation in TABLE:
        section = text.partition(f"\n### {operation.name}\n")[2].partition("\n### ")[0]
        assert f"{operation.method} `{operation.path}` · " in section
        assert operation.doc in section
        assert all(f"| `{param.name}` | " in section for param in operation.params)
        assert all(f"`{code}`: {FAILURES[code].doc}" in section for code in reference.own_errors(operation))
        assert reference.curl(operation, SETTINGS_HERE) in section
    assert all(f"| `{code}` | " in text for code in FAILURES)
    assert all(f"| `{setting.section}.{setting.key or 'TYPE'}` | " in text for setting in SETTINGS)
    assert "| `note` | [note.post](#notepost) |" in text
    assert "| `shutdown` | by itself: " in text
    assert all(f"\n| `{kind}` | " in reference.markdown(OPERATIONS, SETTINGS_HERE) for kind in EVENT_KINDS)


def test_parameters_are_shown_with_default_and_limits() -> None:
    text = reference.markdown(TABLE, SETTINGS_HERE)
    assert "| `text` | text | required | up to 65536 (setting `max_message_size`) bytes | What to say. |" in text
    assert '| `color` | text | `"red"` | `red`, `blue` | Red \\| blue. |' in text
    assert "| `priority` | integer | `0` | needs tier pro |  |" in text
    assert "0 to 120 (setting `poll_timeout_max`); more is taken as the most" in text
    assert "| `tags` | list of names |  | up to 256 entries |" in text


def test_tables_have_as_many_cells_in_each_row() -> None:
    rows: list[str] = []
    for line in [*reference.markdown(TABLE, SETTINGS_HERE).splitlines(), ""]:
        if line.startswith(("| ", "|-")):
            rows.append(line)
            continue
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1, rows
        rows = []


def test_links_lead_to_headings() -> None:
    text = reference.markdown(TABLE, SETTINGS_HERE)
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= headings


def test_shapes_are_sketched_on_one_line_where_they_fit() -> None:
    assert reference.sketch({"a?": "string|null", "b": [("integer", "null")]}) == (
        '{"a"?: string or null, "b": [integer or null]}'
    )
    wide = reference.sketch({"things": [{f"field_{n}": "string" for n in range(9)}]})
    assert wide.startswith('{\n  "things": [{\n    "field_0": string,\n')
    assert wide.endswith('"field_8": string\n  }]\n}')


def test_example_calls_carry_the_example() -> None:
    command = reference.curl(POST, SETTINGS_HERE)
    assert command.startswith("curl -s http://127.0.0.1:3392/note/post -H 'Content-Type: application/json' \\\n  -d '")
    assert '''"it'"'"'s done"''' in command
    url = reference.curl(LIST, SETTINGS_HERE).split("'")[1]
    assert parse_qsl(urlsplit(url).query) == [("agent_id", "a b"), ("tags", "x,y"), ("limit", "5")]
    assert reference.curl(STREAM, SETTINGS_HERE) == "curl -sN http://127.0.0.1:3392/events"


# --- the real table


@pytest.mark.skipif(find_spec("stonemux.operations") is None, reason="there is no operation table yet")
def test_the_reference_is_current() -> None:
    operations = import_module("stonemux.operations").OPERATIONS
    written = (TOP / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == reference.markdown(operations, Settings()), "run `make docs`"
