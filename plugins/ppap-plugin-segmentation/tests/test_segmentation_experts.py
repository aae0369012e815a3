"""Networks of six architectures: loaded, taught to read noise, and guiding."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model
from transfer_toy import Pictures, anatomy, pictures
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    ConvNextConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from ppap_framework.checkpoints import open_checkpoint, save_checkpoint
from ppap_framework.components import DiffusionBackend, Prediction, Stage
from ppap_framework.errors import UsageError
from ppap_framework.experts import load_bundle
from ppap_framework.guidance import EnergyGuidance, Guide
from ppap_framework.noise import NoiseLevel, linear_schedule
from ppap_framework.sampling import NoiseSource, Process, ddim_step, timesteps_for, trajectory
from ppap_framework.targets import decode_target
from ppap_framework.transfer import Recipe, distillation, teacher, transfer
from ppap_plugin_segmentation.guider import SegmentationGuide, make_segmentation
from ppap_plugin_segmentation.loss import SegmentationCrossEntropy
from ppap_plugin_segmentation.options import SegmentationOptions

NAMES = ("wall", "floor", "cube", "sphere")
LABELS = {
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: index for index, name in enumerate(NAMES)},
}
SIZE = 32
PREPROCESSOR = {
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
}


class Unit(Stage):
    """Pixels are independent, with mean 0 and variance 1, and so x0 is alpha x_t."""

    name = "base"
    variance = "fixed_small"
    network = nn.Identity()
    image_shape = (3, SIZE, SIZE)
    schedule = linear_schedule(100)

    def denoise(self, x_t: Tensor, t: Tensor, condition: Any) -> Prediction:
        abar = self.schedule.alphas_cumprod[t][:, None, None, None]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        return Prediction.from_x0(alpha.to(x_t) * x_t, x_t, alpha, sigma)


class Backend(DiffusionBackend):
    stages = (Unit(),)

    def encode(self, prompts: Any, batch: int) -> None:
        return None


def segformer() -> nn.Module:
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
            **LABELS,
        )
    )


def upernet() -> nn.Module:
    backbone = ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=16, use_auxiliary_head=False, **LABELS
    )
    return UperNetForSemanticSegmentation(config)


def beit() -> nn.Module:
    return BeitForSemanticSegmentation(
        BeitConfig(
            image_size=SIZE,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=32,
            out_indices=[1, 2, 3, 4],
            use_auxiliary_head=False,
            **LABELS,
        )
    )


def of_torchvision(model: str) -> nn.Module:
    return get_model(model, weights=None, weights_backbone=None, num_classes=len(NAMES))


TORCHVISION = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50")
MAKERS = {
    **{maker.__name__: maker for maker in (segformer, upernet, beit)},
    **{model: partial(of_torchvision, model) for model in TORCHVISION},
}


def saved(folder: Path, name: str) -> nn.Module:
    torch.manual_seed(0)
    network: Any = MAKERS[name]().eval()
    if name in TORCHVISION:
        stated = {
            "model": name,
            "class_names": list(NAMES),
            "input_size": SIZE,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        }
        save_checkpoint(folder / "weights.safetensors", network.state_dict(), stated)
    else:
        network.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return network


def loaded(folder: Path) -> SegmentationGuide:
    file = folder / "weights.safetensors"
    if file.is_file():
        return make_segmentation(SegmentationOptions(), open_checkpoint(file))
    return make_segmentation(SegmentationOptions(model=str(folder)), None)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_a_size_that_a_network_cannot_be_shown(tmp_path: Path) -> None:
    saved(tmp_path, "beit")
    assert make_segmentation(SegmentationOptions(model=str(tmp_path)), None).native_size == SIZE
    with pytest.raises(UsageError, match="images of 2 pixels") as caught:
        make_segmentation(SegmentationOptions(model=str(tmp_path), size=2), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        # torchvision has it with 33 million parameters and no fewer; DeepLab goes the same way.
        pytest.param(name, marks=pytest.mark.slow if name.startswith("fcn") else ())
        for name in MAKERS
    ],
)
def test_from_a_folder_to_guided_images(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = saved(tmp_path, name)
    made = loaded(tmp_path)
    assert (made.native_size, made.class_names) == (SIZE, NAMES)

    batch = images(2, 3, SIZE, SIZE)
    answer = network(batch * 2)  # ((x + 1) / 2 - 0.5) / 0.25
    wanted = answer["out"] if name in TORCHVISION else answer.logits
    torch.testing.assert_close(made(batch), wanted, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(made(batch[1:]), made(batch)[1:], atol=1e-4, rtol=1e-3)

    monkeypatch.setattr(distillation, "_STATISTICS_BATCHES", 1)
    before = anatomy(made.network)
    bundle = transfer(
        Backend(),
        teacher(made, loss=SegmentationCrossEntropy()),
        Pictures({"base": pictures(8, SIZE)}),
        out=tmp_path / "experts",
        num_experts=2,
        adapters=(("lora", {"rank": 2}), ("bias", {})),
        recipe=Recipe(iterations=6, shared=0.0, batch=4, held_out=0.25, validate_every=2),
        keep=False,
        device="cpu",
    )
    assert anatomy(made.network) == before

    again = loaded(tmp_path)
    experts = load_bundle(bundle.path, again)
    noisy = NoiseLevel(torch.full((2,), -3.0, dtype=torch.float64))
    with torch.no_grad():
        assert not torch.allclose(experts.at(noisy)(batch, noisy), made(batch), atol=1e-5)

    stage = Backend().stages[0]
    process = Process(
        stage.schedule, timesteps_for(stage.schedule.num_timesteps, 3), stage.variance
    )
    aimed = again.target(decode_target(np.full((4, 4), 2)))
    steering = EnergyGuidance(
        [
            Guide(
                name="s",
                model=again,
                loss=SegmentationCrossEntropy(),
                target=aimed,
                experts=experts,
            )
        ]
    )
    noise = NoiseSource(0, 0)
    x = noise((2, *stage.image_shape))
    walk = trajectory(stage, process, x, noise, condition=None, step=ddim_step, guidance=steering)
    drawn = [state.x for state in walk][-1]
    assert bool(drawn.isfinite().all())
    (statistics,) = steering.statistics.guides
    assert statistics.skipped == 0
    assert all(norm is not None and norm > 0 for norm in statistics.gradient_norms)
    experts.detach()
