"""The yardstick: durable send and poll as a plain FastAPI + aiosqlite application implements them.

Written the way an ordinary developer would, without tricks for or against it: typed models, one SQLite database in WAL
mode with `synchronous=FULL` (an answered send is on disk, as in stonemux), one index for the poll, one commit per
request. It does less than stonemux: it does not check that sender and recipient exist, and it has no channels, events,
waiting, or idempotency.

Run it with `uvicorn bench.fastapi_app:app` and these environment variables:

- `BENCH_DATABASE`: the path of the database,
- `BENCH_CONNECTION`: `shared` (one aiosqlite connection for the whole application, so that commits of concurrent
  requests are combined) or `request` (the common recipe of a dependency that opens and closes one per request).
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import aiosqlite
from fastapi import Depends, FastAPI
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
"""


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
    sent_at = datetime.now(UTC).isoformat(timespec="milliseconds")
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
    return Sent(message_id=cursor.lastrowid or 0, sent_at=sent_at, recipient_status="queued")


@app.get("/msg/poll")
async def poll(agent_id: str, database: Database, limit: int = 100) -> dict[str, list[dict[str, Any]]]:
    """Take the messages in an inbox."""
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
    return {
        "messages": [
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
    }
