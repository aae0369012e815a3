"""Images drawn batch by batch, and what guides see in them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import attrs
import numpy as np
import torch
from torch import Tensor

from ppap_framework.components import DiffusionBackend
from ppap_framework.errors import PluginError
from ppap_framework.guidance import GuidanceStatistics, Guide, Tally
from ppap_framework.noise import NoiseLevel
from ppap_framework.pixels import to_uint8
from ppap_framework.run.batches import first_batch, in_batches
from ppap_framework.run.drawing import Drawing, drawing, models
from ppap_framework.run.plan import Kind, Plan, plan
from ppap_framework.run.result import Pictures, Result, Seen, Stats
from ppap_framework.run.settings import Compute, Sampling, settle
from ppap_framework.runtime import Watch, isolated, peak_memory

_log = logging.getLogger(__name__)

_FAINT = 1e-4
"""A smaller relative change of the predicted noise is not visible in 8 bits."""


@final
@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """Finished images of a run.

    Attributes:
        start: Number of the first image.
        pictures: Images by kind: "guided", and those of `Plan.compared`.
        seconds: Seconds for the guided images.
    """

    start: int
    pictures: dict[Kind, Pictures]
    seconds: float


def sample(
    backend: DiffusionBackend | str,
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
        backend: A backend, or its name; see `ppap_framework.backend`.
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
    finished: Callable[[Batch], None] | None = None,
) -> Result:
    """Draw the images of a plan; errors as of `sample`.

    `progress` is called after every step, `finished` with every finished batch.
    """
    batches: list[Batch] = []
    drawer, seconds, interrupted = None, 0.0, False
    size, halve = first_batch(run), run.compute.batch == "auto"
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    try:
        with drawing(run, progress) as drawer:
            start = time.perf_counter()
            for batch in in_batches(run.num, size, partial(_batch, drawer, run), halve=halve):
                batches.append(batch)
                seconds = time.perf_counter() - start
                if finished:
                    finished(batch)
    except KeyboardInterrupt:
        interrupted = True
    statistics = Tally().read([]) if drawer is None else drawer.statistics
    if batches:
        _warn_of_futility(statistics, len(run.process))
    return Result(
        plan=run,
        pictures={
            kind: Pictures.joined([batch.pictures[kind] for batch in batches] or [_nothing(run)])
            for kind in ("guided", *run.compared)
        },
        stats=Stats(
            guidance=statistics,
            seconds=seconds,
            own_seconds=sum(batch.seconds for batch in batches),
            peak_memory=peak_memory(run.device),
            largest_batch=max((len(b.pictures["guided"].images) for b in batches), default=0),
        ),
        interrupted=interrupted,
    )


def _batch(drawer: Drawing, run: Plan, images: range) -> Batch:
    """One batch of every kind, counted only if all are finished."""
    with drawer.atomic():
        start = time.perf_counter()
        pictures: dict[Kind, Pictures] = {"guided": _pictures(drawer, images, "guided")}
        seconds = time.perf_counter() - start
        for kind in run.compared:
            pictures[kind] = _pictures(drawer, images, kind)
    return Batch(start=images.start, pictures=pictures, seconds=seconds)


def _pictures(drawer: Drawing, images: range, kind: Kind) -> Pictures:
    """Images, and what guides see in them, on the CPU."""
    *earlier, (_, last) = drawer(images, kind).items()
    drawer.place(*(model for guide in drawer.guides for model in models(guide)))
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


def _warn_of_futility(statistics: GuidanceStatistics, steps: int) -> None:
    """Log which guides did not steer, or not at every step, and why."""
    for guide in statistics.guides:
        norms = [norm for norm in guide.gradient_norms if norm is not None]
        if not guide.times:
            _log.warning("guide %r acted at none of the %d steps", guide.name, steps)
        elif guide.skipped:
            share = guide.skipped / guide.forwards
            _log.warning(
                "guide %r: %d gradients (%.0f %%) were not finite and left out",
                guide.name,
                guide.skipped,
                100 * share,
            )
        elif not any(norms):
            _log.warning(
                "guide %r: its gradient was zero at all %d steps", guide.name, len(guide.times)
            )
        elif max(guide.pulls, default=0.0) < _FAINT:
            _log.warning(
                "guide %r: its pull was too weak to change the images: at most %.1g of the "
                "predicted noise",
                guide.name,
                max(guide.pulls),
            )
    if lost := statistics.denoiser_skipped:
        _log.warning("%d gradients through the denoiser were not finite and left out", lost)


def _nothing(run: Plan) -> Pictures:
    return Pictures(
        images=torch.empty(0, *run.stages[-1].image_shape),
        earlier={stage.name: torch.empty(0, *stage.image_shape) for stage in run.stages[:-1]},
        seen={
            guide.name: Seen(pictures=np.empty((0, 1, 1, 3), np.uint8), words=(), figures={})
            for guide in run.guides
        },
    )
