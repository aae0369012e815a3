"""From a backend and a network to experts: synthesis, then transfer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from ppap_framework.api import LoadedBackend, Problems, Progress, Settings
from ppap_framework.api import backend as load_backend
from ppap_framework.components import DiffusionBackend
from ppap_framework.experts import BundleFile
from ppap_framework.transfer.recipe import Recipe
from ppap_framework.transfer.synthesis import check_synthesis, synthesize
from ppap_framework.transfer.teacher import Teacher, teacher
from ppap_framework.transfer.transfer import (
    DEFAULT_ADAPTERS,
    Adapters,
    Learned,
    check_transfer,
    transfer,
)
from ppap_framework.transfer.transfer_folder import DATA

__all__ = ["adapt"]


def adapt(
    backend: DiffusionBackend | str,
    guide: Teacher | nn.Module | str,
    *,
    out: str | os.PathLike[str],
    loss: str | None = None,
    num: int = 2048,
    steps: int = 25,
    num_experts: int = 5,
    boundaries: Sequence[int] | None = None,
    adapters: Adapters = DEFAULT_ADAPTERS,
    iterations: int = 5000,
    seed: int = 0,
    recipe: Recipe | None = None,
    workers: int | None = 1,
    name: str | None = None,
    device: str = "auto",
    keep: bool = True,
    overwrite: bool = False,
    drawing: Callable[[Progress], None] | None = None,
    learning: Callable[[Learned], None] | None = None,
    command: Sequence[str] | None = None,
) -> BundleFile:
    """Make a network understand the noise of a diffusion model: no data, no labels.

    Whatever ends it, the same call goes on where it was.

    Args:
        backend: Draws the images, and is what the experts will steer.
        guide: The network: the name of a guider, a `GuidanceModel`, any module, or what `teacher`
            gives.
        out: A folder; the synthetic set goes into `data` in it.
        loss: For a network of one's own, such as "cross-entropy".
        num: How many images are drawn.
        steps: For each.
        iterations: As in `Recipe`; with `recipe`, that counts instead.
        seed: Of the images and, without `recipe`, of the training.
        workers: As for `synthesize`.
        drawing: Called as images get on.
        learning: Called after every iteration. The rest is as for `transfer`.

    Raises:
        PpapError: As `synthesize` and `transfer`.
    """
    path = Path(out).expanduser()
    recipe = recipe or Recipe(iterations=iterations, seed=seed)
    settings = Settings(num=num, steps=steps, seed=seed, batch=64, device=device)
    problems = Problems()
    with problems.collected():
        check_transfer(path, recipe, num_experts=num_experts, name=name)
    with problems.collected():
        check_synthesis(path / DATA, settings, shard=512, workers=workers, threads=1)
    problems.check()
    loaded: LoadedBackend = load_backend(backend)
    learner = guide if isinstance(guide, Teacher) else teacher(guide, loss=loss)
    data = synthesize(
        loaded,
        out=path / DATA,
        num=num,
        steps=steps,
        seed=seed,
        workers=workers,
        device=device,
        overwrite=overwrite,
        progress=drawing,
        command=command,
    )
    return transfer(
        loaded,
        learner,
        data,
        out=path,
        num_experts=num_experts,
        boundaries=boundaries,
        adapters=adapters,
        recipe=recipe,
        name=name,
        device=device,
        keep=keep,
        overwrite=overwrite,
        progress=learning,
        command=command,
    )
