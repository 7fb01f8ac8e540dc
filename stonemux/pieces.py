"""What a runner has in hand: a task or a message, and how the daemon is told what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from stonemux.client import Client
from stonemux.clock import moment
from stonemux.errors import MuxError

MOST_RESULT = 65_536
"""Bytes that a result may have, unless the daemon says otherwise; of what is longer, a document keeps the whole."""


class Piece(Protocol):
    """Something to do: a task or a message, and how the daemon is told what became of it."""

    name: str
    told: dict[str, Any]
    """What the command reads."""
    environ: dict[str, str]
    lease_ms: int

    def extend(self, client: Client) -> str:
        """Keep it for another lease; returns "" or `cancelled`."""

    def complete(self, client: Client, output: str) -> str:
        """The command succeeded; returns what that made of it, in a word."""

    def fail(self, client: Client, why: str) -> str:
        """The command failed."""

    def give_back(self, client: Client, why: str, delay_s: int) -> str:
        """Somebody else may do it."""


class ClaimedTask:
    """A claimed task. Its calls carry keys of their own, so that telling twice happens once."""

    def __init__(self, claim: Mapping[str, Any], *, retry: bool) -> None:
        """`retry`: one that fails is tried again, until its attempts end."""
        self.told: dict[str, Any] = dict(claim["task"])
        self.name = f"task {claim['task_id']}"
        self._id: str = claim["task_id"]
        self._token: str = claim["claim_token"]
        self._retry = retry
        self.lease_ms = moment(self.told["lease_expires_at"]) - moment(self.told["claimed_at"])
        self.environ = {
            "STONEMUX_TASK_ID": self._id,
            "STONEMUX_CLAIM_TOKEN": self._token,
            "STONEMUX_CHANNEL": self.told["channel"],
            "STONEMUX_FROM": self.told["posted_by"],
        }

    def extend(self, client: Client) -> str:
        """Restart the lease of the claim; `cancelled` when its poster no longer wants the work."""
        told = client.task_extend(task_id=self._id, claim_token=self._token)
        return "cancelled" if told.get("cancelled") else ""

    def complete(self, client: Client, output: str) -> str:
        """The output is the result; of one that is too long, a document keeps the whole."""
        size = len(output.encode())
        limit, document = None if size <= MOST_RESULT else MOST_RESULT, ""
        while True:
            if limit is not None and not document:
                document = _document(client, output, self._key("document"))
            whole = f"; the whole is {document}" if document else ""
            result = output if limit is None else _cut(output, limit, f"\n[{size} bytes in all{whole}]")
            try:
                client.task_complete(
                    task_id=self._id,
                    claim_token=self._token,
                    result=result,
                    idempotency_key=self._key(f"complete-{limit or 0}"),
                )
                return "complete"
            except MuxError as error:
                told = error.facts.get("limit")
                if error.facts.get("parameter") != "result" or not isinstance(told, int) or told == limit:
                    raise
                limit = told

    def fail(self, client: Client, why: str) -> str:
        """It has failed, or goes back to be tried again."""
        told = client.task_complete(
            task_id=self._id,
            claim_token=self._token,
            status="failed",
            result=why,
            retry=self._retry,
            idempotency_key=self._key("fail"),
        )
        return "failed" if told["status"] == "failed" else "failed, to be tried again"

    def give_back(self, client: Client, why: str, delay_s: int) -> str:
        """Back to the pool, claimable after so many seconds."""
        client.task_release(
            task_id=self._id,
            claim_token=self._token,
            reason=why,
            delay=delay_s,
            idempotency_key=self._key("release"),
        )
        return "given back"

    def _key(self, act: str) -> str:
        return f"run-{self._token}-{act}"


class LeasedMessage:
    """A message on a lease. One that fails comes again, later each time, until it is a dead letter."""

    def __init__(self, message: Mapping[str, Any], lease_s: int, *, reply: bool, emit: Callable[[str], None]) -> None:
        """`reply`: the output goes back to the sender, else to `emit`."""
        self.told: dict[str, Any] = dict(message)
        self.name = f"message {message['id']}"
        self._id: int = message["id"]
        self._lease_s = lease_s
        self.lease_ms = lease_s * 1000
        self._reply = reply
        self._emit = emit
        self.environ = {
            "STONEMUX_MESSAGE_ID": str(self._id),
            "STONEMUX_FROM": message["from"],
            "STONEMUX_CHANNEL": message["channel"],
        }

    def extend(self, client: Client) -> str:
        """Restart the lease; nobody cancels a message."""
        client.msg_extend(id=self._id, lease=self._lease_s)
        return ""

    def complete(self, client: Client, output: str) -> str:
        """Acknowledge it, once the output has gone where it is wanted."""
        if not self._reply:
            self._emit(f"{output}\n" if output else "")
        elif output:
            key = f"run-message-{self._id}"
            document = _document(client, output, f"{key}-document") if len(output.encode()) > MOST_RESULT else ""
            client.msg_send(
                to=self.told["from"],
                content=None if document else output,
                content_ref=document or None,
                channel=self.told["channel"],
                reply_to=self._id,
                idempotency_key=f"{key}-reply",
            )
        client.msg_ack(ids=[self._id])
        return "answered" if self._reply else "acknowledged"

    def fail(self, client: Client, why: str) -> str:
        """Put it back, for longer each time."""
        client.msg_nack(id=self._id, delay=min(2 ** self.told.get("deliveries", 1), 600))
        return "put back"

    def give_back(self, client: Client, why: str, delay_s: int) -> str:
        """Put it back, to be delivered again after so many seconds."""
        client.msg_nack(id=self._id, delay=delay_s)
        return "put back"


def _cut(text: str, limit: int, note: str) -> str:
    """The beginning of a text, with a note, in so many bytes."""
    return text.encode()[: max(0, limit - len(note.encode()))].decode(errors="ignore") + note


def _document(client: Client, text: str, key: str) -> str:
    """Keep a text as a document and return its id; "" where the daemon takes none of that size."""
    try:
        made = client.document_create(content=text, title="output of a command", idempotency_key=key)
    except MuxError as error:
        if error.code == "unreachable":
            raise
        return ""
    return made["document"]["id"]
