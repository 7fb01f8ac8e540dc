"""The single file: it runs on its own, from a read-only medium, in an empty folder, and restarts itself."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import children
import pytest
from daemons import free_port, running_daemon

from stonemux import onefile, probe

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "stonemux"
MOST_BYTES = 300_000


@pytest.fixture(scope="module")
def pyz(distributed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("medium")
    shutil.copy(distributed / "stonemux.pyz", folder)
    folder.chmod(0o500)
    yield folder / "stonemux.pyz"
    folder.chmod(0o700)


@pytest.fixture
def empty(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    yield folder
    assert not list(folder.iterdir())


def started(pyz: Path) -> tuple[str, ...]:
    return sys.executable, "-I", "-S", str(pyz)


def run(pyz: Path, *words: str, home: Path, cwd: Path) -> str:
    """What a command says when all is well."""
    environ = {"PATH": os.defpath, "HOME": str(home)}
    done = subprocess.run([*started(pyz), *words], cwd=cwd, env=environ, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, ""), words
    return done.stdout


def test_it_is_small_and_can_be_run_by_its_name(pyz):
    data = pyz.read_bytes()
    assert len(data) < MOST_BYTES
    assert data.startswith(b"#!/usr/bin/env python3\n")
    assert os.access(pyz, os.X_OK)


def test_it_serves_from_a_read_only_medium_in_an_empty_folder(pyz, tmp_path, empty):
    with running_daemon(tmp_path / "data", command=(*started(pyz), "serve")) as daemon:
        assert f"python3 {pyz} status --port {daemon.port}" in daemon.banner
        place = ("--port", str(daemon.port), "--data-dir", str(tmp_path / "data"))
        for words in (("status",), ("backup",), ("doctor",)):
            assert run(pyz, *words, *place, home=tmp_path, cwd=empty), words
        assert b'"openapi"' in daemon.get("/openapi.json")


def test_a_running_daemon_does_not_mind_when_its_file_is_replaced(pyz, tmp_path):
    file = tmp_path / "stonemux.pyz"
    file.write_bytes(pyz.read_bytes())
    with running_daemon(tmp_path / "data", command=(*started(file), "serve")) as daemon:
        file.write_bytes(b"a newer one")
        assert b'"openapi"' in daemon.get("/openapi.json")


def test_a_session_of_mcp_starts_the_daemon_from_the_same_file(pyz, tmp_path, empty):
    command, environ = (*started(pyz), "mcp", "--port", str(free_port())), {"PATH": os.defpath, "HOME": str(tmp_path)}
    try:
        assert "mux_send" in probe.list_tools(command, environ, empty)
        pid = tmp_path / ".stonemux/daemon.pid"
        if (line := Path("/proc", pid.read_text().strip(), "cmdline")).exists():
            assert line.read_text().split("\0")[1:5] == ["-I", "-S", str(pyz), "serve"]
    finally:
        children.end(tmp_path, signal.SIGTERM)


def test_a_client_is_told_to_start_the_file(pyz, tmp_path, empty):
    shown = run(pyz, "setup", "gemini", "--dry-run", home=tmp_path, cwd=empty)
    assert f'"args": ["-I", "-S", "{pyz}", "mcp"]' in shown


def test_an_older_python_says_so(pyz, tmp_path):
    """The first lines must be readable for it, and stand before anything is loaded."""
    for module in ("__main__.py", "onefile.py", "release.py"):
        first = [ast.unparse(node) for node in ast.parse((PACKAGE / module).read_text()).body]
        check = next(place for place, text in enumerate(first) if "version_info" in text)
        assert "needs Python 3.11" in first[check]
        assert set(first[1:check]) <= {"import sys", "import os", "from __future__ import annotations"}


def test_a_trace_shows_the_lines_as_they_are(pyz):
    """Without comments, but where they stand in the source."""
    script = (
        "import runpy, sys, traceback\n"
        f"sys.argv = [{str(pyz)!r}, '--version']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "from stonemux.clock import rfc3339\n"
        "try: rfc3339('no number')\n"
        "except TypeError: traceback.print_exc()\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True)
    source = (PACKAGE / "clock.py").read_text().splitlines()
    line = next(number for number, text in enumerate(source, 1) if "divmod(ms, 1000)" in text)
    assert f'File "{pyz}/stonemux/clock.py", line {line}, in rfc3339\n    {source[line - 1].strip()}' in done.stderr


def test_what_is_not_there_is_missing_as_always(pyz):
    found = onefile.Importer("/x.pyz", {"stonemux/__init__.py": b"", "stonemux/page.html": b"hi"})
    assert found.find_spec("stonemux.nothing") is None
    assert found.find_spec("json") is None
    assert found.get_data("/x.pyz/stonemux/page.html") == b"hi"
    with pytest.raises(OSError, match="no such file"):
        found.get_data("/x.pyz/stonemux/other.html")


def test_nothing_but_the_launcher_asks_where_its_files_lie():
    """In an archive there is no such file."""
    asking = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if asks(path.read_text())}
    assert asking == {"launch.py", "__main__.py"}


def asks(source: str) -> bool:
    if "__file__" not in source:
        return False
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return "__file__" in names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
