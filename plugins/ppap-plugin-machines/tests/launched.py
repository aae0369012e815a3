"""What every process of a launch does: it draws a set, trains experts, and draws guided images.

The loss of every iteration is logged: in "experts" of two adapters together, in "lora" of one of
them, and in "reversed", by one process only, of two with the images of each batch in reversed
order, whose sums differ by rounding alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from experts_toy import Backend
from transfer_toy import Convolutions, Pictures, Square, pictures

import ppap_framework as ppap
from ppap_framework.data import synthesize
from ppap_framework.experts import BundleFile
from ppap_framework.learn import batches, distillation, load_teacher, transfer
from ppap_framework.processes import Processes
from ppap_framework.runtime import Progress

MODULE = sys.modules["ppap_framework.learn.transfer"]  # the package calls the function so
LORA = ("lora", {"rank": 2, "targets": ("1", "7")})
BIAS: Any = ("bias", {})


def learn(
    out: Path, adapters: Sequence[Any], progress: Callable[[Progress], None] | None = None
) -> BundleFile:
    return transfer(
        Backend(),
        load_teacher(Convolutions(), Square()),
        Pictures({"base": pictures(40)}),
        out=out,
        num_experts=2,
        iterations=200,
        batch=10,  # which four processes cannot divide evenly
        validate_every=10,
        adapters=adapters,
        keep=False,
        calibrate=False,
        device="cpu",
        progress=progress,
    )


def backwards(*arguments: Any, **named: Any) -> batches.Batch:
    """A batch in reversed order."""
    batch = batches.training_batch(*arguments, **named)
    return batches.Batch(*(field.flip(0) for field in batch))


def main(out: Path, stop: int) -> None:
    data = synthesize("toy", out=out / "set", num=22, steps=2, batch=4, shard=8)

    def watch(progress: Progress) -> None:
        if (progress.task, progress.done) == ("learning", stop):
            sys.exit(3)

    distillation._STATISTICS_BATCHES = 5
    MODULE._LOG_EVERY = 1
    MODULE.draw_figures = lambda *_: []  # takes longer than the training
    bundle = learn(out / "experts", [LORA, BIAS], watch)
    learn(out / "lora", [LORA])
    green = ppap.guide("colour", target="green", scale=40.0)
    result = ppap.sample("toy", [green], num=7, steps=3, batch=2, threads=1)
    processes = Processes.of_launch("cpu")
    if processes.count == 1:
        with mock.patch.object(distillation, "training_batch", backwards):
            learn(out / "reversed", [LORA, BIAS])
    if processes.first:
        np.save(out / "images.npy", result.images.numpy())
        forwards = [guide.forwards for guide in result.stats.guidance.guides]
        print(processes.count, len(data), bundle.path.name, forwards)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
