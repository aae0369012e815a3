"""Measures an experiment and writes files of figures.

    OUT/experiment.json     the experiment, its components and the environment
    OUT/judge.json          accuracy of the judge on the reference, with its confusion matrix
    OUT/rows/NAME.json      a row: its figures at every scale, its curve, its cost
    OUT/rows/NAME.png       some of its images at its default scale, and what the scene judges see
    OUT/scenes.png          the scenes with ground truth, if any
    OUT/differences.json    paired differences from the baselines, at the default scales and at
                            equal FID and fidelity

    IMAGES/batches/         images, from which every figure can be computed again
    IMAGES/costs/           measured costs
    IMAGES/curves/          calibrated curves of guides without one
    IMAGES/resampled/       figures of each image and resampled ones, for paired differences

Existing images, curves and costs are reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ppap_framework.errors import UsageError
from ppap_framework.files import write_json
from ppap_framework.processes import Processes
from ppap_framework.run import Compute
from ppap_framework.runtime import Progress, Watch
from ppap_plugin_bench.cost import kept_costs, measure_costs
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.measurement import Measurement
from ppap_plugin_bench.pictures import read_pictures
from ppap_plugin_bench.plots import EXAMPLES, write_strip
from ppap_plugin_bench.row import Row
from ppap_plugin_bench.setup import Setup


def evaluate(
    experiment: Experiment,
    out: Path,
    images: Path,
    *,
    rows: Sequence[str] | None = None,
    device: str = "auto",
    time_again: bool = False,
    command: Sequence[str] = (),
    progress: Watch | None = None,
) -> list[Path]:
    """Measure rows of an experiment and write their files.

    Processes of one launch, which share the folder of images, take turns at drawing batches; the
    first one measures them and writes.

    Args:
        out: Folder of figures; those of other rows stay.
        images: Folder of saved images.
        rows: Names of rows; None for all.
        time_again: Measure time and memory even if they are known.
        command: Command line, for the record.

    Returns:
        The files of the rows.

    Raises:
        PpapError: If the experiment or a component is invalid.
    """
    progress = progress or (lambda now: None)
    wanted = experiment.chosen(rows)  # before loading, to report a wrong name early
    processes = Processes.of_launch(Compute(device=device).place)
    measurement = Measurement.begin(experiment, images, device, progress)
    if processes.count > 1:
        measurement.draw_share(wanted, processes)
    return processes.once(partial(_written, measurement, wanted, out, time_again, command))


def _written(
    measurement: Measurement,
    wanted: Sequence[Row],
    out: Path,
    time_again: bool,
    command: Sequence[str],
) -> list[Path]:
    """Measure rows, drawing what is missing, and write all files; those of the rows."""
    progress, images = measurement.progress, measurement.images
    write_json(out / "experiment.json", measurement.describe())
    write_json(out / "judge.json", measurement.describe_judges())
    if scenes := measurement.judges.scene_lines(EXAMPLES):
        write_strip(out / "scenes.png", scenes)
    measured = {row: measurement.measure(row) for row in wanted}
    for row, found in measured.items():
        write_strip(out / "rows" / f"{row.name}.png", measurement.judges.lines(found.examples))
    drawn = [row for row in measured if row.images is None]
    progress(Progress("cost", 0, 1))
    costs = kept_costs(measurement.setup, drawn, images / "costs", again=time_again)
    progress(Progress("cost", 1, 1))
    paths = []
    for row, found in measured.items():
        paths.append(out / "rows" / f"{row.name}.json")
        record = {**found.record, "cost": costs.get(row.name), "command": list(command)}
        write_json(paths[-1], record)
    write_json(out / "differences.json", measurement.differences())
    return paths


def bench(
    experiment: Experiment, *, rows: Sequence[str] | None = None, device: str = "auto"
) -> dict[str, dict[str, Any]]:
    """Measure time and memory of rows, by default all.

    See `cost.measure_costs`.

    Raises:
        PpapError: As for `evaluate`; UsageError if no row is drawn.
    """
    setup = Setup.load(experiment, read_pictures(Path(experiment.reference)).names, device)
    drawn = [row for row in experiment.chosen(rows) if row.images is None]
    if not drawn:
        raise UsageError("there is no row to draw", hint="name rows that are no pictures")
    return measure_costs(setup, drawn)
