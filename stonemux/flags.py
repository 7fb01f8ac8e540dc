"""The flags that commands share: where the daemon is, and the settings that result from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stonemux.record import Record

if TYPE_CHECKING:
    import argparse

    from stonemux.config import Settings
    from stonemux.errors import MuxError


class Flag(Record):
    """A flag that is not a parameter of an operation; `metavar` names its value, if it takes one."""

    name: str
    metavar: str
    help: str

    @property
    def typed(self) -> str:
        """The flag as the user types it."""
        return typed(self.name)


def typed(name: str) -> str:
    """A name in the form of a flag."""
    return "--" + name.replace("_", "-")


PLACE = (
    Flag("host", "HOST", "address of the daemon (default 127.0.0.1)"),
    Flag("port", "PORT", "port of the daemon (default 3392)"),
    Flag("data_dir", "DIR", "data directory (default ~/.stonemux)"),
    Flag("config", "FILE", "settings file (default: config.toml in the data directory)"),
)
"""The flags that say where the daemon and its data are."""


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `PLACE` to a command."""
    for flag in PLACE:
        parser.add_argument(flag.typed, metavar=flag.metavar, help=flag.help)


def config_file(options: Any) -> Path | None:
    """The settings file that a flag names."""
    return Path(options.config) if options.config else None


def settings(options: Any, environ: Mapping[str, str], troubles: list[MuxError] | None = None) -> Settings:
    """The settings: file, then environment, then flags (the last wins). Raises `bad_setting`, see `config.load`."""
    from stonemux.config import load

    flags = {
        name: value
        for name in ("host", "port", "data_dir", "tls_cert", "tls_key", "insecure_http", "log_level", "log_format")
        if (value := getattr(options, name, None)) is not None
    }
    return load(config_file(options), environ, flags, troubles)
