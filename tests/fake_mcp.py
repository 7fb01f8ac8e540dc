"""An MCP server over stdio that behaves as its first argument says; it needs only the standard library."""

import json
import sys


def answer(request: dict, result: object) -> None:
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)


def good(request: dict) -> None:
    """Four tools on two pages, mixed with other messages."""
    print(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}), flush=True)
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "method": "ping"}), flush=True)
    if request["method"] == "initialize":
        answer(request, {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "fake"}})
    elif request["params"].get("cursor"):
        answer(request, {"tools": [{"name": "c"}, {"name": "d"}]})
    else:
        answer(request, {"tools": [{"name": "a"}, {"name": "b"}], "nextCursor": "2"})


def die(request: dict) -> None:
    print(*(f"line {number}" for number in range(40)), "no such database", sep="\n", file=sys.stderr)
    sys.exit(7)


def chatter(request: dict) -> None:
    print("Welcome!", flush=True)


def refuse(request: dict) -> None:
    error = {"code": -32602, "message": "not today", "data": {"code": "token_missing"}}
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}), flush=True)


def odd(request: dict) -> None:
    answer(request, {"tools": [3]})


if __name__ == "__main__":
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message:
            globals()[sys.argv[1]](message)
