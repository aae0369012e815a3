"""Files and folders that stay sound however the process ends: files that are complete or absent,
JSON and hashes; folders of resumable jobs, with their lock, settings, and a record of every call.

Functions that write raise `PpapError` if the system refuses.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError, calling

_FLAT = re.compile(r"([\[{])\n\s*([^][{}]*?)\s*\n\s*([\]}])")  # no string contains a line break
_WIDTH = 100
_SETTLED = 2e9  # ns; within a tick of a file system's clock, a file can change and keep its time
_TEMPORARY = re.compile(r"\.+(.+?)(\.\d+\.tmp)+")  # a temporary file may have its own
_Entries: TypeAlias = Mapping[str, Any]

KEPT = "finished work is kept, and the same command continues it"
"""Hint for a write that the system refused."""

ELSEWHERE = "give another folder"
"""Hint for a folder that cannot be used."""


def cache_dir() -> Path:
    """The folder of downloads: `$PPAP_CACHE_DIR`, or a folder in the user's cache."""
    if chosen := os.environ.get("PPAP_CACHE_DIR"):
        return expanded(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("ppap"))


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with its ~ expanded; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # pathlib's raises


def local_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a path; of a URL, a copy of it that a plugin's entry point in the group
    `ppap.folders` fetches. PluginError if there is no such plugin.
    """
    if "://" not in (url := os.fspath(path)):
        return expanded(path)
    for entry in metadata.entry_points(group="ppap.folders"):
        with calling(entry.value, ""):
            copy: Path = entry.load()(url)
            return copy
    raise PluginError(f"nothing installed reads {url!r}", hint="pip install ppap-plugin-hub")


def is_on(variable: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether an environment variable is set to anything but a word for no."""
    return environ.get(variable, "").strip().lower() not in ("", "0", "false", "no", "off")


@contextlib.contextmanager
def refusals(
    path: Path, error: type[PpapError] = PpapError, hint: str = "", action: str = "write"
) -> Iterator[None]:
    """A context in which an `OSError` becomes an error of the given type that names the path."""
    try:
        yield
    except OSError as refused:
        fault = f"cannot {action} {str(path)!r}: {refused.strerror or refused}"
        raise error(fault, hint=hint) from refused


@contextlib.contextmanager
def replacing(
    path: Path, error: type[PpapError] = PpapError, hint: str = "", *, once: bool = False
) -> Iterator[Path]:
    """A temporary path, flushed and renamed to `path` on success, else removed. Missing parent
    folders are created. An `OSError` is converted as in `refusals`. With `once`, a file that exists
    by then stays, whoever wrote it, and so does the absence of the folder.
    """
    # Not the number of the process, which those of other machines may have, too.
    temporary = path.with_name(f".{path.name}.{int.from_bytes(os.urandom(8), 'big')}.tmp")
    with refusals(path, error, hint):
        if not once:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            if once:
                with contextlib.suppress(OSError):  # some file systems have no links
                    os.link(temporary, path)
            if not (once and path.exists()):
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder and all that it holds, if it is there; other processes may do so, too."""
    for left in reversed(range(10)):
        if path.exists():
            # Another process may write a last file meanwhile.
            with refusals(path), contextlib.suppress(*[OSError] * bool(left)):
                shutil.rmtree(path)


def write_json(path: Path, value: Any, hint: str = "", *, once: bool = False) -> None:
    """Write JSON as `replacing` does, indented; short objects, and plain lists, take one line."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False, default=str)
    with replacing(path, hint=hint, once=once) as temporary:
        temporary.write_text(_FLAT.sub(_joined, text) + "\n", encoding="utf-8")


def _joined(match: re.Match[str]) -> str:
    line = match[1] + re.sub(r"\n\s*", " ", match[2]) + match[3]
    return line if match[1] == "[" or len(line) <= _WIDTH else match[0]


def read_json(path: Path, hint: str = "") -> Any:
    """The JSON value in a file; None if there is no such file, AssetError if it is not JSON."""
    with refusals(path, AssetError, action="read"):
        try:
            return json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, RecursionError) as error:
            raise AssetError(f"{str(path)!r} is damaged: {error}", hint=hint) from error


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces, ASCII), in hexadecimal."""
    compact: Any = {"separators": (",", ":"), "allow_nan": False, "default": str}
    canonical = json.dumps(value, sort_keys=True, **compact)
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, cached by time and size; AssetError if it is unreadable."""
    with refusals(path, AssetError, action="read"):
        stat = path.stat()
        settled = time.time_ns() - stat.st_mtime_ns > _SETTLED
        read = _file_sha256 if settled else _file_sha256.__wrapped__
        return read(path.resolve(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _file_sha256(path: Path, mtime_ns: int, size: int) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def check_content(path: Path, belongs: Callable[[str], bool]) -> None:
    """UsageError if a folder has visible files that do not belong to the job by name."""
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    if others := [name for name in names if not name.startswith(".") and not belongs(name)]:
        fault = f"{str(path)!r} holds other files, such as {min(others)!r}"
        raise UsageError(fault, hint="give a new or empty folder")


def check_writable(folder: Path, hint: str = ELSEWHERE) -> None:
    """UsageError if a folder can be neither made nor written to; writes nothing."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        fault = f"{str(there)!r} {'is read-only' if there.is_dir() else 'is no folder'}"
        raise UsageError(f"cannot write to {str(folder)!r}: {fault}", hint=hint)


def core_version() -> str:
    """The version of this package."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("ppap-framework")
    return "unknown"  # run from a checkout that is not installed


@contextlib.contextmanager
def opened(path: Path) -> Iterator[None]:
    """Hold a folder, created if it is missing, as the only process that writes to it. UsageError if
    it cannot be created, or another process holds it. The system releases the lock, an empty file,
    when the process ends.
    """
    with refusals(path, UsageError, ELSEWHERE):
        path.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with refusals(path):
            file = stack.enter_context((path / ".lock").open("ab"))
        if locked(file.fileno()) is False:
            fault = f"another process is writing to {str(path)!r}"
            raise UsageError(fault, hint="wait for it, or give another folder")
        yield


def locked(file: int, *, shared: bool = False) -> bool | None:
    """Lock an open file until it is closed; False if another process has, None without locks."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # Windows has no such module

        try:
            fcntl.flock(file, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
        except BlockingIOError:
            return False
        return True
    return None


def check_settings(path: Path, before: Any, now: Any) -> None:
    """UsageError if the settings, JSON values, differ from those that the folder was begun with."""
    if found := differences(before, now):
        shown = "; ".join(found[:4]) + ("; ..." if len(found) > 4 else "")
        hint = "give the same settings or another folder, or begin anew with --overwrite"
        raise UsageError(f"{str(path)!r} was begun with other settings: {shown}", hint=hint)


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """The differences between two JSON values, such as "seed was 0, is now 1"."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return [] if before == now else [f"{name} was {before}, is now {now}"]
    inner = {key: f"{name}.{key}" if name else key for key in {**before, **now}}
    return [d for key, n in inner.items() for d in differences(before.get(key), now.get(key), n)]


def remove_temporary(path: Path, belongs: Callable[[str], bool]) -> None:
    """Remove what a killed `replacing` left of files that belong; the folder may be missing."""
    with refusals(path, hint=KEPT):
        for entry in path.glob(".*.tmp") if path.is_dir() else ():
            if (match := _TEMPORARY.fullmatch(entry.name)) and belongs(match[1]):
                entry.unlink()


class Calls:
    """The record of a job, a JSON file: its status, what every call did in how many seconds, and
    further content such as settings. Processes may share a file; calls of a damaged one are lost.

    `more` are entries beside the typed command; `call` holds all, and may be changed until it ends.
    """

    def __init__(
        self, file: Path, command: Sequence[str] | None, more: _Entries, content: _Entries
    ) -> None:
        self._file, self._content = file, content
        self._start, now = time.perf_counter(), datetime.datetime.now(datetime.timezone.utc)
        self.call: dict[str, Any] = {
            "status": "running",
            "started": now.isoformat(timespec="seconds"),
            "process": f"{platform.node()}-{os.getpid()}-{os.urandom(4).hex()}",
            "command": command and list(command),
            **more,
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
        self.call |= {"status": status, "seconds": round(time.perf_counter() - self._start, 3)}
        with in_turn(self._file.parent):
            earlier: list[_Entries] = []
            with contextlib.suppress(PpapError, KeyError, TypeError, ValueError):
                read = (read_json(self._file) or {"calls": []})["calls"]
                earlier = [{**call, "seconds": float(call["seconds"])} for call in read]
            others = [call for call in earlier if call.get("process") != self.call["process"]]
            calls = [*others, self.call]
            total = round(sum(call["seconds"] for call in calls), 3)
            record = {"format": 1, "status": status, "seconds": total, "calls": calls}
            write_json(self._file, {**record, **self._content}, hint=KEPT)


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """A context for one process at a time, as far as the system has locks. It is entered after a
    few seconds in any case: a machine that is gone may hold the lock.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # Windows opens no folder
            held = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, held)
            for _ in range(100):
                if locked(held) is not False:
                    break
                time.sleep(0.03)
        yield
