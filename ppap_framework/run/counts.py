"""Network evaluations of a run."""

from __future__ import annotations

import attrs
import torch
from torch import nn

from ppap_framework.run.plan import Plan
from ppap_framework.runtime import isolated


@attrs.frozen(kw_only=True)
class Counts:
    """Parameters of each network of a run, and the images that it sees; each step counts.

    Attributes:
        denoiser_parameters: Parameters of all stages together.
        stage_parameters: Parameters by the stage's name.
        denoiser_forwards: Images seen by the stages' networks; see `Stage.evaluations`.
        denoiser_backwards: Images for which they are differentiated.
        guide_parameters: Parameters of each guide's network, by the guide's name.
        expert_parameters: Parameters of each of the N experts, by the guide's name.
        guide_forwards: Images that each guide is differentiated for, without finished images.
    """

    denoiser_parameters: int
    stage_parameters: dict[str, int]
    denoiser_forwards: int
    denoiser_backwards: int
    guide_parameters: dict[str, int]
    expert_parameters: dict[str, tuple[int, ...]]
    guide_forwards: dict[str, int]


@isolated()
def counts_of(run: Plan) -> Counts:
    """The counts of a plan."""
    acting, passes = acting_at(run), _passes(run)
    stages = {stage.name: _count(stage.network) for stage in run.stages}
    steps = sum(n * len(process) for n, process in zip(passes, run.processes, strict=True))
    guided = len({t for acted in acting.values() for t in acted})
    return Counts(
        denoiser_parameters=sum(stages.values()),
        stage_parameters=stages,
        denoiser_forwards=(1 + len(run.compared)) * steps,
        denoiser_backwards=passes[0] * guided if run.sampling.through == "clean" else 0,
        guide_parameters={guide.name: _count(guide.model.network) for guide in run.guides},
        expert_parameters={
            guide.name: guide.chosen.expert_parameters for guide in run.guides if guide.chosen
        },
        guide_forwards={
            name: run.num * len(acted) * (2 if "naive" in run.compared else 1)
            for name, acted in acting.items()
        },
    )


def acting_at(run: Plan) -> dict[str, list[int]]:
    """The timesteps at which each guide acts, by its name."""
    schedule = run.process.schedule

    def acts(t: int) -> list[str]:
        time, level = t / schedule.num_timesteps, schedule.level(torch.tensor([t]))
        return [guide.name for guide in run.guides if guide.acts(time, level)]

    acting = {t: acts(t) for t in run.process.timesteps}
    return {g.name: [t for t, names in acting.items() if g.name in names] for g in run.guides}


def _passes(run: Plan) -> list[int]:
    """Forward passes of each stage's network while all images take one step."""
    alike = run.sampling.prompt is None or isinstance(run.sampling.prompt, str)
    batch = run.num if run.compute.batch == "auto" else run.compute.batch
    size = 1 if alike else batch  # batches of prompts that differ may cost differently
    passes = [0] * len(run.stages)
    for start in range(0, 1 if alike else run.num, size):
        images = range(start, min(start + size, run.num))
        condition = run.backend.encode(run.sampling.prompts(images), len(images))
        for number, stage in enumerate(run.stages):
            passes[number] += (run.num if alike else len(images)) * stage.evaluations(condition)
    return passes


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
