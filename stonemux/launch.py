"""How this very stonemux is started anew, from any folder: for what clients are told to run, and for a daemon.

It runs from a folder or from an archive (`stonemux.pyz`). Nothing else in the package may ask where its files lie.
"""

from __future__ import annotations

import os
import sys

import stonemux

DEFAULT_PORT = 3392


def command() -> list[str]:
    """The command without its verb: `[*command(), "serve"]` starts what is running now.

    An archive is started by its path; a package by that of its `__main__.py`, which finds the rest by itself. Neither
    needs anything of the environment: clients pass on little of theirs, and Gemini CLI refuses a PYTHONPATH. `-P` keeps
    the modules of the folder in which it is started from replacing those of the standard library. Whoever
    started this one with `-I` or `-S` wants neither the environment nor installed packages in the next one.
    """
    kept = [flag for flag, given in (("-I", sys.flags.isolated), ("-S", sys.flags.no_site)) if given]
    python = [os.path.abspath(sys.executable), *kept]
    if (file := archive()) is not None:
        return [*python, file]
    return [*python, "-P", os.path.join(root(), "stonemux", "__main__.py")]


def typed() -> str:
    """The command as a person types it, likewise without its verb."""
    if archive() is not None:
        return f"python3 {sys.argv[0]}"
    return "python3 -m stonemux" if sys.argv[0].endswith("__main__.py") else "stonemux"


def serving(port: int) -> str:
    """What a person types to start a daemon that listens at this port."""
    return f"{typed()} serve" + at(port)


def at(port: int) -> str:
    """The flag that names a port, where it is needed."""
    return "" if port == DEFAULT_PORT else f" --port {port}"


def archive() -> str | None:
    """The archive that this runs from, if it does."""
    file = getattr(stonemux.__loader__, "archive", None)
    return None if file is None else os.path.abspath(file)


def root() -> str:
    """The folder that holds the package, or the archive."""
    return os.path.dirname(os.path.dirname(os.path.realpath(stonemux.__file__)))
