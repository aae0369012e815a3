"""The backend's conventions, against networks whose answers are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap_framework.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.noise import cosine_schedule, linear_schedule
from ppap_plugin_adm import build
from ppap_plugin_adm.architecture import Process
from ppap_plugin_adm.backend import AdmBackend, AdmStage, make_adm

UNET = "guided_diffusion.unet.UNetModel"
CONFIG: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 1],
}
PROCESS = {"schedule": "cosine", "timesteps": 100, "predicts": "eps", "variance": "learned_range"}
FIXED = {**PROCESS, "variance": "fixed_small"}


def randomised(official_class: str, config: Mapping[str, Any]) -> nn.Module:
    """A network without zeroed layers."""
    torch.manual_seed(0)
    network = build(official_class, config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network.eval()


def checkpoint(
    folder: Path,
    config: Mapping[str, Any] = CONFIG,
    process: object = PROCESS,
    official_class: str = UNET,
    dtype: torch.dtype = torch.float32,
    **architecture: Any,
) -> Checkpoint:
    state = randomised(official_class, config).to(dtype).state_dict()
    stated = {"official_class": official_class, "config": config, "process": process}
    save_checkpoint(folder / "adm.safetensors", state, {**stated, **architecture})
    return open_checkpoint(folder / "adm.safetensors")


def noisy(batch: int = 3) -> tuple[Tensor, Tensor]:
    x_t = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return x_t, torch.tensor([0, 40, 99])[:batch]


class Told(nn.Module):
    """Answers what it was given, and notes what it was told."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        self.timesteps, self.y = timesteps, y
        return self.answer


class TestConventions:
    @pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
    @pytest.mark.parametrize("variance", ["learned_range", "fixed_large", "fixed_small"])
    def test_every_prediction_means_the_same(self, predicts: Any, variance: Any) -> None:
        generator = torch.Generator().manual_seed(2)
        x0, eps, v = torch.randn(3, 3, 3, 8, 8, generator=generator).unbind()
        t = torch.tensor([0, 40, 90])
        schedule = cosine_schedule(100)
        x_t = schedule.add_noise(x0, t, eps)
        abar = schedule.alphas_cumprod[t].float()[:, None, None, None]
        answer = {"eps": eps, "x0": x0, "v": abar.sqrt() * eps - (1 - abar).sqrt() * x0}[predicts]
        if variance == "learned_range":
            answer = torch.cat([answer, v], dim=1)
        process = Process(schedule="cosine", timesteps=100, predicts=predicts, variance=variance)
        prediction = AdmStage(Told(answer), process, 8).denoise(x_t, t, None)
        torch.testing.assert_close(prediction.x0, x0, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(prediction.eps, eps, atol=2e-4, rtol=1e-4)
        assert prediction.x0.dtype == prediction.eps.dtype == torch.float32
        if variance == "learned_range":
            torch.testing.assert_close(prediction.variance, v, atol=0, rtol=0)
        else:
            assert prediction.variance is None

    def test_the_network_is_told_base_timesteps(self) -> None:
        x_t, t = noisy()
        for rescale, expected in ((False, [0, 40, 99]), (True, [0, 400, 990])):
            network = Told(torch.zeros(3, 3, 8, 8))
            process = Process(
                schedule="cosine", timesteps=100, variance="fixed_small", rescale_timesteps=rescale
            )
            AdmStage(network, process, 8).denoise(x_t, t, None)
            assert network.timesteps.tolist() == pytest.approx(expected)

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_a_half_precision_network_gives_float32(self, half: torch.dtype) -> None:
        x_t, t = noisy()
        stage = AdmStage(Told(torch.zeros(3, 6, 8, 8, dtype=half)), Process(**PROCESS), 8)
        prediction = stage.denoise(x_t, t, None)
        assert prediction.eps.dtype == torch.float32
        assert prediction.variance is not None
        assert prediction.variance.dtype == torch.float32


class TestCheckpoint:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_is_the_network_that_was_saved(self, tmp_path: Path, dtype: torch.dtype) -> None:
        backend = make_adm(None, checkpoint(tmp_path, dtype=dtype))
        (stage,) = backend.stages
        assert (stage.name, stage.image_shape, stage.variance) == (
            "base",
            (3, 8, 8),
            "learned_range",
        )
        torch.testing.assert_close(stage.schedule.betas, cosine_schedule(100).betas)
        x_t, t = noisy()
        with torch.no_grad():
            expected = randomised(UNET, CONFIG).to(dtype).float()(x_t, t)
            prediction = stage.denoise(x_t, t, backend.encode(None, 3))
        torch.testing.assert_close(prediction.eps, expected[:, :3], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(prediction.variance, expected[:, 3:], atol=1e-5, rtol=1e-4)

    def test_is_frozen_and_in_evaluation_mode(self, tmp_path: Path) -> None:
        network = make_adm(None, checkpoint(tmp_path)).stages[0].network
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not any(module.training for module in network.modules())

    def test_each_image_by_itself(self, tmp_path: Path) -> None:
        (stage,) = make_adm(None, checkpoint(tmp_path)).stages
        x_t, t = noisy()
        together = stage.denoise(x_t, t, None).eps
        alone = [stage.denoise(x_t[i : i + 1], t[i : i + 1], None).eps for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)

    def test_gradient_against_differences(self, tmp_path: Path) -> None:
        (stage,) = make_adm(
            None,
            checkpoint(
                tmp_path, process=FIXED | {"predicts": "v"}, config=CONFIG | {"out_channels": 3}
            ),
        ).stages
        x_t, t = noisy(1)
        x_t.requires_grad_()
        direction = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(3))
        (gradient,) = torch.autograd.grad(stage.denoise(x_t, t, None).x0.square().sum(), x_t)
        step = 1e-2
        with torch.no_grad():
            ends = [
                stage.denoise(x_t + sign * step * direction, t, None).x0.double().square().sum()
                for sign in (1, -1)
            ]
        slope = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum().double(), slope, rtol=1e-2, atol=0)


class TestClasses:
    config = CONFIG | {"num_classes": 3}
    names = ("red cube", "blue cube", "red cone")

    @pytest.fixture
    def backend(self, tmp_path: Path) -> AdmBackend:
        return make_adm(None, checkpoint(tmp_path, self.config, class_names=list(self.names)))

    def test_prompts_are_classes(self, backend: AdmBackend) -> None:
        condition = backend.encode(["cone", "0", "blue cube"], 3)
        assert condition is not None
        assert condition.tolist() == [2, 0, 1]
        x_t, t = noisy()
        with torch.no_grad():
            expected = randomised(UNET, self.config)(x_t, t, condition)[:, :3]
            eps = backend.stages[0].denoise(x_t, t, condition).eps
        torch.testing.assert_close(eps, expected, atol=1e-5, rtol=1e-4)

    def test_numbers_without_names(self, tmp_path: Path) -> None:
        backend = make_adm(None, checkpoint(tmp_path, self.config))
        condition = backend.encode(["2", "class 1"], 2)
        assert condition is not None
        assert condition.tolist() == [2, 1]

    def test_prompts_that_cannot_be(self, backend: AdmBackend, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="class-conditional") as caught:
            backend.encode(None, 2)
        assert "red cube" in caught.value.hint
        with pytest.raises(UsageError, match="1 prompts were given for 2"):
            backend.encode(["0"], 2)
        with pytest.raises(UsageError, match="ambiguous"):
            backend.encode(["cube"], 1)
        unconditional = make_adm(None, checkpoint(tmp_path))
        assert unconditional.encode(None, 2) is None
        with pytest.raises(UsageError, match="takes no prompt"):
            unconditional.encode(["a cat"], 1)

    def test_names_must_be_as_many_as_classes(self, tmp_path: Path) -> None:
        with pytest.raises(AssetError, match="has 3 classes and names 2"):
            make_adm(None, checkpoint(tmp_path, self.config, class_names=["a", "b"]))


class TestArchitecturesThatAreNone:
    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"process": None}, "'process' must be an object"),
            ({"process": {}}, "schedule"),
            ({"process": PROCESS | {"schedule": "quadratic"}}, "'quadratic'"),
            ({"process": PROCESS | {"timesteps": 0}}, "not 0"),
            ({"process": PROCESS | {"timesteps": "100"}}, "'timesteps' must be"),
            ({"process": PROCESS | {"predicts": "mean"}}, "'predicts' must be"),
            ({"process": PROCESS | {"variance": "none"}}, "'variance' must be"),
            ({"process": PROCESS | {"colour": 1}}, "'colour'"),
            ({"process": FIXED}, "gives 6"),
            ({"config": CONFIG | {"out_channels": 3}}, "does not fit"),
            ({"config": CONFIG | {"colour": 1}}, "colour"),
            ({"config": CONFIG | {"model_channels": 30}}, "30"),
            ({"config": None}, "'config' must be"),
            ({"official_class": "UNet"}, "is a UNet"),
            ({"class_names": "abc"}, "'class_names' must be"),
            ({"model": "resnet18"}, "'model'"),
        ],
    )
    def test_is_one_line(self, tmp_path: Path, change: dict[str, Any], expected: str) -> None:
        stated = {"official_class": UNET, "config": CONFIG, "process": PROCESS, **change}
        path = tmp_path / "adm.safetensors"
        save_checkpoint(path, randomised(UNET, CONFIG).state_dict(), stated)
        with pytest.raises(AssetError) as caught:
            make_adm(None, open_checkpoint(path))
        assert expected in caught.value.message
        assert "'adm.safetensors'" in caught.value.message
        assert caught.value.hint
        assert "\n" not in str(caught.value)

    def test_nothing_stated(self, tmp_path: Path) -> None:
        torch.save(randomised(UNET, CONFIG).state_dict(), tmp_path / "adm.pt")
        with pytest.raises(AssetError, match="does not state its architecture"):
            make_adm(None, open_checkpoint(tmp_path / "adm.pt"))

    def test_an_upsampler(self, tmp_path: Path) -> None:
        upsampler = "guided_diffusion.unet.SuperResModel"
        with pytest.raises(AssetError, match=f"is a {upsampler}"):
            make_adm(None, checkpoint(tmp_path, official_class=upsampler))


def test_the_default_process_is_the_released_one() -> None:
    process = Process(schedule="linear", timesteps=1000)
    assert (process.predicts, process.variance, process.rescale_timesteps) == (
        "eps",
        "learned_range",
        False,
    )
    torch.testing.assert_close(process.noise_schedule().betas, linear_schedule(1000).betas)
