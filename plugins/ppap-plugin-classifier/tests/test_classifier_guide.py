"""The guide against PIL, timm's transforms, and second ways of computing each figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from library_inputs import TOLERANCE, levels, picture
from PIL import Image
from torch import Tensor, nn

from ppap_framework.checkpoints import open_checkpoint, save_checkpoint
from ppap_framework.components import TargetInput
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.preprocessing import Preprocessing
from ppap_plugin_classifier import plugin
from ppap_plugin_classifier.guider import ClassifierGuide, make_classifier
from ppap_plugin_classifier.options import ClassifierOptions

SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
NAMES = ["red cube", "blue cube", "red sphere"]
ARCHITECTURE: dict[str, Any] = {
    "model": "resnet18",
    "model_args": SMALL,
    "class_names": NAMES,
    "input_size": 32,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.5],
}


def saved(folder: Path, architecture: dict[str, Any], **create: Any) -> Path:
    torch.manual_seed(0)
    network = timm.create_model("resnet18", **{**SMALL, "num_classes": 3, **create})
    path = folder / "weights.safetensors"
    save_checkpoint(path, network.state_dict(), architecture)
    return path


def guide(path: Path, model: str | None = None) -> ClassifierGuide:
    return make_classifier(ClassifierOptions(model=model), open_checkpoint(path))


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Recorder(nn.Module):
    """Stands for a network, to see what it is shown."""

    def forward(self, shown: Tensor) -> Tensor:
        self.shown = shown
        return shown.mean((2, 3))


def shown(config: Preprocessing, batch: Tensor) -> Tensor:
    recorder = Recorder()
    ClassifierGuide(recorder, "abc", config)(batch)
    return recorder.shown


PLAIN = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")


class TestWhatTheNetworkSees:
    def test_normalisation_is_timms(self) -> None:
        from timm.data import create_transform

        config = Preprocessing(
            size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic"
        )
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        transform = create_transform(
            (3, 32, 32), mean=config.mean, std=config.std, interpolation="bicubic", crop_pct=1.0
        )
        expected = transform(Image.fromarray(pixels))
        ours = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        torch.testing.assert_close(shown(config, ours)[0], expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("side", [16, 31, 50, 200])
    def test_resize_is_pils(self, interpolation: Any, side: int) -> None:
        config = Preprocessing(size=32, mean=PLAIN.mean, std=PLAIN.std, interpolation=interpolation)
        batch = images(1, 3, side, side)
        method = getattr(Image.Resampling, interpolation.upper())
        expected = np.stack(
            [np.asarray(Image.fromarray(c.numpy()).resize((32, 32), method)) for c in batch[0]]
        )
        torch.testing.assert_close(
            shown(config, batch)[0], torch.from_numpy(expected), atol=2e-5, rtol=1e-5
        )

    def test_the_native_size_passes_untouched(self) -> None:
        batch = images(2, 3, 32, 32)
        torch.testing.assert_close(shown(PLAIN, batch), batch, atol=0, rtol=0)

    def test_without_a_size_any_passes_untouched(self) -> None:
        batch = images(2, 3, 20, 27)
        free = attrs.evolve(PLAIN, size=None)
        torch.testing.assert_close(shown(free, batch), batch, atol=0, rtol=0)

    @pytest.mark.parametrize("antialias", [True, False])
    def test_told_otherwise(self, antialias: bool) -> None:
        recorder = Recorder()
        own = ClassifierGuide(recorder, "abc", PLAIN).double()
        other = own.preprocessed(
            Preprocessing(
                size=24,
                mean=(0.4, 0.5, 0.6),
                std=(0.2, 0.3, 0.4),
                interpolation="bilinear",
                antialias=antialias,
            )
        )
        assert other.network is recorder
        assert (other.shown.size, own.shown.size) == (24, 32)
        batch = images(1, 3, 48, 48).double()
        other(batch)
        small = (
            F.interpolate(batch, (24, 24), mode="bilinear", antialias=True)
            if antialias
            else F.avg_pool2d(batch, 2)  # what two taps of bilinear are at half the size
        )
        mean, std = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.3, 0.4]])[:, :, None, None]
        expected = ((small + 1) / 2 - mean) / std
        torch.testing.assert_close(recorder.shown, expected, atol=1e-6, rtol=1e-6)

    def test_nothing_is_clipped(self) -> None:
        batch = 10 * images(1, 3, 32, 32)
        torch.testing.assert_close(shown(PLAIN, batch), batch, atol=0, rtol=0)


def test_the_size_of_a_vit_is_that_of_its_arguments(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    network = timm.create_model(name, num_classes=3, **small)
    stated = {"model": name, "model_args": small, "class_names": NAMES}
    save_checkpoint(tmp_path / "vit.safetensors", network.state_dict(), stated)
    made = guide(tmp_path / "vit.safetensors")
    config = timm.data.resolve_data_config({"input_size": (3, 32, 32)}, model=network)
    assert made.shown.size == 32
    image = picture(60, 60)
    assert levels(made, image, timm.data.create_transform(**config)(image)[None]) < TOLERANCE
    assert made(images(1, 3, 60, 60)).shape == (1, 3)


class TestGuide:
    @pytest.fixture
    def made(self, tmp_path: Path) -> ClassifierGuide:
        return guide(saved(tmp_path, ARCHITECTURE))

    def test_follows_the_checkpoint(self, made: ClassifierGuide) -> None:
        assert made.shown.size == 32
        assert made.class_names == tuple(NAMES)
        batch = images(4, 3, 32, 32)
        mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])
        torch.manual_seed(0)
        network = timm.create_model("resnet18", **SMALL, num_classes=3).eval()
        expected = network(((batch + 1) / 2 - mean[:, None, None]) / std[:, None, None])
        torch.testing.assert_close(made(batch), expected, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("model", [None, "torchvision/resnet18"])
    def test_softplus_takes_the_place_of_every_relu(
        self, tmp_path: Path, model: str | None
    ) -> None:
        """A large beta gives the same logits; a small one none of whose gradients is 0."""
        if model is None:
            path = saved(tmp_path, ARCHITECTURE)
        else:
            torch.manual_seed(0)
            network = torchvision.models.resnet18()
            path = tmp_path / "resnet18.pth"
            torch.save(network.state_dict(), path)
        plain, sharp, smooth = (
            make_classifier(ClassifierOptions(model=model, softplus=beta), open_checkpoint(path))
            for beta in (None, 1e4, 3.0)
        )
        batch = images(2, 3, 32, 32)
        torch.testing.assert_close(sharp(batch), plain(batch), atol=1e-2, rtol=1e-2)
        assert not torch.allclose(smooth(batch), plain(batch), atol=1e-2, rtol=1e-2)
        assert not any(isinstance(module, nn.ReLU) for module in smooth.modules())
        assert any(isinstance(module, nn.ReLU) for module in plain.modules())

    def test_softplus_needs_a_relu(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        network = timm.create_model("deit_tiny_patch16_224", num_classes=3, img_size=32)
        path = tmp_path / "weights.safetensors"
        args = {"img_size": 32}
        architecture = {**ARCHITECTURE, "model": "deit_tiny_patch16_224", "model_args": args}
        save_checkpoint(path, network.state_dict(), architecture)
        with pytest.raises(UsageError, match="no ReLU"):
            make_classifier(ClassifierOptions(softplus=3.0), open_checkpoint(path))

    def test_is_frozen_and_in_evaluation_mode(self, made: ClassifierGuide) -> None:
        assert not any(parameter.requires_grad for parameter in made.parameters())
        assert not any(module.training for module in made.modules())
        assert type(made.network).__module__ == "timm.models.resnet"

    def test_each_image_by_itself(self, made: ClassifierGuide) -> None:
        batch = images(4, 3, 48, 48)
        together = made(batch)
        alone = torch.cat([made(image[None]) for image in batch])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("size", [(32, 32), (40, 24)])
    def test_gradient_against_differences(
        self, made: ClassifierGuide, size: tuple[int, int]
    ) -> None:
        made = made.double()
        batch = images(1, 3, *size).double().requires_grad_()
        direction = images(2, 3, *size)[1:].double()

        def energy(x: Tensor) -> Tensor:
            return made(x).log_softmax(-1)[:, 0].sum()

        (gradient,) = torch.autograd.grad(energy(batch), batch)
        step = 1e-6
        with torch.no_grad():
            slope = (energy(batch + step * direction) - energy(batch - step * direction)) / 2 / step
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-7)

    def test_targets_and_pictures(self, made: ClassifierGuide) -> None:
        assert made.target(TargetInput(text="sphere")).value.tolist() == [2]
        with pytest.raises(UsageError, match="ambiguous"):
            made.target(TargetInput(text="cube"))
        picture = Image.effect_noise((20, 30), 90.0).convert("RGB")
        target = made.target(TargetInput(image=picture, source="photo.png"))
        given = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1.0
        assert target.value.tolist() == made(given).argmax(1).tolist()
        assert target.label.endswith(", as in photo.png")
        logits = torch.tensor([[0.0, 9.0, 0.0]])
        assert made.describe(logits) == ["blue cube 1.00"]
        drawn = made.render(logits, images(1, 3, 32, 32))
        assert drawn.shape[:2] == (1, 3)
        assert drawn.abs().max() <= 1


class TestCheckpoints:
    def test_a_bare_state_dict_needs_the_model(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=7)
        torch.save({"state_dict": network.state_dict()}, tmp_path / "own.pth")
        made = guide(tmp_path / "own.pth", "test_resnet")
        assert made.class_names == tuple(f"class {index}" for index in range(7))
        assert made.shown.size == timm.get_pretrained_cfg("test_resnet").input_size[-1]
        with pytest.raises(UsageError, match="of which model") as caught:
            guide(tmp_path / "own.pth")
        assert "--guider-model" in caught.value.hint

    def test_imagenet_names(self, tmp_path: Path) -> None:
        network = timm.create_model("test_resnet")
        torch.save(network.state_dict(), tmp_path / "own.pth")
        made = guide(tmp_path / "own.pth", "test_resnet")
        assert made.target(TargetInput(text="goldfish")).value.tolist() == [1]
        assert made.target(TargetInput(text="Tinca tinca")).value.tolist() == [0]
        with pytest.raises(UsageError, match="ambiguous"):
            made.target(TargetInput(text="crane"))

    def test_the_model_may_be_repeated_but_not_contradicted(self, tmp_path: Path) -> None:
        path = saved(tmp_path, ARCHITECTURE)
        assert guide(path, "resnet18.a1_in1k").class_names == tuple(NAMES)
        with pytest.raises(UsageError, match="is a resnet18, not a resnet34"):
            guide(path, "resnet34")

    def test_another_architecture(self, tmp_path: Path) -> None:
        path = saved(tmp_path, {**ARCHITECTURE, "class_names": NAMES[:2]})
        with pytest.raises(AssetError, match=r"'fc.weight' \(3, 16\) instead of \(2, 16\)"):
            guide(path)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"model": "resnot"}, "no model 'resnot'"),
            ({"model": 3}, "'model' must be"),
            ({"model": "hf-hub:owner/name"}, "no model 'hf-hub:owner/name'"),
            ({"model_args": {"layerz": 3}}, "layerz"),
            ({"model_args": {"pretrained": True}}, "may not hold pretrained"),
            ({"model_args": {"checkpoint_path": "/x"}}, "may not hold checkpoint_path"),
            ({"class_names": "abc"}, "'class_names' must be"),
            ({"input_size": "32"}, "'input_size' must be"),
            ({"input_size": 0}, "'input_size' must be"),
            ({"mean": [0.5]}, "'mean'"),
            ({"std": [1, 1, "a"]}, "'std' must be"),
            ({"std": [1, 1, 0]}, "'std' must be"),
            ({"official_class": "UNetModel"}, "official_class"),
        ],
    )
    def test_architectures_that_are_none(
        self, tmp_path: Path, change: dict[str, Any], expected: str
    ) -> None:
        path = saved(tmp_path, {**ARCHITECTURE, **change})
        with pytest.raises(AssetError) as caught:
            guide(path)
        assert expected in caught.value.message
        assert "\n" not in str(caught.value)


class TestNames:
    def test_nothing_given(self) -> None:
        with pytest.raises(UsageError, match="needs a model") as caught:
            make_classifier(ClassifierOptions(), None)
        assert "--guider-model" in caught.value.hint

    @pytest.mark.parametrize(
        ("model", "message", "hint"),
        [
            ("resnot18", "no model 'resnot18'", "resnet18"),
            ("resnet18.nope", "no weights 'resnet18.nope'", "resnet18.a1_in1k"),
            ("vit_small_patch14_dinov2.lvd142m", "no classes", "resnet50"),
        ],
    )
    def test_unknown(self, model: str, message: str, hint: str) -> None:
        with pytest.raises(UsageError, match=message) as caught:
            make_classifier(ClassifierOptions(model=model), None)
        assert hint in caught.value.hint

    def test_no_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(AssetError) as caught:
            make_classifier(ClassifierOptions(model="resnet18"), None)
        address = "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
        assert address in caught.value.hint
        assert "--guider-checkpoint" in caught.value.hint
        assert "\n" not in str(caught.value)


def test_the_default_loss_is_its_own() -> None:
    (spec,) = plugin.ppap_guiders()
    (loss,) = plugin.ppap_task_losses()
    assert spec.default_loss == loss.name
    assert spec.task == loss.task
