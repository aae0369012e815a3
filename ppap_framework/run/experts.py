"""Which experts guide: asked for with the guide, settled when there is a backend, attached while
images are drawn.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, final

import attrs

from ppap_framework.checkpoints import file_sha256
from ppap_framework.components import DiffusionBackend, GuidanceModel
from ppap_framework.diffusion import Process
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import (
    BundleFile,
    ExpertSet,
    NoiseRanges,
    bundle_by_name,
    choose_bundle,
    has_experts,
    load_bundle,
)
from ppap_framework.experts.match import check_waivers
from ppap_framework.guidance import RangeScales, Through

__all__ = ["ChosenExperts", "ExpertRequest", "ExpertSource"]

_log = logging.getLogger(__name__)


@final
@attrs.frozen(kw_only=True, eq=False)
class ChosenExperts:
    """N experts that will guide: of a bundle, or a set of the user's own.

    Attributes:
        name: Of the bundle; None for the user's own, as are the next two.
        path: Of the bundle's file.
        sha256: Of that file.
        ranges: The noise levels that each expert owns.
        parameters: Of each of the N.
        scales: N that they were calibrated with; None where nobody calibrated.
        own: The user's set; None for a bundle.
    """

    name: str | None = None
    path: Path | None = None
    sha256: str | None = None
    ranges: NoiseRanges
    parameters: tuple[int, ...]
    scales: tuple[float, ...] | None = None
    own: ExpertSet | None = None

    @classmethod
    def of(cls, bundle: BundleFile) -> ChosenExperts:
        """Those of a file.

        Raises:
            AssetError: Where it cannot be read.
        """
        info, digest = bundle.info, file_sha256(bundle.path)
        return cls(
            name=bundle.name,
            path=bundle.path,
            sha256=digest,
            ranges=info.ranges,
            parameters=info.expert_parameters,
            scales=info.scales,
        )

    @classmethod
    def of_set(cls, experts: ExpertSet) -> ChosenExperts:
        """The user's own."""
        sizes = (sum(p.numel() for p in experts.parameters(k)) for k in range(len(experts)))
        return cls(ranges=experts.ranges, parameters=tuple(sizes), own=experts)

    @property
    def calibration(self) -> RangeScales | None:
        """The scales, with the noise levels that they are for."""
        return None if self.scales is None else RangeScales(self.ranges, self.scales)

    def same_as(self, other: ChosenExperts) -> bool:
        """Whether both are the same set, or of the same file."""
        return self.own is other.own and (self.path, self.sha256) == (other.path, other.sha256)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "path": str(self.path) if self.path else None,
            "sha256": self.sha256,
            "num_experts": len(self.ranges),
            "boundaries": list(self.ranges.boundaries),
            "scales": None if self.scales is None else list(self.scales),
        }

    @contextlib.contextmanager
    def attached(self, model: GuidanceModel) -> Iterator[ExpertSet]:
        """A context in which they look in place of the model; the untouched network is there again
        at its end.

        Raises:
            AssetError: Where the file is not the one that was chosen any more.
        """
        if self.own is not None:
            try:
                yield self.own
            finally:
                self.own.activate(None)
            return
        assert self.path is not None  # it is a bundle
        if file_sha256(self.path) != self.sha256:
            raise AssetError(
                f"experts {str(self.path)!r} were replaced after they were chosen", hint="run again"
            )
        experts = load_bundle(self.path, model)  # the backend was compared when they were chosen
        try:
            yield experts
        finally:
            experts.detach()

    def warn_of_idle(self, guide: str, process: Process) -> None:
        """Log which experts get no step of a process.

        Args:
            guide: The name of theirs.
            process: That is to be guided.
        """
        steps, owned = self.ranges.coverage(process), self.ranges.timesteps(process.schedule)
        idle = [
            f"expert {k} ({f'timesteps {t.start} to {t.stop - 1}' if t else 'no timestep'})"
            for k, t in enumerate(owned)
            if not steps[k]
        ]
        if idle:
            told = ", ".join(idle)
            of = "1 step" if len(process) == 1 else f"{len(process)} steps"
            _log.warning("guide %r: of %s none is for %s", guide, of, told)


ExpertSource: TypeAlias = "str | os.PathLike[str] | ExpertSet | ChosenExperts"
"""Experts: "none", "auto" for the newest bundle that matches, if there is one, the path or name of
a bundle, or what is attached or chosen already."""


def _tuple(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(names)


def _settled(source: ExpertSource) -> str | ExpertSet | ChosenExperts:
    """A path is never taken for a name."""
    return str(Path(source).expanduser().absolute()) if isinstance(source, os.PathLike) else source


@final
@attrs.frozen(kw_only=True, eq=False)
class ExpertRequest:
    """What was said about the experts of a guide.

    Attributes:
        source: Which.
        allow_mismatch: In what a bundle may differ: some of `ppap_framework.experts.WAIVABLE`.
        calibrated: Whether the guide's scales are those that the experts were calibrated with; None
            for where there are such.
        noise_aware: Whether the guide reads noise without experts.
        offline: Whether to raise instead of downloading a bundle.
    """

    source: str | ExpertSet | ChosenExperts = attrs.field(default="none", converter=_settled)
    allow_mismatch: tuple[str, ...] = attrs.field(default=(), converter=_tuple)
    calibrated: bool | None = False
    noise_aware: bool = False
    offline: bool = False

    def check(self, guide: str, through: Through = "noisy") -> None:
        """Accept what can be right, whatever the guide's weights and the backend.

        Args:
            guide: Its name.
            through: Where it looks.

        Raises:
            UsageError: Where there is no noise for experts to read, where there are no calibrated
                scales and they are asked for, or for a difference that cannot be waived.
            AssetError: Where the bundle is missing, or damaged in its header.
        """
        check_waivers(self.allow_mismatch)
        if self.source not in ("auto", "none"):
            if self.noise_aware:
                raise UsageError(
                    f"guide {guide!r} reads noise by itself and takes no experts",
                    hint="leave the experts out",
                )
            if through == "clean":
                raise UsageError(
                    f"guide {guide!r} looks through clean, where experts have no noise to read",
                    hint="look through noisy, or leave the experts out",
                )
            if isinstance(self.source, str):
                bundle = bundle_by_name(self.source, offline=self.offline)
                self._check_scales(guide, True, bundle.info.scales)
        elif not self._wanted(through):
            self._check_scales(guide, False, None)

    def choose(
        self, guide: str, model: GuidanceModel, backend: DiffusionBackend, through: Through
    ) -> ChosenExperts | None:
        """Settle which experts guide.

        Args:
            guide: Its name.
            model: Its model, without experts but for those of `source`.
            backend: That it shall steer.
            through: Where it looks.

        Returns:
            None for no experts.

        Raises:
            UsageError: As `check`, and where other experts are attached to the model already.
            AssetError: As `check`, and where the bundle does not match.
            PluginError: Where several distributions claim its name.
        """
        self.check(guide, through)
        chosen = self._chosen(guide, model, backend) if self._wanted(through) else None
        self._check_scales(guide, chosen is not None, chosen and chosen.scales)
        return chosen

    def _wanted(self, through: Through) -> bool:
        return self.source != "none" and not self.noise_aware and through == "noisy"

    def _chosen(
        self, guide: str, model: GuidanceModel, backend: DiffusionBackend
    ) -> ChosenExperts | None:
        if isinstance(self.source, ChosenExperts):
            return self.source
        if isinstance(self.source, ExpertSet):
            if self.source.model is not model or not has_experts(model.network):
                raise UsageError(
                    f"the experts of guide {guide!r} are not attached to its model",
                    hint="make the guide of `experts.model`",
                )
            return ChosenExperts.of_set(self.source)
        if has_experts(model.network):
            raise UsageError(
                f"the network of guide {guide!r} has experts already",
                hint="give the guide these, or detach them",
            )
        bundle = choose_bundle(
            self.source,
            model,
            backend,
            allow_mismatch=self.allow_mismatch,
            offline=self.offline,
        )
        return None if bundle is None else ChosenExperts.of(bundle)

    def _check_scales(self, guide: str, experts: bool, scales: tuple[float, ...] | None) -> None:
        if self.calibrated and scales is None:
            raise UsageError(
                f"guide {guide!r} has no calibrated scales: "
                + ("its experts were not calibrated" if experts else "no experts guide"),
                hint="give a scale, such as 4",
            )
