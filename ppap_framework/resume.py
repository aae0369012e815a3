"""Folders of resumable jobs: their content, lock, settings, and a record of every call.

Functions that write raise `PpapError` if the system refuses.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, final

from ppap_framework.errors import PpapError, UsageError
from ppap_framework.files import locked, read_json, refusals, write_json

_TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp")

KEPT = "finished work is kept, and the same command continues it"
"""Hint for a write that the system refused."""


def check_content(path: Path, belongs: Callable[[str], bool]) -> None:
    """Accept a folder that is missing, or whose visible files all belong to the job by name.

    Raises:
        UsageError: For any other folder.
    """
    if not path.is_dir():
        return
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    others = [name for name in names if not belongs(name)]
    if others:
        raise UsageError(
            f"{str(path)!r} holds other files, such as {min(others)!r}",
            hint="give a new or empty folder",
        )


def core_version() -> str:
    """The version of this package."""
    try:
        return metadata.version("ppap-framework")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[None]:
    """Hold a folder, created if it is missing, as the only process that writes to it.

    Raises:
        UsageError: If it cannot be created, or another process holds it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make folder {str(path)!r}: {error.strerror or error}",
            hint="give another folder",
        ) from error
    with locked(path / ".lock"):
        yield


def check_settings(path: Path, before: Any, now: Any) -> None:
    """Compare the settings, JSON values, with those that the folder was begun with.

    Raises:
        UsageError: If they differ; the message names up to four differences.
    """
    found = differences(before, now)
    if found:
        shown = "; ".join(found[:4]) + ("; ..." if len(found) > 4 else "")
        raise UsageError(
            f"{str(path)!r} was begun with other settings: {shown}",
            hint="give the same settings or another folder, or begin anew with --overwrite",
        )


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """The differences between two JSON values, such as "seed was 0, is now 1"."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [
            difference
            for key in {**before, **now}
            for difference in differences(
                before.get(key), now.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if before == now else [f"{name} was {before}, is now {now}"]


def remove_temporary(path: Path, belongs: Callable[[str], bool]) -> None:
    """Remove temporary files that a killed process left in `files.replacing`.

    Args:
        path: The folder; it may be missing.
        belongs: Whether a file of this name, without the temporary suffix, belongs to the job.
    """
    with refusals(path, hint=KEPT):
        for entry in path.glob(".*.tmp") if path.is_dir() else ():
            name = entry.name
            while match := _TEMPORARY.fullmatch(name):  # a temporary file may have its own
                name = match[1]
            if name != entry.name and belongs(name):
                entry.unlink()


@final
class Calls:
    """The record of a job: its status, and what every call did in how many seconds.

    Args:
        file: JSON file of the record. The calls of a damaged file are forgotten.
        command: The command that was typed, if there was one.
        call: Further entries of this call; `call` may be changed until it ends.
        content: Further entries of the file, such as the settings.
    """

    def __init__(
        self,
        file: Path,
        command: Sequence[str] | None,
        call: Mapping[str, Any],
        content: Mapping[str, Any],
    ) -> None:
        self._file, self._content = file, content
        self._earlier = _earlier(file)
        self._start = time.perf_counter()
        self.call: dict[str, Any] = {
            "status": "running",
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": None if command is None else list(command),
            **call,
            "seconds": 0.0,
        }

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """A context whose end is recorded: "complete", "interrupted" or "failed"."""
        self.write()
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(PpapError):  # the first error is the one to report
                self.write("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        self.write("complete")

    def write(self, status: str = "running") -> None:
        seconds = round(time.perf_counter() - self._start, 3)
        self.call |= {"status": status, "seconds": seconds}
        calls = [*self._earlier, self.call]
        record = {
            "format": 1,
            "status": status,
            "seconds": round(sum(call["seconds"] for call in calls), 3),
            "calls": calls,
            **self._content,
        }
        write_json(self._file, record, hint=KEPT)


def _earlier(file: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(PpapError, KeyError, TypeError, ValueError):
        calls = (read_json(file) or {"calls": []})["calls"]
        return [{**call, "seconds": float(call["seconds"])} for call in calls]
    return []
