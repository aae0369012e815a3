"""Depth networks of several architectures, what they say and are aimed at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_networks import DEPTH, saved
from torch import Tensor, nn

from ppap_framework.checkpoints import Checkpoint, open_checkpoint
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.preprocessing import ImageInput
from ppap_framework.targets import decode_target
from ppap_plugin_midas.guider import DepthGuide, make_depth
from ppap_plugin_midas.options import DepthOptions
from ppap_transformers import make_input

METRIC = ("glpn", "metric_depth_anything", "zoedepth")
FAMILY = transformers.MODEL_FOR_DEPTH_ESTIMATION_MAPPING
kinds = pytest.mark.parametrize("kind", sorted(DEPTH))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that transformers saved."""
    made = {}
    for kind in DEPTH:
        made[kind] = tmp_path_factory.mktemp(kind)
        saved(kind, made[kind])
    return made


def guide(folder: Path, **options: Any) -> DepthGuide:
    return make_depth(DepthOptions(model=str(folder), **options), None)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


class TestArchitectures:
    @kinds
    def test_says_what_transformers_says_and_larger_is_nearer(
        self, kind: str, folders: dict[str, Path]
    ) -> None:
        made = guide(folders[kind])
        theirs = FAMILY[type(DEPTH[kind])].from_pretrained(folders[kind]).eval()
        assert made.feed.size == (None if kind == "glpn" else 32)
        batch = images(2, 3, 32, 32)
        given = (batch + 1) / 2 if kind == "glpn" else 2 * batch  # ((x + 1) / 2 - 0.5) / 0.25
        with torch.no_grad():
            expected = theirs(given).predicted_depth
            said = made(batch)
        metric = kind in METRIC
        torch.testing.assert_close(said, 1 / expected if metric else expected)
        assert said.ndim == 3
        assert made.describe(said) == []
        drawn = made.render(said, batch)
        assert drawn.shape == (2, 3, *said.shape[1:])
        assert drawn.abs().max() <= 1
        other = guide(folders[kind], predicts="disparity" if metric else "depth")
        with torch.no_grad():
            turned = other(batch)
        torch.testing.assert_close(turned, expected if metric else 1 / expected.clamp_min(0.01))

    @kinds
    def test_looks_at_any_size_image_by_image_with_a_gradient(
        self, kind: str, folders: dict[str, Path]
    ) -> None:
        made = guide(folders[kind])
        for height, width in ((32, 32), (20, 50), (64, 64)):
            batch = images(2, 3, height, width).requires_grad_(True)
            said = made(batch)
            said.sum().backward()
            assert batch.grad is not None
            assert batch.grad.isfinite().all()
            assert batch.grad.abs().amax((1, 2, 3)).min() > 0
            torch.testing.assert_close(made(batch[1:]), said[1:], atol=1e-4, rtol=1e-4)


class Ramp(nn.Module):
    """Stands for a network: disparity is the mean of the channels it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pixel_values: Tensor) -> Any:
        return type("Output", (), {"predicted_depth": self.weight * pixel_values.mean(1)})


def simple(size: int | None = 16, **named: Any) -> DepthGuide:
    return DepthGuide(Ramp(), ImageInput(size=size), **named)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64)])
def test_the_border_of_zoedepth_is_cut_off(height: int, width: int) -> None:
    """A network that says what it is shown says the image, where the image is."""
    config = json.loads(transformers.ZoeDepthConfig().to_json_string())
    stated = {"size": {"height": 128, "width": 128}}
    feed = make_input(Checkpoint("tiny", {}, {"config": config, "preprocessor": stated}))
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    batch = (0.5 * y + 0.4 * x).expand(1, 3, -1, -1)
    said = DepthGuide(Ramp(), feed, padded=True)(batch)
    expected = torch.nn.functional.interpolate(batch[:, :1], said.shape[1:], mode="bilinear")[:, 0]
    torch.testing.assert_close(said, expected, atol=0.03, rtol=0)
    without = DepthGuide(Ramp(), feed)(batch)
    assert without.shape[1] > said.shape[1]


def test_a_map_is_cropped_as_the_network_is() -> None:
    feed = ImageInput(size=8, resize=lambda images: images[..., 4:12, 4:12], kept=0.5)
    made = DepthGuide(Ramp(), feed)
    numbers = torch.arange(256.0).reshape(16, 16)
    target = made.target(decode_target(numbers))
    assert torch.equal(target.value[0], numbers[4:12, 4:12])


def ramp(mode: str, width: int = 16, height: int = 16) -> Image.Image:
    grey = np.tile(np.linspace(0, 255, width), (height, 1)).astype(np.uint8)
    return Image.fromarray(grey).convert(mode)


class TestTargets:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
    def test_pictures_of_any_mode(self, mode: str, tmp_path: Path) -> None:
        path = tmp_path / ("reference.tif" if mode == "CMYK" else "reference.png")
        ramp(mode).save(path)
        target = simple().target(decode_target(str(path)))
        assert target.value.shape == (1, 16, 16)
        assert target.value[0, 0].diff().mean() > 0
        assert target.label == f"the depth of {path.name}"
        assert target.picture is not None
        assert target.picture.shape == (3, 16, 32)  # the picture, and its depth beside it
        assert target.picture.abs().max() <= 1

    @pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 3), (900, 700)])
    def test_pictures_of_any_size(self, width: int, height: int) -> None:
        for size in (16, None):
            target = simple(size).target(decode_target(ramp("RGB", width, height)))
            assert target.value.isfinite().all()
            assert target.picture is not None
            assert max(target.picture.shape) <= 1024

    def test_a_picture_that_is_not_square_keeps_its_middle(self) -> None:
        picture = Image.new("RGB", (48, 16), "red")
        picture.paste("white", (16, 0, 32, 16))
        target = simple().target(decode_target(picture))
        torch.testing.assert_close(target.value, torch.ones(1, 16, 16))

    def test_turned_and_animated_pictures(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down, which is left to right for a ramp
        ramp("RGB").save(tmp_path / "turned.png", exif=exif)
        turned = simple().target(decode_target(tmp_path / "turned.png"))
        assert turned.value[0, 0].diff().mean() < 0
        frames = [Image.new("RGB", (16, 16), "black")]
        ramp("RGB").save(tmp_path / "moving.gif", save_all=True, append_images=frames)
        moving = simple().target(decode_target(tmp_path / "moving.gif"))
        assert moving.value[0, 0].diff().mean() > 0

    def test_maps(self, tmp_path: Path) -> None:
        near = np.linspace(1000, 60000, 64).reshape(8, 8).astype(np.uint16)
        Image.fromarray(near).save(tmp_path / "map.png")
        np.save(tmp_path / "map.npy", near.astype(np.float64))
        for name in ("map.png", "map.npy"):
            target = simple().target(decode_target(tmp_path / name))
            torch.testing.assert_close(target.value[0], torch.from_numpy(near.astype(np.float32)))
            assert target.label == f"the depth map {name}"
            assert target.picture is not None
            assert target.picture.shape == (3, 8, 8)
        each = simple().target(decode_target(np.stack([near, near[::-1]]).astype(np.float32)))
        assert each.value.shape == (2, 8, 8)
        wide = simple().target(decode_target(np.arange(48.0).reshape(4, 12)))
        torch.testing.assert_close(wide.value[0], torch.arange(48.0).reshape(4, 12)[:, 4:8])

    def test_maps_of_distances(self) -> None:
        given = np.array([[1.0, 2.0], [4.0, 0.0]])
        target = simple(target_map="depth").target(decode_target(given))
        expected = torch.tensor([[[1.0, 0.5], [0.25, torch.nan]]])
        torch.testing.assert_close(target.value, expected, equal_nan=True)
        for wrong, message in ((-given, "negative depths"), (0 * given, "no depth is known")):
            with pytest.raises(UsageError, match=message):
                simple(target_map="depth").target(decode_target(wrong))

    @pytest.mark.parametrize("given", ["red cube", np.zeros(5), np.zeros((2, 3, 4, 5)), 3])
    def test_others_are_refused(self, given: Any) -> None:
        with pytest.raises(UsageError, match="a depth network cannot aim at") as caught:
            simple().target(decode_target(given))
        assert "16-bit PNG or NPY" in str(caught.value)
        for shape in ((8, 8, 3), (3, 8, 8)):
            with pytest.raises(UsageError, match="it is a colour array"):
                simple().target(decode_target(np.zeros(shape, np.float32)))
        maps = np.random.default_rng(0).random((3, 8, 8))
        target = simple().target(decode_target(maps[:, None]))
        assert target.value.tolist() == torch.from_numpy(maps).float().tolist()


class TestRefusals:
    def test_types_whose_numbers_nobody_knows(
        self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ppap_plugin_midas import guider

        monkeypatch.setattr(guider, "_PREDICTS", {})
        with pytest.raises(UsageError, match="whose numbers may be disparity or depth"):
            guide(folders["glpn"])
        assert guide(folders["glpn"], predicts="depth").feed.size is None

    def test_nothing_named_and_nothing_fitting(self, folders: dict[str, Path]) -> None:
        with pytest.raises(UsageError, match="no model is named"):
            make_depth(DepthOptions(), None)
        with pytest.raises(UsageError, match="neither a folder"):
            make_depth(DepthOptions(model="./absent"), None)
        with pytest.raises(UsageError, match="torchvision has no depth networks") as caught:
            make_depth(DepthOptions(model="torchvision/resnet50"), None)
        assert "owner/name" in caught.value.hint
        foreign = open_checkpoint(folders["glpn"] / "model.safetensors")
        with pytest.raises(AssetError, match="do not fit DPTForDepthEstimation"):
            make_depth(DepthOptions(model=str(folders["dpt"])), foreign)
        with pytest.raises(ValueError, match="size"):
            DepthOptions(size=0)

    def test_the_size_can_be_chosen(self, folders: dict[str, Path]) -> None:
        made = guide(folders["dpt"], size=61)
        assert made.feed.size == 64  # a whole number of patches
        assert made(images(1, 3, 32, 32)).isfinite().all()
