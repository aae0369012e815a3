"""Guided pictures of the embedded ADM at any number of steps, under both noise schedules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ppap_framework as ppap
from ppap_framework.components import DiffusionBackend, Prediction, Stage
from ppap_framework.noise import linear_schedule
from ppap_framework.run import LoadedBackend

STEPS = [1, 2, 3, 7, 37, 45, 60, 150, 300, 999, 1000]


class LinearStage(Stage):
    """A stage on the linear schedule, whose network is told the nearest timestep of its own."""

    name, variance, schedule = "linear", "fixed_small", linear_schedule()

    def __init__(self, stage: Stage) -> None:
        self._stage, self.network, self.image_shape = stage, stage.network, stage.image_shape

    def denoise(self, x_t: Tensor, t: Tensor, condition: object) -> Prediction:
        nearest = self._stage.schedule.nearest_timestep(self.schedule.level(t))
        x0 = self._stage.denoise(x_t, nearest, condition).x0
        abar = self.schedule.alphas_cumprod[t][:, None, None, None]
        return Prediction.from_x0(x0, x_t, abar.sqrt(), (1.0 - abar).sqrt())


class LinearBackend(DiffusionBackend):
    def __init__(self, backend: LoadedBackend) -> None:
        self.stages = (LinearStage(backend.stages[0]),)

    def encode(self, prompts: object, batch: int) -> None:
        return None


def saturated(schedule: str, sampler: str, steps: int) -> tuple[dict[str, float], Tensor]:
    """Share of values at the ends of the range, of guided and unguided pictures; all pictures."""
    backend = ppap.backend("adm")
    asked = {"experts": "shapes-classifier-5", "allow_mismatch": ("backend",)}
    guide = ppap.guide("classifier", target="red cube", **asked)
    model = LinearBackend(backend) if schedule == "linear" else backend
    kinds = {
        kind: ppap.sample(model, guides, num=2, steps=steps, sampler=sampler).images
        for kind, guides in (("guided", [guide]), ("unguided", []))
    }
    shares = {kind: (x.abs() >= 0.99).float().mean().item() for kind, x in kinds.items()}
    return shares, torch.cat(list(kinds.values()))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "ddpm"])
@pytest.mark.parametrize("steps", STEPS)
def test_guided_pictures_are_about_as_saturated(schedule: str, sampler: str, steps: int) -> None:
    shares, pictures = saturated(schedule, sampler, steps)
    assert pictures.isfinite().all()
    # In so few steps that even an unguided picture is hardly one, a guide pulls a little more out.
    assert shares["guided"] <= shares["unguided"] + (0.05 if steps >= 7 else 0.15)
