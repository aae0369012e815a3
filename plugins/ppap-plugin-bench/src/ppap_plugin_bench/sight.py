"""All judges of an experiment together, and what they were to see."""

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
from ppap_framework.run import Origin
from ppap_plugin_bench.aim import Aims
from ppap_plugin_bench.assessment import mean
from ppap_plugin_bench.judge import Judge, Verdict
from ppap_plugin_bench.pictures import Scenes
from ppap_plugin_bench.scene_judge import SceneJudge
from ppap_plugin_bench.stand import Stand

__all__ = ["Sight"]


@final
@attrs.frozen(eq=False)
class Sight:
    """What judges see.

    Attributes:
        judge: Of classes, whose features say how good images are.
        others: Of scenes.
        truths: For each of these, (K, ...): what there is to see in every scene.
        aims: What images aim at.
    """

    judge: Judge
    others: tuple[SceneJudge, ...]
    truths: tuple[Tensor, ...]
    aims: Aims

    @classmethod
    def of(cls, stand: Stand) -> Sight:
        """Load all judges.

        Raises:
            PpapError: As `Stand.judge` and `Stand.scene_judges`.
        """
        others, scenes = tuple(stand.scene_judges()), stand.aims.scenes
        truths = tuple(judge.truth(scenes) for judge in others) if scenes is not None else ()
        return cls(stand.judge(), others, truths, stand.aims)

    @property
    def origins(self) -> list[Origin]:
        """Of all judges."""
        return [self.judge.origin, *(judge.origin for judge in self.others)]

    @property
    def protocol(self) -> dict[str, Any]:
        """What rows must have in common beside the judge; nothing where there are no scenes."""
        if self.aims.scenes is None:
            return {}
        return {
            "scenes": {"sha256": self.aims.scenes.sha256, "num": self.aims.reported},
            "judges": [
                {**attrs.asdict(judge.judge), "sha256": judge.origin.sha256}
                for judge in self.others
            ],
        }

    def describe(self) -> list[dict[str, Any]]:
        """The judges of scenes, as JSON."""
        return [
            {
                "name": judge.judge.name,
                "loss": judge.loss_name,
                "truth": judge.judge.truth,
                "reciprocal": judge.judge.reciprocal,
                **provenance(judge.origin),
            }
            for judge in self.others
        ]

    def look(
        self, pixels: NDArray[np.uint8], *, tuning: bool = False
    ) -> tuple[Verdict, dict[str, Floats]]:
        """What they see in images that aim at one target each.

        Args:
            pixels: (N, H, W, 3).
            tuning: Whether they aim at what rows are tuned with.

        Returns:
            What the judge sees, and by figure, (N,), how the others judge them.

        Raises:
            PpapError: As the judges.
        """
        indices = torch.from_numpy(self.aims.indices(len(pixels), tuning=tuning))
        return self.judge.look(pixels), self._judged(pixels, [t[indices] for t in self.truths])

    def look_at(self, scenes: Scenes) -> tuple[Verdict, dict[str, Floats]]:
        """The same of pictures whose own truth is known."""
        truths = [judge.truth(scenes) for judge in self.others]
        pixels = scenes.pictures.images
        return self.judge.look(pixels), self._judged(pixels, truths)

    def of_scenes(self) -> dict[str, Any] | None:
        """How the judges of scenes judge the scenes themselves, as JSON."""
        if self.aims.scenes is None:
            return None
        reported = self.aims.scenes.part(0, self.aims.reported)
        truths = [truth[: self.aims.reported] for truth in self.truths]
        judged = self._judged(reported.pictures.images, truths)
        return {
            "num": len(reported),
            "figures": {name: mean(values).record() for name, values in judged.items()},
        }

    def lines(self, pixels: NDArray[np.uint8]) -> list[Sequence[NDArray[np.uint8]]]:
        """Images, (N, H, W, 3), and what the judges of scenes see in them: lines of pictures."""
        return [list(pixels), *(list(judge.shown(pixels)) for judge in self.others)]

    def scene_lines(self, number: int) -> list[Sequence[NDArray[np.uint8]]]:
        """The first scenes, and what there is to see in them: lines of pictures; none where there
        are no scenes.
        """
        if self.aims.scenes is None:
            return []
        scenes = self.aims.scenes.part(0, number)
        shown = [judge.shown_truth(scenes) for judge in self.others]
        return [list(scenes.pictures.images), *(line for line in shown if line is not None)]

    def _judged(self, pixels: NDArray[np.uint8], truths: Sequence[Tensor]) -> dict[str, Floats]:
        judged: dict[str, Floats] = {}
        for judge, truth in zip(self.others, truths, strict=True):
            judged |= judge.figures(pixels, truth)
        return judged
