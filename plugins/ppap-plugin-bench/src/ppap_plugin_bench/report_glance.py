"""The page's first table: how each row fares, how good its images are, and what one costs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ppap_plugin_bench import cells
from ppap_plugin_bench.results import Results

__all__ = ["glance"]


def glance(results: Sequence[Results]) -> str:
    """One line for each row of all results; nothing where a single one says it all."""
    if len(results) < 2:
        return ""
    lines = [
        [
            _link(result.experiment["title"]) if row is result.rows[0] else "",
            row["title"],
            _objectives(result, row["figures"]),
            cells.number("fid", row["figures"]["fid"]["value"]),
            f"{cost['seconds']:.3g}" if (cost := row.get("cost")) else "–",
        ]
        for result in results
        for row in result.rows
    ]
    headings = ["", "row", "by the judges", cells.heading("fid"), "seconds an image"]
    return f"## At a glance\n\n{cells.table(headings, lines)}"


def _objectives(result: Results, figures: dict[str, dict[str, float | None]]) -> str:
    names = result.objectives or list(result.shown)[:1]
    return ", ".join(
        f"{cells.heading(name, result.shown.get(name))} "
        f"{cells.number(name, figures[name]['value'])}"
        for name in names
    )


def _link(title: str) -> str:
    """To the section, as GitHub and MyST name its anchor."""
    anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    return f"[{title}](#{anchor})"
