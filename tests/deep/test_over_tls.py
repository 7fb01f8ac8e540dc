"""What is tested of HTTP, streams and MCP, once more with a certificate in the program and TLS in its clients."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from daemons import ROOT


@pytest.mark.parametrize(
    "file",
    ["test_httpd", "test_sse", "test_mcp_http", "test_races", "test_contract_messages", "test_contract_tasks"],
)
def test_it_holds_over_tls_as_well(file):
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{file}.py"],
        cwd=ROOT,
        env={**os.environ, "STONEMUX_TESTS_OVER_TLS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
