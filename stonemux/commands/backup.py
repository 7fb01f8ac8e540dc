"""Copy the database into the data directory's backups folder, through the daemon if one is running there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from stonemux import flags
from stonemux.errors import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings, the target file, and the output format."""
    flags.add_settings(parser)
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the copy here instead")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON, for programs")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Make the copy and print where it is."""
    from stonemux import progress, upkeep
    from stonemux.copies import FOLDER
    from stonemux.datadir import DATABASE

    settings = flags.settings(options, environ)
    database = settings.data_dir / DATABASE
    folder = options.output.absolute().parent if options.output else settings.data_dir / FOLDER
    with progress.growing("copying", folder, ".*.new", database.stat().st_size if database.exists() else 0):
        made = upkeep.backup(settings, options.output)
    if options.json:
        print(json.dumps(made))
    else:
        print(f"{made['path']}\n  {made['bytes'] / 1024 / 1024:.1f} MiB, up to event {made['events_head']}")
    return EXIT_OK
