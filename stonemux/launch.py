"""How this very stonemux is started anew, from any folder: for what clients are told to run, and for a daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import stonemux


def command() -> list[str]:
    """The command without its verb: `[*command(), "serve"]` starts what is running now.

    An archive is started by its path; a package by that of its `__main__.py`, which finds the rest by itself. Neither
    needs anything of the environment: clients pass on little of theirs, and Gemini CLI refuses a PYTHONPATH. `-P` keeps
    the modules of the folder in which it is started from replacing those of the standard library.
    """
    python = os.path.abspath(sys.executable)
    archive = getattr(stonemux.__loader__, "archive", None)
    if archive is not None:
        return [python, os.path.abspath(archive)]
    return [python, "-P", str(root() / "stonemux" / "__main__.py")]


def root() -> Path:
    """The folder that holds the package."""
    return Path(stonemux.__file__).resolve().parent.parent
