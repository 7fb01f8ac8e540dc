"""Builds what is distributed (one runnable file, a wheel, a source archive) for `make pyz`, `make release`, and pip.

pip finds the functions of PEP 517 and PEP 660 here (`build_wheel`, `build_sdist`, `build_editable`), so a machine
without access to an index can install from these files alone. They are called in the folder that holds
`pyproject.toml`.

The build is reproducible: names are sorted, dates and modes are fixed, and nothing about the machine is included. (Only
a different version of zlib may compress differently.)

The runnable file should be small. So it holds the modules as source, without comments but with every line at its
original number, packed together (`onefile` finds them there): a third smaller than a zip file of them. Including
bytecode would serve only one version of Python and make the file more than three times as large, to save a tenth of a
second at startup.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - checked for make and pip before importing what an older Python lacks
    sys.exit("stonemux needs Python 3.11 or newer, and this is " + sys.version.split()[0] + ": " + sys.executable)

import base64
import gzip
import hashlib
import io
import marshal
import tarfile
import tokenize
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stonemux import VERSION, onefile

DIST = Path("dist")
SHEBANG = b"#!/usr/bin/env python3\n"
DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest date that a zip file can state."""
SECONDS = 315_532_800
"""The same date for tar."""
FOLDERS = ("bench", "docs", "stonemux", "tests")
FILES = ("CHANGELOG.md", "Makefile", "README.md", "pyproject.toml", "stonemux.toml.example")
"""The contents of a source archive."""
NAME = f"stonemux-{VERSION}"
TAG = "py3-none-any"

Config = Mapping[str, Any] | None
"""pip's --config-settings; there is nothing to set."""


# -- the runnable file


def build_pyz(folder: Path) -> Path:
    """Make `stonemux.pyz`, which runs as `python stonemux.pyz serve` or `./stonemux.pyz serve`."""
    modules = {name: _bare(name, data) for name, data in sorted(_package().items())}
    files = {"__main__.py": modules.pop("stonemux/onefile.py"), onefile.PACKED: marshal.dumps(modules, 2)}
    made = folder / "stonemux.pyz"
    made.write_bytes(_zip(files, SHEBANG))
    made.chmod(0o755)
    return made


def _bare(name: str, data: bytes) -> bytes:
    """A module without comments and docstrings, line numbers unchanged; a command's docstring stays as its help."""
    if not name.endswith(".py"):
        return data
    lines = data.decode().splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(iter(lines).__next__))
    told = [token for token in tokens if token.type not in (tokenize.NL, tokenize.COMMENT)]
    texts = [
        text
        for before, text, after in zip([None, *told], told, told[1:], strict=False)
        if text.type == tokenize.STRING and after.type == tokenize.NEWLINE
        if before is None or before.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    ]
    if name.startswith("stonemux/commands/"):
        texts = texts[1:]
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    for token in sorted(texts + comments, reverse=True, key=lambda token: token.start):
        (first, left), (last, right) = token.start, token.end
        rest = lines[last - 1][right:]
        kept = lines[first - 1][:left]
        lines[first - 1] = (kept.rstrip() if token in comments else kept + '""') + ("\n" if last > first else rest)
        lines[first:last] = ["\n"] * (last - first)
    return "".join(lines).encode()


# -- the hooks that pip calls (PEP 517, PEP 660)


def build_wheel(wheel_directory: str, config_settings: Config = None, metadata_directory: str | None = None) -> str:
    """Make the wheel; returns its name."""
    return _wheel(wheel_directory, _package())


def build_editable(wheel_directory: str, config_settings: Config = None, metadata_directory: str | None = None) -> str:
    """Make a wheel that points to this folder; returns its name."""
    return _wheel(wheel_directory, {"stonemux.pth": f"{Path.cwd()}\n".encode()})


def build_sdist(sdist_directory: str, config_settings: Config = None) -> str:
    """Make the source archive; returns its name."""
    files = {name: data for part in FOLDERS + FILES for name, data in _files(Path(part)).items()}
    files["PKG-INFO"] = _metadata().encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(f"{NAME}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), SECONDS, 0o755 if data.startswith(b"#!") else 0o644
            archive.addfile(entry, io.BytesIO(data))
    made = f"{NAME}.tar.gz"
    Path(sdist_directory, made).write_bytes(gzip.compress(packed.getvalue(), mtime=SECONDS))
    return made


def _wheel(folder: str, files: dict[str, bytes]) -> str:
    about = f"{NAME}.dist-info"
    scripts = "".join(f"{name} = {target}\n" for name, target in _project()["scripts"].items())
    files |= {
        f"{about}/METADATA": _metadata().encode(),
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nGenerator: stonemux\nRoot-Is-Purelib: true\nTag: {TAG}\n".encode(),
        f"{about}/entry_points.txt": f"[console_scripts]\n{scripts}".encode(),
    }
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in sorted(files.items()))
    files[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
    made = f"{NAME}-{TAG}.whl"
    Path(folder, made).write_bytes(_zip(files))
    return made


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _metadata() -> str:
    """The core metadata of the package, from `pyproject.toml` and the README."""
    project = _project()
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {project['name']}",
        f"Version: {VERSION}",
        f"Summary: {project['description']}",
        f"Requires-Python: {project['requires-python']}",
        *(f"Requires-Dist: {needed}" for needed in project["dependencies"]),
    ]
    for extra, needs in sorted(project["optional-dependencies"].items()):
        lines.append(f"Provides-Extra: {extra}")
        lines += [f'Requires-Dist: {needed}; extra == "{extra}"' for needed in needs]
    lines.append("Description-Content-Type: text/markdown")
    return "\n".join(lines) + "\n\n" + Path(project["readme"]).read_text(encoding="utf-8")


def _project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


# -- files


def _package() -> dict[str, bytes]:
    return _files(Path("stonemux"))


def _files(part: Path) -> dict[str, bytes]:
    """The files of a part by name, without what Python, editors, and tools leave behind."""
    if part.is_file():
        return {part.as_posix(): part.read_bytes()}
    found = (path for path in part.rglob("*") if path.is_file())
    kept = (path for path in found if not any(name.startswith((".", "__pycache__")) for name in path.parts))
    return {path.as_posix(): path.read_bytes() for path in kept}


def _zip(files: Mapping[str, bytes], head: bytes = b"") -> bytes:
    made = io.BytesIO()
    made.write(head)
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, DATE)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # as on Unix, on every system
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED, 9)
    return made.getvalue()


def _checksums(made: Iterable[Path]) -> str:
    """Checksums in the format of `sha256sum --check`."""
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(made))


def main(arguments: list[str]) -> int:
    """Run `python -m stonemux.release [--into FOLDER] [pyz]` beside `pyproject.toml`: build all, or one file."""
    folder, what = (Path(arguments[1]), arguments[2:]) if arguments[:1] == ["--into"] else (DIST, arguments)
    folder.mkdir(exist_ok=True)
    made = [build_pyz(folder)]
    if what != ["pyz"]:
        made += [folder / build_wheel(str(folder)), folder / build_sdist(str(folder))]
        sums = folder / "SHA256SUMS"
        sums.write_text(_checksums(made), encoding="utf-8")
        made.append(sums)
    for path in made:
        print(f"{path}  {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
