"""Networks that judge finished images and never guide: of classes, and of scenes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppap_framework.components import TargetInput
from ppap_framework.diagnosis.intervals import Floats
from ppap_framework.errors import PluginError, UsageError
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel
from ppap_framework.origin import Origin
from ppap_framework.pixels import from_uint8, to_uint8
from ppap_framework.targets import decode_target
from ppap_plugin_bench.experiment import JudgeSpec
from ppap_plugin_bench.pictures import Pictures

__all__ = ["ClassJudge", "SceneJudge"]

_BATCH = 256


class _Judge:
    """A guide's network on a device, looking at finished images."""

    def __init__(self, guide: Guide, device: torch.device) -> None:
        assert guide.origin is not None  # it was requested by name
        self.origin: Origin = guide.origin
        self.guide = guide
        self._model = guide.model.to(device).eval()
        self._device = device

    def _predict(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Any]:
        """Images as tensors, and the prediction."""
        images = from_uint8(pixels).to(self._device)
        return images, self._model(images, NoiseLevel.clean(len(images)))


@final
class ClassJudge(_Judge):
    """A classifier. Its features are the input of the last linear layer that runs, so that it may
    have any architecture.

    Args:
        guide: The classifier; its target does not matter.
        names: Names of the K classes.
        device: The device.

    Raises:
        UsageError: If it does not know a name.
    """

    def __init__(self, guide: Guide, names: Sequence[str], device: torch.device) -> None:
        super().__init__(guide, device)
        self._outputs = torch.cat(
            [self._model.target(TargetInput(text=name, source=name)).value for name in names]
        ).cpu()  # (K,), the output of each class

    @torch.inference_mode()
    def look(self, pixels: NDArray[np.uint8]) -> tuple[Floats, NDArray[np.int64], Floats]:
        """What it sees in images.

        Args:
            pixels: (N, H, W, 3).

        Returns:
            Features, (N, D); the likeliest class, (N,), or -1 for one that has no name; and its
            probability, (N,).

        Raises:
            PluginError: If it has no linear layer, or gives no logits (N, outputs).
        """
        parts = [self._look(pixels[k : k + _BATCH]) for k in range(0, len(pixels), _BATCH)]
        features, classes, confidence = (
            torch.cat(part).numpy() for part in zip(*parts, strict=True)
        )
        return features.astype(np.float64), classes, confidence.astype(np.float64)

    def _look(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor, Tensor]:
        with _last_linear_input(self._model.network) as inputs:
            images, logits = self._predict(pixels)
        features = inputs[-1] if inputs else torch.empty(0)
        if len(features) != len(images) or features.ndim != 2:
            raise PluginError(
                f"judge {self.origin.component!r} shows no features: no (B, D) input reaches a "
                "last linear layer",
                hint="take a classifier that ends in one",
            )
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            raise PluginError(f"judge {self.origin.component!r} is no classifier")
        confidence, output = logits.float().softmax(1).max(1)  # (B,)
        classes = torch.full((logits.shape[1],), -1)
        classes[self._outputs] = torch.arange(len(self._outputs))
        return features.float().cpu(), classes[output.cpu()], confidence.cpu()


@final
class SceneJudge(_Judge):
    """A network whose loss compares what it sees with what is there.

    Args:
        guide: The network and its loss; its target does not matter.
        spec: The array that is the truth, and the metrics that count.
        device: The device.
    """

    def __init__(self, guide: Guide, spec: JudgeSpec, device: torch.device) -> None:
        super().__init__(guide, device)
        self.spec = spec

    def truth(self, scenes: Pictures) -> Tensor:
        """The truth of S scenes as the loss takes it, (S, ...).

        Raises:
            UsageError: If the judge does not understand it.
        """
        return torch.cat([target.value for target in self._targets(scenes)])

    @torch.inference_mode()
    def figures(self, pixels: NDArray[np.uint8], truth: Tensor) -> dict[str, Floats]:
        """The metrics of its loss.

        Args:
            pixels: (N, H, W, 3).
            truth: (N, ...), of the scene that each image was aimed at.

        Returns:
            By the figure's name, (N,), which may not be finite.

        Raises:
            UsageError: If the loss has no such metric.
        """
        parts = []
        for start in range(0, len(pixels), _BATCH):
            rows = slice(start, start + _BATCH)
            _, prediction = self._predict(pixels[rows])
            found = self.guide.loss.metrics(prediction, truth[rows].to(self._device))
            if missing := [name for name in self.spec.metrics if name not in found]:
                raise UsageError(
                    f"loss {self.guide.loss_name!r} of judge {self.spec.name!r} measures no "
                    f"{', '.join(missing)}",
                    hint=f"it measures {', '.join(found) or 'nothing'}",
                )
            parts.append([found[name].double().cpu() for name in self.spec.metrics])
        whole = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        return dict(zip(self.spec.figures, whole, strict=True))

    @torch.inference_mode()
    def shown(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pictures of what it sees in images (N, H, W, 3): (N, h, w, 3)."""
        images, prediction = self._predict(pixels)
        return to_uint8(self._model.render(prediction, images))

    def shown_truth(self, scenes: Pictures) -> list[NDArray[np.uint8]] | None:
        """Pictures of the truth, each (h, w, 3); None if the judge shows none."""
        pictures = [target.picture for target in self._targets(scenes)]
        shown = [to_uint8(picture[None])[0] for picture in pictures if picture is not None]
        return shown if len(shown) == len(pictures) else None

    @torch.no_grad()
    def _targets(self, scenes: Pictures) -> list[Any]:
        truths = scenes.truths[self.spec.truth]
        if self.spec.reciprocal:
            with np.errstate(divide="ignore"):  # infinite values are refused as a target
                truths = 1.0 / truths.astype(np.float32)
        return [self._model.target(decode_target(truth)) for truth in truths]


@contextlib.contextmanager
def _last_linear_input(network: nn.Module) -> Iterator[list[Tensor]]:
    """A list whose only item is the input of the linear layer that ran last."""
    inputs: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Any, ...]) -> None:
        inputs[:] = given[:1]

    hooks = [
        module.register_forward_pre_hook(keep)
        for module in network.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()
