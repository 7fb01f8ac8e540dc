"""Deactivate the license; the settings then decide what the daemon may do. No stored data is touched."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from stonemux import flags
from stonemux.errors import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings only."""
    flags.add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Deactivate, and print what applies from now on."""
    from stonemux import activation

    settings = flags.settings(options, environ)
    kept = activation.deactivate(settings)
    print(f"deactivated; the license is kept as {kept}")
    print(activation.take_up(settings))
    return EXIT_OK
