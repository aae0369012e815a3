"""The results of a diagnosis, what is behind them, and their files.

diagnose.json holds every number; diagnose.svg and diagnose.png show curves, if a distribution that
draws them is installed.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import torch

from ppap_framework.diagnosis.intervals import Interval, as_json, rounded
from ppap_framework.figures import draw_figures
from ppap_framework.files import write_json
from ppap_framework.origin import Origin

RECORD = "diagnose.json"
_LIBRARIES = ("ppap-framework", "torch", "numpy", "torch-fidelity")


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
            "clean": {name: as_json(figure) for name, figure in clean.items() if figure},
            "levels": levels,
        }

    def save(self, folder: Path, about: Mapping[str, Any] | None = None) -> list[Path]:
        """Write the files, with further entries `about` of the JSON file; return their paths. The
        folder is created if it is missing; PpapError if a file cannot be written.
        """
        paths = [folder / RECORD]
        write_json(paths[0], {**self.record(), **(about or {})})
        return paths + draw_figures("diagnosis", self, folder / "diagnose")


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
