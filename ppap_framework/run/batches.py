"""The batch size: as asked for, or as large as memory allows."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from ppap_framework.errors import PpapError, is_out_of_memory
from ppap_framework.run.plan import Plan

T = TypeVar("T")

_USUAL = 8
_MOST_ON_CPU = 32  # more at once is hardly quicker there
_SHARE = 0.7  # share of free memory to use; libraries allocate the rest
_CGROUP = Path("/sys/fs/cgroup")

_log = logging.getLogger(__name__)


def first_batch(run: Plan) -> int:
    """The batch size to begin with.

    "auto" takes the estimated size, at most 32 on the CPU. If a GPU's free memory is unknown, it
    takes all images, and `in_batches` halves.
    """
    if run.compute.batch != "auto":
        return min(run.compute.batch, run.num)
    most = min(run.num, _MOST_ON_CPU) if run.device.type == "cpu" else run.num
    free = available_memory(run.device)
    if free is None:
        return min(most, _USUAL) if run.device.type == "cpu" else most
    from ppap_framework.run.estimate import estimate  # it imports slow parts of torch

    try:
        taken = estimate(run)
    except PpapError:
        return min(most, _USUAL)
    room = (_SHARE * free - taken.weights) / max(taken.memory, 1)
    return max(1, min(most, int(room)))


def in_batches(num: int, size: int, draw: Callable[[range], T], *, halve: bool) -> Iterator[T]:
    """Draw images 0 to `num` - 1 in batches; a call of `draw` that fails must leave no trace.

    Out of memory, `halve` halves the batch size and retries. Raises a PpapError if memory is short
    for `size` images or, with `halve`, for one.
    """
    start = 0
    while start < num:
        images = range(start, min(start + size, num))
        count = len(images)
        try:
            done = [draw(images)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if count == 1 or not halve:
                raise _too_many(count, error, halve) from error
            done = []
        # The error and its traceback are freed by now, and the memory they held.
        if done:
            start = images.stop
            yield from done
        else:
            size = count // 2
            _log.info("no memory for %d images at once; going on with %d", count, size)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _too_many(count: int, error: Exception, halve: bool) -> PpapError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    smaller = ["a smaller --batch, or --batch auto"] if count > 1 else []
    hints = [*smaller, "--dtype bfloat16", "on a GPU --offload"]
    return PpapError(
        f"out of memory with {count} image{'s' * (count > 1)} at once: {reason}",
        hint=f"what takes less: {', '.join(hints)}",
    )


def available_memory(device: torch.device) -> int | None:
    """Free bytes on a device; None if the system does not report them."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    free = [value for value in (_free_in_all(), _free_in_group()) if value is not None]
    return min(free, default=None)


def _free_in_all() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _free_in_group() -> int | None:
    """Bytes that a container may still allocate; None if there is no limit."""
    try:
        most, now = ((_CGROUP / f"memory.{x}").read_text().strip() for x in ("max", "current"))
        return max(0, int(most) - int(now))
    except (OSError, ValueError):
        return None
