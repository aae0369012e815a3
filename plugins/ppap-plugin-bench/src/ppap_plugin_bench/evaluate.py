"""From an experiment to files of figures.

    OUT/experiment.json     what was measured, with what, and in which environment
    OUT/judge.json          how well the judge knows the reference, with its confusion matrix
    OUT/rows/NAME.json      a row: what it chose and why, its figures, its cost
    OUT/rows/NAME.png       some of its images, and what judges of scenes see in them
    OUT/scenes.png          likewise of the scenes that they were aimed at, where there are some
    OUT/differences.json    paired differences from the baselines

    IMAGES/blocks/          images, from which every figure can be computed again
    IMAGES/costs/           measured costs
    IMAGES/resampled/       resampled figures of rows, for paired differences

Images and costs that are there are not made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ppap_framework.errors import UsageError
from ppap_plugin_bench.cost import Cost, kept_costs, measure
from ppap_plugin_bench.examples import EXAMPLES, write_strip
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.files import write_json
from ppap_plugin_bench.measurement import Measurement, Watch
from ppap_plugin_bench.pictures import read_pictures
from ppap_plugin_bench.stand import Stand, Subject

__all__ = ["bench", "evaluate"]


def evaluate(
    experiment: Experiment,
    out: Path,
    images: Path,
    *,
    rows: Sequence[str] | None = None,
    device: str = "auto",
    time_again: bool = False,
    command: Sequence[str] = (),
    watch: Watch = lambda what, done, of: None,
) -> list[Path]:
    """Measure rows of an experiment and write their files.

    Args:
        experiment: What is measured.
        out: Where figures go; those of other rows stay.
        images: Where images go; what is there already is taken.
        rows: Names of rows; None for all.
        device: That draws and judges.
        time_again: Whether to measure time and memory though they are known.
        command: What was typed, for the record.
        watch: Whom to tell how far it is.

    Returns:
        The files of the rows.

    Raises:
        PpapError: For everything that is wrong with the experiment or what it names.
    """
    wanted = experiment.chosen(rows)
    measurement = Measurement.begin(experiment, images, device, watch)
    write_json(out / "experiment.json", measurement.describe())
    write_json(out / "judge.json", measurement.describe_judges())
    if scenes := measurement.sight.scene_lines(EXAMPLES):
        write_strip(out / "scenes.png", scenes)
    records, subjects = {}, {}
    for row in wanted:
        measured = measurement.measure(row)
        records[row.name] = measured.record
        if measured.subject:
            subjects[row.name] = measured.subject
        write_strip(out / "rows" / f"{row.name}.png", measurement.sight.lines(measured.examples))
    watch("cost", 0, 1)
    costs = kept_costs(measurement.stand, subjects, images / "costs", again=time_again)
    watch("cost", 1, 1)
    for name, record in records.items():
        cost = costs[name].record() if name in costs else None
        path = out / "rows" / f"{name}.json"
        write_json(path, {**record, "cost": cost, "command": list(command)})
    write_json(out / "differences.json", measurement.differences())
    return [out / "rows" / f"{name}.json" for name in records]


def bench(
    experiment: Experiment, *, rows: Sequence[str] | None = None, device: str = "auto"
) -> dict[str, Cost]:
    """Measure time and memory of rows, each with the first scale and interval it may choose.

    Args:
        experiment: Whose rows.
        rows: Their names; None for all that are drawn.
        device: That draws.

    Raises:
        PpapError: As `evaluate`; UsageError where no row is drawn.
    """
    stand = Stand.load(experiment, read_pictures(Path(experiment.reference)).names, device)
    subjects = {
        row.name: Subject(row, stand.guides(row), next(iter(row.candidates), None))
        for row in experiment.chosen(rows)
        if row.images is None
    }
    if not subjects:
        raise UsageError("there is no row to draw", hint="name rows that are no pictures")
    return measure(stand, subjects)
