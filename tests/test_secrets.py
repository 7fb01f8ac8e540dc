"""No secret is ever disclosed: canaries in every place that holds a secret, and a check of all output."""

from __future__ import annotations

import base64
import json
import logging

import pytest
from faces import join, refusal
from licensed import issue, put
from raw import eventually

from stonemux.errors import MuxError
from stonemux.operations import OPERATIONS

READS = [
    operation for operation in OPERATIONS if operation.method == "GET" and operation.kind in ("read", "wait", "text")
]


def test_tokens_and_keys_appear_in_no_answer_event_error_log_count_or_record__S5(face, program, caplog):
    caplog.set_level(logging.DEBUG)
    key, document = issue(program, "enterprise")
    put(face, document)
    other, _ = issue(program, "enterprise")
    canaries = [key, other, face.mux.tokens.owner]
    for agent_id in ("ann", None):
        canaries.append(face.call("token.obtain", license_key=key, agent_id=agent_id)["token"])
        canaries.append(face.call("token.issue", agent_id=agent_id)["token"])
    said = []
    for shown in (other, key[:-1] + ("0" if key[-1] != "0" else "1")):
        try:
            face.call("token.obtain", license_key=shown)
        except MuxError as error:
            said.append(str(error.body()))
    join(face, "writer", "researcher")
    for token in (canaries[2][:-1], canaries[-1] + "x", canaries[3]):
        face.token = token
        for operation in OPERATIONS:
            if operation.kind not in ("stream", "document", "lines") and operation.name not in (
                "token.issue",
                "token.obtain",
            ):
                waits = {"timeout": 0} if "timeout" in operation.by_name else {}
                try:
                    said.append(str(face.call(operation.name, **dict(operation.example) | waits)))
                except MuxError as error:
                    said.append(str(error.body()))
    face.token = None
    for operation in READS:
        waits = {"timeout": 0} if "timeout" in operation.by_name else {}
        try:
            said.append(str(face.call(operation.name, **dict(operation.example) | waits)))
        except MuxError as error:
            said.append(str(error.body()))
    with program.store.read() as rx:
        for table in ("event", "audit", "message", "idempotency"):
            said += [json.dumps([str(value) for value in row]) for row in rx.sql(f"select * from {table}")]
    said += [record.getMessage() for record in caplog.records]
    secrets = [bytes(entry.secret).hex() for entry in face.mux.tokens._keys.values()]
    for text in said:
        for canary in [*canaries, *secrets]:
            assert canary not in text
    refusal(face, "license_malformed", "token.obtain", license_key="nonsense")


def test_webhook_secrets_appear_in_no_answer_event_log_attempt_or_record__H2(face, program, outbound, receive, caplog):
    """A doorbell's and an endpoint's, given or made, replaced ones too; none is said but in the answer that made it."""
    caplog.set_level(logging.DEBUG)
    receiver = receive(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
    join(face, "writer", "researcher", "ann", "bob")
    given = ["whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in range(1, 4)]
    url = receiver.url
    face.call("agent.register", agent_id="ann", webhook_url=url, webhook_secret=given[0])
    face.call("agent.register", agent_id="ann", webhook_url=url, webhook_secret=given[1])
    made = [face.call("agent.register", agent_id="bob", webhook_url=url)["webhook_secret"]]
    first = face.call("webhook.add", url=url, secret=given[2])["webhook"]
    made.append(face.call("webhook.add", url=url)["secret"])
    for agent_id in ("ann", "bob"):
        face.call("msg.send", from_="writer", to=agent_id, content="x")
    eventually(lambda: len(face.call("webhook.attempts")["attempts"]) > 3)
    canaries = [secret.removeprefix("whsec_") for secret in (*given, *made)]
    canaries += [base64.b64decode(one).hex() for one in canaries]
    said = [str(face.call("webhook.attempts", id=first["id"]))]
    for name, bad in (
        ("agent.register", {"agent_id": "cat", "webhook_url": "http://", "webhook_secret": given[0]}),
        ("agent.register", {"agent_id": "cat", "webhook_url": url, "webhook_secret": given[0] + "!"}),
        ("webhook.add", {"url": "http://", "secret": given[2]}),
        ("webhook.add", {"url": url, "secret": given[2] + "!"}),
    ):
        with pytest.raises(MuxError) as caught:
            face.call(name, **bad)
        said.append(str(caught.value.body()))
    for operation in READS:
        waits = {"timeout": 0} if "timeout" in operation.by_name else {}
        try:
            said.append(str(face.call(operation.name, **dict(operation.example) | waits)))
        except MuxError as error:
            said.append(str(error.body()))
    said.append(str(face.call("audit.export")))
    said.append(str(face.call("metrics")))
    with program.store.read() as rx:
        for table in ("event", "audit", "attempt", "message", "forward"):
            rows = rx.sql(f"select * from {table}")
            assert rows, table
            said += [json.dumps([str(value) for value in row]) for row in rows]
    said += [record.getMessage() + str(record.exc_info or "") for record in caplog.records]
    assert any("agent.register" in text for text in said), "the audit log was looked at"
    for text in said:
        for canary in canaries:
            assert canary not in text
