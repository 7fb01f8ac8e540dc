"""Signatures, against the library that receivers use."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from stonemux import signature

SECRET = signature.make_secret("5a" * 32)
OTHER = signature.make_secret("a5" * 24)


@given(st.dictionaries(st.text(max_size=9), st.text(max_size=99), max_size=5))
def test_standardwebhooks_verifies_what_we_sign(data):
    body = json.dumps(data).encode()
    made = signature.headers([SECRET], "ring_1", int(time.time()), body)
    assert Webhook(SECRET).verify(body, made) == data
    for broken in (body + b" ", b"{}  "):
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(broken, made)
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(body, made)


def test_while_a_secret_is_replaced_the_old_and_the_new_verify():
    made = signature.headers([SECRET, OTHER], "ring_1", int(time.time()), b"{}")
    assert len(made["webhook-signature"].split(" ")) == 2
    for secret in (SECRET, OTHER):
        assert Webhook(secret).verify(b"{}", made) == {}


@pytest.mark.parametrize(
    "text",
    [
        *("", "secret", "whsec_", "whsec_" + "A" * 30, "whsec_" + "A" * 31 + "B=", "whsec_é", "whsec_" + "A" * 92),
        *(SECRET.removeprefix("whsec_"), SECRET + "\n", SECRET.replace("_", "-"), SECRET[:-1]),
    ],
)
def test_what_is_no_secret(text):
    assert signature.secret_bytes(text) is None


def test_a_made_secret_has_its_bytes():
    assert signature.secret_bytes(signature.make_secret("ab" * 24)) == b"\xab" * 24
