"""Reads the files of figures in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from ppap_framework.errors import AssetError
from ppap_framework.files import read_json
from ppap_plugin_bench.experiment import Better

FORMAT = 1
"""Format of all files; it changes when their meaning does."""


@attrs.frozen
class Results:
    """Results that `evaluate` wrote into a folder.

    Attributes:
        folder: The folder.
        experiment: Record of the experiment.
        judge: Accuracy of the judges.
        rows: Measured rows, in the table's order.
        differences: Differences by baseline and row.
    """

    folder: Path
    experiment: dict[str, Any]
    judge: dict[str, Any]
    rows: list[dict[str, Any]]
    differences: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read a folder.

        Raises:
            AssetError: If files are missing, or their protocols differ.
        """
        experiment = _read(folder / "experiment.json")
        paths = [folder / "rows" / f"{name}.json" for name in experiment["rows"]]
        rows = [_read(path) for path in paths if path.is_file()]
        differences = _read(folder / "differences.json")
        for file in (*rows, differences):
            if file["protocol"] != experiment["protocol"]:
                raise AssetError(
                    f"{file.get('name', 'differences')!r} in {str(folder)!r} was not measured as "
                    "experiment.json says",
                    hint="evaluate it again",
                )
        return cls(folder, experiment, _read(folder / "judge.json"), rows, differences["from"])

    @property
    def shown(self) -> dict[str, Better]:
        """Figures of fidelity to the targets, and which value is better."""
        shown: dict[str, Better] = self.experiment["shown"]
        return shown

    @property
    def tuned(self) -> list[dict[str, Any]]:
        """Rows that chose among candidates."""
        return [row for row in self.rows if row.get("tuning")]

    @property
    def objectives(self) -> list[str]:
        """Figures by which any row chose."""
        return list(dict.fromkeys(name for row in self.tuned for name in row["objective"]))


def guides_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The guides of a row."""
    guide = row.get("guide")
    return row.get("guides") or ([guide] if guide else [])


def find_results(folder: Path) -> list[Results]:
    """The results in a folder, or in each of the folders in it.

    Raises:
        AssetError: If there are no results, or they cannot be read.
    """
    found = sorted(path.parent for path in folder.glob("**/experiment.json"))
    if not found:
        raise AssetError(f"there are no results in {str(folder)!r}", hint="`ppap evaluate` first")
    return [Results.read(path) for path in found]


def _read(path: Path) -> Any:
    value = read_json(path, hint="evaluate again")
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        what = "there is no" if value is None else "another format has"
        raise AssetError(f"{what} {str(path)!r}", hint="`ppap evaluate` writes it")
    return value
