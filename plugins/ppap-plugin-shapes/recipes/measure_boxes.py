"""How often guided images have the wanted solid in the wanted box, by judges that never guide.

Targets are the class and the exact box of the hero in fresh renders, one for each image. The class
judge says which solid is in front. The segmentation judge says where: the box around the largest
connected region of pixels of the wanted shape. The last row is what both say of the renders.

    python measure_boxes.py --num 64 [--experts FILE] [--out FILE]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label
from torch import Tensor
from torchvision.ops import box_iou

import ppap_framework as ppap
from ppap_framework.guidance import Guide
from ppap_framework.targets import decode_target
from ppap_plugin_diagnose.intervals import bootstrap, interval
from ppap_plugin_shapes.world import CLASS_NAMES, COLOURS, SEGMENTATION_NAMES, SHAPES, render

SEED = 914
_FIRST = len(SEGMENTATION_NAMES) - len(SHAPES)


def _judge(guider: str, name: str, target: str) -> Guide:
    return ppap.guide(guider, checkpoint=name, target=target, experts="none")


@torch.no_grad()
def judged(images: Tensor, wanted: Tensor) -> dict[str, NDArray[np.float64]]:
    """Of each image (B, 3, 32, 32) whether the class of its row (B, 5) is in front; the IoU of the
    boxes; and whether both are right, with an IoU of at least 0.5.
    """
    of_class = _judge("classifier", "shapes-judge", "red cube").model
    names = [of_class.target(decode_target(name)).value for name in CLASS_NAMES]
    kinds = wanted[:, 0].long()
    right = of_class(images).argmax(1) == torch.cat(names)[kinds]
    of_pixels = _judge("segmentation", "shapes-segmentation-judge", "cube").model
    size = images.shape[-2:]
    logits = torch.nn.functional.interpolate(of_pixels(images), size, mode="bilinear")
    overlaps = []
    for pixels, row in zip(logits.argmax(1).numpy(), wanted, strict=True):
        shape = _FIRST + int(row[0]) // len(COLOURS)
        regions, number = label(pixels == shape)
        if not number:
            overlaps.append(0.0)
            continue
        largest = 1 + int(np.argmax(np.bincount(regions.ravel())[1:]))
        down, across = find_objects(regions)[largest - 1]
        box = torch.tensor([[across.start, down.start, across.stop, down.stop]]) / size[0]
        overlaps.append(float(box_iou(box, row[None, 1:])))
    iou = np.array(overlaps)
    right_class = right.numpy().astype(float)
    return {"class": right_class, "IoU": iou, "both": right_class * (iou >= 0.5)}


@click.command()
@click.option("--num", type=click.IntRange(min=2), default=64, show_default=True)
@click.option("--experts", default="auto", show_default=True)
@click.option("--scale", default="auto", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="A JSON file of the figures.")
def main(num: int, experts: str, scale: str, out: Path | None) -> None:
    """Print a table in Markdown."""
    scenes = render(SEED, range(num), 32)
    wanted = torch.from_numpy(scenes.boxes[:, 0])
    guide = ppap.guide("detection", target=wanted[:, None].numpy(), experts=experts, scale=scale)
    drawn = ppap.sample("adm", [guide], num=num, batch=num, seed=0, sampler="ddpm", compare=True)
    renders = torch.from_numpy(scenes.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    rows = {**drawn.compared, "experts": drawn, "the renders themselves": None}
    found = {
        name: judged(renders if row is None else row.images, wanted) for name, row in rows.items()
    }
    resamples = bootstrap(num) / num
    record: dict[str, Any] = {"num": num, "experts": experts, "scale": scale, "rows": {}}
    click.echo("| images | class in front | IoU of the box | both, IoU at least 0.5 |")
    click.echo("|---|---|---|---|")
    for name, figures in found.items():
        cells = []
        for values in figures.values():
            one = interval(float(values.mean()), resamples @ values, 0.0, 1.0)
            cells.append(f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})")
        record["rows"][name] = dict(zip(figures, cells, strict=True))
        click.echo(f"| {name} | {' | '.join(cells)} |")
    if "naive" in found:
        ahead = found["experts"]["both"] - found["naive"]["both"]
        one = interval(float(ahead.mean()), resamples @ ahead)
        record["experts above naive"] = f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})"
        click.echo(f"\nExperts above naive: {record['experts above naive']}.")
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
