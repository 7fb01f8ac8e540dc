"""Add stonemux to a client's MCP configuration, then start the configured command and list its tools.

The command starts a daemon if none is running, and that daemon keeps running. The address, the data directory, and the
settings file, given by flag or environment, go into the configuration.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from stonemux import flags
from stonemux.clients import CLIENTS, SCOPES
from stonemux.errors import EXIT_OK
from stonemux.screen import safe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The client, and what to write for it."""
    parser.add_argument("client", choices=CLIENTS, help="the client to configure")
    parser.add_argument(
        "--scope", choices=SCOPES, default="user", help="for all of this user's work, or for this folder"
    )
    parser.add_argument("--agent", metavar="NAME", help="the agent that this client speaks for (STONEMUX_AGENT)")
    parser.add_argument("--dry-run", action="store_true", help="print the change as a diff, but do nothing")
    parser.add_argument("--remove", action="store_true", help="remove the entry")
    parser.add_argument("--no-check", action="store_true", help="do not start the command to test it")
    flags.add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Write the entry, or remove it."""
    from stonemux import setup
    from stonemux.config import here

    wanted, folder = None, here()
    if not options.remove:
        flags.settings(options, environ)  # refuses settings that the configured command would refuse
        given = {name: getattr(options, name, None) for name in setup.HANDED_ON}
        wanted = setup.launch_for(environ, given, folder, options.agent)
    job = setup.Job(CLIENTS[options.client], options.scope, wanted, environ, folder)
    setup.run(job, dry_run=options.dry_run, checked=not options.no_check, say=_say)
    return EXIT_OK


def _say(text: str) -> None:
    print(safe(text))  # a preview quotes the file
