r"""What a network, off the shelf or with experts, understands at which noise level.

An off-the-shelf network has seen no noise, and so its gradients mislead at most noise levels: the
observation that experts are the answer to (Go et al. 2023, arXiv 2212.05973). Here it is measured
for any backend and guide, without labels. With the guide's network f, its energy E with the guide's
target y, and the same network without experts, f_0, as teacher, for every image x_0 and level

    x_t = alpha_t x_0 + sigma_t eps
    disagreement    L(f(x_t), f_0(x_0)), L being the loss's `transfer`
    agreement       whether argmax f(x_t) = argmax f_0(x_0)         (classification)
    confidence      max softmax f(x_t)                              (classification)
    gradient norm   |g_t|,             g_t = dE(f(x_t), y) / dx_t
    cosine          g_t . g_0 / (|g_t| |g_0|),  g_0 = dE(f_0(x_0), y) / dx_0

g_t is what guidance subtracts, unscaled. A fixed target makes one definition do for every task, and
g_0 is what guidance would say if it could see the image: a cosine of 0 is a push that has nothing
to do with what the network sees there.

Of a backend with several stages, noise is added to the first one's image, of which g_0 is taken,
too; the teacher's answer is to the last one's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, final

import attrs
import numpy as np
import torch
from torch import Tensor

from ppap_framework.components import DiffusionBackend, Stage
from ppap_framework.diagnosis.disagreement import (
    as_seen,
    clean_level,
    differences,
    evenly_spaced,
    level_means,
    noised,
)
from ppap_framework.diagnosis.intervals import (
    Floats,
    Interval,
    bootstrap,
    interval,
    share_interval,
)
from ppap_framework.diagnosis.proposal import propose_boundaries, propose_number
from ppap_framework.diagnosis.record import Clean, Diagnosis, Reading
from ppap_framework.errors import PluginError, UsageError
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel
from ppap_framework.run import LoadedGuide, find_device, frozen

__all__ = ["diagnose"]

_FIGURES = ("disagreement", "agreement", "confidence", "gradient_norm", "cosine")


def diagnose(
    backend: DiffusionBackend,
    guide: LoadedGuide | Guide,
    images: Tensor,
    clean: Tensor | None = None,
    *,
    classification: bool = False,
    levels: int = 21,
    seed: int = 0,
    num_experts: int | None = None,
    batch: int = 64,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Measure what a guide understands at each noise level.

    The network is moved to the device and stays there; otherwise it is left as it was found, none
    of its experts merged.

    Args:
        backend: Whose guided stage says which noise levels there are.
        guide: Aimed. Where it has experts, or is to have some ("auto" included), these are measured
            beside the untouched network.
        images: (N, 3, H, W), uint8, of the guided stage; two at least.
        clean: (N, 3, H', W'), uint8: the same pictures as the last stage draws them; None where
            there is one stage.
        classification: Whether the network's answers are logits of classes, (B, K).
        levels: How many base timesteps, evenly spaced from 0 to T - 1.
        seed: Noise of image i at timestep t comes from (seed, i, t) alone.
        num_experts: N, for the proposal of where experts could begin; None for as many as
            `propose_number` says.
        batch: How many images at once; changes figures by rounding errors only.
        device: "auto", or as torch calls it.
        progress: Called with how many looks at an image are done, and of how many.

    Raises:
        UsageError: For arguments that cannot be used.
        AssetError: Where the guide's experts cannot be.
        PluginError: Where the guide or its loss is broken.
    """
    clean = images if clean is None else clean
    stage = backend.stages[0]
    timesteps = evenly_spaced(stage.schedule, levels)
    length = stage.schedule.num_timesteps
    if num_experts is not None:  # refused at once, and not in the end
        propose_boundaries([0], [0.0], length, num_experts)
    with _in_use(backend, guide, find_device(device)) as aimed:
        _check_images(images, clean, stage, aimed, batch)
        looks = _Looks(aimed, stage, tuple(timesteps), classification, seed)
        before, found = looks.take(images, clean, batch, find_device(device), progress)
        owned = aimed.experts.ranges.timesteps(stage.schedule) if aimed.experts else ()
    curve = level_means(found[0, :, 0], timesteps, aimed.loss)
    number = propose_number(timesteps, curve, length) if num_experts is None else num_experts
    draws = bootstrap(len(images))
    untouched, *others = (_readings(values, draws, classification) for values in found)
    return Diagnosis(
        images=len(images),
        seed=seed,
        schedule=stage.schedule.name,
        schedule_length=length,
        timesteps=tuple(timesteps),
        log_snr=tuple(stage.schedule.log_snr[timesteps].tolist()),
        clean=Clean(
            confidence=_mean(before[0], draws, 0.0, 1.0) if classification else None,
            gradient_norm=_mean(before[1], draws, 0.0),
        ),
        untouched=untouched,
        experts=others[0] if others else None,
        starts=tuple(part.start for part in owned[1:]) if others else None,
        proposal=tuple(propose_boundaries(timesteps, curve, length, number)),
    )


@final
@attrs.frozen(eq=False)
class _Teacher:
    """What the untouched network says of B clean images.

    Attributes:
        answer: To the last stage's images.
        gradient: (B, D), float64, of the energy in the guided stage's images.
        norms: (B,), of the gradients.
    """

    answer: Any
    gradient: Tensor
    norms: Tensor


@final
@attrs.frozen(eq=False)
class _Looks:
    """Every look at an image that there is to take, and what each of them gives.

    Attributes:
        guide: With experts or without.
        stage: The guided one.
        timesteps: L of them.
        classification: Whether answers are logits of classes.
        seed: Of the noise.
    """

    guide: Guide
    stage: Stage
    timesteps: tuple[int, ...]
    classification: bool
    seed: int

    def take(
        self,
        images: Tensor,
        clean: Tensor,
        batch: int,
        device: torch.device,
        progress: Callable[[int, int], None] | None,
    ) -> tuple[Tensor, Tensor]:
        """Take them all.

        Returns:
            Confidence and gradient norm of clean images, (2, N); and `_FIGURES` of the untouched
            network and of the experts, if there are any, (1 or 2, L, 5, N). Both are float64, and
            not finite where there is no such figure.
        """
        experts = self.guide.experts
        readers = [attrs.evolve(self.guide, experts=None), *([self.guide] if experts else [])]
        before = torch.empty(2, len(images), dtype=torch.float64)
        found = torch.empty(
            len(readers), len(self.timesteps), len(_FIGURES), len(images), dtype=torch.float64
        )
        done = 0
        for start in range(0, len(images), batch):
            rows = slice(start, min(start + batch, len(images)))
            x0, seen = (as_seen(pixels[rows].to(device)) for pixels in (images, clean))
            if experts:
                experts.activate(None)
            untouched, *_ = mine = [reader.rows(rows.start, rows.stop) for reader in readers]
            teacher = _teach(untouched, x0, seen)
            before[0, rows] = self._classes(teacher.answer, teacher)[1]
            before[1, rows] = teacher.norms
            for reader, values in zip(mine, found, strict=True):
                for k, t in enumerate(self.timesteps):
                    x_t, level = noised(x0, self.stage.schedule, t, seed=self.seed, first=start)
                    values[k, :, rows] = self._read(reader, x_t, level, teacher)
                    done += len(x0)
                    if progress:
                        progress(done, len(readers) * len(self.timesteps) * len(images))
        return before, found

    def _read(self, guide: Guide, x_t: Tensor, level: NoiseLevel, teacher: _Teacher) -> Tensor:
        """`_FIGURES` of B images: (5, B)."""
        with torch.no_grad():
            answer = guide.at(level)(x_t, level)
            apart = differences(guide.loss, answer, teacher.answer, len(x_t))
            agrees, confidence = self._classes(answer, teacher)
        gradient = _flat(guide.gradient(x_t, level))
        norms = torch.linalg.vector_norm(gradient, dim=1)
        lengths = norms * teacher.norms
        cosine = ((gradient * teacher.gradient).sum(1) / lengths).clamp(-1.0, 1.0)
        cosine = cosine.where(lengths.isfinite(), torch.nan)  # 0 / 0 is nan already
        return torch.stack([apart, agrees, confidence, norms, cosine])

    def _classes(self, answer: Any, teacher: _Teacher) -> tuple[Tensor, Tensor]:
        """Whether the likeliest class is the teacher's, 1 or 0, and its probability: each (B,)."""
        if not self.classification:
            nothing = torch.full((len(teacher.norms),), torch.nan, dtype=torch.float64)
            return nothing, nothing
        for logits in (answer, teacher.answer):
            if not isinstance(logits, Tensor) or logits.shape[:-1] != teacher.norms.shape:
                what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise PluginError(
                    f"guide {self.guide.name!r} classifies {len(teacher.norms)} images as {what}",
                    hint=f"logits must be ({len(teacher.norms)}, K), K classes for each image",
                )
        logits = answer.detach().cpu().double()
        agrees = logits.argmax(1) == teacher.answer.cpu().argmax(1)
        confidence = logits.softmax(1).amax(1)
        return (agrees & confidence.isfinite()).double(), confidence


def _teach(guide: Guide, x0: Tensor, seen: Tensor) -> _Teacher:
    level = clean_level(len(x0))
    with torch.no_grad():
        answer = guide.model(seen, level)
    gradient = _flat(guide.gradient(x0, level))
    return _Teacher(answer, gradient, torch.linalg.vector_norm(gradient, dim=1))


def _flat(gradient: Tensor) -> Tensor:
    """(B, C, H, W) to (B, D), float64 on the CPU: squares of small gradients are none in float32,
    and not every device has float64.
    """
    return gradient.flatten(1).cpu().double()


def _readings(values: Tensor, draws: Floats, classification: bool) -> tuple[Reading, ...]:
    """(L, 5, N) as means with intervals."""
    readings = []
    for level in values:
        named = dict(zip(_FIGURES, level, strict=True))
        agrees = named["agreement"].numpy()
        readings.append(
            Reading(
                disagreement=_mean(named["disagreement"], draws),
                agreement=share_interval(agrees, draws @ agrees / len(agrees))
                if classification
                else None,
                confidence=_mean(named["confidence"], draws, 0.0, 1.0) if classification else None,
                gradient_norm=_mean(named["gradient_norm"], draws, 0.0),
                cosine=_mean(named["cosine"], draws, -1.0, 1.0),
                not_finite=int((~named["gradient_norm"].isfinite()).sum()),
                compared=int(named["cosine"].isfinite().sum()),
            )
        )
    return tuple(readings)


def _mean(
    values: Tensor, draws: Floats, least: float = -math.inf, most: float = math.inf
) -> Interval:
    """The mean of (N,) over the finite ones; nan where there are none."""
    finite = values.isfinite()
    if not bool(finite.any()):
        return Interval(math.nan, math.nan, math.nan)
    kept = torch.where(finite, values, 0.0).numpy()
    with np.errstate(invalid="ignore"):  # a resample may have drawn none of them
        resampled = draws @ kept / (draws @ finite.double().numpy())
    return interval(kept.sum() / int(finite.sum()), resampled, least, most)


def _check_images(images: Tensor, clean: Tensor, stage: Stage, guide: Guide, batch: int) -> None:
    for what, pixels, shape in (
        ("images", images, stage.image_shape),
        ("clean images", clean, tuple(clean.shape[1:])),
    ):
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != shape or pixels.ndim != 4:
            raise UsageError(
                f"{what} are {tuple(pixels.shape)}, {pixels.dtype}",
                hint=f"stage {stage.name!r} draws (N, {', '.join(map(str, shape))}), torch.uint8",
            )
    if len(images) < 2 or len(clean) != len(images):
        raise UsageError(
            f"there are {len(images)} images, and {len(clean)} for the teacher",
            hint="give the same number of both, two at least",
        )
    if (rows := guide.target.value.shape[0]) not in (1, len(images)):
        raise UsageError(
            f"guide {guide.name!r} has {rows} targets for {len(images)} images",
            hint="give one target",
        )
    if batch < 1:
        raise UsageError(f"batch must be a whole number from 1, not {batch}", hint="use 64, say")


@contextlib.contextmanager
def _in_use(
    backend: DiffusionBackend, guide: LoadedGuide | Guide, device: torch.device
) -> Iterator[Guide]:
    """The guide with its experts, ready to look; at the end none of them is merged."""
    bare = guide.guide if isinstance(guide, LoadedGuide) else guide
    with contextlib.ExitStack() as stack:
        if isinstance(guide, LoadedGuide):
            chosen = guide.experts.choose(bare.name, bare.model, backend, "noisy")
            stack.enter_context(frozen([bare.model], device))
            if chosen:
                experts = stack.enter_context(chosen.attached(bare.model))
                bare = attrs.evolve(bare, experts=experts)
        else:
            stack.enter_context(frozen([bare.model], device))
        try:
            yield bare
        finally:
            if bare.experts:
                bare.experts.activate(None)
