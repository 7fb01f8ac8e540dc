"""Documents: contents that are too long for a message, or that several messages refer to.

A document is written once and never changed. A message that refers to one (`content_ref`) carries its text if that fits
into a message, or else a preview of its first characters; document.get returns the whole text.

A document is kept as long as a stored message refers to it. One that no message refers to is deleted when a message of
its age would be.
"""

from __future__ import annotations

import json
from typing import Any

from stonemux import directory
from stonemux.clock import rfc3339
from stonemux.errors import MuxError
from stonemux.payload import dumps
from stonemux.schema import shown
from stonemux.transaction import Snapshot, Tx

PREVIEW = 500
"""How many characters of a long document a message carries."""

PURGED_AT_ONCE = 10
"""How many documents one transaction deletes; few, because they are large."""


def _view(row: Any) -> dict[str, Any]:
    return {
        "id": row["id"],
        "content_type": row["content_type"],
        "title": row["title"],
        "tags": json.loads(row["tags"]) if row["tags"] else [],
        "created_by": row["created_by"],
        "created_at": rfc3339(row["created_at"]),
        "size": row["size"],
    }


def create(
    tx: Tx, *, content: str, content_type: str, created_by: str | None, tags: list[str] | None, title: str | None
) -> dict[str, Any]:
    """Store a text under a new id."""
    if created_by is not None:
        directory.agent(tx, created_by, "created_by")
    document_id = "doc-" + tx.mux.clock.token(8)
    (row,) = tx.sql(
        "insert into document (id, content_type, title, tags, created_by, created_at, size, content) "
        "values (?, ?, ?, ?, ?, ?, ?, ?) returning id, content_type, title, tags, created_by, created_at, size",
        document_id,
        content_type,
        title,
        dumps(tags) if tags else None,
        created_by,
        tx.now,
        len(content.encode()),
        content,
    )
    view = _view(row)
    tx.emit("document_created", dumps(view), agents=(created_by,) if created_by else ())
    return {"document": view}


def get(rx: Snapshot, *, id: str) -> dict[str, Any]:
    """A document with its full content."""
    row = rx.one("select * from document where id = ?", id)
    if row is None:
        raise _unknown(id, "id")
    return {"document": _view(row) | {"content": row["content"]}}


def quoted(tx: Tx, document_id: str) -> tuple[str, bool]:
    """The content of a message that refers to a document, and whether it is only the document's beginning."""
    most = tx.mux.settings.max_message_size
    row = tx.one(
        "select size, case when size <= ? then content else substr(content, 1, ?) end as content from document "
        "where id = ?",
        most,
        PREVIEW,
        document_id,
    )
    if row is None:
        raise _unknown(document_id, "content_ref")
    return row["content"], row["size"] > most


def whole(rx: Snapshot, document_id: str) -> str:
    """The content of a document that a message refers to."""
    content: str = rx.one("select content from document where id = ?", document_id)[0]
    return content


def _unknown(document_id: str, parameter: str) -> MuxError:
    return MuxError(
        "document_not_found",
        f"no document {shown(document_id)} exists ({parameter}), or it is older than what is kept; create one with "
        "document.create and use the id that it returns",
        parameter=parameter,
    )


def purge(tx: Tx, before: int) -> int:
    """Delete a few documents made before `before` that no message refers to; returns how many."""
    return tx.run(
        "delete from document where id in (select id from document where created_at < ? and not exists "
        "(select 1 from message where content_ref = document.id) order by created_at limit ?)",
        before,
        PURGED_AT_ONCE,
    ).rowcount
