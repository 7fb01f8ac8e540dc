"""`python -m bench.against`: stonemux beside the programs that its users know, in one run.

    --report DIR  write `benchmarks.md` and `benchmarks.svg` there
    --json FILE   write every figure
    --seconds S   length of one measurement (default 2)
    --rounds N    how often each is measured (default 3); medians are shown
    --only NAME   these programs only (may be given again); stonemux is always measured

All programs run on 127.0.0.1 with an empty directory on the same file system and are driven by the same generator. In
each round every program is measured once, one after the other, so the machine's mood falls on all. A ratio is the
median over the rounds of stonemux's figure over the other's in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.chart import bars
from bench.load import LoadFailed, Peer, Refused, load, percentile, raise_file_limit
from bench.peers import CONTENDERS, Contender, running
from bench.run import flush_ms
from bench.servers import Server, ServerFailed

PUTS = (1, 8, 64, 512)
CYCLES = (8, 64)
CROWDS = (1, 100, 1000, 2000)
WAKES = 60
WHY = """
## Where a peer wins, and why

- redis, beanstalkd and nats-server are written in C and Go and speak protocols of a line or two. A send here is a
  request in HTTP and JSON whose sender, recipient, channel and membership are looked up, and which is stored as a
  message, a delivery, an event and an entry in the audit log, each with its indexes, before one flush answers for
  all of them. The audit log is about a sixth of it (`[audit] enabled = false`).
- With few connections the flush and the work around it decide, and nobody shares them. beanstalkd hands a job to
  a waiting client before it has flushed it, and nats-server flushes by the clock; a wake-up here comes after the
  flush.
- redis shares one flush among whoever has asked meanwhile, as stonemux does, and spends a tenth of the time on
  each.
- Against what does the same in the same language (FastAPI with the same database), and against etcd, stonemux is
  ahead; it also holds up better than both with 512 connections.""".splitlines()

Figures = dict[str, dict[str, list[float]]]
"""Figures by measurement and program, one a round."""

TARGETS = {
    "put, 64 connections": {"FastAPI": 4.0, "beanstalkd": 0.8, "etcd": 1.0, "redis list": 0.3},
    "put, take, acknowledge, 64 connections": {"beanstalkd": 0.6},
}
"""The least that stonemux aims at, as a ratio."""


def main(arguments: list[str] | None = None) -> int:
    """Measure what is installed, print it, and write the report if one is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.against", description="Measure stonemux beside its peers.")
    parser.add_argument("--report", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=[contender.name for contender in CONTENDERS])
    options = parser.parse_args(arguments)
    raise_file_limit()
    chosen = [c for c in CONTENDERS if c.name == "stonemux" or not options.only or c.name in options.only]
    versions = {contender.name: contender.version() for contender in chosen}
    for contender in chosen:
        if not versions[contender.name]:
            print(f"{contender.name} is not installed ({contender.package})", file=sys.stderr)
    chosen = [contender for contender in chosen if versions[contender.name]]
    figures: Figures = {}
    began = time.monotonic()
    for number in range(options.rounds):
        for contender in chosen if number % 2 == 0 else list(reversed(chosen)):
            for what, value in _measure(contender, options.seconds):
                figures.setdefault(what, {}).setdefault(contender.name, []).append(value)
                print(f"  {number + 1}/{options.rounds} {contender.name:<14} {what}: {value:,.2f}", file=sys.stderr)
    told = report(figures, versions, options.rounds, options.seconds)
    print(told)
    print(f"{time.monotonic() - began:.0f} s in all", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, "figures": figures}, indent=2) + "\n")
    if options.report:
        (options.report / "benchmarks.md").write_text(told + "\n")
        (options.report / "benchmarks.svg").write_text(_chart(figures))
    return 0


# --- measuring


def _measure(contender: Contender, seconds: float) -> Iterator[tuple[str, float]]:
    """Every figure of one program in one round; a measurement that fails is told and left out."""
    makers: list[tuple[str, Callable[[int], Peer | None], Sequence[int]]] = [
        ("put", contender.put, PUTS),
        ("put, take, acknowledge", contender.cycle, CYCLES),
    ]
    for name, make, counts in makers:
        if make(0) is None:
            continue
        for connections in counts:
            what = f"{name}, {connections} connection{'s' if connections > 1 else ''}"
            try:
                with running(contender) as server:  # a new one for each: what the last has left behind would slow it
                    contender.prepare(server, [])
                    result = load(server.address, make, connections=connections, seconds=seconds, warmup=0.4)  # type: ignore[arg-type]
                    server.check()
            except (LoadFailed, ServerFailed, Refused, OSError) as trouble:
                print(f"  {contender.name}: {what} failed: {trouble}", file=sys.stderr)
                continue
            yield what, result.rate
            yield f"{what}: p99 ms", result.percentile(0.99)
    if not contender.waits:
        return
    try:
        yield from _waiting(contender)
    except (LoadFailed, ServerFailed, Refused, OSError) as trouble:
        print(f"  {contender.name}: waiting failed: {trouble}", file=sys.stderr)


def _waiting(contender: Contender) -> Iterator[tuple[str, float]]:
    """Wake-ups with a growing crowd, and what a waiting client costs in memory."""
    for crowd in CROWDS:
        names = [f"waiting-{number:04}" for number in range(crowd)]
        with running(contender) as server, ExitStack() as stack:
            contender.prepare(server, names)
            time.sleep(0.3)
            before = server.memory()
            for name in names[1:]:
                sock = stack.enter_context(socket.create_connection(server.address, timeout=10))
                sock.sendall(contender.wait(name))
            time.sleep(0.5 + crowd / 2000)
            if crowd == CROWDS[-1]:
                yield "memory a waiter, KB", (server.memory() - before) / (crowd - 1) / 1024
            samples = sorted(_wakes(contender, server, names[0]))
            yield f"wake, {crowd} waiting: p50 ms", percentile(samples, 0.5) * 1000
            yield f"wake, {crowd} waiting: p99 ms", percentile(samples, 0.99) * 1000


def _wakes(contender: Contender, server: Server, name: str) -> Iterator[float]:
    """Seconds from just before the put is written until the waiting client has it whole."""
    with ExitStack() as stack:
        peer = contender.wake(name)
        waker = stack.enter_context(socket.create_connection(server.address, timeout=10))
        waker.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(contender.greetings):
            _ask(waker, peer)
        for number in range(WAKES + 5):
            with socket.create_connection(server.address, timeout=10) as waiter:
                waiter.sendall(contender.wait(name))
                time.sleep(0.01)
                request = peer.request()
                began = time.perf_counter()
                waker.sendall(request)
                heard = b""
                while not contender.woken(heard):
                    if not (more := waiter.recv(65536)):
                        raise Refused("a waiting connection was closed")
                    heard += more
                ended = time.perf_counter()
                _hear(waker, peer)
            if number >= 5:
                yield ended - began


def _ask(sock: socket.socket, peer: Peer) -> None:
    sock.sendall(peer.request())
    _hear(sock, peer)


def _hear(sock: socket.socket, peer: Peer) -> None:
    heard = b""
    while not peer.complete(heard):
        if not (more := sock.recv(65536)):
            raise Refused("the connection was closed before the reply was whole")
        heard += more


# --- telling


def ratios(figures: Figures, what: str, other: str) -> float | None:
    """How many times the other's figure stonemux's is, as the median over the rounds."""
    ours, theirs = figures[what].get("stonemux", []), figures[what].get(other, [])
    pairs = [mine / its for mine, its in zip(ours, theirs, strict=False) if its]
    return statistics.median(pairs) if pairs else None


def report(figures: Figures, versions: dict[str, str], rounds: int, seconds: float) -> str:
    """The report as Markdown."""
    names = list(dict.fromkeys(name for by_name in figures.values() for name in by_name))
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench-peers`; every figure is a median of "
        f"{rounds} rounds of {seconds:g} s, all programs in turn in the same run. Ratios travel between machines, "
        "figures do not.",
        "",
        f"Machine: {os.cpu_count()} processors, {platform.system()} {platform.machine()}, one flush of 4 KiB "
        f"{flush_ms():.3f} ms; Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}. The load generator "
        "runs on the same machine.",
        "",
        "![Puts a second with 64 connections, and wake-ups](benchmarks.svg)",
        "",
        "| program | version | what an answered put has survived |",
        "|---|---|---|",
        *(f"| {c.name} | {versions[c.name]} | {c.flushes} |" for c in CONTENDERS if c.name in names),
    ]
    for title, note, wanted in _TABLES:
        rows = [what for what in figures if wanted(what)]
        if rows:
            lines += ["", f"## {title}", "", note, "", *_table(figures, rows, names)]
    lines += ["", "## Targets", "", "| measurement | against | target | measured |", "|---|---|---|---|"]
    for what, least in TARGETS.items():
        for other, target in least.items():
            if what in figures and (ratio := ratios(figures, what, other)) is not None:
                lines.append(
                    f"| {what} | {other} | >= {target:g}x | {ratio:.2f}x{'' if ratio >= target else ' (missed)'} |"
                )
    return "\n".join([*lines, *WHY])


def _table(figures: Figures, rows: list[str], names: list[str]) -> list[str]:
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for what in rows:
        cells = []
        for name in names:
            values = figures[what].get(name)
            ratio = ratios(figures, what, name) if name != "stonemux" else None
            shown = "-" if not values else _shown(statistics.median(values))
            cells.append(shown + (f" ({ratio:.2f}x)" if ratio is not None else ""))
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


_TABLES: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    (
        "Durable puts a second",
        "200 characters to 32 recipients (lists, streams, keys) in turn. In parentheses: stonemux's figure over it.",
        lambda what: what.startswith("put, ") and "take" not in what and "p99" not in what,
    ),
    (
        "Put, take, acknowledge: cycles a second",
        "A task that is posted, claimed and completed; XADD, XREADGROUP, XACK; put, reserve, delete; a key put, "
        "claimed by compare-and-swap and deleted; publish, pull, acknowledge. LPUSH and BRPOP acknowledge nothing.",
        lambda what: what.startswith("put, take") and "p99" not in what,
    ),
    (
        "Latency under that load, 99th percentile",
        "Milliseconds; less is better.",
        lambda what: "connection" in what and "p99" in what,
    ),
    (
        "Waking one of many that wait",
        "Milliseconds from writing the put until the waiting client has it; each waits for something of its own.",
        lambda what: what.startswith("wake"),
    ),
    ("Memory of a waiting client", "KB of the server's resident memory.", lambda what: what.startswith("memory")),
)


def _chart(figures: Figures) -> str:
    groups = []
    for what, title in (
        ("put, 64 connections", "durable puts a second, 64 connections (more is better)"),
        (
            "put, take, acknowledge, 64 connections",
            "put, take, acknowledge: cycles a second, 64 connections (more is better)",
        ),
        ("wake, 1000 waiting: p50 ms", "ms to wake one of 1,000 that wait, median (less is better)"),
    ):
        values = {name: statistics.median(found) for name, found in figures.get(what, {}).items()}
        if values:
            groups.append((title, values))
    return bars(groups)


if __name__ == "__main__":
    sys.exit(main())
