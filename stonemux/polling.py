"""One endpoint, three ways to read an inbox: plain, with a cursor, or with leases."""

from __future__ import annotations

from typing import Any

from stonemux import directory, leases, messages
from stonemux.errors import MuxError
from stonemux.mux import Caller, Mux, Wait


def poll(
    mux: Mux,
    caller: Caller,
    *,
    agent_id: str,
    timeout: int,
    channel: str | None,
    types: list[str] | None,
    limit: int,
    ack: str | None,
    lease: int,
    after: int | None,
    redeliver: bool,
) -> Wait:
    """Wait until there is mail, or until `timeout` seconds have passed, and return it."""
    if channel is not None or not mux.presence.knows(agent_id):
        with mux.store.read() as rx:
            directory.agent(rx, agent_id)
            if channel is not None:
                channel = directory.channel(rx, channel)["name"]
    if after is not None and ack == "manual":
        raise MuxError(
            "invalid_field",
            "after and ack=manual are two ways to acknowledge; use only one of them",
            parameter="after",
        )
    if after is not None and types is not None:
        raise MuxError(
            "invalid_field",
            "a cursor acknowledges every message it passes, so it cannot skip types; use types without after",
            parameter="types",
        )
    fresh = True

    def look() -> dict[str, Any] | None:
        nonlocal fresh
        if fresh:
            if redeliver:
                if after is not None:  # a call that is refused changes nothing
                    with mux.store.read() as rx:
                        messages.check_cursor(rx, agent_id, after, "after")
                # What is still in flight is queued again when its flight ends. Before the write: it may land meanwhile.
                mux.flights.recall(agent_id, mux.flights.held(agent_id))
                mux.store.write(lambda tx: leases.redeliver(tx, agent_id, tx.now - messages.REDELIVERED_MS))
            if after is not None:
                messages.acknowledge_through(mux, agent_id, after, channel)
            fresh = False
        if after is not None:
            return messages.read_after(mux, agent_id, channel, limit, after, caller.room)
        if (ack or mux.presence.ack_mode(agent_id)) == "manual":
            return leases.take(mux, caller, agent_id, channel, types, limit, lease)
        return messages.take(mux, caller, agent_id, channel, types, limit)

    writes = redeliver or after is not None or (ack or mux.presence.ack_mode(agent_id)) == "manual"
    return messages.wait_for_mail(mux, agent_id, timeout, look, writes=writes)
