"""Signatures of deliveries, following Standard Webhooks 1.0.0, so that any of its libraries can verify them.

`webhook-signature` is a space-separated list; an entry is `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`,
keyed with the secret's bytes. While a secret is being replaced, the list has an entry for the new and one for the old.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

PREFIX = "whsec_"
LEAST_BYTES, MOST_BYTES = 24, 64


def make_secret(random_hex: str) -> str:
    """A secret made from these random bytes."""
    return PREFIX + base64.b64encode(bytes.fromhex(random_hex)).decode()


def secret_bytes(secret: str) -> bytes | None:
    """The bytes of a secret; None unless it is `whsec_` and the base64 of 24 to 64 bytes."""
    if not secret.startswith(PREFIX) or not secret.isascii():
        return None
    text = secret.removeprefix(PREFIX)
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    canonical = base64.b64encode(found).decode() == text
    return found if canonical and LEAST_BYTES <= len(found) <= MOST_BYTES else None


def headers(secrets: Iterable[str], wire_id: str, seconds: int, body: bytes) -> dict[str, str]:
    """The three headers of one attempt."""
    import hmac  # loads OpenSSL, which startup does not need

    signed = f"{wire_id}.{seconds}.".encode() + body
    found = []
    for secret in secrets:
        key = secret_bytes(secret)
        assert key is not None
        found.append("v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode())
    return {"webhook-id": wire_id, "webhook-timestamp": str(seconds), "webhook-signature": " ".join(found)}
