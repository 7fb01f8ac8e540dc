"""One attempt at a delivery: resolve, judge every address, connect to a judged one, send, read a status.

Nobody at the other end is trusted (`oneshot`). The connection goes to the address that was judged and not to the name
once more; of the answer, the body is read up to 4 KiB.
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
"""How long the rest of an answer is waited for whose status is known: some servers mind when they are cut short."""
MOST_RETRY_AFTER_S = 3600
_HEEDED = (429, 502, 503, 504)
"""Statuses whose Retry-After counts."""


class Attempt:
    """An attempt that another thread may cut short."""

    def __init__(self, policy: Policy, *, connect_ms: int, total_ms: int) -> None:
        self._policy = policy
        self._connect_ms = connect_ms
        self._talk = Talk(total_ms)

    def cut(self) -> None:
        """End it at once."""
        self._talk.cut()

    @property
    def was_cut(self) -> bool:
        """Whether it was ended from outside, so that its outcome means nothing."""
        return self._talk.was_cut

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Deliver; never raises."""
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
        # The daemon itself, under any address of this machine: then both ends of the connection have the same one.
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
    """Seconds, from a number or a date; at most an hour."""
    if re.fullmatch("[0-9]{1,12}", text):
        return min(int(text), MOST_RETRY_AFTER_S)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - oneshot.clock.wall_ms() / 1000
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0, round(seconds)), MOST_RETRY_AFTER_S)
