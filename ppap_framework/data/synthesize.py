"""Synthesis: the diffusion model draws the images that guides are transferred on.

Section 4.3 of PPAP (Go et al. 2023, arXiv 2212.05973): no data are needed, since the model that
will be guided draws them itself, unlabelled.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, final

import PIL
import torch

from ppap_framework.components import DiffusionBackend
from ppap_framework.data.draw import Job, drawn
from ppap_framework.data.files import read_json, write_json
from ppap_framework.data.folder import RUN, SynthesisFolder, check_content
from ppap_framework.data.layout import Layout
from ppap_framework.data.reader import SyntheticData
from ppap_framework.errors import PpapError, UsageError
from ppap_framework.experts import backend_sha256
from ppap_framework.run import Plan, Problems, Progress, SamplerName, Settings, check_writable, plan

__all__ = ["check_synthesis", "synthesize"]

_MOST_WORKERS = 8


def synthesize(
    backend: DiffusionBackend | str,
    *,
    out: str | os.PathLike[str],
    num: int = 2048,
    steps: int = 25,
    seed: int = 0,
    sampler: SamplerName = "ddim",
    eta: float = 0.0,
    block: int = 64,
    shard: int = 512,
    workers: int | None = 1,
    threads: int = 1,
    device: str = "auto",
    prompts: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    command: Sequence[str] | None = None,
) -> SyntheticData:
    """Draw images into a folder, or go on where an earlier call with the same settings ended.

    Everything but `out`, `workers`, `progress` and `command` is a setting: it may decide on bytes,
    is recorded in the manifest, and must be the same to go on. Then the folder's bytes are those
    of a call that was never interrupted, `run.json` apart.

    Args:
        backend: What `ppap_framework.backend` gives or takes.
        out: The folder.
        num: How many images.
        steps: From noise to image.
        seed: Noise of image i comes from (seed, i) alone.
        sampler: "ddim" or "ddpm".
        eta: Of DDIM, in [0, 1].
        block: Images that are drawn at once, and lost at most, by each worker.
        shard: Images in a file, a multiple of `block`.
        workers: Processes, each with a copy of the backend; None for as many as there are cores,
            up to 8. More than 1 wants a main module that can be imported, as always with Python's
            spawned processes.
        threads: Of each worker on the CPU.
        device: "auto", or as torch calls it.
        prompts: What the backend is told: image i has prompt i, and they begin anew where they end.
            None for nothing, which is how experts for any prompt are taught.
        overwrite: Whether to remove a set of other settings.
        progress: Called as blocks get on, with what earlier calls did counted in.
        command: What was typed, for the record.

    Raises:
        UsageError: For settings that are wrong, or differ from those that the folder was begun
            with, and while another process writes to it.
        PpapError: Where an image comes out not finite, a worker dies, or the folder cannot be
            written.
        KeyboardInterrupt: On Ctrl-C; what is finished is kept.
    """
    path = Path(out).expanduser()
    settings = Settings(
        num=num,
        steps=steps,
        seed=seed,
        sampler=sampler,
        eta=eta,
        batch=block,
        device=device,
        prompt=_each(prompts, num),
    )
    check_synthesis(path, settings, shard=shard, workers=workers, threads=threads)
    layout = Layout(num, block, shard)
    run = plan(backend, (), settings)
    crew = _automatic_workers(run.device, threads) if workers is None else workers
    determined = _settings(run, layout, threads)
    with SynthesisFolder.opened(path, determined, layout, overwrite=overwrite) as folder:
        if folder.complete:
            folder.tidy()
        else:
            folder.begin()
            job = Job(run=run, layout=layout, threads=threads, folder=folder.block_path(0).parent)
            _Synthesis(folder, job, crew, progress, command).draw()
            folder.finish()
    return SyntheticData(path)


def check_synthesis(
    out: Path, settings: Settings, *, shard: int, workers: int | None, threads: int
) -> None:
    """Accept what can be right, whatever the backend; nothing is written yet.

    Raises:
        UsageError: With everything that cannot.
    """
    problems = Problems()
    with problems.collected():
        settings.check()
    for name, value in (("workers", 1 if workers is None else workers), ("threads", threads)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.errors.append(
                UsageError(f"{name} must be a whole number from 1, not {value}", hint="use 1, say")
            )
    with problems.collected():
        Layout(settings.num, settings.block, shard)
    with problems.collected():
        check_writable(out)
        check_content(out)
    problems.check()


def _each(prompts: Sequence[str] | None, num: int) -> list[str] | None:
    """A prompt for each image."""
    if prompts is None:
        return None
    if isinstance(prompts, str) or not prompts:
        raise UsageError("prompts must be a list of texts, with one at least", hint="or None")
    return [prompts[image % len(prompts)] for image in range(num)]


def _automatic_workers(device: torch.device, threads: int) -> int:
    """One for each `threads` cores that this process may use, at most 8; 1 beside a GPU."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min((cores or 1) // threads, _MOST_WORKERS))


def _settings(run: Plan, layout: Layout, threads: int) -> dict[str, Any]:
    """Everything that determines the bytes of a set on one kind of machine, as JSON."""
    origin = run.backend.origin.record()
    backend = {name: origin[name] for name in ("component", "checkpoint", "sha256", "options")}
    settings = run.settings
    prompts = settings.prompts(slice(0, settings.num))
    return {
        "backend": {**backend, "weights_sha256": backend_sha256(run.backend.inner)},
        "stages": [
            {
                "name": stage.name,
                "image_shape": list(stage.image_shape),
                "schedule": process.schedule.name,
                "timesteps": list(process.timesteps),
            }
            for stage, process in zip(run.stages, run.processes, strict=True)
        ],
        **({} if prompts is None else {"prompts_sha256": _sha256(prompts)}),
        "num": settings.num,
        "seed": settings.seed,
        "steps": settings.steps,
        "sampler": settings.sampler,
        "eta": settings.eta,
        "block": layout.block,
        "shard": layout.shard,
        "threads": threads,
        "device": run.device.type,
        "versions": _versions(run),
    }


def _sha256(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _versions(run: Plan) -> dict[str, str]:
    origin = run.backend.origin
    try:
        core = metadata.version("ppap-framework")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        core = "unknown"
    plugin = {origin.distribution: origin.version or "unknown"} if origin.distribution else {}
    return {
        "ppap-framework": core,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        **plugin,
    }


@final
class _Synthesis:
    """One call, and the record that it leaves in `run.json` beside those of earlier calls."""

    def __init__(
        self,
        folder: SynthesisFolder,
        job: Job,
        workers: int,
        progress: Callable[[Progress], None] | None,
        command: Sequence[str] | None,
    ) -> None:
        self._folder, self._job, self._workers, self._progress = folder, job, workers, progress
        self._blocks = folder.pending()
        self._steps = job.run.steps
        images = sum(len(job.layout.block_images(block)) for block in self._blocks)
        self._done = (job.layout.num - images) * self._steps
        self._start = time.perf_counter()
        self._earlier = _earlier_calls(folder.path / RUN)
        self._record: dict[str, Any] = {
            "status": "running",
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": None if command is None else list(command),
            "device": str(job.run.device),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "workers": workers,
            "images": 0,
            "seconds": 0.0,
        }

    def draw(self) -> None:
        """Draw what is pending."""
        self._watch(0)
        try:
            self._write()
            with contextlib.closing(
                drawn(self._job, self._blocks, self._workers, self._watch)
            ) as finished:
                for block in finished:
                    self._folder.added(block)
                    self._record["images"] += len(self._job.layout.block_images(block))
                    self._write()
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            with contextlib.suppress(PpapError):  # the first error is the one to tell
                self._write("interrupted" if interrupted else "failed")
            raise
        self._write("complete")

    def _watch(self, images: int) -> None:
        self._done += images
        if self._progress:
            self._progress(Progress(steps=self._done, of=self._job.layout.num * self._steps))

    def _write(self, status: str = "running") -> None:
        seconds = round(time.perf_counter() - self._start, 3)
        self._record |= {"status": status, "seconds": seconds}
        calls = [*self._earlier, self._record]
        write_json(
            self._folder.path / RUN,
            {
                "format": 1,
                "status": status,
                "seconds": round(sum(call["seconds"] for call in calls), 3),
                "config": self._folder.settings,
                "calls": calls,
            },
        )


def _earlier_calls(path: Path) -> list[dict[str, Any]]:
    """What `run.json` says of them; nothing where it is missing or damaged: it is a mere diary."""
    with contextlib.suppress(PpapError, KeyError, TypeError):
        calls = (read_json(path) or {"calls": []})["calls"]
        return [{**call, "seconds": float(call["seconds"])} for call in calls]
    return []
