"""Activate a license key: fetch the signed license behind it, verify it, and install it.

A typo in the key is detected at once. The license comes from this machine's own issuer, or else from the license server
in the settings. A running daemon applies it without a restart.
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
    source.add_argument("--file", metavar="FILE", help="the signed license, as received from your licensor")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Activate, and print what applies from now on."""
    from stonemux import activation

    settings = flags.settings(options, environ)
    granted = activation.activate(settings, options.key, options.file)
    print(f"activated {granted['lic_id']}: {activation.words(granted)}")
    print(activation.take_up(settings))
    return EXIT_OK
