"""What a diagnosis found, as a record and as files.

diagnose.json has every number and what it was measured with; diagnose.svg and diagnose.png show
the same as curves, if matplotlib is installed.
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

RECORD = "diagnose.json"


@final
@attrs.frozen(kw_only=True)
class Reading:
    """What a network reads at one noise level: means over images, each with an interval.

    Attributes:
        disagreement: The loss's `transfer` between the answer here and the clean one.
        agreement: Share of images whose likeliest class is that without noise; None for networks
            that do not classify.
        confidence: Largest softmax; likewise.
        gradient_norm: |dE/dx_t|, the square root of the sum of squares over the image.
        cosine: Between dE/dx_t and the untouched network's dE/dx_0.
        not_finite: Number of images whose gradient is not finite, left out of both.
        compared: Number of images that `cosine` is a mean over: both gradients have a direction.
    """

    disagreement: Interval
    agreement: Interval | None
    confidence: Interval | None
    gradient_norm: Interval
    cosine: Interval
    not_finite: int
    compared: int

    def record(self) -> dict[str, Any]:
        """JSON, without what is None."""
        return {
            name: value.record() if isinstance(value, Interval) else value
            for name, value in attrs.asdict(self, recurse=False).items()
            if value is not None
        }


@final
@attrs.frozen(kw_only=True)
class Diagnosis:
    """What a network, and its experts if it has some, read at L noise levels.

    Attributes:
        images: Number of images.
        seed: Seed of the noise.
        schedule: Name of the first stage's schedule.
        schedule_length: T, its number of timesteps.
        timesteps: The L base timesteps, rising.
        log_snr: Noise levels of these.
        clean_confidence: Largest softmax of the last stage's images without noise, by the untouched
            network; None for networks that do not classify.
        clean_gradient_norm: |dE/dx_0|, at the first stage's images.
        untouched: Readings of the untouched network.
        experts: Readings of the experts, each in its own range; None without experts.
        starts: Base timesteps at which all experts but the first begin; likewise.
        proposal: Base timesteps at which new experts could begin, see `propose_boundaries`. If it
            is empty, one expert would do.
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
        """JSON; null for what is not finite."""
        clean = {"gradient_norm": self.clean_gradient_norm.record()}
        if self.clean_confidence is not None:
            clean = {"confidence": self.clean_confidence.record(), **clean}
        levels = []
        for k, (t, log_snr) in enumerate(zip(self.timesteps, self.log_snr, strict=True)):
            level: dict[str, Any] = {"timestep": t, "log_snr": rounded(log_snr)}
            level["untouched"] = self.untouched[k].record()
            if self.experts is not None and self.starts is not None:
                owner = sum(start <= t for start in self.starts)
                level["experts"] = {"expert": owner, **self.experts[k].record()}
            levels.append(level)
        return {
            "format": 1,
            "images": self.images,
            "seed": self.seed,
            "schedule": {"name": self.schedule, "timesteps": self.schedule_length},
            "experts_begin": None if self.starts is None else list(self.starts),
            "proposal": {"experts": len(self.proposal) + 1, "boundaries": list(self.proposal)},
            "clean": clean,
            "levels": levels,
        }

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> list[Path]:
        """Write the files.

        Args:
            folder: Created if it is missing.
            about: Further entries of the JSON file, such as which networks were measured.

        Returns:
            Paths of the files; the last is diagnose.png, if matplotlib is installed.

        Raises:
            PpapError: If the system refuses.
        """
        paths = [folder / RECORD]
        write_json(paths[0], {**self.record(), **(about or {})})
        if importlib.util.find_spec("matplotlib"):
            for kind in ("svg", "png"):
                paths.append(folder / f"diagnose.{kind}")
                with replacing(paths[-1]) as temporary:
                    diagnosis_plot(self, temporary, kind)
        return paths
