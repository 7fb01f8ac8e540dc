"""pip itself, in separate environments and without an index: each way to install, and a read-only source."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stonemux import VERSION, release

ROOT = Path(__file__).parent.parent.parent
WHEEL = f"stonemux-{VERSION}-py3-none-any.whl"


def run(*words: str | Path, cwd: Path) -> str:
    environ = {"PATH": os.defpath, "HOME": str(cwd), "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(words, cwd=cwd, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source that cannot be written, and what was made of it."""
    folder = tmp_path_factory.mktemp("made")
    source = folder / "source"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for part in release.FOLDERS + release.FILES:
            for name, data in release._files(Path(part)).items():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes(data)
        release.build_wheel(str(folder))
        release.build_sdist(str(folder))
    places = [source, *(path for path in source.rglob("*") if path.is_dir())]
    for place in places:
        place.chmod(0o500)
    yield folder
    for place in places:
        place.chmod(0o700)


@pytest.fixture
def python(tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    yield tmp_path / "venv/bin/python"
    shutil.rmtree(tmp_path / "venv")


@pytest.mark.parametrize("what", ["source", WHEEL, f"stonemux-{VERSION}.tar.gz", "-e source"])
def test_pip_installs_without_an_index(made, python, tmp_path, what):
    *flags, name = what.split()
    run(python, "-m", "pip", "install", *flags, made / name, cwd=tmp_path)
    assert run(python.parent / "stonemux", "--version", cwd=tmp_path) == f"stonemux {VERSION}\n"
    place = run(python, "-c", "import stonemux; print(stonemux.__file__)", cwd=tmp_path)
    assert place.startswith(str(made / "source") if flags else str(tmp_path / "venv"))
    run(python, "-m", "pip", "check", cwd=tmp_path)
    run(python, "-m", "pip", "uninstall", "-y", "stonemux", cwd=tmp_path)


def test_pip_makes_the_same_wheel(made, python, tmp_path):
    run(python, "-m", "pip", "wheel", "--wheel-dir", tmp_path / "wheels", made / "source", cwd=tmp_path)
    assert (tmp_path / "wheels" / WHEEL).read_bytes() == (made / WHEEL).read_bytes()
