"""Bundles on disk, by path or name."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from ppap_framework.checkpoints import fetch
from ppap_framework.components import GuidanceModel
from ppap_framework.errors import AssetError
from ppap_framework.experts.bundle import SUFFIX, load_bundle, read_bundle_info
from ppap_framework.experts.info import BundleInfo
from ppap_framework.experts.ranges import NoiseRanges
from ppap_framework.experts.scales import RangeScales, ScaleCurve
from ppap_framework.experts.set import ExpertSet
from ppap_framework.files import cache_dir, file_sha256, replacing
from ppap_framework.plugin import ExpertBundle
from ppap_framework.registry import registry

_log = logging.getLogger(__name__)


@attrs.frozen
class BundleFile:
    """A bundle on disk. Its description and hash are read once.

    Attributes:
        name: Its name in requests.
        path: The file.
        distribution: The distribution that supplies it; None for a user's own.
    """

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
    def calibration(self) -> ScaleCurve | RangeScales | None:
        """Calibrated guidance scales; None if the experts were not calibrated."""
        info = self.info
        if info.curve is None and info.scales is not None:
            return RangeScales(info.ranges, info.scales)
        return info.curve

    @property
    def expert_parameters(self) -> tuple[int, ...]:
        """N numbers of trainable parameters."""
        return self.info.expert_parameters

    def record(self) -> dict[str, Any]:
        """The record of the experts in a run, as JSON."""
        return {
            "name": self.name,
            "path": str(self.path),
            "sha256": self.sha256,
            "num_experts": len(self.ranges),
            "boundaries": list(self.ranges.boundaries),
            "scales": None if self.info.scales is None else list(self.info.scales),
        }

    @contextlib.contextmanager
    def attached(self, model: GuidanceModel) -> Iterator[ExpertSet]:
        """A context in which the experts are attached to their guide; see `load_bundle`.

        Raises:
            AssetError: If the file has changed since it was hashed.
        """
        if file_sha256(self.path) != self.sha256:
            raise AssetError(
                f"experts {str(self.path)!r} were replaced after they were chosen", hint="run again"
            )
        experts = load_bundle(self.path, model)  # the backend was compared when they were chosen
        try:
            yield experts
        finally:
            experts.detach()


def experts_dir() -> Path:
    """Folder of a user's own bundles, searched by name and by `--experts auto`."""
    return cache_dir() / "experts"


def keep_bundle(path: Path) -> Path:
    """Copy a bundle to `experts_dir`, atomically; AssetError if it cannot be written."""
    kept = experts_dir() / path.name
    with replacing(kept, AssetError) as temporary:
        shutil.copyfile(path, temporary)
    return kept


def find_bundles() -> list[BundleFile]:
    """Every bundle on disk, unopened: the user's own, newest first, then those of distributions."""
    found = _own()
    for asset in registry().bundles():
        try:
            found.append(_installed(asset, offline=True))
        except AssetError as error:  # noqa: PERF203 - one asset must not hide the others
            _log.info("experts %r are not here: %s", asset.name, error)
    return found


def bundle_by_name(source: str | os.PathLike[str], *, offline: bool = False) -> BundleFile:
    """The bundle of a name or path, downloaded if necessary.

    Args:
        source: A path, or the name of a bundle of the user's own or of a distribution. A path
            object is never a name.
        offline: Whether to raise instead of downloading.

    Raises:
        AssetError: If there is none.
        PluginError: If several distributions claim the name.
    """
    path = Path(source).expanduser()
    if not isinstance(source, str):
        path = path.absolute()
    if path.name.endswith(SUFFIX) or len(path.parts) > 1:
        return BundleFile(path.name.removesuffix(SUFFIX), path)
    name = str(source)
    own = {bundle.name: bundle for bundle in _own()}
    if name in own:
        return own[name]
    try:
        return _installed(registry().bundle(name), offline=offline)
    except AssetError:
        known = [*own, *(asset.name for asset in registry().bundles())]
        if name.rpartition(":")[2] in known:
            raise
    if path.exists():
        return BundleFile(path.name, path)
    near = difflib.get_close_matches(name, known, n=1)
    raise AssetError(
        f"no experts are called {name!r}",
        hint=f"did you mean {near[0]!r}?"
        if near
        else f"give the path of a file NAME{SUFFIX}"
        + (f", or one of {', '.join(known)}" if known else ", or train some with `ppap adapt`"),
    )


def _own() -> list[BundleFile]:
    paths = list(experts_dir().glob(f"*{SUFFIX}"))
    paths.sort(key=lambda path: (-path.stat().st_mtime_ns, path.name))
    return [BundleFile(path.name.removesuffix(SUFFIX), path) for path in paths]


def _installed(asset: ExpertBundle, *, offline: bool) -> BundleFile:
    path = fetch(asset, offline=offline)
    return BundleFile(asset.name, path, registry().provider(asset).distribution)
