"""The official Python SDK (PyPI: mcp) against a daemon that its own `stonemux mcp` started, over both transports."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import pytest
from daemons import free_port

Client = getattr(pytest.importorskip("mcp"), "Client", None)
if Client is None:
    pytest.skip("this SDK is older than 2.0", allow_module_level=True)

from mcp.client.stdio import StdioServerParameters, stdio_client  # noqa: E402
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client  # noqa: E402

MAIN = os.path.join(os.path.dirname(__file__), "..", "..", "stonemux", "__main__.py")


@pytest.fixture
def place(tmp_path):
    port = free_port()
    data = tmp_path / "data"
    arguments = ["-P", os.path.abspath(MAIN), "mcp", "--port", str(port), "--data-dir", str(data)]
    yield StdioServerParameters(command=sys.executable, args=arguments, env={}), f"http://127.0.0.1:{port}/mcp"
    os.kill(int((data / "daemon.pid").read_text()), signal.SIGTERM)


async def drive(client: Any, who: str) -> None:
    """Use everything that is offered."""
    tools = {tool.name for tool in (await client.list_tools()).tools}
    used = {"mux_ack"}  # needs mail that was handed out on a lease

    async def call(name: str, /, **arguments: Any) -> dict[str, Any]:
        used.add(name)
        result = await client.call_tool(name, arguments)
        assert not result.is_error, result
        return result.structured_content

    await call("mux_register", agent_id=who, capabilities=["x"])
    assert [agent["id"] for agent in (await call("mux_discover"))["agents"]]
    await call("mux_send", **{"from": who, "to": who, "content": "hello"})
    await call("mux_broadcast", **{"from": who, "content": "all"})
    assert (await call("mux_poll", agent_id=who))["messages"][0]["content"] == "hello"
    assert (await call("mux_poll", agent_id=who, timeout=1))["messages"] == []
    with pytest.raises(Exception, match="timed out"):
        await client.call_tool("mux_poll", {"agent_id": who}, read_timeout_seconds=0.2)
    await call("mux_send", **{"from": who, "to": who, "content": "not for a call that was given up"})
    assert (await call("mux_poll", agent_id=who, timeout=0))["messages"][0]["content"].startswith("not for")
    await call("mux_search", q="hello")
    await call("mux_task_post", description="d", posted_by=who, assigned_to=who)
    claim = await call("mux_task_claim", agent_id=who)
    await call("mux_task_complete", agent_id=who, task_id=claim["task_id"], claim_token=claim["claim_token"])
    await call("mux_task_list")
    await call("mux_state_set", key=who, value="v", expected_version=0)
    assert (await call("mux_state_get", key=who))["version"] == 1
    await call("mux_state_watch", key=who)
    await call("mux_channel_create", name=f"team-{who}")
    assert used == tools
    assert (await client.call_tool("mux_send", {"from": who, "to": "nobody", "content": "x"})).is_error
    uris = [str(resource.uri) for resource in (await client.list_resources()).resources]
    for uri in uris:
        assert (await client.read_resource(uri)).contents
    for prompt in (await client.list_prompts()).prompts:
        assert (await client.get_prompt(prompt.name, {"agent_id": who})).messages


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
def test_the_official_sdk_over_both_transports(place, mode):
    parameters, url = place

    async def both() -> None:
        async with Client(stdio_client(parameters), mode=mode) as client:
            await drive(client, "over-stdio")
        async with (
            create_mcp_http_client(headers={"X-Stonemux-Agent": "over-http"}) as http,
            Client(streamable_http_client(url, http_client=http), mode=mode) as client,
        ):
            await drive(client, "over-http")

    asyncio.run(both())
