"""Where a webhook may go: what its URL may look like, and which addresses it may reach.

An agent gives the daemon a URL, and the daemon calls it. Without checks, anyone who may register an agent could reach,
through the daemon, services that only this machine can reach. So a URL is never judged by its text: the system resolves
its host (`127.1`, `2130706433`, and `0x7f000001` are all 127.0.0.1), every resulting address is judged by the table
here, and the connection goes to one of the judged addresses and nowhere else. Python's own `is_global` is not used,
because it calls 64:ff9b::a9fe:a9fe and 192.0.0.8 global.

Loopback is allowed, because agents live there, except for the daemon's own port. Private networks need a setting. No
setting allows the networks in `NEVER`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

from stonemux.errors import MuxError
from stonemux.record import Record

if TYPE_CHECKING:
    from stonemux.config import Settings

MOST_BYTES = 2048

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

METADATA_NAMES = frozenset(
    {
        "instance-data",
        "instance-data.ec2.internal",
        "metadata",
        "metadata.azure.internal",
        "metadata.goog",
        "metadata.google.internal",
        "metadata.oraclecloud.com",
        "metadata.tencentyun.com",
    }
)
"""Host names at which clouds hand out credentials."""

LOOPBACK = ("127.0.0.0/8", "::1/128")
PRIVATE = (
    ("10.0.0.0/8", "a private network"),
    ("172.16.0.0/12", "a private network"),
    ("192.168.0.0/16", "a private network"),
    ("100.64.0.0/10", "a provider's private network"),
    ("fc00::/7", "a private network"),
)
"""Networks that need `webhooks.allow_private` or an entry in `webhooks.allow_cidrs`."""
NEVER = (
    ("0.0.0.0/8", "unspecified"),
    ("100.100.100.200/32", "a metadata service"),
    ("168.63.129.16/32", "a metadata service"),
    ("169.254.0.0/16", "link-local, where metadata services are"),
    ("192.0.0.0/24", "reserved"),
    ("192.0.2.0/24", "reserved"),
    ("192.88.99.0/24", "reserved"),
    ("198.18.0.0/15", "reserved"),
    ("198.51.100.0/24", "reserved"),
    ("203.0.113.0/24", "reserved"),
    ("224.0.0.0/4", "multicast"),
    ("255.255.255.255/32", "broadcast"),
    ("240.0.0.0/4", "reserved"),
    ("fd00:ec2::/32", "where metadata services are"),
    ("fd20:ce::254/128", "a metadata service"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "reserved"),
    ("ff00::/8", "multicast"),
    ("::/128", "unspecified"),
    ("2001:db8::/32", "reserved"),
    ("3fff::/20", "reserved"),
)
"""Networks that no setting allows."""
GLOBAL_V6 = "2000::/3"
"""The only part of IPv6 that is allocated for public addresses."""

_TRANSLATED = "64:ff9b::/96"
_TEREDO = "2001::/32"
_SIX_TO_FOUR = "2002::/16"


class Target(Record):
    """The parts of a webhook's URL."""

    secure: bool
    host: str
    port: int
    path: str
    """Including the query."""

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """The URL up to its path."""
        return f"http{'s' * self.secure}://{self.authority}"


class Policy(Record):
    """What the settings allow, and where the daemon itself listens."""

    allow_private: bool = False
    cidrs: tuple[str, ...] = ()
    own_host: str = ""
    own_port: int = 0

    @classmethod
    def of(cls, settings: Settings, own_port: int) -> Policy:
        """The policy of a daemon that has these settings and listens on this port."""
        return cls(settings.webhooks_allow_private, settings.webhooks_allow_cidrs, settings.host, own_port)


class ForbiddenURL(ValueError):
    """A URL that nothing is delivered to; its text says why, without the subject: "leads to ..."."""

    def refusal(self, parameter: str) -> MuxError:
        """The error for a call that gave this URL in `parameter`."""
        return MuxError("webhook_url_forbidden", f"{parameter} {self}", parameter=parameter)


_URL = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^#]*)(?P<fragment>#.*)?"
_AUTHORITY = r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(:(?P<port>[0-9]{1,5}))?"


def parse(url: str) -> Target:
    """Split a URL into its parts; raises ForbiddenURL unless it is plainly an http or https URL.

    The characters are checked first, because parsers silently strip some of them.
    """
    if len(url) > MOST_BYTES:
        raise ForbiddenURL(f"has {len(url)} characters; the limit is {MOST_BYTES}")
    if re.search(r"[^\x21-\x7e]", url) or "\\" in url:
        raise ForbiddenURL("must be plain visible ASCII without backslashes; encode other characters as %XX or xn--")
    whole = re.fullmatch(_URL, url)
    if whole is None or whole["scheme"].lower() not in ("http", "https"):
        raise ForbiddenURL("must begin with http:// or https://")
    if whole["fragment"] is not None:
        raise ForbiddenURL("must not have a fragment (#...), which would not be sent")
    if "@" in whole["authority"]:
        raise ForbiddenURL("must not contain a user name or password; deliveries are signed instead")
    authority = re.fullmatch(_AUTHORITY, whole["authority"])
    if authority is None:
        raise ForbiddenURL(
            "has no valid host: it needs a name, an IPv4 address, or an IPv6 address in brackets, with or without a "
            "port"
        )
    secure = whole["scheme"].lower() == "https"
    port = int(authority["port"] or (443 if secure else 80))
    if not 1 <= port <= 65535:
        raise ForbiddenURL(f"has port {port}; it must be 1 to 65535")
    path = whole["path"]
    return Target(secure, authority["host"].strip("[]"), port, path if path.startswith("/") else f"/{path}")


def check(url: str, policy: Policy) -> Target:
    """Split a URL into its parts and refuse it as far as that is possible without asking a name server.

    Raises ForbiddenURL.
    """
    target = parse(url)
    if target.host.rstrip(".").lower() in METADATA_NAMES:
        raise ForbiddenURL(f"names {target.host}, a metadata service, which is never called")
    judge_all(target, _known(target), policy)
    return target


def is_local(target: Target) -> bool:
    """Whether a target plainly is this machine; no name server is asked."""
    found = _known(target)
    return bool(found) and all(_in(ip_address(address.partition("%")[0]), LOOPBACK) for address in found)


def _known(target: Target) -> list[str]:
    """The addresses of a target's host as far as they are known without asking a name server."""
    try:
        return resolve(target, numeric=True)
    except OSError:
        name = target.host.rstrip(".").lower()
        return ["127.0.0.1"] if name == "localhost" or name.endswith(".localhost") else []


def resolve(target: Target, *, numeric: bool = False) -> list[str]:
    """The addresses of a target's host, in the system's order; raises OSError. `numeric` does not ask a name server."""
    flags = socket.AI_NUMERICHOST if numeric else 0
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:  # a label of the name is empty or too long
        raise OSError(str(error)) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def judge_all(target: Target, addresses: Iterable[str], policy: Policy) -> None:
    """Refuse a target if any of its addresses is refused; raises ForbiddenURL."""
    for address in addresses:
        problem = judge(address, target.port, policy)
        if problem:
            meant = address if address == target.host else f"{target.host}, which is {address}"
            raise ForbiddenURL(f"leads to {meant}: {problem}")


def judge(address: str, port: int, policy: Policy) -> str:
    """Why a connection to this address is refused; empty if it is allowed."""
    found = plain(address)
    if port == policy.own_port and (_in(found, LOOPBACK) or _in(found, (policy.own_host,))):
        return "the daemon's own port"
    if _in(found, LOOPBACK):
        return ""
    inner = _embedded(found)
    for one in inner:
        if _in(one, LOOPBACK):
            return "this machine under a translated address"
    for one in (found, *inner):
        for network, what in NEVER:
            if one in _network(network):
                return f"{what}, which is never called"
    if isinstance(found, IPv6Address) and not (inner or _in(found, (GLOBAL_V6, "fc00::/7"))):
        return "reserved, which is never called"
    return next((problem for one in (found, *inner) if (problem := _private(one, policy))), "")


def plain(text: str) -> Address:
    """An address without its zone; an IPv4 address as such, even if it is written as an IPv6 address."""
    found = ip_address(text.partition("%")[0])
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def _private(address: Address, policy: Policy) -> str:
    for network, what in PRIVATE:
        if address in _network(network):
            if policy.allow_private or _in(address, policy.cidrs):
                return ""
            return f"{what}; webhooks.allow_private or webhooks.allow_cidrs in the settings would allow it"
    return ""


def _embedded(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 transition address (NAT64, 6to4, Teredo) would reach."""
    if not isinstance(address, IPv6Address):
        return []
    if address in _network(_TRANSLATED):
        return [IPv4Address(int(address) & 0xFFFFFFFF)]
    if address in _network(_SIX_TO_FOUR) and address.sixtofour is not None:
        return [address.sixtofour]
    if address in _network(_TEREDO) and address.teredo is not None:
        return list(address.teredo)
    return []


def _in(address: Address, networks: Iterable[str]) -> bool:
    return any(address in network for network in _networks(tuple(networks)))


@lru_cache(maxsize=64)
def _networks(names: tuple[str, ...]) -> tuple[Network, ...]:
    found = []
    for name in names:
        try:
            found.append(_network(name))
        except ValueError:  # a name such as localhost, which LOOPBACK covers
            continue
    return tuple(found)


@lru_cache(maxsize=256)
def _network(name: str) -> Network:
    return ip_network(name, strict=False)
