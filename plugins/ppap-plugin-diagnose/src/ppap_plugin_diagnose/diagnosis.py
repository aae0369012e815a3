"""The results of a diagnosis, what is behind them, and their files.

diagnose.json holds every number; diagnose.svg and diagnose.png show curves, if matplotlib is
installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from ppap_framework.figures import new_figure, save_figure
from ppap_framework.files import replacing, write_json
from ppap_framework.origin import Origin
from ppap_plugin_diagnose.intervals import Interval, as_json, rounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RECORD = "diagnose.json"
_LIBRARIES = ("ppap-framework", "torch", "numpy", "torch-fidelity")

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


@attrs.frozen(kw_only=True)
class Reading:
    """Figures at one noise level, means over images with intervals; `diagnose` defines them.

    `agreement` and `confidence` are None without classes. The gradient of `not_finite` images is
    not finite and left out of its means; `compared` images have a cosine.
    """

    disagreement: Interval
    agreement: Interval | None
    confidence: Interval | None
    gradient_norm: Interval
    cosine: Interval
    not_finite: int
    compared: int


@attrs.frozen(kw_only=True)
class Diagnosis:
    """Figures of a network, and its experts if any, at L noise levels.

    Attributes:
        images, seed: Number of images, and seed of the noise.
        schedule, schedule_length: Name of the first stage's schedule, and T.
        timesteps, log_snr: L base timesteps, rising, and their log-SNRs.
        clean_confidence: Confidence of the untouched network for clean images of the last stage;
            None without classes.
        clean_gradient_norm: Mean L2 norm of dE/dx_0, for images of the first stage.
        experts: Readings of the experts, each in its own range; None without experts.
        starts: Base timesteps at which experts 1 to N - 1 begin; None without experts.
        proposal: Result of `propose_boundaries`; empty if one expert suffices.
    """

    images: int
    seed: int
    schedule: str
    schedule_length: int
    timesteps: tuple[int, ...]
    log_snr: tuple[float, ...]
    clean_confidence: Interval | None
    clean_gradient_norm: Interval
    untouched: tuple[Reading, ...]
    experts: tuple[Reading, ...] | None
    starts: tuple[int, ...] | None
    proposal: tuple[int, ...]

    def record(self) -> dict[str, Any]:
        """JSON; null if not finite."""
        clean = {"confidence": self.clean_confidence, "gradient_norm": self.clean_gradient_norm}
        levels: list[dict[str, Any]] = []
        for k, (t, log_snr) in enumerate(zip(self.timesteps, self.log_snr, strict=True)):
            levels.append({"timestep": t, "log_snr": rounded(log_snr)})
            levels[k]["untouched"] = as_json(self.untouched[k])
            if self.experts is not None and self.starts is not None:
                owner = sum(start <= t for start in self.starts)
                levels[k]["experts"] = {"expert": owner, **as_json(self.experts[k])}
        return {
            "format": 1,
            "images": self.images,
            "seed": self.seed,
            "schedule": {"name": self.schedule, "timesteps": self.schedule_length},
            "experts_begin": None if self.starts is None else list(self.starts),
            "proposal": {"experts": len(self.proposal) + 1, "boundaries": list(self.proposal)},
            "clean": {name: figure.record() for name, figure in clean.items() if figure},
            "levels": levels,
        }

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> list[Path]:
        """Write the files, with further entries `about` of the JSON file; return their paths. The
        folder is created if it is missing; PpapError if a file cannot be written.
        """
        paths = [folder / RECORD]
        write_json(paths[0], {**self.record(), **(about or {})})
        if importlib.util.find_spec("matplotlib"):
            for kind in ("svg", "png"):
                paths.append(folder / f"diagnose.{kind}")
                with replacing(paths[-1]) as temporary:
                    diagnosis_plot(self, temporary, kind)
        return paths


def diagnosis_plot(diagnosis: Diagnosis, path: Path, kind: str) -> None:
    """Plot curves and intervals as `kind` "svg" or "png"."""
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
        _draw(panel, diagnosis, curves)
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
    save_figure(figure, path, kind)


def _draw(panel: Axes, diagnosis: Diagnosis, curves: Mapping[str, str]) -> None:
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
    from matplotlib.lines import Line2D

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


def environment(origins: Iterable[Origin]) -> dict[str, Any]:
    """Versions, including the origins' plugins, and machine, as JSON."""
    versions: dict[str, str | None] = dict.fromkeys(_LIBRARIES)
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    versions |= {o.distribution: o.version for o in origins if o.distribution}
    processor = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line for line in lines if line.startswith("model name"))
        processor = model.partition(":")[2].strip()
    return {
        "python": platform.python_version(),
        "versions": dict(sorted(versions.items())),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def provenance(origin: Origin) -> dict[str, Any]:
    """Identity of a component, without its path, as JSON."""
    left_out = {"path", "load_seconds"} | ({"weights_sha256"} if origin.sha256 else set())
    return {name: value for name, value in origin.record().items() if name not in left_out}
