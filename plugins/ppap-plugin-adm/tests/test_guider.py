"""The noise-aware classifier: what it is told, what it is shown, what it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ppap_framework.checkpoints import open_checkpoint, save_checkpoint
from ppap_framework.components import TargetInput
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.noise import NoiseLevel, NoiseSchedule, cosine_schedule, linear_schedule
from ppap_plugin_adm import build, plugin
from ppap_plugin_adm.architecture import Process
from ppap_plugin_adm.guider import AdmClassifierGuide, make_adm_classifier

ENCODER = "guided_diffusion.unet.EncoderUNetModel"
CONFIG: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 1],
    "num_head_channels": 16,
    "pool": "attention",
}
NAMES = ["red cube", "blue cube", "red cone"]
PROCESS = {"schedule": "linear", "timesteps": 1000}


def randomised() -> nn.Module:
    torch.manual_seed(0)
    network = build(ENCODER, CONFIG)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


def made(folder: Path, **change: Any) -> AdmClassifierGuide:
    stated = {
        "official_class": ENCODER,
        "config": CONFIG,
        "process": PROCESS,
        "class_names": NAMES,
        **change,
    }
    path = folder / "classifier.safetensors"
    save_checkpoint(path, randomised().state_dict(), stated)
    return make_adm_classifier(None, open_checkpoint(path))


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Recorder(nn.Module):
    def forward(self, shown: Tensor, timesteps: Tensor) -> Tensor:
        self.shown, self.timesteps = shown, timesteps
        return shown.mean((2, 3))


def recorded(batch: Tensor, level: NoiseLevel | None, process: Process | None = None) -> Recorder:
    recorder = Recorder()
    AdmClassifierGuide(recorder, "abc", process or Process(**PROCESS), 8)(batch, level)
    return recorder


class TestWhatItIsTold:
    @pytest.mark.parametrize("other", [linear_schedule(1000), cosine_schedule(4000)])
    def test_the_nearest_timestep_of_its_own_schedule(self, other: NoiseSchedule) -> None:
        level = other.level(torch.linspace(0, other.num_timesteps - 1, 50).long())
        own = linear_schedule(1000).log_snr
        expected = (level.log_snr[:, None] - own).abs().argmin(1)
        assert recorded(images(50, 3, 8, 8), level).timesteps.tolist() == expected.tolist()

    def test_clean_images_are_timestep_zero(self) -> None:
        assert recorded(images(3, 3, 8, 8), None).timesteps.tolist() == [0, 0, 0]

    def test_rescaled(self) -> None:
        process = Process(schedule="cosine", timesteps=100, rescale_timesteps=True)
        level = cosine_schedule(100).level(torch.tensor([0, 50, 99]))
        told = recorded(images(3, 3, 8, 8), level, process).timesteps
        assert told.tolist() == pytest.approx([0, 500, 990])


class TestWhatItIsShown:
    level = linear_schedule(1000).level(torch.full((4,), 900))

    def test_its_own_size_passes_untouched(self) -> None:
        batch = images(4, 3, 8, 8)
        torch.testing.assert_close(recorded(batch, self.level).shown, batch, atol=0, rtol=0)
        torch.testing.assert_close(recorded(batch, None).shown, batch, atol=0, rtol=0)

    @pytest.mark.parametrize("side", [24, 64])
    def test_a_smaller_picture_is_as_noisy(self, side: int) -> None:
        noise = images(4, 3, side, side)
        assert recorded(noise, self.level).shown.std().item() == pytest.approx(1, abs=0.1)
        assert recorded(noise, None).shown.std().item() < 0.5

    def test_a_clean_picture_is_averaged(self) -> None:
        stripes = torch.tensor([-1.0, 1.0]).repeat(16).expand(1, 3, 32, 32)
        assert recorded(stripes, None).shown[..., 2:-2].abs().max() < 0.1


class TestGuide:
    def test_is_the_network_that_was_saved(self, tmp_path: Path) -> None:
        guide = made(tmp_path)
        batch, t = images(3, 3, 8, 8), torch.tensor([0, 400, 999])
        level = linear_schedule(1000).level(t)
        torch.testing.assert_close(
            guide(batch, level), randomised()(batch, t), atol=1e-5, rtol=1e-4
        )
        assert guide._image_size == 8
        assert not any(parameter.requires_grad for parameter in guide.parameters())
        assert not any(module.training for module in guide.modules())

    def test_gradient_against_differences(self, tmp_path: Path) -> None:
        guide = made(tmp_path).double()
        batch = images(2, 3, 8, 8).double().requires_grad_()
        level = linear_schedule(1000).level(torch.tensor([10, 500]))
        direction = images(4, 3, 8, 8)[2:].double()

        def energy(x: Tensor) -> Tensor:
            return -guide(x, level).log_softmax(-1)[:, 1].sum()

        (gradient,) = torch.autograd.grad(energy(batch), batch)
        step = 1e-4
        with torch.no_grad():
            slope = (energy(batch + step * direction) - energy(batch - step * direction)) / 2 / step
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-3, atol=1e-6)

    def test_targets_and_pictures(self, tmp_path: Path) -> None:
        guide = made(tmp_path)
        assert guide.target(TargetInput(text="cone")).value.tolist() == [2]
        with pytest.raises(UsageError, match="ambiguous"):
            guide.target(TargetInput(text="cube"))
        picture = Image.new("RGB", (8, 8), (200, 30, 90))
        target = guide.target(TargetInput(image=picture, source="photo.png"))
        given = torch.tensor([200, 30, 90]).expand(8, 8, 3).permute(2, 0, 1)[None] / 127.5 - 1.0
        assert target.value.tolist() == guide(given).argmax(1).tolist()  # clean, as it stands
        logits = torch.tensor([[0.0, 9.0, 0.0]])
        assert guide.describe(logits) == ["blue cube 1.00"]
        assert guide.render(logits, images(1, 3, 8, 8)).shape[:2] == (1, 3)

    def test_bad_architectures(self, tmp_path: Path) -> None:
        with pytest.raises(AssetError, match="3 classes and names 2"):
            made(tmp_path, class_names=["a", "b"])
        with pytest.raises(AssetError, match=r"is a guided_diffusion\.unet\.UNetModel"):
            made(tmp_path, official_class="guided_diffusion.unet.UNetModel")
        assert made(tmp_path, class_names=None).class_names == ("class 0", "class 1", "class 2")


def test_what_the_plugin_supplies() -> None:
    (backend,), (guider,) = plugin.ppap_backends(), plugin.ppap_guiders()
    assert (backend.name, guider.name) == ("adm", "adm-classifier")
    assert guider.noise_aware
