"""The programs in the documents run, and print what the documents say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import ROOT, ChildDaemon, running_daemon

PROGRAM = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


def programs(name: str) -> list[tuple[str, str]]:
    return PROGRAM.findall((ROOT / "docs" / name).read_text(encoding="utf-8"))


def recipes():
    """Each program under the heading that it stands below."""
    for name in ("python.md", "recipes.md"):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        for section in re.split(r"^#+ ", text, flags=re.MULTILINE):
            heading = section.partition("\n")[0]
            for number, found in enumerate(PROGRAM.findall(section)):
                yield pytest.param(*found, id=f"{heading} {number}" if number else heading)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildDaemon]:
    with running_daemon(tmp_path_factory.mktemp("recipes") / "data") as daemon:
        yield daemon


@pytest.mark.parametrize(("program", "printed"), [*recipes()])
def test_the_program_prints_what_the_document_says(program, printed, daemon: ChildDaemon, monkeypatch, capsys):
    for name in ("HOST", "CONFIG", "AGENT", "TOKEN", "DATA_DIR"):
        monkeypatch.delenv(f"STONEMUX_{name}", raising=False)
    monkeypatch.setenv("STONEMUX_PORT", str(daemon.port))
    monkeypatch.setenv("HOME", str(Path("/nonexistent")))
    exec(compile(program, "<recipe>", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("name", ["python.md", "recipes.md"])
def test_no_program_is_left_out(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert text.count("```python") == len(programs(name)), "each program is followed by what it prints"
