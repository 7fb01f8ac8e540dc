"""Is there an order in which these calls to one key of shared state could have happened one by one?

The search is that of Wing and Gong with Lowe's cache (WGL). Calls and returns form one list, ordered by time. Walk it:
a call that the model allows now is removed together with its return, and the walk restarts; reaching a return means
that its call should have happened by now but could not, so the last choice was wrong and is undone. Pairs of (removed
calls, state) that were seen before are not tried again.

A call whose outcome is unknown (a timeout, a broken connection) may have happened at any time up to `until` (the death
of the daemon that it was sent to; None: no limit), or never: when its end is reached, it is dropped without an effect.

Keys do not influence each other, so each is searched separately.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

FOREVER = 2**63
MOST_STEPS = 3_000_000


class State(NamedTuple):
    """A key: whether it exists, its version (kept by a tombstone), and its value."""

    live: bool = False
    version: int = 0
    value: str | None = None


class Op(NamedTuple):
    """One call to one key. `answer` is what came back; None if that is unknown.

    Answers: ("live", version, value) and ("gone", version) to a get; ("ok", version), ("gone", version), and
    ("conflict", version, value) to a change.
    """

    kind: str
    call: int
    end: int
    answer: tuple[Any, ...] | None
    value: str | None = None
    expected: int | None = None


def step(state: State, op: Op) -> tuple[State, tuple[Any, ...]]:
    """The model: the state after a call, and its answer."""
    if op.kind == "get":
        return state, ("live", state.version, state.value) if state.live else ("gone", state.version)
    if op.kind == "delete" and not state.live and not op.expected:
        return state, ("gone", state.version)
    live_version = state.version if state.live else 0
    if op.expected is not None and op.expected != live_version:
        return state, ("conflict", live_version, state.value if state.live else None)
    return State(op.kind == "set", state.version + 1, op.value), ("ok", state.version + 1)


def witnessed(ops: Iterable[Op]) -> dict[int, tuple[int | None, State]] | None:
    """What the answers reveal about each version: which call made it (None if unknown), and its state.

    A version is made once, so a call of unknown outcome cannot have made one that has another maker or another value.
    That saves the search nearly all of its wrong turns. Returns None if two answers contradict each other.
    """
    known: dict[int, tuple[int | None, State]] = {}
    for number, op in enumerate(ops):
        told, maker = None, None
        if op.answer is None:
            continue
        if op.answer[0] == "ok":
            told, maker = State(op.kind == "set", op.answer[1], op.value), number
        elif op.answer[0] == "gone":
            told = State(False, op.answer[1], None)
        elif op.answer[1]:
            told = State(True, *op.answer[1:])
        if told is not None:
            before = known.setdefault(told.version, (maker, told))
            if before[1] != told or (maker is not None and before[0] not in (None, maker)):
                return None
            known[told.version] = (before[0] if maker is None else maker, told)
    return known


def is_linearizable(ops: Iterable[Op], start: State | None = None) -> bool:
    """Whether some order explains every answer."""
    ops = list(ops)
    known = witnessed(ops)
    return known is not None and _Search(ops, known).run(start or State())


class _Search:
    """The list of calls and returns as links between positions; position 0 is the head, -1 the end."""

    def __init__(self, ops: list[Op], known: dict[int, tuple[int | None, State]]) -> None:
        self.ops = ops
        self.known = known
        # At equal times a call comes first: the two then overlap, which is the weaker claim.
        events = sorted(
            [(op.call, 0, number) for number, op in enumerate(ops)]
            + [(op.end, 1, number) for number, op in enumerate(ops)]
        )
        self.is_return = [False, *(kind == 1 for _, kind, _ in events)]
        self.number = [-1, *(number for _, _, number in events)]
        self.after = [*range(1, len(events) + 1), -1]
        self.before = [-1, *range(len(events))]
        self.return_of = {number: at for at, (_, kind, number) in enumerate(events, 1) if kind}
        self.open = sum(op.answer is not None for op in ops)

    def run(self, state: State) -> bool:
        lifted, seen, steps = 0, set[tuple[int, State]](), 0
        stack: list[tuple[int, State, bool]] = []  # position of the call, state before, whether it was dropped
        at = self.after[0]
        while self.open:
            steps += 1
            if steps > MOST_STEPS:
                raise RuntimeError(f"no verdict after {MOST_STEPS} steps")
            number = self.number[at]
            op = self.ops[number]
            if not self.is_return[at]:
                following, answer = step(state, op)
                mark = (lifted | 1 << number, following)
                if op.answer in (None, answer) and self._may_be(number, state, following) and mark not in seen:
                    seen.add(mark)
                    stack.append((at, state, False))
                    lifted, state = mark
                    self._lift(at)
                    at = self.after[0]
                else:
                    at = self.after[at]
            elif op.answer is None:  # its time is over, so it never happened
                call = self._call_of(at)
                stack.append((call, state, True))
                self._lift(call)
                at = self.after[0]
            else:
                while True:
                    if not stack:
                        return False
                    at, state, dropped = stack.pop()
                    self._put_back(at)
                    if not dropped:
                        break
                lifted &= ~(1 << self.number[at])
                at = self.after[at]
        return True

    def _may_be(self, number: int, state: State, following: State) -> bool:
        if following.version == state.version:
            return True
        maker, told = self.known.get(following.version, (None, following))
        return maker in (None, number) and told == following

    def _call_of(self, position: int) -> int:
        number = self.number[position]
        while True:
            position = self.before[position]
            if self.number[position] == number:
                return position

    def _lift(self, call: int) -> None:
        number = self.number[call]
        for position in (call, self.return_of[number]):
            before, after = self.before[position], self.after[position]
            self.after[before] = after
            if after >= 0:
                self.before[after] = before
        self.open -= self.ops[number].answer is not None

    def _put_back(self, call: int) -> None:
        number = self.number[call]
        for position in (self.return_of[number], call):
            before, after = self.before[position], self.after[position]
            self.after[before] = position
            if after >= 0:
                self.before[after] = position
        self.open += self.ops[number].answer is not None
