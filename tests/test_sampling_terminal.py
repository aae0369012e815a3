"""Guided steps where a schedule's alpha is nearly, or exactly, 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppap_framework.components import Prediction
from ppap_framework.diffusion import (
    NoiseSource,
    Process,
    ddim_step,
    ddpm_step,
    timesteps_for,
    trajectory,
)
from ppap_framework.noise import NoiseSchedule, cosine_schedule, linear_schedule

COSINE, LINEAR = cosine_schedule(), linear_schedule()
ZERO_SNR = NoiseSchedule("zero", torch.cat([COSINE.betas[:-1], torch.ones(1).double()]))
SCHEDULES = [COSINE, LINEAR, ZERO_SNR]


def moved(process: Process, index: int, step=ddim_step) -> float:
    """How far a step moves the state for each unit of g."""
    abar = process.alphas_cumprod[index]
    x_t = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    prediction = Prediction.from_x0(x_t, x_t, abar.sqrt(), (1 - abar).sqrt())
    x, _ = step(process, index, prediction, torch.zeros_like(x_t), torch.ones_like(x_t))
    return x.max().item()


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [(COSINE, range(1, 1001)), (LINEAR, range(1, 1001, 29)), (ZERO_SNR, range(1, 1001, 29))],
    ids=lambda value: value.name if isinstance(value, NoiseSchedule) else "",
)
def test_at_every_number_of_steps_the_first_step_follows_guidance_about_as_far_as_it_points(
    schedule: NoiseSchedule, counts: range
) -> None:
    for steps in counts:
        process = Process(schedule, timesteps_for(1000, steps))
        assert 0.0 <= moved(process, len(process) - 1) <= 2.0 + 1e-9, steps


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("steps", [2, 7, 60, 1000])
def test_no_step_follows_guidance_much_further_than_it_points(
    schedule: NoiseSchedule, steps: int
) -> None:
    process = Process(schedule, timesteps_for(1000, steps))
    for index in range(len(process)):
        assert 0.0 <= moved(process, index) <= 2.0 + 1e-9
        assert 0.0 <= moved(process, index, ddpm_step) <= 1.0 + 1e-9


class Stage:
    """Predicts grey, as a network does of pure noise."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def denoise(self, x_t: Tensor, t: Tensor, condition: object) -> Prediction:
        abar = self.schedule.alphas_cumprod[t][:, None, None, None]
        return Prediction.from_x0(0.1 * x_t, x_t, abar.sqrt(), (1 - abar).sqrt())


def pull(x_t, time, level, denoise):
    """A gradient as noisy guides have it: as large whatever the noise level."""
    return denoise(x_t), 0.2 * torch.sign(torch.sin(40.0 * x_t))


@pytest.mark.parametrize("step", [ddim_step, ddpm_step], ids=["ddim", "ddpm"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("steps", [2, 3, 7, 37, 45, 60, 150, 300])
def test_guided_images_are_about_as_saturated_as_unguided_ones(schedule, step, steps) -> None:
    stage, process = Stage(schedule), Process(schedule, timesteps_for(1000, steps))

    def saturated(guidance: object) -> float:
        noise = NoiseSource(0)
        x = noise((2, 3, 8, 8))
        for state in trajectory(stage, process, x, noise, step=step, guidance=guidance):
            x = state.x
        assert x.isfinite().all()
        return (x.abs() >= 1.0).float().mean().item()

    assert saturated(pull) <= saturated(None) + 0.05


@pytest.mark.parametrize("steps", [10, 20, 25, 50, 100, 250])
def test_evenly_spaced_timesteps_are_not_affected(steps: int) -> None:
    process = Process(COSINE, timesteps_for(1000, steps))
    for index in range(len(process)):
        abar, before = process.alphas_cumprod[index], process.alphas_cumprod_prev[index]
        factor = (before * (1 - abar) / abar).sqrt() - (1 - before).sqrt()
        assert moved(process, index) == pytest.approx(((1 - abar).sqrt() * factor).item(), abs=1e-9)
