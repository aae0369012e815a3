"""What a run takes: how many images each network sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
from torch import nn

if TYPE_CHECKING:
    from ppap_framework.run.plan import Plan

__all__ = ["Cost", "acting_at", "cost_of"]


@attrs.frozen(kw_only=True)
class Cost:
    """What a run takes: how many images each network sees and is differentiated for.

    Attributes:
        denoiser_parameters: Of the backend's networks.
        stage_parameters: Of each stage's, by the stage's name.
        denoiser_forwards: Images that these networks look at, steps counted singly, and so is each
            look where a step takes several; see `Stage.evaluations`.
        denoiser_backwards: Likewise.
        guide_parameters: Of each guide's network, by the guide's name.
        expert_parameters: Of each of the N experts, by the name of the guide that has them.
        guide_forwards: Of each guide, and as many backwards; the last look is left out.
    """

    denoiser_parameters: int
    stage_parameters: dict[str, int]
    denoiser_forwards: int
    denoiser_backwards: int
    guide_parameters: dict[str, int]
    expert_parameters: dict[str, tuple[int, ...]]
    guide_forwards: dict[str, int]


def cost_of(run: Plan) -> Cost:
    """What a run takes."""
    acting, looks = acting_at(run), _looks(run)
    steps = [len(process) for process in run.processes]
    either = {t for acted in acting.values() for t in acted}
    stages = {stage.name: _count(stage.network) for stage in run.stages}
    return Cost(
        denoiser_parameters=sum(stages.values()),
        stage_parameters=stages,
        denoiser_forwards=(1 + len(run.compared))
        * sum(images * taken for images, taken in zip(looks, steps, strict=True)),
        denoiser_backwards=looks[0] * len(either) if run.settings.through == "clean" else 0,
        guide_parameters={g.guide.name: _count(g.guide.model.network) for g in run.guides},
        expert_parameters={
            loaded.guide.name: experts.parameters
            for loaded, experts in zip(run.guides, run.experts, strict=True)
            if experts is not None
        },
        guide_forwards={
            name: run.settings.num * len(acted) * (2 if "naive" in run.compared else 1)
            for name, acted in acting.items()
        },
    )


def acting_at(run: Plan) -> dict[str, list[int]]:
    """The timesteps at which each guide has a say, by its name."""
    schedule = run.process.schedule
    return {
        loaded.guide.name: [
            t
            for t in run.process.timesteps
            if loaded.guide.acts(t / schedule.num_timesteps, schedule.level(torch.tensor([t])))
        ]
        for loaded in run.guides
    }


def _looks(run: Plan) -> list[int]:
    """Of each stage, how many images its network looks at while all images take one step."""
    settings = run.settings
    alike = settings.prompt is None or isinstance(settings.prompt, str)
    at_once = settings.num if settings.batch == "auto" else settings.batch
    size = 1 if alike else at_once  # else it depends on who is told what beside whom
    looks = [0] * len(run.stages)
    for start in range(0, 1 if alike else settings.num, size):
        count = min(size, settings.num - start)
        condition = run.backend.encode(settings.prompts(slice(start, start + count)), count)
        for number, stage in enumerate(run.stages):
            images = settings.num if alike else count
            looks[number] += images * stage.evaluations(condition)
    return looks


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
