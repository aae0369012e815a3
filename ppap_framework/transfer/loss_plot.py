"""The losses of a training: a panel for each phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppap_framework.transfer.recipe import Phase, Recipe

__all__ = ["plot_losses"]


def plot_losses(
    lines: Sequence[Mapping[str, Any]], phases: Sequence[Phase], recipe: Recipe, path: Path
) -> None:
    """Write `path`.png and `path`.svg.

    Args:
        lines: Of the log.
        phases: Of the training.
        recipe: Of the training.
        path: Without suffix.

    Raises:
        ModuleNotFoundError: Where matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(3, len(phases))
    rows = -(-len(phases) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 2.5 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for phase, panel in zip(phases, panels, strict=False):
        own = [line for line in lines if line["phase"] == phase.name]
        for key, label, style in (
            ("loss", "training", {"color": "0.65", "linewidth": 0.8}),
            ("held_out", "held out", {"color": "C0", "marker": ".", "linewidth": 1.2}),
        ):
            points = [(line["iteration"], line[key]) for line in own if key in line]
            if points:
                panel.plot(*zip(*points, strict=True), label=label, **style)
        first, last = phase.timesteps.start, phase.timesteps.stop - 1
        panel.set_title(f"{phase.name}: t = {first} to {last}", fontsize="medium")
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
    for panel in panels[len(phases) :]:
        panel.set_axis_off()
    for panel in panels[::columns]:
        panel.set_ylabel("transfer loss")
    panels[0].legend(fontsize="small")
    figure.supxlabel("iteration", fontsize="medium")
    with matplotlib.rc_context({"svg.hashsalt": "ppap", "svg.fonttype": "none"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=120, metadata={"Software": None})
