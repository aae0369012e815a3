"""From a backend and a network to experts: synthesis, then transfer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from ppap_framework.components import DiffusionBackend
from ppap_framework.data.synthesize import check_synthesis, synthesize
from ppap_framework.errors import UsageError
from ppap_framework.experts import BundleFile
from ppap_framework.learn.boundaries import Boundaries
from ppap_framework.learn.calibration import Calibrated
from ppap_framework.learn.folder import DATA
from ppap_framework.learn.plan import DEFAULT_ADAPTERS, Adapters, plan_transfer
from ppap_framework.learn.recipe import Recipe
from ppap_framework.learn.teacher import Teacher
from ppap_framework.learn.transfer import Learned, check_transfer, learn
from ppap_framework.run import Problems, Progress, Settings

__all__ = ["adapt", "check_adapt"]


def adapt(
    backend: DiffusionBackend | str,
    guide: Teacher | nn.Module | str,
    *,
    out: str | os.PathLike[str],
    loss: str | None = None,
    num: int = 2048,
    steps: int = 25,
    num_experts: int | None = None,
    boundaries: Boundaries = None,
    adapters: Adapters = DEFAULT_ADAPTERS,
    iterations: int = 5000,
    seed: int = 0,
    recipe: Recipe | None = None,
    workers: int | None = 1,
    name: str | None = None,
    device: str = "auto",
    keep: bool = True,
    overwrite: bool = False,
    calibrate: bool = True,
    drawing: Callable[[Progress], None] | None = None,
    learning: Callable[[Learned], None] | None = None,
    calibrating: Callable[[Calibrated], None] | None = None,
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
    check_adapt(
        path,
        recipe,
        num=num,
        steps=steps,
        seed=seed,
        workers=workers,
        num_experts=num_experts,
        boundaries=boundaries,
        name=name,
        device=device,
    )
    plan = plan_transfer(
        backend,
        guide,
        loss=loss,
        num_experts=num_experts,
        boundaries=boundaries,
        adapters=adapters,
        recipe=recipe,
        name=name,
        device=device,
    )
    data = synthesize(
        plan.backend,
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
    return learn(
        plan,
        data,
        out=path,
        keep=keep,
        overwrite=overwrite,
        calibrate=calibrate,
        progress=learning,
        calibrating=calibrating,
        command=command,
    )


def check_adapt(
    out: Path,
    recipe: Recipe,
    *,
    num: int,
    steps: int,
    seed: int,
    workers: int | None,
    num_experts: int | None = None,
    boundaries: Boundaries = None,
    name: str | None = None,
    device: str = "auto",
) -> None:
    """Accept what can be right, whatever backend and guide.

    Raises:
        UsageError: With everything that cannot.
    """
    problems = Problems()
    with problems.collected():
        check_transfer(
            out, recipe, num_experts=num_experts, boundaries=boundaries, name=name, device=device
        )
    # What both have is checked above; and told once.
    own_seed = 0 if seed == recipe.seed else seed
    settings = Settings(num=num, steps=steps, seed=own_seed, batch=64)
    with problems.collected():
        check_synthesis(out / DATA, settings, shard=512, workers=workers, threads=1)
    if num == 1:
        problems.errors.append(UsageError("experts cannot learn from one image", hint="draw more"))
    problems.check()
