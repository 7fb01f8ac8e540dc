"""One delivery attempt: resolve the host, judge every address, connect to a judged one, send, read the status.

The other end is never trusted (`oneshot`). The connection goes to an address that was judged; the name is not resolved
again. At most 4 KiB of the answer's body are read.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from stonemux import addresses, oneshot
from stonemux.addresses import Policy, Target
from stonemux.endpoints import Outcome
from stonemux.oneshot import Head, Talk, Trouble

MOST_BODY_BYTES = 4096
CLOSING_MS = 500
"""How long to wait for the rest of an answer once its status is known: some servers object to being cut off."""
MOST_RETRY_AFTER_S = 3600
_HEEDED = (429, 502, 503, 504)
"""Statuses whose Retry-After is obeyed."""


class Attempt:
    """One attempt, which another thread may cut short."""

    def __init__(self, policy: Policy, *, connect_ms: int, total_ms: int) -> None:
        self._policy = policy
        self._connect_ms = connect_ms
        self._talk = Talk(total_ms)

    def cut(self) -> None:
        """End the attempt at once."""
        self._talk.cut()

    @property
    def was_cut(self) -> bool:
        """Whether it was ended from outside, so that its outcome is meaningless."""
        return self._talk.was_cut

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Make the attempt; never raises."""
        status: int | None = None
        error, retry_after = "", None
        try:
            target = addresses.check(url, self._policy)
            with self._talk:
                head = self._exchange(target, headers, body)
            status = head.status
            error = _verdict(status)
            if status in _HEEDED:
                retry_after = _retry_after(head.fields.get("retry-after", ""))
        except addresses.ForbiddenURL as problem:
            error = f"its URL {problem}"
        except (Trouble, OSError) as failed:
            error = oneshot.in_words(failed)
        return Outcome(status, error, self._talk.spent_ms, retry_after, gone=status == 410)

    def _exchange(self, target: Target, headers: Mapping[str, str], body: bytes) -> Head:
        talk = self._talk
        found = talk.look_up(target)
        addresses.judge_all(target, found, self._policy)
        sock = talk.connect(target, found, most_ms=self._connect_ms)
        # The daemon itself, at any address of this machine: then both ends of the connection have the same address.
        if target.port == self._policy.own_port and sock.getsockname()[0] == sock.getpeername()[0]:
            raise addresses.ForbiddenURL("leads to the daemon's own port")
        talk.secure(target)
        head = talk.post(target, headers, body)
        talk.hurry(CLOSING_MS)
        with contextlib.suppress(OSError):
            talk.body(MOST_BODY_BYTES if head.length is None else min(head.length, MOST_BODY_BYTES))
        return head


def _verdict(status: int) -> str:
    if 200 <= status < 300:
        return ""
    if status < 400:
        return f"status {status}: redirects are not followed"
    return f"status {status}"


def _retry_after(text: str) -> int | None:
    """Seconds, from a number or an HTTP date; at most an hour."""
    if re.fullmatch("[0-9]{1,12}", text):
        return min(int(text), MOST_RETRY_AFTER_S)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - oneshot.clock.wall_ms() / 1000
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0, round(seconds)), MOST_RETRY_AFTER_S)
