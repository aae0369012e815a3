"""Boundaries from the data: experts begin at noise levels where the network's answers change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppap_framework.components import Stage
from ppap_framework.data import Images
from ppap_framework.diagnosis import (
    disagreement,
    evenly_spaced,
    propose_boundaries,
    propose_number,
)
from ppap_framework.errors import AssetError
from ppap_framework.guidance import Guide
from ppap_framework.learn.recipe import Recipe
from ppap_framework.noise import NoiseSchedule

_IMAGES, _LEVELS = 256, 21


def measure(guide: Guide, stage: Stage, images: Images, recipe: Recipe) -> dict[str, Any]:
    """The `disagreement` of a network in evaluation mode, on the first images of a set, as JSON.

    Raises:
        PluginError: If the loss is broken.
    """
    count = min(len(images), _IMAGES)
    timesteps = evenly_spaced(stage.schedule, min(_LEVELS, stage.schedule.num_timesteps))
    noised = images.images(range(count), 0)
    clean = noised if len(images.stages) == 1 else images.images(range(count), -1)
    device = next(guide.model.parameters()).device
    values = disagreement(
        guide.model,
        guide.loss,
        stage.schedule,
        timesteps,
        noised.to(device),
        clean.to(device),
        seed=recipe.seed,
        batch=recipe.batch,
    )
    return {"images": count, "timesteps": list(timesteps), "disagreement": list(values)}


def proposed_starts(
    curve: Mapping[str, Any], schedule: NoiseSchedule, experts: int | None
) -> tuple[int, ...]:
    """The timesteps at which experts 1 to N - 1 should begin.

    Args:
        curve: Result of `measure`, possibly read from a file.
        schedule: Noise schedule of the curve's timesteps.
        experts: N; None for `propose_number`.

    Raises:
        AssetError: If the curve is damaged.
    """
    length = schedule.num_timesteps
    try:
        timesteps = [int(t) for t in curve["timesteps"]]
        values = [float(value) for value in curve["disagreement"]]
    except (KeyError, TypeError, ValueError) as error:
        raise AssetError(
            "the proposal in the record of the training cannot be read",
            hint="--overwrite begins anew",
        ) from error
    n = experts or propose_number(timesteps, values, length)
    return tuple(propose_boundaries(timesteps, values, length, n))
