"""How long the experts of a row trained, from the records that their training left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import BundleFile
from ppap_framework.files import read_json
from ppap_framework.guidance import Guide
from ppap_plugin_bench.row import Row

__all__ = ["training_of"]


def training_of(row: Row, guides: Sequence[Guide]) -> dict[str, Any] | None:
    """Seconds of training, as JSON; None if the row names no records.

    Args:
        row: The row; its `training` names `transfer.json` of the training of its experts, and
            `run.json` of their data.
        guides: Its guides, with their experts.

    Raises:
        AssetError: If a record cannot be read, or is of something that was not finished.
        UsageError: If a training is of other experts.
    """
    if not row.training:
        return None
    records = {Path(path): _read(Path(path)) for path in row.training}
    infos = [guide.experts.info for guide in guides if isinstance(guide.experts, BundleFile)]
    known = [(list(info.boundaries), info.data_sha256) for info in infos]
    for path, record in records.items():
        settings = record.get("settings", {})
        if "boundaries" in settings and (settings["boundaries"], settings.get("data")) not in known:
            raise UsageError(
                f"{str(path)!r} is not of the training of row {row.name!r}",
                hint="name the transfer.json that was written beside its experts",
            )
    return {
        "seconds": sum(record["seconds"] for record in records.values()),
        "records": [
            {"file": path.name, "seconds": record["seconds"]} for path, record in records.items()
        ],
    }


def _read(path: Path) -> dict[str, Any]:
    hint = "name the transfer.json of a training, or the run.json of its data"
    record = read_json(path, hint)
    if record is None:
        raise AssetError(f"cannot read {str(path)!r}: there is no such file", hint=hint)
    if not isinstance(record, dict) or not isinstance(record.get("seconds"), int | float):
        raise AssetError(f"{str(path)!r} does not say how many seconds it took", hint=hint)
    if record.get("status") != "complete":
        raise AssetError(f"{str(path)!r} is of something that was not finished", hint=hint)
    return record
