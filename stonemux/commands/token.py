"""Make a token for one agent, or for any: set it as STONEMUX_TOKEN, or send it as Authorization: Bearer TOKEN.

Anyone who can read the data directory may do this, whether or not a daemon is running.
"""

from __future__ import annotations

import argparse
import json
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
    from stonemux import owner

    made = owner.call(flags.settings(options, environ), "token.issue", {"agent_id": options.agent})
    print(json.dumps(made) if options.json else made["token"])
    return EXIT_OK
