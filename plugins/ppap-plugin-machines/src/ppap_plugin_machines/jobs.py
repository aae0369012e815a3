"""The state of jobs, as their folders tell it: synthetic sets, trainings and runs.

Nothing is computed or locked, so a job is looked at while processes write to it. The speed of a set
is the sum over the calls that work at it; workers that are known to be dead do not count. Whether
a worker of another machine lives is not known at one look: it counts, and its last touch is shown.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from ppap_framework.data.claims import Claims
from ppap_framework.data.folder import MANIFEST, PARTIAL, RUN, SETTINGS
from ppap_framework.data.shards import Layout
from ppap_framework.data.unfinished import SynthesisFolder
from ppap_framework.errors import PpapError
from ppap_framework.files import locked, read_json
from ppap_framework.learn import Recipe

__all__ = ["Job", "jobs_in"]

_TRAINING = "transfer.json"


@attrs.frozen(kw_only=True)
class Job:
    """One folder.

    Attributes:
        kind: "synthesize", "transfer" or "run".
        status: "complete"; "running"; or how the last call ended: "interrupted", "failed", or
            "stopped" if nobody works at it and it says "running".
        unit, done, total: What is counted, how many are finished, and of how many.
        per_second: Units a second of all that work at it now; None if nobody does, or not yet one.
        seconds_left: Seconds until all are finished at that speed; None if it is unknown.
        workers: Processes that draw a set, each with its label, the seconds since it was last
            touched by the clock of the folder's machine, and whether it "lives": None if unknown.
        fault: Why the folder cannot be read; None if it can.
    """

    folder: str
    kind: str
    status: str
    unit: str = "images"
    done: int | None = None
    total: int | None = None
    per_second: float | None = None
    seconds_left: float | None = None
    workers: tuple[Mapping[str, Any], ...] = ()
    fault: str | None = None


def jobs_in(folder: Path) -> Iterator[Job]:
    """The jobs in a folder, and in those below it up to two levels."""
    for pattern in (".", "*/", "*/*/"):
        for path in sorted(folder.glob(pattern)) if pattern != "." else [folder]:
            if path.name != PARTIAL:
                yield from _jobs(path)


def _jobs(path: Path) -> Iterator[Job]:
    if any((path / name).exists() for name in (MANIFEST, SETTINGS)):
        yield _read(path, "synthesize", _set)
    elif (path / RUN).exists():
        yield _read(path, "run", _run)
    if (path / _TRAINING).exists():
        yield _read(path, "transfer", _training)


def _read(path: Path, kind: str, read: Callable[[Path], Job]) -> Job:
    try:
        return read(path)
    except (PpapError, LookupError, TypeError, ValueError) as error:
        fault = error.message if isinstance(error, PpapError) else f"it is no record: {error!r}"
        return Job(folder=str(path), kind=kind, status="unreadable", fault=fault)


def _set(path: Path) -> Job:
    manifest = read_json(path / MANIFEST)
    settings = manifest["settings"] if manifest else read_json(path / SETTINGS)
    about: dict[str, Any] = {"folder": str(path), "kind": "synthesize", "total": settings["num"]}
    if manifest:
        return Job(status="complete", done=settings["num"], **about)
    folder = SynthesisFolder(
        path, settings, Layout(*(settings[n] for n in ("num", "batch", "shard")))
    )
    workers = [*_workers(folder.batches)]
    at_work = {worker["label"] for worker in workers if worker["lives"] is not False}
    with contextlib.suppress(PpapError):
        record = read_json(path / RUN) or {}
    calls = [call for call in record.get("calls", ()) if call.get("process") in at_work]
    status = _status(record, bool(at_work))
    left = folder.left if folder.batches.is_dir() else settings["num"]
    speed = sum(call["images"] / call["seconds"] for call in calls if call["seconds"])
    return Job(
        status="stopped" if status == "complete" else status,  # there is no manifest
        done=settings["num"] - left,
        per_second=speed or None,
        seconds_left=left / speed if speed else None,
        workers=tuple(workers),
        **about,
    )


def _workers(folder: Path) -> Iterator[dict[str, Any]]:
    claims = Claims(folder)
    for path in sorted(folder.glob("worker-*")):
        with contextlib.suppress(OSError, IndexError):  # it may end meanwhile
            label, touched = path.read_text().splitlines()[1], path.stat().st_mtime
            lives = claims.lives(path)
            yield {"label": label, "lives": lives, "touched": round(time.time() - touched, 1)}


def _training(path: Path) -> Job:
    record = read_json(path / _TRAINING)
    recipe, calls = record["settings"]["recipe"], record["calls"]
    known = {name: recipe[name] for name in ("num_experts", "iterations", "shared", "chain")}
    known |= {name: recipe.get(name) for name in ("begin_with", "experts_of")}
    phases = Recipe(**known).phases([range(1)] * recipe["num_experts"])
    total = sum(phase.iterations for phase in phases)
    status = _status(record, _held(path))
    complete, running = status == "complete", status == "running"
    done = total if complete else min(total, sum(call["iterations"] for call in calls))
    speed = (
        calls[-1]["iterations"] / calls[-1]["seconds"] if running and calls[-1]["seconds"] else 0.0
    )
    return Job(
        folder=str(path),
        kind="transfer",
        status=status,
        unit="iterations",
        done=done,
        total=total,
        per_second=speed or None,
        seconds_left=(total - done) / speed if speed else None,
    )


def _run(path: Path) -> Job:
    record = read_json(path / RUN)
    status, total = _status(record, _held(path)), record["config"]["num"]
    return Job(folder=str(path), kind="run", status=status, done=record["finished"], total=total)


def _held(path: Path) -> bool:
    """Whether a process holds the folder, as far as the system can tell."""
    with contextlib.suppress(OSError), (path / ".lock").open() as file:
        return locked(file.fileno(), shared=True) is not True
    return False


def _status(record: Mapping[str, Any], at_work: bool) -> str:
    stated = str(record.get("status", "running"))
    if stated == "complete":
        return stated
    return "running" if at_work else "stopped" if stated == "running" else stated
