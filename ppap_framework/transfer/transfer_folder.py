"""Where a training keeps what it needs to go on, and leaves what it made.

transfer.json             settings and diary
log.jsonl                 a line for every tenth iteration and every look at held-out images
.partial/state.pt         while it is not finished
NAME.experts.safetensors  at the end, with loss.png and loss.svg
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch

from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import SUFFIX
from ppap_framework.transfer.synthesis_files import (
    digest,
    locked,
    read_json,
    refusals,
    replacing,
    write_json,
)
from ppap_framework.transfer.synthesis_folder import differences

__all__ = ["TransferFolder", "check_transfer_folder"]

RECORD, LOG, PARTIAL, STATE = "transfer.json", "log.jsonl", ".partial", "state.pt"
DATA = "data"  # the synthetic set, where `adapt` draws it
_ANEW = "give another folder, or --overwrite"


def check_transfer_folder(path: Path) -> None:
    """Accept a folder that holds a training, or nothing, or is not there.

    Raises:
        UsageError: Where it holds anything else.
    """
    if not path.is_dir():
        return
    known = {RECORD, LOG, DATA, "loss.png", "loss.svg"}
    others = [
        entry.name
        for entry in path.iterdir()
        if not (entry.name.startswith(".") or entry.name in known or entry.name.endswith(SUFFIX))
    ]
    if others and not (path / RECORD).exists():
        raise UsageError(
            f"{str(path)!r} holds other files, such as {min(others)!r}",
            hint="give a new or empty folder",
        )


@final
class TransferFolder:
    """A folder of one training. Open it with `opened`."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = dict(settings)
        self._state = path / PARTIAL / STATE
        self._digest = digest(self.settings)
        self._log_size = 0

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False
    ) -> Iterator[TransferFolder]:
        """The folder, locked, made where it is not there.

        Args:
            path: Of the folder.
            settings: Everything that determines the experts, as JSON.
            overwrite: Whether to remove a training that is there.

        Raises:
            UsageError: Where it holds other files, a training with other settings, or another
                process is writing to it.
            PpapError: Where it cannot be written.
        """
        check_transfer_folder(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot make folder {str(path)!r}: {error.strerror or error}",
                hint="give another folder",
            ) from error
        with locked(path / ".lock"):
            folder = cls(path, settings)
            if overwrite:
                folder._clear()
            folder._check_settings()
            yield folder

    @property
    def record(self) -> dict[str, Any] | None:
        """What `transfer.json` says; None before the first time."""
        found: dict[str, Any] | None = read_json(self.path / RECORD)
        return found

    def write_record(self, diary: Mapping[str, Any]) -> None:
        """Write `transfer.json`.

        Raises:
            PpapError: Where that is refused.
        """
        write_json(self.path / RECORD, {"format": 1, **diary, "settings": self.settings})

    def load(self) -> dict[str, Any] | None:
        """The state to go on from; None for the beginning. The log is cut to what it knows.

        Raises:
            AssetError: Where it is damaged.
        """
        if not self._state.exists():
            self._cut_log(0)
            return None
        try:
            found = torch.load(self._state, weights_only=True, map_location="cpu")
            if found["settings"] != self._digest:
                raise ValueError("it is of other settings")
            self._cut_log(found["log"])
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as e:
            raise AssetError(
                f"{str(self._state)!r} cannot be gone on from: {str(e).splitlines()[0]:.200}",
                hint="--overwrite begins anew",
            ) from e
        state: dict[str, Any] = found["state"]
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state, whole or not at all.

        Raises:
            PpapError: Where that is refused.
        """
        with refusals(self._state):
            self._state.parent.mkdir(exist_ok=True)
        with replacing(self._state) as file:
            torch.save(
                {"settings": self._digest, "log": self._log_size, "state": dict(state)}, file
            )

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to the log.

        Raises:
            PpapError: Where that is refused.
        """
        with refusals(self.path / LOG), (self.path / LOG).open("ab") as file:
            self._log_size += file.write(json.dumps(line).encode() + b"\n")

    def lines(self) -> list[dict[str, Any]]:
        """The log."""
        path = self.path / LOG
        return (
            [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        )

    def tidy(self) -> None:
        """Remove what only an unfinished training needs.

        Raises:
            PpapError: Where that is refused.
        """
        if (self.path / PARTIAL).exists():
            with refusals(self.path / PARTIAL):
                shutil.rmtree(self.path / PARTIAL)

    def _cut_log(self, size: int) -> None:
        path = self.path / LOG
        with refusals(path):
            if path.exists():
                with path.open("r+b") as file:
                    file.truncate(size)
            elif size:
                size = 0
        self._log_size = size

    def _check_settings(self) -> None:
        record = self.record
        if record is None:
            return
        found = differences(record.get("settings"), self.settings)
        if found:
            shown = "; ".join(found[:4]) + ("; ..." if len(found) > 4 else "")
            raise UsageError(
                f"{str(self.path)!r} was begun with other settings: {shown}", hint=_ANEW
            )

    def _clear(self) -> None:
        self.tidy()
        with refusals(self.path):
            for entry in sorted(self.path.iterdir()):
                if entry.name.endswith(SUFFIX) or entry.name in (LOG, "loss.png", "loss.svg"):
                    entry.unlink()
            (self.path / RECORD).unlink(missing_ok=True)
