"""Operations as command lines: words become parameters, and misspelled words are refused with a near name."""

from __future__ import annotations

import re
import shlex

import pytest

from stonemux import verbs
from stonemux.commands.operation import as_broadcast
from stonemux.errors import MuxError
from stonemux.operations import BY_NAME, OPERATIONS
from stonemux.schema import KINDS, REQUIRED, Operation, Param

NOTE = Operation(
    "note.post",
    "POST",
    "/note/post",
    "change",
    "",
    "Post a note. It stays.",
    params=(
        Param("agent_id", "name", REQUIRED, doc="The acting agent."),
        Param("text", "text", REQUIRED, doc="What it says."),
        Param("count", "integer", doc="How often."),
        Param("loud", "boolean", False, doc="Whether it is loud."),
        Param("tags", "names", doc="Words."),
        Param("ids", "integers", doc="Numbers."),
        Param("more_facts", "object", doc="Anything."),
    ),
    actor="agent_id",
    example={"agent_id": "ann", "text": "it's done", "loud": True, "tags": ["a", "b"], "more_facts": {"x": 1}},
)
ANN = {"agent_id": "ann", "text": "hi"}


def given(*words: str, agent: str | None = None, stdin: str = "") -> dict[str, object]:
    return verbs.read(NOTE, words, agent=agent, stdin=lambda: stdin).given


def refusal(code: str, *words: str, operation: Operation = NOTE) -> MuxError:
    with pytest.raises(MuxError) as caught:
        verbs.read(operation, words, stdin=lambda: "{}")
    assert (caught.value.code, caught.value.failure.exit) == (code, 2)
    return caught.value


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--count", "5"], {"count": 5}),
        (["--count=-5"], {"count": -5}),
        (["--count", "five"], {"count": "five"}),
        (["--count", ""], {"count": ""}),
        (["--loud"], {"loud": True}),
        (["--no-loud"], {"loud": False}),
        (["--loud=false"], {"loud": False}),
        (["--loud=perhaps"], {"loud": "perhaps"}),
        (["--tags", "a,b", "--tags", "c"], {"tags": ["a", "b", "c"]}),
        (["--tags", '["a,b", "c"]'], {"tags": ["a,b", "c"]}),
        (["--tags", "[]"], {"tags": []}),
        (["--ids", "1,2", "--ids=3"], {"ids": [1, 2, 3]}),
        (["--ids", "1,x"], {"ids": [1, "x"]}),
        (["--more-facts", '{"a": {"b": 1}}'], {"more_facts": {"a": {"b": 1}}}),
        (["--more-facts", "a=b=c", "--more_facts", "d="], {"more_facts": {"a": "b=c", "d": ""}}),
    ],
)
def test_each_kind_of_value_is_read_from_text(words, value):
    assert given("--agent-id", "ann", "--text", "hi", *words) == ANN | value


def test_every_kind_of_parameter_can_be_typed():
    assert set(verbs.VALUES) == set(KINDS)
    assert set(verbs.METAVARS) == set(KINDS) - {"boolean"}


def test_what_is_required_may_stand_without_its_flag_the_acting_agent_last():
    assert given("hi", "ann") == ANN
    assert given("--count", "1", "hi", "--loud", "ann") == ANN | {"count": 1, "loud": True}
    assert given("--text", "hi", "ann") == ANN
    assert given("--agent-id", "ann", "hi") == ANN
    assert given("--", "--text", "ann") == {"text": "--text", "agent_id": "ann"}


def test_either_of_two_may_stand_without_its_flag_unless_the_other_is_given():
    dispatch = BY_NAME["task.dispatch"]
    assert verbs.read(dispatch, ["t1", "bob"]).given == {"task_id": "t1", "agent_id": "bob"}
    assert verbs.read(dispatch, ["bob", "--task-id", "t1"]).given == {"task_id": "t1", "agent_id": "bob"}
    assert verbs.read(dispatch, ["bob", "--task-ids", "t1,t2"]).given == {"task_ids": ["t1", "t2"], "agent_id": "bob"}


def test_a_list_may_have_blanks_after_its_commas():
    assert given("hi", "ann", "--tags", "a, b", "--ids", "1, 2") == ANN | {"tags": ["a", "b"], "ids": [1, 2]}


def test_the_acting_agent_comes_from_outside_unless_it_is_named():
    assert given("hi", agent="ann") == ANN
    assert given("hi", "ann", agent="bob") == ANN
    assert given("hi", "--agent-id", "ann", agent="bob") == ANN


def test_a_flag_takes_the_next_word_whatever_it_is():
    assert given("ann", "--text", "--loud") == {"agent_id": "ann", "text": "--loud"}
    assert given("ann", "--text", "--") == {"agent_id": "ann", "text": "--"}
    assert given("ann", "--text=-x=y") == {"agent_id": "ann", "text": "-x=y"}


def test_a_dash_is_standard_input_as_it_is():
    assert given("ann", "--text", "-", stdin="a\nb\n") == {"agent_id": "ann", "text": "a\nb\n"}
    assert given("-", "ann", stdin="x") == {"agent_id": "ann", "text": "x"}
    assert given("hi", "ann", "--more-facts", "-", stdin='{"a": 1}') == ANN | {"more_facts": {"a": 1}}
    assert given("hi", "-") == {"text": "hi", "agent_id": "-"}, "a name is not read from there"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["hi"], "missing_field", "--agent-id is required: The acting agent."),
        (["bob"], "missing_field", "--agent-id is required: The acting agent. Or set STONEMUX_AGENT; 'bob' is --text"),
        (["--agent-id", "ann"], "missing_field", "--text is required: What it says."),
        (["--agent-id", "ann", "--text"], "invalid_field", "--text needs a value"),
        (["hi", "ann", "bob"], "not_understood", "one word too many: 'bob'"),
        (["hi", "ann", "--cont", "1"], "unknown_field", "unknown flag --cont; did you mean --count?"),
        (["hi", "ann", "--jsn"], "unknown_field", "unknown flag --jsn; did you mean --json?"),
        (["hi", "ann", "--no-count"], "unknown_field", "unknown flag --no-count; did you mean --count?"),
        (["hi", "ann", "-x"], "unknown_field", "unknown flag -x"),
        (["hi", "ann", "--count", "1", "--count", "2"], "invalid_field", "--count is given twice"),
        (["hi", "ann", "--text", "ho"], "not_understood", "one word too many: 'ann'"),
        (["hi", "ann", "--tags", '["a"'], "invalid_field", "--tags must be a JSON list, not '[\"a\"'"),
        (
            ["hi", "ann", "--more-facts", "x"],
            "invalid_field",
            "--more-facts must be a JSON object or NAME=TEXT, not 'x'",
        ),
        (["hi", "ann", "--more-facts", "[1]"], "invalid_field", "--more-facts must be a JSON object or NAME=TEXT"),
        (["-", "ann", "--more-facts", "-"], "invalid_field", "--more-facts and --text cannot both read standard input"),
    ],
)
def test_what_cannot_be_understood_is_refused(words, code, told):
    assert refusal(code, *words).message.startswith(told)


def test_who_acts_may_be_the_tokens_to_say():
    nack = BY_NAME["msg.nack"]
    assert verbs.read(nack, ["7"], token="t").given == {"id": 7}
    for words, token in ((["7"], None), ([], "t")):
        with pytest.raises(MuxError):
            verbs.read(nack, words, token=token)


def test_help_is_asked_for_without_what_is_required():
    assert verbs.read(NOTE, ["--help"]).options.help
    assert verbs.read(NOTE, ["-h", "--loud"]).options.help


def test_the_common_flags_are_options_and_not_given():
    typed = verbs.read(NOTE, ["hi", "ann", "-q", "--json", "--port", "1", "--idempotency-key", "k"])
    assert typed.given == ANN
    options = typed.options
    assert (options.quiet, options.json, options.port, options.idempotency_key) == (True, True, "1", "k")
    assert (options.host, options.watch, options.interval) == (None, False, None)


def test_the_example_of_each_operation_is_understood_as_what_it_says():
    for operation in OPERATIONS:
        command, *words = shlex.split(verbs.example(operation))
        assert command == "stonemux"
        here = verbs.areas(OPERATIONS)[words[0]]
        verb = words[1] if words[1:] and words[1] in here else ""
        assert here[verb] is operation, operation.name
        typed = verbs.read(operation, words[2 if verb else 1 :])
        wanted = dict(operation.example)
        for name, value in typed.given.items():
            if isinstance(value, list) and isinstance(wanted[name], str):  # the text of a query
                wanted[name] = wanted[name].split(",")
        assert typed.given == wanted, operation.name


def test_no_flag_means_two_things_and_help_names_each():
    for operation in OPERATIONS:
        flags = [verbs.flag(param) for param in operation.params] + [flag.typed for flag in verbs.common(operation)]
        assert len(flags) == len(set(flags)), operation.name
        told = verbs.verb_help(operation)
        for flag in flags:
            assert re.search(rf"\n  (-\w, )?{flag}\b", told), operation.name
        assert verbs.example(operation) in told, operation.name
        assert max(map(len, told.splitlines()[:-1])) <= verbs.WIDTH


def test_an_alias_is_no_area_of_its_own():
    areas = verbs.areas(OPERATIONS)
    for alias, area in verbs.ALIASES.items():
        assert alias not in areas
        assert area in areas


def test_a_post_to_a_channel_is_a_broadcast_in_it():
    send = BY_NAME["msg.send"]

    def meant(*words: str) -> tuple[str, dict[str, object]]:
        typed = as_broadcast(verbs.read(send, words, agent="ann"))
        return typed.operation.name, typed.given

    assert meant("--channel", "c", "--content", "x") == (
        "msg.broadcast",
        {"channel": "c", "content": "x", "from": "ann"},
    )
    assert meant("x", "--channel", "c", "--to", "bob")[0] == "msg.send"
    assert meant("x", "--to", "bob")[0] == "msg.send"
    assert meant("x", "--channel", "c", "--type", "question")[0] == "msg.send", "the routing table finds a recipient"
    with pytest.raises(MuxError, match="--pick needs --to"):
        meant("x", "--channel", "c", "--pick", "one")
