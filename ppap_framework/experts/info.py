"""The description of a bundle of experts, and its comparison with a guide and a backend."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs.validators import min_len, optional

from ppap_framework.components import DiffusionBackend, GuidanceModel
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import _rules as must
from ppap_framework.experts.identity import Identity, InputConvention, backend_sha256, guide_sha256
from ppap_framework.experts.levels import NoiseRanges, ScaleCurve
from ppap_framework.experts.set import ExpertSet, student_of
from ppap_framework.noise import NoiseSchedule
from ppap_framework.preprocessing import Preprocessing

_FORMAT = 1

WAIVABLE = ("backend", "options", "resolution")
"""Differences that a user may accept: experts see noisy images of another kind or size, or options
differ. Experts for other weights or another normalization would mislead the guide."""


def _series(kind: Any, rule: Any, **more: Any) -> Any:
    """A field of a series of numbers, or None."""
    return attrs.field(converter=attrs.converters.optional(kind), validator=optional(rule), **more)


@attrs.frozen(kw_only=True)
class AdapterConfig:
    """Name of an adapter, and its options as JSON."""

    name: str = attrs.field(validator=must.text)
    options: Mapping[str, Any] = attrs.field(validator=must.json_object)


@attrs.frozen(kw_only=True)
class BundleInfo:
    """The description of a bundle of N experts, made by `describe`.

    Files omit a field with default None while it is None, so that earlier versions can read them.
    ValueError if a field is invalid, or two contradict each other.

    Attributes:
        guide: The network without experts.
        backend: The diffusion model of the training images.
        adapters: The adapters, in the order in which they are attached.
        boundaries: N - 1 log-SNRs: see `NoiseRanges`.
        schedule: Name of the backend's noise schedule.
        timesteps: N + 1 base timesteps; expert i owns those from entry i until before entry i + 1.
        image_space: "rgb", three channels in [-1, 1].
        resolution: Height and width of the noised images.
        preprocessing: Preprocessing of these; None for the guide's own.
        input: Input convention of the network; None if it cannot be measured.
        network_parameters: Number of parameters of the untouched network.
        expert_parameters: N numbers of trainable parameters.
        recipe: The recipe of the training, as JSON; `seed` is its seed.
        data_sha256: Hash of the images' manifest, if any.
        metrics: Held-out metrics, as JSON.
        curve: The calibrated guidance scale by noise level; None if nobody calibrated.
        options: `Guide.compared_options` of the training; None if unknown.
        latents: (C, h, w) of the latents that experts read; None if they read images.
        part: The indices of the experts that were trained, if others were left to other machines;
            such a file is of no use before `ppap experts merge`.
    """

    format: int = _FORMAT
    guide: Identity
    backend: Identity
    adapters: tuple[AdapterConfig, ...] = attrs.field(
        converter=tuple[AdapterConfig, ...], validator=min_len(1)
    )
    boundaries: tuple[float, ...] = attrs.field(converter=tuple[float, ...], validator=must.numbers)
    schedule: str = attrs.field(validator=must.text)
    timesteps: tuple[int, ...] = attrs.field(converter=tuple[int, ...], validator=must.counts)
    image_space: str = attrs.field(default="rgb", validator=must.rgb)
    resolution: tuple[int, ...] = attrs.field(converter=tuple[int, ...], validator=must.size)
    preprocessing: Preprocessing | None = None
    input: InputConvention | None
    network_parameters: int = attrs.field(validator=must.count)
    expert_parameters: tuple[int, ...] = attrs.field(
        converter=tuple[int, ...], validator=must.counts
    )
    recipe: Mapping[str, Any] = attrs.field(validator=must.json_object)
    seed: int = attrs.field(validator=must.whole)
    data_sha256: str | None = attrs.field(validator=optional(must.digest))
    metrics: Mapping[str, Any] = attrs.field(validator=must.json_object)
    curve: ScaleCurve | None = None
    options: Mapping[str, Any] | None = attrs.field(
        default=None, validator=optional(must.json_object)
    )
    latents: tuple[int, ...] | None = _series(tuple[int, ...], must.counts, default=None)
    part: tuple[int, ...] | None = _series(tuple[int, ...], must.counts, default=None)

    def __attrs_post_init__(self) -> None:
        faults = []
        if self.guide.sha256 is None:
            faults.append("guide: sha256 must be known")
        try:
            NoiseRanges(self.boundaries)
        except UsageError as error:
            faults.append(error.message)
        n, reads = len(self), self.reads
        each = reads if isinstance(reads, tuple) else (reads,) * n
        if len(each) != n or any(read not in ("noisy", "detached") for read in each):
            faults.append(f"experts read noisy or detached images, not {reads}")
        if len(self.timesteps) != n + 1 or list(self.timesteps) != sorted(self.timesteps):
            faults.append(f"timesteps must be {n + 1} rising numbers, not {self.timesteps}")
        if (given := len(self.expert_parameters)) != n:
            faults.append(f"expert_parameters must be {n} numbers, not {given}")
        names = [adapter.name for adapter in self.adapters]
        if len(set(names)) != len(names):
            faults.append(f"adapters must have different names, not {names}")
        if faults:
            raise ValueError("; ".join(faults))

    def __len__(self) -> int:
        return len(self.boundaries) + 1

    @property
    def ranges(self) -> NoiseRanges:
        return NoiseRanges(self.boundaries)

    @property
    def reads(self) -> Any:
        """The images that experts read, as `Guide.through`: "noisy" or "detached", or a tuple of
        one word for each expert if they differ.
        """
        given = self.recipe.get("through", "noisy")
        return tuple(given) if isinstance(given, list | tuple) else given

    def mean_loss(self, of: Literal["held_out", "untouched"] = "held_out") -> float:
        """Mean loss on held-out images over all timesteps, of the experts or of the untouched
        network; infinity if it is unknown.
        """
        with contextlib.suppress(ArithmeticError, LookupError, TypeError, ValueError):
            scores = zip(pairwise(self.timesteps), self.metrics["experts"], strict=True)
            return sum((b - a) * float(s[of]) for (a, b), s in scores) / self.timesteps[-1]
        return math.inf

    def to_json(self) -> str:
        """One line; equal records give equal text, and numbers are exact."""
        omitted = {field.name for field in attrs.fields(BundleInfo) if field.default is None}
        said = attrs.asdict(self).items()
        kept = {name: value for name, value in said if value is not None or name not in omitted}
        return json.dumps(kept, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, content: str) -> BundleInfo:
        """The inverse of `to_json`; ValueError with all faults, in one line."""
        try:
            given = json.loads(content)
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error
        if isinstance(given, dict) and (stated := given.get("format")) != _FORMAT:
            raise ValueError(f"it is of format {stated!r:.20}, and this version reads {_FORMAT}")
        if isinstance(given, dict):
            given.pop("scales", None)  # of earlier versions, one an expert; a curve replaces them
        return must.read_record(cls, given)


def describe(
    experts: ExpertSet, schedule: NoiseSchedule, resolution: Sequence[int], **known: Any
) -> BundleInfo:
    """The description of experts that were trained on noisy images of a height and width. `known`
    are the other fields of `BundleInfo`; `data_sha256` and `metrics` may be missing.
    """
    student = student_of(experts.model, experts.preprocessing)
    return BundleInfo(
        boundaries=experts.ranges.boundaries,
        schedule=schedule.name,
        timesteps=[0, *(owned.stop for owned in experts.ranges.timesteps(schedule))],
        resolution=resolution,
        preprocessing=experts.preprocessing,
        input=InputConvention.measure(student, tuple(resolution)),
        network_parameters=experts.network_parameters,
        expert_parameters=experts.expert_parameters,
        **{"data_sha256": None, "metrics": {}, **known},
    )


@attrs.frozen(eq=False)
class Present:
    """The present guide, without experts; the backend and options, if they are compared."""

    model: GuidanceModel
    backend: DiffusionBackend | None
    options: Mapping[str, Any] | None = None

    @cached_property
    def _guide_sha256(self) -> str:
        return guide_sha256(self.model)

    @cached_property
    def _backend_sha256(self) -> str:
        return backend_sha256(self.backend) if self.backend else ""

    def is_for(self, info: BundleInfo) -> bool:
        """Whether the experts were trained for this guide."""
        return info.guide.sha256 == self._guide_sha256

    def differences(self, info: BundleInfo) -> dict[str, str]:
        """Differences from the training of the experts, in words, by field."""
        found, this = {}, f"{type(self.model).__name__} are ({self._guide_sha256[:12]})"
        if not self.is_for(info):
            found["guide"] = f"they are for the weights of {info.guide}, and those of this {this}"
        elif words := self._fed_otherwise(info):
            found["input"] = words
        before, now = info.options or {}, self.options or {}
        common = sorted(before.keys() & now.keys())  # other versions may have others
        if differ := [name for name in common if before[name] != now[name]]:
            told = (f"{name} was {before[name]}, and is {now[name]}" for name in differ)
            found["options"] = "; ".join(told)
        if self.backend is None:
            return found
        if info.backend.sha256 not in (None, self._backend_sha256):
            this = f"this backend has other weights ({self._backend_sha256[:12]})"
            found["backend"] = f"they learned from {info.backend}, and {this}"
        stage = self.backend.stages[0]
        drawn = stage.latent_shape if info.reads == "noisy" else None
        if (shapes := (info.latents, drawn))[0] != shapes[1]:
            read, here = (f"latents {shape}" if shape else "images" for shape in shapes)
            found["latents"] = f"they read {read}, and this backend draws {here}"
        if (sizes := (info.resolution, stage.image_shape[1:]))[0] != sizes[1]:
            size, here = (" x ".join(map(str, size)) for size in sizes)
            found["resolution"] = f"they learned from images of {size}, and these are {here}"
        return found

    def check(self, path: Path, info: BundleInfo, allow_mismatch: Collection[str]) -> None:
        """Raise AssetError with all differences that are not waived, or for a part of a bundle."""
        if info.part is not None:
            trained = f"{str(path)!r} holds only {len(info.part)} of {len(info)} trained experts"
            raise AssetError(trained, hint="`ppap experts merge` joins it with the others")
        found = self.differences(info)
        left = {name: words for name, words in found.items() if name not in allow_mismatch}
        if not left:
            return
        hint = "train experts for this guide with `ppap adapt`"
        if left.keys() <= set(WAIVABLE):
            hint = " ".join(f"--allow-mismatch {name}" for name in left)
        told = "; ".join(f"{name}: {words}" for name, words in left.items())
        raise AssetError(f"the experts in {str(path)!r} do not match: {told}", hint=hint)

    def _fed_otherwise(self, info: BundleInfo) -> str:
        try:
            student = student_of(self.model, info.preprocessing)
        except UsageError as error:
            return error.message
        here, there = InputConvention.measure(student, info.resolution), info.input
        if here is there is None or (here and there and here.matches(there)):
            return ""
        return f"their network was fed {there}, and this one is fed {here}"


def check_waivers(allow_mismatch: Collection[str]) -> None:
    """Raise UsageError if a difference cannot be waived."""
    for name in sorted(set(allow_mismatch) - set(WAIVABLE)):
        hint = f"only {' and '.join(WAIVABLE)} can, since the experts still fit the guide"
        raise UsageError(f"a mismatch of {name!r} cannot be allowed", hint=hint)
