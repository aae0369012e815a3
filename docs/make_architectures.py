"""Tries guides of many architectures and counts their experts; writes the table of
docs/architectures.md.

    make architectures
    python docs/make_architectures.py detection    # these rows only; the others stay as they were

A second table compares what guides feed the networks of every architecture of transformers and
timm with what their own libraries feed them.

Of each family a tiny network is tried (`network_trials`). What experts of a network of ordinary
size have is counted without its weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from library_inputs import (
    architectures,
    of_timm,
    of_transformers,
    picture,
    timm_models_of_all_modules,
)
from network_trials import kinds, make_stand, try_out
from torch import nn
from torchvision.models import get_model

from ppap_framework.experts import AdapterConfig, ExpertSet, NoiseRanges, installed_adapter
from ppap_framework.noise import linear_schedule
from ppap_framework.run import ModuleGuide

DOCS = Path(__file__).parent
PAGE, RECORD = DOCS / "architectures.md", DOCS / "adapters" / "architectures.json"
MARKS = "<!-- architectures -->\n", "<!-- end of architectures -->\n"
INPUTS = DOCS / "adapters" / "inputs.json"
INPUT_MARKS = "<!-- inputs -->\n", "<!-- end of inputs -->\n"
SIDE = 45  # of the picture that is fed

DEFAULT = (("lora", {"rank": 16, "alpha": 8.0}), ("bias", {}))


Made = tuple[str, str, Callable[[], nn.Module]]


def _timm(name: str) -> Made:
    return "timm", name, lambda: timm.create_model(name)


def _torchvision(name: str) -> Made:
    return "torchvision", name, lambda: get_model(name, weights=None, weights_backbone=None)


def _transformers(family: str, config: str, **options: Any) -> Made:
    def make() -> nn.Module:
        return getattr(transformers, family)(getattr(transformers, config)(**options))

    return "transformers", f"{config}()", make


def _detector(name: str) -> Made:
    return _transformers(f"{name}ForObjectDetection", f"{name}Config")


def _image_tower(name: str) -> Made:
    """Without the text tower, which no expert adapts."""
    library, title, make = _transformers(f"{name}Model", f"{name}Config")

    def without_texts() -> nn.Module:
        network = make()
        for part in (
            *dict(network.named_children()),
            *dict(network.named_parameters(recurse=False)),
        ):
            if not part.startswith("vis"):
                delattr(network, part)
        return network

    return library, title, without_texts


def _features(name: str, layers: Sequence[int]) -> Made:
    """Up to the last of these layers, counted from 0."""

    def make() -> nn.Module:
        network: Any = timm.create_model(name)
        network.prune_intermediate_layers([*layers], prune_norm=True, prune_head=True)
        return network  # type: ignore[no-any-return]  # timm says nothing of it

    return "timm", name, make


FAMILIES: Mapping[str, tuple[str, Made]] = {
    "resnet": ("ResNet", _timm("resnet50")),
    "convnext": ("ConvNeXt", _timm("convnext_tiny")),
    "vit": ("ViT", _timm("vit_base_patch16_224")),
    "deit": ("DeiT, distilled", _timm("deit_small_distilled_patch16_224")),
    "swin": ("Swin", _timm("swin_tiny_patch4_window7_224")),
    "efficientnet": ("EfficientNet", _timm("efficientnet_b0")),
    "mobilenet": ("MobileNet v3", _timm("mobilenetv3_large_100")),
    "dpt": ("DPT (MiDaS)", _transformers("DPTForDepthEstimation", "DPTConfig")),
    "depth_anything": (
        "Depth Anything",
        _transformers("DepthAnythingForDepthEstimation", "DepthAnythingConfig"),
    ),
    "metric_depth_anything": (
        "Depth Anything, metric",
        _transformers(
            "DepthAnythingForDepthEstimation", "DepthAnythingConfig", depth_estimation_type="metric"
        ),
    ),
    "glpn": ("GLPN", _transformers("GLPNForDepthEstimation", "GLPNConfig")),
    "zoedepth": ("ZoeDepth", _transformers("ZoeDepthForDepthEstimation", "ZoeDepthConfig")),
    "segformer": (
        "SegFormer",
        _transformers("SegformerForSemanticSegmentation", "SegformerConfig"),
    ),
    "upernet": ("UPerNet", _transformers("UperNetForSemanticSegmentation", "UperNetConfig")),
    "beit": (
        "BEiT",
        _transformers("BeitForSemanticSegmentation", "BeitConfig", out_indices=[3, 5, 7, 11]),
    ),
    "mask2former": (
        "Mask2Former",
        _transformers("Mask2FormerForUniversalSegmentation", "Mask2FormerConfig"),
    ),
    "maskformer": (
        "MaskFormer",
        _transformers("MaskFormerForInstanceSegmentation", "MaskFormerConfig"),
    ),
    "eomt": ("EoMT", _transformers("EomtForUniversalSegmentation", "EomtConfig")),
    "lraspp_mobilenet_v3_large": ("LR-ASPP", _torchvision("lraspp_mobilenet_v3_large")),
    "deeplabv3_mobilenet_v3_large": ("DeepLabv3", _torchvision("deeplabv3_resnet50")),
    "fcn_resnet50": ("FCN", _torchvision("fcn_resnet50")),
    "detr": ("DETR", _detector("Detr")),
    "table-transformer": ("Table Transformer", _detector("TableTransformer")),
    "conditional_detr": ("Conditional DETR", _detector("ConditionalDetr")),
    "deformable_detr": ("Deformable DETR", _detector("DeformableDetr")),
    "dab-detr": ("DAB-DETR", _detector("DabDetr")),
    "yolos": ("YOLOS", _detector("Yolos")),
    "rt_detr": ("RT-DETR", _detector("RTDetr")),
    "rt_detr_v2": ("RT-DETR v2", _detector("RTDetrV2")),
    "d_fine": ("D-FINE", _detector("DFine")),
    "lw_detr": ("LW-DETR", _detector("LwDetr")),
    "rf_detr": ("RF-DETR", _detector("RfDetr")),
    "fcos_resnet50_fpn": ("FCOS", _torchvision("fcos_resnet50_fpn")),
    "retinanet_resnet50_fpn": ("RetinaNet", _torchvision("retinanet_resnet50_fpn")),
    "ssdlite320_mobilenet_v3_large": ("SSD", _torchvision("ssd300_vgg16")),
    "clip": ("CLIP", _image_tower("CLIP")),
    "siglip": ("SigLIP", _image_tower("Siglip")),
    "metaclip_2": ("MetaCLIP 2", _image_tower("MetaClip2")),
    "chinese_clip": ("Chinese CLIP", _image_tower("ChineseCLIP")),
    "altclip": ("AltCLIP", _image_tower("AltCLIP")),
    "clipseg": ("CLIPSeg", _image_tower("CLIPSeg")),
    "blip": ("BLIP", _image_tower("Blip")),
    "likeness": ("features at each place", _features("resnet50", range(1, 5))),
    "style": ("Gram matrices of features", _features("resnet50", range(3))),
    "structure": ("self-similarity of keys", _features("vit_base_patch16_224", [11])),
}
"""Of each kind of tiny network the family, and one of ordinary size: its library, what that calls
it, and how it makes it.
"""


def counted(kind: str) -> dict[str, Any]:
    """What an expert has, with the default recipe, of a network of ordinary size."""
    _, (library, name, make) = FAMILIES[kind]
    with warnings.catch_warnings(), torch.device("meta"):  # shapes, and no numbers
        warnings.filterwarnings("ignore", "Initializing zero-element")  # of LW-DETR
        network = make().eval().requires_grad_(False)
    made = {
        adapter: installed_adapter(AdapterConfig(name=adapter, options=options))
        for adapter, options in DEFAULT
    }
    experts = ExpertSet(ModuleGuide(network), NoiseRanges.equal(linear_schedule(), 1), made)
    own = {adapter: [p.numel() for p in each.parameters(0)] for adapter, each in made.items()}
    experts.detach()
    return {
        "library": library,
        "name": name,
        "parameters": sum(p.numel() for p in network.parameters()),
        "low_rank_weights": len(own["lora"]) // 2,  # two factors each
        "replaced_tensors": len(own["bias"]),
        "expert_parameters": sum(map(sum, own.values())),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    titles = ["family", "of ordinary size", "parameters", "LoRA", "biases, norms", "share"]
    titles += ["tiny: parameters", "trained: loss", "guided: pixels"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for row in rows:
        size, tiny = row["ordinary"], row["tiny"]
        cells = [
            FAMILIES[row["kind"]][0],
            f"{size['library']} `{size['name']}`",
            f"{size['parameters'] / 1e6:.1f} M",
            str(size["low_rank_weights"]),
            str(size["replaced_tensors"]),
            f"{size['expert_parameters'] / size['parameters']:.1%}",
            f"{tiny['parameters']:,}",
            f"{tiny['loss']['untouched']:.3g} to {tiny['loss']['held_out']:.3g}",
            f"{tiny['moved']:.2g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def inputs() -> list[dict[str, Any]]:
    """Of every architecture how far its input is from that of its own library, or why it has none.

    The deviations are in levels of 255.
    """
    image = picture(SIDE, SIDE)
    rows: list[dict[str, Any]] = []
    for task, kind in architectures():
        with tempfile.TemporaryDirectory() as folder:
            found = of_transformers(task, kind, Path(folder), image)
        rows.append({"library": "transformers", "task": task, "name": kind, "found": found})
    for name in timm_models_of_all_modules():
        found = of_timm(name, image)
        rows.append({"library": "timm", "task": "classification", "name": name, "found": found})
    return rows


def input_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| library | task | networks | largest deviation |", "|---|---|---|---|"]
    for library, task in dict.fromkeys((row["library"], row["task"]) for row in rows):
        own = [row for row in rows if (row["library"], row["task"]) == (library, task)]
        fed = [row for row in own if isinstance(row["found"], float)]
        names = ", ".join(f"`{row['name']}` {row['found']:.2f}" for row in fed)
        most = max(row["found"] for row in fed)
        lines.append(f"| {library} | {task} | {len(fed)}: {names} | {most:.2f} |")
    lines += ["", "Not fed, and why:", ""]
    left = [row for row in rows if not isinstance(row["found"], float)]
    lines += [f"- `{row['name']}` ({row['task']}): {row['found']}." for row in left]
    return lines


def write_page(marks: tuple[str, str], lines: Sequence[str]) -> None:
    """Put a table between its marks."""
    head, rest = PAGE.read_text().split(marks[0])
    _, tail = rest.split(marks[1])
    PAGE.write_text(head + marks[0] + "".join(f"{line}\n" for line in lines) + marks[1] + tail)


def main_inputs() -> None:
    found = inputs()
    INPUTS.write_text(json.dumps(found, indent=1) + "\n")
    write_page(INPUT_MARKS, input_table(found))


def main(tasks: Sequence[str]) -> None:
    transformers.logging.disable_progress_bar()
    if not tasks:
        main_inputs()
    known = json.loads(RECORD.read_text()) if tasks else []
    kept = {(row["task"], row["kind"]): row for row in known if row["task"] not in tasks}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stand = make_stand(folder / "data")
        for kind, task in kinds():
            if tasks and task not in tasks:
                rows += [kept[task, kind]] if (task, kind) in kept else []
                continue
            (folder / kind).mkdir()
            tried = try_out(kind, task, stand, folder / kind)
            rows.append({"kind": kind, "task": task, "tiny": tried, "ordinary": counted(kind)})
            print(table(rows)[-1], flush=True)
    RECORD.write_text(json.dumps(rows, indent=1) + "\n")
    write_page(MARKS, table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
