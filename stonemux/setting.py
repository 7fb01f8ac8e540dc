"""A single setting: its name, the values it accepts, and how a value is checked.

`config` lists all settings. A refusal is one line that says where the value is, what it is, and what it may be.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stonemux.errors import MuxError, guess
from stonemux.record import Record

ANY_COMMAND = "*"
"""The entry of `webhooks_exec` that allows every command."""


class Setting(Record):
    """The metadata of one field of `Settings`, for the file, the environment, flags, and documents.

    `kind` is a key of `KINDS`; `least` and `most` bound an integer, in `unit`; `environment` is the variable that sets
    it, if there is one.
    """

    section: str
    key: str
    attribute: str
    default: Any
    kind: str
    doc: str
    unit: str = ""
    least: int = 0
    most: int = 0
    choices: tuple[str, ...] = ()
    environment: str = ""
    live: bool = False
    """Whether a running daemon applies a new value; other settings wait for its next start."""

    @property
    def name(self) -> str:
        """Section and key, as messages and documents show them."""
        return f"{self.section}.{self.key}" if self.key else self.section

    @property
    def flag(self) -> str:
        """The command-line flag that sets it."""
        return "--" + self.attribute.replace("_", "-")

    @property
    def limits(self) -> str:
        """The accepted values, in words."""
        if self.kind == "integer":
            return f"{self.least} to {self.most} {self.unit}".rstrip()
        if self.choices:
            return ", ".join(self.choices)
        return KINDS[self.kind][1]


class Given(Record):
    """A value given for a setting, before it is checked."""

    setting: Setting
    value: Any
    label: str
    """How a message refers to the value's source."""
    folder: Path
    """The folder from which a relative path is resolved."""
    home: str
    """The folder that `~` stands for."""

    def refuse(self, problem: str, **facts: Any) -> MuxError:
        """The refusal of this value."""
        return MuxError("bad_setting", f"{self.label} {problem}", setting=self.setting.name, **facts)

    def checked(self) -> Any:
        """The checked value in its final form. Raises `bad_setting`."""
        return KINDS[self.setting.kind][0](self)


# --- checks, one per kind


def _integer(given: Given) -> int:
    setting, value = given.setting, given.value
    if type(value) is not int:
        raise given.refuse(f"is {shown(value)}; it must be an integer from {setting.limits}")
    if value > setting.most:
        raise given.refuse(f"is {shown(value)}; it must be at most {_counted(setting.most, setting.unit)}")
    if value < setting.least:
        raise given.refuse(f"is {shown(value)}; it must be at least {_counted(setting.least, setting.unit)}")
    return value


def _counted(number: int, units: str) -> str:
    one = re.sub("ies$", "y", units).removesuffix("s")
    return f"{number} {one if number == 1 else units}".rstrip()


def _boolean(given: Given) -> bool:
    if type(given.value) is not bool:
        raise given.refuse(f"is {shown(given.value)}; it must be true or false")
    return given.value


def _text(given: Given) -> str:
    value, choices = given.value, given.setting.choices
    if choices and value not in choices:
        close = guess(value, choices) if type(value) is str else ""
        raise given.refuse(f"is {shown(value)}; it must be one of: {', '.join(choices)}", nearest=close or None)
    if type(value) is not str or not value.isprintable() or value != value.strip():
        raise given.refuse(
            f"is {shown(value)}; it must be text without control characters or leading or trailing blanks"
        )
    if not value and given.setting.default:
        raise given.refuse("is empty; omit it for the default")
    return value


def _host(given: Given) -> str:
    value = _text(given)
    if "/" in value or "[" in value or value.count(":") == 1:  # an IPv6 address has more colons
        raise given.refuse(
            f"is {shown(value)}; it must be a name or an address alone; the port is a setting of its own, and an "
            "IPv6 address has no brackets here"
        )
    return value


def _path(given: Given) -> Path:
    value = given.value
    if type(value) is not str or not value or "\0" in value:
        raise given.refuse(f"is {shown(value)}; it must be a path, as text")
    path = expanded(Path(value), given.home)
    if path.parts[:1] and path.parts[0].startswith("~"):
        raise given.refuse(f"is {shown(value)}; there is no such home folder; write the path in full")
    return given.folder / path


def _place(given: Given) -> str:
    return "" if given.value == "" else str(_path(given))


def expanded(path: Path, home: str) -> Path:
    """A path with `~` replaced."""
    if path.parts[:1] == ("~",):
        return Path(home, *path.parts[1:])
    return Path(os.path.expanduser(path))


# A name, or an address in brackets, as in the Host header. A `*` would let any web page in.
_HOST = r"([A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]{2,45}\])(:[1-9][0-9]{0,4})?"


def _hosts(given: Given) -> tuple[str, ...]:
    if type(given.value) is not list:
        raise given.refuse(f'is {shown(given.value)}; it must be a list of host names, like ["mux.local"]')
    for host in given.value:
        if type(host) is not str or not re.fullmatch(_HOST, host):
            raise given.refuse(
                f"holds {shown(host)}; it must hold host names, with or without a port, and no wildcards"
            )
    return tuple(dict.fromkeys(host.lower() for host in given.value))


def _networks(given: Given) -> tuple[str, ...]:
    if type(given.value) is not list:
        raise given.refuse(f'is {shown(given.value)}; it must be a list of networks, like ["10.1.0.0/16"]')
    found = []
    for network in given.value:
        try:
            found.append(str(ipaddress.ip_network(network if type(network) is str else "")))
        except ValueError:
            raise given.refuse(f"holds {shown(network)}; it must hold networks such as 10.1.0.0/16") from None
    return tuple(dict.fromkeys(found))


def _keys(given: Given) -> tuple[str, ...]:
    if type(given.value) is not list:
        raise given.refuse(f"is {shown(given.value)}; it must be a list of public keys")
    for key in given.value:
        if type(key) is not str or not re.fullmatch("[0-9a-fA-F]{64}", key):
            raise given.refuse(f"holds {shown(key)}; a public key has 64 hexadecimal digits")
    return tuple(dict.fromkeys(key.lower() for key in given.value))


def _url(given: Given) -> str:
    value = _text(given)
    if value and not re.fullmatch(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?", value):
        raise given.refuse(f"is {shown(value)}; it must look like https://license.example.org, without a path")
    return value.rstrip("/")


def _commands(given: Given) -> tuple[str, ...]:
    if type(given.value) is bool:
        return (ANY_COMMAND,) if given.value else ()
    if type(given.value) is not list:
        raise given.refuse(
            f'is {shown(given.value)}; it must be true, false, or a list of commands, like ["/usr/local/bin/ring"]'
        )
    for command in given.value:
        if type(command) is not str or not command.startswith("/") or not command.isprintable():
            raise given.refuse(f"holds {shown(command)}; it must hold commands by their full path, with arguments")
    return tuple(dict.fromkeys(given.value))


def _routing(given: Given) -> Mapping[str, str]:
    for kind, role in given.value.items():
        for what, name in (("type", kind), ("role", role)):
            if type(name) is not str or not 0 < len(name) <= 128 or name != name.strip() or not name.isprintable():
                raise given.refuse(
                    f"maps {shown(kind)} to {shown(role)}; the {what} must be a name of 1 to 128 characters, without "
                    "control characters or leading or trailing blanks"
                )
    return MappingProxyType({**given.setting.default, **given.value})


KINDS: Mapping[str, tuple[Callable[[Given], Any], str]] = {
    "integer": (_integer, ""),
    "boolean": (_boolean, "true, false"),
    "text": (_text, "text"),
    "host": (_host, "a host name or an address"),
    "path": (_path, "a path"),
    "place": (_place, "a path, or empty"),
    "hosts": (_hosts, "a list of host names"),
    "networks": (_networks, "a list of networks"),
    "keys": (_keys, "a list of public keys"),
    "url": (_url, "an http or https address, or empty"),
    "commands": (_commands, "true, false, or a list of commands"),
    "routing": (_routing, "text"),
}
"""The kinds of settings: the function that checks a value, and the accepted values in words."""


# --- how values are shown


def as_toml(value: Any) -> str:
    """`value` in TOML syntax."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(as_toml(entry) for entry in value) + "]"
    if isinstance(value, bool | int | str | Path):
        return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
    return str(value)


def shown(value: Any) -> str:
    """A bad value for a message: in TOML syntax, escaped, and truncated."""
    try:
        text = as_toml(value)
    except ValueError:  # an integer of thousands of digits
        return "a huge number"
    text = text if text.isprintable() else ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
