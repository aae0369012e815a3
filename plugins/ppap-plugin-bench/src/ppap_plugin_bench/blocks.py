"""Images of a run, drawn in blocks that are kept, so that a kill costs one block at most.

Blocks lie in a folder named by everything that determines an image: weights, guide, scale, seed and
so on, but not how many there are; a block is named by its images, and by what the backend was told.
Rows that ask for the same images share them, and images of other settings are never taken for
these. Versions of the code are not part of the name.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_framework.diagnosis.environment import provenance
from ppap_framework.diffusion import NoiseSource, cascade, sample
from ppap_framework.guidance import EnergyGuidance, Guide
from ppap_framework.run import ChosenExperts, Origin, Plan, products_in
from ppap_plugin_bench.files import FORMAT, digest, replacing, write_json
from ppap_plugin_bench.pixels import to_pixels

__all__ = ["Counts", "draw", "draw_block", "identity"]

Drawn: TypeAlias = tuple[NDArray[np.uint8], "Counts"]


@attrs.frozen(kw_only=True)
class Counts:
    """What drawing took and what went wrong, steps counted singly.

    Attributes:
        denoiser_forwards: Images that the denoiser's network looked at.
        denoiser_backwards: Images that it was differentiated for.
        guide_forwards: Images that guides looked at.
        guide_backwards: Images that they were differentiated for.
        skipped: Gradients that were not finite and therefore left out.
        broken: Images that were not finite; such pixels are kept as grey.
    """

    denoiser_forwards: int = 0
    denoiser_backwards: int = 0
    guide_forwards: int = 0
    guide_backwards: int = 0
    skipped: int = 0
    broken: int = 0

    def __add__(self, other: Counts) -> Counts:
        mine, others = attrs.asdict(self), attrs.asdict(other)
        return Counts(**{name: mine[name] + others[name] for name in mine})


def draw(run: Plan, root: Path, watch: Callable[[int, int], None] | None = None) -> Drawn:
    """All images of a run, (N, H, W, 3), those that are kept read and the others drawn.

    Args:
        run: The plan; its guides aim at one target for each image.
        root: Where blocks of all runs are kept.
        watch: Called with how many images are there, and of how many.

    Raises:
        PpapError: Where a block cannot be written, or experts are not those that were chosen.
    """
    identified, settings = identity(run), run.settings
    folder = root / digest(identified)
    write_json(folder / "settings.json", identified)
    blocks = []
    size = settings.block
    guides: Sequence[Guide] | None = None
    with contextlib.ExitStack() as stack:
        for start in range(0, run.settings.num, size):
            stop = min(start + size, run.settings.num)
            prompts = settings.prompts(slice(start, stop))
            said = "" if prompts is None else f"-{digest(prompts)}"
            path = folder / f"{start:06d}-{stop:06d}{said}.npz"
            block = _read(path, stop - start)
            if block is None:
                if guides is None:
                    guides = stack.enter_context(run.attached())
                block = draw_block(run, guides, start, stop)
                _write(path, block)
            blocks.append(block)
            if watch:
                watch(stop, run.settings.num)
    images, counts = zip(*blocks, strict=True)
    return np.concatenate(images), sum(counts, Counts())


def draw_block(run: Plan, guides: Sequence[Guide], start: int, stop: int) -> Drawn:
    """Images `start` to `stop` - 1 of a run, (B, H, W, 3), on the CPU; `guides` are those that
    `Plan.attached` gives.
    """
    settings, count = run.settings, stop - start
    noise = NoiseSource(settings.seed, start)
    x = noise((count, *run.stage.image_shape)).to(run.device)
    condition = run.backend.encode(settings.prompts(slice(start, stop)), count)
    guidance = EnergyGuidance(
        [guide.rows(start, stop) for guide in guides],
        settings.through,
        settings.normalize,
        evaluations=run.stage.evaluations(condition),
    )
    with products_in(settings.precision, run.device):
        x = sample(
            run.stage,
            run.process,
            x,
            noise,
            condition=condition,
            step=run.step,
            guidance=guidance,
        )
        if run.later:
            base = x.clamp(-1.0, 1.0)
            *_, x = cascade(run.later, base, condition, seed=settings.seed, start=start)
    done = guidance.statistics
    return to_pixels(x), Counts(
        denoiser_forwards=done.denoiser_forwards
        + count * sum(len(k.process) * k.stage.evaluations(condition) for k in run.later),
        denoiser_backwards=done.denoiser_backwards,
        guide_forwards=sum(guide.forwards for guide in done.guides),
        guide_backwards=sum(guide.backwards for guide in done.guides),
        skipped=done.denoiser_skipped + sum(guide.skipped for guide in done.guides),
        broken=int((~x.isfinite()).flatten(1).any(1).sum()),
    )


def identity(run: Plan) -> dict[str, Any]:
    """Everything that determines an image of a run, as JSON."""
    settings = run.settings
    return {
        "format": FORMAT,
        "backend": _weights(run.backend.origin),
        "guides": [
            {
                **_weights(loaded.origin),
                "loss": loaded.loss_name,
                "targets": loaded.target_source,
                "scale": loaded.guide.scale,
                "interval": list(loaded.guide.interval),
                **({"experts": _experts(loaded.guide, experts)} if experts else {}),
            }
            for loaded, experts in zip(run.guides, run.experts, strict=True)
        ],
        "through": settings.through if run.guides else None,
        "normalize": settings.normalize,
        "sampler": settings.sampler,
        "eta": settings.eta,
        "timesteps": list(run.process.timesteps),
        **({"later": run.record()["stages"][1:]} if run.later else {}),
        "seed": settings.seed,
        "block": settings.block,
        "device": run.device.type,
        "precision": settings.precision,
    }


def _write(path: Path, block: Drawn) -> None:
    images, counts = block
    numbers = np.array(attrs.astuple(counts))
    replacing(path, lambda partial: np.savez(partial, images=images, counts=numbers))


def _read(path: Path, number: int) -> Drawn | None:
    """A kept block; None where there is none that is whole."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            images, counts = file["images"], file["counts"].tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    names = [field.name for field in attrs.fields(Counts)]
    if len(images) != number or len(counts) != len(names):
        return None
    return images, Counts(**dict(zip(names, counts, strict=True)))


def _experts(guide: Guide, experts: ChosenExperts) -> dict[str, Any]:
    factors = None if guide.scales is None else list(guide.scales.values)
    return {"sha256": experts.sha256, "scales": factors}


def _weights(origin: Origin) -> dict[str, Any]:
    """What a component computes with, whichever version of it is installed."""
    whole = provenance(origin)
    names = ("component", "checkpoint", "sha256", "weights_sha256", "options")
    return {name: whole[name] for name in names if name in whole}
