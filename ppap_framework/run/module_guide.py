"""Any network as a guide, and any function as its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppap_framework.components import GuidanceModel, Target, TargetInput, TaskLoss
from ppap_framework.errors import UsageError
from ppap_framework.noise import NoiseLevel


@final
class ModuleGuide(GuidanceModel):
    """Any network that looks at images, without names for what it sees.

    Args:
        network: Maps (B, 3, h, w) to a tensor of B predictions; differentiable.
        mean: Channel means, in [0, 1], that are subtracted; with `std`. Without both, the network
            gets images in [-1, 1].
        std: Channel deviations, positive, by which images are then divided.
        size: Side in pixels, positive, to which images are resized first, bilinearly with
            antialiasing; None to keep their size.

    Raises:
        UsageError: If only one of `mean` and `std` is given, or a value is invalid.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__()
        if mean is None and std is None:
            mean = std = (0.5, 0.5, 0.5)  # to the same range as it comes in
        if mean is None or std is None or (len(mean), len(std)) != (3, 3) or min(std) <= 0:
            raise UsageError(f"mean and std must be three numbers each, not {mean} and {std}")
        if size is not None and size < 1:
            raise UsageError(f"images cannot be resized to {size} pixels")
        self.network, self._size = network, size
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        """The network's output; the level is ignored."""
        if self._size is not None:
            size = self._size, self._size
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.network(((images + 1.0) / 2.0 - self.mean) / self.std)

    def target(self, given: TargetInput) -> Target:
        """An index, (1,); a picture, (1, 3, H, W) in [-1, 1]; or an array, (1, ...) or (num, ...).

        Raises a UsageError for words, since a bare network has no names.
        """
        if given.array is not None:
            value = given.array.reshape(1) if given.array.ndim == 0 else given.array
            return Target(value=value, label=given.source)
        if given.image is not None:
            picture = given.pixels()
            return Target(value=picture[None], label=given.source, picture=picture)
        text = given.text or ""
        if not (text.isascii() and text.isdigit()):
            hint = "give an index, a picture, or the value that its loss compares with"
            raise UsageError(f"a bare network has no name for {text!r}", hint=hint)
        return Target(value=torch.tensor([int(text)]), label=text)


@final
class FunctionLoss(TaskLoss):
    """A bare function as loss. It can guide, but not teach experts."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        self._function = function

    def energy(self, prediction: Any, target: Tensor) -> Tensor:
        """The function's value, (B,)."""
        return self._function(prediction, target)

    def transfer(self, student: Any, teacher: Any) -> Tensor:
        """Not available: raises a UsageError."""
        reason = "a bare function does not say how a student learns from a teacher"
        raise UsageError(reason, hint="give a TaskLoss, or the name of one")
