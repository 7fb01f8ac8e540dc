"""Start a command for each task that an agent claims, or for each message that it gets.

The command gets the task's JSON on standard input and the essentials in the environment: STONEMUX_TASK_ID,
STONEMUX_CLAIM_TOKEN, STONEMUX_CHANNEL, STONEMUX_FROM, STONEMUX_AGENT; for a message STONEMUX_MESSAGE_ID. The runner
renews the lease while the command runs. Exit status 0: complete, with the output as the result. 75: back to the pool.
Anything else: failed, with the end of the command's standard error. On SIGTERM or SIGINT, the runner stops its commands
and gives their work back; a second signal does not wait.

  stonemux run --agent coder --capability python -- ./work.sh
  stonemux run --agent helper --messages --reply -- python3 answer.py
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from stonemux import flags, launch
from stonemux.errors import EXIT_INTERRUPTED, MuxError
from stonemux.screen import safe
from stonemux.signals import NONE, Signals

if TYPE_CHECKING:
    from stonemux.config import Settings
    from stonemux.runner import Runner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Who works, on what, and how."""
    parser.usage = "%(prog)s [--flag VALUE ...] -- COMMAND [ARGUMENT ...]"
    parser.add_argument("command", nargs="+", metavar="-- COMMAND", help="the command to run, with its arguments")
    parser.add_argument("--agent", metavar="ID", help="the agent that does the work (default: STONEMUX_AGENT)")
    parser.add_argument(
        "--capability",
        action="append",
        default=[],
        metavar="NAME",
        help="a capability of the agent; may be repeated (default: those it has registered)",
    )
    parser.add_argument("--channel", metavar="NAME", help="the channel to work in (tasks: default; messages: any)")
    parser.add_argument("--messages", action="store_true", help="work on the agent's messages instead of tasks")
    parser.add_argument("--reply", action="store_true", help="with --messages: send the output as a reply")
    parser.add_argument(
        "--max-parallel", type=_count, default=1, metavar="N", help="commands to run at a time (default 1)"
    )
    parser.add_argument("--once", action="store_true", help="exit after one; exit status 1 if it did not succeed")
    parser.add_argument("--retry", action="store_true", help="retry a failed task until its attempts run out")
    parser.add_argument("--lease", type=_count, default=60, metavar="SECONDS", help="lease of a message (default 60)")
    parser.add_argument(
        "--grace", type=_count, default=10, metavar="SECONDS", help="from SIGTERM to SIGKILL (default 10)"
    )
    parser.add_argument("--quiet", action="store_true", help="do not report progress on standard error")
    flags.add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Work until a signal."""
    from stonemux import runner

    agent = options.agent or environ.get("STONEMUX_AGENT")
    if not agent:
        raise MuxError("missing_field", "whose work? Pass --agent ID, or set STONEMUX_AGENT", parameter="agent_id")
    if options.reply and not options.messages:
        raise MuxError("not_understood", "--reply needs --messages: a task has a result instead")
    settings = flags.settings(options, environ)
    orders = runner.Orders(
        agent=agent,
        command=tuple(options.command),
        capabilities=tuple(options.capability),
        channel=options.channel,
        messages=options.messages,
        reply=options.reply,
        parallel=options.max_parallel,
        once=options.once,
        retry=options.retry,
        lease_s=options.lease,
        grace_s=options.grace,
        beat_ms=settings.heartbeat_interval * 1000,
    )
    told = _silent if options.quiet else _say
    return _until_signal(runner.Runner(orders, _environ(options, settings, environ), told, _emit))


def _environ(options: argparse.Namespace, settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for the commands, so that they find the same daemon."""
    found = dict(environ) | {"STONEMUX_HOST": settings.host, "STONEMUX_PORT": str(settings.port)}
    for name in ("data_dir", "config"):
        if value := getattr(options, name):
            found[f"STONEMUX_{name.upper()}"] = os.path.abspath(value)
    return found | {"STONEMUX_CLI": shlex.join(launch.command())}


def _until_signal(runner: Runner) -> int:
    """Run the runner in a thread, while this thread handles signals; re-raises what the runner raises."""
    ended: list[int | BaseException] = []
    heard: list[int] = []
    signals = Signals()

    def work() -> None:
        try:
            ended.append(runner.run())
        except BaseException as error:
            ended.append(error)
        finally:
            signals.put(NONE)

    thread = threading.Thread(target=work, name="runner")
    try:
        signals.listen(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        thread.start()
        while (came := signals.next()) != NONE:
            heard.append(came)
            runner.stop(now=len(heard) > 1)
        thread.join()
    finally:
        signals.close()
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return EXIT_INTERRUPTED if signal.SIGINT in heard else ended[0]


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk, or a reader that went away: no reason to stop working
        print(f"stonemux run: {safe(text)}", file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    pass


def _emit(text: str) -> None:
    print(text, end="", flush=True)


def _count(text: str) -> int:
    """A number from 1 to 43,200."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:6]) <= 43_200:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from 1 to 43200")
    return int(text)
