"""Tests of the judge of shared state, on handmade histories."""

from __future__ import annotations

import random

import pytest
from attack.linearizability import FOREVER, Op, State, is_linearizable, step


def put(call: int, end: int, version: int, value: str, expected: int | None = None) -> Op:
    return Op("set", call, end, ("ok", version), value, expected)


def got(call: int, end: int, version: int, value: str) -> Op:
    return Op("get", call, end, ("live", version, value))


def gone(call: int, end: int, version: int) -> Op:
    return Op("get", call, end, ("gone", version))


def removed(call: int, end: int, version: int) -> Op:
    return Op("delete", call, end, ("ok", version))


def lost_put(call: int, value: str, end: int = FOREVER, expected: int | None = None) -> Op:
    return Op("set", call, end, None, value, expected)


GOOD = {
    "nothing": [],
    "one after the other": [put(0, 1, 1, "a"), got(2, 3, 1, "a"), put(4, 5, 2, "b"), got(6, 7, 2, "b")],
    "a read that overlaps a write may see either": [put(0, 9, 1, "a"), gone(1, 2, 0), got(3, 4, 1, "a")],
    "overlapping writes in the other order": [put(0, 9, 2, "a"), put(1, 8, 1, "b"), got(10, 11, 2, "a")],
    "one of two swaps wins": [
        put(0, 1, 1, "a"),
        put(2, 9, 2, "b", 1),
        Op("set", 3, 8, ("conflict", 2, "b"), "c", 1),
    ],
    "a tombstone keeps the version": [put(0, 1, 1, "a"), removed(2, 3, 2), gone(4, 5, 2), put(6, 7, 3, "b", 0)],
    "a swap after a deletion says that nothing is there": [
        put(0, 1, 1, "a"),
        removed(2, 3, 2),
        Op("set", 4, 5, ("conflict", 0, None), "b", 1),
    ],
    "deleting twice": [put(0, 1, 1, "a"), removed(2, 3, 2), Op("delete", 4, 5, ("gone", 2))],
    "an unknown write that happened": [lost_put(0, "a"), got(5, 6, 1, "a")],
    "an unknown write that happened late": [lost_put(0, "a"), gone(1, 2, 0), got(5, 6, 1, "a")],
    "an unknown write that never happened": [lost_put(0, "a"), put(5, 6, 1, "b"), got(7, 8, 1, "b")],
    "an unknown write that never happened in its time": [lost_put(0, "a", 3), gone(5, 6, 0), put(7, 8, 1, "b")],
    "two unknown writes of which the second happened": [lost_put(0, "a", 4), lost_put(1, "b", 4), got(5, 6, 1, "b")],
    "an unknown swap that was refused": [put(0, 1, 1, "a"), lost_put(2, "b", 4, 7), got(5, 6, 1, "a")],
}

BAD = {
    "a stale read": [put(0, 1, 1, "a"), put(2, 3, 2, "b"), got(4, 5, 1, "a")],
    "a lost write": [put(0, 1, 1, "a"), gone(2, 3, 0)],
    "both swaps win": [put(0, 1, 1, "a"), put(2, 9, 2, "b", 1), put(3, 8, 2, "c", 1)],
    "both swaps win, one after the other": [put(0, 1, 1, "a"), put(2, 9, 2, "b", 1), put(3, 8, 3, "c", 1)],
    "a version that repeats after a deletion": [put(0, 1, 1, "a"), removed(2, 3, 2), put(4, 5, 1, "b", 0)],
    "the old swap that this lets in": [
        put(0, 1, 1, "a"),
        removed(2, 3, 2),
        put(4, 5, 3, "b", 0),
        put(6, 7, 4, "c", 1),
    ],
    "a deleted key that comes back": [put(0, 1, 1, "a"), removed(2, 3, 2), got(4, 5, 1, "a")],
    "reads that go back": [put(0, 20, 1, "a"), got(1, 2, 1, "a"), gone(3, 4, 0)],
    "a value that nobody wrote": [put(0, 1, 1, "a"), got(2, 3, 1, "z")],
    "a refusal with a value of the future": [
        put(0, 1, 1, "a"),
        Op("set", 2, 3, ("conflict", 2, "b"), "c", 7),
        put(4, 5, 2, "b"),
    ],
    "an unknown write after its daemon had died": [lost_put(0, "a", 3), gone(4, 5, 0), got(6, 7, 1, "a")],
    "an unknown write that was undone": [lost_put(0, "a"), got(1, 2, 1, "a"), gone(3, 4, 0)],
    "an unknown write that happened twice": [lost_put(0, "a"), got(1, 2, 1, "a"), got(3, 4, 2, "a")],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_history_that_some_order_explains_is_linearizable(name):
    assert is_linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_a_history_that_no_order_explains_is_not(name):
    assert not is_linearizable(BAD[name])


def random_history(chance: random.Random, length: int) -> list[Op]:
    """Calls that did happen one by one at a moment within each; every fifth answer is lost, and half of those calls."""
    moments = sorted(chance.sample(range(10, length * 10), length))
    state, ops = State(), []
    for number, moment in enumerate(moments):
        kind = chance.choice(("get", "set", "set", "delete"))
        expected = chance.choice((None, state.version if state.live else 0, 1)) if kind != "get" else None
        op = Op(
            kind,
            moment - chance.randrange(10),
            moment + chance.randrange(40),
            None,
            str(number) if kind == "set" else None,
            expected,
        )
        if chance.random() < 0.2:
            if chance.random() < 0.5:
                state, _ = step(state, op)
            ops.append(op._replace(end=chance.choice((FOREVER, moment + 50))))
        else:
            state, answer = step(state, op)
            ops.append(op._replace(answer=answer))
    return ops


def test_whatever_did_happen_one_by_one_is_accepted():
    for seed in range(60):
        assert is_linearizable(random_history(random.Random(seed), 60)), seed


def test_a_wrong_version_in_a_long_history_is_noticed():
    caught = 0
    for seed in range(40):
        chance = random.Random(seed)
        ops = random_history(chance, 60)
        at = chance.choice([number for number, op in enumerate(ops) if op.answer and op.answer[0] == "ok"])
        ops[at] = ops[at]._replace(answer=("ok", ops[at].answer[1] + 1))
        caught += not is_linearizable(ops)
    assert caught == 40
