"""Delivery: which endpoint is due next, and the threads that deliver to it.

Each endpoint has at most one attempt under way, and all share a pool of eight threads, which exist only while there is
something to do. The endpoint that has been due the longest is next. Endpoints whose last attempt failed may use only
six of the eight threads, so any number of dead ones leaves two for those that answer.

A commit that wants something delivered calls `kick` (see `endpoints`), the timekeeper's alarm covers what is due later,
and what was pending when the daemon ended is found in the database at the next start, under its old ids. Nothing polls.

An attempt counts once its outcome is stored; one whose outcome could not be stored is made again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

from stonemux import attempts, bellcommand, courier, doorbells, threads, webhooks
from stonemux.addresses import ForbiddenURL, Policy
from stonemux.endpoints import Endpoint, Outcome
from stonemux.errors import MuxError
from stonemux.mux import Mux
from stonemux.operations import BY_NAME
from stonemux.schema import TIERS

log = logging.getLogger("stonemux")

THREADS = 8
THREADS_FOR_UNSOUND = 6
BELL_RANK = TIERS.index(BY_NAME["agent.register"].by_name["webhook_url"].tier)
FORWARD_RANK = TIERS.index(BY_NAME["webhook.add"].tier)
"""The tiers, by their places in `TIERS`, below which rings and forwarded events are held back."""
AGAIN_MS = 5_000
"""When to look again at an endpoint whose outcome could not be stored."""
STOP_MS = 2_000


class Outbound:
    """The deliveries of one daemon; `_lock` guards which endpoints are busy and how many threads there are."""

    def __init__(self, mux: Mux) -> None:
        self._mux = mux
        self._lock = threading.Lock()
        self._all_ended = threading.Condition(self._lock)
        self._threads = 0
        self._unsound = 0
        self._running: set[courier.Attempt | bellcommand.Run] = set()
        self._stopping = False

    def start(self) -> None:
        """Resume what is pending."""
        endpoints, clock = self._mux.endpoints, self._mux.clock
        endpoints.wake = self.kick
        self._mux.log.listeners.append(lambda: endpoints.events_came(clock.now_ms()))
        self.kick()

    def stop(self) -> None:
        """Cut short what is under way; it stays pending and starts over at the next start."""
        self._mux.endpoints.wake = lambda: None
        clock = self._mux.clock
        deadline = clock.ticks_ms() + STOP_MS
        with self._lock:
            self._stopping = True
            for run in self._running:
                run.cut()
            while self._threads and clock.ticks_ms() < deadline:
                clock.wait(self._all_ended, deadline)

    @property
    def threads(self) -> int:
        """How many threads there are now."""
        return self._threads

    def kick(self) -> None:
        """Start threads for what is due, as far as the limit allows, and set the alarm for what is due later.

        Called after commits, so it is quick and does not fail.
        """
        with self._lock:
            while self._threads < THREADS and (endpoint := self._take()) is not None:
                try:
                    threads.begin("outbound", self._work, endpoint)
                except MuxError:  # the system cannot start another thread
                    self._give_back(endpoint)
                    self._mux.alarm.set(self._mux.clock.now_ms() + AGAIN_MS)
                    return
                self._threads += 1
        now = self._mux.clock.now_ms()
        dues = [max(due, one.quiet) for one in list(self._mux.endpoints.waiting) if (due := one.due) is not None]
        later = [due for due in dues if due > now]
        if later:
            self._mux.alarm.set(min(later))

    def _take(self) -> Endpoint | None:
        """Take the endpoint that has been due the longest and is not busy; it then belongs to the caller."""
        if self._stopping:
            return None
        now, rank = self._mux.clock.now_ms(), TIERS.index(self._mux.tier)
        first: tuple[int, Endpoint] | None = None
        for one in list(self._mux.endpoints.waiting):
            due = one.due
            if due is None or max(due, one.quiet) > now or one.busy:
                continue
            if rank < (FORWARD_RANK if one.agent_id is None else BELL_RANK):
                continue
            if not one.sound and self._unsound >= THREADS_FOR_UNSOUND:
                continue
            if first is None or due < first[0]:
                first = (due, one)
        if first is None:
            return None
        endpoint = first[1]
        endpoint.busy = True
        endpoint.counted = not endpoint.sound
        self._unsound += endpoint.counted
        return endpoint

    def _give_back(self, endpoint: Endpoint) -> None:
        endpoint.busy = False
        self._unsound -= endpoint.counted

    def _work(self, first: Endpoint) -> None:
        endpoint: Endpoint | None = first
        while endpoint is not None:
            try:
                self._attend(endpoint)
            except Exception as error:
                if not self._stopping:
                    log.log(
                        logging.WARNING if isinstance(error, MuxError) else logging.ERROR,
                        "a delivery of %s could not be recorded and will be repeated: %s",
                        endpoint.id,
                        error,
                    )
                    self._mux.endpoints.set_due(endpoint, self._mux.clock.now_ms() + AGAIN_MS)
            with self._lock:
                self._give_back(endpoint)
                endpoint = self._take()
                if endpoint is None:
                    self._threads -= 1
                    self._all_ended.notify_all()
        self.kick()  # for what is due later, and for what became due since the last look

    def _attend(self, endpoint: Endpoint) -> None:
        # Reset first, so that anything that becomes due from here on stays due.
        self._mux.endpoints.set_due(endpoint, None)
        if endpoint.agent_id is not None:
            self._ring(endpoint)
        else:
            self._forward(endpoint)

    # -- one attempt

    def _ring(self, bell: Endpoint) -> None:
        mux = self._mux
        with mux.store.read() as rx:
            row = doorbells.pending(rx, bell.id)
            policy = doorbells.policy(rx)
        if row is None:
            return
        body = doorbells.body(row)
        if row["url"].startswith(bellcommand.SCHEME):
            outcome = self._execute(row, body)
        else:
            signed = attempts.signed(row, row["wire_id"], body, mux.clock)
            outcome = self._post(row["url"], signed, body, policy)
        if outcome is not None:
            mux.store.write(lambda tx: doorbells.record(tx, bell, row, outcome))

    def _forward(self, endpoint: Endpoint) -> None:
        mux = self._mux
        with mux.store.read() as rx:
            found = webhooks.next_delivery(rx, endpoint)
            policy = doorbells.policy(rx)
        if isinstance(found, webhooks.Delivery):
            delivery = found
            headers = attempts.signed(found.row, found.wire_id, found.body, mux.clock)
            outcome = self._post(found.row["url"], headers, found.body, policy)
            if outcome is not None:
                mux.store.write(lambda tx: webhooks.record(tx, endpoint, delivery, outcome))
            return
        if webhooks.lags(endpoint):
            mux.store.write(lambda tx: webhooks.move_up(tx, endpoint))
        if found is not None:
            mux.endpoints.sleep(endpoint, found)

    def _post(self, url: str, headers: dict[str, str], body: bytes, policy: Policy) -> Outcome | None:
        settings = self._mux.settings
        attempt = courier.Attempt(
            policy,
            connect_ms=settings.webhooks_connect_timeout * 1000,
            total_ms=settings.webhooks_timeout * 1000,
        )
        with self._counted(attempt):
            outcome = attempt.post(url, headers, body)
        return None if attempt.was_cut else outcome

    def _execute(self, row: Any, body: bytes) -> Outcome | None:
        settings = self._mux.settings
        try:
            words = bellcommand.check(row["url"], settings.webhooks_exec)
        except ForbiddenURL as problem:  # the settings have changed since the doorbell was set
            return Outcome(None, f"its URL {problem}", 0)
        run = bellcommand.Run(words, total_ms=settings.webhooks_exec_timeout * 1000)
        variables = {
            "STONEMUX_AGENT": row["agent_id"],
            "STONEMUX_HOST": settings.host,
            "STONEMUX_MESSAGE_ID": str(row["message_id"]),
            "STONEMUX_PORT": str(self._mux.endpoints.own_port or settings.port),
            **({"STONEMUX_TLS_CERT": settings.tls_cert} if settings.tls_cert else {}),
            "STONEMUX_UNREAD": str(row["unread"]),
            "STONEMUX_WEBHOOK_ID": row["wire_id"],
        }
        with self._counted(run):
            outcome = run.ring(variables, body)
        return None if run.was_cut else outcome

    @contextlib.contextmanager
    def _counted(self, run: courier.Attempt | bellcommand.Run) -> Iterator[None]:
        """Let `stop` cut the run short while the block executes."""
        with self._lock:
            self._running.add(run)
            if self._stopping:
                run.cut()
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(run)
