"""A daemon whose MCP layer also offers what the conformance suite asks for by name. For tests only.

    python tests/mcp_fixture_server.py --port 3399

The layer, the transport, and the daemon are the real ones; only the registry has additional entries. Names, texts, and
schemas are those that the suite (npm: @modelcontextprotocol/conformance) expects.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from stonemux import mcp, offer  # noqa: E402
from stonemux.config import Settings  # noqa: E402
from stonemux.daemon import Daemon  # noqa: E402
from stonemux.errors import MuxError  # noqa: E402
from stonemux.mcp import Context, Fault, Method, Prompt, Registry, Resource, Tool  # noqa: E402
from stonemux.record import replace  # noqa: E402

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
STEP_S = 0.05
SECRET = b"a key of this test server"


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image() -> dict[str, Any]:
    return {"type": "image", "data": PNG, "mimeType": "image/png"}


def embedded(uri: str, kind: str, words: str) -> dict[str, Any]:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": kind, "text": words}}


def says(*blocks: dict[str, Any]) -> Callable[[Context], dict[str, Any]]:
    return lambda context: {"content": list(blocks)}


# -- slow tools


def pause() -> None:
    threading.Event().wait(STEP_S)


def speak(context: Context, words: str) -> None:
    """Send a log message: an older client always gets it, a newer one only if it asks for it."""
    if not context.request.modern or "io.modelcontextprotocol/logLevel" in context.request.meta:
        context.notify("notifications/message", level="info", logger="fixture", data=words)


def with_logging(context: Context) -> dict[str, Any]:
    for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        speak(context, words)
        pause()
    return {"content": [text("Tool with logging executed successfully")]}


def with_progress(context: Context) -> dict[str, Any]:
    for done in (0, 50, 100):
        context.progress(done, 100)
        pause()
    return {"content": [text(str(context.request.meta.get("progressToken", "no token")))]}


def failing(context: Context) -> dict[str, Any]:
    raise MuxError("internal", "This tool intentionally returns an error for testing")


def needing(*capabilities: str) -> Callable[[Context], dict[str, Any]]:
    def run(context: Context) -> dict[str, Any]:
        missing = {name: {} for name in capabilities if name not in context.capabilities}
        if missing:
            data = {"requiredCapabilities": missing}
            raise Fault(mcp.MISSING_CAPABILITY, f"The client must be able to do: {', '.join(missing)}", data)
        return {"content": [text("The client can do what is needed.")]}

    return run


# -- results that ask for input (2026-07-28, Multi Round-Trip Requests)


def elicit(message: str, **properties: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in properties.items()},
        "required": list(properties),
    }
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def sample(words: str, tokens: int = 100) -> dict[str, Any]:
    messages = [{"role": "user", "content": text(words)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": tokens}}


ROOTS: dict[str, Any] = {"method": "roots/list", "params": {}}


def ask(requests: dict[str, Any], state: str = "") -> dict[str, Any]:
    asked: dict[str, Any] = {"resultType": "input_required", "inputRequests": requests}
    return asked | {"requestState": signed(state)} if state else asked


def responses(context: Context) -> dict[str, Any]:
    """The client's responses to earlier requests for input; only those that are objects."""
    given = context.request.params.get("inputResponses")
    return {name: one for name, one in given.items() if isinstance(one, dict)} if isinstance(given, dict) else {}


def signed(state: str) -> str:
    return f"{state}.{hmac.new(SECRET, state.encode(), hashlib.sha256).hexdigest()}"


def opened(context: Context) -> str:
    """The state that came back, or "" if none did; raises Fault if it was made elsewhere."""
    given = context.request.params.get("requestState")
    if given is None:
        return ""
    state = str(given).rpartition(".")[0]
    if not hmac.compare_digest(signed(state), str(given)):
        raise Fault(mcp.INVALID_PARAMS, "requestState is not what this server gave out")
    return state


def asking(requests: dict[str, Any], done: str, state: str = "") -> Callable[[Context], dict[str, Any]]:
    """A tool that asks for input until everything is answered."""

    def run(context: Context) -> dict[str, Any]:
        came = opened(context)
        given = responses(context)
        missing = {name: one for name, one in requests.items() if name not in given}
        if missing or came != state:
            return ask(missing or requests, state)
        return {"content": [text(done)]}

    return run


def multi_round(context: Context) -> dict[str, Any]:
    state, given = opened(context), responses(context)
    if state == "one" and "step1" in given:
        return ask({"step2": elicit("Step 2: which color?", color="string")}, "two")
    if state == "two" and "step2" in given:
        return {"content": [text("Both steps are done.")]}
    return ask({"step1": elicit("Step 1: what is your name?", name="string")}, "one")


def by_capability(context: Context) -> dict[str, Any]:
    possible = {"elicitation": elicit("What is your name?", name="string"), "sampling": sample("Greet me.")}
    requests = {name: request for name, request in possible.items() if name in context.capabilities}
    return ask(requests) if requests else {"content": [text("The client can be asked nothing.")]}


def asking_prompt(context: Context) -> dict[str, Any]:
    if "user_context" not in responses(context):
        return ask({"user_context": elicit("What context should the prompt use?", context="string")})
    return {"messages": [{"role": "user", "content": text("A prompt with the context that was given.")}]}


NAME = {"user_name": elicit("What is your name?", name="string")}
CONFIRM = {"confirm": elicit("Please confirm", ok="boolean")}
CAPITAL = {"capital_question": sample("What is the capital of France?")}
EVERYTHING = NAME | {"greeting": sample("Generate a greeting", 50), "client_roots": ROOTS}

TOOLS: dict[str, Callable[[Context], dict[str, Any]]] = {
    "test_simple_text": says(text("This is a simple text response for testing.")),
    "test_image_content": says(image()),
    "test_audio_content": says({"type": "audio", "data": WAV, "mimeType": "audio/wav"}),
    "test_embedded_resource": says(
        embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")
    ),
    "test_multiple_content_types": says(
        text("Multiple content types test:"),
        image(),
        embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
    ),
    "test_tool_with_logging": with_logging,
    "test_logging_tool": with_logging,
    "test_tool_with_progress": with_progress,
    "test_error_handling": failing,
    "test_missing_capability": needing("sampling"),
    "test_streaming_elicitation": asking(NAME, "Hello!"),
    "test_input_required_result_elicitation": asking(NAME, "Hello!"),
    "test_input_required_result_sampling": asking(CAPITAL, "Paris."),
    "test_input_required_result_list_roots": asking({"client_roots": ROOTS}, "The roots were listed."),
    "test_input_required_result_request_state": asking(CONFIRM, "state-ok", "confirming"),
    "test_input_required_result_multiple_inputs": asking(EVERYTHING, "All is answered.", "everything"),
    "test_input_required_result_multi_round": multi_round,
    "test_input_required_result_tampered_state": asking(CONFIRM, "state-ok", "untouched"),
    "test_input_required_result_capabilities": by_capability,
}

SCHEMA_2020 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


# -- resources, prompts, further methods


def content(kind: str, **what: str) -> Callable[[Context], dict[str, Any]]:
    return lambda context: {"contents": [{"uri": context.request.params["uri"], "mimeType": kind, **what}]}


def templated(context: Context) -> dict[str, Any]:
    number = context.arguments["id"]
    words = json.dumps({"id": number, "templateTest": True, "data": f"Data for ID: {number}"})
    return content("application/json", text=words)(context)


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": block} for block in blocks]}


def with_arguments(context: Context) -> dict[str, Any]:
    given = context.arguments
    return user(text(f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'"))


def with_resource(context: Context) -> dict[str, Any]:
    words = "Embedded resource content for testing."
    block = embedded(context.arguments["resourceUri"], "text/plain", words)
    return user(block, text("Please process the embedded resource above."))


RESOURCES: dict[str, tuple[str, Callable[[Context], dict[str, Any]]]] = {
    "test://static-text": (
        "text/plain",
        content("text/plain", text="This is the content of the static text resource."),
    ),
    "test://static-binary": ("image/png", content("image/png", blob=PNG)),
    "test://watched-resource": ("text/plain", content("text/plain", text="Watched resource content")),
}

PROMPTS: dict[str, tuple[tuple[str, ...], Callable[[Context], dict[str, Any]]]] = {
    "test_simple_prompt": ((), lambda context: user(text("This is a simple prompt for testing."))),
    "test_prompt_with_arguments": (("arg1", "arg2"), with_arguments),
    "test_prompt_with_embedded_resource": (("resourceUri",), with_resource),
    "test_prompt_with_image": ((), lambda context: user(image(), text("Please analyze the image above."))),
    "test_input_required_result_prompt": ((), asking_prompt),
}


def nothing(context: Context) -> dict[str, Any]:
    return {}


def complete(context: Context) -> dict[str, Any]:
    return {"completion": {"values": [], "total": 0, "hasMore": False}}


def extend(registry: Registry) -> Registry:
    """Add everything to a registry that the suite asks for."""
    for name, run in TOOLS.items():
        schema = {"type": "object", "additionalProperties": False}
        registry.add(Tool({"name": name, "description": f"Fixture {name}", "inputSchema": schema}, run))
    described = {"name": "json_schema_2020_12_tool", "description": "JSON Schema 2020-12", "inputSchema": SCHEMA_2020}
    registry.add(Tool(described, says(text("fine"))))
    for uri, (kind, run) in RESOURCES.items():
        registry.add(Resource({"uri": uri, "name": uri, "description": "A fixture", "mimeType": kind}, run))
    template = {"uriTemplate": "test://template/{id}/data", "name": "template", "description": "A fixture"}
    registry.add(Resource(template | {"mimeType": "application/json"}, templated))
    for name, (needed, run) in PROMPTS.items():
        arguments = [{"name": one, "description": "A fixture", "required": True} for one in needed]
        registry.add(Prompt({"name": name, "description": f"Fixture {name}", "arguments": arguments}, run))
    for name in ("logging/setLevel", "resources/subscribe", "resources/unsubscribe"):
        registry.methods[name] = Method(nothing, modern=False)
    registry.methods["completion/complete"] = Method(complete)
    registry.capabilities["completions"] = {}
    registry.legacy_capabilities |= {"resources": {"subscribe": True}, "logging": {}}
    return registry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=3399)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stonemux-conformance-") as folder:
        settings = replace(Settings(), data_dir=Path(folder) / "data", port=options.port)
        daemon = Daemon(settings)
        daemon.server.mcp = mcp.Layer(extend(offer.registry(settings)))
        daemon.heed_signals()
        print(f"{daemon.url}/mcp", flush=True)
        daemon.serve()


if __name__ == "__main__":
    main()
