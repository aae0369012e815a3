"""Drawing images: batch by batch, guided, and looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from ppap_framework.api._found_guide import LoadedGuide
from ppap_framework.api._in_use import frozen, peak_memory, products_in
from ppap_framework.api._pictures import to_uint8
from ppap_framework.api._plan import Plan, plan
from ppap_framework.api._result import Drawn, Result, Seen, Stats
from ppap_framework.api._settings import Precision, SamplerName, Settings
from ppap_framework.components import DiffusionBackend
from ppap_framework.errors import PluginError, PpapError
from ppap_framework.guidance import Conflicts, EnergyGuidance, Guide, Through
from ppap_framework.noise import NoiseLevel
from ppap_framework.sampling import NoiseSource, cascade, trajectory

__all__ = ["Batch", "Progress", "draw", "sample"]


@attrs.frozen(kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        steps: Steps that are done, each counted once for every image.
        of: Steps in all.
    """

    steps: int
    of: int


@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """Images that have just been finished.

    Attributes:
        start: The number of the first.
        guided: The images.
        compared: Those of the same noise drawn otherwise, by the names in `Plan.compared`.
    """

    start: int
    guided: Drawn
    compared: Mapping[str, Drawn]


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
    batch: int = 8,
    device: str = "auto",
    precision: Precision = "float32",
    compare: bool = False,
    prompt: str | Sequence[str] | None = None,
    stage: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Draw images.

    Networks are moved to the device and stay there; otherwise they are left as they were found.
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
        batch: How many images at once; changes an image by rounding errors only.
        device: "auto", or as torch calls it, such as "cpu" or "cuda:1".
        precision: "float32", or "bfloat16" for the networks' products, which is faster where the
            processor can.
        compare: Whether to draw the same noise without guides, too, and where experts guide, also
            with the untouched networks in their place.
        prompt: What the backend is told: a text for all images, or one for each; None for nothing.
        stage: At which of the backend's stages to stop, such as "base"; None for the last.
        progress: Called after every step.

    Raises:
        UsageError: For everything that is wrong with the arguments, at once.
        PpapError: As `ppap_framework.backend`, and where an image comes out not finite.
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
        PpapError: Where an image comes out not finite.
    """
    settings, device = run.settings, run.device
    guidance = EnergyGuidance(
        [loaded.guide for loaded in run.guides],
        settings.through,
        settings.normalize,
        settings.conflicts,
    )
    networks: list[nn.Module] = [stage.network for stage in run.stages]
    networks += [loaded.guide.model for loaded in run.guides]
    steps = _Steps(progress, run)
    batches: list[Batch] = []
    interrupted = False
    seconds = 0.0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with frozen(networks, device), run.attached() as guides:
            start = time.perf_counter()
            steering = attrs.evolve(guidance, guides=guides) if guides else None
            naive = EnergyGuidance(
                [attrs.evolve(guide, experts=None) for guide in guides],
                settings.through,
                settings.normalize,
            )
            others = {name: naive if name == "naive" else None for name in run.compared}
            for first in range(0, settings.num, settings.batch):
                rows = slice(first, min(first + settings.batch, settings.num))
                guided = _draw_batch(run, rows, steering, guides, steps)
                compared = {}
                for name, other in others.items():
                    _part(guides)
                    compared[name] = _draw_batch(run, rows, other, guides, steps)
                batches.append(Batch(start=first, guided=guided, compared=compared))
                seconds = time.perf_counter() - start
                if finished:
                    finished(batches[-1])
    except KeyboardInterrupt:
        interrupted = True
    return Result(
        plan=run,
        guided=Drawn.joined([batch.guided for batch in batches] or [_nothing(run)]),
        compared={
            name: Drawn.joined([batch.compared[name] for batch in batches] or [_nothing(run)])
            for name in run.compared
        },
        stats=Stats(guidance=guidance.statistics, seconds=seconds, peak_memory=peak_memory(device)),
        interrupted=interrupted,
    )


def _part(guides: Sequence[Guide]) -> None:
    """Take experts out of the networks; the next look through them puts one in again."""
    for guide in guides:
        if guide.experts is not None:
            guide.experts.activate(None)


class _Steps:
    """Counts steps for whoever watches."""

    def __init__(self, watch: Callable[[Progress], None] | None, run: Plan) -> None:
        self._watch = watch
        self._done = 0
        self._of = run.settings.num * run.steps * (1 + len(run.compared))

    def take(self, images: int) -> None:
        self._done += images
        if self._watch:
            self._watch(Progress(steps=self._done, of=self._of))


def _draw_batch(
    run: Plan,
    rows: slice,
    guidance: EnergyGuidance | None,
    guides: Sequence[Guide],
    steps: _Steps,
) -> Drawn:
    """Images `rows.start` to `rows.stop` - 1, and what guides see in them, on the CPU."""
    count = rows.stop - rows.start
    noise = NoiseSource(run.settings.seed, rows.start)
    x = noise((count, *run.stage.image_shape)).to(run.device)
    condition = run.backend.encode(run.settings.prompts(rows), count)
    if guidance is not None:
        guidance = guidance.rows(rows.start, rows.stop)
        guidance = attrs.evolve(guidance, evaluations=run.stage.evaluations(condition))
    walk = trajectory(
        run.stage,
        run.process,
        x,
        noise,
        condition=condition,
        step=run.step,
        guidance=guidance,
    )
    with products_in(run.settings.precision, run.device):
        for state in walk:
            x = state.x
            steps.take(count)
        _check_finite(x, rows, guided=guidance is not None)
        drawn = [x.clamp(-1.0, 1.0)]
        drawn += cascade(
            run.later,
            drawn[0],
            condition,
            seed=run.settings.seed,
            start=rows.start,
            watch=steps.take,
        )
    *earlier, images = drawn
    _check_finite(images, rows, guided=False)
    seen = {guide.name: _look(guide.rows(rows.start, rows.stop), images) for guide in guides}
    return Drawn(
        images=images.cpu(),
        seen=seen,
        earlier={
            stage.name: pictures.cpu()
            for stage, pictures in zip(run.stages[:-1], earlier, strict=True)
        },
    )


def _check_finite(images: Tensor, rows: slice, *, guided: bool) -> None:
    broken = (~images.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if broken:
        raise PpapError(
            f"image {rows.start + broken[0]} came out not finite",
            hint="lower the scale, or use more steps" if guided else "the backend is broken",
        )


@torch.no_grad()
def _look(guide: Guide, images: Tensor) -> Seen:
    """What a guide sees in finished images."""
    clean = NoiseLevel(torch.full((len(images),), torch.inf, dtype=torch.float64))
    prediction = guide.at(clean)(images, clean)  # the untouched network, whatever guided
    target = guide.target.value.to(images.device)
    words = tuple(guide.model.describe(prediction)) or ("",) * len(images)
    pictures = guide.model.render(prediction, images)
    figures = {"energy": guide.loss.energy(prediction, target)}
    figures |= guide.loss.metrics(prediction, target)
    wrong = [name for name, figure in figures.items() if figure.shape != (len(images),)]
    if len(words) != len(images) or pictures.shape[:2] != (len(images), 3) or wrong:
        raise PluginError(
            f"guide {guide.name!r} saw {len(images)} images, and gave {len(words)} descriptions, "
            f"pictures of shape {tuple(pictures.shape)} and {wrong or 'all'} figures misshapen"
        )
    return Seen(
        pictures=to_uint8(pictures),
        words=words,
        figures={name: figure.float().cpu() for name, figure in figures.items()},
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
