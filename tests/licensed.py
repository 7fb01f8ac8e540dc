"""Licenses and tokens for tests, by the machine's own issuer and owner."""

from __future__ import annotations

import base64
import json

from stonemux.issuer import Issuer


def issue(program, tier="pro", **terms):
    """A license by the machine's own issuer: its key and document."""
    return Issuer(program.path, program.clock, create=True).issue(tier, **terms)


def put(face, document):
    """Put a document in its place and let the program take it up."""
    face.mux.settings.license_key_file.write_text(document if isinstance(document, str) else json.dumps(document))
    return face.call("license.reload")


def issued(face, agent_id=None):
    """A token that the machine's owner made."""
    held, face.token = face.token, None
    try:
        return face.call("token.issue", agent_id=agent_id)["token"]
    finally:
        face.token = held


def claims_of(token):
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
