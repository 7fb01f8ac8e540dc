"""Let the system run the daemon: start it at login, and restart it after a failure.

Writes a systemd user unit, or a launchd agent on macOS, loads it, and waits until the daemon answers. After an upgrade,
install it again: that restarts the daemon. The service keeps its address and paths, unless flags or the environment
override them. Exit status of "status": 0 the daemon answers, 3 not installed, 6 installed, but no daemon answers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping

from stonemux import flags
from stonemux.errors import EXIT_NOT_FOUND, EXIT_OK, EXIT_UNREACHABLE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action and its extent."""
    parser.add_argument("action", choices=("install", "remove", "status"), help="what to do")
    parser.add_argument("--dry-run", action="store_true", help="print what would be written and run, but do nothing")
    parser.add_argument("--no-start", action="store_true", help="only write the file; load and start nothing")
    parser.add_argument("--json", action="store_true", help="print the status as JSON, for programs")
    flags.add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Install, remove, or print the status."""
    from stonemux import service, setup
    from stonemux.config import here

    for name, value in service.kept(environ, sys.platform).items():
        if not getattr(options, name, None) and not environ.get(setup.VARIABLES[name]):
            setattr(options, name, value)
    if options.action == "remove":
        options.config = os.devnull  # a missing or broken settings file must not prevent a removal
    settings = flags.settings(options, environ)
    given = {name: getattr(options, name, None) for name in setup.HANDED_ON}
    words = service.words_for(environ, given, here())
    installer = service.Installer(service.describe(words, settings, environ, sys.platform), settings, environ, print)
    if options.action == "install":
        installer.install(dry_run=options.dry_run, started=not options.no_start)
        return EXIT_OK
    if options.action == "remove":
        installer.remove(dry_run=options.dry_run)
        return EXIT_OK
    found = installer.status()
    print(json.dumps(found) if options.json else service.as_text(found))
    if not found["installed"]:
        return EXIT_NOT_FOUND
    return EXIT_OK if found["answers"] else EXIT_UNREACHABLE
