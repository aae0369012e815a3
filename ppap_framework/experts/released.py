"""Making a bundle of released experts.

A whole network becomes an expert of the adapter `full`; low-rank changes become one of `lora`, in
the variant that the released code has, and biases, norms and running statistics one of `bias`. What
none of these holds was frozen, and has to be what the guide has. So every tensor of a file is
either kept or compared.

Expert i of N was trained at timesteps i T / N <= t < (i + 1) T / N. In sampling, the published code
gives a boundary to the expert below it, i T / N < t <= (i + 1) T / N, and that is what a bundle
says: with every fortieth timestep of 1000, four of the steps lie on a boundary of five experts.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppap_framework.checkpoints import misfits
from ppap_framework.components import GuidanceModel
from ppap_framework.errors import AssetError, PluginError, UsageError
from ppap_framework.experts.bundle import installed_adapter, save_bundle
from ppap_framework.experts.info import AdapterConfig, BundleInfo, Identity, describe
from ppap_framework.experts.ranges import NoiseRanges
from ppap_framework.experts.released_file import (
    Method,
    ReleasedFile,
    in_order,
    method_of,
    read_released,
)
from ppap_framework.experts.set import ExpertSet
from ppap_framework.noise import NoiseSchedule, noise_schedule
from ppap_framework.plugin import ReleasedExperts
from ppap_framework.preprocessing import Preprocessing
from ppap_framework.registry import Registry, registry

__all__ = ["import_released", "released_experts"]

_TIMESTEPS = 1000


def released_experts(architecture: str, plugins: Registry | None = None) -> ReleasedExperts:
    """How the released experts of an architecture are to be read.

    Args:
        architecture: Its name.
        plugins: That may say so; None for those that are installed.

    Raises:
        UsageError: Where no plugin does, or it says that they cannot be.
        PluginError: Where several do.
    """
    records = (registry() if plugins is None else plugins).records
    known = [
        (record.name, asset)
        for record in records
        for asset in record.assets
        if isinstance(asset, ReleasedExperts)
    ]
    found = [(plugin, asset) for plugin, asset in known if asset.name == architecture]
    usable = ", ".join(dict.fromkeys(asset.name for _, asset in known if not asset.refusal))
    if not found:
        near = difflib.get_close_matches(architecture, [asset.name for _, asset in known], n=1)
        raise UsageError(
            f"no plugin knows released experts of an architecture {architecture!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"there is {usable or 'none'}",
        )
    if len(found) > 1:
        raise PluginError(
            f"released experts of {architecture!r} are claimed by "
            + " and ".join(plugin for plugin, _ in found),
            hint="PPAP_DISABLE_PLUGINS=NAME leaves one out",
        )
    ((_, asset),) = found
    if asset.refusal:
        raise UsageError(
            f"released experts of {architecture!r} cannot be imported: {asset.refusal}",
            hint=f"those of {usable} can" if usable else "",
        )
    return asset


def import_released(
    paths: Sequence[Path],
    model: GuidanceModel,
    experts: ReleasedExperts,
    out: Path,
    *,
    guide: Identity,
    method: Method | None = None,
) -> BundleInfo:
    """Write released experts into a bundle.

    Args:
        paths: A file for each expert, in order of noise where their names do not say it.
        model: The guide that they were made of, without experts.
        experts: How the files are to be read.
        out: The bundle, as `save_bundle` takes it.
        guide: Of the model.
        method: What the files are; None for what their names say, or else their tensors.

    Raises:
        UsageError: Where files are missing or there are too many.
        AssetError: Where one is missing, damaged, of another architecture, of other weights, or not
            what it is said to be. Nothing is written then.
    """
    own = model.network.state_dict()
    files = [read_released(path, own) for path in in_order(paths)]
    method = method_of(files, method)
    configs = _adapters(files[0], model.network, experts)
    fed = experts.preprocessing
    if not files[0].low_rank:
        fed = experts.network_preprocessing or fed
    schedule = noise_schedule(experts.schedule, _TIMESTEPS)
    held = ExpertSet(
        model,
        _ranges(schedule, len(files)),
        {config.name: installed_adapter(config) for config in configs},
        Preprocessing(**fed),
    )
    try:
        held.load_state_dict(_state(files, held.state_dict(), own))
        info = describe(
            held,
            schedule,
            (experts.resolution, experts.resolution),
            guide=guide,
            backend=Identity(component=experts.backend, checkpoint=None, sha256=None),
            adapters=configs,
            recipe={
                "released": experts.name,
                "method": method,
                "files": [f"{file.path.name} {file.sha256}" for file in files],
            },
            seed=0,
        )
        save_bundle(out, held, info)
    finally:
        held.detach()
    return info


def _ranges(schedule: NoiseSchedule, number: int) -> NoiseRanges:
    ends = [i * schedule.num_timesteps // number for i in range(1, number)]
    return NoiseRanges.from_timesteps(schedule, [end + 1 for end in ends])


def _adapters(
    file: ReleasedFile, network: nn.Module, experts: ReleasedExperts
) -> list[AdapterConfig]:
    if not file.low_rank:
        return [AdapterConfig(name="full", options={})]
    rank = _rank(file, dict(network.named_parameters()))
    options: dict[str, Any] = {
        "rank": rank,
        "alpha": float(rank) if experts.alpha is None else experts.alpha,
        "targets": experts.targets,
        "variant": "reshaped",
    }
    return [AdapterConfig(name="lora", options=options), AdapterConfig(name="bias", options={})]


def _rank(file: ReleasedFile, parameters: Mapping[str, Tensor]) -> int:
    """r of the first change: A has r rows, or r k for a kernel of k x k."""
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
    """What experts hold, from the files.

    Args:
        files: Of the experts.
        held: What they hold before, which says under which names and in which shapes.
        own: The tensors of the network.
    """
    state: dict[str, Tensor] = {}
    for index, file in enumerate(files):
        sources = {key: _source(key) for key in held if _expert(key) == index}
        wanted = {**own, **{source: held[key] for key, source in sources.items()}}
        _check(file, wanted, frozen=own.keys() - set(sources.values()))
        state |= {key: file.state[source] for key, source in sources.items()}
    return state


def _expert(key: str) -> int:
    """Of "adapter/expert.name"."""
    return int(key.partition("/")[2].partition(".")[0])


def _source(key: str) -> str:
    """The tensor of a file that an expert's is. A parameter of an expert's own is the `value` that
    stands for the network's.
    """
    return key.partition("/")[2].partition(".")[2].removesuffix(".value")


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
            hint="name the network that it was made of with --guider-model, or its weights with "
            "--guider-checkpoint",
        )
