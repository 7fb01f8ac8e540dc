"""`python -m bench.against`: measure stonemux and the programs that users know in one run.

    --report DIR  write `benchmarks.md` and `benchmarks.svg` there; the hand-written part below the figures, "Where a
                  peer wins", is kept: check whether it still holds
    --json FILE   write every figure
    --seconds S   length of one measurement (default 2)
    --rounds N    how often to measure each in a run (default 1); the report shows medians
    --runs N      number of consecutive runs (default 1); the targets are reported for each
    --only NAME   only these programs (repeatable); stonemux is always measured

All programs run on 127.0.0.1 with an empty directory on the same file system and are driven by the same generator. Each
measurement is made with every program, one right after the other, so that fluctuations of the machine affect all alike.
A ratio is the median over the rounds of stonemux's figure divided by the other's in the same round.
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from bench.chart import bars
from bench.load import LoadFailed, Peer, Refused, load, percentile, raise_file_limit
from bench.peers import CONTENDERS, Contender, running
from bench.run import flush_ms
from bench.servers import Server, ServerFailed

PUTS = (1, 8, 64, 512)
CYCLES = (8, 64)
CROWDS = (1, 100, 1000, 2000)
WAKES = 60
COMMENT = "\n## Where a peer wins, and why\n"
"""The heading of the hand-written conclusions in the report."""

Figures = dict[str, dict[str, list[float]]]
"""Figures by measurement and program, one per round."""
Measurement = Callable[[Contender], Iterator[tuple[str, float]]]
"""Measures one program; yields the name and the value of each figure."""


class Target(NamedTuple):
    """A target for stonemux."""

    what: str
    limit: float
    unit: str
    found: Callable[[Figures], float | None]
    """Computes the value that a run measured for it."""
    least: bool = True
    """Whether the limit is a minimum; otherwise it is a maximum."""

    def told(self, figures: Figures) -> str:
        """The measured value of a run, and whether it misses the target."""
        value = self.found(figures)
        if value is None:
            return "-"
        missed = value < self.limit if self.least else value > self.limit
        return f"{_shown(value)}{self.unit}{' (missed)' if missed else ''}"


def _own(what: str) -> Callable[[Figures], float | None]:
    def found(figures: Figures) -> float | None:
        values = figures.get(what, {}).get("stonemux")
        return statistics.median(values) if values else None

    return found


def _over(other: str, what: str) -> Callable[[Figures], float | None]:
    return lambda figures: ratios(figures, what, other) if what in figures else None


def _of(what: str, base: str) -> Callable[[Figures], float | None]:
    def found(figures: Figures) -> float | None:
        ours, theirs = _own(what)(figures), _own(base)(figures)
        return ours / theirs if ours and theirs else None

    return found


_PUT, _CYCLE, _MANY = "put, 64 connections", "put, take, acknowledge, 64 connections", "put, 512 connections"
TARGETS = (
    Target(f"{_PUT}, over FastAPI", 4.0, "x", _over("FastAPI", _PUT)),
    Target(f"{_PUT}, over beanstalkd", 0.8, "x", _over("beanstalkd", _PUT)),
    Target(f"{_PUT}, over etcd", 1.0, "x", _over("etcd", _PUT)),
    Target(f"{_PUT}, over redis list", 0.3, "x", _over("redis list", _PUT)),
    Target(f"{_CYCLE}, over beanstalkd", 0.6, "x", _over("beanstalkd", _CYCLE)),
    Target(f"{_MANY}, over 64", 0.8, "x", _of(_MANY, _PUT)),
    Target(f"{_MANY}: p99", 60.0, " ms", _own(f"{_MANY}: p99 ms"), least=False),
    Target("wake, 2000 waiting: p99", 1.0, " ms", _own("wake, 2000 waiting: p99 ms"), least=False),
    Target("memory per waiter", 10.0, " KB", _own("memory per waiter, KB"), least=False),
)


def main(arguments: list[str] | None = None) -> int:
    """Measure the installed programs, print the figures, and write the report if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench.against", description="Measure stonemux beside its peers.")
    parser.add_argument("--report", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", action="append", choices=[contender.name for contender in CONTENDERS])
    options = parser.parse_args(arguments)
    raise_file_limit()
    chosen = [c for c in CONTENDERS if c.name == "stonemux" or not options.only or c.name in options.only]
    versions = {contender.name: contender.version() for contender in chosen}
    for contender in chosen:
        if not versions[contender.name]:
            print(f"{contender.name} is not installed ({contender.package})", file=sys.stderr)
    chosen = [contender for contender in chosen if versions[contender.name]]
    began = time.monotonic()
    runs = [_run(chosen, options.rounds, options.seconds, run) for run in range(options.runs)]
    told = report(runs, versions, options.rounds, options.seconds)
    print(told, end="")
    print(f"{time.monotonic() - began:.0f} s in all", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, "runs": runs}, indent=2) + "\n")
    if options.report:
        page = options.report / "benchmarks.md"
        page.write_text(told + _comment(page))
        (options.report / "benchmarks.svg").write_text(_chart(_together(runs)))
    return 0


def _run(chosen: list[Contender], rounds: int, seconds: float, run: int) -> Figures:
    figures: Figures = {}
    for number in range(rounds):
        for index, (title, measure) in enumerate(_measurements(seconds)):
            turned = (run + number + index) % 2  # so that nobody always comes first
            for contender in reversed(chosen) if turned else chosen:
                try:
                    for what, value in measure(contender):
                        figures.setdefault(what, {}).setdefault(contender.name, []).append(value)
                        print(f"  {number + 1}/{rounds} {contender.name:<14} {what}: {value:,.2f}", file=sys.stderr)
                except (LoadFailed, ServerFailed, Refused, OSError) as trouble:
                    print(f"  {contender.name}: {title} failed: {trouble}", file=sys.stderr)
    return figures


def _together(runs: list[Figures]) -> Figures:
    """The figures of all runs, as if they were rounds of a single one."""
    together: Figures = {}
    for figures in runs:
        for what, by_name in figures.items():
            for name, values in by_name.items():
                together.setdefault(what, {}).setdefault(name, []).extend(values)
    return together


# --- measuring


def _measurements(seconds: float) -> Iterator[tuple[str, Measurement]]:
    for name, maker, counts in (
        ("put", attrgetter("put"), PUTS),
        ("put, take, acknowledge", attrgetter("cycle"), CYCLES),
    ):
        for connections in counts:
            title = f"{name}, {connections} connection{'s' if connections > 1 else ''}"
            yield title, partial(_loaded, title, maker, connections, seconds)
    for crowd in CROWDS:
        yield f"wake, {crowd} waiting", partial(_waiting, crowd)


def _loaded(
    title: str,
    maker: Callable[[Contender], Callable[[int], Peer]],
    connections: int,
    seconds: float,
    contender: Contender,
) -> Iterator[tuple[str, float]]:
    """Units per second of the clients that `maker` names, and the 99th percentile of their latency."""
    with running(contender) as server:  # a new one for each: leftovers of the last would slow it
        contender.prepare(server, [])
        result = load(server.address, maker(contender), connections=connections, seconds=seconds, warmup=0.4)
        server.check()
    yield title, result.rate
    yield f"{title}: p99 ms", result.percentile(0.99)


def _waiting(crowd: int, contender: Contender) -> Iterator[tuple[str, float]]:
    """Wake-ups among a crowd of waiting clients, and with the largest crowd the memory that each costs."""
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
            yield "memory per waiter, KB", (server.memory() - before) / (crowd - 1) / 1024
        samples = sorted(_wakes(contender, server, names[0]))
        yield f"wake, {crowd} waiting: p50 ms", percentile(samples, 0.5) * 1000
        yield f"wake, {crowd} waiting: p99 ms", percentile(samples, 0.99) * 1000


def _wakes(contender: Contender, server: Server, name: str) -> Iterator[float]:
    """Seconds from just before the put is written until the waiting client has received it completely."""
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


# --- reporting


def ratios(figures: Figures, what: str, other: str) -> float | None:
    """The ratio of stonemux's figure to the other's, as the median over the rounds."""
    ours, theirs = figures[what].get("stonemux", []), figures[what].get(other, [])
    pairs = [mine / its for mine, its in zip(ours, theirs, strict=False) if its]
    return statistics.median(pairs) if pairs else None


def report(runs: list[Figures], versions: dict[str, str], rounds: int, seconds: float) -> str:
    """The report as Markdown."""
    figures = _together(runs)
    names = list(dict.fromkeys(name for by_name in figures.values() for name in by_name))
    lines = [
        "# Benchmarks",
        "",
        f"How fast stonemux is, compared with other programs. Generated by `make bench-peers`: every figure is the "
        f"median of {len(runs) * rounds} measurements of {seconds:g} s in {len(runs)} runs, and each measurement is "
        "made with all programs in turn. Ratios carry over to other machines; absolute figures do not. Programs that "
        "are not installed are left out; `make bench-peers BENCH_INSTALL=1` installs them first, with apt.",
        "",
        f"Machine: {os.cpu_count()} processors, {platform.system()} {platform.machine()}, one 4 KiB flush takes "
        f"{flush_ms():.3f} ms; Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}. The load generator "
        "runs on the same machine.",
        "",
        "![Puts per second with 64 connections, and wake-ups](benchmarks.svg)",
        "",
        "| program | version | durability of an answered put |",
        "|---|---|---|",
        *(f"| {c.name} | {versions[c.name]} | {c.flushes} |" for c in CONTENDERS if c.name in names),
    ]
    for title, note, wanted in _TABLES:
        rows = [what for what in figures if wanted(what)]
        if rows:
            lines += ["", f"## {title}", "", note, "", *_table(figures, rows, names)]
    lines += [
        "",
        "## Targets",
        "",
        "The results of each run on its own. `make bench` has more targets, for stonemux alone.",
        "",
        f"| | target |{''.join(f' run {n + 1} |' for n in range(len(runs)))}",
        f"|---|---:|{'---:|' * len(runs)}",
    ]
    for target in TARGETS:
        told = " | ".join(target.told(figures) for figures in runs)
        lines.append(f"| {target.what} | {'>=' if target.least else '<='} {target.limit:g}{target.unit} | {told} |")
    return "\n".join(lines) + "\n"


def _comment(page: Path) -> str:
    return "".join(page.read_text().partition(COMMENT)[1:]) if page.exists() else ""


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
        "Durable puts per second",
        "200 characters to 32 recipients (lists, streams, keys) in turn. In parentheses: stonemux's figure divided by "
        "that program's, as the median over the rounds.",
        lambda what: what.startswith("put, ") and "take" not in what and "p99" not in what,
    ),
    (
        "Put, take, acknowledge: cycles per second",
        "stonemux and FastAPI post, claim, and complete a task; redis streams use XADD, XREADGROUP, XACK; beanstalkd "
        "put, reserve, delete; etcd puts a key, claims it by compare-and-swap, and deletes it; nats publishes, pulls, "
        "and acknowledges. redis lists use LPUSH and BRPOP, which acknowledge nothing.",
        lambda what: what.startswith("put, take") and "p99" not in what,
    ),
    (
        "Latency under that load, 99th percentile",
        "Milliseconds; lower is better.",
        lambda what: "connection" in what and "p99" in what,
    ),
    (
        "Waking one of many waiting clients",
        "Milliseconds from writing the put until the waiting client has the message; each client waits for its own.",
        lambda what: what.startswith("wake"),
    ),
    (
        "Memory of a waiting client",
        "KB of the server's resident memory per waiting client.",
        lambda what: what.startswith("memory"),
    ),
)


def _chart(figures: Figures) -> str:
    groups = []
    for what, title in (
        ("put, 64 connections", "durable puts per second, 64 connections (more is better)"),
        (
            "put, take, acknowledge, 64 connections",
            "put, take, acknowledge: cycles per second, 64 connections (more is better)",
        ),
        ("wake, 1000 waiting: p50 ms", "ms to wake one of 1,000 waiting clients, median (lower is better)"),
    ):
        values = {name: statistics.median(found) for name, found in figures.get(what, {}).items()}
        if values:
            groups.append((title, values))
    return bars(groups)


if __name__ == "__main__":
    sys.exit(main())
