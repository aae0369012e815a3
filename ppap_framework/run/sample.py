"""Images drawn batch by batch, and what guides see in them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ppap_framework.components import DiffusionBackend
from ppap_framework.errors import PluginError, PpapError, is_out_of_memory, one_line
from ppap_framework.guidance import GuidanceStatistics, Guide, Tally
from ppap_framework.noise import NoiseLevel
from ppap_framework.pixels import to_uint8
from ppap_framework.processes import Processes
from ppap_framework.run.drawing import Drawing, drawing, models
from ppap_framework.run.estimate import acting, first_batch
from ppap_framework.run.plan import Kind, Plan, plan
from ppap_framework.run.result import Pictures, Result, Seen, Stats
from ppap_framework.run.settings import Compute, Sampling, changed
from ppap_framework.runtime import Watch, generator, isolated, peak_memory

T = TypeVar("T")

_log = logging.getLogger(__name__)

_FAINT = 1e-4
"""A smaller relative change of the predicted noise is not visible in 8 bits."""


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
        backend: What `ppap_framework.backend` takes.
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
        PpapError: As of `backend`; if an image is not finite, memory is short, or compiling fails.
    """
    sampling, compute = changed(changes, sampling or Sampling(), compute or Compute())
    return draw(plan(backend, guides, num, sampling, compute, compare=compare), progress=progress)


@isolated()
def draw(
    run: Plan,
    *,
    progress: Watch | None = None,
    finished: Callable[[int, dict[Kind, Pictures]], None] | None = None,
    keep: int | None = None,
) -> Result:
    """Draw the images of a plan; errors as of `sample`. `progress` is called after every step,
    `finished` with the number of the first image of every finished batch and its images by kind.
    The result holds the first `keep` images, and the rest of their batch, or all.

    Several processes of a launch take turns at batches; each has the whole result, or nothing after
    Ctrl-C, and `finished` is not called.
    """
    processes = Processes.of_launch(run.device)
    halve, largest = run.compute.batch == "auto", 0
    size = processes.once(lambda: first_batch(run))
    parts: list[tuple[int, dict[Kind, Pictures]]] = []
    drawer, seconds, own_seconds, interrupted, count = None, 0.0, 0.0, False, 0
    told = set[str]()
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    try:
        with drawing(run, progress) as drawer:
            told = _warn_of_silence(run, drawer)
            start, batch = time.perf_counter(), partial(_batch, drawer, run.compared)
            for share in processes.turns(run.num, size):
                for images, drawn, taken in in_batches(share, size, batch, halve=halve):
                    if keep is None or images.start < keep or processes.count > 1:
                        parts.append((images.start, drawn))
                    count += len(images)
                    seconds = time.perf_counter() - start
                    own_seconds, largest = own_seconds + taken, max(largest, len(images))
                    if finished and processes.count == 1:
                        finished(images.start, drawn)
            if processes.count > 1:
                parts = sorted(processes.gathered(parts), key=itemgetter(0))
                drawer.gather(processes)
                count = run.num
                seconds = time.perf_counter() - start
    except KeyboardInterrupt:
        interrupted = True
        if processes.count > 1:  # others have what lies in between
            parts, count = [], 0
    statistics = Tally().read([]) if drawer is None else drawer.statistics
    if largest:
        warn_of_futility(statistics, told)
    kinds: tuple[Kind, ...] = ("guided", *run.compared)
    made = {kind: [drawn[kind] for _, drawn in parts] or [_none(run)] for kind in kinds}
    pictures = {kind: Pictures.joined(batches) for kind, batches in made.items()}
    stats = Stats(statistics, count, seconds, own_seconds, peak_memory(run.device), largest)
    return Result(run, pictures, stats, interrupted)


def in_batches(images: range, size: int, draw: Callable[[range], T], *, halve: bool) -> Iterator[T]:
    """Draw consecutive images in batches; a call of `draw` that fails must leave no trace.

    Out of memory, `halve` halves the batch size and retries; else, or for one image, PpapError.
    """
    while images:
        batch = images[:size]
        count = len(batch)
        try:
            done = draw(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if count == 1 or not halve:
                many = f"{count} images" if count > 1 else "1 image"
                smaller = "a smaller --batch, or --batch auto, " if count > 1 else ""
                hint = f"what takes less: {smaller}--dtype bfloat16, on a GPU --offload"
                reason = f"out of memory with {many} at once: {one_line(error)}"
                raise PpapError(reason, hint=hint) from error
        else:
            images = images[count:]
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
    """Images of every kind, counted if all are finished; seconds of the guided."""
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
    guides = [guide.rows(images.start, images.stop) for guide in drawer.guides]
    seen = {guide.name: _seen(guide, last) for guide in guides}
    return Pictures(last.cpu(), seen, {stage: x.cpu() for stage, x in earlier})


@torch.no_grad()
def _seen(guide: Guide, images: Tensor) -> Seen:
    """What a guide's untouched network sees in finished images."""
    assert guide.target is not None  # a run's guides are aimed
    prediction = guide.read(images, NoiseLevel.clean(len(images)))
    target = guide.target.value.to(images.device)
    words = tuple(guide.model.describe(prediction)) or ("",) * len(images)
    pictures = guide.model.render(prediction, images)
    figures = {"energy": guide.loss.energy(prediction, target)}
    figures |= guide.loss.metrics(prediction, target)
    gave = f"{len(words)} descriptions, pictures of shape {tuple(pictures.shape)}"
    gave += "".join(f", {name} of {tuple(figure.shape)}" for name, figure in figures.items())
    fits = len(words) == len(images) and pictures.shape[:2] == (len(images), 3)
    if not fits or any(figure.shape != (len(images),) for figure in figures.values()):
        raise PluginError(f"guide {guide.name!r} saw {len(images)} images, and gave {gave}")
    on_cpu = {name: figure.float().cpu() for name, figure in figures.items()}
    return Seen(to_uint8(pictures), words, on_cpu)


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


def warn_of_futility(statistics: GuidanceStatistics, told: Collection[str] = ()) -> None:
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
    nothing = Seen(np.empty((0, 1, 1, 3), np.uint8), (), {})
    images = {stage.name: torch.empty(0, *stage.image_shape) for stage in run.stages}
    last = images.pop(run.stages[-1].name)
    return Pictures(last, {guide.name: nothing for guide in run.guides}, images)
