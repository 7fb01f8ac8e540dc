"""The audit chain: what a record looks like, how records are linked, and what an exported file contains and proves.

A record is one line of canonical JSON: sorted keys, no whitespace, only strings and integers, and no unnecessary
escapes (a subset of RFC 8785). `hash` is the SHA-256 of the line without `hash`; `prev` is the hash of the previous
record, so changing, removing, swapping, or repeating a record breaks the chain from there on. The first record's `prev`
is `START`.

An exported file consists of a *checkpoint* (if older records were purged), the records, and a *trailer* with their
count and the last hash; without the trailer, a truncated file would go unnoticed.

The chain alone cannot reveal everything: anyone who can write to the database can recompute all of it. Only a hash that
was kept elsewhere (an *anchor*) reveals that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from json.encoder import encode_basestring as quoted  # the C function, where there is one
from typing import Any, NamedTuple

from stonemux.clock import rfc3339
from stonemux.record import Record

START = "0" * 64
"""The `prev` of the first record."""


class Entry(NamedTuple):
    """An event to record, before it has its place in the chain. Never contents: only names, ids, and hashes."""

    action: str
    """The name of an operation, or of another event, as `area.what`."""
    actor: str = ""
    target: str = ""
    channel: str = ""
    outcome: str = "ok"
    """`ok`, `replayed`, or the error code of a refusal."""
    request_id: str = ""
    body_sha256: str = ""
    at: int = 0
    """When it happened; 0 means the time of the transaction."""
    calls: int = 1
    """How many calls this entry represents, if there were too many to record each one."""


FIELDS = ("action", "actor", "body_sha256", "channel", "hash", "outcome", "prev", "request_id", "seq", "target", "ts")


@cache
def hasher() -> Callable[[bytes], Any]:
    """SHA-256, imported on first use: it loads OpenSSL, which would slow startup."""
    from hashlib import sha256

    return sha256


def sha256(data: bytes) -> str:
    """The SHA-256 in hexadecimal digits."""
    digest: str = hasher()(data).hexdigest()
    return digest


def canonical(value: Mapping[str, Any]) -> str:
    """The canonical JSON of an object."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def render(entry: Entry, seq: int, prev: str, ts: str) -> str:
    """The record at this place in the chain, as canonical JSON without its hash."""
    action, actor, target, channel, outcome, request_id, body, _, calls = entry
    count = f'"count":{calls},' if calls != 1 else ""
    return (
        f'{{"action":{quoted(action)},"actor":{quoted(actor)},"body_sha256":"{body}","channel":{quoted(channel)},{count}'
        f'"outcome":"{outcome}","prev":"{prev}","request_id":"{request_id}","seq":{seq},"target":{quoted(target)},'
        f'"ts":"{ts}"}}'
    )


COLUMNS = "seq, at, ts, action, actor, target, channel, outcome, request_id, body, calls, hash"
"""The columns of a record: `at` is the commit time and never decreases, `ts` is when it happened; hashes are bytes."""


def links(entries: Iterable[Entry], seq: int, prev: str, now: int) -> list[tuple[Any, ...]]:
    """The rows for these entries, which follow record `seq` with the hash `prev`."""
    sha, stamp, rows = hasher(), rfc3339(now), []
    for entry in entries:
        seq += 1
        action, actor, target, channel, outcome, request_id, body, ts, calls = entry
        digest = sha(render(entry, seq, prev, rfc3339(ts) if ts else stamp).encode()).digest()
        prev = digest.hex()
        hashes = bytes.fromhex(body), calls, digest
        rows.append((seq, now, ts or now, action, actor, target, channel, outcome, request_id, *hashes))
    return rows


def exported(row: Any, prev: str) -> str:
    """A stored record as a line of an export; `prev` is the hash of the previous one."""
    seq, _, ts, action, actor, target, channel, outcome, request_id, body, calls, digest = row
    entry = Entry(action, actor, target, channel, outcome, request_id, body.hex(), calls=calls)
    return line(render(entry, seq, prev, rfc3339(ts)), digest.hex())


def line(record: str, digest: str) -> str:
    """A record with its hash, still canonical."""
    # Inside a string every quote is escaped, so this matches only at the key.
    before, key, after = record.partition(',"outcome":')
    return f'{before},"hash":"{digest}"{key}{after}'


def checkpoint(seq: int, digest: str, now: int, key: bytes) -> str:
    """A checkpoint that replaces the purged records up to `seq`: the hash of the last one, signed."""
    told = {"hash": digest, "key_id": key_id(key), "seq": seq, "ts": rfc3339(now)}
    return canonical({"checkpoint": told, "mac": _mac(told, key)})


def checkpointed(checkpoint: str) -> str:
    """The hash of the last record that a checkpoint replaces."""
    digest: str = json.loads(checkpoint)["checkpoint"]["hash"]
    return digest


def key_id(key: bytes) -> str:
    """An identifier for a key that reveals nothing about the key."""
    return sha256(b"stonemux audit key " + key)[:16]


def _mac(told: Mapping[str, Any], key: bytes) -> str:
    from hmac import digest

    return digest(key, canonical(told).encode(), "sha256").hex()


def trailer(count: int, head: str) -> str:
    """The last line of an export."""
    return canonical({"count": count, "head": head})


# -- verifying a file


class Broken(Exception):
    """A file that is not as it was exported; says what is wrong with it, and where."""

    def __init__(self, problem: str, *, line: int = 0, seq: int | None = None) -> None:
        where = [f"line {line}"] if line else []
        where += [f"record {seq}"] if seq is not None else []
        super().__init__(f"{', '.join(where)}: {problem}" if where else problem)
        self.line = line
        self.seq = seq


class Anchor(Record):
    """A place in the chain that someone noted elsewhere."""

    seq: int
    hash: str


class Found(NamedTuple):
    """What an intact file holds; `first` is 0 if it holds no records."""

    records: int
    first: int
    last: int
    head: str
    purged: int
    """Records up to this one were purged and replaced by a checkpoint."""
    signed: bool
    """Whether the checkpoint's signature was checked."""


MOST_LINE = 64 * 1024
"""The most bytes that a line may have; a longer one is not a record."""


def verify(
    file: Iterable[bytes], *, head: str | None = None, anchor: Anchor | None = None, key: bytes | None = None
) -> Found:
    """Check an exported file, read line by line; raises `Broken` for the first thing that is wrong.

    `head` is the hash that the file must end with, `anchor` a record that it must hold (or follow directly), and `key`
    the key that signed a checkpoint.
    """
    reader = _Reader(anchor, key)
    for number, raw in enumerate(file, 1):
        reader.number = number
        reader.read(raw)
    return reader.end(head)


class _Reader:
    """Reads a file once, keeping only its current position in the chain."""

    def __init__(self, anchor: Anchor | None, key: bytes | None) -> None:
        self.number = 0
        self._anchor, self._key = anchor, key
        self._first = self._count = self._purged = 0
        self._seq: int | None = None  # of the previous record, if known
        self._hash = START
        self._signed = self._anchored = self._ended = False

    def _broken(self, problem: str, seq: Any = None) -> Broken:
        return Broken(problem, line=self.number, seq=seq if type(seq) is int else None)

    def read(self, raw: bytes) -> None:
        """Check the next line."""
        if self._ended:
            raise self._broken("something follows the trailer, which must be the last line")
        if not raw.endswith(b"\n") or len(raw) > MOST_LINE:
            raise self._broken("the line is cut off" if len(raw) <= MOST_LINE else "the line is too long for a record")
        try:
            text = raw[:-1].decode()
            told = json.loads(text)
        except (ValueError, RecursionError):
            raise self._broken("the line is not JSON; it was changed", self._expected()) from None
        if type(told) is not dict or canonical(told) != text:
            raise self._broken("the line is not written the one way it must be; it was changed", self._expected())
        if "checkpoint" in told:
            self._checkpoint(told)
        elif "head" in told:
            self._trailer(told)
        else:
            self._record(told)

    def _expected(self) -> int | None:
        return None if self._seq is None else self._seq + 1

    def _record(self, told: dict[str, Any]) -> None:
        seq, digest, prev = told.get("seq"), told.get("hash"), told.get("prev")
        if not set(FIELDS) <= told.keys() <= {*FIELDS, "count"} or type(seq) is not int or seq < 1:
            raise self._broken("this is not a record; it was changed", self._expected())
        if sha256(canonical({name: value for name, value in told.items() if name != "hash"}).encode()) != digest:
            raise self._broken("its hash does not match what it says: it was changed", seq)
        if self._seq is None:  # an export may begin anywhere
            if seq == 1 and prev != START:
                raise self._broken("it is the first, but names another one before it", seq)
            self._seq, self._hash = seq - 1, str(prev)
            self._look_for_anchor()
        if seq <= self._seq:
            raise self._broken(f"it follows record {self._seq}: it occurs twice, or records were swapped", seq)
        if seq != self._seq + 1:
            missing = f"{self._seq + 1}" if seq == self._seq + 2 else f"{self._seq + 1} to {seq - 1}"
            raise self._broken(f"it follows record {self._seq}: removed or swapped: {missing}", seq)
        if prev != self._hash:
            raise self._broken("it does not follow from the record before: that one was replaced", seq)
        self._first = self._first or seq
        self._count += 1
        self._seq, self._hash = seq, str(digest)
        self._look_for_anchor()

    def _look_for_anchor(self) -> None:
        if self._anchor is not None and self._anchor.seq == self._seq:
            if self._anchor.hash != self._hash:
                raise self._broken("it is not the record that the anchor has seen: the log was rewritten", self._seq)
            self._anchored = True

    def _checkpoint(self, told: dict[str, Any]) -> None:
        inner = told["checkpoint"]
        if (
            self.number != 1
            or told.keys() != {"checkpoint", "mac"}
            or type(inner) is not dict
            or inner.keys() != {"hash", "key_id", "seq", "ts"}
            or type(inner["seq"]) is not int
        ):
            raise self._broken("this is not a checkpoint, or not at the beginning")
        if self._key is not None:
            if _mac(inner, self._key) != told["mac"]:
                raise self._broken("the checkpoint is not signed with this key: it was changed, or made elsewhere")
            self._signed = True
        self._purged = self._seq = inner["seq"]
        self._hash = str(inner["hash"])
        self._look_for_anchor()

    def _trailer(self, told: dict[str, Any]) -> None:
        if told.keys() != {"count", "head"}:
            raise self._broken("this is not a trailer; it was changed")
        if told["count"] != self._count:
            raise self._broken(f"the trailer counts {told['count']} records, but the file holds {self._count}")
        if self._seq is not None and told["head"] != self._hash:
            raise self._broken("the trailer names another last hash: records were removed or replaced", self._seq)
        self._hash = str(told["head"])
        self._ended = True

    def end(self, head: str | None) -> Found:
        """Check that the file ends as it must; call this after the last line."""
        self.number = 0
        if not self._ended:
            raise self._broken(f"the trailer is missing after {self._count} records: the end was cut off")
        if head is not None and head != self._hash:
            raise self._broken(f"the file ends with {self._hash}, not with {head}: the end was cut off or replaced")
        empty_after = self._seq is None and self._anchor is not None and self._anchor.hash == self._hash
        if self._anchor is not None and not self._anchored and not empty_after:
            raise self._broken(self._unanchored(self._anchor))
        last = self._seq or 0
        return Found(self._count, self._first, last, self._hash, self._purged, self._signed)

    def _unanchored(self, anchor: Anchor) -> str:
        if self._seq is None or anchor.seq > self._seq:
            return (
                f"the anchor has seen record {anchor.seq}, but the file ends at {self._seq or 0}: the end was cut off"
            )
        return f"the file begins after record {anchor.seq}, which the anchor has seen; export from there on"
