"""`stonemux run`: starts a command for each task that an agent claims, or for each message that it gets.

This gives you a worker that lives only while there is work: the runner waits, the command works. Whatever happens to
either, the task is safe with the daemon:

- While a command runs, the runner renews its lease. If the runner dies, the lease expires and another agent gets the
  task; if the daemon goes away, the runner waits for it to come back.
- If the command exits with 0, the task is complete, and its output is the result. With `LATER` (75), the task goes back
  to the pool. With any other status it failed, and the end of the command's standard error says why.
- If the poster cancels the task, the command is stopped. If the command itself gave the task away (released it, handed
  it off, completed it), which it may do, nothing is reported when it ends.
- If the runner is told to stop, it takes no more work, stops its commands, and gives their tasks back.

Stopping means SIGTERM to the command and everything it started, and SIGKILL after a grace period.

One thread takes work, and one watches for cancellations. Each command has three threads: one waits for its end, one
renews its lease, and one listens to it (`ears`). `Runner._lock` guards the set of running commands and what was
cancelled before it is in there; `_Job._lock` guards the state of one command.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stonemux import ears, signals
from stonemux.client import Client
from stonemux.clock import Clock
from stonemux.errors import EXIT_OK, EXIT_REFUSED, MuxError
from stonemux.pieces import ClaimedTask, LeasedMessage, Piece
from stonemux.record import Record
from stonemux.screen import counted

LATER = 75
"""The exit status (EX_TEMPFAIL) with which a command asks for its task to go back to the pool."""
LATER_S = 30
"""How long such a task cannot be claimed; without this delay it would come right back."""
WAIT_S = 30
"""How long one call waits for work at most."""
AGAIN_MS = 2000
"""The pause before retrying a daemon that does not answer, or that has no room for another waiting call."""
PATIENCE_S = 60.0
"""How long a call to a daemon that went away is retried."""
KEEPING_S = 5.0
"""The same for renewing a lease; short, because the command cannot be killed meanwhile."""
MOST_OUTPUT = 10 * 1024 * 1024
"""How many bytes of a command's output are kept."""
TAIL_BYTES = 4000
"""How many bytes from the end of standard error are used to explain a failure."""
MOST_REASON = 1000
UNAVAILABLE = 503
PASSING = (429, UNAVAILABLE, 507)
"""The statuses of refusals that time may cure: too much at once, a daemon that stops, a full disk."""
OVER = ("stale_claim", "already_complete", "not_claim_owner", "task_conflict", "task_not_found")
"""Refusals that mean that the runner no longer holds the task."""
SETTLED = ("message_not_found", "not_delivered")
"""The same for a message."""


class Orders(Record):
    """What a runner is to do."""

    agent: str
    command: tuple[str, ...]
    capabilities: tuple[str, ...] = ()
    channel: str | None = None
    messages: bool = False
    reply: bool = False
    parallel: int = 1
    once: bool = False
    retry: bool = False
    lease_s: int = 60
    """For messages only; a task has its own lease."""
    grace_s: int = 10
    beat_ms: int = 60_000
    """How often the agent shows that it is alive (`coordination.heartbeat_interval`): by waiting for work, and by
    renewing a lease, which otherwise happens after a third of its duration."""

    @property
    def wait_s(self) -> int:
        """How long one call waits for work."""
        return max(1, min(WAIT_S, self.beat_ms // 1000))


class Runner:
    """A runner: `run` works until another thread calls `stop`."""

    def __init__(
        self,
        orders: Orders,
        environ: Mapping[str, str],
        say: Callable[[str], None],
        emit: Callable[[str], None],
    ) -> None:
        """`say` reports what happens, `emit` gets the output of commands that goes nowhere else.

        Raises `not_found` for a command that does not exist, and whatever a Client raises.
        """
        self.orders = orders
        self.environ = dict(environ) | {"STONEMUX_AGENT": orders.agent}
        self.say = say
        self._emit = emit
        self.clock = Clock()
        self.program = _program(orders.command, environ)
        self.client = Client(agent=orders.agent, timeout=PATIENCE_S, environ=environ)
        self.keeping = Client(agent=orders.agent, timeout=KEEPING_S, environ=environ)
        self._taking = Client(agent=orders.agent, environ=environ)
        self._watching = Client(agent=orders.agent, environ=environ)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._jobs: set[_Job] = set()
        self._early: list[Any] | None = None
        """While a piece of work is taken: the cancellations that came, one of which may be its own."""
        self._threads: list[threading.Thread] = []
        self.stopping = False
        self._status = EXIT_OK
        self._failure: Exception | None = None

    def run(self) -> int:
        """Register, and work until the end; returns the exit status.

        Raises what the daemon refuses, `not_found` for a command that cannot be started, and whatever `emit` raises.
        """
        try:
            self._register()
            if not self.orders.messages:
                head = self._head()  # before any task is taken, or an early cancellation would be missed
                threading.Thread(target=self._watch, args=(head,), name="watch", daemon=True).start()
            self._take_all()
            self._await_all()
        finally:
            self.stop()
            self._await_all()
            self.client.close()
            self.keeping.close()
        if self._failure is not None:
            raise self._failure
        return self._status

    def stop(self, *, now: bool = False) -> None:
        """Take no more work, stop the commands, and give their work back.

        With `now`, commands get no grace period and the daemon is not told: the leases expire on their own.
        """
        with self._lock:
            first, self.stopping = not self.stopping, True
            jobs = list(self._jobs)
            self._changed.notify_all()
        if first and jobs:
            self.say(f"stopping {counted(len(jobs), 'command')}")
        for job in jobs:
            job.stop("stopped", now=now)
        if first:
            self._taking.close()
            self._watching.close()
        if now:
            self.client.close()  # do not wait for a daemon that is away: the leases expire

    def _await_all(self) -> None:
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _register(self) -> None:
        """Register the agent if it is unknown; of a known agent, change only what was asked for."""
        orders = self.orders
        try:
            known = self.client.agent_get(agent_id=orders.agent)["agent"]
        except MuxError as error:
            if error.code != "agent_not_found":
                raise
            self.client.agent_register(
                agent_id=orders.agent, capabilities=orders.capabilities, channel=orders.channel or "default"
            )
            return
        if orders.capabilities and set(known["capabilities"]) != set(orders.capabilities):
            kept = {name: known[name] for name in ("role", "group", "channel", "ack", "metadata") if name in known}
            self.client.call(
                "agent.register", kept | {"agent_id": orders.agent, "capabilities": list(orders.capabilities)}
            )

    # -- taking work

    def _take_all(self) -> None:
        while self._has_room():
            with self._lock:
                self._early = []
            try:
                piece = self._take()
            except MuxError as error:
                if self.stopping:
                    return
                if error.code == "agent_not_found":
                    self._register()
                elif error.code == "unreachable" or error.status in PASSING:
                    self.say(f"{error.message}; trying again")
                    self._pause()
                else:
                    raise
                continue
            if piece is not None and not self._begin(piece):
                return

    def _has_room(self) -> bool:
        """Wait until another command may run; False if no more work is to be taken."""
        with self._lock:
            while len(self._jobs) >= self.orders.parallel and not self.stopping:
                self._changed.wait()
            return not self.stopping

    def _take(self) -> Piece | None:
        orders = self.orders
        if orders.messages:
            got = self._taking.msg_poll(
                timeout=orders.wait_s, channel=orders.channel, limit=1, ack="manual", lease=orders.lease_s
            )["messages"]
            return LeasedMessage(got[0], orders.lease_s, reply=orders.reply, emit=self._emit) if got else None
        claim = self._taking.task_claim(timeout=orders.wait_s, channel=orders.channel or "default")
        return ClaimedTask(claim, retry=orders.retry) if claim["task_id"] else None

    def _begin(self, piece: Piece) -> bool:
        """Start the command; False if no more work is to be taken."""
        job = _Job(self, piece)
        thread = threading.Thread(target=self._see_through, args=(job,), name=piece.name)
        with self._lock:
            stopping = self.stopping
            if any(map(piece.is_ended_by, self._early or ())):
                job.stop("cancelled")
            self._early = None
            if not stopping:
                try:
                    thread.start()
                except RuntimeError as trouble:
                    raise job.not_started(trouble) from trouble
                self._jobs.add(job)
                self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        if stopping:
            job.give_back("the runner was stopped")
        return not stopping and not self.orders.once

    def _see_through(self, job: _Job) -> None:
        well = False
        try:
            well = job.run()
        except Exception as error:
            self._failure = self._failure or error
            self.stop()
        with self._lock:
            self._jobs.remove(job)
            if self.orders.once and not well:
                self._status = EXIT_REFUSED
            self._changed.notify_all()

    def _pause(self) -> None:
        deadline = self.clock.ticks_ms() + AGAIN_MS
        with self._lock:
            while not self.stopping and self.clock.ticks_ms() < deadline:
                self.clock.wait(self._changed, deadline)

    # -- cancellations

    def _head(self) -> int | None:
        """The id of the newest event; None if it cannot be had, which `_watch` deals with."""
        try:
            return self._watching.events_list(after=0, limit=1)["head"]
        except MuxError:
            return None

    def _watch(self, after: int | None) -> None:
        """Stop the commands of cancelled tasks as soon as they are cancelled, from the event `after` on.

        Without this, a cancellation is noticed when the lease is next renewed, so a refusal here does no harm.
        """
        while not self.stopping:
            try:
                if after is None:
                    after = self._watching.events_list(after=0, limit=1)["head"]
                    continue
                seen = self._watching.events_list(after=after, types=["task_cancelled"], timeout=WAIT_S)
            except MuxError as error:
                if error.status in (401, 402, 403):
                    return
                self._pause()
                continue
            after = seen["next"]
            for event in seen["events"]:
                with self._lock:
                    ended = [job for job in self._jobs if job.piece.is_ended_by(event)]
                    if self._early is not None:
                        self._early.append(event)
                for job in ended:
                    job.stop("cancelled")


class _Job:
    """One running command. `_lock` guards its state; `_turn` notifies its keeper thread of a change."""

    def __init__(self, runner: Runner, piece: Piece) -> None:
        self.piece = piece
        self._runner = runner
        self._client = runner.client
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False
        """Whether the command has ended; from then on, it is too late to stop it."""
        self._why = ""
        """Why the command is stopped: "cancelled", "stopped", or "lost"."""
        self._kill_at: int | None = None
        """When the command's grace period ends (ticks)."""
        self._held = True
        self._unreported = False
        """Whether the daemon refused to hear the outcome."""

    def run(self) -> bool:
        """Run the command to its end and report to the daemon; returns whether all went well.

        Raises `not_found` if the command cannot be started, and what `emit` raises; its work has then been given back.
        """
        runner, piece = self._runner, self.piece
        begun = runner.clock.ticks_ms()
        runner.say(f"{piece.name}: started")
        status, output, errors = (0, "", "") if self._why else self._run()
        with self._lock:
            self._over = True
        outcome = self._settle(status, output, errors)
        runner.say(f"{piece.name}: {outcome} after {(runner.clock.ticks_ms() - begun) / 1000:.1f} s")
        return status == 0 and not self._why and not self._unreported

    def _run(self) -> tuple[int, str, str]:
        """Run the command to its end; returns its status, and what it said as output and as errors."""
        heard: list[ears.Ear] = []
        try:
            heard.append(ears.Ear(MOST_OUTPUT))
            heard.append(ears.Ear(TAIL_BYTES, latest=True))
            process, keeper = self._start(*heard)
        except (OSError, ValueError, RuntimeError) as trouble:  # no room, or no such text in an environment
            for ear in heard:
                ear.close()
            raise self.not_started(trouble) from trouble
        status = process.wait()
        with self._lock:
            self._over = True
            self._turn.notify_all()
        keeper.join()
        if self._why:
            signals.to_session(process.pid, signal.SIGKILL)  # processes that it left behind
        output, errors = (ear.finish() for ear in heard)
        return status, output, errors

    def _start(self, output: ears.Ear, errors: ears.Ear) -> tuple[subprocess.Popen[bytes], threading.Thread]:
        """Start the command, and the threads that listen to it and renew its lease."""
        with tempfile.TemporaryFile() as given:
            given.write(json.dumps(self.piece.told).encode() + b"\n")
            given.seek(0)
            process = subprocess.Popen(
                self._runner.program,
                stdin=given,
                stdout=output.mouth,
                stderr=errors.mouth,
                env=self._runner.environ | self.piece.environ,
                start_new_session=True,
            )
        with self._lock:
            self._process = process
            if self._why:  # stopped before the process existed
                signals.to_session(process.pid, signal.SIGTERM)
        keeper = threading.Thread(target=self._keep, args=(process,), name=f"{self.piece.name} keeper")
        try:
            keeper.start()
            ears.listen(output, errors)
        except RuntimeError:
            signals.to_session(process.pid, signal.SIGKILL)
            process.wait()
            with self._lock:
                self._over = True
                self._turn.notify_all()
            raise
        return process, keeper

    def not_started(self, trouble: Exception) -> MuxError:
        """Give the work back, because its command could not be started; returns the error to raise."""
        why = f"cannot be started: {getattr(trouble, 'strerror', None) or trouble}"
        self.give_back(f"its command {why}")
        return MuxError("not_found", f"{self._runner.program[0]} {why}")

    def stop(self, why: str, *, now: bool = False) -> None:
        """Stop the command; `now` skips its grace period."""
        with self._lock:
            if self._over:
                return
            self._why = self._why or why
            ticks = self._runner.clock.ticks_ms()
            if now:
                self._kill_at = ticks
            elif self._kill_at is None:
                self._kill_at = ticks + self._runner.orders.grace_s * 1000
                if self._process is not None:
                    signals.to_session(self._process.pid, signal.SIGTERM)
            self._turn.notify_all()

    # -- the lease

    def _keep(self, process: subprocess.Popen[bytes]) -> None:
        """Renew the lease while the command runs, and kill the command when its grace period ends."""
        clock = self._runner.clock
        extend_at = clock.ticks_ms() + self._pace()
        while True:
            with self._lock:
                if self._over:
                    return
                due = extend_at if self._kill_at is None else self._kill_at
                if clock.ticks_ms() < due:
                    clock.wait(self._turn, due)
                    continue
                if self._kill_at is not None:
                    signals.to_session(process.pid, signal.SIGKILL)
                    return
            self._extend()
            extend_at = clock.ticks_ms() + self._pace()

    def _pace(self) -> int:
        return min(self.piece.lease_ms // 3, self._runner.orders.beat_ms)

    def _extend(self) -> None:
        if not self._held:
            return
        try:
            cancelled = self.piece.extend(self._runner.keeping)
        except MuxError as error:
            if error.code not in OVER + SETTLED:
                return  # the daemon is away, and gives a fresh lease when it comes back
            with self._lock:
                self._held = False
            if error.code == "stale_claim":
                self._runner.say(f"{self.piece.name}: no longer ours")
                self._lose()
            return
        if cancelled:
            self.stop("cancelled")

    def _lose(self) -> None:
        """Another agent may have the task now: let the command end on its own, but only for its grace period."""
        grace_ms = self._runner.orders.grace_s * 1000
        deadline = self._runner.clock.ticks_ms() + grace_ms
        with self._lock:
            while not self._over and self._runner.clock.ticks_ms() < deadline:
                self._runner.clock.wait(self._turn, deadline)
        self.stop("lost")

    # -- the end

    def _settle(self, status: int, output: str, errors: str) -> str:
        """Report the outcome to the daemon; returns it in one word. Raises what `emit` raises."""
        if self._why == "cancelled":
            return "cancelled"
        if not self._held or self._why == "lost":
            return "no longer ours"
        try:
            return self._told(lambda: self._report(status, output.rstrip("\n"), errors.strip()))
        except OSError:
            self.give_back("its output could not be written")
            raise
        except MuxError as error:
            ended = f"ended with status {status}"
            if error.code in OVER + SETTLED:
                return f"{ended}; no longer ours"
            self._unreported = True
            why = f"{ended}, which could not be reported: {error.message}"
            if error.code != "unreachable":
                with contextlib.suppress(MuxError):
                    self.piece.fail(self._client, why)
            return why

    def _report(self, status: int, output: str, errors: str) -> str:
        """Tell the daemon once how the command ended; returns the resulting state."""
        piece, client = self.piece, self._client
        if self._why:
            return piece.give_back(client, "the runner was stopped", 0)
        if status == 0:
            return piece.complete(client, output)
        if status == LATER:
            return piece.give_back(client, errors[-MOST_REASON:] or "the command asked for a retry later", LATER_S)
        ended = f"exit status {status}" if status > 0 else f"killed by {_signal_name(-status)}"
        state = piece.fail(client, f"{ended}\n{errors}" if errors else ended)
        return f"{state} ({ended})"

    def _told(self, tell: Callable[[], str]) -> str:
        """Report to the daemon, retrying until a daemon that went away is back or the runner stops."""
        while True:
            try:
                return tell()
            except MuxError as error:
                if (error.code != "unreachable" and error.status != UNAVAILABLE) or self._runner.stopping:
                    raise
                self._runner.say(f"{self.piece.name}: ended; {error.message}; trying again")

    def give_back(self, why: str) -> None:
        """Let another agent do it; if the daemon cannot be told, the lease expires instead."""
        with contextlib.suppress(MuxError):
            self.piece.give_back(self._client, why, 0)


def _program(command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The command with the full path of its program. Raises `not_found` before any work is taken."""
    found = shutil.which(command[0], path=environ.get("PATH", os.defpath))
    if found is None:
        raise MuxError(
            "not_found", f"the command {command[0]!r} does not exist or is not executable; nothing was taken"
        )
    return [os.path.abspath(found), *command[1:]]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
