"""Backends of two stages: the base is guided, and the upsampler goes on from what it drew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from toy_distribution import SIZE, TIMESTEPS, green

import ppap_framework as ppap
from ppap_framework.components import CascadeSampling, DiffusionBackend, Prediction
from ppap_framework.diffusion import NoiseSource, Process, space_timesteps, trajectory
from ppap_framework.errors import UsageError
from ppap_framework.run import RunFolder, Sampling, counts_of, plan
from ppap_framework.runtime import Progress

ASKED: dict[str, Any] = {"num": 3, "steps": 5, "seed": 4}
SAMPLING = Sampling(steps=5, seed=4)


@pytest.fixture(scope="module")
def two(toy: DiffusionBackend) -> DiffusionBackend:
    from ppap_plugin_toy.cascade import ToyCascade

    cascade: DiffusionBackend = ToyCascade(toy)
    return cascade


class TestSample:
    def test_the_base_is_guided_as_if_it_were_alone(self, toy, two) -> None:
        alone = ppap.sample(toy, [green()], **ASKED, compare=True)
        both = ppap.sample(two, [green()], **ASKED, compare=True)
        assert torch.equal(both.guided.earlier["base"], alone.images)
        assert torch.equal(both.unguided.earlier["base"], alone.unguided.images)
        assert both.images.shape == (3, 3, 2 * SIZE, 2 * SIZE)
        assert both.stats.guidance.guides == alone.stats.guidance.guides

    def test_the_second_stage_is_the_walk_of_its_recipe(self, two: DiffusionBackend) -> None:
        from ppap_plugin_toy.cascade import Told

        result = ppap.sample(two, **ASKED, sampler="ddpm", prompt="brighter")
        stage = two.stages[1]
        noise = NoiseSource(4, 0, stage=1)
        *_, (last, _) = trajectory(
            stage,
            Process(stage.schedule, space_timesteps(50, "4"), stage.variance),
            0.9 * noise((3, 3, 2 * SIZE, 2 * SIZE)),
            noise,
            condition=Told(torch.full((3,), 0.5), result.guided.earlier["base"]),
        )
        assert torch.equal(result.images, last.clamp(-1.0, 1.0))

    def test_its_noise_comes_from_seed_and_image_alone(self, toy: DiffusionBackend) -> None:
        from ppap_plugin_toy.cascade import Doubling, Told, ToyCascade

        class Listening(Doubling):
            def denoise(self, x_t: Tensor, t: Tensor, condition: Told) -> Prediction:
                if int(t[0]) == 49:
                    heard.extend(x_t)
                return super().denoise(x_t, t, condition)

        heard: list[Tensor] = []
        backend = ToyCascade(toy, Listening(toy.stages[0]))

        def begins(**changed: Any) -> Tensor:
            """The noise that the second stage begins with."""
            heard.clear()
            ppap.sample(backend, **{**ASKED, **changed})
            return torch.stack(heard)

        once = begins()
        assert once.shape == (3, 3, 2 * SIZE, 2 * SIZE)
        assert 0.8 < once.std() < 1.0
        for changed in ({"batch": 1}, {"steps": 9}, {"sampler": "ddpm"}, {"prompt": "darker"}):
            assert torch.equal(begins(**changed), once)
        assert torch.equal(begins(num=1), once[:1])
        assert (begins(seed=5) - once).abs().max() > 1.0

    def test_the_streams_of_stages_differ(self) -> None:
        shape = (2, 3, 8, 8)
        first, second = NoiseSource(3)(shape), NoiseSource(3, stage=1)(shape)
        assert (first - second).abs().max() > 1.0
        assert torch.equal(NoiseSource(3, 1, stage=1)((1, 3, 8, 8)), second[1:])

    def test_stops_early(self, toy: DiffusionBackend, two: DiffusionBackend) -> None:
        result = ppap.sample(two, **ASKED, stage="base")
        assert torch.equal(result.images, ppap.sample(toy, **ASKED).images)
        assert result.guided.earlier == {}
        assert torch.equal(
            ppap.sample(two, **ASKED, stage="upsampler").images, ppap.sample(two, **ASKED).images
        )

    def test_counts_every_step(self, two: DiffusionBackend) -> None:
        seen: list[Progress] = []
        ppap.sample(two, [green()], **ASKED, compare=True, progress=seen.append)
        assert seen[-1] == Progress("drawing", 3 * (5 + 4) * 2, 3 * (5 + 4) * 2)
        both = counts_of(plan(two, [green()], 3, SAMPLING))
        assert both.denoiser_forwards == 3 * (5 + 4)
        assert both.guide_forwards == {"colour": 3 * 5}
        base = counts_of(plan(two, [], 3, attrs.evolve(SAMPLING, stage="base")))
        assert base.denoiser_forwards == 3 * 5
        assert both.denoiser_parameters == base.denoiser_parameters + 1


class TestRefusals:
    def test_no_such_stage(self, two: DiffusionBackend) -> None:
        with pytest.raises(UsageError, match="has no stage 'upscaler'") as caught:
            ppap.sample(two, stage="upscaler")
        assert "base, upsampler" in caught.value.hint

    def test_a_second_stage_that_does_not_go_on(self, toy: DiffusionBackend) -> None:
        from ppap_plugin_toy.cascade import Doubling, ToyCascade

        class Unspaceable(Doubling):
            sampling = CascadeSampling(respacing="ddim37")

        with pytest.raises(UsageError, match="no even stride over 50"):
            ppap.sample(ToyCascade(toy, Unspaceable(toy.stages[0])))
        unfit = ToyCascade(toy, toy.stages[0])
        with pytest.raises(UsageError, match="does not say how it goes on"):
            ppap.sample(unfit)
        assert len(ppap.sample(unfit, **ASKED, stage="base").images) == 3


class TestFolder:
    def test_keeps_what_the_base_drew(self, two: DiffusionBackend, tmp_path: Path) -> None:
        result = ppap.sample(two, [green()], **ASKED, compare=True)
        result.save(tmp_path / "out")
        images = np.asarray(Image.open(tmp_path / "out" / "002.png"))
        assert images.shape == (2 * SIZE, 2 * SIZE, 3)
        base = np.asarray(Image.open(tmp_path / "out/stages/base/002.png")) / 127.5 - 1.0
        wanted = result.guided.earlier["base"][2].permute(1, 2, 0).numpy()
        assert np.abs(base - wanted).max() <= 0.5 / 127.5 + 1e-6
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert record["images"][2]["stages"] == {"base": "stages/base/002.png"}
        unguided = record["images"][2]["unguided"]
        assert unguided["stages"] == {"base": "unguided/stages/base/002.png"}
        assert [stage["name"] for stage in record["config"]["stages"]] == ["base", "upsampler"]
        assert record["config"]["stages"][1]["timesteps"] == space_timesteps(50, "4")

    def test_a_smaller_run_leaves_nothing_of_it(self, two, tmp_path) -> None:
        ppap.sample(two, **ASKED).save(tmp_path)
        RunFolder(plan(two, [], 1, SAMPLING), tmp_path, overwrite=True)
        assert not list(tmp_path.rglob("*.png"))


class TestSynthesis:
    def test_keeps_every_stage(self, two: DiffusionBackend, tmp_path: Path) -> None:
        data = ppap.synthesize(two, out=tmp_path, **ASKED, batch=2, shard=2)
        assert data.stages == ("base", "upsampler")
        result = ppap.sample(two, **ASKED, sampler="ddim", batch=2)
        for stage, images in ((0, result.guided.earlier["base"]), (1, result.images)):
            drawn = data.images(range(3), stage) / 127.5 - 1.0
            torch.testing.assert_close(drawn, images, rtol=0, atol=0.5 / 127.5 + 1e-5)
        stages = data.manifest["settings"]["stages"]
        assert [stage["name"] for stage in stages] == ["base", "upsampler"]


def test_a_plan_can_be_copied(two: DiffusionBackend) -> None:
    run = plan(two, [], 3, SAMPLING)
    assert [len(process) for process in run.processes] == [5, 4]
    assert run.steps == 9
    assert attrs.evolve(run, later=()).steps == 5
    assert run.process.schedule.num_timesteps == TIMESTEPS
