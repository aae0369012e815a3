"""How far answers to noised images are from the clean ones, against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from experts_toy import Backend, TinyGuide
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ppap_framework.components import GuidanceModel, Target, TargetInput, TaskLoss
from ppap_framework.diagnosis import disagreement, evenly_spaced, noised
from ppap_framework.diffusion import NoiseSource
from ppap_framework.errors import PluginError, UsageError
from ppap_framework.noise import NoiseLevel, cosine_schedule, linear_schedule

SCHEDULE = cosine_schedule(100)


class Eye(GuidanceModel):
    """Sees images as they are, and remembers at which levels."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Identity()
        self.levels: list[list[float]] = []

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        assert level is not None
        self.levels.append(level.log_snr.tolist())
        return images

    def target(self, given: TargetInput) -> Target:
        raise NotImplementedError


class Squares(TaskLoss):
    """The mean square of the difference; of another size, that of the means."""

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape != teacher.shape:
            return (student.mean((1, 2, 3)) - teacher.mean((1, 2, 3))).square()
        return (student - teacher).square().mean((1, 2, 3))


class Logits(Squares):
    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean(1)


def pictures(number: int = 6, size: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, size, size), generator=generator, dtype=torch.uint8)


class TestLevels:
    @given(st.integers(2, 1100), st.data())
    def test_are_even_and_reach_both_ends(self, length: int, data: st.DataObject) -> None:
        levels = data.draw(st.integers(2, length))
        found = evenly_spaced(cosine_schedule(length), levels)
        assert (found[0], found[-1], len(found)) == (0, length - 1, levels)
        exact = [k * (length - 1) / (levels - 1) for k in range(levels)]
        assert max(abs(t - e) for t, e in zip(found, exact, strict=True)) <= 0.5
        assert sorted(set(found)) == found

    @pytest.mark.parametrize("levels", [-1, 0, 1, 101])
    def test_that_there_are_not(self, levels: int) -> None:
        with pytest.raises(UsageError, match="from 2 to 100"):
            evenly_spaced(SCHEDULE, levels)


class TestNoise:
    def test_is_of_the_variance_that_the_schedule_says(self) -> None:
        images = torch.full((40, 3, 16, 16), 0.5)
        for t in (0, 30, 99):
            x_t, level = noised(images, SCHEDULE, t)
            assert level.log_snr.tolist() == [SCHEDULE.log_snr[t].item()] * 40
            abar = SCHEDULE.alphas_cumprod[t].item()
            n = x_t.numel()
            deviation = math.sqrt(1.0 - abar)
            assert x_t.mean().item() == pytest.approx(
                0.5 * math.sqrt(abar), abs=5 * deviation / n**0.5
            )
            assert x_t.std().item() == pytest.approx(deviation, rel=5 / (2 * n) ** 0.5)

    def test_is_that_of_seed_image_and_timestep_alone(self) -> None:
        images = torch.zeros(5, 3, 4, 4)
        whole, _ = noised(images, SCHEDULE, 50, seed=3)
        for image in range(5):
            alone, _ = noised(images[:1], SCHEDULE, 50, seed=3, first=image)
            assert torch.equal(alone[0], whole[image])
        with torch.device("meta"):
            torch.set_default_dtype(torch.float64)
            try:
                again, _ = noised(images, SCHEDULE, 50, seed=3)
            finally:
                torch.set_default_dtype(torch.float32)
        assert torch.equal(again, whole)
        # Of another image, seed or timestep it has nothing in common with this.
        others = [
            noised(images[:1], SCHEDULE, 50, seed=3, first=1)[0],
            noised(images[:1], SCHEDULE, 50, seed=4)[0],
            noised(images[:1], SCHEDULE, 51, seed=3)[0],
            noised(images[:1], SCHEDULE, 5, seed=3, first=0)[0],
            # What image 0 was drawn from, at any stage; timesteps may be the number of a stage.
            *(NoiseSource(3, 0, stage)((1, 3, 4, 4)) for stage in (0, 1, 2, 50)),
        ]
        for stage in (1, 2):
            drawn = NoiseSource(3, 0, stage)((1, 3, 4, 4))
            noise, _ = noised(images[:1], SCHEDULE, stage, seed=3)
            assert torch.corrcoef(torch.stack([drawn.flatten(), noise.flatten()]))[0, 1].abs() < 0.6
        for other in others:
            both = torch.stack([whole[0].flatten(), other.flatten()])
            assert torch.corrcoef(both)[0, 1].abs() < 0.6  # of 48 numbers: 4 standard deviations


class TestDisagreement:
    def test_of_what_sees_pixels_is_that_of_the_pixels(self) -> None:
        """E |alpha x + sigma eps - x|^2 = (1 - alpha)^2 |x|^2 + sigma^2, over 64 x 192 pixels."""
        images = pictures(64)
        timesteps = [0, 25, 50, 75, 99]
        found = disagreement(Eye(), Squares(), SCHEDULE, timesteps, images)
        power = (images.double() / 127.5 - 1.0).square().mean().item()
        for t, value in zip(timesteps, found, strict=True):
            abar = SCHEDULE.alphas_cumprod[t].item()
            exact = (1.0 - math.sqrt(abar)) ** 2 * power + 1.0 - abar
            assert value == pytest.approx(exact, rel=0.06)

    def test_the_teacher_looks_at_the_last_stage_without_noise(self) -> None:
        eye = Eye()
        small, large = pictures(5), pictures(5, size=16)
        found = disagreement(eye, Squares(), SCHEDULE, [0, 99], small, large, batch=3)
        clean = [math.inf] * 3
        assert eye.levels[0] == clean
        assert eye.levels[1:3] == [[SCHEDULE.log_snr[t].item()] * 3 for t in (0, 99)]
        assert [len(levels) for levels in eye.levels] == [3, 3, 3, 2, 2, 2]
        means = (large.double() / 127.5 - 1.0).mean((1, 2, 3))
        noise = noised(torch.zeros(5, 3, 8, 8), SCHEDULE, 99)[0].double().mean((1, 2, 3))
        # Next to nothing is left of the image at the last timestep.
        assert found[1] == pytest.approx((noise - means).square().mean().item(), abs=1e-4)

    def test_batches_do_not_matter(self) -> None:
        images, model = pictures(7), TinyGuide()
        backend = Backend().stages[0]
        whole, *others = (
            disagreement(
                model, Logits(), backend.schedule, [0, 40, 99], images, seed=5, batch=batch
            )
            for batch in (7, 3, 1)
        )
        assert others == [pytest.approx(whole, rel=1e-5), pytest.approx(whole, rel=1e-5)]
        again = disagreement(model, Logits(), backend.schedule, [0, 40, 99], images, seed=6)
        assert again[2] != pytest.approx(whole[2], rel=1e-3)
        # A level says the same, whatever others are asked for.
        alone = disagreement(model, Logits(), backend.schedule, [40], images, seed=5)
        assert alone == [pytest.approx(whole[1], rel=1e-5)]

    def test_images_whose_loss_is_not_finite_are_left_out(self) -> None:
        class Broken(Squares):
            def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
                found = super().transfer(student, teacher)
                return torch.where(torch.arange(len(found)) % 2 == 0, found, torch.nan)

        images = pictures(4)
        found = disagreement(Eye(), Broken(), SCHEDULE, [60], images)
        x0 = images.double() / 127.5 - 1.0
        x_t = noised(x0.float(), SCHEDULE, 60)[0].double()
        apart = (x_t - x0).square().mean((1, 2, 3))
        assert found == [pytest.approx(apart[::2].mean().item(), rel=1e-5)]

        class Lost(Squares):
            def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
                return super().transfer(student, teacher) * torch.inf

        with pytest.raises(PluginError, match=r"Lost\.transfer is finite for no image.* 60"):
            disagreement(Eye(), Lost(), SCHEDULE, [60], images)

    def test_a_loss_of_another_shape(self) -> None:
        class Whole(Squares):
            def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
                return super().transfer(student, teacher).mean()

        with pytest.raises(PluginError, match=r"of 6 images has shape \(\)"):
            disagreement(Eye(), Whole(), linear_schedule(100), [3], pictures())
