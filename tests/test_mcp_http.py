"""MCP over HTTP: what the transport adds to the layer."""

from __future__ import annotations

import json
import socket
import struct
import threading
from contextlib import suppress
from typing import Any

import pytest
from faces import post_mcp
from licensed import issued
from raw import Raw as Connected
from raw import request

from stonemux import mcp, mcphttp, operations

BOTH = "application/json, text/event-stream"
ENVELOPE = {mcp.PROTOCOL_VERSION: "2026-07-28", mcp.CLIENT_CAPABILITIES: {}}


def ask(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    return ask("tools/call", name=tool, arguments=arguments)


def modern(method: str, **params: Any) -> dict[str, Any]:
    return ask(method, **params, _meta=ENVELOPE)


class Client:
    def __init__(self, http) -> None:
        self.http = http

    def post(self, message: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        sent = {"Content-Type": "application/json", "Accept": BOTH}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        status, told, answer = post_mcp(self.http.port, body, sent)
        return status, told, json.loads(answer) if answer.startswith(b"{") else answer

    def tool(self, name: str, agent: str = "", **arguments: Any) -> Any:
        headers = {"X_Stonemux_Agent": agent} if agent else {}
        status, _, answer = self.post(call(name, **arguments), **headers)
        assert status == 200
        return answer["result"]["structuredContent"]


@pytest.fixture
def client(http) -> Client:
    return Client(http)


def standard(message: dict[str, Any]) -> dict[str, str]:
    return mcp.standard_headers(mcp.read(message))


def test_what_is_on_a_lease_is_not_told_as_unread_since_no_poll_would_find_it(client):
    client.tool("mux_register", "ann", agent_id="ann")
    assert client.tool("mux_send", "ann", to="ann", content="one")["unread"] == 1
    told = client.tool("mux_poll", "ann", ack="manual")
    assert [message["content"] for message in told["messages"]] == ["one"]
    assert "unread" not in told
    assert client.tool("mux_send", "ann", to="ann", content="two")["unread"] == 1
    assert "unread" not in client.tool("mux_poll", "ann", timeout=0)


@pytest.mark.parametrize("how", [{}, {"ack": "manual"}, {"after": 0}])
def test_a_poll_is_not_more_than_a_model_can_take_in(client, http, how):
    client.tool("mux_register", "ann", agent_id="ann")
    for size in (8_000, 8_000, 8_000, 50_000, 1):
        client.tool("mux_send", "ann", to="ann", content="x" * size)
    got = []
    for more in (True, True, True, None):
        told = client.tool("mux_poll", "ann", timeout=0, **how)
        assert told.get("more") is more
        got.append([message["id"] for message in told["messages"]])
        if "after" in how:
            how = {"after": got[-1][-1]}
    assert got == [[1, 2], [3], [4], [5]]
    assert len(http.call("msg.poll", agent_id="ann", timeout=0, after=0)["messages"]) == 5


def test_a_search_has_only_the_best_of_what_is_long_in_full(client, http):
    client.tool("mux_register", "ann", agent_id="ann")
    for size in (30_000, 30_000, 100):
        client.tool("mux_send", "ann", to="ann", content="needle " + "x" * size)
    whole = http.call("msg.search", q="needle")["results"]
    found = client.tool("mux_search", q="needle")["results"]
    assert [one["id"] for one in found] == [one["id"] for one in whole]
    assert found[0] == whole[0]
    for shown, all_of_it in zip(found[1:], whole[1:], strict=True):
        cut = len(all_of_it["content"]) > 500
        assert (shown["content"], shown.get("truncated", False)) == (all_of_it["content"][: 500 if cut else None], cut)
        assert shown["excerpt"] == all_of_it["excerpt"]
    assert sum(one.get("truncated", False) for one in found) in (1, 2)


def test_a_list_comes_in_pages_that_a_model_can_take_in(client, http):
    client.tool("mux_register", "ann", agent_id="ann", role="x" * 128)
    tasks = [client.tool("mux_task_post", "ann", description="x" * size)["task_id"] for size in (9000, 9000, 30_000, 1)]
    for n in range(60):
        http.call("agent.register", agent_id=f"bot-{n:02}", role="x" * 128, metadata={"about": "y" * 128})
        http.call("msg.send", from_="ann", to="ann", content=f"needle {n} " + "z" * 480)

    def pages(tool: str, rows: str, key: str) -> list[list[Any]]:
        seen, told = [], {"next": {}}
        while "next" in told:
            told = client.tool(tool, **told["next"])
            assert ("next" in told) == told.get("more", False)
            assert len(told[rows]) == 1 or len(json.dumps(told)) < 21_000
            seen.append([one[key] for one in told[rows]])
        return seen

    assert pages("mux_task_list", "tasks", "task_id") == [tasks[:2], tasks[2:3], tasks[3:]]
    agents = pages("mux_discover", "agents", "id")
    assert len(agents) > 1
    assert [one for page in agents for one in page] == [one["id"] for one in http.call("agent.discover")["agents"]]
    assert client.tool("mux_task_list", limit=3)["next"] == {"after": tasks[1]}
    assert len(http.call("task.list")["tasks"]) == 4
    found = client.tool("mux_search", q="needle", limit=1000)
    assert found["more"] is True
    assert 10 < len(found["results"]) < 60


# -- refusals of the transport


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "HEAD"])
def test_only_post_is_answered(http, method):
    status, headers, body = http.request(method, "/mcp")
    assert (status, headers["allow"]) == (405, "POST")
    assert method == "HEAD" or json.loads(body)["error"]["code"] == mcp.INVALID_REQUEST


def test_options_tells_the_method(http):
    status, headers, _ = http.request("OPTIONS", "/mcp")
    assert (status, headers["allow"]) == (204, "POST")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Accept": "text/event-stream"}, 406),
        ({"Accept": "text/html"}, 406),
    ],
)
def test_the_transport_refuses_with_json_rpc_errors(client, headers, status):
    got, _, answer = client.post(ask("ping"), **headers)
    assert got == status
    assert answer["id"] is None
    assert answer["error"]["code"] == mcp.INVALID_REQUEST
    assert answer["error"]["data"]["code"]


def test_a_body_that_is_not_read_is_refused_with_a_json_rpc_error(http):
    with Connected(http.port) as raw:
        raw.send(request("POST", "/mcp", "Content-Type: application/json", "Content-Length: 1048577"))
        status, headers = raw.head()
        refused = json.loads(raw.read_until(b"}}}"))
    assert (status, refused["id"], refused["error"]["code"]) == (413, None, mcp.INVALID_REQUEST)
    assert refused["error"]["data"]["code"] == "body_too_large"
    assert refused["error"]["data"]["request_id"] == headers["x-request-id"]


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:1", "[::1]:65535", "LOCALHOST:80"])
def test_loopback_is_known_by_any_port(client, host):
    assert client.post(ask("ping"), Host=host)[0] == 200
    assert client.post(ask("ping"), Host=f"evil.example:{host}")[0] == 421


@pytest.mark.parametrize("accept", [BOTH, "application/json", "*/*", "application/*;q=0.5, text/html"])
def test_whoever_takes_json_is_served(client, accept):
    assert client.post(ask("ping"), Accept=accept)[0] == 200


def test_a_local_origin_is_welcome(client):
    assert (
        client.post(ask("ping"), Origin=f"{client.http.mux.settings.scheme}://localhost:{client.http.port}")[0] == 200
    )


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"a":1,"a":2}', b"[" * 100 + b"]" * 100, b"NaN"])
def test_what_cannot_be_read_is_a_parse_error(client, body):
    status, _, answer = client.post(body)
    assert (status, answer["error"]["code"], answer["id"]) == (400, mcp.PARSE_ERROR, None)


@pytest.mark.parametrize("body", [b'{"id":3,"a":"\\ud83d"}', b'{"jsonrpc":"2.0","id":3,"method":"ping","params":[]}'])
def test_what_has_an_id_is_refused_with_it_and_ends_no_legacy_session(client, body):
    for version, status in (("2025-06-18", 200), ("2026-07-28", 400)):
        got, _, answer = client.post(body, MCP_Protocol_Version=version)
        assert (got, answer["id"], "error" in answer) == (status, 3, True)


@pytest.mark.parametrize("body", [b"[]", b"5", b"null", b'"ping"', b"{}"])
def test_what_is_no_message_is_an_invalid_request(client, body):
    status, _, answer = client.post(body)
    assert (status, answer["error"]["code"], answer["id"]) == (400, mcp.INVALID_REQUEST, None)


def test_notifications_and_responses_get_an_empty_202(client):
    for message in (
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}},
        {"jsonrpc": "2.0", "id": 1, "result": {}},
    ):
        status, headers, body = client.post(message)
        assert (status, body, headers["content-length"]) == (202, b"", "0")


def test_the_newer_revision_takes_no_responses(client):
    message = {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert client.post(message, MCP_Protocol_Version="2026-07-28")[0] == 400


def test_no_session_is_given_out(client):
    _, headers, _ = client.post(ask("initialize", protocolVersion="2025-11-25"), Mcp_Session_Id="made-up")
    assert "mcp-session-id" not in headers


# -- versions and headers


@pytest.mark.parametrize("version", mcp.LEGACY)
def test_legacy_requests_may_name_their_version(client, version):
    assert client.post(ask("tools/list"), MCP_Protocol_Version=version)[0] == 200


def test_legacy_requests_with_a_version_nobody_speaks_are_refused(client):
    status, _, answer = client.post(ask("tools/list"), MCP_Protocol_Version="1999-01-01")
    assert (status, answer["error"]["code"], answer["id"]) == (400, mcp.UNSUPPORTED_VERSION, 1)


def test_legacy_errors_come_with_200_and_modern_ones_do_not(client):
    assert client.post(ask("no/method"))[0] == 200
    message = modern("no/method")
    assert client.post(message, **standard(message))[0] == 404
    message = modern("tools/call", name="no_tool")
    assert client.post(message, **standard(message))[0] == 400


def test_a_modern_request_with_its_headers(client):
    message = modern("tools/call", name="mux_discover", arguments={})
    status, _, answer = client.post(message, **standard(message))
    assert (status, answer["result"]["resultType"]) == (200, "complete")


@pytest.mark.parametrize(
    "change",
    [
        {"mcp-protocol-version": None},
        {"mcp-protocol-version": "2025-11-25"},
        {"mcp-method": None},
        {"mcp-method": "Tools/Call"},
        {"mcp-name": None},
        {"mcp-name": "mux_send"},
        {"mcp-name": "=?base64?!?="},
    ],
)
def test_headers_that_differ_from_the_body_are_refused(client, change):
    message = modern("tools/call", name="mux_discover", arguments={})
    headers = {name: value for name, value in (standard(message) | change).items() if value is not None}
    status, _, answer = client.post(message, **headers)
    assert (status, answer["error"]["code"], answer["id"]) == (400, mcp.HEADER_MISMATCH, 1)


def test_an_encoded_name_is_decoded_before_it_is_compared(client):
    message = modern("resources/read", uri="stonemux://gu\u0131de")
    status, _, answer = client.post(message, **standard(message))
    assert (status, answer["error"]["code"]) == (400, mcp.INVALID_PARAMS)
    message = modern("tools/call", name="mux_discover")
    assert client.post(message, **(standard(message) | {"mcp-name": "=?base64?bXV4X2Rpc2NvdmVy?="}))[0] == 200


def test_a_modern_version_without_envelope_is_refused(client):
    status, _, answer = client.post(ask("tools/list"), MCP_Protocol_Version="2026-07-28")
    assert (status, answer["error"]["code"]) == (400, mcp.INVALID_PARAMS)


# -- who calls


def test_the_agent_comes_from_a_header_or_from_meta(client):
    client.tool("mux_register", agent_id="ann")
    client.tool("mux_register", agent_id="bøb")
    client.tool("mux_send", "ann", to="bøb", content="by header")
    message = call("mux_poll", timeout=0)
    message["params"]["_meta"] = {mcp.AGENT_META: "bøb"}
    answer = client.post(message, X_Stonemux_Agent="ann")[2]
    assert answer["result"]["structuredContent"]["messages"][0]["content"] == "by header"
    assert client.tool("mux_poll", mcp.encode_header("bøb"), timeout=0) == {"messages": []}


def test_an_idempotency_key_counts_for_a_tool_that_changes_something(client):
    client.tool("mux_register", agent_id="ann")
    message = call("mux_send", to="ann", content="once", **{"from": "ann"})
    first = client.post(message, Idempotency_Key="k1")[2]
    _, headers, second = client.post(message, Idempotency_Key="k1")
    assert headers["idempotent-replayed"] == "true"
    ids = [answer["result"]["structuredContent"]["message_id"] for answer in (first, second)]
    assert ids[0] == ids[1]


# -- waiting


class Raw:
    """A connection that reads as much as the test wants."""

    def __init__(self, http, message: dict[str, Any], accept: str = BOTH, agent: str = "ann") -> None:
        body = json.dumps(message).encode()
        self.sock = Connected(http.port).sock
        self.sock.sendall(
            b"POST /mcp HTTP/1.1\r\nHost: localhost:%d\r\nContent-Type: application/json\r\nX-Stonemux-Agent: %b\r\n"
            b"Accept: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (http.port, agent.encode(), accept.encode(), len(body), body)
        )
        self.got = b""

    def until(self, mark: bytes) -> bytes:
        while mark not in self.got:
            data = self.sock.recv(65536)
            assert data, self.got
            self.got += data
        return self.got

    def rest(self) -> bytes:
        with suppress(ConnectionResetError):
            while data := self.sock.recv(65536):
                self.got += data
        return self.got


def test_a_wait_becomes_a_stream_at_once_with_a_comment_every_15_s(http, client, clock):
    client.tool("mux_register", agent_id="ann")
    raw = Raw(http, call("mux_poll", agent_id="ann", timeout=60))
    assert b"text/event-stream" in raw.until(b": still waiting\n\n")
    assert b"X-Accel-Buffering: no" in raw.got
    clock.until_parked(1)
    for count in (2, 3):
        clock.advance(15_000)
        http.server.ring()
        while raw.got.count(b": still waiting") < count:
            raw.got += raw.sock.recv(65536)
    clock.advance(30_000)
    assert b'"messages":[]' in raw.until(b"data: ")
    raw.sock.close()


def test_what_comes_while_a_call_waits_ends_its_stream(http, client, clock):
    client.tool("mux_register", agent_id="ann")
    raw = Raw(http, call("mux_poll", agent_id="ann", timeout=60))
    clock.until_parked(1)
    client.tool("mux_send", "ann", to="ann", content="ring")
    assert b'"content":"ring"' in raw.until(b"\n\ndata: ")
    assert raw.sock.recv(10) == b""
    raw.sock.close()


def test_who_takes_only_json_gets_json_however_long_it_takes(http, client, clock):
    client.tool("mux_register", agent_id="ann")
    raw = Raw(http, call("mux_poll", agent_id="ann", timeout=60), accept="application/json")
    clock.until_parked(1)
    clock.advance(60_000)
    assert b"Content-Type: application/json" in raw.until(b'"messages":[]')
    raw.sock.close()


def test_a_client_that_hangs_up_cancels_its_wait(http, mux, client, clock):
    client.tool("mux_register", agent_id="ann")
    raw = Raw(http, call("mux_poll", agent_id="ann", timeout=60))
    clock.until_parked(1)
    raw.sock.close()
    until_nobody_waits(mux)
    client.tool("mux_send", "ann", to="ann", content="kept")
    assert client.tool("mux_poll", "ann", timeout=0)["messages"][0]["content"] == "kept"


def until_nobody_waits(mux) -> None:
    patience = threading.Event()
    for _ in range(500):
        if mux.hub.parked == 0:
            break
        patience.wait(0.01)
    assert mux.hub.parked == 0


@pytest.mark.parametrize("accept", [BOTH, "application/json"])
def test_a_legacy_client_cancels_its_wait_with_a_notification(http, mux, client, clock, accept):
    def cancel(agent: str, request_id: Any) -> None:
        message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}}
        assert client.post(message, **({"X_Stonemux_Agent": agent} if agent else {}))[0] == 202

    for agent in ("ann", "bob"):
        client.tool("mux_register", agent_id=agent)
    waiting = [Raw(http, call("mux_poll", timeout=60), accept, agent) for agent in ("ann", "bob")]
    clock.until_parked(2)
    for agent, request_id in (("", 1), ("eve", 1), ("ann", "1"), ("ann", 1.0), ("ann", True), ("ann", [1]), ("ann", 2)):
        cancel(agent, request_id)
    assert mux.hub.parked == 2
    cancel("ann", 1)
    clock.until_parked(1)
    assert b"jsonrpc" not in waiting[0].rest()
    cancel("bob", 1)
    until_nobody_waits(mux)
    client.tool("mux_send", "ann", to="ann", content="kept")
    assert client.tool("mux_poll", "ann", timeout=0)["messages"][0]["content"] == "kept"
    assert not http.server.cancelable
    waiting[0].sock.close()
    waiting[1].sock.close()


def test_messages_that_were_not_received_are_put_back(http, mux, client, clock):
    client.tool("mux_register", agent_id="ann")
    client.tool("mux_send", "ann", to="ann", content="kept")
    raw = Raw(http, call("mux_poll", agent_id="ann", timeout=0))
    raw.until(b"kept")
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.sock.close()
    patience = threading.Event()
    for _ in range(500):
        if not mux.flights.held("ann"):
            break
        patience.wait(0.01)
    assert client.tool("mux_poll", "ann", timeout=0)["messages"][0]["content"] == "kept"


def test_progress_turns_an_answer_into_a_stream(http, client):
    def run(context):
        context.progress(1, 2)
        return {"content": []}

    http.server.mcp.registry.add(mcp.Tool({"name": "slow", "inputSchema": {"type": "object"}}, run))
    message = ask("tools/call", name="slow", _meta={"progressToken": "t"})
    _, headers, body = client.post(message)
    assert headers["content-type"] == "text/event-stream"
    events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: ")]
    assert [event.get("method") for event in events] == ["notifications/progress", None]
    assert client.post(message, Accept="application/json")[2]["result"] == {"content": []}


def test_a_bug_is_an_internal_error_without_details(http, client, caplog):
    def run(context):
        raise ZeroDivisionError("secret")

    http.server.mcp.registry.add(mcp.Tool({"name": "bug", "inputSchema": {"type": "object"}}, run))
    status, _, answer = client.post(call("bug"))
    assert (status, answer["error"]["code"], answer["id"]) == (200, mcp.INTERNAL_ERROR, 1)
    assert "secret" not in json.dumps(answer)
    assert "ZeroDivisionError" in caplog.text


def test_a_bug_in_a_tool_that_has_taken_messages_puts_them_back(http, client):
    def run(context):
        assert context.session.desk.call(operations.BY_NAME["msg.poll"], {"agent_id": "ann", "timeout": 0})["messages"]
        raise ZeroDivisionError

    client.tool("mux_register", "ann", agent_id="ann")
    client.tool("mux_send", "ann", to="ann", content="kept")
    http.server.mcp.registry.add(mcp.Tool({"name": "bug", "inputSchema": {"type": "object"}}, run))
    assert client.post(call("bug"))[2]["error"]["code"] == mcp.INTERNAL_ERROR
    assert client.tool("mux_poll", "ann", timeout=0)["messages"][0]["content"] == "kept"


def test_a_bug_before_the_message_is_read_is_an_internal_error_too(client, monkeypatch, caplog):
    def fail(headers: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(mcphttp, "check_accept", fail)
    status, _, answer = client.post(ask("ping"))
    assert (status, answer["error"]["code"], answer["id"]) == (500, mcp.INTERNAL_ERROR, None)
    assert "secret" not in json.dumps(answer)
    assert "ZeroDivisionError" in caplog.text


def test_an_agent_that_cannot_be_read_or_is_not_the_tokens_is_refused(http, client):
    client.tool("mux_register", "ann", agent_id="ann")
    for message in (ask("tools/list"), call("mux_discover")):
        status, _, answer = client.post(message, X_Stonemux_Agent="=?base64?!!?=")
        assert (status, answer["error"]["code"], answer["id"]) == (400, mcp.HEADER_MISMATCH, 1)
        status, _, answer = client.post(message, X_Stonemux_Agent="bob", Authorization=f"Bearer {issued(http, 'ann')}")
        assert (status, answer["error"]["data"]["code"]) == (403, "agent_mismatch")


def test_the_door_is_not_held_up_by_a_slow_tool(http, client):
    entered, leave = threading.Event(), threading.Event()

    def run(context):
        entered.set()
        leave.wait(5)
        return {"content": []}

    http.server.mcp.registry.add(mcp.Tool({"name": "slow", "inputSchema": {"type": "object"}}, run))
    raw = Raw(http, call("slow"))
    assert entered.wait(5)
    assert client.post(ask("ping"))[0] == 200
    leave.set()
    raw.until(b'"content":[]')
    raw.sock.close()
