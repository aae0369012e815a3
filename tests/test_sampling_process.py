"""Constants of a process, its variances and the variational bound, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from ppap_framework.components import Prediction
from ppap_framework.diffusion import Process, variational_bound_term
from ppap_framework.diffusion.vlb import discretised_gaussian_nll, gaussian_kl
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


def test_kl_of_gaussians() -> None:
    mean, log_variance, other_mean, other_log_variance = torch.randn(4, 100)
    wanted = kl_divergence(
        Normal(mean, (0.5 * log_variance).exp()),
        Normal(other_mean, (0.5 * other_log_variance).exp()),
    )
    found = gaussian_kl(mean, log_variance, other_mean, other_log_variance)
    torch.testing.assert_close(found, wanted)


@given(st.floats(-1.5, 1.5), st.floats(-9, 1))
def test_bins_of_all_pixel_values_hold_all_the_mass(mean: float, log_variance: float) -> None:
    pixels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    nll = discretised_gaussian_nll(pixels, torch.tensor(mean).double(), torch.tensor(log_variance))
    assert (-nll).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_a_far_bin_keeps_its_digits() -> None:
    """Six standard deviations above the mean, where the distribution function is 1 in float32."""
    pixel, mean, log_variance = torch.tensor([0.6]), torch.zeros(1), torch.tensor([math.log(0.01)])
    mass = 0.5 * (
        math.erfc((0.6 - 1 / 255) * 10 / 2**0.5) - math.erfc((0.6 + 1 / 255) * 10 / 2**0.5)
    )
    found = discretised_gaussian_nll(pixel, mean, log_variance).item()
    assert found == pytest.approx(-math.log(mass), rel=1e-4)


class TestBound:
    @pytest.fixture(autouse=True)
    def case(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.process = Process(SCHEDULES["cosine"], range(50), "learned_range")
        self.index = torch.tensor([0, 1, 25, 49])
        self.x0 = torch.rand(4, 3, 4, 4, generator=generator) * 2 - 1
        self.noise = torch.randn(4, 3, 4, 4, generator=generator)
        self.eps = (self.noise + 0.1).requires_grad_()
        self.learned = torch.full_like(self.x0, 0.25).requires_grad_()
        abar = self.process.alphas_cumprod[self.index][:, None, None, None]
        x_t = self.process.schedule.add_noise(self.x0, self.index, self.noise)
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        self.prediction = Prediction.from_eps(self.eps, x_t, alpha, sigma, self.learned)
        self.bound = variational_bound_term(self.process, self.x0, x_t, self.index, self.prediction)

    @pytest.mark.parametrize(("row", "i"), [(1, 1), (2, 25), (3, 49)])
    def test_is_the_divergence_from_the_posterior(self, row: int, i: int) -> None:
        one, process, x_t = slice(row, row + 1), self.process, self.prediction.x_t
        truth = process.posterior_mean(self.x0[one], x_t[one], i)
        guess = process.posterior_mean(self.prediction.x0[one], x_t[one], i)
        log_variance = process.reverse_variance(i, self.learned[one], x_t)[1]
        q = Normal(truth, process.posterior_variance[i].sqrt().float())
        p = Normal(guess, (0.5 * log_variance).exp())
        bits = kl_divergence(q, p).mean() / math.log(2)
        torch.testing.assert_close(self.bound[row], bits, rtol=1e-4, atol=1e-7)

    def test_of_the_last_step_is_the_likelihood_of_the_pixels(self) -> None:
        log_variance = self.process.reverse_variance(0, self.learned[:1], self.x0)[1]
        pixels = Normal(self.prediction.x0[:1].double(), (0.5 * log_variance).exp().double())
        mass = pixels.cdf(self.x0[:1] + 1 / 255) - pixels.cdf(self.x0[:1] - 1 / 255)
        assert self.x0[0].abs().max() < 1 - 1 / 255  # no pixel in an unbounded bin
        torch.testing.assert_close(self.bound[0], -mass.log2().mean().float(), rtol=1e-4, atol=0)

    def test_only_the_variance_learns_from_it(self) -> None:
        leaves = [self.eps, self.learned]
        by_eps, by_variance = torch.autograd.grad(self.bound.sum(), leaves, allow_unused=True)
        assert by_eps is None
        assert bool((by_variance.flatten(1).abs().amax(1) > 0).all())
