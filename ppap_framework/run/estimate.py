"""The cost of a run, before it is drawn: network evaluations, FLOPs, memory and batch size.

FLOPs and memory are estimated on fake tensors: in seconds, without reading weights. FLOPs are those
of products and convolutions, two for each multiply-add, by `torch.utils.flop_counter`.
"""

from __future__ import annotations

import copy
import logging
import re
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ppap_framework.components import CascadedStage, Stage
from ppap_framework.errors import PpapError, one_line
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel
from ppap_framework.run.plan import Plan
from ppap_framework.runtime import computing_in, frozen, isolated

T = TypeVar("T")

_CPU = torch.device("cpu")
logging.getLogger(FakeTensorMode.__module__).setLevel(logging.CRITICAL)  # errors are raised, too
_USUAL = 8  # batch size if nothing is known
_MOST_ON_CPU = 32  # more at once is hardly quicker there
_SHARE = 0.7  # share of free memory to use; libraries allocate the rest


@attrs.frozen(kw_only=True)
class Counts:
    """Parameters of each network of a run, by name, and the images that it sees over all steps.

    Experts have their parameters one by one. Guides do not count their look at finished images. A
    stage may see an image several times a step; see `Stage.evaluations`.
    """

    denoiser_parameters: int
    stage_parameters: dict[str, int]
    denoiser_forwards: int
    denoiser_backwards: int
    guide_parameters: dict[str, int]
    expert_parameters: dict[str, tuple[int, ...]]
    guide_forwards: dict[str, int]


@attrs.frozen(kw_only=True)
class StepCost:
    """One network's FLOPs for a step of an image, and its peak memory of activations in bytes.
    `before` counts what comes before an image's first step, such as reading its prompt.
    """

    before: int = 0
    forward: int
    backward: int
    memory: int


@attrs.frozen(kw_only=True)
class Estimate:
    """The cost of a run, without memory that libraries allocate for themselves.

    Attributes:
        stages, guides: Cost of each, by name.
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
def counts_of(run: Plan) -> Counts:
    """The network evaluations of a plan."""
    acted, passes = acting(run), _passes(run)
    stages = {stage.name: _parameters(stage.network) for stage in run.stages}
    steps = sum(n * walk for n, walk in zip(passes, run.walks, strict=True))
    guided, experts = len(set().union(*acted.values())), [(g.name, g.chosen) for g in run.guides]
    looks = run.num * (2 if "naive" in run.compared else 1)
    return Counts(
        denoiser_parameters=sum(stages.values()),
        stage_parameters=stages,
        denoiser_forwards=(1 + len(run.compared)) * steps,
        denoiser_backwards=passes[0] * guided if "clean" in run.looks else 0,
        guide_parameters={guide.name: _parameters(guide.model.network) for guide in run.guides},
        expert_parameters={name: chosen.expert_parameters for name, chosen in experts if chosen},
        guide_forwards={name: looks * len(steps_of) for name, steps_of in acted.items()},
    )


@isolated()
def estimate(run: Plan) -> Estimate:
    """The cost of a plan; PpapError if a component depends on values and cannot be counted."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with computing_in(run.compute.precision, _CPU):
            stages = _stages(run, fake)
            guides = {guide.name: _guide(run, guide, fake) for guide in run.guides}
    except Exception as error:
        raise PpapError(f"what a step takes cannot be counted: {one_line(error)}") from error
    base, kinds = stages[run.stage.name], 1 + len(run.compared)
    flops = run.num * len(set().union(*acting(run).values())) * base.backward
    for cost, walk in zip(stages.values(), run.walks, strict=True):
        flops += run.num * kinds * (cost.before + walk * cost.forward)
    for name, images in counts_of(run).guide_forwards.items():
        flops += images * (guides[name].forward + guides[name].backward)
    graph = base.memory if base.backward else 0  # the denoiser's, kept while guides look
    memory = [c.memory for c in stages.values()] + [graph + c.memory for c in guides.values()]
    most, weights = max(memory), _weights(run)
    return Estimate(stages=stages, guides=guides, flops=flops, weights=weights, memory=most)


def first_batch(run: Plan) -> int:
    """The batch size to begin with. "auto" takes the estimated size, at most 32 on the CPU. If a
    GPU's free memory is unknown, it takes all images, and the batch size is halved.
    """
    if run.compute.batch != "auto":
        return min(run.compute.batch, run.num)
    free, on_cpu = available_memory(run.device), run.device.type == "cpu"
    most = min(run.num, _MOST_ON_CPU) if on_cpu else run.num
    if free is None:
        return min(most, _USUAL) if on_cpu else most
    with suppress(PpapError):
        taken = estimate(run)
        room = (_SHARE * free - taken.weights) / max(taken.memory, 1)
        return max(1, min(most, int(room)))
    return min(most, _USUAL)


def available_memory(device: torch.device) -> int | None:
    """Free bytes on a device; None if the system does not report them."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = []
    if device.type == "cpu":
        with suppress(OSError):
            found = re.findall(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
            free += [1024 * int(size) for size in found]
        with suppress(OSError, ValueError):  # a container's limit; "max" if there is none
            group = Path("/sys/fs/cgroup")
            most, now = (int((group / f"memory.{x}").read_text()) for x in ("max", "current"))
            free.append(max(0, most - now))
    return min(free, default=None)


def acting(run: Plan) -> dict[str, list[int]]:
    """The numbers of the steps at which each guide acts, by its name."""
    length, kept = run.process.schedule.num_timesteps, run.process.timesteps
    places = [(t / length, run.process.level(k, 1)) for k, t in enumerate(kept)]
    walk = [*enumerate(places[k] for k in run.indices)]
    acts = {guide.name: [n for n, at in walk if guide.acts(*at)] for guide in run.guides}
    looks = sorted(set().union(*acts.values()))[:: run.sampling.guide_every]
    return {name: [n for n in steps if n in looks] for name, steps in acts.items()}


def _passes(run: Plan) -> list[int]:
    """Forward passes of each stage's network while all images take one step."""
    alike = isinstance(run.sampling.prompt, str | None)
    batch = run.num if alike or run.compute.batch == "auto" else run.compute.batch
    passes = [0] * len(run.stages)
    for start in range(0, run.num, batch):  # batches of prompts that differ may cost differently
        images = range(start, min(start + batch, run.num))
        told = images[:1] if alike else images
        condition = run.backend.encode(run.sampling.prompts(told), len(told))
        for number, stage in enumerate(run.stages):
            passes[number] += len(images) * stage.evaluations(condition)
    return passes


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _weights(run: Plan) -> int:
    networks: set[nn.Module] = {stage.network for stage in run.stages}
    size = 0
    for guide in run.guides:
        if guide.chosen is not None and guide.model not in networks:
            size += _size(guide.model.network) + 4 * sum(guide.chosen.expert_parameters)
        networks.add(guide.model)
    return size + sum(map(_size, networks))


def _size(network: nn.Module) -> int:
    return sum(t.nbytes for t in (*network.parameters(), *network.buffers()))


def _stages(run: Plan, fake: FakeTensorMode) -> dict[str, StepCost]:
    condition = run.backend.encode(run.sampling.prompts(range(1)), 1)
    stages, condition = _copy(fake, (run.stages, condition))
    differentiated, detached = bool(run.looks - {"noisy"}), "clean" not in run.looks
    costs: dict[str, StepCost] = {}
    for number, stage in enumerate(stages):
        with frozen([stage.network], _CPU, move=False):
            if isinstance(stage, CascadedStage) and number:
                before = stages[number - 1]
                images, *_ = _measured(fake, partial(_blank, before.image_shape, before.network))
                condition, *_ = _measured(fake, partial(stage.conditioned, condition, images))
            denoise = partial(_denoise, stage, condition, detached)
            costs[stage.name] = _cost(fake, denoise, differentiated and not number)
    return costs


def _denoise(stage: Stage, condition: Any, detached: bool, gradient: bool) -> None:
    behind = gradient and not detached
    x = _blank(stage.shape, stage.network).requires_grad_(behind)
    t = torch.zeros(1, dtype=torch.int64, device=x.device)
    with torch.set_grad_enabled(behind):
        x0 = stage.denoise(x, t, condition).x0
    if gradient:
        x0 = x0 if behind else x0.detach().requires_grad_()
        with torch.enable_grad():
            images = stage.decode(x0)
        torch.autograd.grad(images.sum(), x if behind else x0)


def _guide(run: Plan, guide: Guide, fake: FakeTensorMode) -> StepCost:
    """One step of a guide; an expert costs the same."""
    guide = _copy(fake, attrs.evolve(guide.rows(0, 1), experts=None))
    level = NoiseLevel(torch.zeros(1, dtype=torch.float64))

    @torch.no_grad()
    def look(gradient: bool) -> None:
        read = guide.gradient if gradient else guide.model
        read(_blank(run.stage.image_shape, guide.model), level)

    with frozen([guide.model], _CPU, move=False):
        return _cost(fake, look, differentiated=True)


def _cost(fake: FakeTensorMode, compute: Callable[[bool], None], differentiated: bool) -> StepCost:
    """The cost of `compute`, which is told whether to find a gradient."""
    _, first, memory = _measured(fake, partial(compute, False))
    _, flops, _ = _measured(fake, partial(compute, False))
    both = flops
    if differentiated:
        _, both, graph = _measured(fake, partial(compute, True))
        memory = max(memory, graph)
    return StepCost(before=first - flops, forward=flops, backward=both - flops, memory=memory)


def _blank(shape: tuple[int, ...], beside: nn.Module) -> Tensor:
    """A blank image or latent of a shape (C, H, W), on a network's device."""
    device = next((p.device for p in beside.parameters()), None)
    return torch.zeros(1, *shape, device=device)


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
        from torch.utils.flop_counter import flop_registry  # it takes a second to import

        self._formulas = flop_registry
        self.flops = self.peak = self._live = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if isinstance(func, OpOverload):
            flops = self._formulas.get(func.overloadpacket)
            self.flops += flops(*args, **kwargs, out_val=out) if flops else 0
            leaves = () if func.is_view else tree_leaves(out)
            storages = {leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor)}
            for storage in storages.difference(self._known):
                self._known.add(storage)
                weakref.finalize(storage, self._allocate, -storage.nbytes())
                self._allocate(storage.nbytes())
        return out

    def _allocate(self, size: int) -> None:
        self._live += size
        self.peak = max(self.peak, self._live)
