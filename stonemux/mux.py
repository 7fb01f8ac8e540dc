"""The running program as one record, handed to every operation; and what a call knows of its caller."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from stonemux.blotter import Blotter
from stonemux.clock import Clock
from stonemux.config import Settings
from stonemux.endpoints import Endpoints
from stonemux.entitlement import Entitlement
from stonemux.errors import MuxError
from stonemux.events import EventLog
from stonemux.flights import Flights
from stonemux.hub import Hub, Topic, Watch
from stonemux.presence import Presence
from stonemux.store import Store
from stonemux.throttle import Throttle
from stonemux.tokens import TOPIC, Principal, Tokens
from stonemux.transaction import Event, Work

TRIES_A_MINUTE = 10
"""How often a token may be asked for with a license key."""


class Flight(Protocol):
    """Something handed out with an answer that counts only once the answer has arrived."""

    def landed(self) -> None:
        """The caller has the answer."""

    def lost(self) -> None:
        """The caller never got it: put back what it held."""


class Caller:
    """Who calls. A face makes one for each call; the HTTP face overrides `park` to notice a caller that hangs up."""

    __slots__ = ("bearer", "enter", "flight", "once", "principal", "replayed", "request_id", "room")

    def __init__(self, request_id: str = "") -> None:
        self.request_id = request_id
        """What the face calls this request, in its answer and in the log."""
        self.bearer: str | None = None
        """The Authorization header, as it came."""
        self.principal: Principal | None = None
        """Whose token that holds, once `door` has looked; None without one."""
        self.flight: Flight | None = None
        """What was handed out with the answer, to be told whether the answer arrived."""
        self.once: Callable[[Caller, Work], Work] | None = None
        """Makes a piece of writing happen once for the call's idempotency key."""
        self.enter: Callable[[Caller, Work], Work] | None = None
        """Enters a piece of writing in the audit log.

        Both are handed the caller instead of holding it: each call would otherwise leave a cycle to the collector.
        """
        self.room = 0
        """How many characters of messages an answer should not exceed; 0: any number."""
        self.replayed = False
        """The answer is the stored one of an earlier call with the same key."""

    def through(self, work: Work) -> Work:
        """A piece of writing as it is to run for this call: audited, and once for its key."""
        if self.enter is not None:
            work = self.enter(self, work)
        return work if self.once is None else self.once(self, work)

    @contextmanager
    def park(self, watch: Watch) -> Iterator[None]:
        """Around a sleep: until it ends, a caller that hangs up cancels `watch`."""
        yield

    def arrived(self) -> None:
        """Settle what this call handed out, for faces whose answers cannot get lost."""
        if self.flight is not None:
            self.flight.landed()
            self.flight = None


class Wait(NamedTuple):
    """A call that may have to wait, as data: what to try, what to wait for, and when to give up.

    `attempt` returns the answer, or None while there is nothing to answer; `give_up` the answer at `deadline` (ticks).
    A wait that has to write gives that as `work`; its outcome is what `attempt` is then called with.
    `pass_on` is called at the end of a call that was woken: only one waiter is woken for one thing to take, and this
    one may have found something else, or have left without looking.
    """

    topics: tuple[Topic, ...]
    attempt: Callable[..., Any]
    give_up: Callable[[], Any]
    deadline: int
    agent_id: str = ""
    pass_on: Callable[[], None] | None = None
    work: Work | None = None
    writes: bool = False
    """`attempt` may write by itself, and so wait for a commit that another thread leads."""

    def at_once(self, now: int) -> Any:
        """What there is to answer before waiting, for a wait that writes nothing; None when it has to wait."""
        answer = self.attempt()
        return self.give_up() if answer is None and now >= self.deadline else answer


class Waiters:
    """How many calls and streams are parked, in all and for each agent; `_lock` guards the counts."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._by_agent: dict[str, int] = {}
        self.count = 0

    def heed(self, settings: Settings) -> None:
        """Go by other limits from now on; nobody is sent away."""
        self._settings = settings

    def take(self, agent_id: str = "") -> None:
        """Take a place; "" for one that belongs to no agent. Raises `too_many_waiters` when there is none left."""
        with self._lock:
            mine = self._by_agent.get(agent_id, 0)
            most, most_mine = self._settings.max_waiters, self._settings.max_waiters_per_agent
            if self.count >= most or (agent_id and mine >= most_mine):
                whose, limit = ("this agent", most_mine) if self.count < most else ("this daemon", most)
                raise MuxError(
                    "too_many_waiters",
                    f"{whose} already has {limit} waiting calls and streams, the limit; end one, or use timeout=0",
                    limit=limit,
                    retry_after=1,
                )
            self.count += 1
            self._by_agent[agent_id] = mine + 1

    def give(self, agent_id: str = "") -> None:
        """Give a place back."""
        with self._lock:
            self.count -= 1
            if self._by_agent[agent_id] == 1:
                del self._by_agent[agent_id]
            else:
                self._by_agent[agent_id] -= 1

    @contextmanager
    def seat(self, agent_id: str) -> Iterator[None]:
        """Hold a place inside the block."""
        self.take(agent_id)
        try:
            yield
        finally:
            self.give(agent_id)


class Alarm:
    """When the timekeeper must look again; `_condition` guards the moment (in `Clock.now_ms` time)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._condition = threading.Condition()
        self._at = 0

    def set(self, at: int) -> None:
        """Ring at this moment, if nothing rings earlier."""
        if at < self._at:  # without the lock: an earlier ring looks at all that is due, and finds what we set it for
            with self._condition:
                self._at = min(self._at, at)
                self._condition.notify()

    def wait(self) -> None:
        """Sleep until the moment has come, and forget it."""
        clock = self._clock
        with self._condition:
            while (left := self._at - clock.now_ms()) > 0:
                clock.wait(self._condition, clock.ticks_ms() + left)
            self._at = 2**62


class Mux:
    """Everything that an operation may need; there are no globals, so one process may hold several.

    Only `settings` is ever replaced, by `heed`: read it from here each time.
    """

    def __init__(self, settings: Settings, clock: Clock, store: Store) -> None:
        """Build a program around an open store and tie the two together."""
        self.settings = settings
        self.clock = clock
        self.store = store
        self.hub = Hub(clock)
        self.log = EventLog(store.head, settings.max_event_buffer)
        self.presence = Presence(clock, settings.stale_threshold)
        self.flights = Flights()
        self.looks = 0
        """Polls that have looked since mail was filed, roughly: nobody locks it."""
        self.waiters = Waiters(settings)
        self.alarm = Alarm(clock)
        self.blotter = Blotter(clock, self.alarm.set if settings.audit_enabled else None)
        self.endpoints = Endpoints()
        self.tokens = Tokens(clock, settings)
        self.throttle = Throttle(TRIES_A_MINUTE, "keep the token that you have, it lasts")
        self.entitlement = Entitlement(settings, clock)
        self.started_at = clock.now_ms()
        store.tie(self)
        store.publish = self._publish
        self.tokens.listeners.append(lambda: self.hub.wake([TOPIC]))
        self.entitlement.watchers.append(self._entitle)

    def _entitle(self) -> None:
        """After a change of the license: its tokens, and whether calls need one."""
        self.tokens.entitle(self.entitlement.good_for, asked_for=self.entitlement.asks_for_tokens)

    @property
    def tier(self) -> str:
        """What the license in force allows; changes at run time."""
        return self.entitlement.tier

    def heed(self, settings: Settings) -> None:
        """Go on with other settings; they differ only in what may change while the daemon runs (`config.reread`)."""
        self.settings = settings
        self.waiters.heed(settings)
        self.presence.heed(settings.stale_threshold)
        self.alarm.set(self.clock.now_ms())  # what is due next may have become another

    def _publish(self, events: list[Event], topics: list[Topic], offers: list[Topic]) -> None:
        """After a commit: tell the event log, all who wait for a topic, and one waiter for each offer."""
        if events:
            self.log.publish(events)
            topics.append(("events",))
        self.hub.wake(topics)
        for topic in offers:
            self.hub.offer(topic)

    def wait(self, caller: Caller, wait: Wait) -> Any:
        """Register, read, sleep, read again: see `hub`. Returns the answer.

        Raises `too_many_waiters`, or `Hangup` when the caller went away.
        """
        woken = False
        with self.hub.watch(*wait.topics) as watch:  # before the first attempt, or a change slips in between
            try:
                while (answer := self._try(wait)) is None:
                    if self.hub.closed or self.clock.ticks_ms() >= wait.deadline:
                        break
                    with self.waiters.seat(wait.agent_id), caller.park(watch):
                        if not watch.wait(wait.deadline):
                            break
                    woken = True
            finally:
                self.hub.dismiss(watch)  # or it would be woken instead of the next one
                if wait.pass_on is not None and (watch.take_back() or woken):
                    wait.pass_on()
        return wait.give_up() if answer is None else answer

    def _try(self, wait: Wait) -> Any:
        return wait.attempt() if wait.work is None else wait.attempt(self.store.write(wait.work))
