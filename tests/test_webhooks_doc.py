"""The receiver in the documents runs and verifies what the daemon sends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from daemons import free_port, running_daemon
from raw import eventually

DOC = (Path(__file__).parent.parent / "docs" / "webhooks.md").read_text(encoding="utf-8")


def test_the_documented_receiver_verifies_a_delivery(tmp_path):
    program = re.search(r"<!-- receiver -->\n```python\n(.*?)```", DOC, re.DOTALL)
    assert program is not None
    (tmp_path / "receiver.py").write_text(program[1])
    port = free_port()
    with running_daemon(tmp_path / "data") as daemon:
        daemon.post("/agent/register", agent_id="ann")
        url = f"http://127.0.0.1:{port}/ring"
        secret = daemon.post("/agent/register", agent_id="bob", webhook_url=url)["webhook_secret"]
        receiver = subprocess.Popen(
            [sys.executable, tmp_path / "receiver.py"],
            env={"PATH": os.defpath, "WEBHOOK_SECRET": secret, "PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            eventually(lambda: _answers(url))
            sent = daemon.post("/msg/send", **{"from": "ann", "to": "bob", "content": "x"})["message_id"]
            assert receiver.stdout is not None
            assert f"'message_id': {sent}" in receiver.stdout.readline()
        finally:
            receiver.kill()
            receiver.communicate()


def _answers(url: str) -> bool:
    """Whether it is up; it must refuse what nobody signed."""
    headers = {"webhook-id": "x", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
    try:
        urllib.request.urlopen(urllib.request.Request(url, b"{}", headers), timeout=2)
    except urllib.error.HTTPError as error:
        error.close()
        status = error.code
    except OSError:
        return False
    else:
        status = 200
    assert status == 401, "an unsigned delivery was accepted"
    return True
