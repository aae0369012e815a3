"""Sampler trajectories of the published code: every state, prediction and timestep seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from inversion import inversion
from torch import Tensor, nn
from toy_guides import guide_of

from ppap_framework.components import Prediction, Stage, VarianceKind
from ppap_framework.diffusion import (
    Process,
    Step,
    ddim_step,
    ddpm_step,
    space_timesteps,
    trajectory,
)
from ppap_framework.guidance import EnergyGuidance
from ppap_framework.noise import NoiseLevel, NoiseSchedule, noise_schedule


class Clock:
    """The timesteps as the published samplers hand them over, and a record of who saw which."""

    def __init__(self, schedule: NoiseSchedule, rescale: bool) -> None:
        self.schedule, self.rescale = schedule, rescale
        self.denoiser: list[Tensor] = []
        self.guide: list[Tensor] = []

    def __call__(self, t: Tensor, seen: list[Tensor]) -> Tensor:
        """(B,) base timesteps to (B, 1, 1, 1) float32."""
        shown = t.float() * (1000.0 / self.schedule.num_timesteps) if self.rescale else t
        seen.append(shown)
        return shown.float()[:, None, None, None]


class FormulaStage(Stage):
    """A stage whose network is a case's `model_fn`."""

    name = "formula"
    image_shape = (3, 4, 4)
    variance: VarianceKind = "learned_range"

    def __init__(self, record: dict[str, Any], clock: Clock) -> None:
        self.formula, self.predicts = record["model_fn"], record["process"]["predicts"]
        self.clock = clock

    @property
    def network(self) -> nn.Module:
        raise NotImplementedError

    @property
    def schedule(self) -> NoiseSchedule:
        return self.clock.schedule

    def denoise(self, x_t: Tensor, t: Tensor, condition: Any) -> Prediction:
        assert t.dtype == torch.int64
        shown = self.clock(t, self.clock.denoiser)
        first, second = self.formula["first_channels"], self.formula["variance_channels"]
        slope = first["x_coefficient"]
        if slope == "t/1000":
            slope = shown / 1000.0
        wave = getattr(torch, first["function"])(shown / first["period"])
        output = slope * x_t + first["amplitude"] * wave
        learned = None
        if second is not None:
            curve = getattr(torch, second["function"])
            learned = second["amplitude"] * curve(second["x_coefficient"] * x_t)
        abar = self.schedule.alphas_cumprod[t][:, None, None, None]
        make = {"eps": Prediction.from_eps, "x0": Prediction.from_x0}[self.predicts]
        return make(output, x_t, abar.sqrt(), (1.0 - abar).sqrt(), learned)


def guidance(formula: dict[str, Any] | None, clock: Clock) -> EnergyGuidance | None:
    """A noise-aware guide, of whose energy the case's `gradient_fn` is the negative gradient."""
    if formula is None:
        return None

    def read(images: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        return images, clock(clock.schedule.nearest_timestep(level), clock.guide)

    def bowl(prediction: tuple[Tensor, Tensor], center: Tensor) -> Tensor:
        images, shown = prediction
        grows = formula["times_one_plus_t_over_1000"]
        steepness = 1.0 + shown / 1000.0 if grows else torch.ones_like(shown)
        return (0.5 * steepness * (images - center).square()).flatten(1).sum(1)

    center = torch.full((1, 1, 1, 1), formula["center"])
    return EnergyGuidance([guide_of(read, bowl, center, scale=formula["scale"])])


def blend(formula: dict[str, Any] | None) -> Callable[[Tensor], Tensor] | None:
    if formula is None:
        return None
    assert formula["kind"] == "blend"
    first, stop = formula["columns"]

    def fill(x0: Tensor) -> Tensor:
        x0 = x0.clone()
        x0[..., first:stop] = formula["value"]
        return x0

    return fill


def replay(
    record: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[list[tuple[Tensor, Prediction]], Clock]:
    """Our sampler on a case, with the case's noise: states, with the predictions they are of."""
    given, sampler = record["process"], record["sampler_args"]
    schedule = noise_schedule(given["schedule"], given["base_steps"])
    timesteps = space_timesteps(given["base_steps"], given["respacing"])
    process = Process(schedule, timesteps, given["variance"])
    clock = Clock(schedule, given["rescale_timesteps"])
    stage, start = FormulaStage(record, clock), tensors["noise_init"]
    options = {"guidance": guidance(record["gradient_fn"], clock)}
    fill = blend(sampler["denoised_fn"]) or (lambda x0: x0)
    most = 1.0 if sampler["clip_denoised"] else torch.inf
    stage.clip = lambda x0: fill(x0).clamp(-most, most)  # type: ignore[method-assign]
    if sampler["name"] == "ddim_reverse":
        return list(inversion(stage, process, start, **options)), clock
    step: Step = ddpm_step
    if sampler["name"] == "ddim":
        step = partial(ddim_step, eta=sampler["eta"])
    noises = iter(tensors.get("noises", torch.full((len(process), 1), torch.nan)))
    states = trajectory(stage, process, start, lambda _: next(noises), step=step, **options)
    return list(states), clock


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of a step over its largest value, of the worst step."""
    difference = (ours - theirs).abs().flatten(1).amax(1)
    largest = theirs.abs().flatten(1).amax(1)
    return float(torch.where(difference == 0.0, 0.0, difference / largest).max())


@pytest.mark.parity("trajectory")
def test_trajectory(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    states, clock = replay(record, tensors)
    assert len(states) == record["n_steps"]
    tolerance = record["tolerance"]["value"]
    x = torch.stack([x for x, _ in states])
    x0 = torch.stack([prediction.x0 for _, prediction in states])
    assert distance(x, tensors["samples"]) <= tolerance
    assert distance(x0, tensors["pred_xstart"]) <= tolerance
    assert distance(x[-1:], tensors["final"][None]) <= tolerance
    torch.testing.assert_close(torch.stack(clock.denoiser), tensors["model_t"], rtol=0, atol=0)
    if record["gradient_fn"] is not None:
        torch.testing.assert_close(torch.stack(clock.guide), tensors["cond_t"], rtol=0, atol=0)
