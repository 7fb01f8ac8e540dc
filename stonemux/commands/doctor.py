"""Check Python, SQLite, settings, the data directory, the database, backups, the daemon, doorbells, and clients.

Says what to do about each finding. Changes nothing; works while the daemon runs, and starts none. Exits with 1 on a
problem.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from stonemux import flags
from stonemux.errors import EXIT_OK, EXIT_REFUSED, MuxError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings, how thoroughly to check, and the output format."""
    flags.add_settings(parser)
    parser.add_argument("--full", action="store_true", help="check the whole database, not only its structure")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON, for programs")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run the checks and print the findings."""
    from stonemux import doctor
    from stonemux.config import here

    config = flags.config_file(options)
    troubles: list[MuxError] = []
    settings = flags.settings(options, environ, troubles)
    findings = doctor.examine(settings, troubles, full=options.full, environ=environ, folder=here(), config=config)
    if options.json:
        print(json.dumps(doctor.as_json(findings)))
    else:
        print(doctor.as_text(findings))
    return EXIT_OK if doctor.all_well(findings) else EXIT_REFUSED
