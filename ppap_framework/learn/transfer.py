"""Knowledge transfer: from a clean image's teacher to experts that read its noised version."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from ppap_framework.components import DiffusionBackend
from ppap_framework.data.files import refusals
from ppap_framework.data.images import Images, LabelledImages
from ppap_framework.data.reader import SyntheticData
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import (
    SUFFIX,
    BundleFile,
    describe,
    keep_bundle,
    save_bundle,
    verify_bundle,
)
from ppap_framework.learn.boundaries import Boundaries, check_boundaries, measure, recorded
from ppap_framework.learn.calibration import Calibrated, calibrate_if_possible
from ppap_framework.learn.distillation import Course, Distillation
from ppap_framework.learn.folder import (
    TransferFolder,
    check_transfer_folder,
    recorded_settings,
)
from ppap_framework.learn.loss_plot import plot_losses
from ppap_framework.learn.plan import (
    DEFAULT_ADAPTERS,
    Adapters,
    TransferPlan,
    plan_transfer,
)
from ppap_framework.learn.recipe import Recipe
from ppap_framework.learn.session import Learned, Session
from ppap_framework.learn.teacher import Answers, Teacher
from ppap_framework.run import Problems, check_writable, find_device

__all__ = ["Learned", "check_transfer", "learn", "transfer"]


def transfer(
    backend: DiffusionBackend | str,
    guide: Teacher | nn.Module | str,
    data: Images | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    loss: str | None = None,
    num_experts: int | None = None,
    boundaries: Boundaries = None,
    adapters: Adapters = DEFAULT_ADAPTERS,
    recipe: Recipe | None = None,
    name: str | None = None,
    device: str = "auto",
    keep: bool = True,
    overwrite: bool = False,
    calibrate: bool = False,
    progress: Callable[[Learned], None] | None = None,
    calibrating: Callable[[Calibrated], None] | None = None,
    command: Sequence[str] | None = None,
) -> BundleFile:
    """Train experts and write them into one file; or go on where an earlier call was ended.

    Interrupted or not, on one machine with as many threads the file comes out the same.

    Args:
        backend: Whose images they are, and that the experts will steer.
        guide: The network: what `teacher` gives or takes.
        data: What `synthesize` drew, or its folder; `LabelledImages` train the supervised
            baseline.
        out: A folder of its own.
        loss: For a network of one's own: see `teacher`.
        num_experts: N, that share the schedule's timesteps equally; None for 5, or as many as
            `boundaries` make.
        boundaries: The base timesteps at which experts 1 to N - 1 begin instead; "auto" for those
            that the untouched network's disagreement on the noised data proposes, and for N, too,
            where it is None.
        adapters: What an expert is made of.
        recipe: How it is trained.
        name: Of the file, NAME.experts.safetensors.
        device: "auto", or as torch calls it.
        keep: Whether to copy the file to where `experts="auto"` finds it.
        overwrite: Whether to remove a training that is in the folder.
        calibrate: Whether to find the scales with which the experts shall guide, too; a guide that
            cannot be aimed at pictures goes without, and the log says why.
        progress: Called after every iteration.
        calibrating: Called after every trial of the calibration.
        command: What was typed, for the record.

    Raises:
        UsageError: For arguments that cannot be used.
        AssetError: Where data are missing, damaged, or of another backend.
        PluginError: Where a plugin is missing, or its loss is not what it must be.
        PpapError: Where the loss is no longer finite, or the folder cannot be written.
        KeyboardInterrupt: On Ctrl-C; the same call goes on.
    """
    path, recipe = Path(out).expanduser(), recipe or Recipe()
    check_transfer(
        path, recipe, num_experts=num_experts, boundaries=boundaries, name=name, device=device
    )
    images = data if not isinstance(data, str | os.PathLike) else SyntheticData(data)
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
    return learn(
        plan,
        images,
        out=path,
        keep=keep,
        overwrite=overwrite,
        calibrate=calibrate,
        progress=progress,
        calibrating=calibrating,
        command=command,
    )


def check_transfer(
    out: Path,
    recipe: Recipe,
    *,
    num_experts: int | None = None,
    boundaries: Boundaries = None,
    name: str | None = None,
    device: str = "auto",
) -> None:
    """Accept what can be right, whatever backend, guide and data.

    Raises:
        UsageError: With everything that cannot.
    """
    problems = Problems()
    with problems.collected():
        recipe.check()
    with problems.collected():
        check_boundaries(num_experts, boundaries)
    with problems.collected():
        if name is not None and (not name or Path(name).name != name or name.startswith(".")):
            raise UsageError(f"a bundle cannot be called {name!r}", hint="give a plain file name")
    with problems.collected():
        find_device(device)
    with problems.collected():
        check_writable(out)
        check_transfer_folder(out)
    problems.check()


def learn(
    plan: TransferPlan,
    images: Images,
    *,
    out: Path,
    keep: bool = True,
    overwrite: bool = False,
    calibrate: bool = False,
    progress: Callable[[Learned], None] | None = None,
    calibrating: Callable[[Calibrated], None] | None = None,
    command: Sequence[str] | None = None,
) -> BundleFile:
    """Do what is planned; the other arguments, and the errors, are those of `transfer`."""
    _check_images(images, plan)
    if plan.proposes:
        plan = _settled(plan, images, None if overwrite else recorded_settings(out))
    settings = plan.settings(images.manifest_hash, isinstance(images, LabelledImages))
    bundle = f"{plan.name}{SUFFIX}"
    with TransferFolder.opened(out, settings, bundle, overwrite=overwrite) as folder:
        if not folder.complete:
            session = Session(folder, plan, progress, command)
            with session.recorded():
                _train(plan, images, folder, session)
                with contextlib.suppress(ModuleNotFoundError), refusals(out / "loss.png"):
                    plot_losses(folder.lines(), plan.phases, out / "loss")
        folder.tidy()
        verify_bundle(folder.bundle)
        if calibrate:
            calibrate_if_possible(
                plan.backend,
                plan.learner,
                folder.bundle,
                seed=plan.recipe.seed,
                device=str(plan.device),
                progress=calibrating,
            )
    return BundleFile(plan.name, keep_bundle(folder.bundle) if keep else folder.bundle)


def _settled(plan: TransferPlan, images: Images, earlier: Mapping[str, Any] | None) -> TransferPlan:
    """The plan with experts that begin where the data propose it, or where they began before."""
    curve = recorded(earlier, plan.seen(images.manifest_hash))
    if curve is None:
        with _ready(plan.learner, plan.device) as device:
            curve = measure(
                plan.learner,
                plan.stage,
                images,
                seed=plan.recipe.seed,
                batch=plan.recipe.batch,
                device=device,
            )
    return plan.settled(curve)


def _train(plan: TransferPlan, images: Images, folder: TransferFolder, session: Session) -> None:
    """From images to the bundle."""
    with _ready(plan.learner, plan.device) as device:
        source = _Source(images, device)
        answers = (
            images.labels.to(device).__getitem__
            if isinstance(images, LabelledImages)
            else Answers(plan.learner.model, source.clean, len(images), plan.recipe.batch).of
        )
        experts = plan.attached()
        try:
            course = Course(
                experts=experts,
                loss=plan.learner.loss,
                schedule=plan.stage.schedule,
                images=source.noised,
                answers=answers,
                supervised=isinstance(images, LabelledImages),
                count=len(images),
                shape=plan.stage.image_shape,
                recipe=plan.recipe,
                phases=plan.phases,
            )
            metrics = session.train(Distillation(course))
            info = describe(
                experts,
                plan.stage.schedule,
                plan.stage.image_shape[1:],
                guide=plan.guide_identity,
                backend=plan.backend_identity,
                adapters=plan.adapters,
                recipe=attrs.asdict(plan.recipe) | {"loss": folder.settings["loss"]},
                seed=plan.recipe.seed,
                data_sha256=images.manifest_hash,
                metrics=metrics,
            )
            save_bundle(folder.bundle, experts, info)
        finally:
            experts.detach()


@final
class _Source:
    """Pictures as networks see them, kept in memory as bytes."""

    def __init__(self, images: Images, device: torch.device) -> None:
        every = range(len(images))
        self._device = device
        self._noised = images.images(every, 0)
        self._clean = self._noised if len(images.stages) == 1 else images.images(every, -1)

    def noised(self, rows: Tensor) -> Tensor:
        """The guided stage's pictures, to which noise will be added: (B, 3, H, W)."""
        return self._seen(self._noised[rows])

    def clean(self, rows: Tensor) -> Tensor:
        """The last stage's, which the teacher sees: (B, 3, H, W)."""
        return self._seen(self._clean[rows])

    def _seen(self, pixels: Tensor) -> Tensor:
        return pixels.to(self._device).float() / 127.5 - 1.0


@contextlib.contextmanager
def _ready(learner: Teacher, device: torch.device) -> Iterator[torch.device]:
    """The network on the device, in evaluation mode; modes are at the end as they were found."""
    modes = [(module, module.training) for module in learner.model.modules()]
    learner.model.to(device).eval()
    try:
        yield device
    finally:
        for module, training in modes:
            module.training = training


def _check_images(images: Images, plan: TransferPlan) -> None:
    if images.image_shape(0) != plan.stage.image_shape:
        raise AssetError(
            f"the data are of {images.image_shape(0)}, and {plan.backend.origin.component!r} draws "
            f"{plan.stage.image_shape}",
            hint="draw them with `ppap synthesize`",
        )
    if len(images) < 2:
        raise AssetError(f"experts cannot learn from {len(images)} image", hint="draw more")
    if re.fullmatch("[0-9a-f]{64}", images.manifest_hash) is None:
        raise AssetError(
            f"the manifest_hash of the data is {images.manifest_hash!r:.80}",
            hint="it must be a SHA-256, 64 hexadecimal digits",
        )
    if isinstance(images, SyntheticData):
        drawn = images.manifest["settings"]["backend"]["weights_sha256"]
        if drawn != plan.backend_identity.sha256:
            raise AssetError(
                f"the data in {str(images.path)!r} were drawn by a backend with other weights",
                hint="draw them with `ppap synthesize`",
            )
