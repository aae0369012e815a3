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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ppap_framework import files
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import SUFFIX

DATA = "data"  # folder of the synthetic set that `adapt` draws
_RECORD, _LOG, _PARTIAL, _STATE = "transfer.json", "log.jsonl", ".partial", "state"
_DAMAGED = "--overwrite begins anew"


def check_folder(path: Path) -> None:
    """Accept a folder that holds a training, is empty, or is missing; else raise UsageError."""
    if not (path / _RECORD).exists():
        files.check_content(path, lambda name: name == DATA)


def recorded(path: Path) -> dict[str, Any]:
    """The content of `transfer.json`, empty if it is missing; AssetError if it is damaged."""
    match files.read_json(path / _RECORD, hint=_DAMAGED):
        case None:
            return {}
        case {"settings": dict(), "calls": list()} as record:
            return dict(record)
    raise AssetError(f"{str(path / _RECORD)!r} is no record of a training", hint=_DAMAGED)


@contextlib.contextmanager
def opened(
    path: Path, settings: Mapping[str, Any], bundle: str, *, overwrite: bool = False
) -> Iterator[TransferFolder]:
    """Lock the folder of a training, created if it is missing; `overwrite` removes an earlier one.

    `settings` are everything that determines the experts, as JSON. UsageError if the folder holds
    other files or settings, or another process writes to it; AssetError if its record is damaged.
    """
    check_folder(path)
    with files.opened(path):
        # The form in which they are read back: JSON has no tuples.
        folder = TransferFolder(path, json.loads(json.dumps({**settings, "bundle": bundle})))
        if overwrite:
            _clear(path)
        if before := recorded(path):
            files.check_settings(path, before["settings"], folder.settings)
        files.remove_temporary(path, lambda name: name in (_RECORD, _LOG, bundle))
        files.remove_temporary(path / _PARTIAL, lambda name: name == _STATE)
        yield folder


class TransferFolder:
    """The folder of a training, from `opened`; `log` is written with the next state."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.bundle: Path = path / settings["bundle"]
        self.log: list[dict[str, Any]] = []
        self._state = path / _PARTIAL / _STATE
        self._digest = files.digest(settings)

    @property
    def complete(self) -> bool:
        """Whether the training is finished and its bundle exists."""
        return self.bundle.exists() and recorded(self.path).get("status") == "complete"

    def calls(self, command: Sequence[str] | None) -> files.Calls:
        """The record of this call and earlier ones, `transfer.json`."""
        call = {"threads": torch.get_num_threads(), "iterations": 0}
        return files.Calls(self.path / _RECORD, command, call, {"settings": self.settings})

    def load(self) -> dict[str, Any] | None:
        """Read the saved state and log; None without one, AssetError if it is damaged."""
        if not self._state.exists():
            return None
        content = self._state.read_bytes()
        if hashlib.sha256(content[64:]).hexdigest().encode() != content[:64]:
            message = f"{str(self._state)!r} is damaged: its SHA-256 is not that of its content"
            raise AssetError(message, hint=_DAMAGED)
        found = torch.load(io.BytesIO(content[64:]), weights_only=True, map_location="cpu")
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
        lines = [json.dumps(line, allow_nan=False) + "\n" for line in self.log]
        with files.replacing(self._state, hint=files.KEPT) as temporary:
            temporary.write_bytes(stated + saved.getbuffer())
        with files.replacing(self.path / _LOG, hint=files.KEPT) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")

    def tidy(self) -> None:
        """Remove the files of an unfinished training."""
        files.remove_folder(self.path / _PARTIAL)


def _clear(path: Path) -> None:
    """Remove earlier results, the record last, so that no file is ever without it."""
    made: list[str] = []
    if (path / _RECORD).exists():
        made = [_LOG, "loss.png", "loss.svg"]
        try:
            name = recorded(path)["settings"].get("bundle")
        except AssetError as error:  # removed, too, if a training was begun here
            if not (path / _PARTIAL).exists():
                raise UsageError(error.message, hint="give another folder") from error
        else:
            if isinstance(name, str) and Path(name).name == name and name.endswith(SUFFIX):
                # Earlier versions wrote a record of the calibration, too.
                made += [f"{name.removesuffix(SUFFIX)}.calibration.json", name]
    with files.refusals(path, hint=files.KEPT):
        for name in made:
            (path / name).unlink(missing_ok=True)
        files.remove_folder(path / _PARTIAL)
        (path / _RECORD).unlink(missing_ok=True)
