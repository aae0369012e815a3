"""The user's own network as a guide, and the user's own function as a loss."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from ppap_framework.components import GuidanceModel, Target, TargetInput, TaskLoss
from ppap_framework.errors import UsageError
from ppap_framework.noise import NoiseLevel
from ppap_framework.preprocessing import ImageInput


@final
class ModuleGuide(GuidanceModel):
    """Any network that looks at images, without names for what it sees.

    Args:
        network: Maps (B, 3, h, w) to a tensor of B predictions; differentiable. Images are cast to
            the dtype of its parameters. Outside of training its buffers stay what they are.
        mean: Channel means, in [0, 1], that are subtracted; with `std`. Without both, the network
            gets images in [-1, 1].
        std: Channel deviations, positive, by which images are then divided.
        size: Side in pixels, positive, to which images are resized first, bilinearly with
            antialiasing; None to keep their size.
        task: Task of the loss, if known. For "classification", "depth" and "segmentation" the
            prediction is one tensor of what the network returns: the only one, or that called
            `logits`, `out` or `predicted_depth`. For other tasks it is all that it returns.

    UsageError if only one of `mean` and `std` is given, or a value is invalid.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
        task: str | None = None,
    ) -> None:
        super().__init__()
        if mean is None and std is None:
            mean = std = (0.5, 0.5, 0.5)  # to the same range as it comes in
        if mean is None or std is None or (len(mean), len(std)) != (3, 3) or min(std) <= 0:
            raise UsageError(f"mean and std must be three numbers each, not {mean} and {std}")
        if not all(map(math.isfinite, (*mean, *std))):
            raise UsageError(f"mean and std must be finite, not {mean} and {std}")
        if size is not None and size < 1:
            raise UsageError(f"images cannot be resized to {size} pixels")
        self.network, self._task = network, task
        size = None if size is None else int(size)  # numpy's numbers are taken, too
        self._input = ImageInput(size=size, mean=map(float, mean), std=map(float, std))

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        """The network's output; the level is ignored."""
        images = self._input(images)
        floats = (p.dtype for p in self.network.parameters() if p.is_floating_point())
        with _same_buffers(self.network):
            answer = self.network(images.to(next(floats, images.dtype)))
        one = self._task in ("classification", "depth", "segmentation")
        return _one_tensor(answer) if one else answer

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
            raise UsageError(f"a bare network has no name for {text[:60]!r}", hint=hint)
        return Target(value=torch.tensor([int(text)]), label=text)


def _one_tensor(answer: Any) -> Tensor:
    """The tensor among what a network returned, by its name or because it is the only one."""
    if isinstance(answer, Tensor):
        return answer
    named = answer if isinstance(answer, Mapping) else getattr(answer, "__dict__", {})
    parts = answer if isinstance(answer, tuple | list) else named.values()
    found = [named[name] for name in ("logits", "out", "predicted_depth") if name in named]
    tensors = [part for part in found[:1] or parts if isinstance(part, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    what = f"a {type(answer).__name__} with {len(tensors) or 'no'} tensors"
    hint = "wrap it in a module that returns the tensor that the loss compares"
    raise UsageError(f"the network returns {what}, and the loss compares one", hint=hint)


@contextlib.contextmanager
def _same_buffers(network: nn.Module) -> Iterator[None]:
    """A context in which a network that is not in training changes no buffer, such as a counter."""
    modules = () if network.training else network.modules()
    kept = [
        (module._buffers, name, buffer, buffer._version, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_inference()
    ]
    try:
        yield
    finally:
        for buffers, name, buffer, version, value in kept:
            if buffer._version != version:
                buffer.data.copy_(value)
            if buffers[name] is not buffer:
                buffers[name] = buffer


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
