"""License keys: typos are refused offline."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stonemux import licensekey
from stonemux.errors import MuxError
from stonemux.licensekey import Key

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
CHANCE = random.Random(7)
KEYS = [Key(CHANCE.choice(("pro", "enterprise")), CHANCE.getrandbits(40), CHANCE.getrandbits(25)) for _ in range(60)]


def accepted(text):
    """What a text says, or None when it is refused as a key is; never with the text itself."""
    try:
        return licensekey.parse(text)
    except MuxError as error:
        refused = error
    assert refused.code in ("license_malformed", "license_checksum")
    assert len(text) < 22 or text not in refused.message
    return None


def places(text):
    return [at for at in range(3, len(text)) if text[at] != "-"]


def test_a_key_says_what_it_was_made_of():
    for key in KEYS:
        assert len(key.text) == 22
        assert licensekey.parse(key.text) == key


def test_a_key_that_was_typed_once_means_the_same_for_ever():
    assert licensekey.parse("SX-5000-0000-1000-02F6") == Key("pro", 1, 2)
    assert Key("enterprise", 2**40 - 1, 2**25 - 1).text == "SX-6ZZZ-ZZZZ-ZZZZ-ZZXE"


def test_none_of_29760_single_wrong_characters_is_accepted():
    tried = 0
    for key in KEYS:
        text = key.text
        for at in places(text):
            for letter in ALPHABET:
                if letter != text[at]:
                    tried += 1
                    assert accepted(text[:at] + letter + text[at + 1 :]) is None
    assert tried == 29_760


def test_no_swap_of_neighbours_is_accepted():
    tried = 0
    for key in KEYS:
        text = key.text
        for one, other in zip(places(text), places(text)[1:], strict=False):
            if text[one] != text[other]:
                swapped = list(text)
                swapped[one], swapped[other] = text[other], text[one]
                tried += 1
                assert accepted("".join(swapped)) is None
    assert tried > 800


def test_what_looks_alike_is_read_as_what_was_meant():
    key = next(key for key in KEYS if "0" in key.text[3:] and "1" in key.text[3:])
    text = key.text
    for typed in (text.lower(), f"  {text}\n", "SX" + text[2:].replace("0", "O").replace("1", "l")):
        assert licensekey.parse(typed) == key
        assert licensekey.fingerprint(typed) == licensekey.fingerprint(text)


def test_few_of_many_random_texts_pass():
    passed = 0
    for _ in range(20_000):
        letters = "".join(CHANCE.choices(ALPHABET, k=16))
        passed += accepted("SX-" + "-".join(letters[n : n + 4] for n in range(0, 16, 4))) is not None
    assert passed < 20


@pytest.mark.parametrize(
    "text",
    [
        *("", "SX", "SX-", "SX-0000-0000-0000", "SX-0000-0000-0000-0000-0000"),
        *("SX-UUUU-0000-0000-0000", "SX" + "0" * 16),
        "SX-000000000000-0000",
        "ＳＸ-0000-0000-0000-0000",
        "SX-٠٠٠٠-0000-0000-0000",
        "XS-0000-0000-0000-0000",
        "x" * 10_000,
    ],
)
def test_what_has_another_form_is_malformed(text):
    with pytest.raises(MuxError) as caught:
        licensekey.parse(text)
    assert caught.value.code == "license_malformed"


@given(st.text(max_size=200))
def test_any_text_is_refused_with_a_code(text):
    accepted(text)


@given(st.text(alphabet=ALPHABET + "OILU-SX", max_size=24))
def test_near_texts_are_refused_with_a_code(text):
    found = accepted("SX-" + text)
    assert found is None or found.text.count("-") == 4
