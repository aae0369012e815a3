"""Plots of results, as files with the same bytes every time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppap_framework.errors import PpapError
from ppap_plugin_bench.cells import spoken

if TYPE_CHECKING:
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from ppap_plugin_bench.results import Results

__all__ = ["confusion_plot", "new_figure", "save_figure", "tuning_plot"]


def tuning_plot(results: Results, path: Path) -> None:
    """What rows chose by, and FID, over the scale: a line for each row and interval; the chosen one
    is marked.

    Raises:
        PpapError: Where matplotlib is not installed.
    """
    names = [*(results.objectives or ["hit"]), "fid"]
    figure = new_figure(4.5 * len(names), 3.6)
    axes = figure.subplots(1, len(names))
    scales = []
    for number, row in enumerate(row for row in results.rows if row.get("tuning")):
        for low, high in dict.fromkeys(tuple(trial["interval"]) for trial in row["tuning"]):
            trials = [t for t in row["tuning"] if t["interval"] == [low, high]]
            trials = [t for t in trials if t["scale"] != "auto"]  # which has no place on the axis
            if not trials:
                continue
            trials.sort(key=lambda trial: trial["scale"])
            scales += [trial["scale"] for trial in trials]
            whole = (low, high) == (0.0, 1.0)
            label = row["title"] + ("" if whole else f", {low:g}–{high:g}")
            for axis, name in zip(axes, names, strict=True):
                _line(axis, name, row, trials, label, f"C{number % 10}", "-" if whole else "--")
    for axis, name in zip(axes, names, strict=True):
        axis.set(
            xlabel="scale",
            ylabel=spoken(name),
            xscale="log" if min(scales, default=0) > 0 else "linear",
        )
        axis.grid(alpha=0.3)
        if name.startswith("hit"):
            axis.set_ylim(0.0, 1.0)
    if scales:
        axes[0].legend(fontsize="small")
    save_figure(figure, path)


def _line(
    axis: Any,
    name: str,
    row: dict[str, Any],
    trials: list[dict[str, Any]],
    label: str,
    colour: str,
    style: str,
) -> None:
    x = [trial["scale"] for trial in trials]
    if name == "fid":
        y = [_known(trial["fid"]) for trial in trials]
    else:
        y, low, high = (
            [_known(trial[name][key]) for trial in trials] for key in ("value", "low", "high")
        )
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.plot(x, y, style, color=colour, marker=".", label=label)
    chosen = row["chosen"]
    for trial, value in zip(trials, y, strict=True):
        if (trial["scale"], trial["interval"]) == (chosen["scale"], chosen["interval"]):
            axis.plot(trial["scale"], value, "o", color=colour, markersize=9, fillstyle="none")


def _known(value: float | None) -> float:
    """A number, or one that is not drawn."""
    return np.nan if value is None else value


def confusion_plot(results: Results, path: Path) -> None:
    """What the judge sees in pictures of each class, as shares on a scale that shows mistakes.

    Raises:
        PpapError: Where matplotlib is not installed.
    """
    names = results.judge["class_names"]
    counts = np.array(results.judge["confusion"], np.float64)
    shares = counts / counts.sum(1, keepdims=True).clip(1.0)
    side = 2.5 + 0.16 * len(names)
    figure = new_figure(side + 0.6, side)
    axis = figure.subplots()
    drawn = axis.imshow(shares, cmap="Blues", norm=_rare(), interpolation="nearest")
    size = max(3.0, min(9.0, 250.0 / len(names)))
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    axis.set(xlabel="the judge sees", ylabel="it is")
    figure.colorbar(drawn, ax=axis, fraction=0.04)
    save_figure(figure, path)


def _rare() -> Normalize:
    """From 0 to 1, with most colours for small shares: a good judge errs seldom."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.3, vmin=0.0, vmax=1.0)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a width and a height in inches.

    Raises:
        PpapError: Where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PpapError(
            "matplotlib is not installed", hint='pip install "ppap-framework[eval]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, as SVG or PNG by its suffix."""
    import matplotlib

    if path.suffix == ".png":
        figure.savefig(path, format="png", dpi=150, metadata={"Software": None})
        return
    with matplotlib.rc_context({"svg.hashsalt": "ppap", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
