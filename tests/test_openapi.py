"""The OpenAPI document: exact schemas, one error shape, nothing left out."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from notes import LIST, METRICS, POST, SETTINGS_HERE, STREAM, TABLE

from stonemux import openapi
from stonemux.config import Settings
from stonemux.errors import FAILURES, MuxError
from stonemux.openapi import param_schema, shape_schema
from stonemux.operations import OPERATIONS
from stonemux.refusals import ALWAYS, own_errors
from stonemux.schema import MOST_INTEGER, REQUIRED, Operation, Param, bind


def document() -> dict[str, Any]:
    """The OpenAPI document of the table above, as a client reads it."""
    read: dict[str, Any] = json.loads(json.dumps(openapi.document(TABLE, SETTINGS_HERE, "1.2.3")))
    return read


def described(operation: Operation) -> dict[str, Any]:
    """The operation's entry in the OpenAPI document."""
    entry: dict[str, Any] = document()["paths"][operation.path][operation.method.lower()]
    return entry


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
        known = {*operation.errors, *own_errors(operation), *ALWAYS}
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
    told = openapi.document(OPERATIONS, SETTINGS_HERE, "1")
    codes = told["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]
    assert {code for row in OPERATIONS for code in own_errors(row)} <= set(codes)


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"host": "::1", "port": 4000}, "http://[::1]:4000"),
        ({"tls_cert": "daemon.pem"}, "https://127.0.0.1:3392"),
    ],
)
def test_the_document_says_where_the_daemon_is(settings: dict[str, Any], url: str) -> None:
    assert openapi.document(TABLE, Settings(**settings), "1")["servers"] == [{"url": url}]


def test_a_limit_follows_the_setting() -> None:
    small = openapi.document(TABLE, Settings(max_message_size=300), "1")
    body = small["paths"]["/note/post"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["text"]["maxLength"] == 300


# --- the schemas accept what `bind` accepts


NAME = Param("name", "name", REQUIRED, most=12)
PATTERN = param_schema(NAME, SETTINGS_HERE)["pattern"]


def accepts(param: Param, value: Any, *, textual: bool = False) -> bool:
    """Whether `bind` takes the value."""
    operation = Operation("x.y", "GET", "/x", "read", "", "X.", params=(param,))
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


def test_a_single_name_in_a_query_may_hold_a_comma() -> None:
    assert accepts(NAME, "a,b", textual=True)
    assert re.search(param_schema(NAME, SETTINGS_HERE, textual=True)["pattern"], "a,b")


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
