"""A bundle: all experts of a guide in one safetensors file, with their description.

The tensors are those of `ExpertSet.state_dict`. The metadata key `ppap.experts` holds a
`BundleInfo` as JSON. The key `ppap.sha256` holds the SHA-256 of the whole file with these 64 digits
replaced by zeros: it detects damage, but does not prove who wrote the file.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

import attrs
from torch import Tensor

from ppap_framework.checkpoints import open_checkpoint, write_safetensors
from ppap_framework.components import DiffusionBackend, ExpertAdapter, GuidanceModel
from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError
from ppap_framework.experts.info import AdapterConfig, BundleInfo, Present, check_waivers
from ppap_framework.experts.levels import ScaleCurve
from ppap_framework.experts.set import ExpertSet
from ppap_framework.files import replacing
from ppap_framework.registry import registry

SUFFIX = ".experts.safetensors"
_INFO, _SEAL = "ppap.experts", "ppap.sha256"
_SEAL_ENTRY = b'"' + _SEAL.encode() + b'":"'  # unique: JSON escapes a quote within a string
_ZEROS = "0" * 64


def installed_adapter(config: AdapterConfig) -> ExpertAdapter:
    """The adapter of an installed plugin; see `Registry.make`."""
    made: ExpertAdapter = registry().make(registry().spec("adapter", config.name), config.options)
    return made


def save_bundle(path: Path, experts: ExpertSet, info: BundleInfo) -> None:
    """Write or replace a bundle, NAME.experts.safetensors, atomically and reproducibly. UsageError
    for another suffix, ValueError for other experts' description, AssetError if writing fails.
    """
    if not path.name.endswith(SUFFIX) or path.name == SUFFIX:
        raise UsageError(f"a bundle cannot be called {path.name!r}", hint=f"use NAME{SUFFIX}")
    adapters = [adapter.name for adapter in info.adapters]
    if info.boundaries != experts.ranges.boundaries or adapters != list(experts.adapters):
        raise ValueError("the description is of other experts")
    write_bundle(path, experts.state_dict(), info)


def write_curve(path: Path, curve: ScaleCurve) -> None:
    """Give a bundle another scale curve; errors as `verify_bundle` and `save_bundle`."""
    info, state = verify_bundle(path)
    write_bundle(path, state, attrs.evolve(info, curve=curve))


def write_bundle(path: Path, state: Mapping[str, Tensor], info: BundleInfo) -> None:
    """Write or replace a bundle of tensors by their names; AssetError if that fails."""
    with replacing(path, AssetError) as draft:
        write_safetensors(draft, state, {_INFO: info.to_json(), _SEAL: _ZEROS})
        content = draft.read_bytes()
        with draft.open("r+b") as file:
            file.seek(content.index(_SEAL_ENTRY) + len(_SEAL_ENTRY))
            file.write(hashlib.sha256(content).hexdigest().encode())


def read_bundle_info(path: Path) -> BundleInfo:
    """The description in a bundle's header, AssetError if it has none; no hash is checked."""
    metadata = open_checkpoint(path).metadata
    if _INFO not in metadata:
        message = f"{str(path)!r} is no bundle of experts"
        raise AssetError(message, hint=f"a bundle is called NAME{SUFFIX}")
    try:
        return BundleInfo.from_json(metadata[_INFO])
    except ValueError as error:
        message = f"the description in {str(path)!r} cannot be used: {error}"
        hint = "it is damaged, or another version of ppap wrote it"
        raise AssetError(message, hint=hint) from error


def verify_bundle(path: Path) -> tuple[BundleInfo, Mapping[str, Tensor]]:
    """Read a bundle and check all of it without its guide; AssetError if anything is wrong."""
    checkpoint = open_checkpoint(path)
    _check_seal(path)
    info, state = read_bundle_info(path), checkpoint.state_dict()
    missing = {f"{config.name}/{i}" for config in info.adapters for i in range(len(info))}
    wanted, faults = frozenset(missing), []
    for key, tensor in state.items():
        adapter, _, rest = key.partition("/")
        owner = f"{adapter}/{rest.partition('.')[0]}"
        if owner not in wanted:
            faults.append(f"tensor {key!r:.60} is of no expert")
        elif tensor.is_floating_point() and not tensor.isfinite().all():
            faults.append(f"tensor {key!r:.60} is not finite")
        missing.discard(owner)
    for name, _, index in sorted(owner.rpartition("/") for owner in missing):
        faults.append(f"expert {index} has no tensors of {name!r}")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        message = f"{str(path)!r} holds no sound experts: {'; '.join(faults[:3])}{more}"
        raise AssetError(message, hint="train the experts again")
    return info, state


def _check_seal(path: Path) -> None:
    before, entry, rest = path.read_bytes().partition(_SEAL_ENTRY)
    if not entry:
        message = f"{str(path)!r} carries no SHA-256 of itself"
        raise AssetError(message, hint="it is no bundle of experts")
    stated, rest = rest[: len(_ZEROS)], rest[len(_ZEROS) :]
    if hashlib.sha256(before + entry + _ZEROS.encode() + rest).hexdigest().encode() != stated:
        message = f"{str(path)!r} was damaged or changed after it was written: its SHA-256 differs"
        raise AssetError(message, hint="fetch it or train the experts again")


def load_bundle(
    path: Path,
    model: GuidanceModel,
    backend: DiffusionBackend | None = None,
    *,
    present: Present | None = None,
    allow_mismatch: Collection[str] = (),
) -> ExpertSet:
    """Attach the experts of a bundle to their guide.

    AssetError if anything is wrong with the file, or with all differences from guide and backend;
    PluginError if the plugin of an adapter is missing or broken.

    Args:
        path: The bundle.
        model: The guide; ValueError if it has experts already.
        backend: The diffusion model that it steers; None to skip its comparison.
        present: What is compared instead, with options.
        allow_mismatch: Names from `WAIVABLE` that may differ.
    """
    check_waivers(allow_mismatch)
    info, state = verify_bundle(path)
    (present or Present(model, backend)).check(path, info, allow_mismatch)
    with contextlib.ExitStack() as undo:
        try:
            adapters = {config.name: installed_adapter(config) for config in info.adapters}
            experts = ExpertSet(model, info.ranges, adapters, info.preprocessing)
            undo.callback(experts.detach)
            experts.load_state_dict(state)
        except PpapError as error:
            kind = PluginError if isinstance(error, PluginError) else AssetError
            fault = f"the experts in {str(path)!r} cannot be attached: {error.message}"
            hint = error.hint or "the adapter is of another version, or the file is not sound"
            raise kind(fault, hint=hint) from error
        undo.pop_all()
    return experts
