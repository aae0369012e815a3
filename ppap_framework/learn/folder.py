"""Where a training keeps what it needs to go on, and leaves what it made.

    transfer.json             settings and diary
    log.jsonl                 a line for every tenth iteration and every look at held-out images
    .lock                     keeps two processes apart
    .partial/state            while it is not finished: a digest, and what torch saves
    NAME.experts.safetensors  at the end, with loss.png and loss.svg
    NAME.calibration.json     where its scales were calibrated, how

The state says how long the log was. What a killed process had added to it is cut off, and written
again by the one that goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch

from ppap_framework.data.files import (
    digest,
    locked,
    read_json,
    refusals,
    replacing,
    write_json,
)
from ppap_framework.data.folder import differences
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import SUFFIX

__all__ = [
    "DATA",
    "TransferFolder",
    "calibration_path",
    "check_transfer_folder",
    "recorded_settings",
]

RECORD, LOG, PARTIAL, STATE = "transfer.json", "log.jsonl", ".partial", "state"
PLOTS = ("loss.png", "loss.svg")
DATA = "data"  # the synthetic set, where `adapt` draws it
_ANEW = "give the same settings or another folder, or begin anew with --overwrite"
_DAMAGED = "--overwrite begins anew"


def calibration_path(bundle: Path) -> Path:
    """Where the record of a bundle's calibration belongs: beside it."""
    return bundle.with_name(f"{bundle.name.removesuffix(SUFFIX)}.calibration.json")


def check_transfer_folder(path: Path) -> None:
    """Accept a folder that holds a training, or nothing, or is not there.

    Raises:
        UsageError: Where it holds anything else.
    """
    if not path.is_dir() or (path / RECORD).exists():
        return
    others = [
        entry.name
        for entry in path.iterdir()
        if not entry.name.startswith(".") and entry.name != DATA
    ]
    if others:
        raise UsageError(
            f"{str(path)!r} holds other files, such as {min(others)!r}",
            hint="give a new or empty folder",
        )


@final
class TransferFolder:
    """A folder of one training. Open it with `opened`.

    Attributes:
        path: Of the folder.
        settings: Everything that determines the experts, as JSON.
        bundle: Where their file belongs.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], bundle: str) -> None:
        self.path = path
        # As they will be read again: JSON knows no tuples.
        self.settings: dict[str, Any] = json.loads(json.dumps({**settings, "bundle": bundle}))
        self.bundle = path / bundle
        self._state = path / PARTIAL / STATE
        self._digest = digest(self.settings)
        self._log_size = 0

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, path: Path, settings: Mapping[str, Any], bundle: str, *, overwrite: bool = False
    ) -> Iterator[TransferFolder]:
        """The folder, locked, made where it is not there.

        Args:
            path: Of the folder.
            settings: Everything that determines the experts, as JSON.
            bundle: How their file shall be called.
            overwrite: Whether to remove a training that is there.

        Raises:
            UsageError: Where it holds other files, a training with other settings, or another
                process is writing to it.
            AssetError: Where it does not say what training it holds.
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
            folder = cls(path, settings, bundle)
            if overwrite:
                folder._clear()
            folder._check_settings()
            folder._remove_temporary()
            yield folder

    @property
    def complete(self) -> bool:
        """Whether the experts are there, and everything else, too."""
        return self.bundle.exists() and (self.record or {}).get("status") == "complete"

    @property
    def record(self) -> dict[str, Any] | None:
        """What `transfer.json` says; None before the first time.

        Raises:
            AssetError: Where it is damaged.
        """
        return _record(self.path)

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
            content = self._state.read_bytes()
        except OSError as error:
            raise AssetError(f"cannot read {str(self._state)!r}: {error.strerror}") from error
        stated, payload = content[:64], content[64:]
        if hashlib.sha256(payload).hexdigest().encode() != stated:
            raise AssetError(
                f"{str(self._state)!r} is damaged: its SHA-256 is not that of its content",
                hint=_DAMAGED,
            )
        found = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
        if found["settings"] != self._digest:
            raise AssetError(f"{str(self._state)!r} is of other settings", hint=_DAMAGED)
        self._cut_log(found["log"])
        state: dict[str, Any] = found["state"]
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state, whole or not at all.

        Raises:
            PpapError: Where that is refused.
        """
        saved = io.BytesIO()
        torch.save({"settings": self._digest, "log": self._log_size, "state": dict(state)}, saved)
        # Torch finds no fault with numbers that were changed on the disk.
        stated = hashlib.sha256(saved.getbuffer()).hexdigest().encode()
        with refusals(self._state):
            self._state.parent.mkdir(exist_ok=True)
        with replacing(self._state) as file:
            file.write(stated)
            file.write(saved.getbuffer())

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to the log.

        Raises:
            PpapError: Where that is refused.
        """
        with refusals(self.path / LOG), (self.path / LOG).open("ab") as file:
            self._log_size += file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def lines(self) -> list[dict[str, Any]]:
        """The log, as far as it can be read."""
        read = []
        for line in self._log_content().splitlines():
            with contextlib.suppress(ValueError):
                read.append(json.loads(line))
        return [
            line for line in read if isinstance(line, dict) and {"phase", "iteration"} <= {*line}
        ]

    def tidy(self) -> None:
        """Remove what only an unfinished training needs.

        Raises:
            PpapError: Where that is refused.
        """
        if (self.path / PARTIAL).exists():
            with refusals(self.path / PARTIAL):
                shutil.rmtree(self.path / PARTIAL)

    def _log_content(self) -> bytes:
        path = self.path / LOG
        with refusals(path):
            return path.read_bytes() if path.exists() else b""

    def _cut_log(self, size: int) -> None:
        """Keep at most so many bytes, in whole lines."""
        kept = self._log_content()[:size]
        size = kept.rfind(b"\n") + 1
        path = self.path / LOG
        with refusals(path):
            if path.exists():
                with path.open("r+b") as file:
                    file.truncate(size)
        self._log_size = size

    def _check_settings(self) -> None:
        record = self.record
        if record is None:
            return
        found = differences(record["settings"], self.settings)
        if found:
            shown = "; ".join(found[:4]) + ("; ..." if len(found) > 4 else "")
            raise UsageError(
                f"{str(self.path)!r} was begun with other settings: {shown}", hint=_ANEW
            )

    def _clear(self) -> None:
        """Remove what an earlier call wrote, its record last: nothing is ever without it."""
        made = []
        if (self.path / RECORD).exists():
            made = [LOG, *PLOTS]
            with contextlib.suppress(AssetError):  # a damaged record is no reason to keep it
                for name in _bundle_of(self.record):
                    made += [calibration_path(Path(name)).name, name]
        with refusals(self.path):
            for name in made:
                (self.path / name).unlink(missing_ok=True)
        self.tidy()
        with refusals(self.path):
            (self.path / RECORD).unlink(missing_ok=True)

    def _remove_temporary(self) -> None:
        """Remove what a killed process was writing."""
        with refusals(self.path):
            files = (self.path / RECORD, self.bundle, calibration_path(self.bundle), self._state)
            for owner in files:
                for entry in owner.parent.iterdir() if owner.parent.exists() else ():
                    dots, _, _ = entry.name.partition(owner.name + ".")
                    if dots in (".", "..") and entry.suffix in (".tmp", ".draft"):
                        entry.unlink()


def recorded_settings(path: Path) -> dict[str, Any] | None:
    """The settings of the training that is in a folder; None where there is none.

    Raises:
        AssetError: Where the record is damaged.
    """
    found = _record(path)
    return None if found is None else found["settings"]


def _record(path: Path) -> dict[str, Any] | None:
    found: Any = read_json(path / RECORD, hint=_DAMAGED)
    if found is not None and not (
        isinstance(found, dict)
        and isinstance(found.get("settings"), dict)
        and isinstance(found.get("calls"), list)
    ):
        raise AssetError(f"{str(path / RECORD)!r} is no record of a training", hint=_DAMAGED)
    return found


def _bundle_of(record: Mapping[str, Any] | None) -> list[str]:
    """The plain name of the file that a training makes, if its record says so."""
    name = record["settings"].get("bundle") if record else None
    plain = isinstance(name, str) and Path(name).name == name and name.endswith(SUFFIX)
    return [str(name)] if plain else []
