"""Ed25519 against the vectors of RFC 8032 and of the Wycheproof project."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stonemux import ed25519

VECTORS = [
    line.split(" ")
    for line in (Path(__file__).parent / "vectors" / "ed25519.txt").read_text().splitlines()
    if not line.startswith("#")
]
RFC = (  # section 7.1: seed, public key, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
)
ORDER = 2**252 + 27742317777372353535851937790883648493


def octets(text):
    return b"" if text == "-" else bytes.fromhex(text)


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC)
def test_the_vectors_of_the_standard(seed, public, message, signature):
    assert ed25519.public_key(bytes.fromhex(seed)).hex() == public
    assert ed25519.sign(bytes.fromhex(seed), bytes.fromhex(message)).hex() == signature
    assert ed25519.verify(*map(bytes.fromhex, (public, message, signature)))


def test_all_wycheproof_vectors_are_there():
    assert len(VECTORS) == 210
    assert {verdict for _, verdict, *_ in VECTORS} == {"valid", "invalid", "acceptable"}


def test_each_wycheproof_vector_is_judged_as_it_says():
    for number, verdict, public, signature, message in VECTORS:
        accepted = ed25519.verify(octets(public), octets(message), octets(signature))
        assert verdict == "acceptable" or accepted == (verdict == "valid"), number


def test_what_is_no_seed_or_no_point_is_no_key():
    for seed in (b"", bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="32 bytes"):
            ed25519.public_key(seed)
    assert not ed25519.verify((2).to_bytes(32, "little"), b"x", bytes(64)), "no point has this y"


def test_a_signature_has_one_spelling():
    seed = bytes(range(32))
    public, good = ed25519.public_key(seed), ed25519.sign(seed, b"x")
    s = int.from_bytes(good[32:], "little")
    assert ed25519.verify(public, b"x", good)
    assert not ed25519.verify(public, b"x", good[:32] + (s + ORDER).to_bytes(32, "little"))
    y = int.from_bytes(public, "little")
    assert not ed25519.verify((y + 2**255 - 19).to_bytes(33, "little")[:32], b"x", good)
    for odd in (b"", good[:-1], good + b"\0"):
        assert not ed25519.verify(public, b"x", odd)
    for odd in (b"", public[:-1], public + b"\0", b"\xff" * 32, (2**255 - 19 + 1).to_bytes(32, "little")):
        assert not ed25519.verify(odd, b"x", good)


@settings(max_examples=25)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=64), st.integers(0, 511))
def test_what_is_signed_verifies_and_nothing_near_it(seed, message, bit):
    public, signature = ed25519.public_key(seed), ed25519.sign(seed, message)
    assert ed25519.verify(public, message, signature)
    flipped = bytearray(signature)
    flipped[bit // 8] ^= 1 << bit % 8
    assert not ed25519.verify(public, message, bytes(flipped))
    assert not ed25519.verify(public, message + b"\0", signature)
