"""The folder of a training.

transfer.json             settings, and a record of every call
log.jsonl                 a line for every tenth iteration and every validation
.lock                     lock of the writing process
.partial/state            SHA-256 and torch file of an unfinished training's state
NAME.experts.safetensors  the result, with loss.png and loss.svg
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch

from ppap_framework import resume
from ppap_framework.errors import AssetError
from ppap_framework.experts import SUFFIX
from ppap_framework.files import digest, read_json, refusals, replacing
from ppap_framework.resume import KEPT

DATA = "data"  # folder of the synthetic set that `adapt` draws
_RECORD, _LOG, _PARTIAL, _STATE = "transfer.json", "log.jsonl", ".partial", "state"
_PLOTS = ("loss.png", "loss.svg")
_DAMAGED = "--overwrite begins anew"


def check_transfer_folder(path: Path) -> None:
    """Accept a folder that holds a training, is empty, or is missing; else raise UsageError."""
    if not (path / _RECORD).exists():
        resume.check_content(path, lambda name: name == DATA)


def recorded_settings(path: Path) -> dict[str, Any] | None:
    """The settings of a folder's training, or None; AssetError if the record is damaged."""
    return _record(path).get("settings")


@final
class TransferFolder:
    """The folder of a training; create it with `opened`.

    Args:
        settings: Everything that determines the experts, as JSON.
        bundle: File name of the bundle.

    Attributes:
        log: Lines of the log, written with the next state.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], bundle: str) -> None:
        self.path = path
        # The form in which they are read back: JSON has no tuples.
        self.settings: dict[str, Any] = json.loads(json.dumps({**settings, "bundle": bundle}))
        self.bundle = path / bundle
        self._state = path / _PARTIAL / _STATE
        self._digest = digest(self.settings)
        self.log: list[dict[str, Any]] = []

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, path: Path, settings: Mapping[str, Any], bundle: str, *, overwrite: bool = False
    ) -> Iterator[TransferFolder]:
        """Lock the folder, created if it is missing; `overwrite` removes an earlier training.

        Raises:
            UsageError: If it holds other files or settings, or another process writes to it.
            AssetError: If its record is damaged.
            PpapError: If it cannot be written.
        """
        check_transfer_folder(path)
        with resume.opened(path):
            folder = cls(path, settings, bundle)
            if overwrite:
                folder._clear()
            before = recorded_settings(path)
            if before is not None:
                resume.check_settings(path, before, folder.settings)
            ours = (_RECORD, _LOG, bundle)
            resume.remove_temporary(path, lambda name: name in ours)
            resume.remove_temporary(folder._state.parent, lambda name: name == _STATE)
            yield folder

    @property
    def complete(self) -> bool:
        """Whether the training is finished and its bundle exists."""
        return self.bundle.exists() and _record(self.path).get("status") == "complete"

    def calls(self, command: Sequence[str] | None) -> resume.Calls:
        """The record of this call and earlier ones, `transfer.json`."""
        call = {"threads": torch.get_num_threads(), "iterations": 0}
        return resume.Calls(self.path / _RECORD, command, call, {"settings": self.settings})

    def load(self) -> dict[str, Any] | None:
        """Read the saved state and log; None without one, AssetError if it is damaged."""
        if not self._state.exists():
            return None
        content = self._state.read_bytes()
        stated, payload = content[:64], content[64:]
        if hashlib.sha256(payload).hexdigest().encode() != stated:
            raise AssetError(
                f"{str(self._state)!r} is damaged: its SHA-256 is not that of its content",
                hint=_DAMAGED,
            )
        found = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
        if found["settings"] != self._digest:
            raise AssetError(f"{str(self._state)!r} is of other settings", hint=_DAMAGED)
        self.log = found["log"]
        state: dict[str, Any] = found["state"]
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Write a state and the log."""
        saved = io.BytesIO()
        torch.save({"settings": self._digest, "log": self.log, "state": state}, saved)
        # torch.load does not detect changed values.
        stated = hashlib.sha256(saved.getbuffer()).hexdigest().encode()
        with replacing(self._state, hint=KEPT) as temporary:
            temporary.write_bytes(stated + saved.getbuffer())
        with replacing(self.path / _LOG, hint=KEPT) as temporary:
            lines = [json.dumps(line, allow_nan=False) + "\n" for line in self.log]
            temporary.write_text("".join(lines), encoding="utf-8")

    def tidy(self) -> None:
        """Remove the files of an unfinished training."""
        if (self.path / _PARTIAL).exists():
            with refusals(self.path / _PARTIAL, hint=KEPT):
                shutil.rmtree(self.path / _PARTIAL)

    def _clear(self) -> None:
        """Remove earlier results, the record last, so that no file is ever without it."""
        made: list[str] = []
        if (self.path / _RECORD).exists():
            made = [_LOG, *_PLOTS]
            with contextlib.suppress(AssetError):  # damaged records are removed, too
                name = (recorded_settings(self.path) or {}).get("bundle")
                if isinstance(name, str) and Path(name).name == name and name.endswith(SUFFIX):
                    # Earlier versions wrote a record of the calibration, too.
                    made += [f"{name.removesuffix(SUFFIX)}.calibration.json", name]
        with refusals(self.path, hint=KEPT):
            for name in made:
                (self.path / name).unlink(missing_ok=True)
        self.tidy()
        with refusals(self.path, hint=KEPT):
            (self.path / _RECORD).unlink(missing_ok=True)


def _record(path: Path) -> dict[str, Any]:
    """Content of `transfer.json`; empty if it is missing."""
    record: Any = read_json(path / _RECORD, hint=_DAMAGED)
    if record is None:
        return {}
    if not (
        isinstance(record, dict)
        and isinstance(record.get("settings"), dict)
        and isinstance(record.get("calls"), list)
    ):
        raise AssetError(f"{str(path / _RECORD)!r} is no record of a training", hint=_DAMAGED)
    return record
