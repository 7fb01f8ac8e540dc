"""Watch agents, their queues, tasks, and rates live. q or Ctrl-C ends it.

Without a terminal to draw on, it prints one view and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from stonemux import flags, screen
from stonemux.clock import Clock
from stonemux.errors import EXIT_OK, MuxError
from stonemux.operations import BY_NAME
from stonemux.remote import Remote, of_user
from stonemux.screen import Look

MOST_AGENTS = 50
LINES = 24
"""How many lines a terminal has that does not tell."""
SLICE_MS = 200
"""How often to check for a changed terminal size."""

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
AGENTS = ("id", "role", "status", "unread", "claimed", "activity", "channel", "last_heartbeat")
TASKS = ("task_id", "status", "priority", "description", "required_capability", "claimed_by", "created_at")


class View(NamedTuple):
    """What was seen at one moment; `at` is in ticks."""

    at: int
    stats: Mapping[str, Any]
    agents: list[dict[str, Any]]
    tasks: list[dict[str, Any]]
    trouble: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The interval, and which daemon."""
    parser.add_argument("--interval", metavar="SECONDS", type=float, default=1.0, help="refresh interval (default 1)")
    parser.add_argument("--once", action="store_true", help="print one view and exit")
    flags.add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Draw until the user ends it."""
    if not 0.1 <= options.interval <= 3600:
        raise MuxError("invalid_field", f"--interval is {options.interval}; it must be 0.1 to 3600 seconds")
    settings, clock = flags.settings(options, environ), Clock()
    with of_user(settings, environ) as remote:
        place = settings.authority
        view = look_around(remote, clock)
        if options.once or not _is_drawable(environ):
            look = screen.look(sys.stdout, environ, clock.now_ms())
            print("\n".join(frame(place, view, None, look, height=10_000)))
            return EXIT_OK
        with contextlib.suppress(KeyboardInterrupt), _drawing():
            _draw(remote, clock, place, view, round(options.interval * 1000), environ)
    return EXIT_OK


def look_around(remote: Remote, clock: Clock) -> View:
    """Fetch everything that is shown, except what the tier does not allow."""
    stats = remote.ask(BY_NAME["stats"], {})
    agents = remote.ask(BY_NAME["agent.discover"], {"include_stale": True})["agents"]
    agents.sort(key=lambda agent: agent["last_heartbeat"], reverse=True)
    for agent in agents[:MOST_AGENTS]:
        with contextlib.suppress(MuxError):  # the agent may have left meanwhile
            whole = remote.ask(BY_NAME["agent.get"], {"agent_id": agent["id"]})["agent"]
            agent |= {"unread": whole["unread"], "claimed": whole["claimed_tasks"]}
    tasks: list[dict[str, Any]] = []
    for status in ("claimed", "pending", "waiting"):
        try:
            tasks += remote.ask(BY_NAME["task.list"], {"status": status, "limit": 50})["tasks"]
        except MuxError as error:
            if error.code != "upgrade_required":
                raise
    return View(clock.ticks_ms(), stats, agents, tasks)


def frame(place: str, view: View, before: View | None, look: Look, height: int) -> list[str]:
    """The lines of a view, as many as fit; rates are computed against the view before."""
    stats = view.stats
    tasks = ", ".join(f"{count} {status}" for status, count in stats["tasks"].items() if count) or "none"
    sent, events = stats["messages"]["sent"], stats["events"]["head"]
    title = f"stonemux {stats['version']} at {place}"
    head = [
        f"{title}  {view.trouble or stats['tier']}, up {screen.span(stats['uptime'])}",
        f"agents    {stats['agents']['active']} active, {stats['agents']['stale']} stale",
        f"messages  {sent} sent{_rate(view, before, sent, 'messages', 'sent')}, {stats['messages']['unread']} unread",
        f"tasks     {tasks}",
        f"events    {events}{_rate(view, before, events, 'events', 'head')}, "
        f"{screen.counted(stats['waiters'], 'call')} waiting, {screen.counted(stats['state_keys'], 'key')}, "
        f"{screen.counted(stats['channels'], 'channel')}",
    ]
    if look.width is not None:
        head = [screen.fill(line, look.width).rstrip() for line in head]
    head[0] = head[0].replace(title, look.tone("1", title))
    room = max(0, height - len(head) - 2)
    times = {"last_heartbeat": "time", "created_at": "time"}
    parts = [
        screen.table("", times, [{name: row.get(name) for name in names} for row in rows], look).splitlines()
        for names, rows in ((AGENTS, view.agents), (TASKS, view.tasks))
    ]
    first = min(len(parts[0]), max(room - len(parts[1]), (room + 1) // 2))
    lines = [*head, "", *_cut(parts[0], first), "", *_cut(parts[1], room - first)]
    return lines[:height]


def _cut(lines: list[str], room: int) -> list[str]:
    if len(lines) <= room:
        return lines
    return [*lines[: room - 1], f"... {len(lines) - room + 1} more"] if room > 1 else []


def _rate(view: View, before: View | None, now: int, group: str, name: str) -> str:
    if before is None or view.at <= before.at:
        return ""
    return f" ({max(0, now - before.stats[group][name]) * 1000 / (view.at - before.at):.1f}/s)"


# --- the terminal


def _is_drawable(environ: Mapping[str, str]) -> bool:
    return (
        sys.stdout is not None
        and sys.stdout.isatty()
        and sys.stdin.isatty()
        and environ.get("TERM") not in (None, "", "dumb")
    )


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Use the terminal's alternate screen, without a cursor and with unbuffered keys; restore all at the end."""
    import termios
    import tty

    def ended(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    kept = termios.tcgetattr(sys.stdin)
    usual = signal.signal(signal.SIGTERM, ended)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write(ENTER)
        yield
    finally:
        sys.stdout.write(LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, kept)
        signal.signal(signal.SIGTERM, usual)


def _draw(remote: Remote, clock: Clock, place: str, view: View, interval: int, environ: Mapping[str, str]) -> None:
    before: View | None = None
    while True:
        size = os.get_terminal_size(sys.stdout.fileno())
        look = screen.look(sys.stdout, environ, clock.now_ms())
        lines = frame(place, view, before, look, size.lines or LINES)
        sys.stdout.write("\x1b[H" + "\x1b[K\n".join(lines) + "\x1b[K\x1b[J")
        sys.stdout.flush()
        deadline = clock.ticks_ms() + interval
        while (left := deadline - clock.ticks_ms()) > 0 and os.get_terminal_size(sys.stdout.fileno()) == size:
            if select.select([sys.stdin], [], [], min(left, SLICE_MS) / 1000)[0]:
                if os.read(sys.stdin.fileno(), 64).lower() in (b"q", b"\x03", b"\x04", b"\x1b", b""):
                    return
                break
        try:
            before, view = view, look_around(remote, clock)
        except MuxError as error:
            if error.code not in ("unreachable", "shutting_down"):
                raise
            view = view._replace(trouble="the daemon is not answering")
