"""The contract of shared state: versions, compare-and-set, tombstones, watching."""

from __future__ import annotations

import pytest
from faces import join, refusal


def put(face, value="v", key="k", **given):
    return face.call("state.set", key=key, value=value, **given)["version"]


def test_a_record_has_the_seeds_fields(face, clock):
    join(face, "ann")
    written = face.call("state.set", key="k", value="v", updated_by="ann")
    assert face.call("state.get", key="k") == written
    stamp = written["updated_at"]
    assert written == {"key": "k", "value": "v", "version": 1, "updated_by": "ann", "updated_at": stamp}
    clock.advance(1)
    assert face.call("state.set", key="k", value="v")["updated_at"] > written["updated_at"]
    assert face.call("state.get", key="k")["updated_by"] is None


def test_versions_rise_by_one_with_every_set_and_delete__K1(face):
    assert [put(face), put(face), put(face)] == [1, 2, 3]
    assert face.call("state.delete", key="k") == {"key": "k", "version": 4, "deleted": True}
    assert put(face) == 5


def test_setting_the_same_value_bumps_the_version__K5(face):
    assert [put(face, "same"), put(face, "same")] == [1, 2]


def test_expected_version_must_be_the_live_one__K2__K3__fault_23(face):
    join(face, "ann")
    put(face, "mine", updated_by="ann")
    for wrong in (0, 2, 7):
        error = refusal(face, "version_conflict", "state.set", key="k", value="x", expected_version=wrong)
        assert (error.facts["current_version"], error.facts["current_value"]) == (1, "mine")
        assert error.facts["updated_by"] == "ann"
    assert face.call("state.get", key="k")["value"] == "mine"
    assert put(face, "new", expected_version=1) == 2
    refusal(face, "version_conflict", "state.set", key="k", value="x", expected_version=1)
    assert put(face, expected_version=None) == 3


def test_expected_version_0_means_that_the_key_must_not_exist__K2(face):
    assert put(face, expected_version=0) == 1
    error = refusal(face, "version_conflict", "state.set", key="k", value="x", expected_version=0)
    assert error.facts["current_version"] == 1
    error = refusal(face, "version_conflict", "state.set", key="new", value="x", expected_version=1)
    assert error.facts["current_version"] == 0


def test_a_deleted_key_never_repeats_a_version__K4__fault_24(face):
    before = put(face)
    face.call("state.delete", key="k")
    recreated = put(face, expected_version=0)
    assert recreated > before + 1
    error = refusal(face, "version_conflict", "state.set", key="k", value="x", expected_version=before)
    assert error.facts["current_version"] == recreated


def test_a_set_whose_answer_was_lost_may_be_tried_again__K7(face):
    face.call("agent.register", agent_id="ann")
    face.call("state.set", key="k", value="first")
    mine = {"key": "k", "value": "mine", "expected_version": 1, "updated_by": "ann"}
    face.call("state.set", **mine)
    told = refusal(face, "version_conflict", "state.set", **mine)
    assert (told.facts["current_version"], told.facts["current_value"], told.facts["updated_by"]) == (2, "mine", "ann")
    assert face.call("state.history", key="k")["versions"][0]["version"] == 2


def test_a_tombstone_counts_as_not_existing__K3(face):
    put(face)
    face.call("state.delete", key="k")
    error = refusal(face, "version_conflict", "state.set", key="k", value="x", expected_version=2)
    assert error.facts["current_version"] == 0
    assert "current_value" not in error.facts


@pytest.mark.parametrize("version", [-1, 1.0, "3", True, [1]])
@pytest.mark.parametrize("name", ["state.set", "state.delete"])
def test_expected_version_is_a_plain_version_number__K2__fault_22(face, name, version):
    put(face)
    given = {"value": "x"} if name == "state.set" else {}
    refusal(face, "invalid_expected_version", name, key="k", expected_version=version, **given)
    assert face.call("state.get", key="k")["version"] == 1


def test_of_two_compare_and_sets_on_one_version_one_wins__fault_23(face, background):
    put(face)
    attempts = [background(face.call, "state.set", key="k", value=str(n), expected_version=1) for n in range(8)]
    outcomes = [attempt.exception(5) for attempt in attempts]
    assert sorted(error.code if error else "" for error in outcomes) == [""] + ["version_conflict"] * 7
    assert face.call("state.get", key="k")["version"] == 2


def test_a_missing_key_tells_the_version_of_its_tombstone__K5(face):
    assert refusal(face, "key_not_found", "state.get", key="k").facts["version"] == 0
    put(face)
    face.call("state.delete", key="k")
    assert refusal(face, "key_not_found", "state.get", key="k").facts["version"] == 2


def test_a_delete_may_be_conditional_and_needs_a_live_key__K2(face):
    refusal(face, "key_not_found", "state.delete", key="k")
    put(face)
    put(face)
    assert refusal(face, "version_conflict", "state.delete", key="k", expected_version=1).facts["current_version"] == 2
    assert face.call("state.delete", key="k", expected_version=2)["version"] == 3
    assert refusal(face, "key_not_found", "state.delete", key="k").facts["version"] == 3


def test_a_delete_of_a_version_that_is_not_there_is_a_conflict__K2__K3(face):
    for key in ("never", "k"):
        refused = refusal(face, "version_conflict", "state.delete", key=key, expected_version=1)
        assert refused.facts["current_version"] == 0
        refusal(face, "key_not_found", "state.delete", key=key, expected_version=0)
        put(face)
        face.call("state.delete", key="k")


def test_values_come_back_unchanged_up_to_the_limit(face):
    for value in ("", "\x00", "😀\n", "é" * 32768):
        put(face, value)
        assert face.call("state.get", key="k")["value"] == value
    refusal(face, "message_too_large", "state.set", key="k", value="é" * 32769)
    refusal(face, "invalid_field", "state.set", key="k", value=5)


@pytest.mark.parametrize("key", ["a b", "ключ", "a/b?c=d&e", "x" * 256, "%00", "a%"])
def test_keys_are_compared_exactly(face, key):
    put(face, key=key)
    assert face.call("state.get", key=key)["key"] == key
    assert [record["key"] for record in face.call("state.list", prefix=key[:1])["keys"]] == [key]


@pytest.mark.parametrize("key", ["", " k", "k ", "a\nb", "\x7f", "x" * 257])
def test_keys_have_1_to_256_characters_without_controls_and_outer_blanks(face, key):
    refusal(face, "invalid_field", "state.set", key=key, value="v")


def test_the_same_key_in_two_channels_is_two_keys__C1(face):
    face.call("channel.create", name="lab")
    put(face, "here")
    put(face, "here again")
    assert put(face, "there", channel="lab") == 1
    assert face.call("state.get", key="k")["value"] == "here again"
    assert face.call("state.get", key="k", channel="lab")["value"] == "there"
    face.call("state.delete", key="k", channel="lab")
    assert face.call("state.get", key="k")["version"] == 2


@pytest.mark.parametrize(
    "name", ["state.get", "state.set", "state.watch", "state.delete", "state.list", "state.history"]
)
def test_a_channel_that_nobody_made_is_refused_with_the_remedy(face, name):
    given = {"key": "k", "value": "v"} if name == "state.set" else {} if name == "state.list" else {"key": "k"}
    error = refusal(face, "channel_not_found", name, channel="lab", **given)
    assert "channel.create" in error.message
    assert error.facts["known_channels"] == ["default"]


def test_a_channel_may_be_named_by_its_id(face):
    lab = face.call("channel.create", name="lab")["channel"]["id"]
    written = face.call("state.set", key="k", value="v", channel=lab)
    assert face.call("state.get", key="k", channel="lab") == written == face.call("state.get", key="k", channel=lab)
    assert face.call("state.watch", key="k", channel=lab, timeout=0)["changed"] is True
    assert len(face.call("state.list", channel=lab)["keys"]) == 1
    assert len(face.call("state.history", key="k", channel=lab)["versions"]) == 1
    assert face.call("state.delete", key="k", channel=lab)["version"] == 2
    refusal(face, "key_not_found", "state.get", key="k", channel="lab")


def test_who_updates_must_be_registered(face):
    assert refusal(face, "agent_not_found", "state.set", key="k", value="v", updated_by="ann").facts["parameter"] == (
        "updated_by"
    )
    put(face)
    refusal(face, "agent_not_found", "state.delete", key="k", updated_by="ann")
    refusal(face, "agent_not_found", "state.watch", key="k", agent_id="ann")
    assert face.call("state.get", key="k")["version"] == 1


# -- watching


def test_a_watch_returns_at_once_when_the_version_has_passed__W1__W5(face):
    put(face, "a")
    put(face, "b")
    for given in ({}, {"after_version": 0}, {"after_version": 1}):
        answer = face.call("state.watch", key="k", **given)
        assert (answer["changed"], answer["version"], answer["value"]) == (True, 2, "b")


def test_a_watch_waits_for_the_next_version__W1(face, clock, background):
    put(face)
    waiting = background(face.call, "state.watch", key="k", after_version=1)
    clock.until_parked(1)
    put(face, key="other")
    put(face, "new")
    answer = waiting.result(5)
    assert (answer["changed"], answer["version"], answer["value"], answer["deleted"]) == (True, 2, "new", False)


def test_a_watch_waits_for_a_key_to_be_created__W5(face, clock, background):
    waiting = background(face.call, "state.watch", key="k")
    clock.until_parked(1)
    put(face)
    assert waiting.result(5)["version"] == 1


def test_a_watch_sees_a_delete__W1__W2(face, clock, background):
    put(face)
    waiting = background(face.call, "state.watch", key="k", after_version=1)
    clock.until_parked(1)
    face.call("state.delete", key="k")
    answer = waiting.result(5)
    assert (answer["changed"], answer["version"], answer["value"], answer["deleted"]) == (True, 2, None, True)
    assert face.call("state.watch", key="k", after_version=1)["deleted"] is True


@pytest.mark.parametrize("exists", [True, False])
def test_a_watch_that_times_out_says_changed_false__W3(face, clock, background, exists):
    version = put(face) if exists else 0
    waiting = background(face.call, "state.watch", key="k", after_version=version, timeout=2)
    clock.until_parked(1)
    clock.advance(2000)
    answer = waiting.result(5)
    assert (answer["changed"], answer["version"]) == (False, version)


def test_a_watch_from_the_future_is_told_so_at_once__W4(face):
    put(face)
    answer = face.call("state.watch", key="k", after_version=9, timeout=60)
    assert (answer["changed"], answer["reset"], answer["version"]) == (False, True, 1)
    assert face.call("state.watch", key="never", after_version=1, timeout=60)["reset"] is True


# -- listing


def test_keys_are_listed_by_name_in_pages_without_the_deleted(face):
    for key in ("b", "a2", "a1", "gone"):
        put(face, key=key)
    face.call("state.delete", key="gone")

    def keys(**given):
        answer = face.call("state.list", **given)
        return [record["key"] for record in answer["keys"]] + ["more"] * answer.get("more", False)

    assert keys() == ["a1", "a2", "b"]
    assert keys(prefix="a") == ["a1", "a2"]
    assert keys(limit=2) == ["a1", "a2", "more"]
    assert keys(limit=2, after="a2") == ["b"]
    assert keys(prefix="%") == []


def test_history_is_newest_first_with_tombstones(face):
    put(face, "a")
    put(face, "b")
    face.call("state.delete", key="k")
    versions = face.call("state.history", key="k")["versions"]
    assert [(v["version"], v["value"], v.get("deleted", False)) for v in versions] == [
        (3, None, True),
        (2, "b", False),
        (1, "a", False),
    ]
    assert len(face.call("state.history", key="k", limit=1)["versions"]) == 1
    assert refusal(face, "key_not_found", "state.history", key="never").facts["version"] == 0


def test_the_values_of_a_deleted_key_are_not_kept_for_good__K4(face, clock, program):
    for key in ("gone", "live", "back"):
        put(face, key=key)
        put(face, key=key)
    for key in ("gone", "back"):
        face.call("state.delete", key=key)
    put(face, key="back")
    week_ms = 7 * 24 * 3600 * 1000

    def kept(key):
        return [version["version"] for version in face.call("state.history", key=key)["versions"]]

    clock.advance(week_ms - 1)
    program.timekeeper.tick()
    assert kept("gone") == [3, 2, 1]
    face.call("state.delete", key="live")
    clock.advance(60_000)
    program.timekeeper.tick()
    assert (kept("gone"), kept("live"), kept("back")) == ([3], [3, 2, 1], [4, 3, 2, 1])
    clock.advance(week_ms)
    program.timekeeper.tick()
    assert kept("live") == [3]
    assert put(face, key="gone", expected_version=0) == 4


def test_history_keeps_the_last_hundred_versions(mux, direct):
    for _ in range(103):
        put(direct)
    kept = direct.call("state.history", key="k", limit=1000)["versions"]
    assert [kept[0]["version"], kept[-1]["version"], len(kept)] == [103, 4, 100]


def test_a_restart_keeps_values_versions_and_tombstones__K4(face, restart):
    put(face, "a")
    put(face, key="gone")
    face.call("state.delete", key="gone")
    restart()
    assert (face.call("state.get", key="k")["value"], put(face)) == ("a", 2)
    assert put(face, key="gone", expected_version=0) == 3
