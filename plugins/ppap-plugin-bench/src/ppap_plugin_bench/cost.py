"""What a row costs: seconds and memory.

Seconds are measured for all rows in turn, several times over, so that whatever else slows the
machine down slows every row down. Memory is the peak of a process that does nothing else.
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

from ppap_framework import run as api
from ppap_framework.diagnosis.intervals import rounded
from ppap_framework.errors import PpapError
from ppap_framework.guidance import Guide
from ppap_framework.run import Plan
from ppap_plugin_bench.blocks import draw_block, identity
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.files import digest, read_json, write_json
from ppap_plugin_bench.row import Candidate, Row
from ppap_plugin_bench.stand import Stand, Subject

__all__ = ["Cost", "kept_costs", "measure", "peak_memory", "seconds_in_turn"]


@attrs.frozen(kw_only=True)
class Cost:
    """What drawing an image of a row takes.

    Attributes:
        seconds: For an image; the median of the rounds.
        rounds: Seconds for an image in each round.
        images_at_once: In a batch.
        peak_memory: In bytes: of the whole process, or on the GPU where that draws.
        threads: On the CPU.
        device: That draws.
        parameters: Of the denoiser, and of each guide by its name.
        in_turn_with: The rows that were measured together.
    """

    seconds: float
    rounds: tuple[float, ...]
    images_at_once: int
    peak_memory: int | None
    threads: int
    device: str
    parameters: dict[str, int]
    in_turn_with: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return attrs.asdict(self) | {
            "seconds": rounded(self.seconds),
            "rounds": [rounded(seconds) for seconds in self.rounds],
            "in_turn_with": list(self.in_turn_with),
        }


def kept_costs(
    stand: Stand, subjects: Mapping[str, Subject], folder: Path, *, again: bool = False
) -> dict[str, Cost]:
    """The costs of rows, by name: those that are kept read, and the others measured together.

    Args:
        stand: With the backend.
        subjects: By name.
        folder: Where costs are kept.
        again: Whether to measure all of them.
    """
    timing = attrs.asdict(stand.experiment.timing) | {"threads": torch.get_num_threads()}
    paths = {
        name: folder / f"{name}-{digest(_costly(stand, subject, timing))}.json"
        for name, subject in subjects.items()
    }
    missing = {n: subject for n, subject in subjects.items() if again or not paths[n].is_file()}
    if missing:
        for name, cost in measure(stand, missing).items():
            write_json(paths[name], cost.record())
    records = {name: read_json(path) for name, path in paths.items()}
    return {name: Cost(**record) for name, record in records.items()}


def _costly(stand: Stand, subject: Subject, timing: dict[str, Any]) -> list[Any]:
    """All that a cost depends on, as JSON."""
    told = [] if subject.row.prompt is None else [subject.row.prompt]
    return [identity(_run(stand, subject)), timing, *told]


def measure(stand: Stand, subjects: Mapping[str, Subject]) -> dict[str, Cost]:
    """Measure rows, by name, together."""
    runs = {name: _run(stand, subject) for name, subject in subjects.items()}
    seconds = seconds_in_turn(runs, stand.experiment.timing.rounds)
    return {
        name: Cost(
            seconds=statistics.median(seconds[name]),
            rounds=tuple(seconds[name]),
            images_at_once=run.settings.num,
            peak_memory=peak_memory(stand, subjects[name]),
            threads=torch.get_num_threads(),
            device=str(run.device),
            parameters={"denoiser": run.cost.denoiser_parameters, **run.cost.guide_parameters},
            in_turn_with=tuple(subjects),
        )
        for name, run in runs.items()
    }


def seconds_in_turn(runs: Mapping[str, Plan], rounds: int) -> dict[str, list[float]]:
    """Seconds for an image of each run, in each round; attaching experts is no part of it."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with contextlib.ExitStack() as stack:
        guides = {name: stack.enter_context(run.attached()) for name, run in runs.items()}
        for name, run in runs.items():  # the first time is slower
            _draw(run, guides[name])
        for _ in range(rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                _draw(run, guides[name])
                seconds[name].append((time.perf_counter() - start) / run.settings.num)
    return seconds


def peak_memory(stand: Stand, subject: Subject) -> int | None:
    """The peak, in bytes, of a new process that draws one batch of a row; None where the system
    does not say.

    Raises:
        PpapError: Where the process dies.
    """
    context = multiprocessing.get_context("spawn")  # a fork would begin with this one's memory
    job = (stand.experiment, subject.row, subject.candidate, stand.aims.names, stand.device)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_draw_and_look, torch.get_num_threads(), *job).result()
        except BrokenProcessPool as error:
            raise PpapError(
                f"the process that measures the memory of row {subject.row.name!r} died",
                hint="there may be too little memory",
            ) from error


def _draw_and_look(
    threads: int,
    experiment: Experiment,
    row: Row,
    candidate: Candidate | None,
    names: tuple[str, ...],
    device: str,
) -> int | None:
    torch.set_num_threads(threads)
    stand = Stand.load(experiment, names, device)
    run = _run(stand, Subject(row, stand.guides(row), candidate))
    with run.attached() as guides:
        _draw(run, guides)
    return api.peak_memory(run.device)


def _run(stand: Stand, subject: Subject) -> Plan:
    num = stand.experiment.timing.num
    return stand.run(subject.row, subject.guides, subject.candidate, num=num, seed=0, batch=num)


def _draw(run: Plan, guides: Sequence[Guide]) -> None:
    # It ends with a copy to the CPU, for which a GPU finishes.
    draw_block(run, guides, 0, run.settings.num)
