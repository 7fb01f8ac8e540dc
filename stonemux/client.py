"""A caller's side of the HTTP face, for commands that ask a running daemon."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlencode

from stonemux.errors import FAILURES, MuxError
from stonemux.schema import Operation


def ask(host: str, port: int, operation: Operation, given: dict[str, Any], *, timeout: float = 10.0) -> dict[str, Any]:
    """Call one operation on a daemon and return its answer.

    Raises the MuxError that the daemon answered, or `unreachable` when none answers within `timeout` seconds.
    """
    query = f"?{urlencode(given)}" if operation.method == "GET" and given else ""
    body = json.dumps(given) if operation.method == "POST" else None
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request(operation.method, operation.path + query, body, headers)
        response = connection.getresponse()
        data = response.read()
        if response.getheader("X-Request-Id") is None:
            raise ValueError("another server")
        answer = json.loads(data)
    except (OSError, http.client.HTTPException, ValueError) as trouble:
        raise MuxError(
            "unreachable",
            f"no stonemux daemon answers at {host}:{port} ({trouble}); start one with: python -m stonemux serve",
        ) from trouble
    finally:
        connection.close()
    if response.status == 200:
        return answer  # type: ignore[no-any-return]
    error = answer["error"]
    code = error.pop("code")
    raise MuxError(code if code in FAILURES else "internal", error.pop("message"), **error)
