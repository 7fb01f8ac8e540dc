"""The clients that `stonemux setup` knows: where each keeps its MCP servers, and in which format.

(`client` is something else: a caller of the daemon.) A row is pure data. Files and formats follow each client's own
documentation, including environment variables that move a client's files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from stonemux.errors import MuxError

SCOPES = ("user", "project")
NONE: Mapping[str, Any] = MappingProxyType({})
_OF_EDITORS = r"\$\{(?:env:(?P<name>\w+)|(?P<place>userHome|workspaceFolder))\}"


class Client(NamedTuple):
    """One client. Paths are relative: `user` to the home folder, `project` to the project's folder."""

    title: str
    user: str
    project: str
    table: str = "mcpServers"
    """The key under which the file lists the servers by name."""
    syntax: str = "json"
    """`json` (with comments) or `toml`."""
    variable: str = ""
    """An environment variable with a folder; if it is set, the user's file is `moved` below that folder."""
    moved: str = ""
    user_on_mac: str = ""
    by_folder: str = ""
    """The key under which the user's file lists further servers by folder; the client prefers them."""
    fixed: Mapping[str, Any] = NONE
    """Fields of the entry besides command, arguments, and environment."""
    defaults: Mapping[str, Any] = NONE
    """Fields that are written unless the entry already has them."""
    variables: str = ""
    """A regex for references to variables in a text: `name`, perhaps with a `default`, or a `place`."""
    note: str = ""
    """What the user still has to do, in project scope, or in any scope (`always_noted`)."""
    always_noted: bool = False

    def file(self, scope: str, environ: Mapping[str, str], folder: Path) -> Path:
        """The configuration file of a scope; `folder` is the project, and HOME in `environ` selects the user."""
        if scope == "project":
            return folder / self.project
        if sys.platform == "darwin" and self.user_on_mac:
            return home(environ) / self.user_on_mac
        base = environ.get(self.variable) if self.variable else None
        return Path(base) / self.moved if base else home(environ) / self.user

    def expand(self, text: str, environ: Mapping[str, str], folder: Path) -> str:
        """Expand a text of the file as the client would. Raises `client_check_failed` for an unset variable."""

        def value(found: re.Match[str]) -> str:
            parts = found.groupdict()
            if place := parts.get("place"):
                return str(home(environ) if place == "userHome" else folder)
            name = parts["name"] or parts["bare"]
            said = environ.get(name, parts.get("default"))
            if said is None:
                raise MuxError("client_check_failed", f"it uses the variable {name}, which is not set here", unset=name)
            return said

        return re.sub(self.variables, value, text) if self.variables else text


def home(environ: Mapping[str, str]) -> Path:
    """The home folder that the environment names, or else the account's."""
    return Path(environ.get("HOME") or Path.home())


CLIENTS: Mapping[str, Client] = {
    "claude": Client(
        "Claude Code",
        ".claude.json",
        ".mcp.json",
        variable="CLAUDE_CONFIG_DIR",
        moved=".claude.json",
        by_folder="projects",
        variables=r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}",
        fixed={"type": "stdio"},
        note="Claude Code asks once whether it may use a project's servers",
    ),
    "codex": Client(
        "Codex",
        ".codex/config.toml",
        ".codex/config.toml",
        table="mcp_servers",
        syntax="toml",
        variable="CODEX_HOME",
        moved="config.toml",
        defaults={"startup_timeout_sec": 30, "tool_timeout_sec": 300},
        note="Codex reads this file only in a project that it trusts",
    ),
    "gemini": Client(
        "Gemini CLI",
        ".gemini/settings.json",
        ".gemini/settings.json",
        variable="GEMINI_CLI_HOME",
        moved=".gemini/settings.json",
        variables=r"\$(?:\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}|(?P<bare>[A-Za-z_]\w*))",
        note="Gemini CLI starts servers only in a folder that it trusts (gemini trust)",
        always_noted=True,
    ),
    "cursor": Client(
        "Cursor",
        ".cursor/mcp.json",
        ".cursor/mcp.json",
        variables=_OF_EDITORS,
        fixed={"type": "stdio"},
        note="Cursor asks once whether it may use the server",
    ),
    "vscode": Client(
        "VS Code",
        ".config/Code/User/mcp.json",
        ".vscode/mcp.json",
        table="servers",
        variable="XDG_CONFIG_HOME",
        moved="Code/User/mcp.json",
        user_on_mac="Library/Application Support/Code/User/mcp.json",
        variables=_OF_EDITORS,
        fixed={"type": "stdio"},
        note="VS Code asks once whether it may start the server",
    ),
}
