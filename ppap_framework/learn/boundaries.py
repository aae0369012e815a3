"""Boundaries of experts from the data: they begin where the untouched network's answers change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import attrs

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

__all__ = ["Curve"]

_IMAGES, _LEVELS = 256, 21


@final
@attrs.frozen(kw_only=True)
class Curve:
    """Disagreement of the untouched network's answers to noisy and to clean images.

    Attributes:
        images: Number of images, the first of a set.
        timesteps: L base timesteps, rising.
        disagreement: L values; see `ppap_framework.diagnosis.disagreement`.
    """

    images: int
    timesteps: list[int] = attrs.field(converter=lambda values: [int(v) for v in values])
    disagreement: list[float] = attrs.field(converter=lambda values: [float(v) for v in values])

    @classmethod
    def measure(cls, guide: Guide, stage: Stage, images: Images, recipe: Recipe) -> Curve:
        """The curve of a guide's network, which is in evaluation mode.

        Args:
            guide: The network, and the loss that compares answers.
            stage: The stage whose images are noised.
            images: The set.
            recipe: Batch size, and the seed of the noise.

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
        return cls(images=count, timesteps=timesteps, disagreement=values)

    @classmethod
    def recorded(
        cls, settings: Mapping[str, Any] | None, wanted: Mapping[str, Any]
    ) -> Curve | None:
        """The curve in the settings of an earlier training, if these include the wanted ones.

        Raises:
            AssetError: If it cannot be read.
        """
        if settings is None or "proposal" not in settings:
            return None
        if any(settings.get(name) != value for name, value in wanted.items()):
            return None
        try:
            return cls(**settings["proposal"])
        except (TypeError, ValueError) as error:
            raise AssetError(
                "the proposal in the record of the training cannot be read",
                hint="--overwrite begins anew",
            ) from error

    def starts(self, schedule: NoiseSchedule, experts: int | None) -> list[int]:
        """The timesteps at which experts 1 to N - 1 should begin.

        Args:
            schedule: The schedule of the timesteps.
            experts: N; None for as many as the curve asks for.
        """
        length = schedule.num_timesteps
        n = experts or propose_number(self.timesteps, self.disagreement, length)
        return list(propose_boundaries(self.timesteps, self.disagreement, length, n))
