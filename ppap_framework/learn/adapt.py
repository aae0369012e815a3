"""From a backend and a network to experts: synthesis, then transfer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from ppap_framework.components import DiffusionBackend
from ppap_framework.data import synthesize
from ppap_framework.data.synthesize import check_synthesis
from ppap_framework.errors import Problems, UsageError
from ppap_framework.experts import BundleFile
from ppap_framework.guidance import Guide
from ppap_framework.learn.folder import DATA
from ppap_framework.learn.plan import plan_transfer
from ppap_framework.learn.recipe import Recipe
from ppap_framework.learn.transfer import BATCH, check_transfer, learn
from ppap_framework.run import Compute, Loss, Sampling, changed
from ppap_framework.runtime import Watch, isolated

__all__ = ["adapt", "check_adapt"]


@isolated()
def adapt(
    backend: DiffusionBackend | str,
    guide: Guide | nn.Module | str,
    *,
    out: str | os.PathLike[str],
    loss: Loss | None = None,
    num: int = 2048,
    sampling: Sampling | None = None,
    recipe: Recipe | None = None,
    compute: Compute | None = None,
    workers: int | None = 1,
    name: str | None = None,
    keep: bool = True,
    overwrite: bool = False,
    calibrate: bool = True,
    progress: Watch | None = None,
    command: Sequence[str] | None = None,
    **changes: Any,
) -> BundleFile:
    """Train experts that read a diffusion model's noise, without data or labels.

    However it ends, the same call continues. Arguments that are not listed are those of `transfer`.

    Args:
        backend: The diffusion model that draws the images and that the experts will steer.
        out: A folder; the synthetic set goes into `data` in it.
        num: Number of images to draw.
        sampling: What determines them; by default with the recipe's seed.
        compute: How they are computed; its device is that of training, too.
        workers: Processes that draw, as for `synthesize`.
        progress: Called as drawing, training and calibration go on.
        changes: Fields of `recipe`, `sampling` and `compute`; one that several have is that of the
            first of these.

    Raises:
        PpapError: As `synthesize` and `transfer`.
    """
    path = Path(out).expanduser()
    recipe, sampling, compute = changed(
        changes,
        recipe or Recipe(),
        sampling or Sampling(seed=changes.get("seed", recipe.seed if recipe else 0)),
        compute or Compute(batch=BATCH),
    )
    check_adapt(path, recipe, sampling, compute, num=num, workers=workers, name=name)
    plan = plan_transfer(backend, guide, loss=loss, recipe=recipe, compute=compute, name=name)
    data = synthesize(
        plan.backend,
        out=path / DATA,
        num=num,
        sampling=sampling,
        compute=compute,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
        command=command,
    )
    return learn(plan, data, path, keep, overwrite, calibrate, progress, command)


def check_adapt(
    out: Path,
    recipe: Recipe,
    sampling: Sampling,
    compute: Compute,
    *,
    num: int,
    workers: int | None,
    name: str | None,
) -> None:
    """Accept what can be right, whatever the backend and guide.

    Raises:
        UsageError: With everything that cannot.
    """
    problems = Problems()
    with problems.collected():
        check_transfer(out, recipe, compute, name)
    # What both checks would report is reported once.
    if sampling.seed == recipe.seed:
        sampling = attrs.evolve(sampling, seed=0)
    with problems.collected():
        check_synthesis(out / DATA, num, sampling, Compute(batch=compute.batch), workers=workers)
    if num == 1:
        problems.errors.append(UsageError("experts cannot learn from one image", hint="draw more"))
    problems.check()
