"""What this daemon may do at the moment: its tier."""

from __future__ import annotations

from stonemux.config import Settings
from stonemux.errors import MuxError


class Entitlement:
    """The tier in force; `tier` is read on every call."""

    def __init__(self, settings: Settings) -> None:
        self.tier = settings.default_tier

    def recognize(self, license_key: str) -> str:
        """The id of the active license if this is its key; raises `license_mismatch`."""
        raise MuxError(
            "license_mismatch",
            "no license is active here, so no key fits; the machine's owner makes tokens with: stonemux token "
            "--agent NAME",
        )
