"""Who attacks the attackers? They must find each defect that `seeded_daemon` knows, as docs/testing.md says."""

from __future__ import annotations

import re

import pytest
from attack import crash, receipts, wakeups
from attack.seeded_daemon import DEFECTS
from attack.victim import Victim, seeded
from daemons import ROOT

LOAD, LEFT, RALLY = "load and kills", "polls left behind", "rallies"

CAUGHT_BY = {
    "cas_race": (LOAD, "not_linearizable"),
    "aba": (LOAD, "not_linearizable"),
    "claim_race": (LOAD, "double_claim"),
    "zombie_complete": (LOAD, "zombie_complete"),
    "no_idempotency": (LOAD, "duplicate_send"),
    "auto_ack": (LEFT, "lost_message"),
    "ack_before_commit": (LOAD, "lost_message"),
    "lost_wakeup": (RALLY, "late_wakeup"),
    "wake_before_commit": (RALLY, "late_wakeup"),
    "receipt_ignored": (LEFT, "lost_message"),
    "cursor_skips": (LOAD, "lost_message"),
    "forgotten_ack": (LOAD, "redelivered_after_ack"),
    "short_lease": (LOAD, "lease_ignored"),
    "event_id_before_commit": (LOAD, "phantom_event"),
}


def attacked(tmp_path, attack: str, *command: str) -> crash.Outcome:
    if attack == LOAD:
        return (
            crash.attack(tmp_path / "data", seed=7, kills=6, command=command)
            if command
            else crash.attack(tmp_path / "data", seed=7, kills=6)
        )
    with Victim(tmp_path / "data", *([command] if command else [])) as victim:
        if attack == LEFT:
            return receipts.attack(victim.port, seed=7, polls=300)
        return wakeups.attack(victim.port, seed=7, rallies=100)


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_seeded_defect_is_found(tmp_path, defect):
    attack, rule = CAUGHT_BY[defect]
    outcome = attacked(tmp_path, attack, *seeded(defect))
    assert rule in outcome.rules, outcome


@pytest.mark.parametrize("attack", [LOAD, LEFT, RALLY])
def test_in_the_program_itself_nothing_is_found(tmp_path, attack):
    assert not attacked(tmp_path, attack).violations


def test_the_table_of_defects_is_current():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.+?) \| `(\w+)` \|$", (ROOT / "docs/testing.md").read_text(), re.M)
    assert {defect: (attack, rule) for defect, attack, rule in rows} == CAUGHT_BY
    assert CAUGHT_BY.keys() == DEFECTS.keys()
