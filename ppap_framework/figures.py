"""Matplotlib figures whose files have the same bytes every time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ppap_framework.errors import PpapError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        hint = 'pip install "ppap-framework[eval]"'
        raise PpapError("matplotlib is not installed", hint=hint) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path, kind: str | None = None) -> None:
    """Write a figure as "svg" or "png"; None takes the suffix of `path`."""
    import matplotlib

    if (kind or path.suffix[1:]) == "png":
        figure.savefig(path, format="png", dpi=150, metadata={"Software": None})
        return
    with matplotlib.rc_context({"svg.hashsalt": "ppap", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
