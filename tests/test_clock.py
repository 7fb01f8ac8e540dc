"""Time that only goes forward, and ids."""

from __future__ import annotations

import threading
import time
import uuid

import pytest

from stonemux.clock import Clock, moment, rfc3339


def test_a_clock_starts_no_earlier_than_it_is_told():
    late = time.time_ns() // 1_000_000 + 3_600_000
    assert Clock(late).now_ms() >= late
    assert Clock(1).now_ms() < late


def test_an_anchor_moves_time_forward_only():
    clock = Clock()
    before = clock.now_ms()
    clock.anchor(before - 10_000)
    assert 0 <= clock.now_ms() - before < 5_000
    clock.anchor(before + 3_600_000)
    assert clock.now_ms() >= before + 3_600_000


def test_setting_the_machines_clock_changes_nothing(monkeypatch):
    clock = Clock()
    before = clock.now_ms()
    for jump in (-86_400_000, 86_400_000, 315_360_000_000):
        monkeypatch.setattr(time, "time_ns", lambda jump=jump: (before + jump) * 1_000_000)
        assert 0 <= clock.now_ms() - before < 5_000


def test_a_wait_ends_when_its_deadline_has_passed_already():
    condition = threading.Condition()
    with condition:
        Clock().wait(condition, Clock().ticks_ms() - 1000)


def test_ids_and_tokens_do_not_repeat():
    clock = Clock()
    assert len({clock.new_id() for _ in range(1000)}) == 1000
    assert uuid.UUID(clock.new_id()).version == 4


def test_ordered_ids_are_uuids_that_begin_with_the_time():
    clock = Clock()
    ids = [clock.new_ordered_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    one = uuid.UUID(ids[0])
    assert (one.version, one.variant, str(one)) == (7, uuid.RFC_4122, ids[0])
    assert 0 <= clock.now_ms() - (one.int >> 80) < 1000
    assert [number >> 80 for number in (uuid.UUID(text).int for text in ids)] == sorted(
        uuid.UUID(text).int >> 80 for text in ids
    )
    assert len({clock.token() for _ in range(1000)}) == 1000
    assert len(clock.token(6)) == 12


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_781_065_800_007, "2026-06-10T04:30:00.007Z"),
        (951_827_696_789, "2000-02-29T12:34:56.789Z"),
        (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
    ],
)
def test_times_are_shown_in_utc(ms, text):
    assert rfc3339(ms) == text


def test_a_time_is_read_as_it_is_written():
    for ms in (0, 1, 999, 1_781_065_800_001, 4_102_444_799_999):
        assert moment(rfc3339(ms)) == ms
    assert moment("2026-06-10t06:30:00.5+02:00") == moment("2026-06-10T04:30:00.500Z")


@pytest.mark.parametrize("text", ["", "tomorrow", "2026-06-10T04:30:00", "2026-06-10", "1781065800"])
def test_what_names_no_moment_is_no_time(text):
    with pytest.raises(ValueError, match=r".+"):
        moment(text)
