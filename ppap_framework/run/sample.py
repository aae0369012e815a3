"""Drawing images, batch by batch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from ppap_framework.components import DiffusionBackend
from ppap_framework.guidance import Conflicts, Guide, Through
from ppap_framework.run.batches import first_batch, in_batches
from ppap_framework.run.compiled import compiled
from ppap_framework.run.drawing import Batch, Drawing, Progress
from ppap_framework.run.found_guide import LoadedGuide
from ppap_framework.run.in_use import Placement, frozen, peak_memory
from ppap_framework.run.plan import Plan, plan
from ppap_framework.run.result import Drawn, Result, Seen, Stats
from ppap_framework.run.settings import Precision, SamplerName, Settings

__all__ = ["draw", "sample"]


def sample(
    backend: DiffusionBackend | str,
    guides: Sequence[LoadedGuide | Guide] = (),
    *,
    num: int = 4,
    steps: int = 25,
    seed: int = 0,
    sampler: SamplerName = "ddim",
    eta: float = 0.0,
    through: Through = "noisy",
    normalize: bool = False,
    conflicts: Conflicts = "keep",
    batch: int | Literal["auto"] = 8,
    device: str = "auto",
    precision: Precision = "float32",
    compare: bool = False,
    prompt: str | Sequence[str] | None = None,
    stage: str | None = None,
    offload: bool = False,
    compile: bool = False,  # noqa: A002  # as torch calls it
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Draw images.

    Networks are moved to the device and stay there, unless they are offloaded; otherwise they are
    left as they were found.
    Ctrl-C ends the run early: the result holds the batches that were finished.

    Args:
        backend: What `ppap_framework.backend` gives or takes.
        guides: What `ppap_framework.guide` gives, of different names; none for no guidance.
        num: How many images.
        steps: From noise to image, from 1 to the base length of the schedule.
        seed: Noise of image i comes from (seed, i) alone.
        sampler: "ddim", guided through the score, or "ddpm", guided by a mean shift.
        eta: Of DDIM, in [0, 1]: 0 is deterministic.
        through: Where guides look: at the "noisy" image, or at the predicted "clean" one.
        normalize: Whether each guide's gradient is brought to a root mean square of 1 first.
        conflicts: Whether to "keep" or "remove" what of a guide's pull points against another's.
        batch: How many images at once, or "auto" for as many as memory has room for; changes an
            image by rounding errors only.
        device: "auto", or as torch calls it, such as "cpu" or "cuda:1".
        precision: "float32", or "bfloat16" for the networks' products, which is faster where the
            processor can.
        compare: Whether to draw the same noise without guides, too, and where experts guide, also
            with the untouched networks in their place.
        prompt: What the backend is told: a text for all images, or one for each; None for nothing.
        stage: At which of the backend's stages to stop, such as "base"; None for the last.
        offload: Whether networks leave the device for the CPU while others work, which takes less
            of its memory, and more time.
        compile: Whether torch compiles the networks first, which takes a while and changes images
            by rounding errors only.
        progress: Called after every step.

    Raises:
        UsageError: For everything that is wrong with the arguments, at once.
        PpapError: As `ppap_framework.backend`, where an image comes out not finite, where memory
            is not enough, and where networks cannot be compiled.
    """
    settings = Settings(
        num=num,
        steps=steps,
        seed=seed,
        sampler=sampler,
        eta=eta,
        through=through,
        normalize=normalize,
        conflicts=conflicts,
        batch=batch,
        device=device,
        precision=precision,
        compare=compare,
        prompt=prompt,
        stage=stage,
        offload=offload,
        compile=compile,
    )
    return draw(plan(backend, guides, settings), progress=progress)


def draw(
    run: Plan,
    *,
    progress: Callable[[Progress], None] | None = None,
    finished: Callable[[Batch], None] | None = None,
) -> Result:
    """Do what is planned.

    Args:
        run: The plan.
        progress: Called after every step.
        finished: Called with every batch that is finished.

    Raises:
        PpapError: Where an image comes out not finite, memory is not enough, or networks cannot be
            compiled.
    """
    settings, device = run.settings, run.device
    networks: list[nn.Module] = [stage.network for stage in run.stages]
    networks += [loaded.guide.model for loaded in run.guides]
    place = Placement(device, offload=settings.offload)
    size = first_batch(run)
    batches: list[Batch] = []
    interrupted = False
    seconds = 0.0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    drawing = Drawing(run, (), place, progress)

    def watch(step: Progress) -> None:
        stepped()
        if progress:
            progress(step)

    try:
        with (
            frozen(networks, device, move=not settings.offload),
            run.attached() as guides,
            compiled(run) if settings.compile else contextlib.nullcontext(lambda: None) as stepped,
            place.emptied(),
        ):
            drawing = Drawing(run, guides, place, watch)
            start = time.perf_counter()
            for batch in in_batches(settings.num, size, drawing, halve=settings.batch == "auto"):
                batches.append(batch)
                seconds = time.perf_counter() - start
                if finished:
                    finished(batch)
    except KeyboardInterrupt:
        interrupted = True
    return Result(
        plan=run,
        guided=Drawn.joined([batch.guided for batch in batches] or [_nothing(run)]),
        compared={
            name: Drawn.joined([batch.compared[name] for batch in batches] or [_nothing(run)])
            for name in run.compared
        },
        stats=Stats(
            guidance=drawing.statistics,
            seconds=seconds,
            own_seconds=drawing.seconds,
            peak_memory=peak_memory(device),
            most_at_once=max((len(batch.guided.images) for batch in batches), default=0),
        ),
        interrupted=interrupted,
    )


def _nothing(run: Plan) -> Drawn:
    return Drawn(
        images=torch.empty(0, *run.stages[-1].image_shape),
        earlier={stage.name: torch.empty(0, *stage.image_shape) for stage in run.stages[:-1]},
        seen={
            loaded.guide.name: Seen(pictures=np.empty((0, 1, 1, 3), np.uint8), words=(), figures={})
            for loaded in run.guides
        },
    )
