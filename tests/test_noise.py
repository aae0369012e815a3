"""Noise schedules and levels, against closed forms and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppap_framework.errors import UsageError
from ppap_framework.noise import (
    NoiseLevel,
    NoiseSchedule,
    cosine_schedule,
    linear_schedule,
    noise_schedule,
)

lengths = st.integers(min_value=21, max_value=1200)


@given(lengths)
def test_linear_betas_scale_with_the_length(length: int) -> None:
    betas = linear_schedule(length).betas
    torch.testing.assert_close(betas[0].item(), 0.1 / length)
    torch.testing.assert_close(betas[-1].item(), 20.0 / length)
    torch.testing.assert_close(betas.diff(), betas.diff().mean().expand(length - 1))


@given(st.integers(min_value=1, max_value=1200))
def test_cosine_follows_its_curve_until_the_cap(length: int) -> None:
    schedule = cosine_schedule(length)
    u = torch.arange(1, length + 1, dtype=torch.float64) / length
    curve = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    curve = curve / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(schedule.alphas_cumprod[:-1], curve[:-1])
    torch.testing.assert_close(schedule.betas[-1].item(), 0.999)
    assert torch.equal(noise_schedule("squaredcos_cap_v2", length).betas, schedule.betas)


@given(st.sampled_from(["linear", "cosine"]), lengths)
def test_noise_grows(name: str, length: int) -> None:
    schedule = noise_schedule(name, length)
    assert schedule.num_timesteps == length
    assert bool((schedule.log_snr.diff() < 0).all())
    assert bool(torch.isfinite(schedule.log_snr).all())


def test_a_level_is_variance_preserving() -> None:
    schedule = cosine_schedule(1000)
    level = schedule.level(torch.arange(1000))
    assert len(level.log_snr) == 1000
    torch.testing.assert_close(
        level.alpha.square() + level.sigma.square(), torch.ones(1000).double()
    )
    torch.testing.assert_close(level.alpha.square(), schedule.alphas_cumprod)


@given(
    st.sampled_from([linear_schedule(1000), cosine_schedule(37), cosine_schedule(1)]),
    st.lists(st.floats(-40, 40), min_size=1, max_size=5),
)
def test_nearest_timestep_is_nearest(schedule: NoiseSchedule, log_snr: list[float]) -> None:
    wanted = torch.tensor(log_snr, dtype=torch.float64)
    found = schedule.nearest_timestep(NoiseLevel(wanted))
    distances = (schedule.log_snr[None] - wanted[:, None]).abs()
    assert found.dtype == torch.int64
    torch.testing.assert_close(distances.gather(1, found[:, None])[:, 0], distances.amin(1))


@pytest.mark.parametrize("schedule", [linear_schedule(1000), cosine_schedule(100)])
def test_nearest_timestep_undoes_level(schedule: NoiseSchedule) -> None:
    t = torch.arange(schedule.num_timesteps)
    assert torch.equal(schedule.nearest_timestep(schedule.level(t)), t)
    ends = NoiseLevel(torch.tensor([torch.inf, -torch.inf], dtype=torch.float64))
    assert schedule.nearest_timestep(ends).tolist() == [0, len(t) - 1]


def test_added_noise_is_that_of_single_steps() -> None:
    """x_t drawn step by step with one eps each has the mean and variance that add_noise gives."""
    schedule = cosine_schedule(20)
    factor, variance = 1.0, 0.0
    for t, beta in enumerate(schedule.betas.tolist()):
        factor, variance = factor * math.sqrt(1 - beta), (1 - beta) * variance + beta
        one = torch.ones(1, 1, 1, 1)
        at = torch.tensor([t])
        assert schedule.add_noise(one, at, 0 * one).item() == pytest.approx(factor)
        assert schedule.add_noise(0 * one, at, one).item() == pytest.approx(math.sqrt(variance))


@pytest.mark.parametrize("given", [("sigmoid", 9), ("linear", 0), ("cosine", -3), ("linear", 20)])
def test_bad_names_and_lengths_are_refused(given) -> None:
    with pytest.raises(UsageError):
        noise_schedule(*given)


@pytest.mark.parametrize("betas", [[1.0, 0.1], [0.0, 0.5], [0.1, math.nan], [[0.1]], []])
def test_bad_betas_are_refused(betas) -> None:
    for wrong in (torch.tensor(betas, dtype=torch.float64), torch.tensor([0.1])):
        with pytest.raises(UsageError):
            NoiseSchedule("mine", wrong)
