"""Tokens as operations: who gets one, and how its owner revokes it.

`obtain` requires the license key and is the only way to get a token over the network. The operations for the machine's
owner accept the token in the data directory, so anyone who can read that needs no key. Signing keys, revocations, and
epochs are rows of the database; `tokens` judges by a copy of them in memory.
"""

from __future__ import annotations

from typing import Any

from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.mux import Caller, Mux
from stonemux.tokens import ANY_AGENT, LOCAL, LONGEST_MS, ROTATED_MS, Key, Made
from stonemux.transaction import Tx

SECRET_BYTES = 32


def boot(tx: Tx) -> None:
    """At startup, load keys, revocations, and epochs; make a key if there is none for the database's epoch."""
    # A database that went back in time has forgotten revocations, so its keys go with it; see `opening.leap`.
    tx.run("delete from token_key where epoch <> ? or until <= ?", tx.mux.store.epoch, tx.now)
    if tx.one("select 1 from token_key where until is null") is None:
        _make_key(tx)
    keys = [_key(row) for row in tx.sql("select * from token_key order by made_at, kid")]
    revoked = {row["jti"]: row["until"] for row in tx.sql("select * from token_revoked")}
    epochs = {row["agent_id"]: row["epoch"] for row in tx.sql("select * from token_epoch")}
    tx.after(lambda: tx.mux.tokens.load(keys, revoked, epochs))


def _make_key(tx: Tx) -> Key:
    key = Key(tx.mux.clock.token(4), bytes.fromhex(tx.mux.clock.token(SECRET_BYTES)))
    tx.run(
        "insert into token_key (kid, secret, epoch, made_at) values (?, ?, ?, ?)",
        key.kid,
        key.secret,
        tx.mux.store.epoch,
        tx.now,
    )
    return key


def _key(row: Any) -> Key:
    return Key(row["kid"], bytes(row["secret"]), row["until"])


def obtain(mux: Mux, caller: Caller, *, license_key: str, agent_id: str | None) -> dict[str, Any]:
    """A token for a caller that shows the key of the active license."""
    mux.throttle.take(mux.clock.ticks_ms())
    license_id = mux.entitlement.recognize(license_key)
    if agent_id is None and not mux.settings.license_wide_tokens:
        raise MuxError(
            "missing_field",
            "agent_id is required: this daemon issues no tokens that may act as any agent (auth.license_wide_tokens)",
            parameter="agent_id",
        )
    _check_sub(agent_id)
    return _told(agent_id, mux.tokens.make(agent_id, lic=license_id, tier=mux.entitlement.tier))


def issue(mux: Mux, caller: Caller, *, agent_id: str | None) -> dict[str, Any]:
    """A token that the machine's owner makes."""
    _check_sub(agent_id)
    return _told(agent_id, mux.tokens.make(agent_id, lic=LOCAL, tier=mux.entitlement.tier))


def _check_sub(agent_id: str | None) -> None:
    if agent_id == ANY_AGENT:
        raise MuxError(
            "reserved_name",
            f"agent_id {ANY_AGENT!r} is not an agent; omit it for a token that may act as any agent",
            parameter="agent_id",
        )


def _told(agent_id: str | None, made: Made) -> dict[str, Any]:
    return {"token": made.token, "expires_at": rfc3339(made.expires_at), "agent_id": agent_id, "jti": made.jti}


def rotate(tx: Tx, *, now: bool) -> dict[str, Any]:
    """Make a new signing key. Tokens signed with old keys stay valid for another day, or end now if `now` is set."""
    if now:
        tx.run("delete from token_key")
        tx.run("delete from token_revoked")
    else:
        tx.run("update token_key set until = ? where until is null", tx.now + ROTATED_MS)
    key = _make_key(tx)
    tx.after(lambda: tx.mux.tokens.rotate(key, now=now))
    answer: dict[str, Any] = {"rotated": True}
    return answer if now else answer | {"old_until": rfc3339(tx.now + ROTATED_MS)}


def revoke(tx: Tx, *, jti: str | None, agent_id: str | None) -> dict[str, Any]:
    """Revoke one token, or all tokens of an agent."""
    if (jti is None) == (agent_id is None):
        raise MuxError(
            "missing_field" if jti is None else "invalid_field",
            "give either jti, to end one token, or agent_id, to end all of an agent's tokens, but not both; "
            "token.rotate with now=true ends every token",
            parameter="jti",
        )
    tokens = tx.mux.tokens
    if jti is not None:
        until = tx.now + LONGEST_MS
        tx.run("insert or ignore into token_revoked values (?, ?)", jti, until)
        tx.after(lambda: tokens.revoke(jti, until))
        return {"revoked": jti}
    assert agent_id is not None
    epoch = tx.one("select coalesce(max(epoch), 0) from token_epoch where agent_id = ?", agent_id)[0] + 1
    tx.run("insert or replace into token_epoch values (?, ?)", agent_id, epoch)
    tx.after(lambda: tokens.raise_epoch(agent_id, epoch))
    return {"revoked": agent_id, "epoch": epoch}


def purge(tx: Tx, most: int) -> int:
    """Delete expired keys, and up to `most` revocations of tokens that have expired anyway."""
    tx.run("delete from token_key where until <= ?", tx.now)
    return tx.run(
        "delete from token_revoked where jti in (select jti from token_revoked where until <= ? limit ?)", tx.now, most
    ).rowcount
