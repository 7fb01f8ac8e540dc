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
    assert run(workers) == "done"
    eventually(lambda: not workers._alive)
    assert workers.idle == 0, "who is done after the end does not stay"


@pytest.fixture
def single() -> Iterator[Workers]:
    crew = Workers(1)
    yield crew
    crew.close()


def test_what_is_beyond_the_limit_waits_for_its_turn_and_comes_in_order(single):
    go_on, did = threading.Event(), []
    single.run(lambda: (go_on.wait(PATIENCE_S), did.append(0)))
    for number in range(1, 5):
        single.run(lambda number=number: did.append(number))
    eventually(lambda: single.waiting == 4)
    go_on.set()
    eventually(lambda: len(did) == 5)
    assert did == [0, 1, 2, 3, 4]
    eventually(lambda: single.idle == 1)


def test_a_thread_that_did_not_live_takes_nobodys_place(single, stillborn):
    told: list[str] = []
    single.run(lambda: told.append("first"))
    stillborn()
    assert run(single) == "done"
    assert told == ["first"]


def test_of_threads_begun_at_once_those_beyond_the_limit_leave_their_work_to_the_others(single, monkeypatch):
    begun: list[Callable[[], None]] = []
    go_on, did = threading.Event(), []
    with monkeypatch.context() as patched:
        patched.setattr(threads, "start_new_thread", lambda run, args: begun.append(run))
        for number in range(2):
            single.run(lambda number=number: (go_on.wait(PATIENCE_S), did.append(number)))
    threads.begin("first", begun[0])
    eventually(lambda: single.waiting == 1)
    begun[1]()  # on this thread, which it would hold up
    assert did == []
    go_on.set()
    eventually(lambda: did == [0, 1])


def test_no_piece_is_lost_that_comes_as_the_only_thread_falls_asleep(single):
    done = threading.Semaphore(0)
    for _ in range(300):
        single.run(done.release)
        assert done.acquire(timeout=PATIENCE_S)
