"""Networks of the architectures that people use, tiny and random, as users have them: files.

`saved` writes one into a folder, and `named` says how `ppap_framework.guide` is told of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import transformers
from torch import Tensor, nn
from torchvision.models import get_model

from ppap_framework.checkpoints import save_checkpoint

SIZE = 32
NAMES = ("wall", "floor", "cube", "sphere")
MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
FILE = "weights.safetensors"

CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}),
    "convnext": ("convnext_tiny", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}),
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": SIZE, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    ),
    "deit": (
        "deit_tiny_distilled_patch16_224",
        {"img_size": SIZE, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": SIZE,
            "patch_size": 2,
            "window_size": 4,
            "embed_dim": 8,
            "depths": [2, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
        },
    ),
    "efficientnet": ("test_efficientnet", {}),
    "mobilenet": ("mobilenetv3_small_050", {}),
}
"""What timm calls them, and how it makes them small."""

_NECK: dict[str, Any] = {
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 8,
    "reassemble_factors": [2, 1, 1, 0.5],
}
_PATCHES: dict[str, Any] = {
    "image_size": SIZE,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}
_STAGES: dict[str, Any] = {
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    "reshape_hidden_states": False,
}
_DEPTH_ANYTHING: dict[str, Any] = {
    "backbone_config": {"model_type": "dinov2", **_PATCHES, **_STAGES},
    "reassemble_hidden_size": 16,
    "patch_size": 8,
    "head_hidden_size": 8,
    **_NECK,
}
_PYRAMID: dict[str, Any] = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
}

DEPTH: dict[str, Any] = {
    "dpt": transformers.DPTConfig(
        **_PATCHES, intermediate_size=32, backbone_out_indices=[0, 1, 2, 3], **_NECK
    ),
    "depth_anything": transformers.DepthAnythingConfig(**_DEPTH_ANYTHING),
    "metric_depth_anything": transformers.DepthAnythingConfig(
        **_DEPTH_ANYTHING, depth_estimation_type="metric", max_depth=10
    ),
    "glpn": transformers.GLPNConfig(**_PYRAMID, decoder_hidden_size=8, drop_path_rate=0.0),
    "zoedepth": transformers.ZoeDepthConfig(
        backbone_config={
            "model_type": "beit",
            **_PATCHES,
            **_STAGES,
            "intermediate_size": 32,
            "use_relative_position_bias": True,
        },
        bottleneck_features=8,
        num_relative_features=8,
        bin_embedding_dim=8,
        num_attractors=[4, 2, 2, 1],
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0}],
        **{**_NECK, "reassemble_factors": [4, 2, 1, 0.5]},
    ),
}

_LABELS: dict[str, Any] = {
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: index for index, name in enumerate(NAMES)},
}

SEGMENTATION: dict[str, Any] = {
    "segformer": transformers.SegformerConfig(**_PYRAMID, decoder_hidden_size=16, **_LABELS),
    "upernet": transformers.UperNetConfig(
        backbone_config=transformers.ConvNextConfig(
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        hidden_size=16,
        use_auxiliary_head=False,
        **_LABELS,
    ),
    "beit": transformers.BeitConfig(
        **{**_PATCHES, "patch_size": 4},
        intermediate_size=32,
        out_indices=[1, 2, 3, 4],
        use_auxiliary_head=False,
        **_LABELS,
    ),
}

_WINDOWS: dict[str, Any] = {
    "image_size": SIZE,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_FEW: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 5}
MASKS: dict[str, Any] = {
    "mask2former": transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(**_WINDOWS),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        num_attention_heads=2,
        dim_feedforward=32,
        encoder_feedforward_dim=32,
        **_FEW,
        **_LABELS,
    ),
    "maskformer": transformers.MaskFormerConfig(
        backbone_config=transformers.MaskFormerSwinConfig(**_WINDOWS),
        decoder_config=transformers.DetrConfig(
            backbone_config=transformers.ResNetConfig(),
            use_timm_backbone=False,
            d_model=16,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            **_FEW,
        ),
        fpn_feature_size=32,
        mask_feature_size=32,
        **_LABELS,
    ),
    "eomt": transformers.EomtConfig(
        **{**_PATCHES, "num_hidden_layers": 3},
        num_blocks=1,
        num_queries=5,
        **_LABELS,
    ),
}
"""Those that say masks, and of each which class it is of."""

TORCHVISION = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50")
"""torchvision has them no smaller: `fcn_resnet50` has 33 million parameters."""

_FAMILIES = (
    transformers.MODEL_FOR_DEPTH_ESTIMATION_MAPPING,
    transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    transformers.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
)

Task = Literal["classification", "depth", "segmentation"]
TASKS: Mapping[Task, tuple[str, ...]] = {
    "classification": tuple(CLASSIFIERS),
    "depth": tuple(DEPTH),
    "segmentation": (*SEGMENTATION, *MASKS, *TORCHVISION),
}

_PREPROCESSOR = {
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": 2,
    "do_pad": False,  # ZoeDepth's border
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": STD,
}


def made(kind: str) -> nn.Module:
    """The network, which reacts to what it sees, as random weights alone would hardly."""
    torch.manual_seed(0)
    network: Any
    if kind in CLASSIFIERS:
        model, arguments = CLASSIFIERS[kind]
        network = timm.create_model(model, num_classes=len(NAMES), **arguments)
    elif kind in TORCHVISION:
        network = get_model(kind, weights=None, weights_backbone=None, num_classes=len(NAMES))
    else:
        config = (DEPTH | SEGMENTATION | MASKS)[kind]
        family = next(family for family in _FAMILIES if type(config) in family)
        network = family[type(config)](config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(9 if kind == "zoedepth" else 3)  # it is deeper
            elif kind in DEPTH and "head" in name:  # a ReLU must not end in nothing but zeros
                parameter.fill_(0.5)
    if kind not in DEPTH | MASKS:
        _settle(network)
    return network.eval()  # type: ignore[no-any-return]  # the libraries say nothing of it


@torch.no_grad()
def _settle(network: nn.Module) -> None:
    """Give batch norms the statistics of images, clean and noisy, and what is said of each class
    the mean 0 and the deviation 2 over them.
    """
    images = nn.functional.interpolate(torch.randn(16, 3, 4, 4), (SIZE, SIZE), mode="bicubic")
    images = 2 * (images + torch.linspace(0, 1, 16).view(-1, 1, 1, 1) * torch.randn_like(images))
    momenta = {m: m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
    for norm in momenta:
        norm.momentum = None  # a mean over all that is seen
    network.train()(images)
    for norm, momentum in momenta.items():
        norm.momentum = momentum

    def rescale(layer: Any, _: object, said: Tensor) -> Tensor:
        values = said.transpose(0, 1).flatten(1) if said.ndim == 4 else said.T
        mean, factor = values.mean(1), 2 / values.std(1).clamp_min(1e-6)
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(len(mean)))
        layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.sub_(mean).mul_(factor)
        shape = (-1, 1, 1) if said.ndim == 4 else (-1,)
        return (said - mean.view(shape)) * factor.view(shape)

    heads = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and len(module.weight) == len(NAMES)
    ]
    hooks = [head.register_forward_hook(rescale) for head in heads]
    network.eval()(images)
    for hook in hooks:
        hook.remove()


def saved(kind: str, folder: Path) -> nn.Module:
    """Write it; images of 32 pixels are shown as they are."""
    network: Any = made(kind)
    if kind in DEPTH | SEGMENTATION | MASKS:
        network.save_pretrained(folder)
        if kind != "glpn":  # whose images are of any size
            path = folder / "preprocessor_config.json"
            path.write_text(json.dumps(_PREPROCESSOR))
        return network  # type: ignore[no-any-return]
    model, arguments = CLASSIFIERS.get(kind, (kind, None))
    stated = {
        "model": model,
        **({} if arguments is None else {"model_args": arguments}),
        "class_names": list(NAMES),
        "input_size": SIZE,
        "mean": MEAN,
        "std": STD,
    }
    save_checkpoint(folder / FILE, network.state_dict(), stated)
    return network  # type: ignore[no-any-return]


def named(folder: Path) -> dict[str, str]:
    """The arguments of `ppap_framework.guide` for what `saved` wrote."""
    file = folder / FILE
    return {"checkpoint": str(file)} if file.is_file() else {"model": str(folder)}
