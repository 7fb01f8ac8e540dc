"""Agent tokens: what they contain, how they are made, and how they are verified.

A token has the shape of a JWT signed with HMAC-SHA256. Its header is one of a few constant texts, one per key, compared
byte for byte, so there is no algorithm to choose or confuse. The signature is compared as text, so other encodings of
the same bytes (base64 allows some) are rejected. Claims: `sub` (the agent, or `*`), `lic` (the license it was obtained
with, or `local`), `tier`, `iat`, `exp`, `jti`, and `epoch`, the agent's epoch at that time.

Anyone who can read the data directory needs no license: the owner's token is there, made anew at each start.

Everything is verified in memory. A verified token is cached by its text until anything is revoked; then the whole cache
is dropped (`_seen` is replaced, so a verification in progress cannot put an outdated result back). Time is
`Clock.now_ms`, which never goes back, so an expired token stays expired. `_lock` guards the tables that revocations
change.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from stonemux.clock import DAY_MS, MINUTE_MS, Clock
from stonemux.config import Settings, is_loopback
from stonemux.errors import MuxError
from stonemux.hub import Topic
from stonemux.record import Record, replace

MOST_TOKEN = 1024
MOST_SEEN = 4096
SKEW_MS = MINUTE_MS
"""How far ahead of ours the issuing machine's clock may be."""
LONGEST_MS = 30 * DAY_MS
"""No token lasts longer (the maximum of `auth.token_ttl`), so no revocation needs to."""
ROTATED_MS = DAY_MS
"""How long the tokens of a replaced key stay valid."""
ANY_AGENT = "*"
"""The `sub` of a token that is bound to no agent."""
LOCAL = "local"
"""The `lic` of a token that was made without a license."""
TOPIC: Topic = ("auth",)
"""Touched when a valid token may have become invalid."""
_OWNER_PREFIX = "owner_"
_SCHEME = "bearer "


class Principal(NamedTuple):
    """The owner of a valid token."""

    agent: str
    """The one agent that it may act as; "" for any."""
    lic: str
    jti: str
    kid: str
    epoch: int
    expires_at: int
    """Milliseconds since the epoch."""

    @property
    def name(self) -> str:
        """The name of the owner in audit records."""
        if self.agent:
            return self.agent
        return "owner" if self.lic == LOCAL and not self.kid else f"license:{self.lic}"


OWNER = Principal("", LOCAL, "", "", 0, 2**62)
"""The principal of anyone who can read the data directory."""


class Key(Record):
    """A secret that signs tokens; `until` is when a replaced one expires."""

    kid: str
    secret: bytes
    until: int | None = None


class Made(Record):
    """A new token."""

    token: str
    jti: str
    expires_at: int


class Tokens:
    """The keys, the revocations, and the verification. Every call reads `asks` and `required`."""

    def __init__(self, clock: Clock, settings: Settings) -> None:
        self._clock = clock
        self._ttl_s = settings.token_ttl
        self._mode = settings.auth_tokens
        self._beyond = not is_loopback(settings.host)
        self._lock = threading.Lock()
        self._keys: dict[str, Key] = {}
        """By header, newest last."""
        self._revoked: dict[str, int] = {}
        self._epochs: dict[str, int] = {}
        self._licenses: frozenset[str] = frozenset()
        self._seen: dict[str, Principal] = {}
        self.owner = _OWNER_PREFIX + clock.token(32)
        """The token of the machine's owner."""
        self.asks = settings.auth_tokens != "off"
        """Whether a presented token is verified."""
        self.required = self._is_required(False)
        """Whether every call must present one."""
        self.listeners: list[Callable[[], None]] = []
        """Called when a valid token may have become invalid."""

    # -- what the owner decides

    def load(self, keys: Iterable[Key], revoked: Mapping[str, int], epochs: Mapping[str, int]) -> None:
        """Load the keys and revocations from the database."""
        with self._lock:
            self._keys = {_header(key.kid): key for key in keys}
            self._revoked, self._epochs = dict(revoked), dict(epochs)
        self._forget()

    def entitle(self, licenses: Iterable[str], *, asked_for: bool) -> None:
        """Accept only tokens of these licenses (and local ones); `asked_for`: in mode auto, every call needs one."""
        self._licenses = frozenset(licenses)
        self.required = self._is_required(asked_for)
        self._forget()

    def _is_required(self, asked_for: bool) -> bool:
        return self._mode == "required" or (self._mode == "auto" and (asked_for or self._beyond))

    def rotate(self, key: Key, *, now: bool) -> None:
        """Sign with this key from now on. Tokens of the old keys stay valid for another day, or end now if `now`."""
        at = self._clock.now_ms()
        with self._lock:
            lasting = [old for old in self._keys.values() if not now and (old.until is None or old.until > at)]
            kept = {_header(old.kid): _ending(old, at + ROTATED_MS) for old in lasting}
            self._keys = kept | {_header(key.kid): key}
        self._forget()

    def revoke(self, jti: str, until: int) -> None:
        """Revoke this token, which expires at `until`."""
        with self._lock:
            now = self._clock.now_ms()
            self._revoked = {old: end for old, end in self._revoked.items() if end > now} | {jti: until}
        self._forget()

    def raise_epoch(self, agent_id: str, epoch: int) -> None:
        """Revoke every token that the agent got in an earlier epoch."""
        with self._lock:
            self._epochs = self._epochs | {agent_id: epoch}
        self._forget()

    def epoch(self, agent_id: str) -> int:
        """The agent's current epoch."""
        return self._epochs.get(agent_id, 0)

    def _forget(self) -> None:
        self._seen = {}
        for listener in self.listeners:
            listener()

    # -- making a token

    def make(self, agent_id: str | None, *, lic: str, tier: str) -> Made:
        """Make a token for one agent, or for any."""
        at = self._clock.now_ms() // 1000
        key = next(reversed(self._keys.values()))
        sub = agent_id or ANY_AGENT
        expires, jti = at + self._ttl_s, self._clock.token(8)
        claims = {"sub": sub, "lic": lic, "tier": tier, "iat": at, "exp": expires, "jti": jti}
        claims["epoch"] = self.epoch(sub)
        body = _encoded(json.dumps(claims, separators=(",", ":"), ensure_ascii=False).encode())
        signed = f"{_header(key.kid)}.{body}"
        return Made(f"{signed}.{_signature(key.secret, signed)}", jti, expires * 1000)

    # -- verifying a token

    def admit(self, authorization: str | None) -> Principal | None:
        """The principal of an Authorization header's token; None if there is no token and none is required.

        Raises `token_missing`, `token_invalid`, `token_expired`, `token_revoked`, or `token_not_yet_valid`.
        """
        if authorization is None or authorization[:7].lower() != _SCHEME:
            if self.required:
                raise _missing()
            return None
        seen = self._seen
        principal = seen.get(authorization)
        if principal is None:
            if len(authorization) > MOST_TOKEN:  # including any spaces: cache keys must be bounded
                raise _invalid()
            principal = self._verified(authorization[7:].strip(" "))
            if len(seen) >= MOST_SEEN:
                seen.clear()
            seen[authorization] = principal
        if principal.expires_at <= self._clock.now_ms():
            raise _expired()
        return principal

    def is_owner(self, authorization: str | None) -> bool:
        """Whether an Authorization header carries the owner's token."""
        return authorization is not None and authorization[:7].lower() == _SCHEME and self._owns(authorization[7:])

    def check(self, principal: Principal) -> None:
        """Raise if a token that was valid is no longer valid."""
        if principal is OWNER:
            return
        if self.ends_at(principal) <= self._clock.now_ms():
            raise _expired()
        if _header(principal.kid) not in self._keys or self._is_revoked(principal):
            raise _revoked()

    def ends_at(self, principal: Principal) -> int:
        """When its token expires: at its own time, or with its key, which may have been replaced since."""
        key = self._keys.get(_header(principal.kid))
        if key is None or key.until is None:
            return principal.expires_at
        return min(principal.expires_at, key.until)

    def _owns(self, token: str) -> bool:
        from hmac import compare_digest

        return token.isascii() and compare_digest(token.strip(" "), self.owner)

    def _verified(self, token: str) -> Principal:
        if self._owns(token):
            return OWNER
        if not token.isascii() or token.count(".") != 2:
            raise _invalid()
        header, body, signature = token.split(".")
        key = self._keys.get(header)
        if key is None:
            raise _invalid()
        from hmac import compare_digest

        if not compare_digest(signature, _signature(key.secret, f"{header}.{body}")):
            raise _invalid()
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        expires_at = claims["exp"] * 1000
        principal = Principal(
            agent="" if claims["sub"] == ANY_AGENT else claims["sub"],
            lic=claims["lic"],
            jti=claims["jti"],
            kid=key.kid,
            epoch=claims["epoch"],
            expires_at=expires_at if key.until is None else min(expires_at, key.until),
        )
        now = self._clock.now_ms()
        if principal.expires_at <= now:
            raise _expired()
        if claims["iat"] * 1000 > now + SKEW_MS:
            raise MuxError(
                "token_not_yet_valid", "the token is dated in the future; check the clock of the machine that issued it"
            )
        self.check(principal)
        return principal

    def _is_revoked(self, principal: Principal) -> bool:
        return (
            principal.jti in self._revoked
            or principal.epoch < self.epoch(principal.agent or ANY_AGENT)
            or (principal.lic != LOCAL and principal.lic not in self._licenses)
        )


def _ending(key: Key, end: int) -> Key:
    return replace(key, until=end if key.until is None else min(key.until, end))


def _header(kid: str) -> str:
    return _encoded(b'{"alg":"HS256","kid":"%b","typ":"JWT"}' % kid.encode())


def _signature(secret: bytes, text: str) -> str:
    from hmac import digest  # loads OpenSSL, which calls without a token do not need

    return _encoded(digest(secret, text.encode(), "sha256"))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


_HOW = (
    "; get one with POST /token/obtain, or on the machine itself with: stonemux token --agent NAME. Commands and the "
    "Python client read it from STONEMUX_TOKEN"
)


def _missing() -> MuxError:
    return MuxError("token_missing", "this daemon requires a token in the header Authorization: Bearer TOKEN" + _HOW)


def _invalid() -> MuxError:
    return MuxError("token_invalid", "the token was not issued by this daemon" + _HOW)


def _expired() -> MuxError:
    return MuxError("token_expired", "the token has expired" + _HOW)


def _revoked() -> MuxError:
    return MuxError("token_revoked", "the token was revoked" + _HOW)
