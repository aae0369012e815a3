"""The description of a bundle of experts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import attrs
from attrs.validators import and_, min_len, optional

from ppap_framework.errors import UsageError
from ppap_framework.experts._record import (
    as_tuple,
    count,
    counts,
    digest,
    json_object,
    must_be,
    numbers,
    read_record,
    text,
)
from ppap_framework.experts.identity import InputConvention
from ppap_framework.experts.ranges import NoiseRanges
from ppap_framework.experts.scales import ScaleCurve
from ppap_framework.experts.set import ExpertSet
from ppap_framework.noise import NoiseSchedule
from ppap_framework.preprocessing import Preprocessing

_FORMAT = 1
_IMAGE_SPACE = "rgb"


@attrs.frozen(kw_only=True)
class Identity:
    """Identity of a network.

    Attributes:
        component: Name of its backend or guider, or the class of a user's own object.
        checkpoint: Name of its weights, if they have one.
        sha256: `guide_sha256` or `backend_sha256`, the only field that is compared; None if
            unknown.
    """

    component: str = attrs.field(validator=text)
    checkpoint: str | None = attrs.field(validator=optional(text))
    sha256: str | None = attrs.field(validator=optional(digest))

    def __str__(self) -> str:
        of = f" {self.checkpoint!r}" if self.checkpoint else ""
        return f"{self.component}{of} ({self.sha256[:12] if self.sha256 else 'unknown weights'})"


@attrs.frozen(kw_only=True)
class AdapterConfig:
    """Name of an adapter, and its options as JSON."""

    name: str = attrs.field(validator=text)
    options: Mapping[str, Any] = attrs.field(validator=json_object)


@attrs.frozen(kw_only=True)
class BundleInfo:
    """The description of a bundle of N experts, made by `describe`.

    Files omit a field with default None while it is None, so that earlier versions can read them.

    Attributes:
        format: Version of this description.
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
        recipe: The recipe of the training, as JSON.
        seed: Seed of the training.
        data_sha256: Hash of the images' manifest, if any.
        metrics: Held-out metrics, as JSON.
        scales: N guidance scales, as bundles had before they had a curve; None for none.
        curve: The calibrated guidance scale by noise level; None if nobody calibrated.

    Raises:
        ValueError: If a field is invalid, or two contradict each other.
    """

    format: int = attrs.field(
        default=_FORMAT, validator=must_be(str(_FORMAT), lambda value: value == _FORMAT)
    )
    guide: Identity
    backend: Identity
    adapters: tuple[AdapterConfig, ...] = attrs.field(converter=as_tuple, validator=min_len(1))
    boundaries: tuple[float, ...] = attrs.field(converter=as_tuple, validator=numbers)
    schedule: str = attrs.field(validator=text)
    timesteps: tuple[int, ...] = attrs.field(converter=as_tuple, validator=counts)
    image_space: str = attrs.field(
        default=_IMAGE_SPACE,
        validator=must_be(repr(_IMAGE_SPACE), lambda value: value == _IMAGE_SPACE),
    )
    resolution: tuple[int, ...] = attrs.field(
        converter=as_tuple, validator=and_(counts, must_be("two", lambda value: len(value) == 2))
    )
    preprocessing: Preprocessing | None = None
    input: InputConvention | None
    network_parameters: int = attrs.field(validator=count)
    expert_parameters: tuple[int, ...] = attrs.field(converter=as_tuple, validator=counts)
    recipe: Mapping[str, Any] = attrs.field(validator=json_object)
    seed: int = attrs.field(validator=must_be("a whole number", lambda value: type(value) is int))
    data_sha256: str | None = attrs.field(validator=optional(digest))
    metrics: Mapping[str, Any] = attrs.field(validator=json_object)
    scales: tuple[float, ...] | None = attrs.field(
        converter=attrs.converters.optional(as_tuple), validator=optional(numbers)
    )
    curve: ScaleCurve | None = None

    def __attrs_post_init__(self) -> None:
        faults = []
        if self.guide.sha256 is None:
            faults.append("guide: sha256 must be known")
        try:
            NoiseRanges(self.boundaries)
        except UsageError as error:
            faults.append(error.message)
        n = len(self)
        if len(self.timesteps) != n + 1 or any(a > b for a, b in pairwise(self.timesteps)):
            faults.append(f"timesteps must be {n + 1} rising numbers, not {self.timesteps}")
        faults += [
            f"{name} must be {n} numbers, not {len(values)}"
            for name in ("expert_parameters", "scales")
            if (values := getattr(self, name)) is not None and len(values) != n
        ]
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

    def to_json(self) -> str:
        """One line; equal records give equal text, and numbers are exact."""
        absent = [
            field.name
            for field in attrs.fields(BundleInfo)
            if field.default is None and getattr(self, field.name) is None
        ]
        said = {k: value for k, value in attrs.asdict(self).items() if k not in absent}
        return json.dumps(said, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, content: str) -> BundleInfo:
        """The inverse of `to_json`; ValueError with all faults, in one line."""
        try:
            given = json.loads(content, parse_constant=_no_constants)
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error
        if isinstance(given, dict) and (stated := given.get("format")) != _FORMAT:
            raise ValueError(f"it is of format {stated!r:.20}, and this version reads {_FORMAT}")
        return read_record(cls, given)


def describe(
    experts: ExpertSet,
    schedule: NoiseSchedule,
    resolution: Sequence[int],
    *,
    guide: Identity,
    backend: Identity,
    adapters: Sequence[AdapterConfig],
    recipe: Mapping[str, Any],
    seed: int,
    data_sha256: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    scales: Sequence[float] | None = None,
) -> BundleInfo:
    """The description of trained experts; arguments and errors as for `BundleInfo`."""
    return BundleInfo(
        guide=guide,
        backend=backend,
        adapters=adapters,
        boundaries=experts.ranges.boundaries,
        schedule=schedule.name,
        timesteps=[0, *(owned.stop for owned in experts.ranges.timesteps(schedule))],
        resolution=resolution,
        preprocessing=experts.preprocessing,
        input=InputConvention.measure(experts.student, tuple(resolution)),
        network_parameters=experts.network_parameters,
        expert_parameters=experts.expert_parameters,
        recipe=recipe,
        seed=seed,
        data_sha256=data_sha256,
        metrics=metrics or {},
        scales=scales,
    )


def _no_constants(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
