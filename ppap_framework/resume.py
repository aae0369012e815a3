"""Folders of resumable jobs: content, lock, settings, and a record of every call."""

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
"""Hint if a file cannot be written."""


def check_content(path: Path, belongs: Callable[[str], bool]) -> None:
    """Accept a folder that is missing, or whose visible files all belong to the job.

    Raises:
        UsageError: If `belongs` is false for a visible file's name.
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
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[None]:
    """A context that locks a folder, created if it is missing.

    Raises:
        UsageError: If it cannot be created, or another process has locked it.
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
    """Compare the settings of a folder and a job, JSON values; UsageError if they differ."""
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
    """Remove temporary files of `files.replacing` that a killed process left.

    Args:
        path: The folder; it may be missing.
        belongs: Whether a file of this name, without the temporary suffix, belongs to the job.

    Raises:
        PpapError: If a file cannot be removed.
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
    """The record of a job: its status, and an entry with duration for every call.

    Args:
        file: The JSON file. If it is damaged, earlier calls are lost.
        command: The typed command, if any.
        call: Further entries of this call; the attribute `call` may be changed until it ends.
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
        """A context that records how it ends: "complete", "interrupted" or "failed"."""
        self.write()
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(PpapError):  # the first error is the one to report
                self.write("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        self.write("complete")

    def write(self, status: str = "running") -> None:
        """Write the file; PpapError if it cannot be written."""
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
