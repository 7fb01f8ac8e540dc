"""The README's sessions, typed into one shell exactly as printed, against a fresh daemon; and its Python code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from children import BARE
from daemons import running_daemon

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
END = "=== the end of a step ==="

VARYING = [
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r'"request_id":"[^"]+"'), '"request_id":"ID"'),
    (re.compile(r"uptime    .*"), "uptime    TIME"),
    (re.compile(r"storage   .*"), "storage   SIZE"),
    (re.compile(r"(now|\d+ s ago)$", re.MULTILINE), "LATELY"),
]


def steps() -> list[tuple[str, str]]:
    """(command, expected output) of all console blocks, in order."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for step in block.removeprefix("$ ").split("\n$ "):
            command, _, output = step.partition("\n")
            found.append((command, output.strip()))
    return found


def same(text: str, port: int) -> str:
    text = text.replace(f":{port}", ":3392").strip()
    for pattern, replacement in VARYING:
        text = pattern.sub(replacement, text)
    return text


def test_every_session_in_the_readme_goes_as_printed(tmp_path, capsys):
    command = tmp_path / "bin" / "stonemux"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m stonemux "$@"\n')
    command.chmod(0o755)
    with running_daemon(tmp_path / "data") as daemon:
        typed = "".join(f"{command}\necho '{END}'\n" for command, _ in steps())
        typed = typed.replace("127.0.0.1:3392", f"127.0.0.1:{daemon.port}").replace("python3", sys.executable)
        environ = {
            **BARE,
            "PATH": f"{command.parent}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "STONEMUX_PORT": str(daemon.port),
        }
        done = subprocess.run(
            ["bash"], input=typed, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
        )
        assert done.stderr == ""
        printed = done.stdout.split(f"{END}\n")[:-1]
        for (command, expected), output in zip(steps(), printed, strict=True):
            assert same(output, daemon.port) == same(expected, daemon.port), command
        python = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1].replace(":3392", f":{daemon.port}")
        exec(compile(python, "README.md", "exec"), {})
        assert capsys.readouterr().out == re.search(r"```text\n(.*?)```", README, re.DOTALL)[1]
        assert json.loads(daemon.get("/msg/list?limit=1"))["messages"][0]["content"] == "The draft is ready."


def test_the_readme_names_files_that_are_there():
    for name in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / name).exists(), name


def test_the_first_block_is_the_two_commands():
    first = re.search(r"```sh\n(.*?)```", README, re.DOTALL)[1].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["python3 -m stonemux serve", "make test"]
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert ci[-1] == "make test"
