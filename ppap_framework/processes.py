"""The processes of one launch by `torchrun` or `accelerate launch`.

Hugging Face accelerate joins them: over gloo on CPUs, over nccl on GPUs, one for each. Sums over
them are equal in each, to the bit, so they decide alike. If one fails, torchrun ends the others.
"""

from __future__ import annotations

import atexit
import datetime
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast, final

import attrs
import torch
from torch import Tensor, nn

from ppap_framework.errors import PluginError, PpapError, UsageError

_T = TypeVar("_T")


def launched() -> tuple[int, int]:
    """The number of this process, from 0, and that of all of its launch."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@final
@attrs.frozen
class Processes:
    """Processes that compute together; `rank` is this one's, from 0. All call every method."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of_launch(cls, device: str | torch.device) -> Processes:
        """Join the other processes, which is done once; PluginError without accelerate."""
        rank, count = launched()
        if count > 1:
            try:
                from accelerate import PartialState
            except ImportError as error:
                fault = f"this is one of {count} processes, and accelerate is not installed"
                raise PluginError(fault, hint="pip install ppap-framework[machines]") from error
            # Imported once there is a group, it would keep it by its defaults, and gloo's threads.
            import torch.distributed.nn

            cpu = str(device) == "cpu" or not torch.cuda.is_available()
            state = PartialState(cpu=cpu, timeout=datetime.timedelta(hours=6))
            atexit.register(state.destroy_process_group)  # threads of gloo would abort some exits
        return cls(rank, count)

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def once(self, call: Callable[[], _T]) -> _T:
        """The result of a call that only the first process makes; so is its PpapError."""
        if self.count == 1:
            return call()
        from accelerate.utils import broadcast_object_list

        made: list[Any] = [None]
        if self.first:
            try:
                made = [call()]
            except PpapError as error:
                made = [error]
        broadcast_object_list(made)
        if isinstance(made[0], PpapError):
            raise made[0]
        return cast("_T", made[0])

    def gathered(self, values: list[_T]) -> list[_T]:
        """The values of all processes."""
        from accelerate.utils import gather_object

        return values if self.count == 1 else gather_object(values)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, not differentiable."""
        if self.count == 1:
            return tensor
        from accelerate import PartialState
        from accelerate.utils import reduce

        return cast("Tensor", reduce(tensor.to(PartialState().device), "sum")).to(tensor.device)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give parameters the sums of their gradients."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.count > 1:
            flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def turns(self, num: int, size: int) -> list[range]:
        """Which of `num` images this process draws: a batch of every `count` ones."""
        if self.count == 1:
            return [range(num)]
        batches = [range(num)[start : start + size] for start in range(0, num, size)]
        return batches[self.rank :: self.count]

    def share(self, length: int) -> slice:
        """The part of a batch that this process computes; parts differ by one at most."""
        return slice(length * self.rank // self.count, length * (self.rank + 1) // self.count)

    def check_batch(self, size: int) -> None:
        """UsageError if a batch has not an image for each process."""
        if size < self.count:
            fault = f"a batch of {size} cannot be divided among {self.count} processes"
            raise UsageError(fault, hint="use a larger batch, or fewer processes")


def normalized(norm: Any, processes: Processes, x: Tensor) -> Tensor:
    """What a batch norm in training mode, with running statistics, returns for its process's part
    of a batch, (B, C, ...). torch's `SyncBatchNorm` needs a GPU.
    """

    def total(part: Tensor) -> Tensor:
        """Its sum over processes; so is the gradient."""
        whole = processes.sum(part.detach()) + (part - part.detach())  # of the value 0
        if whole.requires_grad:
            whole.register_hook(processes.sum)  # type: ignore[no-untyped-call]  # of torch
        return whole

    dims = [0, *range(2, x.ndim)]
    shape = (1, -1, *[1] * (x.ndim - 2))
    wide = x.float()
    count = processes.sum(torch.tensor(x.numel() / x.shape[1], device=x.device)).item()
    mean = total(wide.sum(dims)) / count
    centred = wide - mean.view(shape)
    var = total(centred.square().sum(dims)) / count
    y: Tensor = centred * torch.rsqrt(var + norm.eps).view(shape)
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        rate = 1.0 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.to(norm.running_mean), rate)
        norm.running_var.lerp_((var * count / (count - 1)).to(norm.running_var), rate)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)
