"""Run the daemon in the foreground."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from stonemux import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings, the log, and what may be accepted."""
    flags.add_settings(parser)
    parser.add_argument("--tls-cert", metavar="FILE", help="file with the certificate, as PEM: the port speaks TLS")
    parser.add_argument("--tls-key", metavar="FILE", help="file with its key, as PEM, when it is not in the same one")
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), help="least important line to log"
    )
    parser.add_argument("--log-format", choices=("text", "json"), help="how log lines look")
    parser.add_argument(
        "--insecure-http",
        action="store_const",
        const="true",
        help="listen beyond loopback without TLS, where something else encrypts",
    )
    parser.add_argument(
        "--accept-rollback",
        action="store_true",
        help="start although the database is older than its directory remembers",
    )


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Serve until a signal."""
    from stonemux import daemon, logs

    settings = flags.settings(options, environ)
    logs.set_up(settings.log_level, settings.log_format)
    return daemon.serve(
        settings,
        accept_rollback=options.accept_rollback,
        say=lambda running: print(daemon.banner(running), flush=True),
        reread=lambda: flags.settings(options, environ),
    )
