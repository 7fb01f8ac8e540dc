"""The operations as typed methods; the Python client inherits them.

Generated from the operation table; `make docs` rewrites it. Arguments are keywords; an omitted one has the table's
default or, where the docstring says *the client's agent*, the agent of `Client(agent=...)`. Answers are plain dicts,
described by the TypedDicts below; a refusal raises `MuxError`. `events.stream` is `Client.events`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

Names = list[str] | tuple[str, ...]
Ids = list[int] | tuple[int, ...]


class Agent(TypedDict):
    """A record that several operations return."""

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
    """What agent.register returns."""

    agent: Agent
    created: bool
    webhook_secret: NotRequired[str]


class AgentDeregisterAnswer(TypedDict):
    """What agent.deregister returns."""

    agent_id: str
    deregistered: bool
    pending_messages: int
    released_claims: NotRequired[int]


class AgentHeartbeatAnswer(TypedDict):
    """What agent.heartbeat returns."""

    agent_id: str
    status: str
    last_heartbeat: str


class AgentDiscoverAnswer(TypedDict):
    """What agent.discover returns."""

    agents: list[Agent]
    more: NotRequired[bool]


class Doorbell(TypedDict):
    """A record that several operations return."""

    id: str
    url: str
    status: str
    failures: NotRequired[int]
    last_error: NotRequired[str]
    pending: NotRequired[int]


class AgentGetAnswerAgent(Agent):
    """Part of what agent.get returns."""

    unread: int
    claimed_tasks: int
    channels: list[str]
    agent_channel: str
    doorbell: NotRequired[Doorbell]


class AgentGetAnswer(TypedDict):
    """What agent.get returns."""

    agent: AgentGetAnswerAgent


class AgentNotifyAnswer(TypedDict):
    """What agent.notify returns."""

    message_id: int
    channel: str


class MsgSendAnswerRecipient(TypedDict):
    """Part of what msg.send returns."""

    agent_id: str
    status: str


class MsgSendAnswer(TypedDict):
    """What msg.send returns."""

    message_id: int
    sent_at: str
    recipient_status: NotRequired[str]
    recipients: NotRequired[list[MsgSendAnswerRecipient]]


class MsgBroadcastAnswer(TypedDict):
    """What msg.broadcast returns."""

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
"""A record that several operations return."""


class MsgPollAnswerMessage(Message):
    """Part of what msg.poll returns."""

    deliveries: NotRequired[int]
    redelivered: NotRequired[bool]


class MsgPollAnswer(TypedDict):
    """What msg.poll returns."""

    messages: list[MsgPollAnswerMessage]
    more: NotRequired[bool]


class MsgAckAnswer(TypedDict):
    """What msg.ack returns."""

    acked: int


class MsgNackAnswer(TypedDict):
    """What msg.nack returns."""

    id: int
    status: str


class MsgExtendAnswer(TypedDict):
    """What msg.extend returns."""

    id: int
    lease_expires_at: str


class MsgDeadAnswerMessage(Message):
    """Part of what msg.dead returns."""

    deliveries: int
    reason: str
    died_at: str


class MsgDeadAnswer(TypedDict):
    """What msg.dead returns."""

    messages: list[MsgDeadAnswerMessage]
    more: NotRequired[bool]


class MsgRequeueAnswer(TypedDict):
    """What msg.requeue returns."""

    requeued: int


class MsgStatusAnswerRecipient(TypedDict):
    """Part of what msg.status returns."""

    agent_id: str
    status: str
    deliveries: NotRequired[int]
    at: NotRequired[str]
    reason: NotRequired[str]


class MsgStatusAnswer(TypedDict):
    """What msg.status returns."""

    message_id: int
    sent_at: str
    recipients: list[MsgStatusAnswerRecipient]


class MsgListAnswer(TypedDict):
    """What msg.list returns."""

    messages: list[Message]
    more: NotRequired[bool]


class MsgSearchAnswerResult(Message):
    """Part of what msg.search returns."""

    excerpt: str


class MsgSearchAnswer(TypedDict):
    """What msg.search returns."""

    results: list[MsgSearchAnswerResult]
    more: NotRequired[bool]


class TaskHandoff(TypedDict):
    """A record that several operations return."""

    agent_id: str
    note: str
    at: str
    branch: NotRequired[str]
    worktree: NotRequired[str]
    waiting_on: NotRequired[int]


class Task(TypedDict):
    """A record that several operations return."""

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
    max_attempts: NotRequired[int]
    error: NotRequired[str]
    handoff: NotRequired[TaskHandoff]
    waiting_on: NotRequired[int]
    available_at: NotRequired[str]


class TaskPostAnswer(TypedDict):
    """What task.post returns."""

    task_id: str
    task: Task


class TaskClaimAnswer(TypedDict):
    """What task.claim returns."""

    task_id: str | None
    task: Task | None
    claim_token: NotRequired[str]


class Ended(TypedDict):
    """A record that several operations return."""

    task_id: str
    status: str
    task: Task


class TaskCompleteAnswer(Ended):
    """What task.complete returns."""

    replayed: NotRequired[bool]


class TaskExtendAnswer(TypedDict):
    """What task.extend returns."""

    task_id: str
    lease_expires_at: NotRequired[str]
    cancelled: NotRequired[bool]
    task: Task


class TaskDispatchAnswerResultChannel(TypedDict):
    """Part of what task.dispatch returns."""

    id: str
    name: str


class TaskDispatchAnswerResult(TypedDict):
    """Part of what task.dispatch returns."""

    task: Task
    agent: Agent
    channel: TaskDispatchAnswerResultChannel
    notification: Message
    is_new_assignment: bool
    dispatched_at: str
    claim_token: NotRequired[str]


class TaskDispatchAnswer(TypedDict):
    """What task.dispatch returns."""

    results: list[TaskDispatchAnswerResult]


class TaskListAnswer(TypedDict):
    """What task.list returns."""

    tasks: list[Task]
    more: NotRequired[bool]


class History(TypedDict):
    """A record that several operations return."""

    at: str
    act: str
    agent_id: str | None
    attempt: NotRequired[int]
    note: NotRequired[str]


class TaskGetAnswerTask(Task):
    """Part of what task.get returns."""

    depends_on: NotRequired[list[str]]
    history: list[History]


class TaskGetAnswer(TypedDict):
    """What task.get returns."""

    task: TaskGetAnswerTask


class Record(TypedDict):
    """A record that several operations return."""

    key: str
    value: str
    version: int
    updated_by: str | None
    updated_at: str


class StateWatchAnswer(TypedDict):
    """What state.watch returns."""

    changed: bool
    key: str
    version: int
    value: NotRequired[str | None]
    updated_by: NotRequired[str | None]
    updated_at: NotRequired[str]
    deleted: NotRequired[bool]
    reset: NotRequired[bool]


class StateDeleteAnswer(TypedDict):
    """What state.delete returns."""

    key: str
    version: int
    deleted: bool


class StateListAnswer(TypedDict):
    """What state.list returns."""

    keys: list[Record]
    more: NotRequired[bool]


class VersionRow(TypedDict):
    """A record that several operations return."""

    version: int
    value: str | None
    updated_by: str | None
    updated_at: str
    deleted: NotRequired[bool]


class StateHistoryAnswer(TypedDict):
    """What state.history returns."""

    key: str
    versions: list[VersionRow]


class Channel(TypedDict):
    """A record that several operations return."""

    id: str
    name: str
    description: str | None
    members: list[str]
    memberIds: list[str]
    created_by: str | None
    created_at: str
    tags: NotRequired[list[str]]


class ChannelCreateAnswer(TypedDict):
    """What channel.create returns."""

    channel: Channel


class ChannelRow(TypedDict):
    """A record that several operations return."""

    id: str
    name: str
    description: str | None
    members: int
    created_by: str | None
    created_at: str
    tags: NotRequired[list[str]]


class ChannelListAnswer(TypedDict):
    """What channel.list returns."""

    channels: list[ChannelRow]


class ChannelGetAnswer(TypedDict):
    """What channel.get returns."""

    channel: Channel


class ChannelJoinAnswer(TypedDict):
    """What channel.join returns."""

    channel: Channel


class ChannelLeaveAnswer(TypedDict):
    """What channel.leave returns."""

    channel: Channel


class ChannelMessagesAnswer(TypedDict):
    """What channel.messages returns."""

    messages: list[Message]
    more: NotRequired[bool]


class Document(TypedDict):
    """A record that several operations return."""

    id: str
    content_type: str
    title: str | None
    tags: list[str]
    created_by: str | None
    created_at: str
    size: int


class DocumentCreateAnswer(TypedDict):
    """What document.create returns."""

    document: Document


class DocumentGetAnswerDocument(Document):
    """Part of what document.get returns."""

    content: str


class DocumentGetAnswer(TypedDict):
    """What document.get returns."""

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
"""A record that several operations return."""


class InboxListAnswerItem(Item):
    """Part of what inbox.list returns."""

    preview: str


class WholeItem(Item):
    """A record that several operations return."""

    content: str
    metadata: NotRequired[dict[str, Any]]


class InboxListAnswer(TypedDict):
    """What inbox.list returns."""

    items: list[InboxListAnswerItem | WholeItem]
    unread: int
    more: NotRequired[bool]


class InboxShowAnswer(TypedDict):
    """What inbox.show returns."""

    item: WholeItem


class InboxUpdateAnswer(TypedDict):
    """What inbox.update returns."""

    updated: int


class Event(TypedDict):
    """A record that several operations return."""

    id: int
    type: str
    channel: str | None
    at: str
    data: dict[str, Any]


class EventsListAnswer(TypedDict):
    """What events.list returns."""

    events: list[Event]
    head: int
    next: int
    more: NotRequired[bool]
    gap: NotRequired[dict[str, Any]]
    reset: NotRequired[dict[str, Any]]


class Webhook(TypedDict):
    """A record that several operations return."""

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
    """What webhook.add returns."""

    webhook: Webhook
    created: bool
    secret: NotRequired[str]


class WebhookListAnswer(TypedDict):
    """What webhook.list returns."""

    webhooks: list[Webhook]


class WebhookRemoveAnswer(TypedDict):
    """What webhook.remove returns."""

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
"""A record that several operations return."""


class WebhookAttemptsAnswer(TypedDict):
    """What webhook.attempts returns."""

    attempts: list[Attempt]
    more: NotRequired[bool]


class WebhookReplayAnswer(TypedDict):
    """What webhook.replay returns."""

    id: str
    queued: int
    since: NotRequired[int]


class StatsAnswerAgents(TypedDict):
    """Part of what stats returns."""

    active: int
    stale: int
    total: int


class StatsAnswerMessages(TypedDict):
    """Part of what stats returns."""

    stored: int
    sent: int
    unread: int


class StatsAnswerTasks(TypedDict):
    """Part of what stats returns."""

    pending: int
    waiting: int
    claimed: int
    complete: int
    failed: int
    cancelled: int


class StatsAnswerDoorbells(TypedDict):
    """Part of what stats returns."""

    hung: int
    pending: int


class StatsAnswerForwarding(TypedDict):
    """Part of what stats returns."""

    endpoints: int
    retrying: int
    dead: int


class StatsAnswerDeliveries(TypedDict):
    """Part of what stats returns."""

    delivered: int
    failed: int


class StatsAnswerEvents(TypedDict):
    """Part of what stats returns."""

    head: int
    oldest: int


class StatsAnswerStorage(TypedDict):
    """Part of what stats returns."""

    database_bytes: int
    wal_bytes: int


class StatsAnswer(TypedDict):
    """What stats returns."""

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
    """What health returns."""

    status: str
    version: str
    tier: str
    uptime: int


class Token(TypedDict):
    """A record that several operations return."""

    token: str
    expires_at: str
    agent_id: str | None
    jti: str


class TokenRotateAnswer(TypedDict):
    """What token.rotate returns."""

    rotated: bool
    old_until: NotRequired[str]


class TokenRevokeAnswer(TypedDict):
    """What token.revoke returns."""

    revoked: str
    epoch: NotRequired[int]


class EntitledLicense(TypedDict):
    """A record that several operations return."""

    lic_id: str
    tier: str
    seats: int | None
    issued: str
    not_after: str | None
    issuer_key_id: str
    require_tokens: bool
    status: str


class Entitled(TypedDict):
    """A record that several operations return."""

    tier: str
    seats: int | None
    license: EntitledLicense | None
    problem: NotRequired[str]


class LicenseCommandAnswer(TypedDict):
    """What license.command returns."""

    lic_id: str
    cmd: str
    serial: int


class AdminBackupAnswer(TypedDict):
    """What admin.backup returns."""

    path: str
    bytes: int
    events_head: int
    taken_at: str


class Methods:
    """One method per operation, grouped by area; the client carries out the calls."""

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
        """Add an agent to the directory, or replace its record: what is omitted is reset, except the doorbell. The
        agent becomes a member of its home channel and of its own channel `agent-<agent_id>`; both are created on first
        use.

        - `agent_id`: The agent's unique id (1 to 120 characters); the client's agent if omitted.
        - `role`: The agent's role, such as researcher (1 to 128 characters).
        - `capabilities`: What the agent can do; tasks may require these (up to 256 entries).
        - `group`: A group that messages can be addressed to (1 to 128 characters).
        - `channel`: The agent's home channel (1 to 128 characters).
        - `ack`: The acknowledgment mode of polls that do not name one.
        - `metadata`: Any JSON object, passed through unchanged (up to 65536 bytes).
        - `webhook_url`: A doorbell: this URL is called when mail arrives. Empty: remove it; omitted: no change (up to
          2048 bytes; needs tier pro).
        - `webhook_secret`: The secret that signs its deliveries: whsec_ and base64. If omitted, one is generated and
          shown once (up to 256 bytes; needs tier pro).

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
        """Remove an agent from the directory. Its pending messages are kept and are available when it registers again.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if omitted.
        - `release_claims`: Return the tasks it holds to the pool at once.

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
        """Show that an agent is alive. Any other call by the agent counts as a heartbeat, too.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if omitted.
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
        limit: int | None = None,
        after: str | None = None,
    ) -> AgentDiscoverAnswer:
        """Find agents by role, group, capability, channel, or status. Stale agents are omitted unless requested.

        - `role`: Only agents with this role (1 to 128 characters).
        - `group`: Only agents in this group (1 to 128 characters).
        - `capability`: Only agents with this capability (1 to 128 characters).
        - `status`: Only active or only stale agents.
        - `channel`: Only members of this channel (1 to 128 characters).
        - `include_stale`: Include stale agents.
        - `limit`: The maximum number to return; all if omitted (1 to 1000).
        - `after`: The id of the last agent on the previous page (1 to 120 characters).

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
                "limit": limit,
                "after": after,
            },
        )

    def agent_get(
        self,
        *,
        agent_id: str,
    ) -> AgentGetAnswer:
        """One agent, with its channels and the number of its unread messages and claimed tasks.

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
        """Send a notification, such as a restart signal, to an agent's own channel and so to its inbox alone.

        - `agent_id`: The agent to notify (1 to 120 characters).
        - `type`: The kind of notification, such as restart-signal (1 to 128 characters).
        - `content`: The text to deliver (up to 65536 (setting max_message_size) bytes).
        - `metadata`: Any JSON object, passed through unchanged (up to 65536 bytes).
        - `sender`: The sender; the daemon itself if omitted (1 to 120 characters); the client's agent if omitted.

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
        """Deliver a message to an agent's inbox or, with `role:NAME`, `group:NAME`, or `capability:NAME`, to the
        inboxes of all matching members of the channel. A 200 means that it is on disk.

        - `sender`: The sending agent (1 to 120 characters); the client's agent if omitted.
        - `to`: An agent id, role:NAME, group:NAME, or capability:NAME. Optional for a type that the routing table lists
          (1 to 140 characters).
        - `content`: The text to deliver (up to 65536 (setting max_message_size) bytes).
        - `content_ref`: A document's id instead of the text; if the document is too long for a message, the message
          carries a preview (1 to 128 characters).
        - `channel`: The channel; the recipient must be a member (1 to 128 characters).
        - `subject`: A subject line (up to 1024 bytes).
        - `type`: The kind of message, such as question, status, or blocker (1 to 128 characters).
        - `thread`: The thread to put it in (1 to 128 characters).
        - `reply_to`: The message it answers, whose thread it joins unless `thread` names another (at least 0).
        - `priority`: Higher is delivered first (-1000 to 1000; needs tier pro).
        - `metadata`: Any JSON object, passed through unchanged (up to 65536 bytes).
        - `ttl_seconds`: Seconds after which it is no longer delivered (1 to 31536000).
        - `suppress_inbox`: Keep it out of the members' inboxes; the channel's log still has it.
        - `pick`: one: only the least busy active match.

        Answers `MsgSendAnswer`. `POST /msg/send`. Refusals: 400 invalid_field, 400 missing_field, 402 upgrade_required,
        403 agent_mismatch, 404 agent_not_found, 404 channel_not_found, 404 document_not_found, 404 group_not_found, 404
        message_not_found, 404 no_recipient, 409 not_in_channel, 413 message_too_large, 413 too_many_calls, 429
        inbox_full.
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
        """Deliver one message to every other member of a channel, or of a group in it: to all or to none.

        - `sender`: The sending agent (1 to 120 characters); the client's agent if omitted.
        - `content`: The text to deliver (up to 65536 (setting max_message_size) bytes).
        - `content_ref`: A document's id instead of the text; if the document is too long for a message, the message
          carries a preview (1 to 128 characters).
        - `group`: Only members of this group (1 to 128 characters).
        - `channel`: The channel (1 to 128 characters).
        - `subject`: A subject line (up to 1024 bytes).
        - `type`: The kind of message, such as question, status, or blocker (1 to 128 characters).
        - `thread`: The thread to put it in (1 to 128 characters).
        - `reply_to`: The message it answers, whose thread it joins unless `thread` names another (at least 0).
        - `priority`: Higher is delivered first (-1000 to 1000; needs tier pro).
        - `metadata`: Any JSON object, passed through unchanged (up to 65536 bytes).
        - `ttl_seconds`: Seconds after which it is no longer delivered (1 to 31536000).
        - `suppress_inbox`: Keep it out of the members' inboxes; the channel's log still has it.

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
        """Wait for messages. A plain poll takes what is queued, by priority and then id; a message counts as delivered
        once the answer has arrived. `after=N` acknowledges everything up to N and returns everything beyond it, by id,
        so the call is safe to repeat; `after=0` reads everything that is kept. `ack=manual` delivers on a lease, and
        redelivers what was not acknowledged before the lease ran out.

        - `agent_id`: Whose inbox (1 to 120 characters); the client's agent if omitted.
        - `timeout`: Seconds to wait; values above the daemon's maximum are capped at it (0 to 120 (setting
          poll_timeout_max); higher values are capped).
        - `channel`: Only messages of this channel (1 to 128 characters).
        - `types`: Only messages of these types; the others stay queued (up to 256 entries).
        - `limit`: The maximum number to return (1 to 1000).
        - `after`: The last id processed (at least 0).
        - `ack`: manual: deliver on a lease and wait for msg.ack.
        - `lease`: Seconds for which a delivered message is hidden from other polls (1 to 43200).
        - `redeliver`: First requeue what plain polls took in the last hour, unless msg.ack or inbox.update acknowledged
          it since.

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
        """Acknowledge messages for good: those in `ids`, or all up to `through`. Once the call is answered, no later
        poll returns them. Messages acknowledged before are not counted again.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if omitted.
        - `ids`: The messages to acknowledge (up to 1000 entries).
        - `through`: Acknowledge every message up to this id (at least 0).

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
        """Return a leased message to the queue for redelivery; one delivered too many times becomes a dead letter.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if omitted.
        - `id`: The message's id (at least 0).
        - `delay`: Seconds before it is redelivered (0 to 43200).

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
        """Extend a message's lease to `lease` seconds from now.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if omitted.
        - `id`: The message's id (at least 0).
        - `lease`: Seconds for which a delivered message is hidden from other polls (1 to 43200).

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
        """An agent's dead letters: messages delivered too many times without being acknowledged, or whose time to live
        ran out.

        - `agent_id`: Whose dead letters (1 to 120 characters).
        - `limit`: The maximum number to return (1 to 1000).

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
        """Requeue dead letters with their delivery count reset; those whose time to live ran out no longer have one.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if omitted.
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
        """The status of a message for each recipient, and since when: queued, notified (its doorbell rang), fetched,
        acked, or dead.

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
        """Message history, newest first, whatever the status of the messages.

        - `channel`: Only this channel (1 to 128 characters).
        - `agent_id`: Only messages from or to this agent (1 to 120 characters).
        - `thread`: Only this thread (1 to 128 characters).
        - `before`: Only ids below this one (at least 0).
        - `after`: Only ids above this one (at least 0).
        - `limit`: The maximum number to return (1 to 1000).

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
        """Full-text search of contents and subjects, best match first, with an excerpt that encloses the matching words
        in ** and **. In Chinese, Japanese, and Korean, any part of a sentence is a word.

        - `q`: Words that must all occur; put a phrase in quotes (up to 1024 bytes).
        - `channel`: Only this channel (1 to 128 characters).
        - `agent_id`: Only messages from or to this agent (1 to 120 characters).
        - `limit`: The maximum number to return (1 to 1000).

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
        """Add a task to a channel's pool.

        - `description`: What to do (up to 65536 (setting max_message_size) bytes).
        - `posted_by`: The posting agent (1 to 120 characters); the client's agent if omitted.
        - `required_capability`: Only agents that registered this capability may claim it (1 to 128 characters).
        - `priority`: Higher is claimed first (-1000000 to 1000000).
        - `channel`: The channel (1 to 128 characters).
        - `metadata`: Any JSON object, passed through unchanged (up to 65536 bytes).
        - `depends_on`: Ids of tasks that must complete first; one that failed or was cancelled can be requeued (up to
          256 entries).
        - `assigned_to`: Only this agent may claim it (1 to 120 characters).
        - `claim_timeout`: The lease of a claim, in seconds; task_claim_timeout if omitted (1 to 86400).
        - `max_attempts`: Attempts before it fails for good; 0: no limit (0 to 1000).

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
        """Claim the pending task with the highest priority, then the oldest, that matches the agent's capabilities.
        Exactly one agent gets it. `task_id` and `task` are null if nothing matches.

        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if omitted.
        - `channel`: The channel (1 to 128 characters).
        - `timeout`: Seconds to wait; values above the daemon's maximum are capped at it (0 to 120 (setting
          poll_timeout_max); higher values are capped).
        - `task_id`: Claim only this task (1 to 64 characters).

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
        """Finish a claimed task. Repeating the same completion is safe; the answer then has `replayed`.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if omitted.
        - `result`: The outcome (up to 65536 (setting max_message_size) bytes).
        - `status`: How it ended.
        - `retry`: With failed: return it to the pool after a delay, until its attempts run out.
        - `claim_token`: The token that task.claim returned; tells whether the holder's claim is still the latest one (1
          to 128 characters).

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
        """Renew a claim's lease in full. The answer carries `cancelled` if the task has been cancelled.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if omitted.
        - `claim_token`: The token that task.claim returned; tells whether the holder's claim is still the latest one (1
          to 128 characters).

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
        """Return a claimed task to the pool.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if omitted.
        - `claim_token`: The token that task.claim returned; tells whether the holder's claim is still the latest one (1
          to 128 characters).
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
        """End a claim and return the task to the pool, with a note that the next agent to claim it sees as `handoff`;
        any assignment ends. With `waiting_on`, the task waits until somebody else replies in that message's thread, or
        for 24 hours.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if omitted.
        - `note`: What the next agent needs to know (up to 65536 (setting max_message_size) bytes).
        - `branch`: The branch the work is on (up to 1024 bytes).
        - `worktree`: The folder the work is in (up to 4096 bytes).
        - `waiting_on`: A message that must be answered first (at least 0).
        - `claim_token`: The token that task.claim returned; tells whether the holder's claim is still the latest one (1
          to 128 characters).

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
        """Assign one or more tasks to an agent and notify it in its own channel: all or none. The notice's metadata has
        type (task-assignment, or task-reassignment if another agent had it), task_id, priority, restart, dispatched_at,
        dispatched_by, and whatever `metadata` adds. A task that another agent holds cannot be dispatched unless
        `restart` ends that claim.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `task_ids`: The UUIDs of several tasks (up to 100 entries).
        - `agent_id`: The agent to assign them to (1 to 120 characters).
        - `priority`: The tasks' new priority (-1000000 to 1000000).
        - `restart`: Start over: end a live claim, no matter who holds it.
        - `mark_as_started`: Claim them for the agent; the notice carries the claim_token.
        - `notification_message`: What the notice says; the task's description if omitted (up to 65536 (setting
          max_message_size) bytes).
        - `metadata`: More metadata for the notice, such as branch, worktree, and session_id (up to 65536 bytes).
        - `dispatched_by`: The dispatching agent; the daemon itself if omitted (1 to 120 characters); the client's agent
          if omitted.

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
        - `agent_id`: Only tasks that this agent holds, has held, or is assigned (1 to 120 characters).
        - `capability`: Only tasks that require this capability (1 to 128 characters).
        - `limit`: The maximum number to return (1 to 1000).
        - `after`: The id of the last task on the previous page (1 to 64 characters).

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
        """One task with its history.

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
        """Withdraw a task that is not finished. The agent that holds it learns of this at its next extend or complete.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `by`: The cancelling agent; must be the poster if given (1 to 120 characters); the client's agent if omitted.

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
        """Return a failed or cancelled task to the pool with its attempt count reset.

        - `task_id`: The task's UUID (1 to 64 characters).
        - `by`: The requeuing agent (1 to 120 characters); the client's agent if omitted.

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
        """Set a key. `expected_version` makes it a compare-and-set, which fails with 409 if the key is at another
        version.

        - `key`: The key (1 to 256 characters).
        - `value`: The new value (up to 65536 (setting max_message_size) bytes).
        - `channel`: The channel (1 to 128 characters).
        - `expected_version`: Change only if the key exists at exactly this version; 0: only if it does not exist (at
          least 0).
        - `updated_by`: The agent making the change (1 to 120 characters); the client's agent if omitted.

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
        """Wait until a key's version passes `after_version`. The answer has its latest state; versions in between may
        be skipped. On timeout, `changed` is false.

        - `key`: The key (1 to 256 characters).
        - `channel`: The channel (1 to 128 characters).
        - `after_version`: The version already known (at least 0).
        - `timeout`: Seconds to wait; values above the daemon's maximum are capped at it (0 to 120 (setting
          poll_timeout_max); higher values are capped).
        - `agent_id`: The waiting agent; the call counts as its heartbeat (1 to 120 characters); the client's agent if
          omitted.

        Answers `StateWatchAnswer`. `GET /state/watch`, tier pro. Refusals: 400 invalid_field, 400 invalid_timeout, 400
        missing_field, 402 upgrade_required, 403 agent_mismatch, 404 agent_not_found, 404 channel_not_found, 503
        too_many_waiters.
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
        """Delete a key. A tombstone keeps its version, so a key created again continues the count. Its old values leave
        the history after `message_retention`. A key that does not exist is 404, or 409 if `expected_version` says that
        it does.

        - `key`: The key (1 to 256 characters).
        - `channel`: The channel (1 to 128 characters).
        - `expected_version`: Change only if the key exists at exactly this version; 0: only if it does not exist (at
          least 0).
        - `updated_by`: The agent making the change (1 to 120 characters); the client's agent if omitted.

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
        """A channel's live keys, in order of name.

        - `channel`: The channel (1 to 128 characters).
        - `prefix`: Only keys with this prefix (1 to 256 characters).
        - `limit`: The maximum number to return (1 to 1000).
        - `after`: The last key on the previous page (1 to 256 characters).

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
        - `limit`: The maximum number to return (1 to 1000).

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
        """Create a team channel. Its creator and the listed agents are its first members.

        - `name`: The channel's name (1 to 128 characters).
        - `created_by`: The creating agent (1 to 120 characters); the client's agent if omitted.
        - `description`: What the channel is for (up to 4096 bytes).
        - `members`: Agents that are members from the start (up to 256 entries).
        - `tags`: Keywords to find it by (up to 256 entries).

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
        """All channels, with their member counts.

        - `agent_id`: Only channels that this agent is a member of (1 to 120 characters).

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
        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if omitted.

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
        """Remove an agent from a channel. Messages already delivered stay in its inbox.

        - `channel`: The channel's name or id (1 to 128 characters).
        - `agent_id`: The acting agent (1 to 120 characters); the client's agent if omitted.

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
        """A channel's log, newest first: every message in it that is still kept, including those that suppress_inbox
        kept out of inboxes.

        - `channel`: The channel's name or id (1 to 128 characters).
        - `before`: Only ids below this one (at least 0).
        - `limit`: The maximum number to return (1 to 1000).

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
        """Store a text that messages refer to with `content_ref`, because it is too long for a message or is sent more
        than once. It is kept as long as any stored message refers to it, and at least as long as a message of the same
        age.

        - `content`: The text (up to 10485760 (setting max_document_size) bytes).
        - `content_type`: Its media type (1 to 128 characters).
        - `created_by`: The creating agent (1 to 120 characters); the client's agent if omitted.
        - `tags`: Keywords that describe it (up to 256 entries).
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
        """A document with its full content.

        - `id`: The document's id, as in a message's `content_ref` (1 to 128 characters).

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
        """List an inbox, newest first, without taking anything. An item is unread while a poll would still deliver its
        message (or has it on a lease), read once it was delivered, acknowledged, or marked read, and archived once it
        was put away. No inbox shows dead letters.

        - `agent_id`: Whose inbox (1 to 120 characters); the client's agent if omitted.
        - `status`: Only items with this status; all: any.
        - `full`: Full contents instead of previews of 200 characters.
        - `limit`: The maximum number to return (1 to 1000).
        - `before`: Only items whose message ids are below this one (at least 0).

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
        """One item with its full content, even if its message carries only a document's preview. Its status does not
        change.

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
        """Mark items read, unread, or archived: all or none. Read acknowledges them, so that no poll returns them.
        Unread requeues them for the next poll. Archived acknowledges them and puts them away. `all` means every item
        that is not archived.

        - `agent_id`: Whose inbox (1 to 120 characters); the client's agent if omitted.
        - `ids`: The items to mark (up to 1000 entries).
        - `every`: Instead of ids: every item that is not archived.
        - `status`: The new status.

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
        """The event log after an id, as JSON; with `timeout`, it waits for the first event. To continue, pass `next` as
        `after`.

        - `after`: The last id seen (at least 0).
        - `types`: Only events of these types (message, message_dead, task_posted, task_claimed, task_completed,
          task_failed, task_released, task_requeued, task_cancelled, task_assigned, task_ready, state_changed,
          agent_registered, agent_deregistered, agent_stale, channel_created, channel_joined, channel_left,
          document_created, webhook_disabled).
        - `channel`: Only this channel (1 to 128 characters).
        - `agent_id`: Only events that concern this agent (1 to 120 characters).
        - `limit`: The maximum number to return (1 to 1000).
        - `timeout`: Seconds to wait; values above the daemon's maximum are capped at it (0 to 120 (setting
          poll_timeout_max); higher values are capped).

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
        """Forward events to a URL, each in full, signed as Standard Webhooks, in order of id; or change an endpoint,
        which also enables it again if it was disabled. An event that cannot be delivered is retried for three days and
        then kept as a dead letter.

        - `url`: The URL to deliver to (up to 2048 bytes).
        - `types`: Only events of these types (message, message_dead, task_posted, task_claimed, task_completed,
          task_failed, task_released, task_requeued, task_cancelled, task_assigned, task_ready, state_changed,
          agent_registered, agent_deregistered, agent_stale, channel_created, channel_joined, channel_left,
          document_created, webhook_disabled).
        - `channel`: Only events of this channel (1 to 128 characters).
        - `secret`: The secret that signs deliveries: whsec_ and base64. If omitted, one is generated and shown once for
          a new endpoint or a new URL (up to 256 bytes).
        - `ordered`: A failed event holds up those after it.
        - `since`: Start after this event; if omitted, with the next new event (at least 0).
        - `id`: The endpoint to change; if omitted, a new one is created (1 to 64 characters).

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
        """The endpoints that events are forwarded to, how far each has come, and what could not be delivered to it.

        Answers `WebhookListAnswer`. `GET /webhook/list`, tier enterprise. Refusals: 402 upgrade_required.
        """
        return self._call("webhook.list", {})

    def webhook_remove(
        self,
        *,
        id: str,
        idempotency_key: str | None = None,
    ) -> WebhookRemoveAnswer:
        """Stop forwarding to an endpoint; its dead letters are removed, too.

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
        """Every delivery attempt, newest first: both forwarding and doorbells.

        - `id`: Only attempts at this endpoint or doorbell (1 to 64 characters).
        - `agent_id`: Only attempts at this agent's doorbell (1 to 120 characters).
        - `before`: Only attempts with a smaller attempt_id (at least 0).
        - `limit`: The maximum number to return (1 to 1000).

        Answers `WebhookAttemptsAnswer`. `GET /webhook/attempts`, tier enterprise. Refusals: 400 invalid_field, 402
        upgrade_required, 404 agent_not_found, 404 webhook_not_found.
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
        """Deliver again to an endpoint: all events after one, or specific events, or, without either, all dead letters.

        - `id`: The endpoint (1 to 64 characters).
        - `since`: All kept events after this one (at least 0).
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
        """Counts of agents, messages, tasks, keys, channels, waiters, and bytes.

        Answers `StatsAnswer`. `GET /stats`.
        """
        return self._call("stats", {})

    def health(self) -> HealthAnswer:
        """Whether the daemon is serving, with its version, tier, and uptime in seconds. Never needs a token.

        Answers `HealthAnswer`. `GET /health`.
        """
        return self._call("health", {})

    def metrics(self) -> str:
        """The counts in Prometheus text format.

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
        """Get a token by presenting the key of the active license. With `agent_id`, it may act only as that agent. Send
        it in the header `Authorization: Bearer TOKEN` of every call; it lasts for `auth.token_ttl`.

        - `license_key`: The license key, `SX-XXXX-XXXX-XXXX-XXXX` (up to 128 bytes).
        - `agent_id`: The only agent that the token may act as; any if omitted (1 to 120 characters).

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
        """Issue a token as the machine's owner, who needs no license key for it: `stonemux token --agent NAME`.

        - `agent_id`: The only agent that the token may act as; any if omitted (1 to 120 characters).

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
        """Sign tokens with a new key. Tokens signed with the old one stay valid for another 24 hours or, with `now`,
        end at once.

        - `now`: End every existing token at once.

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
        """Revoke one token by its `jti`, or all of an agent's tokens. Calls and streams that are open with a revoked
        token end at once.

        - `jti`: The token's id: its `jti` claim (1 to 128 characters).
        - `agent_id`: The agent whose tokens all end; `*`: those bound to no agent (1 to 120 characters).

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
        """The audit log as JSON lines: each changing call and each refusal, in a hash chain, without contents; then a
        trailer with the count and the last hash. `stonemux audit verify` checks such a file.

        - `since`: The number of the last record already known, or a time (RFC 3339) to start at (1 to 64 characters).
        - `format`: The format of the records.

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
        """The tier in force, how many agents it allows, and the license it comes from.

        Answers `Entitled`. `GET /license/status`.
        """
        return self._call("license.status", {})

    def license_reload(
        self,
        *,
        idempotency_key: str | None = None,
    ) -> Entitled:
        """Reload the license file after it was added or removed, as `stonemux activate` and `stonemux deactivate` do.

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
        """Apply a command signed by the licensor: `die` ends the license and leaves the free tier, `live` restores it.
        It must be newer than the last one. Stored data is not touched.

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
        """Copy the database into the data directory's `backups` folder without interrupting anything: one snapshot,
        checked and synced before it gets its name. `stonemux restore` restores such a file.

        - `path`: The copy's file name in that folder; if omitted, it is named after the time (1 to 128 characters).

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
        """This API as an OpenAPI 3.1 document.

        Answers `dict[str, Any]`. `GET /openapi.json`.
        """
        return self._call("openapi", {})
