"""Training of experts, on existing images or ones that the diffusion model draws first."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from ppap_framework.components import DiffusionBackend
from ppap_framework.data import Images, SyntheticData, check_synthesis, synthesize
from ppap_framework.errors import Problems, UsageError
from ppap_framework.experts import BundleFile, describe, experts_dir, keep_bundle
from ppap_framework.experts.bundle import SUFFIX, save_bundle, verify_bundle
from ppap_framework.figures import draw_figures
from ppap_framework.files import Calls, check_writable, expanded
from ppap_framework.guidance import Guide
from ppap_framework.learn import calibration
from ppap_framework.learn.batches import TrainingSet, predicted
from ppap_framework.learn.distillation import Distillation
from ppap_framework.learn.folder import DATA, TransferFolder, check_folder, opened, recorded
from ppap_framework.learn.plan import TransferPlan, plan_transfer
from ppap_framework.learn.recipe import Recipe
from ppap_framework.pixels import scaled
from ppap_framework.processes import Processes
from ppap_framework.run import UNGUIDED, Compute, Loss, Sampling, changed
from ppap_framework.runtime import Progress, Watch, evaluating, isolated

_log = logging.getLogger(__name__)

_BATCH = 64  # default batch size of drawing
_PREPARING = 256  # images with which adapters prepare
_LOG_EVERY = 10
_SAVE_SECONDS = 10.0
_NOT_KEPT = "set PPAP_CACHE_DIR to another folder, or use --no-keep"


@isolated()
def transfer(
    backend: DiffusionBackend | str,
    guide: Guide | nn.Module | str,
    data: Images | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    loss: Loss | None = None,
    recipe: Recipe | None = None,
    compute: Compute | None = None,
    name: str | None = None,
    keep: bool = True,
    overwrite: bool = False,
    calibrate: bool = True,
    progress: Watch | None = None,
    command: Sequence[str] | None = None,
    **changes: Any,
) -> BundleFile:
    """Train experts and write them into a bundle, or resume an earlier call. All processes of a
    launch train together, with the losses of one process but for rounding.

    An interruption, such as Ctrl-C, does not change the bundle's bytes on one machine with one
    number of threads. UsageError if an argument cannot be used; AssetError if data are missing,
    damaged, or of another backend; PluginError if a plugin is missing or its loss is invalid;
    PpapError if the loss is no longer finite or the folder cannot be written.

    Args:
        backend: The diffusion model that drew the images and that the experts will steer.
        guide: A guide, the name of a guider, or any network.
        data: Result of `synthesize`, or its folder; `LabelledImages` for the supervised baseline.
        out: A folder for this training.
        loss: For a network of your own: the loss of its answers, such as "cross-entropy".
        recipe: Everything else that determines the experts.
        compute: The device of training; its other fields apply to calibration only.
        name: Name of the bundle, NAME.experts.safetensors.
        keep: Whether to copy the bundle to the folder that `experts="auto"` searches.
        overwrite: Whether to remove an earlier training in the folder.
        calibrate: Whether to find the scale curve of the bundle, see `calibrate`. If the guide
            cannot be aimed at pictures, the log says so and the bundle has none.
        progress: Called after every iteration, and every noise level of the calibration.
        command: The typed command, for the record.
        changes: Fields of `recipe` and `compute`; shared names mean the recipe's.
    """
    path = expanded(out)
    recipe, compute = changed(changes, recipe or Recipe(), compute or Compute(batch=_BATCH))
    check_transfer(path, recipe, compute, name)
    if keep:
        check_writable(experts_dir(), _NOT_KEPT)
    processes = Processes.of_launch(compute.place)
    processes.check_batch(recipe.batch)
    images = data if not isinstance(data, str | os.PathLike) else SyntheticData(data)
    plan = plan_transfer(backend, guide, loss, recipe, compute, name)
    plan.check_images(images)
    model = plan.guide.model.to(plan.compute.place)
    if plan.recipe.boundaries == "auto":
        earlier = {} if overwrite else recorded(path).get("settings", {})
        wanted = plan.settings(images)
        same = all(earlier.get(name) == wanted[name] for name in ("guide", "backend", "data"))
        found = same and earlier.get("proposal")
        with evaluating(model):
            plan = plan.with_boundaries(processes.once(lambda: found or plan.measure(images)))
    bundle, whole = f"{plan.name}{SUFFIX}", recipe.experts_of is None
    with contextlib.ExitStack() as held:  # by the first process, for all
        training = opened(path, plan.settings(images), bundle, overwrite=overwrite)
        folder = processes.once(lambda: held.enter_context(training))
        if not processes.once(lambda: folder.complete):
            calls = folder.calls(command, processes)
            with calls.recorded() if processes.first else contextlib.nullcontext():
                with evaluating(model):
                    _train(plan, images, folder, calls, progress, processes)
                if processes.first:
                    phases = [phase for phase in plan.phases if phase.iterations]
                    draw_figures("training", folder.log, phases, path / "loss")

        def finished() -> Path:
            folder.tidy()
            info, _ = verify_bundle(folder.bundle)
            if calibrate and whole and info.curve is None:
                how: Any = {"seed": recipe.seed, "compute": compute, "progress": progress}
                try:
                    calibration.calibrate(plan.backend, plan.guide, folder.bundle, **how)
                except UsageError as error:
                    _log.warning("%s; %s", error.message, error.hint)
            return keep_bundle(folder.bundle) if keep and whole else folder.bundle

        return BundleFile(plan.name, processes.once(finished))


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
    """Train experts for a diffusion model's noise levels, without data or labels.

    The same call resumes an interrupted one. Arguments and errors are those of `synthesize`, which
    draws into the folder `data` of `out`, by default with the recipe's seed, and of `transfer`.
    `changes` are fields of `recipe`, `sampling` and `compute`, or of the first that has the name.
    """
    path = expanded(out)
    recipe, compute = recipe or Recipe(), compute or Compute(batch=_BATCH)
    sampling = sampling or attrs.evolve(UNGUIDED, seed=changes.get("seed", recipe.seed))
    recipe, sampling, compute = changed(changes, recipe, sampling, compute)
    draws: dict[str, Any] = {"num": num, "workers": workers}
    check_adapt(path, recipe, sampling, compute, name, **draws)
    if keep:
        check_writable(experts_dir(), _NOT_KEPT)
    plan = plan_transfer(backend, guide, loss, recipe, compute, name)  # before anything is drawn
    how: dict[str, Any] = {"compute": compute, "overwrite": overwrite, "command": command}
    how["progress"] = progress
    data = synthesize(plan.backend, out=path / DATA, sampling=sampling, **how, **draws)
    more: dict[str, Any] = {"name": name, "keep": keep, "calibrate": calibrate}
    return transfer(plan.backend, plan.guide, data, out=path, recipe=recipe, **how, **more)


def check_transfer(out: Path, recipe: Recipe, compute: Compute, name: str | None) -> None:
    """Check arguments without backend, guide and data; UsageError with all problems."""
    problems = Problems()
    problems.errors += [*recipe.problems(), *compute.problems()]
    if name is not None and (not name or Path(name).name != name or name.startswith(".")):
        problems.add(f"a bundle cannot be called {name!r}", "give a plain file name")
    problems.attempt(check_writable, out)
    problems.attempt(check_folder, out)
    problems.check()


def check_adapt(
    out: Path, recipe: Recipe, sampling: Sampling, compute: Compute, name: str | None, **draws: Any
) -> None:
    """As `check_transfer`; `draws` are `num` and, perhaps, `workers`."""
    problems = Problems()
    problems.attempt(check_transfer, out, recipe, compute, name)
    # Shared problems are reported once.
    if sampling.seed == recipe.seed:
        sampling = attrs.evolve(sampling, seed=0)
    compute = Compute(batch=compute.batch)
    problems.attempt(check_synthesis, out / DATA, sampling=sampling, compute=compute, **draws)
    if draws["num"] == 1:
        problems.add("experts cannot learn from one image", "draw more")
    problems.check()


def _train(
    plan: TransferPlan,
    images: Images,
    folder: TransferFolder,
    calls: Calls,
    progress: Watch | None,
    processes: Processes,
) -> None:
    """Train, from the folder's state on; the first process saves the bundle, the log and states."""
    recipe, guide, stage = plan.recipe, plan.guide, plan.stage
    data = TrainingSet.of(images, guide.model, recipe.batch, plan.compute.place, stage)
    total, saved = sum(phase.iterations for phase in plan.phases), time.perf_counter()
    with plan.attached() as experts:
        known = experts, guide.loss, stage.schedule, data, recipe, plan.phases
        seen = partial(predicted, plan.backend) if recipe.through == "detached" else None
        training = Distillation(*known, processes, seen)
        if stage.latent_shape and plan.first is None:
            rows = torch.arange(min(_PREPARING, data.count - training.held_out))
            for adapter in experts.adapters.values():
                adapter.prepare(data.images(rows), scaled(images.images(rows, 0)))
        state = processes.once(folder.load)
        if state is not None:
            training.load_state_dict(state)
        with contextlib.closing(training.run()) as reports:
            for report in reports:
                if not processes.first:
                    continue
                phase, held_out = training.phases[report.phase], report.held_out
                line = {"phase": phase.name, "iteration": report.step}
                if report.step % _LOG_EVERY == 0 or report.step == phase.iterations:
                    folder.log.append({**line, "loss": report.loss})
                if held_out is not None:
                    score = held_out if math.isfinite(held_out) else None
                    folder.log.append({**line, "held_out": score})
                calls.call["iterations"] += 1
                if progress:
                    progress(Progress("learning", training.done, total, f"loss {report.loss:.3g}"))
                if held_out is not None or time.perf_counter() - saved >= _SAVE_SECONDS:
                    folder.save(training.state_dict())
                    calls.write()
                    saved = time.perf_counter()
        if not processes.first:
            return
        folder.save(training.state_dict())
        trained = {k: v for k, v in folder.settings["recipe"].items() if k != "experts_of"}
        info = describe(
            experts,
            stage.schedule,
            stage.image_shape[1:],
            **plan.identities,
            adapters=plan.adapters,
            recipe={**trained, "loss": folder.settings["loss"]},
            part=recipe.part(len(experts)),
            seed=recipe.seed,
            data_sha256=images.manifest_hash,
            options=guide.compared_options(plan.backend),
            metrics={"held_out_images": training.held_out, "experts": training.scores},
            latents=None if seen else stage.latent_shape,
        )
        save_bundle(folder.bundle, experts, info)
