"""FLOPs and memory of a run, estimated on fake tensors: in seconds, without reading weights.

FLOPs are those of matrix products and convolutions, two for each multiply-add, by torch's own
formulas (`torch.utils.flop_counter`).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ppap_framework.components import CascadedStage, Stage
from ppap_framework.errors import PpapError
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel
from ppap_framework.run.counts import acting_at, counts_of
from ppap_framework.run.plan import Plan
from ppap_framework.runtime import computing_in, frozen, isolated

T = TypeVar("T")

_CPU = torch.device("cpu")


@attrs.frozen(kw_only=True)
class StepCost:
    """The cost of one network for one step of one image.

    Attributes:
        before: FLOPs before an image's first step, such as for reading its prompt.
        forward: FLOPs of a forward pass.
        backward: FLOPs of a backward pass; 0 if there is none.
        memory: Peak memory of activations, in bytes.
    """

    before: int = 0
    forward: int
    backward: int
    memory: int


@attrs.frozen(kw_only=True)
class Estimate:
    """The cost of a run, without memory that libraries allocate for themselves.

    Attributes:
        stages: Cost of each stage, by name.
        guides: Cost of each guide, by name.
        flops: FLOPs of the whole run, without the guides' last look at finished images.
        weights: Bytes of networks, of all experts, and of the copy of a network's own weights that
            is kept while an expert is merged (at most all of them).
        memory: Bytes for each image of a batch, at the most expensive step.
    """

    stages: Mapping[str, StepCost]
    guides: Mapping[str, StepCost]
    flops: int
    weights: int
    memory: int


@isolated()
def estimate(run: Plan) -> Estimate:
    """The cost of a plan; PpapError if a component depends on values and cannot be counted."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with computing_in(run.compute.precision, _CPU):
            stages = _stages(run, fake)
            guides = {guide.name: _guide(run, guide, fake) for guide in run.guides}
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise PpapError(f"what a step takes cannot be counted: {reason}") from error
    base = stages[run.stage.name]
    guided = len({t for acted in acting_at(run).values() for t in acted})
    flops = run.num * guided * base.backward
    for cost, process in zip(stages.values(), run.processes, strict=True):
        images = run.num * (1 + len(run.compared))
        flops += images * (cost.before + len(process) * cost.forward)
    for name, images in counts_of(run).guide_forwards.items():
        flops += images * (guides[name].forward + guides[name].backward)
    graph = base.memory if base.backward else 0  # the denoiser's, kept while guides look
    memory = [cost.memory for cost in stages.values()]
    memory += [graph + cost.memory for cost in guides.values()]
    return Estimate(
        stages=stages, guides=guides, flops=flops, weights=_weights(run), memory=max(memory)
    )


def _weights(run: Plan) -> int:
    networks: dict[int, nn.Module] = {id(stage.network): stage.network for stage in run.stages}
    size = 0
    for guide in run.guides:
        model = guide.model
        if guide.chosen is not None and id(model) not in networks:
            size += _size(model.network) + 4 * sum(guide.chosen.expert_parameters)
        networks[id(model)] = model
    return size + sum(map(_size, networks.values()))


def _size(network: nn.Module) -> int:
    return sum(t.nbytes for t in (*network.parameters(), *network.buffers()))


def _stages(run: Plan, fake: FakeTensorMode) -> dict[str, StepCost]:
    condition = run.backend.encode(run.sampling.prompts(range(1)), 1)
    stages, condition = _copy(fake, (run.stages, condition))
    differentiated = run.sampling.through == "clean" and bool(run.guides)
    costs: dict[str, StepCost] = {}
    before: Stage | None = None
    for stage in stages:
        with frozen([stage.network], _CPU, move=False):
            if before is not None:
                assert isinstance(stage, CascadedStage)  # or it could not continue
                condition, *_ = _measured(fake, partial(_conditioned, stage, condition, before))
            costs[stage.name] = _denoising(
                fake, stage, condition, differentiated and before is None
            )
        before = stage
    return costs


def _conditioned(stage: CascadedStage, condition: Any, before: Stage) -> Any:
    return stage.conditioned(condition, _image(before, before.network))


def _denoising(
    fake: FakeTensorMode, stage: Stage, condition: Any, differentiated: bool
) -> StepCost:
    def denoise(gradient: bool) -> None:
        x = _image(stage, stage.network).requires_grad_(gradient)
        t = torch.zeros(1, dtype=torch.int64, device=x.device)
        with torch.set_grad_enabled(gradient):
            x0 = stage.denoise(x, t, condition).x0
            if gradient:
                torch.autograd.grad(x0.sum(), x)

    _, first, memory = _measured(fake, partial(denoise, False))
    _, again, _ = _measured(fake, partial(denoise, False))
    both = again
    if differentiated:
        _, both, memory = _measured(fake, partial(denoise, True))
    # The first call reads the prompt, too.
    return StepCost(before=first - again, forward=again, backward=both - again, memory=memory)


def _guide(run: Plan, guide: Guide, fake: FakeTensorMode) -> StepCost:
    """One step of a guide; an expert costs the same."""
    level = NoiseLevel(torch.zeros(1, dtype=torch.float64))
    guide = _copy(fake, attrs.evolve(guide.rows(0, 1), experts=None))

    @torch.no_grad()
    def forward() -> None:
        guide.model(_image(run.stage, guide.model), level)

    with frozen([guide.model], _CPU, move=False):
        _, flops, _ = _measured(fake, forward)
        _, both, memory = _measured(
            fake, lambda: guide.gradient(_image(run.stage, guide.model), level)
        )
    return StepCost(forward=flops, backward=both - flops, memory=memory)


def _image(stage: Stage, beside: nn.Module) -> Tensor:
    """A blank image of a stage, on a network's device."""
    device = next((p.device for p in beside.parameters()), None)
    return torch.zeros(1, *stage.image_shape, device=device)


def _copy(fake: FakeTensorMode, real: T) -> T:
    """A copy with fake tensors."""
    with FakeCopyMode(fake):
        return copy.deepcopy(real)


def _measured(fake: FakeTensorMode, compute: Callable[[], T]) -> tuple[T, int, int]:
    """The result of a function of fake tensors, its FLOPs, and its peak memory in bytes."""
    # Fused attention is counted on some devices only; the plain form takes the most memory.
    with fake, sdpa_kernel(SDPBackend.MATH), _Meter() as meter:
        result = compute()
    return result, meter.flops, meter.peak


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own base class
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.flops = self.peak = self._live = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if isinstance(func, OpOverload):
            flops = flop_registry.get(func.overloadpacket)
            self.flops += flops(*args, **kwargs, out_val=out) if flops else 0
            for tensor in () if func.is_view else tree_leaves(out):
                if isinstance(tensor, Tensor):
                    self._allocated(tensor.untyped_storage())
        return out

    def _allocated(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            weakref.finalize(storage, self._freed, storage.nbytes())
            self._live += storage.nbytes()
            self.peak = max(self.peak, self._live)

    def _freed(self, size: int) -> None:
        self._live -= size
