"""Detectors of many families as guides, and what they are aimed at."""

from __future__ import annotations

import copy
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_detectors
import torch
import transformers
from PIL import Image
from tiny_detectors import CONFIGS, MEAN, NAMES, QUERIES, SIZE, STD
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_convert

from ppap_framework.author import ImageInput
from ppap_framework.checkpoints import open_checkpoint, save_checkpoint
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.targets import decode_target
from ppap_plugin_detection import torchvision_models
from ppap_plugin_detection.guider import DetectionGuide, make_detection
from ppap_plugin_detection.loss import Boxes
from ppap_plugin_detection.options import DetectionOptions

SIGMOIDS = {*CONFIGS} - {"detr", "table-transformer", "yolos"}


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> DetectionGuide:
    folder = tmp_path_factory.mktemp("detr")
    tiny_detectors.saved("detr", folder)
    return make_detection(DetectionOptions(model=str(folder)), None)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_loaded_answers_as_what_was_saved(kind: str, tmp_path: Path) -> None:
    network: Any = tiny_detectors.saved(kind, tmp_path)
    made = make_detection(DetectionOptions(model=str(tmp_path)), None)
    assert made.class_names == NAMES
    batch = images(2, 3, SIZE, SIZE).requires_grad_()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        theirs = network(pixel_values=((batch + 1) / 2 - mean) / std)
    own = made(batch)
    assert own["logits"].shape == (2, QUERIES, len(NAMES) + 1)
    corners = box_convert(theirs.pred_boxes, "cxcywh", "xyxy")
    torch.testing.assert_close(own["boxes"], corners, atol=1e-4, rtol=1e-3)
    if kind in SIGMOIDS:
        odds = own["logits"][..., :-1] - own["logits"][..., -1:]
        torch.testing.assert_close(odds, theirs.logits, atol=1e-4, rtol=1e-3)
    else:
        torch.testing.assert_close(own["logits"], theirs.logits, atol=1e-4, rtol=1e-3)
    target = made.target(decode_target("red cube@0.1,0.2,0.5,0.6; ball@0.4,0.4,0.9,0.9"))
    (slope,) = torch.autograd.grad(Boxes().energy(own, target.value).sum(), batch)
    assert slope.isfinite().all()
    assert (slope.flatten(1).norm(dim=1) > 0).all()


def _features() -> nn.Module:
    trunk: Any = nn.Sequential(nn.Conv2d(3, 32, 5, 8, 2), nn.Tanh())
    trunk.out_channels = 32
    return trunk


class _Maps(nn.Module):
    """Two maps of features, as SSD wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _features(), nn.Conv2d(32, 32, 3, 2, 1)
        self.out_channels = [32, 32]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.first(x)
        return OrderedDict([("0", first), ("1", self.second(first))])


class _One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.out_channels = _features(), 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return OrderedDict([("0", self.body(x))])


_ALL = {"score_thresh": 0.0, "nms_thresh": 1.0, "detections_per_img": 10**6}


def _torchvision(kind: str) -> Any:
    many: dict[str, Any] = {**_ALL, "topk_candidates": 10**6}
    anchors = AnchorGenerator(sizes=((16,),), aspect_ratios=((1.0,),))
    sizes: dict[str, Any] = {"min_size": SIZE, "max_size": SIZE}
    if kind == "fcos":
        return FCOS(_One(), 5, anchor_generator=anchors, **sizes, **many)
    if kind == "retinanet":
        return RetinaNet(_One(), 5, anchor_generator=anchors, **sizes, **many)
    boxes = DefaultBoxGenerator([[2], [2]])
    return SSD(_Maps(), boxes, (SIZE, SIZE), 5, **many)


@pytest.mark.parametrize("kind", ["fcos", "retinanet", "ssd"])
def test_raw_outputs_are_the_detections_of_torchvision(kind: str) -> None:
    """Which lists every place and class if nothing is suppressed."""
    torch.manual_seed(3)
    network = _torchvision(kind).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.08)
    feed = torchvision_models._input(network, None)
    answer = torchvision_models.answer_of(SIZE)
    own = DetectionGuide(network, NAMES, feed, answer=answer)(images(1, 3, SIZE, SIZE))
    with torch.no_grad():
        (theirs,) = network(list((images(1, 3, SIZE, SIZE) + 1) / 2))
    logits = own["logits"][0]
    scores = logits.softmax(-1)[:, :-1] if kind == "ssd" else logits[:, :-1].sigmoid()
    foreground = theirs["labels"] > 0
    found = {key: value[foreground] for key, value in theirs.items()}
    best = found["scores"].argsort(descending=True)[:30]
    assert found["scores"].max() - found["scores"].min() > 0.01
    for score, label, box in zip(
        *(found[key][best] for key in ("scores", "labels", "boxes")), strict=True
    ):
        near = (scores[:, label - 1] - score).abs() < 1e-5
        boxes = (own["boxes"][0, near] * SIZE).clamp(0, SIZE)
        assert (boxes - box).abs().amax(1).min() < 1e-3


def test_scores_of_fcos_are_geometric_means() -> None:
    one, other = torch.linspace(-12, 12, 9), torch.linspace(9, -9, 9)
    found = torchvision_models._logits_of_geometric_mean(one, other)
    expected = (one.sigmoid() * other.sigmoid()).double().sqrt().logit()
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-3)


def test_a_checkpoint_of_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind = "ssdlite320_mobilenet_v3_large"
    network = get_model(kind, weights=None, weights_backbone=None, num_classes=5)
    path = tmp_path / "ssd.safetensors"
    stated = {"model": kind, "class_names": [*NAMES], "input_size": 96}
    save_checkpoint(path, network.state_dict(), stated)
    made = make_detection(DetectionOptions(), open_checkpoint(path))
    assert (made.class_names, made.shown.size) == (NAMES, 96)
    seen = made(images(1, 3, 48, 40))
    assert seen["logits"].shape[-1] == 5
    twin = pickle.loads(pickle.dumps(copy.deepcopy(made)))
    assert torch.equal(twin(images(1, 3, 48, 40))["boxes"], seen["boxes"])
    with pytest.raises(UsageError, match="is a ssdlite320_mobilenet_v3_large, not a ssd300_vgg16"):
        make_detection(DetectionOptions(model="ssd300_vgg16"), open_checkpoint(path))


def test_released_norms_without_counts_are_loaded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)))
    norm: Any = network[1][0]
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    expected = network.eval()(images(1, 3, 8, 8))
    torchvision_models._freeze_norms(network)
    network.load_state_dict(state)
    torch.testing.assert_close(network(images(1, 3, 8, 8)), expected)


@pytest.mark.parametrize(
    "model, message, hint",
    [
        (None, "needs a model or a checkpoint", "fcos_resnet50_fpn"),
        ("fasterrcnn_resnet50_fpn", "selects regions before", "fcos_resnet50_fpn"),
        ("torchvision/maskrcnn_resnet50_fpn", "selects regions before", "one of transformers"),
        ("fcos_resnet50", "has no detector 'fcos_resnet50'", "fcos_resnet50_fpn"),
        ("torchvision/yolo", "has no detector 'yolo'", "ssd300_vgg16"),
    ],
)
def test_models_that_cannot_guide(model: str | None, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make_detection(DetectionOptions(model=model), None)
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)


def test_networks_of_other_tasks_are_refused(tmp_path: Path) -> None:
    config = transformers.SegformerConfig().to_dict()
    for kind, message in (
        ("segformer", "does no object detection"),
        ("pp_ocrv5_mobile_det", "not"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": kind}))
        save_checkpoint(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {})
        with pytest.raises(AssetError, match=message) as caught:
            make_detection(DetectionOptions(model=str(tmp_path)), None)
        assert "\n" not in str(caught.value)


class TestTargets:
    def test_words(self, guide: DetectionGuide) -> None:
        made = guide.target(decode_target("red cube@0.1, .2,0.5,6e-1; Sphere @ 0,0,1,1;"))
        expected = torch.tensor([[[2, 0.1, 0.2, 0.5, 0.6], [3, 0, 0, 1, 1]]])
        torch.testing.assert_close(made.value, expected)
        assert made.label == "red cube, sphere"
        assert made.picture is not None

    def test_coco(self, guide: DetectionGuide, tmp_path: Path) -> None:
        notes = [
            {"category_id": 7, "bbox": [10, 20, 30, 40], "image_id": 1},
            {"category": "wall", "bbox": [0, 0, 200, 50]},
        ]
        content = {
            "images": [{"id": 1, "width": 200, "height": 100}],
            "annotations": notes,
            "categories": [{"id": 7, "name": "red cube"}],
        }
        path = tmp_path / "boxes.json"
        path.write_text(json.dumps(content))
        expected = torch.tensor([[[2, 0.05, 0.2, 0.2, 0.6], [0, 0, 0, 1, 0.5]]])
        for given in (path, str(path), path.read_text()):
            torch.testing.assert_close(guide.target(decode_target(given)).value, expected)

    def test_numbers(self, guide: DetectionGuide) -> None:
        rows = np.array([[2, 0.1, 0.2, 0.5, 0.6], [-1, -1, -1, -1, -1]], np.float32)
        value = guide.target(decode_target(rows)).value
        assert value.shape == (1, 2, 5)
        both = guide.target(decode_target(np.stack([rows, rows])))
        assert torch.equal(both.value, value.expand(2, -1, -1))
        assert guide.target(decode_target(rows[1:])).label == "no boxes"

    def test_a_picture(self, guide: DetectionGuide) -> None:
        picture = Image.fromarray(np.uint8(255 * np.random.default_rng(0).random((40, 50, 3))))
        made = guide.target(decode_target(picture))
        assert made.value.shape == (1, QUERIES, 5)
        assert (made.value[0, :, 0] >= 0).any()

    def test_queries_are_counted_once(self, guide: DetectionGuide) -> None:
        rows = "; ".join(["wall@0,0,1,1"] * QUERIES)
        assert guide.target(decode_target(rows)).value.shape[1] == QUERIES
        with pytest.raises(UsageError, match=f"{QUERIES + 1} boxes, and the detector"):
            guide.target(decode_target(f"{rows}; wall@0,0,1,1"))

    @pytest.mark.parametrize(
        "given, message",
        [
            ("red cube", "says no box"),
            ("red cube@", "not four numbers"),
            ("red cube@0.1,0.2,0.5", "not four numbers"),
            ("red cube@0.1,0.2,0.5,much", "not four numbers"),
            ("red cube@0.1,0.2,0.5,nan", "not finite"),
            ("red cube@0.1,0.2,0.5,1.2", "reaches beyond the picture"),
            ("red cube@-0.1,0.2,0.5,1", "reaches beyond the picture"),
            ("red cube@0.5,0.2,0.1,0.6", "inverted"),
            ("red cube@0.1,0.2,0.1,0.6", "inverted or empty"),
            ("@0.1,0.2,0.3,0.6", "class to aim at is empty"),
            ("red cub@0,0,1,1; bal@0,0,1,1;spher@0,0,1,1;cone@0,0,1,1", "no class 'cone'"),
            ("7@0,0,1,1", "no class 7"),
            (" ; ", "no box"),
            ("{", "is no JSON"),
            ("[]", "no boxes as COCO"),
            ('{"images": [], "annotations": []}', "no boxes as COCO"),
            ('{"images": [{"width": 8, "height": 8}], "annotations": []}', "no annotations"),
            ('{"images": [{"width": 0, "height": 8}], "annotations": []}', "of 0 x 8"),
            ('{"images": [{"width": 8, "height": 8}], "annotations": 3}', "no boxes as COCO"),
            ("boxes.json", "is not there"),
            (np.zeros((2, 4)), "array of"),
            *((np.zeros(shape), "0 numbers") for shape in [(0, 5), (2, 0, 5), (0, 3, 5)]),
            (np.array([[9, 0, 0, 1, 1.0]]), "no class 9"),
            (np.array([[0.5, 0, 0, 1, 1.0]]), "no class 0.5"),
            (np.array([[1, 0, 0, 1, 1.5]]), "beyond the picture"),
        ],
    )
    def test_bad_ones_end_in_a_line(self, guide: DetectionGuide, given: Any, message: str) -> None:
        with pytest.raises(PpapError, match=message) as caught:
            guide.target(decode_target(given))
        assert caught.value.hint
        assert "\n" not in str(caught.value)

    def test_json_that_is_nested_too_deep_or_too_large(self, guide: DetectionGuide) -> None:
        size = {"width": 10**400, "height": 8}
        for text, message in (
            ("[" * 100_000, "is no JSON"),
            (json.dumps({"images": [size], "annotations": []}), "no boxes as COCO"),
        ):
            with pytest.raises(UsageError, match=message):
                guide.target(decode_target(text))

    @pytest.mark.parametrize(
        "note, message",
        [
            ({"category_id": 3, "bbox": [0, 0, 1, 1]}, "no category has the id 3"),
            ({"category": "wall", "bbox": [0, 0, 1]}, "not four numbers"),
            ({"category": "wall", "bbox": [0, 0, 9, 1]}, "beyond the picture"),
            ({"category": "wall", "bbox": "0011"}, "no list of numbers"),
            ({"category": "wall", "bbox": [0, 0, "1", True]}, "no list of numbers"),
            ({"category": "wall", "bbox": [4, 0, -2, 1]}, "inverted"),
            ({"category": "wal", "bbox": [0, 0, 1, 1], "x": 1}, None),
            ({"bbox": [0, 0, 1, 1]}, "no boxes as COCO"),
            ({"category": "hall", "bbox": [0, 0, 1, 1]}, "there is no class 'hall'"),
        ],
    )
    def test_bad_annotations(self, guide: DetectionGuide, note: Any, message: str | None) -> None:
        content = {"images": [{"width": 8, "height": 8}], "annotations": [note]}
        if message is None:
            assert guide.target(decode_target(json.dumps(content))).label == "wall"
            return
        with pytest.raises(UsageError, match=message) as caught:
            guide.target(decode_target(json.dumps(content)))
        assert caught.value.hint

    def test_near_matches_are_named(self, guide: DetectionGuide) -> None:
        with pytest.raises(UsageError) as caught:
            guide.target(decode_target("rad cubes@0,0,1,1"))
        assert "red cube" in caught.value.hint


class _Fixed(nn.Module):
    """Answers with one certain class, twice, and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean() * 0 + self.scale


def _answer(network: Any, fed: Tensor) -> tuple[Tensor, Tensor]:
    logits = torch.tensor([[9.0, 0, 0, 0, 0], [8.0, 0, 0, 0, 0], [0, 0, 0, 0, 9.0]])
    boxes = torch.tensor([[0.25, 0.25, 0.75, 0.75], [0.25, 0.25, 0.74, 0.75], [0.0, 0, 1, 1]])
    ones = torch.ones(len(fed), 1, 1)
    return ones * logits, ones * boxes


def test_detections_are_drawn_and_named_once() -> None:
    feed = ImageInput(size=None)
    guide = DetectionGuide(_Fixed(), NAMES, feed, answer=_answer)
    pictures = -torch.ones(2, 3, 32, 32)
    seen = guide(pictures)
    assert guide.describe(seen) == ["wall 1.00"] * 2
    drawn = guide.render(seen, pictures)
    assert drawn.shape == (2, 3, 192, 192)
    rim = drawn[0, :, 100, 48]  # on the left edge of the box
    assert (rim > -0.99).any()
    assert (drawn[0, :, 100, 100] == -1).all()  # within it
    strict = DetectionGuide(
        _Fixed(), NAMES, feed, answer=_answer, options=DetectionOptions(threshold=1.0)
    )
    assert strict.describe(seen) == ["nothing"] * 2
    value = strict.target(decode_target(Image.new("RGB", (32, 32)))).value
    assert value[0, :, 0].tolist() == [0, -1, -1]
