"""Doorbells: what rings when, what is pending, what becomes of it, and which doorbells an agent may set."""

from __future__ import annotations

import json
import socket
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from faces import Direct, OverMcp, join, refusal
from raw import eventually
from receivers import status
from standardwebhooks.webhooks import Webhook

from stonemux import addresses, doorbells, signature, timekeeper
from stonemux.attempts import jittered, verdict
from stonemux.clock import Clock, rfc3339
from stonemux.endpoints import Outcome
from stonemux.outbound import Outbound
from stonemux.record import replace

SECRET = signature.make_secret("5a" * 32)
MINUTE, HOUR = 60_000, 3_600_000


def hang(face, url, agent_id="bob", **given):
    """Register an agent with a doorbell; the answer."""
    return face.call("agent.register", agent_id=agent_id, webhook_url=url, **given)


def send(face, to="bob", content="x", **given):
    return face.call("msg.send", from_="ann", to=to, content=content, **given)["message_id"]


def bell(face, agent_id="bob"):
    return face.call("agent.get", agent_id=agent_id)["agent"].get("doorbell")


def attempts(program, agent_id="bob"):
    with program.store.read() as rx:
        return rx.sql("select * from attempt where agent_id = ? order by id", agent_id)


def row(program, agent_id="bob"):
    with program.store.read() as rx:
        return rx.one("select * from webhook where agent_id = ?", agent_id)


def until_failed(program, count, agent_id="bob"):
    """Wait until so many attempts are written down, and the last one's endpoint is let go of."""
    eventually(lambda: len(attempts(program, agent_id)) >= count, f"{count} attempts were expected")
    eventually(lambda: not program.mux.endpoints.bells[agent_id].busy)
    return attempts(program, agent_id)


# -- ringing


def test_a_message_rings_thinly_and_the_library_verifies_it(face, program, outbound, receive):
    receiver = receive()
    join(face, "ann")
    hung = hang(face, receiver.url + "?k=v", webhook_secret=SECRET)
    assert "webhook_secret" not in hung, "only a secret that was made is shown"
    sent = send(face, content="the text stays in the inbox")
    (heard,) = receiver.until(1)
    assert heard.path == "/hook?k=v"
    assert heard.told == {
        "type": "inbox.message",
        "timestamp": rfc3339(program.clock.now_ms()),
        "data": {"agent_id": "bob", "message_id": sent, "unread": 1},
    }
    assert heard.headers["content-type"] == "application/json"
    assert heard.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert "." not in heard.id
    assert int(heard.headers["webhook-timestamp"]) == program.clock.now_ms() // 1000
    signed = signature.headers([SECRET], heard.id, program.clock.now_ms() // 1000, heard.body)
    assert heard.headers["webhook-signature"] == signed["webhook-signature"]


def test_PyPI_standardwebhooks_accepts_a_delivery_as_it_arrives(open_program, receive, monkeypatch):
    program = open_program()
    monkeypatch.setattr(program.clock, "wall_ms", Clock().wall_ms)
    receiver, face, outbound = receive(), Direct(program.mux), Outbound(program.mux)
    outbound.start()
    join(face, "ann")
    secret = hang(face, receiver.url)["webhook_secret"]
    sent = send(face)
    (heard,) = receiver.until(1)
    assert Webhook(secret).verify(heard.body, heard.headers)["data"]["message_id"] == sent
    outbound.stop()


def test_everything_that_lands_in_an_inbox_rings(face, program, outbound, receive):
    receiver = receive()
    join(face, "ann")
    hang(face, receiver.url, role="director")
    calls = [
        ("msg.broadcast", {"from_": "ann", "content": "x"}),
        ("msg.send", {"from_": "ann", "to": "role:director", "content": "x"}),
        ("msg.send", {"from_": "ann", "type": "question", "content": "x"}),
        ("agent.notify", {"agent_id": "bob", "type": "restart-signal", "content": "x"}),
    ]
    for count, (name, given) in enumerate(calls, 1):
        sent = face.call(name, **given)["message_id"]
        heard = receiver.until(count)[-1]
        assert heard.told["data"] == {"agent_id": "bob", "message_id": sent, "unread": count}
        eventually(lambda: row(program)["wire_id"] is None)
    face.call("msg.broadcast", from_="ann", content="quiet", suppress_inbox=True)
    assert row(program)["wire_id"] is None


def test_mail_that_comes_back_from_a_lease_rings_again(face, program, outbound, receive, clock):
    receiver = receive()
    join(face, "ann")
    hang(face, receiver.url)
    sent = [send(face), send(face)]
    eventually(lambda: row(program)["notified_through"] == sent[1])
    before = len(receiver.heard)
    face.call("msg.poll", agent_id="bob", ack="manual", lease=60, timeout=0)
    clock.advance(60_001)
    program.timekeeper.tick()
    heard = receiver.until(before + 1)[-1]
    assert heard.told["data"] == {"agent_id": "bob", "message_id": sent[1], "unread": 2}


def test_a_dead_letter_that_is_requeued_rings_and_wakes(program, direct, outbound, receive, clock):
    receiver = receive()
    join(direct, "ann")
    hang(direct, receiver.url)
    sent = send(direct, ttl_seconds=1)
    receiver.until(1)
    clock.advance(1_000)
    with program.mux.hub.watch(("inbox", "bob")) as waiting:
        assert direct.call("msg.requeue", agent_id="bob", ids=[sent]) == {"requeued": 1}
        assert waiting.take_back()
    assert receiver.until(2)[-1].told["data"] == {"agent_id": "bob", "message_id": sent, "unread": 1}


def test_a_dispatch_rings(face, program, outbound, receive):
    receiver = receive()
    join(face, "ann")
    hang(face, receiver.url)
    task_id = face.call("task.post", description="x", posted_by="ann")["task_id"]
    face.call("task.dispatch", task_id=task_id, agent_id="bob", dispatched_by="ann")
    (heard,) = receiver.until(1)
    assert heard.told["data"]["unread"] == 1


def test_a_doorbell_rings_for_its_own_agent_alone(face, outbound, receive, program):
    receiver = receive()
    join(face, "ann", "cat")
    hang(face, receiver.url)
    send(face, to="cat")
    sent = send(face, to="bob")
    assert receiver.until(1)[0].told["data"]["message_id"] == sent
    assert not attempts(program, "cat")


def test_status_says_notified_until_the_mail_is_fetched(face, program, outbound, receive):
    receiver = receive()
    join(face, "ann", "cat")
    hang(face, receiver.url)
    others = send(face, to="cat")
    hang(face, receiver.url, "cat")
    before = send(face)
    receiver.until(1)
    eventually(lambda: row(program)["notified_at"])

    def told(message_id=before):
        return face.call("msg.status", id=message_id)["recipients"][0]

    assert told(others)["status"] == "queued", "it came before that agent's doorbell"
    assert told() == {"agent_id": "bob", "status": "notified", "at": rfc3339(program.clock.now_ms())}
    face.call("msg.poll", agent_id="bob", timeout=0)
    assert told()["status"] == "fetched" or told()["status"] == "acked"


def test_a_send_to_an_agent_without_a_doorbell_pays_nothing__H1(program, direct, outbound, receive):
    receiver = receive()
    join(direct, "ann", "cat")
    hang(direct, receiver.url)
    send(direct, to="cat")  # what is remembered is remembered
    executed = []
    program.store._db.set_trace_callback(executed.append)
    send(direct, to="cat")
    program.store._db.set_trace_callback(None)
    assert not [statement for statement in executed if "webhook" in statement], executed
    assert len(executed) == 6, executed  # begin, message, delivery, event, audit, commit


def test_the_ring_is_in_the_transaction_of_its_message__H1(program, direct):
    join(direct, "ann")
    hang(direct, "http://127.0.0.1:9/")
    executed = []
    program.store._db.set_trace_callback(executed.append)
    sent = send(direct)
    program.store._db.set_trace_callback(None)
    assert [statement.split()[0].lower() for statement in executed].count("commit") == 1
    assert any(statement.startswith("update webhook set wire_id") for statement in executed)
    assert row(program)["message_id"] == sent


def test_at_most_one_ring_is_pending_and_the_newest_wins(program, direct, receive):
    join(direct, "ann")
    receiver = receive()
    hang(direct, receiver.url)
    send(direct)
    first = row(program)["wire_id"]
    newest = send(direct)
    assert row(program)["wire_id"] != first
    outbound = Outbound(program.mux)
    outbound.start()
    (heard,) = receiver.until(1)
    assert heard.told["data"] == {"agent_id": "bob", "message_id": newest, "unread": 2}
    eventually(lambda: row(program)["wire_id"] is None)
    assert len(receiver.heard) == 1
    outbound.stop()


def test_mail_that_comes_while_a_ring_is_under_way_rings_once_more(program, direct, outbound, receive):
    let_go = []

    def slow(sock: socket.socket) -> None:
        if not let_go:
            eventually(lambda: let_go)
        sock.sendall(status(200))

    receiver = receive(slow)
    join(direct, "ann")
    hang(direct, receiver.url)
    send(direct)
    receiver.until(1)
    for _ in range(5):
        newest = send(direct)
    let_go.append(True)
    heard = receiver.until(2)
    assert heard[1].told["data"]["message_id"] == newest
    assert heard[0].id != heard[1].id
    eventually(lambda: row(program)["wire_id"] is None)
    assert len(receiver.heard) == 2


def test_a_ring_pending_at_the_end_rings_at_the_next_start_under_the_same_id__H3(open_program, receive):
    receiver, program = receive(), open_program()
    face = Direct(program.mux)
    join(face, "ann")
    hang(face, receiver.url)
    sent = send(face)
    wire_id = row(program)["wire_id"]
    outbound = Outbound(program.reopen())
    outbound.start()
    (heard,) = receiver.until(1)
    assert (heard.id, heard.told["data"]["message_id"]) == (wire_id, sent)
    outbound.stop()


def test_what_was_under_way_at_the_end_is_pending_still__H3(program, direct, receive):
    def hold(sock: socket.socket) -> None:
        receiver.ending.wait(5)

    receiver = receive(hold)
    join(direct, "ann")
    hang(direct, receiver.url)
    outbound = Outbound(program.mux)
    outbound.start()
    send(direct)
    (heard,) = receiver.until(1)
    outbound.stop()
    assert outbound.threads == 0
    assert row(program)["wire_id"] == heard.id
    assert not attempts(program), "an attempt that we cut short says nothing of the receiver"


# -- failing


def test_retries_follow_the_schedule_under_one_id(program, direct, outbound, clock, receive):
    receiver = receive(status(500))
    join(direct, "ann")
    hang(direct, receiver.url)
    send(direct)
    for number, seconds in enumerate((1, 5, 30, 120, 600, 1800, 3600, 3600), 1):
        tried = until_failed(program, number)[-1]
        assert (tried["status"], tried["error"], tried["try"]) == (500, "status 500", number)
        wait_ms = tried["retry_at"] - clock.now_ms()
        assert 800 * seconds <= wait_ms <= 1200 * seconds
        assert bell(direct)["status"] == "failing"
        clock.advance(wait_ms - 1)
        program.timekeeper.tick()
        assert len(receiver.heard) == number
        clock.advance(1)
        program.timekeeper.tick()
        receiver.until(number + 1)
    assert len({heard.id for heard in receiver.heard}) == 1
    assert len({heard.body for heard in receiver.heard}) == 1
    stamps = [int(heard.headers["webhook-timestamp"]) for heard in receiver.heard]
    assert all(early <= late for early, late in pairwise(stamps)), "each attempt is signed anew"


def test_the_delays_are_spread_by_a_fifth(program, direct):
    clock = Clock()
    found = [jittered(10_000, clock) for _ in range(500)]
    assert 8_000 <= min(found) < 8_500
    assert 11_500 < max(found) <= 12_000


def test_a_receiver_that_is_back_ends_the_failing(program, direct, outbound, clock, receive):
    receiver = receive(status(500))
    join(direct, "ann")
    hang(direct, receiver.url)
    send(direct)
    until_failed(program, 1)
    receiver.answer = status(200)
    clock.advance(1200)
    program.timekeeper.tick()
    receiver.until(2)
    eventually(lambda: bell(direct)["status"] == "active")
    assert attempts(program)[-1]["retry_at"] is None
    assert "failures" not in bell(direct)
    assert row(program)["failing_since"] is None


def test_new_mail_to_a_failing_doorbell_waits_seconds_at_most(program, direct, outbound, clock, receive):
    receiver = receive(status(500))
    join(direct, "ann")
    hang(direct, receiver.url)
    send(direct)
    for number in range(1, 6):  # up to a wait of ten minutes
        tried = until_failed(program, number)[-1]
        clock.advance(tried["retry_at"] - clock.now_ms())
        program.timekeeper.tick()
    until_failed(program, 6)
    newest = send(direct)
    eventually(lambda: outbound.threads == 0)
    assert len(receiver.heard) == 6, "not at once: mail would else try a dead doorbell each time"
    clock.advance(5_000)
    program.timekeeper.tick()
    heard = receiver.until(7)[-1]
    assert heard.told["data"]["message_id"] == newest
    assert heard.id != receiver.heard[0].id


@pytest.mark.parametrize("code", [429, 502, 503, 504])
def test_retry_after_is_honoured_up_to_an_hour(program, direct, outbound, clock, receive, code):
    receiver = receive(status(code, "Retry-After: 120"))
    join(direct, "ann")
    hang(direct, receiver.url)
    send(direct)
    assert until_failed(program, 1)[-1]["retry_at"] == clock.now_ms() + 120_000
    send(direct)  # new mail does not make it earlier
    assert row(program)["due_at"] == clock.now_ms() + 120_000
    receiver.answer = status(code, "Retry-After: 999999")
    clock.advance(120_000)
    program.timekeeper.tick()
    assert until_failed(program, 2)[-1]["retry_at"] == clock.now_ms() + HOUR


@pytest.mark.parametrize(("code", "text"), [(500, "120"), (503, "soon"), (503, "-5"), (503, "²"), (503, "")])
def test_retry_after_counts_only_where_it_means_something(program, direct, outbound, clock, receive, code, text):
    receiver = receive(status(code, f"Retry-After: {text}"))
    join(direct, "ann")
    hang(direct, receiver.url)
    send(direct)
    assert until_failed(program, 1)[-1]["retry_at"] <= clock.now_ms() + 1200


def test_410_disables_at_once_and_registering_again_enables(program, face, outbound, clock, receive):
    receiver = receive(status(410))
    join(face, "ann")
    hang(face, receiver.url + "?token=hidden")
    head = program.mux.log.head
    send(face)
    eventually(lambda: bell(face)["status"] == "disabled")
    (event,) = eventually(lambda: face.call("events.list", after=head, types=["webhook_disabled"])["events"])
    assert event["data"] == {
        "id": bell(face)["id"],
        "url": receiver.url + "?…",
        "reason": "it answered 410 Gone",
        "failures": 1,
        "agent_id": "bob",
    }
    send(face)
    assert row(program)["wire_id"] is None, "nothing is pending for a doorbell that is not rung"
    join(face, "bob")
    assert bell(face)["status"] == "active"
    receiver.answer = status(200)
    send(face)
    receiver.until(2)


@pytest.fixture
def gone(receive):
    """A receiver that answers 410, as soon as its list `let_go` has something in it."""
    let_go = []

    def answer(sock: socket.socket) -> None:
        eventually(lambda: let_go)
        sock.sendall(status(410))

    receiver = receive(answer)
    receiver.let_go = let_go
    return receiver


def test_an_attempt_outlives_its_doorbell_and_is_written_down(program, direct, outbound, gone):
    join(direct, "ann")
    hang(direct, gone.url)
    send(direct)
    gone.until(1)
    hang(direct, "")
    gone.let_go.append(True)
    eventually(lambda: [tried["error"] for tried in attempts(program)] == ["status 410"])
    assert direct.call("events.list", types=["webhook_disabled"])["events"] == []


def test_a_failure_of_the_place_before_is_not_held_against_the_new_one(program, direct, outbound, receive, gone):
    after = receive()
    join(direct, "ann")
    hang(direct, gone.url)
    sent = send(direct)
    gone.until(1)
    hang(direct, after.url)
    gone.let_go.append(True)
    assert after.until(1)[0].told["data"]["message_id"] == sent
    eventually(lambda: row(program)["wire_id"] is None)
    assert (bell(direct)["status"], row(program)["failures"]) == ("active", 0)
    assert [tried["error"] for tried in attempts(program)] == ["status 410", None]


def test_a_day_of_failures_and_twenty_of_them_disable(program, direct, outbound, clock, receive):
    receiver = receive(status(500))
    join(direct, "ann")
    hang(direct, receiver.url)
    head = program.mux.log.head
    count = 0
    while bell(direct)["status"] != "disabled":
        if row(program)["wire_id"] is None:
            send(direct)
        count += 1
        until_failed(program, count)
        if (due := row(program)["due_at"]) is not None:
            clock.advance(max(0, due - clock.now_ms()))
            program.timekeeper.tick()
        assert count < 60
    assert row(program)["failures"] >= 20
    assert row(program)["disabled_at"] - row(program)["failing_since"] >= 24 * HOUR
    (event,) = eventually(lambda: direct.call("events.list", after=head, types=["webhook_disabled"])["events"])
    assert "24 hours" in event["data"]["reason"]


@pytest.mark.parametrize(("after", "again"), [(24 * HOUR - 1, True), (24 * HOUR, False)])
def test_a_ring_is_tried_for_a_day(program, direct, clock, after, again):
    join(direct, "ann")
    hang(direct, "http://127.0.0.1:9/")
    send(direct)
    tried, one = row(program), program.mux.endpoints.bells["bob"]
    clock.advance(after)
    program.store.write(lambda tx: doorbells.record(tx, one, tried, Outcome(500, "status 500", 1)))
    assert (row(program)["due_at"] is not None) is again


@pytest.mark.parametrize(
    ("before", "for_ms", "disabled"), [(18, 100 * HOUR, False), (19, 24 * HOUR - 1, False), (19, 24 * HOUR, True)]
)
def test_the_twentieth_failure_disables_after_a_day(clock, before, for_ms, disabled):
    now = clock.now_ms()
    known = {"failures": before, "failing_since": now - for_ms}
    found = verdict(known, Outcome(500, "status 500", 1), MINUTE, clock, now)
    assert (found.failures, found.disabled_for is not None) == (before + 1, disabled)


def test_a_day_between_two_failures_does_not_disable(program, direct, outbound, clock, receive):
    receiver = receive(status(500))
    join(direct, "ann")
    hang(direct, receiver.url)
    for count in (1, 2):
        send(direct)
        until_failed(program, count)
        clock.advance(25 * HOUR)
    assert bell(direct)["status"] == "failing"


def test_twenty_failures_within_a_day_do_not_disable(program, direct, outbound, clock, receive):
    receiver = receive(status(500))
    join(direct, "ann")
    hang(direct, receiver.url)
    for count in range(1, 26):
        send(direct)
        if count > 1:
            clock.advance(5_000)
            program.timekeeper.tick()
        until_failed(program, count)
    assert bell(direct)["status"] == "failing"
    assert row(program)["failures"] >= 20


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_is_not_followed(program, direct, outbound, receive, code):
    lure = receive()
    receiver = receive(status(code, f"Location: {lure.url}"))
    join(direct, "ann")
    hang(direct, receiver.url)
    send(direct)
    assert "redirects are not followed" in until_failed(program, 1)[0]["error"]
    assert not lure.heard


def test_no_proxy_is_asked(program, direct, outbound, receive, monkeypatch):
    proxy, receiver = receive(), receive()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    join(direct, "ann")
    hang(direct, receiver.url)
    send(direct)
    receiver.until(1)
    assert not proxy.heard


def test_an_attempt_is_judged_anew_each_time(program, direct, outbound, receive, monkeypatch):
    """A name may lead elsewhere by the time that it is called."""
    receiver = receive()
    join(direct, "ann")
    hang(direct, f"http://agent.example:{receiver.port}/")
    asked = []

    def resolve(target, *, numeric=False):
        if numeric:
            raise OSError
        asked.append(target.host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.1", "169.254.169.254"]

    monkeypatch.setattr(addresses, "resolve", resolve)
    send(direct)
    (heard,) = receiver.until(1)
    assert heard.headers["host"] == f"agent.example:{receiver.port}"
    eventually(lambda: len(attempts(program)) == 1)
    send(direct)
    tried = until_failed(program, 2)[-1]
    assert "169.254.169.254" in tried["error"]
    assert tried["status"] is None
    assert asked == ["agent.example"] * 2
    assert len(receiver.heard) == 1


# -- hanging one up


def test_a_secret_is_made_and_shown_once(face, program, outbound, receive):
    receiver = receive()
    first = hang(face, receiver.url)
    assert signature.secret_bytes(first["webhook_secret"]) is not None
    again = hang(face, receiver.url)
    assert "webhook_secret" not in again, "the same doorbell keeps its secret"
    shown = str([face.call("agent.get", agent_id="bob"), face.call("agent.discover"), again])
    shown += str(face.call("events.list", after=0)) + str(face.call("stats")) + face.call("metrics")
    assert first["webhook_secret"].removeprefix("whsec_") not in shown
    other = hang(face, receiver.url + "2")
    assert other["webhook_secret"] != first["webhook_secret"], "another receiver has another secret"


def test_a_replaced_secret_signs_beside_the_new_one_for_a_day(program, direct, outbound, clock, receive):
    receiver = receive()
    join(direct, "ann")
    old = hang(direct, receiver.url)["webhook_secret"]
    hang(direct, receiver.url, webhook_secret=SECRET)
    terms = [(0, [SECRET, old]), (24 * HOUR - 1, [SECRET, old]), (1, [SECRET])]
    for count, (advance, secrets) in enumerate(terms, 1):
        clock.advance(advance)
        send(direct)
        heard = receiver.until(count)[-1]
        signed = signature.headers(secrets, heard.id, clock.now_ms() // 1000, heard.body)
        assert heard.headers["webhook-signature"] == signed["webhook-signature"]
        eventually(lambda: row(program)["wire_id"] is None)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.example/services/T0/B0/secret?a=b", "https://hooks.example/…"),
        ("https://ntfy.example:8443/topic", "https://ntfy.example:8443/…"),
        ("http://8.8.8.8?secret", "http://8.8.8.8/…"),
        ("https://hooks.example/", "https://hooks.example/"),
        ("http://localhost:9", "http://localhost:9"),
        ("http://localhost:9/ring?secret", "http://localhost:9/ring?…"),
        ("http://[::1]:9/agents/writer", "http://[::1]:9/agents/writer"),
        ("http://2130706433:9/ring", "http://2130706433:9/ring"),
    ],
)
def test_the_parts_of_a_url_that_are_often_secret_are_not_shown(face, url, shown):
    hang(face, url)
    assert bell(face)["url"] == shown
    assert face.call("webhook.add", url=url)["webhook"]["url"] == shown


def test_an_empty_url_removes_and_an_absent_one_keeps(face, program):
    join(face, "ann")
    hang(face, "http://127.0.0.1:9/x")
    join(face, "bob", role="writer")
    assert bell(face)["url"] == "http://127.0.0.1:9/x"
    send(face)
    hang(face, "")
    assert bell(face) is None
    assert row(program) is None
    send(face)
    hang(face, "")
    hang(face, "http://127.0.0.1:9/y")
    face.call("agent.deregister", agent_id="bob")
    assert row(program) is None, "whoever registers the id anew is somebody else"


def test_a_secret_needs_a_doorbell_and_to_be_one(face):
    refusal(face, "missing_field", "agent.register", agent_id="bob", webhook_secret=SECRET)
    refusal(face, "missing_field", "agent.register", agent_id="bob", webhook_secret=SECRET, webhook_url="")
    error = refusal(
        face,
        "invalid_field",
        "agent.register",
        agent_id="bob",
        webhook_url="http://127.0.0.1:9/",
        webhook_secret="swordfish",
    )
    assert error.facts["parameter"] == "webhook_secret"
    assert "swordfish" not in error.message
    refusal(face, "agent_not_found", "agent.get", agent_id="bob")


@pytest.mark.settings(default_tier="pro")
@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "ftp://127.0.0.1/", "exec:/bin/true", "x" * 2049],
)
def test_fault_39_a_forbidden_url_is_refused_before_anything_is_written(face, program, url):
    error = refusal(face, "webhook_url_forbidden", "agent.register", agent_id="bob", webhook_url=url)
    assert (error.facts["parameter"], error.failure.http) == ("webhook_url", 400)
    refusal(face, "agent_not_found", "agent.get", agent_id="bob")


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0"])
def test_fault_39_the_daemons_own_port_is_refused(http, host):
    url = f"http://{host}:{http.port}/agent/deregister"
    refusal(http, "webhook_url_forbidden", "agent.register", agent_id="bob", webhook_url=url)


@pytest.mark.settings(default_tier="free")
def test_doorbells_are_for_pro(face, program):
    for given in ({"webhook_url": "http://127.0.0.1:9/"}, {"webhook_secret": SECRET}):
        error = refusal(face, "upgrade_required", "agent.register", agent_id="bob", **given)
        assert (error.facts["tier"], error.facts["needed"]) == ("free", "pro")


def test_a_downgrade_keeps_doorbells_and_rings_them_after_the_upgrade__L1(open_program, receive):
    receiver, program = receive(), open_program()
    face = Direct(program.mux)
    join(face, "ann")
    hang(face, receiver.url)
    for tier, count in (("free", 0), ("pro", 1)):
        program.settings = replace(program.settings, default_tier=tier)
        face = Direct(program.reopen())
        outbound = Outbound(program.mux)
        outbound.start()
        if tier == "free":
            sent = send(face)
        program.timekeeper.tick()
        assert len(receiver.until(count)) == count
        eventually(lambda outbound=outbound: not outbound.threads)
        outbound.stop()
    assert receiver.heard[0].told["data"]["message_id"] == sent


def test_whoever_was_downgraded_may_still_take_a_doorbell_down(open_program):
    program = open_program()
    hang(Direct(program.mux), "http://127.0.0.1:9/")
    program.settings = replace(program.settings, default_tier="free")
    face = Direct(program.reopen())
    assert "doorbell" in face.call("agent.get", agent_id="bob")["agent"]
    face.call("agent.register", agent_id="bob", webhook_url="")
    assert "doorbell" not in face.call("agent.get", agent_id="bob")["agent"]


# -- commands


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A program that writes down what it was given."""
    path = tmp_path / "ring it"
    path.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "given = {'argv': sys.argv[1:], 'stdin': json.load(sys.stdin), 'cwd': os.getcwd()}\n"
        "given['environ'] = {k: v for k, v in os.environ.items() if 'STONEMUX' in k}\n"
        f"out = open({str(tmp_path / 'said.part')!r}, 'w')\n"
        "print('noise' * 99999)\n"
        "json.dump(given, out); out.close()\n"
        f"os.rename({str(tmp_path / 'said.part')!r}, {str(tmp_path / 'said')!r})\n"
    )
    path.chmod(0o755)
    return path


def test_a_doorbell_may_be_a_command_that_the_settings_name(open_program, command, tmp_path, monkeypatch):
    monkeypatch.setenv("STONEMUX_TOKEN", "secret")
    line = f"'{command}' --agent 'b; o $HOME b'"
    program = open_program(webhooks_exec=(line,))
    face, outbound = Direct(program.mux), Outbound(program.mux)
    outbound.start()
    join(face, "ann")
    hang(face, "exec:" + line)
    sent = send(face)
    said = tmp_path / "said"
    eventually(said.exists)
    given = json.loads(said.read_text())
    assert given["argv"] == ["--agent", "b; o $HOME b"], "there is no shell"
    assert given["stdin"]["data"] == {"agent_id": "bob", "message_id": sent, "unread": 1}
    environ = given["environ"]
    assert (environ["STONEMUX_AGENT"], environ["STONEMUX_UNREAD"]) == ("bob", "1")
    assert environ["STONEMUX_MESSAGE_ID"] == str(sent)
    assert "STONEMUX_TOKEN" not in environ
    (tried,) = until_failed(program, 1)
    assert (tried["status"], tried["error"], environ["STONEMUX_WEBHOOK_ID"]) == (0, None, tried["wire_id"])
    assert bell(face)["url"] == f"exec:{command}", "arguments may be secret"
    outbound.stop()


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        ((), "exec:/bin/true"),
        (("/bin/true",), "exec:/bin/true x"),
        (("/bin/true",), "exec:/bin/sh"),
        (("*",), "exec:true"),
        (("*",), "exec:"),
        (("*",), "exec:'/bin/true"),
        (("*",), "exec:/bin/true\nx"),
        (("*",), "EXEC:/bin/true"),
    ],
)
def test_no_command_runs_that_the_settings_do_not_name(open_program, allowed, url):
    face = Direct(open_program(webhooks_exec=allowed).mux)
    refusal(face, "webhook_url_forbidden", "agent.register", agent_id="bob", webhook_url=url)


def test_a_command_that_fails_or_is_no_longer_allowed_is_tried_again(open_program):
    program = open_program(webhooks_exec=("*",))
    face, outbound = Direct(program.mux), Outbound(program.mux)
    outbound.start()
    join(face, "ann")
    for number, (url, error) in enumerate(
        [
            ("exec:/bin/false", "exit status 1"),
            ("exec:/bin/nowhere", "it could not be started: No such file or directory"),
        ],
        1,
    ):
        hang(face, url)
        send(face)
        program.clock.advance(5_000)
        program.timekeeper.tick()
        assert until_failed(program, number)[-1]["error"] == error
    outbound.stop()
    program.settings = replace(program.settings, webhooks_exec=())
    outbound = Outbound(program.reopen())
    program.clock.advance(HOUR)
    outbound.start()
    assert "do not allow" in until_failed(program, 3)[-1]["error"]
    outbound.stop()


def test_a_command_that_does_not_end_is_killed_with_its_children(open_program, tmp_path):
    program = open_program(webhooks_exec=("*",), webhooks_exec_timeout=0.4)
    face, outbound = Direct(program.mux), Outbound(program.mux)
    outbound.start()
    join(face, "ann")
    pids = tmp_path / "pids"
    hang(face, f"exec:/bin/sh -c 'sleep 60 & echo $! > {pids}; wait'")
    send(face)
    (tried,) = until_failed(program, 1)
    assert tried["error"] == "killed: it ran longer than 0.4 seconds"
    child = Path(f"/proc/{pids.read_text().strip()}/stat")
    eventually(lambda: not child.exists() or " Z " in child.read_text())
    outbound.stop()


# -- what is kept


def test_attempts_are_listed_for_a_while__H6(program, direct, outbound, clock, receive):
    receiver = receive(status(500))
    join(direct, "ann")
    hang(direct, receiver.url)
    send(direct)
    until_failed(program, 1)
    assert bell(direct)["last_error"] == "status 500"
    clock.advance(2 * 86_400_000)
    program.timekeeper.tick()
    until_failed(program, 2)
    clock.advance(86_400_000 + timekeeper.HOUSEKEEPING_MS)
    program.timekeeper.tick()
    assert [tried["try"] for tried in attempts(program)] != [1, 2]


def test_a_retried_registration_does_not_make_a_second_secret(face):
    given = {"agent_id": "bob", "webhook_url": "http://127.0.0.1:9/", "idempotency_key": "k"}
    assert face.call("agent.register", **given) == face.call("agent.register", **given)


def test_tools_take_a_doorbell_without_listing_it(mux, receive, program):
    with OverMcp(mux) as face:
        hang(face, "http://127.0.0.1:9/x")
        assert bell(face)["url"] == "http://127.0.0.1:9/x"
