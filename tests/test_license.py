"""Licenses: documents, issuing, activating, expiry, commands, seats, and a server that cannot change anything."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import stat
import threading
from contextlib import closing, contextmanager

import pytest
from faces import Direct, join, refusal
from licensed import claims_of, issue, issued, put
from raw import eventually
from streams import Reader

from stonemux import activation, addresses, cli, license, licenseclient, licenseserver, oneshot
from stonemux.clock import Clock, rfc3339
from stonemux.config import Settings
from stonemux.entitlement import Entitlement
from stonemux.errors import MuxError
from stonemux.issuer import Issuer
from stonemux.licensekey import Key
from stonemux.record import replace
from stonemux.telemetry import Telemetry

DAY_MS = 86_400_000


@pytest.fixture
def licensed(face, program):
    """Activates a license with these terms; returns its key and document."""

    def put_one(tier="pro", **terms):
        key, document = issue(program, tier, **terms)
        put(face, document)
        return key, document

    return put_one


# -- the document


def test_a_license_says_what_it_grants_and_who_says_so(face, licensed, clock):
    end = clock.now_ms() + DAY_MS
    key, document = licensed("pro", seats=5, not_after=end)
    told = face.call("license.status")
    assert (told["tier"], told["seats"]) == ("pro", 5)
    assert told["license"] == {
        "lic_id": document["lic_id"],
        "tier": "pro",
        "seats": 5,
        "issued": rfc3339(clock.now_ms()),
        "not_after": rfc3339(end),
        "issuer_key_id": document["issuer_key_id"],
        "require_tokens": False,
        "status": "active",
    }
    assert key not in json.dumps(told)
    assert key not in json.dumps(document)


CHANGES = (
    {"tier": "enterprise"},
    {"seats": None},
    {"not_after": None},
    {"lic_id": "lic-000000000000"},
    {"key_sha256": "0" * 64},
    {"revocation_key": "0" * 64},
    {"signature": "0" * 128},
    {"more": 1},
)


@pytest.mark.parametrize("changed", CHANGES, ids=lambda changed: next(iter(changed)))
def test_a_changed_license_counts_for_nothing_and_is_told_of_loudly(direct, program, clock, changed, caplog):
    _, document = issue(program, "pro", seats=5, not_after=clock.now_ms() + DAY_MS)
    told = put(direct, document | changed)
    assert (told["tier"], told["seats"], told["license"]) == ("free", 2, None)
    assert "is not valid" in told["problem"]
    assert any(
        record.levelname == "ERROR" and "Running on the free tier" in record.message for record in caplog.records
    )


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", "{}", "null", "[" * 5000, '{"lic_id": 1}', "\0", "9" * 20_000, '{"tier": NaN}', '{"seats": true}'],
    ids=range(11),
)
def test_whatever_stands_in_the_file_the_program_runs_as_free(direct, text):
    assert put(direct, text)["tier"] == "free"
    assert direct.call("health")["tier"] == "free"


def test_each_field_of_a_license_is_checked(program):
    _, document = issue(program)
    trusted = program.mux.entitlement.trusted()
    odd = (None, 1, 1.5, True, "", "x", [], {})
    for name in document:
        for value in odd:
            if (name, value) in (("seats", None), ("seats", 1), ("not_after", None), ("require_tokens", True)):
                continue
            with pytest.raises(MuxError) as caught:
                license.read_license(document | {name: value}, trusted)
            assert caught.value.code == "license_invalid"


def test_a_foreign_issuer_counts_once_it_is_trusted(direct, program, open_program):
    foreign = open_program()
    foreign.clock._ids = 1000
    _, document = issue(foreign)
    assert "license.trusted_issuers" in put(direct, document)["problem"]
    public = Issuer(foreign.path, foreign.clock).public.hex()
    trusting = open_program(trusted_issuers=(public,))
    assert put(Direct(trusting.mux), document)["tier"] == "pro"


def test_without_a_license_the_settings_decide_and_a_license_server_means_free(open_program):
    for given, tier in (
        ({}, "enterprise"),
        ({"default_tier": "pro"}, "pro"),
        ({"license_server": "https://license.example.org"}, "free"),
    ):
        assert Direct(open_program(**given).mux).call("health")["tier"] == tier


# -- what it grants, on every face


def test_an_expired_license_means_free_from_its_last_moment_on(face, licensed, program, clock):
    licensed("enterprise", not_after=clock.now_ms() + DAY_MS)
    join(face, "ann", "bob", "cat")
    clock.advance(DAY_MS - 1)
    program.timekeeper.tick()
    face.call("task.post", description="x", posted_by="ann")
    clock.advance(1)
    program.timekeeper.tick()
    assert face.call("license.status")["license"]["status"] == "expired"
    refusal(face, "upgrade_required", "task.post", description="x", posted_by="ann")


def test_downgrading_hides_and_deletes_nothing__L1(face, licensed, program, clock):
    licensed("enterprise", not_after=clock.now_ms() + DAY_MS)
    join(face, "ann", "bob", "cat")
    face.call("msg.send", from_="ann", to="bob", content="x", priority=5)
    task = face.call("task.post", description="x", posted_by="ann")["task_id"]
    face.call("state.set", key="k", value="v")
    clock.advance(DAY_MS)
    program.timekeeper.tick()
    assert len(face.call("agent.discover", include_stale=True)["agents"]) == 3
    assert face.call("agent.register", agent_id="cat")["created"] is False
    error = refusal(face, "agent_limit", "agent.register", agent_id="dan")
    assert (error.facts["limit"], error.facts["tier"]) == (2, "free")
    assert face.call("msg.poll", agent_id="bob", timeout=0)["messages"][0]["priority"] == 5
    put(face, issue(program, "pro")[1])
    assert face.call("task.get", task_id=task)["task"]["status"] == "pending"
    assert face.call("state.get", key="k")["value"] == "v"


def test_concurrent_registrations_never_exceed_the_seats_of_a_license__A2(face, licensed, background):
    licensed("pro", seats=3)
    attempts = [background(face.call, "agent.register", agent_id=f"a{n}") for n in range(8)]
    outcomes = [attempt.exception(5) for attempt in attempts]
    assert sum(error is None for error in outcomes) == 3
    refused = {"limit": 3, "tier": "pro", "needed": "pro", "needed_seats": 4}
    assert all((error.code, error.facts) == ("agent_limit", refused) for error in outcomes if error)
    assert "or activate a license for more agents" in next(error.message for error in outcomes if error)


def test_a_stream_ends_when_its_tier_does(http, program, clock):
    put(http, issue(program, "pro", not_after=clock.now_ms() + DAY_MS)[1])
    with Reader(http.port, "/events") as reader:
        reader.begin()
        clock.advance(DAY_MS)
        program.timekeeper.tick()
        frame = reader.frame()
        assert (frame.event, frame.data["tier"], frame.data["needed"]) == ("upgrade_required", "free", "pro")
        assert reader.has_ended()


# -- tokens for its key


def test_the_key_of_the_active_license_gets_tokens__S2(face, licensed, clock):
    key, document = licensed()
    made = face.call("token.obtain", license_key=key)
    assert made["agent_id"] is None
    assert claims_of(made["token"])["sub"] == "*"
    assert claims_of(made["token"])["lic"] == document["lic_id"]
    bound = face.call("token.obtain", license_key=key.lower(), agent_id="ann")
    face.token = bound["token"]
    join(face, "ann")
    refusal(face, "agent_mismatch", "agent.register", agent_id="bob")
    assert made["expires_at"] == rfc3339(clock.now_ms() // 1000 * 1000 + DAY_MS)


def test_a_wrong_key_gets_none(face, licensed, program, clock):
    key, _ = licensed()
    other, _ = issue(program)
    refusal(face, "license_mismatch", "token.obtain", license_key=other)
    refusal(face, "license_malformed", "token.obtain", license_key="nonsense")
    typo = key[:-1] + ("0" if key[-1] != "0" else "1")
    error = refusal(face, "license_checksum", "token.obtain", license_key=typo)
    assert key not in error.message
    assert typo not in error.message


def test_tokens_that_are_bound_to_none_can_be_switched_off(open_program):
    program = open_program(license_wide_tokens=False)
    face = Direct(program.mux)
    key, document = issue(program)
    put(face, document)
    refusal(face, "missing_field", "token.obtain", license_key=key)
    assert face.call("token.obtain", license_key=key, agent_id="ann")["token"]


def test_a_license_may_ask_for_tokens_on_every_call(face, licensed):
    key, _ = licensed(require_tokens=True)
    refusal(face, "token_missing", "stats")
    face.token = face.call("token.obtain", license_key=key)["token"]
    assert face.call("stats")


@pytest.mark.settings(auth_tokens="required")
def test_another_license_ends_the_tokens_of_the_one_before(face, licensed):
    key, _ = licensed()
    old = face.call("token.obtain", license_key=key)["token"]
    local = issued(face)
    licensed()
    for token, code in ((old, "token_revoked"), (local, None)):
        face.token = token
        if code:
            refusal(face, code, "stats")
        else:
            face.call("stats")


# -- commands of the licensor


def test_die_leaves_the_free_tier_and_live_brings_it_back__L1(face, licensed, program, restart):
    _, document = licensed("pro")
    join(face, "ann", "bob", "cat")
    face.call("msg.send", from_="ann", to="bob", content="x")
    issuer = Issuer(program.path, program.clock)
    die = issuer.command("die", document["lic_id"])
    assert face.call("license.command", command=die) == {"lic_id": document["lic_id"], "cmd": "die", "serial": 1}
    for _ in range(2):
        assert face.call("license.status")["license"]["status"] == "ended"
        refusal(face, "upgrade_required", "state.list")
        refusal(face, "agent_limit", "agent.register", agent_id="dan")
        assert face.call("inbox.list", agent_id="bob")["unread"] == 1
        restart()
    live = issuer.command("live", document["lic_id"])
    face.call("license.command", command=live)
    assert face.call("license.status")["license"]["status"] == "active"
    assert face.call("state.list")["keys"] == []
    for old in (die, live):
        assert refusal(face, "sigil_refused", "license.command", command=old).facts["serial"] == 2
    assert face.call("license.status")["tier"] == "pro"


def test_tokens_of_an_ended_license_end__S3(face, licensed, program):
    key, document = licensed("pro")
    face.token = face.call("token.obtain", license_key=key)["token"]
    assert face.call("stats")
    face.token = None
    face.call("license.command", command=Issuer(program.path, program.clock).command("die", document["lic_id"]))
    face.token = face.mux.tokens.make(None, lic=document["lic_id"], tier="pro").token
    refusal(face, "token_revoked", "stats")


def test_only_genuine_commands_of_now_for_this_license_count(face, licensed, program, clock, open_program):
    _, document = licensed("pro")
    lic_id = document["lic_id"]
    issuer = Issuer(program.path, clock)
    good = issuer.command("die", lic_id)
    other = issue(program)[1]
    foreign = open_program()
    foreign.clock._ids = 1000  # or both issuers would draw the same keys
    _, theirs = issue(foreign)
    seed, _ = issuer._pair("issuer.key")
    told = {name: value for name, value in good.items() if name != "signature"}
    refused = [
        told,
        good | {"signature": "0" * 128},
        good | {"cmd": "live"},
        good | {"serial": 2},
        good | {"serial": True},
        good | {"issued": "yesterday"},
        good | {"lic_id": other["lic_id"]},
        license.signed(license.SIGIL, told, seed),  # by the issuer's key, which is not for this
        license.signed(license.LICENSE, told, issuer._pair("revocation.key")[0]),
        issuer.command("die", other["lic_id"]),
        Issuer(foreign.path, foreign.clock).command("die", theirs["lic_id"]),
        document,
        {},
    ]
    for command in refused:
        refusal(face, "sigil_refused", "license.command", command=command)
    clock.advance(license.SIGIL_MS)
    refusal(face, "sigil_refused", "license.command", command=good)
    assert face.call("license.status")["tier"] == "pro"
    issuer.command("die", lic_id)
    face.call("license.command", command=issuer.last_command(lic_id))
    assert face.call("license.status")["tier"] == "free"


def test_a_command_without_a_license_is_for_nobody(direct, program):
    _, document = issue(program)
    command = Issuer(program.path, program.clock).command("die", document["lic_id"])
    refusal(direct, "sigil_refused", "license.command", command=command)


# -- the issuer


def test_the_issuers_keys_are_for_its_owner_alone_and_stay(program):
    first = Issuer(program.path, program.clock, create=True)
    key, document = first.issue("pro")
    again = Issuer(program.path, program.clock, create=True)
    assert again.public == first.public
    assert again.find(key) == document
    for path in (program.path / "issuer").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
        if path.is_file():
            assert key not in path.read_text()


def test_a_key_that_another_issuer_made_is_unknown(program, open_program):
    key, _ = issue(program)
    other = Issuer(open_program().path, program.clock, create=True)
    parsed = Key("pro", 5, 6)
    for wrong in (key, parsed.text):
        with pytest.raises(MuxError) as caught:
            other.find(wrong)
        assert caught.value.code == "license_unknown"


# -- the license server


@contextmanager
def serving(program):
    """The license server of a program's issuer, as an address."""
    running = licenseserver.LicenseDaemon(replace(Settings(), data_dir=program.path, port=0), clock=program.clock)
    try:
        yield f"http://127.0.0.1:{running.port}"
    finally:
        running.close()


@pytest.fixture
def far(open_program):
    """Another machine, which is the licensor."""
    return open_program()


@pytest.fixture
def near(open_program, far):
    """Opens a machine that asks the licensor's server."""

    def opener(server, **settings):
        public = Issuer(far.path, far.clock).public.hex()
        return open_program(license_server=server, trusted_issuers=(public,), **settings)

    return opener


def test_a_server_gives_out_the_license_of_a_key(far, near):
    key, document = issue(far, "enterprise")
    with serving(far) as server:
        program = near(server)
        assert Direct(program.mux).call("health")["tier"] == "free"
        assert activation.activate(program.settings, key, None) == document
        with pytest.raises(MuxError) as caught:
            activation.activate(program.settings, Key("pro", 1, 1).text, None)
        assert caught.value.code == "license_unknown"
    assert Direct(program.mux).call("license.reload")["tier"] == "enterprise"


def test_a_server_that_is_away_leaves_what_is_there(far, near):
    key, document = issue(far)
    program = near("http://127.0.0.1:9")
    put(Direct(program.mux), document)
    before = program.settings.license_key_file.read_bytes()
    with pytest.raises(MuxError) as caught:
        activation.activate(program.settings, key, None)
    assert caught.value.code == "unreachable"
    assert program.settings.license_key_file.read_bytes() == before


def test_only_a_license_of_the_key_itself_is_put_in_place(far, near):
    key, _ = issue(far)
    _, other = issue(far)
    for answer, told in (({"license": other}, "is for another key"), ({}, "did not answer with a license")):
        with answering(http_answer(200, json.dumps(answer).encode())) as (server, _):
            program = near(server)
            with pytest.raises(MuxError, match=told):
                activation.activate(program.settings, key, None)
        assert not program.settings.license_key_file.exists()


def test_the_servers_door_is_as_hard_as_the_daemons(far):
    issue(far)
    with serving(far) as server:
        for path, body, code in (
            ("/activate", {"key": "x", "install_id": "i"}, "license_malformed"),
            ("/activate", {"key": "x"}, "missing_field"),
            ("/activate", {"key": "x", "install_id": "i", "more": 1}, "unknown_field"),
            (
                "/heartbeat",
                {"install_id": "../../x", "version": "1", "tier": "root", "agent_count": 1},
                "invalid_field",
            ),
            ("/heartbeat", {"install_id": "i", "version": "1", "tier": "pro", "agent_count": -1}, "invalid_field"),
            ("/activate", {"key": "x", "install_id": "i" * 65}, "invalid_field"),
            ("/msg/send", {}, "not_found"),
            ("/mcp", {}, "not_found"),
        ):
            with pytest.raises(licenseclient.NoUse) as caught:
                licenseclient.post(server, path, body)
            assert caught.value.answer["error"]["code"] == code
        told = {"install_id": "../../x", "version": "1", "tier": "pro", "agent_count": 1}
        assert licenseclient.post(server, "/heartbeat", told) == {}


def test_the_server_keeps_what_strangers_say_in_one_folder(far):
    key, document = issue(far)
    ids = ["../../x", "0" * 35 + "-"]
    before = {*far.path.rglob("*")}
    with serving(far) as server:
        for install_id in ids:
            activated = licenseclient.post(server, "/activate", {"key": key, "install_id": install_id})
            assert activated == {"license": document}
        with pytest.raises(licenseclient.NoUse):
            licenseclient.post(server, "/activate", {"key": "x", "install_id": "i"})
    added = {path.parent.name for path in {*far.path.rglob("*")} - before if path.is_file()}
    assert added == {"server", "installs"}
    (folder,) = far.path.rglob("installs")
    assert [path.read_text() for path in folder.iterdir()] == [document["lic_id"]] * 2
    with sqlite3.connect(folder.parent / "stonemux.db") as db:
        actions = db.execute("select distinct action from audit").fetchall()
    db.close()
    assert actions == [], "strangers could fill the disk with records"


def test_the_server_serves_other_machines_whatever_the_tier_of_its_own(far):
    issue(far)
    settings = replace(Settings(), data_dir=far.path, port=0, default_tier="free")
    with closing(licenseserver.LicenseDaemon(settings, clock=far.clock)) as running:
        assert running.server.mux.tier == "enterprise"


@contextmanager
def answering(answer):
    """A server that says this to everybody; yields its address and what it was sent."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run():
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock:
                    heard.append(sock.recv(65536))
                    answer(sock)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


@pytest.mark.parametrize(("length", "body", "told"), [(2, b"{}", None), (10**9, b"x" * 40_000, "too long")])
def test_an_answer_ends_where_it_says_or_where_it_is_too_long(length, body, told):
    held = threading.Event()

    def answer(sock):
        sock.sendall(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n%b" % (length, body))
        held.wait(5)  # the connection stays open

    with answering(answer) as (server, _):
        try:
            if told is None:
                assert licenseclient.post(server, "/heartbeat", {}, patience_ms=2_000) == {}
            else:
                with pytest.raises(licenseclient.NoUse, match=told):
                    licenseclient.post(server, "/heartbeat", {}, patience_ms=2_000)
        finally:
            held.set()


def http_answer(status, body):
    return lambda sock: sock.sendall(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))


ANSWERS = {
    "nothing": lambda sock: None,
    "garbage": lambda sock: sock.sendall(os.urandom(200)),
    "500": http_answer(500, b"{}"),
    "redirect": lambda sock: sock.sendall(
        b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    ),
    "no object": http_answer(200, b"[1]"),
    "die, it says": http_answer(200, b'{"tier":"free","disable":true,"command":{"cmd":"die"}}'),
    "deep": http_answer(200, b'{"command":' + b"[" * 20_000),
    "long": lambda sock: sock.sendall(b"HTTP/1.1 200 X\r\n\r\n" + b"x" * 40_000),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_thirty_days_of_a_bad_server_change_nothing(far, near, answer):
    _, document = issue(far, "enterprise")
    with answering(answer) as (server, heard):
        program = near(server)
        face = Direct(program.mux)
        put(face, document)
        join(face, "ann", "bob", "cat")
        telemetry = Telemetry(program.mux)
        for _ in range(30):
            assert telemetry.beat()
            program.clock.advance(DAY_MS)
            program.timekeeper.tick()
            assert face.call("health")["tier"] == "enterprise"
        assert len(heard) == 30
    face.call("task.post", description="x", posted_by="ann")
    assert len(face.call("agent.discover", include_stale=True)["agents"]) == 3


def test_thirty_days_without_a_server_change_nothing(far, near):
    _, document = issue(far, "enterprise")
    program = near("http://127.0.0.1:9")
    put(Direct(program.mux), document)
    telemetry = Telemetry(program.mux)
    for _ in range(30):
        assert telemetry.beat()
        program.clock.advance(DAY_MS)
        program.timekeeper.tick()
        assert program.mux.tier == "enterprise"


def test_a_server_that_hangs_or_drips_costs_no_more_than_its_time():
    held = threading.Event()

    def drip(sock):
        sock.sendall(b"HTTP/1.1 200 X\r\n")
        while not held.wait(0.02):
            try:
                sock.sendall(b"x")
            except OSError:
                return

    for answer in (lambda sock: held.wait(5), drip):
        held.clear()
        with answering(answer) as (server, _):
            with pytest.raises(licenseclient.NoUse):
                licenseclient.post(server, "/heartbeat", {}, patience_ms=100)
            held.set()


def test_a_name_server_that_hangs_costs_no_more_than_the_time(monkeypatch):
    ended = threading.Event()

    def hang(target, *, numeric=False):
        if not numeric:
            ended.wait(5)
        raise OSError

    monkeypatch.setattr(addresses, "resolve", hang)
    with pytest.raises(licenseclient.NoUse, match="could not be looked up in time"):
        licenseclient.post("http://license.example", "/heartbeat", {}, patience_ms=50)
    ended.set()
    eventually(lambda: not oneshot._looking)


def test_the_heartbeat_tells_four_things_once_a_day_and_can_be_switched_off(far, near):
    _, document = issue(far, "pro")
    with answering(http_answer(200, b"{}")) as (server, heard):
        program = near(server)
        telemetry = Telemetry(program.mux)
        assert not telemetry.beat(), "without a license nobody is told"
        put(Direct(program.mux), document)
        join(Direct(program.mux), "ann")
        assert telemetry.beat()
        assert not telemetry.beat()
        assert not Telemetry(program.mux).beat(), "not even after a restart"
        program.clock.advance(DAY_MS)
        assert telemetry.beat()
        silent = near(server, license_heartbeat=False)
        put(Direct(silent.mux), document)
        assert not Telemetry(silent.mux).beat()
    sent = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in heard]
    assert len(sent) == 2
    assert sent[0] == sent[1]
    assert sorted(sent[0]) == ["agent_count", "install_id", "tier", "version"]
    assert (sent[0]["tier"], sent[0]["agent_count"]) == ("pro", 1)
    for request in heard:
        assert document["lic_id"].encode() not in request
        assert b"ann" not in request


def test_a_command_comes_with_the_heartbeats_answer(far, near):
    key, document = issue(far, "pro")
    with serving(far) as server:
        program = near(server)
        activation.activate(program.settings, key, None)
        face = Direct(program.mux)
        face.call("license.reload")
        telemetry = Telemetry(program.mux)
        tiers = []
        for cmd in ("die", "live"):
            Issuer(far.path, far.clock).command(cmd, document["lic_id"])
            for _ in range(2):  # the second time it is old
                program.clock.advance(DAY_MS)
                assert telemetry.beat()
                tiers.append(program.mux.tier)
    assert tiers == ["free", "free", "pro", "pro"]


# -- the command line


def typed(tmp_path, capsys, *words):
    """What a command said, and its status."""
    status = cli.main([*words, "--data-dir", str(tmp_path / "d")], {"HOME": str(tmp_path), "STONEMUX_PORT": "9"})
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_commands_of_the_documents_work_without_a_daemon(tmp_path, capsys):
    assert json.loads(typed(tmp_path, capsys, "license", "show", "--json")[1])["issuer"] is None
    terms = ("--tier", "pro", "--days", "30", "--agents", "7")
    status, made, _ = typed(tmp_path, capsys, "license", "issue", *terms, "--json")
    key = json.loads(made)["key"]
    assert (status, len(key)) == (0, 22)
    said = typed(tmp_path, capsys, "license", "show")[1]
    assert said.startswith("here: enterprise; no license")
    assert "pro, 7 agents, until" in said
    typo = key[:-1] + ("0" if key[-1] != "0" else "1")
    status, _, said = typed(tmp_path, capsys, "activate", "--key", typo)
    assert status == 2
    assert "typo" in said
    assert typo not in said
    status, said, _ = typed(tmp_path, capsys, "activate", "--key", key)
    assert status == 0
    assert "pro, 7 agents" in said
    status, said, _ = typed(tmp_path, capsys, "status")
    assert (status, "license   pro; license lic-" in said) == (0, True)
    assert typed(tmp_path, capsys, "status", "--check")[0] == 6
    token = typed(tmp_path, capsys, "token", "--agent", "ann")[1].strip()
    assert claims_of(token)["sub"] == "ann"
    assert typed(tmp_path, capsys, "token", "rotate", "--now")[0] == 0
    shown = json.loads(typed(tmp_path, capsys, "license", "show", "--json")[1])
    lic_id = shown["given_out"][0]["lic_id"]
    assert (shown["here"]["lic_id"], shown["here"]["tier"]) == (lic_id, "pro")
    command = tmp_path / "command"
    command.write_text(typed(tmp_path, capsys, "sigil", "issue", "die", "--license", lic_id)[1])
    assert typed(tmp_path, capsys, "sigil", "apply", str(command))[1].startswith("die: ")
    assert typed(tmp_path, capsys, "sigil", "apply", str(command))[0] == 1
    assert typed(tmp_path, capsys, "deactivate")[0] == 0
    assert typed(tmp_path, capsys, "deactivate")[0] == 3


@pytest.mark.parametrize(
    "words",
    [
        ("license", "issue"),
        ("license", "issue", "--tier", "free"),
        ("license", "issue", "--tier", "pro", "--days", "0"),
        ("license", "issue", "--tier", "pro", "--days", "x"),
        ("license", "issue", "--tier", "pro", "--agents", "0"),
        ("license", "issue", "--tier", "pro", "--not-after", "tomorrow"),
        ("license", "issue", "--tier", "pro", "--not-after", "2020-01-01T00:00:00Z"),
        ("license", "issue", "--tier", "pro", "--not-after", "2040-01-01"),
        ("activate", "--key", "nonsense"),
        ("activate",),
        ("sigil", "issue", "kill", "--license", "lic-000000000000"),
        ("sigil", "issue", "die"),
        ("sigil", "apply"),
        ("token", "--agent", " "),
    ],
)
def test_mistakes_are_usage_errors(tmp_path, capsys, words):
    try:
        status, _, said = typed(tmp_path, capsys, *words)
    except SystemExit as end:
        status, said = end.code, capsys.readouterr().err
    assert (status, "Traceback" in said) == (2, False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("activate", "--file", "/none"), "/none cannot be read: No such file"),
        (("sigil", "apply", "/none"), "/none cannot be read: No such file"),
        (("sigil", "issue", "die", "--license", "lic-000000000000"), "has given out no license"),
    ],
)
def test_what_does_not_exist_is_named(tmp_path, capsys, words, told):
    Issuer(tmp_path / "d", Clock(), create=True)
    status, _, said = typed(tmp_path, capsys, *words)
    assert (status, told in said) == (3, True)


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "{}", '{"seed": "x", "public": "x"}', '{"seed": "00", "public": "00"}']
)
def test_an_issuers_key_that_is_damaged_is_told_of_and_trusted_no_longer(program, text, caplog):
    _, document = issue(program)
    (program.path / "issuer" / "issuer.key").write_text(text)
    with pytest.raises(MuxError, match="restore it from its backup"):
        issue(program)
    assert put(Direct(program.mux), document)["tier"] == "free"
    assert "this machine's issuer key cannot be read" in caplog.text


def test_a_license_that_cannot_be_read_means_free(direct):
    direct.mux.settings.license_key_file.mkdir()
    told = direct.call("license.reload")
    assert (told["tier"], told["problem"]) == ("free", "the license cannot be read: Is a directory")
    assert activation.standing_words(activation.standing(direct.mux.settings)) == f"free; {told['problem']}"


def test_a_license_that_ran_out_or_is_no_license_is_not_put_in_place(tmp_path, capsys):
    clock = Clock()
    _, old = Issuer(tmp_path / "d", clock, create=True).issue("pro", not_after=clock.now_ms() - 1)
    for text, why in ((json.dumps(old), "expired"), ("{}", "is not valid"), ("x", "is not valid")):
        file = tmp_path / "x.license"
        file.write_text(text)
        status, _, said = typed(tmp_path, capsys, "activate", "--file", str(file))
        assert status == 1
        assert f"the license {why}" in said
    assert not (tmp_path / ".stonemux" / "license.key").exists()


@pytest.mark.parametrize("text", ["", "x", "[]", "9" * 20_000, '{"serial": 1e999}', '{"serial": NaN}'])
def test_a_file_that_holds_no_command_is_refused_as_a_command(tmp_path, capsys, text):
    file = tmp_path / "command"
    file.write_text(text)
    status, _, said = typed(tmp_path, capsys, "sigil", "apply", str(file))
    assert status == 1
    assert "the command is not valid: it is not a JSON object" in said


def test_a_start_without_license_looks_at_one_path_and_says_nothing(program, caplog):
    assert Entitlement(program.settings, program.clock).tier == "enterprise"
    assert not caplog.records
