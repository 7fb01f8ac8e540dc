"""The audit log: what is recorded, when, in which order, and that no tampering with an export goes unnoticed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import socket
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faces import Direct, OverHttp, OverMcp, join, refusal
from hypothesis import given
from hypothesis import strategies as some

from stonemux import VERSION, audit, blotter, chain, cli, copies, owner
from stonemux.chain import Anchor, Broken, Entry, verify
from stonemux.clock import Clock
from stonemux.config import Settings
from stonemux.datadir import DataDir
from stonemux.errors import MuxError
from stonemux.operations import BY_NAME, OPERATIONS
from stonemux.record import replace
from stonemux.store import Store
from stonemux.timekeeper import PURGED_AT_ONCE
from stonemux.transaction import Job

CANARY = "canary-7f3a"


def exported(face: Direct | OverHttp, **given: object) -> list[bytes]:
    return face.call("audit.export", **given).encode().splitlines(keepends=True)


def records(face: Direct | OverHttp, **given: object) -> list[dict]:
    """What is in the log, the start of the daemon apart."""
    told = [json.loads(line) for line in exported(face, **given)[:-1]]
    return [record for record in told if record.get("action") != "daemon.start"]


def brief(face: Direct | OverHttp) -> list[tuple[str, str, str, str]]:
    return [(r["action"], r["actor"], r["target"], r["outcome"]) for r in records(face)]


def enter_noted(program) -> None:
    program.clock.advance(blotter.ENTERED_MS)
    program.timekeeper.tick()


# -- what is entered


def test_every_changing_call_is_entered_with_who_what_and_where(face):
    join(face, "ann", "bob")
    face.call("msg.send", from_="ann", to="bob", content="x")
    face.call("msg.broadcast", from_="ann", content="x")
    task_id = face.call("task.post", description="x", posted_by="ann")["task_id"]
    face.call("task.claim", agent_id="bob")
    face.call("task.complete", task_id=task_id, agent_id="bob", result="y")
    face.call("state.set", key="k", value="v", updated_by="ann")
    face.call("channel.create", name="team", created_by="ann")
    face.call("channel.join", channel="team", agent_id="bob")
    assert brief(face) == [
        ("agent.register", "ann", "", "ok"),
        ("agent.register", "bob", "", "ok"),
        ("msg.send", "ann", "bob", "ok"),
        ("msg.broadcast", "ann", "", "ok"),
        ("task.post", "ann", task_id, "ok"),
        ("task.claim", "bob", task_id, "ok"),
        ("task.complete", "bob", task_id, "ok"),
        ("state.set", "ann", "k", "ok"),
        ("channel.create", "ann", "team", "ok"),
        ("channel.join", "bob", "", "ok"),
    ]
    assert {record["channel"] for record in records(face)} == {"default", "team", ""}


def test_a_waiting_claim_is_entered_once_when_it_gets_a_task(face, mux, background):
    join(face, "ann", "bob")
    waiting = background(face.call, "task.claim", agent_id="bob", timeout=30)
    while not mux.waiters.count:
        pass
    face.call("task.post", description="x", posted_by="ann")
    got = waiting.result(5)
    assert [entry for entry in brief(face) if entry[0] == "task.claim"] == [("task.claim", "bob", got["task_id"], "ok")]


def test_what_a_call_made_is_its_target(face):
    made = face.call("document.create", content="x")["document"]["id"]
    hook = face.call("webhook.add", url="http://127.0.0.1:9/")["webhook"]["id"]
    assert brief(face) == [("document.create", "", made, "ok"), ("webhook.add", "", hook, "ok")]


def test_a_backup_is_entered_although_it_changes_nothing_here(face):
    face.call("admin.backup", path="one.db")
    assert brief(face) == [("admin.backup", "", "one.db", "ok")]


def test_what_changed_nothing_and_was_not_refused_is_not_entered(face, program):
    join(face, "ann")
    before = brief(face)
    for _ in range(3):
        face.call("agent.heartbeat", agent_id="ann")
        face.call("task.claim", agent_id="ann")
        face.call("msg.poll", agent_id="ann", timeout=0)
        face.call("stats")
    enter_noted(program)
    assert brief(face) == before


def test_the_hash_of_the_body_is_the_same_over_every_face(open_program):
    def body(open_face) -> str:
        with open_face as face:
            join(face, "ann", "bob")
            face.call("msg.send", from_="ann", to="bob", content="Grüße \U0001f600", subject=None, idempotency_key="k")
            return records(face)[-1]["body_sha256"]

    hashes = [body(kind(open_program().mux)) for kind in (Direct, OverHttp, OverMcp)]
    canonical = '{"content":"Grüße \U0001f600","from":"ann","to":"bob"}'
    assert hashes == [chain.sha256(canonical.encode())] * 3


def test_the_request_id_is_that_of_the_answer(http):
    body = json.dumps({"agent_id": "ann"}).encode()
    _, headers, _ = http.request("POST", "/agent/register", body, {"Content-Type": "application/json"})
    assert records(http)[0]["request_id"] == headers["x-request-id"]


def test_a_refusal_is_entered_within_a_second_with_its_code(face, program):
    join(face, "ann")
    refusal(face, "agent_not_found", "msg.send", from_="ann", to="ghost", content="x")
    refusal(face, "missing_field", "msg.send", from_="ann", to="ann")
    refusal(face, "key_not_found", "state.get", key="reading is not audited")
    assert brief(face) == [("agent.register", "ann", "", "ok")]
    enter_noted(program)
    assert brief(face)[1:] == [
        ("msg.send", "ann", "ghost", "agent_not_found"),
        ("msg.send", "ann", "", "missing_field"),
    ]


@pytest.mark.settings(default_tier="free")
def test_a_refusal_for_the_tier_is_entered(face, program, open_program):
    refusal(face, "upgrade_required", "task.post", description="x", posted_by="ann")
    refusal(face, "upgrade_required", "audit.export")
    enter_noted(program)
    with program.store.read() as rx:
        told = [tuple(row) for row in rx.sql("select action, outcome, actor from audit where action = 'task.post'")]
    assert told == [("task.post", "upgrade_required", "")], "nobody of that name is registered"


def test_a_replay_is_entered_as_such_and_the_call_itself_once(face, program):
    join(face, "ann")
    sent = {"from_": "ann", "to": "ann", "content": "x", "idempotency_key": "k"}
    for _ in range(3):
        face.call("msg.send", **sent)
    enter_noted(program)
    assert [outcome for action, _, _, outcome in brief(face) if action == "msg.send"] == ["ok", "replayed", "replayed"]


def test_a_flood_of_refusals_is_counted_and_nothing_is_dropped_silently(face, program):
    join(face, "ann")
    enter_noted(program)
    program.clock.advance(10_000)
    calls = blotter.AT_ONCE + 50
    for _ in range(calls):
        refusal(face, "agent_not_found", "msg.send", from_="ann", to="ghost", content="x")
    enter_noted(program)
    assert len(brief(face)) == 1 + blotter.AT_ONCE
    program.clock.advance(blotter.COUNTED_MS)
    program.timekeeper.tick()
    refused = [record for record in records(face) if record["outcome"] == "agent_not_found"]
    assert sum(record.get("count", 1) for record in refused) == calls
    assert len(refused) == blotter.AT_ONCE + 1
    verify(exported(face))


def test_refusals_wait_for_no_flush(direct, mux, program):
    join(direct, "ann")
    statements: list[str] = []
    program.store._db.set_trace_callback(statements.append)
    for _ in range(5):
        refusal(direct, "agent_not_found", "msg.send", from_="ann", to="ghost", content="x")
    assert "COMMIT" not in statements
    enter_noted(program)
    assert statements.count("COMMIT") <= 2, "one for all of them, and housekeeping"


def test_a_stop_enters_what_was_noted(program):
    direct = Direct(program.mux)
    join(direct, "ann")
    refusal(direct, "agent_not_found", "msg.send", from_="ann", to="ghost", content="x")
    program.timekeeper.start()
    program.timekeeper.stop()
    assert brief(Direct(program.reopen()))[-1] == ("msg.send", "ann", "ghost", "agent_not_found")


def test_what_cannot_be_entered_now_is_entered_later(direct, mux, program, monkeypatch):
    mux.blotter.note(Entry("msg.send", outcome="agent_not_found"))

    def full(*_: object, **__: object) -> None:
        raise MuxError("storage_full", "full")

    with monkeypatch.context() as patched:
        patched.setattr(mux.store, "write", full)
        with pytest.raises(MuxError):
            audit.enter_noted(mux, all_of_it=True)
    audit.enter_noted(mux)
    assert brief(direct) == [("msg.send", "", "", "agent_not_found")]


def test_a_blotter_is_bounded(clock):
    woken: list[int] = []
    notes = blotter.Blotter(clock, woken.append)
    for number in range(5_000):
        notes.note(Entry(f"area.verb{number % 200}", outcome="invalid_field"))
        clock.advance(1000)
    taken = notes.take(all_of_it=True)
    assert len(taken) <= blotter.MOST_KEPT + blotter.MOST_COUNTED + 1
    assert sum(entry.calls for entry in taken) == 5_000
    assert notes.next_due() is None


@pytest.mark.settings(audit_enabled=False)
def test_it_can_be_turned_off(face, program):
    join(face, "ann")
    refusal(face, "agent_not_found", "msg.send", from_="ann", to="ghost", content="x")
    enter_noted(program)
    program.timekeeper.start()  # a start is noted elsewhere
    program.timekeeper.stop()
    assert records(face) == []


def test_turning_it_off_is_entered_once(open_program):
    program = open_program()
    join(Direct(program.mux), "ann")
    program.settings = replace(program.settings, audit_enabled=False)
    for _ in range(2):
        mux = program.reopen()
        join(Direct(mux), "bob")
    assert [entry[0] for entry in brief(Direct(mux))] == ["agent.register", "audit.off"]
    program.settings = replace(program.settings, audit_enabled=True)
    direct = Direct(program.reopen())
    join(direct, "cat")
    assert [entry[0] for entry in brief(direct)] == ["agent.register", "audit.off", "agent.register"]
    verify(exported(direct))


def test_no_content_gets_into_the_log(face, program):
    """A canary in every text that carries contents, in calls that succeed and in calls that are refused."""
    join(face, "ann", "bob", metadata={"m": CANARY})
    task_id = face.call("task.post", description=CANARY, posted_by="ann", metadata={"m": CANARY})["task_id"]
    for name, given_ in (
        ("msg.send", {"from_": "ann", "to": "bob", "content": CANARY, "subject": CANARY, "metadata": {"m": CANARY}}),
        ("msg.broadcast", {"from_": "ann", "content": CANARY}),
        ("agent.heartbeat", {"agent_id": "ann", "status": CANARY}),
        ("state.set", {"key": "k", "value": CANARY}),
        ("channel.create", {"name": "team", "description": CANARY}),
        ("task.claim", {"agent_id": "bob"}),
        ("task.release", {"task_id": task_id, "agent_id": "bob", "reason": CANARY}),
        ("task.claim", {"agent_id": "bob"}),
        ("task.complete", {"task_id": task_id, "agent_id": "bob", "result": CANARY}),
    ):
        face.call(name, **given_)
    refusal(face, "unknown_field", "msg.send", from_="ann", **{CANARY: 1})
    refusal(face, "agent_not_found", "msg.send", from_="ann", to="ghost", content=CANARY)
    refusal(face, "invalid_field", "state.set", key=[CANARY], value=CANARY)
    refusal(face, "missing_field", "msg.send", from_="ann", content=CANARY)
    refusal(face, "unknown_field", "msg.send", from_=f"nobody {CANARY}", text=CANARY)
    enter_noted(program)
    assert CANARY not in face.call("audit.export")
    assert len(records(face)) >= 14


def test_no_secret_gets_into_the_log__S5(face, program):
    url, secret = f"http://127.0.0.1:9/{CANARY}", "whsec_" + base64.b64encode(CANARY.encode() * 3).decode()
    face.call("agent.register", agent_id="ann", webhook_url=url, webhook_secret=secret)
    made = face.call("webhook.add", url=url, secret=secret)["webhook"]["id"]
    face.call("webhook.remove", id=made)
    refusal(face, "webhook_url_forbidden", "agent.register", agent_id="bob", webhook_url=f"ftp://{CANARY}/")
    refusal(face, "license_malformed", "token.obtain", license_key=CANARY)
    given_away = face.call("token.issue", agent_id="ann")["token"]
    enter_noted(program)
    told = face.call("audit.export")
    assert len(told.splitlines()) == 7
    for hidden in (CANARY, secret, given_away, given_away.rpartition(".")[2], program.mux.tokens.owner):
        assert hidden not in told


def test_every_operation_that_names_a_target_names_no_content():
    for operation in OPERATIONS:
        for name in audit.TARGETS:
            if operation.changes and name in operation.by_name:
                assert operation.by_name[name].kind in ("name", "integer"), (operation.name, name)


JSON = {"Content-Type": "application/json"}


def test_a_change_that_cannot_even_be_read_is_entered_and_a_read_is_not(http, program):
    http.request("POST", "/msg/send", b"no json", JSON)
    http.request("POST", "/msg/send", b"{}", {"Content-Type": "text/plain"})
    http.request("POST", "/state/set?key=k", b"{}", JSON)
    http.request("GET", "/state/get?key=%ff")
    http.request("GET", "/nothing/here")
    enter_noted(program)
    assert brief(http) == [
        ("msg.send", "", "", "invalid_json"),
        ("msg.send", "", "", "content_type"),
        ("state.set", "", "", "invalid_query"),
    ]


def test_a_web_page_that_tries_is_entered__fault_8__fault_9(http, program):
    http.request("GET", "/msg/poll?agent_id=ann", headers={"Origin": "https://evil.example"})
    http.request("POST", "/mcp", b"{}", JSON | {"Host": "evil.example"})
    http.request("POST", f"/{CANARY}", b"{}", JSON | {"Sec-Fetch-Site": "cross-site"})
    enter_noted(program)
    assert brief(http) == [
        ("http.request", "", "/msg/poll", "origin_not_allowed"),
        ("mcp.request", "", "", "host_not_allowed"),
        ("http.request", "", "", "cross_site"),
    ]


REQUIRED = pytest.mark.settings(auth_tokens="required")


def entries(program) -> list[tuple[str, str, str, str]]:
    with program.store.read() as rx:
        rows = rx.sql("select action, actor, target, outcome from audit where action <> 'daemon.start'")
    return [tuple(row) for row in rows]


@REQUIRED
def test_who_shows_no_good_token_is_entered_whatever_was_asked_for__S5(http, program):
    http.request("GET", "/stats")
    http.request("GET", "/openapi.json", headers={"Authorization": f"Bearer {CANARY}"})
    http.request("HEAD", "/msg/poll?agent_id=ann")
    http.request("GET", "/events", headers={"Authorization": "Bearer a.b.c"})
    http.request("POST", "/msg/send", b"{}", JSON | {"Authorization": f"Bearer {CANARY}"})
    http.request("POST", "/mcp", b"{}", JSON)
    http.request("GET", "/health")
    enter_noted(program)
    assert entries(program) == [
        ("stats", "", "", "token_missing"),
        ("openapi", "", "", "token_invalid"),
        ("msg.poll", "", "", "token_missing"),
        ("events.stream", "", "", "token_invalid"),
        ("msg.send", "", "", "token_invalid"),
        ("mcp.request", "", "", "token_missing"),
    ]


@REQUIRED
def test_the_actor_is_whom_the_token_belongs_to__S2(face, program):
    owner = program.mux.tokens.owner
    face.token = owner
    join(face, "ann", "bob")
    face.token = bound = face.call("token.issue", agent_id="ann")["token"]
    face.call("state.set", key="k", value="v")
    refusal(face, "agent_mismatch", "msg.send", from_="bob", to="ann", content="x")
    face.token = owner
    face.call("msg.send", from_="bob", to="ann", content="x")
    made = face.call("token.issue", agent_id=None)
    face.token = made["token"]
    face.call("msg.send", from_="bob", to="ann", content="x")
    face.token = owner
    face.call("token.revoke", agent_id="ann")
    face.call("token.rotate", now=True)
    face.token = bound
    refusal(face, "token_invalid", "state.set", key="k", value="v")
    enter_noted(program)
    assert entries(program) == [
        ("agent.register", "owner as ann", "", "ok"),
        ("agent.register", "owner as bob", "", "ok"),
        ("token.issue", "owner", "ann", "ok"),
        ("state.set", "ann", "k", "ok"),
        ("msg.send", "owner as bob", "ann", "ok"),
        ("token.issue", "owner", made["jti"], "ok"),
        ("msg.send", "license:local as bob", "ann", "ok"),
        ("token.revoke", "owner", "ann", "ok"),
        ("token.rotate", "owner", "", "ok"),
        ("msg.send", "ann as bob", "", "agent_mismatch"),
        ("mcp.request" if type(face) is OverMcp else "state.set", "", "", "token_invalid"),
    ]
    face.token = owner
    told = face.call("audit.export")
    for secret in (owner, bound, bound.split(".")[2]):
        assert secret not in told


# -- one transaction


def test_a_change_that_fails_leaves_no_record_and_no_hole(direct, mux, program):
    join(direct, "ann")

    def torn(tx) -> None:
        tx.run("update agent set role = 'x'")
        tx.record(Entry("torn"))
        raise MuxError("task_conflict", "after it wrote")

    def refused(tx) -> None:
        tx.record(Entry("refused"))
        raise MuxError("task_conflict", "before it wrote")

    told: list[object] = []
    mux.store.gatherers.add(threading.get_ident())  # so that all four are one batch
    for work in (torn, lambda tx: tx.record(Entry("first")), refused, lambda tx: tx.record(Entry("second"))):
        mux.store.submit(Job(work, lambda value, error: told.append(error)))
    mux.store.lead()
    mux.store.gatherers.clear()
    assert [type(error) for error in told] == [MuxError, type(None), MuxError, type(None)]
    assert [entry[0] for entry in brief(direct)] == ["agent.register", "first", "second"]
    verify(exported(direct))


def test_many_at_once_make_one_chain(face):
    join(face, *(f"a{n}" for n in range(8)))

    def talk(n: int) -> None:
        for _ in range(10):
            face.call("msg.send", from_=f"a{n}", to=f"a{(n + 1) % 8}", content="x")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(talk, range(8)))
    found = verify(exported(face))
    assert found.records == found.last
    assert len([entry for entry in brief(face) if entry[0] == "msg.send"]) == 80


def test_the_chain_goes_on_after_a_restart(open_program):
    program = open_program()
    join(Direct(program.mux), "ann")
    seq, digest = program.store.audited
    direct = Direct(program.reopen())
    join(direct, "bob")
    assert verify(exported(direct), anchor=Anchor(seq, digest)).last > seq


# -- export


def test_an_export_begins_after_a_number_or_at_a_time(face, clock):
    moments = []
    for name in ("ann", "bob", "cat", "dan"):
        moments.append(clock.now_ms())
        join(face, name)
        clock.advance(1000)
    everything = [record["actor"] for record in records(face)]
    assert everything == ["ann", "bob", "cat", "dan"]
    assert [record["actor"] for record in records(face, since="2")] == ["cat", "dan"]
    assert records(face, since="99") == []
    for skipped, at in enumerate(moments):
        since = chain.rfc3339(at)
        assert [record["actor"] for record in records(face, since=since)] == everything[skipped:]
        verify(exported(face, since=since))
    assert records(face, since="2999-01-01T00:00:00+02:00") == []
    assert len(records(face, since="1999-01-01T00:00:00Z")) == 4
    for bad in ("yesterday", "-1", "2026-06-10", "2026-06-10T04:30:00", "1e3", "٣"):
        assert refusal(face, "invalid_field", "audit.export", since=bad).facts["parameter"] == "since"


def test_an_empty_export_has_its_trailer(face):
    (only,) = exported(face)
    assert json.loads(only) == {"count": 0, "head": chain.START}
    assert verify([only])[:3] == (0, 0, 0)
    join(face, "ann")
    (only,) = exported(face, since="1")
    head = json.loads(only)["head"]
    assert verify([only], head=head, anchor=Anchor(1, head)).head == head
    with pytest.raises(Broken, match="the end was cut off"):
        verify([only], anchor=Anchor(1, chain.START))


def fill(mux, count: int) -> None:
    def work(tx) -> None:
        for number in range(count):
            tx.record(Entry("test.filled", target=str(number)))

    mux.store.write(work)


def test_an_export_is_read_in_pieces_and_holds_no_snapshot_between_them(mux, program):
    fill(mux, 2 * audit.READ_AT_ONCE + 7)
    pieces = audit.export(mux, since=None, format="jsonl")
    first = next(pieces)
    fill(mux, 100)  # what comes later is not in it
    assert program.store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, "no reader is in the way"
    rest = list(pieces)
    assert [first.count("\n"), *(piece.count("\n") for piece in rest)] == [500, 500, 7, 1]
    assert verify("".join([first, *rest]).encode().splitlines(keepends=True)).records == 1007


def test_an_export_whose_records_are_purged_meanwhile_ends_with_a_refusal(mux, monkeypatch):
    monkeypatch.setattr(audit, "READ_AT_ONCE", 5)
    fill(mux, 20)
    pieces = audit.export(mux, since=None, format="jsonl")
    next(pieces)
    mux.store.write(lambda tx: audit.purge(tx, tx.now + 1, 10, KEY))
    with pytest.raises(MuxError, match="records were purged while they were exported"):
        list(pieces)


def read_to_the_end(sock: socket.socket) -> None:
    while sock.recv(1 << 16):
        pass


def test_a_slow_reader_of_an_export_holds_nobody_up_and_an_export_that_is_cut_off_is_no_whole_answer(http, program):
    fill(http.mux, 20_000)
    with socket.create_connection(("127.0.0.1", http.port)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(b"GET /audit/export HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 200"
        join(http, "ann", "bob")
        http.call("msg.send", from_="ann", to="bob", content="x")
        assert http.mux.waiters.count == 1
        http.server.stopping = True
        with pytest.raises(ConnectionResetError):
            read_to_the_end(sock)
    http.server.stopping = False
    while http.mux.waiters.count:
        pass


def test_head_of_an_export_has_no_body(http):
    join(http, "ann")
    status, headers, body = http.request("HEAD", "/audit/export")
    assert (status, headers["content-type"], body) == (200, "application/jsonl", b"")


def test_an_export_needs_a_place_among_the_waiters(http, monkeypatch):
    monkeypatch.setattr(http.mux.waiters, "count", 10**6)
    refusal(http, "too_many_waiters", "audit.export")


# -- tampering


def sample(length: int = 12) -> list[bytes]:
    lines, prev = [], chain.START
    for seq in range(1, length + 1):
        entry = Entry("msg.send", f"agent {seq % 3}", 'to "him" \\ \u2028', "default", calls=1 + seq % 2)
        (row,) = chain.links([entry], seq - 1, prev, 1_780_000_000_000 + seq)
        lines.append(f"{chain.exported(row, prev)}\n".encode())
        prev = row[-1].hex()
    return [*lines, f"{chain.trailer(length, prev)}\n".encode()]


WHOLE = sample()
HEAD = json.loads(WHOLE[-1])["head"]


def test_a_record_is_canonical_json_and_its_hash_can_be_computed_by_anybody():
    for line in WHOLE[:-1]:
        told = json.loads(line)
        assert json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n" == line
        digest = told.pop("hash")
        canonical = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(canonical.encode()).hexdigest() == digest


def test_what_was_exported_is_good():
    found = verify(WHOLE, head=HEAD, anchor=Anchor(5, json.loads(WHOLE[4])["hash"]))
    assert (found.records, found.first, found.last, found.head) == (12, 1, 12, HEAD)


@given(some.integers(0, sum(map(len, WHOLE)) - 1), some.integers(1, 255))
def test_a_changed_byte_is_detected(position, mask):
    data = bytearray(b"".join(WHOLE))
    data[position] ^= mask
    with pytest.raises(Broken) as caught:
        verify(bytes(data).splitlines(keepends=True) if 0x0D not in data else _lines(bytes(data)))
    changed = data[:position].count(b"\n") + 1
    assert caught.value.line in (0, changed, changed + 1)


def _lines(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.split(b"\n")[:-1]] + ([rest] if (rest := data.rsplit(b"\n", 1)[-1]) else [])


@given(some.integers(0, 12))
def test_a_removed_line_is_detected(at):
    with pytest.raises(Broken):
        verify(WHOLE[:at] + WHOLE[at + 1 :])


@given(some.integers(0, 12), some.integers(0, 12))
def test_swapped_lines_are_detected(a, b):
    lines = list(WHOLE)
    lines[a], lines[b] = lines[b], lines[a]
    if a != b:
        with pytest.raises(Broken):
            verify(lines)


@given(some.integers(0, 12), some.integers(0, 13))
def test_a_duplicated_line_is_detected(which, to):
    with pytest.raises(Broken):
        verify([*WHOLE[:to], WHOLE[which], *WHOLE[to:]])


@given(some.integers(0, sum(map(len, WHOLE)) - 1))
def test_a_cut_tail_is_detected(at):
    with pytest.raises(Broken):
        verify(b"".join(WHOLE)[:at].splitlines(keepends=True))


def test_the_first_bad_record_is_named():
    lines = list(WHOLE)
    lines[6] = lines[6].replace(b"agent 1", b"agent 2")
    with pytest.raises(Broken, match="line 7, record 7: its hash does not match"):
        verify(lines)
    with pytest.raises(Broken, match=r"line 4, record 5: it follows record 3: removed or swapped: 4$"):
        verify(WHOLE[:3] + WHOLE[4:])
    with pytest.raises(Broken, match=r"line 4, record 6: it follows record 3: removed or swapped: 4 to 5$"):
        verify(WHOLE[:3] + WHOLE[5:])
    turned = json.dumps(dict(reversed(json.loads(WHOLE[0]).items())), separators=(",", ":"), ensure_ascii=False)
    with pytest.raises(Broken, match="line 1: the line is not written the one way"):
        verify([f"{turned}\n".encode()])
    with pytest.raises(Broken, match="line 6, record 5: it follows record 5: it occurs twice"):
        verify(WHOLE[:5] + WHOLE[4:])
    with pytest.raises(Broken, match=r"^the trailer is missing after 8 records"):
        verify(WHOLE[:8])
    with pytest.raises(Broken, match="line 1: the line is cut off"):
        verify([WHOLE[0][:-1]])
    with pytest.raises(Broken, match="line 1: the line is too long"):
        verify([WHOLE[0].rjust(chain.MOST_LINE + 1)])


def anew(seq: int, prev: str) -> bytes:
    """A record that is sound in itself."""
    (row,) = chain.links([Entry("forged")], seq - 1, prev, 1_780_000_000_000)
    return f"{chain.exported(row, prev)}\n".encode()


def line(**told: object) -> bytes:
    return f"{chain.canonical(told)}\n".encode()


CHECKPOINT = f"{chain.checkpoint(6, json.loads(WHOLE[5])['hash'], 1_780_000_000_000, bytes(range(32)))}\n".encode()
AFTER_IT = [*WHOLE[6:-1], f"{chain.trailer(6, HEAD)}\n".encode()]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([anew(1, "1" * 64)], "line 1, record 1: it is the first, but names another one before it"),
        (
            [*WHOLE[:5], anew(6, json.loads(WHOLE[4])["hash"]), *WHOLE[6:]],
            "line 7, record 7: it does not follow from the record before: that one was replaced",
        ),
        ([WHOLE[0], CHECKPOINT], "line 2: this is not a checkpoint, or not at the beginning"),
        ([line(checkpoint={"seq": "6"}, mac="")], "line 1: this is not a checkpoint"),
        ([CHECKPOINT, *WHOLE[7:]], "line 2, record 8: it follows record 6: removed or swapped: 7"),
        ([*WHOLE[:-1], line(count=12, head=HEAD, more=1)], "line 13: this is not a trailer"),
        ([*WHOLE[:-1], line(count=12, head="0" * 64)], "line 13, record 12: the trailer names another last hash"),
    ],
)
def test_lines_that_are_sound_only_in_themselves_are_detected(lines, told):
    with pytest.raises(Broken, match=told):
        verify(lines)


def forged(upto: int) -> list[bytes]:
    """A file whose end was computed anew, as whoever can write the database could do."""
    told = json.loads(WHOLE[upto - 1])
    prev = told["hash"]
    (row,) = chain.links([Entry("forged")], upto, prev, 1_780_000_000_000)
    return [
        *WHOLE[:upto],
        f"{chain.exported(row, prev)}\n".encode(),
        f"{chain.trailer(upto + 1, row[-1].hex())}\n".encode(),
    ]


def test_only_an_anchor_shows_what_was_computed_anew():
    verify(forged(8))
    with pytest.raises(Broken, match="record 9: it is not the record that the anchor has seen"):
        verify(forged(8), anchor=Anchor(9, json.loads(WHOLE[8])["hash"]))
    with pytest.raises(Broken, match="the anchor has seen record 12, but the file ends at 9"):
        verify(forged(8), anchor=Anchor(12, HEAD))
    with pytest.raises(Broken, match="the file ends with"):
        verify(forged(8), head=HEAD)
    verify(forged(8), anchor=Anchor(8, json.loads(WHOLE[7])["hash"]))


def test_an_anchor_from_before_the_file_ties_it_only_if_it_touches():
    verify(AFTER_IT)
    verify(AFTER_IT, anchor=Anchor(6, json.loads(WHOLE[5])["hash"]))
    with pytest.raises(Broken, match="it is not the record that the anchor has seen"):
        verify(AFTER_IT, anchor=Anchor(6, json.loads(WHOLE[4])["hash"]))
    with pytest.raises(Broken, match="begins after record 3"):
        verify(AFTER_IT, anchor=Anchor(3, json.loads(WHOLE[2])["hash"]))


@given(
    some.lists(
        some.sampled_from([b"{}\n", b"[]\n", b"1\n", b"\xff\n", b"\n", b"[" * 5000 + b"\n", *WHOLE[:3], WHOLE[-1]])
    )
)
def test_any_lines_are_good_or_broken_and_nothing_else(lines):
    with contextlib.suppress(Broken):
        verify(lines)


# -- retention, restore, rollback


KEY = bytes(range(32))


def test_purged_records_leave_a_signed_checkpoint(open_program, clock):
    program = open_program(audit_retention_days=1)
    direct = Direct(program.mux)
    join(direct, "ann", "bob")
    seq, digest = program.store.audited
    program.clock.advance(2 * 86_400_000)
    join(direct, "cat")
    program.timekeeper.tick()
    lines = exported(direct)
    key = program.directory.audit_key()
    assert oct(os.stat(program.path / "audit.key").st_mode & 0o777) == "0o600"
    found = verify(lines, key=key)
    assert (found.purged, found.signed) == (seq, True)
    assert json.loads(lines[0])["checkpoint"]["key_id"] == chain.key_id(key) != chain.key_id(KEY)
    assert [r["actor"] for r in records(direct) if "actor" in r] == ["cat"]
    verify(lines, anchor=Anchor(seq, digest))
    assert exported(direct, since="1999-01-01T00:00:00Z") == lines, "it began before, which the checkpoint tells"
    assert verify(lines).signed is False
    with pytest.raises(Broken, match="not signed with this key"):
        verify(lines, key=KEY)
    with pytest.raises(Broken):
        verify([lines[0].replace(b'"seq":', b'"seq":1'), *lines[1:]], key=key)
    with pytest.raises(Broken, match="line 2"):
        verify([lines[0], *lines[2:]], key=key)
    assert key.hex() not in "".join(map(str, lines))
    program.clock.advance(10 * 86_400_000)
    program.timekeeper.tick()
    assert len(exported(direct)) == 3, "the newest record stays"
    direct = Direct(program.reopen())
    join(direct, "dan")
    verify(exported(direct), key=key)
    assert verify(exported(direct, since=str(found.last))).purged == 0


def test_a_log_of_exactly_one_page_is_purged_and_the_rest_kept(mux, program):
    fill(mux, PURGED_AT_ONCE + 10)
    now = program.clock.now_ms()
    counts = [mux.store.write(lambda tx: audit.purge(tx, now + 1, PURGED_AT_ONCE, KEY)) for _ in range(3)]
    assert counts == [PURGED_AT_ONCE, 9, 0]
    assert verify(exported(Direct(mux)), key=KEY).records == 1


def test_nothing_is_purged_where_the_key_cannot_be_made(open_program, caplog):
    program = open_program(audit_retention_days=1)
    join(Direct(program.mux), "ann", "bob")
    (program.path / "audit.key").write_text("no key\n")
    program.clock.advance(3 * 86_400_000)
    program.timekeeper.tick()
    assert "the audit log was not purged" in caplog.text
    assert verify(exported(Direct(program.mux))).first == 1


def restored(program, copy: Path) -> None:
    program.close()
    directory = DataDir(program.path)
    copies.restore(directory, copy, copies.inspect(copy), program.clock.now_ms())
    directory.close()
    program.open()


def test_a_restored_log_goes_on_and_says_what_was_lost(open_program):
    program = open_program()
    direct = Direct(program.mux)
    join(direct, "ann")
    copy = Path(direct.call("admin.backup", path="copy.db")["path"])
    join(direct, "bob", "cat")
    seq, digest = program.store.audited
    restored(program, copy)
    direct = Direct(program.mux)
    join(direct, "dan")
    assert [r["actor"] or r["action"] for r in records(direct)] == ["ann", "storage.went_back", "dan"]
    assert records(direct)[1]["target"] == f"{seq} {digest}"
    verify(exported(direct))
    with pytest.raises(Broken, match="the anchor has seen"):
        verify(exported(direct), anchor=Anchor(seq, digest))
    program.reopen()


@pytest.mark.parametrize("tamper", ["delete from audit where seq > 1", "update audit set hash = x'00' where seq = 2"])
def test_a_log_that_was_cut_or_rewritten_is_noticed_at_the_start(open_program, tamper):
    program = open_program()
    join(Direct(program.mux), "ann", "bob")
    program.close()
    with sqlite3.connect(program.path / "stonemux.db") as db:
        assert db.execute(tamper).rowcount
    db.close()
    with pytest.raises(MuxError, match="audit log") as caught:
        program.open()
    assert caught.value.code == "data_refused"
    program.directory.close()
    program.open(accept_rollback=True)
    assert records(Direct(program.mux))[-1]["action"] == "storage.went_back"


def test_the_log_of_the_daemon_carries_the_head_once_a_day(open_program, caplog):
    caplog.set_level("INFO", "stonemux")
    program = open_program()
    join(Direct(program.mux), "ann")
    for _ in range(26):
        program.clock.advance(3_600_000)
        program.timekeeper.tick()
    heads = [record.getMessage() for record in caplog.records if "audit_head" in record.getMessage()]
    assert len(heads) == 2
    assert heads[-1] == "audit_head {} {}".format(*program.store.audited)


def test_random_traffic_verifies_and_loses_nothing(direct, program):
    dice = random.Random(7)
    join(direct, "ann", "bob")
    sent = 0
    for _ in range(200):
        to = dice.choice(["bob", "ann", "ghost"])
        try:
            direct.call("msg.send", from_="ann", to=to, content="x")
            sent += 1
        except MuxError:
            pass
        if dice.random() < 0.1:
            enter_noted(program)
    program.clock.advance(blotter.COUNTED_MS + 1)
    program.timekeeper.tick()
    told = [record for record in records(direct) if record["action"] == "msg.send"]
    verify(exported(direct))
    assert sum(record["outcome"] == "ok" for record in told) == sent
    assert sum(record.get("count", 1) for record in told) == 200


def test_the_chain_names_only_operations_that_exist(direct):
    join(direct, "ann")
    assert {record["action"] for record in records(direct)} <= set(BY_NAME)


# -- the command


def command(capsys, *words: object, data: Path | None = None) -> tuple[int, str, str]:
    environ = {"HOME": "/nowhere"} | ({"STONEMUX_DATA_DIR": str(data)} if data else {})
    capsys.readouterr()
    status = cli.main([*map(str, words)], environ)
    return status, *capsys.readouterr()


def test_the_command_verifies_a_file_and_names_what_is_wrong(tmp_path, capsys):
    file = tmp_path / "export.jsonl"
    file.write_bytes(b"".join(WHOLE))
    status, out, _ = command(capsys, "audit", "verify", file)
    assert (status, out) == (0, f"{file} is intact: records 1 to 12, head {HEAD}\n")
    assert json.loads(command(capsys, "audit", "verify", file, "--json")[1])["records"] == 12
    file.write_bytes(b"".join(AFTER_IT))
    assert "begins with record 7; earlier records are not in this file" in command(capsys, "audit", "verify", file)[1]
    file.write_bytes(b"".join([CHECKPOINT, *AFTER_IT]))
    (tmp_path / "key").write_text(bytes(range(32)).hex())
    for flags, signed in (((), "was not checked"), (("--key", tmp_path / "key"), "is valid")):
        status, out, _ = command(capsys, "audit", "verify", file, *flags)
        assert f"  records up to 6 were purged; a checkpoint replaces them (its signature {signed}" in out
    file.write_bytes(b"".join(WHOLE).replace(b"agent 2", b"agent 1", 1))
    status, out, err = command(capsys, "audit", "verify", file)
    assert (status, out) == (1, "")
    assert err == f"stonemux: {file}: line 2, record 2: its hash does not match what it says: it was changed\n"
    told = json.loads(command(capsys, "audit", "verify", file, "--json")[1])
    assert (told["whole"], told["line"], told["seq"]) == (False, 2, 2)


def test_the_command_holds_a_file_against_a_head_and_an_anchor(program, tmp_path, capsys):
    direct = Direct(program.mux)
    join(direct, "ann", "bob")
    status, out, _ = command(capsys, "audit", "anchor", data=program.path)  # while it runs
    anchor = tmp_path / "anchor.json"
    anchor.write_text(out)
    assert (status, json.loads(out)["seq"], json.loads(out)["hash"]) == (0, *program.store.audited)
    join(direct, "cat")
    file = tmp_path / "export.jsonl"
    file.write_bytes(b"".join(exported(direct)))
    head = program.store.audited[1]
    assert command(capsys, "audit", "verify", file, "--head", head, "--from-anchor", anchor)[0] == 0
    program.store.note_head()
    assert command(capsys, "audit", "verify", file, "--from-anchor", program.path / "head.json")[0] == 0
    file.write_bytes(b"".join(forged(1)))
    status, _, err = command(capsys, "audit", "verify", file, "--from-anchor", anchor)
    assert status == 1
    assert "the log was rewritten" in err
    assert command(capsys, "audit", "verify", file, "--head", head)[0] == 1
    program.close()
    assert command(capsys, "audit", "anchor", data=program.path)[0] == 0
    program.open()


def test_the_command_says_what_it_cannot_read(tmp_path, capsys):
    assert command(capsys, "audit", "verify", tmp_path / "nothing")[0] == 3
    assert command(capsys, "audit", "verify", tmp_path)[0] == 78
    assert command(capsys, "audit", "verify")[0] == 2
    assert command(capsys, "audit", "anchor", data=tmp_path)[0] == 3
    for text in ("", "[]", "{}", '{"seq": "x", "hash": 1}'):
        (tmp_path / "anchor").write_text(text)
        assert command(capsys, "audit", "verify", "-", "--from-anchor", tmp_path / "anchor")[0] == 2
    for text in ("zz", "00"):
        (tmp_path / "key").write_text(text)
        assert command(capsys, "audit", "verify", "-", "--key", tmp_path / "key")[0] == 2
    assert command(capsys, "audit", "verify", "-", "--key", tmp_path / "none")[0] == 3
    (tmp_path / "stonemux.db").write_bytes(b"no database" * 100)
    assert command(capsys, "audit", "anchor", data=tmp_path)[0] == 78


# -- what is no call


def test_a_start_and_a_change_of_the_tier_are_entered(open_program):
    program = open_program()
    program.timekeeper.start()
    program.mux.entitlement.tier = "free"
    program.mux.entitlement._tell()
    program.mux.entitlement._tell()
    program.timekeeper.stop()
    assert entries(program) == [("license.tier", "", "free", "ok")]
    with program.store.read() as rx:
        assert rx.one("select target from audit where action = 'daemon.start'")[0] == f"{VERSION} enterprise"


def test_what_the_owner_does_without_a_daemon_is_entered_with_what_was_refused(tmp_path):
    settings = replace(Settings(), data_dir=tmp_path / "data")
    with pytest.raises(MuxError, match="no license is active"):
        owner.call(settings, "license.command", {"command": {"cmd": "die"}})
    owner.call(settings, "token.rotate", {"now": True})
    directory = DataDir(settings.data_dir)
    store = Store(directory, Clock())
    with store.read() as rx:
        told = [tuple(row) for row in rx.sql("select action, actor, outcome from audit order by seq")]
    store.close()
    directory.close()
    assert told == [("license.command", "owner", "sigil_refused"), ("token.rotate", "owner", "ok")]
