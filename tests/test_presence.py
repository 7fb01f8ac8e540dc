"""Which agents are present, which went stale, and what a heartbeat does not do."""

from __future__ import annotations

import pytest
from fake_clock import FakeClock

from stonemux import agents, door, operations
from stonemux.errors import MuxError
from stonemux.mux import Caller
from stonemux.presence import Presence

THRESHOLD_MS = 300_000


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def presence(clock):
    presence = Presence(clock, THRESHOLD_MS // 1000)
    presence.add("ann")
    return presence


def test_an_agent_is_stale_when_the_threshold_has_passed_and_not_before(presence, clock):
    clock.advance(THRESHOLD_MS - 1)
    assert presence.status("ann") == "active"
    assert presence.newly_stale() == []
    presence.add("bob")
    assert presence.counts() == (2, 0)
    clock.advance(1)
    assert presence.status("ann") == "stale"
    assert presence.counts() == (1, 1)


def test_another_threshold_counts_at_once(presence, clock):
    clock.advance(1000)
    presence.heed(1)
    assert presence.status("ann") == "stale"
    presence.heed(2)
    assert presence.status("ann") == "active"
    assert presence.next_stale() == clock.now_ms() + 1000


def test_any_sign_of_life_starts_the_time_anew(presence, clock):
    clock.advance(THRESHOLD_MS - 1)
    assert presence.beat("ann") == clock.now_ms()
    clock.advance(THRESHOLD_MS - 1)
    assert presence.status("ann") == "active"


def test_staleness_is_told_once_per_silence(presence, clock):
    clock.advance(THRESHOLD_MS)
    assert presence.newly_stale() == ["ann"]
    assert presence.newly_stale() == []
    assert presence.next_stale() is None
    presence.beat("ann")
    assert presence.next_stale() == clock.now_ms() + THRESHOLD_MS
    clock.advance(THRESHOLD_MS)
    assert presence.newly_stale() == ["ann"]


def test_a_heartbeat_while_staleness_is_being_told_is_not_overlooked(presence, clock):
    """It comes after the choice and before the mark, where it does not see that it is told of."""
    clock.advance(THRESHOLD_MS)

    class Told(set):
        def update(self, names):
            presence.beat("ann")
            super().update(names)

    presence._told = Told()
    assert presence.newly_stale() == []
    clock.advance(THRESHOLD_MS)
    presence._told = set(presence._told)
    assert presence.newly_stale() == ["ann"]


def test_what_could_not_be_told_is_told_again(presence, clock):
    clock.advance(THRESHOLD_MS)
    presence.not_told(presence.newly_stale())
    assert presence.newly_stale() == ["ann"]


def test_who_is_not_registered_leaves_no_trace(presence):
    presence.beat("bob")
    assert not presence.knows("bob")
    assert presence.last("bob") == 0
    presence.remove("ann")
    presence.beat("ann")
    assert presence.counts() == (0, 0)
    assert presence.unsaved() == []
    assert presence._told == set()


def test_times_are_handed_out_for_writing_down_once(presence, clock):
    presence.beat("ann")
    assert presence.unsaved() == [(clock.now_ms(), "ann")]
    assert presence.unsaved() == []


# -- with the program around it


def test_an_agent_that_goes_quiet_is_announced_even_when_the_disk_refuses_at_first(program, direct, monkeypatch):
    direct.call("agent.register", agent_id="ann")
    program.clock.advance(program.settings.stale_threshold * 1000)

    def full(tx, agent_ids):
        raise MuxError("storage_full", "no space")

    with monkeypatch.context() as patch:
        patch.setattr(agents, "stale", full)
        with pytest.raises(MuxError):
            program.timekeeper.tick()
    program.timekeeper.tick()
    program.timekeeper.tick()
    events = direct.call("events.list", after=0, types=["agent_stale"], agent_id="ann")["events"]
    assert [event["data"]["agent_id"] for event in events] == ["ann"]


def test_nobody_is_stale_because_the_daemon_was_away(program, direct):
    direct.call("agent.register", agent_id="ann")
    program.clock.advance(program.settings.stale_threshold * 1000 - 1)
    mux = program.reopen()
    assert mux.presence.status("ann") == "active"
    program.clock.advance(program.settings.stale_threshold * 1000 - 1)
    assert mux.presence.status("ann") == "active"


def test_a_registration_that_is_rolled_back_is_not_remembered(program):
    mux = program.mux

    call = door.Call(mux, operations.BY_NAME["agent.register"], {"agent_id": "ann"}, Caller())

    def register_and_fail(tx):
        call.work(tx)
        raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        mux.store.write(register_and_fail)
    assert not mux.presence.knows("ann")


def test_heartbeats_are_written_down(program, direct):
    direct.call("agent.register", agent_id="ann")
    program.clock.advance(61_000)
    direct.call("agent.heartbeat", agent_id="ann")
    program.timekeeper.tick()
    with program.store.read() as rx:
        assert rx.one("select last_heartbeat from agent where id = 'ann'")[0] == program.clock.now_ms()
