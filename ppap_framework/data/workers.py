"""Batches drawn by one or several processes, with the same bytes.

The number of threads is fixed, and the noise of image i depends on (seed, i) alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ppap_framework.data.folder import SynthesisFolder
from ppap_framework.data.shards import members
from ppap_framework.errors import PpapError, UsageError
from ppap_framework.files import refusals, replacing
from ppap_framework.pixels import to_uint8
from ppap_framework.resume import KEPT
from ppap_framework.run import Plan, drawing

Count: TypeAlias = Callable[[int], None]
"""Called after every step with the number of finished steps, summed over images."""


def draw_batches(
    run: Plan, folder: SynthesisFolder, batches: Sequence[int], workers: int, count: Count
) -> Generator[int, None, None]:
    """Draw batches in any order, in this process if `workers` is 1; yield each once written.

    Raises:
        UsageError: If there are several workers, and the plan cannot be pickled.
        PpapError: If an image is not finite, a batch cannot be written, or a worker dies.
    """
    workers = min(workers, len(batches))
    if workers < 2:
        yield from _draw(run, folder, batches, count)
        return
    try:
        job = pickle.dumps((run, folder))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"the backend cannot be copied to other processes: {error}", hint="use 1 worker"
        ) from error
    # In a file: if a worker died at its start, the parent would block on its pipe.
    path = folder.batches / "job"
    with replacing(path, hint=KEPT) as temporary:
        temporary.write_bytes(job)
    with refusals(path, hint=KEPT):
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
        raise PpapError(
            "a worker process died",
            hint="memory may be short: use fewer workers or a smaller batch",
        ) from error
    finally:
        for process in list((pool._processes or {}).values()):  # public from Python 3.14 on
            process.terminate()
        pool.shutdown()


def _draw(
    run: Plan, folder: SynthesisFolder, batches: Sequence[int], count: Count
) -> Iterator[int]:
    sampling = run.sampling
    with drawing(run, lambda progress: count(progress.done)) as draw:
        for batch in batches:
            images = folder.layout.batch_images(batch)
            prompts = sampling.prompts(images)
            pictures = {stage: to_uint8(x) for stage, x in draw(images).items()}
            place = folder.batch_path(batch)
            with replacing(place, hint=KEPT) as temporary, temporary.open("wb") as file:
                for row, image in enumerate(images):
                    stages = {stage: pixels[row] for stage, pixels in pictures.items()}
                    prompt = prompts[row] if prompts else None
                    file.write(members(image, stages, sampling.seed, prompt))
            yield batch


def _work(path: Path, worker: int, batches: Sequence[int]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run, folder = pickle.loads(path.read_bytes())
    steps = np.memmap(path.with_name("steps"), np.int64, "r+")

    def count(done: int) -> None:
        steps[worker] = done

    for _ in _draw(run, folder, batches, count):
        pass


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """A context that delays Ctrl-C; processes started in it never receive it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
