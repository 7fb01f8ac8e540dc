"""The Python client: generated code is typed and complete; retries; conveniences."""

from __future__ import annotations

import inspect
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from conftest import Program
from daemons import ROOT, running_daemon
from faces import OverHttp, join
from fake_clock import FakeClock
from raw import eventually
from scripted import Scripted, answer, refusal

import stonemux
from stonemux import operations, together
from stonemux.calls import WAITING
from stonemux.client import Client
from stonemux.clock import Clock
from stonemux.errors import MuxError
from stonemux.follow import Frames
from stonemux.keeper import Keeper
from stonemux.pool import NoAnswer

CALLED = [operation for operation in operations.OPERATIONS if operation.kind != "stream"]


def refused(code, call, **given):
    """The refusal of a call, which must have this code."""
    with pytest.raises(MuxError) as caught:
        call(**given)
    assert caught.value.code == code
    return caught.value


@pytest.fixture
def client(http: OverHttp):
    with Client(f"http://127.0.0.1:{http.port}", environ={}) as client:
        client._pool._clock = http.server.mux.clock  # the daemon ends idle connections by this clock
        yield client
        client.health()  # the receipt of what was polled last, for which a clock that stands still would wait


# --- what is generated


def test_every_operation_is_a_method_with_the_rows_parameters():
    for operation in CALLED:
        method = getattr(Client, operation.name.replace(".", "_"))
        arguments = dict(inspect.signature(method).parameters)
        del arguments["self"]
        if operation.changes:
            assert arguments.pop("idempotency_key").default is None
        assert list(arguments) == [param.argument for param in operation.params], operation.name
        for param in operation.params:
            argument = arguments[param.argument]
            assert argument.kind is inspect.Parameter.KEYWORD_ONLY
            must = param.required and param.name != operation.actor
            assert argument.default == (inspect.Parameter.empty if must else None if param.required else param.default)
            assert f"`{param.argument}`" in inspect.getdoc(method)


def test_the_calls_that_wait_are_those_with_a_timeout():
    assert set(WAITING) == {operation.name for operation in CALLED if "timeout" in operation.by_name}


def test_importing_the_package_imports_no_client():
    told = subprocess.run(
        [sys.executable, "-c", "import sys, stonemux; print(sorted(n for n in sys.modules if 'stonemux' in n))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "stonemux.client" not in told.stdout
    assert stonemux.Client is Client
    assert stonemux.MuxError is MuxError
    with pytest.raises(AttributeError):
        stonemux.Nothing  # noqa: B018


# --- calls


def test_the_clients_agent_acts_where_a_call_does_not_say(http: OverHttp):
    join(http, "ann", "bob")
    with Client(f"127.0.0.1:{http.port}", agent="ann", environ={}) as client:
        client.msg_send(to="bob", content="hi")
        client.msg_send(sender="bob", to="ann", content="hello")
        assert [message["from"] for message in client.msg_poll(timeout=0)["messages"]] == ["bob"]
        assert client.state_set(key="k", value="v")["updated_by"] == "ann"


def test_a_refusal_has_code_message_facts_and_status(client: Client):
    error = refused("agent_not_found", client.agent_get, agent_id="nobody")
    assert error.status == 404
    assert "nobody" in error.message
    assert error.facts["request_id"]


def test_who_is_missing_is_told_as_python_says_it(client: Client):
    message = refused("missing_field", client.msg_send, to="ann", content="x").message
    assert message.endswith(" Say it as sender, in Client(agent=...), or in STONEMUX_AGENT")
    assert "STONEMUX_AGENT" not in refused("missing_field", client.msg_send, sender="ann", to="ann").message


def test_settings_come_from_the_environment_as_for_commands(tmp_path: Path):
    (tmp_path / "c.toml").write_text("[server]\nport = 4000\n")
    environ = {"HOME": str(tmp_path), "STONEMUX_CONFIG": str(tmp_path / "c.toml"), "STONEMUX_AGENT": "ann"}
    assert repr(Client(environ=environ)) == "Client('http://127.0.0.1:4000', agent='ann')"
    assert repr(Client(environ=environ | {"STONEMUX_PORT": "4001"})) == "Client('http://127.0.0.1:4001', agent='ann')"
    assert repr(Client("[::1]:5", agent="bob", environ=environ)) == "Client('http://[::1]:5', agent='bob')"


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://a:b", "http://h/path", "http://u@h", "http://h:99999", ""]
)
def test_an_address_that_is_none_is_refused(url):
    assert "127.0.0.1:3392" in refused("bad_setting", Client, url=url, environ={}).message


# --- trying again


@contextmanager
def scripted(*answers: bytes | None, timeout: float = 15.0) -> Iterator[tuple[Scripted, Client]]:
    with Scripted(*answers) as server, Client(f"127.0.0.1:{server.port}", timeout=timeout, environ={}) as client:
        yield server, client


def on_fake_time(client: Client) -> FakeClock:
    """From now on the client's pauses take no time, and move this clock."""
    client._clock = clock = FakeClock()
    client.pause = clock.advance
    return clock


SENT = answer(200, {"message_id": 1, "sent_at": "now"})


def test_a_change_whose_connection_broke_is_sent_again_with_the_same_key__P6():
    with scripted(None, None, SENT) as (server, client):
        assert client.msg_send(sender="ann", to="bob", content="hi")["message_id"] == 1
        assert len(server.asked) == 3
        assert len({(one.body, one.headers["idempotency-key"]) for one in server.asked}) == 1
        client.msg_send(sender="ann", to="bob", content="hi")
        assert server.asked[3].headers["idempotency-key"] != server.asked[2].headers["idempotency-key"]
        client.msg_send(sender="ann", to="bob", content="hi", idempotency_key="mine")
        assert server.asked[4].headers["idempotency-key"] == "mine"


@pytest.mark.parametrize("status", [429, 503])
def test_a_daemon_that_is_busy_is_asked_again_when_it_said(status, background):
    clock = FakeClock()
    # Closed by both: sent on a connection that just ends, the next would be tried again after a pause of its own.
    with scripted(refusal(status, "inbox_full", Retry_After="3", Connection="close"), SENT) as (server, client):
        client._clock = clock
        sending = background(client.msg_send, sender="ann", to="bob", content="hi")
        clock.until_parked(1)
        clock.advance(2_999)
        assert len(server.asked) == 1
        clock.advance(1)
        assert sending.result(5)["message_id"] == 1


def test_a_daemon_that_asks_for_more_patience_than_there_is_is_not_waited_for():
    with scripted(refusal(503, "storage_busy", Retry_After="16")) as (server, client):
        error = refused("storage_busy", client.health)
        assert (error.retry_after, error.status, len(server.asked)) == (16, 503, 1)


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500, 507])
def test_a_refusal_that_stays_is_raised_at_once(status):
    with scripted(refusal(status, "a_code_of_tomorrow")) as (server, client):
        error = refused("a_code_of_tomorrow", client.health)
        assert (error.status, error.failure.exit, error.facts) == (status, 1, {"request_id": "r1"})
        assert len(server.asked) == 1


def test_a_body_that_is_refused_before_it_was_sent_is_a_refusal_and_not_a_silence(client: Client):
    error = refused("body_too_large", client.document_create, content="x" * 17_000_000)
    assert error.status == 413


def test_text_is_sent_as_it_is_so_that_all_of_it_fits_into_a_body():
    with scripted(SENT) as (server, client):
        client.msg_send(sender="ann", to="bob", content="\u5b57")
        assert "\u5b57".encode() in server.asked[0].body
        refused("invalid_unicode", client.msg_send, sender="ann", to="bob", content="\ud800")


def test_trying_ends_when_the_time_is_over_and_says_that_the_outcome_is_unknown():
    with scripted(SENT, None) as (server, client):
        clock = on_fake_time(client)
        begun = clock.ticks_ms()
        client.msg_send(sender="ann", to="bob", content="hi")
        error = refused("unreachable", client.msg_send, sender="ann", to="bob", content="hi", idempotency_key="mine")
        assert error.facts == {"idempotency_key": "mine"}
        assert "unknown" in error.message
        assert 14_000 <= clock.ticks_ms() - begun < 15_000
        assert 15 <= len(server.asked) <= 40


def test_a_wait_that_broke_late_is_tried_as_long_as_one_that_broke_at_once(client: Client):
    client.health()
    clock, tried = on_fake_time(client), []

    def attempt():
        tried.append(clock.ticks_ms())
        clock.advance(50_000 if len(tried) == 1 else 0)
        raise NoAnswer("gone")

    refused("unreachable", lambda: client.persist("msg.poll", None, 60_000, attempt))
    assert 64_000 <= clock.ticks_ms() - tried[0] < 65_000


def test_what_the_package_offers_can_be_listed_and_imported():
    namespace: dict[str, Any] = {}
    exec("from stonemux import *", namespace)  # as in a Python shell
    assert namespace["Client"] is Client
    assert set(stonemux.__all__) <= {*dir(stonemux)} & {*namespace}


@pytest.mark.parametrize(
    ("program", "start"),
    [
        (f"{ROOT}/stonemux/__main__.py", "python3 -m stonemux"),
        ("/opt/app/__main__.py", "python3 -m stonemux"),  # nothing need be installed
        ("/usr/bin/stonemux", "stonemux"),
    ],
)
def test_without_a_daemon_the_first_call_says_so_after_two_seconds(monkeypatch, program, start):
    monkeypatch.setattr(sys, "argv", [program])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"127.0.0.1:{port}", environ={}) as client:
        clock = on_fake_time(client)
        begun = clock.ticks_ms()
        error = refused("unreachable", client.health)
        told = f"no stonemux daemon answers at 127.0.0.1:{port} (Connection refused); start one with: {start} serve"
        assert error.message == f"{told} --port {port}"
        assert "unknown" not in error.message
        assert 1_000 <= clock.ticks_ms() - begun < 2_000


def test_a_token_is_shown_and_a_new_one_got_when_it_ran_out():
    expired = refusal(401, "token_expired")
    with scripted(expired, SENT, expired) as (server, client):
        client._fresh_token = iter(["one", "two", "three"]).__next__
        client.msg_send(sender="ann", to="bob", content="hi")
        refused("token_expired", client.health)
        shown = [one.headers["authorization"] for one in server.asked]
        assert shown == [f"Bearer {token}" for token in ("one", "two", "two", "three")]
    with scripted(SENT) as (server, client):
        for token, environ in (("t", {}), (None, {"STONEMUX_TOKEN": "u"})):
            with Client(f"127.0.0.1:{server.port}", token=token, environ=environ) as other:
                other.health()
        assert [one.headers["authorization"] for one in server.asked] == ["Bearer t", "Bearer u"]


def test_no_time_means_one_try():
    with scripted(None, timeout=0) as (server, client):
        refused("unreachable", client.health)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "told",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 15\r\n\r\n" + b'{"error": "no"}',
    ],
)
def test_another_server_is_no_daemon(told):
    with scripted(told) as (server, client):
        assert "another server" in refused("unreachable", client.health).message
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "this is not an HTTP server"),
        (b"HTTP/1.1 OK\r\n\r\n", "this is not an HTTP server"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "the answer is chunked"),
        (b"HTTP/1.1 404 X\r\nContent-Length: 9\r\n\r\n{}", "the connection ended before the answer did"),
    ],
)
def test_an_answer_that_no_daemon_gives_is_none(told, why):
    with scripted(told, timeout=0) as (_, client):
        for call in (client.health, lambda: next(client.events())):
            assert why in refused("unreachable", call).message


def test_what_cannot_be_called_or_sent_is_told_before_anything_is_sent():
    with scripted(SENT) as (server, client):
        assert refused("not_found", client.call, operation="msg.snd").facts == {"nearest": "msg.send"}
        refused("not_found", client.call, operation="events.stream")
        refused("invalid_unicode", client.agent_get, agent_id="\ud800")
        refused("invalid_unicode", client.agent_register, agent_id="\ud800")
        sent = {"sender": "ann", "to": "bob", "content": "hi"}
        with pytest.raises(TypeError, match="object cannot be written as JSON"):
            client.msg_send(**sent, metadata={"what": object()})
        assert server.asked == []
        client.msg_send(**sent, metadata=MappingProxyType({"size": 1}))
        assert json.loads(server.asked[0].body)["metadata"] == {"size": 1}


def test_closing_ends_what_other_threads_wait_for(http: OverHttp, clock: FakeClock, background):
    join(http, "bob")
    client = Client(f"127.0.0.1:{http.port}", environ={})
    waiting = background(client.msg_poll, agent_id="bob", timeout=60)
    clock.until_parked(1)
    client.close()
    assert isinstance(error := waiting.exception(5), MuxError)
    assert "closed" in error.message
    assert "closed" in refused("unreachable", client.health).message


FORKING = """
import os, sys
from stonemux import Client
with Client(sys.argv[1], environ={}) as client:
    for message in client.messages("bob", timeout=0):  # so that there is an idle connection, and a keeper
        if not os.fork():
            told = [client.agent_get(agent_id="bob")["agent"]["id"] for _ in range(10)]
            with client.claimed("bob") as task:
                task.result = " ".join(sorted(set(told)))
            os._exit(0)
        told = {client.agent_get(agent_id="ann")["agent"]["id"] for _ in range(10)}
        assert os.wait()[1] == 0
    print(told, client.task_list()["tasks"][0]["result"])
"""


def test_a_forked_process_goes_on_with_connections_of_its_own(http: OverHttp):
    join(http, "ann", "bob")
    http.call("msg.send", from_="ann", to="bob", content="hi")
    http.call("task.post", description="work", posted_by="ann")
    command = [sys.executable, "-W", "ignore", "-c", FORKING, f"127.0.0.1:{http.port}"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert told.stdout == "{'ann'} bob\n"


def test_a_name_that_a_query_cannot_hold_is_refused(client: Client):
    client.agent_register(agent_id="bob")
    error = refused("invalid_field", client.msg_poll, agent_id="bob", types=["a,b"], timeout=0)
    assert error.facts == {"parameter": "types"}


# --- waiting longer than the daemon does


@pytest.mark.settings(poll_timeout_max=5)
def test_a_wait_beyond_the_maximum_goes_on(client: Client, http: OverHttp, clock: FakeClock, background):
    client._clock = clock
    join(http, "ann", "bob")
    waiting = background(client.msg_poll, agent_id="bob", timeout=12)
    for _ in range(2):
        clock.until_parked(1)
        clock.advance_to_next_wait(5_000)
    http.call("msg.send", from_="ann", to="bob", content="at last")
    assert waiting.result(5)["messages"][0]["content"] == "at last"


@pytest.mark.settings(poll_timeout_max=5)
def test_a_wait_ends_when_it_was_asked_to(client: Client, http: OverHttp, clock: FakeClock, background):
    client._clock = clock
    join(http, "bob")
    waiting = background(client.msg_poll, agent_id="bob", timeout=7)
    clock.until_parked(1)
    clock.advance_to_next_wait(5_000)
    clock.advance(1_999)
    assert clock.parked == 1
    clock.advance(1)
    assert waiting.result(5) == {"messages": []}


@pytest.mark.settings(poll_timeout_max=5)
def test_each_round_of_a_claim_has_a_key_of_its_own__P2(client: Client, http: OverHttp, clock: FakeClock, background):
    client._clock = clock
    join(http, "ann")
    waiting = background(client.task_claim, agent_id="ann", timeout=12, idempotency_key="mine")
    clock.until_parked(1)
    clock.advance_to_next_wait(5_000)
    posted = http.call("task.post", description="work", posted_by="ann")
    assert waiting.result(5)["task_id"] == posted["task_id"]
    assert client.task_claim(agent_id="ann", timeout=7, idempotency_key="mine.2")["task_id"] == posted["task_id"]


# --- messages


@pytest.fixture
def mail(client: Client) -> Client:
    """A client, and three messages for bob."""
    for agent_id in ("ann", "bob"):
        client.agent_register(agent_id=agent_id)
    for number in range(3):
        client.msg_send(sender="ann", to="bob", content=str(number), type=f"type-{number}")
    return client


def unread(client: Client, agent_id: str = "bob") -> int:
    return client.agent_get(agent_id=agent_id)["agent"]["unread"]


def test_a_message_is_acknowledged_when_the_next_is_asked_for(mail: Client):
    seen = []
    for message in mail.messages("bob", timeout=0):
        assert unread(mail) == 3 - len(seen)
        seen.append(message["content"])
    assert seen == ["0", "1", "2"]
    assert unread(mail) == 0


def test_only_messages_of_the_wanted_types_are_taken(mail: Client):
    seen = [message["content"] for message in mail.messages("bob", types=["type-2", "type-0"], timeout=0)]
    assert (seen, unread(mail)) == (["0", "2"], 1)


def test_an_exception_in_the_loop_puts_the_message_back(mail: Client):
    def work():
        for message in mail.messages("bob", timeout=0):
            raise ValueError(message["content"])

    with pytest.raises(ValueError, match="0"):
        work()
    eventually(lambda: mail.msg_status(id=1)["recipients"][0]["status"] == "queued")
    again = next(mail.messages("bob", timeout=0))
    assert (again["content"], again["deliveries"], again["redelivered"]) == ("0", 2, True)


def test_leaving_the_loop_puts_back_unless_it_was_acknowledged(mail: Client):
    with mail.messages("bob", timeout=0) as inbox:
        for message in inbox:
            if message["content"] == "1":
                inbox.ack()
                break
        for message in inbox:
            assert message["content"] == "2"
            break
    assert list(inbox) == []
    assert [message["content"] for message in mail.messages("bob", timeout=0)] == ["2"]


def test_a_loop_that_was_left_with_a_message_begins_with_it_again(mail: Client):
    inbox = mail.messages("bob", timeout=0)
    for _message in inbox:
        break
    assert [message["content"] for message in inbox] == ["0", "1", "2"]


def test_a_message_may_be_put_back_for_later(mail: Client, program: Program):
    inbox = mail.messages("bob", timeout=0)
    assert next(inbox)["content"] == "0"
    inbox.nack(delay=30)
    assert [message["content"] for message in inbox] == ["1", "2"]
    program.clock.advance(30_000)
    program.timekeeper.tick()
    assert [message["content"] for message in mail.messages("bob", timeout=0)] == ["0"]


def test_a_lease_is_extended_while_the_body_works(mail: Client, program: Program):
    inbox = mail.messages("bob", lease=60, timeout=0)
    next(inbox)
    mail.health()  # the receipt: time must not pass before it
    for _ in range(3):
        program.clock.advance(40_000)
        inbox._hand.renew()
        program.timekeeper.tick()
    assert mail.msg_status(id=1)["recipients"][0]["status"] == "fetched"
    mail.msg_ack(agent_id="bob", ids=[1])
    inbox._hand.renew()  # what is settled is left alone
    assert next(inbox)["content"] == "1"


def test_the_keeper_renews_what_is_held_until_it_is_over():
    class Thing:
        every_ms, over = 1, False
        renewed, returned = 0, threading.Event()

        def renew(self):
            self.renewed += 1

        def put_back(self):
            self.returned.set()

    thing, keeper = Thing(), Keeper(Clock())
    keeper.keep(thing)
    eventually(lambda: thing.renewed > 3)
    keeper.put_back(thing)
    assert thing.returned.wait(5)
    renewed = thing.renewed
    keeper.keep(other := Thing())
    eventually(lambda: other.renewed > 3)
    assert thing.renewed == renewed
    keeper.close()
    eventually(lambda: not keeper._thread.is_alive())


def test_a_stop_ends_the_loop_after_the_message_in_hand(mail: Client):
    stop, seen = threading.Event(), []
    for message in mail.messages("bob", stop=stop):
        seen.append(message["content"])
        stop.set()
    assert (seen, unread(mail)) == (["0"], 2)


# --- tasks


@pytest.fixture
def pool(client: Client) -> Client:
    """A client, and a task of ann that bob may claim."""
    for agent_id in ("ann", "bob"):
        client.agent_register(agent_id=agent_id)
    client.task_post(description="work", posted_by="ann", metadata={"n": 1})
    return client


def test_many_calls_go_in_as_few_requests_as_the_limits_allow(client, mux, monkeypatch):
    for agent_id in ("ann", "bob"):
        client.agent_register(agent_id=agent_id)
    sizes, real = [], together.queue

    def counting(mux, operation, given, *others):
        sizes.append(len(given))
        real(mux, operation, given, *others)

    monkeypatch.setattr(together, "queue", counting)
    small = [{"from": "ann", "to": "bob", "content": str(n)} for n in range(1001)]
    large = [{"from": "ann", "to": "bob", "content": "x" * 60_000} for _ in range(20)]
    answers = client.call_all("msg.send", [*small, {"from": "ann", "to": "nobody", "content": "x"}, *large])
    assert [answer["message_id"] for answer in answers[:1001]] == list(range(1, 1002))
    assert (answers[1001].code, answers[1001].facts["known_agents"]) == ("agent_not_found", ["ann", "bob"])
    assert sizes == [1000, 19, 3]
    with pytest.raises(MuxError, match="does not take a list"):
        client.call_all("task.post", small)


def only_task(client: Client):
    [task] = client.task_list()["tasks"]
    return task


def test_a_claimed_task_is_completed_with_its_result(pool: Client):
    with pool.claimed("bob") as task:
        assert task is not None
        assert repr(task) == f"Claim({task.task_id!r}, 'work')"
        assert (task.description, task.metadata, only_task(pool)["status"]) == ("work", {"n": 1}, "claimed")
        task.result = "done"
    assert (only_task(pool)["status"], only_task(pool)["result"]) == ("complete", "done")
    with pool.claimed("bob") as task:
        assert task is None


def test_an_exception_fails_the_task_and_goes_on(pool: Client):
    with pytest.raises(ZeroDivisionError), pool.claimed("bob"):
        1 / 0  # noqa: B018
    assert (only_task(pool)["status"], only_task(pool)["result"]) == ("failed", "ZeroDivisionError: division by zero")


def test_an_exception_with_retry_puts_the_task_back(pool: Client):
    with pytest.raises(ZeroDivisionError), pool.claimed("bob", retry=True):
        1 / 0  # noqa: B018
    assert (only_task(pool)["status"], only_task(pool)["attempts"]) == ("pending", 1)


def test_an_interruption_gives_the_task_back(pool: Client):
    with pytest.raises(KeyboardInterrupt), pool.claimed("bob"):
        raise KeyboardInterrupt
    assert (only_task(pool)["status"], only_task(pool)["attempts"]) == ("pending", 0)


def test_a_task_may_be_ended_by_hand(pool: Client):
    with pool.claimed("bob") as task:
        task.release(reason="not mine")
    assert only_task(pool)["status"] == "pending"
    with pool.claimed("bob") as task:
        task.complete("early")
    assert only_task(pool)["result"] == "early"


def test_a_task_may_be_handed_off(pool: Client):
    with pool.claimed("bob") as task:
        task.hand_off("half done", branch="b")
    with pool.claimed("bob") as task:
        assert task.task["handoff"]["note"] == "half done"


def test_a_cancelled_task_is_seen_and_its_end_is_no_error(pool: Client):
    with pool.claimed("bob") as task:
        assert task.check()
        pool.task_cancel(task_id=task.task_id, by="ann")
        assert not task.check()
    assert task.cancelled
    pool.task_requeue(task_id=task.task_id)
    with pool.claimed("bob") as task:
        pool.task_cancel(task_id=task.task_id, by="ann")
    assert task.cancelled


def test_a_claim_is_extended_and_one_that_went_to_another_is_lost__T5(pool: Client, program: Program):
    def work():
        with pool.claimed("bob") as task:
            assert task.every_ms == 100_000
            program.clock.advance(200_000)
            task.renew()
            program.clock.advance(200_000)
            assert pool.task_claim(agent_id="ann")["task"] is None
            program.clock.advance(100_000)
            assert pool.task_claim(agent_id="ann")["task"] is not None
            task.renew()
            assert task.lost
            assert not task.check()

    refused("stale_claim", work)


# --- state


def test_a_key_is_watched_version_by_version(client: Client):
    client.state_set(key="k", value="a")
    seen = []
    for record in client.watch("k", timeout=0):
        seen.append((record["version"], record.get("value")))
        if len(seen) == 1:
            client.state_set(key="k", value="b")
        if len(seen) == 2:
            client.state_delete(key="k")
    assert seen == [(1, "a"), (2, "b"), (3, None)]


def test_a_watch_that_knows_more_than_the_daemon_is_told(client: Client):
    client.state_set(key="k", value="a")
    [reset] = client.watch("k", after_version=7, timeout=0)
    assert (reset["reset"], reset["version"]) == (True, 1)


def test_updates_from_many_threads_lose_nothing(client: Client, background):
    def more(value):
        return str(int(value or 0) + 1)

    def count():
        for _ in range(5):
            client.update("n", more)

    for done in [background(count) for _ in range(6)]:
        done.result(20)
    assert client.state_get(key="n")["value"] == "30"
    assert client.update("n", lambda value: None) is None
    assert client.state_get(key="n")["version"] == 30


def test_an_update_that_cannot_succeed_is_refused_at_once(client: Client):
    refused("channel_not_found", client.update, key="n", function=lambda value: "1", channel="nowhere")
    tried = []
    refused("body_too_large", client.update, key="n", function=lambda value: tried.append(value) or "x" * 2_000_000)
    assert tried == [None]


# --- events


def test_events_are_followed_as_they_happen(client: Client, background):
    client.agent_register(agent_id="ann")
    told = list(client.events(after=0, timeout=0))
    assert [event["type"] for event in told] == ["channel_created", "channel_created", "agent_registered"]
    assert told[2:] == list(client.events(after=0, types=["agent_registered"], timeout=0))
    following = client.events(types=["state_changed"], timeout=5)
    first = background(next, following)
    eventually(lambda: client.stats()["waiters"])
    client.agent_heartbeat(agent_id="ann")
    client.state_set(key="k", value="v")
    assert first.result(5)["data"]["key"] == "k"
    following.close()


def test_a_stream_of_a_daemon_that_stops_is_opened_again_until_the_reader_stops():
    first, stop = (7, "message", {"id": 1}), threading.Event()
    with scripted(stream(7, first, (0, "shutdown", {}), NEXT), stream(8, first, NEXT)) as (server, client):
        following = client.events(after=6, stop=stop)
        assert [next(following)["id"], next(following)["id"], len(server.asked)] == [7, 8, 2]
        stop.set()
        assert list(following) == []


def test_a_future_id_is_told_as_a_reset(client: Client):
    [reset] = client.events(after=99, timeout=0)
    assert (reset["type"], reset["id"], reset["data"]["requested"]) == ("reset", 1, 99)


def test_a_refused_stream_raises(client: Client):
    with pytest.raises(MuxError, match="nobody"):
        next(client.events(agent_id="nobody"))


def stream(head: int, *events: tuple[int, str, dict[str, Any]]) -> bytes:
    """A stream that ends after these events."""
    told = b"HTTP/1.1 200 X\r\nX-Request-Id: r1\r\nX-Stonemux-Event-Head: %d\r\n\r\n" % head
    for number, kind, data in events:
        told += f"id: {number}\n".encode() * bool(number) + f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()
    return told


NEXT = (8, "message", {"id": 2})


@pytest.mark.parametrize(
    ("again", "told", "resumed"),
    [
        ([(7, "message", {"id": 1}), NEXT], [], None),
        ([(7, "message", {"id": 9}), NEXT], [(20, "reset", {"requested": 7, "head": 20})], 20),
        ([NEXT], [(20, "reset", {"requested": 7, "head": 20})], 20),
        ([(3, "reset", {"requested": 6, "head": 3})], [(3, "reset", {"requested": 7, "head": 3})], 3),
        ([(7, "gap", {"requested": 6, "missed": 1, "oldest": 8}), NEXT], [], None),
        (
            [(9, "gap", {"requested": 6, "missed": 3, "oldest": 10})],
            [(9, "gap", {"requested": 7, "missed": 2, "oldest": 10})],
            9,
        ),
        ([(0, "auth_expired", {"code": "token_expired"})], [(0, "auth_expired", {"code": "token_expired"})], 6),
    ],
    ids=["the same log", "another log", "a log without it", "a shorter log", "forgotten", "more forgotten", "no token"],
)
def test_a_log_that_was_replaced_is_noticed_even_if_it_is_longer_by_now(again, told, resumed):
    """The last event must come again as it was: ids start over where an older copy of the data was put back."""
    first = (7, "message", {"id": 1})
    last = [first] * (resumed == 6) + [(21, *NEXT[1:])]
    with scripted(stream(7, first), stream(20, *again), stream(20, *last)) as (server, client):
        following = client.events(after=5)
        event = next(following)
        event["data"].clear()  # it belongs to the caller
        found = [next(following) for _ in (*told, 1)]
        following.close()
    assert [(event["id"], event["type"], event["data"]) for event in found[:-1]] == told
    assert (found[-1]["id"], found[-1]["type"]) == (8 if resumed is None else 21, "message")
    asked = [asked.headers["last-event-id"] for asked in server.asked]
    assert asked == ["5", "6", str(resumed)][: len(asked)]


def test_frames_are_whole_wherever_they_are_cut():
    data = b': head 4\n\nid: 5\nevent: message\ndata: {"a": "b: c"}\n\n: ka\n\nevent: shutdown\ndata: {}\n\n'
    wanted = [{"id": 5, "type": "message", "data": {"a": "b: c"}}, {"id": 0, "type": "shutdown", "data": {}}]
    for cut in range(len(data)):
        frames = Frames()
        assert [*frames.take(data[:cut]), *frames.take(data[cut:])] == wanted


# --- a real daemon that is restarted


def test_a_restart_is_not_noticed(tmp_path: Path, background):
    """Sending, receiving and following go on over a kill and a new start; each message comes once."""
    data, wanted = tmp_path / "data", 30
    received: list[str] = []
    followed: list[str] = []
    with running_daemon(data) as daemon, Client(f"127.0.0.1:{daemon.port}", environ={}) as client:
        for agent_id in ("ann", "bob"):
            client.agent_register(agent_id=agent_id)

        def send():
            for number in range(wanted):
                client.msg_send(sender="ann", to="bob", content=str(number))

        def receive():
            for message in client.messages("bob", lease=1, timeout=10):
                received.append(message["content"])
                if len(set(received)) == wanted:
                    return

        def follow():
            for event in client.events(after=0, types=["message"], timeout=10):
                followed.append(str(event["data"]["content"]))
                if len(followed) == wanted:
                    return

        working = [background(one) for one in (receive, follow, send)]
        eventually(lambda: len(received) > 5)
        daemon.process.kill()
        daemon.process.wait()
        with running_daemon(data, port=daemon.port):
            for one in working:
                one.result(30)
    assert followed == [str(number) for number in range(wanted)]
    assert sorted(set(received), key=int) == followed
