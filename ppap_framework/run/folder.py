"""The folder of a run: images, what guides see in them, a grid and a record.

    000.png ...                  the images
    seen/000-GUIDE.png ...       what each guide sees in them
    stages/NAME/000.png ...      images of the backend's earlier stages, if there are several
    unguided/...                 the same files for the same noise without guides, if asked for
    naive/...                    the same files, guided without experts
    grid.png                     all of them, labelled
    run.json                     how they were made

Every file is complete or absent. `run.json` exists from the start, with the status "running", and
ends as "complete", "interrupted" or "failed".
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from PIL import Image

from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.files import read_json, refusals, replacing, write_json
from ppap_framework.pixels import to_pil
from ppap_framework.resume import core_version
from ppap_framework.run.counts import counts_of
from ppap_framework.run.grid import grid_of
from ppap_framework.run.plan import Plan, guide_origin
from ppap_framework.run.result import Pictures, Result, Stats
from ppap_framework.run.sample import Batch

_RECORD, _GRID, _SEEN, _STAGES = "run.json", "grid.png", "seen", "stages"
_KINDS = ("unguided", "naive")
_FORMAT = 1
_ELSEWHERE = "give another folder"


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Accept a folder that a run may be written to, without writing; it need not exist.

    Raises a UsageError if it cannot be written, or holds an earlier run or anything else. If
    `overwrite`, an earlier run is accepted.
    """
    check_writable(folder)
    files = [entry.name for entry in _entries(folder) if not entry.name.startswith(".")]
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
    if _RECORD in files:
        _earlier(folder)


def check_writable(folder: Path) -> None:
    """Raise UsageError if a folder can be neither made nor written to; writes nothing."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UsageError(
            f"cannot write to {str(folder)!r}: {str(there)!r} is no folder", hint=_ELSEWHERE
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"cannot write to {str(folder)!r}: no permission in {str(there)!r}", hint=_ELSEWHERE
        )


def fresh_folder(root: Path, run: Plan) -> Path:
    """Make the next numbered folder for a run, such as runs/0001-adm-classifier-red-cube.

    Raises a UsageError if it cannot be made.
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
            raise UsageError(
                f"cannot make folder {str(folder)!r}: {error.strerror or error}", hint=_ELSEWHERE
            ) from error
        return folder


class RunFolder:
    """Writes a run batch by batch. Make it with `create`.

    Attributes:
        path: The folder.
        record: The content of `run.json` so far.
    """

    def __init__(self, run: Plan, path: Path, command: list[str] | None) -> None:
        self.path = path
        self.record: dict[str, Any] = {}
        self._run, self._command = run, command
        self._started = datetime.datetime.now(datetime.timezone.utc)
        self._images: list[dict[str, Any]] = []

    @classmethod
    def create(
        cls, run: Plan, path: Path, *, overwrite: bool = False, command: list[str] | None = None
    ) -> RunFolder:
        """Make the folder, empty except for the record of a run that has begun; see `check_folder`.

        Args:
            run: The plan.
            path: The folder.
            overwrite: Remove an earlier run's files, and no others.
            command: The command line, for the record.
        """
        check_folder(path, overwrite=overwrite)
        folder = cls(run, path, command)
        with refusals(path, UsageError, hint=_ELSEWHERE):
            path.mkdir(parents=True, exist_ok=True)
            if (path / _RECORD).exists():
                for file in _files_of(_earlier(path)):
                    (path / file).unlink(missing_ok=True)
        folder._write_record("running")
        return folder

    def add(self, batch: Batch) -> None:
        """Write a finished batch; PpapError if that fails."""
        for index in range(
            max(0, len(self._images) - batch.start), len(batch.pictures["guided"].images)
        ):
            number = batch.start + index
            entry: dict[str, Any] = {}
            for kind, pictures in batch.pictures.items():
                if kind == "guided":
                    entry |= self._write_image("", number, pictures, index)
                else:
                    entry[kind] = self._write_image(kind, number, pictures, index)
            self._images.append(entry)

    def finish(self, result: Result) -> Path | None:
        """Write the rest, the record and the grid; the grid's path, or None without images."""
        self.add(Batch(start=0, pictures=dict(result.pictures), seconds=0.0))
        self._write_record("interrupted" if result.interrupted else "complete", result.stats)
        if not self._images:
            return None
        _write_png(self.path / _GRID, grid_of(result))
        return self.path / _GRID

    def fail(self, error: BaseException) -> None:
        """Record that the run failed, if it has not ended; images stay."""
        if self.record["status"] == "running":
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(PpapError):  # the first error is the one to report
                self._write_record(status, error=f"{type(error).__name__}: {error}")

    def _write_image(
        self, kind: str, number: int, pictures: Pictures, index: int
    ) -> dict[str, Any]:
        names = _names(kind, number, self._run.num, pictures.seen, pictures.earlier)
        image, seen, stages = next(names), {}, {}
        _write_png(self.path / image, to_pil(pictures.images[index : index + 1])[0])
        for name, found in pictures.seen.items():
            file = next(names)
            _write_png(self.path / file, Image.fromarray(found.pictures[index]))
            figures = {key: float(figure[index]) for key, figure in found.figures.items()}
            seen[name] = {"file": file, "says": found.words[index], **figures}
        for name, earlier in pictures.earlier.items():
            stages[name] = next(names)
            _write_png(self.path / stages[name], to_pil(earlier[index : index + 1])[0])
        entry = {"file": image, "seen": seen}
        return entry | {"stages": stages} if stages else entry

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


def _names(
    kind: str, number: int, num: int, guides: Mapping[str, Any], stages: Mapping[str, Any]
) -> Iterator[str]:
    """Files of one image: itself, the guides' views of it, and its earlier stages."""
    prefix = f"{kind}/" if kind else ""
    digits = f"{number:0{max(3, len(str(num - 1)))}d}"
    yield f"{prefix}{digits}.png"
    yield from (f"{prefix}{_SEEN}/{digits}-{guide}.png" for guide in guides)
    yield from (f"{prefix}{_STAGES}/{stage}/{digits}.png" for stage in stages)


def _earlier(folder: Path) -> Mapping[str, Any]:
    """The configuration of the run in a folder; UsageError if its run.json is invalid."""
    try:
        record = read_json(folder / _RECORD)
        config = record["config"]
        if record["format"] != _FORMAT or not isinstance(config["num"], int):
            raise TypeError
        _ = [*config["stages"], *config["guides"]]
    except (AssetError, TypeError, KeyError) as error:
        raise UsageError(
            f"{str(folder / _RECORD)!r} is not the record of a run", hint="give another folder"
        ) from error
    return config  # type: ignore[no-any-return]  # JSON


def _files_of(config: Mapping[str, Any]) -> Iterator[str]:
    """Every file that a run of this configuration writes, except its record."""
    guides = {str(guide["name"]): None for guide in config["guides"]}
    stages = {str(stage["name"]): None for stage in config["stages"][:-1]}
    yield _GRID
    for kind in ("", *_KINDS):
        for number in range(config["num"]):
            for name in _names(kind, number, config["num"], guides, stages):
                if not Path(name).is_absolute() and ".." not in Path(name).parts:
                    yield name


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _write_png(path: Path, picture: Image.Image) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, "PNG")


def _versions(run: Plan) -> dict[str, Any]:
    origins = [run.backend.origin, *map(guide_origin, run.guides)]
    plugins = {name: version for origin in origins for name, version in origin.suppliers.items()}
    return {
        "ppap-framework": core_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "plugins": plugins,
    }


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as null, for JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
