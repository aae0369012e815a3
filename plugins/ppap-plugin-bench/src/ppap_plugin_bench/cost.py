"""What an image of a row costs: seconds and memory.

Seconds are measured for all rows in turn, several times over, so that whatever else slows the
machine down affects every row. Memory is the peak of a process that does nothing else.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import attrs
import torch

from ppap_framework.diagnosis.intervals import rounded
from ppap_framework.errors import PpapError
from ppap_framework.files import read_json, write_json
from ppap_framework.run import Drawing, Plan, counts_of, drawing
from ppap_framework.runtime import peak_memory
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.images import identity, short_digest
from ppap_plugin_bench.row import Candidate, Row
from ppap_plugin_bench.setup import Setup

__all__ = ["kept_costs", "measure_costs", "peak_memory_of", "seconds_in_turn"]


def kept_costs(
    setup: Setup,
    rows: Mapping[Row, Candidate | None],
    folder: Path,
    *,
    again: bool = False,
) -> dict[str, dict[str, Any]]:
    """Costs of rows by name: kept ones are read, the others measured together.

    Args:
        setup: The loaded experiment.
        rows: The candidate of each row.
        folder: The folder of kept costs.
        again: Whether to measure all of them.

    Returns:
        As `measure_costs`.
    """
    timing = attrs.asdict(setup.experiment.timing) | {"threads": torch.get_num_threads()}
    paths = {}
    for row, candidate in rows.items():
        prompt = [] if row.prompt is None else [row.prompt]
        depends_on = [identity(_plan(setup, row, candidate)), timing, *prompt]
        paths[row] = folder / f"{row.name}-{short_digest(depends_on)}.json"
    missing = {row: c for row, c in rows.items() if again or not paths[row].is_file()}
    if missing:
        costs = measure_costs(setup, missing)
        for row in missing:
            write_json(paths[row], costs[row.name])
    return {row.name: read_json(path) for row, path in paths.items()}


def measure_costs(
    setup: Setup, rows: Mapping[Row, Candidate | None]
) -> dict[str, dict[str, Any]]:
    """Measure rows together.

    Returns:
        By the row's name, as JSON: `seconds` for an image, the median of `rounds`;
        `images_at_once`; `peak_memory` in bytes of the process, or on a GPU, or None; `threads` on
        the CPU; `device`; `parameters` of the denoiser and of each guide; and `in_turn_with`, the
        rows that were measured together.
    """
    plans = {row: _plan(setup, row, candidate) for row, candidate in rows.items()}
    seconds = seconds_in_turn(list(plans.values()), setup.experiment.timing.rounds)
    return {
        row.name: {
            "seconds": rounded(statistics.median(taken)),
            "rounds": [rounded(one) for one in taken],
            "images_at_once": plan.num,
            "peak_memory": peak_memory_of(setup, row, rows[row]),
            "threads": torch.get_num_threads(),
            "device": str(plan.device),
            "parameters": {
                "denoiser": counts_of(plan).denoiser_parameters,
                **counts_of(plan).guide_parameters,
            },
            "in_turn_with": [other.name for other in rows],
        }
        for (row, plan), taken in zip(plans.items(), seconds, strict=True)
    }


def seconds_in_turn(plans: Sequence[Plan], rounds: int) -> list[list[float]]:
    """Seconds for an image of each plan in each round, without the time to attach experts."""
    seconds: list[list[float]] = [[] for _ in plans]
    with contextlib.ExitStack() as stack:
        draws = [stack.enter_context(drawing(plan)) for plan in plans]
        for plan, draw in zip(plans, draws, strict=True):  # the first time is slower
            _draw(plan, draw)
        for _ in range(rounds):
            for plan, draw, taken in zip(plans, draws, seconds, strict=True):
                start = time.perf_counter()
                _draw(plan, draw)
                taken.append((time.perf_counter() - start) / plan.num)
    return seconds


def peak_memory_of(setup: Setup, row: Row, candidate: Candidate | None) -> int | None:
    """Peak memory in bytes of a new process that draws a batch of a row; None if the system does
    not report it.

    Raises:
        PpapError: If the process dies.
    """
    context = multiprocessing.get_context("spawn")  # a fork would begin with this one's memory
    names, device = setup.targets.names, str(setup.device)
    job = (torch.get_num_threads(), setup.experiment, row, candidate, names, device)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_draw_alone, *job).result()
        except BrokenProcessPool as error:
            raise PpapError(
                f"the process that measures the memory of row {row.name!r} died",
                hint="there may be too little memory",
            ) from error


def _draw_alone(
    threads: int,
    experiment: Experiment,
    row: Row,
    candidate: Candidate | None,
    names: tuple[str, ...],
    device: str,
) -> int | None:
    torch.set_num_threads(threads)
    plan = _plan(Setup.load(experiment, names, device), row, candidate)
    with drawing(plan) as draw:
        _draw(plan, draw)
    return peak_memory(plan.device)


def _plan(setup: Setup, row: Row, candidate: Candidate | None) -> Plan:
    num = setup.experiment.timing.num
    return setup.plan(row, candidate, num=num, seed=0, batch=num)


def _draw(plan: Plan, draw: Drawing) -> None:
    *_, images = draw(range(plan.num), check=False).values()
    images.cpu()  # a GPU finishes for it
