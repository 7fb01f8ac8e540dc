"""License keys as people type them: `SX-XXXX-XXXX-XXXX-XXXX`.

Sixteen characters of Crockford's base32 hold 80 bits: version 3, tier 2, serial 40, the issuer's code 25, checksum 10.
That is too few for a signature: a key only identifies a license, and the signed document behind it says what is allowed
(see `license`). The checksum detects typos offline: as a CRC of degree 10 it detects every change within ten
neighboring bits, so every single wrong character and every swap of two adjacent ones. The issuer's code is an HMAC that
only the issuer can verify.
"""

from __future__ import annotations

import re

from stonemux.errors import MuxError
from stonemux.record import Record
from stonemux.schema import TIERS

VERSION = 1
SERIAL_BITS, CODE_BITS = 40, 25
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MEANT = str.maketrans({"O": "0", "I": "1", "L": "1"})
"""Letters that are read as the digits they look like."""
_SHAPE = r"SX(-[0-9A-Z]{4}){4}"
_CRC_BITS, _CRC = 10, 0x633
"""x^10 + x^9 + x^5 + x^4 + x + 1."""


class Key(Record):
    """The contents of a key."""

    tier: str
    serial: int
    code: int

    @property
    def text(self) -> str:
        """The key as people type it."""
        bits = self.named << CODE_BITS | self.code
        whole = bits << _CRC_BITS | _remainder(bits)
        letters = "".join(_ALPHABET[whole >> 5 * n & 31] for n in range(15, -1, -1))
        return "SX-" + "-".join(letters[n : n + 4] for n in range(0, 16, 4))

    @property
    def named(self) -> int:
        """The bits that the issuer's code is computed over."""
        return (VERSION << 2 | TIERS.index(self.tier)) << SERIAL_BITS | self.serial


def parse(text: str) -> Key:
    """The contents of a typed key; ignores case and outer spaces. Raises `license_malformed` or `license_checksum`."""
    typed = text.strip().upper()
    letters = typed[2:].replace("-", "").translate(_MEANT)
    if len(text) > 128 or not typed.isascii() or not re.fullmatch(_SHAPE, typed) or set(letters) - set(_ALPHABET):
        raise MuxError(
            "license_malformed",
            "a license key looks like SX-XXXX-XXXX-XXXX-XXXX, with digits and letters other than U; type it again",
            parameter="license_key",
        )
    whole = 0
    for letter in letters:
        whole = whole << 5 | _ALPHABET.index(letter)
    bits = whole >> _CRC_BITS
    tier = bits >> CODE_BITS + SERIAL_BITS & 3
    version = bits >> CODE_BITS + SERIAL_BITS + 2
    if whole & (1 << _CRC_BITS) - 1 != _remainder(bits) or version != VERSION or not 0 < tier < len(TIERS):
        raise MuxError(
            "license_checksum",
            "the license key contains a typo: its checksum does not match; compare it with the one you were given",
            parameter="license_key",
        )
    return Key(TIERS[tier], bits >> CODE_BITS & (1 << SERIAL_BITS) - 1, bits & (1 << CODE_BITS) - 1)


def fingerprint(text: str) -> str:
    """A stand-in for a key that must not be stored: the SHA-256 of its canonical text, in hexadecimal."""
    from hashlib import sha256  # loads OpenSSL, which most commands do not need

    return sha256(parse(text).text.encode()).hexdigest()


def _remainder(bits: int) -> int:
    """The CRC of 70 bits."""
    rest = bits << _CRC_BITS
    for at in range(rest.bit_length() - 1, _CRC_BITS - 1, -1):
        if rest >> at & 1:
            rest ^= _CRC << at - _CRC_BITS
    return rest
