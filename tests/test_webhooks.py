"""Forwarding: every event, in order, to endpoints that may fail, disappear, or come back."""

from __future__ import annotations

import json
import socket

from faces import Direct, join, refusal
from raw import eventually
from receivers import OK, status
from standardwebhooks.webhooks import Webhook

from stonemux import events, signature, timekeeper, webhooks
from stonemux.attempts import FORWARD_DELAYS
from stonemux.clock import Clock
from stonemux.outbound import Outbound
from stonemux.record import replace

SECRET = signature.make_secret("5a" * 32)
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


def forward(face, url, **given):
    """A new endpoint's id."""
    return face.call("webhook.add", url=url, **given)["webhook"]["id"]


def put(face, count=1):
    """That many events (state_changed); the id of the last."""
    for _ in range(count):
        face.call("state.set", key="k", value="v")
    return face.call("events.list", after=0, types=["state_changed"], limit=1000)["events"][-1]["id"]


def shown(face, endpoint_id):
    return next(one for one in face.call("webhook.list")["webhooks"] if one["id"] == endpoint_id)


def at_rest(program, endpoint_id):
    """Block until nobody is about an endpoint and nothing is due."""
    endpoint = program.mux.endpoints.forwards[endpoint_id]

    def resting() -> bool:
        due = endpoint.due
        return not endpoint.busy and (due is None or max(due, endpoint.quiet) > program.clock.now_ms())

    eventually(resting)


def pass_time(program, ms):
    program.clock.advance(ms)
    program.timekeeper.tick()


def tried(face, **given):
    return face.call("webhook.attempts", **given)["attempts"][::-1]


def ids(heard):
    return [one.told["id"] for one in heard]


# -- delivering


def test_every_event_is_forwarded_in_full_and_in_order__H4(face, program, outbound, receive):
    receiver = receive()
    made = face.call("webhook.add", url=receiver.url + "?k=v", secret=SECRET)
    assert made["created"] is True
    assert "secret" not in made, "only a secret that was made is shown"
    join(face, "ann", "bob")
    face.call("msg.send", from_="ann", to="bob", content="hello")
    put(face, 20)
    log = face.call("events.list", after=0, limit=1000)["events"]
    wanted = [event for event in log if event["id"] > made["webhook"]["cursor"]]
    heard = receiver.until(len(wanted))
    for one, event in zip(heard, wanted, strict=True):
        assert one.told == {
            "type": event["type"],
            "timestamp": event["at"],
            "id": event["id"],
            "channel": event["channel"],
            "data": event["data"],
        }
        assert one.id == f"evt_{event['id']}"
    at_rest(program, made["webhook"]["id"])
    assert shown(face, made["webhook"]["id"])["cursor"] == wanted[-1]["id"]


def test_PyPI_standardwebhooks_accepts_a_forwarded_event(program, direct, outbound, receive, monkeypatch):
    monkeypatch.setattr(program.clock, "wall_ms", Clock().wall_ms)
    receiver = receive()
    made = direct.call("webhook.add", url=receiver.url)
    last = put(direct)
    (heard,) = receiver.until(1)
    assert Webhook(made["secret"]).verify(heard.body, heard.headers)["id"] == last


def test_types_and_channel_narrow_down(face, program, outbound, receive):
    receiver = receive()
    join(face, "ann", "bob")
    face.call("channel.create", name="red", members=["ann", "bob"])
    forward(face, receiver.url, types=["message"], channel="red")
    put(face, 3)
    face.call("msg.send", from_="ann", to="bob", content="elsewhere")
    face.call("msg.send", from_="ann", to="bob", content="here", channel="red")
    (heard,) = receiver.until(1)
    assert heard.told["data"]["content"] == "here"
    face.call("state.set", key="k", value="v", channel="red")
    at_rest(program, shown_all(face)[0]["id"])
    assert len(receiver.heard) == 1


def shown_all(face):
    return face.call("webhook.list")["webhooks"]


def test_an_event_waits_until_the_one_before_succeeded__H4(program, direct, outbound, receive):
    receiver = receive(status(500))
    endpoint_id = forward(direct, receiver.url)
    last = put(direct, 3)
    receiver.until(1)
    at_rest(program, endpoint_id)
    assert ids(receiver.heard) == [last - 2]
    pass_time(program, 4_000)
    at_rest(program, endpoint_id)
    assert len(receiver.heard) == 1
    receiver.answer = OK
    pass_time(program, 2_000)
    heard = receiver.until(4)
    assert ids(heard) == [last - 2, last - 2, last - 1, last]
    assert heard[0].id == heard[1].id
    assert heard[0].body == heard[1].body
    eventually(lambda: [one["try"] for one in tried(direct, id=endpoint_id)] == [1, 2, 1, 1])


def test_an_unordered_endpoint_goes_on_with_others(program, direct, outbound, receive):
    receiver = receive()

    def refuse_one(sock: socket.socket) -> None:
        sock.sendall(status(500) if receiver.heard[-1].told["id"] == first else OK)

    receiver.answer = refuse_one
    endpoint_id = forward(direct, receiver.url, ordered=False)
    first = program.mux.log.head + 1
    assert put(direct) == first
    receiver.until(1)
    at_rest(program, endpoint_id)
    last = put(direct, 3)
    eventually(lambda: set(ids(receiver.heard)) == {first, last - 2, last - 1, last})
    at_rest(program, endpoint_id)
    assert shown(direct, endpoint_id)["retrying"] == 1
    receiver.answer = OK
    pass_time(program, 10 * MINUTE)
    eventually(lambda: shown(direct, endpoint_id)["retrying"] == 0)


def test_the_schedule_is_that_of_standard_webhooks_and_ends_in_a_dead_letter(program, direct, outbound, receive):
    receiver = receive(status(500))
    endpoint_id = forward(direct, receiver.url)
    last = put(direct, 2)
    delays = (*FORWARD_DELAYS, None)
    assert [delay and delay // 1000 for delay in delays] == [
        *(5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400, None)
    ]
    for number, delay in enumerate(delays, 1):
        receiver.until(number)
        at_rest(program, endpoint_id)
        attempt = tried(direct, id=endpoint_id)[number - 1]
        assert (attempt["event_id"], attempt["try"], attempt["outcome"]) == (last - 1, number, "failed")
        if delay is None:
            assert "retry_at" not in attempt
            break
        with program.store.read() as rx:
            due = rx.one("select due_at from forward")[0]
        wait_ms = due - program.clock.now_ms()
        assert 0.8 * delay <= wait_ms <= 1.2 * delay
        if delay == FORWARD_DELAYS[-1]:
            receiver.answer = lambda sock: sock.sendall(status(500 if receiver.heard[-1].told["id"] < last else 204))
        pass_time(program, wait_ms)
    assert ids(receiver.until(11))[-1] == last, "the next one's turn has come"
    at_rest(program, endpoint_id)
    now = shown(direct, endpoint_id)
    assert (now["dead"], now["dead_event_ids"], now["retrying"], now["status"]) == (1, [last - 1], 0, "active")


def test_an_event_that_failed_outlives_the_log(program, direct, outbound, receive, clock):
    receiver = receive(status(500))
    endpoint_id = forward(direct, receiver.url)
    first = put(direct)
    receiver.until(1)
    at_rest(program, endpoint_id)
    program.store.write(lambda tx: events.purge(tx, first, 2**60, 1000))
    receiver.answer = OK
    pass_time(program, 6_000)
    assert ids(receiver.until(2)) == [first, first]


def test_who_was_away_longer_than_the_log_reaches_is_told_of_a_gap(program, direct, outbound, receive):
    receiver = receive(status(410))
    endpoint_id = forward(direct, receiver.url)
    first = put(direct)
    receiver.until(1)
    eventually(lambda: shown(direct, endpoint_id)["status"] == "disabled")
    last = put(direct, 10)
    program.store.write(lambda tx: events.purge(tx, last - 3, 2**60, 1000))
    receiver.answer = OK
    assert direct.call("webhook.add", id=endpoint_id, url=receiver.url)["created"] is False
    heard = receiver.until(6)
    assert [one.told["type"] for one in heard[1:]] == ["state_changed", "gap", *["state_changed"] * 3]
    assert ids(heard[1:]) == [first, last - 3, last - 2, last - 1, last]
    gap = heard[2].told["data"]
    # among the ten is the event that told of the disabling
    assert gap == {"requested": first, "oldest": last - 2, "head": gap["head"], "missed": last - 3 - first}


def test_a_filter_that_nothing_passes_causes_no_gap(program, direct, outbound, receive):
    receiver = receive()
    endpoint_id = forward(direct, receiver.url, types=["task_posted"])
    put(direct, 3)
    at_rest(program, endpoint_id)
    assert shown(direct, endpoint_id)["cursor"] < program.mux.log.head
    eventually_moved = program.mux.endpoints.forwards[endpoint_id]
    assert eventually_moved.cursor == program.mux.log.head
    eventually_moved.cursor = eventually_moved.base[0] + webhooks.SCAN  # as after many more
    assert webhooks.lags(eventually_moved)
    put(direct, 1)
    at_rest(program, endpoint_id)
    assert timekeeper.LEAST_EVENTS > webhooks.SCAN


def test_forwarding_goes_on_where_it_was_after_a_restart__H3(open_program, receive):
    receiver, program = receive(), open_program()
    face = Direct(program.mux)
    outbound = Outbound(program.mux)
    outbound.start()
    endpoint_id = forward(face, receiver.url)
    first = put(face, 2)
    receiver.until(2)
    at_rest(program, endpoint_id)
    receiver.answer = status(500)
    put(face)
    receiver.until(3)
    at_rest(program, endpoint_id)
    outbound.stop()
    put(face, 2)
    receiver.answer = OK
    outbound = Outbound(program.reopen())
    outbound.start()
    at_rest(program, endpoint_id)
    assert len(receiver.heard) == 3, "a restart does not cut the wait short, nor let others pass"
    pass_time(program, 10_000)
    heard = receiver.until(6)
    assert ids(heard) == [first - 1, first, first + 1, first + 1, first + 2, first + 3]
    outbound.stop()


def test_a_dead_unordered_endpoint_is_not_tried_with_every_event(program, direct, outbound, receive):
    receiver = receive(status(500))
    endpoint_id = forward(direct, receiver.url, ordered=False)
    put(direct, 30)
    receiver.until(2)
    at_rest(program, endpoint_id)
    assert len(receiver.heard) == 2
    receiver.answer = OK
    pass_time(program, 10 * MINUTE)
    receiver.until(32)
    assert len({one.id for one in receiver.heard}) == 30


def test_retry_after_holds_up_all_of_an_endpoint(program, direct, outbound, receive):
    receiver = receive(status(503, "Retry-After: 600"))
    endpoint_id = forward(direct, receiver.url, ordered=False)
    put(direct, 3)
    receiver.until(1)
    at_rest(program, endpoint_id)
    pass_time(program, 599_000)
    at_rest(program, endpoint_id)
    assert len(receiver.heard) == 1
    receiver.answer = OK
    pass_time(program, 1_000)
    receiver.until(4)


def test_410_disables_and_tells_with_an_event(face, program, outbound, receive):
    receiver = receive(status(410))
    endpoint_id = forward(face, receiver.url)
    put(face)
    head = receiver.until(1)[0].told["id"]
    eventually(lambda: shown(face, endpoint_id)["status"] == "disabled")
    (event,) = eventually(lambda: face.call("events.list", after=head, types=["webhook_disabled"])["events"])
    assert event["data"] == {
        "id": endpoint_id,
        "url": receiver.url,
        "reason": "it answered 410 Gone",
        "failures": 1,
    }
    put(face, 3)
    at_rest(program, endpoint_id)
    assert len(receiver.heard) == 1
    receiver.answer = OK
    face.call("webhook.add", id=endpoint_id, url=receiver.url)
    heard = receiver.until(6)
    assert ids(heard) == [head, head, head + 1, head + 2, head + 3, head + 4]
    assert shown(face, endpoint_id)["status"] == "active"


# -- replaying


def test_dead_letters_are_replayed(face, program, outbound, receive):
    receiver = receive()
    endpoint_id = forward(face, receiver.url)
    first = put(face, 2)
    receiver.until(2)
    at_rest(program, endpoint_id)
    kill(program, endpoint_id, first)
    assert shown(face, endpoint_id)["dead_event_ids"] == [first]
    assert face.call("webhook.replay", id=endpoint_id) == {"id": endpoint_id, "queued": 1}
    assert ids(receiver.until(3))[-1] == first
    eventually(lambda: shown(face, endpoint_id)["dead"] == 0)
    assert face.call("webhook.replay", id=endpoint_id)["queued"] == 0


def kill(program, endpoint_id, event_id):
    """Make a dead letter of an event, as its tenth failure would."""
    program.store.write(
        lambda tx: tx.run(
            "insert into forward select ?, id, 'evt_' || id, kind, '{\"id\":' || id || '}', 1, 10, null, 'status 500', "
            "? from event where id = ?",
            endpoint_id,
            tx.now,
            event_id,
        )
    )


def test_events_are_replayed_by_id(face, program, outbound, receive):
    receiver = receive()
    endpoint_id = forward(face, receiver.url)
    last = put(face, 5)
    receiver.until(5)
    at_rest(program, endpoint_id)
    kill(program, endpoint_id, last - 1)
    assert face.call("webhook.replay", id=endpoint_id, event_ids=[last - 4, last - 1])["queued"] == 2
    heard = receiver.until(7)
    assert ids(heard)[5:] == [last - 4, last - 1]
    assert heard[5].id == heard[0].id
    for missing in (last + 1000, 0):
        error = refusal(face, "event_not_found", "webhook.replay", id=endpoint_id, event_ids=[missing])
        assert error.facts["event_id"] == missing
    refusal(face, "invalid_field", "webhook.replay", id=endpoint_id, event_ids=[last], since=0)


def test_what_is_replayed_does_not_overtake_what_failed_before_it__H4(program, direct, outbound, receive):
    receiver = receive()
    endpoint_id = forward(direct, receiver.url)
    last = put(direct, 3)
    receiver.until(3)
    at_rest(program, endpoint_id)
    receiver.answer = status(500)
    direct.call("webhook.replay", id=endpoint_id, event_ids=[last - 1])
    receiver.until(4)
    at_rest(program, endpoint_id)
    receiver.answer = OK
    direct.call("webhook.replay", id=endpoint_id, event_ids=[last])
    at_rest(program, endpoint_id)
    assert len(receiver.heard) == 4, "the one before is due in seconds"
    pass_time(program, 10_000)
    assert ids(receiver.until(6))[4:] == [last - 1, last]


def test_all_after_an_event_is_replayed_in_order(face, program, outbound, receive):
    receiver = receive()
    endpoint_id = forward(face, receiver.url)
    last = put(face, 5)
    receiver.until(5)
    at_rest(program, endpoint_id)
    kill(program, endpoint_id, last - 1)
    assert face.call("webhook.replay", id=endpoint_id, since=last - 3) == {
        "id": endpoint_id,
        "since": last - 3,
        "queued": 3,
    }
    assert ids(receiver.until(8))[5:] == [last - 2, last - 1, last]
    at_rest(program, endpoint_id)
    assert len(receiver.heard) == 8, "a dead letter that the log still has comes once"
    assert face.call("webhook.replay", id=endpoint_id, since=2**62)["queued"] == 0
    put(face)
    receiver.until(9)


def test_a_replay_while_a_delivery_is_under_way_skips_nothing(program, direct, outbound, receive):
    let_go = []

    def slow(sock: socket.socket) -> None:
        if len(receiver.heard) == 3:
            eventually(lambda: let_go)
        sock.sendall(OK)

    receiver = receive(slow)
    endpoint_id = forward(direct, receiver.url)
    last = put(direct, 3)
    receiver.until(3)
    direct.call("webhook.replay", id=endpoint_id, since=last - 3)
    let_go.append(True)
    assert ids(receiver.until(6))[3:] == [last - 2, last - 1, last]


def test_what_is_replayed_while_a_later_event_fails_does_not_wait_for_its_retry(program, direct, outbound, receive):
    let_go = []

    def slow(sock: socket.socket) -> None:
        third = len(receiver.heard) == 3
        if third:
            eventually(lambda: let_go)
        sock.sendall(status(500) if third else OK)

    receiver = receive(slow)
    endpoint_id = forward(direct, receiver.url)
    last = put(direct, 3)
    receiver.until(3)
    direct.call("webhook.replay", id=endpoint_id, event_ids=[last - 2])
    let_go.append(True)
    assert ids(receiver.until(4))[3] == last - 2
    at_rest(program, endpoint_id)
    assert len(receiver.heard) == 4, "the one that failed is due in seconds"
    pass_time(program, 10_000)
    assert ids(receiver.until(5))[4] == last


def test_an_event_that_is_being_tried_is_not_replayed_a_second_time(program, direct, outbound, receive):
    receiver = receive(lambda sock: sock.sendall(status(500) if len(receiver.heard) == 1 else OK))
    endpoint_id = forward(direct, receiver.url)
    last = put(direct)
    receiver.until(1)
    at_rest(program, endpoint_id)
    assert direct.call("webhook.replay", id=endpoint_id, event_ids=[last])["queued"] == 1
    at_rest(program, endpoint_id)
    assert shown(direct, endpoint_id)["retrying"] == 1
    pass_time(program, 10_000)
    assert ids(receiver.until(2)) == [last, last]
    at_rest(program, endpoint_id)
    assert shown(direct, endpoint_id)["retrying"] == 0


def test_a_new_endpoint_may_begin_in_the_past(face, program, outbound, receive):
    receiver = receive()
    last = put(face, 5)
    forward(face, receiver.url, since=last - 2)
    assert ids(receiver.until(2)) == [last - 1, last]


# -- the list


def test_endpoints_are_listed_changed_and_removed(face, program, receive):
    receiver = receive()
    made = face.call("webhook.add", url=receiver.url + "?secret=1", types=["message"])
    assert signature.secret_bytes(made["secret"]) is not None
    endpoint_id = made["webhook"]["id"]
    assert shown_all(face) == [made["webhook"]]
    assert made["webhook"]["url"] == receiver.url + "?…"
    assert made["secret"] not in str(shown_all(face)) + str(face.call("events.list", after=0))
    changed = face.call("webhook.add", url=receiver.url + "?secret=1", id=endpoint_id, ordered=False)
    assert (changed["created"], "secret" in changed) == (False, False)
    assert "types" not in shown(face, endpoint_id)
    assert shown(face, endpoint_id)["ordered"] is False
    assert face.call("webhook.remove", id=endpoint_id) == {"id": endpoint_id, "removed": True}
    assert shown_all(face) == []
    for name, given in (("remove", {}), ("replay", {}), ("add", {"url": receiver.url})):
        error = refusal(face, "webhook_not_found", f"webhook.{name}", id=endpoint_id, **given)
        assert error.facts["known_webhooks"] == []


def test_an_endpoint_that_moves_gets_another_secret_unless_one_is_given(program, direct, outbound, receive):
    old, new = receive(), receive()
    made = direct.call("webhook.add", url=old.url)
    moved = direct.call("webhook.add", url=new.url, id=made["webhook"]["id"])
    assert moved["secret"] != made["secret"]
    put(direct)
    (heard,) = new.until(1)
    seconds = program.clock.now_ms() // 1000
    signed = signature.headers([moved["secret"]], heard.id, seconds, heard.body)
    assert heard.headers["webhook-signature"] == signed["webhook-signature"], "who knew the old one signs nothing here"
    assert "secret" not in direct.call("webhook.add", url=old.url, id=made["webhook"]["id"], secret=SECRET)
    put(direct)
    (heard,) = old.until(1)
    signed = signature.headers([SECRET], heard.id, seconds, heard.body)
    assert heard.headers["webhook-signature"] == signed["webhook-signature"], "nor does one that is given beside it"


def test_a_failure_of_the_place_before_is_not_held_against_the_new_one(program, direct, outbound, receive):
    let_go = []

    def gone(sock: socket.socket) -> None:
        eventually(lambda: let_go)
        sock.sendall(status(410))

    before, after = receive(gone), receive()
    endpoint_id = forward(direct, before.url)
    event_id = put(direct)
    before.until(1)
    direct.call("webhook.add", url=after.url, id=endpoint_id)
    let_go.append(True)
    assert ids(after.until(1)) == [event_id]
    at_rest(program, endpoint_id)
    told = shown(direct, endpoint_id)
    assert (told["status"], told["cursor"], told["retrying"]) == ("active", event_id, 0)
    assert [attempt["outcome"] for attempt in tried(direct)] == ["failed", "delivered"]


def test_a_removed_endpoint_hears_nothing_more(program, direct, outbound, receive):
    receiver = receive(status(500))
    endpoint_id = forward(direct, receiver.url)
    put(direct, 2)
    receiver.until(1)
    at_rest(program, endpoint_id)
    direct.call("webhook.remove", id=endpoint_id)
    put(direct, 2)
    pass_time(program, DAY)
    eventually(lambda: not outbound.threads)
    assert len(receiver.heard) == 1


def test_what_may_not_be_forwarded_to(face):
    for url in ("http://169.254.169.254/", "http://10.0.0.1/", "ftp://x/", "exec:/bin/true", "", "x" * 2049):
        error = refusal(face, "webhook_url_forbidden", "webhook.add", url=url)
        assert error.facts["parameter"] == "url"
        assert error.message.startswith("url ")
    refusal(face, "channel_not_found", "webhook.add", url="http://127.0.0.1:9/", channel="nowhere")
    refusal(face, "invalid_field", "webhook.add", url="http://127.0.0.1:9/", types=["nonsense"])
    refusal(face, "invalid_field", "webhook.add", url="http://127.0.0.1:9/", secret="swordfish")
    assert shown_all(face) == []


def test_there_is_a_limit_of_endpoints(direct):
    for _ in range(webhooks.MOST):
        forward(direct, "http://127.0.0.1:9/")
    assert refusal(direct, "webhook_limit", "webhook.add", url="http://127.0.0.1:9/").facts["limit"] == webhooks.MOST
    direct.call("webhook.add", url="http://127.0.0.1:9/", id=shown_all(direct)[0]["id"])


def test_a_replaced_secret_signs_beside_the_new_one_for_a_day(program, direct, outbound, receive):
    receiver = receive()
    made = direct.call("webhook.add", url=receiver.url)
    endpoint_id = made["webhook"]["id"]
    direct.call("webhook.add", url=receiver.url, id=endpoint_id, secret=SECRET)
    for count, (advance, secrets) in enumerate([(0, [SECRET, made["secret"]]), (DAY, [SECRET])], 1):
        program.clock.advance(advance)
        put(direct)
        heard = receiver.until(count)[-1]
        signed = signature.headers(secrets, heard.id, program.clock.now_ms() // 1000, heard.body)
        assert heard.headers["webhook-signature"] == signed["webhook-signature"]


def test_every_attempt_is_listed_doorbells_too__H6(face, program, outbound, receive):
    receiver = receive()
    join(face, "ann")
    face.call("agent.register", agent_id="bob", webhook_url=receiver.url)
    endpoint_id = forward(face, receiver.url, types=["message"])
    sent = face.call("msg.send", from_="ann", to="bob", content="the content is nowhere")["message_id"]
    receiver.until(2)
    eventually(lambda: len(tried(face)) == 2)
    (ring,) = tried(face, agent_id="bob")
    (event,) = tried(face, id=endpoint_id)
    assert ring["id"].startswith("db-")
    assert (ring["agent_id"], ring["message_id"], ring["type"]) == ("bob", sent, "inbox.message")
    assert (event["status"], event["outcome"], event["type"], event["try"]) == (204, "delivered", "message", 1)
    assert event["ms"] >= 0
    assert {one.id for one in receiver.heard} == {ring["webhook_id"], event["webhook_id"]}
    listed = face.call("webhook.attempts", limit=1)
    assert listed["more"] is True
    (older,) = face.call("webhook.attempts", limit=1, before=listed["attempts"][0]["attempt_id"])["attempts"]
    assert older["attempt_id"] < listed["attempts"][0]["attempt_id"]
    assert "the content is nowhere" not in json.dumps(tried(face))
    assert tried(face, agent_id="ann") == []
    refusal(face, "agent_not_found", "webhook.attempts", agent_id="bobby")
    refusal(face, "webhook_not_found", "webhook.attempts", id=endpoint_id[:-1])
    face.call("agent.deregister", agent_id="bob")
    face.call("webhook.remove", id=endpoint_id)
    assert tried(face, agent_id="bob") + tried(face, id=endpoint_id) == [ring, event]


def test_counts_show_what_is_delivered(face, program, outbound, receive):
    receiver = receive(status(500))
    endpoint_id = forward(face, receiver.url)
    put(face)
    receiver.until(1)
    at_rest(program, endpoint_id)
    told = face.call("stats")
    assert told["forwarding"] == {"endpoints": 1, "retrying": 1, "dead": 0}
    assert told["deliveries"] == {"delivered": 0, "failed": 1}
    metrics = face.call("metrics")
    assert 'stonemux_deliveries_total{outcome="failed"} 1' in metrics


def test_a_downgrade_pauses_forwarding_and_loses_nothing__L1(open_program, receive):
    receiver, program = receive(), open_program()
    last = put(Direct(program.mux))
    forward(Direct(program.mux), receiver.url)
    for tier in ("pro", "enterprise"):
        program.settings = replace(program.settings, default_tier=tier)
        outbound = Outbound(program.reopen())
        outbound.start()
        if tier == "pro":
            last = put(Direct(program.mux), 2)
            program.timekeeper.tick()
            assert outbound.threads == 0
        else:
            assert ids(receiver.until(2)) == [last - 1, last]
        outbound.stop()


def test_dead_letters_are_forgotten_after_a_month(program, direct, clock):
    endpoint_id = forward(direct, "http://127.0.0.1:9/")
    kill(program, endpoint_id, put(direct))
    clock.advance(webhooks.DEAD_KEPT_MS - MINUTE)
    program.timekeeper.tick()
    assert shown(direct, endpoint_id)["dead"] == 1
    clock.advance(3 * MINUTE)
    program.timekeeper.tick()
    assert shown(direct, endpoint_id)["dead"] == 0
