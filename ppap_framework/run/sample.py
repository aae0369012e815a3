"""Images drawn batch by batch, what guides see in them, and what they cost."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ppap_framework.components import DiffusionBackend
from ppap_framework.errors import PluginError, PpapError, first_line, is_out_of_memory
from ppap_framework.guidance import GuidanceStatistics, Guide, Tally
from ppap_framework.noise import NoiseLevel
from ppap_framework.pixels import to_pil, to_uint8
from ppap_framework.run.drawing import Drawing, drawing, models
from ppap_framework.run.estimate import acting, first_batch
from ppap_framework.run.plan import Kind, Plan, plan
from ppap_framework.run.settings import Compute, Sampling, settle
from ppap_framework.runtime import Watch, generator, isolated, peak_memory

T = TypeVar("T")

_log = logging.getLogger(__name__)

_FAINT = 1e-4
"""A smaller relative change of the predicted noise is not visible in 8 bits."""


@final
@attrs.frozen(kw_only=True, eq=False)
class Seen:
    """What one guide sees in finished images.

    Attributes:
        pictures: (B, h, w, 3), uint8, drawn by the guide for people.
        words: B descriptions, each possibly empty.
        figures: Metrics by name, each (B,): "energy" (distance from the target) and the loss's own.
    """

    pictures: NDArray[np.uint8]
    words: tuple[str, ...]
    figures: Mapping[str, Tensor]


@final
@attrs.frozen(kw_only=True, eq=False)
class Pictures:
    """Images, and what each guide sees in them.

    Attributes:
        images: (B, 3, H, W), float32 in [-1, 1], on the CPU, from the last stage.
        seen: What each guide sees in them, by its name.
        earlier: Images of earlier stages, by name: (B, 3, H, W) of other sizes.
    """

    images: Tensor
    seen: Mapping[str, Seen]
    earlier: Mapping[str, Tensor] = attrs.field(factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Pictures]) -> Pictures:
        """The batches, at least one, joined in order."""
        sights = {name: [part.seen[name] for part in parts] for name in parts[0].seen}
        return cls(
            images=torch.cat([part.images for part in parts]),
            seen={
                name: Seen(
                    pictures=np.concatenate([seen.pictures for seen in each]),
                    words=tuple(word for seen in each for word in seen.words),
                    figures={
                        figure: torch.cat([seen.figures[figure] for seen in each])
                        for figure in each[0].figures
                    },
                )
                for name, each in sights.items()
            },
            earlier={
                stage: torch.cat([part.earlier[stage] for part in parts])
                for stage in parts[0].earlier
            },
        )


def _shapes(pictures: Mapping[Kind, Pictures]) -> str:
    return ", ".join(f"{kind} {tuple(p.images.shape)}" for kind, p in pictures.items())


@final
@attrs.frozen(kw_only=True)
class Stats:
    """The cost of a run.

    Attributes:
        guidance: Guidance statistics.
        seconds: From the first noise to the last look, of the finished images.
        own_seconds: The same without the compared images.
        peak_memory: Bytes, of the process or of its GPU; None if the system does not report it.
        largest_batch: Size of the largest batch.
    """

    guidance: GuidanceStatistics = attrs.field(repr=False)
    seconds: float
    own_seconds: float
    peak_memory: int | None
    largest_batch: int


@final
@attrs.frozen(kw_only=True, eq=False)
class Result:
    """Finished images and how they were made.

    Attributes:
        plan: The plan.
        pictures: Finished images by kind: "guided", and those of `Plan.compared`.
        stats: The cost of the run.
        interrupted: Whether Ctrl-C ended it early.
    """

    plan: Plan = attrs.field(repr=False)
    pictures: Mapping[Kind, Pictures] = attrs.field(repr=_shapes)
    stats: Stats
    interrupted: bool

    @property
    def guided(self) -> Pictures:
        """The images of the run, unguided if it has no guides."""
        return self.pictures["guided"]

    @property
    def unguided(self) -> Pictures | None:
        """Images of the same noise without guides, if asked for."""
        return self.pictures.get("unguided")

    @property
    def naive(self) -> Pictures | None:
        """Images of the same noise guided without experts, if asked for."""
        return self.pictures.get("naive")

    @property
    def compared(self) -> dict[str, Pictures]:
        """The compared images, by kind."""
        return {kind: p for kind, p in self.pictures.items() if kind != "guided"}

    @property
    def seen(self) -> Mapping[str, Seen]:
        """What each guide sees in the images, by the guide's name."""
        return self.guided.seen

    @property
    def images(self) -> Tensor:
        """(B, 3, H, W), float32 in [-1, 1], on the CPU; as `images_11`."""
        return self.guided.images

    images_11 = images

    @property
    def images_01(self) -> Tensor:
        """(B, 3, H, W), float32 in [0, 1], on the CPU."""
        return (self.images + 1.0) / 2.0

    def to_uint8(self) -> NDArray[np.uint8]:
        """(B, H, W, 3), 0 to 255."""
        return to_uint8(self.images)

    def to_pil(self) -> list[Image.Image]:
        """B RGB pictures."""
        return to_pil(self.images)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path | None:
        """Write a `RunFolder`, made if missing; the grid's path, or None without images.

        `overwrite` replaces an earlier run. UsageError if the folder holds anything else, or cannot
        be written.
        """
        from ppap_framework.run.folder import RunFolder  # it writes results, so it imports them

        return RunFolder(self.plan, Path(folder), overwrite=overwrite).finish(self)


def sample(
    backend: DiffusionBackend | str | object,
    guides: Sequence[Guide] = (),
    *,
    num: int = 4,
    compare: bool = False,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
    progress: Watch | None = None,
    **changes: Any,
) -> Result:
    """Draw images.

    Networks stay on the device, unless they are offloaded, and are otherwise left as they were.
    Ctrl-C ends the run early: the result holds the finished batches.

    Args:
        backend: A backend, its name, or a loaded model that a plugin wraps; see
            `ppap_framework.backend`.
        guides: Guides of different names; none for unguided images.
        num: Number of images.
        compare: Draw the same noise without guides, too, and if experts guide, also by the
            untouched networks.
        sampling: What determines the images; None for the defaults.
        compute: How they are computed; None for the defaults.
        progress: Called after every step.
        **changes: Fields of `Sampling` and `Compute`, such as `steps=50, seed=1, device="cpu"`.

    Raises:
        UsageError: If arguments are invalid; it lists all of them.
        PpapError: As `ppap_framework.backend`; if an image is not finite, memory is short, or
            networks cannot be compiled.
    """
    sampling, compute = settle(sampling, compute, changes)
    settled = plan(backend, guides, num, sampling, compute, compare=compare)
    return draw(settled, progress=progress)


@isolated()
def draw(
    run: Plan,
    *,
    progress: Watch | None = None,
    finished: Callable[[int, dict[Kind, Pictures]], None] | None = None,
) -> Result:
    """Draw the images of a plan; errors as of `sample`.

    `progress` is called after every step, `finished` with the number of the first image of every
    finished batch and its images by kind.
    """
    size, halve, largest = first_batch(run), run.compute.batch == "auto", 0
    batches: dict[Kind, list[Pictures]] = {kind: [] for kind in ("guided", *run.compared)}
    drawer, seconds, own_seconds, interrupted = None, 0.0, 0.0, False
    told = set[str]()
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    try:
        with drawing(run, progress) as drawer:
            told = _warn_of_silence(run, drawer)
            start = time.perf_counter()
            batch = partial(_batch, drawer, run.compared)
            for images, pictures, taken in in_batches(run.num, size, batch, halve=halve):
                for kind, drawn in pictures.items():
                    batches[kind].append(drawn)
                seconds = time.perf_counter() - start
                own_seconds, largest = own_seconds + taken, max(largest, len(images))
                if finished:
                    finished(images.start, pictures)
    except KeyboardInterrupt:
        interrupted = True
    statistics = Tally().read([]) if drawer is None else drawer.statistics
    if largest:
        _warn_of_futility(statistics, told)
    return Result(
        plan=run,
        pictures={kind: Pictures.joined(parts or [_none(run)]) for kind, parts in batches.items()},
        stats=Stats(
            guidance=statistics,
            seconds=seconds,
            own_seconds=own_seconds,
            peak_memory=peak_memory(run.device),
            largest_batch=largest,
        ),
        interrupted=interrupted,
    )


def in_batches(num: int, size: int, draw: Callable[[range], T], *, halve: bool) -> Iterator[T]:
    """Draw images 0 to `num` - 1 in batches; a call of `draw` that fails must leave no trace.

    Out of memory, `halve` halves the batch size and retries. Raises a PpapError if memory is short
    for `size` images or, with `halve`, for one.
    """
    start = 0
    while start < num:
        images = range(start, min(start + size, num))
        count = len(images)
        try:
            done = draw(images)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if count == 1 or not halve:
                many = f"{count} images" if count > 1 else "1 image"
                smaller = "a smaller --batch, or --batch auto, " if count > 1 else ""
                hint = f"what takes less: {smaller}--dtype bfloat16, on a GPU --offload"
                reason = f"out of memory with {many} at once: {first_line(error)}"
                raise PpapError(reason, hint=hint) from error
        else:
            start = images.stop
            yield done
            continue
        # The error and its traceback are freed by now, and the memory they held.
        size = count // 2
        _log.info("no memory for %d images at once; going on with %d", count, size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _batch(
    drawer: Drawing, compared: Sequence[Kind], images: range
) -> tuple[range, dict[Kind, Pictures], float]:
    """One batch of every kind, counted only if all are finished, and the seconds of the guided."""
    with drawer.atomic():
        start = time.perf_counter()
        pictures: dict[Kind, Pictures] = {"guided": _pictures(drawer, images, "guided")}
        seconds = time.perf_counter() - start
        pictures |= {kind: _pictures(drawer, images, kind) for kind in compared}
    return images, pictures, seconds


def _pictures(drawer: Drawing, images: range, kind: Kind) -> Pictures:
    """Images, and what guides see in them, on the CPU."""
    *earlier, (_, last) = drawer(images, kind).items()
    drawer.place(*models(drawer.guides))
    return Pictures(
        images=last.cpu(),
        seen={
            guide.name: _seen(guide.rows(images.start, images.stop), last)
            for guide in drawer.guides
        },
        earlier={stage: x.cpu() for stage, x in earlier},
    )


@torch.no_grad()
def _seen(guide: Guide, images: Tensor) -> Seen:
    """What a guide's untouched network sees in finished images."""
    assert guide.target is not None  # a run's guides are aimed
    clean = NoiseLevel.clean(len(images))
    prediction = guide.read(images, clean)
    target = guide.target.value.to(images.device)
    words = tuple(guide.model.describe(prediction)) or ("",) * len(images)
    pictures = guide.model.render(prediction, images)
    figures = {"energy": guide.loss.energy(prediction, target)}
    figures |= guide.loss.metrics(prediction, target)
    wrong = [name for name, figure in figures.items() if figure.shape != (len(images),)]
    if len(words) != len(images) or pictures.shape[:2] != (len(images), 3) or wrong:
        raise PluginError(
            f"guide {guide.name!r} saw {len(images)} images, and gave {len(words)} descriptions, "
            f"pictures of shape {tuple(pictures.shape)}"
            + (f" and misshapen figures {', '.join(wrong)}" if wrong else "")
        )
    return Seen(
        pictures=to_uint8(pictures),
        words=words,
        figures={name: figure.float().cpu() for name, figure in figures.items()},
    )


@torch.no_grad()
def _warn_of_silence(run: Plan, drawer: Drawing) -> set[str]:
    """Log which guides cannot steer, and why, before anything is drawn; return their names."""
    steps, told = acting(run), dict[str, str]()
    black = torch.full((1, *run.stage.image_shape), -1.0)
    noise = torch.randn(black.shape, generator=generator("silence"))
    for guide in drawer.guides:
        if not steps[guide.name]:
            told[guide.name] = f" acts at none of the {len(run.process)} steps"
        elif not run.compute.compile:  # which would compile for a single image
            drawer.place(*models([guide]))
            one, clean = guide.rows(0, 1), NoiseLevel.clean(1)
            seen = {one.energy(x.to(run.device), clean).item() for x in (black, -black, noise)}
            if len(seen) == 1:
                said = f"its energy is {seen.pop():.4g} for black, white and noise alike"
                told[guide.name] = f" cannot steer: {said}"
    for name, reason in told.items():
        _log.warning("guide %r%s", name, reason)
    return set(told)


def _warn_of_futility(statistics: GuidanceStatistics, told: Collection[str]) -> None:
    """Log which other guides did not steer, or not at every step, and why."""
    for guide in statistics.guides:
        if guide.name in told or not guide.times:
            continue
        strongest, reason = max(guide.pulls, default=0.0), ""
        if guide.skipped:
            lost = f"{guide.skipped} gradients ({100 * guide.skipped / guide.forwards:.0f} %)"
            reason = f": {lost} were not finite and left out"
        elif not any(guide.gradient_norms):
            reason = f": its gradient was zero at all {len(guide.times)} steps"
        elif strongest < _FAINT:
            share = f"at most {strongest:.1g} of the predicted noise"
            reason = f": its pull was too weak to change the images: {share}"
        if reason:
            _log.warning("guide %r%s", guide.name, reason)
    if behind := statistics.denoiser_skipped:
        _log.warning("%d gradients through the denoiser were not finite and left out", behind)


def _none(run: Plan) -> Pictures:
    nothing = Seen(pictures=np.empty((0, 1, 1, 3), np.uint8), words=(), figures={})
    return Pictures(
        images=torch.empty(0, *run.stages[-1].image_shape),
        earlier={stage.name: torch.empty(0, *stage.image_shape) for stage in run.stages[:-1]},
        seen={guide.name: nothing for guide in run.guides},
    )
