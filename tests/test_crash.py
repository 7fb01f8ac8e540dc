"""SIGKILL in the middle of everything: what was acknowledged is there. `deep/test_crash_long.py` is the long form."""

from __future__ import annotations

import crashing


def test_what_was_acknowledged_survives_being_killed(tmp_path):
    told = crashing.kill_rounds(tmp_path / "data", seed=7, rounds=4, most_lines=400)
    assert {"sent", "posted", "claimed", "completed", "set"} <= told.keys()
