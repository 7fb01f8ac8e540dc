"""The contract of documents: contents stored separately, and messages that refer to them."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3

import pytest
from faces import Direct, join, refusal

from stonemux import messages

LONG = "The quick brown fox. " * 5000  # 105,000 bytes: more than a message takes


@pytest.fixture
def team(face):
    join(face, "ann", "bob", "cat")
    return face


def document(face, content="hi", **given):
    return face.call("document.create", content=content, **given)["document"]["id"]


def poll(face, agent_id="bob"):
    return face.call("msg.poll", agent_id=agent_id, timeout=0)["messages"]


# -- documents


def test_a_document_comes_back_as_it_was_made(team):
    made = team.call(
        "document.create",
        content="# Häuser\u0000🦊",
        content_type="text/markdown",
        created_by="ann",
        tags=["a", "b"],
        title="Houses",
    )["document"]
    assert re.fullmatch("doc-[0-9a-f-]+", made["id"])
    assert "content" not in made
    got = team.call("document.get", id=made["id"])["document"]
    assert got == made | {"content": "# Häuser\u0000🦊"}
    assert (got["content_type"], got["title"], got["tags"], got["created_by"]) == (
        "text/markdown",
        "Houses",
        ["a", "b"],
        "ann",
    )
    assert got["size"] == len("# Häuser\u0000🦊".encode())


def test_only_the_content_is_needed(face):
    made = face.call("document.create", content="x")["document"]
    assert (made["content_type"], made["title"], made["tags"], made["created_by"]) == ("text/plain", None, [], None)


def test_two_documents_of_the_same_content_are_two(face):
    assert document(face) != document(face)


def test_bad_documents_are_refused(face):
    assert refusal(face, "invalid_field", "document.create", content="").facts["parameter"] == "content"
    assert refusal(face, "agent_not_found", "document.create", content="x", created_by="nobody")
    error = refusal(face, "document_not_found", "document.get", id="doc-none")
    assert "document.create" in error.message


@pytest.mark.settings(max_document_size=1000)
def test_the_limit_is_a_documents_bytes(face):
    document(face, "ä" * 500)
    error = refusal(face, "document_too_large", "document.create", content="ä" * 500 + "x")
    assert error.facts["limit"] == 1000


def test_ten_mebibytes_go_through_http_in_and_out(http):
    most = http.mux.settings.max_document_size
    content = "0123456789abcde\n" * (most // 16)
    made = http.call("document.create", content=content)["document"]
    assert made["size"] == len(content) == 10 * 1024 * 1024
    assert http.call("document.get", id=made["id"])["document"]["content"] == content
    refusal(http, "document_too_large", "document.create", content=content + "x")


def test_a_body_may_be_larger_for_documents_and_nothing_else(http):
    body = json.dumps({"content": "x" * 2_000_000}).encode()
    plain, long = {"Content-Type": "application/json"}, {"Content-Length": "2000000"}
    in_chunks = plain | {"Transfer-Encoding": "chunked"}
    assert http.request("POST", "/document/create", body, plain)[0] == 200
    assert http.request("POST", "/document/create", b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), in_chunks)[0] == 200
    for path in ("/msg/send", "/channel/create", "/nowhere", "/mcp"):  # refused before the body has come
        assert http.request("POST", path, b"{", plain | long)[0] == 413
        assert http.request("POST", path, b"1e8480\r\n{", in_chunks)[0] == 413
    for headers, body in ((plain | {"Content-Length": str(2**24 + 1)}, b"{"), (in_chunks, b"1000001\r\n{")):
        status, _, answer = http.request("POST", "/document/create", body, headers)
        assert (status, json.loads(answer)["error"]["code"]) == (413, "body_too_large")


# -- messages that refer to them


def test_a_message_carries_the_text_of_a_short_document(team):
    ref = document(team, "Should we use tokens?")
    sent = team.call("msg.send", from_="ann", to="bob", content_ref=ref)["message_id"]
    (got,) = poll(team)
    assert (got["id"], got["content"], got["content_ref"]) == (sent, "Should we use tokens?", ref)
    assert "truncated" not in got


def test_a_message_carries_the_preview_of_a_long_one(team):
    ref = document(team, LONG)
    team.call("msg.broadcast", from_="ann", content_ref=ref)
    for agent_id in ("bob", "cat"):
        (got,) = poll(team, agent_id)
        assert (got["content"], got["content_ref"], got["truncated"]) == (LONG[:500], ref, True)
    (listed,) = team.call("msg.list")["messages"]
    assert listed == got
    event = team.call("events.list", types=["message"])["events"][0]["data"]
    assert (event["content"], event["content_ref"], event["truncated"]) == (LONG[:500], ref, True)
    assert team.call("document.get", id=ref)["document"]["content"] == LONG


@pytest.mark.parametrize(("size", "truncated"), [(65_536, False), (65_537, True)])
def test_a_text_of_the_largest_message_is_carried_whole(team, size, truncated):
    team.call("msg.send", from_="ann", to="bob", content_ref=document(team, "x" * size))
    (got,) = poll(team)
    assert got.get("truncated", False) == truncated
    assert len(got["content"]) == (500 if truncated else size)


@pytest.mark.parametrize("name", ["msg.send", "msg.broadcast"])
def test_a_message_has_a_content_or_a_document_and_not_both(team, name):
    given = {"from_": "ann"} | ({"to": "bob"} if name == "msg.send" else {})
    ref = document(team)
    error = refusal(team, "missing_field", name, **given)
    assert error.facts["parameter"] == "content"
    assert "content_ref" in error.message
    refusal(team, "missing_field", name, content=None, content_ref=None, **given)
    error = refusal(team, "invalid_field", name, content="x", content_ref=ref, **given)
    assert error.facts["parameter"] == "content_ref"
    error = refusal(team, "invalid_field", name, content="", **given)
    assert (error.facts["parameter"], error.facts["limit"]) == ("content", 1)
    error = refusal(team, "document_not_found", name, content_ref="doc-nothing", **given)
    assert error.facts["parameter"] == "content_ref"
    assert team.call("msg.list")["messages"] == []


def test_a_search_finds_words_of_the_whole_document(team):
    ref = document(team, LONG + "The needle.")
    sent = team.call("msg.send", from_="ann", to="bob", content_ref=ref, subject="Haystack")["message_id"]
    team.call("msg.send", from_="ann", to="bob", content="no such thing")
    (found,) = team.call("msg.search", q="needle")["results"]
    assert (found["id"], found["content"], found["content_ref"]) == (sent, LONG[:500], ref)
    assert "**needle**" in found["excerpt"]
    assert [one["id"] for one in team.call("msg.search", q="haystack")["results"]] == [sent]


def test_only_so_much_is_examined_for_the_excerpts_of_one_answer(team, monkeypatch):
    """A search that found a thousand long documents took minutes, and everybody's calls with it."""
    monkeypatch.setattr("stonemux.search.EXAMINED", 200_000)
    ref = document(team, "word " * 20_000 + "needle")
    for _ in range(3):
        team.call("msg.send", from_="ann", to="bob", content_ref=ref)
    team.call("msg.send", from_="ann", to="bob", content="a needle")
    found = [found["excerpt"] for found in team.call("msg.search", q="needle")["results"]]
    assert ["**needle**" in excerpt for excerpt in found] == [True, True, False, False]
    assert found[-1].startswith("word word")


def test_a_search_takes_in_large_documents_a_few_at_a_time(team, monkeypatch):
    monkeypatch.setattr("stonemux.search.PAGE_BYTES", 150_000)
    sent = [
        team.call("msg.send", from_="ann", to="bob", content_ref=document(team, LONG + "needle"))["message_id"]
        for _ in range(4)
    ]
    assert sorted(one["id"] for one in team.call("msg.search", q="needle")["results"]) == sent


def test_the_words_of_purged_messages_leave_the_index(team, clock, program, monkeypatch):
    """They stayed for good: whoever searched once had an index of everything that was ever sent."""
    monkeypatch.setattr(messages, "PURGED_BYTES", 10_000)
    ref = document(team, LONG + "needle \u6d77")
    for content in ({"content_ref": ref}, {"content": "plain"}, {"content": "\u6d77\u9c9c", "subject": "caf\u00e9"}):
        team.call("msg.send", from_="ann", to="bob", **content)
    kept = team.call("msg.send", from_="ann", to="cat", content="unread words")["message_id"]
    assert len(team.call("msg.search", q="\u6d77")["results"]) == 2
    team.call("msg.send", from_="ann", to="bob", content="never indexed")
    team.call("inbox.update", agent_id="bob", all=True, status="read")
    clock.advance(8 * 24 * 3600 * 1000)
    program.timekeeper.tick()
    assert [found["id"] for found in team.call("msg.search", q="words")["results"]] == [kept]
    assert [found["id"] for found in team.call("msg.list")["messages"]] == [kept]
    with contextlib.closing(sqlite3.connect(program.path / "stonemux.db")) as db:
        db.execute("create virtual table temp.words using fts5vocab(main, message_words, row)")
        assert [term for (term,) in db.execute("select term from words")] == ["unread", "words"]
        assert db.execute("select id from message_words_docsize").fetchall() == [(kept,)]


# -- how long they are kept


@pytest.mark.settings(message_retention=1000)
def test_a_document_stays_as_long_as_a_message_refers_to_it(team, clock, program):
    kept, alone = document(team, LONG), document(team)
    clock.advance(900_000)
    young = document(team)
    team.call("msg.send", from_="ann", to="bob", content_ref=kept)
    clock.advance(200_000)
    program.timekeeper.tick()
    assert team.call("document.get", id=kept)["document"]["content"] == LONG
    assert team.call("document.get", id=young)
    refusal(team, "document_not_found", "document.get", id=alone)
    assert poll(team)[0]["content_ref"] == kept
    clock.advance(1_000_000)
    program.timekeeper.tick()
    refusal(team, "document_not_found", "document.get", id=kept)


@pytest.mark.settings(message_retention=1000)
def test_many_old_documents_go_together(direct, clock, program):
    made = [document(direct) for _ in range(25)]
    clock.advance(2_000_000)
    program.timekeeper.tick()
    for one in made:
        refusal(direct, "document_not_found", "document.get", id=one)


def test_documents_are_for_every_tier(open_program):
    face = Direct(open_program(default_tier="free").mux)
    join(face, "ann", "bob")
    face.call("msg.send", from_="ann", to="bob", content_ref=document(face))
    assert poll(face)[0]["content"] == "hi"
    assert face.call("channel.messages", channel="default")["messages"]


# -- mentions


def test_a_post_is_marked_for_those_it_mentions(team):
    join(team, "dan", channel="elsewhere")
    team.call("msg.broadcast", from_="ann", content="@cat, @bob: mail @nobody, x@ann, @dan and @ann.")
    for agent_id in ("bob", "cat"):
        assert poll(team, agent_id)[0]["mentions"] == ["cat", "bob"]
    event = team.call("events.list", types=["message"])["events"][0]["data"]
    assert event["mentions"] == ["cat", "bob"]


def test_a_message_to_all_of_a_role_is_marked_for_those_it_mentions(team):
    join(team, "dan", "eve", role="dev")
    team.call("msg.send", from_="ann", to="role:dev", content="@dan first")
    assert poll(team, "eve")[0]["mentions"] == ["dan"]


def test_a_post_without_mentions_and_a_direct_message_carry_none(team):
    team.call("msg.broadcast", from_="ann", content="nobody@here")
    team.call("msg.send", from_="ann", to="bob", content="@cat knows")
    assert all("mentions" not in message for message in poll(team))


def test_a_mention_follows_the_membership(team):
    team.call("msg.broadcast", from_="ann", content="@dan")
    join(team, "dan")
    team.call("msg.broadcast", from_="ann", content="@dan")
    first, second = poll(team)
    assert "mentions" not in first
    assert second["mentions"] == ["dan"]


def test_the_text_of_a_document_mentions_too(team):
    team.call("msg.broadcast", from_="ann", content_ref=document(team, "See @bob"))
    assert poll(team)[0]["mentions"] == ["bob"]


# -- a channel's log


def test_a_channels_log_is_newest_first_and_whole(team):
    join(team, "dan", channel="elsewhere")
    said = [
        team.call("msg.broadcast", from_="ann", content="1")["message_id"],
        team.call("msg.broadcast", from_="ann", content="2", suppress_inbox=True)["message_id"],
        team.call("msg.send", from_="ann", to="bob", content="3")["message_id"],
    ]
    team.call("msg.send", from_="ann", to="dan", content="not here", channel="elsewhere")
    assert [one["content"] for one in poll(team)] == ["1", "3"]
    log = team.call("channel.messages", channel="default")
    assert [one["id"] for one in log["messages"]] == said[::-1]
    page = team.call("channel.messages", channel="default", limit=1, before=said[2])
    assert ([one["id"] for one in page["messages"]], page["more"]) == ([said[1]], True)
    refusal(team, "channel_not_found", "channel.messages", channel="nowhere")
    by_id = team.call("channel.get", channel="elsewhere")["channel"]["id"]
    assert [one["content"] for one in team.call("channel.messages", channel=by_id)["messages"]] == ["not here"]
