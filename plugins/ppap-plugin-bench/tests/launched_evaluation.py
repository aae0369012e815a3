"""What every process of a launch does: it evaluates an experiment with a guide that has no curve,
and tells how many batches it drew, how many curves it calibrated, and which threads outlive it.
"""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import Any

import attrs

from ppap_framework.learn import calibration
from ppap_plugin_bench import evaluate, images, read_experiment
from ppap_plugin_bench.experiment import Experiment


def experiment(path: Path) -> Experiment:
    """An experiment of which one row multiplies a calibrated curve."""
    found = read_experiment(path)
    curved = attrs.evolve(found.rows[2], name="curved", scales=(0.5, 2.0), default=2.0)
    return attrs.evolve(found, rows=(*found.rows, curved))


def tell_threads(path: Path) -> None:
    path.write_text("\n".join(task.read_text() for task in Path("/proc/self/task").glob("*/comm")))


def main(path: Path, home: Path) -> None:
    # Called after what is registered later.
    atexit.register(tell_threads, home / f"threads-{os.environ['RANK']}")
    done = {"draw_batch": 0, "calibrate": 0}

    def counted(module: Any, name: str) -> None:
        call = getattr(module, name)

        def count(*arguments: Any, **named: Any) -> Any:
            done[name] += 1
            return call(*arguments, **named)

        setattr(module, name, count)

    counted(images, "draw_batch")
    counted(calibration, "calibrate")
    command = ["ppap", "evaluate"]
    evaluate(experiment(path), home / "out", home / "images", device="cpu", command=command)
    told = f"{done['draw_batch']} {done['calibrate']}"
    (home / f"process-{os.environ['RANK']}").write_text(told)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
