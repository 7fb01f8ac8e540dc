"""The Model Context Protocol: turns a message into a response, without any I/O of its own.

It speaks two generations of the protocol, and each request shows which one it uses:

* *legacy* (2024-11-05 to 2025-11-25): an `initialize` handshake, from which nothing is remembered here;
* *modern* (2026-07-28): no handshake; each request carries version and capabilities in `_meta`, each result has a
  `resultType`, and a cacheable result says for how long it may be cached.

`read` classifies a message, and `Layer.answer` answers it. A `Registry` holds what can be listed and called; stonemux's
own registry is in `offer`, and a test may make another one. Specification: modelcontextprotocol.io, revisions
2025-11-25 and 2026-07-28; the sections are named below.

An error takes one of two forms (Tools, "Error Handling"): a `Fault` concerns the message and becomes a JSON-RPC error;
a tool's `MuxError` becomes a result with `isError`, because the model can do something about it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

from stonemux import payload
from stonemux.errors import MuxError, nearest
from stonemux.record import Record
from stonemux.schema import Operation, shown

PATH = "/mcp"
"""The path at which a daemon accepts messages over HTTP."""
LEGACY = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
MODERN = ("2026-07-28",)
SUPPORTED = MODERN + LEGACY

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND = -32700, -32600, -32601
INVALID_PARAMS, INTERNAL_ERROR = -32602, -32603
HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION = -32020, -32021, -32022
LEGACY_RESOURCE_NOT_FOUND = -32002

PROTOCOL_VERSION = "io.modelcontextprotocol/protocolVersion"
CLIENT_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
CLIENT_INFO = "io.modelcontextprotocol/clientInfo"
SERVER_INFO = "io.modelcontextprotocol/serverInfo"

AGENT_META = "stonemux/agent"
AGENT_HEADER = "x-stonemux-agent"
"""Both name the calling agent; the one in a request's `_meta` wins."""
CLIENT_HEADERS: Mapping[str, str] = {"session_id": "x-stonemux-session-id", "project_dir": "x-stonemux-project-dir"}
"""The headers in which a client may describe itself, by their key in the agent's metadata."""

NAMED_BY: Mapping[str, str] = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""The param that the header Mcp-Name repeats, by method (2026-07-28, "Standard Request Headers")."""
_ENCODED = r"(?s)=\?base64\?(.*)\?="

LIST_TTL_MS = 300_000
"""How long a client may cache a list; lists change only with the daemon's version or settings."""

RequestId = str | int


class Fault(Exception):
    """An error to be answered as a JSON-RPC error; `request_id` is None until it is known."""

    def __init__(self, code: int, message: str, data: Any = None, request_id: RequestId | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data
        self.request_id = request_id

    def response(self) -> dict[str, Any]:
        """The error response (JSON-RPC 2.0 section 5.1)."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.data is not None:
            error["data"] = self.data
        return {"jsonrpc": "2.0", "id": self.request_id, "error": error}


# -- reading a message

_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)'  # or one without an end, lest it is looked for again and again
_PIECE = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_ID = re.compile(rb"\s*:\s*(" + _STRING + rb"|-?[0-9]+)\s*[,}]", re.DOTALL)


def parse(message: bytes) -> Any:
    """Decode a message's JSON; raises Fault -32700."""
    try:
        return payload.read_value(message)
    except MuxError as error:
        raise unreadable(message, error) from error


def unreadable(message: bytes, error: MuxError) -> Fault:
    """The error for a message that is refused before it is classified.

    It has the id if the message is JSON, only too long, too deep, or with a number or character that is refused: an
    error without an id reaches nobody over standard input and output, and the client would wait for its answer.
    """
    request_id = None if error.code in ("invalid_json", "invalid_utf8") else _id_in(message)
    return Fault(PARSE_ERROR, f"Parse error: {error.message}", {"code": error.code}, request_id)


def _id_in(message: bytes) -> RequestId | None:
    """The id of an object, found without parsing it as a whole."""
    depth = 0
    for piece in _PIECE.finditer(message):
        if piece[0] in b"[{":
            depth += 1
        elif piece[0] in b"]}":
            depth -= 1
        elif depth == 1 and piece[0] == b'"id"' and (found := _ID.match(message, piece.end())):
            with suppress(MuxError):
                return _id_of({"id": payload.read_value(found[1])})
    return None


class Request(NamedTuple):
    """A request or a notification (`request_id` None)."""

    request_id: RequestId | None
    method: str
    params: Mapping[str, Any]
    modern: bool

    @property
    def meta(self) -> Mapping[str, Any]:
        """The request's `_meta`; empty if it has none."""
        meta = self.params.get("_meta")
        return meta if isinstance(meta, dict) else {}


def read(message: Any) -> Request | None:
    """Classify a decoded message; returns None for a response, because this server sends no requests.

    Raises Fault -32600 for anything that is not a message (including an array: only 2025-03-26 had batches) and -32602
    for params that are not an object. A notification is never refused.
    """
    if isinstance(message, list):
        raise Fault(INVALID_REQUEST, "batches are not part of the protocol; send one message at a time")
    if not isinstance(message, dict):
        raise Fault(INVALID_REQUEST, "a message must be a JSON object")
    if message.get("jsonrpc") != "2.0":
        raise Fault(INVALID_REQUEST, 'a message must have "jsonrpc": "2.0"', request_id=_id_of(message))
    method = message.get("method")
    if method is None and ("result" in message or "error" in message):
        return None
    if not isinstance(method, str):
        raise Fault(INVALID_REQUEST, "method must be a string", request_id=_id_of(message))
    if "id" not in message:
        params = message.get("params")
        return Request(None, method, params if isinstance(params, dict) else {}, False)
    return _read_request(message, method)


def _read_request(message: dict[str, Any], method: str) -> Request:
    request_id = _id_of(message)
    if request_id is None:
        raise Fault(INVALID_REQUEST, "id must be a string or an integer; omit it in a notification")
    params = message.get("params")
    if params is None:
        params = {}
    if not isinstance(params, dict):
        raise Fault(INVALID_PARAMS, "params must be an object", request_id=request_id)
    meta = params.get("_meta")
    modern = isinstance(meta, dict) and PROTOCOL_VERSION in meta and method != "initialize"
    return Request(request_id, method, params, modern)


def _id_of(message: dict[str, Any]) -> RequestId | None:
    """The message's id if it is valid (Overview, "Requests": a string or an integer), else None."""
    request_id = message.get("id")
    return request_id if isinstance(request_id, (str, int)) and not isinstance(request_id, bool) else None


def standard_headers(request: Request) -> dict[str, str]:
    """The HTTP headers that accompany a modern request; none for a legacy one."""
    if not request.modern:
        return {}
    headers = {"mcp-protocol-version": str(request.meta[PROTOCOL_VERSION]), "mcp-method": request.method}
    name = request.params.get(NAMED_BY.get(request.method, ""))
    if isinstance(name, str):
        headers["mcp-name"] = name
    return {header: encode_header(value) for header, value in headers.items()}


def encode_header(value: str) -> str:
    """Encode a text as a header value (2026-07-28, "Value Encoding")."""
    if value.isascii() and value.isprintable() and value == value.strip() and re.fullmatch(_ENCODED, value) is None:
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="


def decode_header(value: str) -> str:
    """Decode a header value; the message of the ValueError it raises says what is wrong."""
    match = re.fullmatch(_ENCODED, value)
    if match is None:
        if not (value.isascii() and value.isprintable()):
            raise ValueError("is not printable ASCII; send it as =?base64?...?=")
        return value
    try:
        return base64.b64decode(match[1], validate=True).decode()
    except ValueError:
        raise ValueError("is not base64 of UTF-8") from None


# -- what a server offers


class Desk(Protocol):
    """Performs operations: the daemon's `door`, or a stand-in for it."""

    def call(self, operation: Operation, given: Mapping[str, Any]) -> Any:
        """Perform an operation and return its answer; raises MuxError."""

    def unread(self, agent_id: str) -> int:
        """How many messages a poll of this agent would find; 0 if no agent has that name."""


class Session(NamedTuple):
    """The caller, and how to reach it while a call runs.

    `agent` is the calling agent, or "" if unknown; `client` is what the client program said about itself; `notify`
    sends a message ahead of the answer, or is None if the transport cannot.
    """

    desk: Desk
    agent: str = ""
    client: Mapping[str, str] = MappingProxyType({})
    notify: Callable[[dict[str, Any]], None] | None = None


class Context:
    """A request being handled; `arguments` are those of a tool or prompt, or the parts of a resource template."""

    def __init__(self, request: Request, session: Session) -> None:
        self.request = request
        self.session = session
        self.arguments: dict[str, Any] = {}

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """The capabilities that a modern client declares."""
        told = self.request.meta.get(CLIENT_CAPABILITIES)
        return told if isinstance(told, dict) else {}

    def notify(self, method: str, **params: Any) -> None:
        """Send a notification ahead of the answer, if the transport can."""
        if self.session.notify is not None:
            self.session.notify({"jsonrpc": "2.0", "method": method, "params": params})

    def progress(self, progress: float, total: float) -> None:
        """Report progress, if the client asked for it (Progress)."""
        token = self.request.meta.get("progressToken")
        if token is not None:
            self.notify("notifications/progress", progressToken=token, progress=progress, total=total)


Handler = Callable[[Context], dict[str, Any]]


class Tool(Record):
    """A tool: `listed` is its entry in tools/list; `run` returns a CallToolResult."""

    listed: dict[str, Any]
    run: Handler


class Resource(Record):
    """A resource: `listed` is its entry in a list, with a fixed `uri` or a `uriTemplate` that has parts in braces."""

    listed: dict[str, Any]
    run: Handler


class Prompt(Record):
    """A prompt: `listed` is its entry in prompts/list; `run` returns a GetPromptResult."""

    listed: dict[str, Any]
    run: Handler


class Method(Record):
    """One method: its handler, the generations that have it, the lifetime of its result, and whether it is quick.

    `ttl_ms` None means that the result is not cacheable; 0 means that the result sets its own lifetime or must not be
    cached.
    """

    run: Handler
    legacy: bool = True
    modern: bool = True
    ttl_ms: int | None = None
    quick: bool = True


class Registry:
    """Everything that one server offers. Entries in `methods` add to the layer's own methods and replace them."""

    def __init__(self, info: dict[str, str], instructions: str) -> None:
        self.info = info
        self.instructions = instructions
        self.tools: dict[str, Tool] = {}
        self.resources: dict[str, Resource] = {}
        self.templates: list[tuple[re.Pattern[str], Resource]] = []
        self.prompts: dict[str, Prompt] = {}
        self.methods: dict[str, Method] = {}
        self.capabilities: dict[str, Any] = {"tools": {}, "resources": {}, "prompts": {}}
        self.legacy_capabilities: dict[str, Any] = {}
        """What `initialize` lists in addition to `capabilities`, or instead of them."""

    def add(self, thing: Tool | Resource | Prompt) -> None:
        """Offer one more thing; lists keep the order in which things were added."""
        listed = thing.listed
        if isinstance(thing, Tool):
            self.tools[listed["name"]] = thing
        elif isinstance(thing, Prompt):
            self.prompts[listed["name"]] = thing
        elif "uri" in listed:
            self.resources[listed["uri"]] = thing
        else:
            self.templates.append((_template(listed["uriTemplate"]), thing))

    def find_resource(self, uri: str) -> tuple[Resource, dict[str, Any]] | None:
        """The resource at this URI and the parts of its template; None if there is none."""
        if uri in self.resources:
            return self.resources[uri], {}
        for pattern, resource in self.templates:
            if match := pattern.fullmatch(uri):
                return resource, {name: unquote(part) for name, part in match.groupdict().items()}
        return None


def _template(uri: str) -> re.Pattern[str]:
    """A pattern for `scheme://fixed/{part}` (RFC 6570 level 1)."""
    pieces = re.split(r"\{(\w+)\}", uri)
    return re.compile("".join(f"(?P<{piece}>[^/?#]+)" if n % 2 else re.escape(piece) for n, piece in enumerate(pieces)))


# -- answering


class Layer:
    """Answers requests from a registry. It has no other state, so any thread may use it."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._methods: dict[str, Method] = {
            "initialize": Method(self._initialize, modern=False),
            "ping": Method(lambda context: {}, modern=False),
            "server/discover": Method(self._discover, legacy=False, ttl_ms=LIST_TTL_MS),
            "tools/list": Method(self._list_tools, ttl_ms=LIST_TTL_MS),
            "tools/call": Method(self._call_tool, quick=False),
            "resources/list": Method(self._list_resources, ttl_ms=LIST_TTL_MS),
            "resources/templates/list": Method(self._list_templates, ttl_ms=LIST_TTL_MS),
            "resources/read": Method(self._read_resource, ttl_ms=0, quick=False),
            "prompts/list": Method(self._list_prompts, ttl_ms=LIST_TTL_MS),
            "prompts/get": Method(self._get_prompt, quick=False),
            **registry.methods,
        }

    def is_quick(self, request: Request) -> bool:
        """Whether the answer neither waits nor needs the store."""
        method = self._methods.get(request.method)
        return method is None or method.quick

    def answer(self, request: Request, session: Session) -> dict[str, Any]:
        """The response to a request (not to a notification, which gets none).

        Exceptions other than `Fault` and `MuxError` (a hang-up, a bug) are left to the caller.
        """
        assert request.request_id is not None
        try:
            result = self._result(request, session)
        except Fault as fault:
            fault.request_id = request.request_id
            return fault.response()
        return {"jsonrpc": "2.0", "id": request.request_id, "result": result}

    def _result(self, request: Request, session: Session) -> dict[str, Any]:
        method = self._methods.get(request.method)
        if request.modern:
            _check_envelope(request)
        if method is None or not (method.modern if request.modern else method.legacy):
            raise Fault(METHOD_NOT_FOUND, f"Method not found: {request.method[:128]}")
        result = method.run(Context(request, session))
        return self._dressed(result, method) if request.modern else result

    def _dressed(self, result: dict[str, Any], method: Method) -> dict[str, Any]:
        """Add the fields that 2026-07-28 requires in a result (Overview, "Result Responses"; Caching)."""
        dressed = {"resultType": "complete"} | result
        if method.ttl_ms is not None and dressed["resultType"] == "complete":
            scope = "public" if method.ttl_ms else "private"
            dressed = {"ttlMs": method.ttl_ms, "cacheScope": scope} | dressed
        dressed["_meta"] = {SERVER_INFO: self.registry.info} | dressed.get("_meta", {})
        return dressed

    # -- the handshake, and its modern replacement

    def _initialize(self, context: Context) -> dict[str, Any]:
        """2025-11-25, Lifecycle: answer with the client's version if it is supported, else with the newest one."""
        asked = context.request.params.get("protocolVersion")
        return {
            "protocolVersion": asked if asked in LEGACY else LEGACY[0],
            "capabilities": self.registry.capabilities | self.registry.legacy_capabilities,
            "serverInfo": self.registry.info,
            "instructions": self._instructions(context),
        }

    def _discover(self, context: Context) -> dict[str, Any]:
        """2026-07-28, Discovery. Older versions come last, for a client that knows none of the newer ones."""
        result = {
            "supportedVersions": list(SUPPORTED),
            "capabilities": self.registry.capabilities,
            "instructions": self._instructions(context),
        }
        return result | {"cacheScope": "private"} if context.session.agent else result

    def _instructions(self, context: Context) -> str:
        """The registry's, with the caller's name if it has one: a model would choose another one for itself."""
        agent = context.session.agent
        return self.registry.instructions + (f"Your agent_id is {agent}.\n" if agent else "")

    # -- lists

    def _list_tools(self, context: Context) -> dict[str, Any]:
        return _whole_list(context, "tools", [tool.listed for tool in self.registry.tools.values()])

    def _list_resources(self, context: Context) -> dict[str, Any]:
        return _whole_list(context, "resources", [found.listed for found in self.registry.resources.values()])

    def _list_templates(self, context: Context) -> dict[str, Any]:
        return _whole_list(context, "resourceTemplates", [found.listed for _, found in self.registry.templates])

    def _list_prompts(self, context: Context) -> dict[str, Any]:
        return _whole_list(context, "prompts", [prompt.listed for prompt in self.registry.prompts.values()])

    # -- single things

    def _call_tool(self, context: Context) -> dict[str, Any]:
        name = _text(context, "name")
        tool = self.registry.tools.get(name)
        if tool is None:
            close = ", ".join(nearest(name, self.registry.tools, most=3))
            raise Fault(INVALID_PARAMS, f"Unknown tool: {name[:128]}. Similar ones: {close}")
        context.arguments = _arguments(context)
        try:
            return tool.run(context)
        except MuxError as error:
            return {"content": [{"type": "text", "text": error.message}], "isError": True}

    def _read_resource(self, context: Context) -> dict[str, Any]:
        uri = _text(context, "uri")
        found = self.registry.find_resource(uri)
        if found is None:
            raise _no_resource(context, uri)
        resource, context.arguments = found
        try:
            return resource.run(context)
        except MuxError as error:
            if error.failure.http == 404:
                raise _no_resource(context, uri, error.message) from error
            raise Fault(INTERNAL_ERROR, error.message, error.body()["error"]) from error

    def _get_prompt(self, context: Context) -> dict[str, Any]:
        name = _text(context, "name")
        prompt = self.registry.prompts.get(name)
        if prompt is None:
            raise Fault(INVALID_PARAMS, f"Unknown prompt: {name[:128]}. Known: {', '.join(self.registry.prompts)}")
        context.arguments = _arguments(context)
        for argument in prompt.listed.get("arguments", ()):
            if argument.get("required") and argument["name"] not in context.arguments:
                raise Fault(INVALID_PARAMS, f"prompt {name} needs the argument {argument['name']}")
        if any(not isinstance(value, str) for value in context.arguments.values()):
            raise Fault(INVALID_PARAMS, "arguments of a prompt must be strings")
        return prompt.run(context)


def internal_fault(request_id: RequestId | None) -> Fault:
    """The error for an unexpected failure; its details go to the log only."""
    return Fault(
        INTERNAL_ERROR, "Internal error: the daemon failed on this request; its log has the reason", None, request_id
    )


def _check_envelope(request: Request) -> None:
    """2026-07-28, Overview, "Per-request protocol fields": version and capabilities on every request."""
    version = request.meta.get(PROTOCOL_VERSION)
    if not isinstance(version, str):
        raise Fault(INVALID_PARAMS, f"_meta must hold {PROTOCOL_VERSION} as a string")
    if version not in MODERN:
        data = {"supported": list(SUPPORTED), "requested": version[:64]}
        raise Fault(UNSUPPORTED_VERSION, "Unsupported protocol version", data)
    if not isinstance(request.meta.get(CLIENT_CAPABILITIES), dict):
        raise Fault(INVALID_PARAMS, f"_meta must hold {CLIENT_CAPABILITIES} as an object; {{}} if there are none")


def _whole_list(context: Context, name: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Lists are short and never paginated, so any cursor is invalid (Pagination)."""
    if context.request.params.get("cursor") is not None:
        raise Fault(INVALID_PARAMS, "Invalid cursor")
    return {name: entries}


def _text(context: Context, name: str) -> str:
    value = context.request.params.get(name)
    if not isinstance(value, str):
        raise Fault(INVALID_PARAMS, f"{name} must be a string")
    return value


def _arguments(context: Context) -> dict[str, Any]:
    arguments = context.request.params.get("arguments")
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise Fault(INVALID_PARAMS, "arguments must be an object")
    return dict(arguments)


def _no_resource(context: Context, uri: str, why: str = "") -> Fault:
    """Resources, "Error Handling": -32602 since 2026-07-28, -32002 before."""
    code = INVALID_PARAMS if context.request.modern else LEGACY_RESOURCE_NOT_FOUND
    return Fault(code, f"Resource not found: {shown(uri)}{f': {why}' if why else ''}", {"uri": uri[:256]})
