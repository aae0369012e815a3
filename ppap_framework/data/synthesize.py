"""Synthesis: the diffusion model draws unlabelled training images for its experts.

See section 4.3 of PPAP (Go et al. 2023, arXiv 2212.05973). Batches are drawn by one or several
processes, with the same bytes: the number of threads is fixed, and noise depends on (seed, i).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import platform
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import PIL
import torch
from torch.multiprocessing.spawn import ProcessException, start_processes

from ppap_framework import files
from ppap_framework.components import DiffusionBackend
from ppap_framework.data.folder import RUN, SyntheticData, belongs
from ppap_framework.data.shards import Layout, members
from ppap_framework.data.unfinished import SynthesisFolder
from ppap_framework.errors import PpapError, Problems, UsageError
from ppap_framework.experts import backend_sha256
from ppap_framework.pixels import to_uint8
from ppap_framework.processes import Processes
from ppap_framework.run import UNGUIDED, Compute, Plan, Sampling, changed, check, drawing, plan
from ppap_framework.runtime import Progress, Watch

_Count: TypeAlias = Callable[[int, int], None]
"""Called after every step with the number of images left, and the steps made for these, summed."""


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
    """Draw images into a folder, or resume an earlier call with the same settings. Several calls,
    on machines that share the folder, draw a set together.

    The manifest records everything that may change a byte, and resuming requires the same: `num`,
    `shard`, `sampling` and `compute`. An interruption then changes no file but `run.json`.

    Args:
        backend: A backend, or the name of one.
        compute: How images are computed; the default batch size is 64, on one thread per worker.
        shard: Images in a file, a multiple of the batch size.
        workers: Number of processes, each with a copy of the backend; None for the number of cores,
            up to 8. More than 1 import the main module, so a script calls this below
            `if __name__ == "__main__":`.
        overwrite: Whether to remove an earlier set in the folder.
        progress: Called after every step; finished work of earlier calls counts.
        command: The typed command, for the record.
        changes: Fields of `sampling` and `compute`.

    Raises:
        UsageError: If settings are invalid or differ from the folder's, or a set that is being
            written would be overwritten.
        PpapError: If an image is not finite, a worker dies, or the folder cannot be written.
    """
    path = files.expanded(out)
    usual = sampling or UNGUIDED, compute or Compute(batch=64, threads=1)
    sampling, compute = changed(changes, *usual)
    if compute.threads is None:  # torch's own choice depends on the machine
        compute = attrs.evolve(compute, threads=1)
    check_synthesis(path, num, sampling, compute, shard=shard, workers=workers)
    layout = Layout(num, compute.fixed_batch, shard)
    processes = Processes.of_launch(compute.place)
    run = plan(backend, (), num, sampling, compute)
    workers = 1 if processes.count > 1 else workers or _automatic_workers(run)
    settings, total = _identity(run, layout), num * run.steps
    machine = {"platform": platform.platform(), "python": platform.python_version()}
    about = {"device": str(run.device), **machine, "workers": workers, "images": 0}

    def count(left: int, steps: int) -> None:
        """`left` images are to be drawn, for which so many steps have been made."""
        if progress:
            progress(Progress("drawing", total - left * run.steps + steps, total))

    begin = partial(SynthesisFolder.opened, path, settings, layout, overwrite=overwrite)
    folder = processes.once(begin)
    if not folder.complete:
        count(folder.left, 0)
        calls = files.Calls(path / RUN, command, about, {"config": settings})
        folder.label = calls.call["process"]
        with calls.recorded(), contextlib.closing(_draw(run, folder, workers, count)) as drawn:
            for images in drawn:
                calls.call["images"] += images
                calls.write()
    folder.tidy()
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
    problems.attempt(check, num, sampling, compute)
    for name, value in {"shard": shard, "workers": 1 if workers is None else workers}.items():
        if type(value) is not int or value < 1:
            problems.add(f"{name} must be a whole number from 1, not {value}", "leave it out")
    if not problems.errors:
        problems.attempt(Layout, num, compute.fixed_batch, shard)
    with problems.collected():
        files.check_writable(out)
        files.check_content(out, belongs)
    problems.check()


def _draw(
    run: Plan, folder: SynthesisFolder, workers: int, count: _Count
) -> Generator[int, None, None]:
    """Draw until the set is complete, here if `workers` is 1; yield numbers of images since."""
    workers = min(workers, len(folder.missing))
    if workers < 2:
        yield from _drawn(run, folder, count)
        return
    try:
        job = pickle.dumps((run, folder))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        fault = f"the backend cannot be copied to other processes: {error}"
        raise UsageError(fault, hint="use 1 worker") from error
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "job")
        path.write_bytes(job)
        # Processes of torch's, once they have begun, end with this one, silently at Ctrl-C.
        how: dict[str, Any] = {"join": False, "start_method": "spawn"}
        started = start_processes(_work, (path, os.getpid()), workers, **how)  # type: ignore[no-untyped-call]
        try:
            finished, ended = 0, False
            while not ended:
                ended = started.join(0.1)
                count(folder.left, 0)
                images = sum(int(file.read_text() or 0) for file in path.parent.glob("images-*"))
                if images > finished:
                    yield images - finished
                    finished = images
        except ProcessException as error:
            for file in path.parent.glob("error-*"):
                raise pickle.loads(file.read_bytes()) from error
            hint = "use fewer workers, or a smaller batch"
            raise PpapError("a worker process died", hint=hint) from error
        finally:
            for process in started.processes:
                process.terminate()
                process.join()


def _drawn(run: Plan, folder: SynthesisFolder, count: _Count) -> Iterator[int]:
    """Draw claimed batches; yield the number of images of each."""
    before = left = 0

    def watch(progress: Progress) -> None:
        count(left, progress.done - before)

    with drawing(run, watch) as draw, contextlib.closing(folder.claimed()) as batches:
        for batch in batches:
            left = folder.left
            images = folder.layout.batch_images(batch)
            prompts: Sequence[str | None] = run.sampling.prompts(images) or [None] * len(images)
            drawn = {stage: to_uint8(x) for stage, x in draw(images).items()}
            before += len(images) * run.steps
            pictures = [{stage: x[row] for stage, x in drawn.items()} for row in range(len(images))]
            told = zip(images, pictures, prompts, strict=True)
            folder.added(batch, (members(i, x, run.sampling.seed, said) for i, x, said in told))
            yield len(images)


def _work(worker: int, path: Path, parent: int) -> None:
    run, folder = pickle.loads(path.read_bytes())
    images = _drawn(run, folder, lambda left, steps: None) if os.getppid() == parent else ()
    try:
        for finished in itertools.accumulate(images):
            path.with_name(f"images-{worker}").write_text(str(finished))
    except PpapError as error:
        path.with_name(f"error-{worker}").write_bytes(pickle.dumps(error))
        raise


def _automatic_workers(run: Plan) -> int:
    """One per `threads` available cores, at most 8; 1 with a GPU."""
    if run.device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min((cores or 1) // (run.compute.threads or 1), 8))


def _identity(run: Plan, layout: Layout) -> dict[str, Any]:
    """Everything that determines the bytes of a set on one kind of machine, as JSON."""
    origin, sampling, compute = run.backend.origin, run.sampling.record(), run.compute
    named = origin.record()
    backend = {name: named[name] for name in ("component", "checkpoint", "sha256", "options")}
    backend["weights_sha256"] = backend_sha256(run.backend.inner)
    if isinstance(prompts := sampling["prompt"], list):  # shards hold each prompt
        sampling["prompt"] = {"sha256": files.digest(prompts)}
    versions = {"torch": torch.__version__, "pillow": PIL.__version__}
    plugin = {origin.distribution: origin.version} if origin.distribution else {}
    return {
        "backend": backend,
        "stages": run.stages_record(),
        **attrs.asdict(layout),
        **sampling,
        "threads": compute.threads,
        "device": run.device.type,
        "precision": compute.precision,
        "compile": compute.compile,
        "versions": {"ppap-framework": files.core_version(), **versions, **plugin},
    }
