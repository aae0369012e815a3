"""Synthesis: the diffusion model draws unlabelled training images for its experts.

See section 4.3 of PPAP (Go et al. 2023, arXiv 2212.05973). Batches are drawn by one or several
processes, with the same bytes: the number of threads is fixed, and the noise of image i depends on
(seed, i) alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import platform
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import numpy as np
import PIL
import torch

from ppap_framework import files
from ppap_framework.components import DiffusionBackend
from ppap_framework.data.folder import RUN, SynthesisFolder, SyntheticData, belongs
from ppap_framework.data.shards import Layout, members
from ppap_framework.errors import PpapError, Problems, UsageError
from ppap_framework.experts import backend_sha256
from ppap_framework.pixels import to_uint8
from ppap_framework.run import UNGUIDED, Compute, Plan, Sampling, changed, check, drawing, plan
from ppap_framework.runtime import Progress, Watch

_Count: TypeAlias = Callable[[int], None]
"""Called after every step with the number of finished steps, summed over images."""


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
        UsageError: If settings are invalid or differ from the folder's, or it is being written to.
        PpapError: If an image is not finite, a worker dies, or the folder cannot be written.
    """
    path = files.expanded(out)
    usual = sampling or UNGUIDED, compute or Compute(batch=64, threads=1)
    sampling, compute = changed(changes, *usual)
    if compute.threads is None:  # torch's own choice depends on the machine
        compute = attrs.evolve(compute, threads=1)
    check_synthesis(path, num, sampling, compute, shard=shard, workers=workers)
    layout = Layout(num, compute.fixed_batch, shard)
    run = plan(backend, (), num, sampling, compute)
    workers = workers or _automatic_workers(run)
    settings, total = _identity(run, layout), num * run.steps
    machine = {"platform": platform.platform(), "python": platform.python_version()}
    about = {"device": str(run.device), **machine, "workers": workers, "images": 0}

    def count(done: int) -> None:
        if progress:
            progress(Progress("drawing", earlier + done, total))

    with SynthesisFolder.opened(path, settings, layout, overwrite=overwrite) as folder:
        if not folder.complete:
            batches = folder.missing()
            earlier = total - run.steps * sum(len(layout.batch_images(b)) for b in batches)
            count(0)
            calls = files.Calls(path / RUN, command, about, {"config": settings})
            drawn = _draw(run, folder, batches, workers, count)
            with calls.recorded(), contextlib.closing(drawn):
                for batch in drawn:
                    folder.added(batch)
                    calls.call["images"] += len(layout.batch_images(batch))
                    calls.write()
            folder.finish()
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
    run: Plan, folder: SynthesisFolder, batches: Sequence[int], workers: int, count: _Count
) -> Generator[int, None, None]:
    """Draw batches in any order, in this process if `workers` is 1; yield each once written."""
    workers = min(workers, len(batches))
    if workers < 2:
        yield from _written(run, folder, batches, count)
        return
    try:
        job = pickle.dumps((run, folder))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        fault = f"the backend cannot be copied to other processes: {error}"
        raise UsageError(fault, hint="use 1 worker") from error
    # In a file: if a worker died at its start, the parent would block on its pipe.
    path = folder.batches / "job"
    with files.replacing(path, hint=files.KEPT) as temporary:
        temporary.write_bytes(job)
    with files.refusals(path, hint=files.KEPT):
        steps = np.memmap(path.with_name("steps"), np.int64, "w+", shape=(workers,))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        with _without_interrupts():  # inherited by workers, which the parent ends
            shares = [batches[worker::workers] for worker in range(workers)]
            running = {pool.submit(_work, path, w, share) for w, share in enumerate(shares)}
        missing, counted = set(batches), 0
        while running:
            ended, running = wait(running, timeout=0.1, return_when=FIRST_EXCEPTION)
            if (done := int(steps.sum())) > counted:
                count(counted := done)
            finished = {batch for batch in missing if folder.batch_path(batch).exists()}
            yield from sorted(finished)
            missing -= finished
            for task in ended:
                task.result()
    except BrokenProcessPool as error:
        hint = "use fewer workers or a smaller batch, and `if __name__ == '__main__':` in a script"
        raise PpapError("a worker process died", hint=hint) from error
    finally:
        for process in list((pool._processes or {}).values()):  # public from Python 3.14 on
            process.terminate()
        pool.shutdown()


def _written(
    run: Plan, folder: SynthesisFolder, batches: Sequence[int], count: _Count
) -> Iterator[int]:
    with drawing(run, lambda progress: count(progress.done)) as draw:
        for batch in batches:
            images = folder.layout.batch_images(batch)
            prompts: Sequence[str | None] = run.sampling.prompts(images) or [None] * len(images)
            drawn = {stage: to_uint8(x) for stage, x in draw(images).items()}
            path = folder.batch_path(batch)
            with files.replacing(path, hint=files.KEPT) as temporary, temporary.open("wb") as file:
                for row, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
                    pictures = {stage: pixels[row] for stage, pixels in drawn.items()}
                    file.write(members(image, pictures, run.sampling.seed, prompt))
            yield batch


def _work(path: Path, worker: int, batches: Sequence[int]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run, folder = pickle.loads(path.read_bytes())
    steps = np.memmap(path.with_name("steps"), np.int64, "r+")
    for _ in _written(run, folder, batches, partial(steps.__setitem__, worker)):
        pass


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """A context that delays Ctrl-C; processes started in it never receive it."""
    with contextlib.ExitStack() as stack:
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        yield


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
