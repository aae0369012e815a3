"""The folder of a run: images, what guides see in them, a grid and a record.

    000.png ...                  the images
    seen/000-GUIDE.png ...       what each guide sees in them
    stages/NAME/000.png ...      images of the backend's earlier stages, if there are several
    unguided/...                 the same files for the same noise without guides, if asked for
    naive/...                    the same files, guided without experts
    grid.png                     all of them, labelled
    run.json                     how they were made
    .lock                        lock of the writing process

Every file is complete or absent. `run.json` exists from the start, with the status "running", and
ends as "complete", "interrupted" or "failed".
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from PIL import Image

from ppap_framework import files
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.pixels import to_pil
from ppap_framework.run.estimate import counts_of
from ppap_framework.run.grid import grid_of
from ppap_framework.run.plan import Kind, Plan, guide_origin
from ppap_framework.run.result import Pictures, Result

_RECORD, _GRID = "run.json", "grid.png"
_FORMAT = 1


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """UsageError if a folder cannot be written to, or holds anything but, if `overwrite`, a run."""
    files.check_writable(folder)
    if not (folder / _RECORD).exists():
        files.check_content(folder, lambda name: False)
        return
    _earlier(folder)
    if not overwrite:
        hint = f"--overwrite replaces it, or {files.ELSEWHERE}"
        raise UsageError(f"{str(folder)!r} holds an earlier run", hint=hint)


def fresh_folder(root: Path, run: Plan) -> Path:
    """Make the next numbered folder for a run, such as runs/0001-adm-classifier-red-cube."""
    words = [run.backend.origin.component]
    for guide in run.guides:
        words += [guide.name, guide.target.label if guide.target else ""]
    label = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:60].rstrip("-")
    while True:
        taken = [re.match(r"(\d{4,})-", path.name) for path in root.glob("*")]
        number = 1 + max((int(match[1]) for match in taken if match), default=0)
        folder = root / f"{number:04d}-{label}"
        quicker = contextlib.suppress(FileExistsError)  # another run may be
        with files.refusals(folder, UsageError, hint=files.ELSEWHERE), quicker:
            folder.mkdir(parents=True)
            return folder


class RunFolder:
    """Writes a run batch by batch to a folder, made if missing; see `check_folder`.

    No other process can write to it until `finish` or `fail`. `overwrite` removes an earlier run's
    files, and no others; `command` is the typed line. `record` is the content of `run.json` so far.
    """

    def __init__(
        self, run: Plan, path: Path, command: Sequence[str] | None = None, overwrite: bool = False
    ) -> None:
        check_folder(path, overwrite=overwrite)
        self.path, self.record = path, dict[str, Any]()
        self._run, self._command = run, command
        self._cost = attrs.asdict(counts_of(run))  # before an earlier run is removed
        self._started = datetime.datetime.now(datetime.timezone.utc)
        self._images: list[dict[str, Any]] = []
        with contextlib.ExitStack() as stack, files.refusals(path, UsageError, files.ELSEWHERE):
            stack.enter_context(files.opened(path))
            check_folder(path, overwrite=overwrite)  # another run may have ended since
            for file in _earlier(path) if (path / _RECORD).exists() else ():
                (path / file).unlink(missing_ok=True)
            self._write_record("running")
            self._held = stack.pop_all()

    def add(self, start: int, batches: Mapping[Kind, Pictures]) -> None:
        """Write a finished batch, by kind, from image `start` on; PpapError if that fails."""
        for number in range(len(self._images), start + len(batches["guided"].images)):
            entry: dict[str, Any] = {}
            for kind, pictures in batches.items():
                written = self._write_images(kind, number, pictures, number - start)
                entry |= written if kind == "guided" else {kind: written}
            self._images.append(entry)

    def finish(self, result: Result) -> Path | None:
        """Write the rest, the record and the grid; the grid's path, or None without images."""
        self.add(0, result.pictures)
        count, stats = len(self._images), result.stats
        total = datetime.datetime.now(datetime.timezone.utc) - self._started
        self._write_record(
            "interrupted" if result.interrupted else "complete",
            guidance=attrs.asdict(stats.guidance),
            seconds={
                "sampling": round(stats.seconds, 3),
                # of the images themselves, without those they are compared with
                "per_image": round(stats.own_seconds / count, 4) if count else None,
                "total": round(total.total_seconds(), 3),
            },
            peak_memory_bytes=stats.peak_memory,
            most_images_at_once=stats.largest_batch,
            grid=_GRID if count else None,
        )
        grid = self._write_png(_GRID, grid_of(result)) if count else None
        self._held.close()
        return grid

    def fail(self, error: BaseException) -> None:
        """Record that the run failed, if it has not ended; images stay."""
        if self.record["status"] == "running":
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(PpapError):  # the first error is the one to report
                self._write_record(status, error=f"{type(error).__name__}: {error}")
        self._held.close()

    def _write_images(
        self, kind: str, number: int, pictures: Pictures, index: int
    ) -> dict[str, Any]:
        name, seen, stages = _names(kind, number, self._run.num, pictures.seen, pictures.earlier)
        self._write_png(name, to_pil(pictures.images[index : index + 1])[0])
        entry: dict[str, Any] = {"file": name, "seen": {}}
        for guide, file in seen.items():
            found = pictures.seen[guide]
            self._write_png(file, Image.fromarray(found.pictures[index]))
            figures = {key: float(figure[index]) for key, figure in found.figures.items()}
            entry["seen"][guide] = {"file": file, "says": found.words[index], **figures}
        for stage, file in stages.items():
            self._write_png(file, to_pil(pictures.earlier[stage][index : index + 1])[0])
        return entry | ({"stages": stages} if stages else {})

    def _write_png(self, name: str, picture: Image.Image) -> Path:
        with files.replacing(self.path / name) as temporary:
            picture.save(temporary, "PNG")
        return self.path / name

    def _write_record(self, status: str, **more: Any) -> None:
        origins = [self._run.backend.origin, *map(guide_origin, self._run.guides)]
        record = {
            "format": _FORMAT,
            "status": status,
            "finished": len(self._images),
            "command": self._command,
            "started": self._started.isoformat(timespec="seconds"),
            "config": self._run.record(),
            "cost": self._cost,
            "versions": {
                "ppap-framework": files.core_version(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "platform": platform.platform(),
                "plugins": {name: v for o in origins for name, v in o.suppliers.items()},
            },
            **more,
            "images": self._images,
        }
        # JSON has no NaN and infinities; they become null.
        self.record = json.loads(json.dumps(record), parse_constant=lambda constant: None)
        files.write_json(self.path / _RECORD, self.record)


def _names(
    kind: str, number: int, num: int, guides: Iterable[str], stages: Iterable[str]
) -> tuple[str, dict[str, str], dict[str, str]]:
    """Files of one of `num` images: itself, the guides' views of it, and its earlier stages."""
    folder = "" if kind == "guided" else f"{kind}/"
    digits = f"{number:0{max(3, len(str(num - 1)))}d}"
    seen = {guide: f"{folder}seen/{digits}-{guide}.png" for guide in guides}
    return f"{folder}{digits}.png", seen, {s: f"{folder}stages/{s}/{digits}.png" for s in stages}


def _earlier(folder: Path) -> list[str]:
    """Every file of the run in a folder but its record; UsageError if the record is invalid."""
    try:
        record = files.read_json(folder / _RECORD)
        config = record["config"]
        guides, stages = ([str(x["name"]) for x in config[key]] for key in ("guides", "stages"))
        naive = ["naive"] * any(guide["experts"] for guide in config["guides"])
        every = ["guided", *["unguided", *naive] * bool(config["compare"])]
        kinds = itertools.product(every, range(config["num"]))
        if record["format"] != _FORMAT:
            raise TypeError
    except (AssetError, TypeError, KeyError) as error:
        reason = f"{str(folder / _RECORD)!r} is not the record of a run"
        raise UsageError(reason, hint=files.ELSEWHERE) from error
    names = [_GRID]
    for kind, number in kinds:
        name, *others = _names(kind, number, config["num"], guides, stages[:-1])
        names += [name, *(file for group in others for file in group.values())]
    return [name for name in names if not Path(name).is_absolute() and ".." not in name.split("/")]
