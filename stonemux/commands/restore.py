"""Show what a backup contains and what it would replace, ask for confirmation, and restore it.

The daemon must be stopped. The replaced database is kept beside the restored one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from stonemux import flags
from stonemux.errors import EXIT_OK, MuxError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The backup, settings, and whether to ask."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the backup; a name in the backups folder works, too")
    flags.add_settings(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON, for programs")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Show, ask, and replace."""
    from stonemux import progress, upkeep

    def say(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    settings = flags.settings(options, environ)
    size = options.file.stat().st_size if options.file.is_file() else 0
    with progress.growing("restoring", settings.data_dir, ".restore.new", size):
        done = upkeep.restore(settings, options.file, say=say, agreed=lambda: options.yes or _is_agreed())
    if options.json:
        print(json.dumps(done))
        return EXIT_OK
    print("restored; start the daemon again")
    if done["kept"]:
        print(f"  the replaced database is {done['kept']}")
    print(f"  ids continue after event {done['events_head']} and message {done['message_seq']}")
    return EXIT_OK


def _is_agreed() -> bool:
    if not sys.stdin.isatty():
        raise MuxError("not_confirmed", "nobody can confirm; pass --yes to restore without asking")
    print("Replace it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
