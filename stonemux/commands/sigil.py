"""The licensor's commands: `die` ends a license and leaves the free tier, `live` restores it; no data is lost.

stonemux sigil issue die --license lic-...   print a signed command; a license server delivers it, too
stonemux sigil apply FILE                    apply a command that the licensor has sent
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stonemux import flags
from stonemux.errors import EXIT_OK, MuxError

if TYPE_CHECKING:
    from stonemux.config import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action and its argument."""
    parser.add_argument("action", choices=("issue", "apply"), help="what to do")
    parser.add_argument("what", metavar="die|live|FILE", help="issue: the command; apply: the file that contains it")
    flags.add_settings(parser)
    parser.add_argument("--license", metavar="ID", help="issue: the license it is for (see stonemux license show)")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run the action."""
    settings = flags.settings(options, environ)
    return _issue(options, settings) if options.action == "issue" else _apply(options, settings)


def _issue(options: argparse.Namespace, settings: Settings) -> int:
    from stonemux.clock import Clock
    from stonemux.issuer import Issuer
    from stonemux.license import COMMANDS

    if options.what not in COMMANDS:
        raise MuxError("invalid_field", f"the command must be one of: {', '.join(COMMANDS)}")
    if options.license is None:
        raise MuxError("missing_field", "--license is required: pass --license lic-... (see stonemux license show)")
    print(json.dumps(Issuer(settings.data_dir, Clock()).command(options.what, options.license)))
    return EXIT_OK


def _apply(options: argparse.Namespace, settings: Settings) -> int:
    from stonemux import license, owner

    try:
        document = license.decode(Path(options.what).read_bytes(), license.SIGIL)
    except OSError as trouble:
        raise MuxError("not_found", f"{options.what} cannot be read: {trouble.strerror}") from trouble
    done = owner.call(settings, "license.command", {"command": document})
    print(f"{done['cmd']}: license {done['lic_id']} (command {done['serial']})")
    return EXIT_OK
