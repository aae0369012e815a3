"""What computing something takes, found without computing it: on tensors that have a shape and no
numbers, so that a network of any size is counted in seconds, and none of its weights are read.

FLOPs are those of matrix products and convolutions, two for each multiply-add, by torch's own
formulas (`torch.utils.flop_counter`).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, final

import attrs
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["FakeTensors", "Work"]

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Work:
    """What computing something takes.

    Attributes:
        flops: Of matrix products and convolutions, a multiply-add being two.
        memory: In bytes, the most that was in use at once of what was computed: without weights,
            inputs, and what libraries set aside for themselves.
    """

    flops: int
    memory: int


@final
class FakeTensors:
    """Tensors that have a shape and no numbers, and what computing with them takes."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def copy(self, real: T) -> T:
        """A copy of anything, whose tensors have no numbers. What is copied stays as it is."""
        with FakeCopyMode(self._mode):
            return copy.deepcopy(real)

    def work(self, compute: Callable[[], T]) -> tuple[T, Work]:
        """What a function of copies gives, and what it takes.

        Raises:
            Exception: Of torch, where something depends on numbers.
        """
        # Fused attention is counted on some devices only; of the others, this takes most memory.
        with self._mode, sdpa_kernel(SDPBackend.MATH), _Meter() as meter:
            result = compute()
        return result, Work(flops=meter.flops, memory=meter.peak)


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own base class
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.flops = 0
        self.peak = 0
        self._live = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if isinstance(func, OpOverload):
            flops = flop_registry.get(func.overloadpacket)
            self.flops += flops(*args, **kwargs, out_val=out) if flops else 0
            if not func.is_view:
                self._keep(out)
        return out

    def _keep(self, out: Any) -> None:
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._seen:
                storage = tensor.untyped_storage()
                size = storage.nbytes()
                self._seen.add(storage)
                weakref.finalize(storage, self._let_go, size)
                self._live += size
                self.peak = max(self.peak, self._live)

    def _let_go(self, size: int) -> None:
        self._live -= size
