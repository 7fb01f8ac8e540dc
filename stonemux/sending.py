"""Who receives a message (one agent, a role, a group, a capability, a channel), and what it contains.

The content is text or a document (`content_ref`): the document's text if it fits into a message, else a preview.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from stonemux import directory, documents, mentions, messages
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.schema import shown
from stonemux.transaction import Tx
from stonemux.vocabulary import EVERYBODY


def send(
    tx: Tx,
    *,
    sender: str,
    to: str | None,
    content: str | None,
    content_ref: str | None,
    channel: str,
    subject: str | None,
    type: str | None,
    thread: str | None,
    reply_to: int | None,
    priority: int,
    metadata: dict[str, Any] | None,
    ttl_seconds: int | None,
    suppress_inbox: bool,
    pick: str,
) -> dict[str, Any]:
    """Put a message into one agent's inbox, or into those of a role, group or capability."""
    directory.agent(tx, sender, "from")
    routed = to is None
    if to is None:
        to = _routed(tx, type)
    if to.startswith(directory.ADDRESS_PREFIXES):
        channel = directory.channel(tx, channel)["name"]
        recipients = _matching(tx, to, channel, sender, pick, active_only=routed)
        addressed_to_one = False
    else:
        channel = _shared_channel(tx, to, channel)
        recipients = [to]
        addressed_to_one = True
    if suppress_inbox and not addressed_to_one:  # an agent addressed by name gets it anyway
        recipients = []
    text, truncated = _said(tx, content, content_ref)
    message_id = messages.post(  # a dictionary of arguments would cost as much as storing them
        tx,
        sender=sender,
        to=to,
        content=text,
        channel=channel,
        recipients=recipients,
        subject=subject,
        type=type,
        thread=thread,
        reply_to=reply_to,
        priority=priority,
        metadata=metadata,
        ttl_seconds=ttl_seconds,
        content_ref=content_ref,
        truncated=truncated,
        mentions=() if addressed_to_one else _mentioned(tx, channel, sender, text),
    )
    answer: dict[str, Any] = {"message_id": message_id, "sent_at": rfc3339(tx.now)}
    status = tx.mux.presence.status
    if addressed_to_one:
        answer["recipient_status"] = status(to)
    else:
        answer["recipients"] = [{"agent_id": agent_id, "status": status(agent_id)} for agent_id in recipients]
    return answer


def _said(tx: Tx, content: str | None, content_ref: str | None) -> tuple[str, bool]:
    """A message's text (given, or taken from the document), and whether that is truncated."""
    if content is not None:
        return content, False
    assert content_ref is not None
    return documents.quoted(tx, content_ref)


def _mentioned(tx: Tx, channel: str, sender: str, text: str) -> Sequence[str]:
    """The other members of the channel whom the text mentions."""
    if "@" not in text:
        return ()
    return [name for name in mentions.find(text, directory.member_set(tx, channel)) if name != sender]


def _shared_channel(tx: Tx, agent_id: str, channel: str) -> str:
    """The name of a direct message's channel; raises `not_in_channel` unless the recipient is a member."""
    if directory.is_member(tx, channel, agent_id):
        return channel
    if directory.find_agent(tx, agent_id) is None:
        raise directory.unknown_agent(tx, agent_id, "to", _whom_it_means(tx, agent_id, channel))
    name: str = directory.channel(tx, channel)["name"]  # the caller may have given its id
    if directory.is_member(tx, name, agent_id):
        return name
    theirs = directory.channels_of(tx, agent_id)[: directory.MOST_LISTED]
    raise MuxError(
        "not_in_channel",
        f"{agent_id!r} is not a member of channel {name!r}; send in one of its channels ({', '.join(theirs)}), or add "
        "it with channel.join",
        channels=theirs,
    )


def _whom_it_means(tx: Tx, name: str, channel: str) -> str:
    """How to reach those whom a sender means who gives this name for an agent; "" if nobody else has it either."""
    if name in (EVERYBODY, "all", "everyone", "everybody"):
        return "msg.broadcast sends to all members of a channel"
    if directory.find_channel(tx, name) is not None:
        return f"{shown(name)} is a channel: msg.broadcast sends to its members"
    named = directory.channel_called(tx, channel)
    rows = directory.member_rows(tx, named["name"]) if named is not None else []
    for sort, names in (
        ("role", (row[1] for row in rows)),
        ("group", (row[2] for row in rows)),
        ("capability", (one for row in rows for one in row[3])),
    ):
        if name in names:
            return f"send to {shown(f'{sort}:{name}')} for the agents with that {sort}"
    return ""


def _routed(tx: Tx, type: str | None) -> str:
    """The address of a message without `to`: the role that the routing table names for its type."""
    routing = tx.mux.settings.routing
    if type is None:
        raise MuxError(
            "missing_field", "to is required: an agent id, role:NAME, group:NAME, or capability:NAME", parameter="to"
        )
    if type not in routing:
        raise MuxError(
            "missing_field",
            f"to is required for a message of type {type!r}; without it, the type must be one of: {', '.join(routing)}",
            parameter="to",
            routed_types=sorted(routing),
        )
    return f"role:{routing[type]}"


def _matching(tx: Tx, to: str, channel: str, sender: str, pick: str, *, active_only: bool) -> list[str]:
    """The members of a channel whom an address matches, without the sender.

    Raises `group_not_found` for a group that nobody is in, and `no_recipient` if no such member is there.
    """
    active_only = active_only or pick == "one"
    sort, _, name = to.partition(":")
    everyone = [row for row in directory.member_rows(tx, channel) if row[0] != sender]
    place = {"role": slice(1, 2), "group": slice(2, 3)}.get(sort)
    named = [(row[0], row[3] if place is None else row[place]) for row in everyone]
    matching = found = [agent_id for agent_id, names in named if name in names]
    if active_only:
        found = [agent_id for agent_id in found if tx.mux.presence.status(agent_id) == "active"]
    if pick == "one":
        found = _least_busy(tx, found)
    if not found:
        if sort == "group":
            _known_group(tx, name)
        present = heapq.nsmallest(directory.MOST_LISTED, {one for _, names in named for one in names if one})
        raise _nobody(to, channel, present, matching[:5])
    return found


def _nobody(to: str, channel: str, present: list[str], stale: list[str]) -> MuxError:
    sort = to.partition(":")[0]
    if stale:
        who = f"no active agent matches {shown(to)} in channel {channel!r}"
        remedy = f"Stale: {', '.join(stale)}; to reach one of these anyway, name it in to"
    else:
        who = f"no agent other than the sender matches {shown(to)} in channel {channel!r}"
        remedy = f"Present there: {', '.join(present) or 'nobody with a ' + sort}; agent.discover shows who is where"
    facts: dict[str, Any] = {"stale": stale} if stale else {}
    return MuxError("no_recipient", f"{who}. {remedy}", parameter="to", present=present, **facts)


def _least_busy(tx: Tx, candidates: list[str]) -> list[str]:
    def load(agent_id: str) -> tuple[int, int, str]:
        claimed = tx.one("select count(*) from task where owner = ? and status = 'claimed'", agent_id)[0]
        return (claimed, messages.backlog(tx, agent_id), agent_id)

    return [min(candidates, key=load)] if candidates else []


def broadcast(
    tx: Tx,
    *,
    sender: str,
    content: str | None,
    content_ref: str | None,
    group: str | None,
    channel: str,
    suppress_inbox: bool,
    **optional: Any,
) -> dict[str, Any]:
    """Put a message into the inbox of every other member of a channel (or of a group in it): all of them or none."""
    directory.agent(tx, sender, "from")
    channel = directory.channel(tx, channel)["name"]
    if group is None:
        recipients = [agent_id for agent_id in directory.members(tx, channel) if agent_id != sender]
    else:
        _known_group(tx, group)
        recipients = [row[0] for row in directory.member_rows(tx, channel) if row[2] == group and row[0] != sender]
    if suppress_inbox:
        recipients = []
    text, truncated = _said(tx, content, content_ref)
    message_id = messages.post(
        tx,
        sender=sender,
        to=EVERYBODY if group is None else f"group:{group}",
        content=text,
        channel=channel,
        recipients=recipients,
        content_ref=content_ref,
        truncated=truncated,
        mentions=_mentioned(tx, channel, sender, text),
        **optional,
    )
    return {
        "message_id": message_id,
        "sent_at": rfc3339(tx.now),
        "recipients": len(recipients),
        "recipient_ids": recipients,
    }


def _known_group(tx: Tx, group: str) -> None:
    if tx.one("select 1 from agent where grp = ? and deregistered_at is null limit 1", group) is None:
        known = [
            row[0]
            for row in tx.sql(
                "select distinct grp from agent where grp is not null and deregistered_at is null order by grp limit 20"
            )
        ]
        raise MuxError(
            "group_not_found",
            f"no registered agent is in group {shown(group)} (group); an agent names its group when it registers. "
            f"Known, for example: {', '.join(known) or 'none'}",
            known_groups=known,
        )
