"""Knowledge transfer: from a clean image's teacher to experts that read its noised version."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from ppap_framework.api import LoadedBackend, Origin, Problems, check_writable, find_device
from ppap_framework.api import backend as load_backend
from ppap_framework.components import DiffusionBackend, Stage
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.experts import (
    SUFFIX,
    AdapterConfig,
    BundleFile,
    ExpertSet,
    Identity,
    NoiseRanges,
    backend_sha256,
    describe,
    guide_sha256,
    installed_adapter,
    keep_bundle,
    save_bundle,
)
from ppap_framework.transfer.distillation import Course, Distillation, Report
from ppap_framework.transfer.images import Images, LabelledImages
from ppap_framework.transfer.loss_plot import plot_losses
from ppap_framework.transfer.recipe import Recipe
from ppap_framework.transfer.synthesis_data import SyntheticData
from ppap_framework.transfer.teacher import Answers, Teacher, teacher
from ppap_framework.transfer.transfer_folder import TransferFolder, check_transfer_folder

__all__ = ["DEFAULT_ADAPTERS", "Adapters", "Learned", "check_transfer", "transfer"]

Adapters = Sequence["tuple[str, Mapping[str, Any]]"]
"""Adapters by name, with options."""

DEFAULT_ADAPTERS: Adapters = (("lora", {"rank": 16, "alpha": 8.0}), ("bias", {}))

_LOG_EVERY = 10
_SAVE_SECONDS = 10.0


@final
@attrs.frozen(kw_only=True)
class Learned:
    """How far a training is.

    Attributes:
        iterations: That are done.
        of: All of them.
        loss: Of the last one.
    """

    iterations: int
    of: int
    loss: float


def transfer(
    backend: DiffusionBackend | str,
    guide: Teacher | nn.Module | str,
    data: Images | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    loss: str | None = None,
    num_experts: int = 5,
    boundaries: Sequence[int] | None = None,
    adapters: Adapters = DEFAULT_ADAPTERS,
    recipe: Recipe | None = None,
    name: str | None = None,
    device: str = "auto",
    keep: bool = True,
    overwrite: bool = False,
    progress: Callable[[Learned], None] | None = None,
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
        num_experts: N, that share the schedule's timesteps equally.
        boundaries: The base timesteps at which experts 1 to N - 1 begin instead.
        adapters: What an expert is made of.
        recipe: How it is trained.
        name: Of the file, NAME.experts.safetensors.
        device: "auto", or as torch calls it.
        keep: Whether to copy the file to where `experts="auto"` finds it.
        overwrite: Whether to remove a training with other settings.
        progress: Called after every iteration.
        command: What was typed, for the record.

    Raises:
        UsageError: For arguments that cannot be used.
        AssetError: Where data are missing, damaged, or of another backend.
        PpapError: Where the loss is no longer finite, or the folder cannot be written.
        KeyboardInterrupt: On Ctrl-C; the same call goes on.
    """
    path, recipe = Path(out).expanduser(), recipe or Recipe()
    check_transfer(path, recipe, num_experts=num_experts, name=name)
    loaded = load_backend(backend)
    learner = guide if isinstance(guide, Teacher) else teacher(guide, loss=loss)
    images = data if not isinstance(data, str | os.PathLike) else SyntheticData(data)
    stage = loaded.stages[0]
    _check_images(images, loaded, stage)
    schedule = stage.schedule
    ranges = (
        NoiseRanges.equal(schedule, num_experts)
        if boundaries is None
        else NoiseRanges.from_timesteps(schedule, boundaries)
    )
    phases = recipe.phases(ranges.timesteps(schedule))
    configs = [AdapterConfig(name=kind, options=dict(options)) for kind, options in adapters]
    made = {config.name: installed_adapter(config) for config in configs}
    identities = (
        _identity(learner.origin, guide_sha256(learner.model)),
        _identity(loaded.origin, backend_sha256(loaded.inner)),
    )
    settings = _settings(identities, learner, images, ranges, configs, recipe, find_device(device))
    label = name or f"{_plain(loaded.origin)}-{_plain(learner.origin)}-{len(ranges)}"
    file = path / f"{label}{SUFFIX}"
    with TransferFolder.opened(path, settings, overwrite=overwrite) as folder:
        if (folder.record or {}).get("status") != "complete" or not file.exists():
            with _ready(learner, find_device(device)) as where:
                source = _Source(images, where)
                answers = (
                    images.labels.to(where).__getitem__
                    if isinstance(images, LabelledImages)
                    else Answers(learner.model, source.clean, len(images), recipe.batch).of
                )
                experts = ExpertSet(learner.model, ranges, made)
                try:
                    course = Course(
                        experts=experts,
                        loss=learner.loss,
                        schedule=schedule,
                        images=source.noised,
                        answers=answers,
                        supervised=isinstance(images, LabelledImages),
                        count=len(images),
                        shape=stage.image_shape,
                        recipe=recipe,
                        phases=phases,
                    )
                    lesson = _Session(folder, course, progress, command)
                    metrics = lesson.learn()
                    info = describe(
                        experts,
                        stage,
                        guide=identities[0],
                        backend=identities[1],
                        adapters=configs,
                        recipe=settings["recipe"] | {"loss": settings["loss"]},
                        seed=recipe.seed,
                        data_sha256=images.manifest_hash,
                        metrics=metrics,
                    )
                    save_bundle(file, experts, info)
                finally:
                    experts.detach()
            with contextlib.suppress(ModuleNotFoundError):
                plot_losses(folder.lines(), phases, recipe, path / "loss")
            lesson.complete(file)
        folder.tidy()
    return BundleFile(label, keep_bundle(file) if keep else file)


def check_transfer(out: Path, recipe: Recipe, *, num_experts: int, name: str | None = None) -> None:
    """Accept what can be right, whatever backend, guide and data.

    Raises:
        UsageError: With everything that cannot.
    """
    problems = Problems()
    with problems.collected():
        recipe.check()
    if isinstance(num_experts, bool) or not isinstance(num_experts, int) or num_experts < 1:
        problems.errors.append(
            UsageError(
                f"num_experts must be a whole number from 1, not {num_experts}", hint="use 5"
            )
        )
    if name is not None and (not name or Path(name).name != name or name.startswith(".")):
        problems.errors.append(
            UsageError(f"a bundle cannot be called {name!r}", hint="give a plain file name")
        )
    with problems.collected():
        check_writable(out)
        check_transfer_folder(out)
    problems.check()


@final
class _Source:
    """Pictures as networks see them, kept in memory as bytes."""

    def __init__(self, images: Images, device: torch.device) -> None:
        every = range(len(images))
        self._device = device
        self._noised = images.images(every, 0)
        same = images.image_shape(0) == images.image_shape(-1) and _stages(images) == 1
        self._clean = self._noised if same else images.images(every, -1)

    def noised(self, rows: Tensor) -> Tensor:
        """The guided stage's pictures, to which noise will be added: (B, 3, H, W)."""
        return self._seen(self._noised[rows])

    def clean(self, rows: Tensor) -> Tensor:
        """The last stage's, which the teacher sees: (B, 3, H, W)."""
        return self._seen(self._clean[rows])

    def _seen(self, pixels: Tensor) -> Tensor:
        return pixels.to(self._device).float() / 127.5 - 1.0


@final
class _Session:
    """One call, and the record that it leaves beside those of earlier calls."""

    def __init__(
        self,
        folder: TransferFolder,
        course: Course,
        progress: Callable[[Learned], None] | None,
        command: Sequence[str] | None,
    ) -> None:
        self._folder, self._course, self._progress = folder, course, progress
        self._distillation = Distillation(course)
        self._start = self._saved = time.perf_counter()
        record = folder.record or {}
        calls = record.get("calls")
        self._earlier = [call for call in calls if isinstance(call, dict)] if calls else []
        self._call: dict[str, Any] = {
            "command": None if command is None else list(command),
            "threads": torch.get_num_threads(),
            "iterations": 0,
            "seconds": 0.0,
        }

    def learn(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            What is known of the experts, held out.
        """
        folder, distillation = self._folder, self._distillation
        state = folder.load()
        if state is not None:
            distillation.load_state_dict(state)
        phases = self._course.phases
        total = sum(phase.iterations for phase in phases)
        self._write("running")
        try:
            for report in distillation.run():
                self._note(report, total)
        except BaseException as error:
            with contextlib.suppress(PpapError):  # the first error is the one to tell
                if isinstance(error, KeyboardInterrupt):
                    self._write("interrupted")
                else:
                    self._write("failed")
            raise
        folder.save(distillation.state_dict())
        return {"held_out_images": self._course.held_out, "experts": distillation.scores}

    def complete(self, file: Path) -> None:
        """The file is there."""
        self._write("complete", file.name)

    def _note(self, report: Report, total: int) -> None:
        phase = self._course.phases[report.phase]
        line = {"phase": phase.name, "iteration": report.step}
        if report.held_out:
            self._folder.log({**line, "held_out": report.loss})
        else:
            self._call["iterations"] += 1
            if report.step % _LOG_EVERY == 0 or report.step == phase.iterations:
                self._folder.log({**line, "loss": report.loss})
            if self._progress:
                done = self._distillation.done
                self._progress(Learned(iterations=done, of=total, loss=report.loss))
            # A look at held-out images belongs to its iteration: no state lies between the two.
            looks = report.step % self._course.recipe.validate_every == 0
            if looks or report.step == phase.iterations:
                return
        if report.held_out or time.perf_counter() - self._saved >= _SAVE_SECONDS:
            self._folder.save(self._distillation.state_dict())
            self._write("running")
            self._saved = time.perf_counter()

    def _write(self, status: str, file: str | None = None) -> None:
        self._call["seconds"] = round(time.perf_counter() - self._start, 3)
        calls = [*self._earlier, self._call]
        self._folder.write_record(
            {
                "status": status,
                "seconds": round(sum(float(call.get("seconds", 0)) for call in calls), 3),
                "bundle": file,
                "calls": calls,
            }
        )


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


def _check_images(images: Images, backend: LoadedBackend, stage: Stage) -> None:
    if images.image_shape(0) != stage.image_shape:
        raise AssetError(
            f"the data are of {images.image_shape(0)}, and {backend.origin.component!r} draws "
            f"{stage.image_shape}",
            hint="draw them with `ppap synthesize`",
        )
    if len(images) < 2:
        raise AssetError("experts cannot learn from one image", hint="draw more")
    if isinstance(images, SyntheticData):
        drawn = images.manifest["settings"]["backend"]["weights_sha256"]
        if drawn != backend_sha256(backend.inner):
            raise AssetError(
                f"the data in {str(images.path)!r} were drawn by a backend with other weights",
                hint="draw them with `ppap synthesize`",
            )


def _settings(
    identities: tuple[Identity, Identity],
    learner: Teacher,
    images: Images,
    ranges: NoiseRanges,
    adapters: Sequence[AdapterConfig],
    recipe: Recipe,
    device: torch.device,
) -> dict[str, Any]:
    """Everything that determines the experts on one kind of machine, as JSON."""
    guide, backend = (attrs.asdict(identity) for identity in identities)
    return {
        "guide": guide,
        "backend": backend,
        "data": images.manifest_hash,
        "supervised": isinstance(images, LabelledImages),
        "boundaries": list(ranges.boundaries),
        "adapters": [attrs.asdict(adapter) for adapter in adapters],
        "loss": {"name": learner.loss_name, "options": learner.loss_options},
        "recipe": attrs.asdict(recipe),
        "device": device.type,
        "versions": {"torch": torch.__version__, "ppap-framework": _version()},
    }


def _identity(origin: Origin, sha256: str) -> Identity:
    return Identity(component=origin.component, checkpoint=origin.checkpoint, sha256=sha256)


def _plain(origin: Origin) -> str:
    return origin.component.rpartition(":")[2].lower()


def _stages(images: Images) -> int:
    return len(images.stages) if isinstance(images, SyntheticData) else 1


def _version() -> str:
    try:
        return metadata.version("ppap-framework")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
