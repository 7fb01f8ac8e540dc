"""Activating and deactivating a license from the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stonemux import license, licenseclient, licensekey
from stonemux.clock import Clock, rfc3339
from stonemux.config import Settings
from stonemux.datadir import read_head, read_install, read_owner_token, write_private
from stonemux.entitlement import Entitlement
from stonemux.errors import MuxError
from stonemux.issuer import Issuer
from stonemux.screen import counted


def activate(settings: Settings, key: str | None, file: str | None) -> dict[str, Any]:
    """Find the license for a key (or in a file), check it, and write it to the configured path; returns it.

    Raises `license_malformed`, `license_checksum`, `license_unknown`, `license_invalid`, or `unreachable`.
    """
    clock = Clock()
    document = _from_file(file) if file is not None else _of_key(settings, key or "", clock)
    granted = license.read_license(document, Entitlement(settings, clock).trusted())
    if key is not None and granted.key_sha256 != licensekey.fingerprint(key):
        raise MuxError("license_invalid", "the license received is for another key; nothing was changed")
    if granted.not_after is not None and granted.not_after <= clock.now_ms():
        raise MuxError("license_invalid", f"the license expired at {document['not_after']}; nothing was changed")
    settings.license_key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(settings.license_key_file, json.dumps(document, indent=2) + "\n")
    return document


def _from_file(file: str) -> dict[str, Any]:
    try:
        return license.decode(Path(file).read_bytes())
    except OSError as trouble:
        raise MuxError("not_found", f"{file} cannot be read: {trouble.strerror}") from trouble


def _of_key(settings: Settings, key: str, clock: Clock) -> dict[str, Any]:
    licensekey.parse(key)
    try:
        return Issuer(settings.data_dir, clock).find(key)
    except MuxError as error:
        if error.code != "license_unknown":
            raise
        if not settings.license_server:
            raise MuxError(
                "license_unknown",
                "no issuer on this machine has issued a license with that key, and [license] license_server is not "
                "set; set it to your licensor's, or ask for the license as a file: stonemux activate --file FILE",
            ) from error
    install_id, _ = read_install(settings.data_dir, clock.new_id)
    try:
        answer = licenseclient.post(settings.license_server, "/activate", {"key": key, "install_id": install_id})
    except licenseclient.NoUse as trouble:
        raise _refused(settings, trouble) from trouble
    if type(answer.get("license")) is not dict:
        raise MuxError("license_invalid", f"{settings.license_server} did not answer with a license")
    return dict(answer["license"])


def _refused(settings: Settings, trouble: licenseclient.NoUse) -> MuxError:
    if 400 <= trouble.status < 500:
        return MuxError("license_unknown", f"{settings.license_server} has issued no license with that key")
    return MuxError(
        "unreachable",
        f"the license server {settings.license_server} cannot be reached ({trouble}); try again later, or ask your "
        "licensor for the license as a file: stonemux activate --file FILE",
    )


def deactivate(settings: Settings) -> Path:
    """Rename the active license file; returns its new path. Raises `license_unknown` if there is none."""
    kept = settings.license_key_file.with_name(settings.license_key_file.name + ".deactivated")
    try:
        os.replace(settings.license_key_file, kept)
    except FileNotFoundError:
        raise MuxError("license_unknown", f"no license is active: there is no {settings.license_key_file}") from None
    return kept


def take_up(settings: Settings) -> str:
    """Have a running daemon read the license again; returns the outcome in words."""
    if read_owner_token(settings.data_dir, settings.authority) is None:
        return "no daemon is running here; the next one will start with it"
    from stonemux import owner  # imports the whole program

    told = owner.call(settings, "license.reload", {})
    problem = f" ({told['problem']})" if "problem" in told else ""
    return f"the running daemon's tier is now {told['tier']}{problem}"


def words(document: dict[str, Any]) -> str:
    """A license in a few words."""
    seats = counted(document["seats"], "agent") if document["seats"] is not None else "unlimited agents"
    until = f"until {document['not_after']}" if document["not_after"] else "no expiration"
    return f"{document['tier']}, {seats}, {until}"


def standing(settings: Settings) -> dict[str, Any]:
    """What the active license grants, as a daemon that starts now would see it."""
    entitlement = Entitlement(settings, Clock(read_head(settings.data_dir).at))
    entitlement.look()
    granted = entitlement.license
    told: dict[str, Any] = {"tier": entitlement.tier, "seats": entitlement.seats, "lic_id": None, "not_after": None}
    if granted is not None:
        told |= {
            "lic_id": granted.lic_id,
            "not_after": None if granted.not_after is None else rfc3339(granted.not_after),
        }
    return told | ({"problem": entitlement.problem} if entitlement.problem else {})


def standing_words(told: dict[str, Any]) -> str:
    """The same for people."""
    if "problem" in told:
        return f"{told['tier']}; {told['problem']}"
    if told["lic_id"] is None:
        return f"{told['tier']}; no license; the settings decide"
    return (
        f"{told['tier']}; license {told['lic_id']}, "
        f"{'until ' + told['not_after'] if told['not_after'] else 'no expiration'}"
    )
