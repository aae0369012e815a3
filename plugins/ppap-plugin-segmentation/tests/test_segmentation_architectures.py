"""Networks of several architectures say as guides what they say to their libraries."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from tiny_networks import MASKS, NAMES, SIZE, TASKS, TORCHVISION, named, saved

from ppap_framework.checkpoints import open_checkpoint, save_checkpoint
from ppap_framework.errors import AssetError, UsageError
from ppap_plugin_segmentation.guider import SegmentationGuide, _answer_in_masks, make_segmentation
from ppap_plugin_segmentation.options import SegmentationOptions


def loaded(folder: Path) -> SegmentationGuide:
    given = named(folder)
    if "checkpoint" in given:
        return make_segmentation(SegmentationOptions(), open_checkpoint(Path(given["checkpoint"])))
    return make_segmentation(SegmentationOptions(**given), None)


def test_a_size_that_a_network_cannot_be_shown(tmp_path: Path) -> None:
    saved("beit", tmp_path)
    assert make_segmentation(SegmentationOptions(model=str(tmp_path)), None).shown.size == SIZE
    with pytest.raises(UsageError, match="images of 2 pixels") as caught:
        make_segmentation(SegmentationOptions(model=str(tmp_path), size=2), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if kind.startswith("fcn") else ())
        for kind in TASKS["segmentation"]
    ],
)
def test_what_is_loaded_says_what_was_saved(kind: str, tmp_path: Path) -> None:
    # In float32 deep networks with random weights say of one image and of two what differs.
    network, made = saved(kind, tmp_path).double(), loaded(tmp_path).double()
    assert (made.shown.size, made.class_names) == (SIZE, NAMES)
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(2, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    answer = network(batch * 2)  # ((x + 1) / 2 - 0.5) / 0.25
    if kind in MASKS:
        theirs = transformers.MaskFormerImageProcessorPil()  # which resizes nothing on the way
        wanted = torch.stack(theirs.post_process_semantic_segmentation(answer))
        assert torch.equal(made(batch).argmax(1), wanted)
    else:
        wanted = answer["out"] if kind in TORCHVISION else answer.logits
        torch.testing.assert_close(made(batch), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made(batch[1:]), made(batch)[1:], atol=1e-4, rtol=1e-4)


def test_one_image_in_masks_by_hand() -> None:
    """Two masks of two classes and nothing: the scores are sums of products of probabilities."""
    said = SimpleNamespace(
        class_queries_logits=torch.tensor([[[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]]).log(),
        masks_queries_logits=torch.tensor([[[[0.9, 0.5]], [[0.1, 0.2]]]]).logit(),
    )
    scores = _answer_in_masks(said).exp()
    expected = [[0.2 * 0.9 + 0.3 * 0.1, 0.2 * 0.5 + 0.3 * 0.2], [0.7 * 0.9 + 0.03, 0.35 + 0.06]]
    torch.testing.assert_close(scores, torch.tensor([expected])[:, :, None])


def test_what_says_no_classes_of_pixels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rt_detr"}))
    save_checkpoint(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(AssetError, match="is a rt_detr, which does no semantic seg") as caught:
        make_segmentation(SegmentationOptions(model=str(tmp_path)), None)
    assert "\n" not in caught.value.message
    assert "segformer" in str(caught.value.hint)
