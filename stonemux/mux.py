"""The running program as one object that is passed to every operation, and what a call knows about its caller."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from stonemux.blotter import Blotter
from stonemux.clock import Clock
from stonemux.config import Settings
from stonemux.datadir import DataDir
from stonemux.endpoints import Endpoints
from stonemux.entitlement import Entitlement
from stonemux.errors import MuxError
from stonemux.events import EventLog
from stonemux.flights import Flights
from stonemux.hub import Hub, Topic, Watch
from stonemux.payload import dumps
from stonemux.presence import Presence
from stonemux.store import Led, Store
from stonemux.throttle import Throttle
from stonemux.tokens import TOPIC, Principal, Tokens
from stonemux.transaction import Event, Work


class Flight(Protocol):
    """Something handed out with an answer; it takes effect only once the answer has arrived."""

    def landed(self) -> None:
        """Settle it: the caller has the answer."""

    def lost(self) -> None:
        """Undo it: the caller never got the answer."""


class Caller:
    """The caller; front ends make one for each call. The HTTP server overrides `park` to notice a hang-up."""

    __slots__ = ("bearer", "enter", "flight", "once", "principal", "replayed", "request_id", "room")

    def __init__(self, request_id: str = "") -> None:
        self.request_id = request_id
        """The request's id in the answer and in the log."""
        self.bearer: str | None = None
        """The Authorization header, unparsed."""
        self.principal: Principal | None = None
        """The holder of that token, once `door` has checked it; None without a token."""
        self.flight: Flight | None = None
        """What the answer hands out; it is notified when the answer has arrived or is lost."""
        self.once: Callable[[Caller, Work], Work] | None = None
        """Wraps a piece of work so that it happens once for the call's idempotency key."""
        self.enter: Callable[[Caller, Work], Work] | None = None
        """Wraps a piece of work so that it is entered in the audit log.

        Both wrappers take the caller as an argument instead of holding it; otherwise each call would leave a reference
        cycle to the garbage collector.
        """
        self.room = 0
        """The maximum number of characters of messages, or of another list, in an answer; 0 for no limit."""
        self.replayed = False
        """Whether the answer is the recorded one of an earlier call with the same key."""

    def through(self, work: Work) -> Work:
        """Wrap a piece of work for this call: audited, and once for its idempotency key."""
        if self.enter is not None:
            work = self.enter(self, work)
        return work if self.once is None else self.once(self, work)

    def fitted(self, answer: dict[str, Any], rows: str) -> dict[str, Any]:
        """An answer whose list `rows` is cut to what the caller has room for; `more` says that it was cut."""
        fits = fitting((len(dumps(row)) for row in answer[rows]), self.room)
        return answer | {rows: answer[rows][:fits], "more": True} if fits < len(answer[rows]) else answer

    @contextmanager
    def park(self, watch: Watch) -> Iterator[None]:
        """For the duration of a wait, cancel `watch` if the caller hangs up."""
        yield

    def arrived(self) -> None:
        """Settle what this call handed out; for front ends whose answers cannot get lost."""
        if self.flight is not None:
            self.flight.landed()
            self.flight = None


def fitting(sizes: Iterable[int], room: int) -> int:
    """How many entries of a list, from its beginning, fit into `room` characters together; at least one."""
    return max(1, sum(size <= room for size in accumulate(sizes)))


class Wait(NamedTuple):
    """A call that may have to wait, as data: what to try, what to wait for, and when to give up.

    `attempt` returns the answer, or None while there is none; `give_up` returns the answer at `deadline` (ticks). A
    wait that has to write sets `work`; `attempt` is then called with the outcome of that. `pass_on` is called at the
    end of a call that was woken: an offer wakes only one waiter, and this one may have found something else or left
    without looking, so the offer must go to the next.
    """

    topics: tuple[Topic, ...]
    attempt: Callable[..., Any]
    give_up: Callable[[], Any]
    deadline: int
    agent_id: str = ""
    pass_on: Callable[[], None] | None = None
    work: Work | None = None
    writes: bool = False
    """`attempt` may write, and so have to wait for a commit that another thread leads."""

    def at_once(self, now: int) -> Any:
        """Try without waiting; returns None if the call has to wait, if only for another thread's commit."""
        try:
            answer = self.attempt()
        except Led:
            return None
        return self.give_up() if answer is None and now >= self.deadline else answer


class Waiters:
    """Counts the parked calls and streams, in total and for each agent; `_lock` guards the counts."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._by_agent: dict[str, int] = {}
        self.count = 0

    def heed(self, settings: Settings) -> None:
        """Apply new limits; those who already wait stay."""
        self._settings = settings

    def take(self, agent_id: str = "") -> None:
        """Take a place, with "" for one that belongs to no agent; raises `too_many_waiters` when none is left."""
        with self._lock:
            mine = self._by_agent.get(agent_id, 0)
            most, most_mine = self._settings.max_waiters, self._settings.max_waiters_per_agent
            if self.count >= most or (agent_id and mine >= most_mine):
                whose, limit, setting = "this daemon", most, "max_waiters"
                if self.count < most:
                    whose, limit, setting = "this agent", most_mine, "max_waiters_per_agent"
                raise MuxError(
                    "too_many_waiters",
                    f"{whose} already has {limit} waiting calls and streams, which is the limit (server.{setting}); "
                    "end one, or use timeout=0",
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
        """Ring no later than this moment."""
        if at < self._at:  # safe without the lock: an earlier ring looks at everything that is due
            with self._condition:
                self._at = min(self._at, at)
                self._condition.notify()

    def wait(self) -> None:
        """Sleep until the moment has come, then clear it."""
        clock = self._clock
        with self._condition:
            while (left := self._at - clock.now_ms()) > 0:
                clock.wait(self._condition, clock.ticks_ms() + left)
            self._at = 2**62


class Mux:
    """Everything that an operation may need; there are no globals, so one process may hold several.

    Only `settings` is ever replaced, by `heed`, so do not keep a copy of it.
    """

    def __init__(self, settings: Settings, clock: Clock, store: Store) -> None:
        """Build a program around an open store, and connect the two."""
        self.settings = settings
        self.clock = clock
        self.store = store
        self.hub = Hub(clock)
        self.log = EventLog(store.head, settings.max_event_buffer)
        self.presence = Presence(clock, settings.stale_threshold)
        self.flights = Flights()
        self.looks = 0
        """Roughly how many polls have looked since mail was last filed; it is changed without a lock."""
        self.waiters = Waiters(settings)
        self.alarm = Alarm(clock)
        self.blotter = Blotter(clock, self.alarm.set if settings.audit_enabled else None)
        self.endpoints = Endpoints()
        self.tokens = Tokens(clock, settings)
        self.throttle = Throttle()
        self.entitlement = Entitlement(settings, clock)
        self.started_at = clock.now_ms()
        store.tie(self)
        store.publish = self._publish
        self.tokens.listeners.append(lambda: self.hub.wake([TOPIC]))
        self.entitlement.watchers.append(self._entitle)

    def _entitle(self) -> None:
        """Apply a change of the license to the tokens: which are valid, and whether calls need one."""
        self.tokens.entitle(self.entitlement.good_for, asked_for=self.entitlement.asks_for_tokens)

    @property
    def tier(self) -> str:
        """The tier of the license in force; it can change at run time."""
        return self.entitlement.tier

    def heed(self, settings: Settings) -> None:
        """Apply new settings; they differ only in what may change while the daemon runs (`config.reread`)."""
        self.settings = settings
        self.waiters.heed(settings)
        self.presence.heed(settings.stale_threshold)
        self.alarm.set(self.clock.now_ms())  # another moment may now be due next

    def _publish(self, events: list[Event], topics: list[Topic], offers: list[Topic]) -> None:
        """After a commit: publish the events, wake every waiter of each topic, and one waiter for each offer."""
        if events:
            self.log.publish(events)
            topics.append(("events",))
        self.hub.wake(topics)
        for topic in offers:
            self.hub.offer(topic)

    def wait(self, caller: Caller, wait: Wait) -> Any:
        """Register, read, sleep, read again (see `hub`), and return the answer.

        Raises `too_many_waiters`, or `Hangup` when the caller has gone away.
        """
        woken = False
        with self.hub.watch(*wait.topics) as watch:  # before the first attempt, or a change in between is missed
            try:
                while (answer := self._try(wait)) is None:
                    if self.hub.closed or self.clock.ticks_ms() >= wait.deadline:
                        break
                    with self.waiters.seat(wait.agent_id), caller.park(watch):
                        if not watch.wait(wait.deadline):
                            break
                    woken = True
            finally:
                self.hub.dismiss(watch)  # or an offer would wake this call instead of the next one
                if wait.pass_on is not None and (watch.take_back() or woken):
                    wait.pass_on()
        return wait.give_up() if answer is None else answer

    def _try(self, wait: Wait) -> Any:
        return wait.attempt() if wait.work is None else wait.attempt(self.store.write(wait.work, grows=True))


@contextmanager
def opened(settings: Settings, clock: Clock, *, accept_rollback: bool = False) -> Iterator[Mux]:
    """A program on the configured data directory, which is locked for the duration of the block.

    Raises what opening the directory and its database raises (`DataDir`, `Store`).
    """
    directory = DataDir(settings.data_dir, allow_network_fs=settings.allow_network_fs)
    try:
        store = Store(directory, clock, accept_rollback=accept_rollback)
        try:
            yield Mux(settings, clock, store)
        finally:
            store.close()
    finally:
        directory.close()
