"""Where experts begin: as it is said, or as the untouched network's disagreement proposes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, final

import attrs
import torch

from ppap_framework.components import Stage
from ppap_framework.data.images import Images
from ppap_framework.diagnosis import (
    MOST_EXPERTS,
    disagreement,
    evenly_spaced,
    propose_boundaries,
    propose_number,
)
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import NoiseRanges
from ppap_framework.learn.teacher import Teacher
from ppap_framework.noise import NoiseSchedule

__all__ = ["Boundaries", "Curve", "check_boundaries", "measure", "ranges_for", "recorded"]

Boundaries: TypeAlias = "Sequence[int] | Literal['auto'] | None"
"""Where experts 1 to N - 1 begin: base timesteps; "auto" for where the data propose it; None for
ranges of equal width."""

DEFAULT_EXPERTS = 5
_IMAGES, _LEVELS = 256, 21


def _integers(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


@final
@attrs.frozen(kw_only=True)
class Curve:
    """How far the untouched network's answers to noised images are from those to clean ones.

    Attributes:
        images: To how many, the first of a set.
        timesteps: L base timesteps, rising.
        disagreement: At each of these: see `ppap_framework.diagnosis.disagreement`.
    """

    images: int
    timesteps: tuple[int, ...] = attrs.field(converter=_integers)
    disagreement: tuple[float, ...] = attrs.field(converter=_floats)

    @classmethod
    def read(cls, given: Any) -> Curve:
        """What `attrs.asdict` made of one.

        Raises:
            AssetError: Where it is anything else.
        """
        try:
            return cls(**given)
        except (TypeError, ValueError) as error:
            raise AssetError(
                "the proposal in the record of the training cannot be read",
                hint="--overwrite begins anew",
            ) from error

    def ranges(self, schedule: NoiseSchedule, experts: int | None) -> NoiseRanges:
        """Of N experts, where the curve proposes that they begin; None for as many as it asks for.

        Raises:
            UsageError: Where they cannot begin there.
        """
        length = schedule.num_timesteps
        n = experts or propose_number(self.timesteps, self.disagreement, length)
        starts = propose_boundaries(self.timesteps, self.disagreement, length, n)
        return NoiseRanges.from_timesteps(schedule, starts)


def measure(
    learner: Teacher, stage: Stage, images: Images, *, seed: int, batch: int, device: torch.device
) -> Curve:
    """The curve of a network on the device, from the first images of a set.

    Args:
        learner: The network, in evaluation mode, and what compares its answers.
        stage: The one whose images are noised.
        images: To be noised.
        seed: Of the noise.
        batch: How many images at once.
        device: Where the network is.

    Raises:
        PluginError: Where the loss is broken.
    """
    count = min(len(images), _IMAGES)
    timesteps = evenly_spaced(stage.schedule, min(_LEVELS, stage.schedule.num_timesteps))
    noised = images.images(range(count), 0)
    clean = noised if len(images.stages) == 1 else images.images(range(count), -1)
    values = disagreement(
        learner.model,
        learner.loss,
        stage.schedule,
        timesteps,
        noised.to(device),
        clean.to(device),
        seed=seed,
        batch=batch,
    )
    return Curve(images=count, timesteps=tuple(timesteps), disagreement=values)


def ranges_for(
    schedule: NoiseSchedule, num_experts: int | None, boundaries: Boundaries
) -> NoiseRanges:
    """What is said before there are data; for "auto" of equal width, and as many as there may be.

    Raises:
        UsageError: Where they cannot be.
    """
    wanted = check_boundaries(num_experts, boundaries)
    if boundaries is not None and boundaries != "auto":
        return NoiseRanges.from_timesteps(schedule, boundaries)
    return NoiseRanges.equal(schedule, wanted or min(MOST_EXPERTS, schedule.num_timesteps))


def check_boundaries(num_experts: int | None, boundaries: Boundaries) -> int | None:
    """N, as it follows from either or both; None where the data shall say.

    Raises:
        UsageError: Where it is no number of experts, or the two contradict each other.
    """
    if isinstance(boundaries, str) and boundaries != "auto":
        raise UsageError(f"boundaries cannot be {boundaries!r}", hint="give timesteps, or auto")
    if num_experts is not None and (type(num_experts) is not int or num_experts < 1):
        raise UsageError(
            f"num_experts must be a whole number from 1, not {num_experts}",
            hint=f"use {DEFAULT_EXPERTS}, say",
        )
    if boundaries == "auto":
        return num_experts
    if boundaries is None:
        return num_experts or DEFAULT_EXPERTS
    if num_experts not in (None, len(boundaries) + 1):
        raise UsageError(
            f"{len(boundaries)} boundaries make {len(boundaries) + 1} experts, not {num_experts}",
            hint="give only one of num_experts and boundaries",
        )
    return len(boundaries) + 1


def recorded(settings: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> Curve | None:
    """The curve that a training was begun with, if it was one of the same settings.

    Args:
        settings: Of the training that is there; None where there is none.
        wanted: Some of those of the one that is asked for.

    Raises:
        AssetError: Where it cannot be read.
    """
    same = settings is not None and all(settings.get(key) == wanted[key] for key in wanted)
    if settings is None or not same or "proposal" not in settings:
        return None
    return Curve.read(settings["proposal"])
