"""Judges of scenes: networks that never guide, and hold what they see against what is there."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppap_framework.components import Target
from ppap_framework.diagnosis.intervals import Floats
from ppap_framework.errors import UsageError
from ppap_framework.run import LoadedGuide
from ppap_framework.targets import decode_target
from ppap_plugin_bench.experiment import DenseJudge
from ppap_plugin_bench.pictures import Scenes
from ppap_plugin_bench.pixels import clean_levels, to_images, to_pixels

__all__ = ["SceneJudge"]

_BATCH = 256


@final
class SceneJudge:
    """A network that looks at finished images; the metrics of its loss say how far what it sees is
    from what there is to see in the scenes that they were aimed at.

    Args:
        loaded: The network and its loss; what it is aimed at does not matter.
        judge: Which array is the truth, and which metrics count.
        device: Where it looks.
    """

    def __init__(self, loaded: LoadedGuide, judge: DenseJudge, device: torch.device) -> None:
        self.origin = loaded.origin
        self.loss_name = loaded.loss_name
        self.judge = judge
        self._model = loaded.guide.model.to(device).eval().requires_grad_(False)
        self._loss = loaded.guide.loss
        self._device = device

    def truth(self, scenes: Scenes) -> Tensor:
        """What is there, in the form that the loss compares with: (S, ...).

        Raises:
            UsageError: Where the judge cannot make that of it.
        """
        return torch.cat([self._target(scenes, index).value for index in range(len(scenes))])

    @torch.inference_mode()
    def figures(self, pixels: NDArray[np.uint8], truth: Tensor) -> dict[str, Floats]:
        """How it judges images.

        Args:
            pixels: (N, H, W, 3).
            truth: Of the scene that each was aimed at, (N, ...).

        Returns:
            By the figure's name, (N,); not finite where the loss says so.

        Raises:
            UsageError: Where the loss knows no such metric.
        """
        parts = []
        for start in range(0, len(pixels), _BATCH):
            rows = slice(start, start + _BATCH)
            found = self._loss.metrics(self._look(pixels[rows]), truth[rows].to(self._device))
            if missing := [name for name in self.judge.metrics if name not in found]:
                raise UsageError(
                    f"loss {self.loss_name!r} of judge {self.judge.name!r} measures no "
                    f"{', '.join(missing)}",
                    hint=f"it measures {', '.join(found) or 'nothing'}",
                )
            parts.append([found[name].double().cpu() for name in self.judge.metrics])
        whole = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        return dict(zip(self.judge.figures, whole, strict=True))

    @torch.inference_mode()
    def shown(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What it sees in images (N, H, W, 3), for people: (N, h, w, 3)."""
        images = to_images(pixels, self._device)
        return to_pixels(self._model.render(self._look(pixels), images))

    def shown_truth(self, scenes: Scenes) -> list[NDArray[np.uint8]] | None:
        """What there is to see in scenes, for people: each (h, w, 3); None where it shows none."""
        pictures = [self._target(scenes, index).picture for index in range(len(scenes))]
        shown = [to_pixels(picture[None])[0] for picture in pictures if picture is not None]
        return shown if len(shown) == len(pictures) else None

    def _look(self, pixels: NDArray[np.uint8]) -> Any:
        return self._model(to_images(pixels, self._device), clean_levels(len(pixels)))

    @torch.no_grad()
    def _target(self, scenes: Scenes, index: int) -> Target:
        there = scenes.truths[self.judge.truth][index]
        if self.judge.reciprocal:
            with np.errstate(divide="ignore"):  # what is not finite is refused as a target
                there = 1.0 / there.astype(np.float32)
        return self._model.target(decode_target(there))
