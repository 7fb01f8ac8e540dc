"""Waiting and waking, step by step; nothing here needs the store."""

from __future__ import annotations

import threading

import pytest
from fake_clock import FakeClock

from stonemux.clock import Clock
from stonemux.hub import Hangup, Hub


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def hub(clock):
    return Hub(clock)


def soon(clock):
    return clock.ticks_ms() + 60_000


def test_a_wake_up_before_the_sleep_is_not_lost(hub, clock):
    with hub.watch(("inbox", "bob")) as watch:
        hub.wake([("inbox", "bob")])
        assert watch.wait(soon(clock))
        assert clock.parked == 0


def test_a_wake_up_is_good_for_one_look(hub, clock):
    with hub.watch(("inbox", "bob")) as watch:
        hub.wake([("inbox", "bob")])
        hub.wake([("inbox", "bob")])
        assert watch.wait(soon(clock))
        assert not watch.wait(clock.ticks_ms())


def test_a_sleeper_is_woken(hub, clock, background):
    with hub.watch(("inbox", "bob")) as watch:
        sleeping = background(watch.wait, soon(clock))
        clock.until_parked(1)
        hub.wake([("inbox", "ann")])
        assert not sleeping.done()
        hub.wake([("inbox", "bob")])
        assert sleeping.result(5)


def test_a_deadline_ends_the_sleep_exactly(hub, clock, background):
    with hub.watch(("inbox", "bob")) as watch:
        sleeping = background(watch.wait, clock.ticks_ms() + 1000)
        clock.until_parked(1)
        clock.advance(999)
        assert not sleeping.done()
        clock.advance(1)
        assert sleeping.result(5) is False


def test_a_watch_hears_of_each_of_its_topics_once(hub, clock):
    with hub.watch(("a",), ("b",)) as watch:
        hub.wake([("a",), ("b",), ("a",)])
        assert watch.wait(soon(clock))
        assert not watch.take_back()
        hub.wake([("b",)])
        assert watch.take_back()


def test_an_offer_wakes_the_one_who_has_waited_longest_and_was_not_woken(hub):
    first, second = hub.watch(("task",)), hub.watch(("task",))
    with first, second:
        assert hub.offer(("task",))
        assert hub.offer(("task",))
        assert not hub.offer(("task",)), "both are woken already"
        assert first.take_back()
        assert second.take_back()
        assert hub.offer(("task",))
        assert first.take_back()
        assert not second.take_back()


def test_an_offer_passes_over_a_caller_that_went_away(hub, clock):
    with hub.watch(("task",)) as gone, hub.watch(("task",)) as here:
        gone.cancel()
        assert hub.offer(("task",))
        assert here.wait(soon(clock))
        with pytest.raises(Hangup):
            gone.wait(soon(clock))


def test_who_went_away_does_not_look_even_when_woken(hub, clock):
    with hub.watch(("task",)) as watch:
        assert hub.offer(("task",))
        watch.cancel()
        with pytest.raises(Hangup):
            watch.wait(soon(clock))
        assert watch.take_back(), "so that it can be passed on"


def test_hanging_up_ends_a_sleep(hub, clock, background):
    with hub.watch(("task",)) as watch:
        sleeping = background(watch.wait, soon(clock))
        clock.until_parked(1)
        watch.cancel()
        with pytest.raises(Hangup):
            sleeping.result(5)


def test_who_is_dismissed_gets_no_offer(hub):
    watch = hub.watch(("task",))
    with watch:
        pass
    assert not hub.offer(("task",))
    assert not watch.take_back()


def test_topics_nobody_waits_for_leave_no_trace(hub):
    with hub.watch(("a", 1), ("b", 2)), hub.watch(("b", 2)):
        assert hub.parked == 2
        hub.wake([("c", 3)])
    assert hub.parked == 0
    assert hub._waiting == {}


def test_closing_ends_every_sleep_and_every_later_one(hub, clock, background):
    with hub.watch(("a",)) as watch, hub.watch(("b",)) as late:
        sleeping = background(watch.wait, soon(clock))
        clock.until_parked(1)
        hub.close()
        assert sleeping.result(5) is False
        assert late.wait(soon(clock)) is False


def test_closing_between_the_look_at_the_hub_and_the_sleep_is_not_missed(hub, clock, monkeypatch):
    """The waiter holds its condition from the look to the sleep, so the poke comes after."""
    closing = threading.Thread(target=hub.close)
    wait = clock.wait

    def close_now(condition, deadline):
        closing.start()
        while not hub.closed:
            pass
        wait(condition, deadline)

    monkeypatch.setattr(clock, "wait", close_now)
    with hub.watch(("a",)) as watch:
        assert watch.wait(soon(clock)) is False
        closing.join()


def test_the_real_clock_sleeps_until_it_is_woken():
    hub = Hub(Clock())
    with hub.watch(("a",)) as watch:
        threading.Timer(0.01, hub.wake, [[("a",)]]).start()
        assert watch.wait(hub.clock.ticks_ms() + 5000)
        assert not watch.wait(hub.clock.ticks_ms() + 5)
