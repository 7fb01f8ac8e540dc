"""The tests of HTTP, streams, and MCP once more, with a certificate in the program and TLS in its clients.

The contract's messages and tasks run over each face that has a connection: HTTP, MCP, the Python client, the commands.
"""

from __future__ import annotations

import os
import subprocess
import sys

from daemons import ROOT

FILES = ("test_httpd", "test_sse", "test_mcp_http", "test_races", "test_contract_messages", "test_contract_tasks")


def test_it_holds_over_tls_as_well():
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "worksteal", "-p", "no:cacheprovider"),
            *(f"tests/{file}.py" for file in FILES),
        ],
        cwd=ROOT,
        env=os.environ | {"STONEMUX_TESTS_OVER_TLS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
