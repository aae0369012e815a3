"""A bundle: all experts of a guide in one safetensors file that says what they are for.

The tensors are those of `ExpertSet.state_dict`, "adapter/expert.name". Under the metadata key
`ppap.experts` stands a `BundleInfo` as JSON, and under `ppap.sha256` the file's own digest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import attrs
from torch import Tensor

from ppap_framework.checkpoints import open_checkpoint
from ppap_framework.components import DiffusionBackend, ExpertAdapter, GuidanceModel
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.experts._seal import check_seal, write_sealed
from ppap_framework.experts.info import AdapterConfig, BundleInfo
from ppap_framework.experts.match import WAIVABLE, Present, check_waivers
from ppap_framework.experts.set import ExpertSet
from ppap_framework.registry import registry

__all__ = [
    "SUFFIX",
    "installed_adapter",
    "load_bundle",
    "read_bundle_info",
    "rescale_bundle",
    "save_bundle",
    "verify_bundle",
]

SUFFIX = ".experts.safetensors"
_INFO = "ppap.experts"


def installed_adapter(config: AdapterConfig) -> ExpertAdapter:
    """Make an adapter that a plugin supplies.

    Raises:
        PluginError: Where no plugin does, or it is broken.
        UsageError: For options that it does not take.
    """
    plugins = registry()
    return plugins.make(plugins.spec("adapter", config.name), config.options)


def save_bundle(path: Path, experts: ExpertSet, info: BundleInfo) -> None:
    """Write experts into one file, which is either complete or not there; equal experts and
    descriptions give equal bytes.

    Args:
        path: Ends in ".experts.safetensors"; replaced where it exists.
        experts: To be saved.
        info: What `describe` said of them.

    Raises:
        ValueError: Where the description is of other experts.
        UsageError: For another suffix, which nothing would find.
        AssetError: Where the file cannot be written.
    """
    if not path.name.endswith(SUFFIX) or path.name == SUFFIX:
        raise UsageError(f"a bundle cannot be called {path.name!r}", hint=f"use NAME{SUFFIX}")
    adapters = [adapter.name for adapter in info.adapters]
    if info.boundaries != experts.ranges.boundaries or adapters != list(experts.adapters):
        raise ValueError("the description is of other experts")
    write_sealed(path, experts.state_dict(), {_INFO: info.to_json()})


def read_bundle_info(path: Path) -> BundleInfo:
    """What a bundle says of itself, from its header alone; its digest is not checked.

    Raises:
        AssetError: Where the file is missing, damaged in its header, or no bundle.
    """
    return _info(path, open_checkpoint(path).metadata)


def verify_bundle(path: Path) -> tuple[BundleInfo, Mapping[str, Tensor]]:
    """Read a bundle and check all that can be checked without the guide that it is for.

    Raises:
        AssetError: Where anything is wrong with it.
    """
    checkpoint = open_checkpoint(path)
    check_seal(path)
    info = _info(path, checkpoint.metadata)
    state = checkpoint.state_dict()
    wanted = {(adapter.name, str(i)) for adapter in info.adapters for i in range(len(info))}
    held = {key: _holder(key) for key in state}
    faults = [f"tensor {key!r:.60} is of no expert" for key in state if held[key] not in wanted]
    faults += [
        f"expert {index} has no tensors of {name!r}"
        for name, index in sorted(wanted - set(held.values()))
    ]
    faults += [
        f"tensor {key!r:.60} is not finite"
        for key, tensor in state.items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise AssetError(
            f"{str(path)!r} holds no sound experts: {'; '.join(faults[:3])}{more}",
            hint="train the experts again",
        )
    return info, state


def rescale_bundle(path: Path, scales: Sequence[float] | None) -> None:
    """Give a bundle other guidance scales; it is at any time the old one or the new one.

    Args:
        path: Of the bundle.
        scales: One for each expert; None for none.

    Raises:
        ValueError: Where there are more or fewer, or one is not finite.
        AssetError: Where anything is wrong with the file, or it cannot be written.
    """
    info, state = verify_bundle(path)
    info = attrs.evolve(info, scales=scales)
    write_sealed(path, state, {_INFO: info.to_json()})


def load_bundle(
    path: Path,
    model: GuidanceModel,
    backend: DiffusionBackend | None = None,
    *,
    allow_mismatch: Collection[str] = (),
    make_adapter: Callable[[AdapterConfig], ExpertAdapter] = installed_adapter,
) -> ExpertSet:
    """Attach the experts of a bundle to the guide that they were trained for.

    Args:
        path: Of the bundle.
        model: The guide, without experts.
        backend: That it shall steer; None leaves everything about it uncompared.
        allow_mismatch: Which of `WAIVABLE` may differ.
        make_adapter: Makes the adapters; by default plugins do.

    Returns:
        Experts that own the guide's network until they are detached.

    Raises:
        AssetError: Where anything is wrong with the file, or it does not match what is here: the
            message names each difference.
        UsageError: For a difference that cannot be waived.
        PluginError: Where an adapter's plugin is missing or broken.
        ValueError: Where the guide has experts already.
    """
    check_waivers(allow_mismatch)
    info, state = verify_bundle(path)
    check_match(path, Present(model, backend).differences(info), allow_mismatch)
    adapters = {config.name: make_adapter(config) for config in info.adapters}
    experts = ExpertSet(model, info.ranges, adapters, info.preprocessing)
    try:
        experts.load_state_dict(state)
    except PpapError as error:
        experts.detach()
        raise AssetError(
            f"the tensors of {str(path)!r} do not fit: {error.message}",
            hint=error.hint or "the adapter is of another version, or the file is not sound",
        ) from error
    except BaseException:
        experts.detach()
        raise
    return experts


def check_match(path: Path, differences: Mapping[str, str], allow: Collection[str]) -> None:
    """Accept a bundle that is for what is here.

    Raises:
        AssetError: With each difference that is not waived.
    """
    left = {name: words for name, words in differences.items() if name not in allow}
    if left:
        waivable = not set(left) - set(WAIVABLE)
        raise AssetError(
            f"the experts in {str(path)!r} do not match: "
            + "; ".join(f"{name}: {words}" for name, words in left.items()),
            hint=" ".join(f"--allow-mismatch {name}" for name in left)
            if waivable
            else "train experts for this guide with `ppap adapt`",
        )


def _holder(key: str) -> tuple[str, str]:
    """The adapter and the expert that "adapter/expert.name" is of."""
    adapter, _, rest = key.partition("/")
    return adapter, rest.partition(".")[0]


def _info(path: Path, metadata: Mapping[str, str]) -> BundleInfo:
    if _INFO not in metadata:
        raise AssetError(
            f"{str(path)!r} is no bundle of experts", hint=f"a bundle is called NAME{SUFFIX}"
        )
    try:
        return BundleInfo.from_json(metadata[_INFO])
    except ValueError as error:
        raise AssetError(
            f"what {str(path)!r} says of itself cannot be used: {error}",
            hint="it is damaged, or another version of ppap wrote it",
        ) from error
