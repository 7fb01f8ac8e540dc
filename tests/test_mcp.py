"""The MCP layer without sockets: messages in, messages out, in both generations."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest
import shapes

from stonemux import door, mcp, messages, offer, operations
from stonemux.config import Settings
from stonemux.errors import MuxError
from stonemux.mcp import Fault, Layer, Request, Session
from stonemux.mux import Caller

CONTRACT = tuple(
    f"mux_{name}"
    for name in (
        *("register", "discover", "send", "broadcast", "poll", "ack", "search"),
        *("task_post", "task_claim", "task_complete", "task_list"),
        *("state_get", "state_set", "state_watch", "channel_create"),
    )
)
READS = {"mux_discover", "mux_search", "mux_task_list", "mux_state_get", "mux_state_watch"}
REPEATABLE = READS | {"mux_register", "mux_ack", "mux_task_complete"}
ENVELOPE = {mcp.PROTOCOL_VERSION: "2026-07-28", mcp.CLIENT_CAPABILITIES: {}}


class Desk:
    """The door of a program, as a worker of the daemon uses it."""

    def __init__(self, mux) -> None:
        self.mux = mux

    def call(self, operation, given):
        caller = Caller()
        answer = door.call(self.mux, operation, given, caller)
        caller.arrived()
        return answer

    def unread(self, agent_id: str) -> int:
        with self.mux.store.read() as rx:
            return messages.queued(rx, agent_id)


class Talk:
    """A session: `ask` sends one request of either generation and returns its result, or raises its error."""

    def __init__(self, mux, *, modern: bool = False, agent: str = "", client: Any = None) -> None:
        self.layer = Layer(offer.registry(mux.settings))
        self.session = Session(Desk(mux), agent, client or {})
        self.modern = modern

    def send(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        params = dict(params or {})
        if self.modern:
            params["_meta"] = ENVELOPE | params.get("_meta", {})
        request = mcp.read({"jsonrpc": "2.0", "id": 7, "method": method, "params": params})
        assert isinstance(request, Request)
        response = self.layer.answer(request, self.session)
        assert response["jsonrpc"] == "2.0"
        assert response["id"] == 7
        return response

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        response = self.send(method, params)
        assert "error" not in response, response
        return response["result"]

    def refused(self, method: str, **params: Any) -> dict[str, Any]:
        return self.send(method, params)["error"]

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = self.ask("tools/call", name=tool, arguments=arguments)
        assert result.get("isError") is not True, result
        assert json.loads(result["content"][0]["text"]) == result["structuredContent"]
        return result["structuredContent"]

    def failure(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = self.ask("tools/call", name=tool, arguments=arguments)
        assert result["isError"] is True
        assert "structuredContent" not in result
        return json.loads(result["content"][0]["text"])


@pytest.fixture(params=[False, True], ids=["legacy", "modern"])
def talk(request, mux) -> Talk:
    return Talk(mux, modern=request.param)


@pytest.fixture
def legacy(mux) -> Talk:
    return Talk(mux)


@pytest.fixture
def modern(mux) -> Talk:
    return Talk(mux, modern=True)


# -- messages


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ([], mcp.INVALID_REQUEST),
        ([{"jsonrpc": "2.0", "id": 1, "method": "ping"}], mcp.INVALID_REQUEST),
        ("ping", mcp.INVALID_REQUEST),
        (None, mcp.INVALID_REQUEST),
        ({}, mcp.INVALID_REQUEST),
        ({"id": 1, "method": "ping"}, mcp.INVALID_REQUEST),
        ({"jsonrpc": "1.0", "id": 1, "method": "ping"}, mcp.INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": 1, "method": 2}, mcp.INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": 1}, mcp.INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": None, "method": "ping"}, mcp.INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": True, "method": "ping"}, mcp.INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": 1.5, "method": "ping"}, mcp.INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": [1], "method": "ping"}, mcp.INVALID_REQUEST),
        ({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]}, mcp.INVALID_PARAMS),
        ({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": "x"}, mcp.INVALID_PARAMS),
    ],
)
def test_what_is_no_message_is_refused(message, code):
    with pytest.raises(Fault) as caught:
        mcp.read(message)
    assert caught.value.code == code
    response = caught.value.response()
    good = isinstance(message, dict) and type(message.get("id")) is int
    assert response["id"] == (1 if good else None)


@pytest.mark.parametrize(
    ("message", "request_id"),
    [
        (b'{"id": 7, "params": {"id": 8, "n": 9999999999999999999999}}', 7),
        (b'{"params": {"id": 8, "text": "\\ud83d"}, "id": "\\"id\\": 9"}', '"id": 9'),
        (b'{"method": "id", "\\"id": 5, "a": "\\ud83d", "id"\n:\n-3\n}', -3),
        (b'{"a":' + b"[" * 100 + b'{"id":1}' + b"]" * 100 + b',"id":2}', 2),
        (b'{"id": 1, "id": 2}', 1),
        (b'{"id": "\\ud83d", "a": 1}', None),
        (b'{"id": [1], "n": 9999999999999999999999}', None),
        (b'{"id": 9999999999999999999999}', None),
        (b'[{"id": 1, "n": 9999999999999999999999}]', None),
        (b'{"id": 1, "broken"', None),
        (b'{"id": 1, "a": "\xff"}', None),
        (b"[" * 100 + b'\\"' * 100_000 + b"\\", None),
    ],
)
def test_json_that_is_refused_is_answered_by_its_id(message, request_id):
    with pytest.raises(Fault) as caught:
        mcp.parse(message)
    assert (caught.value.code, caught.value.request_id) == (mcp.PARSE_ERROR, request_id)


@pytest.mark.parametrize(
    "message",
    [
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "method": "notifications/nobody/knows", "params": {"x": 1}},
        {"jsonrpc": "2.0", "method": "tools/call", "params": [1]},
    ],
)
def test_a_message_without_id_is_never_answered(message):
    assert mcp.read(message).request_id is None


def test_a_response_is_of_no_interest():
    assert mcp.read({"jsonrpc": "2.0", "id": 1, "result": {}}) is None
    assert mcp.read({"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "x"}}) is None


def test_params_may_be_left_out():
    assert mcp.read({"jsonrpc": "2.0", "id": "a", "method": "tools/list"}).params == {}
    assert mcp.read({"jsonrpc": "2.0", "id": "a", "method": "tools/list", "params": None}).params == {}


# -- the two generations


@pytest.mark.parametrize("version", mcp.LEGACY)
def test_initialize_speaks_the_clients_version(legacy, version):
    result = legacy.ask(
        "initialize", protocolVersion=version, capabilities={}, clientInfo={"name": "t", "version": "1"}
    )
    assert result["protocolVersion"] == version
    assert result["serverInfo"]["name"] == "stonemux"
    assert set(result["capabilities"]) == {"tools", "resources", "prompts"}
    assert "resultType" not in result


@pytest.mark.parametrize("version", ["1999-01-01", "2026-07-28", None, 5])
def test_initialize_offers_the_newest_version_of_its_kind(legacy, version):
    assert legacy.ask("initialize", protocolVersion=version)["protocolVersion"] == "2025-11-25"


def test_initialize_counts_as_legacy_even_with_an_envelope(legacy):
    assert "protocolVersion" in legacy.ask("initialize", protocolVersion="2025-06-18", _meta=ENVELOPE)


def test_a_probe_before_initialize_is_answered_fast(legacy):
    assert legacy.refused("server/discover")["code"] == mcp.METHOD_NOT_FOUND
    assert legacy.ask("ping") == {}


def test_discover_tells_versions_identity_and_instructions_and_may_be_cached(modern):
    result = modern.ask("server/discover")
    assert result["supportedVersions"][0] == "2026-07-28"
    assert result["resultType"] == "complete"
    assert result["ttlMs"] > 0
    assert result["cacheScope"] == "public"
    assert result["_meta"][mcp.SERVER_INFO]["name"] == "stonemux"
    assert result["instructions"] == modern.layer.registry.instructions


@pytest.mark.parametrize("method", ["ping", "logging/setLevel", "resources/subscribe", "initialized", "unknown/method"])
def test_what_the_newer_revision_dropped_is_unknown_in_it(modern, method):
    assert modern.refused(method)["code"] == mcp.METHOD_NOT_FOUND


@pytest.mark.parametrize("method", ["logging/setLevel", "completion/complete", "resources/subscribe", "nope"])
def test_what_is_not_declared_is_unknown(legacy, method):
    assert legacy.refused(method)["code"] == mcp.METHOD_NOT_FOUND


def test_an_unknown_version_is_told_which_ones_there_are(legacy):
    error = legacy.refused("tools/list", _meta=ENVELOPE | {mcp.PROTOCOL_VERSION: "2099-01-01"})
    assert error["code"] == mcp.UNSUPPORTED_VERSION
    assert error["data"] == {"supported": list(mcp.SUPPORTED), "requested": "2099-01-01"}


@pytest.mark.parametrize("broken", [{mcp.PROTOCOL_VERSION: 5}, {mcp.CLIENT_CAPABILITIES: None}])
def test_an_incomplete_envelope_is_refused(legacy, broken):
    assert legacy.refused("tools/list", _meta=ENVELOPE | broken)["code"] == mcp.INVALID_PARAMS
    only = {mcp.PROTOCOL_VERSION: "2026-07-28"}
    assert legacy.refused("tools/list", _meta=only)["code"] == mcp.INVALID_PARAMS


LISTS = {"tools/list": "tools", "resources/list": "resources", "prompts/list": "prompts"}
LISTS["resources/templates/list"] = "resourceTemplates"


@pytest.mark.parametrize("method", LISTS)
def test_lists_come_whole_and_in_order(talk, method):
    result = talk.ask(method)
    assert result[LISTS[method]] == talk.ask(method, cursor=None)[LISTS[method]]
    assert result[LISTS[method]]
    assert "nextCursor" not in result
    assert ("ttlMs" in result) == talk.modern
    assert talk.refused(method, cursor="x") == {"code": mcp.INVALID_PARAMS, "message": "Invalid cursor"}


# -- the list of tools


def listed(mux) -> dict[str, dict[str, Any]]:
    return {tool["name"]: tool for tool in Talk(mux).ask("tools/list")["tools"]}


def test_the_tools_are_those_of_the_contract_in_the_order_of_the_table(mux):
    assert list(listed(mux)) == [row.tool for row in operations.OPERATIONS if row.tool]
    assert set(CONTRACT) <= set(listed(mux))
    assert len(listed(mux)) <= 20


@pytest.mark.parametrize("name", CONTRACT)
def test_every_tool_tells_what_it_is(mux, name):
    tool = listed(mux)[name]
    assert re.fullmatch("[A-Za-z0-9_.-]{1,64}", tool["name"])
    assert tool["title"]
    assert 10 < len(tool["description"]) <= 350
    assert tool["annotations"] == {
        "readOnlyHint": name in READS,
        "destructiveHint": False,
        **({"idempotentHint": True} if name in REPEATABLE else {}),  # false is the default
        "openWorldHint": False,
    }
    assert tool["inputSchema"]["type"] == "object"
    assert tool["inputSchema"]["additionalProperties"] is False
    assert tool["outputSchema"]["type"] == "object"


@pytest.mark.parametrize("name", CONTRACT)
def test_a_schema_asks_only_for_what_identity_cannot_fill_in(mux, name):
    operation, schema = offer.TOOLS[name], listed(mux)[name]["inputSchema"]
    needed = [param.name for param in (*operation.needed, *(one for one, _ in operation.either))]
    assert schema.get("required", []) == [param for param in needed if param != operation.actor]
    assert set(schema["properties"]) <= set(operation.by_name)
    assert set(needed) <= set(schema["properties"])
    assert not {"anyOf", "oneOf", "allOf"} & set(schema)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("mux_send", "from to content channel"),
        ("mux_broadcast", "from content group"),
        ("mux_poll", "agent_id timeout"),
        ("mux_task_post", "description posted_by required_capability priority metadata"),
        ("mux_task_claim", "agent_id"),
        ("mux_task_complete", "task_id agent_id result"),
        ("mux_state_get", "key channel"),
        ("mux_state_set", "key value expected_version updated_by"),
        ("mux_state_watch", "key after_version timeout"),
        ("mux_channel_create", "name created_by"),
        ("mux_discover", "role group status"),
    ],
)
def test_a_schema_lists_what_the_documents_name(mux, name, named):
    assert set(named.split()) <= set(listed(mux)[name]["inputSchema"]["properties"])


def test_limits_stand_in_words(mux):
    timeout = listed(mux)["mux_poll"]["inputSchema"]["properties"]["timeout"]
    assert timeout == {"type": "integer", "description": "seconds to wait, 0-120, default 30"}
    assert "65536 bytes" in listed(mux)["mux_send"]["inputSchema"]["properties"]["content"]["description"]


def test_the_whole_list_is_small(mux):
    text = json.dumps({"tools": list(listed(mux).values())}, ensure_ascii=False, separators=(",", ":"))
    assert len(text.encode()) <= 9000
    tokens = o200k(text)
    assert tokens is None or tokens <= 2000


def o200k(text: str) -> int | None:
    """Tokens as a model counts them, where the encoding's data lies on this machine already."""
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        return None
    tiktoken = pytest.importorskip("tiktoken")
    return len(tiktoken.get_encoding("o200k_base").encode(text))


def test_instructions_are_short(mux):
    told = Talk(mux).ask("initialize")["instructions"]
    assert len(told.encode()) < 2048
    assert set(re.findall(r"mux_\w+", told + offer.GUIDE + str(offer.ROLES))) <= set(listed(mux))


def test_instructions_tell_a_model_the_name_that_its_client_has_set_for_it(mux):
    for modern, method in ((False, "initialize"), (True, "server/discover")):
        known, unknown = (Talk(mux, modern=modern, agent=agent).ask(method) for agent in ("ann", ""))
        assert known["instructions"] == unknown["instructions"] + "Your agent_id is ann.\n"
        if modern:
            assert (known["cacheScope"], unknown["cacheScope"]) == ("private", "public")


# -- calling tools


def test_agents_of_both_generations_share_messages_tasks_and_state(mux):
    ann, bob = Talk(mux, agent="ann"), Talk(mux, agent="bob", modern=True)
    ann.call("mux_register", role="researcher")
    bob.call("mux_register", capabilities=["drafting"])
    assert [agent["id"] for agent in ann.call("mux_discover")["agents"]] == ["ann", "bob"]
    ann.call("mux_send", to="bob", content="hello")
    got = bob.call("mux_poll", timeout=0)
    assert [(message["from"], message["content"]) for message in got["messages"]] == [("ann", "hello")]
    task = ann.call("mux_task_post", description="draft", required_capability="drafting")["task_id"]
    claimed = bob.call("mux_task_claim")
    assert claimed["task_id"] == task
    assert bob.call("mux_task_complete", task_id=task, claim_token=claimed["claim_token"])["status"] == "complete"
    assert ann.call("mux_state_set", key="k", value="1", expected_version=0)["updated_by"] == "ann"
    assert bob.call("mux_state_get", key="k")["version"] == 1
    assert bob.call("mux_task_claim")["task_id"] is None


def test_answers_conform_to_what_the_table_promises(mux):
    ann = Talk(mux, agent="ann")
    ann.call("mux_register")
    calls = {
        "mux_discover": {},
        "mux_channel_create": {"name": "team"},
        "mux_task_list": {},
        "mux_state_set": {"key": "k", "value": "v"},
        "mux_state_watch": {"key": "k"},
    }
    for name, arguments in calls.items():
        answer = ann.call(name, **arguments)
        shapes.check(offer.TOOLS[name], answer)
        assert set(listed(mux)[name]["outputSchema"]["required"]) <= set(answer)


def test_every_result_tells_of_unread_mail(mux):
    ann, bob = Talk(mux, agent="ann"), Talk(mux, agent="bob")
    ann.call("mux_register")
    bob.call("mux_register")
    ann.call("mux_send", to="bob", content="one")
    assert bob.call("mux_discover")["unread"] == 1
    assert bob.failure("mux_state_get", key="none")["unread"] == 1
    assert "unread" not in ann.call("mux_discover")
    assert "unread" not in Talk(mux).call("mux_discover")
    assert "unread" not in bob.call("mux_poll", timeout=0)
    assert "unread" not in bob.call("mux_discover")


def test_a_model_gives_long_work_a_long_lease(mux, clock):
    ann, bob = Talk(mux, agent="ann"), Talk(mux, agent="bob")
    ann.call("mux_register")
    bob.call("mux_register")
    assert "claim_timeout" in listed(mux)["mux_task_post"]["inputSchema"]["properties"]
    task = bob.call("mux_task_post", description="long", claim_timeout=3600)["task_id"]
    claim = ann.call("mux_task_claim")
    clock.advance(3_500_000)
    assert bob.call("mux_task_claim")["task"] is None
    ann.call("mux_task_complete", task_id=task, claim_token=claim["claim_token"])


def test_long_texts_that_a_caller_knows_are_not_repeated_to_it(mux):
    ann = Talk(mux, agent="ann")
    ann.call("mux_register")
    long, cut = "long " * 80, ("long " * 80)[:255] + "…"
    posted = ann.call("mux_task_post", description=long, metadata={"notes": [long, "short"]})
    assert (posted["task"]["description"], posted["task"]["metadata"]["notes"]) == (cut, [cut, "short"])
    claimed = ann.call("mux_task_claim")
    assert claimed["task"]["description"] == long
    done = ann.call("mux_task_complete", task_id=claimed["task_id"], result=long)
    assert (done["task"]["description"], done["task"]["result"]) == (cut, cut)
    written = ann.call("mux_state_set", key="plan", value=long)
    assert written["value"] == cut
    assert posted["truncated"] is done["truncated"] is written["truncated"] is True
    assert "truncated" not in claimed
    assert ann.call("mux_state_get", key="plan")["value"] == long
    assert "truncated" not in ann.call("mux_state_set", key="k" * 256, value="s" * 256)


def test_a_name_that_is_given_wins_over_the_sessions(mux):
    for agent in ("ann", "bob"):
        Talk(mux).call("mux_register", agent_id=agent)
    talk = Talk(mux, agent="ann")
    talk.call("mux_send", **{"from": "bob", "to": "ann", "content": "x"})
    assert talk.call("mux_poll", timeout=0)["messages"][0]["from"] == "bob"


def test_without_a_name_the_refusal_says_how_to_get_one(mux):
    error = Talk(mux).failure("mux_send", to="bob", content="x")["error"]
    assert error["code"] == "missing_field"
    assert "mux_register" in error["message"]


def test_who_has_registered_where_no_name_is_remembered_is_told_to_give_it_with_every_call(mux):
    talk = Talk(mux)
    assert talk.failure("mux_register")["error"]["message"] == "agent_id is required: it says who you are"
    talk.call("mux_register", agent_id="ann")
    message = talk.failure("mux_send", to="ann", content="x")["error"]["message"]
    assert message.startswith("from is required, because the caller is unknown: send it with every call.")


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("mux_send", {"to": "bob", "content": "x"}),
        ("mux_task_post", {"description": "x", "assigned_to": "bob"}),
        ("mux_channel_create", {"name": "c", "members": ["bob"]}),
    ],
)
def test_nobody_is_told_to_register_another_agent_whose_name_it_would_take(mux, tool, arguments):
    ann = Talk(mux, agent="ann")
    ann.call("mux_register")
    message = ann.failure(tool, **arguments)["error"]["message"]
    assert "mux_discover shows who is, and each agent registers itself. Known, for example: ann" in message
    assert "mux_register" not in message


def test_a_refusal_names_the_command_of_what_is_no_tool(mux):
    ann = Talk(mux, agent="ann")
    ann.call("mux_register")
    message = ann.failure("mux_send", to="ann", content="x" * 70_000)["error"]["message"]
    assert "store it in a document (`stonemux document create`) and send its id as content_ref" in message


def test_decimal_texts_are_taken_as_integers_and_nothing_else_is(mux):
    ann = Talk(mux, agent="ann")
    ann.call("mux_register")
    ann.call("mux_send", to="ann", content="x", priority="3")
    assert ann.call("mux_poll", timeout="0")["messages"][0]["priority"] == 3
    assert ann.failure("mux_poll", timeout=0.0)["error"]["code"] == "invalid_timeout"
    assert ann.failure("mux_send", to="ann", content="x", reply_to=1e300)["error"]["code"] == "invalid_field"
    assert ann.failure("mux_send", to="ann", content="x", reply_to=True)["error"]["code"] == "invalid_field"
    assert ann.failure("mux_poll", timeout="soon")["error"]["code"] == "invalid_timeout"
    assert ann.failure("mux_discover", include_stale="true")["error"]["code"] == "invalid_field"


def test_refusals_name_tools_and_facts(mux):
    ann = Talk(mux, agent="ann")
    ann.call("mux_register")
    error = ann.failure("mux_send", to="anne", content="x")["error"]
    assert error["known_agents"] == ["ann"]
    assert "mux_discover" in error["message"]
    assert "agent.discover" not in error["message"]
    error = ann.failure("mux_send", to="ann", content="x", colour="red")["error"]
    assert error["code"] == "unknown_field"
    assert error["message"].startswith("mux_send ")
    ann.call("mux_state_set", key="k", value="1")
    assert ann.failure("mux_state_set", key="k", value="2", expected_version=0)["error"]["current_version"] == 1


def test_an_unknown_tool_is_a_fault_and_near_ones_are_told(talk):
    error = talk.refused("tools/call", name="mux_sned", arguments={})
    assert error["code"] == mcp.INVALID_PARAMS
    assert error["message"].startswith("Unknown tool: mux_sned")
    assert "mux_send" in error["message"]


@pytest.mark.parametrize("params", [{}, {"name": 5}, {"name": "mux_discover", "arguments": []}])
def test_a_call_that_is_none_is_a_fault(talk, params):
    assert talk.send("tools/call", params)["error"]["code"] == mcp.INVALID_PARAMS


def test_arguments_may_be_left_out(talk):
    assert talk.ask("tools/call", name="mux_discover")["structuredContent"] == {"agents": []}
    assert talk.ask("tools/call", name="mux_discover", arguments=None)["structuredContent"] == {"agents": []}


def test_what_a_client_tells_of_itself_is_kept_with_its_agent(mux):
    talk = Talk(mux, modern=True, client={"session_id": "s-1", "project_dir": "/p"})
    meta = {"threadId": "t-9", mcp.CLIENT_INFO: {"name": "coder", "version": "1"}, "x-codex-turn-metadata": {"a": 1}}
    response = talk.send(
        "tools/call",
        {"name": "mux_register", "arguments": {"agent_id": "ann", "metadata": {"own": 1}}, "_meta": meta},
    )
    client = {"session_id": "s-1", "project_dir": "/p", "name": "coder", "thread_id": "t-9"}
    assert response["result"]["structuredContent"]["agent"]["metadata"] == {"own": 1, "client": client}


def test_codex_turn_metadata_is_understood(mux):
    meta = {"x-codex-turn-metadata": {"session_id": "s", "thread_id": "t", "model": "m"}}
    response = Talk(mux).send("tools/call", {"name": "mux_register", "arguments": {"agent_id": "a"}, "_meta": meta})
    agent = response["result"]["structuredContent"]["agent"]
    assert agent["metadata"] == {"client": {"session_id": "s", "thread_id": "t"}}


@pytest.mark.settings(default_tier="free")
def test_a_tier_that_is_too_low_is_a_result(mux):
    ann = Talk(mux, agent="ann")
    ann.call("mux_register")
    error = ann.failure("mux_task_claim")["error"]
    assert (error["code"], error["needed"]) == ("upgrade_required", "pro")


# -- resources and prompts


def test_the_guide_and_the_agents_are_resources(talk):
    talk.call("mux_register", agent_id="ann")
    uris = [resource["uri"] for resource in talk.ask("resources/list")["resources"]]
    assert uris == ["stonemux://guide", "stonemux://agents"]
    guide = talk.ask("resources/read", uri="stonemux://guide")["contents"][0]
    assert guide["mimeType"] == "text/markdown"
    agents = talk.ask("resources/read", uri="stonemux://agents")
    assert json.loads(agents["contents"][0]["text"])["agents"][0]["id"] == "ann"
    assert (agents.get("ttlMs"), agents.get("cacheScope")) == ((0, "private") if talk.modern else (None, None))


def test_the_template_reads_a_task(talk):
    talk.call("mux_register", agent_id="ann")
    task = talk.call("mux_task_post", posted_by="ann", description="x")["task_id"]
    assert talk.ask("resources/templates/list")["resourceTemplates"][0]["uriTemplate"] == "stonemux://task/{task_id}"
    got = talk.ask("resources/read", uri=f"stonemux://task/{task}")
    assert json.loads(got["contents"][0]["text"])["task"]["description"] == "x"


def test_a_resource_that_is_not_there_names_the_tool_that_helps(mux):
    error = Talk(mux).refused("resources/read", uri="stonemux://task/none")
    assert "mux_task_list shows" in error["message"]


@pytest.mark.parametrize("uri", ["stonemux://nothing", "stonemux://task/none", "http://elsewhere", ""])
def test_a_resource_that_is_not_there(talk, uri):
    error = talk.refused("resources/read", uri=uri)
    assert error["code"] == (mcp.INVALID_PARAMS if talk.modern else mcp.LEGACY_RESOURCE_NOT_FOUND)
    assert error["data"] == {"uri": uri}


def test_a_uri_must_be_a_text(talk):
    assert talk.refused("resources/read")["code"] == mcp.INVALID_PARAMS


@pytest.mark.settings(default_tier="free")
def test_a_resource_beyond_the_tier_is_refused_with_the_reason(talk):
    error = talk.refused("resources/read", uri="stonemux://task/x")
    assert (error["code"], error["data"]["code"]) == (mcp.INTERNAL_ERROR, "upgrade_required")


@pytest.mark.parametrize("name", ["director", "worker", "steward"])
def test_prompts_for_the_usual_roles(talk, name):
    assert name in [prompt["name"] for prompt in talk.ask("prompts/list")["prompts"]]
    message = talk.ask("prompts/get", name=name, arguments={"agent_id": "zed"})["messages"][0]
    assert message["role"] == "user"
    assert "agent_id is zed" in message["content"]["text"]
    assert "agent_id is" not in talk.ask("prompts/get", name=name)["messages"][0]["content"]["text"]


def test_bad_requests_for_prompts(talk):
    assert talk.refused("prompts/get", name="juggler")["code"] == mcp.INVALID_PARAMS
    assert talk.refused("prompts/get", name="worker", arguments={"agent_id": 5})["code"] == mcp.INVALID_PARAMS
    assert talk.refused("prompts/get")["code"] == mcp.INVALID_PARAMS


# -- the layer itself


def test_a_registry_takes_other_things(mux):
    registry = offer.registry(Settings())
    block = {"type": "image", "data": "AA==", "mimeType": "image/png"}
    registry.add(mcp.Tool({"name": "picture", "inputSchema": {"type": "object"}}, lambda context: {"content": [block]}))
    registry.methods["extra/method"] = mcp.Method(lambda context: {"fine": True}, modern=False)
    talk = Talk(mux)
    talk.layer = Layer(registry)
    assert talk.ask("tools/call", name="picture")["content"] == [block]
    assert talk.ask("extra/method") == {"fine": True}


def test_a_result_that_asks_for_input_is_left_as_it_is(mux):
    registry = offer.registry(Settings())
    asks = {"resultType": "input_required", "inputRequests": {}}
    registry.add(mcp.Tool({"name": "asks", "inputSchema": {"type": "object"}}, lambda context: dict(asks)))
    talk = Talk(mux, modern=True)
    talk.layer = Layer(registry)
    assert talk.ask("tools/call", name="asks")["resultType"] == "input_required"


def test_notifications_go_ahead_of_the_answer(mux):
    said: list[Any] = []
    talk = Talk(mux)
    talk.session = talk.session._replace(notify=said.append)

    def run(context):
        context.progress(1, 2)
        return {"content": []}

    talk.layer.registry.add(mcp.Tool({"name": "slow", "inputSchema": {"type": "object"}}, run))
    talk.ask("tools/call", name="slow")
    assert said == []
    talk.ask("tools/call", name="slow", _meta={"progressToken": 5})
    params = {"progressToken": 5, "progress": 1, "total": 2}
    assert said == [{"jsonrpc": "2.0", "method": "notifications/progress", "params": params}]


def test_a_tool_that_refuses_by_itself_is_a_result(mux):
    def run(context):
        raise MuxError("internal", "no")

    talk = Talk(mux)
    talk.layer.registry.add(mcp.Tool({"name": "bad", "inputSchema": {"type": "object"}}, run))
    assert talk.ask("tools/call", name="bad") == {"content": [{"type": "text", "text": "no"}], "isError": True}


@pytest.mark.parametrize("value", ["plain", "äöü", " padded ", "a\nb", "=?base64?x?=", "", "日本"])
def test_header_values_survive_the_way(value):
    carried = mcp.encode_header(value)
    assert carried.isascii()
    assert carried.isprintable()
    assert mcp.decode_header(carried) == value


@pytest.mark.parametrize("value", ["=?base64?!!!?=", "=?base64?/w==?=", "ä"])
def test_header_values_that_are_none(value):
    with pytest.raises(ValueError, match=r"base64|ASCII"):
        mcp.decode_header(value)


def test_the_headers_of_a_modern_request():
    params = {"_meta": ENVELOPE, "name": "mux_send"}
    request = mcp.read({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    expected = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "mux_send"}
    assert mcp.standard_headers(request) == expected
    assert mcp.standard_headers(mcp.read({"jsonrpc": "2.0", "id": 1, "method": "ping"})) == {}
