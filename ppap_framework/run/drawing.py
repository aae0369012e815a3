"""Drawing a batch, guided and otherwise, and looking at it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import final

import attrs
import torch
from torch import Tensor

from ppap_framework.components import GuidanceModel
from ppap_framework.diffusion import NoiseSource, cascade, trajectory
from ppap_framework.errors import PluginError, PpapError
from ppap_framework.guidance import EnergyGuidance, GuidanceStatistics, Guide
from ppap_framework.noise import NoiseLevel
from ppap_framework.run.in_use import Placement, products_in
from ppap_framework.run.pictures import to_uint8
from ppap_framework.run.plan import Plan
from ppap_framework.run.result import Drawn, Seen

__all__ = ["Batch", "Drawing", "Progress"]


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


@final
class Drawing:
    """Draws batches of a run and counts what it does, batches that did not come to an end left out.

    Args:
        run: The plan.
        guides: As `Plan.attached` gives them.
        place: Where the networks are.
        watch: Called after every step.
    """

    def __init__(
        self,
        run: Plan,
        guides: Sequence[Guide],
        place: Placement,
        watch: Callable[[Progress], None] | None,
    ) -> None:
        settings = run.settings
        self._run = run
        self._guides = guides
        self._place = place
        self._watch = watch
        self._steps = 0
        self.seconds = 0.0  # of the run's own images, without those they are compared with
        self._guidance = EnergyGuidance(
            guides, settings.through, settings.normalize, settings.conflicts
        )
        self._naive = EnergyGuidance(
            [attrs.evolve(guide, experts=None) for guide in guides],
            settings.through,
            settings.normalize,
        )

    @property
    def statistics(self) -> GuidanceStatistics:
        """What guidance did."""
        return self._guidance.statistics

    def __call__(self, rows: slice) -> Batch:
        """Images `rows.start` to `rows.stop` - 1."""
        guidance, steps = self._guidance.fork(), self._steps
        start = time.perf_counter()
        try:
            guided = self._draw(rows, guidance if self._guides else None)
            seconds = time.perf_counter() - start
            compared = {}
            for name in self._run.compared:
                for guide in self._guides:  # the next look through experts puts one in again
                    if guide.experts is not None:
                        guide.experts.activate(None)
                compared[name] = self._draw(rows, self._naive if name == "naive" else None)
        except BaseException:
            self._steps = steps
            raise
        self._guidance = guidance
        self.seconds += seconds
        return Batch(start=rows.start, guided=guided, compared=compared)

    def _take(self, images: int) -> None:
        run = self._run
        self._steps += images
        if self._watch:
            of = run.settings.num * run.steps * (1 + len(run.compared))
            self._watch(Progress(steps=self._steps, of=of))

    def _draw(self, rows: slice, guidance: EnergyGuidance | None) -> Drawn:
        """Images, and what guides see in them, on the CPU."""
        run, count = self._run, rows.stop - rows.start
        models = [model for guide in self._guides for model in _models(guide)]
        noise = NoiseSource(run.settings.seed, rows.start)
        x = noise((count, *run.stage.image_shape)).to(run.device)
        condition = run.backend.encode(run.settings.prompts(rows), count)
        if guidance is not None:
            guidance = attrs.evolve(
                guidance.rows(rows.start, rows.stop),
                evaluations=run.stage.evaluations(condition),
            )
        self._place.need(run.stage.network, *(models if guidance else ()))
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
                self._take(count)
            _check_finite(x, rows, guided=guidance is not None)
            drawn = [x.clamp(-1.0, 1.0)]
            drawn += cascade(
                run.later,
                drawn[0],
                condition,
                seed=run.settings.seed,
                start=rows.start,
                watch=self._take,
                ready=lambda stage: self._place.need(stage.network),
            )
        *earlier, images = drawn
        _check_finite(images, rows, guided=False)
        self._place.need(*models)
        return Drawn(
            images=images.cpu(),
            seen={g.name: _look(g.rows(rows.start, rows.stop), images) for g in self._guides},
            earlier={
                stage.name: pictures.cpu()
                for stage, pictures in zip(run.stages[:-1], earlier, strict=True)
            },
        )


def _models(guide: Guide) -> list[GuidanceModel]:
    """What looks: the guide's model, and what its experts look through."""
    return [guide.model] if guide.experts is None else [guide.model, guide.experts.student]


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
