"""What this daemon may do right now: its tier and how many agents it may have.

The tier always binds; only its source differs. A license sets the tier until it expires or a command (a sigil) ends it.
A license that is not valid means free. Without a license, the machine's owner decides (`license.default_tier`), unless
a license server is set, which means free until a key is activated.

`tier` and `seats` are plain attributes that every call reads; code that changes what they depend on calls `settle`,
which notifies `watchers`. A change of tier neither touches nor hides any stored data.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from stonemux import license, licensekey
from stonemux.clock import Clock
from stonemux.config import Settings
from stonemux.errors import MuxError
from stonemux.license import License, Sigil

log = logging.getLogger("stonemux")

FREE_SEATS = 2
"""How many agents the free tier allows."""
ISSUER = "issuer"
"""The folder in the data directory that holds a licensor's keys, if this machine has any."""
ISSUER_KEY = "issuer.key"


class Entitlement:
    """The license in force and what follows from it."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._sigils: dict[str, Sigil] = {}
        self.license: License | None = None
        """The license in the file, if it was verified; it may have expired."""
        self.problem = ""
        """Why the license in the file is not valid; "" if it is, or if there is none."""
        self.tier = settings.default_tier
        self.seats: int | None = None
        """How many agents may be registered; None means any number."""
        self.changes_at: int | None = None
        """When the license expires."""
        self.watchers: list[Callable[[], None]] = []
        """Called after every change."""

    @property
    def dead(self) -> bool:
        """Whether a command has ended the license."""
        last = self._sigils.get(self.license.lic_id) if self.license is not None else None
        return last is not None and last.cmd == "die"

    def start(self, sigils: Iterable[Sigil]) -> None:
        """Load the last command for each license, then the license itself."""
        self._sigils = {sigil.lic_id: sigil for sigil in sigils}
        self.reload()

    def reload(self) -> None:
        """Read the license file again and notify the watchers."""
        self.look()
        if self.problem:
            log.error("%s: %s. Running on the free tier", self._settings.license_key_file, self.problem)
        self._tell()

    def look(self) -> None:
        """Read the license file and work out what follows from it, without notifying anyone."""
        self.license, self.problem = None, ""
        try:
            text = self._settings.license_key_file.read_bytes()
            self.license = license.read_license(license.decode(text), self.trusted())
        except FileNotFoundError:
            pass  # no license, which is no problem
        except OSError as error:
            self.problem = f"the license cannot be read: {error.strerror}"
        except MuxError as error:
            self.problem = error.message
        self._work_out()

    def trusted(self) -> dict[str, bytes]:
        """The public keys of the trusted issuers by id: those in the settings, and this machine's own."""
        keys = [bytes.fromhex(text) for text in self._settings.trusted_issuers]
        own = own_issuer(self._settings.data_dir)
        return {license.key_id(key): key for key in [*keys, *([own] if own else [])]}

    def settle(self) -> None:
        """Work out the tier as of now and notify the watchers."""
        before = self.tier
        self._work_out()
        if self.tier != before:
            log.warning("the tier is now %s; it was %s", self.tier, before)
        self._tell()

    def _tell(self) -> None:
        for watcher in self.watchers:
            watcher()

    def _work_out(self) -> None:
        now = self._clock.now_ms()
        granted, self.changes_at = self.license, None
        if granted is None:
            known = not self.problem and not self._settings.license_server
            self.tier, self.seats = (self._settings.default_tier if known else "free"), None
        elif self.dead or (granted.not_after is not None and granted.not_after <= now):
            self.tier, self.seats = "free", None
        else:
            self.tier, self.seats, self.changes_at = granted.tier, granted.seats, granted.not_after
        if self.tier == "free":
            self.seats = FREE_SEATS

    @property
    def active(self) -> License | None:
        """The license, while it grants more than the free tier."""
        return self.license if self.tier != "free" else None

    @property
    def good_for(self) -> tuple[str, ...]:
        """The licenses whose tokens are valid: the one in the file, unless a command has ended it."""
        return () if self.license is None or self.dead else (self.license.lic_id,)

    @property
    def asks_for_tokens(self) -> bool:
        """Whether the active license requires a token with every call."""
        return self.active is not None and self.active.require_tokens

    def obey(self, sigil: Sigil) -> None:
        """Apply a command to its license from now on."""
        self._sigils = self._sigils | {sigil.lic_id: sigil}
        log.warning("license %s: the command %r is now in effect", sigil.lic_id, sigil.cmd)
        self.settle()

    def recognize(self, license_key: str) -> str:
        """The id of the active license if this is its key.

        Raises `license_malformed`, `license_checksum`, or `license_mismatch`.
        """
        from hmac import compare_digest

        shown = licensekey.fingerprint(license_key)
        granted = self.active
        if granted is None or not compare_digest(shown, granted.key_sha256):
            raise MuxError(
                "license_mismatch",
                "the key does not belong to the license that is active on this daemon; the machine's owner makes "
                "tokens without a key: stonemux token --agent NAME",
            )
        return granted.lic_id


def own_issuer(data_dir: Path) -> bytes | None:
    """The public key of this machine's own issuer; None if it has none."""
    try:
        return read_half(data_dir / ISSUER / ISSUER_KEY, "public")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.error("this machine's issuer key cannot be read: %s", error)
        return None


def read_half(file: Path, half: str) -> bytes:
    """One half of a key pair, `seed` or `public`; raises OSError, or ValueError if the file does not hold it."""
    try:
        found = bytes.fromhex(json.loads(file.read_bytes())[half])
    except (KeyError, TypeError):
        raise ValueError(f"it has no {half} key") from None
    if len(found) != 32:
        raise ValueError(f"its {half} key does not have 32 bytes")
    return found
