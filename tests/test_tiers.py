"""What each tier allows, derived from the table, and what a tier never takes away."""

from __future__ import annotations

import json

import pytest
from faces import Direct, OverHttp, join, refusal

from stonemux import httpd
from stonemux.errors import MuxError
from stonemux.issuer import Issuer
from stonemux.operations import OPERATIONS
from stonemux.record import replace
from stonemux.schema import TIERS

CALLED = [operation for operation in OPERATIONS if operation.kind not in ("stream", "document")]
PAID_PARAMS = [(o, p) for o in OPERATIONS for p in o.params if p.tier != "free" and o.tier == "free"]
FREE = pytest.mark.settings(default_tier="free")
PRO = {
    *("msg.broadcast", "events.stream", "events.list"),
    *("task.post", "task.claim", "task.complete", "task.extend", "task.release", "task.list", "task.get"),
    *("task.cancel", "task.requeue", "task.handoff", "task.dispatch", "token.obtain"),
    *("state.get", "state.set", "state.watch", "state.delete", "state.list", "state.history"),
}


def test_the_table_gives_each_operation_the_tier_of_the_contract():
    assert {operation.name for operation in OPERATIONS if operation.tier == "pro"} == PRO
    assert {operation.name for operation in OPERATIONS if operation.tier == "enterprise"} == {
        "audit.export",
        *(f"webhook.{verb}" for verb in ("add", "list", "remove", "attempts", "replay")),
    }
    assert [(o.name, p.name, p.tier) for o, p in PAID_PARAMS] == [
        ("agent.register", "webhook_url", "pro"),
        ("agent.register", "webhook_secret", "pro"),
        ("msg.send", "priority", "pro"),
    ]


def outcome(face, operation):
    """What the row's example comes to: an error, or None."""
    waits = {"timeout": 0} if "timeout" in operation.by_name else {}
    try:
        face.call(operation.name, **dict(operation.example) | waits)
    except MuxError as error:
        return error
    return None


@pytest.mark.parametrize("tier", [pytest.param(tier, marks=pytest.mark.settings(default_tier=tier)) for tier in TIERS])
def test_the_tier_decides_before_anything_else_is_looked_at__fault_26(face, tier):
    join(face, "writer", "researcher")
    for operation in CALLED:
        error = outcome(face, operation)
        refused = error is not None and error.code == "upgrade_required"
        assert refused == (TIERS.index(operation.tier) > TIERS.index(tier)), operation.name
        if refused:
            assert (error.facts["tier"], error.facts["needed"]) == (tier, operation.tier)


@FREE
@pytest.mark.parametrize("name", sorted(PRO - {"events.stream"}))
def test_even_a_malformed_call_is_told_of_the_tier_first(face, name):
    refusal(face, "upgrade_required", name, nonsense=1)


@FREE
@pytest.mark.parametrize("tier", TIERS)
def test_a_license_decides_as_the_setting_does__fault_26(program, direct, clock, tier):
    """The license in force says more than the setting; one that has run out leaves free."""
    terms = {"not_after": clock.now_ms() + 1} if tier == "free" else {}
    _, document = Issuer(program.path, clock, create=True).issue("enterprise" if tier == "free" else tier, **terms)
    program.settings.license_key_file.write_text(json.dumps(document))
    direct.call("license.reload")
    clock.advance(1)
    program.timekeeper.tick()
    join(direct, "writer", "researcher")
    for operation in CALLED:
        if operation.name == "license.command":  # which ends licenses
            continue
        error = outcome(direct, operation)
        refused = error is not None and error.code == "upgrade_required"
        assert refused == (TIERS.index(operation.tier) > TIERS.index(tier)), operation.name
        if refused:
            assert (error.facts["tier"], error.facts["needed"]) == (tier, operation.tier)


@FREE
def test_streams_are_for_pro__fault_26(http):
    status, _, body = http.request("GET", "/events")
    error = json.loads(body)["error"]
    assert (status, error["code"], error["tier"], error["needed"]) == (402, "upgrade_required", "free", "pro")


@FREE
def test_a_third_distinct_agent_is_refused_on_free__A2__fault_26(face):
    join(face, "ann", "bob")
    error = refusal(face, "agent_limit", "agent.register", agent_id="cat")
    assert (error.facts["limit"], error.facts["tier"], error.facts["needed"]) == (2, "free", "pro")
    assert [a["id"] for a in face.call("agent.discover")["agents"]] == ["ann", "bob"]


@FREE
def test_registering_again_and_replacing_an_agent_work_on_free__A2(face):
    join(face, "ann", "bob")
    assert face.call("agent.register", agent_id="bob", role="tester")["created"] is False
    face.call("agent.deregister", agent_id="ann")
    assert face.call("agent.register", agent_id="cat")["created"] is True
    refusal(face, "agent_limit", "agent.register", agent_id="ann")


@FREE
def test_concurrent_registrations_never_exceed_the_limit__A2(face, background):
    attempts = [background(face.call, "agent.register", agent_id=f"a{n}") for n in range(8)]
    outcomes = [attempt.exception(5) for attempt in attempts]
    assert sum(error is None for error in outcomes) == 2
    assert {error.code for error in outcomes if error} == {"agent_limit"}


@FREE
def test_priority_is_for_pro_but_its_default_may_be_said(face):
    join(face, "ann", "bob")
    given = {"from_": "ann", "to": "bob", "content": "x"}
    for priority in (1, -1):
        error = refusal(face, "upgrade_required", "msg.send", **given, priority=priority)
        assert (error.facts["tier"], error.facts["needed"]) == ("free", "pro")
    for priority in (0, None):
        assert face.call("msg.send", **given, priority=priority)
    assert len(face.call("msg.poll", agent_id="bob", timeout=0)["messages"]) == 2


@pytest.mark.settings(default_tier="pro")
def test_pro_has_no_limit_of_agents(face):
    join(face, *(f"a{n}" for n in range(5)))
    assert len(face.call("agent.discover")["agents"]) == 5


def test_downgrading_hides_and_deletes_nothing(open_program):
    program = open_program()
    face = Direct(program.mux)
    join(face, "ann", "bob", "cat")
    face.call("msg.send", from_="ann", to="bob", content="x", priority=5)
    program.settings = replace(program.settings, default_tier="free")
    face = Direct(program.reopen())
    assert len(face.call("agent.discover")["agents"]) == 3
    assert face.call("agent.register", agent_id="cat")["created"] is False
    assert face.call("msg.poll", agent_id="bob", timeout=0)["messages"][0]["priority"] == 5
    refusal(face, "agent_limit", "agent.register", agent_id="dan")


BEYOND = {"host": "0.0.0.0", "auth_tokens": "off"}


@pytest.mark.parametrize(
    "tier", [pytest.param(tier, marks=pytest.mark.settings(default_tier=tier, **BEYOND)) for tier in TIERS]
)
def test_other_machines_are_for_enterprise(program, monkeypatch, tier):
    with OverHttp(program.mux) as face:
        assert face.request("GET", "/stats")[0] == 200, "this machine, whatever the tier"
        monkeypatch.setattr(httpd, "is_remote", lambda peer, sock: True)
        asked = [("GET", "/stats", None), ("POST", "/agent/register", b'{"agent_id": "ann"}'), ("POST", "/mcp", b"{}")]
        for method, path, body in asked:
            status, _, told = face.request(method, path, body, {"Content-Type": "application/json"})
            assert (status == 402) == (tier != "enterprise"), path
            if status == 402:
                error = json.loads(told)["error"]
                error = error.get("data", error)
                assert (error["code"], error["tier"], error["needed"]) == ("upgrade_required", tier, "enterprise")
        assert face.request("GET", "/health")[0] == 200
        assert face.request("OPTIONS", "/stats")[0] == 204


@pytest.mark.parametrize(
    ("peer", "ours", "remote"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("127.8.9.1", "127.0.0.1", False),
        ("::1", "::1", False),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", False),
        ("192.168.1.5", "192.168.1.5", False),
        ("192.168.1.6", "192.168.1.5", True),
        ("::ffff:192.168.1.6", "::ffff:192.168.1.5", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_which_machine_a_connection_comes_from(peer, ours, remote):
    class Accepted:
        def getsockname(self):
            return (ours, 3392)

    assert httpd.is_remote(peer, Accepted()) is remote
