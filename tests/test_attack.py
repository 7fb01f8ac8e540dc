"""The short form of the attacks: see `attack`, and `deep` for the long form."""

from __future__ import annotations

import pytest
from attack import crash, receipts, wakeups
from attack.victim import WITH_TLS, Victim


def test_fault_33_kills_under_load_lose_and_double_nothing(tmp_path):
    outcome = crash.attack(tmp_path / "data", seed=33, kills=2, long_life=0.6)
    assert not outcome.violations
    assert all(outcome.counts[what] for what in ("kills", "sent", "read", "state", "completed", "events"))


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    with Victim(tmp_path_factory.mktemp("attack") / "data") as one:
        yield one
        assert one.stop() == 0


def test_fault_27_polls_left_behind_lose_nothing(victim):
    outcome = receipts.attack(victim.port, seed=27, polls=300)
    assert not outcome.violations
    assert outcome.counts["abandoned"] == 300


def test_fault_27_polls_left_behind_over_tls_lose_nothing(tmp_path):
    with Victim(tmp_path / "data", environ=WITH_TLS) as victim:
        outcome = receipts.attack(victim.port, seed=27, polls=120, tls=True)
        assert not outcome.violations
        assert victim.stop() == 0


def test_nobody_sleeps_through_what_they_wait_for(victim):
    outcome = wakeups.attack(victim.port, seed=1, rallies=30)
    assert not outcome.violations
