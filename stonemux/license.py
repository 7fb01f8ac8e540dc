"""The signed documents behind a license: the license itself, and the commands ("sigils") that end or restore it.

Both are flat JSON objects with a `signature` (Ed25519, in hexadecimal) over their canonical text: JSON with sorted keys
and no whitespace, after a line that names the kind of document, so that neither kind passes for the other. A license is
signed by its issuer, whom the machine's owner trusts. It names the key that signs its commands, so a license server
does not need the issuer's own key for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stonemux import chain
from stonemux.clock import DAY_MS, moment
from stonemux.errors import MuxError
from stonemux.record import Record
from stonemux.schema import TIERS

MOST_DOCUMENT = 16 * 1024
LICENSE, SIGIL = "stonemux license v1", "stonemux sigil v1"
SIGIL_MS = 90 * DAY_MS
"""A command that is older than this is refused."""
SIGIL_SKEW_MS = DAY_MS
"""How far in the future a command may be dated."""
COMMANDS = ("die", "live")
_HEX_64 = r"[0-9a-f]{64}"
_ID = r"lic-[0-9a-f]{12}"


class License(Record):
    """A verified license. Times are milliseconds since the epoch."""

    lic_id: str
    key_sha256: str
    tier: str
    seats: int | None
    issued: int
    not_after: int | None
    issuer_key_id: str
    revocation_key: bytes
    require_tokens: bool


class Sigil(Record):
    """A verified command."""

    cmd: str
    lic_id: str
    serial: int
    issued: int


def key_id(public: bytes) -> str:
    """The id of a public key."""
    from hashlib import sha256

    return sha256(public).hexdigest()[:16]


def canonical(kind: str, document: Mapping[str, Any]) -> bytes:
    """The bytes of a document that are signed."""
    told = {name: value for name, value in document.items() if name != "signature"}
    return f"{kind}\n{chain.canonical(told)}".encode()


def signed(kind: str, document: Mapping[str, Any], seed: bytes) -> dict[str, Any]:
    """The document with its signature."""
    from stonemux import ed25519

    return {**document, "signature": ed25519.sign(seed, canonical(kind, document)).hex()}


class _Flaw(Exception):
    """Why a document is not valid."""


@contextmanager
def _examined(kind: str) -> Iterator[None]:
    """Turn a flaw found in the block into the refusal for this kind of document."""
    try:
        yield
    except _Flaw as flaw:
        code, what = ("license_invalid", "license") if kind == LICENSE else ("sigil_refused", "command")
        raise MuxError(code, f"the {what} is not valid: {flaw}") from None


def decode(text: bytes | str, kind: str = LICENSE) -> dict[str, Any]:
    """A document's text as an object; raises `license_invalid`, or `sigil_refused` for a command."""
    with _examined(kind):
        if len(text) <= MOST_DOCUMENT:
            try:
                document = json.loads(text, parse_float=_refuse, parse_constant=_refuse)
                if type(document) is dict:
                    return document
            except (ValueError, RecursionError):
                pass
        raise _Flaw("it is not a JSON object of at most 16 KiB, without fractions")


def _refuse(number: str) -> Any:
    """No document has fractions, and infinity and NaN cannot be written as JSON again."""
    raise ValueError


def read_license(document: Mapping[str, Any], trusted: Mapping[str, bytes]) -> License:
    """The license that a document grants, if one of the trusted issuers (public keys by their id) has signed it.

    Raises `license_invalid`, which says why it grants nothing.
    """
    with _examined(LICENSE):
        found = _license(document)
        public = trusted.get(found.issuer_key_id)
        if public is None:
            raise _Flaw(
                f"its issuer ({found.issuer_key_id}) is not one that this machine trusts; if you trust it, add its "
                "public key to license.trusted_issuers"
            )
        _check_signature(LICENSE, document, public)
    return found


def _license(document: Mapping[str, Any]) -> License:
    return License(
        lic_id=_text(document, "lic_id", _ID),
        key_sha256=_text(document, "key_sha256", _HEX_64),
        tier=_one_of(document, "tier", TIERS[1:]),
        seats=_seats(document.get("seats")),
        issued=_moment(document.get("issued"), "issued"),
        not_after=None if document.get("not_after") is None else _moment(document["not_after"], "not_after"),
        issuer_key_id=_text(document, "issuer_key_id", "[0-9a-f]{16}"),
        revocation_key=bytes.fromhex(_text(document, "revocation_key", _HEX_64)),
        require_tokens=document.get("require_tokens") is True,
    )


def read_sigil(document: Mapping[str, Any], granted: License, now: int) -> Sigil:
    """The command that a document holds for this license; raises `sigil_refused`."""
    with _examined(SIGIL):
        found = Sigil(
            cmd=_one_of(document, "cmd", COMMANDS),
            lic_id=_text(document, "lic_id", _ID),
            serial=_serial(document.get("serial")),
            issued=_moment(document.get("issued"), "issued"),
        )
        if found.lic_id != granted.lic_id:
            raise _Flaw("it is for another license")
        _check_signature(SIGIL, document, granted.revocation_key)
        if not now - SIGIL_MS < found.issued <= now + SIGIL_SKEW_MS:
            raise _Flaw("it is older than 90 days, or from the future")
    return found


def _check_signature(kind: str, document: Mapping[str, Any], public: bytes) -> None:
    from stonemux import ed25519

    signature = bytes.fromhex(_text(document, "signature", "[0-9a-f]{128}"))
    if not ed25519.verify(public, canonical(kind, document), signature):
        raise _Flaw("its signature does not match: it was changed or was never genuine")


def _text(document: Mapping[str, Any], name: str, pattern: str) -> str:
    value = document.get(name)
    if type(value) is not str or not re.fullmatch(pattern, value):
        raise _Flaw(f"its {name} is missing or malformed")
    return value


def _one_of(document: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = document.get(name)
    if value not in choices or type(value) is not str:
        raise _Flaw(f"its {name} is none of: {', '.join(choices)}")
    return value


def _seats(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 < value < 2**31):
        raise _Flaw("its seats are not a number of agents")
    return value


def _serial(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**62:
        raise _Flaw("its serial is not a number above 0")
    return value


def _moment(value: Any, name: str) -> int:
    try:
        return moment(value if type(value) is str else "")
    except ValueError:
        raise _Flaw(f"its {name} is not a time") from None
