"""Synthesis: the diffusion model draws unlabelled training images for its experts.

See section 4.3 of PPAP (Go et al. 2023, arXiv 2212.05973).
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import PIL
import torch

from ppap_framework import resume
from ppap_framework.components import DiffusionBackend
from ppap_framework.data.folder import RUN, SynthesisFolder, belongs
from ppap_framework.data.reader import SyntheticData
from ppap_framework.data.shards import Layout
from ppap_framework.data.workers import draw_batches
from ppap_framework.errors import Problems, UsageError
from ppap_framework.experts import backend_sha256
from ppap_framework.files import digest
from ppap_framework.run import Compute, Plan, Sampling, check, check_writable, plan, settle
from ppap_framework.runtime import Progress, Watch

_MOST_WORKERS = 8


def synthesize(
    backend: DiffusionBackend | str,
    *,
    out: str | os.PathLike[str],
    num: int = 2048,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
    shard: int = 512,
    workers: int | None = 1,
    overwrite: bool = False,
    progress: Watch | None = None,
    command: Sequence[str] | None = None,
    **changes: Any,
) -> SyntheticData:
    """Draw images into a folder, or resume an earlier call with the same settings.

    The manifest records everything that may change a byte, and resuming requires the same: `num`,
    `shard`, `sampling` and `compute`. An interruption then changes no file but `run.json`.

    Args:
        backend: A backend, or the name of one.
        out: The folder.
        num: Number of images.
        sampling: Settings of drawing.
        compute: How images are computed; the default batch size is 64, on one thread per worker.
        shard: Images in a file, a multiple of the batch size.
        workers: Number of processes, each with a copy of the backend; None for the number of cores,
            up to 8. More than 1 requires an importable main module, since they are spawned.
        overwrite: Whether to remove an earlier set in the folder.
        progress: Called after every step; finished work of earlier calls counts.
        command: The typed command, for the record.
        changes: Fields of `sampling` and `compute`.

    Raises:
        UsageError: If settings are invalid or differ from the folder's, or another process writes
            to it.
        PpapError: If an image is not finite, a worker dies, or the folder cannot be written.
        KeyboardInterrupt: On Ctrl-C; finished work is kept.
    """
    path = Path(out).expanduser()
    sampling, compute = settle(sampling, compute, changes, {"batch": 64, "threads": 1})
    if compute.threads is None:  # torch's own choice depends on the machine
        compute = attrs.evolve(compute, threads=1)
    check_synthesis(path, num, sampling, compute, shard=shard, workers=workers)
    layout = Layout(num, compute.fixed_batch, shard)
    run = plan(backend, (), num, sampling, compute)
    workers = workers or _automatic_workers(run)
    settings = _identity(run, layout)
    with SynthesisFolder.opened(path, settings, layout, overwrite=overwrite) as folder:
        if folder.complete:
            folder.tidy()
        else:
            _draw(folder, run, workers, progress, command)
            folder.finish()
    return SyntheticData(path)


def check_synthesis(
    out: Path,
    num: int,
    sampling: Sampling,
    compute: Compute,
    *,
    shard: int = 512,
    workers: int | None = 1,
) -> None:
    """Check arguments without backend, and write nothing; UsageError with all problems."""
    problems = Problems()
    with problems.collected():
        check(num, sampling, compute)
    for name, value in {"shard": shard, "workers": 1 if workers is None else workers}.items():
        if type(value) is not int or value < 1:
            fault = f"{name} must be a whole number from 1, not {value}"
            problems.errors.append(UsageError(fault, hint="leave it out"))
    if not problems.errors:
        with problems.collected():
            Layout(num, compute.fixed_batch, shard)
    with problems.collected():
        check_writable(out)
        resume.check_content(out, belongs)
    problems.check()


def _draw(
    folder: SynthesisFolder,
    run: Plan,
    workers: int,
    progress: Watch | None,
    command: Sequence[str] | None,
) -> None:
    batches = folder.begin()
    layout, total = folder.layout, run.num * run.steps
    earlier = total - run.steps * sum(len(layout.batch_images(batch)) for batch in batches)
    about = {
        "device": str(run.device),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "workers": workers,
        "images": 0,
    }
    calls = resume.Calls(folder.path / RUN, command, about, {"config": folder.settings})

    def count(done: int) -> None:
        if progress:
            progress(Progress("drawing", earlier + done, total))

    count(0)
    finished = draw_batches(run, folder, batches, workers, count)
    with calls.recorded(), contextlib.closing(finished):
        for batch in finished:
            folder.added(batch)
            calls.call["images"] += len(layout.batch_images(batch))
            calls.write()


def _automatic_workers(run: Plan) -> int:
    """One per `threads` available cores, at most 8; 1 with a GPU."""
    if run.device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min((cores or 1) // (run.compute.threads or 1), _MOST_WORKERS))


def _identity(run: Plan, layout: Layout) -> dict[str, Any]:
    """Everything that determines the bytes of a set on one kind of machine, as JSON."""
    origin, sampling, compute = run.backend.origin, run.sampling.record(), run.compute
    named = origin.record()
    backend = {name: named[name] for name in ("component", "checkpoint", "sha256", "options")}
    if isinstance(prompts := sampling["prompt"], list):  # shards hold each prompt
        sampling["prompt"] = {"sha256": digest(prompts)}
    versions = {"torch": torch.__version__, "pillow": PIL.__version__}
    if origin.distribution:
        versions[origin.distribution] = origin.version
    return {
        "backend": {**backend, "weights_sha256": backend_sha256(run.backend.inner)},
        "stages": run.stages_record(),
        **attrs.asdict(layout),
        **sampling,
        "threads": compute.threads,
        "device": run.device.type,
        "precision": compute.precision,
        "compile": compute.compile,
        "versions": {"ppap-framework": resume.core_version(), **versions},
    }
