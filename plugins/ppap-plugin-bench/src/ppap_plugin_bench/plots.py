"""Plots of results and strips of example images, reproducible byte for byte."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppap_figures import new_figure, save_figure
from ppap_framework.files import replacing
from ppap_plugin_bench.markdown import heading
from ppap_plugin_bench.results import Results

EXAMPLES = 8
"""Images in a strip."""

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D3A9B", "#806000")
"""Told apart by the color-blind: those of Okabe and Ito, without black and yellow, and two more."""

_MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">")
_TILE = 64  # pixels; narrower pictures are enlarged
_GAP = 4


def curves_plot(results: Results, path: Path) -> None:
    """Plot fidelity against FID, a panel for each figure, and against recall; a line a method."""
    from matplotlib.ticker import LogLocator, NullFormatter

    panels = [(name, "fid") for name in results.fidelity] + [(results.fidelity[0], "recall")]
    figure = new_figure(4.6 * len(panels), 4.2 + 0.22 * math.ceil(len(results.rows) / 4))
    axes = figure.subplots(1, len(panels))
    for axis, (name, other) in zip(axes, panels, strict=True):
        for number, row in enumerate(results.guided):
            color = _COLORS[number % len(_COLORS)]
            marker = _MARKERS[(number + number // len(_COLORS)) % len(_MARKERS)]
            _line(axis, row, (other, name), color=color, marker=marker)
        markers = itertools.cycle("*Pd")
        for row in (row for row in results.rows if row not in results.guided):
            x, y = (np.float64(row["figures"][of]["value"]) for of in (other, name))
            given = "pictures" in row
            style = {"color": "gray", "marker": "X"} if given else {"marker": next(markers)}
            style = {"color": "black", "linestyle": "none", **style}
            axis.plot(x, y, zorder=6, markersize=10, label=row["title"], **style)
        better = results.shown.get(name, "higher")
        axis.set(xlabel=heading(other), ylabel=heading(name, better))
        axis.margins(0.07)
        axis.grid(alpha=0.3)
        if better == "lower":
            axis.invert_yaxis()
        if other == "fid" and np.isfinite(axis.dataLim.minpos[0]):  # anything is drawn
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
        elif other == "recall":
            axis.locator_params(axis="x", nbins=6)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    save_figure(figure, path)


def _line(axis: Any, row: dict[str, Any], names: tuple[str, str], **style: str) -> None:
    """A method: its points in order with intervals and scales, and the default large."""
    from matplotlib.patheffects import withStroke

    points, places = row["points"], []
    for of, kind in zip(names, ("xerr", "yerr"), strict=True):
        found = (point["figures"][of] for point in points)
        ends = [(one["value"], one["low"], one["high"]) for one in found]
        value, low, high = np.array(ends, np.float64).T  # None becomes NaN, which is not drawn
        places.append((value, {kind: np.stack([value - low, high - value])}))
    (x, across), (y, along) = places
    faint = {"fmt": "none", "ecolor": style["color"], "alpha": 0.3, "linewidth": 1}
    axis.errorbar(x, y, **across, **along, **faint)
    axis.plot(x, y, markersize=4.5, linewidth=1.3, label=row["title"], **style)
    for k, point in enumerate(points):
        if point["scale"] == row["default"]:
            axis.plot(x[k], y[k], markersize=9, markeredgecolor="black", zorder=5, **style)
        if len(points) > 1:
            told = axis.annotate(
                f"{point['scale']:g}" if isinstance(point["scale"], float) else point["scale"],
                (x[k], y[k]),
                (7 if point["scale"] == row["default"] else 5, -2),
                textcoords="offset points",
                fontsize=7,
                color=style["color"],
                zorder=7,
            )
            told.set_path_effects([withStroke(linewidth=1.5, foreground="white")])


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
