"""The variational bound that the recipes train variances by, against closed forms."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from ppap_framework.components import Prediction
from ppap_framework.diffusion import Process
from ppap_framework.noise import cosine_schedule

PATH = Path(__file__).parents[1] / "recipes" / "variational_bound.py"
SPEC = importlib.util.spec_from_file_location("variational_bound", PATH)
recipe = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(recipe)


def test_kl_of_gaussians() -> None:
    mean, log_variance, other_mean, other_log_variance = torch.randn(4, 100)
    wanted = kl_divergence(
        Normal(mean, (0.5 * log_variance).exp()),
        Normal(other_mean, (0.5 * other_log_variance).exp()),
    )
    found = recipe.gaussian_kl(mean, log_variance, other_mean, other_log_variance)
    torch.testing.assert_close(found, wanted)


@given(st.floats(-1.5, 1.5), st.floats(-9, 1))
def test_bins_of_all_pixel_values_hold_all_the_mass(mean: float, log_variance: float) -> None:
    pixels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    nll = recipe.discretised_gaussian_nll(
        pixels, torch.tensor(mean).double(), torch.tensor(log_variance)
    )
    assert (-nll).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_a_far_bin_keeps_its_digits() -> None:
    """Six standard deviations above the mean, where the distribution function is 1 in float32."""
    pixel, mean, log_variance = torch.tensor([0.6]), torch.zeros(1), torch.tensor([math.log(0.01)])
    mass = 0.5 * (
        math.erfc((0.6 - 1 / 255) * 10 / 2**0.5) - math.erfc((0.6 + 1 / 255) * 10 / 2**0.5)
    )
    found = recipe.discretised_gaussian_nll(pixel, mean, log_variance).item()
    assert found == pytest.approx(-math.log(mass), rel=1e-4)


class TestBound:
    @pytest.fixture(autouse=True)
    def case(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.process = Process(cosine_schedule(50), range(50), "learned_range")
        self.index = torch.tensor([0, 1, 25, 49])
        self.x0 = torch.rand(4, 3, 4, 4, generator=generator) * 2 - 1
        self.noise = torch.randn(4, 3, 4, 4, generator=generator)
        self.eps = (self.noise + 0.1).requires_grad_()
        self.learned = torch.full_like(self.x0, 0.25).requires_grad_()
        abar = self.process.alphas_cumprod[self.index][:, None, None, None]
        x_t = self.process.schedule.add_noise(self.x0, self.index, self.noise)
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        self.prediction = Prediction.from_eps(self.eps, x_t, alpha, sigma, self.learned)
        self.bound = recipe.variational_bound_term(
            self.process, self.x0, x_t, self.index, self.prediction
        )

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
