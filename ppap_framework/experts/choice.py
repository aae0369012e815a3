"""Bundles on disk, by path or name, and the choice of a guide's experts."""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import attrs

from ppap_framework.checkpoints import fetch
from ppap_framework.components import DiffusionBackend, GuidanceModel
from ppap_framework.diffusion import Process
from ppap_framework.errors import AssetError, PpapError, UsageError, did_you_mean
from ppap_framework.experts.bundle import SUFFIX, load_bundle, read_bundle_info
from ppap_framework.experts.info import BundleInfo, Present, check_waivers
from ppap_framework.experts.levels import NoiseRanges, ScaleCurve
from ppap_framework.experts.set import ExpertSet, has_experts
from ppap_framework.files import cache_dir, expanded, file_sha256, replacing
from ppap_framework.plugin import ExpertBundle
from ppap_framework.registry import registry

_log = logging.getLogger(__name__)


@attrs.frozen
class BundleFile:
    """A bundle on disk by its name in requests, and the distribution, if any, that supplies it."""

    name: str
    path: Path
    distribution: str | None = None

    @cached_property
    def info(self) -> BundleInfo:
        """See `read_bundle_info`."""
        return read_bundle_info(self.path)

    @cached_property
    def sha256(self) -> str:
        return file_sha256(self.path)

    @property
    def ranges(self) -> NoiseRanges:
        return self.info.ranges

    @property
    def calibration(self) -> ScaleCurve | None:
        """The scale curve; None if the experts were not calibrated."""
        return self.info.curve

    def calibrated(self, loss: object) -> bool:
        """Whether the experts were calibrated for a loss."""
        return self.calibration is not None and same_loss(self.calibration.loss, loss)

    @property
    def expert_parameters(self) -> tuple[int, ...]:
        """N numbers of trainable parameters."""
        return self.info.expert_parameters

    def record(self) -> dict[str, Any]:
        """The record of the experts in a run, as JSON."""
        file = {"name": self.name, "path": str(self.path), "sha256": self.sha256}
        return file | self.ranges.record()

    def attached(self, model: GuidanceModel) -> ExpertSet:
        """As `load_bundle`; AssetError, too, if the file has changed since it was hashed."""
        if file_sha256(self.path) != self.sha256:
            message = f"experts {str(self.path)!r} were replaced after they were chosen"
            raise AssetError(message, hint="run again")
        return load_bundle(self.path, model)  # the backend was compared when they were chosen


WantedExperts: TypeAlias = "str | os.PathLike[str] | BundleFile | ExpertSet | None"
"""A request for experts: the name or path of a bundle; "auto" for the best that matches, if any;
"none" or None; a bundle that was chosen before; an attached set."""


def experts_dir() -> Path:
    """Folder of a user's own bundles, searched by name and by `--experts auto`."""
    return cache_dir() / "experts"


def keep_bundle(path: Path) -> Path:
    """Copy a bundle to `experts_dir`, atomically; AssetError if it cannot be written. Another of
    its name that is kept there gets a number, and the log says so.
    """
    kept = experts_dir() / path.name
    with replacing(kept, AssetError) as temporary:
        shutil.copyfile(path, temporary)
        if kept.is_file() and not filecmp.cmp(kept, temporary, shallow=False):
            name = path.name.removesuffix(SUFFIX)
            numbered = (f"{name}-earlier-{n}" for n in itertools.count(1))
            other = next(n for n in numbered if not (kept.parent / f"{n}{SUFFIX}").exists())
            kept.rename(kept.with_name(f"{other}{SUFFIX}"))
            _log.warning("the experts that were kept as %r are now %r", name, other)
    return kept


def find_bundles() -> list[BundleFile]:
    """Every bundle on disk, unopened: the user's own, newest first, then those of distributions."""
    found = _own()
    for asset in registry().bundles():
        try:
            found.append(_installed(asset, offline=True))
        except PpapError as error:  # noqa: PERF203 - one asset must not hide the others
            _log.info("experts %r are not here: %s", asset.name, error)
    return found


def bundle_by_name(source: str | os.PathLike[str], *, offline: bool = False) -> BundleFile:
    """The bundle of a path, or of a name, the user's own before a distribution's; downloaded if
    necessary, unless `offline`. A path object is never a name. AssetError if there is none,
    PluginError if several distributions claim the name.
    """
    path = expanded(source)
    if not isinstance(source, str):
        path = path.absolute()
    if path.name.endswith(SUFFIX) or len(path.parts) > 1:
        return BundleFile(path.name.removesuffix(SUFFIX), path)
    name = str(source)
    own = {bundle.name: bundle for bundle in _own()}
    if name in own:
        return own[name]
    known = [*own, *(asset.name for asset in registry().bundles())]
    if name.rpartition(":")[2] in known:
        return _installed(registry().bundle(name), offline=offline)
    if path.exists():
        return BundleFile(path.name, path)
    others = f"one of {', '.join(known)}" if known else "train some with `ppap adapt`"
    hint = did_you_mean(name, known) or f"give a path, NAME{SUFFIX}, or {others}"
    raise AssetError(f"no experts are called {name!r}", hint=hint)


def _own() -> list[BundleFile]:
    found = experts_dir().glob(f"*{SUFFIX}")  # a dangling link is refused when it is read
    paths = sorted(found, key=lambda path: (-path.lstat().st_mtime_ns, path.name))
    return [BundleFile(path.name.removesuffix(SUFFIX), path) for path in paths]


def _installed(asset: ExpertBundle, *, offline: bool) -> BundleFile:
    path = fetch(asset, offline=offline)
    return BundleFile(asset.name, path, registry().provider(asset).distribution)


def check_wanted(
    wanted: WantedExperts,
    guide_name: str,
    *,
    noise_aware: bool = False,
    through: str | None = "noisy",
    allow_mismatch: Collection[str] = (),
    offline: bool = False,
) -> BundleFile | ExpertSet | Literal["auto"] | None:
    """Check a request for experts without weights; return what would read noise: the named bundle,
    the set, "auto" for one that is still to be chosen, or None.

    AssetError if the bundle is missing, or its header is damaged, and UsageError if the guide reads
    noise itself (`noise_aware`), or experts read other images than it looks `through`, if that is
    not None. `allow_mismatch` are names from `WAIVABLE`; `offline` never downloads.
    """
    check_waivers(allow_mismatch)
    if wanted in (None, "none"):
        return None
    if wanted == "auto":
        return None if noise_aware or through == "clean" else "auto"
    if noise_aware:
        fault = f"guide {guide_name!r} reads noise by itself and takes no experts"
        raise UsageError(fault, hint="leave the experts out")
    if not isinstance(wanted, BundleFile | ExpertSet):
        wanted = bundle_by_name(wanted, offline=offline)
    reads = wanted.info.reads if isinstance(wanted, BundleFile) else "noisy"
    if through not in (None, reads):
        both = " and ".join(dict.fromkeys([reads] if isinstance(reads, str) else reads))
        fault = f"{guide_name!r} looks through {through}, and its experts learned through {both}"
        hint = f"look through {reads}" if both == reads else "do not say what it looks through"
        raise UsageError(fault, hint=f"leave the experts out, or {hint}")
    return wanted


def choose_experts(
    wanted: WantedExperts,
    guide_name: str,
    model: GuidanceModel,
    backend: DiffusionBackend,
    *,
    allow_mismatch: Collection[str] = (),
    options: Mapping[str, Any] | None = None,
    loss: Mapping[str, Any] | None = None,
    **how: Any,
) -> BundleFile | ExpertSet | None:
    """The experts of a guide; other arguments, also `how`, and errors as for `check_wanted`.

    Of the bundles that match, "auto" takes those calibrated for the `loss`, a `Guide.loss_record`;
    of these the lowest `BundleInfo.mean_loss`, and of these the newest. A `BundleFile` was chosen
    before and is returned unchecked. UsageError if other experts are attached to the model,
    AssetError or PluginError if a named bundle differs from model or backend or cannot be attached.
    """
    found = check_wanted(wanted, guide_name, allow_mismatch=allow_mismatch, **how)
    if found is None or (isinstance(found, BundleFile) and found is wanted):
        return found
    if isinstance(found, ExpertSet):
        if found.model is not model or not has_experts(model.network):
            message = f"the experts of guide {guide_name!r} are not attached to its model"
            raise UsageError(message, hint="make the guide of `experts.model`")
        return found
    if has_experts(model.network):
        message = f"the network of guide {guide_name!r} has experts already"
        raise UsageError(message, hint="give the guide these, or detach them")
    present = Present(model, backend, options)
    if isinstance(found, str):  # "auto"
        through = how.get("through", "noisy")
        return _best(present, guide_name, through, allow_mismatch, loss)
    _try(found, present, allow_mismatch)
    return found


def same_experts(one: BundleFile | ExpertSet | None, other: BundleFile | ExpertSet | None) -> bool:
    """Whether both are the same set, the same file, or None."""
    if isinstance(one, BundleFile) and isinstance(other, BundleFile):
        return (one.path, one.sha256) == (other.path, other.sha256)
    return one is other


def warn_of_idle(guide_name: str, ranges: NoiseRanges, process: Process) -> None:
    """Log the experts of a guide that get no step of a process."""
    acting = {ranges.owner(process.level(i, 1).log_snr.item()) for i in range(len(process))}
    idle = ", ".join(
        f"expert {k} ({f'timesteps {own.start} to {own.stop - 1}' if own else 'no timestep'})"
        for k, own in enumerate(ranges.timesteps(process.schedule))
        if k not in acting
    )
    if idle:
        of = "1 step" if len(process) == 1 else f"{len(process)} steps"
        _log.warning("guide %r: of %s none is for %s", guide_name, of, idle)


def same_loss(one: object, other: object) -> bool:
    """Whether two losses, as `Guide.loss_record`, have the same energy; an unknown one has any."""
    known = isinstance(one, Mapping) and isinstance(other, Mapping)
    return not known or _loss(one) == _loss(other)


def _loss(record: Any) -> tuple[str, Any]:
    name, options = str(record.get("name")), record.get("options") or {}
    with contextlib.suppress(PpapError, TypeError):  # a user's own, or of other options
        options = registry().resolved(registry().spec("loss", name), options, compared=True)
    return name.rpartition(":")[2], options


def _best(
    present: Present, name: str, through: str | None, allow_mismatch: Collection[str], loss: object
) -> BundleFile | None:
    matching, other_backends = list[BundleFile](), []  # the latter are logged if nothing matches
    for bundle in find_bundles():
        differences: dict[str, str] = {}
        try:
            if present.is_for(bundle.info) and through in (None, bundle.info.reads):
                differences = present.differences(bundle.info)
                _try(bundle, present, allow_mismatch)
                matching.append(bundle)
        except PpapError as error:
            left = [words for name, words in differences.items() if name not in allow_mismatch]
            reason = "; ".join(left) or error.message.replace(str(bundle.path), bundle.name)
            told = bundle.name, f"{reason} ({error.hint})" if error.hint else reason
            if "latents" in differences:  # never of use here
                _log.info(_PASSED_OVER, *told)
            elif "backend" in differences:
                other_backends.append(told)
            else:
                _log.warning(_PASSED_OVER, *told)
    if not matching:
        for told in other_backends:
            _log.warning(_PASSED_OVER, *told)
        return None
    ranks = [(not bundle.calibrated(loss), bundle.info.mean_loss()) for bundle in matching]
    best = ranks.index(min(ranks))  # the newest of equal rank
    if best > 0:
        lower = ranks[best][0] == ranks[0][0]
        why = "held-out losses are lower" if lower else "they are calibrated"
        _log.warning(_TAKEN, name, matching[best].name, matching[0].name, why)
    return matching[best]


_PASSED_OVER = "experts %r are passed over: %s"
_TAKEN = "guide %r takes experts %r before the newer %r: %s (`--experts NAME` takes others)"


def _try(bundle: BundleFile, present: Present, allow_mismatch: Collection[str]) -> None:
    """Attach experts and detach them; errors as of `load_bundle`."""
    _ = bundle.sha256  # hashed first, so later changes are detected
    load_bundle(bundle.path, present.model, allow_mismatch=allow_mismatch, present=present).detach()
