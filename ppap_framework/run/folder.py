"""The folder of a run: images, what guides see in them, a grid, and the record of it all.

    000.png ...                  the images
    seen/000-GUIDE.png ...       what each guide sees in them
    stages/NAME/000.png ...      what the backend's earlier stages drew, where it has several
    unguided/000.png ...         the same noise without guides, where it was asked for,
    unguided/seen/... and so on  and what each guide sees there
    naive/...                    likewise with guides that look without their experts
    grid.png                     all of them, labelled
    run.json                     how they came about

Every file is either whole or not there. `run.json` is there from the start, with the status
"running", and in the end says "complete", "interrupted" or "failed".
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import torch
from PIL import Image

from ppap_framework.errors import PpapError, UsageError
from ppap_framework.files import replacing, write_json
from ppap_framework.pixels import to_pil
from ppap_framework.run.counts import counts_of
from ppap_framework.run.grid import grid_of
from ppap_framework.run.plan import Plan, guide_origin
from ppap_framework.run.result import Pictures, Result, Stats
from ppap_framework.run.sample import Batch

__all__ = ["RunFolder", "check_folder", "check_writable", "fresh_folder"]

_RECORD, _GRID, _STAGES = "run.json", "grid.png", "stages"
_OURS = re.compile(r"\d{3,}(-\w[\w.-]*)?\.png")
_FORMAT = 1


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Accept a folder that a run may be written to; nothing is written yet.

    Args:
        folder: There or not.
        overwrite: Whether an earlier run in it may be replaced.

    Raises:
        UsageError: Where it cannot be written, or holds an earlier run or anything else.
    """
    check_writable(folder)
    if not folder.exists():
        return
    files = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    if _RECORD in files and not overwrite:
        raise UsageError(
            f"{str(folder)!r} holds an earlier run",
            hint="--overwrite replaces it, or give another folder",
        )
    if files and _RECORD not in files:
        raise UsageError(
            f"{str(folder)!r} holds other files, such as {min(files)!r}",
            hint="give a new or empty folder",
        )


def check_writable(folder: Path) -> None:
    """Accept a folder that can be made or written to; nothing is written yet.

    Raises:
        UsageError: Where it cannot.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UsageError(
            f"cannot write to {str(folder)!r}: {str(there)!r} is no folder",
            hint="give another folder",
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"cannot write to {str(folder)!r}: no permission in {str(there)!r}",
            hint="give another folder",
        )


def fresh_folder(root: Path, run: Plan) -> Path:
    """Make the next numbered folder for a run, such as runs/0001-adm-classifier-red-cube.

    Raises:
        UsageError: Where it cannot be made.
    """
    words = [run.backend.origin.component]
    for guide in run.guides:
        words += [guide.name, guide.target.label if guide.target else ""]
    label = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:60].rstrip("-")
    while True:
        taken = [re.match(r"(\d{4,})-", entry.name) for entry in _entries(root)]
        number = 1 + max((int(match[1]) for match in taken if match), default=0)
        folder = root / f"{number:04d}-{label}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another run was quicker
            continue
        except OSError as error:
            raise _refused(folder, error) from error
        return folder


def _entries(root: Path) -> list[Path]:
    return list(root.iterdir()) if root.is_dir() else []


def _refused(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot make folder {str(folder)!r}: {error.strerror or error}", hint="give another folder"
    )


class RunFolder:
    """Writes a run as it goes on. Make it with `create`.

    Attributes:
        path: Of the folder.
        record: What `run.json` says by now.
    """

    def __init__(self, run: Plan, path: Path, command: list[str] | None) -> None:
        self.path = path
        self._run = run
        self._command = command
        self._started = datetime.datetime.now(datetime.timezone.utc)
        self._images: list[dict[str, Any]] = []
        self.record: dict[str, Any] = {}

    @classmethod
    def create(
        cls,
        run: Plan,
        path: Path,
        *,
        overwrite: bool = False,
        command: list[str] | None = None,
    ) -> RunFolder:
        """Make the folder, empty but for the record of a run that has begun.

        Args:
            run: The plan.
            path: Of the folder.
            overwrite: Whether to remove an earlier run from it.
            command: What was typed, for the record.

        Raises:
            UsageError: As `check_folder`.
        """
        check_folder(path, overwrite=overwrite)
        folder = cls(run, path, command)
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder._clear()
        except OSError as error:
            raise _refused(path, error) from error
        folder._write_record("running")
        return folder

    def add(self, batch: Batch) -> None:
        """Write a batch that is finished.

        Raises:
            PpapError: Where that fails.
        """
        guided, *compared = batch.pictures.items()
        for index in range(max(0, len(self._images) - batch.start), len(guided[1].images)):
            number = batch.start + index
            entry = self._write_image(self.path, number, guided[1], index)
            for kind, pictures in compared:
                entry[kind] = self._write_image(self.path / kind, number, pictures, index)
            self._images.append(entry)

    def finish(self, result: Result) -> Path | None:
        """Write what is not written yet, the record and the grid.

        Returns:
            The path of the grid; None where no image was finished.

        Raises:
            PpapError: Where that fails.
        """
        self.add(Batch(start=0, pictures=dict(result.pictures), seconds=0.0))
        self._write_record("interrupted" if result.interrupted else "complete", result.stats)
        if not self._images:
            return None
        _write_png(self.path / _GRID, grid_of(result))
        return self.path / _GRID

    def fail(self, error: BaseException) -> None:
        """Record that the run ended with an error, if it did not end before; images stay."""
        if self.record["status"] == "running":
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(PpapError):  # the first error is the one to tell
                self._write_record(status, error=f"{type(error).__name__}: {error}")

    def _write_image(
        self, folder: Path, number: int, drawn: Pictures, index: int
    ) -> dict[str, Any]:
        digits = max(3, len(str(self._run.num - 1)))
        file = folder / f"{number:0{digits}d}.png"
        (folder / "seen" if drawn.seen else folder).mkdir(parents=True, exist_ok=True)
        _write_png(file, to_pil(drawn.images[index : index + 1])[0])
        stages = {}
        for name, pictures in drawn.earlier.items():
            picture = folder / _STAGES / name / file.name
            picture.parent.mkdir(parents=True, exist_ok=True)
            _write_png(picture, to_pil(pictures[index : index + 1])[0])
            stages[name] = picture.relative_to(self.path).as_posix()
        sights = {}
        for name, seen in drawn.seen.items():
            picture = folder / "seen" / f"{number:0{digits}d}-{name}.png"
            _write_png(picture, Image.fromarray(seen.pictures[index]))
            figures = {key: float(figure[index]) for key, figure in seen.figures.items()}
            sights[name] = {
                "file": picture.relative_to(self.path).as_posix(),
                "says": seen.words[index],
                **figures,
            }
        entry = {"file": file.relative_to(self.path).as_posix(), "seen": sights}
        return entry | {"stages": stages} if stages else entry

    def _clear(self) -> None:
        """Remove the earlier run's files, and nothing else."""
        for folder in (self.path, self.path / "unguided", self.path / "naive"):
            for inner in (*_entries(folder / _STAGES), folder / "seen", folder):
                for entry in _entries(inner):
                    if _OURS.fullmatch(entry.name):
                        entry.unlink()
        (self.path / _GRID).unlink(missing_ok=True)

    def _write_record(
        self, status: str, stats: Stats | None = None, error: str | None = None
    ) -> None:
        now = datetime.datetime.now(datetime.timezone.utc)
        record: dict[str, Any] = {
            "format": _FORMAT,
            "status": status,
            "finished": len(self._images),
            "command": self._command,
            "started": self._started.isoformat(timespec="seconds"),
            "config": self._run.record(),
            "cost": attrs.asdict(counts_of(self._run)),
            "versions": _versions(self._run),
        }
        if error:
            record["error"] = error
        if stats:
            count = len(self._images)
            record |= {
                "guidance": attrs.asdict(stats.guidance),
                "seconds": {
                    "sampling": round(stats.seconds, 3),
                    # of the images themselves, without those they are compared with
                    "per_image": round(stats.own_seconds / count, 4) if count else None,
                    "total": round((now - self._started).total_seconds(), 3),
                },
                "peak_memory_bytes": stats.peak_memory,
                "most_images_at_once": stats.largest_batch,
                "grid": _GRID if count else None,
            }
        record["images"] = self._images
        self.record = _finite(record)
        write_json(self.path / _RECORD, self.record)


def _write_png(path: Path, picture: Image.Image) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, "PNG")


def _versions(run: Plan) -> dict[str, Any]:
    origins = [run.backend.origin, *map(guide_origin, run.guides)]
    plugins = {name: version for origin in origins for name, version in origin.suppliers.items()}
    try:
        core = metadata.version("ppap-framework")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        core = "unknown"
    return {
        "ppap-framework": core,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "plugins": plugins,
    }


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
