"""Calls that wait without a thread: examined when there is a reason, one at a time, and answered once."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
from faces import Direct, join

from stonemux import parking
from stonemux.claims import await_claim
from stonemux.errors import MuxError
from stonemux.hub import Hangup
from stonemux.mux import Caller, Wait
from stonemux.parking import Lot

TOPIC = ("inbox", "bob")


class Seat:
    """A caller who may be gone, and notes when the wait is over."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone
        self.watch = None

    def park(self, watch):
        if self.gone:
            raise Hangup
        self.watch = watch

    def unpark(self):
        self.watch = None


class Parker:
    """A lot, and what became of the calls in it."""

    def __init__(self, mux):
        self.mux = mux
        self.rings = 0
        self.aside: list[Any] = []
        self.lot = Lot(mux, self.ring, self.aside.append)
        self.seat = Seat()
        self.told: list[Any] = []

    def ring(self):
        self.rings += 1

    def park(self, attempt, *, timeout_ms=60_000, agent_id="bob", pass_on=None, seat=None, writes=False):
        deadline = self.mux.clock.ticks_ms() + timeout_ms
        wait = Wait((TOPIC,), attempt, lambda: "gave up", deadline, agent_id, pass_on, writes=writes)
        self.lot.park(wait, seat or self.seat, lambda answer, error: self.told.append(error or answer))

    def attend(self):
        self.lot.attend(self.mux.clock.ticks_ms())


@pytest.fixture
def parker(mux):
    return Parker(mux)


def answering(*answers: Any) -> Any:
    left = list(answers)
    return lambda: left.pop(0)


def test_what_is_there_at_once_is_answered_at_once(parker, mux):
    parker.park(answering("found"))
    assert parker.told == ["found"]
    assert (mux.waiters.count, mux.hub.parked, mux.clock.parked, parker.lot.due()) == (0, 0, 0, None)


def test_a_change_rings_and_the_call_is_answered_when_attended_to(parker, mux):
    parker.park(answering(None, "found"))
    assert (parker.told, mux.waiters.count, mux.hub.parked) == ([], 1, 1)
    parker.rings = 0
    mux.hub.wake([TOPIC])
    mux.hub.wake([TOPIC])  # stands in the queue once
    assert (parker.told, parker.rings, len(parker.lot.queue)) == ([], 1, 1)
    parker.attend()
    assert (parker.told, mux.waiters.count, mux.hub.parked, parker.seat.watch) == (["found"], 0, 0, None)


def test_a_change_while_looking_makes_it_look_again(parker, mux):
    looks = []

    def attempt():
        looks.append(1)
        if len(looks) == 1:
            mux.hub.wake([TOPIC])  # what follows the look, and comes before the rest
            return None
        return "found"

    parker.park(attempt)
    parker.attend()
    assert parker.told == ["found"]


def test_it_gives_up_when_its_time_has_come_and_not_before(parker, mux):
    parker.park(answering(None), timeout_ms=1000)
    mux.clock.advance(999)
    parker.attend()
    assert parker.told == []
    mux.clock.advance(1)
    parker.attend()
    assert parker.told == ["gave up"]


def test_its_deadline_is_known_to_whoever_attends(parker, mux):
    parker.park(answering(None), timeout_ms=2000)
    parker.park(answering(None), timeout_ms=1000)
    now = mux.clock.ticks_ms()
    assert parker.lot.due() == now + 1000
    mux.clock._ticks += 1000  # as time passes where nobody pokes
    parker.attend()
    assert (parker.told, parker.lot.due()) == (["gave up"], now + 2000)


def test_a_deadline_before_all_others_rings__I14__T13(parker):
    """Whoever attends may be asleep until another one, when a call is parked by the thread that has led its commit."""
    for timeout_ms, rings in ((2000, 1), (3000, 1), (1000, 2)):
        parker.park(answering(None), timeout_ms=timeout_ms)
        assert parker.rings == rings


def test_a_spent_timeout_is_given_up_without_a_seat(parker):
    parker.park(answering(None), timeout_ms=0, seat=Seat(gone=True))
    assert parker.told == ["gave up"]


def test_a_look_that_writes_does_not_wait_at_the_door_for_another_ones_commit(parker, mux):
    parker.park(answering(None, None, "found"), writes=True)
    mux.hub.wake([TOPIC])
    parker.attend()
    assert (parker.told, parker.aside) == ([], []), "it waits for nobody"
    mux.store._leading = True
    mux.hub.wake([TOPIC])
    parker.attend()
    assert parker.told == []
    (look,) = parker.aside
    mux.hub.wake([TOPIC])  # meanwhile
    parker.attend()
    assert parker.told == []
    mux.store._leading = False
    look()
    parker.attend()
    assert (parker.told, len(parker.aside), mux.waiters.count) == (["found"], 1, 0)


def test_a_look_for_which_there_is_no_thread_is_refused(parker, mux):
    def none_left(work):
        raise MuxError("too_many_waiters", "no thread")

    parker.lot.aside = none_left
    mux.store._leading = True
    parker.park(answering(None), writes=True)
    mux.store._leading = False
    assert [error.code for error in parker.told] == ["too_many_waiters"]
    assert (mux.waiters.count, mux.hub.parked) == (0, 0)


def test_it_gives_up_when_the_hub_closes(parker, mux):
    parker.park(answering(None))
    mux.hub.close()
    parker.attend()
    assert parker.told == ["gave up"]


def test_a_caller_who_hangs_up_ends_it_and_its_wake_up_is_passed_on(parker, mux):
    passed = []
    parker.park(answering(None), pass_on=lambda: passed.append(1))
    mux.hub.wake([TOPIC])
    parker.seat.watch.cancel()
    parker.attend()
    assert [type(told) for told in parker.told] == [Hangup]
    assert (passed, mux.waiters.count, mux.hub.parked) == ([1], 0, 0)


def test_a_caller_who_was_gone_before_is_noticed(parker, mux):
    parker.park(answering(None), seat=Seat(gone=True))
    assert [type(told) for told in parker.told] == [Hangup]
    assert (mux.waiters.count, mux.hub.parked) == (0, 0)


@pytest.mark.settings(max_waiters=1)
def test_more_than_there_is_room_for_are_refused(parker, mux):
    parker.park(answering(None))
    parker.park(answering(None))
    (refused,) = parker.told
    assert (refused.code, mux.waiters.count, mux.hub.parked) == ("too_many_waiters", 1, 1)


def test_a_look_that_fails_ends_it(parker, mux):
    def attempt():
        raise MuxError("agent_not_found", "gone")

    parker.park(attempt)
    assert [told.code for told in parker.told] == ["agent_not_found"]
    assert mux.hub.parked == 0


def test_many_are_looked_at_in_turns(parker, mux):
    for n in range(parking.AT_ONCE + 1):
        parker.park(answering(None, n), agent_id="")
    mux.hub.wake([TOPIC])
    parker.attend()
    assert len(parker.told) == parking.AT_ONCE
    parker.attend()
    assert parker.told == list(range(parking.AT_ONCE + 1))  # in the order in which they came


def test_calls_that_have_ended_are_not_kept_until_their_deadline(parker, mux):
    class Kept:
        pass

    kept = weakref.WeakSet()
    for _ in range(1000):
        thing = Kept()
        kept.add(thing)
        parker.park(lambda found=[None, thing]: found.pop(0), agent_id="")
        del thing
        mux.hub.wake([TOPIC])
        parker.attend()
        parker.told.clear()
    gc.collect()
    assert len(kept) < 10
    assert len(parker.lot._deadlines) < 3 * parking.LEAST_OVER


def test_a_call_that_is_answered_at_once_leaves_no_cycle_behind(parker):
    """A collector that has nothing to find does not stop the door."""
    gc.disable()
    try:
        gc.collect()
        parker.park(answering("found"))
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_claims_that_wait_are_changes_in_one_batch(parker, mux, monkeypatch):
    """What writes is queued like any change, so that many woken claimers pay one flush."""
    direct = Direct(mux)
    join(direct, "ann", "bob", "cat")
    for agent_id in ("bob", "cat"):
        wait = await_claim(mux, Caller(), agent_id=agent_id, channel="default", task_id=None, timeout=60)
        parker.lot.park(wait, Seat(), lambda answer, error: parker.told.append(error or answer))
    for _ in range(2):
        direct.call("task.post", description="x", posted_by="ann")
    batches = []
    real = mux.store._attempt
    monkeypatch.setattr(
        mux.store, "_attempt", lambda batch, **given: batches.append(len(batch)) or real(batch, **given)
    )
    me = threading.get_ident()
    mux.store.gatherers.add(me)  # as the thread at the door is
    parker.attend()
    mux.store.lead()
    mux.store.gatherers.discard(me)
    assert {told["task"]["claimed_by"] for told in parker.told} == {"bob", "cat"}
    assert batches == [2]


def test_fault_34_on_a_full_disk_a_claim_is_refused_whether_a_thread_waits_or_not(parker, mux, monkeypatch):
    direct = Direct(mux)
    join(direct, "ann", "bob")
    direct.call("task.post", description="x", posted_by="ann")
    monkeypatch.setattr(mux.store._ballast, "free", lambda: 0)
    monkeypatch.setattr(mux.store, "_tight", True)
    wait = await_claim(mux, Caller(), agent_id="bob", channel="default", task_id=None, timeout=60)
    parker.lot.park(wait, Seat(), lambda answer, error: parker.told.append(error))
    with pytest.raises(MuxError) as caught:
        mux.wait(Caller(), wait)
    assert [parker.told[0].code, caught.value.code] == ["storage_full"] * 2
