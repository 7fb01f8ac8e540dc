"""Ed25519 signatures (RFC 8032, section 5.1) in plain integers.

Points are in extended homogeneous coordinates (X, Y, Z, T) with x = X/Z, y = Y/Z, xy = T/Z. Where the standard leaves
room, this is strict: encodings must be canonical, `s` must be below the order of the group, and the equation is checked
without the cofactor, so a signature has one encoding and every verifier agrees on it.

The time that signing takes depends on the secret, so sign only where nobody can measure it: on the issuer's own
machine. Verifying handles only public data.
"""

from __future__ import annotations

from hashlib import sha512

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT = pow(2, (_P - 1) // 4, _P)
"""A square root of -1."""

_Point = tuple[int, int, int, int]
_ZERO: _Point = (0, 1, 1, 0)


def public_key(seed: bytes) -> bytes:
    """The public key (32 bytes) of a secret seed of 32 bytes."""
    return _encode(_times(_secret(seed)[0], _BASE))


def sign(seed: bytes, message: bytes) -> bytes:
    """The signature (64 bytes)."""
    scalar, prefix = _secret(seed)
    public = _encode(_times(scalar, _BASE))
    nonce = _integer(sha512(prefix + message).digest()) % _ORDER
    commitment = _encode(_times(nonce, _BASE))
    challenge = _integer(sha512(commitment + public + message).digest()) % _ORDER
    return commitment + ((nonce + challenge * scalar) % _ORDER).to_bytes(32, "little")


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether this is the key's signature of the message; False if anything is malformed."""
    if len(public) != 32 or len(signature) != 64:
        return False
    key, s = _decode(public), _integer(signature[32:])
    if key is None or s >= _ORDER:
        return False
    challenge = _integer(sha512(signature[:32] + public + message).digest()) % _ORDER
    x, y, z, t = key
    return _encode(_sum_of_products(s, _BASE, challenge, (-x % _P, y, z, -t % _P))) == signature[:32]


def _secret(seed: bytes) -> tuple[int, bytes]:
    if len(seed) != 32:
        raise ValueError("a seed has 32 bytes")
    digest = sha512(seed).digest()
    scalar = _integer(digest[:32]) & ~(7 | 1 << 255) & (1 << 255) - 1 | 1 << 254
    return scalar, digest[32:]


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _add(a: _Point, b: _Point) -> _Point:
    x1, y1, z1, t1 = a
    x2, y2, z2, t2 = b
    e = (y1 - x1) * (y2 - x2) % _P
    f = (y1 + x1) * (y2 + x2) % _P
    c = 2 * t1 * t2 * _D % _P
    d = 2 * z1 * z2 % _P
    h, g, m, n = f - e, d - c, d + c, f + e
    return (h * g % _P, m * n % _P, g * m % _P, h * n % _P)


def _double(a: _Point) -> _Point:
    x, y, z, _ = a
    xx, yy, zz = x * x % _P, y * y % _P, 2 * z * z % _P
    h = xx + yy
    e = h - (x + y) * (x + y) % _P
    g = xx - yy
    f = zz + g
    return (e * f % _P, g * h % _P, f * g % _P, e * h % _P)


def _times(factor: int, point: _Point) -> _Point:
    return _sum_of_products(factor, point, 0, _ZERO)


def _sum_of_products(a: int, p: _Point, b: int, q: _Point) -> _Point:
    """a p + b q, computed in one pass over the bits of both factors."""
    choices = (_ZERO, p, q, _add(p, q))
    total = _ZERO
    for bit in range(max(a.bit_length(), b.bit_length()) - 1, -1, -1):
        total = _double(total)
        which = (a >> bit & 1) | (b >> bit & 1) << 1
        if which:
            total = _add(total, choices[which])
    return total


def _encode(point: _Point) -> bytes:
    x, y, z, _ = point
    inverse = pow(z, -1, _P)
    return (y * inverse % _P | (x * inverse % _P & 1) << 255).to_bytes(32, "little")


def _decode(data: bytes) -> _Point | None:
    """The point of a canonical encoding; None for anything else (RFC 8032, section 5.1.3)."""
    number = _integer(data)
    x_is_odd, y = number >> 255, number & (1 << 255) - 1
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if x * x % _P != square:
        x = x * _ROOT % _P
    if x * x % _P != square or (x == 0 and x_is_odd):
        return None
    if x & 1 != x_is_odd:
        x = _P - x
    return (x, y, 1, x * y % _P)


_base = _decode((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
assert _base is not None
_BASE: _Point = _base
