"""License operations: show it, reload its file, and apply the commands that end or restore it."""

from __future__ import annotations

from typing import Any

from stonemux import license
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.license import Sigil
from stonemux.mux import Caller, Mux
from stonemux.transaction import Snapshot, Tx


def boot(tx: Tx) -> None:
    """At startup, load the commands obeyed so far, and the license."""
    sigils = [Sigil(row["cmd"], row["lic_id"], row["serial"], row["at"]) for row in tx.sql("select * from sigil")]
    tx.after(lambda: tx.mux.entitlement.start(sigils))


def show(mux: Mux, caller: Caller) -> dict[str, Any]:
    """The tier, and the license that it comes from."""
    entitlement = mux.entitlement
    told: dict[str, Any] = {"tier": entitlement.tier, "seats": entitlement.seats, "license": None}
    if entitlement.problem:
        told["problem"] = entitlement.problem
    granted = entitlement.license
    if granted is not None:
        told["license"] = {
            "lic_id": granted.lic_id,
            "tier": granted.tier,
            "seats": granted.seats,
            "issued": rfc3339(granted.issued),
            "not_after": None if granted.not_after is None else rfc3339(granted.not_after),
            "issuer_key_id": granted.issuer_key_id,
            "require_tokens": granted.require_tokens,
            "status": _status(mux),
        }
    return told


def _status(mux: Mux) -> str:
    entitlement = mux.entitlement
    if entitlement.dead:
        return "ended"
    return "active" if entitlement.active is not None else "expired"


def reload(mux: Mux, caller: Caller) -> dict[str, Any]:
    """Read the license file again, because it was added, replaced, or removed."""
    mux.entitlement.reload()
    if mux.entitlement.changes_at is not None:
        mux.alarm.set(mux.entitlement.changes_at)
    return show(mux, caller)


def command(tx: Tx, *, command: dict[str, Any]) -> dict[str, Any]:
    """Obey a signed command, if it is newer than the last one for this license."""
    entitlement = tx.mux.entitlement
    if entitlement.license is None:
        raise MuxError("sigil_refused", "the command is not valid: no license is active here for it to apply to")
    sigil = license.read_sigil(command, entitlement.license, tx.now)
    row = tx.one("select serial, cmd from sigil where lic_id = ?", sigil.lic_id)
    if row is not None and row["serial"] >= sigil.serial:
        raise MuxError(
            "sigil_refused",
            f"the command is not valid: number {row['serial']} was applied already, and this is {sigil.serial}",
            serial=row["serial"],
        )
    tx.run("insert or replace into sigil values (?, ?, ?, ?)", sigil.lic_id, sigil.serial, sigil.cmd, sigil.issued)
    tx.after(lambda: entitlement.obey(sigil))
    return {"lic_id": sigil.lic_id, "cmd": sigil.cmd, "serial": sigil.serial}


def next_due(rx: Snapshot) -> int | None:
    """When the license expires."""
    return rx.mux.entitlement.changes_at


def settle_due(tx: Tx) -> None:
    """Work out the tier again, because the license may have expired."""
    tx.after(tx.mux.entitlement.settle)
