"""Detectors of the families that people use, tiny and random, as users have them: files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torchvision.models import get_model

from ppap_framework.checkpoints import save_checkpoint

SIZE, QUERIES = 64, 6
NAMES = ("wall", "floor", "red cube", "sphere, ball")
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]

_LABELS: dict[str, Any] = {
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: index for index, name in enumerate(NAMES)},
}


def _resnet(*stages: str) -> dict[str, Any]:
    return {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 16, 32],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": [*stages],
    }


_TRANSFORMER: dict[str, Any] = {
    "num_queries": QUERIES,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    **_LABELS,
}
_OLD: dict[str, Any] = {
    **_TRANSFORMER,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": _resnet("stage4"),
}
_REAL_TIME: dict[str, Any] = {
    **_TRANSFORMER,
    "backbone_config": {
        "model_type": "rt_detr_resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [8, 16, 16],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 0,
    "hidden_expansion": 0.5,
}

CONFIGS: dict[str, Any] = {
    "detr": lambda: transformers.DetrConfig(**_OLD),
    "table-transformer": lambda: transformers.TableTransformerConfig(**_OLD),
    "conditional_detr": lambda: transformers.ConditionalDetrConfig(**_OLD),
    "deformable_detr": lambda: transformers.DeformableDetrConfig(
        **{**_OLD, "backbone_config": _resnet("stage3", "stage4")}, num_feature_levels=2
    ),
    "dab-detr": lambda: transformers.DabDetrConfig(
        **{**_OLD, "hidden_size": 32}, temperature_height=20, temperature_width=20
    ),
    "yolos": lambda: transformers.YolosConfig(
        image_size=[SIZE, SIZE],
        patch_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_detection_tokens=QUERIES,
        **_LABELS,
    ),
    "rt_detr": lambda: transformers.RTDetrConfig(**_REAL_TIME),
    "rt_detr_v2": lambda: transformers.RTDetrV2Config(**_REAL_TIME),
    "d_fine": lambda: transformers.DFineConfig(
        **{
            **_REAL_TIME,
            "backbone_config": {
                "model_type": "hgnet_v2",
                "num_channels": 3,
                "stem_channels": [3, 8, 8],
                "stage_in_channels": [8, 8, 16, 16],
                "stage_mid_channels": [8, 8, 8, 8],
                "stage_out_channels": [8, 16, 16, 32],
                "stage_num_blocks": [1, 1, 1, 1],
                "stage_numb_of_layers": [1, 1, 1, 1],
                "stage_light_block": [False, False, True, True],
                "stage_downsample": [False, True, True, True],
                "stage_kernel_size": [3, 3, 3, 3],
                "hidden_sizes": [8, 16, 16, 32],
                "depths": [1, 1, 1, 1],
                "embedding_size": 8,
                "out_features": ["stage2", "stage3", "stage4"],
            },
            "encoder_in_channels": [16, 16, 32],
        }
    ),
    "lw_detr": lambda: transformers.LwDetrConfig(
        backbone_config={
            "model_type": "lw_detr_vit",
            "image_size": SIZE,
            "pretrain_image_size": SIZE,
            "patch_size": 16,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_windows": 4,
            "window_block_indices": [0],
            "out_indices": [1, 2],
        },
        projector_scale_factors=[1.0],
        d_model=32,
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        num_queries=QUERIES,
        group_detr=2,
        **_LABELS,
    ),
    "rf_detr": lambda: transformers.RfDetrConfig(
        backbone_config={
            "model_type": "rf_detr_dinov2",
            "image_size": SIZE,
            "patch_size": 16,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_windows": 2,
            "out_indices": [1, 2],
        },
        projector_scale_factors=[1.0],
        d_model=32,
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        num_queries=QUERIES,
        group_detr=2,
        **_LABELS,
    ),
}
"""Of transformers, by model type."""

TORCHVISION = ("fcos_resnet50_fpn", "retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large")

PREPROCESSOR = {
    "image_processor_type": "DetrImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": STD,
    "do_pad": False,
}


def made(kind: str) -> nn.Module:
    """A network with random weights whose answers depend on the image, as trained ones do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind in TORCHVISION:
            network: Any = get_model(
                kind, weights=None, weights_backbone=None, num_classes=1 + len(NAMES)
            )
        else:
            config = CONFIGS[kind]()
            network = transformers.AutoModelForObjectDetection.from_config(config)
        if "resnet50" not in kind:  # torchvision initializes these alike
            _keep_signals(network)
    return network.eval()  # type: ignore[no-any-return]  # transformers has no types


def _keep_signals(network: nn.Module) -> None:
    """Choose weights that keep the variance of signals from layer to layer.

    Other initial weights (a standard deviation of 0.01 to 0.03, in RT-DETR of norms, too) shrink
    the signal in each layer, in SSD and RT-DETR by a factor of 1e15 in all, and with it the
    gradient.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)


def saved(kind: str, folder: Path) -> nn.Module:
    """Save a network of transformers as a folder, one of torchvision as `weights.safetensors`."""
    network: Any = made(kind)
    if kind in TORCHVISION:
        stated = {"model": kind, "class_names": [*NAMES], "input_size": SIZE}
        save_checkpoint(folder / "weights.safetensors", network.state_dict(), stated)
    else:
        network.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return network  # type: ignore[no-any-return]  # transformers has no types
