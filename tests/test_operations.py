"""Every row of the table is complete, and every row follows the same rules."""

from __future__ import annotations

import inspect
import re

import pytest
from faces import Direct, OverCli, join, refusal

from stonemux import methodtext, offer, openapi, verbs
from stonemux.config import Settings
from stonemux.errors import FAILURES, MuxError
from stonemux.openapi import shape_schema
from stonemux.operations import BY_NAME, OPERATIONS
from stonemux.schema import KINDS as PARAM_KINDS
from stonemux.schema import TIERS, bind
from stonemux.vocabulary import EVENT_KINDS

SETTINGS = Settings()
CALLED = [operation for operation in OPERATIONS if operation.kind not in ("stream", "document")]


def each(operations):
    """All of them in turn; what a failing test has printed ends with the one at fault."""
    for operation in operations:
        print(operation.name)
        yield operation


def example(operation, **changed):
    """The row's example as the arguments of a face's call, with some changed."""
    return dict(operation.example) | ({"timeout": 0} if "timeout" in operation.by_name else {}) | changed


def outcome(face, operation, given):
    """The answer of a call without its times, or the code of its refusal."""
    try:
        return re.sub(r"'[\d-]+T[\d:.]+Z'", "TIME", repr(face.call(operation.name, **given)))
    except MuxError as error:
        return error.code


@pytest.mark.parametrize(
    "table", [openapi._SCHEMAS, offer._TYPES, verbs.VALUES, verbs.METAVARS | {"boolean": ""}, methodtext._ARGUMENTS]
)
def test_every_face_knows_every_kind_of_parameter(table):
    assert table.keys() == PARAM_KINDS.keys()


def test_names_paths_and_tools_are_unique():
    for what in ([o.name for o in OPERATIONS], [(o.method, o.path) for o in OPERATIONS], [o.tool for o in OPERATIONS]):
        named = [one for one in what if one]
        assert len(named) == len(set(named))
    assert list(BY_NAME) == [operation.name for operation in OPERATIONS]


def test_a_row_is_complete_and_consistent():
    for operation in each(OPERATIONS):
        assert operation.doc.endswith(".")
        assert operation.method in ("GET", "POST")
        assert operation.kind in ("read", "change", "wait", "act", "text", "lines", "stream", "document")
        assert operation.changes == (operation.kind in ("change", "act"))
        assert operation.slow or operation.kind != "act", "an act must not run at the door"
        assert operation.tier in TIERS
        assert set(operation.errors) <= set(FAILURES)
        assert len(operation.errors) == len(set(operation.errors))
        assert set(operation.emits) <= set(EVENT_KINDS)
        assert not operation.actor or operation.actor in operation.by_name
        if "." in operation.name and operation.kind != "stream":
            assert operation.path == "/" + operation.name.replace(".", "/")
        if operation.kind not in ("text", "lines", "stream", "document"):
            assert shape_schema(operation.returns)["type"] == "object"


def test_a_rows_parameters_are_documented_and_what_its_function_takes():
    for operation in each(OPERATIONS):
        for param in operation.params:
            assert param.doc.endswith("."), param.name
            assert param.kind in PARAM_KINDS
            assert param.code in FAILURES
            assert param.upper(SETTINGS) is None or param.upper(SETTINGS) > 0
            if not param.required and param.default is not None:
                PARAM_KINDS[param.kind](param, param.default, SETTINGS)
        if operation.kind in ("stream", "document"):
            continue
        for run in filter(None, (operation.run, operation.wait)):
            signature = inspect.signature(run)
            leading = [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
            arguments = {param.argument: param.default for param in operation.params}
            signature.bind(*leading, **arguments)


def test_a_rows_example_binds():
    for operation in each(OPERATIONS):
        bind(operation, operation.example, SETTINGS, textual=operation.method == "GET")
        assert operation.example or not operation.needed


def test_an_unknown_field_is_refused_with_the_nearest_name(face):
    for operation in CALLED:
        if not operation.params:
            error = refusal(face, "unknown_field", operation.name, nonsense="x")
            nearest = "idempotency_key" if operation.changes and not isinstance(face, OverCli) else None
            assert error.facts.get("nearest") == nearest
            continue
        wanted = operation.params[0].name
        error = refusal(face, "unknown_field", operation.name, **{wanted + "x": "x"})
        assert (error.facts["parameter"], error.facts["nearest"]) == (wanted + "x", wanted)
        assert wanted in error.facts["accepted"]
        assert wanted in error.message


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("msg.send", "message", "content"),
        ("msg.send", "body", "content"),
        ("msg.send", "sender", "from"),
        ("msg.send", "recipient", "to"),
        ("agent.register", "name", "agent_id"),
        ("agent.register", "id", "agent_id"),
        ("task.complete", "id", "task_id"),
        ("task.post", "title", "description"),
        ("state.set", "text", "value"),
    ],
)
def test_a_usual_word_for_a_parameter_is_understood_in_the_refusal(direct, name, wrong, right):
    error = refusal(direct, "unknown_field", name, **{wrong: "x"})
    assert error.facts["nearest"] == right
    assert f"did you mean {right}?" in error.message


def test_a_name_that_is_like_none_is_not_taken_for_another(direct):
    error = refusal(direct, "unknown_field", "agent.register", zzz="x")
    assert "did you mean" not in error.message
    assert ". It accepts: agent_id, role," in error.message


def test_every_required_parameter_is_required_and_named(face):
    for operation in CALLED:
        for param in operation.needed:
            given = example(operation)
            del given[param.name]
            for lacking in (given, given | {param.name: None}):
                error = refusal(face, "missing_field", operation.name, **lacking)
                assert error.facts["parameter"] == param.name
                assert param.name in error.message


def test_null_for_an_optional_parameter_means_absent(open_program):
    plain, null = (Direct(open_program().mux) for _ in range(2))
    for operation in each(o for o in CALLED if o.kind not in ("text", "act") and o.name != "stats"):
        given = example(operation)
        nulls = {param.name: None for param in operation.params if not param.required and param.name not in given}
        for face in (plain, null):
            join(face, "writer", "researcher")
        assert outcome(plain, operation, given) == outcome(null, operation, given | nulls)


def test_a_value_of_the_wrong_type_is_refused_with_the_parameters_name(face):
    for operation in (o for o in CALLED if o.method == "POST"):
        wrong = {"text": 5, "name": 5, "integer": "x", "boolean": "yes", "names": "x", "object": [], "integers": 1}
        for param in operation.params:
            for value in (wrong[param.kind], [None] if param.kind != "names" else [5], 1.5):
                error = refusal(face, param.code, operation.name, **example(operation, **{param.name: value}))
                assert error.facts["parameter"] == param.name
                assert error.message.startswith(param.name) or f"each of {param.name}" in error.message


def test_integers_are_held_to_their_limits(direct):
    for operation in CALLED:
        for param in (p for p in operation.params if p.kind == "integer"):
            least, most = param.least, param.upper(SETTINGS)
            if least is not None:
                error = refusal(direct, param.code, operation.name, **example(operation, **{param.name: least - 1}))
                assert error.facts["limit"] == least
                assert (
                    f"it must be an integer {f'from {least} to {most}' if most else f'of at least {least}'}"
                    in error.message
                )
                bind(operation, example(operation, **{param.name: least}), SETTINGS)
            if most is not None and not param.clamp:
                refusal(direct, param.code, operation.name, **example(operation, **{param.name: most + 1}))
                bind(operation, example(operation, **{param.name: most}), SETTINGS)
            for odd in (True, 1.0, "1", 2**63, -(2**63)):
                refusal(direct, param.code, operation.name, **example(operation, **{param.name: odd}))


def test_a_query_string_takes_integers_and_booleans_as_text_and_nothing_looser():
    for operation in each(operation for operation in CALLED if operation.method == "GET"):
        right = {"integer": "7", "boolean": "true", "names": "message,task_posted", "name": "x", "text": "x"}
        for param in operation.params:
            value = param.choices[0] if param.choices and param.kind != "names" else right[param.kind]
            bind(operation, dict(operation.example) | {param.name: value}, SETTINGS, textual=True)
            if param.kind in ("integer", "boolean"):
                for odd in ("", "x", "1_0", "٣", "1.0", "True", " 1", "+1"):
                    with pytest.raises(MuxError) as caught:
                        bind(operation, dict(operation.example) | {param.name: odd}, SETTINGS, textual=True)
                    assert caught.value.code == param.code


def test_an_actor_that_is_not_registered_is_refused(face):
    acting = [o for o in CALLED if o.actor and o.by_name[o.actor].required and o.name != "agent.register"]
    face.call("channel.create", name="security-issues")
    for operation in acting:
        refusal(face, "agent_not_found", operation.name, **example(operation, **{operation.actor: "nobody"}))


def test_metadata_has_a_limit():
    """A megabyte with each of a thousand messages, or agents, was too much for one answer."""
    most = 65_536 - len('{"a":""}')

    def bound(operation, text):
        return bind(operation, {**operation.example, "metadata": {"a": text}}, SETTINGS)["metadata"]

    for operation in each([operation for operation in OPERATIONS if "metadata" in operation.by_name]):
        for text in ("x" * most, "\U0001f980" * (most // 4), '"' * (most // 2), "\x01" * (most // 6)):
            assert bound(operation, text) == {"a": text}
            with pytest.raises(MuxError, match=r"metadata has \d+ bytes as JSON, more than the limit of 65536"):
                bound(operation, text + "x" * 6)


def test_every_object_that_is_stored_has_a_limit():
    objects = {(o.name, p.name) for o in OPERATIONS for p in o.params if p.kind == "object" and p.most is None}
    assert objects == {("license.command", "command")}
