"""The settings as documents: the example file, and the table of the reference."""

from __future__ import annotations

import textwrap

from stonemux.config import SECTIONS, SETTINGS
from stonemux.setting import Setting, as_toml


def example() -> str:
    """The text of `stonemux.toml.example`: each setting at its default, below its explanation and limits."""
    head = (
        "The settings of stonemux, all at their defaults. Copy the ones you change to config.toml in the data "
        "directory, or name a file with --config or STONEMUX_CONFIG. The environment overrides the file, and flags "
        "override both. A relative path starts at the file's folder. A running daemon reloads the settings marked * "
        "on SIGHUP. This file is generated from stonemux/config.py."
    )
    blocks = [_comment(head)]
    for section in SECTIONS:
        blocks.append(f"\n[{section}]\n")
        blocks.append("\n".join(_example_entry(setting) for setting in SETTINGS if setting.section == section))
    return "".join(blocks)


def _example_entry(setting: Setting) -> str:
    if setting.kind == "routing":
        lines = [f"{kind} = {as_toml(role)}\n" for kind, role in setting.default.items()]
        return _comment(setting.doc + " *" * setting.live) + "".join(lines)
    facts = f"({setting.limits}{', ' + setting.environment if setting.environment else ''}){' *' * setting.live}"
    return _comment(f"{setting.doc} {facts}") + f"{setting.key} = {as_toml(setting.default)}\n"


def _comment(text: str) -> str:
    wrapped = textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return "\n".join(wrapped) + "\n"


def settings_table() -> str:
    """All settings as a Markdown table: name, default, limits (with a star if SIGHUP reloads it), meaning."""
    rows = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    for setting in SETTINGS:
        doc = f"{setting.doc} Environment: `{setting.environment}`." if setting.environment else setting.doc
        limits = f"{setting.limits} \\*" if setting.live else setting.limits
        rows.append(f"| {_table_name(setting)} | {_table_default(setting)} | {limits} | {doc} |")
    return "\n".join(rows) + "\n"


def _table_name(setting: Setting) -> str:
    return f"`{setting.section}.TYPE`" if setting.kind == "routing" else f"`{setting.name}`"


def _table_default(setting: Setting) -> str:
    if setting.kind != "routing":
        return f"`{as_toml(setting.default)}`"
    by_role: dict[str, list[str]] = {}
    for kind, role in setting.default.items():
        by_role.setdefault(role, []).append(kind)
    return "; ".join(f"{', '.join(kinds)}: `{as_toml(role)}`" for role, kinds in by_role.items())
