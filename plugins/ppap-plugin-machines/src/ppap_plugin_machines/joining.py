"""Experts of two bundles of one network become one bundle: those of the one read the less noisy
images, those of the other the noisier ones. What they read may differ: see `Recipe.through`.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from ppap_framework.components import DiffusionBackend
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import BundleInfo, NoiseRanges, verify_bundle, write_bundle
from ppap_framework.files import differences

__all__ = ["join"]

# All else must be equal.
_OWN = ("boundaries", "timesteps", "expert_parameters", "recipe", "seed", "data_sha256", "metrics")


def join(backend: DiffusionBackend, clean: Path, noisy: Path, at: int, out: Path) -> BundleInfo:
    """Write a bundle of the experts of `clean` below base timestep `at` of the backend's schedule,
    and of those of `noisy` from there on. Held-out losses are those of the ranges that the experts
    had; there is no curve.

    AssetError if a bundle is damaged, or they are not of one network, diffusion model and kind;
    UsageError if one of them gets no timestep.
    """
    bundles = [verify_bundle(path) for path in (clean, noisy)]
    low, high = (info for info, _ in bundles)
    left_out = attrs.filters.exclude("curve", *_OWN)
    one, other = (attrs.asdict(info, filter=left_out) for info, _ in bundles)
    if differ := differences(one, other):
        fault = f"{str(clean)!r} and {str(noisy)!r} cannot be joined: {'; '.join(differ[:3])}"
        raise AssetError(fault, hint="join experts of one network, model and kind of adapters")
    if not 0 < at < low.timesteps[-1]:
        hint = f"use a timestep from 1 to {low.timesteps[-1] - 1}"
        raise UsageError(f"two bundles cannot be joined at timestep {at}", hint=hint)
    places = [(0, k) for k in range(len(low)) if low.timesteps[k] < at]
    places += [(1, k) for k in range(len(high)) if high.timesteps[k + 1] > at]
    kept = [(bundles[of][0], k) for of, k in places]
    starts = [max(at * of, bundles[of][0].timesteps[k]) for of, k in places]
    state = {
        f"{name.partition('/')[0]}/{place}.{name.partition('.')[2]}": tensor
        for place, (of, k) in enumerate(places)
        for name, tensor in bundles[of][1].items()
        if name.partition("/")[2].startswith(f"{k}.")
    }
    reads = [info.reads if isinstance(info.reads, str) else info.reads[k] for info, k in kept]
    scores = [info.metrics["experts"][k] for info, k in kept if "experts" in info.metrics]
    same_data = low.data_sha256 == high.data_sha256
    joined = attrs.evolve(
        low,
        boundaries=NoiseRanges.from_timesteps(backend.stages[0].schedule, starts[1:]).boundaries,
        timesteps=[*starts, low.timesteps[-1]],
        expert_parameters=[info.expert_parameters[k] for info, k in kept],
        recipe={
            "through": reads[0] if len({*reads}) == 1 else reads,
            "joined": [dict(low.recipe), dict(high.recipe)],
        },
        data_sha256=low.data_sha256 if same_data else None,
        metrics={"experts": scores},
        curve=None,
    )
    write_bundle(out, state, joined)
    verify_bundle(out)
    return joined
