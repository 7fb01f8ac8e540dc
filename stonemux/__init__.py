"""stonemux: a daemon through which the AI agents on one machine coordinate.

Where to start reading: `operations` (the table of everything it does), then `agents`, `messages` and `tasks` (what it
does), then `store`, `hub` and `events` (how nothing gets lost and nobody waits in vain).
"""

VERSION = "0.1.0"
