"""The curves of a diagnosis: small panels over the timesteps, with log-SNRs above them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ppap_framework.diagnosis.intervals import Interval
from ppap_framework.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ppap_framework.diagnosis.record import Diagnosis, Reading

__all__ = ["diagnosis_plot"]

_UNTOUCHED, _EXPERTS, _FAINT, _INK = "C1", "C0", "0.82", "0.35"
_TICKS = 6
_WIDE = 20.0
"""A largest over a smallest value from which on a logarithmic axis shows more."""


def diagnosis_plot(diagnosis: Diagnosis, path: Path, kind: str | None = None) -> None:
    """Draw the untouched network and its experts, with bands for the intervals.

    Args:
        diagnosis: Of both.
        path: The file.
        kind: "svg" or "png"; None takes the suffix of `path`.

    Raises:
        PpapError: Where matplotlib is not installed.
    """
    classifies = diagnosis.clean.confidence is not None
    rows, columns = (2, 2) if classifies else (1, 3)
    figure = new_figure(4.3 * columns, 2.7 * rows + 0.6)
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for panel in panels.flatten():
        panel.set_xlim(0, diagnosis.schedule_length - 1)
        panel.grid(alpha=0.25)
        for start in diagnosis.starts or ():
            panel.axvline(start, color=_INK, alpha=0.35, linewidth=0.8, zorder=1)
    for panel in panels[0]:
        _show_log_snr(panel, diagnosis)
    for panel in panels[-1]:
        panel.set_xlabel("timestep t")
    *before, disagreement, norm, cosine = panels.flatten()
    if classifies:
        _draw_classes(before[0], diagnosis)
    _draw_disagreement(disagreement, diagnosis)
    _draw_norm(norm, diagnosis)
    _draw_cosine(cosine, diagnosis)
    _explain(figure, diagnosis)
    save_figure(figure, path, kind)


def _draw_classes(panel: Axes, diagnosis: Diagnosis) -> None:
    _draw(panel, diagnosis, lambda reading: reading.agreement)
    _draw(panel, diagnosis, lambda reading: reading.confidence, "--")
    panel.set(ylim=(-0.03, 1.03), ylabel="share of images, probability")
    panel.set_title("answer: same class as clean (solid), confidence (dashed)", fontsize="medium")


def _draw_disagreement(panel: Axes, diagnosis: Diagnosis) -> None:
    _draw(panel, diagnosis, lambda reading: reading.disagreement)
    panel.set_ylim(bottom=min(0.0, *panel.get_ylim()))
    panel.plot(
        diagnosis.proposal,
        [0.0] * len(diagnosis.proposal),
        transform=panel.get_xaxis_transform(),
        marker="^",
        color=_INK,
        linestyle="",
        clip_on=False,
        zorder=4,
    )
    panel.set_ylabel("transfer loss")
    panel.set_title("answer: distance to the clean image's answer", fontsize="medium")


def _draw_norm(panel: Axes, diagnosis: Diagnosis) -> None:
    _draw(panel, diagnosis, lambda reading: reading.gradient_norm)
    panel.axhline(diagnosis.clean.gradient_norm.value, color=_INK, linestyle=":")
    norms = [
        reading.gradient_norm for reading in (*diagnosis.untouched, *(diagnosis.experts or ()))
    ]
    if min(norm.low for norm in norms) * _WIDE < max(norm.high for norm in norms):
        panel.set_yscale("log", nonpositive="clip")
    else:
        panel.set_ylim(bottom=0.0)
    panel.set_ylabel("|dE/dx|")
    panel.set_title("gradient: size", fontsize="medium")


def _draw_cosine(panel: Axes, diagnosis: Diagnosis) -> None:
    panel.axhline(0.0, color=_INK, linewidth=0.8, zorder=1)
    _draw(panel, diagnosis, lambda reading: reading.cosine)
    panel.set_ylim(min(-0.1, *panel.get_ylim()), 1.05)
    panel.set_ylabel("cosine")
    panel.set_title("gradient: cosine with that of the clean image", fontsize="medium")


def _draw(
    panel: Axes,
    diagnosis: Diagnosis,
    figure: Callable[[Reading], Interval | None],
    style: str = "-",
) -> None:
    for readings, colour in ((diagnosis.untouched, _UNTOUCHED), (diagnosis.experts, _EXPERTS)):
        if readings is None:
            continue
        found = [interval for interval in map(figure, readings) if interval is not None]
        panel.plot(
            diagnosis.timesteps,
            [interval.value for interval in found],
            style,
            color=colour,
            linewidth=1.6,
            marker=".",
            markersize=4,
            zorder=3,
        )
        panel.fill_between(
            diagnosis.timesteps,
            [interval.low for interval in found],
            [interval.high for interval in found],
            color=colour,
            alpha=0.18,
            linewidth=0,
            zorder=2,
        )


def _show_log_snr(panel: Axes, diagnosis: Diagnosis) -> None:
    places = _spread(len(diagnosis.timesteps))
    above = panel.secondary_xaxis("top")
    above.set_xticks(
        [diagnosis.timesteps[k] for k in places],
        [f"{round(diagnosis.log_snr[k], 1) + 0.0:.1f}".replace("-", "−") for k in places],
    )
    above.set_xlabel("log-SNR", fontsize="small")
    above.tick_params(labelsize="small")


def _spread(count: int) -> list[int]:
    """A few positions of `count`, from the first to the last: evenly, if some number fits."""
    last = count - 1
    fit = [gaps for gaps in range(_TICKS - 1, 2, -1) if last % gaps == 0]
    gaps = fit[0] if fit else min(_TICKS - 1, last)
    return [round(k * last / gaps) for k in range(gaps + 1)]


def _explain(figure: Figure, diagnosis: Diagnosis) -> None:
    from matplotlib.lines import Line2D

    def line(name: str, **style: object) -> Line2D:
        return Line2D([], [], label=name, **style)  # type: ignore[arg-type]  # keywords of its own

    shown = [line("untouched network", color=_UNTOUCHED)]
    if diagnosis.experts is not None:
        number = len(diagnosis.starts or ()) + 1
        name = "its one expert" if number == 1 else f"its {number} experts"
        shown.append(line(name, color=_EXPERTS))
        if diagnosis.starts:
            shown.append(line("where they begin", color=_INK, alpha=0.35, linewidth=0.8))
    shown.append(line("clean image", color=_INK, linestyle=":"))
    if count := len(diagnosis.proposal):
        style = {"color": _INK, "marker": "^", "linestyle": ""}
        shown.append(line(f"where {count + 1} experts could begin", **style))
    figure.legend(handles=shown, loc="outside lower center", ncols=len(shown), fontsize="small")
