"""What the commands share before they run: the flags that say where the daemon is, and the settings read with them."""

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
    """A flag that is no parameter of an operation; `metavar` names its value, if it takes one."""

    name: str
    metavar: str
    help: str

    @property
    def typed(self) -> str:
        """As it is typed."""
        return typed(self.name)


def typed(name: str) -> str:
    """A name as a flag."""
    return "--" + name.replace("_", "-")


PLACE = (
    Flag("host", "HOST", "address of the daemon (default 127.0.0.1)"),
    Flag("port", "PORT", "port of the daemon (default 3392)"),
    Flag("data_dir", "DIR", "where the data lies (default ~/.stonemux)"),
    Flag("config", "FILE", "settings file (default: config.toml in the data directory)"),
)
"""Where the daemon and its data are."""


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Let a command take the flags of `PLACE`."""
    for flag in PLACE:
        parser.add_argument(flag.typed, metavar=flag.metavar, help=flag.help)


def config_file(options: Any) -> Path | None:
    """The settings file that a flag names."""
    return Path(options.config) if options.config else None


def settings(options: Any, environ: Mapping[str, str], troubles: list[MuxError] | None = None) -> Settings:
    """The settings of the file, then the environment, then the flags. Raises `bad_setting`, see `config.load`."""
    from stonemux.config import load

    flags = {
        name: value
        for name in ("host", "port", "data_dir", "tls_cert", "tls_key", "insecure_http", "log_level", "log_format")
        if (value := getattr(options, name, None)) is not None
    }
    return load(config_file(options), environ, flags, troubles)
