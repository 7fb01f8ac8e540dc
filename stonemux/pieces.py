"""A runner's pieces of work, tasks and messages, and how their outcome is reported to the daemon."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from stonemux.client import Client
from stonemux.clock import moment
from stonemux.errors import MuxError
from stonemux.vocabulary import generate_agent_channel_name

MOST_RESULT = 65_536
"""How many bytes a result may have unless the daemon says otherwise; a longer one is kept in full as a document."""


class Piece(Protocol):
    """A task or message to work on, and how its outcome is reported to the daemon."""

    name: str
    told: dict[str, Any]
    """What the command reads on standard input."""
    environ: dict[str, str]
    lease_ms: int

    def is_ended_by(self, event: Mapping[str, Any]) -> bool:
        """Whether this `task_cancelled` event says that the work is no longer wanted."""

    def extend(self, client: Client) -> str:
        """Renew the lease; returns "" or `cancelled`."""

    def complete(self, client: Client, output: str) -> str:
        """Report that the command succeeded; returns the resulting state, in one word."""

    def fail(self, client: Client, why: str) -> str:
        """Report that the command failed."""

    def give_back(self, client: Client, why: str, delay_s: int) -> str:
        """Give it back so that another agent may take it."""


class ClaimedTask:
    """A claimed task. Its calls carry idempotency keys, so a repeated report takes effect once."""

    def __init__(self, claim: Mapping[str, Any], *, retry: bool) -> None:
        """`retry`: a failed task is tried again, until its attempts are used up."""
        self.told: dict[str, Any] = dict(claim["task"])
        self.name = f"task {claim['task_id']}"
        self._id: str = claim["task_id"]
        self._token: str = claim["claim_token"]
        self._retry = retry
        self._since = moment(self.told["claimed_at"])
        self.lease_ms = moment(self.told["lease_expires_at"]) - self._since
        self.environ = {
            "STONEMUX_TASK_ID": self._id,
            "STONEMUX_CLAIM_TOKEN": self._token,
            "STONEMUX_CHANNEL": self.told["channel"],
            "STONEMUX_FROM": self.told["posted_by"],
        }

    def is_ended_by(self, event: Mapping[str, Any]) -> bool:
        """Whether this claim was cancelled; an earlier event was about a task that has been put back since."""
        return event["data"]["task_id"] == self._id and moment(event["at"]) >= self._since

    def extend(self, client: Client) -> str:
        """Renew the lease of the claim; returns `cancelled` if the task's poster no longer wants the work."""
        told = client.task_extend(task_id=self._id, claim_token=self._token)
        return "cancelled" if told.get("cancelled") else ""

    def complete(self, client: Client, output: str) -> str:
        """Complete the task with the output as its result; output that is too long is kept in full as a document."""

        def tell(result: str, limit: int, document: str) -> None:
            client.task_complete(
                task_id=self._id,
                claim_token=self._token,
                result=result,
                idempotency_key=self._key(f"complete-{limit}"),
            )

        _fit(client, output, self._key("document"), tell)
        return "complete"

    def fail(self, client: Client, why: str) -> str:
        """Report a failure: the task has failed, or is put back to be tried again."""
        told = client.task_complete(
            task_id=self._id,
            claim_token=self._token,
            status="failed",
            result=why,
            retry=self._retry,
            idempotency_key=self._key("fail"),
        )
        return "failed" if told["status"] == "failed" else "failed, to be retried"

    def give_back(self, client: Client, why: str, delay_s: int) -> str:
        """Put the task back into the pool, claimable after `delay_s` seconds."""
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
    """A leased message. After a failure it is redelivered, later each time, until it is a dead letter."""

    def __init__(self, message: Mapping[str, Any], lease_s: int, *, reply: bool, emit: Callable[[str], None]) -> None:
        """`reply`: send the output to the sender of the message; otherwise pass it to `emit`."""
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

    def is_ended_by(self, event: Mapping[str, Any]) -> bool:
        """Never: a message cannot be cancelled."""
        return False

    def extend(self, client: Client) -> str:
        """Renew the lease; a message cannot be cancelled."""
        client.msg_extend(id=self._id, lease=self._lease_s)
        return ""

    def complete(self, client: Client, output: str) -> str:
        """Acknowledge the message, after the output has been passed on."""
        if not self._reply:
            self._emit(f"{output}\n" if output else "")
        elif output and not self._answer(client, output):
            self._emit(f"{output}\n")
            client.msg_ack(ids=[self._id])
            return "acknowledged, but its sender is gone"
        client.msg_ack(ids=[self._id])
        return "answered" if self._reply else "acknowledged"

    def _answer(self, client: Client, output: str) -> bool:
        """Send the output to the sender: in the message's channel or, if the sender is no member there, in its own.

        False if the sender is not registered: then there is nobody to answer.
        """
        own = generate_agent_channel_name(self.told["from"])
        for name, channel in (("reply", self.told["channel"]), ("reply-own", own)):
            try:
                self._send(client, output, name, channel)
                return True
            except MuxError as error:
                if error.code == "agent_not_found":
                    return False
                if error.code != "not_in_channel":
                    raise
        return False

    def _send(self, client: Client, output: str, name: str, channel: str) -> None:
        key = f"run-message-{self._id}"

        def tell(content: str, limit: int, document: str) -> None:
            client.msg_send(
                to=self.told["from"],
                content=None if document else content,
                content_ref=document or None,
                channel=channel,
                reply_to=self._id,
                idempotency_key=f"{key}-{name}-{limit}",
            )

        _fit(client, output, f"{key}-document", tell)

    def fail(self, client: Client, why: str) -> str:
        """Put it back, with a longer delay each time."""
        client.msg_nack(id=self._id, delay=min(2 ** self.told.get("deliveries", 1), 600))
        return "put back"

    def give_back(self, client: Client, why: str, delay_s: int) -> str:
        """Put it back, to be redelivered after `delay_s` seconds."""
        client.msg_nack(id=self._id, delay=delay_s)
        return "put back"


def _fit(client: Client, output: str, key: str, tell: Callable[[str, int, str], None]) -> None:
    """Call `tell` with the output, 0, and ""; or with what fits of it, the limit, and the document that has the whole.

    The document is "" if the daemon refuses it. `tell` is called again if the daemon's limit is lower than was thought.
    """
    size = len(output.encode())
    limit, document = 0 if size <= MOST_RESULT else MOST_RESULT, ""
    while True:
        if limit and not document:
            document = _document(client, output, key)
        whole = f"; the whole is {document}" if document else ""
        try:
            tell(_cut(output, limit, f"\n[{size} bytes in all{whole}]") if limit else output, limit, document)
            return
        except MuxError as error:
            told = error.facts.get("limit")
            if error.facts.get("parameter") not in ("result", "content") or not isinstance(told, int) or told == limit:
                raise
            limit = told


def _cut(text: str, limit: int, note: str) -> str:
    """The beginning of a text, followed by a note, in at most `limit` bytes."""
    return text.encode()[: max(0, limit - len(note.encode()))].decode(errors="ignore") + note


def _document(client: Client, text: str, key: str) -> str:
    """Store a text as a document and return its id; "" if the daemon refuses it, for example for its size."""
    try:
        made = client.document_create(content=text, title="output of a command", idempotency_key=key)
    except MuxError as error:
        if error.code == "unreachable":
            raise
        return ""
    return made["document"]["id"]
