"""Constants of the interface that both the table of operations and its handlers use."""

from __future__ import annotations

from typing import Any

EVENT_KINDS = (
    "message",
    "message_dead",
    "task_posted",
    "task_claimed",
    "task_completed",
    "task_failed",
    "task_released",
    "task_requeued",
    "task_cancelled",
    "task_assigned",
    "task_ready",
    "state_changed",
    "agent_registered",
    "agent_deregistered",
    "agent_stale",
    "channel_created",
    "channel_joined",
    "channel_left",
    "document_created",
    "webhook_disabled",
)
"""The types of events."""

TASK_STATUSES = ("pending", "waiting", "claimed", "complete", "failed", "cancelled")

MAX_ATTEMPTS = 10
"""How many attempts a task has unless its poster says otherwise."""

ITEM_STATUSES = ("unread", "read", "archived")
"""The statuses of an inbox item."""

AGENT_CHANNEL_PREFIX = "agent-"
"""The prefix of the names of agents' own channels."""


def generate_agent_channel_name(agent_id: str) -> str:
    """The name of an agent's own channel."""
    return AGENT_CHANNEL_PREFIX + agent_id


def parse_agent_channel_name(name: str) -> str | None:
    """The agent whose own channel this is; None for any other channel."""
    agent_id = name.removeprefix(AGENT_CHANNEL_PREFIX)
    return agent_id if agent_id and agent_id != name else None


SYSTEM = "stonemux"
"""The sender of the daemon's own messages; no agent has this id."""

EVERYBODY = "*"
"""The recipient of a broadcast."""

NO_TASK: dict[str, Any] = {"task_id": None, "task": None}
"""The answer of a claim that found nothing."""

KEPT_VERSIONS = 100
"""How many versions of a key `state.history` can show."""
