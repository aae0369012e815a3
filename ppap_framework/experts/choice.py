"""Choice of a guide's experts: those of a bundle, a set of the user's own, or none."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from typing import TypeAlias

from ppap_framework.components import DiffusionBackend, GuidanceModel
from ppap_framework.diffusion import Process
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts.bundle import verify_bundle
from ppap_framework.experts.discovery import BundleFile, bundle_by_name, find_bundles
from ppap_framework.experts.match import Present, check_match, check_waivers
from ppap_framework.experts.ranges import NoiseRanges
from ppap_framework.experts.set import ExpertSet, has_experts

_log = logging.getLogger(__name__)

WantedExperts: TypeAlias = "str | os.PathLike[str] | BundleFile | ExpertSet | None"
"""A request for experts: the name or path of a bundle; "auto" for the newest that matches, if any;
"none" or None; a bundle that was chosen before; an attached set."""


def uses_experts(wanted: WantedExperts, *, noise_aware: bool, through: str) -> bool:
    """Whether experts are wanted and would read noise; arguments as for `choose_experts`."""
    return wanted not in (None, "none") and not noise_aware and through == "noisy"


def check_wanted(
    wanted: WantedExperts,
    guide_name: str,
    *,
    noise_aware: bool = False,
    through: str = "noisy",
    allow_mismatch: Collection[str] = (),
    offline: bool = False,
) -> BundleFile | None:
    """Check the arguments of `choose_experts` without weights; return the named bundle, if any.

    Raises:
        UsageError: If the guide takes no experts, or a difference cannot be waived.
        AssetError: If the bundle is missing, or its header is damaged.
    """
    check_waivers(allow_mismatch)
    if wanted in (None, "none", "auto"):
        return None
    if noise_aware:
        raise UsageError(
            f"guide {guide_name!r} reads noise by itself and takes no experts",
            hint="leave the experts out",
        )
    if through == "clean":
        raise UsageError(
            f"guide {guide_name!r} looks through clean, where experts have no noise to read",
            hint="look through noisy, or leave the experts out",
        )
    if isinstance(wanted, ExpertSet):
        return None
    bundle = wanted if isinstance(wanted, BundleFile) else bundle_by_name(wanted, offline=offline)
    _ = bundle.info  # raises if the header is unreadable
    return bundle


def choose_experts(
    wanted: WantedExperts,
    guide_name: str,
    model: GuidanceModel,
    backend: DiffusionBackend,
    *,
    noise_aware: bool = False,
    through: str = "noisy",
    allow_mismatch: Collection[str] = (),
    offline: bool = False,
) -> BundleFile | ExpertSet | None:
    """The experts of a guide.

    Args:
        wanted: The request. A `BundleFile` is returned unchecked, since it was chosen before.
        guide_name: The guide's name, for messages.
        model: The guide, without experts other than those of `wanted`.
        backend: The diffusion model that it steers.
        noise_aware: Whether the guide reads noise without experts.
        through: "noisy" or "clean", the images that guides read.
        allow_mismatch: Names from `WAIVABLE` that may differ.
        offline: Whether to raise instead of downloading a bundle.

    Raises:
        UsageError: As `check_wanted`, and if other experts are attached to the model.
        AssetError: As `check_wanted`, and if the bundle is damaged or does not match.
        PluginError: If several distributions claim its name.
    """
    named = check_wanted(
        wanted,
        guide_name,
        noise_aware=noise_aware,
        through=through,
        allow_mismatch=allow_mismatch,
        offline=offline,
    )
    if isinstance(wanted, BundleFile) or not uses_experts(
        wanted, noise_aware=noise_aware, through=through
    ):
        return named
    if isinstance(wanted, ExpertSet):
        if wanted.model is not model or not has_experts(model.network):
            raise UsageError(
                f"the experts of guide {guide_name!r} are not attached to its model",
                hint="make the guide of `experts.model`",
            )
        return wanted
    if has_experts(model.network):
        raise UsageError(
            f"the network of guide {guide_name!r} has experts already",
            hint="give the guide these, or detach them",
        )
    present = Present(model, backend)
    if named is None:
        return _newest(present, allow_mismatch)
    _verify(named)
    check_match(named.path, present.differences(named.info), allow_mismatch)
    return named


def same_experts(one: BundleFile | ExpertSet | None, other: BundleFile | ExpertSet | None) -> bool:
    """Whether both are the same set, the same file, or None."""
    if isinstance(one, BundleFile) and isinstance(other, BundleFile):
        return (one.path, one.sha256) == (other.path, other.sha256)
    return one is other


def warn_of_idle(guide_name: str, ranges: NoiseRanges, process: Process) -> None:
    """Log the experts of a guide that get no step of a process."""
    idle = ", ".join(
        f"expert {k} ({f'timesteps {own.start} to {own.stop - 1}' if own else 'no timestep'})"
        for k, own in enumerate(ranges.timesteps(process.schedule))
        if not any(t in own for t in process.timesteps)
    )
    if idle:
        of = "1 step" if len(process) == 1 else f"{len(process)} steps"
        _log.warning("guide %r: of %s none is for %s", guide_name, of, idle)


def _newest(present: Present, allow_mismatch: Collection[str]) -> BundleFile | None:
    other_backends = []  # logged only if nothing matches
    for bundle in find_bundles():
        differences: Mapping[str, str] = {}
        try:
            if not present.is_for(bundle.info):
                continue
            differences = present.differences(bundle.info)
            check_match(bundle.path, differences, allow_mismatch)
            _verify(bundle)
        except AssetError as error:
            left = [words for name, words in differences.items() if name not in allow_mismatch]
            reason = "; ".join(left) or error.message.replace(str(bundle.path), bundle.name)
            reason += f" ({error.hint})" if error.hint else ""
            if "backend" in differences:
                other_backends.append((bundle.name, reason))
            else:
                _log.warning(_PASSED_OVER, bundle.name, reason)
        else:
            return bundle
    for told in other_backends:
        _log.warning(_PASSED_OVER, *told)
    return None


_PASSED_OVER = "experts %r are passed over: %s"


def _verify(bundle: BundleFile) -> None:
    _ = bundle.sha256  # hashed first, so later changes are detected
    verify_bundle(bundle.path)
