"""The long form of `../test_crash.py`: many kills, at different moments each time."""

from __future__ import annotations

import random

import crashing
import pytest


@pytest.mark.parametrize("most_lines", [5, 50, 500, 5000])
def test_what_was_acknowledged_survives_being_killed(tmp_path, most_lines):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    crashing.kill_rounds(tmp_path / "data", seed=seed, rounds=12, most_lines=most_lines)
