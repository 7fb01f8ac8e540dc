"""How to start this same copy of stonemux again, from any folder: for the commands clients are given, and for a daemon.

It runs from a folder or from an archive (`stonemux.pyz`). No other module in the package may ask where its files are.
"""

from __future__ import annotations

import os
import sys

import stonemux

DEFAULT_PORT = 3392


def command() -> list[str]:
    """The command without its verb: `[*command(), "serve"]` starts the program that is running now.

    An archive is started by its path; a package by that of its `__main__.py`, which finds the rest itself. Neither
    needs the environment: clients pass on little of theirs, and Gemini CLI refuses a PYTHONPATH. `-P` prevents modules
    in the start folder from shadowing the standard library. If this process was started with `-I` or `-S`, the new one
    should not use the environment or installed packages either, so these flags are kept.
    """
    kept = [flag for flag, given in (("-I", sys.flags.isolated), ("-S", sys.flags.no_site)) if given]
    python = [os.path.abspath(sys.executable), *kept]
    if (file := archive()) is not None:
        return [*python, file]
    return [*python, "-P", _main()]


def typed() -> str:
    """The command as a person types it, also without its verb; in a program that imports the client, the longer form,
    which works without an installation."""
    if archive() is not None:
        return f"python3 {sys.argv[0]}"
    return "stonemux" if os.path.basename(sys.argv[0]) == "stonemux" else "python3 -m stonemux"


def serving(port: int) -> str:
    """The command that a person types to start a daemon on this port."""
    return f"{typed()} serve" + at(port)


def at(port: int) -> str:
    """The `--port` flag, if the port is not the default; else ""."""
    return "" if port == DEFAULT_PORT else f" --port {port}"


def archive() -> str | None:
    """The archive that this process runs from, or None."""
    file = getattr(stonemux.__loader__, "archive", None)
    return None if file is None else os.path.abspath(file)


def _main() -> str:
    return os.path.join(root(), "stonemux", "__main__.py")


def root() -> str:
    """The folder that holds the package, or the archive."""
    return os.path.dirname(os.path.dirname(os.path.realpath(stonemux.__file__)))
