"""A small table of operations with parameters of all kinds, for testing what is rendered from a table."""

from __future__ import annotations

from stonemux.config import Settings
from stonemux.schema import REQUIRED, Operation, Param

SETTINGS_HERE = Settings()


NOTE = {"id": "integer", "text": "string", "from": "string|null", "made_at": "time", "tags?": ["string"]}
TABLE = (
    Operation(
        "note.post",
        "POST",
        "/note/post",
        "change",
        "",
        "Post a note. It stays until it is removed.",
        params=(
            Param("from", "name", REQUIRED, most=120, into="sender", doc="Who posts."),
            Param("text", "text", REQUIRED, least=1, most="max_message_size", doc="What to say."),
            Param("color", "text", "red", choices=("red", "blue"), doc="Red | blue."),
            Param("tags", "names", doc="Words to find it by."),
            Param("after", "integers", doc="Notes that come before it."),
            Param("pinned", "boolean", False),
            Param("priority", "integer", 0, tier="pro"),
            Param("metadata", "object"),
        ),
        returns={"note": NOTE, "first": (NOTE, "null")},
        tool="mux_note_post",
        tier="pro",
        errors=("agent_not_found", "inbox_full"),
        emits=("note",),
        example={"from": "writer", "text": "it's done", "tags": ["a", "b"]},
    ),
    Operation(
        "note.list",
        "GET",
        "/note/list",
        "wait",
        "",
        "List notes.",
        params=(
            Param("agent_id", "name", REQUIRED, most=120),
            Param("tags", "names"),
            Param("timeout", "integer", 30, least=0, most="poll_timeout_max", code="invalid_timeout", clamp=True),
            Param("limit", "integer", 100, least=1, most=1000),
        ),
        returns={"notes": [NOTE]},
        errors=("agent_not_found",),
        example={"agent_id": "a b", "tags": ["x", "y"], "limit": 5},
    ),
    Operation("events.stream", "GET", "/events", "stream", "", "Watch live.", tier="pro"),
    Operation("metrics", "GET", "/metrics", "text", "", "Numbers for Prometheus."),
)
POST, LIST, STREAM, METRICS = TABLE
