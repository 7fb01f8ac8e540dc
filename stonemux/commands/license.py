"""Be your own licensor: issue licenses, list them, and serve them to other machines.

    stonemux license issue --tier pro     print a new key; creates the issuer's keys on first use
    stonemux license show                 what is active here, and what was issued
    stonemux license server               answer activations and heartbeats (POST /activate, /heartbeat)

A license documents an entitlement. It is not copy protection: docs/license.md explains what it is and what it is not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from stonemux import flags
from stonemux.errors import EXIT_OK, MuxError

if TYPE_CHECKING:
    from stonemux.config import Settings

MOST_DAYS = 36_500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action, and what the license grants."""
    parser.add_argument("action", choices=("issue", "show", "server"), help="what to do")
    flags.add_settings(parser)
    parser.add_argument("--tier", choices=("pro", "enterprise"), help="issue: the tier it grants")
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--days", type=int, metavar="N", help="issue: expires after N days")
    end.add_argument("--not-after", metavar="TIME", help="issue: expires at this time, like 2027-01-31T00:00:00Z")
    parser.add_argument("--agents", type=int, metavar="N", help="issue: the number of agents; unlimited if omitted")
    parser.add_argument("--require-tokens", action="store_true", help="issue: every call must have a token")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON, for programs")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run the action."""
    if options.action == "server":
        return _serve(options, environ)
    settings = flags.settings(options, environ)
    return _issue(options, settings) if options.action == "issue" else _show(options, settings)


def _issue(options: argparse.Namespace, settings: Settings) -> int:
    from stonemux import activation
    from stonemux.clock import DAY_MS, Clock, moment
    from stonemux.ground import check_owner
    from stonemux.issuer import Issuer

    clock = Clock()
    if options.tier is None:
        raise MuxError("missing_field", "--tier is required: pass --tier pro or --tier enterprise")
    if options.agents is not None and not 0 < options.agents < 2**31:
        raise MuxError("invalid_field", "--agents must be at least 1")
    if options.days is not None and not 0 < options.days <= MOST_DAYS:
        raise MuxError("invalid_field", f"--days must be 1 to {MOST_DAYS}")
    not_after = None if options.days is None else clock.now_ms() + options.days * DAY_MS
    if options.not_after is not None:
        try:
            not_after = moment(options.not_after)
        except ValueError:
            raise MuxError(
                "invalid_field", "--not-after must be a time with its zone, like 2027-01-31T00:00:00Z"
            ) from None
        if not_after <= clock.now_ms():
            raise MuxError("invalid_field", "--not-after is in the past")
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_owner(settings.data_dir)
    issuer = Issuer(settings.data_dir, clock, create=True)
    key, document = issuer.issue(
        options.tier, seats=options.agents, not_after=not_after, require_tokens=options.require_tokens
    )
    if options.json:
        print(json.dumps({"key": key, "license": document}))
        return EXIT_OK
    print(key)
    print(f"{document['lic_id']}: {activation.words(document)}", file=sys.stderr)
    print(f"issuer {issuer.name}, public key {issuer.public.hex()}", file=sys.stderr)
    print(f"to activate it here: stonemux activate --key {key[:7]}...; the key is not shown again", file=sys.stderr)
    return EXIT_OK


def _show(options: argparse.Namespace, settings: Settings) -> int:
    from stonemux import activation
    from stonemux.clock import Clock
    from stonemux.issuer import Issuer

    here = activation.standing(settings)
    try:
        issuer = Issuer(settings.data_dir, Clock())
        given, public = issuer.licenses(), issuer.public.hex()
    except MuxError as error:
        if error.code != "license_unknown":
            raise
        given, public = [], None
    if options.json:
        print(json.dumps({"here": here, "issuer": public, "given_out": given}))
        return EXIT_OK
    print(f"here: {activation.standing_words(here)}")
    if public is not None:
        print(f"issuer: public key {public}")
        for document in given:
            print(f"  {document['lic_id']}  {activation.words(document)}, issued {document['issued']}")
    return EXIT_OK


def _serve(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from stonemux import licenseserver, logs
    from stonemux.config import authority

    if options.port is None:
        options.port = str(licenseserver.PORT)
    settings = flags.settings(options, environ)
    logs.set_up(settings.log_level, settings.log_format)

    def say(port: int) -> None:
        print(f"license server: {settings.scheme}://{authority(settings.host, port)}\n  stop  Ctrl-C", flush=True)

    licenseserver.serve(settings, say=say)
    return EXIT_OK
