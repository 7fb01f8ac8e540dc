"""What is distributed: the same bytes from the same files, complete, and as pip expects it."""

from __future__ import annotations

import ast
import base64
import csv
import email
import hashlib
import io
import marshal
import os
import re
import tarfile
import tokenize
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import BARE_ONCE

from stonemux import VERSION, release

ROOT = Path(__file__).parent.parent
WHEEL = f"stonemux-{VERSION}-py3-none-any.whl"
SDIST = f"stonemux-{VERSION}.tar.gz"


@pytest.fixture(autouse=True)
def bare_once(monkeypatch):
    monkeypatch.setattr(release, "_bare", BARE_ONCE)


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def wheel(distributed):
    with zipfile.ZipFile(distributed / WHEEL) as archive:
        yield archive


def module_names() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "stonemux").rglob("*.py")}


def about(archive: zipfile.ZipFile, name: str) -> str:
    return archive.read(f"stonemux-{VERSION}.dist-info/{name}").decode()


def test_the_same_files_give_the_same_bytes_whenever_and_wherever(in_root, distributed, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "DIST", tmp_path / "again")
    for file in distributed.iterdir():
        os.utime(file, (0, 0))
    release.main([])
    files = {path.name: path.read_bytes() for path in distributed.iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert set(files) == {"stonemux.pyz", WHEEL, SDIST, "SHA256SUMS"}
    for line in files["SHA256SUMS"].decode().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256(files.pop(name)).hexdigest() == digest
    assert set(files) == {"SHA256SUMS"}


def test_nothing_of_the_machine_goes_in(in_root, distributed, tmp_path, monkeypatch):
    copied = tmp_path / "tree"
    for name, data in release._files(Path("stonemux")).items():
        path = copied / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)
    for litter in ("__pycache__/x.pyc", ".swp", "commands/.#lock", "commands/__pycache__/y.pyc"):
        (copied / "stonemux" / litter).parent.mkdir(exist_ok=True)
        (copied / "stonemux" / litter).write_text("")
    monkeypatch.chdir(copied)
    assert release.build_pyz(tmp_path).read_bytes() == (distributed / "stonemux.pyz").read_bytes()


def test_a_module_without_comments_is_the_same_program_line_by_line():
    for module in sorted(module_names()):
        whole = (ROOT / module).read_text()
        bare = BARE_ONCE(module, whole.encode()).decode()
        assert bare.count("\n") == whole.count("\n"), module
        if "#" in bare:
            tokens = tokenize.generate_tokens(io.StringIO(bare).readline)
            assert tokenize.COMMENT not in {token.type for token in tokens}, module
        command = module.startswith("stonemux/commands/")
        trees = ast.parse(bare), ast.parse(whole)
        assert ast.get_docstring(trees[0]) == (ast.get_docstring(trees[1]) if command else ""), module
        assert without_texts(trees[0]) == without_texts(trees[1]), module


def without_texts(tree: ast.Module) -> bytes:
    """What a module does and where, without the texts that stand alone; compiled, which is compared fastest."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
            ends = (node, node.value)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            ends = (node,)
        else:
            continue
        for each in ends:  # comes earlier without the text
            each.end_lineno, each.end_col_offset = each.lineno, each.col_offset
    return marshal.dumps(compile(tree, "", "exec", dont_inherit=True), 2)  # version 2 knows no references


def test_a_wheel_holds_the_package_and_what_pip_asks_of_it(wheel):
    names = set(wheel.namelist())
    assert {name for name in names if name.startswith("stonemux/")} >= module_names()
    assert not any("__pycache__" in name or name.startswith("tests") for name in names)
    assert about(wheel, "entry_points.txt") == "[console_scripts]\nstonemux = stonemux.cli:main\n"
    assert "Tag: py3-none-any\n" in about(wheel, "WHEEL")


def test_a_wheel_records_each_of_its_files(wheel):
    rows = {name: (digest, size) for name, digest, size in csv.reader(io.StringIO(about(wheel, "RECORD")))}
    assert set(rows) == set(wheel.namelist())
    assert rows.pop(f"stonemux-{VERSION}.dist-info/RECORD") == ("", "")
    for name, (digest, size) in rows.items():
        data = wheel.read(name)
        found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        assert (digest, int(size)) == (f"sha256={found}", len(data))


def test_the_metadata_say_what_pyproject_says(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = email.message_from_string(about(wheel, "METADATA"))
    assert (told["Name"], told["Version"], told["Requires-Python"]) == ("stonemux", VERSION, ">=3.11")
    assert told["Summary"] == project["description"]
    assert told.get_payload() == (ROOT / "README.md").read_text()
    extras = project["optional-dependencies"]
    assert set(told.get_all("Provides-Extra")) == set(extras)
    wanted = {f'{needed}; extra == "{extra}"' for extra, needs in extras.items() for needed in needs}
    assert set(told.get_all("Requires-Dist")) == wanted


def test_an_editable_wheel_leads_to_this_folder(in_root, tmp_path):
    with zipfile.ZipFile(tmp_path / release.build_editable(str(tmp_path))) as archive:
        assert archive.read("stonemux.pth").decode() == f"{ROOT}\n"
        assert not any(name.startswith("stonemux/") for name in archive.namelist())


def test_a_source_archive_builds_the_same_wheel(distributed, tmp_path, wheel, monkeypatch):
    with tarfile.open(distributed / SDIST) as archive:
        assert {(entry.uid, entry.uname, entry.mtime) for entry in archive.getmembers()} == {(0, "", release.SECONDS)}
        assert {entry.mode for entry in archive.getmembers()} == {0o644, 0o755}
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from 3.11.4 on
        archive.extractall(tmp_path, **safely)
    unpacked = tmp_path / f"stonemux-{VERSION}"
    assert (unpacked / "PKG-INFO").read_text() == about(wheel, "METADATA")
    monkeypatch.chdir(unpacked)
    again = tmp_path / "again"
    again.mkdir()
    assert release.build_wheel(str(again)) == WHEEL
    assert (again / WHEEL).read_bytes() == (distributed / WHEEL).read_bytes()


def test_a_source_archive_leaves_out_no_part_of_the_project():
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    parts = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    left_out = {name for name in parts - {*release.FOLDERS, *release.FILES} - ignored if not name.endswith(".egg-info")}
    assert not left_out, "enter the new part in release.FOLDERS or FILES"


def test_the_builder_needs_nothing():
    system = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert system == {"requires": [], "build-backend": "stonemux.release", "backend-path": ["."]}
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
