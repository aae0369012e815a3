"""What the guide shows its network, aims at, draws, loads and refuses."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model

from ppap_framework.checkpoints import open_checkpoint, save_checkpoint
from ppap_framework.components import TargetInput
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.preprocessing import ImageInput
from ppap_framework.targets import decode_target
from ppap_plugin_segmentation import plugin
from ppap_plugin_segmentation.drawing import palette
from ppap_plugin_segmentation.guider import SegmentationGuide, make_segmentation
from ppap_plugin_segmentation.options import SegmentationOptions

NAMES = ["wall", "floor", "red cube", "sphere"]


class Brightest(nn.Module):
    """Which channel is the largest; no channel is the fourth class. A stand-in with known answers,
    at half the resolution of what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(10.0))

    def forward(self, shown: Tensor) -> Tensor:
        self.shown = shown
        halved = nn.functional.avg_pool2d(shown, 2) * self.gain
        return torch.cat([halved, torch.zeros_like(halved[:, :1])], 1)


def guide(size: int | None = 8, **options: Any) -> SegmentationGuide:
    shown = ImageInput(size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    return SegmentationGuide(
        Brightest(),
        NAMES,
        shown,
        answer=lambda logits: logits,
        options=SegmentationOptions(**options),
    )


def test_a_center_crop_applies_to_masks_and_drawings() -> None:
    crop = ImageInput(size=8, resize=lambda images: images[..., 4:12, 4:12], kept=0.5)
    made = SegmentationGuide(Brightest(), NAMES, crop, answer=lambda logits: logits)
    mask = torch.arange(256).reshape(16, 16) % 3
    assert torch.equal(made.target(decode_target(mask)).value[0], mask[4:12, 4:12])
    batch = image(1, 3, 16, 16)
    prediction = made(batch)
    assert torch.equal(
        made.render(prediction, batch), guide().render(prediction, batch[..., 4:12, 4:12])
    )


def test_a_border_is_cut_off_the_logits() -> None:
    bordered = ImageInput(size=16, resize=lambda x: nn.functional.pad(x, (4,) * 4), kept=2.0)
    made = SegmentationGuide(Brightest(), NAMES, bordered, answer=lambda logits: logits)
    batch = image(1, 3, 8, 8)
    plain = ImageInput(size=8)
    whole = SegmentationGuide(Brightest(), NAMES, plain, answer=lambda logits: logits)
    torch.testing.assert_close(made(batch), whole(batch))


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


RED_BLUE = np.zeros((8, 8, 3), np.uint8)
RED_BLUE[:, :4, 0] = RED_BLUE[:, 4:, 2] = 255
HALVES = np.array([[0] * 4 + [2] * 4] * 8)


class TestForward:
    def test_the_native_size_passes_untouched(self) -> None:
        made, batch = guide(), 3 * image(2, 3, 8, 8)
        assert made(batch).shape == (2, 4, 4, 4)
        torch.testing.assert_close(made.network.shown, batch)

    def test_other_sizes_become_native(self) -> None:
        made = guide()
        assert made(image(2, 3, 30, 17)).shape == (2, 4, 4, 4)
        assert guide(size=None)(image(2, 3, 30, 18)).shape == (2, 4, 15, 9)

    def test_gradient_against_differences(self) -> None:
        made = guide().double()
        batch = image(1, 3, 20, 12).double().requires_grad_()
        direction = image(2, 3, 20, 12)[1:].double()

        def energy(x: Tensor) -> Tensor:
            return made(x).log_softmax(1)[:, 0].mean()

        (gradient,) = torch.autograd.grad(energy(batch), batch)
        step = 1e-6
        with torch.no_grad():
            slope = (energy(batch + step * direction) - energy(batch - step * direction)) / 2 / step
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-8)

    def test_is_frozen_and_in_evaluation_mode(self) -> None:
        made = guide()
        assert not any(parameter.requires_grad for parameter in made.parameters())
        assert not any(module.training for module in made.modules())


class TestTargets:
    def test_a_picture_is_looked_at(self) -> None:
        aimed = guide().target(decode_target(RED_BLUE))
        assert torch.equal(aimed.value, torch.from_numpy(HALVES)[None])
        assert aimed.picture is not None
        assert aimed.picture.shape == (3, 128, 384)
        # Its own colours on the left, and beside them those of the classes.
        assert aimed.picture[:, 20, 20].tolist() == [1.0, -1.0, -1.0]
        assert aimed.picture[:, 20, 148].tolist() != aimed.picture[:, 20, 228].tolist()

    @pytest.mark.parametrize("size", [(1, 1), (1, 5000), (333, 100)])
    def test_pictures_of_any_shape(self, size: tuple[int, int]) -> None:
        picture = Image.new("RGB", size, (0, 255, 0))
        for made in (guide(), guide(size=None)):
            if made.shown.size is None and min(size) == 1:
                continue  # this stand-in halves
            value = made.target(TargetInput(image=picture)).value
            assert bool((value == 1).all())
            assert max(value.shape) <= 512

    @pytest.mark.parametrize("kind", ["P", "L", "I;16"])
    def test_masks_of_every_kind_of_png(self, tmp_path: Path, kind: str) -> None:
        indices = HALVES.copy()
        indices[0, 0] = 255
        path = tmp_path / "mask.png"
        if kind == "P":
            picture = Image.fromarray(indices.astype(np.uint8))
            picture.putpalette([7, 80, 200] * 256)
        else:
            picture = Image.fromarray(indices.astype(np.uint16 if kind == "I;16" else np.uint8))
        assert picture.mode == kind
        picture.save(path)
        aimed = guide().target(decode_target(path))
        wanted = torch.from_numpy(HALVES)[None].clone()
        wanted[0, 0, 0] = -1
        assert torch.equal(aimed.value, wanted)
        assert aimed.label == "mask mask.png"

    def test_a_mask_of_one_bit_is_of_two_classes(self, tmp_path: Path) -> None:
        Image.fromarray(HALVES == 2).save(tmp_path / "mask.png")
        aimed = guide().target(decode_target(tmp_path / "mask.png"))
        assert torch.equal(aimed.value, torch.from_numpy(HALVES // 2)[None])
        as_picture = guide(target_kind="picture").target(decode_target(tmp_path / "mask.png"))
        assert as_picture.label == "the classes of mask.png"

    @pytest.mark.parametrize(
        ("stated", "indices"),
        [
            ("floor,red cube", [0, 1]),
            ("cube, floor", [1, 0]),
            ("7=red cube,3=floor", [3, 7]),
            ("3=1,7=2", [3, 7]),
        ],
    )
    def test_masks_with_names_of_their_own(self, stated: str, indices: list[int]) -> None:
        floor, cube = indices
        given = np.array([[floor, cube], [255, cube]])
        value = guide(mask_classes=stated).target(decode_target(given)).value
        assert value.tolist() == [[[1, 2], [-1, 2]]]

    @pytest.mark.parametrize(
        ("stated", "message", "hint"),
        [
            ("floor,red kube", "no class 'red kube'", "red cube"),
            ("x=floor", "'x' in mask_classes", "3=floor"),
            ("3=floor,3=wall", "'3' in mask_classes", "3=floor"),
            ("-1=floor", "'-1' in mask_classes", "3=floor"),
            ("floor,,wall", "class to aim at is empty", "wall"),
        ],
    )
    def test_names_that_masks_cannot_have(self, stated: str, message: str, hint: str) -> None:
        with pytest.raises(UsageError, match=message) as caught:
            guide(mask_classes=stated)
        assert hint in caught.value.hint

    def test_indices_that_have_no_name(self) -> None:
        with pytest.raises(UsageError, match="2 indices that are no class: 0, 4") as caught:
            guide(mask_classes="3=floor,7=cube").target(decode_target(np.array([[0, 4, 7]])))
        assert "3 (floor), 7 (red cube), and 255 is left out" in caught.value.hint

    def test_arrays(self) -> None:
        one = guide().target(TargetInput(array=torch.from_numpy(HALVES)))
        assert torch.equal(one.value, torch.from_numpy(HALVES)[None])
        several = torch.randint(0, 4, (3, 8, 8))
        assert torch.equal(guide().target(TargetInput(array=several)).value, several)
        whole = guide().target(TargetInput(array=torch.from_numpy(HALVES).float()))
        assert torch.equal(whole.value, one.value)

    def test_a_large_mask_is_reduced_to_what_the_network_sees(self) -> None:
        large = torch.from_numpy(HALVES.repeat(50, 0).repeat(3, 1))
        value = guide().target(TargetInput(array=large)).value
        assert torch.equal(value, torch.from_numpy(HALVES)[None])
        small = torch.from_numpy(HALVES[:2, 3:5])
        assert torch.equal(guide().target(TargetInput(array=small)).value, small[None])

    def test_a_class_everywhere(self) -> None:
        aimed = guide().target(TargetInput(text="cube"))
        assert aimed.value.flatten().tolist() == [2]
        assert aimed.label == "red cube everywhere"

    def test_a_grey_picture_that_is_no_mask(self) -> None:
        grey = decode_target(Image.new("L", (8, 8), 130))
        with pytest.raises(UsageError, match="no class: 130") as caught:
            guide().target(grey)
        assert "target_kind=picture" in caught.value.hint
        assert guide(target_kind="picture").target(grey).value.shape == (1, 8, 8)
        deep = decode_target(Image.fromarray(np.full((8, 8), 60_000, np.uint16)))
        assert guide(target_kind="picture").target(deep).picture is not None

    @pytest.mark.parametrize(
        ("given", "options", "message", "hint"),
        [
            (TargetInput(text="flor"), {}, "no class 'flor'", "floor"),
            (TargetInput(text="9"), {}, "no class 9", "wall"),
            (np.array([[0, 4, 17]]), {}, "2 indices that are no class: 4, 17", "3 (sphere)"),
            (np.array([[0, -1]]), {}, "no class: -1", "0 (wall)"),
            (np.arange(50)[None], {}, "46 indices that are no class: 4, 5", "255 is left out"),
            (np.array([[0, 255]]), {"ignore_index": 7}, "no class: 255", "7 is left out"),
            (np.array([[0.5, 1.0]]), {}, "not whole", "0 (wall)"),
            (np.array([[np.nan, 1.0]]), {}, "not whole", "0 (wall)"),
            (np.array([[255, 255]]), {}, "nothing but pixels to leave out", "255"),
            (np.zeros(3), {}, r"shape \(3,\)", "(H, W)"),
            (np.zeros((1, 1, 2, 2)), {}, r"shape \(1, 1, 2, 2\)", "(B, H, W)"),
            (np.zeros((2, 2)), {"target_kind": "picture"}, "is an array", "PNG"),
            (RED_BLUE, {"target_kind": "mask"}, "a picture in colours", "grey PNG"),
        ],
    )
    def test_refused(self, given: object, options: dict[str, Any], message: str, hint: str) -> None:
        with pytest.raises(UsageError, match=message) as caught:
            guide(**options).target(decode_target(given))
        assert hint in caught.value.hint
        assert "\n" not in str(caught.value)

    def test_damaged_files(self, tmp_path: Path) -> None:
        whole = tmp_path / "whole.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 4, (64, 64), np.uint8)).save(whole)
        (tmp_path / "truncated.png").write_bytes(whole.read_bytes()[:200])
        (tmp_path / "words.png").write_text("no picture")
        (tmp_path / "bomb.png").write_bytes(bomb(60_000, 60_000))
        (tmp_path / "short.npy").write_bytes(b"\x93NUMPY\x01\x00")
        for path in tmp_path.iterdir():
            if path != whole:
                with pytest.raises(AssetError) as caught:
                    decode_target(path)
                assert path.name in caught.value.message
                assert "\n" not in str(caught.value)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b"")


class TestDrawing:
    def test_every_class_has_a_colour_of_its_own(self) -> None:
        for number in (1, 6, 21, 150):
            colours = palette(number)
            assert colours.shape == (number, 3)
            assert len({tuple(colour) for colour in colours.tolist()}) == number
        few = palette(21).astype(float)
        apart = np.linalg.norm(few[:, None] - few[None], axis=-1) + 1e3 * np.eye(21)
        assert apart.min() > 25
        assert np.array_equal(palette(6), palette(21)[:6])  # a class keeps its colour

    @pytest.mark.parametrize("size", [(8, 8), (300, 200), (20, 600)])
    def test_render(self, size: tuple[int, int]) -> None:
        made, batch = guide(), image(2, 3, *size)
        drawn = made.render(made(batch), batch)
        side = 256 if max(size) >= 256 else 128
        assert drawn.shape == (2, 3, side + 4 * 16, side)  # with a line for each class
        assert drawn.abs().max() <= 1
        assert made.describe(made(batch)) == []

    def test_colours_are_where_the_classes_are(self) -> None:
        made = guide()
        black = torch.full((1, 3, 8, 8), -1.0)
        logits = torch.zeros(1, 4, 8, 8)
        logits[0, 1, :, :4] = logits[0, 3, :, 4:] = 9.0
        drawn = made.render(logits, black)
        pixels = ((drawn[0] + 1) * 127.5).round()
        for column, index in ((30, 1), (90, 3)):
            wanted = 0.65 * torch.from_numpy(palette(4)[index]).float()
            torch.testing.assert_close(pixels[:, 64, column], wanted, atol=1.5, rtol=0)

    def test_many_classes_fit_the_legend(self) -> None:
        names = [f"a class with a long name {index}" for index in range(30)]
        made = SegmentationGuide(
            Brightest(), names, ImageInput(size=8), answer=lambda logits: logits
        )
        mask = torch.arange(64).reshape(8, 8) % 30
        drawn = made.target(TargetInput(array=mask)).picture
        assert drawn is not None
        assert drawn.shape == (3, 128, 256)
        assert made.render(torch.zeros(1, 30, 8, 8), image(1, 3, 8, 8)).shape == (1, 3, 256, 128)


@pytest.fixture(scope="module")
def lraspp() -> Any:
    torch.manual_seed(0)
    return get_model(
        "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=4
    )


STATED = {"model": "lraspp_mobilenet_v3_large", "class_names": NAMES, "input_size": 32}


class TestTorchvision:
    def test_a_state_dict_by_name(self, tmp_path: Path, lraspp: Any) -> None:
        torch.save({"state_dict": lraspp.state_dict()}, tmp_path / "own.pth")
        made = make_segmentation(
            SegmentationOptions(model="lraspp_mobilenet_v3_large", size=48),
            open_checkpoint(tmp_path / "own.pth"),
        )
        assert made.shown.size == 48
        assert made.class_names == tuple(f"class {index}" for index in range(4))
        batch = image(2, 3, 48, 48)
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        wanted = lraspp.eval()(((batch + 1) / 2 - mean) / std)["out"]
        torch.testing.assert_close(made(batch), wanted, atol=1e-4, rtol=1e-4)

    def test_what_a_checkpoint_states(self, tmp_path: Path, lraspp: Any) -> None:
        path = tmp_path / "weights.safetensors"
        save_checkpoint(path, lraspp.state_dict(), STATED)
        made = make_segmentation(SegmentationOptions(), open_checkpoint(path))
        assert (made.shown.size, made.class_names) == (32, tuple(NAMES))
        assert made.target(TargetInput(text="cube")).value.item() == 2
        with pytest.raises(UsageError, match="is a lraspp_mobilenet_v3_large, not a fcn_resnet50"):
            make_segmentation(SegmentationOptions(model="fcn_resnet50"), open_checkpoint(path))

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"model": "lraspp_mobilenet"}, "no model 'lraspp_mobilenet'"),
            ({"model": "fcn_resnet50"}, "'classifier.4.weight'"),
            ({"class_names": NAMES[:3]}, "names 3 classes and has 4"),
            ({"class_names": "abcd"}, "'class_names' must be"),
            ({"input_size": 0}, "'input_size' must be"),
            ({"std": [1, 1, 0]}, "'std' must be"),
            ({"pretrained": True}, "'pretrained'"),
        ],
    )
    def test_statements_that_cannot_be(
        self, tmp_path: Path, lraspp: Any, change: dict[str, Any], expected: str
    ) -> None:
        path = tmp_path / "weights.safetensors"
        save_checkpoint(path, lraspp.state_dict(), {**STATED, **change})
        with pytest.raises(AssetError) as caught:
            make_segmentation(SegmentationOptions(), open_checkpoint(path))
        assert expected in caught.value.message
        assert "\n" not in str(caught.value)

    def test_the_head_of_its_training_is_left_out(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        network: Any = get_model(
            "deeplabv3_mobilenet_v3_large",
            weights=None,
            weights_backbone=None,
            num_classes=21,
            aux_loss=True,
        )
        torch.save(network.state_dict(), tmp_path / "own.pth")
        made = make_segmentation(
            SegmentationOptions(model="deeplabv3_mobilenet_v3_large"),
            open_checkpoint(tmp_path / "own.pth"),
        )
        assert not [name for name, _ in made.named_parameters() if "aux" in name]
        assert made.target(TargetInput(text="sheep")).value.item() == 17  # of Pascal VOC
        assert made.shown.size == 520

    def test_no_network(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError("no route to host")

        monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        with pytest.raises(AssetError, match="no route to host") as caught:
            make_segmentation(SegmentationOptions(model="lraspp_mobilenet_v3_large"), None)
        assert "https://download.pytorch.org/models/lraspp_mobilenet" in caught.value.hint


class TestNames:
    def test_nothing_given(self) -> None:
        with pytest.raises(UsageError, match="needs a model") as caught:
            make_segmentation(SegmentationOptions(), None)
        assert "--guider-model" in caught.value.hint

    def test_unknown(self) -> None:
        with pytest.raises(UsageError, match="no segmentation model 'deeplab_resnet50'") as caught:
            make_segmentation(SegmentationOptions(model="deeplab_resnet50"), None)
        assert "deeplabv3_resnet50" in caught.value.hint

    def test_the_name_of_the_library_may_stand_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setenv("PPAP_OFFLINE", "1")
        name = "torchvision/deeplabv3_resnet50"
        with pytest.raises(AssetError, match="of torchvision's weights of 'deeplabv3_resnet50'"):
            make_segmentation(SegmentationOptions(model=name), None)
        with pytest.raises(UsageError, match="no segmentation model 'resnet50'"):
            make_segmentation(SegmentationOptions(model="torchvision/resnet50"), None)
        network = get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None)
        save_checkpoint(tmp_path / "own.safetensors", network.state_dict(), {})
        name = "torchvision/lraspp_mobilenet_v3_large"
        made = make_segmentation(
            SegmentationOptions(model=name), open_checkpoint(tmp_path / "own.safetensors")
        )
        loaded = made.network.state_dict()
        assert all(torch.equal(loaded[key], own) for key, own in network.state_dict().items())

    @pytest.mark.parametrize(
        "wrong", [{"size": 0}, {"size": "8"}, {"target_kind": "photo"}, {"ignore_index": 1.5}]
    )
    def test_options_that_cannot_be(self, wrong: dict[str, Any]) -> None:
        with pytest.raises((TypeError, ValueError)):
            SegmentationOptions(**wrong)


class TestTransformers:
    def test_classes_must_be_counted(self, tmp_path: Path) -> None:
        config = {"model_type": "segformer", "id2label": {"0": "a", "2": "b"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(PpapError) as caught:
            make_segmentation(SegmentationOptions(model=str(tmp_path)), None)
        assert "\n" not in str(caught.value)

    def test_code_of_a_models_own_is_not_run(self, tmp_path: Path) -> None:
        config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "mine.py").write_text("raise SystemExit('run')")
        save_checkpoint(tmp_path / "model.safetensors", {"w": torch.zeros(1)}, {})
        with pytest.raises(AssetError, match="code of its own"):
            make_segmentation(SegmentationOptions(model=str(tmp_path)), None)


def test_the_default_loss_is_its_own() -> None:
    (spec,) = plugin.ppap_guiders()
    (loss,) = plugin.ppap_task_losses()
    assert spec.default_loss == loss.name
    assert spec.task == loss.task
