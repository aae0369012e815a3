"""The second world, of photographs: Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747).

60,000 photographs of clothes of ten classes, and 10,000 to test with, 28 x 28, grey; here with a
black border, 32 x 32, in three equal channels. `adm` is train_adm.py's U-Net and begins with its
weights. `guide`, a ResNet-18 of timm, learns from the first half of the photographs and has never
seen noise; `judge`, train_classifiers.py's ConvNeXt, from the second half, shifted, softened and
grained. Labels are for these two alone. The photographs are those of Debian's package
`dataset-fashion-mnist` if it is installed; otherwise torchvision downloads them, 31 MB.

    python train_fashion.py adm --state ~/ppap-train    # and guide, and judge
    python train_fashion.py reference --state ~/ppap-train    # a file to measure with
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import click
import numpy as np
import timm
import torch
import torch.nn.functional as F
import train_adm
from publish import WEIGHTS, publish
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.datasets import FashionMNIST
from train_classifiers import architecture, shifted
from training import Plan, grained, halved, record, state_option, to_images, train

from ppap_plugin_adm import build

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FOLDER = (
    Path(__file__).parents[2] / "ppap-plugin-fashion" / "src" / "ppap_plugin_fashion" / "weights"
)
CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
START, HALF = "shapes-adm", 30_000
PLANS = {
    "adm": Plan(
        steps=6000, decay=2500, batch=16, learning_rate=5e-4, seed=111, warmup=200, ema=0.999
    ),
    "guide": Plan(
        steps=2000, decay=1400, batch=64, learning_rate=2e-3, seed=121, weight_decay=0.05, ema=0.99
    ),
    "judge": Plan(
        steps=2500, decay=1800, batch=64, learning_rate=2e-3, seed=131, weight_decay=0.05, ema=0.99
    ),
}
SUMMARIES = {
    "adm": "Photographs of clothes, 32 x 32, grey, unconditional",
    "guide": "A narrow ResNet-18 that has seen clean photographs of clothes only",
    "judge": "A ConvNeXt that measures photographs of clothes and never guides",
}
NOTES: dict[str, dict[str, object]] = {
    "adm": {
        "photographs": "all 60,000",
        "start": START,
        "vlb_weight": train_adm.VLB_WEIGHT,
        "precision": "bfloat16 products",
    },
    "guide": {"photographs": f"the first {HALF:,}"},
    "judge": {"photographs": f"the last {HALF:,}"},
}
NAMES = {"adm": "fashion-adm", "guide": "fashion-resnet18", "judge": "fashion-judge"}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "guide": ("resnet18", {"channels": (32, 64, 96, 160), "stem_type": "deep", "stem_width": 16}),
    "judge": ("convnext_atto", {"patch_size": 2, "depths": (2, 2, 4, 2), "dims": (32, 64, 96, 64)}),
}


def photographs(state: Path, *, to_learn: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32), uint8, and classes (N,), to learn from or to test with."""
    raw = state / "FashionMNIST" / "raw"  # where torchvision looks before it downloads
    raw.mkdir(parents=True, exist_ok=True)
    for packed in DEBIAN.glob("*.gz"):
        if not (raw / packed.stem).exists():
            unfinished = raw / f"{packed.stem}.partial"
            unfinished.write_bytes(gzip.decompress(packed.read_bytes()))
            unfinished.replace(raw / packed.stem)
    found = FashionMNIST(state, train=to_learn, download=True)
    grey = F.pad(found.data[:, None], (2, 2, 2, 2))
    return grey.expand(-1, 3, -1, -1), found.targets


def diffusion(state: Path) -> tuple[dict[str, Tensor], float, dict[str, Any], dict[str, Any]]:
    """Averaged weights, seconds, the architecture and what was measured."""
    images, _ = photographs(state, to_learn=True)
    process, plan = train_adm.process_of(), PLANS["adm"]
    network = build(train_adm.OFFICIAL_CLASS, train_adm.CONFIG)
    start = load_file(WEIGHTS / f"{START}.safetensors")
    network.load_state_dict({name: value.float() for name, value in start.items()})
    forward = torch.compile(network.to(memory_format=torch.channels_last))

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(images), (plan.batch,), generator=generator)
        return train_adm.batch_loss(forward, process, to_images(images[chosen]), generator, True)

    average, seconds = train(network, plan, state / "fashion-adm", loss)
    network.load_state_dict(halved(average))
    found = train_adm.held_out(network, process, photographs(state, to_learn=False)[0])
    found["fresh_photographs"] = found.pop("fresh_renders")
    config = {"config": train_adm.CONFIG, "process": train_adm.PROCESS}
    return average, seconds, {"official_class": train_adm.OFFICIAL_CLASS, **config}, found


def classifier(
    which: str, state: Path
) -> tuple[dict[str, Tensor], float, dict[str, Any], dict[str, Any]]:
    """Trains `guide` or `judge`; returns what `diffusion` does."""
    half = slice(HALF) if which == "guide" else slice(HALF, None)
    images, labels = (every[half] for every in photographs(state, to_learn=True))
    model, arguments = NETWORKS[which]
    plan, judges = PLANS[which], which == "judge"
    torch.manual_seed(plan.seed)
    network: nn.Module = timm.create_model(model, num_classes=len(CLASSES), **arguments)
    network = network.to(memory_format=torch.channels_last)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(images), (plan.batch,), generator=generator)
        x = to_images(images[chosen])
        if judges:
            x = grained(shifted(x, generator), generator)
        logits = network(x.contiguous(memory_format=torch.channels_last))
        right = (logits.argmax(1) == labels[chosen]).float().mean().item()
        smoothing = 0.05 if judges else 0.0
        return F.cross_entropy(logits, labels[chosen], label_smoothing=smoothing), {"right": right}

    average, seconds = train(network, plan, state / f"fashion-{which}", loss)
    network.load_state_dict(halved(average))
    network.eval()
    images, labels = photographs(state, to_learn=False)
    with torch.no_grad():
        told = torch.cat([network(to_images(block)).argmax(1) for block in images.split(500)])
    found = {
        "fresh_photographs": len(images),
        "accuracy": (told == labels).float().mean().item(),
    }
    return average, seconds, architecture(model, CLASSES, **arguments), found


@click.command()
@click.argument("which", type=click.Choice([*PLANS, "reference"]))
@state_option
def main(which: str, state: Path) -> None:
    """Train a network and publish it; or write the test photographs to STATE/fashion.npz."""
    if which == "reference":
        images, labels = (every.numpy() for every in photographs(state, to_learn=False))
        path = state / "fashion.npz"
        np.savez(path, images=images, labels=labels, class_names=np.array(CLASSES))
        click.echo(path)
        return
    made = diffusion(state) if which == "adm" else classifier(which, state)
    average, seconds, config, found = made
    training = record(f"train_fashion.py {which}", PLANS[which], seconds, **NOTES[which])
    component, kind = ("adm", "backend") if which == "adm" else ("classifier", "guider")
    told = NAMES[which], component, kind, SUMMARIES[which]
    path = publish(*told, average, config, training, found, False, FOLDER)
    click.echo(f"{path}: {found}")


if __name__ == "__main__":
    main()
