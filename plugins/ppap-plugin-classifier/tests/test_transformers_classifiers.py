"""Classifiers of transformers: from a folder, shown what transformers itself would show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from ppap_framework.checkpoints import open_checkpoint, save_checkpoint
from ppap_framework.errors import AssetError, UsageError
from ppap_plugin_classifier.guider import ClassifierGuide, make_classifier
from ppap_plugin_classifier.options import ClassifierOptions

NAMES = {0: "red cube", 1: "blue cube", 2: "red sphere"}
CONFIG = transformers.ViTConfig(
    image_size=32,
    patch_size=8,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    id2label=NAMES,
    label2id={name: index for index, name in NAMES.items()},
)
PREPROCESSOR = {
    "size": {"height": 32, "width": 32},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
    "resample": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = transformers.ViTForImageClassification(CONFIG)
    torch.nn.init.normal_(network.classifier.weight)
    network.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return tmp_path / "vit"


def guide(model: Path | str | None, file: Path | None = None) -> ClassifierGuide:
    checkpoint = None if file is None else open_checkpoint(file)
    return make_classifier(
        ClassifierOptions(model=None if model is None else str(model)), checkpoint
    )


def test_says_what_transformers_says(folder: Path, tmp_path: Path) -> None:
    theirs: Any = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    processing = transformers.ViTImageProcessorPil.from_pretrained(folder)
    shown = processing(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    alone = tmp_path / "alone.safetensors"
    config = json.loads((folder / "config.json").read_text())
    stated = {"config": config, "preprocessor": PREPROCESSOR}
    save_checkpoint(alone, theirs.state_dict(), stated)
    with torch.no_grad():
        expected = theirs(shown).logits
        for made in (
            guide(folder),
            guide(None, folder / "model.safetensors"),
            guide(folder, folder / "model.safetensors"),
            guide(None, alone),
        ):
            assert made.class_names == tuple(NAMES.values())
            assert made.shown.size == 32
            torch.testing.assert_close(made(images), expected, atol=1e-4, rtol=1e-4)


def test_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "glpn"}))
    with pytest.raises(AssetError, match="is a glpn, which does no image classification"):
        guide(folder)
    with pytest.raises(UsageError, match="neither a folder that exists nor a name of the hub"):
        guide("./absent")
