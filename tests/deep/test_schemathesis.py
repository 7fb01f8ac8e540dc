"""schemathesis with all its checks against a live daemon, from the OpenAPI document that the daemon itself serves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from daemons import running_daemon

from stonemux.datadir import read_owner_token

HERE = Path(__file__).parent
TOOL = shutil.which("st", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


@pytest.mark.skipif(TOOL is None, reason="schemathesis is not installed")
def test_every_operation_keeps_to_the_openapi_document(tmp_path):
    settings = tmp_path / "settings.toml"
    settings.write_text("[coordination]\npoll_timeout_max = 1\n")  # or a call that leaves it out takes half a minute
    with running_daemon(tmp_path / "data", "--config", str(settings)) as daemon:
        document = tmp_path / "openapi.json"
        document.write_bytes(daemon.get("/openapi.json"))
        owner = read_owner_token(tmp_path / "data", f"127.0.0.1:{daemon.port}")
        done = subprocess.run(
            [
                *(str(TOOL), "--config-file", str(HERE / "schemathesis.toml"), "run", str(document)),
                *("--url", f"http://127.0.0.1:{daemon.port}", "--checks", "all", "--max-examples", "200"),
                *("--header", f"Authorization: Bearer {owner}"),
                *("--exclude-path", "/events"),  # never ends; test_sse.py has it
            ],
            cwd=tmp_path,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent.parent)]),
                "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
            },
            capture_output=True,
            text=True,
            timeout=1800,
        )
        # a request that it tells of may be very long
        assert done.returncode == 0, "\n".join(line[:300] for line in done.stdout.splitlines())[-20_000:]
