"""A bar chart as SVG, written directly: rectangles and text need no library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, NAMES, BAR, GAP, HEAD = 760, 130, 18, 6, 34


def bars(groups: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Groups of horizontal bars; the first name in each group is drawn in stonemux's color."""
    parts: list[str] = []
    y = 10
    for title, values in groups:
        parts.append(f'<text x="8" y="{y + 16}" class="t">{escape(title)}</text>')
        y += HEAD
        most = max(values.values())
        for name, value in values.items():
            long = max(1.0, value / most * (WIDTH - NAMES - 110))
            shown = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
            kind = "us" if name == "stonemux" else "them"
            parts.append(f'<text x="{NAMES - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
            parts.append(f'<rect x="{NAMES}" y="{y}" width="{long:.1f}" height="{BAR}" class="{kind}"/>')
            parts.append(f'<text x="{NAMES + long + 6:.1f}" y="{y + 13}">{shown}</text>')
            y += BAR + GAP
        y += 12
    style = (
        "text{font:12px sans-serif;fill:#444}.t{font-weight:bold}.us{fill:#0a7d55}.them{fill:#b8c0c8}"
        "@media(prefers-color-scheme:dark){text{fill:#ccc}.them{fill:#5b646d}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}">'
        f"<style>{style}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )
