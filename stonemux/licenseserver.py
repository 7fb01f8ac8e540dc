"""A license server: hands out the license documents for keys, and receives heartbeats.

It is the daemon's HTTP interface with another table of operations, on a store of its own in the issuer's folder. It
needs no tokens: anyone who has a key may have its license, and a heartbeat is answered only with signed documents.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stonemux import operations
from stonemux.clock import Clock
from stonemux.config import Settings, check_safe
from stonemux.connection import Connection
from stonemux.entitlement import ISSUER
from stonemux.exchange import Exchange, by_path
from stonemux.httpd import Server
from stonemux.issuer import Issuer
from stonemux.mux import Caller, Mux, opened
from stonemux.record import replace
from stonemux.schema import MOST_INTEGER, REQUIRED, TIERS, Operation, Param
from stonemux.signals import Signals
from stonemux.wire import Head

log = logging.getLogger("stonemux")

FOLDER = "server"
PORT = 3393
_INSTALL = Param("install_id", "name", REQUIRED, most=64, doc="A random id of the installation.")

ROWS: tuple[Operation, ...] = (
    Operation(
        "activate",
        "POST",
        "/activate",
        "act",
        "licenseserver.activate",
        "The signed license of a key.",
        slow=True,
        params=(Param("key", "text", REQUIRED, most=128, doc="The license key."), _INSTALL),
        returns={"license": "object"},
        open=True,
        errors=("license_checksum", "license_malformed", "license_unknown"),
        example={"key": "SX-0000-0000-0000-0000", "install_id": "x"},
    ),
    Operation(
        "heartbeat",
        "POST",
        "/heartbeat",
        "act",
        "licenseserver.heartbeat",
        "Hear that an installation runs; answers with the last command for its license, if there is one.",
        slow=True,
        params=(
            _INSTALL,
            Param("version", "name", REQUIRED, most=64, doc="The version of stonemux."),
            Param("tier", "text", REQUIRED, choices=TIERS, doc="The tier that is in force."),
            Param("agent_count", "integer", REQUIRED, least=0, most=MOST_INTEGER, doc="How many agents there are."),
        ),
        returns={"command?": "object"},
        open=True,
        example={"install_id": "x", "version": "1.0", "tier": "pro", "agent_count": 2},
    ),
    operations.BY_NAME["health"],
)


def _issuer(mux: Mux) -> Issuer:
    return Issuer(mux.settings.data_dir.parents[1], mux.clock)


def activate(mux: Mux, caller: Caller, *, key: str, install_id: str) -> dict[str, Any]:
    """Return the license of a key and remember which installation has it."""
    issuer = _issuer(mux)
    document = issuer.find(key)
    (_directory(mux) / _file(install_id)).write_text(document["lic_id"])
    log.info("license %s was activated by %s", document["lic_id"], install_id)
    return {"license": document}


def heartbeat(
    mux: Mux, caller: Caller, *, install_id: str, version: str, tier: str, agent_count: int
) -> dict[str, Any]:
    """Log the heartbeat, and answer with the last command for the installation's license."""
    log.info("installation %s runs %s as %s with %d agents", install_id, version, tier, agent_count)
    with contextlib.suppress(FileNotFoundError):
        lic_id = (_directory(mux) / _file(install_id)).read_text()
        command = _issuer(mux).last_command(lic_id)
        if command is not None:
            return {"command": command}
    return {}


def _directory(mux: Mux) -> Path:
    folder = mux.settings.data_dir / "installs"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _file(install_id: str) -> str:
    """A safe file name for an id that a stranger has chosen."""
    from hashlib import sha256

    return install_id if re.fullmatch("[0-9a-f-]{36}", install_id) else sha256(install_id.encode()).hexdigest()


class _LicenseExchange(Exchange):
    """A request to this table of operations."""

    __slots__ = ()
    routes = by_path(ROWS)


class LicenseServer(Server):
    """The HTTP server with this table of operations."""

    def handle(self, connection: Connection, head: Head, body: bytes) -> None:
        """Handle a request."""
        _LicenseExchange(self, connection, head).run(body)


class LicenseDaemon:
    """A running license server; `close` stops it."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        """Start it; raises `license_unknown` if there is no issuer, and whatever a daemon's start raises."""
        clock = clock or Clock()
        Issuer(settings.data_dir, clock)
        settings = replace(
            settings,
            data_dir=settings.data_dir / ISSUER / FOLDER,
            unix_socket="",
            auth_tokens="required",
            default_tier="enterprise",
            audit_enabled=False,  # strangers call it, and could fill the disk with audit entries
        )
        check_safe(settings)
        with contextlib.ExitStack() as undo:
            self.server = LicenseServer(undo.enter_context(opened(settings, clock)))
            self._undo = undo.pop_all()
        self.port = self.server.port
        self._door = threading.Thread(target=self.server.serve_forever, name="door", daemon=True)
        self._door.start()

    def close(self) -> None:
        """Answer the running requests and release everything."""
        self.server.stop()
        self._door.join()
        self.server.server_close()
        self._undo.close()


def serve(settings: Settings, *, say: Callable[[int], None]) -> None:
    """Run a license server until SIGTERM or SIGINT; calls `say` with its port."""
    daemon = LicenseDaemon(settings)
    signals = Signals()
    try:
        signals.listen(signal.SIGTERM, signal.SIGINT)
        say(daemon.port)
        signals.next()
    finally:
        daemon.close()
        signals.close()
