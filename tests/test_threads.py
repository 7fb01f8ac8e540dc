"""Threads for callers who must not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from raw import PATIENCE_S, eventually

from stonemux import threads
from stonemux.errors import MuxError
from stonemux.threads import Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    crew = Workers()
    yield crew
    crew.close()
    assert crew.idle == 0


@pytest.fixture
def stillborn(monkeypatch) -> Callable[[], None]:
    """Threads end before their first step as long as `yes()`, as they do when they find no memory."""
    monkeypatch.setattr(threads, "start_new_thread", lambda run, args: None)
    return monkeypatch.undo


def run(workers: Workers) -> str:
    """Run something, and return what it did."""
    told: list[str] = []
    workers.run(lambda: told.append("done"))
    eventually(lambda: told)
    return told[0]


def test_a_thread_that_is_free_again_runs_the_next_piece(workers):
    for _ in range(20):
        assert run(workers) == "done"
        eventually(lambda: workers.idle)
    assert workers.idle == 1


def test_what_a_thread_did_not_live_to_do_is_done_by_the_next(workers, stillborn):
    told: list[str] = []
    workers.run(lambda: told.append("first"))
    stillborn()
    assert run(workers) == "done"
    assert told == ["first"]


def test_a_piece_that_fails_is_told_and_costs_no_thread(workers, caplog):
    def fail() -> None:
        raise ValueError("so it is")

    workers.run(fail)
    eventually(lambda: workers.idle)
    assert "a worker failed" in caplog.text
    caplog.clear()
    assert run(workers) == "done"
    eventually(lambda: workers.idle)
    assert workers.idle == 1


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_without_a_thread_a_piece_is_refused_and_not_run_later(workers, monkeypatch, error):
    def refuse(*_: object) -> None:
        raise error

    told: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(threads, "start_new_thread", refuse)
        with pytest.raises(MuxError, match="no thread left") as caught:
            workers.run(lambda: told.append("refused"))
    assert (caught.value.code, caught.value.retry_after) == ("too_many_waiters", 1)
    assert run(workers) == "done"
    assert told == []


def test_what_another_thread_has_taken_meanwhile_is_not_refused(workers, monkeypatch):
    told: list[str] = []

    def refuse_late(*_: object) -> None:
        workers._work.popleft()()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "start_new_thread", refuse_late)
    workers.run(lambda: told.append("done"))
    assert told == ["done"]


def test_no_more_than_a_certain_number_stays(monkeypatch):
    monkeypatch.setattr(threads, "MOST_IDLE", 2)
    workers, go_on, begun = Workers(), threading.Event(), []

    def work() -> None:
        begun.append(True)
        assert go_on.wait(PATIENCE_S)

    for _ in range(4):
        workers.run(work)
    eventually(lambda: len(begun) == 4)
    go_on.set()
    eventually(lambda: workers.idle == 2)
    workers.close()
    assert not workers._rest(threading.Lock()), "who is done after the end does not stay"
