"""What a bundle of experts says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import attrs
from attrs.validators import and_, deep_iterable, min_len, optional

from ppap_framework.errors import UsageError
from ppap_framework.experts._record import (
    count,
    digest,
    floats,
    integers,
    json_object,
    must_be,
    numbers,
    read_record,
    record,
    text,
)
from ppap_framework.experts.identity import InputConvention
from ppap_framework.experts.ranges import NoiseRanges
from ppap_framework.experts.set import ExpertSet
from ppap_framework.noise import NoiseSchedule
from ppap_framework.preprocessing import Preprocessing

__all__ = ["FORMAT", "AdapterConfig", "BundleInfo", "Identity", "describe"]

FORMAT = 1
"""Of the description; one that this module does not know is refused."""

_IMAGE_SPACE = "rgb"
_counts = deep_iterable(count)


@attrs.frozen(kw_only=True)
class Identity:
    """Which network it was.

    Attributes:
        component: The name of its backend or guider, or the class of an object of the user's own.
        checkpoint: How its weights were called; None where they had no name.
        sha256: Of its weights: `guide_sha256` or `backend_sha256`. This alone decides. None where
            nobody recorded it, as a backend's may be.
    """

    component: str = attrs.field(validator=text)
    checkpoint: str | None = attrs.field(validator=optional(text))
    sha256: str | None = attrs.field(validator=optional(digest))

    def __str__(self) -> str:
        of = f" {self.checkpoint!r}" if self.checkpoint else ""
        return f"{self.component}{of} ({self.sha256[:12] if self.sha256 else 'unknown weights'})"


@attrs.frozen(kw_only=True)
class AdapterConfig:
    """An adapter as it can be made again.

    Attributes:
        name: As plugins supply it.
        options: Its options, JSON.
    """

    name: str = attrs.field(validator=text)
    options: Mapping[str, Any] = attrs.field(validator=json_object)


def _identity(given: Any) -> Identity:
    return record(Identity, given)


def _adapters(given: Iterable[Any]) -> tuple[AdapterConfig, ...]:
    return tuple(record(AdapterConfig, config) for config in given)


def _input(given: Any) -> InputConvention | None:
    return None if given is None else record(InputConvention, given)


def _preprocessing(given: Any) -> Preprocessing | None:
    return None if given is None else record(Preprocessing, given)


def _scales(given: Iterable[float] | None) -> tuple[float, ...] | None:
    return None if given is None else floats(given)


@attrs.frozen(kw_only=True)
class BundleInfo:
    """Everything that is known of a bundle of N experts. `describe` makes one of what is there.

    Attributes:
        format: `FORMAT`.
        guide: The network that was adapted, as it was before.
        backend: The diffusion model whose images it learned from; its weights may be unknown, and
            are not compared then.
        adapters: In the order in which they are attached.
        boundaries: As in `NoiseRanges`, N - 1 log-SNRs.
        schedule: The name of the backend's noise schedule.
        timesteps: N + 1 base timesteps of that schedule; expert i begins at number i and ends
            before number i + 1.
        image_space: "rgb", three channels in [-1, 1].
        resolution: Height and width of the images that were noised.
        preprocessing: Of those images before the network saw them; None for the guide's own.
        input: What the network was fed for them; None where that could not be measured.
        network_parameters: Of the untouched network.
        expert_parameters: N numbers of trainable parameters.
        recipe: How the experts were trained, JSON.
        seed: Of the training.
        data_sha256: Of the manifest of the images; None where there was none.
        metrics: Held out, JSON.
        scales: N calibrated guidance scales; None where nobody calibrated.

    Raises:
        ValueError: Where a field is not what it must be, or two contradict each other.
    """

    format: int = attrs.field(default=FORMAT, validator=must_be("1", lambda value: value == FORMAT))
    guide: Identity = attrs.field(converter=_identity)
    backend: Identity = attrs.field(converter=_identity)
    adapters: tuple[AdapterConfig, ...] = attrs.field(converter=_adapters, validator=min_len(1))
    boundaries: tuple[float, ...] = attrs.field(converter=floats, validator=numbers)
    schedule: str = attrs.field(validator=text)
    timesteps: tuple[int, ...] = attrs.field(converter=integers, validator=_counts)
    image_space: str = attrs.field(
        default=_IMAGE_SPACE,
        validator=must_be(repr(_IMAGE_SPACE), lambda value: value == _IMAGE_SPACE),
    )
    resolution: tuple[int, ...] = attrs.field(
        converter=integers, validator=and_(_counts, must_be("two", lambda value: len(value) == 2))
    )
    preprocessing: Preprocessing | None = attrs.field(default=None, converter=_preprocessing)
    input: InputConvention | None = attrs.field(converter=_input)
    network_parameters: int = attrs.field(validator=count)
    expert_parameters: tuple[int, ...] = attrs.field(converter=integers, validator=_counts)
    recipe: Mapping[str, Any] = attrs.field(validator=json_object)
    seed: int = attrs.field(validator=must_be("a whole number", lambda value: type(value) is int))
    data_sha256: str | None = attrs.field(validator=optional(digest))
    metrics: Mapping[str, Any] = attrs.field(validator=json_object)
    scales: tuple[float, ...] | None = attrs.field(converter=_scales, validator=optional(numbers))

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
        for name, values in (
            ("expert_parameters", self.expert_parameters),
            ("scales", self.scales),
        ):
            if values is not None and len(values) != n:
                faults.append(f"{name} must be {n} numbers, not {len(values)}")
        names = [adapter.name for adapter in self.adapters]
        if len(set(names)) != len(names):
            faults.append(f"adapters must have different names, not {names}")
        if faults:
            raise ValueError("; ".join(faults))

    def __len__(self) -> int:
        """N."""
        return len(self.boundaries) + 1

    @property
    def ranges(self) -> NoiseRanges:
        """The noise levels that each expert owns."""
        return NoiseRanges(self.boundaries)

    def to_json(self) -> str:
        """One line; equal records give equal text, and every number comes back exactly."""
        said = attrs.asdict(self)
        if self.preprocessing is None:  # which versions before it can read
            del said["preprocessing"]
        return json.dumps(said, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, content: str) -> BundleInfo:
        """Read what `to_json` wrote.

        Raises:
            ValueError: With everything that is wrong, in one line.
        """
        try:
            given = json.loads(content, parse_constant=_no_constants)
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error
        if isinstance(given, dict) and (stated := given.get("format")) != FORMAT:
            raise ValueError(f"it is of format {stated!r:.20}, and this version reads {FORMAT}")
        if isinstance(given, dict):
            given.setdefault("preprocessing", None)
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
    """The description of experts that are about to be saved.

    Args:
        experts: That were trained.
        schedule: Of the noise of the images that they learned from.
        resolution: Height and width of these.
        guide: Of the network before experts were attached.
        backend: Likewise, of the diffusion model.
        adapters: What the set's adapters were made from, in order. The rest is as in `BundleInfo`.

    Raises:
        ValueError: As `BundleInfo`.
    """
    owned = experts.ranges.timesteps(schedule)
    return BundleInfo(
        guide=guide,
        backend=backend,
        adapters=adapters,
        boundaries=experts.ranges.boundaries,
        schedule=schedule.name,
        timesteps=[0, *(timesteps.stop for timesteps in owned)],
        resolution=resolution,
        preprocessing=experts.preprocessing,
        input=InputConvention.measure(experts.student, tuple(resolution)),
        network_parameters=experts.network_parameters,
        expert_parameters=[
            sum(parameter.numel() for parameter in experts.parameters(index))
            for index in range(len(experts))
        ],
        recipe=recipe,
        seed=seed,
        data_sha256=data_sha256,
        metrics=metrics or {},
        scales=scales,
    )


def _no_constants(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
