"""The operations as typed methods; the Python client inherits them.

Generated from the operation table; `make docs` rewrites it. Arguments are keywords, and what is left out has the
table's default. Where it says *the client's agent*, `Client(agent=...)` fills in what is left out. Answers are plain
dicts, described by the TypedDicts below; a refusal raises `MuxError`. `events.stream` is `Client.events`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

Names = list[str] | tuple[str, ...]
Ids = list[int] | tuple[int, ...]


class Agent(TypedDict):
    """A record that several operations answer with."""

    id: str
    role: str | None
    capabilities: list[str]
    group: str | None
    channel: str
    status: str
    registered_at: str
    last_heartbeat: str
    activity: NotRequired[str]
    ack: NotRequired[str]
    metadata: NotRequired[dict[str, Any]]


class AgentRegisterAnswer(TypedDict):
    """What agent.register answers."""

    agent: Agent
    created: bool
    webhook_secret: NotRequired[str]


class AgentDeregisterAnswer(TypedDict):
    """What agent.deregister answers."""

    agent_id: str
    deregistered: bool
    pending_messages: int
    released_claims: NotRequired[int]


class AgentHeartbeatAnswer(TypedDict):
    """What agent.heartbeat answers."""

    agent_id: str
    status: str
    last_heartbeat: str


class AgentDiscoverAnswer(TypedDict):
    """What agent.discover answers."""

    agents: list[Agent]


class Doorbell(TypedDict):
    """A record that several operations answer with."""

    id: str
    url: str
    status: str
    failures: NotRequired[int]
    last_error: NotRequired[str]
    pending: NotRequired[int]


class AgentGetAnswerAgent(Agent):
    """Part of what agent.get answers."""

    unread: int
    claimed_tasks: int
    channels: list[str]
    agent_channel: str
    doorbell: NotRequired[Doorbell]


class AgentGetAnswer(TypedDict):
    """What agent.get answers."""

    agent: AgentGetAnswerAgent


class AgentNotifyAnswer(TypedDict):
    """What agent.notify answers."""

    message_id: int
    channel: str


class MsgSendAnswerRecipient(TypedDict):
    """Part of what msg.send answers."""

    agent_id: str
    status: str


class MsgSendAnswer(TypedDict):
    """What msg.send answers."""

    message_id: int
    sent_at: str
    recipient_status: NotRequired[str]
    recipients: NotRequired[list[MsgSendAnswerRecipient]]


class MsgBroadcastAnswer(TypedDict):
    """What msg.broadcast answers."""

    message_id: int
    sent_at: str
    recipients: int
    recipient_ids: list[str]


Message = TypedDict(
    "Message",
    {
        "id": int,
        "from": str,
        "to": str,
        "content": str,
        "channel": str,
        "sent_at": str,
        "subject": NotRequired[str],
        "type": NotRequired[str],
        "thread": NotRequired[str],
        "reply_to": NotRequired[int],
        "priority": NotRequired[int],
        "content_ref": NotRequired[str],
        "truncated": NotRequired[bool],
        "mentions": NotRequired[list[str]],
        "metadata": NotRequired[dict[str, Any]],
    },
)
"""A record that several operations answer with."""


class MsgPollAnswerMessage(Message):
    """Part of what msg.poll answers."""

    deliveries: NotRequired[int]
    redelivered: NotRequired[bool]


class MsgPollAnswer(TypedDict):
    """What msg.poll answers."""

    messages: list[MsgPollAnswerMessage]
    more: NotRequired[bool]


class MsgAckAnswer(TypedDict):
    """What msg.ack answers."""

    acked: int


class MsgNackAnswer(TypedDict):
    """What msg.nack answers."""

    id: int
    status: str


class MsgExtendAnswer(TypedDict):
    """What msg.extend answers."""

    id: int
    lease_expires_at: str


class MsgDeadAnswerMessage(Message):
    """Part of what msg.dead answers."""

    deliveries: int
    reason: str
    died_at: str


class MsgDeadAnswer(TypedDict):
    """What msg.dead answers."""

    messages: list[MsgDeadAnswerMessage]
    more: NotRequired[bool]


class MsgRequeueAnswer(TypedDict):
    """What msg.requeue answers."""

    requeued: int


class MsgStatusAnswerRecipient(TypedDict):
    """Part of what msg.status answers."""

    agent_id: str
    status: str
    deliveries: NotRequired[int]
    at: NotRequired[str]
    reason: NotRequired[str]


class MsgStatusAnswer(TypedDict):
    """What msg.status answers."""

    message_id: int
    sent_at: str
    recipients: list[MsgStatusAnswerRecipient]


class MsgListAnswer(TypedDict):
    """What msg.list answers."""

    messages: list[Message]
    more: NotRequired[bool]


class MsgSearchAnswerResult(Message):
    """Part of what msg.search answers."""

    excerpt: str


class MsgSearchAnswer(TypedDict):
    """What msg.search answers."""

    results: list[MsgSearchAnswerResult]


class TaskHandoff(TypedDict):
    """A record that several operations answer with."""

    agent_id: str
    note: str
    at: str
    branch: NotRequired[str]
    worktree: NotRequired[str]
    waiting_on: NotRequired[int]


class Task(TypedDict):
    """A record that several operations answer with."""

    task_id: str
    description: str
    posted_by: str
    required_capability: str | None
    priority: int
    channel: str
    metadata: dict[str, Any]
    status: str
    assigned_to: str | None
    claimed_by: str | None
    attempts: int
    result: str | None
    created_at: str
    claimed_at: str | None
    lease_expires_at: str | None
    completed_at: str | None
    max_attempts: int
    error: NotRequired[str]
    handoff: NotRequired[TaskHandoff]
    waiting_on: NotRequired[int]
    available_at: NotRequired[str]


class TaskPostAnswer(TypedDict):
    """What task.post answers."""

    task_id: str
    task: Task


class TaskClaimAnswer(TypedDict):
    """What task.claim answers."""

    task_id: str | None
    task: Task | None
    claim_token: NotRequired[str]


class Ended(TypedDict):
    """A record that several operations answer with."""

    task_id: str
    status: str
    task: Task


class TaskCompleteAnswer(Ended):
    """What task.complete answers."""

    replayed: NotRequired[bool]


class TaskExtendAnswer(TypedDict):
    """What task.extend answers."""

    task_id: str
    lease_expires_at: NotRequired[str]
    cancelled: NotRequired[bool]
    task: Task


class TaskDispatchAnswerResultChannel(TypedDict):
    """Part of what task.dispatch answers."""

    id: str
    name: str


class TaskDispatchAnswerResult(TypedDict):
    """Part of what task.dispatch answers."""

    task: Task
    agent: Agent
    channel: TaskDispatchAnswerResultChannel
    notification: Message
    is_new_assignment: bool
    dispatched_at: str
    claim_token: NotRequired[str]


class TaskDispatchAnswer(TypedDict):
    """What task.dispatch answers."""

    results: list[TaskDispatchAnswerResult]


class TaskListAnswer(TypedDict):
    """What task.list answers."""

    tasks: list[Task]
    more: NotRequired[bool]


class History(TypedDict):
    """A record that several operations answer with."""

    at: str
    act: str
    agent_id: str | None
    attempt: NotRequired[int]
    note: NotRequired[str]


class TaskGetAnswerTask(Task):
    """Part of what task.get answers."""

    depends_on: NotRequired[list[str]]
    history: list[History]


class TaskGetAnswer(TypedDict):
    """What task.get answers."""

    task: TaskGetAnswerTask


class Record(TypedDict):
    """A record that several operations answer with."""

    key: str
    value: str
    version: int
    updated_by: str | None
    updated_at: str
    channel: str


class StateWatchAnswer(TypedDict):
    """What state.watch answers."""

    changed: bool
    key: str
    channel: str
    version: int
    value: NotRequired[str | None]
    updated_by: NotRequired[str | None]
    updated_at: NotRequired[str]
    deleted: NotRequired[bool]
    reset: NotRequired[bool]


class StateDeleteAnswer(TypedDict):
    """What state.delete answers."""

    key: str
    channel: str
    version: int
    deleted: bool


class StateListAnswer(TypedDict):
    """What state.list answers."""

    keys: list[Record]
    more: NotRequired[bool]


class VersionRow(TypedDict):
    """A record that several operations answer with."""

    version: int
    value: str | None
    updated_by: str | None
    updated_at: str
    deleted: NotRequired[bool]


class StateHistoryAnswer(TypedDict):
    """What state.history answers."""

    key: str
    channel: str
    versions: list[VersionRow]


class Channel(TypedDict):
    """A record that several operations answer with."""

    id: str
    name: str
    description: str | None
    members: list[str]
    memberIds: list[str]
    created_by: str | None
    created_at: str
    tags: NotRequired[list[str]]


class ChannelCreateAnswer(TypedDict):
    """What channel.create answers."""

    channel: Channel


class ChannelRow(TypedDict):
    """A record that several operations answer with."""

    id: str
    name: str
    description: str | None
    members: int
    created_by: str | None
    created_at: str
    tags: NotRequired[list[str]]


class ChannelListAnswer(TypedDict):
    """What channel.list answers."""

    channels: list[ChannelRow]


class ChannelGetAnswer(TypedDict):
    """What channel.get answers."""

    channel: Channel


class ChannelJoinAnswer(TypedDict):
    """What channel.join answers."""

    channel: Channel


class ChannelLeaveAnswer(TypedDict):
    """What channel.leave answers."""

    channel: Channel


class ChannelMessagesAnswer(TypedDict):
    """What channel.messages answers."""

    messages: list[Message]
    more: NotRequired[bool]


class Document(TypedDict):
    """A record that several operations answer with."""

    id: str
    content_type: str
    title: str | None
    tags: list[str]
    created_by: str | None
    created_at: str
    size: int


class DocumentCreateAnswer(TypedDict):
    """What document.create answers."""

    document: Document


class DocumentGetAnswerDocument(Document):
    """Part of what document.get answers."""

    content: str


class DocumentGetAnswer(TypedDict):
    """What document.get answers."""

    document: DocumentGetAnswerDocument


Item = TypedDict(
    "Item",
    {
        "id": str,
        "message_id": int,
        "from": str,
        "channel": str,
        "status": str,
        "received_at": str,
        "subject": NotRequired[str],
        "type": NotRequired[str],
        "thread": NotRequired[str],
        "reply_to": NotRequired[int],
        "priority": NotRequired[int],
        "content_ref": NotRequired[str],
        "truncated": NotRequired[bool],
        "mentioned": NotRequired[bool],
    },
)
"""A record that several operations answer with."""


class InboxListAnswerItem(Item):
    """Part of what inbox.list answers."""

    preview: str


class WholeItem(Item):
    """A record that several operations answer with."""

    content: str
    metadata: NotRequired[dict[str, Any]]


class InboxListAnswer(TypedDict):
    """What inbox.list answers."""

    items: list[InboxListAnswerItem | WholeItem]
    unread: int
    more: NotRequired[bool]


class InboxShowAnswer(TypedDict):
    """What inbox.show answers."""

    item: WholeItem


class InboxUpdateAnswer(TypedDict):
    """What inbox.update answers."""

    updated: int


class Event(TypedDict):
    """A record that several operations answer with."""

    id: int
    type: str
    channel: str | None
    at: str
    data: dict[str, Any]


class EventsListAnswer(TypedDict):
    """What events.list answers."""

    events: list[Event]
    head: int
    next: int
    more: NotRequired[bool]
    gap: NotRequired[dict[str, Any]]
    reset: NotRequired[dict[str, Any]]


class Webhook(TypedDict):
    """A record that several operations answer with."""

    id: str
    url: str
    types: NotRequired[list[str]]
    channel: NotRequired[str]
    ordered: bool
    status: str
    cursor: int
    retrying: int
    retry_at: NotRequired[str]
    dead: int
    dead_event_ids: NotRequired[list[int]]
    failures: NotRequired[int]
    last_error: NotRequired[str]
    disabled_for: NotRequired[str]
    created_at: str


class WebhookAddAnswer(TypedDict):
    """What webhook.add answers."""

    webhook: Webhook
    created: bool
    secret: NotRequired[str]


class WebhookListAnswer(TypedDict):
    """What webhook.list answers."""

    webhooks: list[Webhook]


class WebhookRemoveAnswer(TypedDict):
    """What webhook.remove answers."""

    id: str
    removed: bool


Attempt = TypedDict(
    "Attempt",
    {
        "attempt_id": int,
        "id": str,
        "agent_id": NotRequired[str],
        "webhook_id": str,
        "type": str,
        "message_id": NotRequired[int],
        "event_id": NotRequired[int],
        "try": int,
        "outcome": str,
        "status": int | None,
        "at": str,
        "ms": int,
        "error": NotRequired[str],
        "retry_at": NotRequired[str],
    },
)
"""A record that several operations answer with."""


class WebhookAttemptsAnswer(TypedDict):
    """What webhook.attempts answers."""

    attempts: list[Attempt]
    more: NotRequired[bool]


class WebhookReplayAnswer(TypedDict):
    """What webhook.replay answers."""

    id: str
    queued: int
    since: NotRequired[int]


class StatsAnswerAgents(TypedDict):
    """Part of what stats answers."""

    active: int
    stale: int
    total: int


class StatsAnswerMessages(TypedDict):
    """Part of what stats answers."""

    stored: int
    sent: int
    unread: int


class StatsAnswerTasks(TypedDict):
    """Part of what stats answers."""

    pending: int
    waiting: int
    claimed: int
    complete: int
    failed: int
    cancelled: int


class StatsAnswerDoorbells(TypedDict):
    """Part of what stats answers."""

    hung: int
    pending: int


class StatsAnswerForwarding(TypedDict):
    """Part of what stats answers."""

    endpoints: int
    retrying: int
    dead: int


class StatsAnswerDeliveries(TypedDict):
    """Part of what stats answers."""

    delivered: int
    failed: int


class StatsAnswerEvents(TypedDict):
    """Part of what stats answers."""

    head: int
    oldest: int


class StatsAnswerStorage(TypedDict):
    """Part of what stats answers."""

    database_bytes: int
    wal_bytes: int


class StatsAnswer(TypedDict):
    """What stats answers."""

    version: str
    tier: str
    uptime: int
    agents: StatsAnswerAgents
    messages: StatsAnswerMessages
    tasks: StatsAnswerTasks
    state_keys: int
    channels: int
    waiters: int
    doorbells: StatsAnswerDoorbells
    forwarding: StatsAnswerForwarding
    deliveries: StatsAnswerDeliveries
    events: StatsAnswerEvents
    storage: StatsAnswerStorage


class HealthAnswer(TypedDict):
    """What health answers."""

    status: str
    version: str
    tier: str
    uptime: int


class Token(TypedDict):
    """A record that several operations answer with."""

    token: str
    expires_at: str
    agent_id: str | None
    jti: str


class TokenRotateAnswer(TypedDict):
    """What token.rotate answers."""

    rotated: bool
    old_until: NotRequired[str]


class TokenRevokeAnswer(TypedDict):
    """What token.revoke answers."""

    revoked: str
    epoch: NotRequired[int]


class EntitledLicense(TypedDict):
    """A record that several operations answer with."""

    lic_id: str
    tier: str
    seats: int | None
    issued: str
    not_after: str | None
    issuer_key_id: str
    require_tokens: bool
    status: str


class Entitled(TypedDict):
    """A record that several operations answer with."""

    tier: str
    seats: int | None
    license: EntitledLicense | None
    problem: NotRequired[str]


class LicenseCommandAnswer(TypedDict):
    """What license.command answers."""

    lic_id: str
    cmd: str
    serial: int


class AdminBackupAnswer(TypedDict):
    """What admin.backup answers."""

    path: str
    bytes: int
    events_head: int
    taken_at: str


class Methods:
    """One method an operation, grouped by area; what carries a call out is the client's."""

    __slots__ = ()

    def _call(self, name: str, given: dict[str, Any], key: str | None = None) -> Any:
        raise NotImplementedError

    def agent_register(
        self,
        *,
        agent_id: str | None = None,
        role: str | None = None,
        capabilities: Names | None = None,
        group: str | None = None,
        channel: str = "default",
        ack: Literal["plain", "manual"] = "plain",
        metadata: Mapping[str, Any] | None = None,
        webhook_url: str | None = None,
        webhook_secret: str | None = None,
        idempotency_key: str | None = None,
    ) -> AgentRegisterAnswer:
        """Put an agent into the directory, or replace its record. The agent becomes a member of its home channel and of
        its own channel `agent-<agent_id>`; both are created on first use.

        - `agent_id`: The agent's unique id (1 to 120 characters); the client's agent if left out.
        - `role`: What the agent is, such as researcher (1 to 128 characters).
        - `capabilities`: What the agent can do; tasks ask for these (up to 256 entries).
        - `group`: A group, for broadcasts (1 to 128 characters).
        - `channel`: The agent's home channel (1 to 128 characters).
        - `ack`: How its polls acknowledge if they do not say.
        - `metadata`: Any JSON object, handed on untouched.
        - `webhook_url`: A doorbell: this URL is called when mail comes. Empty: no longer; left out: as before (up to
          2048 bytes; needs tier pro).
        - `webhook_secret`: What its deliveries are signed with: whsec_ and base64. One is made, and shown once, if left
          out (up to 256 bytes; needs tier pro).

        Answers `AgentRegisterAnswer`. `POST /agent/register`. Refusals: 400 invalid_field, 400 missing_field, 400
        reserved_name, 400 webhook_url_forbidden, 402 agent_limit, 402 upgrade_required, 403 agent_mismatch.
        """
        return self._call(
            "agent.register",
            {
                "agent_id": agent_id,
                "role": role,
                "capabilities": capabilities,
                "group": group,
                "channel": channel,
                "ack": ack,
                "metadata": metadata,
                "webhook_url": webhook_url,
                "webhook_secret": webhook_secret,
            },
            idempotency_key,
        )

    def agent_deregister(
        self,
        *,
        agent_id: str | None = None,
        release_claims: bool = False,
        idempotency_key: str | None = None,
    ) -> AgentDeregisterAnswer:
        """Take an agent out of the directory. Its pending messages are preserved and found again when it registers
        anew.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if left out.
        - `release_claims`: Put the tasks it holds back into the pool at once.

        Answers `AgentDeregisterAnswer`. `POST /agent/deregister`. Refusals: 400 invalid_field, 400 missing_field, 403
        agent_mismatch, 404 agent_not_found.
        """
        return self._call(
            "agent.deregister",
            {
                "agent_id": agent_id,
                "release_claims": release_claims,
            },
            idempotency_key,
        )

    def agent_heartbeat(
        self,
        *,
        agent_id: str | None = None,
        status: str | None = None,
        idempotency_key: str | None = None,
    ) -> AgentHeartbeatAnswer:
        """A sign of life. Any other call by the agent counts as one too.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if left out.
        - `status`: What the agent is doing; shown as `activity` (up to 1024 bytes).

        Answers `AgentHeartbeatAnswer`. `POST /agent/heartbeat`. Refusals: 400 invalid_field, 400 missing_field, 403
        agent_mismatch, 404 agent_not_found.
        """
        return self._call(
            "agent.heartbeat",
            {
                "agent_id": agent_id,
                "status": status,
            },
            idempotency_key,
        )

    def agent_discover(
        self,
        *,
        role: str | None = None,
        group: str | None = None,
        capability: str | None = None,
        status: Literal["active", "stale"] | None = None,
        channel: str | None = None,
        include_stale: bool = False,
    ) -> AgentDiscoverAnswer:
        """Find agents by role, group, capability, channel or status. Stale agents are left out unless asked for.

        - `role`: Only agents of this role (1 to 128 characters).
        - `group`: Only agents of this group (1 to 128 characters).
        - `capability`: Only agents that can do this (1 to 128 characters).
        - `status`: Only active or only stale agents.
        - `channel`: Only members of this channel (1 to 128 characters).
        - `include_stale`: Stale agents too.

        Answers `AgentDiscoverAnswer`. `GET /agent/discover`. Refusals: 400 invalid_field, 404 channel_not_found.
        """
        return self._call(
            "agent.discover",
            {
                "role": role,
                "group": group,
                "capability": capability,
                "status": status,
                "channel": channel,
                "include_stale": include_stale,
            },
        )

    def agent_get(
        self,
        *,
        agent_id: str,
    ) -> AgentGetAnswer:
        """One agent, with its unread messages, claimed tasks and channels.

        - `agent_id`: The agent to look at (1 to 120 characters).

        Answers `AgentGetAnswer`. `GET /agent/get`. Refusals: 400 invalid_field, 400 missing_field, 404 agent_not_found.
        """
        return self._call(
            "agent.get",
            {
                "agent_id": agent_id,
            },
        )

    def agent_notify(
        self,
        *,
        agent_id: str,
        type: str,
        content: str,
        metadata: Mapping[str, Any] | None = None,
        sender: str | None = None,
        idempotency_key: str | None = None,
    ) -> AgentNotifyAnswer:
        """Put a notification, such as a restart signal, into an agent's own channel and so into its inbox alone.

        - `agent_id`: The agent to notify (1 to 120 characters).
        - `type`: What kind of notification, such as restart-signal (1 to 128 characters).
        - `content`: The text to deliver (up to 65536 (setting max_message_size) bytes).
        - `metadata`: Any JSON object, handed on untouched.
        - `sender`: The sender; the daemon itself if left out (1 to 120 characters); the client's agent if left out.

        Answers `AgentNotifyAnswer`. `POST /agent/notify`. Refusals: 400 invalid_field, 400 missing_field, 403
        agent_mismatch, 404 agent_not_found, 413 message_too_large, 429 inbox_full.
        """
        return self._call(
            "agent.notify",
            {
                "agent_id": agent_id,
                "type": type,
                "content": content,
                "metadata": metadata,
                "from": sender,
            },
            idempotency_key,
        )

    def msg_send(
        self,
        *,
        sender: str | None = None,
        to: str | None = None,
        content: str | None = None,
        content_ref: str | None = None,
        channel: str = "default",
        subject: str | None = None,
        type: str | None = None,
        thread: str | None = None,
        reply_to: int | None = None,
        priority: int = 0,
        metadata: Mapping[str, Any] | None = None,
        ttl_seconds: int | None = None,
        suppress_inbox: bool = False,
        pick: Literal["all", "one"] = "all",
        idempotency_key: str | None = None,
    ) -> MsgSendAnswer:
        """Put a message into an agent's inbox, or with `role:NAME`, `group:NAME` or `capability:NAME` into those of all
        matching members of the channel. A 200 means that it is on disk.

        - `sender`: The sending agent (1 to 120 characters); the client's agent if left out.
        - `to`: An agent id, role:NAME, group:NAME or capability:NAME. May be left out for a type that the routing table
          knows (1 to 140 characters).
        - `content`: The text to deliver (up to 65536 (setting max_message_size) bytes).
        - `content_ref`: A document's id in place of the text; if it is too long for a message, the message carries a
          preview (1 to 128 characters).
        - `channel`: The channel; the recipient must be a member (1 to 128 characters).
        - `subject`: A subject line (up to 1024 bytes).
        - `type`: What kind of message it is, such as question, status or blocker (1 to 128 characters).
        - `thread`: A thread to put it in (1 to 128 characters).
        - `reply_to`: The message it answers, whose thread it joins unless `thread` says another (at least 0).
        - `priority`: Higher is delivered first (-1000 to 1000; needs tier pro).
        - `metadata`: Any JSON object, handed on untouched.
        - `ttl_seconds`: Seconds after which it is no longer delivered (1 to 31536000).
        - `suppress_inbox`: Keep it out of the members' inboxes; the channel's log has it.
        - `pick`: one: only the least busy active match.

        Answers `MsgSendAnswer`. `POST /msg/send`. Refusals: 400 invalid_field, 400 missing_field, 402 upgrade_required,
        403 agent_mismatch, 404 agent_not_found, 404 channel_not_found, 404 document_not_found, 404 message_not_found,
        404 no_recipient, 409 not_in_channel, 413 message_too_large, 413 too_many_calls, 429 inbox_full.
        """
        return self._call(
            "msg.send",
            {
                "from": sender,
                "to": to,
                "content": content,
                "content_ref": content_ref,
                "channel": channel,
                "subject": subject,
                "type": type,
                "thread": thread,
                "reply_to": reply_to,
                "priority": priority,
                "metadata": metadata,
                "ttl_seconds": ttl_seconds,
                "suppress_inbox": suppress_inbox,
                "pick": pick,
            },
            idempotency_key,
        )

    def msg_broadcast(
        self,
        *,
        sender: str | None = None,
        content: str | None = None,
        content_ref: str | None = None,
        group: str | None = None,
        channel: str = "default",
        subject: str | None = None,
        type: str | None = None,
        thread: str | None = None,
        reply_to: int | None = None,
        priority: int = 0,
        metadata: Mapping[str, Any] | None = None,
        ttl_seconds: int | None = None,
        suppress_inbox: bool = False,
        idempotency_key: str | None = None,
    ) -> MsgBroadcastAnswer:
        """Put one message into the inbox of every other member of a channel, or of a group in it: all or none.

        - `sender`: The sending agent (1 to 120 characters); the client's agent if left out.
        - `content`: The text to deliver (up to 65536 (setting max_message_size) bytes).
        - `content_ref`: A document's id in place of the text; if it is too long for a message, the message carries a
          preview (1 to 128 characters).
        - `group`: Only members of this group (1 to 128 characters).
        - `channel`: The channel (1 to 128 characters).
        - `subject`: A subject line (up to 1024 bytes).
        - `type`: What kind of message it is, such as question, status or blocker (1 to 128 characters).
        - `thread`: A thread to put it in (1 to 128 characters).
        - `reply_to`: The message it answers, whose thread it joins unless `thread` says another (at least 0).
        - `priority`: Higher is delivered first (-1000 to 1000; needs tier pro).
        - `metadata`: Any JSON object, handed on untouched.
        - `ttl_seconds`: Seconds after which it is no longer delivered (1 to 31536000).
        - `suppress_inbox`: Keep it out of the members' inboxes; the channel's log has it.

        Answers `MsgBroadcastAnswer`. `POST /msg/broadcast`, tier pro. Refusals: 400 invalid_field, 400 missing_field,
        402 upgrade_required, 403 agent_mismatch, 404 agent_not_found, 404 channel_not_found, 404 document_not_found,
        404 group_not_found, 404 message_not_found, 413 message_too_large, 429 inbox_full.
        """
        return self._call(
            "msg.broadcast",
            {
                "from": sender,
                "content": content,
                "content_ref": content_ref,
                "group": group,
                "channel": channel,
                "subject": subject,
                "type": type,
                "thread": thread,
                "reply_to": reply_to,
                "priority": priority,
                "metadata": metadata,
                "ttl_seconds": ttl_seconds,
                "suppress_inbox": suppress_inbox,
            },
            idempotency_key,
        )

    def msg_poll(
        self,
        *,
        agent_id: str | None = None,
        timeout: int = 30,
        channel: str | None = None,
        types: Names | None = None,
        limit: int = 100,
        after: int | None = None,
        ack: Literal["plain", "manual"] | None = None,
        lease: int = 60,
        redeliver: bool = False,
    ) -> MsgPollAnswer:
        """Wait for mail. Plain: takes what is queued, by priority and then id; a message counts as delivered once the
        answer has arrived. With `after=N`: acknowledges everything up to N and returns everything beyond, by id, so the
        call may be repeated; `after=0` reads everything that is kept. With `ack=manual`: hands out on a lease, and
        delivers again what was not acknowledged by its end.

        - `agent_id`: Whose inbox (1 to 120 characters); the client's agent if left out.
        - `timeout`: Seconds to wait; more than the daemon's maximum is taken as the maximum (0 to 120 (setting
          poll_timeout_max); more is taken as the most).
        - `channel`: Only messages of this channel (1 to 128 characters).
        - `types`: Only messages of these types; the others stay queued (up to 256 entries).
        - `limit`: How many to return at most (1 to 1000).
        - `after`: The last id that was processed (at least 0).
        - `ack`: manual: hand out on a lease and wait for msg.ack.
        - `lease`: Seconds that a handed-out message is kept from other polls (1 to 43200).
        - `redeliver`: First put back what plain polls took in the last hour.

        Answers `MsgPollAnswer`. `GET /msg/poll`. Refusals: 400 invalid_field, 400 invalid_timeout, 400 missing_field,
        403 agent_mismatch, 404 agent_not_found, 404 channel_not_found, 409 cursor_ahead, 503 too_many_waiters.
        """
        return self._call(
            "msg.poll",
            {
                "agent_id": agent_id,
                "timeout": timeout,
                "channel": channel,
                "types": types,
                "limit": limit,
                "after": after,
                "ack": ack,
                "lease": lease,
                "redeliver": redeliver,
            },
        )

    def msg_ack(
        self,
        *,
        agent_id: str | None = None,
        ids: Ids | None = None,
        through: int | None = None,
        idempotency_key: str | None = None,
    ) -> MsgAckAnswer:
        """Settle messages for good: those of `ids`, or all up to `through`. Once it is answered, no later poll returns
        them. Acknowledging twice counts nothing.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if left out.
        - `ids`: The messages to settle (up to 1000 entries).
        - `through`: Settle every message up to this id (at least 0).

        Answers `MsgAckAnswer`. `POST /msg/ack`. Refusals: 400 invalid_field, 400 missing_field, 403 agent_mismatch, 404
        agent_not_found, 404 message_not_found, 409 cursor_ahead, 409 not_delivered.
        """
        return self._call(
            "msg.ack",
            {
                "agent_id": agent_id,
                "ids": ids,
                "through": through,
            },
            idempotency_key,
        )

    def msg_nack(
        self,
        *,
        agent_id: str | None = None,
        id: int,
        delay: int = 0,
        idempotency_key: str | None = None,
    ) -> MsgNackAnswer:
        """Put a leased message back, to be delivered again; one that was delivered too often becomes a dead letter.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if left out.
        - `id`: The message's id (at least 0).
        - `delay`: Seconds before it is delivered again (0 to 43200).

        Answers `MsgNackAnswer`. `POST /msg/nack`. Refusals: 400 invalid_field, 400 missing_field, 403 agent_mismatch,
        404 agent_not_found, 404 message_not_found, 409 not_delivered.
        """
        return self._call(
            "msg.nack",
            {
                "agent_id": agent_id,
                "id": id,
                "delay": delay,
            },
            idempotency_key,
        )

    def msg_extend(
        self,
        *,
        agent_id: str | None = None,
        id: int,
        lease: int = 60,
        idempotency_key: str | None = None,
    ) -> MsgExtendAnswer:
        """Let the lease of a message run for `lease` seconds from now.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if left out.
        - `id`: The message's id (at least 0).
        - `lease`: Seconds that a handed-out message is kept from other polls (1 to 43200).

        Answers `MsgExtendAnswer`. `POST /msg/extend`. Refusals: 400 invalid_field, 400 missing_field, 403
        agent_mismatch, 404 agent_not_found, 404 message_not_found, 409 not_delivered.
        """
        return self._call(
            "msg.extend",
            {
                "agent_id": agent_id,
                "id": id,
                "lease": lease,
            },
            idempotency_key,
        )

    def msg_dead(
        self,
        *,
        agent_id: str,
        limit: int = 100,
    ) -> MsgDeadAnswer:
        """An agent's dead letters: messages delivered too often in vain, or whose time to live ran out.

        - `agent_id`: Whose dead letters (1 to 120 characters).
        - `limit`: How many to return at most (1 to 1000).

        Answers `MsgDeadAnswer`. `GET /msg/dead`. Refusals: 400 invalid_field, 400 missing_field, 403 agent_mismatch,
        404 agent_not_found.
        """
        return self._call(
            "msg.dead",
            {
                "agent_id": agent_id,
                "limit": limit,
            },
        )

    def msg_requeue(
        self,
        *,
        agent_id: str | None = None,
        ids: Ids,
        idempotency_key: str | None = None,
    ) -> MsgRequeueAnswer:
        """Queue dead letters again, with their deliveries counted anew; those whose time to live ran out have none any
        more.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if left out.
        - `ids`: The dead letters (up to 1000 entries).

        Answers `MsgRequeueAnswer`. `POST /msg/requeue`. Refusals: 400 invalid_field, 400 missing_field, 403
        agent_mismatch, 404 agent_not_found, 404 message_not_found.
        """
        return self._call(
            "msg.requeue",
            {
                "agent_id": agent_id,
                "ids": ids,
            },
            idempotency_key,
        )

    def msg_status(
        self,
        *,
        id: int,
    ) -> MsgStatusAnswer:
        """What became of a message, for each recipient: queued, notified (its doorbell rang), fetched, acked or dead.

        - `id`: The message's id (at least 0).

        Answers `MsgStatusAnswer`. `GET /msg/status`. Refusals: 400 invalid_field, 400 missing_field, 404
        message_not_found.
        """
        return self._call(
            "msg.status",
            {
                "id": id,
            },
        )

    def msg_list(
        self,
        *,
        channel: str | None = None,
        agent_id: str | None = None,
        thread: str | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int = 50,
    ) -> MsgListAnswer:
        """The history of messages, newest first, whatever became of them.

        - `channel`: Only this channel (1 to 128 characters).
        - `agent_id`: Only messages from or to this agent (1 to 120 characters).
        - `thread`: Only this thread (1 to 128 characters).
        - `before`: Only ids below this one (at least 0).
        - `after`: Only ids above this one (at least 0).
        - `limit`: How many to return at most (1 to 1000).

        Answers `MsgListAnswer`. `GET /msg/list`. Refusals: 400 invalid_field, 404 agent_not_found, 404
        channel_not_found.
        """
        return self._call(
            "msg.list",
            {
                "channel": channel,
                "agent_id": agent_id,
                "thread": thread,
                "before": before,
                "after": after,
                "limit": limit,
            },
        )

    def msg_search(
        self,
        *,
        q: str,
        channel: str | None = None,
        agent_id: str | None = None,
        limit: int = 20,
    ) -> MsgSearchAnswer:
        """Full-text search over contents and subjects, best match first, with an excerpt in which the found words stand
        between ** and **.

        - `q`: Words that must all occur; quote a phrase (up to 1024 bytes).
        - `channel`: Only this channel (1 to 128 characters).
        - `agent_id`: Only messages from or to this agent (1 to 120 characters).
        - `limit`: How many to return at most (1 to 1000).

        Answers `MsgSearchAnswer`. `GET /msg/search`. Refusals: 400 invalid_field, 400 missing_field, 404
        agent_not_found, 404 channel_not_found, 501 search_unavailable.
        """
        return self._call(
            "msg.search",
            {
                "q": q,
                "channel": channel,
                "agent_id": agent_id,
                "limit": limit,
            },
        )

    def task_post(
        self,
        *,
        description: str,
        posted_by: str | None = None,
        required_capability: str | None = None,
        priority: int = 0,
        channel: str = "default",
        metadata: Mapping[str, Any] | None = None,
        depends_on: Names | None = None,
        assigned_to: str | None = None,
        claim_timeout: int | None = None,
        max_attempts: int = 10,
        idempotency_key: str | None = None,
    ) -> TaskPostAnswer:
        """Put a task into a channel's pool.

        - `description`: What is to be done (up to 65536 (setting max_message_size) bytes).
        - `posted_by`: The posting agent (1 to 120 characters); the client's agent if left out.
        - `required_capability`: Only agents that registered this capability may claim it (1 to 128 characters).
        - `priority`: Higher is claimed first (-1000000 to 1000000).
        - `channel`: The channel (1 to 128 characters).
        - `metadata`: Any JSON object, handed on untouched.
        - `depends_on`: Ids of tasks that must be complete first; one that failed or was cancelled may be requeued (up
          to 256 entries).
        - `assigned_to`: Only this agent may claim it (1 to 120 characters).
        - `claim_timeout`: Lease of a claim in seconds (1 to 86400).
        - `max_attempts`: Tries before it fails for good; 0: no limit (0 to 1000).

        Answers `TaskPostAnswer`. `POST /task/post`, tier pro. Refusals: 400 invalid_field, 400 missing_field, 402
        upgrade_required, 403 agent_mismatch, 404 agent_not_found, 404 channel_not_found, 404 task_not_found.
        """
        return self._call(
            "task.post",
            {
                "description": description,
                "posted_by": posted_by,
                "required_capability": required_capability,
                "priority": priority,
                "channel": channel,
                "metadata": metadata,
                "depends_on": depends_on,
                "assigned_to": assigned_to,
                "claim_timeout": claim_timeout,
                "max_attempts": max_attempts,
            },
            idempotency_key,
        )

    def task_claim(
        self,
        *,
        agent_id: str | None = None,
        channel: str = "default",
        timeout: int = 0,
        task_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> TaskClaimAnswer:
        """Claim the pending task of the highest priority, then the oldest, that the agent's capabilities fit. Exactly
        one agent gets it. Both fields are null when nothing fits.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if left out.
        - `channel`: The channel (1 to 128 characters).
        - `timeout`: Seconds to wait; more than the daemon's maximum is taken as the maximum (0 to 120 (setting
          poll_timeout_max); more is taken as the most).
        - `task_id`: Claim this task and no other (1 to 64 characters).

        Answers `TaskClaimAnswer`. `POST /task/claim`, tier pro. Refusals: 400 invalid_field, 400 invalid_timeout, 400
        missing_field, 402 upgrade_required, 403 agent_mismatch, 404 agent_not_found, 404 channel_not_found, 404
        task_not_found, 409 task_conflict, 503 too_many_waiters.
        """
        return self._call(
            "task.claim",
            {
                "agent_id": agent_id,
                "channel": channel,
                "timeout": timeout,
                "task_id": task_id,
            },
            idempotency_key,
        )

    def task_complete(
        self,
        *,
        task_id: str,
        agent_id: str | None = None,
        result: str | None = None,
        status: Literal["complete", "failed"] = "complete",
        retry: bool = False,
        claim_token: str | None = None,
        idempotency_key: str | None = None,
    ) -> TaskCompleteAnswer:
        """End a claimed task. The same completion again is answered with `replayed`.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if left out.
        - `result`: What came of it (up to 65536 (setting max_message_size) bytes).
        - `status`: How it ended.
        - `retry`: With failed: back to the pool after a while, until attempts run out.
        - `claim_token`: The token that task.claim answered; without it the agent id must be the holder's (1 to 128
          characters).

        Answers `TaskCompleteAnswer`. `POST /task/complete`, tier pro. Refusals: 400 invalid_field, 400 missing_field,
        402 upgrade_required, 403 agent_mismatch, 403 not_claim_owner, 404 agent_not_found, 404 task_not_found, 409
        already_complete, 409 stale_claim, 409 task_conflict.
        """
        return self._call(
            "task.complete",
            {
                "task_id": task_id,
                "agent_id": agent_id,
                "result": result,
                "status": status,
                "retry": retry,
                "claim_token": claim_token,
            },
            idempotency_key,
        )

    def task_extend(
        self,
        *,
        task_id: str,
        agent_id: str | None = None,
        claim_token: str | None = None,
        idempotency_key: str | None = None,
    ) -> TaskExtendAnswer:
        """Restart the full lease of a claim. The answer carries `cancelled` when the poster no longer wants the work.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if left out.
        - `claim_token`: The token that task.claim answered; without it the agent id must be the holder's (1 to 128
          characters).

        Answers `TaskExtendAnswer`. `POST /task/extend`, tier pro. Refusals: 400 invalid_field, 400 missing_field, 402
        upgrade_required, 403 agent_mismatch, 403 not_claim_owner, 404 agent_not_found, 404 task_not_found, 409
        already_complete, 409 stale_claim.
        """
        return self._call(
            "task.extend",
            {
                "task_id": task_id,
                "agent_id": agent_id,
                "claim_token": claim_token,
            },
            idempotency_key,
        )

    def task_release(
        self,
        *,
        task_id: str,
        agent_id: str | None = None,
        claim_token: str | None = None,
        delay: int = 0,
        reason: str | None = None,
        idempotency_key: str | None = None,
    ) -> Ended:
        """Give a claimed task back to the pool.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if left out.
        - `claim_token`: The token that task.claim answered; without it the agent id must be the holder's (1 to 128
          characters).
        - `delay`: Seconds before it may be claimed again (0 to 86400).
        - `reason`: Why; kept in the task's history (up to 1024 bytes).

        Answers `Ended`. `POST /task/release`, tier pro. Refusals: 400 invalid_field, 400 missing_field, 402
        upgrade_required, 403 agent_mismatch, 403 not_claim_owner, 404 agent_not_found, 404 task_not_found, 409
        already_complete, 409 stale_claim, 409 task_conflict.
        """
        return self._call(
            "task.release",
            {
                "task_id": task_id,
                "agent_id": agent_id,
                "claim_token": claim_token,
                "delay": delay,
                "reason": reason,
            },
            idempotency_key,
        )

    def task_handoff(
        self,
        *,
        task_id: str,
        agent_id: str | None = None,
        note: str,
        branch: str | None = None,
        worktree: str | None = None,
        waiting_on: int | None = None,
        claim_token: str | None = None,
        idempotency_key: str | None = None,
    ) -> Ended:
        """End a claim and put the task back into the pool, with a note that whoever claims it next is shown as
        `handoff`; an assignment ends. With `waiting_on` the task is waiting until somebody else has replied in that
        message's thread, or for 24 hours.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if left out.
        - `note`: What whoever goes on has to know (up to 65536 (setting max_message_size) bytes).
        - `branch`: The branch that the work is on (up to 1024 bytes).
        - `worktree`: The folder that the work is in (up to 4096 bytes).
        - `waiting_on`: A message whose answer is needed first (at least 0).
        - `claim_token`: The token that task.claim answered; without it the agent id must be the holder's (1 to 128
          characters).

        Answers `Ended`. `POST /task/handoff`, tier pro. Refusals: 400 invalid_field, 400 missing_field, 402
        upgrade_required, 403 agent_mismatch, 403 not_claim_owner, 404 agent_not_found, 404 message_not_found, 404
        task_not_found, 409 already_complete, 409 stale_claim, 409 task_conflict, 413 message_too_large.
        """
        return self._call(
            "task.handoff",
            {
                "task_id": task_id,
                "agent_id": agent_id,
                "note": note,
                "branch": branch,
                "worktree": worktree,
                "waiting_on": waiting_on,
                "claim_token": claim_token,
            },
            idempotency_key,
        )

    def task_dispatch(
        self,
        *,
        task_id: str | None = None,
        task_ids: Names | None = None,
        agent_id: str,
        priority: int | None = None,
        restart: bool = False,
        mark_as_started: bool = False,
        notification_message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        dispatched_by: str | None = None,
        idempotency_key: str | None = None,
    ) -> TaskDispatchAnswer:
        """Assign one or many tasks to an agent and notify it in its own channel: all or none. The notice's metadata
        says type (task-assignment, or task-reassignment if another agent had it), task_id, priority, restart,
        dispatched_at, dispatched_by, and what `metadata` adds. A task that another agent holds is left to it, unless
        `restart` ends that claim.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `task_ids`: The UUIDs of many tasks (up to 100 entries).
        - `agent_id`: The agent that is to do them (1 to 120 characters).
        - `priority`: The tasks' priority from now on (-1000000 to 1000000).
        - `restart`: Begin anew: a live claim ends, whoever holds it.
        - `mark_as_started`: Claim them for the agent; the notice has the claim_token.
        - `notification_message`: What the notice says; the task's description if left out (up to 65536 (setting
          max_message_size) bytes).
        - `metadata`: More for the notice, such as branch, worktree and session_id.
        - `dispatched_by`: Who dispatches; the daemon itself if left out (1 to 120 characters); the client's agent if
          left out.

        Answers `TaskDispatchAnswer`. `POST /task/dispatch`, tier pro. Refusals: 400 invalid_field, 400 missing_field,
        402 upgrade_required, 403 agent_mismatch, 404 agent_not_found, 404 task_not_found, 409 task_conflict, 413
        message_too_large, 429 inbox_full.
        """
        return self._call(
            "task.dispatch",
            {
                "task_id": task_id,
                "task_ids": task_ids,
                "agent_id": agent_id,
                "priority": priority,
                "restart": restart,
                "mark_as_started": mark_as_started,
                "notification_message": notification_message,
                "metadata": metadata,
                "dispatched_by": dispatched_by,
            },
            idempotency_key,
        )

    def task_list(
        self,
        *,
        status: Literal["pending", "waiting", "claimed", "complete", "failed", "cancelled"] | None = None,
        channel: str | None = None,
        agent_id: str | None = None,
        capability: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> TaskListAnswer:
        """Tasks by priority, then age.

        - `status`: Only tasks in this state.
        - `channel`: Only this channel (1 to 128 characters).
        - `agent_id`: Only tasks that this agent holds, held or is assigned (1 to 120 characters).
        - `capability`: Only tasks that ask for this capability (1 to 128 characters).
        - `limit`: How many to return at most (1 to 1000).
        - `after`: The id of the last task of the page before (1 to 64 characters).

        Answers `TaskListAnswer`. `GET /task/list`, tier pro. Refusals: 400 invalid_field, 402 upgrade_required, 404
        agent_not_found, 404 channel_not_found, 404 task_not_found.
        """
        return self._call(
            "task.list",
            {
                "status": status,
                "channel": channel,
                "agent_id": agent_id,
                "capability": capability,
                "limit": limit,
                "after": after,
            },
        )

    def task_get(
        self,
        *,
        task_id: str,
    ) -> TaskGetAnswer:
        """One task with what happened to it.

        - `task_id`: The task's UUID (1 to 64 characters).

        Answers `TaskGetAnswer`. `GET /task/get`, tier pro. Refusals: 400 invalid_field, 400 missing_field, 402
        upgrade_required, 404 task_not_found.
        """
        return self._call(
            "task.get",
            {
                "task_id": task_id,
            },
        )

    def task_cancel(
        self,
        *,
        task_id: str,
        by: str | None = None,
        idempotency_key: str | None = None,
    ) -> Ended:
        """Withdraw a task that is not finished. Whoever holds it learns of it at its next extend or complete.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `by`: Who cancels; must be the poster if given (1 to 120 characters); the client's agent if left out.

        Answers `Ended`. `POST /task/cancel`, tier pro. Refusals: 400 invalid_field, 400 missing_field, 402
        upgrade_required, 403 agent_mismatch, 403 not_poster, 404 agent_not_found, 404 task_not_found, 409
        task_conflict.
        """
        return self._call(
            "task.cancel",
            {
                "task_id": task_id,
                "by": by,
            },
            idempotency_key,
        )

    def task_requeue(
        self,
        *,
        task_id: str,
        by: str | None = None,
        idempotency_key: str | None = None,
    ) -> Ended:
        """Put a failed or cancelled task back into the pool with its attempts counted anew.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `by`: Who puts it back (1 to 120 characters); the client's agent if left out.

        Answers `Ended`. `POST /task/requeue`, tier pro. Refusals: 400 invalid_field, 400 missing_field, 402
        upgrade_required, 403 agent_mismatch, 404 agent_not_found, 404 task_not_found, 409 task_conflict.
        """
        return self._call(
            "task.requeue",
            {
                "task_id": task_id,
                "by": by,
            },
            idempotency_key,
        )

    def state_get(
        self,
        *,
        key: str,
        channel: str = "default",
    ) -> Record:
        """The value and version of a key.

        - `key`: The key (1 to 256 characters).
        - `channel`: The channel (1 to 128 characters).

        Answers `Record`. `GET /state/get`, tier pro. Refusals: 400 invalid_field, 400 missing_field, 402
        upgrade_required, 404 channel_not_found, 404 key_not_found.
        """
        return self._call(
            "state.get",
            {
                "key": key,
                "channel": channel,
            },
        )

    def state_set(
        self,
        *,
        key: str,
        value: str,
        channel: str = "default",
        expected_version: int | None = None,
        updated_by: str | None = None,
        idempotency_key: str | None = None,
    ) -> Record:
        """Set a key. With `expected_version` it is a compare-and-set: it fails with 409 if somebody was faster.

        - `key`: The key (1 to 256 characters).
        - `value`: The new value (up to 65536 (setting max_message_size) bytes).
        - `channel`: The channel (1 to 128 characters).
        - `expected_version`: Change only if the key is live at exactly this version; 0: only if it does not exist (at
          least 0).
        - `updated_by`: The agent that makes the change (1 to 120 characters); the client's agent if left out.

        Answers `Record`. `POST /state/set`, tier pro. Refusals: 400 invalid_expected_version, 400 invalid_field, 400
        missing_field, 402 upgrade_required, 403 agent_mismatch, 404 agent_not_found, 404 channel_not_found, 409
        version_conflict, 413 message_too_large.
        """
        return self._call(
            "state.set",
            {
                "key": key,
                "value": value,
                "channel": channel,
                "expected_version": expected_version,
                "updated_by": updated_by,
            },
            idempotency_key,
        )

    def state_watch(
        self,
        *,
        key: str,
        channel: str = "default",
        after_version: int = 0,
        timeout: int = 30,
        agent_id: str | None = None,
    ) -> StateWatchAnswer:
        """Wait until a key changes past a version. Answers its latest state; steps in between may be skipped. On
        timeout `changed` is false.

        - `key`: The key (1 to 256 characters).
        - `channel`: The channel (1 to 128 characters).
        - `after_version`: The version that is known already (at least 0).
        - `timeout`: Seconds to wait; more than the daemon's maximum is taken as the maximum (0 to 120 (setting
          poll_timeout_max); more is taken as the most).
        - `agent_id`: Who waits; counts as its heartbeat (1 to 120 characters); the client's agent if left out.

        Answers `StateWatchAnswer`. `GET /state/watch`, tier pro. Refusals: 400 invalid_field, 400 invalid_timeout, 400
        missing_field, 402 upgrade_required, 403 agent_mismatch, 404 channel_not_found, 503 too_many_waiters.
        """
        return self._call(
            "state.watch",
            {
                "key": key,
                "channel": channel,
                "after_version": after_version,
                "timeout": timeout,
                "agent_id": agent_id,
            },
        )

    def state_delete(
        self,
        *,
        key: str,
        channel: str = "default",
        expected_version: int | None = None,
        updated_by: str | None = None,
        idempotency_key: str | None = None,
    ) -> StateDeleteAnswer:
        """Delete a key. A tombstone keeps its version, so a key made anew goes on counting. One that does not exist is
        404, and 409 where `expected_version` says that it does.

        - `key`: The key (1 to 256 characters).
        - `channel`: The channel (1 to 128 characters).
        - `expected_version`: Change only if the key is live at exactly this version; 0: only if it does not exist (at
          least 0).
        - `updated_by`: The agent that makes the change (1 to 120 characters); the client's agent if left out.

        Answers `StateDeleteAnswer`. `POST /state/delete`, tier pro. Refusals: 400 invalid_expected_version, 400
        invalid_field, 400 missing_field, 402 upgrade_required, 403 agent_mismatch, 404 agent_not_found, 404
        channel_not_found, 404 key_not_found, 409 version_conflict.
        """
        return self._call(
            "state.delete",
            {
                "key": key,
                "channel": channel,
                "expected_version": expected_version,
                "updated_by": updated_by,
            },
            idempotency_key,
        )

    def state_list(
        self,
        *,
        channel: str = "default",
        prefix: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> StateListAnswer:
        """The live keys of a channel, in the order of their names.

        - `channel`: The channel (1 to 128 characters).
        - `prefix`: Only keys that begin so (1 to 256 characters).
        - `limit`: How many to return at most (1 to 1000).
        - `after`: The last key of the page before (1 to 256 characters).

        Answers `StateListAnswer`. `GET /state/list`, tier pro. Refusals: 400 invalid_field, 402 upgrade_required, 404
        channel_not_found.
        """
        return self._call(
            "state.list",
            {
                "channel": channel,
                "prefix": prefix,
                "limit": limit,
                "after": after,
            },
        )

    def state_history(
        self,
        *,
        key: str,
        channel: str = "default",
        limit: int = 20,
    ) -> StateHistoryAnswer:
        """The last 100 versions of a key, newest first.

        - `key`: The key (1 to 256 characters).
        - `channel`: The channel (1 to 128 characters).
        - `limit`: How many to return at most (1 to 1000).

        Answers `StateHistoryAnswer`. `GET /state/history`, tier pro. Refusals: 400 invalid_field, 400 missing_field,
        402 upgrade_required, 404 channel_not_found, 404 key_not_found.
        """
        return self._call(
            "state.history",
            {
                "key": key,
                "channel": channel,
                "limit": limit,
            },
        )

    def channel_create(
        self,
        *,
        name: str,
        created_by: str | None = None,
        description: str | None = None,
        members: Names | None = None,
        tags: Names | None = None,
        idempotency_key: str | None = None,
    ) -> ChannelCreateAnswer:
        """Make a team channel. Its creator and the listed agents are its first members.

        - `name`: The channel's name (1 to 128 characters).
        - `created_by`: The creating agent (1 to 120 characters); the client's agent if left out.
        - `description`: What the channel is for (up to 4096 bytes).
        - `members`: Agents that are members from the start (up to 256 entries).
        - `tags`: Words to find it by (up to 256 entries).

        Answers `ChannelCreateAnswer`. `POST /channel/create`. Refusals: 400 invalid_field, 400 missing_field, 400
        reserved_name, 403 agent_mismatch, 404 agent_not_found, 409 channel_exists.
        """
        return self._call(
            "channel.create",
            {
                "name": name,
                "created_by": created_by,
                "description": description,
                "members": members,
                "tags": tags,
            },
            idempotency_key,
        )

    def channel_list(
        self,
        *,
        agent_id: str | None = None,
    ) -> ChannelListAnswer:
        """All channels, with the number of their members.

        - `agent_id`: Only channels this agent is a member of (1 to 120 characters).

        Answers `ChannelListAnswer`. `GET /channel/list`. Refusals: 400 invalid_field, 404 agent_not_found.
        """
        return self._call(
            "channel.list",
            {
                "agent_id": agent_id,
            },
        )

    def channel_get(
        self,
        *,
        channel: str,
    ) -> ChannelGetAnswer:
        """One channel with its members.

        - `channel`: The channel's name or id (1 to 128 characters).

        Answers `ChannelGetAnswer`. `GET /channel/get`. Refusals: 400 invalid_field, 400 missing_field, 404
        channel_not_found.
        """
        return self._call(
            "channel.get",
            {
                "channel": channel,
            },
        )

    def channel_join(
        self,
        *,
        channel: str,
        agent_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> ChannelJoinAnswer:
        """Make an agent a member of a channel; joining twice changes nothing.

        - `channel`: The channel's name or id (1 to 128 characters).
        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if left out.

        Answers `ChannelJoinAnswer`. `POST /channel/join`. Refusals: 400 invalid_field, 400 missing_field, 403
        agent_mismatch, 404 agent_not_found, 404 channel_not_found.
        """
        return self._call(
            "channel.join",
            {
                "channel": channel,
                "agent_id": agent_id,
            },
            idempotency_key,
        )

    def channel_leave(
        self,
        *,
        channel: str,
        agent_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> ChannelLeaveAnswer:
        """End a membership. What was delivered before stays in the inbox.

        - `channel`: The channel's name or id (1 to 128 characters).
        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if left out.

        Answers `ChannelLeaveAnswer`. `POST /channel/leave`. Refusals: 400 invalid_field, 400 missing_field, 400
        reserved_name, 403 agent_mismatch, 404 agent_not_found, 404 channel_not_found.
        """
        return self._call(
            "channel.leave",
            {
                "channel": channel,
                "agent_id": agent_id,
            },
            idempotency_key,
        )

    def channel_messages(
        self,
        *,
        channel: str,
        before: int | None = None,
        limit: int = 50,
    ) -> ChannelMessagesAnswer:
        """A channel's log, newest first: everything that was ever said in it and is kept, also what suppress_inbox kept
        out of inboxes.

        - `channel`: The channel's name or id (1 to 128 characters).
        - `before`: Only ids below this one (at least 0).
        - `limit`: How many to return at most (1 to 1000).

        Answers `ChannelMessagesAnswer`. `GET /channel/messages`. Refusals: 400 invalid_field, 400 missing_field, 404
        channel_not_found.
        """
        return self._call(
            "channel.messages",
            {
                "channel": channel,
                "before": before,
                "limit": limit,
            },
        )

    def document_create(
        self,
        *,
        content: str,
        content_type: str = "text/plain",
        created_by: str | None = None,
        tags: Names | None = None,
        title: str | None = None,
        idempotency_key: str | None = None,
    ) -> DocumentCreateAnswer:
        """Store a text that messages refer to with `content_ref`, because it is too long for a message or goes out more
        than once. It is kept as long as a message that is kept refers to it, and in any case as long as a message of
        its age.

        - `content`: The text (up to 10485760 (setting max_document_size) bytes).
        - `content_type`: What it is, as a media type (1 to 128 characters).
        - `created_by`: The agent that makes it (1 to 120 characters); the client's agent if left out.
        - `tags`: Words to know it by (up to 256 entries).
        - `title`: A title (up to 1024 bytes).

        Answers `DocumentCreateAnswer`. `POST /document/create`. Refusals: 400 invalid_field, 400 missing_field, 403
        agent_mismatch, 404 agent_not_found, 413 document_too_large.
        """
        return self._call(
            "document.create",
            {
                "content": content,
                "content_type": content_type,
                "created_by": created_by,
                "tags": tags,
                "title": title,
            },
            idempotency_key,
        )

    def document_get(
        self,
        *,
        id: str,
    ) -> DocumentGetAnswer:
        """A document with its whole content.

        - `id`: The document's id, which a message shows as `content_ref` (1 to 128 characters).

        Answers `DocumentGetAnswer`. `GET /document/get`. Refusals: 400 invalid_field, 400 missing_field, 404
        document_not_found.
        """
        return self._call(
            "document.get",
            {
                "id": id,
            },
        )

    def inbox_list(
        self,
        *,
        agent_id: str | None = None,
        status: Literal["unread", "read", "archived", "all"] = "unread",
        full: bool = False,
        limit: int = 100,
        before: int | None = None,
    ) -> InboxListAnswer:
        """Look at an inbox, newest first, without taking anything. An item is unread while a poll would still deliver
        its message (or has it on a lease), read once it was delivered, acknowledged or marked so, archived when it was
        put away. Dead letters are in no inbox.

        - `agent_id`: Whose inbox (1 to 120 characters); the client's agent if left out.
        - `status`: Only items of this status; all: any.
        - `full`: Whole contents in place of previews of 200 characters.
        - `limit`: How many to return at most (1 to 1000).
        - `before`: Only items of messages with ids below this one (at least 0).

        Answers `InboxListAnswer`. `GET /inbox/list`. Refusals: 400 invalid_field, 400 missing_field, 403
        agent_mismatch, 404 agent_not_found.
        """
        return self._call(
            "inbox.list",
            {
                "agent_id": agent_id,
                "status": status,
                "full": full,
                "limit": limit,
                "before": before,
            },
        )

    def inbox_show(
        self,
        *,
        id: str,
    ) -> InboxShowAnswer:
        """One item with its whole content, also where its message carries only the preview of a document. It stays
        unread.

        - `id`: The item's id, such as inbox-42-writer (1 to 150 characters).

        Answers `InboxShowAnswer`. `GET /inbox/show`. Refusals: 400 invalid_field, 400 missing_field, 404
        message_not_found.
        """
        return self._call(
            "inbox.show",
            {
                "id": id,
            },
        )

    def inbox_update(
        self,
        *,
        agent_id: str | None = None,
        ids: Names | None = None,
        every: bool = False,
        status: Literal["unread", "read", "archived"],
        idempotency_key: str | None = None,
    ) -> InboxUpdateAnswer:
        """Mark items. Read: acknowledges them, so that no poll returns them. Unread: queues them again, for the next
        poll. Archived: puts them away, acknowledged. `all` means every item that is not archived. All or none.

        - `agent_id`: Whose inbox (1 to 120 characters); the client's agent if left out.
        - `ids`: The items to mark (up to 1000 entries).
        - `every`: In place of ids: every item that is not archived.
        - `status`: What they become.

        Answers `InboxUpdateAnswer`. `POST /inbox/update`. Refusals: 400 invalid_field, 400 missing_field, 403
        agent_mismatch, 404 agent_not_found, 404 message_not_found.
        """
        return self._call(
            "inbox.update",
            {
                "agent_id": agent_id,
                "ids": ids,
                "all": every,
                "status": status,
            },
            idempotency_key,
        )

    def events_list(
        self,
        *,
        after: int = 0,
        types: Names | None = None,
        channel: str | None = None,
        agent_id: str | None = None,
        limit: int = 100,
        timeout: int = 0,
    ) -> EventsListAnswer:
        """The event log after an id, as JSON; with `timeout` it waits for the first event. Ask again with `after=next`.

        - `after`: The last id that was seen (at least 0).
        - `types`: Only events of these types (message, message_dead, task_posted, task_claimed, task_completed,
          task_failed, task_released, task_requeued, task_cancelled, task_assigned, task_ready, state_changed,
          agent_registered, agent_deregistered, agent_stale, channel_created, channel_joined, channel_left,
          document_created, webhook_disabled).
        - `channel`: Only this channel (1 to 128 characters).
        - `agent_id`: Only events that concern this agent (1 to 120 characters).
        - `limit`: How many to return at most (1 to 1000).
        - `timeout`: Seconds to wait; more than the daemon's maximum is taken as the maximum (0 to 120 (setting
          poll_timeout_max); more is taken as the most).

        Answers `EventsListAnswer`. `GET /events/list`, tier pro. Refusals: 400 invalid_field, 400 invalid_timeout, 402
        upgrade_required, 404 agent_not_found, 404 channel_not_found, 503 too_many_waiters.
        """
        return self._call(
            "events.list",
            {
                "after": after,
                "types": types,
                "channel": channel,
                "agent_id": agent_id,
                "limit": limit,
                "timeout": timeout,
            },
        )

    def webhook_add(
        self,
        *,
        url: str,
        types: Names | None = None,
        channel: str | None = None,
        secret: str | None = None,
        ordered: bool = True,
        since: int | None = None,
        id: str | None = None,
        idempotency_key: str | None = None,
    ) -> WebhookAddAnswer:
        """Forward events to a URL, each in full, signed as Standard Webhooks, in the order of their ids; or change an
        endpoint, which is then tried again if it was disabled. An event that fails is retried for three days and then
        kept as a dead letter.

        - `url`: Where to (up to 2048 bytes).
        - `types`: Only events of these types (message, message_dead, task_posted, task_claimed, task_completed,
          task_failed, task_released, task_requeued, task_cancelled, task_assigned, task_ready, state_changed,
          agent_registered, agent_deregistered, agent_stale, channel_created, channel_joined, channel_left,
          document_created, webhook_disabled).
        - `channel`: Only events of this channel (1 to 128 characters).
        - `secret`: What deliveries are signed with: whsec_ and base64. Left out, one is made, and shown once, for a new
          endpoint or a new URL (up to 256 bytes).
        - `ordered`: An event that fails holds up those after it.
        - `since`: Begin after this event; with the next one (at least 0).
        - `id`: The endpoint to change; left out, there is a new one (1 to 64 characters).

        Answers `WebhookAddAnswer`. `POST /webhook/add`, tier enterprise. Refusals: 400 invalid_field, 400
        missing_field, 400 webhook_url_forbidden, 402 upgrade_required, 404 channel_not_found, 404 webhook_not_found,
        409 webhook_limit.
        """
        return self._call(
            "webhook.add",
            {
                "url": url,
                "types": types,
                "channel": channel,
                "secret": secret,
                "ordered": ordered,
                "since": since,
                "id": id,
            },
            idempotency_key,
        )

    def webhook_list(self) -> WebhookListAnswer:
        """The endpoints that events are forwarded to, how far each has come, and what it could not be given.

        Answers `WebhookListAnswer`. `GET /webhook/list`, tier enterprise. Refusals: 402 upgrade_required.
        """
        return self._call("webhook.list", {})

    def webhook_remove(
        self,
        *,
        id: str,
        idempotency_key: str | None = None,
    ) -> WebhookRemoveAnswer:
        """Forward nothing more to an endpoint; its dead letters go, too.

        - `id`: The endpoint (1 to 64 characters).

        Answers `WebhookRemoveAnswer`. `POST /webhook/remove`, tier enterprise. Refusals: 400 invalid_field, 400
        missing_field, 402 upgrade_required, 404 webhook_not_found.
        """
        return self._call(
            "webhook.remove",
            {
                "id": id,
            },
            idempotency_key,
        )

    def webhook_attempts(
        self,
        *,
        id: str | None = None,
        agent_id: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> WebhookAttemptsAnswer:
        """Every attempt at a delivery, newest first: forwarding and doorbells alike.

        - `id`: Only attempts at this endpoint, or at this doorbell (1 to 64 characters).
        - `agent_id`: Only attempts at this agent's doorbell (1 to 120 characters).
        - `before`: Only attempts with a smaller attempt_id (at least 0).
        - `limit`: How many to return at most (1 to 1000).

        Answers `WebhookAttemptsAnswer`. `GET /webhook/attempts`, tier enterprise. Refusals: 400 invalid_field, 402
        upgrade_required.
        """
        return self._call(
            "webhook.attempts",
            {
                "id": id,
                "agent_id": agent_id,
                "before": before,
                "limit": limit,
            },
        )

    def webhook_replay(
        self,
        *,
        id: str,
        since: int | None = None,
        event_ids: Ids | None = None,
        idempotency_key: str | None = None,
    ) -> WebhookReplayAnswer:
        """Deliver again to an endpoint: all that came after an event, or certain events, or without either all dead
        letters.

        - `id`: The endpoint (1 to 64 characters).
        - `since`: All events after this one that are kept (at least 0).
        - `event_ids`: These events (up to 1000 entries).

        Answers `WebhookReplayAnswer`. `POST /webhook/replay`, tier enterprise. Refusals: 400 invalid_field, 400
        missing_field, 402 upgrade_required, 404 event_not_found, 404 webhook_not_found.
        """
        return self._call(
            "webhook.replay",
            {
                "id": id,
                "since": since,
                "event_ids": event_ids,
            },
            idempotency_key,
        )

    def stats(self) -> StatsAnswer:
        """Counts of agents, messages, tasks, keys, channels, waiters and bytes.

        Answers `StatsAnswer`. `GET /stats`.
        """
        return self._call("stats", {})

    def health(self) -> HealthAnswer:
        """Whether the daemon serves, its version, tier and uptime in seconds. Never needs a token.

        Answers `HealthAnswer`. `GET /health`.
        """
        return self._call("health", {})

    def metrics(self) -> str:
        """The counts in the Prometheus text format.

        Answers `str`. `GET /metrics`.
        """
        return self._call("metrics", {})

    def token_obtain(
        self,
        *,
        license_key: str,
        agent_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Token:
        """A token for whoever shows the key of the active license. With `agent_id` it may act as that agent only. It
        goes into the header `Authorization: Bearer TOKEN` of every call and lasts for `auth.token_ttl`.

        - `license_key`: The license key, `SX-XXXX-XXXX-XXXX-XXXX` (up to 128 bytes).
        - `agent_id`: The one agent that the token may act as; any, if left out (1 to 120 characters).

        Answers `Token`. `POST /token/obtain`, tier pro. Refusals: 400 invalid_field, 400 license_checksum, 400
        license_malformed, 400 missing_field, 400 reserved_name, 402 upgrade_required, 403 license_mismatch, 429
        rate_limited.
        """
        return self._call(
            "token.obtain",
            {
                "license_key": license_key,
                "agent_id": agent_id,
            },
            idempotency_key,
        )

    def token_issue(
        self,
        *,
        agent_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Token:
        """A token made by the machine's owner, who needs no license key for it: `stonemux token --agent NAME`.

        - `agent_id`: The one agent that the token may act as; any, if left out (1 to 120 characters).

        Answers `Token`. `POST /token/issue`. Refusals: 400 invalid_field, 400 reserved_name, 403 owner_only.
        """
        return self._call(
            "token.issue",
            {
                "agent_id": agent_id,
            },
            idempotency_key,
        )

    def token_rotate(
        self,
        *,
        now: bool = False,
        idempotency_key: str | None = None,
    ) -> TokenRotateAnswer:
        """Sign tokens with a new key. Those of the old key are good for another 24 hours, or with `now` no longer.

        - `now`: End every token there is at once.

        Answers `TokenRotateAnswer`. `POST /token/rotate`. Refusals: 400 invalid_field, 403 owner_only.
        """
        return self._call(
            "token.rotate",
            {
                "now": now,
            },
            idempotency_key,
        )

    def token_revoke(
        self,
        *,
        jti: str | None = None,
        agent_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> TokenRevokeAnswer:
        """Take back one token by its `jti`, or all that an agent has. What waits or streams with it ends at once.

        - `jti`: The token's id, as `jti` stands in it (1 to 128 characters).
        - `agent_id`: The agent all of whose tokens end; `*`: those bound to none (1 to 120 characters).

        Answers `TokenRevokeAnswer`. `POST /token/revoke`. Refusals: 400 invalid_field, 400 missing_field, 403
        owner_only.
        """
        return self._call(
            "token.revoke",
            {
                "jti": jti,
                "agent_id": agent_id,
            },
            idempotency_key,
        )

    def audit_export(
        self,
        *,
        since: str | None = None,
        format: Literal["jsonl"] = "jsonl",
    ) -> str:
        """The audit log as JSON lines: each changing call and each refusal, in a chain of hashes, without contents;
        then a trailer with the count and the last hash. `stonemux audit verify` checks such a file.

        - `since`: The number of the last record that is known already, or a time (RFC 3339) to begin at (1 to 64
          characters).
        - `format`: How the records are written.

        Answers `str`. `GET /audit/export`, tier enterprise. Refusals: 400 invalid_field, 402 upgrade_required, 503
        too_many_waiters.
        """
        return self._call(
            "audit.export",
            {
                "since": since,
                "format": format,
            },
        )

    def license_status(self) -> Entitled:
        """The tier in force, how many agents it has, and the license that it comes from.

        Answers `Entitled`. `GET /license/status`.
        """
        return self._call("license.status", {})

    def license_reload(
        self,
        *,
        idempotency_key: str | None = None,
    ) -> Entitled:
        """Read the license file anew, after it was put in its place or taken away: `stonemux activate`, `deactivate`.

        Answers `Entitled`. `POST /license/reload`. Refusals: 403 owner_only.
        """
        return self._call(
            "license.reload",
            {},
            idempotency_key,
        )

    def license_command(
        self,
        *,
        command: Mapping[str, Any],
        idempotency_key: str | None = None,
    ) -> LicenseCommandAnswer:
        """Obey a command that the licensor has signed: `die` ends the license and leaves the free tier, `live` brings
        it back. It must be newer than the last one. Nothing that is stored is touched.

        - `command`: The signed document.

        Answers `LicenseCommandAnswer`. `POST /license/command`. Refusals: 400 invalid_field, 400 missing_field, 403
        owner_only, 403 sigil_refused.
        """
        return self._call(
            "license.command",
            {
                "command": command,
            },
            idempotency_key,
        )

    def admin_backup(
        self,
        *,
        path: str | None = None,
        idempotency_key: str | None = None,
    ) -> AdminBackupAnswer:
        """Copy the database into the data directory's `backups` folder while everybody goes on: one snapshot, checked
        and synced before it gets its name. `stonemux restore` puts such a file in place.

        - `path`: The copy's file name in that folder; without one it is named after the time (1 to 128 characters).

        Answers `AdminBackupAnswer`. `POST /admin/backup`. Refusals: 400 invalid_field, 409 backup_exists, 500
        backup_failed, 503 storage_busy, 507 storage_full.
        """
        return self._call(
            "admin.backup",
            {
                "path": path,
            },
            idempotency_key,
        )

    def openapi(self) -> dict[str, Any]:
        """OpenAPI 3.1 of all of this.

        Answers `dict[str, Any]`. `GET /openapi.json`.
        """
        return self._call("openapi", {})
