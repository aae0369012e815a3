"""Write rendered scenes to a file: python -m ppap_plugin_shapes --seed 7 --num 2048 --out
renders.npz.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from ppap_plugin_shapes.world import CLASS_NAMES, SEGMENTATION_NAMES, render


@click.command()
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--num", type=click.IntRange(min=1), default=2048, show_default=True)
@click.option("--size", type=click.IntRange(min=8), default=32, show_default=True)
@click.option(
    "--out", type=click.Path(dir_okay=False, writable=True, path_type=Path), required=True
)
def main(seed: int, num: int, size: int, out: Path) -> None:
    """Write NUM scenes with their ground truth to OUT (.npz)."""
    scenes = render(seed, range(num), size)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        np.savez(
            file,
            images=scenes.images.transpose(0, 3, 1, 2),  # (N, 3, H, W) uint8
            labels=scenes.labels,
            depth=scenes.depth,
            segmentation=scenes.segmentation,
            boxes=scenes.boxes,
            captions=np.array(scenes.captions),
            class_names=np.array(CLASS_NAMES),
            segmentation_names=np.array(SEGMENTATION_NAMES),
        )
    click.echo(out)


if __name__ == "__main__":
    main()
