"""Models that draw latents: what is drawn is decoded, and guides look at the decoded prediction."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from toy_guides import guide_of
from toy_latents import LatentBackend, LatentStage, Mean

import ppap_framework as ppap
from ppap_framework.components import Prediction
from ppap_framework.diffusion import Process, ddim_step
from ppap_framework.errors import UsageError
from ppap_framework.guidance import EnergyGuidance, Guide
from ppap_framework.learn import calibrate
from ppap_framework.noise import FlowSchedule, NoiseLevel, cosine_schedule
from ppap_framework.run import Sampling, plan
from ppap_framework.run.estimate import estimate

LEVEL = cosine_schedule(1000).level(torch.tensor([400, 400]))


def red(**changed: Any) -> Guide:
    """Wants red images."""
    target = torch.tensor([[1.0, -1.0, -1.0]])
    return guide_of(
        lambda x, _: x.mean((2, 3)), lambda p, t: (p - t).square().sum(1), target, **changed
    )


class TestSampling:
    def test_images_are_the_decoded_latents(self) -> None:
        backend, seen = LatentBackend(), []
        stage = backend.stages[0]
        decode = stage.decode
        stage.decode = lambda x0: seen.append(x0) or decode(x0)
        result = ppap.sample(backend, num=3, steps=4)
        assert result.images.shape == (3, 3, 8, 8)
        assert seen[0].shape == (3, 2, 4, 4)
        assert torch.equal(result.images, decode(seen[0]).detach().clamp(-1.0, 1.0))
        assert result.plan.record()["image_shape"] == [3, 8, 8]

    def test_the_toy_encodes_what_it_decodes(self) -> None:
        stage, z = LatentStage(), 0.3 * torch.randn(3, 2, 4, 4)
        assert_close(stage.encode(stage.decode(z)), z, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("through", ["clean", "detached"])
    def test_guides_reach_their_target(self, through: str) -> None:
        how: dict[str, Any] = {"num": 8, "steps": 20, "through": through}
        result = ppap.sample(LatentBackend(), [red(scale=3000.0)], compare=True, **how)
        guided = result.guided.seen["looking"].figures["energy"]
        unguided = result.unguided.seen["looking"].figures["energy"]
        assert guided.lt(0.9 * unguided).all()
        backwards = result.stats.guidance.denoiser_backwards
        assert backwards == (8 * 20 if through == "clean" else 0)

    def test_a_guide_that_cannot_look_at_latents_is_refused(self) -> None:
        with pytest.raises(UsageError, match="draws latents") as caught:
            ppap.sample(LatentBackend(), [red()], num=2, steps=4)
        assert "--through detached" in caught.value.hint

    def test_curves_of_a_guide_that_cannot_look_at_latents_are_refused(self) -> None:
        guide = attrs.evolve(red(), loss=Mean(), scale=4)
        with pytest.raises(UsageError, match="draws latents"):
            calibrate(LatentBackend(), guide, num=8)

    def test_the_cost_of_a_step(self) -> None:
        """A convolution of 2 x 4 x 4 latents to 3 x 8 x 8 pixels, and its gradient."""
        products = 2 * (2 * 4 * 4) * (3 * 2 * 2)
        for through, flops in (("clean", 2 * products), ("detached", 2 * products)):
            guided = plan(LatentBackend(), [red()], 1, Sampling(steps=5, through=through))
            (cost,) = estimate(guided).stages.values()
            assert (cost.forward, cost.backward) == (0, flops)


class TestGradient:
    x_t = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(3))

    def gradient(self, stage: LatentStage, through: Any, **how: Any) -> Tensor:
        guidance = EnergyGuidance([red(scale=1.5, through=through)], decode=stage.decode, **how)
        t = torch.tensor([400, 400])
        _, gradient = guidance(self.x_t, 0.4, LEVEL, lambda x: stage.denoise(x, t, None))
        assert gradient is not None
        return gradient

    def test_against_differences(self) -> None:
        stage, guide = LatentStage(), red()
        alpha, sigma = (x.float()[:, None, None, None] for x in (LEVEL.alpha, LEVEL.sigma))
        eps = stage.denoise(self.x_t, torch.tensor([400, 400]), None).eps

        def energy(x: Tensor, through: str) -> Tensor:
            """With the denoiser alpha x, or a shift of x0 by that of x."""
            x0 = alpha * x if through == "clean" else x - self.x_t + start
            with torch.no_grad():
                return guide.energy(stage.decode(x0), NoiseLevel.clean(2)).sum().double()

        start = (self.x_t - sigma * eps) / alpha
        direction = torch.randn(self.x_t.shape, generator=torch.Generator().manual_seed(4))
        for through in ("clean", "detached"):
            step = 1e-2
            ends = [energy(self.x_t + sign * step * direction, through) for sign in (1.0, -1.0)]
            slope = -1.5 * (ends[0] - ends[1]) / (2 * step)
            found = (self.gradient(stage, through) * direction).sum().double()
            assert_close(found, slope, rtol=1e-2, atol=1e-5)

    def test_the_denoiser_of_standard_normal_data_multiplies_by_alpha(self) -> None:
        stage, alpha = LatentStage(), LEVEL.alpha.float()[:, None, None, None]
        clean = self.gradient(stage, "clean")
        assert clean.norm() > 0.01
        assert_close(alpha * self.gradient(stage, "detached"), clean)

    def test_normalized_gradients_have_unit_size(self) -> None:
        for through in ("clean", "detached"):
            found = self.gradient(LatentStage(), through, normalize=True)
            rms = found.square().mean((1, 2, 3)).sqrt()
            assert_close(rms, torch.full((2,), 1.5))


class TestFlow:
    def test_levels_are_those_of_the_line(self) -> None:
        schedule, t = (
            FlowSchedule(1000),
            torch.tensor([0.0, 99.5, 499.0, 998.9], dtype=torch.float64),
        )
        s = (t + 1) / 1000
        assert_close(schedule.level(t).log_snr, 2 * ((1 - s) / s).log())
        assert_close(schedule.level(t).alpha, (1 - s) / ((1 - s) ** 2 + s**2).sqrt())
        assert_close(schedule.abar(t), schedule.level(t).alpha.square())
        whole = torch.arange(1000)
        assert_close(schedule.abar(whole), schedule.alphas_cumprod, atol=1e-12, rtol=1e-9)
        assert schedule.abar(torch.tensor([999])).item() == 0.0
        assert schedule.nearest_timestep(schedule.level(whole)).tolist() == whole.tolist()

    def test_a_ddim_step_is_euler_s(self) -> None:
        process = Process(FlowSchedule(1000), [99.5, 399.25, 999.0])
        generator = torch.Generator().manual_seed(0)
        x0, eps, v = torch.randn(3, 1, 3, 4, 4, generator=generator, dtype=torch.float64).unbind()
        for index, (s, to) in enumerate([(0.1005, 0.0), (0.40025, 0.1005), (1.0, 0.40025)]):
            y = (1 - s) * x0 + s * eps
            size, size_to = (((1 - u) ** 2 + u**2) ** 0.5 for u in (s, to))
            level = process.level(index, 1)
            alpha, sigma = level.alpha.view(1, 1, 1, 1), level.sigma.view(1, 1, 1, 1)
            prediction = Prediction.from_x0(y - s * v, y / size, alpha, sigma)
            x, _ = ddim_step(process, index, prediction, torch.zeros_like(y), None)
            assert_close(x * size_to, y + (to - s) * v)


@pytest.mark.parametrize("kept", [[100], [100, 500, 900], [200, 999]], ids=str)
def test_the_last_step_leads_to_the_stage_s_end(kept: list[int]) -> None:
    schedule = cosine_schedule(1000)
    process = Process(schedule, kept, end=0.99)
    assert_close(process.alphas_cumprod, schedule.alphas_cumprod[kept])
    x0, eps = torch.full((1, 3, 2, 2), 0.5), torch.full((1, 3, 2, 2), -1.0)
    alpha = process.alphas_cumprod[0].sqrt().view(1, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    x_t = (alpha * x0 + sigma * eps).float()
    prediction = Prediction.from_eps(eps, x_t, alpha, sigma)
    x, _ = ddim_step(process, 0, prediction, torch.zeros_like(x0), None)
    assert_close(x, 0.99**0.5 * x0 + 0.1 * eps, atol=1e-5, rtol=1e-5)
