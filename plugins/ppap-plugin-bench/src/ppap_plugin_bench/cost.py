"""Cost of rows: seconds and memory per image, and seconds of training.

Seconds are measured for all rows in turn, in several rounds, so that other load on the machine
affects every row. Memory is the peak of a separate process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import attrs
import torch

from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.experts import BundleFile
from ppap_framework.files import digest, read_json, write_json
from ppap_framework.guidance import Guide
from ppap_framework.run import Drawing, Plan, counts_of, drawing
from ppap_framework.runtime import peak_memory
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.images import identity
from ppap_plugin_bench.row import Row
from ppap_plugin_bench.setup import Setup
from ppap_plugin_diagnose.intervals import rounded


def kept_costs(
    setup: Setup, rows: Sequence[Row], folder: Path, *, again: bool = False
) -> dict[str, dict[str, Any]]:
    """As `measure_costs`, but read saved costs from the folder unless `again`."""
    timing = attrs.asdict(setup.experiment.timing) | {"threads": torch.get_num_threads()}
    paths = {}
    for row in rows:
        prompt = [] if row.prompt is None else [row.prompt]
        depends_on = [identity(_plan(setup, row)), timing, *prompt]
        paths[row] = folder / f"{row.name}-{digest(depends_on)[:16]}.json"
    missing = [row for row in rows if again or not paths[row].is_file()]
    costs = measure_costs(setup, missing) if missing else {}
    for row in missing:
        write_json(paths[row], costs[row.name])
    return {row.name: read_json(path) for row, path in paths.items()}


def measure_costs(setup: Setup, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Measure rows together, whose scales change no cost.

    Returns:
        JSON by row name: `seconds` per image, the median of `rounds`; `steps`; `images_at_once`;
        `peak_memory` in bytes of the process, or on a GPU, or None; `threads` on the CPU; `device`;
        `parameters` of the denoiser and of each guide; and `in_turn_with`, the rows that were
        measured together.
    """
    plans = {row: _plan(setup, row) for row in rows}
    seconds = seconds_in_turn(list(plans.values()), setup.experiment.timing.rounds)
    costs = {}
    for (row, plan), taken in zip(plans.items(), seconds, strict=True):
        counts = counts_of(plan)
        costs[row.name] = {
            "seconds": rounded(statistics.median(taken)),
            "rounds": [rounded(one) for one in taken],
            "steps": plan.steps,
            "images_at_once": plan.num,
            "peak_memory": peak_memory_of(setup, row),
            "threads": torch.get_num_threads(),
            "device": str(plan.device),
            "parameters": {"denoiser": counts.denoiser_parameters, **counts.guide_parameters},
            "in_turn_with": [other.name for other in rows],
        }
    return costs


def seconds_in_turn(plans: Sequence[Plan], rounds: int) -> list[list[float]]:
    """Seconds per image of each plan and round, without the time to attach experts."""
    seconds: list[list[float]] = [[] for _ in plans]
    with contextlib.ExitStack() as stack:
        draws = [stack.enter_context(drawing(plan)) for plan in plans]
        for number in range(rounds + 1):
            for plan, draw, taken in zip(plans, draws, seconds, strict=True):
                start = time.perf_counter()
                _draw(plan, draw)
                if number:  # the first run is slower
                    taken.append((time.perf_counter() - start) / plan.num)
    return seconds


def peak_memory_of(setup: Setup, row: Row) -> int | None:
    """Peak memory in bytes of a new process that draws a batch; None if it is not available.

    Raises:
        PpapError: If the process dies.
    """
    context = multiprocessing.get_context("spawn")  # a fork would include this process's memory
    names, device = setup.targets.names, str(setup.device)
    job = (torch.get_num_threads(), setup.experiment, row, names, device)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_draw_alone, *job).result()
        except BrokenProcessPool as error:
            raise PpapError(
                f"the process that measures the memory of row {row.name!r} died",
                hint="there may be too little memory",
            ) from error


def _draw_alone(
    threads: int, experiment: Experiment, row: Row, names: tuple[str, ...], device: str
) -> int | None:
    torch.set_num_threads(threads)
    plan = _plan(Setup.load(experiment, names, device), row)
    with drawing(plan) as draw:
        _draw(plan, draw)
    return peak_memory(plan.device)


def _plan(setup: Setup, row: Row) -> Plan:
    num = setup.experiment.timing.num
    return setup.plan(row, "raw:1" if row.guides else None, num=num, batch=num)


def _draw(plan: Plan, draw: Drawing) -> None:
    *_, images = draw(range(plan.num), check=False).values()
    images.cpu()  # waits for a GPU


def training_of(row: Row, guides: Sequence[Guide]) -> dict[str, Any] | None:
    """Training seconds of a row's experts, as JSON; None if it names no records.

    Raises:
        AssetError: If a record cannot be read, or its training is not finished.
        UsageError: If a record belongs to other experts.
    """
    if not row.training:
        return None
    records = {Path(path): _read(Path(path)) for path in row.training}
    infos = [guide.experts.info for guide in guides if isinstance(guide.experts, BundleFile)]
    known = [(list(info.boundaries), info.data_sha256) for info in infos]
    for path, record in records.items():
        settings = record.get("settings", {})
        if "boundaries" in settings and (settings["boundaries"], settings.get("data")) not in known:
            raise UsageError(
                f"{str(path)!r} is not of the training of row {row.name!r}",
                hint="name the transfer.json that was written beside its experts",
            )
    return {
        "seconds": sum(record["seconds"] for record in records.values()),
        "records": [
            {"file": path.name, "seconds": record["seconds"]} for path, record in records.items()
        ],
    }


def _read(path: Path) -> Any:
    hint = "name the transfer.json of a training, or the run.json of its data"
    record = read_json(path, hint)
    problem = None
    if record is None:
        problem = "does not exist"
    elif not isinstance(record, dict) or not isinstance(record.get("seconds"), int | float):
        problem = "does not say how many seconds it took"
    elif record.get("status") != "complete":
        problem = "is of something that was not finished"
    if problem:
        raise AssetError(f"{str(path)!r} {problem}", hint=hint)
    return record
