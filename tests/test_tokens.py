"""Tokens: who gets one, what it allows, and how it ends. The numbers are those promised."""

from __future__ import annotations

import base64
import hmac
import json
import socket
from http.client import HTTPConnection

import pytest
from faces import Direct, OverHttp, OverMcp, bearer_of, join, post_mcp, refusal
from fake_clock import EPOCH_MS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from licensed import claims_of, issued
from raw import OVER_TLS, Raw, eventually, request
from streams import Reader
from tls_client import CERT

from stonemux import audit, tokens
from stonemux.client import Client
from stonemux.clock import rfc3339
from stonemux.datadir import ADDRESS, OWNER_TOKEN, DataDir, read_owner_token
from stonemux.errors import MuxError
from stonemux.licensekey import Key
from stonemux.operations import BY_NAME, OPERATIONS
from stonemux.pool import Pool
from stonemux.tokens import MOST_TOKEN, Tokens

REQUIRED = pytest.mark.settings(auth_tokens="required")
DAY_MS = 24 * 3600 * 1000
KEY = Key("pro", 1, 1).text
"""A key without a typo, of a license that nobody has given out."""
ANY = (socket.AF_INET, socket.SOCK_STREAM, 0)
CALLED = [operation for operation in OPERATIONS if operation.kind not in ("stream", "document")]


def encoded(value):
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).rstrip(b"=").decode()


def resigned(mux, claims):
    """A token with these claims, signed as the daemon signs."""
    (header, key) = list(mux.tokens._keys.items())[-1]
    signed = f"{header}.{encoded(claims)}"
    signature = base64.urlsafe_b64encode(hmac.digest(key.secret, signed.encode(), "sha256")).rstrip(b"=").decode()
    return f"{signed}.{signature}"


def told(face, path="/stats", **headers):
    """Status, error code and challenge of a GET with these headers."""
    status, answered, body = face.request("GET", path, headers=headers)
    error = json.loads(body).get("error", {})
    return status, error.get("code"), answered.get("www-authenticate")


# -- what a token says


def test_a_token_looks_like_the_documents_say_and_lasts_a_day(face, clock):
    answer = face.call("token.issue", agent_id="ann")
    header, _, signature = answer["token"].split(".")
    assert json.loads(base64.urlsafe_b64decode(header + "==")) == {
        "alg": "HS256",
        "kid": next(iter(face.mux.tokens._keys.values())).kid,
        "typ": "JWT",
    }
    assert answer["token"].startswith("eyJ")
    assert len(signature) == 43
    iat = clock.now_ms() // 1000
    assert claims_of(answer["token"]) == {
        "sub": "ann",
        "lic": "local",
        "tier": "enterprise",
        "iat": iat,
        "exp": iat + 86_400,
        "jti": answer["jti"],
        "epoch": 0,
    }
    assert answer["agent_id"] == "ann"
    assert claims_of(face.call("token.issue")["token"])["sub"] == "*"


def test_the_longest_name_fits_into_a_token(direct):
    for name in ("\U0001f980" * 120, "ü" * 120, '"' * 120):
        token = issued(direct, name)
        assert len(token) <= MOST_TOKEN
        assert direct.mux.tokens.admit(f"Bearer {token}").agent == name


@pytest.mark.parametrize(("name", "shown"), [("token.issue", {}), ("token.obtain", {"license_key": KEY})])
def test_a_reserved_name_is_no_agent(face, mux, monkeypatch, name, shown):
    monkeypatch.setattr(mux.entitlement, "recognize", lambda key: "lic-1")
    refusal(face, "reserved_name", name, agent_id="*", **shown)


# -- when one is needed


@REQUIRED
def test_without_a_token_only_health_answers_and_obtaining_is_looked_at__S6(face):
    for operation in CALLED:
        if operation.name in ("health", "token.obtain"):
            continue
        face.token = None if not operation.owner else "nonsense"
        code = "token_missing" if not operation.owner else "token_invalid"
        refusal(face, code, operation.name, **dict(operation.example))
    face.token = None
    assert face.call("health")["status"] == "ok"
    refusal(face, "license_mismatch", "token.obtain", license_key=KEY)


@REQUIRED
def test_what_is_no_call_asks_for_a_token_too__S6(http):
    for path in ("/events", "/openapi.json", "/metrics", "/msg/poll?agent_id=ann", "/msg/poll"):
        assert told(http, path) == (401, "token_missing", "Bearer")
        status, headers, _ = http.request("HEAD", path)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    sent = {"Content-Type": "application/json", "Accept": "application/json"}
    status, headers, body = post_mcp(http.port, json.dumps(message).encode(), sent)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert json.loads(body)["error"]["data"]["code"] == "token_missing"


@REQUIRED
def test_a_large_body_needs_its_token_before_it_is_read__S6(http, program):
    """Else a few hundred strangers could have 16 MiB each kept for them."""
    token = issued(http)
    for shown, code in ((None, "token_missing"), ("nonsense", "token_invalid")):
        bearer = [f"Authorization: Bearer {shown}"] if shown else []
        for framing in ("Content-Length: 3000000", "Transfer-Encoding: chunked"):
            with Raw(http.port) as raw:
                raw.send(request("POST", "/document/create", *bearer, framing))
                answer = raw.answer()
            assert (answer.status, answer.code) == (401, code)
            assert answer.headers["www-authenticate"].startswith("Bearer")
    environ = {"STONEMUX_PORT": str(http.port), "STONEMUX_TLS_CERT": CERT if OVER_TLS else ""}
    with Client(token="nonsense", timeout=2, environ=environ) as client:
        with pytest.raises(MuxError) as caught:  # also where the rest of the body is no longer taken
            client.document_create(content="x" * 9_000_000)
        assert caught.value.code == "token_invalid"
    http.token = token
    assert http.call("document.create", content="x" * 3_000_000)["document"]["size"] == 3_000_000
    audit.enter_noted(program.mux, all_of_it=True)
    noted = [json.loads(line) for line in http.call("audit.export").splitlines()[:-1]]
    refused = [entry["outcome"] for entry in noted if entry["action"] == "http.request"]
    assert refused[:2] == ["token_missing"] * 2
    assert set(refused[2:]) == {"token_invalid"}  # over TLS the client may have to try twice


@REQUIRED
def test_with_a_token_everything_answers_as_ever(face):
    face.token = issued(face)
    join(face, "ann", "bob")
    face.call("msg.send", from_="ann", to="bob", content="x")
    assert [m["content"] for m in face.call("msg.poll", agent_id="bob", timeout=0)["messages"]] == ["x"]


@REQUIRED
def test_a_token_counts_in_the_header_alone__S6(http):
    token = issued(http)
    for name in ("access_token", "token", "authorization"):
        assert told(http, f"/stats?{name}={token}")[1] == "token_missing"
    assert told(http, "/stats", Authorization=f"Bearer {token}")[0] == 200
    assert told(http, "/stats", Authorization=f"bearer {token}")[0] == 200
    for odd in (f"Basic {token}", token, "Bearer", ""):
        assert told(http, "/stats", Authorization=odd)[:2] == (401, "token_missing")
    status, _, body = http.request("GET", "/health", headers={"Authorization": "Bearer nonsense"})
    assert status == 200
    assert b"Bearer" not in body


@REQUIRED
def test_a_refused_token_says_so_in_the_challenge__S5(http):
    assert told(http, "/stats", Authorization="Bearer x")[2] == 'Bearer error="invalid_token"'


def test_auto_asks_beyond_loopback_and_not_on_it(open_program):
    assert not open_program().mux.tokens.required
    for host in ("0.0.0.0", "192.0.2.7", "::"):
        assert Tokens(open_program().clock, open_program(host=host).settings).required
    assert not Tokens(open_program().clock, open_program(host="0.0.0.0", auth_tokens="off").settings).required


def test_a_token_that_is_shown_without_need_is_still_judged(face):
    join(face, "ann", "bob")
    face.token = issued(face, "ann")
    refusal(face, "agent_mismatch", "msg.send", from_="bob", to="ann", content="x")
    face.token = "nonsense"
    refusal(face, "token_invalid", "msg.send", from_="bob", to="ann", content="x")


@pytest.mark.settings(auth_tokens="off")
def test_off_looks_at_none_and_the_owner_is_still_the_owner(face):
    join(face, "ann", "bob")
    face.token = "nonsense"
    face.call("msg.send", from_="bob", to="ann", content="x")
    refusal(face, "owner_only", "token.issue")
    face.token = None
    assert face.call("token.issue")["token"]


# -- the forgeries


@REQUIRED
def test_fault_40_what_is_no_token_of_ours_is_refused(face, clock, program):
    good = issued(face, "ann")
    header, body, signature = good.split(".")
    none = encoded({"alg": "none", "typ": "JWT"})
    spaced = base64.urlsafe_b64encode(base64.urlsafe_b64decode(header + "==").replace(b",", b", ")).decode().rstrip("=")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(signature[-1])
    aliases = [signature[:-1] + alphabet[last // 4 * 4 + n] for n in range(4) if n != last % 4]
    for alias in aliases:  # they decode to the same bytes
        assert base64.urlsafe_b64decode(alias + "=") == base64.urlsafe_b64decode(signature + "=")
    forged = [
        f"{none}.{body}.",
        f"{none}.{body}.{signature}",
        f"{spaced}.{body}.{signature}",
        *(f"{header}.{body}.{alias}" for alias in aliases),
        f"{header}.{encoded(claims_of(good) | {'sub': 'bob'})}.{signature}",
        *(good + junk for junk in ("=", ".", "!", "A")),
        f"{header}.{body}=.{signature}",
        f"{header}.{body}",
        "A" * (MOST_TOKEN + 1),
        "..",
    ]
    told = set()
    for token in forged:
        face.token = token
        told.add(refusal(face, "token_invalid", "agent.heartbeat", agent_id="ann").message)
    assert len(told) == 1, "one text for all, so that it tells nothing"
    face.token = good
    join(face, "ann")


@REQUIRED
def test_fault_40_a_token_runs_out_and_setting_the_clock_back_does_not_revive_it__S4(face, clock, program):
    face.token = issued(face, "ann")
    join(face, "ann")
    clock.advance(DAY_MS - clock.now_ms() % 1000 - 1)
    face.call("agent.heartbeat", agent_id="ann")
    clock.advance(1)
    refusal(face, "token_expired", "agent.heartbeat", agent_id="ann")
    face.__exit__(None, None, None)
    program.close()
    clock._offset -= DAY_MS  # somebody sets the machine's clock back; what was seen is remembered
    program.open()
    face.mux = program.mux
    face.__enter__()
    refusal(face, "token_expired", "agent.heartbeat", agent_id="ann")
    assert clock.now_ms() >= EPOCH_MS + DAY_MS


@REQUIRED
def test_fault_40_a_revoked_token_and_another_agents_are_refused__S3(face):
    first, second = issued(face, "ann"), issued(face, "ann")
    face.token = first
    join(face, "ann")
    face.token = None
    assert face.call("token.revoke", jti=claims_of(first)["jti"]) == {"revoked": claims_of(first)["jti"]}
    for token, code in ((first, "token_revoked"), (second, None)):
        face.token = token
        if code:
            refusal(face, code, "agent.heartbeat", agent_id="ann")
        else:
            face.call("agent.heartbeat", agent_id="ann")
    refusal(face, "agent_mismatch", "agent.heartbeat", agent_id="bob")


@REQUIRED
def test_a_token_from_the_future_is_not_yet_good__S4(face, clock):
    now = clock.now_ms() // 1000
    claims = claims_of(issued(face, "ann"))
    for ahead, code in ((60, None), (61, "token_not_yet_valid")):
        face.token = resigned(face.mux, claims | {"iat": now + ahead})
        if code:
            refusal(face, code, "stats")
        else:
            assert face.call("stats")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(max_size=300), st.binary(max_size=300).map(lambda data: data.decode("latin-1"))))
def test_no_text_but_a_token_is_admitted(mux, text):
    with pytest.raises(MuxError) as caught:
        mux.tokens.admit(f"Bearer {text}")
    assert caught.value.code == "token_invalid"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_changed_token_is_admitted(direct, data):
    good = issued(direct, "ann")
    at = data.draw(st.integers(0, len(good) - 1))
    put = data.draw(st.one_of(st.characters(), st.sampled_from("AZaz09-_.=")))
    changed = good[:at] + put + good[at + 1 :]
    if changed == good:
        return
    with pytest.raises(MuxError) as caught:
        direct.mux.tokens.admit(f"Bearer {changed}")
    assert caught.value.code == "token_invalid"


# -- acting as an agent

ACTS = {
    *((name, "from") for name in ("agent.notify", "msg.send", "msg.broadcast")),
    *((f"agent.{verb}", "agent_id") for verb in ("register", "deregister", "heartbeat")),
    *((f"msg.{verb}", "agent_id") for verb in ("poll", "ack", "nack", "extend", "dead", "requeue")),
    *((f"task.{verb}", "agent_id") for verb in ("claim", "complete", "extend", "release")),
    *((f"channel.{verb}", "agent_id") for verb in ("join", "leave")),
    ("task.post", "posted_by"),
    *((f"task.{verb}", "by") for verb in ("cancel", "requeue")),
    *((f"state.{verb}", "updated_by") for verb in ("set", "delete")),
    ("state.watch", "agent_id"),
    ("channel.create", "created_by"),
}


def test_the_table_says_which_parameters_act():
    said = {(operation.name, param.name) for operation in OPERATIONS for param in operation.acting}
    assert said >= ACTS
    naming = {"agent.get", "agent.notify", "task.dispatch", "msg.list", "msg.search", "task.list", "channel.list"}
    naming.add("webhook.attempts")
    assert not {name for name, param in said if param == "agent_id"} & (naming | {"events.stream", "events.list"})
    for operation in OPERATIONS:
        assert not operation.actor or operation.by_name[operation.actor].acts, operation.name


@REQUIRED
def test_a_bound_token_acts_as_its_agent_alone__S2(face):
    face.token = issued(face)
    join(face, "writer", "researcher", "ann")
    face.token = issued(face, "ann")
    for operation in CALLED:
        for param in operation.acting:
            given = dict(operation.example) | ({"timeout": 0} if "timeout" in operation.by_name else {})
            error = refusal(face, "agent_mismatch", operation.name, **given | {param.name: "writer"})
            assert (error.facts["parameter"], error.facts["agent_id"]) == (param.name, "ann")


@REQUIRED
def test_a_bound_token_says_who_acts_where_a_call_does_not__S2(http):
    http.token = issued(http)
    join(http, "bob")
    http.token = issued(http, "ann")

    def over_http(method, path, body=None):
        headers = {"Authorization": f"Bearer {http.token}", "Content-Type": "application/json"}
        status, _, answer = http.request(method, path, None if body is None else json.dumps(body).encode(), headers)
        assert status == 200, answer
        return json.loads(answer)

    assert over_http("POST", "/agent/register", {})["agent"]["id"] == "ann"
    assert over_http("POST", "/agent/heartbeat", {"agent_id": None})["agent_id"] == "ann"
    sent = over_http("POST", "/msg/send", {"to": "bob", "content": "x"})["message_id"]
    assert http.call("msg.list", agent_id="ann")["messages"][0]["id"] == sent
    assert over_http("GET", "/inbox/list") == {"items": [], "unread": 0}
    assert over_http("POST", "/task/post", {"description": "x"})["task"]["posted_by"] == "ann"
    assert over_http("POST", "/task/claim", {})["task"]["claimed_by"] == "ann"
    assert over_http("POST", "/state/set", {"key": "k", "value": "v"})["updated_by"] == "ann"


@REQUIRED
def test_a_bound_token_may_name_others__S2(face):
    face.token = issued(face)
    join(face, "ann", "bob")
    face.token = issued(face, "ann")
    assert face.call("agent.get", agent_id="bob")["agent"]["id"] == "bob"
    assert face.call("msg.list", agent_id="bob")["messages"] == []
    face.call("msg.send", from_="ann", to="bob", content="x")


@REQUIRED
def test_what_a_bound_token_reads_by_id_is_what_any_token_reads__S2(face):
    """Only a mailbox is its agent's own: what stands in the channels is for all, whoever asks."""
    face.token = issued(face)
    join(face, "ann", "bob", "cat")
    sent = face.call("msg.send", from_="ann", to="bob", content="for bob")["message_id"]
    task = face.call("task.post", description="x", posted_by="ann")["task_id"]
    claim = face.call("task.claim", agent_id="bob")
    document = face.call("document.create", content="text", created_by="ann")["document"]["id"]
    hook = face.call("webhook.add", url="http://127.0.0.1:9/hook")["webhook"]["id"]

    def note(tx):
        tx.run(
            "insert into attempt (webhook, agent_id, wire_id, kind, subject, try, at, ms, status, error, retry_at) "
            "values (?, null, 'msg_1', 'task_posted', 1, 1, ?, 5, 200, null, null)",
            hook,
            tx.now,
        )

    face.mux.store.write(note)
    asked = (
        ("msg.status", {"id": sent}),
        ("msg.list", {"agent_id": "bob"}),
        ("msg.search", {"q": "bob", "agent_id": "bob"}),
        ("channel.messages", {"channel": "agent-bob"}),
        ("task.get", {"task_id": task}),
        ("document.get", {"id": document}),
        ("webhook.list", {}),
        ("webhook.attempts", {"id": hook}),
        ("webhook.attempts", {"agent_id": "bob"}),
    )
    answers = [face.call(name, **given) for name, given in asked]
    assert answers[7]["attempts"], "attempts at an endpoint"
    face.token = issued(face, "cat")
    assert [face.call(name, **given) for name, given in asked] == answers
    assert claim["claim_token"] not in json.dumps(answers), "which is all that lets another act as the claimant"
    for name in ("msg.dead", "inbox.list", "msg.poll"):
        refusal(face, "agent_mismatch", name, agent_id="bob")


@REQUIRED
def test_a_bound_token_dispatches_to_others__S2(face):
    face.token = issued(face)
    join(face, "ann", "bob")
    face.token = issued(face, "ann")
    task_id = face.call("task.post", description="x", posted_by="ann")["task_id"]
    (result,) = face.call("task.dispatch", task_id=task_id, agent_id="bob")["results"]
    assert result["agent"] in ("bob", {"id": "bob"}) or "bob" in str(result["agent"])


@REQUIRED
def test_a_bound_token_opens_no_other_agents_inbox__S2(face):
    face.token = issued(face)
    join(face, "ann", "bob")
    sent = face.call("msg.send", from_="ann", to="bob", content="for bob")["message_id"]
    item = f"inbox-{sent}-bob"
    assert face.call("inbox.show", id=item)["item"]["content"] == "for bob"
    face.token = issued(face, "bob")
    assert face.call("inbox.show", id=item)["item"]["content"] == "for bob"
    face.token = issued(face, "ann")
    for item_id in (item, "inbox-999-bob"):
        error = refusal(face, "agent_mismatch", "inbox.show", id=item_id)
        assert error.facts["agent_id"] == "ann"
    refusal(face, "message_not_found", "inbox.update", agent_id="ann", ids=[item], status="read")


@REQUIRED
def test_who_acts_may_be_left_out_and_is_then_the_tokens_agent(face):
    face.token = issued(face)
    join(face, "ann", "bob")
    face.token = issued(face, "ann")
    assert face.call("state.set", key="k", value="v")["updated_by"] == "ann"
    face.call("agent.notify", agent_id="bob", type="t", content="x")
    face.token = issued(face, "bob")
    (message,) = face.call("msg.poll", agent_id="bob", timeout=0)["messages"]
    assert message["from"] == "ann", "nobody speaks for the daemon"


def test_over_mcp_a_bound_token_says_who_speaks(mux):
    with OverMcp(mux) as face:
        join(face, "ann", "bob")
        face.token = issued(face, "ann")
        assert face.call("msg.send", to="bob", content="x")["recipient_status"]
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "mux_poll", "arguments": {}}}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {face.token}"}
        headers["X-Stonemux-Agent"] = "bob"
        status, _, body = post_mcp(face.port, json.dumps(message).encode(), headers)
        assert (status, json.loads(body)["error"]["data"]["code"]) == (403, "agent_mismatch")
        refused = face._call_tool("mux_send", {"from": "bob", "to": "ann", "content": "x"})[1]
        assert refused["isError"]
        assert "unread" not in json.loads(refused["content"][0]["text"])


def test_an_idempotency_key_belongs_to_the_tokens_agent__P1(face):
    join(face, "ann", "bob")
    sent = {"key": "k", "value": "v", "idempotency_key": "once"}
    answers = []
    for agent_id in ("ann", "bob", "ann"):
        face.token = issued(face, agent_id)
        answers.append(face.call("state.set", **sent))
    assert answers[0] == answers[2] != answers[1]
    assert face.replayed


# -- the owner


@pytest.mark.parametrize("name", [operation.name for operation in CALLED if operation.owner])
def test_what_is_the_owners_is_nobody_elses(face, name):
    for token in (issued(face), issued(face, "ann")):
        face.token = token
        refusal(face, "owner_only", name, **dict(BY_NAME[name].example))
    face.token = None
    assert bearer_of(face, BY_NAME[name]) == f"Bearer {face.mux.tokens.owner}"
    if name == "license.command":
        refusal(face, "sigil_refused", name, **dict(BY_NAME[name].example))
    else:
        face.call(name, **dict(BY_NAME[name].example))


def test_the_owner_may_act_as_anybody(face):
    face.token = face.mux.tokens.owner
    join(face, "ann", "bob")
    face.call("msg.send", from_="bob", to="ann", content="x")
    face.token = face.mux.tokens.owner[:-1] + "x"
    refusal(face, "token_invalid", "stats")


@pytest.mark.parametrize(
    ("listening", "asked", "shown"),
    [
        ("127.0.0.1:3392", "127.0.0.1:3392", True),
        ("127.0.0.1:3392", "localhost:3392", True),
        ("localhost:3392", "127.0.0.1:3392", True),
        ("[::1]:3392", "[::1]:3392", True),
        ("0.0.0.0:3392", "127.0.0.1:3392", True),
        ("[::]:3392", "[::1]:3392", True),
        ("127.0.0.1:3392", "127.0.0.1:3393", False),
        ("127.0.0.1:3392", "127.0.0.2:3392", False),
        ("127.0.0.1:3392", "[::1]:3392", False),
        ("0.0.0.0:3392", "[::1]:3392", False),
        ("0.0.0.0:3392", "example.com:3392", False),
        ("", "127.0.0.1:3392", False),
    ],
)
def test_the_owners_token_is_shown_only_where_the_daemon_listens_that_it_belongs_to(tmp_path, listening, asked, shown):
    """Anybody on the machine may listen at another address, and would be the owner with it."""
    directory = DataDir(tmp_path / "data")
    (directory.path / OWNER_TOKEN).write_text("owner_x\n")
    (directory.path / ADDRESS).write_text(f"{listening}\n")
    if shown:
        assert read_owner_token(directory.path, asked) == "owner_x"
    else:
        with pytest.raises(MuxError, match="--data-dir" if listening else "of an earlier version: restart it"):
            read_owner_token(directory.path, asked)
    directory.close()
    assert read_owner_token(directory.path, asked) is None


def test_localhost_is_where_a_daemon_listens_that_is_told_so(monkeypatch):
    """For many systems it is ::1 first, where anybody may listen while the daemon has 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, *_: [(*ANY, "", (host.decode(), port))])
        Pool("LocalHost", listener.getsockname()[1]).take().close()


# -- keys


@REQUIRED
def test_rotation_keeps_the_old_key_for_a_day__S1(face, clock, restart):
    old = issued(face, "ann")
    clock.advance(1000)
    answer = face.call("token.rotate")
    assert answer == {"rotated": True, "old_until": rfc3339(clock.now_ms() + DAY_MS)}
    new = issued(face, "ann")
    assert old.split(".")[0] != new.split(".")[0]
    face.token = old
    join(face, "ann")
    restart()
    face.call("agent.heartbeat", agent_id="ann")
    face.token = new
    face.call("agent.heartbeat", agent_id="ann")


@pytest.mark.settings(auth_tokens="required", token_ttl=7 * 86_400)
def test_a_rotated_key_ends_after_a_day_whatever_its_tokens_say__S1(face, clock, program, restart):
    old = issued(face, "ann")
    face.token = old
    join(face, "ann")
    face.token = None
    face.call("token.rotate")
    clock.advance(DAY_MS - 1)
    face.call("token.rotate")  # gives the older key no more time
    face.token = old
    face.call("agent.heartbeat", agent_id="ann")
    clock.advance(1)
    refusal(face, "token_expired", "agent.heartbeat", agent_id="ann")
    face.token = None
    face.call("token.rotate")
    assert len(program.mux.tokens._keys) == 3, "the first is gone, from memory too"
    face.token = old
    restart()
    refusal(face, "token_invalid", "agent.heartbeat", agent_id="ann")
    with program.store.read() as rx:
        assert rx.one("select count(*) from token_key")[0] == 3, "and from the database"


@REQUIRED
def test_rotate_now_ends_all_tokens__S1(face, restart):
    old = issued(face, "ann")
    assert face.call("token.rotate", now=True) == {"rotated": True}
    face.token = old
    refusal(face, "token_invalid", "stats")
    restart()
    refusal(face, "token_invalid", "stats")
    face.token = issued(face, "ann")
    assert face.call("stats")


@REQUIRED
def test_tokens_and_revocations_outlive_a_restart__S1__S3(face, restart):
    kept, revoked = issued(face, "ann"), issued(face, "ann")
    face.call("token.revoke", jti=claims_of(revoked)["jti"])
    bobs = issued(face, "bob")
    face.call("token.revoke", agent_id="bob")
    restart()
    for token, code in ((kept, None), (revoked, "token_revoked"), (bobs, "token_revoked")):
        face.token = token
        if code:
            refusal(face, code, "stats")
        else:
            face.call("stats")


def test_a_database_that_went_back_in_time_revives_no_revoked_token(program):
    face = Direct(program.mux)
    token = issued(face, "ann")
    program.close()
    head = program.directory.path / "head.json"
    old = json.loads(head.read_text())
    head.write_text(json.dumps(old | {"event_seq": old["event_seq"] + 10}))
    program.open(accept_rollback=True)
    face = Direct(program.mux)
    face.token = token
    refusal(face, "token_invalid", "stats")


@REQUIRED
def test_raising_an_agents_epoch_ends_all_its_tokens_and_no_others__S3(face):
    anns, bobs, anybodys = issued(face, "ann"), issued(face, "bob"), issued(face)
    assert face.call("token.revoke", agent_id="ann") == {"revoked": "ann", "epoch": 1}
    for token, code in ((anns, "token_revoked"), (bobs, None), (anybodys, None), (issued(face, "ann"), None)):
        face.token = token
        if code:
            refusal(face, code, "stats")
        else:
            face.call("stats")
    face.token = None
    assert face.call("token.revoke", agent_id="*")["epoch"] == 1
    face.token = anybodys
    refusal(face, "token_revoked", "stats")


def test_a_revocation_names_one_thing(face):
    refusal(face, "missing_field", "token.revoke")
    refusal(face, "invalid_field", "token.revoke", jti="x", agent_id="ann")


def test_revocations_and_keys_are_forgotten_when_their_tokens_have_run_out(program):
    face = Direct(program.mux)
    face.call("token.revoke", jti="x")
    face.call("token.rotate")
    program.clock.advance(DAY_MS - 1)
    program.timekeeper.tick()
    with program.store.read() as rx:
        assert rx.one("select count(*) from token_revoked")[0] == 1
        assert rx.one("select count(*) from token_key")[0] == 2
    program.clock.advance(30 * DAY_MS + 1)
    program.timekeeper.tick()
    with program.store.read() as rx:
        assert rx.one("select count(*) from token_revoked")[0] == 0
        assert rx.one("select count(*) from token_key")[0] == 1


def test_judging_a_token_asks_the_database_nothing__S3(mux, monkeypatch):
    face = Direct(mux)
    face.token = issued(face, "ann")

    def fail(*_):
        raise AssertionError("a statement")

    monkeypatch.setattr(mux.store, "read", fail)
    monkeypatch.setattr(mux.store, "write", fail)
    assert face.call("health")
    assert mux.tokens.admit(f"Bearer {face.token}").agent == "ann"


def test_remembered_tokens_are_few(mux, monkeypatch):
    monkeypatch.setattr(tokens, "MOST_SEEN", 3)
    for n in range(10):
        mux.tokens.admit(f"Bearer {mux.tokens.make(f'a{n}', lic='local', tier='pro').token}")
        assert len(mux.tokens._seen) <= 3


def test_what_is_remembered_of_a_token_has_a_bound(mux):
    """A header may have 32 KiB of blanks before the token, each time another number of them."""
    token = mux.tokens.make("ann", lic="local", tier="pro").token
    assert mux.tokens.admit(f"Bearer   {token}").agent == "ann"
    for shown in (token, mux.tokens.owner):
        with pytest.raises(MuxError) as caught:
            mux.tokens.admit(f"Bearer {' ' * MOST_TOKEN}{shown}")
        assert caught.value.code == "token_invalid"
    assert max(map(len, mux.tokens._seen)) <= MOST_TOKEN


def test_a_revocation_during_a_verification_is_not_missed(mux, once_after):
    made = mux.tokens.make("ann", lic="local", tier="pro")
    once_after(mux.tokens, "_is_revoked", lambda: mux.tokens.revoke(made.jti, made.expires_at))
    mux.tokens.admit(f"Bearer {made.token}")
    with pytest.raises(MuxError) as caught:
        mux.tokens.admit(f"Bearer {made.token}")
    assert caught.value.code == "token_revoked"


@pytest.fixture
def once_after(monkeypatch):
    """Puts a rival act after the first call of a method."""

    def put(thing, name, act):
        real, done = getattr(thing, name), []

        def instead(*given):
            found = real(*given)
            if not done:
                done.append(1)
                act()
            return found

        monkeypatch.setattr(thing, name, instead)

    return put


# -- obtaining one


def test_asking_for_tokens_is_limited_to_ten_a_minute__S5(face, clock):
    asked = {"license_key": KEY}
    for _ in range(10):
        refusal(face, "license_mismatch", "token.obtain", **asked)
        clock.advance(1000)
    error = refusal(face, "rate_limited", "token.obtain", **asked)
    assert (error.failure.http, error.retry_after, error.facts["limit"]) == (429, 50, 10)
    clock.advance(49_999)
    refusal(face, "rate_limited", "token.obtain", **asked)
    clock.advance(1)
    refusal(face, "license_mismatch", "token.obtain", **asked)
    assert refusal(face, "rate_limited", "token.obtain", **asked).retry_after == 1
    assert "keep using the token you have" in error.message


# -- what goes on for a while


@REQUIRED
def test_a_stream_ends_when_its_token_is_revoked__S3(http, mux):
    token = issued(http, "ann")
    with Reader(http.port, "/events", f"Authorization: Bearer {token}") as reader:
        reader.begin()
        http.call("token.revoke", jti=claims_of(token)["jti"])
        frame = reader.frame()
        assert (frame.id, frame.event, frame.data["code"]) == (None, "auth_expired", "token_revoked")
        assert reader.has_ended()
    eventually(lambda: mux.waiters.count == 0)


@REQUIRED
def test_a_stream_ends_when_its_token_runs_out_and_others_go_on__S3(http, mux, clock):
    first = issued(http, "ann")
    clock.advance(3_600_000)
    second = issued(http, "ann")
    with (
        Reader(http.port, "/events", f"Authorization: Bearer {first}") as short,
        Reader(http.port, "/events", f"Authorization: Bearer {second}") as long,
    ):
        short.begin()
        long.begin()
        clock.advance(DAY_MS - 3_600_000)
        http.server.streamer.wake()
        frame = short.frame()
        assert (frame.event, frame.data["code"]) == ("auth_expired", "token_expired")
        assert short.has_ended()
        http.token = second
        join(http, "ann")
        assert long.frame().event == "channel_created"


@pytest.mark.settings(auth_tokens="required", token_ttl=7 * 86_400)
def test_a_stream_ends_when_the_key_of_its_token_does__S1__S3(http, mux, clock):
    old = issued(http, "ann")
    with Reader(http.port, "/events", f"Authorization: Bearer {old}") as reader:
        reader.begin()
        http.call("token.rotate")
        new = issued(http, "ann")
        clock.advance(DAY_MS - 1)
        http.server.streamer.wake()
        http.token = new
        join(http, "ann")
        assert [frame.event for frame in reader.frames(2)] == ["channel_created", "agent_registered"]
        clock.advance(1)
        http.server.streamer.wake()
        frame = reader.frame()
        assert (frame.event, frame.data["code"]) == ("auth_expired", "token_expired")
        assert reader.has_ended()


@REQUIRED
def test_a_parked_call_with_a_good_token_ends_like_any_other(face, clock, background):
    owner = Direct(face.mux)
    for token in (issued(owner, "ann"), face.mux.tokens.owner):
        face.token = token
        join(face, "ann")
        waiting = background(face.call, "msg.poll", agent_id="ann", timeout=5)
        clock.until_parked(1)
        clock.advance(5_000)
        assert waiting.result(5) == {"messages": []}


@REQUIRED
@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_a_parked_call_ends_when_its_token_does__S3(face, clock, background, how):
    owner = Direct(face.mux)
    face.token = issued(owner, "ann")
    join(face, "ann")
    for name, asked in (
        ("msg.poll", {"agent_id": "ann"}),
        ("task.claim", {"agent_id": "ann"}),
        ("state.watch", {"key": "k"}),
    ):
        face.token = issued(owner, "ann")
        clock.advance(DAY_MS - 10_000 if how == "expired" else 0)
        waiting = background(face.call, name, timeout=60, **asked)
        clock.until_parked(1)
        if how == "revoked":
            owner.call("token.revoke", jti=claims_of(face.token)["jti"])
        else:
            clock.advance(10_000)
        error = waiting.exception(5)
        assert isinstance(error, MuxError)
        assert error.code == f"token_{how}"
        assert face.mux.waiters.count == 0


@REQUIRED
def test_over_a_unix_socket_a_token_is_asked_for_too(open_program, tmp_path):
    path = tmp_path / "s"
    program = open_program(auth_tokens="required", unix_socket=str(path))
    with OverHttp(program.mux) as face:

        def status(**headers):
            connection = HTTPConnection("localhost")
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(path))
            connection.request("GET", "/stats", headers=headers)
            answer = connection.getresponse().status
            connection.close()
            return answer

        assert status() == 401
        assert status(Authorization=f"Bearer {issued(face)}") == 200
