"""The first minutes of a user who types the commands of the product's quick start into a shell."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from daemons import running_daemon

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

REGISTER_RESEARCHER = r"""
curl -X POST http://localhost:3392/agent/register \
-H "Content-Type: application/json" \
-d '{"agent_id": "researcher", "role": "research", "capabilities": ["web-search", "analysis"], "channel": "default"}'
"""
REGISTER_WRITER = r"""
curl -X POST http://localhost:3392/agent/register \
-H "Content-Type: application/json" \
-d '{"agent_id": "writer", "role": "writing", "capabilities": ["content-creation"], "channel": "default"}'
"""
SEND = r"""
curl -X POST http://localhost:3392/msg/send \
-H "Content-Type: application/json" \
-d '{"from": "researcher", "to": "writer", "content": "The numbers are in. You can begin."}'
"""
POLL = """
curl "http://localhost:3392/msg/poll?agent_id=writer&timeout=5"
"""
POST_TASK = r"""
curl -X POST http://localhost:3392/task/post \
-H "Content-Type: application/json" \
-d '{"description": "Write it", "posted_by": "researcher", "required_capability": "content-creation", "priority": 5}'
"""
CLAIM = r"""
curl -X POST http://localhost:3392/task/claim \
-H "Content-Type: application/json" \
-d '{"agent_id": "writer"}'
"""
COMPLETE = r"""
curl -X POST http://localhost:3392/task/complete \
-H "Content-Type: application/json" \
-d '{"task_id": "task-uuid-here", "agent_id": "writer", "result": "Written, three pages."}'
"""


def test_the_quick_start_works_as_typed(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "data") as daemon:

        def typed(command: str) -> Any:
            done = subprocess.run(
                ["sh", "-c", command.replace(":3392/", f":{daemon.port}/")],
                env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "NO_PROXY": "*"},
                capture_output=True,
                text=True,
                timeout=20,
            )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        researcher = typed(REGISTER_RESEARCHER)
        assert (researcher["created"], researcher["agent"]["capabilities"]) == (True, ["web-search", "analysis"])
        assert typed(REGISTER_WRITER)["agent"]["channel"] == "default"
        sent = typed(SEND)
        assert sent["recipient_status"] == "active"
        (message,) = typed(POLL)["messages"]
        assert message["id"] == sent["message_id"]
        assert (message["from"], message["to"], message["channel"]) == ("researcher", "writer", "default")
        assert message["content"] == "The numbers are in. You can begin."
        posted = typed(POST_TASK)
        assert posted["task"]["status"] == "pending"
        claimed = typed(CLAIM)
        assert claimed["task_id"] == posted["task_id"]
        done = typed(COMPLETE.replace("task-uuid-here", claimed["task_id"]))
        assert (done["status"], done["task"]["result"]) == ("complete", "Written, three pages.")
        assert typed(CLAIM) == {"task_id": None, "task": None}
