"""Experts for the toy plugin's guide of colours, as training would leave them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import ppap_framework as ppap
from ppap_framework.components import DiffusionBackend
from ppap_framework.experts import (
    SUFFIX,
    AdapterConfig,
    ExpertSet,
    Identity,
    NoiseRanges,
    backend_sha256,
    describe,
    guide_sha256,
    installed_adapter,
    save_bundle,
)

ADAPTER = AdapterConfig(name="toy-shift", options={})


def shifts(number: int, seed: int) -> torch.Tensor:
    """What each expert adds to the guide's weight: (N, 4, 3)."""
    return torch.randn(number, 4, 3, generator=torch.Generator().manual_seed(seed))


def write_experts(
    folder: Path,
    name: str = "mine",
    *,
    number: int = 3,
    seed: int = 0,
    scales: Sequence[float] | None = None,
    sharpness: float = 10.0,
    backend: DiffusionBackend | None = None,
) -> Path:
    """A bundle of experts that differ much; its path."""
    options = {"sharpness": sharpness}
    model = ppap.guide("colour", target="green", options=options, experts="none").model
    backend = backend or ppap.backend("toy").inner
    guide = Identity(component="colour", checkpoint="colour-3", sha256=guide_sha256(model))
    drawn_by = Identity(component="toy", checkpoint="toy-8", sha256=backend_sha256(backend))
    stage = backend.stages[0]
    ranges = NoiseRanges.equal(stage.schedule, number)
    experts = ExpertSet(model, ranges, {ADAPTER.name: installed_adapter(ADAPTER)})
    with torch.no_grad():
        for index, shift in enumerate(shifts(number, seed)):
            (parameter,) = experts.parameters(index)
            parameter.copy_(shift)
    said: Any = {"adapters": [ADAPTER], "recipe": {}, "seed": seed, "scales": scales}
    size = stage.image_shape[1:]
    info = describe(experts, stage.schedule, size, guide=guide, backend=drawn_by, **said)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{SUFFIX}"
    save_bundle(path, experts, info)
    experts.detach()
    return path
