"""Verify an exported audit log, or print an anchor for the log as it is now.

"verify FILE" reads what "stonemux audit export > FILE" wrote ("-": standard input) and names the first line that is
wrong. "anchor" prints the number and the hash of the newest record: keep it where nobody who can write to the data
directory can change it, and verify later exports with --from-anchor. Exit status of "verify": 0 intact, 1 not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from stonemux import flags
from stonemux.chain import Anchor, Broken, Found, verify
from stonemux.errors import EXIT_OK, EXIT_REFUSED, MuxError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action, and what to verify a file against."""
    parser.add_argument("action", choices=("verify", "anchor"), help="what to do")
    parser.add_argument("file", nargs="?", metavar="FILE", help="the export to verify, or - for standard input")
    parser.add_argument("--head", metavar="HASH", help="the hash that the export must end with")
    parser.add_argument("--from-anchor", metavar="FILE", type=Path, help="earlier output of 'anchor', or a head.json")
    parser.add_argument("--key", metavar="FILE", type=Path, help="audit.key of the data directory, for checkpoints")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON, for programs")
    flags.add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Verify, or print the anchor."""
    if options.action == "anchor":
        from stonemux import upkeep

        print(json.dumps(upkeep.anchor(flags.settings(options, environ))))
        return EXIT_OK
    if options.file is None:
        raise MuxError("missing_field", "verify needs a FILE to check; '-' is standard input")
    anchor = None if options.from_anchor is None else _anchor(options.from_anchor)
    key = None if options.key is None else _key(options.key)
    try:
        with _opened(options.file) as file:
            found = verify(file, head=options.head, anchor=anchor, key=key)
    except Broken as broken:
        if options.json:
            print(json.dumps({"whole": False, "line": broken.line or None, "seq": broken.seq, "problem": str(broken)}))
        print(f"stonemux: {options.file}: {broken}", file=sys.stderr)
        return EXIT_REFUSED
    except OSError as trouble:
        raise _unreadable(options.file, trouble) from trouble
    name = "standard input" if options.file == "-" else options.file
    print(json.dumps({"whole": True} | found._asdict()) if options.json else _told(name, found))
    return EXIT_OK


def _told(name: str, found: Found) -> str:
    records = f"records {found.first} to {found.last}" if found.records else "no records"
    lines = [f"{name} is intact: {records}, head {found.head}"]
    if found.purged:
        signed = "its signature is valid" if found.signed else "its signature was not checked; pass the key with --key"
        lines.append(f"  records up to {found.purged} were purged; a checkpoint replaces them ({signed})")
    elif found.first > 1:
        lines.append(f"  it begins with record {found.first}; earlier records are not in this file")
    return "\n".join(lines)


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdin.buffer
        return
    with Path(name).open("rb") as file:
        yield file


def _unreadable(name: Any, trouble: OSError) -> MuxError:
    code = "not_found" if isinstance(trouble, FileNotFoundError) else "data_refused"
    return MuxError(code, f"{name} cannot be read: {trouble.strerror}")


def _anchor(file: Path) -> Anchor:
    try:
        told = json.loads(file.read_text())
        return Anchor(int(told.get("audit_seq", told.get("seq"))), str(told.get("audit_head", told.get("hash"))))
    except OSError as trouble:
        raise _unreadable(file, trouble) from trouble
    except (ValueError, TypeError, AttributeError) as trouble:
        raise MuxError("invalid_field", f"{file} is not an anchor; 'stonemux audit anchor' prints one") from trouble


def _key(file: Path) -> bytes:
    from stonemux.datadir import read_audit_key

    try:
        return read_audit_key(file)
    except OSError as trouble:
        raise _unreadable(file, trouble) from trouble
    except ValueError as trouble:
        raise MuxError(
            "invalid_field", f"{file} contains no key; the key is audit.key in the data directory"
        ) from trouble
