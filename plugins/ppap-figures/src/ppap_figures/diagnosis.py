"""Curves of a diagnosis, with intervals: a panel for each figure over the timesteps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import attrs
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ppap_figures import new_figure, save_both
from ppap_framework.diagnosis import Diagnosis

_UNTOUCHED, _EXPERTS, _INK = "C1", "C0", "0.35"
_START = {"color": _INK, "alpha": 0.35, "linewidth": 0.8}
_LINE: dict[str, Any] = {"linewidth": 1.6, "marker": ".", "markersize": 4}
_PROPOSED: dict[str, Any] = {"color": _INK, "marker": "^", "linestyle": ""}
_TICKS = 6
_WIDE = 20.0  # ratio of the largest to the smallest norm above which the axis is logarithmic

_PANELS = (
    (
        {"agreement": "-", "confidence": "--"},
        "share of images, probability",
        "answer: same class as clean (solid), confidence (dashed)",
    ),
    ({"disagreement": "-"}, "transfer loss", "answer: distance to the clean image's answer"),
    ({"gradient_norm": "-"}, "|dE/dx|", "gradient: size"),
    ({"cosine": "-"}, "cosine", "gradient: cosine with that of the clean image"),
)
"""Line styles of the figures of each panel, label and title; the first is for classes."""


def draw(diagnosis: Diagnosis, path: Path) -> list[Path]:
    """Draw curves and intervals as PATH.svg and PATH.png; returns both."""
    classifies = diagnosis.clean_confidence is not None
    rows, columns = (2, 2) if classifies else (1, 3)
    figure = new_figure(4.3 * columns, 2.7 * rows + 0.6)
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for panel in panels[0]:
        _add_log_snr(panel, diagnosis)
    for panel in panels[-1]:
        panel.set_xlabel("timestep t")
    contents = _PANELS if classifies else _PANELS[1:]
    for panel, (curves, label, title) in zip(panels.flatten(), contents, strict=True):
        panel.set_xlim(0, diagnosis.schedule_length - 1)
        panel.grid(alpha=0.25)
        for start in diagnosis.starts or ():
            panel.axvline(start, zorder=1, **_START)
        _add_curves(panel, diagnosis, curves)
        panel.set_ylabel(label)
        panel.set_title(title, fontsize="medium")
    *answers, distance, norm, cosine = panels.flatten()
    for panel in answers:
        panel.set_ylim(-0.03, 1.03)

    distance.set_ylim(bottom=min(0.0, *distance.get_ylim()))
    proposal, below = diagnosis.proposal, distance.get_xaxis_transform()
    zeros = [0.0] * len(proposal)
    distance.plot(proposal, zeros, transform=below, clip_on=False, zorder=4, **_PROPOSED)

    norm.axhline(diagnosis.clean_gradient_norm.value, color=_INK, linestyle=":")
    norms = [r.gradient_norm for r in (*diagnosis.untouched, *(diagnosis.experts or ()))]
    if min(n.low for n in norms) * _WIDE < max(n.high for n in norms):
        norm.set_yscale("log", nonpositive="clip")
    else:
        norm.set_ylim(bottom=0.0)

    cosine.axhline(0.0, color=_INK, linewidth=0.8, zorder=1)
    cosine.set_ylim(min(-0.1, *cosine.get_ylim()), 1.05)
    _add_legend(figure, diagnosis)
    return save_both(figure, path)


def _add_curves(panel: Axes, diagnosis: Diagnosis, curves: Mapping[str, str]) -> None:
    t = diagnosis.timesteps
    both = ((diagnosis.untouched, _UNTOUCHED), (diagnosis.experts or (), _EXPERTS))
    for (name, style), (readings, color) in product(curves.items(), both):
        if readings:
            found = [getattr(reading, name) for reading in readings]
            value, low, high = zip(*(attrs.astuple(i) for i in found), strict=True)
            panel.plot(t, value, style, zorder=3, color=color, **_LINE)
            panel.fill_between(t, low, high, color=color, alpha=0.18, linewidth=0, zorder=2)


def _add_log_snr(panel: Axes, diagnosis: Diagnosis) -> None:
    """Add an axis of some log-SNRs above."""
    levels = len(diagnosis.timesteps)
    places = range(0, levels, math.ceil(levels / _TICKS))
    above = panel.secondary_xaxis("top")
    above.set_xticks(
        [diagnosis.timesteps[k] for k in places],
        [f"{round(diagnosis.log_snr[k], 1) + 0.0:.1f}".replace("-", "−") for k in places],
    )
    above.set_xlabel("log-SNR", fontsize="small")
    above.tick_params(labelsize="small")


def _add_legend(figure: Figure, diagnosis: Diagnosis) -> None:
    lines: dict[str, dict[str, Any]] = {"untouched network": {"color": _UNTOUCHED}}
    if diagnosis.experts is not None:
        number = len(diagnosis.starts or ()) + 1
        lines["its one expert" if number == 1 else f"its {number} experts"] = {"color": _EXPERTS}
        if diagnosis.starts:
            lines["where they begin"] = _START
    lines["clean image"] = {"color": _INK, "linestyle": ":"}
    if count := len(diagnosis.proposal):
        lines[f"where {count + 1} experts could begin"] = _PROPOSED
    handles = [Line2D([], [], label=name, **style) for name, style in lines.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(lines), fontsize="small")
