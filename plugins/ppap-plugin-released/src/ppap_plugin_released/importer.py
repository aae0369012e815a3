"""Imports released experts into a bundle.

A whole network becomes an expert of the adapter `full`. Low-rank changes become an expert of `lora`
in the variant of the published code; biases, norms and running statistics one of `bias`. All other
tensors were frozen and must equal the guide's.

Expert i of N was trained at timesteps i T / N <= t < (i + 1) T / N. In sampling, the published code
assigns a boundary to the expert below it, i T / N < t <= (i + 1) T / N, and bundles do the same.
With every fortieth timestep of 1000, four steps lie on a boundary of five experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ppap_framework.checkpoints import misfits
from ppap_framework.components import GuidanceModel
from ppap_framework.errors import AssetError
from ppap_framework.experts import (
    AdapterConfig,
    BundleInfo,
    ExpertSet,
    Identity,
    NoiseRanges,
    describe,
    installed_adapter,
    save_bundle,
)
from ppap_framework.noise import noise_schedule
from ppap_plugin_released.architectures import Architecture
from ppap_plugin_released.files import Method, ReleasedFile, in_order, method_of, read_file

__all__ = ["import_experts"]

_TIMESTEPS = 1000


def import_experts(
    paths: Sequence[Path],
    model: GuidanceModel,
    architecture: Architecture,
    out: Path,
    *,
    guide: Identity,
    method: Method | None = None,
) -> BundleInfo:
    """Write released experts into a bundle.

    Args:
        paths: One file for each expert, in order of noise if their names have no numbers.
        model: Guide that the experts were trained from, without experts.
        architecture: Architecture of the experts.
        out: Path of the bundle; see `save_bundle`.
        guide: Identity of the model.
        method: Training method of the files; None to infer it from names or tensors.

    Raises:
        UsageError: If files are missing or there are too many.
        AssetError: If a file is missing, damaged, of another architecture or other weights, or
            contradicts the method; nothing is written.
    """
    own = model.network.state_dict()
    files = [read_file(path, own) for path in in_order(paths)]
    method = method_of(files, method)
    configs = _adapters(files[0], model.network, architecture)
    schedule = noise_schedule(architecture.schedule, _TIMESTEPS)
    starts = [i * _TIMESTEPS // len(files) + 1 for i in range(1, len(files))]
    experts = ExpertSet(
        model,
        NoiseRanges.from_timesteps(schedule, starts),
        {config.name: installed_adapter(config) for config in configs},
        architecture.preprocessing
        if files[0].low_rank or architecture.network_preprocessing is None
        else architecture.network_preprocessing,
    )
    try:
        experts.load_state_dict(_state(files, experts.state_dict(), own))
        info = describe(
            experts,
            schedule,
            (architecture.side, architecture.side),
            guide=guide,
            backend=Identity(component=architecture.backend, checkpoint=None, sha256=None),
            adapters=configs,
            recipe={
                "released": architecture.name,
                "method": method,
                "files": [f"{file.path.name} {file.sha256}" for file in files],
            },
            seed=0,
        )
        save_bundle(out, experts, info)
    finally:
        experts.detach()
    return info


def _adapters(
    file: ReleasedFile, network: nn.Module, architecture: Architecture
) -> list[AdapterConfig]:
    if not file.low_rank:
        return [AdapterConfig(name="full", options={})]
    rank = _rank(file, dict(network.named_parameters()))
    lora = {
        "rank": rank,
        "alpha": float(rank) if architecture.alpha is None else architecture.alpha,
        "targets": architecture.targets,
        "variant": "reshaped",
    }
    return [AdapterConfig(name="lora", options=lora), AdapterConfig(name="bias", options={})]


def _rank(file: ReleasedFile, parameters: Mapping[str, Tensor]) -> int:
    """Rank r of the first change: A has r rows, or r k for a kernel of k x k."""
    for name, tensor in file.state.items():
        weight = parameters.get(name.removesuffix(".lora_A"))
        if name.endswith(".lora_A") and weight is not None and tensor.ndim == 2:
            rank, rest = divmod(len(tensor), min(weight.shape[2:], default=1))
            if rank and not rest:
                return rank
            raise AssetError(
                f"{str(file.path)!r} holds a {name!r} of {len(tensor)} rows, which is of no rank",
                hint="fetch it again",
            )
    raise AssetError(
        f"{str(file.path)!r} holds low-rank changes of no layer of the network",
        hint="it is of another architecture",
    )


def _state(
    files: Sequence[ReleasedFile], held: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state of the experts, from the files.

    Args:
        files: One file for each expert.
        held: State of new experts, for names and shapes.
        own: Tensors of the network.
    """
    state: dict[str, Tensor] = {}
    for index, file in enumerate(files):
        sources = {}  # keys "adapter/expert.name" of this expert, and their names in the file
        for key in held:
            expert, _, name = key.partition("/")[2].partition(".")
            if int(expert) == index:  # a parameter that replaces the network's is its `value`
                sources[key] = name.removesuffix(".value")
        wanted = {**own, **{source: held[key] for key, source in sources.items()}}
        _check(file, wanted, frozen=own.keys() - set(sources.values()))
        state |= {key: file.state[source] for key, source in sources.items()}
    return state


def _check(file: ReleasedFile, wanted: Mapping[str, Tensor], frozen: set[str]) -> None:
    if faults := misfits(file.state, wanted):
        raise AssetError(
            f"{str(file.path)!r} does not fit: {faults}",
            hint="it is damaged, of another architecture, or the first file has another rank",
        )
    for name, tensor in file.state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise AssetError(
                f"tensor {name!r} of {str(file.path)!r} is not finite", hint="fetch it again"
            )
    others = [
        name
        for name in sorted(frozen)
        if not torch.equal(file.state[name].to(wanted[name]), wanted[name])
    ]
    if others:
        raise AssetError(
            f"{str(file.path)!r} was made of other weights: {len(others)} of {len(frozen)} frozen "
            f"tensors are not the guide's, such as {others[0]!r}",
            hint="name its network with --guider-model, or its weights with --guider-checkpoint",
        )
