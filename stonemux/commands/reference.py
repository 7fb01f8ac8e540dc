"""Print the reference of all operations, as Markdown."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from stonemux import VERSION
from stonemux.errors import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which document."""
    parser.add_argument("--openapi", action="store_true", help="OpenAPI 3.1 instead of Markdown")
    parser.add_argument("--client", action="store_true", help="the Python client's methods instead")
    parser.add_argument("--config", action="store_true", help="the example settings file instead")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the document."""
    from stonemux import config, configtext, methodtext, openapi, operations, reference

    if options.openapi:
        print(json.dumps(openapi.document(operations.OPERATIONS, config.Settings(), VERSION), indent=2))
    elif options.client:
        print(methodtext.text(operations.OPERATIONS, methodtext.named_shapes(operations)), end="")
    elif options.config:
        print(configtext.example(), end="")
    else:
        print(reference.markdown(operations.OPERATIONS, config.Settings()), end="")
    return EXIT_OK
