"""The yardstick: durable messages and tasks as a plain FastAPI + aiosqlite application implements them.

Written the way an ordinary developer would, without tricks for or against it: typed models, one SQLite database in WAL
mode with `synchronous=FULL` (an answered send is on disk, as in stonemux), one index for each query, one commit per
request, one event for each inbox that somebody waits for. It does less than stonemux: it does not check that senders,
recipients, and workers exist, does not notice that an answer did not arrive, and has no channels, event log, leases, or
idempotency.

Run it with `uvicorn bench.fastapi_app:app` and these environment variables:

- `BENCH_DATABASE`: the path of the database,
- `BENCH_CONNECTION`: `shared` (one aiosqlite connection for the whole application, so that commits of concurrent
  requests are combined) or `request` (the common recipe of a dependency that opens and closes one per request).
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import aiosqlite
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, Field

DATABASE = os.environ["BENCH_DATABASE"]
SHARED = os.environ.get("BENCH_CONNECTION", "shared") == "shared"

TABLES = """
create table if not exists message (
    id integer primary key autoincrement,
    sender text not null,
    recipient text not null,
    content text not null,
    channel text not null,
    subject text,
    thread text,
    priority integer not null,
    metadata text not null,
    sent_at text not null,
    delivered integer not null default 0
);
create index if not exists message_waiting on message (recipient, delivered, id);
create table if not exists task (
    id integer primary key autoincrement,
    description text not null,
    posted_by text not null,
    status text not null default 'pending',
    posted_at text not null,
    claimed_by text,
    claimed_at text,
    claim_token text,
    completed_at text,
    result text
);
create index if not exists task_waiting on task (status, id);
"""

arrivals: dict[str, asyncio.Event] = {}
"""An event for each inbox that was ever waited for."""


class Send(BaseModel):
    """The body of a send."""

    sender: str = Field(alias="from", min_length=1, max_length=120)
    to: str = Field(min_length=1, max_length=120)
    content: str = Field(max_length=65536)
    channel: str = Field(default="default", max_length=128)
    subject: str | None = None
    thread: str | None = None
    priority: int = 0
    metadata: dict[str, Any] = {}


class Sent(BaseModel):
    """The answer to a send."""

    message_id: int
    sent_at: str
    recipient_status: str


class Post(BaseModel):
    """The body of a new task."""

    description: str = Field(max_length=65536)
    posted_by: str = Field(min_length=1, max_length=120)


class TaskStatus(BaseModel):
    """The answer to a post and to a completion."""

    task_id: str
    status: str


class Claim(BaseModel):
    """The body of a claim."""

    agent_id: str = Field(min_length=1, max_length=120)


class Claimed(BaseModel):
    """A claimed task."""

    task_id: str
    claim_token: str
    description: str
    posted_by: str
    posted_at: str


class Complete(BaseModel):
    """The body of a completion."""

    task_id: str
    agent_id: str
    claim_token: str
    result: str | None = Field(default=None, max_length=65536)


async def _connect() -> aiosqlite.Connection:
    database = await aiosqlite.connect(DATABASE, timeout=30)
    database.row_factory = aiosqlite.Row
    await database.execute("pragma synchronous = full")
    return database


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Create the tables; hold the shared connection while the application runs."""
    database = await _connect()
    await database.execute("pragma journal_mode = wal")
    await database.executescript(TABLES)
    app.state.database = database
    yield
    await database.close()


app = FastAPI(lifespan=lifespan)


async def _shared() -> aiosqlite.Connection:
    database: aiosqlite.Connection = app.state.database
    return database


async def _own() -> AsyncIterator[aiosqlite.Connection]:
    database = await _connect()
    try:
        yield database
    finally:
        await database.close()


Database = Annotated[aiosqlite.Connection, Depends(_shared if SHARED else _own)]


@app.get("/health")
async def health() -> dict[str, str]:
    """Report that the application runs."""
    return {"status": "ok"}


@app.post("/msg/send")
async def send(message: Send, database: Database) -> Sent:
    """Put a message into an inbox, durably."""
    sent_at = _now()
    cursor = await database.execute(
        "insert into message (sender, recipient, content, channel, subject, thread, priority, metadata, sent_at)"
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            message.sender,
            message.to,
            message.content,
            message.channel,
            message.subject,
            message.thread,
            message.priority,
            json.dumps(message.metadata),
            sent_at,
        ),
    )
    await database.commit()
    if message.to in arrivals:
        arrivals[message.to].set()
    return Sent(message_id=cursor.lastrowid or 0, sent_at=sent_at, recipient_status="queued")


@app.get("/msg/poll")
async def poll(
    agent_id: str, database: Database, limit: int = 100, timeout: float = 0
) -> dict[str, list[dict[str, Any]]]:
    """Take the messages in an inbox, or wait until there are some."""
    if timeout <= 0:
        return {"messages": await _take(database, agent_id, limit)}
    deadline = time.monotonic() + timeout
    arrival = arrivals.setdefault(agent_id, asyncio.Event())
    while not (messages := await _take(database, agent_id, limit)) and (left := deadline - time.monotonic()) > 0:
        with suppress(TimeoutError):
            await asyncio.wait_for(arrival.wait(), left)
        arrival.clear()
    return {"messages": messages}


async def _take(database: aiosqlite.Connection, agent_id: str, limit: int) -> list[dict[str, Any]]:
    found = list(
        await database.execute_fetchall(
            "select * from message where recipient = ? and delivered = 0 order by id limit ?", (agent_id, limit)
        )
    )
    if found:
        await database.execute(
            "update message set delivered = 1 where recipient = ? and delivered = 0 and id <= ?",
            (agent_id, found[-1]["id"]),
        )
        await database.commit()
    found.sort(key=lambda row: -row["priority"])
    return [
        {
            "id": row["id"],
            "from": row["sender"],
            "to": row["recipient"],
            "content": row["content"],
            "channel": row["channel"],
            "subject": row["subject"],
            "thread": row["thread"],
            "priority": row["priority"],
            "metadata": json.loads(row["metadata"]),
            "sent_at": row["sent_at"],
        }
        for row in found
    ]


@app.post("/task/post")
async def post(task: Post, database: Database) -> TaskStatus:
    """Add a task, durably."""
    cursor = await database.execute(
        "insert into task (description, posted_by, posted_at) values (?, ?, ?)",
        (task.description, task.posted_by, _now()),
    )
    await database.commit()
    return TaskStatus(task_id=str(cursor.lastrowid), status="pending")


@app.post("/task/claim")
async def claim(wanted: Claim, database: Database) -> Claimed | None:
    """Claim the oldest task that nobody has claimed."""
    # In one step: while rows of a statement on the shared connection are unread, nobody can commit.
    claimed = list(
        await database.execute_fetchall(
            "update task set status = 'claimed', claimed_by = ?, claimed_at = ?, claim_token = ?"
            " where id = (select id from task where status = 'pending' order by id limit 1)"
            " returning id, claim_token, description, posted_by, posted_at",
            (wanted.agent_id, _now(), secrets.token_hex(8)),
        )
    )
    await database.commit()
    if not claimed:
        return None
    (row,) = claimed
    return Claimed(
        task_id=str(row["id"]),
        claim_token=row["claim_token"],
        description=row["description"],
        posted_by=row["posted_by"],
        posted_at=row["posted_at"],
    )


@app.post("/task/complete")
async def complete(done: Complete, database: Database) -> TaskStatus:
    """Store the result of a claimed task."""
    cursor = await database.execute(
        "update task set status = 'completed', completed_at = ?, result = ?"
        " where id = ? and claimed_by = ? and claim_token = ? and status = 'claimed'",
        (_now(), done.result, int(done.task_id), done.agent_id, done.claim_token),
    )
    await database.commit()
    if not cursor.rowcount:
        raise HTTPException(409, "this claim does not hold the task")
    return TaskStatus(task_id=done.task_id, status="completed")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
