"""Drawing blocks, in this process or in several: the bytes are the same.

A block is one batch, drawn on a fixed number of threads, and noise of image i comes from (seed, i):
who draws it, when, and beside whom decides on nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, final

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppap_framework.data.files import replacing
from ppap_framework.data.layout import Layout
from ppap_framework.data.shards import members
from ppap_framework.diffusion import NoiseSource, cascade, trajectory
from ppap_framework.errors import PpapError, UsageError
from ppap_framework.run import Plan, frozen

__all__ = ["Job", "drawn"]


@final
@attrs.frozen(kw_only=True, eq=False)
class Job:
    """All that a worker needs to know.

    Attributes:
        run: What to draw with.
        layout: Which images a block has.
        threads: On the CPU.
        folder: Where blocks go, each under its number.
    """

    run: Plan
    layout: Layout
    threads: int
    folder: Path

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """A context in which blocks can be drawn: threads set, networks on the device and
        evaluating.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with frozen([stage.network for stage in self.run.backend.stages], self.run.device):
                yield
        finally:
            torch.set_num_threads(threads)

    def draw(self, block: int, watch: Callable[[int], None]) -> None:
        """Draw a block and put it in its place.

        Args:
            block: Its number.
            watch: Called after every step with the number of images that took it.

        Raises:
            PpapError: Where an image comes out not finite, or the block cannot be written.
        """
        images = self.layout.block_images(block)
        seed = self.run.settings.seed
        prompts = self.run.settings.prompts(slice(images.start, images.stop))
        pictures = _draw(self.run, images, prompts, watch)
        with replacing(self.folder / f"{block:05d}") as file:
            for row, image in enumerate(images):
                stages = {stage: pixels[row] for stage, pixels in pictures.items()}
                file.write(members(image, stages, seed, prompts[row] if prompts else None))


def drawn(
    job: Job, blocks: Sequence[int], workers: int, watch: Callable[[int], None]
) -> Generator[int, None, None]:
    """Draw blocks, in any order; their numbers, as they are finished.

    Args:
        job: What to draw.
        blocks: Which.
        workers: In how many processes; 1 is this one.
        watch: As for `Job.draw`.

    Raises:
        UsageError: Where there are several workers, and the backend cannot be copied to them.
        PpapError: As `Job.draw`, and where a worker dies.
    """
    workers = min(workers, len(blocks))
    if workers > 1:
        yield from _drawn_by_several(job, blocks, workers, watch)
    elif workers:
        with job.ready():
            for block in blocks:
                job.draw(block, watch)
                yield block


def _draw(
    run: Plan, images: range, prompts: Sequence[str] | None, watch: Callable[[int], None]
) -> dict[str, NDArray[np.uint8]]:
    """One batch: what each stage drew, (B, H, W, 3)."""
    count = len(images)
    noise = NoiseSource(run.settings.seed, images.start)
    x = noise((count, *run.stage.image_shape)).to(run.device)
    condition = run.backend.encode(prompts, count)
    for state in trajectory(run.stage, run.process, x, noise, condition=condition, step=run.step):
        x = state.x
        watch(count)
    seed = run.settings.seed
    drawn = [x.clamp(-1.0, 1.0)]
    drawn += cascade(run.later, drawn[0], condition, seed=seed, start=images.start, watch=watch)
    for pictures in drawn:
        broken = (~pictures.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if broken:
            raise PpapError(
                f"image {images[broken[0]]} came out not finite", hint="the backend is broken"
            )
    return {
        stage.name: _pixels(pictures) for stage, pictures in zip(run.stages, drawn, strict=True)
    }


def _pixels(x: Tensor) -> NDArray[np.uint8]:
    levels = ((x.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    pixels: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection

    def death(self) -> PpapError:
        self.process.join()
        code = self.process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return PpapError(
            f"a worker {how}", hint="memory may be short: use fewer workers or smaller blocks"
        )


def _drawn_by_several(
    job: Job, blocks: Sequence[int], workers: int, watch: Callable[[int], None]
) -> Generator[int, None, None]:
    try:
        payload = pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"the backend cannot be copied to other processes: {error}", hint="use 1 worker"
        ) from error
    waiting = list(reversed(blocks))
    crew: list[_Worker] = []
    try:
        for _ in range(workers):
            crew.append(_start(payload))
            crew[-1].pipe.send(waiting.pop())
        pipes = {worker.pipe: worker for worker in crew}
        while pipes:
            for pipe in wait(list(pipes)):
                worker = pipes[pipe]  # type: ignore[index]  # only pipes are waited for
                try:
                    kind, value = worker.pipe.recv()
                except (EOFError, ConnectionError) as error:
                    raise worker.death() from error
                if kind == "step":
                    watch(value)
                    continue
                if kind == "error":
                    raise value
                if waiting:
                    worker.pipe.send(waiting.pop())
                else:
                    del pipes[worker.pipe]
                yield value
    finally:
        for worker in crew:
            worker.process.terminate()
        for worker in crew:
            worker.process.join()
            worker.pipe.close()


def _start(payload: bytes) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, payload), daemon=True)
    with theirs, _deaf():
        process.start()
    return _Worker(process, ours)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C waits. A child that is started meanwhile never hears of it: its parent ends it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, payload: bytes) -> None:
    """The life of a worker: draw the blocks whose numbers come through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        job: Job = pickle.loads(payload)
        with job.ready():
            while True:
                block = pipe.recv()
                job.draw(block, lambda images: pipe.send(("step", images)))
                pipe.send(("done", block))
    except (EOFError, ConnectionError):  # the parent is gone
        return
    except PpapError as error:
        pipe.send(("error", error))
    except Exception:
        pipe.send(("error", RuntimeError(f"in a worker:\n{traceback.format_exc()}")))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
