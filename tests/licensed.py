"""Licenses and tokens for tests, from the machine's own issuer and owner."""

from __future__ import annotations

import base64
import json

from stonemux.issuer import Issuer


def issue(program, tier="pro", **terms):
    """Issue a license with the machine's own issuer; returns its key and document."""
    return Issuer(program.path, program.clock, create=True).issue(tier, **terms)


def put(face, document):
    """Install a license document and let the program load it."""
    face.mux.settings.license_key_file.write_text(document if isinstance(document, str) else json.dumps(document))
    return face.call("license.reload")


def issued(face, agent_id=None):
    """A token issued by the machine's owner."""
    held, face.token = face.token, None
    try:
        return face.call("token.issue", agent_id=agent_id)["token"]
    finally:
        face.token = held


def claims_of(token):
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
