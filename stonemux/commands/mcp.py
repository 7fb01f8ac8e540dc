"""Serve the Model Context Protocol on standard input and output, for clients that start their servers.

Starts the daemon if none answers. STONEMUX_AGENT names the agent for which this session acts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from stonemux import flags
from stonemux.errors import MuxError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings."""
    flags.add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Serve until standard input ends."""
    from stonemux import stdio

    if sys.stdout is None:
        raise MuxError("bad_file", "standard output, where the answers go, is closed")
    if sys.stdin.isatty():
        print(
            "stonemux: mcp is for programs that start it, which stonemux setup configures; Ctrl-D ends it",
            file=sys.stderr,
        )
    return stdio.serve(flags.settings(options, environ), flags.config_file(options), environ)
