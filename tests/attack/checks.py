"""The judges: each reads the diaries, and the database that remains, and reports which promise was broken.

A violation is a text `rule: what happened`; the table in docs/testing.md lists the rules.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from attack import actors
from attack.linearizability import Op, is_linearizable
from stonemux import chain


def messages(sent: Sequence[actors.Sent], readers: Sequence[actors.Reader]) -> Iterator[str]:
    """Nothing is lost or duplicated; ids increase and are used once."""
    content_of: dict[int, str] = {}
    for one in sent:
        if content_of.setdefault(one.id, f"{one.sender} {one.number}") != f"{one.sender} {one.number}":
            yield f"reused_id: {one.id} was given to {content_of[one.id]!r} and to {one.sender} {one.number}"
    had: dict[str, set[int]] = defaultdict(set)
    for reader in readers:
        had[reader.inbox] |= {read.id for read in reader.read}
    for one in sent:
        if one.id not in had[one.to]:
            yield f"lost_message: {one} was acknowledged, and never read from the inbox {one.to}"
    for reader in readers:
        yield from reader.complaints
        for read in reader.read:
            if content_of.setdefault(read.id, read.content) != read.content:
                yield f"reused_id: {read.id} is {content_of[read.id]!r} and {read.content!r}"
    last: dict[str, actors.Sent] = {}
    for one in sent:  # each sender sends sequentially
        before = last.get(one.sender)
        if before is not None and one.id <= before.id:
            yield f"sender_order: {before} and then {one}"
        last[one.sender] = one


def receipts(reader: actors.Reader) -> Iterator[str]:
    """A plain poll whose answer was received is not repeated (except by a daemon that died before recording that)."""
    received: dict[int, actors.Read] = {}
    for read in reader.read:
        before = received.get(read.id)
        if before is not None and before.incarnation == read.incarnation:
            yield f"delivered_twice: {before}, then {read}"
        if read.receipt is not None:
            received[read.id] = read


def leases(readers: Sequence[actors.LeaseReader]) -> Iterator[str]:
    """An acknowledged message is settled for good; a leased message goes to no other reader until the lease ends."""
    settled: dict[int, int] = {}
    for reader in readers:
        for ack in reader.acked:
            settled[ack.id] = min(ack.end, settled.get(ack.id, ack.end))
    put_back = {ack.id for reader in readers for ack in reader.put_back}
    held: dict[int, actors.Read] = {}
    for read in sorted((read for reader in readers for read in reader.read), key=lambda read: read.end):
        if read.call > settled.get(read.id, read.call):
            yield f"redelivered_after_ack: {read} was asked for after the acknowledgement at {settled[read.id]}"
        before = held.get(read.id)
        if before is not None and read.id not in put_back and read.end < before.call + actors.LEASE * 1_000_000_000:
            yield f"lease_ignored: {before}, then {read}"
        held[read.id] = read


def claims(granted: Sequence[actors.Claim], completed: Sequence[actors.Completion]) -> Iterator[str]:
    """Fences make this simple: each is granted once, and only the newest may complete, once."""
    by_task: dict[str, list[actors.Claim]] = defaultdict(list)
    for claim in granted:
        for other in by_task[claim.task_id]:
            if other.fence == claim.fence:
                yield f"double_claim: {other} and {claim}"
        by_task[claim.task_id].append(claim)
    done: dict[str, actors.Completion] = {}
    for completion in completed:
        for claim in by_task[completion.task_id]:
            if claim.fence > completion.fence and not completion.replayed:
                if claim.end < completion.call:
                    yield f"zombie_complete: {completion} was accepted after {claim}"
                elif claim.call > completion.end:
                    yield f"claim_after_complete: {claim} was granted after {completion}"
        first = done.setdefault(completion.task_id, completion)
        if first is not completion and (first.worker, first.fence) != (completion.worker, completion.fence):
            yield f"completed_twice: {first} and {completion}"


def state(editors: Sequence[actors.Editor]) -> Iterator[str]:
    """For each key separately: one order explains all answers."""
    histories: dict[str, list[Op]] = defaultdict(list)
    for editor in editors:
        for key, ops in editor.history.items():
            histories[key] += ops
    for key, ops in histories.items():
        if not is_linearizable(ops):
            yield f"not_linearizable: {key} with {len(ops)} calls"


def events(listener: actors.Listener, log: Sequence[actors.Seen]) -> Iterator[str]:
    """A stream shows the log: in order, without gaps, and nothing that is not in it."""
    yield from listener.complaints
    stored = {event.id: event for event in log}
    for before, after in zip(listener.seen, listener.seen[1:], strict=False):
        if after.id != before.id + 1:
            yield f"event_order: {after.id} came after {before.id}"
    for event in listener.seen:
        if stored.get(event.id) != event:
            yield f"phantom_event: the stream showed {event}, the log holds {stored.get(event.id)}"


def database(
    path: Path, sent: Sequence[actors.Sent], posted: Sequence[actors.Posted], completed: Sequence[actors.Completion]
) -> Iterator[str]:
    """The contents of the disk after the end."""
    db = sqlite3.connect(path)
    try:
        if (verdict := db.execute("pragma integrity_check").fetchone()[0]) != "ok":
            yield f"integrity: {verdict}"
        stored = dict(db.execute("select id, content from message"))
        yield from _told_twice("duplicate_send", stored.values())
        for one in sent:
            if stored.get(one.id) != f"{one.sender} {one.number}":
                yield f"lost_message: {one} is not in the database"
        events = Counter(
            row[0] for row in db.execute("select json_extract(data, '$.id') from event where kind = 'message'")
        )
        if events != Counter(stored.keys()):
            yield "event_missing: not every message has one event"
        yield from _tasks(db, posted, completed)
        yield from _audit(db)
    finally:
        db.close()


def _tasks(
    db: sqlite3.Connection, posted: Sequence[actors.Posted], completed: Sequence[actors.Completion]
) -> Iterator[str]:
    tasks = {row[0]: row[1:] for row in db.execute("select id, description, status, fence from task")}
    yield from _told_twice("duplicate_task", (description for description, _, _ in tasks.values()))
    for one in posted:
        if tasks.get(one.task_id, ("",))[0] != one.name:
            yield f"lost_task: {one} is not in the database"
        elif tasks[one.task_id][1] != "complete":
            yield f"lost_task: {one} was never completed, it is {tasks[one.task_id]}"
    for completion in completed:
        if tasks.get(completion.task_id, ("", "", 0))[2] != completion.fence:
            yield f"zombie_complete: {completion} was accepted, but the newest claim is {tasks.get(completion.task_id)}"
    granted = db.execute(
        "select t.id, h.fence from task_history h join task t on t.seq = h.task where h.act = 'claimed' "
        "group by 1, 2 having count(*) > 1"
    ).fetchall()
    for task_id, fence in granted:
        yield f"double_claim: {task_id} was claimed twice with fence {fence}"
    ended = Counter(
        row[0] for row in db.execute("select json_extract(data, '$.task_id') from event where kind = 'task_completed'")
    )
    for task_id, count in ended.items():
        if count != 1:
            yield f"completed_twice: {task_id} has {count} events task_completed"


def _audit(db: sqlite3.Connection) -> Iterator[str]:
    """Every message and every task has its record, and the chain is intact."""
    lines, prev = [], chain.START
    for row in db.execute(f"select {chain.COLUMNS} from audit order by seq"):
        lines.append(f"{chain.exported(row, prev)}\n".encode())
        prev = row[-1].hex()
    try:
        chain.verify([*lines, f"{chain.trailer(len(lines), prev)}\n".encode()])
    except chain.Broken as broken:
        yield f"audit: {broken}"
    for table, action in (("message", "msg.send"), ("task", "task.post")):
        (there,) = db.execute(f"select count(*) from {table}").fetchone()
        (entered,) = db.execute("select count(*) from audit where outcome = 'ok' and action = ?", (action,)).fetchone()
        if entered != there:
            yield f"audit: {there} rows of {table}, and {entered} records of {action}"


def _told_twice(rule: str, things: Iterable[str]) -> Iterator[str]:
    for thing, count in Counter(things).items():
        if count > 1:
            yield f"{rule}: {thing!r} is there {count} times"
