"""The long form of the attacks: 200 kills, 5,000 abandoned polls, 4 x 2,000 rallies.

`STONEMUX_SEED` selects other random numbers for all of them.
"""

from __future__ import annotations

import os

import pytest
from attack import crash, receipts, wakeups
from attack.victim import WITH_TLS, Victim

SEED = int(os.environ.get("STONEMUX_SEED", "0"))


@pytest.mark.parametrize("part", range(8))
def test_fault_33_two_hundred_kills_under_load(tmp_path, part):
    outcome = crash.attack(tmp_path / "data", seed=SEED + part, kills=25)
    print(outcome.counts)
    assert not outcome.violations
    assert outcome.counts["kills"] == 25


def test_fault_27_five_thousand_polls_left_behind(tmp_path):
    with Victim(tmp_path / "data") as victim:
        outcome = receipts.attack(victim.port, seed=SEED, polls=5000)
        print(outcome.counts)
        assert not outcome.violations
        assert outcome.counts["abandoned"] == 5000
        assert victim.stop() == 0


def test_fault_27_two_thousand_polls_left_behind_over_tls(tmp_path):
    with Victim(tmp_path / "data", environ=WITH_TLS) as victim:
        outcome = receipts.attack(victim.port, seed=SEED, polls=2000, tls=True)
        print(outcome.counts)
        assert not outcome.violations
        assert outcome.counts["abandoned"] == 2000
        assert victim.stop() == 0


def test_thousands_of_rallies_wake_everybody_in_time(tmp_path):
    with Victim(tmp_path / "data") as victim:
        outcome = wakeups.attack(victim.port, seed=SEED, rallies=2000)
        assert not outcome.violations
        assert victim.stop() == 0


def test_a_stop_is_heard_however_early_it_comes(tmp_path):
    """A signal that arrives while the main thread is just falling asleep: one start in about fifty hit that moment."""
    for number in range(150):
        with Victim(tmp_path / str(number)) as victim:
            assert victim.stop() == 0
