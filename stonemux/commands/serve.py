"""Run the daemon in the foreground."""

from __future__ import annotations

import argparse
import gc
import signal
from collections.abc import Mapping

from stonemux import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings, the log, and what to allow."""
    flags.add_settings(parser)
    parser.add_argument("--tls-cert", metavar="FILE", help="PEM file with the certificate: the port speaks TLS")
    parser.add_argument("--tls-key", metavar="FILE", help="PEM file with its key, if it is not in the same file")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="lowest level to log")
    parser.add_argument("--log-format", choices=("text", "json"), help="format of log lines")
    parser.add_argument(
        "--insecure-http",
        action="store_const",
        const="true",
        help="listen beyond loopback without TLS, where something else encrypts",
    )
    parser.add_argument(
        "--accept-rollback",
        action="store_true",
        help="start even though the database is older than its directory remembers",
    )


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Serve until a signal."""
    # By default, SIGHUP ends Python, which systemd takes for a normal stop: a reload just after the start would leave
    # no daemon running. A signal that comes too early is handled once the daemon is ready.
    early: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _: early.append(number))
    gc.disable()  # until it serves: what is loaded here stays, and scanning it again and again costs 5 ms
    from stonemux import daemon, logs

    def say(running: daemon.Daemon) -> None:
        for number in early:
            signal.raise_signal(number)
        print(daemon.banner(running), flush=True)

    settings = flags.settings(options, environ)
    logs.set_up(settings.log_level, settings.log_format)
    return daemon.serve(
        settings,
        accept_rollback=options.accept_rollback,
        say=say,
        reread=lambda: flags.settings(options, environ),
    )
