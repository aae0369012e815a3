"""Plots of results and strips of example images, reproducible byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppap_framework.figures import new_figure, save_figure
from ppap_framework.files import replacing
from ppap_plugin_bench.markdown import spoken
from ppap_plugin_bench.results import Results

EXAMPLES = 8
"""Images in a strip."""

_TILE = 64  # pixels; narrower pictures are enlarged
_GAP = 4


def tuning_plot(results: Results, path: Path) -> None:
    """Plot objectives and FID over the scale, a line for each row and interval; mark the choice."""
    names = [*(results.objectives or ["hit"]), "fid"]
    figure = new_figure(4.5 * len(names), 3.6)
    axes = figure.subplots(1, len(names))
    scales = []
    for number, row in enumerate(results.tuned):
        for low, high in dict.fromkeys(tuple(trial["interval"]) for trial in row["tuning"]):
            trials = [t for t in row["tuning"] if t["interval"] == [low, high]]
            trials = [t for t in trials if t["scale"] != "auto"]  # which is not on the axis
            if not trials:
                continue
            trials.sort(key=lambda trial: trial["scale"])
            scales += [trial["scale"] for trial in trials]
            whole = (low, high) == (0.0, 1.0)
            label = row["title"] + ("" if whole else f", {low:g}–{high:g}")
            style = {"color": f"C{number % 10}", "linestyle": "-" if whole else "--"}
            for axis, name in zip(axes, names, strict=True):
                _line(axis, name, row["chosen"], trials, label, **style)
    kind = "log" if min(scales, default=0) > 0 else "linear"
    for axis, name in zip(axes, names, strict=True):
        axis.set(xlabel="scale", ylabel=spoken(name), xscale=kind)
        axis.grid(alpha=0.3)
        if name.startswith("hit"):
            axis.set_ylim(0.0, 1.0)
    if scales:
        axes[0].legend(fontsize="small")
    save_figure(figure, path, "svg")


def _line(axis: Any, name: str, chosen: Any, trials: list[Any], label: str, **style: str) -> None:
    x, color = [trial["scale"] for trial in trials], style["color"]
    if name == "fid":
        y = [_known(trial["fid"]) for trial in trials]
    else:
        y, low, high = (
            [_known(trial[name][key]) for trial in trials] for key in ("value", "low", "high")
        )
        axis.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axis.plot(x, y, marker=".", label=label, **style)
    for trial, value in zip(trials, y, strict=True):
        if (trial["scale"], trial["interval"]) == (chosen["scale"], chosen["interval"]):
            axis.plot(trial["scale"], value, "o", color=color, markersize=9, fillstyle="none")


def _known(value: float | None) -> float:
    return np.nan if value is None else value  # NaN is not drawn


def confusion_plot(results: Results, path: Path) -> None:
    """Plot the confusion matrix of the judge."""
    names = results.judge["class_names"]
    counts = np.array(results.judge["confusion"], np.float64)
    shares = counts / counts.sum(1, keepdims=True).clip(1.0)
    side = 2.5 + 0.16 * len(names)
    figure = new_figure(side + 0.6, side)
    axis = figure.subplots()
    from matplotlib.colors import PowerNorm

    # The color scale favors small shares, since a good judge seldom errs.
    norm = PowerNorm(0.3, vmin=0.0, vmax=1.0)
    drawn = axis.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    size = max(3.0, min(9.0, 250.0 / len(names)))
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    axis.set(xlabel="the judge sees", ylabel="it is")
    figure.colorbar(drawn, ax=axis, fraction=0.04)
    save_figure(figure, path, "svg")


def write_strip(path: Path, lines: Sequence[Sequence[NDArray[np.uint8]]]) -> None:
    """Write lines of pictures, each (h, w, 3), as a PNG."""
    width = max(_TILE, *(picture.shape[1] for line in lines for picture in line))
    tiles = [[_enlarged(picture, width) for picture in line] for line in lines]
    heights = [max(tile.height for tile in line) for line in tiles]
    columns = max(len(line) for line in tiles)
    size = columns * (width + _GAP) - _GAP, sum(heights) + (len(heights) - 1) * _GAP
    strip = Image.new("RGBA", size)  # transparent between the pictures
    top = 0
    for line, height in zip(tiles, heights, strict=True):
        for column, tile in enumerate(line):
            strip.paste(tile, (column * (width + _GAP), top))
        top += height + _GAP
    with replacing(path) as temporary:
        strip.save(temporary, "PNG")


def _enlarged(picture: NDArray[np.uint8], width: int) -> Image.Image:
    """Enlarge by the largest integer factor that fits the width."""
    image = Image.fromarray(picture)
    factor = max(1, width // image.width)
    size = image.width * factor, image.height * factor
    return image.resize(size, Image.Resampling.NEAREST).convert("RGBA")
