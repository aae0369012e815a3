"""Whether experts are for the guide and the backend that are here."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

from ppap_framework.components import DiffusionBackend, GuidanceModel
from ppap_framework.errors import UsageError
from ppap_framework.experts.identity import InputConvention, backend_sha256, guide_sha256
from ppap_framework.experts.info import BundleInfo
from ppap_framework.experts.set import student_of

__all__ = ["WAIVABLE", "Present", "check_waivers"]

WAIVABLE = ("backend", "resolution")
"""Differences that a user may accept: experts still see noisy images, of another kind or size.
With other weights or another normalisation they would be noise to the guide."""


class Present:
    """A guide and a backend as they are here; hashed when first asked about, and once.

    Args:
        model: The guide, without experts.
        backend: That it shall steer; None leaves everything about it uncompared.
    """

    def __init__(self, model: GuidanceModel, backend: DiffusionBackend | None) -> None:
        self._model = model
        self._backend = backend

    @cached_property
    def _guide(self) -> str:
        return guide_sha256(self._model)

    @cached_property
    def _drawn_by(self) -> str | None:
        return None if self._backend is None else backend_sha256(self._backend)

    def is_for(self, info: BundleInfo) -> bool:
        """Whether the experts are of this guide, be the rest as it may."""
        return info.guide.sha256 == self._guide

    def differences(self, info: BundleInfo) -> dict[str, str]:
        """In what the bundle's experts were trained otherwise: a field, and both sides in words."""
        found = {}
        if not self.is_for(info):
            found["guide"] = (
                f"they are for the weights of {info.guide}, and those of this "
                f"{type(self._model).__name__} are ({self._guide[:12]})"
            )
        elif words := self._fed_otherwise(info):
            found["input"] = words
        if self._backend is None:
            return found
        if info.backend.sha256 not in (None, self._drawn_by):
            found["backend"] = (
                f"they learned from {info.backend}, and this backend has other weights "
                f"({str(self._drawn_by)[:12]})"
            )
        _, *resolution = self._backend.stages[0].image_shape
        if tuple(resolution) != info.resolution:
            found["resolution"] = (
                f"they learned from images of {' x '.join(map(str, info.resolution))}, and these "
                f"are {' x '.join(map(str, resolution))}"
            )
        return found

    def _fed_otherwise(self, info: BundleInfo) -> str:
        """In what a network differs that is fed as the bundle says; empty where it does not."""
        try:
            student = student_of(self._model, info.preprocessing)
        except UsageError as error:
            return error.message
        here = InputConvention.measure(student, info.resolution)
        if here is None and info.input is None:
            return ""
        if here is not None and info.input is not None and here.matches(info.input):
            return ""
        return f"their network was fed {info.input}, and this one is fed {here}"


def check_waivers(allow_mismatch: Collection[str]) -> None:
    """Accept names of differences that may be waived.

    Raises:
        UsageError: For any other.
    """
    for name in allow_mismatch:
        if name not in WAIVABLE:
            raise UsageError(
                f"a mismatch of {name!r} cannot be allowed",
                hint=f"only {' and '.join(WAIVABLE)} can, since the experts still fit the guide",
            )
