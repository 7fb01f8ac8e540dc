"""The parser for a command's arguments.

A refusal is one line that names the nearest flag. Flags cannot be abbreviated, so a script keeps its meaning when a
flag is added.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from stonemux.errors import EXIT_USAGE, MuxError, did_you_mean, guess


class Parser(argparse.ArgumentParser):
    """An `argparse` parser whose refusals are one line, with exit status 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

        self._as_json = False

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse all words, or exit with a refusal."""
        self._as_json = "--json" in words
        options, rest = self.parse_known_args(words)
        if rest:
            flag = next((word for word in rest if word.startswith("-")), "").partition("=")[0]
            if not flag:
                self.error(f"one word too many: {rest[0]!r}")
            known = [name[2:] for name in self._option_string_actions if name.startswith("--")]
            close = guess(flag.lstrip("-"), known)
            wrapped = "--" not in words and any(str(action.metavar).startswith("-- ") for action in self._actions)
            hint = "; put -- before the command to run" if wrapped else did_you_mean(close and "--" + close)
            self.error(f"unknown flag {flag}{hint}")
        return options

    def error(self, message: str) -> NoReturn:
        """Exit with a refusal."""
        lead, required, names = message.partition("are required: ")
        for action in self._actions if required else ():
            if action.choices and not action.option_strings:  # the choices say more than the argument's internal name
                names = names.replace(action.dest, "|".join(action.choices))
        message = f"{lead}{required}{names} (see {self.prog} --help)"
        if self._as_json:
            print(json.dumps(MuxError("not_understood", message).body()))
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")
