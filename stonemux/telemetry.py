"""The daily heartbeat to a license server, which is telemetry and nothing else.

It is sent only if a license server is set, a license is active, and `license.heartbeat` is not false. Its content is
what `body` returns, which docs/license.md lists. Only one part of the answer matters: a command that the licensor has
signed, which is judged like one from a file (`license.command`). A server that is down, slow, wrong or lying changes
nothing, for however long.

It is sent by a separate thread, which nobody waits for and which sleeps until the next heartbeat is due.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from stonemux import VERSION, door, licenseclient
from stonemux.clock import DAY_MS
from stonemux.datadir import note_install, read_install
from stonemux.errors import MuxError
from stonemux.mux import Caller, Mux
from stonemux.operations import BY_NAME
from stonemux.tokens import OWNER

log = logging.getLogger("stonemux")


class Telemetry:
    """The thread; `beat` sends a heartbeat if one is due, which tests may call."""

    def __init__(self, mux: Mux) -> None:
        self._mux = mux
        self._folder = mux.store.directory.path
        self._condition = threading.Condition()
        self._stopping = self._stirred = False
        self.last = 0
        """When the last one was sent (`Clock.now_ms`), whether or not it arrived."""

    def start(self) -> None:
        """Start the thread, if heartbeats are to be sent."""
        settings = self._mux.settings
        if settings.license_server and settings.license_heartbeat:
            self._mux.entitlement.watchers.append(self._wake)
            threading.Thread(target=self._run, name="telemetry", daemon=True).start()

    def stop(self) -> None:
        """End the thread; a heartbeat in progress is abandoned."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        with self._condition:
            self._stirred = True
            self._condition.notify()

    def _run(self) -> None:
        clock = self._mux.clock
        while not self._stopping:
            self._stirred = False  # cleared first, so that changes during the work cause another round
            try:
                self.beat()
            except Exception:
                log.exception("the heartbeat failed")
                self.last = clock.now_ms()
            with self._condition:
                if not self._stirred:
                    left = self.last + DAY_MS - clock.now_ms()
                    clock.wait(self._condition, clock.ticks_ms() + left if left > 0 else None)

    def beat(self) -> bool:
        """Send a heartbeat if one is due; returns whether it was."""
        mux = self._mux
        settings = mux.settings
        if not settings.license_server or not settings.license_heartbeat or mux.entitlement.license is None:
            return False
        install_id, noted = read_install(self._folder, mux.clock.new_id)
        self.last = max(self.last, noted)
        if mux.clock.now_ms() < self.last + DAY_MS:
            return False
        self.last = mux.clock.now_ms()
        note_install(self._folder, install_id, self.last)
        try:
            answer = licenseclient.post(settings.license_server, "/heartbeat", body(mux, install_id))
        except licenseclient.NoUse as trouble:
            log.info("the heartbeat did not arrive, which changes nothing: %s", trouble)
            return True
        if type(answer.get("command")) is dict:
            self._obey(answer["command"])
        return True

    def _obey(self, command: dict[str, Any]) -> None:
        caller = Caller()
        caller.principal = OWNER
        try:
            door.call(self._mux, BY_NAME["license.command"], {"command": command}, caller)
        except MuxError as error:
            log.warning("the license server sent an invalid command: %s", error.message)


def body(mux: Mux, install_id: str) -> dict[str, Any]:
    """Everything that a license server is told."""
    return {
        "install_id": install_id,
        "version": VERSION,
        "tier": mux.tier,
        "agent_count": sum(mux.presence.counts()),
    }
