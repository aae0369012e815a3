"""Losses of a training: a panel for each expert over its iterations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppap_figures import new_figure, save_both
from ppap_framework.learn.recipe import Phase

_CURVES = (
    ("loss", "training, one batch", {"color": "0.65", "linewidth": 0.9}),
    ("held_out", "held-out images", {"color": "C0", "marker": ".", "linewidth": 1.4}),
)


def draw(lines: Sequence[Mapping[str, Any]], phases: Sequence[Phase], path: Path) -> list[Path]:
    """Draw a training's log as PATH.svg and PATH.png; returns both."""
    columns = min(3, len(phases))
    rows = -(-len(phases) // columns)
    figure = new_figure(3.4 * columns + 0.6, 2.5 * rows + 0.8)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    drawn: dict[str, Any] = {}
    for phase, panel in zip(phases, panels, strict=False):
        own = [line for line in lines if line["phase"] == phase.name]
        for key, label, style in _CURVES:
            points = [(line["iteration"], line[key]) for line in own if line.get(key) is not None]
            if points:
                [drawn[label]] = panel.plot(*zip(*points, strict=True), **style)
        first, last = phase.timesteps.start, phase.timesteps.stop - 1
        panel.set_title(f"{phase.name}: t = {first} to {last}", fontsize="medium")
        panel.set_xlim(0, phase.iterations * 1.02)
        panel.grid(which="both", alpha=0.3, linewidth=0.6)
    for panel in panels[len(phases) :]:
        panel.set_axis_off()
    for panel in panels[: len(phases) : columns]:
        panel.set_ylabel("transfer loss")
    losses = [line[key] for line in lines for key in ("loss", "held_out") if key in line]
    if drawn:
        handles, labels = [*drawn.values()], [*drawn]
        figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize="medium")
        if all(loss is None or loss > 0 for loss in losses):
            panels[0].set_yscale("log")  # panels share the axis
    figure.supxlabel("iteration", fontsize="medium")
    return save_both(figure, path)
