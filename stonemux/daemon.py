"""The life cycle of a daemon: open the data directory, serve until told to stop, and shut down in order.

It starts in this order: settings, data directory (locked), store (checked, migrated), boot (leases renewed), socket,
then the banner. It stops in reverse: no new connections, parked calls answered, streams notified, queued changes
committed, write-ahead log checkpointed, lock released.

A signal handler only writes to a pipe that the main thread reads (see `signals`); everything else happens in sequence
on that thread. SIGTERM and SIGINT end the daemon; SIGHUP makes it read its settings again, or ends it when its terminal
is gone.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable
from shlex import quote

from stonemux import VERSION, config, launch, logs, operations, signals, timekeeper
from stonemux.clock import Clock
from stonemux.config import Settings, authority, check_safe
from stonemux.datadir import ADDRESS, OWNER_TOKEN
from stonemux.errors import MuxError
from stonemux.httpd import STACK_BYTES, Server
from stonemux.mux import opened
from stonemux.outbound import Outbound
from stonemux.signals import Signals
from stonemux.telemetry import Telemetry

log = logging.getLogger("stonemux")


class Daemon:
    """A running daemon; `serve` blocks until `stop` is called or a signal arrives."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None, accept_rollback: bool = False) -> None:
        """Start everything, including the listening socket; raises MuxError, with an exit status, if that fails."""
        check_safe(settings)
        _allow_files(settings.open_files)
        threading.stack_size(STACK_BYTES)
        clock = clock or Clock()
        self.settings = settings
        self.failure: MuxError | None = None
        self._signals = Signals()  # never closed, so that a late `stop` cannot write to a reused descriptor
        with contextlib.ExitStack() as undo:
            self.mux = undo.enter_context(opened(settings, clock, accept_rollback=accept_rollback))
            self.mux.store.on_fatal = self._fail
            directory = self.mux.store.directory
            timekeeper.boot(self.mux)
            operations.load()
            self.server = Server(self.mux)
            try:  # the token comes last: commands show it only to who listens at that address
                directory.write_passing(ADDRESS, authority(settings.host, self.server.port) + "\n")
                directory.write_passing(OWNER_TOKEN, self.mux.tokens.owner + "\n")
                self._start()
            except BaseException:
                self.server.server_close()
                raise
            self._undo = undo.pop_all()

    def _start(self) -> None:
        with contextlib.ExitStack() as undo:
            self._timekeeper = timekeeper.Timekeeper(self.mux)
            self._timekeeper.start()
            undo.callback(self._timekeeper.stop)
            self._outbound = Outbound(self.mux)
            self._outbound.start()
            undo.callback(self._outbound.stop)
            self.mux.entitlement.watchers.append(self._outbound.kick)  # what waits for a higher tier may go out now
            self._telemetry = Telemetry(self.mux)
            self._telemetry.start()
            undo.callback(self._telemetry.stop)
            self._door = threading.Thread(target=self.server.serve_forever, name="door", daemon=True)
            self._door.start()
            undo.pop_all()

    @property
    def url(self) -> str:
        """The address it listens on."""
        return f"{self.settings.scheme}://{authority(self.settings.host, self.server.port)}"

    def _fail(self, error: MuxError) -> None:
        """Stop with the error's exit status: the storage can no longer be trusted."""
        log.critical("%s", error.message)
        self.failure = error
        self.stop()

    def stop(self) -> None:
        """Make `serve` return; any thread may call this."""
        self._signals.put(signals.NONE)

    def heed_signals(self) -> None:
        """Let SIGTERM and SIGINT end `serve`, and SIGHUP make it read the settings again."""
        self._signals.listen(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def serve(self, reread: Callable[[], Settings] | None = None) -> int:
        """Wait for the end, then shut down in order; returns the exit status. `reread` returns the current settings."""
        while self._signals.next() == signal.SIGHUP and not _terminal_is_gone():
            if reread is not None:
                self.reload(reread)
        self.close()
        return self.failure.failure.exit if self.failure is not None else 0

    def reload(self, reread: Callable[[], Settings]) -> None:
        """Apply changed settings and a new certificate; logs what has changed and what requires a restart."""
        old = self.mux.settings
        try:
            wanted = reread()
            check_safe(wanted)  # report now what the next start would refuse
            settings, live, waiting = config.reread(old, wanted)
        except MuxError as error:
            log.error("the settings are unchanged: %s", error.message)
            return
        self.mux.heed(settings)
        self.server.heed()
        try:
            self.server.read_certificate()
        except MuxError as error:
            log.error("the certificate is unchanged: %s", error.message)
        logs.set_up(settings.log_level, settings.log_format)
        for setting in live:
            was, now = (getattr(one, setting.attribute) for one in (old, settings))
            log.warning("%s changed from %s to %s", setting.name, was, now)
        for setting in waiting:
            log.warning("%s will change when the daemon restarts", setting.name)
        log.warning("the settings were reloaded: %d changed, %d will change at the next start", len(live), len(waiting))

    def close(self) -> None:
        """Shut down: answer waiting calls, commit what is queued, and unlock the data directory."""
        self.mux.store.hasten()
        self.server.stop()
        self._door.join()
        self.server.server_close()
        self._telemetry.stop()
        self._outbound.stop()
        with contextlib.suppress(MuxError):
            self._timekeeper.stop()
        self._undo.close()


def serve(
    settings: Settings,
    *,
    accept_rollback: bool,
    say: Callable[[Daemon], None],
    reread: Callable[[], Settings] | None = None,
) -> int:
    """Run a daemon until SIGTERM or SIGINT, and return the exit status.

    `say` is called once the daemon listens; `reread` is called at SIGHUP, for the settings as they are then.
    """
    try:
        daemon = Daemon(settings, accept_rollback=accept_rollback)
    except RuntimeError as trouble:
        if "thread" not in str(trouble):
            raise
        raise MuxError(
            "too_many_waiters", f"the system allows this user no more threads ({trouble}); see ulimit -u, or try again"
        ) from trouble
    _calm_collector()
    daemon.heed_signals()
    try:
        say(daemon)
    except OSError:  # nobody reads it, or the disk behind it is full: no reason not to serve
        from stonemux import output  # needed only here

        output.mute()
    log.info("stonemux %s is serving %s from %s", VERSION, daemon.url, settings.data_dir)
    status = daemon.serve(reread)
    log.info("stonemux stopped")
    return status


def _terminal_is_gone() -> bool:
    """Whether this process ran in a terminal that was closed: that, too, sends SIGHUP, and means the end."""
    for fd in range(3):
        try:
            os.tcgetpgrp(fd)
        except OSError as trouble:
            if trouble.errno == errno.EIO:
                return True
    return False


def _calm_collector() -> None:
    """Exempt what exists from garbage collection, and collect cycles less often.

    With the default settings, the collector scanned everything that a thousand parked calls hold, which took several
    milliseconds each time and caused the slowest percent of wake-ups and a tenth of all sends. Requests create hardly
    any cycles.
    """
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    gc.enable()


def banner(daemon: Daemon) -> str:
    """What the user needs to know after the start, and what to type next."""
    look = f"{launch.typed()} status{launch.at(daemon.server.port)}"
    if daemon.settings.tls_cert:
        look = f"STONEMUX_TLS_CERT={quote(daemon.settings.tls_cert)} {look}"
    if daemon.mux.tokens.required and daemon.settings.data_dir != Settings().data_dir.expanduser():
        look += f" --data-dir {quote(str(daemon.settings.data_dir))}"  # which holds the owner's token
    rows = [
        ("listening", daemon.url),
        *([("socket", daemon.settings.unix_socket)] if daemon.settings.unix_socket else []),
        ("data", str(daemon.settings.data_dir)),
        ("tier", daemon.mux.tier),
        ("try", look),
        ("stop", "Ctrl-C"),
    ]
    return "\n".join([f"stonemux {VERSION}", *(f"  {name:<10}{value}" for name, value in rows)])


def _allow_files(needed: int) -> None:
    """Raise the soft limit of open files to what the settings need; raises `bad_setting` if the system forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, needed)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted > soft:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < needed:
        raise MuxError(
            "bad_setting",
            f"server.max_connections and max_waiters need {needed} open files, but this system allows {hard}; lower "
            "them, or raise the limit (ulimit -n)",
        )
