"""Images of a plan, saved batch by batch; an interrupted process loses at most one batch.

Batches lie in a folder named after everything that determines an image (weights, guides, scales,
sampling and so on) except the number of images; a batch's file is named after its images and their
prompts. Rows with the same images share them. The names do not depend on code versions.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_framework.files import digest, replacing, write_json
from ppap_framework.guidance import Guide
from ppap_framework.origin import Origin
from ppap_framework.pixels import to_uint8
from ppap_framework.run import Drawing, Plan, drawing
from ppap_framework.runtime import Progress, Watch
from ppap_plugin_bench.results import FORMAT
from ppap_plugin_diagnose.diagnosis import provenance

Kept: TypeAlias = tuple[NDArray[np.uint8], Counter[str]]
"""Images, (N, H, W, 3), and counts of gradients "skipped" and images "broken" as not finite.

Pixels that are not finite are grey.
"""


def draw_images(
    plan: Plan, root: Path, task: str = "drawing", progress: Watch | None = None
) -> Kept:
    """All images of a plan; saved batches are read, the others drawn.

    Args:
        root: Folder of saved images.
        task: Name of the task for progress.

    Raises:
        PpapError: If a batch cannot be written, or a bundle changed since it was chosen.
    """
    images: list[NDArray[np.uint8]] = []
    lost: Counter[str] = Counter()
    for pixels, counts in batches(plan, root, lambda: True, task, progress):
        images.append(pixels)
        lost.update(counts)
    return np.concatenate(images), lost


def batches(
    plan: Plan, root: Path, wanted: Callable[[], bool], task: str, progress: Watch | None = None
) -> Iterator[Kept]:
    """Batches of a plan, saved; arguments and errors as of `draw_images`.

    Args:
        wanted: Called once for each batch; the others are neither read nor drawn.
    """
    identified, size = identity(plan), plan.compute.fixed_batch
    folder = root / digest(identified)[:16]
    write_json(folder / "settings.json", identified)
    draw: Drawing | None = None
    with contextlib.ExitStack() as stack:
        for start in range(0, plan.num, size):
            if not wanted():
                continue
            numbers = range(start, min(start + size, plan.num))
            prompts = plan.sampling.prompts(numbers)
            suffix = "" if prompts is None else f"-{digest(prompts)[:16]}"
            path = folder / f"{start:06d}-{numbers.stop:06d}{suffix}.npz"
            batch = _read(path, len(numbers))
            if batch is None:
                draw = draw or stack.enter_context(drawing(plan))
                batch = draw_batch(draw, numbers)
                _write(path, batch)
            yield batch
            if progress:
                progress(Progress(task, numbers.stop, plan.num))


def draw_batch(draw: Drawing, numbers: range) -> Kept:
    """Draw images of these numbers."""
    before = _lost(draw)
    *_, images = draw(numbers, check=False).values()
    pixels, after = to_uint8(images), _lost(draw)
    return pixels, Counter({name: after[name] - before[name] for name in after})


def identity(plan: Plan) -> dict[str, Any]:
    """Everything that determines an image of a plan except its prompt, as JSON."""
    return {
        "format": FORMAT,
        "backend": weights(plan.backend.origin),
        "guides": [_guide(guide) for guide in plan.guides],
        "sampling": attrs.evolve(plan.sampling, prompt=None).record(),
        "batch": plan.compute.batch,
        "precision": plan.compute.precision,
        "device": plan.device.type,
    }


def _guide(guide: Guide) -> dict[str, Any]:
    assert guide.origin is not None  # it was requested by name
    experts, curve = guide.chosen, guide.curve
    return {
        **weights(guide.origin),
        "loss": guide.loss_name,
        "targets": guide.target_source,
        "scale": guide.scale,
        "interval": list(guide.interval),
        "experts": None if experts is None else experts.sha256,
        "curve": curve and attrs.asdict(curve),
    }


def weights(origin: Origin) -> dict[str, Any]:
    """Identity of the weights of a component, without its version."""
    left_out = ("distribution", "version")
    return {name: value for name, value in provenance(origin).items() if name not in left_out}


def _lost(draw: Drawing) -> dict[str, int]:
    done = draw.statistics
    skipped = done.denoiser_skipped + sum(guide.skipped for guide in done.guides)
    return {"skipped": skipped, "broken": draw.broken}


def _write(path: Path, batch: Kept) -> None:
    images, lost = batch
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, images=images, skipped=lost["skipped"], broken=lost["broken"])


def _read(path: Path, number: int) -> Kept | None:
    """A saved batch; None if it is missing or damaged."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            images = file["images"]
            lost = Counter({name: int(file[name]) for name in ("skipped", "broken")})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (images, lost) if len(images) == number else None
