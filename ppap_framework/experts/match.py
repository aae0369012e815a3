"""Comparison of experts with the present guide and backend."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

import attrs

from ppap_framework.components import DiffusionBackend, GuidanceModel
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts.identity import InputConvention, backend_sha256, guide_sha256
from ppap_framework.experts.info import BundleInfo
from ppap_framework.experts.set import student_of

WAIVABLE = ("backend", "resolution")
"""Differences that a user may accept: experts see noisy images of another kind or size. Experts for
other weights or another normalization would mislead the guide."""


@attrs.frozen(eq=False)
class Present:
    """The present guide, without experts, and the backend, if compared; each is hashed once."""

    model: GuidanceModel
    backend: DiffusionBackend | None

    @cached_property
    def guide_sha256(self) -> str:
        return guide_sha256(self.model)

    @cached_property
    def backend_sha256(self) -> str | None:
        return None if self.backend is None else backend_sha256(self.backend)

    def is_for(self, info: BundleInfo) -> bool:
        """Whether the experts were trained for this guide."""
        return info.guide.sha256 == self.guide_sha256

    def differences(self, info: BundleInfo) -> dict[str, str]:
        """Differences from the training of the experts, in words, by field."""
        found = {}
        if not self.is_for(info):
            found["guide"] = (
                f"they are for the weights of {info.guide}, and those of this "
                f"{type(self.model).__name__} are ({self.guide_sha256[:12]})"
            )
        elif words := self._fed_otherwise(info):
            found["input"] = words
        if self.backend is None:
            return found
        if info.backend.sha256 not in (None, self.backend_sha256):
            found["backend"] = (
                f"they learned from {info.backend}, and this backend has other weights "
                f"({str(self.backend_sha256)[:12]})"
            )
        _, *resolution = self.backend.stages[0].image_shape
        if tuple(resolution) != info.resolution:
            found["resolution"] = (
                f"they learned from images of {' x '.join(map(str, info.resolution))}, and these "
                f"are {' x '.join(map(str, resolution))}"
            )
        return found

    def _fed_otherwise(self, info: BundleInfo) -> str:
        try:
            student = student_of(self.model, info.preprocessing)
        except UsageError as error:
            return error.message
        here, there = InputConvention.measure(student, info.resolution), info.input
        if here is there is None or (here and there and here.matches(there)):
            return ""
        return f"their network was fed {there}, and this one is fed {here}"


def check_match(
    path: Path, differences: Mapping[str, str], allow_mismatch: Collection[str]
) -> None:
    """Raise AssetError with all differences that are not waived."""
    left = {name: words for name, words in differences.items() if name not in allow_mismatch}
    if left:
        raise AssetError(
            f"the experts in {str(path)!r} do not match: "
            + "; ".join(f"{name}: {words}" for name, words in left.items()),
            hint=" ".join(f"--allow-mismatch {name}" for name in left)
            if left.keys() <= set(WAIVABLE)
            else "train experts for this guide with `ppap adapt`",
        )


def check_waivers(allow_mismatch: Collection[str]) -> None:
    """Raise UsageError if a difference cannot be waived."""
    for name in allow_mismatch:
        if name not in WAIVABLE:
            raise UsageError(
                f"a mismatch of {name!r} cannot be allowed",
                hint=f"only {' and '.join(WAIVABLE)} can, since the experts still fit the guide",
            )
