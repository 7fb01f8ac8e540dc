"""Full-text search over messages, with SQLite's FTS5.

Sending does not pay for the index: a search first indexes what was sent since the last one, a page at a time, and then
runs the query. The index stores no contents of its own; it refers to the messages, and a purge takes out of it what it
deletes. For a message that carries the preview of a document, the document's first million characters are searched.
Scripts without spaces between words are indexed letter by letter (`excerpts.apart`).
"""

from __future__ import annotations

import re
import sqlite3
from typing import Any

from stonemux.documents import PREVIEW
from stonemux.errors import MuxError
from stonemux.excerpts import apart, excerpt, tokens
from stonemux.history import narrow
from stonemux.messages import FIELDS, TEXT_BYTES, view
from stonemux.mux import Caller, Mux
from stonemux.payload import dumps
from stonemux.transaction import Snapshot, Tx

PAGE = 2000
PAGE_BYTES = 4_000_000
"""How many messages and bytes one transaction indexes at most, so that no sender waits long behind it."""
EXAMINED = 4_000_000
LEAST_EXAMINED = 4_000
"""How many characters are examined for the excerpts of one answer, best match first, and how many of each text at
least: a thousand long documents would take minutes."""

MOST_REPEATED = 100
"""Maximum number of words in a query's phrases that already occur in the same phrase."""

_MODULE = "no such module"
"""What SQLite says if it was built without FTS5."""

_WORD = r'"([^"]*)"|(\S+)'

_TEXT = "content || coalesce(subject, '')"
_PLAIN = f"(length({_TEXT}) = length(cast({_TEXT} as blob)))"
"""SQL: a message is ASCII, so its text goes into the index as it is, without a detour through Python."""


def search(
    mux: Mux, caller: Caller, *, q: str, channel: str | None, agent_id: str | None, limit: int
) -> dict[str, Any]:
    """Messages that contain all words, best match first, with an excerpt."""
    with mux.store.read() as rx:
        where, values = narrow(rx, channel, agent_id)
    while mux.store.write(_take_in):
        pass
    with mux.store.read() as rx:
        rows = rx.sql(
            f"select {FIELDS} from message_words w join message m on m.id = w.rowid "
            f"where {' and '.join(['message_words match ?', *where])} order by w.rank, m.id desc limit ?",
            _phrases(q),
            *values,
            limit,
        )
        results, room = [], EXAMINED
        for row in rows:
            text = _text(rx, row, max(room, LEAST_EXAMINED))
            room -= len(text)
            results.append(view(row) | {"excerpt": excerpt(text, q)})
    if not caller.room:
        return {"results": results}
    _shorten(results, caller.room)
    others = caller.fitted({"results": results[1:]}, "results")
    return others | {"results": results[:1] + others["results"]}


def _shorten(results: list[dict[str, Any]], room: int) -> None:
    """Truncate results so that they fit into `room` characters, but keep the best match whole."""
    for shown in results:
        room -= len(shown["content"])
        if room < 0 and shown is not results[0] and len(shown["content"]) > PREVIEW:
            shown["content"], shown["truncated"] = shown["content"][:PREVIEW], True


def _text(rx: Snapshot, row: Any, most: int) -> str:
    """The first `most` characters of a message's indexed text."""
    if not row["truncated"]:
        return str(row["content"])[:most]
    return str(rx.one("select substr(content, 1, ?) from message_text where id = ?", most, row["id"])[0])


def _phrases(q: str) -> str:
    """The query with each word or quoted phrase as an FTS5 string, so that nothing in it is taken for syntax.

    Each occurs only once: the time to rank a message is quadratic in how often the query repeats a word. Within a
    phrase, each costs a pass over its places in the index: 341 letters took 5 s in a text of nothing but that letter.
    """
    words = [quoted or word for quoted, word in re.findall(_WORD, q.replace("\x00", " "))]
    once = {tokens(word): word.replace('"', '""') for word in words if any(letter.isalnum() for letter in word)}
    if not once:
        raise MuxError("invalid_field", "q has no word to search for", parameter="q")
    repeated = sum(len(phrase) - len(set(phrase)) for phrase in once)
    if repeated > MOST_REPEATED:
        raise MuxError(
            "invalid_field",
            f"the phrases in q repeat words {repeated} times, but at most {MOST_REPEATED} times are searched for; "
            "search for a shorter phrase",
            parameter="q",
        )
    return " ".join(f'"{apart(word)}"' for word in once.values())


def _make_index(tx: Tx) -> None:
    try:
        tx.run(
            "create virtual table if not exists message_words using fts5(content, subject, content='message_text', "
            "content_rowid='id')"
        )
        tx.run("update searched set through = 0")  # counts as a change, so that the new table is committed
    except sqlite3.OperationalError as error:
        if _MODULE not in str(error):
            raise
        raise MuxError(
            "search_unavailable",
            "this Python's SQLite was built without FTS5, so full-text search is not available; run the daemon with "
            "another Python",
        ) from error


def _take_in(tx: Tx) -> bool:
    """Index one page of new messages; returns True if there may be more."""
    through = tx.one("select through from searched")[0]
    newest = tx.one("select coalesce(max(id), 0) from message")[0]
    if through == 0:
        _make_index(tx)
    if newest <= through:
        return False
    last = _page(tx, through)
    _index(tx, "rowid", "?", "id > ? and id <= ?", through, last)
    tx.run("update searched set through = ?", last)
    return bool(last < newest)


def forget(tx: Tx, ids: list[int]) -> None:
    """Take messages that are about to be deleted out of the index: it needs their text for that."""
    through = tx.one("select through from searched")[0]
    try:
        if through and ids:
            which = "id in (select value from json_each(?)) and id <= ?"
            _index(tx, "message_words, rowid", "'delete', ?", which, dumps(ids), through)
    except sqlite3.OperationalError as error:
        if _MODULE not in str(error):
            raise


def _index(tx: Tx, into: str, place: str, which: str, *values: Any) -> None:
    """Tell the index of the messages that match `which`: a row of it, with the id at the `?` in `place`."""
    page = f"content, subject from message_text where {which}"
    words = f"insert into message_words ({into}, content, subject)"
    tx.run(f"{words} select {place.replace('?', 'id')}, {page} and {_PLAIN}", *values)
    rest = tx.sql(f"select id, {page} and not {_PLAIN}", *values)
    tx.many(
        f"{words} values ({place}, ?, ?)",
        [(row["id"], apart(row["content"]), row["subject"] and apart(row["subject"])) for row in rest],
    )


def _page(tx: Tx, through: int) -> int:
    """The id of the last message of the page after `through`."""
    last, size = through, 0
    for row in tx.sql(
        f"select id, {TEXT_BYTES} from message where id > ? order by id limit ?",
        through,
        PAGE,
    ):
        last, size = row[0], size + row[1]
        if size >= PAGE_BYTES:
            break
    return last
