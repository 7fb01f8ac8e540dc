"""The Python client: `from stonemux import Client`.

Each operation is a method (`methods`, generated from the table), called as `calls` says; what stands here makes the
common loops short: messages and tasks that are extended while one works on them and settled afterwards (`consume`),
keys and events that are followed over restarts of the daemon (`follow`).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from stonemux import consume, follow
from stonemux.calls import Calls
from stonemux.consume import Claim, Messages
from stonemux.follow import StreamedEvent
from stonemux.keeper import Keeper
from stonemux.methods import Names, Record, StateWatchAnswer


class Client(Calls):
    """A connection to a daemon, for any number of threads.

    `url` is `http://HOST:PORT`, or just `HOST:PORT`, or `https://HOST:PORT` for a daemon with the certificate that
    STONEMUX_TLS_CERT or the settings file names; without one, STONEMUX_HOST and STONEMUX_PORT, then the settings
    file decide, as they do for every command. `agent` is who acts where a call does not say (STONEMUX_AGENT), `token`
    what shows that one may (STONEMUX_TOKEN), or a function that gets one, called again when a token has run out.
    `timeout` is how many seconds a call may take, trying again included, beyond the time that it is asked to wait; 0
    tries once.

    Each operation is a method, `client.msg_send(to="writer", content="hi")`, which answers a dict or raises `MuxError`.
    `close`, or leaving the `with` block, ends the calls that are running in other threads. A process that was forked
    may go on with its copy.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls that run in other threads end with `unreachable`."""
        self._keeper.close()
        super().close()

    def forget(self) -> None:
        """In a process that was forked, where this is called by itself: go on without what is the parent's."""
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
        """Loop over an agent's messages, each acknowledged when the loop's body is done with it.

        While the body works, the lease of `lease` seconds is extended. An exception, or `break`, puts the message back,
        to be delivered again at once; what was delivered too often becomes a dead letter. The loop ends when nothing
        came for `timeout` seconds, or within a second of `stop` being set; otherwise never.
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
        """Claim a task for the length of a `with` block; None when there is none, after waiting `timeout` seconds.

        While the block runs, the claim is extended. At its end the task is completed with `task.result`; an exception
        fails it with the exception's text (with `retry`, puts it back to be tried again after a while) and goes on; an
        interruption (KeyboardInterrupt, SystemExit) gives it back. `task.cancelled` says that nobody wants it any more.
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
        """The versions of a key as they are written, the one after `after_version` first; quick ones may be skipped.

        Ends when nothing changed for `timeout` seconds, or within a second of `stop` being set; otherwise never. A
        version with `reset` says that the daemon's counting is behind what was known, as after a restore.
        """
        return follow.watch(self, key, channel=channel, after_version=after_version, timeout=timeout, stop=stop)

    def update(
        self, key: str, function: Callable[[str | None], str | None], *, channel: str = "default"
    ) -> Record | None:
        """Change a key to what the function makes of its value, so that no other change is lost; the new record.

        The function gets None where the key does not exist, is called again when somebody else was faster, and
        returns None to leave the key alone, which answers None.
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
        """Events as they happen, those after the id `after` first (0: all that are kept).

        Goes on where it was when the daemon restarts. `gap` is an event that says what is no longer kept, `reset` one
        that says that the id lies in the future; read everything anew then. Ends when nothing came for `timeout`
        seconds, or within a second of `stop` being set; otherwise never.
        """
        return follow.events(self, after, types=types, channel=channel, agent_id=agent_id, timeout=timeout, stop=stop)


_CLIENTS: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork() -> None:
    for client in _CLIENTS:
        client.forget()


os.register_at_fork(after_in_child=_after_fork)
