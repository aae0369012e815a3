"""What a diagnosis found, as a record and as files.

diagnose.json has every number and what it was measured with; diagnose.svg and diagnose.png show
the same as curves, where matplotlib is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from ppap_framework.diagnosis.intervals import Interval, rounded
from ppap_framework.diagnosis.plot import diagnosis_plot
from ppap_framework.files import replacing, write_json

__all__ = ["RECORD", "Clean", "Diagnosis", "Reading"]

RECORD = "diagnose.json"


@final
@attrs.frozen(kw_only=True)
class Clean:
    """What the untouched network makes of clean images: means over images, each with an interval.

    Attributes:
        confidence: The largest softmax, of the image that the teacher looks at; None for networks
            that do not classify.
        gradient_norm: Of dE/dx_0, of the guided stage's image.
    """

    confidence: Interval | None
    gradient_norm: Interval


@final
@attrs.frozen(kw_only=True)
class Reading:
    """What a network makes of one noise level: means over images, each with an interval.

    Attributes:
        disagreement: The loss's `transfer` between the answer here and the clean one.
        agreement: The share of images with the same likeliest class as without noise; None for
            networks that do not classify.
        confidence: The largest softmax; likewise.
        gradient_norm: |dE/dx_t|, the square root of the sum of squares over the image.
        cosine: Between dE/dx_t and the untouched network's dE/dx_0.
        not_finite: Images whose gradient is not finite, left out of both.
        compared: Images that `cosine` is a mean of: those with two gradients that have a direction.
    """

    disagreement: Interval
    agreement: Interval | None
    confidence: Interval | None
    gradient_norm: Interval
    cosine: Interval
    not_finite: int
    compared: int


@final
@attrs.frozen(kw_only=True)
class Diagnosis:
    """What a network, and its experts where it has some, make of L noise levels.

    Attributes:
        images: How many were looked at.
        seed: Of the noise.
        schedule: The name of the guided stage's schedule.
        schedule_length: T, of that schedule.
        timesteps: The L base timesteps, rising.
        log_snr: The noise levels at these.
        clean: What the untouched network makes of clean images.
        untouched: What it makes of each level.
        experts: What the experts do, each in its own range; None where there are none.
        starts: The base timesteps at which all but the first of the experts begin; likewise.
        proposal: Those at which new experts could begin: see
            `ppap_framework.experts.propose_boundaries`. Without any, one expert would do.
    """

    images: int
    seed: int
    schedule: str
    schedule_length: int
    timesteps: tuple[int, ...]
    log_snr: tuple[float, ...]
    clean: Clean
    untouched: tuple[Reading, ...]
    experts: tuple[Reading, ...] | None
    starts: tuple[int, ...] | None
    proposal: tuple[int, ...]

    def record(self) -> dict[str, Any]:
        """As JSON; what is not finite is null."""
        levels = []
        for k, (t, log_snr) in enumerate(zip(self.timesteps, self.log_snr, strict=True)):
            level: dict[str, Any] = {"timestep": t, "log_snr": rounded(log_snr)}
            level["untouched"] = _record(self.untouched[k])
            if self.experts is not None and self.starts is not None:
                owner = sum(start <= t for start in self.starts)
                level["experts"] = {"expert": owner, **_record(self.experts[k])}
            levels.append(level)
        return {
            "format": 1,
            "images": self.images,
            "seed": self.seed,
            "schedule": {"name": self.schedule, "timesteps": self.schedule_length},
            "experts_begin": None if self.starts is None else list(self.starts),
            "proposal": {"experts": len(self.proposal) + 1, "boundaries": list(self.proposal)},
            "clean": _record(self.clean),
            "levels": levels,
        }

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> list[Path]:
        """Write the files.

        Args:
            folder: Made where it is not there.
            about: What else the JSON file shall say, such as of which networks it is.

        Returns:
            Paths of what was written: the last is diagnose.png, if matplotlib is installed.

        Raises:
            PpapError: Where they cannot be written.
        """
        paths = [folder / RECORD]
        write_json(paths[0], {**self.record(), **(about or {})})
        if importlib.util.find_spec("matplotlib"):
            for suffix in ("svg", "png"):
                paths.append(paths[0].with_suffix(f".{suffix}"))
                with replacing(paths[-1]) as temporary:
                    diagnosis_plot(self, temporary, suffix)
        return paths


def _record(figures: Clean | Reading) -> dict[str, Any]:
    return {
        name: value.record() if isinstance(value, Interval) else value
        for name, value in attrs.asdict(figures, recurse=False).items()
        if value is not None
    }
