"""How many images each network of a run sees."""

from __future__ import annotations

import attrs
import torch
from torch import nn

from ppap_framework.run.plan import Plan

__all__ = ["Counts", "acting_at", "counts_of"]


@attrs.frozen(kw_only=True)
class Counts:
    """Images that each network of a run sees and is differentiated for; each step counts.

    Attributes:
        denoiser_parameters: Parameters of the backend's networks.
        stage_parameters: Parameters of each stage's network, by the stage's name.
        denoiser_forwards: Forward passes of these networks; see `Stage.evaluations`.
        denoiser_backwards: Backward passes.
        guide_parameters: Parameters of each guide's network, by the guide's name.
        expert_parameters: Parameters of each of the N experts, by the guide's name.
        guide_forwards: Forward passes of each guide, and as many backward ones; without the last
            look at finished images.
    """

    denoiser_parameters: int
    stage_parameters: dict[str, int]
    denoiser_forwards: int
    denoiser_backwards: int
    guide_parameters: dict[str, int]
    expert_parameters: dict[str, tuple[int, ...]]
    guide_forwards: dict[str, int]


def counts_of(run: Plan) -> Counts:
    """What a run takes."""
    acting, evaluations = acting_at(run), _evaluations(run)
    steps = [len(process) for process in run.processes]
    either = {t for acted in acting.values() for t in acted}
    stages = {stage.name: _count(stage.network) for stage in run.stages}
    return Counts(
        denoiser_parameters=sum(stages.values()),
        stage_parameters=stages,
        denoiser_forwards=(1 + len(run.compared))
        * sum(images * taken for images, taken in zip(evaluations, steps, strict=True)),
        denoiser_backwards=evaluations[0] * len(either) if run.sampling.through == "clean" else 0,
        guide_parameters={guide.name: _count(guide.model.network) for guide in run.guides},
        expert_parameters={
            guide.name: guide.chosen.expert_parameters
            for guide in run.guides
            if guide.chosen is not None
        },
        guide_forwards={
            name: run.num * len(acted) * (2 if "naive" in run.compared else 1)
            for name, acted in acting.items()
        },
    )


def acting_at(run: Plan) -> dict[str, list[int]]:
    """The timesteps at which each guide pulls, by its name."""
    schedule = run.process.schedule
    return {
        guide.name: [
            t
            for t in run.process.timesteps
            if guide.acts(t / schedule.num_timesteps, schedule.level(torch.tensor([t])))
        ]
        for guide in run.guides
    }


def _evaluations(run: Plan) -> list[int]:
    """Forward passes of each stage's network while all images take one step."""
    alike = run.sampling.prompt is None or isinstance(run.sampling.prompt, str)
    batch = run.num if run.compute.batch == "auto" else run.compute.batch
    size = 1 if alike else batch  # prompts that differ may cost differently
    passes = [0] * len(run.stages)
    for start in range(0, 1 if alike else run.num, size):
        images = range(start, min(start + size, run.num))
        condition = run.backend.encode(run.sampling.prompts(images), len(images))
        for number, stage in enumerate(run.stages):
            passes[number] += (run.num if alike else len(images)) * stage.evaluations(condition)
    return passes


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
