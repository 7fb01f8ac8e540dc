"""Scheduled work: leases that expire, agents that go stale, old records to be purged.

One thread sleeps exactly until the next item is due; apart from housekeeping once a minute, nothing is polled.
`Alarm.set` moves the moment forward when something earlier comes up.
"""

from __future__ import annotations

import logging
import threading

from stonemux import (
    VERSION,
    agents,
    attempts,
    audit,
    auth,
    autodispatch,
    directory,
    documents,
    door,
    doorbells,
    events,
    leases,
    licensing,
    messages,
    search,
    state,
    tasks,
    webhooks,
)
from stonemux.chain import Entry
from stonemux.clock import DAY_MS, MINUTE_MS
from stonemux.errors import MuxError
from stonemux.mux import Mux
from stonemux.transaction import Tx, Work

log = logging.getLogger("stonemux")

HOUSEKEEPING_MS = MINUTE_MS
PURGED_AT_ONCE = 1000
"""Maximum number of rows deleted by one transaction, so that no sender waits long behind the purge."""
LEAST_EVENTS = 1000
NOTE_HEAD_MS = 5_000
"""How long after a commit `head.json` is updated. Writing it makes the file system flush its journal, which delays any
commit at that moment: when written once a second, that affected one wake-up in a hundred."""
LARGE_LOG_BYTES = 16 * 1024 * 1024
"""A write-ahead log larger than this, after a long read or a large write, is truncated when the store is idle."""
CHECK_MS = 7 * DAY_MS
"""How often every page of the database is checked, if anything has happened since."""
CUT_S = 0.05
"""How often a check is interrupted until it ends."""

DUE = (
    (tasks.next_due, tasks.settle_due),
    (leases.next_due, leases.settle_due),
    (licensing.next_due, licensing.settle_due),
)
"""What expires: when the next item is due, and how to settle what is due."""


def boot(mux: Mux) -> None:
    """Prepare for serving: default channel, presence of all agents, webhooks, and a full term for every live lease."""

    def start(tx: Tx) -> list[tuple[str, str]]:
        if directory.find_channel(tx, directory.DEFAULT_CHANNEL) is None:
            directory.make_channel(tx, directory.DEFAULT_CHANNEL, created_by=None)
        tasks.renew_leases(tx)
        messages.note_run_out_since(tx, 0)  # while nobody purged
        auth.boot(tx)
        licensing.boot(tx)
        if not mux.settings.audit_enabled:
            audit.enter_off(tx)
        return agents.registered(tx)

    for agent_id, ack in mux.store.write(start):
        mux.presence.add(agent_id, ack)
    with mux.store.read() as rx:
        for endpoint in [*doorbells.load(rx), *webhooks.load(rx)]:
            mux.endpoints.put(endpoint)


class Timekeeper:
    """The thread; `tick` is one round of it, which tests may call."""

    def __init__(self, mux: Mux) -> None:
        self._mux = mux
        self._stopping = False
        self._housekeeping_at = mux.clock.now_ms() + HOUSEKEEPING_MS
        self._run_out_to = 0  # when expired mail was last looked for; the first time, all of it is
        self._forgotten_to = 0  # the same for the values of deleted keys
        self._noted = (mux.store.head, mux.store.audited)
        self._noted_at = 0
        self._told_audit_at = 0
        self._tier = mux.tier
        self._thread = threading.Thread(target=self._run, name="timekeeper", daemon=True)
        self._checker: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._mux.blotter.note(Entry("daemon.start", target=f"{VERSION} {self._mux.tier}"))
        self._mux.entitlement.watchers.append(self._note_tier)
        autodispatch.follow(self._mux)
        self._mux.log.listeners.append(lambda: self._mux.alarm.set(self._mux.clock.now_ms() + NOTE_HEAD_MS))
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and write what is only in memory."""
        self._stopping = True
        self._mux.alarm.set(0)
        self._thread.join()
        self.end_check()
        audit.enter_noted(self._mux, all_of_it=True)
        self._note_heartbeats()

    def _note_tier(self) -> None:
        """Audit a change of the tier, which is not a call: a license expired, was replaced, or a command ended it."""
        tier = self._mux.tier
        if tier != self._tier:
            self._tier = tier
            self._mux.blotter.note(Entry("license.tier", target=tier))

    def end_check(self) -> None:
        """Interrupt a running check of the database, and wait for its end."""
        while self._is_checking():
            assert self._checker is not None
            self._mux.store.cut_check()  # repeatedly: an interrupt before the check reads has no effect
            self._checker.join(CUT_S)

    def _run(self) -> None:
        while not self._stopping:
            self._mux.alarm.wait()
            if self._stopping:
                return
            try:
                self.tick()
            except MuxError as error:
                log.warning("housekeeping was refused: %s", error.message)
                self._mux.alarm.set(self._mux.clock.now_ms() + 1000)
            except Exception:
                log.exception("housekeeping failed")
                self._mux.alarm.set(self._mux.clock.now_ms() + 1000)

    def tick(self) -> None:
        """Do what is due, and set the alarm for what comes next."""
        mux = self._mux
        now = mux.clock.now_ms()
        self._settle_due(now)
        self._tell_stale()
        if mux.flights.owed:
            messages.settle_owed(mux)
        autodispatch.run(mux)
        mux.endpoints.wake()
        self._enter_noted(now)
        self._note_head(now)
        if self._housekeeping_at <= now:
            self._housekeeping_at = now + HOUSEKEEPING_MS
            self._note_heartbeats()
            self._purge(now)
            self._tell_audit(now)
            self._look_after_the_disk(now)
        self._set_alarm(now)

    def _enter_noted(self, now: int) -> None:
        """Enter refusals into the audit log; on a full disk they wait, but what frees space does not."""
        at = self._mux.blotter.next_due()
        if at is None or at > now:
            return
        try:
            audit.enter_noted(self._mux)
        except MuxError as error:
            if error.code != "storage_full":
                raise

    def _settle_due(self, now: int) -> None:
        with self._mux.store.read() as rx:
            due = [settle for next_due, settle in DUE if (at := next_due(rx)) is not None and at <= now]
        for settle in due:
            self._mux.store.write(settle)

    def _look_after_the_disk(self, now: int) -> None:
        store = self._mux.store
        store.keep_ballast()
        if store.size()["wal_bytes"] > LARGE_LOG_BYTES:
            store.fold()
        checked_at, checked_head = store.checked
        if now >= checked_at + CHECK_MS and store.head != checked_head and not self._is_checking():
            self._checker = threading.Thread(target=self._check, name="checker", daemon=True)
            self._checker.start()

    def _is_checking(self) -> bool:
        return self._checker is not None and self._checker.is_alive()

    def _check(self) -> None:
        """Check the whole database on a separate thread, so that leases need not wait for it."""
        try:
            self._mux.store.check()
        except MuxError as error:  # the daemon is stopping, or the disk is full
            log.info("the check of the database was not recorded: %s", error.message)
        except Exception:
            log.exception("the database could not be checked")

    def _tell_stale(self) -> None:
        presence = self._mux.presence
        if gone := presence.newly_stale():
            try:
                self._mux.store.write(lambda tx: agents.stale(tx, gone))
            except BaseException:
                presence.not_told(gone)
                raise

    def _note_head(self, now: int) -> None:
        head = (self._mux.store.head, self._mux.store.audited)
        # The audit records of refusals can wait: flushing the file after each would delay commits.
        if head[0] != self._noted[0] or (head != self._noted and now >= self._noted_at + NOTE_HEAD_MS):
            try:
                self._mux.store.note_head()
                self._noted, self._noted_at = head, now
            except OSError as error:  # `head.json` is only a second witness; work that frees space must go on
                log.warning("the head of the event log could not be recorded: %s", error.strerror)

    def _set_alarm(self, now: int) -> None:
        with self._mux.store.read() as rx:
            due = [at for next_due, _ in DUE if (at := next_due(rx)) is not None]
        stale = self._mux.presence.next_stale()
        moments = [self._housekeeping_at, *due]
        # Stale agents are reported in batches: a thousand of them would otherwise cause a thousand wake-ups.
        moments += [max(stale, now + 1000)] if stale is not None else []
        moments += [now + 1000] if self._mux.flights.owed else []
        if (at := self._mux.blotter.next_due()) is not None:
            moments.append(at if at > now else now + 1000)  # in the past: the disk is full
        if self._mux.store.audited != self._noted[1]:
            moments.append(now + NOTE_HEAD_MS)
        self._mux.alarm.set(min(moments))

    def _note_heartbeats(self) -> None:
        if seen := self._mux.presence.unsaved():
            self._mux.store.write(lambda tx: agents.note_heartbeats(tx, seen))

    def _purge(self, now: int) -> None:
        settings = self._mux.settings
        kept_events = self._mux.store.head - max(LEAST_EVENTS, settings.max_event_buffer)
        self._in_pages(lambda tx: door.purge_idempotency(tx, PURGED_AT_ONCE))
        attempts_before = now - settings.webhooks_attempt_retention * 1000
        self._in_pages(lambda tx: attempts.purge(tx, attempts_before, PURGED_AT_ONCE))
        self._in_pages(lambda tx: webhooks.purge(tx, PURGED_AT_ONCE))
        said_before = now - settings.message_retention * 1000
        self._in_pages(lambda tx: messages.purge(tx, said_before, PURGED_AT_ONCE, self._run_out_to, search.forget))
        self._run_out_to = now
        self._in_pages(lambda tx: documents.purge(tx, said_before), documents.PURGED_AT_ONCE)
        self._in_pages(lambda tx: state.purge(tx, self._forgotten_to, said_before, PURGED_AT_ONCE))
        self._forgotten_to = max(said_before, self._forgotten_to)
        self._in_pages(lambda tx: auth.purge(tx, PURGED_AT_ONCE))
        self._in_pages(lambda tx: tasks.purge(tx, now - settings.task_retention * 1000, PURGED_AT_ONCE))
        self._in_pages(lambda tx: events.purge(tx, kept_events, now - settings.event_retention * 1000, PURGED_AT_ONCE))
        if settings.audit_retention_days:
            self._purge_audit(now - settings.audit_retention_days * DAY_MS)

    def _purge_audit(self, before: int) -> None:
        try:
            key = self._mux.store.directory.audit_key()
        except (OSError, ValueError) as error:
            log.warning("the audit log was not purged, because its key cannot be read or created: %s", error)
            return
        self._in_pages(lambda tx: audit.purge(tx, before, PURGED_AT_ONCE, key))

    def _tell_audit(self, now: int) -> None:
        """Once a day, write the audit log's head to the daemon's log: a witness outside of the database."""
        if now >= self._told_audit_at + DAY_MS:
            self._told_audit_at = now
            log.info("audit_head %d %s", *self._mux.store.audited)

    def _in_pages(self, purge: Work, page: int = PURGED_AT_ONCE) -> None:
        while not self._stopping and self._mux.store.write(purge) == page:  # the next start does what a stop leaves
            self._settle_due(self._mux.clock.now_ms())  # leases do not wait for the end of a long purge
