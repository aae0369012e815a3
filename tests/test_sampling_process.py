"""Constants of a process, its and variances, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppap_framework.diffusion import Process
from ppap_framework.errors import UsageError
from ppap_framework.noise import cosine_schedule, linear_schedule

SCHEDULES = {"linear": linear_schedule(1000), "cosine": cosine_schedule(50)}


@st.composite
def processes(draw: st.DrawFn) -> Process:
    schedule = SCHEDULES[draw(st.sampled_from(sorted(SCHEDULES)))]
    kept = draw(st.sets(st.integers(0, schedule.num_timesteps - 1), min_size=1, max_size=9))
    return Process(schedule, sorted(kept))


@given(processes())
def test_kept_timesteps_keep_their_noise(process: Process) -> None:
    base = process.schedule.alphas_cumprod[list(process.timesteps)]
    torch.testing.assert_close(process.alphas_cumprod, base)
    level = process.level(len(process) - 1, 3)
    assert len(level) == 3
    torch.testing.assert_close(level.alpha.square(), base[-1].expand(3))


@given(processes(), st.floats(-2, 2), st.floats(-2, 2))
@settings(max_examples=40)
def test_posterior_is_the_product_of_two_gaussians(process: Process, x0: float, x: float) -> None:
    """q(x_{i-1} | x_i, x_0) is proportional to q(x_i | x_{i-1}) q(x_{i-1} | x_0)."""
    for i in range(1, len(process)):
        beta, abar_prev = process.betas[i].item(), process.alphas_cumprod_prev[i].item()
        forward, backward = 1 / (1 - abar_prev), (1 - beta) / beta  # precisions
        mean = (forward * math.sqrt(abar_prev) * x0 + math.sqrt(1 - beta) / beta * x) / (
            forward + backward
        )
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        assert process.posterior_mean(x0 * one, x * one, i).item() == pytest.approx(mean)
        assert process.posterior_variance[i].item() == pytest.approx(1 / (forward + backward))


def test_the_last_step_leads_to_x0() -> None:
    process = Process(SCHEDULES["linear"], [3, 500])
    x0, x = torch.randn(2, 1, 3, 2, 2)
    torch.testing.assert_close(process.posterior_mean(x0, x, 0), x0)
    assert process.posterior_variance[0] == 0


def test_an_index_per_image_is_as_one_by_one() -> None:
    process = Process(SCHEDULES["cosine"], range(50), "learned_range")
    x0, x, v = torch.randn(3, 4, 3, 2, 2)
    indices = torch.tensor([0, 1, 20, 49])
    mean = process.posterior_mean(x0, x, indices)
    variance, log_variance = process.reverse_variance(indices, v, x)
    for row, index in enumerate(indices.tolist()):
        one = slice(row, row + 1)
        torch.testing.assert_close(mean[one], process.posterior_mean(x0[one], x[one], index))
        alone = process.reverse_variance(index, v[one], x[one])
        torch.testing.assert_close((variance[one], log_variance[one]), alone)


@pytest.mark.parametrize("index", [0, 1, 7])
@pytest.mark.parametrize(("v", "share"), [(-1.0, 0.0), (1.0, 1.0), (0.0, 0.5), (3.0, 2.0)])
def test_learned_variance_lies_between_its_bounds_unclamped(
    index: int, v: float, share: float
) -> None:
    process = Process(SCHEDULES["linear"], range(0, 1000, 100), "learned_range")
    low, high = process.posterior_log_variance_clipped[index], process.betas.log()[index]
    _, found = process.reverse_variance(index, torch.full((1, 3, 1, 1), v), torch.zeros(1))
    wanted = (1 - share) * low + share * high
    torch.testing.assert_close(found, wanted.float().expand(1, 3, 1, 1))


def test_fixed_variances() -> None:
    small, large = (
        Process(SCHEDULES["linear"], range(0, 1000, 100), kind)
        for kind in ("fixed_small", "fixed_large")
    )
    like = torch.zeros(1, dtype=torch.float64)
    for index in (1, 9):
        assert small.reverse_variance(index, None, like)[0] == small.posterior_variance[index]
        assert large.reverse_variance(index, None, like)[0] == large.betas[index]
    assert small.reverse_variance(0, None, like)[0] == 0
    assert large.reverse_variance(0, None, like)[0] == large.posterior_variance[1]
    for process in (small, large):
        assert process.reverse_variance(0, None, like)[1] == process.posterior_variance[1].log()


def test_learned_variance_must_be_there() -> None:
    process = Process(SCHEDULES["linear"], [0, 1], "learned_range")
    with pytest.raises(ValueError, match="without one"):
        process.reverse_variance(0, None, torch.zeros(1))


@pytest.mark.parametrize("variance", ["learned_range", "fixed_large", "fixed_small"])
def test_a_single_step_has_finite_constants(variance) -> None:
    process = Process(SCHEDULES["linear"], [999], variance)
    for value in process.reverse_variance(0, torch.zeros(1, 3, 1, 1), torch.zeros(1)):
        assert bool(torch.isfinite(value).all())
    assert process.posterior_log_variance_clipped == process.betas.log()


@pytest.mark.parametrize("timesteps", [[], [3, 3], [5, 4], [-1, 2], [0, 1000]])
def test_bad_timesteps_are_refused(timesteps: list[int]) -> None:
    with pytest.raises(UsageError, match="rising"):
        Process(SCHEDULES["linear"], timesteps)
