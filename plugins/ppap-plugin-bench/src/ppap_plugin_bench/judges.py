"""All judges of an experiment, and what they see in images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppap_framework.diagnosis.environment import provenance
from ppap_framework.diagnosis.intervals import Floats
from ppap_framework.origin import Origin
from ppap_framework.run import GuideRequest
from ppap_plugin_bench.assessment import Observations, mean
from ppap_plugin_bench.judge import ClassJudge, SceneJudge
from ppap_plugin_bench.pictures import Pictures
from ppap_plugin_bench.setup import Setup
from ppap_plugin_bench.targets import Targets

__all__ = ["Judges"]


@final
@attrs.frozen(eq=False)
class Judges:
    """All judges of an experiment.

    Attributes:
        of_classes: The judge of classes, whose features measure quality and diversity.
        of_scenes: The judges of scenes.
        truths: For each of these, (K, ...): the truth of every scene.
        targets: What images aim at.
    """

    of_classes: ClassJudge
    of_scenes: tuple[SceneJudge, ...]
    truths: tuple[Tensor, ...]
    targets: Targets

    @classmethod
    def load(cls, setup: Setup) -> Judges:
        """Load all judges.

        Raises:
            PpapError: As `ppap_framework.guide`, and if they do not understand the truth.
        """
        experiment, targets, device = setup.experiment, setup.targets, setup.device
        of_scenes = tuple(
            SceneJudge(_load(spec.name, spec.guider, spec.loss), spec, device)
            for spec in experiment.judges
        )
        truths = ()
        if targets.scenes is not None:
            truths = tuple(judge.truth(targets.scenes) for judge in of_scenes)
        of_classes = ClassJudge(_load("judge", experiment.judge), targets.names, device)
        return cls(of_classes, of_scenes, truths, targets)

    @property
    def origins(self) -> list[Origin]:
        """Origins of all judges."""
        return [self.of_classes.origin, *(judge.origin for judge in self.of_scenes)]

    @property
    def protocol(self) -> dict[str, Any]:
        """What rows must have in common beside the judge of classes; empty without scenes."""
        if self.targets.scenes is None:
            return {}
        return {
            "scenes": {
                "sha256": self.targets.scenes.scenes_sha256,
                "num": self.targets.reported,
            },
            "judges": [
                {**attrs.asdict(judge.spec), "sha256": judge.origin.sha256}
                for judge in self.of_scenes
            ],
        }

    def describe(self) -> list[dict[str, Any]]:
        """The judges of scenes, as JSON."""
        return [
            {
                "name": judge.spec.name,
                "loss": judge.guide.loss_name,
                "truth": judge.spec.truth,
                "reciprocal": judge.spec.reciprocal,
                **provenance(judge.origin),
            }
            for judge in self.of_scenes
        ]

    def look(self, pixels: NDArray[np.uint8], *, tuning: bool = False) -> Observations:
        """What they see in images that were drawn.

        Args:
            pixels: (N, H, W, 3).
            tuning: Whether they aim at the targets for tuning.

        Raises:
            PpapError: As the judges.
        """
        indices = torch.from_numpy(self.targets.indices(len(pixels), tuning=tuning))
        classes = self.targets.classes(len(pixels), tuning=tuning)
        return self._look(pixels, classes, [truth[indices] for truth in self.truths])

    def look_at(self, pictures: Pictures) -> Observations:
        """What they see in pictures that show themselves."""
        truths = [judge.truth(pictures) for judge in self.of_scenes]
        return self._look(pictures.images, pictures.labels, truths)

    def figures_of_scenes(self) -> dict[str, Any] | None:
        """Figures of the scenes themselves, as JSON; None without scenes."""
        if self.targets.scenes is None:
            return None
        num = self.targets.reported
        truths = [truth[:num] for truth in self.truths]
        judged = self._judged(self.targets.scenes.images[:num], truths)
        figures = {name: mean(values).record() for name, values in judged.items()}
        return {"num": num, "figures": figures}

    def lines(self, pixels: NDArray[np.uint8]) -> list[Sequence[NDArray[np.uint8]]]:
        """Lines of pictures: images, and what the judges of scenes see in them."""
        return [list(pixels), *(list(judge.shown(pixels)) for judge in self.of_scenes)]

    def scene_lines(self, number: int) -> list[Sequence[NDArray[np.uint8]]]:
        """Lines of pictures: the first scenes, and what is there; none without scenes."""
        if self.targets.scenes is None:
            return []
        scenes = self.targets.scenes.part(0, number)
        shown = [judge.shown_truth(scenes) for judge in self.of_scenes]
        return [list(scenes.images), *(line for line in shown if line is not None)]

    def _look(
        self, pixels: NDArray[np.uint8], targets: NDArray[np.int64], truths: Sequence[Tensor]
    ) -> Observations:
        seen = self.of_classes.look(pixels)
        return Observations(*seen, targets, self._judged(pixels, truths))

    def _judged(self, pixels: NDArray[np.uint8], truths: Sequence[Tensor]) -> dict[str, Floats]:
        judged: dict[str, Floats] = {}
        for judge, truth in zip(self.of_scenes, truths, strict=True):
            judged |= judge.figures(pixels, truth)
        return judged


def _load(name: str, source: str, loss: str | None = None) -> Any:
    """The guide of a judge, "guider:checkpoint"."""
    guider, _, checkpoint = source.rpartition(":")
    request = GuideRequest(
        source=guider, checkpoint=checkpoint, loss=loss, experts="none", name=name
    )
    return request.load(aim=False)
