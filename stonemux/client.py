"""The Python client: `from stonemux import Client`.

Each operation is a method (see `methods`, which is generated from the table of operations; `calls` explains retries).
This module adds short forms for common loops: messages and tasks whose leases are extended during the work and that are
settled afterward (see `consume`), and keys and events that are followed across daemon restarts (see `follow`).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Self

from stonemux import consume, follow
from stonemux.calls import Calls
from stonemux.consume import Claim, Messages
from stonemux.follow import StreamedEvent
from stonemux.keeper import Keeper
from stonemux.methods import Names, Record, StateWatchAnswer


class Client(Calls):
    """A connection to a daemon, usable from any number of threads.

    `url` is `http://HOST:PORT`, or just `HOST:PORT`, or `https://HOST:PORT` for a daemon with the certificate that
    STONEMUX_TLS_CERT or the settings file names. Without `url`, STONEMUX_HOST and STONEMUX_PORT and then the settings
    file apply, as for every command. `agent` is the agent that acts where a call names none (STONEMUX_AGENT). `token`
    is the bearer token (STONEMUX_TOKEN), or a function that gets one and is called again when a token has expired.
    `timeout` is how many seconds a call may take, including retries, in addition to the time that it is asked to wait;
    0 tries once.

    Each operation is a method, `client.msg_send(to="writer", content="hi")`, which returns a dict or raises `MuxError`.
    `close`, or leaving the `with` block, ends the calls that are running in other threads. A forked process may
    continue to use its copy.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        agent: str | None = None,
        token: str | Callable[[], str] | None = None,
        timeout: float = 15.0,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        super().__init__(url, agent=agent, token=token, timeout=timeout, environ=environ)
        self._keeper = Keeper(self._clock)
        _CLIENTS.add(self)

    def __repr__(self) -> str:
        return f"Client({self.url!r}, agent={self.agent!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls running in other threads end with `unreachable`."""
        self._keeper.close()
        super().close()

    def forget(self) -> None:
        """Drop what belongs to the parent process; called automatically in a forked process."""
        self._keeper.forget()
        super().forget()

    def messages(
        self,
        agent: str | None = None,
        *,
        channel: str | None = None,
        types: Names | None = None,
        lease: int = 60,
        timeout: float | None = None,
        stop: threading.Event | None = None,
    ) -> Messages:
        """Loop over an agent's messages; each is acknowledged when the loop's body is done with it.

        `channel` and `types` leave all other messages in the inbox. While the body runs, the lease of `lease` seconds
        (1 to 43,200) is extended. An exception or `break` puts the message back, to be delivered again at once; a
        message that was delivered too often becomes a dead letter. The loop ends when nothing has come for `timeout`
        seconds, or within a second after `stop` is set; otherwise never. Raises `MuxError`, such as `agent_not_found`,
        `channel_not_found`, and `unreachable` if the daemon stays away.
        """
        return Messages(
            self, self._keeper, agent, channel=channel, types=types, lease=lease, timeout=timeout, stop=stop
        )

    def claimed(
        self,
        agent: str | None = None,
        *,
        channel: str = "default",
        timeout: int = 0,
        task_id: str | None = None,
        retry: bool = False,
    ) -> AbstractContextManager[Claim | None]:
        """Claim a task for the length of a `with` block; None if there is none after waiting `timeout` seconds.

        With `task_id`, only that task. While the block runs, the claim is extended. At its end, the task is completed
        with `task.result`, a text of up to `max_message_size` bytes or None. An exception fails the task with the
        exception's text (with `retry`, the task is tried again after a delay) and propagates; an interruption
        (KeyboardInterrupt, SystemExit) gives the task back. `task.cancelled` is true once its poster has cancelled it.
        Raises `MuxError`: what `task_claim` and `task_complete` raise, such as `agent_not_found`, or `stale_claim` if
        another agent has the task by now.
        """
        return consume.claimed(
            self, self._keeper, agent, channel=channel, timeout=timeout, task_id=task_id, retry=retry
        )

    def watch(
        self,
        key: str,
        *,
        channel: str = "default",
        after_version: int = 0,
        timeout: float | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[StateWatchAnswer]:
        """Yield a key's versions after `after_version` as they are written; some in quick succession may be skipped.

        Ends when nothing has changed for `timeout` seconds, or within a second after `stop` is set; otherwise never. A
        version with `reset` means that the daemon's version is behind the one already known, as after a restore.
        Raises `MuxError`, such as `channel_not_found`.
        """
        return follow.watch(self, key, channel=channel, after_version=after_version, timeout=timeout, stop=stop)

    def update(
        self, key: str, function: Callable[[str | None], str | None], *, channel: str = "default"
    ) -> Record | None:
        """Change a key to `function(value)` by compare-and-set, so that no change is lost; returns the new record.

        The function gets None if the key does not exist, is called again if another writer was faster, and may return
        None to leave the key alone; `update` then returns None. Raises `version_conflict` if other writers were faster
        a thousand times.
        """
        return follow.update(self, key, function, channel=channel)

    def events(
        self,
        after: int | None = None,
        *,
        types: Names | None = None,
        channel: str | None = None,
        agent_id: str | None = None,
        timeout: float | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[StreamedEvent]:
        """Yield events as they happen, starting after the id `after` (0: from the oldest that is kept).

        Continues where it was when the daemon restarts. A `gap` event names the events that are no longer kept; a
        `reset` event means that the id lies in the future, or that the daemon came back with another log, such as an
        older copy of its data: read everything anew then. Ends when nothing has come for `timeout` seconds (with 0,
        once all that the log holds has come), or within a second after `stop` is set; otherwise never. Raises
        `MuxError`, such as `invalid_last_event_id`.
        """
        return follow.events(self, after, types=types, channel=channel, agent_id=agent_id, timeout=timeout, stop=stop)


_CLIENTS: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork() -> None:
    for client in _CLIENTS:
        client.forget()


os.register_at_fork(after_in_child=_after_fork)
