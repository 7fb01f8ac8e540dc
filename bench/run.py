"""`python -m bench.run`: measure stonemux beside its yardsticks and print one table.

    --only NAME   only this topic (repeatable)
    --quick       shorter runs and smaller tables: a first impression in about a minute
    --json FILE   also write every figure to this file

Everything runs on 127.0.0.1 with temporary data directories, on the file system of the temporary directory (`TMPDIR`).
The whole run is bounded in time. Exit status 0: measured, whether or not targets were met; 1: something could not be
measured, as the table says; 130: interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from bench.load import LoadFailed, Refused, capacity
from bench.rows import QUICK, ROWS, Plan, Row
from bench.servers import ServerFailed, missing_for_fastapi

MOST_S = 590
"""The longest run in seconds; anything not measured by then is reported as missing."""

MOST_QUICK_S = 89


class OutOfTime(Exception):
    """The run exceeded its time limit."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measure stonemux beside its yardsticks.")
    parser.add_argument("--only", action="append", choices=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--quick", action="store_true", help="shorter runs and smaller tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there, too")
    options = parser.parse_args(arguments)

    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(MOST_QUICK_S if options.quick else MOST_S)
    began = time.monotonic()
    try:
        surroundings = describe()
        for name, value in surroundings.items():
            print(f"{name}: {value}")
        print(flush=True)
        rows, failures = measure(options.only or list(ROWS), QUICK if options.quick else Plan())
    except KeyboardInterrupt:
        print("interrupted; everything started is stopped", file=sys.stderr)
        return 130
    finally:
        signal.alarm(0)
    print(table(rows))
    missing = missing_for_fastapi()
    if missing:
        print(f"\nWithout {', '.join(missing)} there is no FastAPI baseline: pip install 'stonemux[bench]'")
    missed = [row.name for row in rows if row.met is False]
    if missed:
        print(f"\nTargets missed: {'; '.join(missed)}")
    for failure in failures:
        print(f"\nNot measured: {failure}")
    surroundings["one flush, at the end"] = f"{flush_ms():.3f} ms"
    print(f"\none flush, at the end: {surroundings['one flush, at the end']}; {time.monotonic() - began:.0f} s in all")
    if options.json:
        told = {"surroundings": surroundings, "rows": [asdict(row) for row in rows], "failures": failures}
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return 1 if failures else 0


def measure(names: list[str], plan: Plan) -> tuple[list[Row], list[str]]:
    """The rows, and what could not be measured and why."""
    rows: list[Row] = []
    failures: list[str] = []
    for name in names:
        began = time.monotonic()
        try:
            for row in ROWS[name](plan):
                rows.append(row)
                print(f"  {row.name}: {row.ours}", file=sys.stderr, flush=True)
        except OutOfTime:
            failures.append(f"{name} and what follows: the run reached its longest time")
            break
        except (LoadFailed, Refused, ServerFailed, OSError, EOFError) as trouble:
            failures.append(f"{name}: {type(trouble).__name__}: {trouble}")
            print(f"  {name} FAILED: {trouble}", file=sys.stderr, flush=True)
        print(f"  ({name}: {time.monotonic() - began:.1f} s)", file=sys.stderr, flush=True)
    return rows, failures


def describe() -> dict[str, str]:
    """What the figures depend on: processors, versions, the cost of a flush, and the generator's own limit."""
    generator = capacity(1.0)
    return {
        "machine": f"{os.cpu_count()} processors, {platform.system()} {platform.machine()}",
        "versions": f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        "one flush (fdatasync of 4 KiB), at the beginning": f"{flush_ms():.3f} ms",
        "load generator, against a server that does nothing": f"{generator.rate:,.0f} requests/s",
    }


def flush_ms() -> float:
    """The median time of making 4 KiB durable on the file system of the data directories."""
    times = []
    with tempfile.NamedTemporaryFile(prefix="stonemux-bench-") as file:
        for _ in range(100):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def table(rows: list[Row]) -> str:
    """The rows, with aligned columns."""
    lines = [("", "stonemux", "baseline", "ratio", "target", "met", "")]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        met = {None: "", True: "yes", False: "NO"}[row.met]
        lines.append((row.name, row.ours, row.theirs, ratio, row.target, met, row.note))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _out_of_time(signum: int, frame: FrameType | None) -> None:
    raise OutOfTime


if __name__ == "__main__":
    sys.exit(main())
