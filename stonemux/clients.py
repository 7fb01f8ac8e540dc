"""The clients that `stonemux setup` knows: where each keeps its MCP servers, and in which form.

(`client` is something else: a caller of the daemon.) A row is data. The files and forms are those of the clients' own
documentation; where a client lets an environment variable move its files, that is followed.
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
    """One client. Paths are relative: `user` to the home folder, `project` to the project's."""

    title: str
    user: str
    project: str
    table: str = "mcpServers"
    """What holds the servers by name."""
    syntax: str = "json"
    """`json` (with comments) or `toml`."""
    variable: str = ""
    """An environment variable that moves the user's file to `moved`, below the folder that it names."""
    moved: str = ""
    user_on_mac: str = ""
    by_folder: str = ""
    """What holds further servers in the user's file, for one folder each; the client prefers them."""
    fixed: Mapping[str, Any] = NONE
    """Fields of the entry beside command, arguments and environment."""
    defaults: Mapping[str, Any] = NONE
    """Fields that are written unless the entry has them already."""
    variables: str = ""
    """How a text of the file stands for a variable's value: `name`, perhaps with a `default`, or a `place`."""
    note: str = ""
    """What its user still has to do, in project scope, or in any (`always_noted`)."""
    always_noted: bool = False

    def file(self, scope: str, environ: Mapping[str, str], folder: Path) -> Path:
        """The configuration file of a scope; `folder` is the project, HOME in `environ` says whose user scope."""
        if scope == "project":
            return folder / self.project
        if sys.platform == "darwin" and self.user_on_mac:
            return home(environ) / self.user_on_mac
        base = environ.get(self.variable) if self.variable else None
        return Path(base) / self.moved if base else home(environ) / self.user

    def expand(self, text: str, environ: Mapping[str, str], folder: Path) -> str:
        """A text of the file as the client takes it. Raises `client_check_failed` for a variable that is not set."""

        def value(found: re.Match[str]) -> str:
            parts = found.groupdict()
            if place := parts.get("place"):
                return str(home(environ) if place == "userHome" else folder)
            name = parts["name"] or parts["bare"]
            said = environ.get(name, parts.get("default"))
            if said is None:
                raise MuxError(
                    "client_check_failed", f"it names the variable {name}, which is not set here", unset=name
                )
            return said

        return re.sub(self.variables, value, text) if self.variables else text


def home(environ: Mapping[str, str]) -> Path:
    """The home folder that the environment names, else the account's."""
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
        note="Claude Code asks once whether it may use the servers of a project",
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
