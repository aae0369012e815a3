"""What a run takes of a machine: products and memory, found without computing anything."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from ppap_framework.components import CascadedStage, Stage
from ppap_framework.errors import PpapError
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel
from ppap_framework.run.counts import acting_at, counts_of
from ppap_framework.run.plan import Plan
from ppap_framework.runtime import computing_in, frozen

if TYPE_CHECKING:
    from ppap_framework.run.meter import FakeTensors

__all__ = ["Estimate", "StepCost", "estimate", "weights_of"]

_CPU = torch.device("cpu")


@attrs.frozen(kw_only=True)
class StepCost:
    """What one step of one image takes of a network.

    Attributes:
        before: FLOPs before an image's first step, such as for reading its prompt.
        forward: FLOPs of looking.
        backward: FLOPs of differentiating; 0 where nobody does.
        memory: In bytes, the most that is in use at once of what is computed.
    """

    before: int = 0
    forward: int
    backward: int
    memory: int


@attrs.frozen(kw_only=True)
class Estimate:
    """What a run takes of a machine. A multiply-add is two FLOPs, and only matrix products and
    convolutions count; memory is without what libraries set aside for themselves.

    Attributes:
        stages: By name.
        guides: By name.
        flops: Of the whole run, but for the guides' last look at finished images.
        weights: In bytes: see `weights_of`.
        memory: In bytes, for each image of a batch: of the step at which most is in use.
    """

    stages: Mapping[str, StepCost]
    guides: Mapping[str, StepCost]
    flops: int
    weights: int
    memory: int


def estimate(run: Plan) -> Estimate:
    """What a run takes of a machine. No weights are read for it.

    Raises:
        PpapError: Where a component does something that depends on numbers, and cannot be counted.
    """
    from ppap_framework.run.meter import FakeTensors  # it is slow to import

    fake = FakeTensors()
    try:
        with computing_in(run.compute.precision, _CPU):
            stages = _stages(run, fake)
            guides = {guide.name: _guide(run, guide, fake) for guide in run.guides}
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise PpapError(f"what a step takes cannot be counted: {reason}") from error
    base = stages[run.stage.name]
    either = {t for acted in acting_at(run).values() for t in acted}
    drawn = run.num * (1 + len(run.compared))
    flops = sum(
        drawn * (look.before + len(process) * look.forward)
        for look, process in zip(stages.values(), run.processes, strict=True)
    )
    for name, count in counts_of(run).guide_forwards.items():
        flops += count * (guides[name].forward + guides[name].backward)
    graph = base.memory if base.backward else 0  # the denoiser's, kept while guides look
    return Estimate(
        stages=stages,
        guides=guides,
        flops=flops + run.num * len(either) * base.backward,
        weights=weights_of(run),
        memory=max(
            [look.memory for look in stages.values()]
            + [graph + look.memory for look in guides.values()]
        ),
    )


def weights_of(run: Plan) -> int:
    """Bytes of the networks and of all experts, and of the copy of a network's own weights that is
    kept while an expert is merged: at most all of them.
    """
    networks: dict[int, nn.Module] = {id(stage.network): stage.network for stage in run.stages}
    size = 0
    for guide in run.guides:
        model, experts = guide.model, guide.chosen
        if experts is not None and id(model) not in networks:
            size += _size(model.network) + 4 * sum(experts.expert_parameters)
        networks[id(model)] = model
    return size + sum(map(_size, networks.values()))


def _size(network: nn.Module) -> int:
    return sum(t.nbytes for t in (*network.parameters(), *network.buffers()))


def _stages(run: Plan, fake: FakeTensors) -> dict[str, StepCost]:
    """What each stage takes for a step of the first image."""
    condition = run.backend.encode(run.sampling.prompts(range(1)), 1)
    stages, condition = fake.copy((run.stages, condition))
    differentiated = run.sampling.through == "clean" and bool(run.guides)
    costs: dict[str, StepCost] = {}
    before: Stage | None = None
    for stage in stages:
        with frozen([stage.network], _CPU, move=False):
            if before is not None:
                assert isinstance(stage, CascadedStage)  # or it could not go on
                enlarged = partial(_enlarged, stage, condition, before)
                condition, _ = fake.work(enlarged)
            costs[stage.name] = _denoising(
                stage, condition, fake, differentiated and before is None
            )
        before = stage
    return costs


def _enlarged(stage: CascadedStage, condition: Any, before: Stage) -> Any:
    return stage.conditioned(condition, _blank(before, before.network))


def _denoising(stage: Stage, condition: Any, fake: FakeTensors, differentiated: bool) -> StepCost:
    def denoise(gradient: bool) -> None:
        x = _blank(stage, stage.network).requires_grad_(gradient)
        t = torch.zeros(1, dtype=torch.int64, device=x.device)
        with torch.set_grad_enabled(gradient):
            x0 = stage.denoise(x, t, condition).x0
            if gradient:
                torch.autograd.grad(x0.sum(), x)

    _, first = fake.work(partial(denoise, False))
    _, again = fake.work(partial(denoise, False))
    _, both = fake.work(partial(denoise, True)) if differentiated else (None, again)
    return StepCost(
        before=first.flops - again.flops,  # a text is read once
        forward=again.flops,
        backward=both.flops - again.flops,
        memory=max(first.memory, both.memory),
    )


def _guide(run: Plan, guide: Guide, fake: FakeTensors) -> StepCost:
    """What a guide takes for a step of the first image; an expert takes what it does."""
    level = NoiseLevel(torch.zeros(1, dtype=torch.float64))
    guide = fake.copy(attrs.evolve(guide.rows(0, 1), experts=None))

    @torch.no_grad()
    def look() -> None:
        guide.model(_blank(run.stage, guide.model), level)

    with frozen([guide.model], _CPU, move=False):
        _, forward = fake.work(look)
        _, both = fake.work(lambda: guide.gradient(_blank(run.stage, guide.model), level))
    return StepCost(forward=forward.flops, backward=both.flops - forward.flops, memory=both.memory)


def _blank(stage: Stage, beside: nn.Module) -> Tensor:
    """An image of a stage, where a network is."""
    device = next((p.device for p in beside.parameters()), None)
    return torch.zeros(1, *stage.image_shape, device=device)
