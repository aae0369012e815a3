"""From rows of an experiment to networks that are loaded and runs that are settled."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from ppap_framework import api
from ppap_framework.components import Target, TargetInput
from ppap_framework.errors import UsageError
from ppap_framework.evaluation.experiment import Candidate, Experiment, Row
from ppap_framework.evaluation.judge import Judge

__all__ = ["Stand", "Subject", "balanced"]


def balanced(images: int, classes: int) -> NDArray[np.int64]:
    """The class that each image aims at: image i at class i mod K.

    Raises:
        UsageError: Where classes would not be aimed at equally often.
    """
    if images % classes:
        raise UsageError(
            f"{images} images do not aim equally often at {classes} classes",
            hint=f"take {-(-images // classes) * classes}",
        )
    return np.arange(images) % classes


@attrs.frozen(eq=False)
class Stand:
    """An experiment on a device: its backend, and what its guides aim at.

    Attributes:
        experiment: What is measured.
        names: Of the K classes.
        device: As torch calls it, or "auto".
        backend: Loaded, frozen.
    """

    experiment: Experiment
    names: tuple[str, ...]
    device: str
    backend: api.LoadedBackend

    @classmethod
    def load(cls, experiment: Experiment, names: Sequence[str], device: str) -> Stand:
        """Load the backend.

        Raises:
            PpapError: As `ppap_framework.backend`.
        """
        loaded = api.backend(experiment.backend, checkpoint=experiment.checkpoint)
        stand = cls(experiment, tuple(names), device, loaded)
        place = stand.run(None, None, num=1, seed=0, batch=1).device
        for stage in loaded.stages:
            stage.network.to(place).eval().requires_grad_(False)
        return stand

    def judge(self) -> Judge:
        """Load the judge.

        Raises:
            PpapError: As `ppap_framework.guide`.
        """
        guider, _, checkpoint = self.experiment.judge.rpartition(":")
        loaded = api.guide(guider, target=self.names[0], checkpoint=checkpoint, name="judge")
        place = self.run(None, None, num=1, seed=0, batch=1).device
        return Judge(loaded, self.names, place)

    def guide(self, row: Row) -> api.LoadedGuide | None:
        """Load a row's guide, aimed at each class in turn, its experts chosen; None for a row
        without.

        Raises:
            PpapError: As `ppap_framework.guide`, and where the experts do not match.
        """
        if row.guider is None:
            return None
        loaded = api.guide(
            row.guider,
            target=self.names[0],
            loss=row.loss,
            model=row.model,
            checkpoint=row.checkpoint,
            options=row.options,
            experts=row.experts,
            name=row.name,
        )
        place = self.run(None, None, num=1, seed=0, batch=1).device
        model = loaded.guide.model.to(place).eval().requires_grad_(False)
        values = [model.target(TargetInput(text=name, source=name)).value for name in self.names]
        target = Target(value=torch.cat(values), label=f"{len(values)} classes")
        chosen = loaded.experts.choose(row.name, model, self.backend.inner, row.through)
        return attrs.evolve(
            loaded,
            guide=attrs.evolve(loaded.guide, target=target),
            experts=attrs.evolve(loaded.experts, source=chosen or "none"),
            target_source=f"image i at class i mod {len(values)} of {', '.join(self.names)}",
        )

    def run(
        self,
        row: Row | None,
        guide: api.LoadedGuide | None,
        candidate: Candidate | None = None,
        *,
        num: int,
        seed: int,
        batch: int,
    ) -> api.Plan:
        """Settle a run of a row's images.

        Args:
            row: Whose; None for unguided.
            guide: Of the row, as `guide` gives it.
            candidate: Scale and interval; None for those of the guide.
            num: How many images.
            seed: Of their noise.
            batch: How many at once.

        Raises:
            UsageError: Where the backend cannot be sampled so.
        """
        settings = api.Settings(
            num=num,
            steps=self.experiment.steps,
            seed=seed,
            through=row.through if row else "noisy",
            normalize=row.normalize if row else False,
            batch=batch,
            device=self.device,
            precision=self.experiment.precision,
        )
        return api.plan(self.backend, [_aimed(guide, candidate, num)] if guide else [], settings)


@attrs.frozen(eq=False)
class Subject:
    """A row with its guide, and the scale and interval that it draws with.

    Attributes:
        row: Of the experiment.
        guide: As `Stand.guide` gives it; None for a row without.
        candidate: None for a row without a guide.
    """

    row: Row
    guide: api.LoadedGuide | None
    candidate: Candidate | None


def _aimed(loaded: api.LoadedGuide, candidate: Candidate | None, num: int) -> api.LoadedGuide:
    """The guide with one target for each image, and the scale and interval of a candidate."""
    value = loaded.guide.target.value
    target = attrs.evolve(loaded.guide.target, value=value[torch.arange(num) % len(value)])
    guide = attrs.evolve(loaded.guide, target=target)
    if candidate is None:
        return attrs.evolve(loaded, guide=guide)
    calibrated = candidate.scale == "auto"
    scale = guide.scale if candidate.scale == "auto" else candidate.scale
    return attrs.evolve(
        loaded,
        guide=attrs.evolve(guide, scale=scale, interval=candidate.interval),
        experts=attrs.evolve(loaded.experts, calibrated=calibrated),
    )
