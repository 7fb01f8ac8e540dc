"""What the commands share before they run: their parser, and the flags that say where the daemon is.

A refusal of the parser names the nearest thing that it knows. Flags are never abbreviated, so that a script goes on
meaning the same when a flag is added.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from stonemux.errors import EXIT_USAGE, nearest

if TYPE_CHECKING:
    from stonemux.config import Settings


class Parser(argparse.ArgumentParser):
    """A command's parser: what it refuses is one line, the nearest known word, and exit status 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse all words, or end with a refusal."""
        options, rest = self.parse_known_args(words)
        if rest:
            flag = next((word for word in rest if word.startswith("-")), "").partition("=")[0]
            if not flag:
                self.error(f"one word too many: {rest[0]!r}")
            known = [name for name in self._option_string_actions if name.startswith("--")]
            self.error(f"there is no flag {flag}; did you mean {nearest(flag, known, most=1)[0]}?")
        return options

    def error(self, message: str) -> NoReturn:
        """End with a refusal."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The flags that say where the daemon and its data are."""
    parser.add_argument("--host", help="address of the daemon (default 127.0.0.1)")
    parser.add_argument("--port", help="port of the daemon (default 3392)")
    parser.add_argument("--data-dir", help="where the data lies (default ~/.stonemux)")
    parser.add_argument("--config", metavar="FILE", help="settings file (default: config.toml in the data directory)")


def config_file(options: argparse.Namespace) -> Path | None:
    """The settings file that a flag names."""
    return Path(options.config) if options.config else None


def settings(options: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """The settings of the file, then the environment, then the flags. Raises `bad_setting`."""
    from stonemux.config import load

    flags = {
        name: value
        for name in ("host", "port", "data_dir", "log_level", "log_format")
        if (value := getattr(options, name, None)) is not None
    }
    return load(config_file(options), environ, flags)
