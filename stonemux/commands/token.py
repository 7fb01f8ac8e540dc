"""Make a token for one agent, or for any: set it as STONEMUX_TOKEN, or send it as Authorization: Bearer TOKEN.

Anyone who can read the data directory may do this, whether or not a daemon is running.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping

from stonemux import flags
from stonemux.errors import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings and the agent."""
    flags.add_settings(parser)
    parser.add_argument("--agent", metavar="NAME", help="the only agent that the token may act as; any if omitted")
    parser.add_argument("--json", action="store_true", help="print the token with its expiration as JSON, for programs")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the token, and nothing else."""
    from stonemux import owner, screen
    from stonemux.datadir import DATABASE

    settings = flags.settings(options, environ)
    is_new = not (settings.data_dir / DATABASE).exists()
    made = owner.call(settings, "token.issue", {"agent_id": options.agent})
    if is_new:
        told = f"stonemux: {settings.data_dir} held no data; the token is for a daemon that is started with it"
        print(screen.safe(told), file=sys.stderr)
    print(json.dumps(made) if options.json else made["token"])
    return EXIT_OK
