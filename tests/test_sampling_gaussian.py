"""Whole walks on a world that can be solved: every pixel of the data is N(m, s^2) on its own.

The best denoiser is then linear, and what samplers, inversion and guidance must lead to is known.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from inversion import inversion
from torch import Tensor, nn
from torch.testing import assert_close
from toy_guides import guide_of

from ppap_framework.components import Prediction, Stage, VarianceKind
from ppap_framework.diffusion import (
    NoiseSource,
    Process,
    ddim_step,
    ddpm_step,
    repeated,
    timesteps_for,
    trajectory,
)
from ppap_framework.errors import UsageError
from ppap_framework.guidance import EnergyGuidance, Guide
from ppap_framework.known import Known
from ppap_framework.noise import NoiseLevel, NoiseSchedule, cosine_schedule, linear_schedule

MEAN, DEVIATION = 0.3, 0.5
LINEAR, COSINE = linear_schedule(1000), cosine_schedule(1000)


def posterior(x_t: Tensor, alpha: Tensor, sigma: Tensor, mean: float, deviation: float) -> Tensor:
    """E[x_0 | x_t] for x_0 ~ N(mean, deviation^2)."""
    gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
    return (mean + gain.float() * (x_t - (alpha * mean).float())).to(x_t)


class GaussianStage(Stage):
    name, image_shape, network = "gaussian", (3, 8, 8), nn.Identity()
    variance: VarianceKind = "fixed_small"
    schedule = COSINE

    def __init__(self, schedule: NoiseSchedule, mean=MEAN, deviation=DEVIATION) -> None:
        self.schedule, self.mean, self.deviation = schedule, mean, deviation
        self.seen: list[Tensor] = []

    def denoise(self, x_t: Tensor, t: Tensor, condition: Any) -> Prediction:
        self.seen.append(t)
        level = self.schedule.level(t)
        alpha, sigma = level.alpha[:, None, None, None], level.sigma[:, None, None, None]
        x0 = posterior(x_t, alpha, sigma, self.mean, self.deviation)
        return Prediction.from_x0(x0, x_t, alpha, sigma)


class Unclipped(GaussianStage):
    def clip(self, x0: Tensor) -> Tensor:
        return x0


def likelihood(prediction: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    """-log N(target; mean, variance) of the predicted mean and variance, up to a constant."""
    mean, variance = prediction
    return ((target - mean).square() / (2 * variance)).flatten(1).sum(1)


def process_of(stage: Stage, steps: int, variance: VarianceKind = "fixed_small") -> Process:
    return Process(stage.schedule, timesteps_for(1000, steps), variance)


def noise_of(batch: int = 1, side: int = 2) -> tuple[Tensor, NoiseSource]:
    source = NoiseSource(seed=5)
    return source((batch, 3, side, side)), source


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def end_of(*args: Any, **how: Any) -> Tensor:
    *_, (last, _) = trajectory(*args, **how)
    return last


def walk(stage: Stage, process: Process | int, side: int = 2, **how: Any) -> tuple[Tensor, Tensor]:
    """Where a walk began and ended."""
    start, source = noise_of(side=side)
    process = process_of(stage, process) if isinstance(process, int) else process
    return start, end_of(stage, process, start, source, **how)


def states_of(
    steps: int, batch: int = 1, kind: type[GaussianStage] = GaussianStage, **how: Any
) -> tuple[GaussianStage, list[Any]]:
    """Each state after a step, with the prediction that it was made from."""
    stage, (start, source) = kind(LINEAR), noise_of(batch)
    return stage, list(trajectory(stage, process_of(stage, steps), start, source, **how))


def transported(stage: GaussianStage, process: Process, x: Tensor) -> Tensor:
    """Where the probability-flow ODE leads, along which standard scores never change."""
    level = process.level(len(process) - 1, 1)
    alpha, sigma = level.alpha.item(), level.sigma.item()
    deviation = (alpha**2 * stage.deviation**2 + sigma**2) ** 0.5  # of x_t
    return stage.mean + stage.deviation * (x - alpha * stage.mean) / deviation


def check_moments(found: Tensor, mean: float, deviation: float, slack: float, rel: float) -> None:
    error = 4 * deviation / found.numel() ** 0.5  # four standard errors of the mean
    assert found.mean().item() == pytest.approx(mean, abs=error + slack)
    assert found.std().item() == pytest.approx(deviation, rel=rel)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_ddim_converges_to_the_flow(schedule: NoiseSchedule) -> None:
    stage = Unclipped(schedule)
    errors = []
    for steps in (50, 100, 200):
        process = process_of(stage, steps)
        start, end = walk(stage, process, side=8)
        errors.append((end - transported(stage, process, start)).abs().max().item())
    assert errors[2] < 0.03
    for coarse, fine in pairwise(errors):
        assert 0.4 < fine / coarse < 0.6  # of first order


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(
    "step", [ddpm_step, *(partial(ddim_step, eta=eta) for eta in (0.5, 1.0, 1.5))]
)
def test_stochastic_samplers_draw_the_data(step, variance: VarianceKind) -> None:
    stage = Unclipped(COSINE)
    _, end = walk(stage, process_of(stage, 250, variance), side=48, step=step)
    check_moments(end, MEAN, DEVIATION, slack=0, rel=0.03)


def test_ddim_with_eta_1_takes_the_ancestral_step() -> None:
    """Song et al. 2021, section 4.1; the posterior's mean and variance are those of eta 1."""
    walks = [
        states_of(10, kind=Unclipped, step=step)[1]
        for step in (ddpm_step, partial(ddim_step, eta=1.0))
    ]
    for (a, _), (b, _) in zip(*walks, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_noise_of_a_step_is_at_most_all() -> None:
    """However large eta is, x_{i-1} is noised to its own level, with new noise alone."""
    stage, states = states_of(10, kind=Unclipped, step=partial(ddim_step, eta=1e6))
    abars, (start, noise) = process_of(stage, 10).alphas_cumprod_prev.flip(0).tolist(), noise_of()
    for (x, prediction), abar in zip(states, abars, strict=True):
        wanted = abar**0.5 * prediction.x0 + (1.0 - abar) ** 0.5 * noise(tuple(start.shape))
        assert_close(x, wanted, rtol=1e-4, atol=1e-4)


def test_inversion_leads_back() -> None:
    stage = Unclipped(COSINE)
    process = Process(COSINE, timesteps_for(1000, 200)[:-1])
    data = MEAN + DEVIATION * images(2, 3, 8, 8)
    *_, (last, _) = inversion(stage, process, data)
    assert_close(transported(stage, process, last), data, rtol=0, atol=0.05)
    again = end_of(stage, process, last, NoiseSource(0))
    assert_close(again, data, rtol=0, atol=0.05)


class TestGuidance:
    """A reading y = x_0 + r n of each pixel makes the data N(m', s'^2), by Bayes' rule."""

    READING, NOISE = -0.6, 0.7
    PRECISION = 1 / DEVIATION**2 + 1 / NOISE**2
    TILTED = Unclipped(
        COSINE, (MEAN / DEVIATION**2 + READING / NOISE**2) / PRECISION, PRECISION**-0.5
    )

    def guide(self, predict: Any = None, scale: float = 1.0) -> Guide:
        def noisy(x_t: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
            """Mean and variance of y given x_t."""
            alpha, sigma = level.alpha[:, None, None, None], level.sigma[:, None, None, None]
            mean = posterior(x_t, alpha, sigma, MEAN, DEVIATION)
            left = 1 / (1 / DEVIATION**2 + alpha**2 / sigma**2)
            return mean, (left + self.NOISE**2).float()

        reading = torch.full((1, 1, 1, 1), self.READING)
        return guide_of(predict or noisy, likelihood, reading, scale=scale)

    @pytest.mark.parametrize("t", [0, 100, 500, 900])
    def test_the_score_is_that_of_the_tilted_data(self, t: int) -> None:
        """Guided eps at any level is what the tilted data's own denoiser says."""
        stage, x_t, at = GaussianStage(COSINE), images(2, 3, 4, 4), torch.full((2,), t)
        prediction, gradient = EnergyGuidance([self.guide()])(
            x_t, t / 1000, COSINE.level(at), lambda x: stage.denoise(x, at, None)
        )
        assert gradient is not None
        process = Process(COSINE, [max(t - 40, 0), t] if t else [t])
        _, guided = ddim_step(process, len(process) - 1, prediction, x_t, gradient)
        wanted = self.TILTED.denoise(x_t, at, None)
        assert_close(guided.x0, wanted.x0, rtol=1e-3, atol=1e-4)
        assert_close(guided.eps, wanted.eps, rtol=1e-3, atol=1e-3)

    def test_guided_ddim_is_ddim_on_the_tilted_data(self) -> None:
        how = {"process": 50, "side": 8}
        _, end = walk(Unclipped(COSINE), guidance=EnergyGuidance([self.guide()]), **how)
        assert_close(end, walk(self.TILTED, **how)[1], rtol=1e-3, atol=1e-3)

    def test_guided_ancestral_sampling_draws_the_tilted_data(self) -> None:
        guidance = EnergyGuidance([self.guide()])
        how = {"side": 32, "step": ddpm_step, "guidance": guidance}
        _, end = walk(Unclipped(COSINE), 250, **how)
        check_moments(end, self.TILTED.mean, self.TILTED.deviation, slack=0.01, rel=0.04)

    def test_through_the_denoiser(self) -> None:
        """g = -s (x0 - y) / r^2 dx0/dx_t, where dx0/dx_t is the denoiser's gain."""
        stage, scale, t = GaussianStage(LINEAR), 2.5, 400
        guide = self.guide(lambda x0, level: (x0, self.NOISE**2 + level.sigma.max()), scale)
        x_t, at = 2 * images(2, 3, 4, 4), torch.full((2,), t)
        prediction, gradient = EnergyGuidance([attrs.evolve(guide, through="clean")])(
            x_t, t / 1000, LINEAR.level(at), lambda x: stage.denoise(x, at, None)
        )
        abar = LINEAR.alphas_cumprod[t].item()
        gain = abar**0.5 * DEVIATION**2 / (abar * DEVIATION**2 + 1 - abar)
        wanted = -scale * (prediction.x0 - self.READING) / self.NOISE**2 * gain
        assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


class TestKnownPixels:
    """Two columns of pixels, N(m, s^2) each and correlated by r within a row. The left one is
    known, so the right one is N(m + r (k - m), (1 - r^2) s^2).
    """

    CORRELATION, KNOWN, ROWS = 0.9, -0.5, 1024
    TRUTH = MEAN + CORRELATION * (KNOWN - MEAN), DEVIATION * (1 - CORRELATION**2) ** 0.5
    COVARIANCE = DEVIATION**2 * np.array([[1, CORRELATION], [CORRELATION, 1]])

    def gain(self, abar: float) -> np.ndarray:
        """The Kalman gain K of E[x_0 | x_t] = m + K (x_t - alpha m)."""
        noisy = abar * self.COVARIANCE + (1 - abar) * np.eye(2)
        return abar**0.5 * self.COVARIANCE @ np.linalg.inv(noisy)

    def predicted(self, steps: int, resample: int, jump: int) -> tuple[float, float]:
        """Mean and deviation of the right pixel, carried through the walk of RePaint's algorithm 1:
        every step is linear.
        """
        abar = [1.0, *COSINE.alphas_cumprod[timesteps_for(1000, steps)].tolist()]
        mean, cov = np.zeros(2), np.eye(2)

        def down(level: int) -> None:
            nonlocal mean, cov
            here, there = abar[level], abar[level - 1]
            beta = 1 - here / there
            of_x0 = there**0.5 * beta / (1 - here)
            of_x_t = (1 - beta) ** 0.5 * (1 - there) / (1 - here)
            carried = of_x0 * self.gain(here) + of_x_t * np.eye(2)
            shift = of_x0 * (np.eye(2) - here**0.5 * self.gain(here)) @ [MEAN, MEAN]
            variance = beta * (1 - there) / (1 - here)
            mean, cov = carried @ mean + shift, carried @ cov @ carried.T + variance * np.eye(2)
            mean[0], cov[0, 1], cov[1, 0], cov[0, 0] = there**0.5 * self.KNOWN, 0, 0, 1 - there

        for top in range(steps, 0, -jump):
            bottom = max(top - jump, 0)
            for round_ in range(resample):
                if round_:
                    ratio = abar[top] / abar[bottom]
                    mean, cov = ratio**0.5 * mean, ratio * cov + (1 - ratio) * np.eye(2)
                for level in range(top, bottom, -1):
                    down(level)
        return mean[1], cov[1, 1] ** 0.5

    def drawn(self, steps: int, resample: int, jump: int) -> Tensor:
        """The right pixels of one image, drawn."""

        class Correlated(Unclipped):
            image_shape = (3, self.ROWS, 2)

            def denoise(_, x_t: Tensor, t: Tensor, condition: Any) -> Prediction:  # noqa: N805
                level = COSINE.level(t)
                alpha, sigma = level.alpha[:, None, None, None], level.sigma[:, None, None, None]
                gain = torch.from_numpy(self.gain(alpha.item() ** 2)).float()
                x0 = MEAN + (x_t - alpha.float() * MEAN) @ gain.T
                return Prediction.from_x0(x0, x_t, alpha, sigma)

        stage, source = Correlated(COSINE), NoiseSource(seed=5)
        x0 = torch.full((1, 3, self.ROWS, 2), self.KNOWN)
        unknown = torch.tensor([0.0, 1.0]).expand(1, 1, self.ROWS, 2)
        how: dict[str, Any] = {"step": ddpm_step, "known": Known(x0=x0, unknown=unknown)}
        process, indices = process_of(stage, steps), repeated(steps, resample, jump)
        end = end_of(stage, process, source(x0.shape), source, indices=indices, **how)
        assert torch.equal(end[..., 0], x0[..., 0])
        return end[..., 1]

    @pytest.mark.parametrize(("steps", "resample", "jump"), [(50, 1, 5), (50, 5, 5), (50, 3, 7)])
    def test_the_walk_is_that_of_the_algorithm(self, steps: int, resample: int, jump: int) -> None:
        mean, deviation = self.predicted(steps, resample, jump)
        check_moments(self.drawn(steps, resample, jump), mean, deviation, slack=0, rel=0.04)

    def test_resampling_approaches_the_conditional_distribution(self) -> None:
        mean, deviation = self.TRUTH
        rounds = [1, 2, 5, 10]
        errors = [abs(self.predicted(250, n, 10)[0] - mean) for n in rounds]
        assert all(fewer > more for fewer, more in pairwise(errors))
        assert errors[0] > 0.2
        drawn = self.drawn(250, 10, 10)
        check_moments(drawn, *self.predicted(250, 10, 10), slack=0, rel=0.04)
        check_moments(drawn, mean, deviation, slack=0.025, rel=0.08)

    def test_the_order(self) -> None:
        assert repeated(4, 1, 3) == (3, 2, 1, 0)
        assert repeated(5, 2, 2) == (4, 4, 3, 2, 3, 2, 1, 0, 1, 0)
        assert repeated(2, 3, 5) == (1, 0, 1, 0, 1, 0)


steps_of_both = pytest.mark.parametrize("step", [ddim_step, ddpm_step])


class TestWalk:
    def test_images_do_not_depend_on_their_batch(self) -> None:
        stage = GaussianStage(COSINE)

        def draw(start: int, batch: int) -> Tensor:
            source = NoiseSource(3, start)
            x = source((batch, 3, 5, 5))
            return end_of(stage, process_of(stage, 7), x, source, step=ddpm_step)

        together = draw(0, 5)
        for i in range(5):
            assert torch.equal(draw(i, 1)[0], together[i])

    @pytest.mark.parametrize(("length", "steps"), [(1000, 1), (1000, 2), (1000, 7), (30, 30)])
    @steps_of_both
    def test_any_number_of_steps(self, length: int, steps: int, step) -> None:
        schedule = cosine_schedule(length)
        stage, process = GaussianStage(schedule), Process(schedule, timesteps_for(length, steps))
        start, end = walk(stage, process, step=step)
        assert bool(torch.isfinite(end).all())
        assert [t.item() for t in stage.seen] == list(reversed(process.timesteps))
        if steps == 1:  # which is the prediction
            assert_close(end, stage.denoise(start, torch.tensor([length - 1]), None).x0)

    def test_steps_are_told_where_they_are(self) -> None:
        stage, (start, source) = GaussianStage(LINEAR, 50.0, 1e-6), noise_of()
        for _, prediction in trajectory(stage, process_of(stage, 3), start, source):  # clipped
            assert (prediction.x0 == 1.0).all()
        indices: list[int] = []

        def step(process: Process, index: int, *given: Any) -> Any:
            indices.append(index)
            return ddim_step(process, index, *given)

        stage, states = states_of(4, batch=2, step=step)
        assert indices == [3, 2, 1, 0]
        assert [t.tolist() for t in stage.seen] == [[750] * 2, [500] * 2, [250] * 2, [0] * 2]
        assert all(t.dtype == torch.int64 for t in stage.seen)
        x, prediction = states[-1]
        assert_close(x, prediction.x0)

    def test_guidance_is_told_where_it_is(self) -> None:
        told: list[tuple[float, list[float]]] = []

        def guidance(x_t: Tensor, time: float, level: NoiseLevel, denoise) -> Any:
            told.append((time, level.log_snr.tolist()))
            return denoise(x_t), None

        stage, _ = states_of(4, batch=2, guidance=guidance)
        list(inversion(stage, process_of(stage, 4), noise_of(2)[0], guidance=guidance))
        kept = [750, 500, 250, 0, 0, 250, 500]
        assert told == [(t / 1000, [LINEAR.log_snr[t].item()] * 2) for t in kept]

    def test_nothing_keeps_a_graph(self) -> None:
        stage, (start, source) = GaussianStage(LINEAR), noise_of()
        walk = trajectory(stage, process_of(stage, 3), start.requires_grad_(), source)
        for x, prediction in walk:
            assert not x.requires_grad
            assert not prediction.x0.requires_grad
            assert torch.is_grad_enabled()  # the caller's own mode, between the steps

    def test_a_bad_eta_is_refused(self) -> None:
        stage = GaussianStage(LINEAR)
        for eta in (-0.1, math.inf, math.nan):
            with pytest.raises(UsageError, match="eta"):
                walk(stage, 2, step=partial(ddim_step, eta=eta))


class TestNoiseSource:
    def test_image_and_seed_make_the_noise(self) -> None:
        shape = (2, 3, 4, 4)
        first, again = NoiseSource(7, 4), NoiseSource(7, 5)
        one, other = first(shape), again(shape)
        assert torch.equal(one[1], other[0])
        assert not torch.equal(one[0], one[1])
        assert not torch.equal(NoiseSource(8, 4)(shape), one)
        assert not torch.equal(first(shape), one)
        assert torch.equal(first(shape)[1], (again(shape), again(shape))[1][0])

        noise = NoiseSource(-1)((100, 3, 16, 16))
        assert noise.dtype == torch.float32
        assert noise.mean().item() == pytest.approx(0, abs=0.015)
        assert noise.std().item() == pytest.approx(1, abs=0.01)
        by_image = noise.flatten(1)
        correlations = torch.corrcoef(by_image) - torch.eye(100)
        assert correlations.abs().max() < 0.2
