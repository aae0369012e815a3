"""Write rendered scenes to a file: python -m ppap_plugin_shapes --seed 7 --num 2048 --out
renders.npz.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from ppap_plugin_shapes.world import CLASS_NAMES, SEGMENTATION_NAMES, render
from ppap_plugin_shapes.world.sampling import sample_scene


@click.command()
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--num", type=click.IntRange(min=1), default=2048, show_default=True)
@click.option("--size", type=click.IntRange(min=8), default=32, show_default=True)
@click.option("--in-turn", is_flag=True, help="Scene i shows class i mod 32 in front.")
@click.option(
    "--out", type=click.Path(dir_okay=False, writable=True, path_type=Path), required=True
)
def main(seed: int, num: int, size: int, in_turn: bool, out: Path) -> None:
    """Write NUM scenes with their ground truth to OUT (.npz)."""
    scenes = render(seed, [*itertools.islice(_in_turn(seed), num)] if in_turn else range(num), size)
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


def _in_turn(seed: int) -> Iterator[int]:
    """Indices of scenes that show one class after the other."""
    waiting: defaultdict[int, deque[int]] = defaultdict(deque)
    unseen = itertools.count()
    for kind in itertools.cycle(range(len(CLASS_NAMES))):
        while not waiting[kind]:
            index = next(unseen)
            waiting[sample_scene(seed, index).solids[0].kind].append(index)
        yield waiting[kind].popleft()


if __name__ == "__main__":
    main()
