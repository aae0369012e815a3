"""What every process of a launch does: it draws a set, trains experts, and draws guided images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from experts_toy import Backend
from transfer_toy import Convolutions, Pictures, Square, pictures

import ppap_framework as ppap
from ppap_framework.data import synthesize
from ppap_framework.learn import distillation, load_teacher, transfer
from ppap_framework.processes import Processes
from ppap_framework.runtime import Progress


def main(out: Path, stop: int) -> None:
    data = synthesize("toy", out=out / "set", num=22, steps=2, batch=4, shard=8)

    def watch(progress: Progress) -> None:
        if (progress.task, progress.done) == ("learning", stop):
            sys.exit(3)

    distillation._STATISTICS_BATCHES = 5
    guide = load_teacher(Convolutions(), Square())
    bundle = transfer(
        Backend(),
        guide,
        Pictures({"base": pictures(40)}),
        out=out / "experts",
        num_experts=2,
        iterations=200,
        batch=10,  # which four processes cannot divide evenly
        validate_every=10,
        adapters=[("lora", {"rank": 2, "targets": ("1", "7")}), ("bias", {})],
        keep=False,
        calibrate=False,
        device="cpu",
        progress=watch,
    )
    green = ppap.guide("colour", target="green", scale=40.0)
    result = ppap.sample("toy", [green], num=7, steps=3, batch=2, threads=1)
    processes = Processes.of_launch("cpu")
    if processes.first:
        np.save(out / "images.npy", result.images.numpy())
        forwards = [guide.forwards for guide in result.stats.guidance.guides]
        print(processes.count, len(data), bundle.path.name, forwards)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
