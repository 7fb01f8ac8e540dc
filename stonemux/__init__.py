"""stonemux: a daemon through which the AI agents on one machine coordinate.

Where to start reading: `operations` (the table of everything it does), then `agents`, `messages`, and `tasks` (what the
operations do), then `store`, `hub`, and `events` (how nothing gets lost and every waiter wakes). docs/design.md tells
where everything else is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stonemux.vocabulary import generate_agent_channel_name as generate_agent_channel_name
from stonemux.vocabulary import parse_agent_channel_name as parse_agent_channel_name

if TYPE_CHECKING:
    from stonemux.client import Client as Client
    from stonemux.errors import MuxError as MuxError

VERSION = __version__ = "0.1.0"

__all__ = ["VERSION", "Client", "MuxError", "generate_agent_channel_name", "parse_agent_channel_name"]


def __dir__() -> list[str]:
    """What a user of the package may want, for completion in a Python shell."""
    return [*__all__, "__doc__", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Client` and `MuxError` on first use: most commands need neither."""
    if name == "Client":
        from stonemux.client import Client

        return Client
    if name == "MuxError":
        from stonemux.errors import MuxError

        return MuxError
    raise AttributeError(f"module 'stonemux' has no attribute {name!r}")
