"""Figures of ppap-framework, drawn by matplotlib; their files have the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ppap_framework.files import replacing


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as its path ends, in .svg or .png; PpapError if it cannot be written."""
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
