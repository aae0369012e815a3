"""Figures of ppap-framework; their files have the same bytes every time.

Guides import `classes`, so matplotlib, which takes long, is imported when it draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ppap_framework.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as its path ends, in .svg or .png; PpapError if it cannot be written."""
    import matplotlib

    with replacing(path) as temporary:
        if path.suffix == ".png":
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
            return
        with matplotlib.rc_context({"svg.hashsalt": "ppap", "svg.fonttype": "none"}):
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})


def save_both(figure: Figure, path: Path) -> list[Path]:
    """Write PATH.svg and PATH.png; returns both."""
    paths = [path.with_suffix(suffix) for suffix in (".svg", ".png")]
    for each in paths:
        save_figure(figure, each)
    return paths
