"""What the experts of a row took to train, from the records that their making left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import BundleFile
from ppap_framework.run import ChosenExperts, LoadedGuide
from ppap_plugin_bench.row import Row

__all__ = ["training_of"]


def training_of(row: Row, guides: Sequence[LoadedGuide]) -> dict[str, Any] | None:
    """Seconds of training, as JSON; None where the row names no records.

    Args:
        row: Whose `training` names them: `transfer.json` of a training, which must be that of the
            row's experts, and `run.json` of the data.
        guides: Of the row, with their experts.

    Raises:
        AssetError: Where a record cannot be read, or is not of something that was finished.
        UsageError: Where a training is of other experts.
    """
    if not row.training:
        return None
    records = {path: _read(path) for path in row.training}
    known = _trained(guides)
    for path, record in records.items():
        settings = record.get("settings", {})
        if "boundaries" in settings and (settings["boundaries"], settings.get("data")) not in known:
            raise UsageError(
                f"{path!r} is not of the training of row {row.name!r}",
                hint="name the transfer.json that was written beside its experts",
            )
    return {
        "seconds": sum(record["seconds"] for record in records.values()),
        "records": [
            {"file": Path(path).name, "seconds": record["seconds"]}
            for path, record in records.items()
        ],
    }


def _trained(guides: Sequence[LoadedGuide]) -> list[tuple[list[float], str | None]]:
    """Where the experts begin, and the hash of the data that they learned from."""
    found = []
    for guide in guides:
        chosen = guide.experts.source
        if isinstance(chosen, ChosenExperts) and chosen.path is not None:
            info = BundleFile(chosen.path.name, chosen.path).info
            found.append((list(info.boundaries), info.data_sha256))
    return found


def _read(path: str) -> dict[str, Any]:
    hint = "name the transfer.json of a training, or the run.json of its data"
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise AssetError(f"cannot read {path!r}: {error.strerror or error}", hint=hint) from error
    except ValueError as error:
        raise AssetError(f"{path!r} is not JSON: {error}", hint=hint) from error
    if not isinstance(record, dict) or not isinstance(record.get("seconds"), int | float):
        raise AssetError(f"{path!r} says nothing of seconds", hint=hint)
    if record.get("status") != "complete":
        raise AssetError(f"{path!r} is of something that was not finished", hint=hint)
    return record
