"""Make a license key count: fetch the signed license behind it, check it, and put it in its place.

A typo in the key is told at once. The license comes from this machine's own issuer, else from the license server in the
settings. A running daemon takes it up without a restart.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from stonemux import flags
from stonemux.errors import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings and the key, or the license itself."""
    flags.add_settings(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--key", metavar="SX-...", help="the license key")
    source.add_argument("--file", metavar="FILE", help="the signed license, as your licensor sent it")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Activate, and say what holds from now on."""
    from stonemux import activation

    settings = flags.settings(options, environ)
    granted = activation.activate(settings, options.key, options.file)
    print(f"activated {granted['lic_id']}: {activation.words(granted)}")
    print(activation.take_up(settings))
    return EXIT_OK
