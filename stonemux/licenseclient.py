"""The client of a license server: one request, one answer, and three seconds for both together.

Whatever the server does, this ends in time (`oneshot`) and reports every failure with one exception.
"""

from __future__ import annotations

import json
from typing import Any

from stonemux import addresses, oneshot
from stonemux.oneshot import Talk, Trouble

PATIENCE_MS = 3_000
MOST_ANSWER = 32 * 1024


class NoUse(Exception):
    """The request failed; the text says why. `status` is the server's (0 without one), and `answer` its JSON."""

    def __init__(self, why: str, status: int = 0, answer: Any = None) -> None:
        super().__init__(why)
        self.status = status
        self.answer = answer


def post(server: str, path: str, body: dict[str, Any], *, patience_ms: int = PATIENCE_MS) -> dict[str, Any]:
    """The JSON object that the server answers with status 200. Raises NoUse."""
    try:
        target = addresses.parse(server + path)
        with Talk(patience_ms) as talk:
            talk.connect(target, talk.look_up(target))
            talk.secure(target)
            head = talk.post(target, {}, json.dumps(body).encode())
            data = talk.body(MOST_ANSWER + 1 if head.length is None else min(head.length, MOST_ANSWER + 1))
    except (Trouble, OSError, ValueError) as trouble:
        raise NoUse(oneshot.in_words(trouble)) from trouble
    if len(data) > MOST_ANSWER:
        raise NoUse("its answer is too long", head.status)
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if head.status != 200 or type(answer) is not dict:
        raise NoUse(f"it answered with status {head.status}", head.status, answer)
    return answer
