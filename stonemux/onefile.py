"""The `__main__.py` of `stonemux.pyz`: lets Python import the modules that are packed beside it.

They are packed together, which takes a fifth less space than packing each alone, and are read once, so a running daemon
or session is unaffected when its file is replaced by a newer one.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - checked before using anything that an older Python lacks
    sys.exit("stonemux needs Python 3.11 or newer, and this is " + sys.version.split()[0] + ": " + sys.executable)

import marshal
import os
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType

PACKED = "modules"
"""The file beside this one: names and contents, as written by `marshal`."""


class Importer:
    """Finds and loads the packed modules; `archive` is the file they came from."""

    def __init__(self, archive: str, files: dict[str, bytes]) -> None:
        self.archive = archive
        self._files = files

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Find a module; Python calls this for each import."""
        file, package = self._place(name)
        if file not in self._files:
            return None
        place = f"{self.archive}/{file}"
        folders = [place.rpartition("/")[0]] if package else None
        return spec_from_file_location(
            name,
            place,
            loader=self,  # type: ignore[arg-type]
            submodule_search_locations=folders,
        )

    def _place(self, name: str) -> tuple[str, bool]:
        file = name.replace(".", "/")
        package = f"{file}/__init__.py"
        return (package, True) if package in self._files else (f"{file}.py", False)

    def create_module(self, spec: ModuleSpec) -> None:
        """Create the module in the usual way."""

    def exec_module(self, module: ModuleType) -> None:
        """Execute a module's source."""
        assert module.__spec__ is not None
        assert module.__spec__.origin is not None
        exec(compile(self.get_source(module.__name__), module.__spec__.origin, "exec"), module.__dict__)

    def get_source(self, name: str) -> str:
        """A module's source, for tracebacks."""
        return self._files[self._place(name)[0]].decode()

    def get_data(self, path: str) -> bytes:
        """A file's contents, by its path in the archive."""
        try:
            return self._files[path.removeprefix(f"{self.archive}/")]
        except KeyError:
            raise OSError(f"{path}: there is no such file in the archive") from None


if __name__ == "__main__":
    outer = __loader__  # type: ignore[name-defined]
    found = Importer(os.path.abspath(outer.archive), marshal.loads(outer.get_data(f"{outer.archive}/{PACKED}")))
    sys.meta_path.insert(0, found)
    from stonemux.cli import main

    sys.exit(main())
