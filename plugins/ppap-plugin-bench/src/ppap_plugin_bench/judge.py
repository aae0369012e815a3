"""The judge: a classifier that never guides, and whose features and classes measure every row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, final

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppap_framework.components import TargetInput
from ppap_framework.diagnosis.intervals import Floats
from ppap_framework.errors import PluginError
from ppap_framework.run import LoadedGuide
from ppap_plugin_bench.pixels import clean_levels, to_images

__all__ = ["Judge", "Projection", "Verdict"]

_BATCH = 256
MAX_FEATURES = 64


@attrs.frozen(eq=False)
class Verdict:
    """What the judge sees in N images.

    Attributes:
        features: (N, D), float64.
        classes: (N,), int64: the likeliest class; -1 for one that is not asked about.
        confidence: (N,), its probability.
    """

    features: Floats
    classes: NDArray[np.int64]
    confidence: Floats


@final
class Judge:
    """A classifier that looks at finished images.

    Its features are what goes into the last linear layer that runs, so that it may be of any
    architecture.

    Args:
        loaded: The classifier; what it is aimed at does not matter.
        names: Of the classes, as it understands them.
        device: Where it looks.

    Raises:
        UsageError: For a name that it does not know.
    """

    def __init__(self, loaded: LoadedGuide, names: Sequence[str], device: torch.device) -> None:
        self.origin = loaded.origin
        self.names = tuple(names)
        self._model = loaded.guide.model.to(device).eval().requires_grad_(False)
        self._device = device
        self._outputs = torch.cat(
            [self._model.target(TargetInput(text=name, source=name)).value for name in names]
        )  # (K,), the output that stands for each name

    @torch.inference_mode()
    def look(self, pixels: NDArray[np.uint8]) -> Verdict:
        """What it sees in images.

        Args:
            pixels: (N, H, W, 3).

        Raises:
            PluginError: Where it has no linear layer, or no class for each image.
        """
        parts = [
            self._look(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)
        ]
        features, classes, confidence = (
            torch.cat(part).numpy() for part in zip(*parts, strict=True)
        )
        return Verdict(features.astype(np.float64), classes, confidence.astype(np.float64))

    def _look(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor, Tensor]:
        images = to_images(pixels, self._device)
        with _last_linear_input(self._model.network) as inputs:
            logits = self._model(images, clean_levels(len(images)))
        features = inputs[-1] if inputs else torch.empty(0)
        if len(features) != len(images) or features.ndim != 2:
            raise PluginError(
                f"judge {self.origin.component!r} shows no features: nothing that is (B, D) goes "
                "into a last linear layer",
                hint="take a classifier that ends in one",
            )
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            raise PluginError(f"judge {self.origin.component!r} is no classifier")
        confidence, output = logits.float().softmax(1).max(1)  # (B,)
        classes = torch.full((logits.shape[1],), -1)
        classes[self._outputs] = torch.arange(len(self.names))
        return features.float().cpu(), classes[output.cpu()], confidence.cpu()


@attrs.frozen(eq=False)
class Projection:
    """Features reduced to the first principal axes of the reference, where there are too many.

    With many features a Frechet distance is mostly the noise of its covariance.
    """

    mean: Floats
    axes: Floats | None

    @classmethod
    def of(cls, reference: Floats, limit: int = MAX_FEATURES) -> Projection:
        """The projection of features like these, (M, D), to at most `limit`."""
        mean = reference.mean(0)
        if reference.shape[1] <= limit:
            return cls(mean, None)
        _, vectors = np.linalg.eigh(np.cov(reference, rowvar=False))  # rising
        return cls(mean, vectors[:, ::-1][:, :limit])

    def __call__(self, features: Floats) -> Floats:
        """(N, D) to (N, at most `limit`)."""
        if self.axes is None:
            return features
        projected: Floats = (features - self.mean) @ self.axes
        return projected


@contextlib.contextmanager
def _last_linear_input(network: nn.Module) -> Iterator[list[Tensor]]:
    """A list whose last item is what the last linear layer was given."""
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
