"""The licensor's side: the keys that sign licenses and commands, and the licenses that were issued.

Everything is in the folder `issuer` of the data directory, readable by its owner only:

    issuer.key       signs licenses; the daemon of this data directory trusts its public half
    revocation.key   signs the commands that end or restore a license
    licenses/        each signed license, under the fingerprint of its key (the key itself is not stored)
    commands/        the last command for each license

Anyone who can read this folder can issue any license. Without a license server that is the machine's owner, as it
should be.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from stonemux import ed25519, license, licensekey
from stonemux.clock import Clock, rfc3339
from stonemux.datadir import write_private
from stonemux.entitlement import ISSUER, ISSUER_KEY, read_half
from stonemux.errors import MuxError
from stonemux.licensekey import CODE_BITS, SERIAL_BITS, Key
from stonemux.record import replace

REVOCATION_KEY = "revocation.key"


class Issuer:
    """The issuer in a data directory."""

    def __init__(self, data_dir: Path, clock: Clock, *, create: bool = False) -> None:
        """Open the issuer; raises `license_unknown` if there is none and `create` is not set."""
        self._folder = data_dir / ISSUER
        self._clock = clock
        if not (self._folder / ISSUER_KEY).exists():
            if not create:
                raise MuxError(
                    "license_unknown",
                    f"{data_dir} has no issuer; to issue licenses, create one with: stonemux license issue --tier pro",
                )
            for folder in (data_dir, self._folder, self._folder / "licenses", self._folder / "commands"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_pair(REVOCATION_KEY)
            self._make_pair(ISSUER_KEY)
        self._seed, self.public = self._pair(ISSUER_KEY)

    @property
    def name(self) -> str:
        """The id of the issuer's key."""
        return license.key_id(self.public)

    def _make_pair(self, name: str) -> None:
        seed = bytes.fromhex(self._clock.token(32))
        self._write(name, {"seed": seed.hex(), "public": ed25519.public_key(seed).hex()})

    def _pair(self, name: str) -> tuple[bytes, bytes]:
        try:
            return read_half(self._folder / name, "seed"), read_half(self._folder / name, "public")
        except (OSError, ValueError) as trouble:
            raise MuxError(
                "license_invalid",
                f"{self._folder / name} cannot be read as a key ({trouble}); restore it from its backup",
            ) from trouble

    def _write(self, name: str, document: dict[str, Any]) -> None:
        write_private(self._folder / name, json.dumps(document, indent=2) + "\n")

    # -- licenses

    def issue(
        self, tier: str, *, seats: int | None = None, not_after: int | None = None, require_tokens: bool = False
    ) -> tuple[str, dict[str, Any]]:
        """Issue a license: its key, which is shown only now, and the signed document."""
        serial = int(self._clock.token(SERIAL_BITS // 8), 16)
        key = Key(tier, serial, 0)
        key = replace(key, code=self._code(key))
        document = {
            "lic_id": f"lic-{self._clock.token(6)}",
            "key_sha256": licensekey.fingerprint(key.text),
            "tier": tier,
            "seats": seats,
            "issued": rfc3339(self._clock.now_ms()),
            "not_after": None if not_after is None else rfc3339(not_after),
            "issuer_key_id": self.name,
            "revocation_key": self._pair(REVOCATION_KEY)[1].hex(),
            "require_tokens": require_tokens,
        }
        document = license.signed(license.LICENSE, document, self._seed)
        self._write(f"licenses/{document['key_sha256']}.json", document)
        return key.text, document

    def find(self, key: str) -> dict[str, Any]:
        """The license of a key; raises `license_malformed`, `license_checksum`, or `license_unknown`."""
        from hmac import compare_digest

        parsed = licensekey.parse(key)
        genuine = compare_digest(parsed.code.to_bytes(4), self._code(parsed).to_bytes(4))
        path = self._folder / "licenses" / f"{licensekey.fingerprint(key)}.json"
        if not genuine or not path.exists():
            raise MuxError("license_unknown", "this issuer has issued no license with that key")
        return license.decode(path.read_bytes())

    def licenses(self) -> list[dict[str, Any]]:
        """All issued licenses, oldest first."""
        found = [license.decode(path.read_bytes()) for path in (self._folder / "licenses").glob("*.json")]
        return sorted(found, key=lambda document: (document["issued"], document["lic_id"]))

    def _code(self, key: Key) -> int:
        """The issuer's own code in a key, which nobody else can make or verify."""
        from hashlib import sha256
        from hmac import digest

        secret = sha256(b"stonemux license keys\n" + self._seed).digest()
        return int.from_bytes(digest(secret, key.named.to_bytes(8), "sha256")) >> 256 - CODE_BITS

    # -- commands

    def command(self, cmd: str, lic_id: str) -> dict[str, Any]:
        """Sign a new command for a license; raises `license_unknown`."""
        if all(document["lic_id"] != lic_id for document in self.licenses()):
            raise MuxError(
                "license_unknown", f"this issuer has given out no license {lic_id!r}; see: stonemux license show"
            )
        last = self.last_command(lic_id)
        document = {
            "cmd": cmd,
            "lic_id": lic_id,
            "serial": (last["serial"] if last is not None else 0) + 1,
            "issued": rfc3339(self._clock.now_ms()),
            "nonce": self._clock.token(8),
        }
        document = license.signed(license.SIGIL, document, self._pair(REVOCATION_KEY)[0])
        self._write(f"commands/{lic_id}.json", document)
        return document

    def last_command(self, lic_id: str) -> dict[str, Any] | None:
        """The last command for a license; None if there was none."""
        with contextlib.suppress(FileNotFoundError):
            return license.decode((self._folder / "commands" / f"{lic_id}.json").read_bytes(), license.SIGIL)
        return None
