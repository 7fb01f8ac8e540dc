"""Nothing secret is ever said: canaries in every place that holds a secret, and a look at everything that is said."""

from __future__ import annotations

import json
import logging

from faces import join, refusal
from test_license import issue, put

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
