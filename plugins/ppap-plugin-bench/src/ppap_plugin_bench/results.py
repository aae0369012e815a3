"""Reads the files of figures in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from ppap_framework.errors import AssetError
from ppap_framework.files import read_json
from ppap_plugin_bench.experiment import Better

FORMAT = 2
"""Format of all files; it changes when their meaning does. Format 1 had one scale for each row,
chosen on other images, and can be read: its rows are lines of a single point.
"""


@attrs.frozen
class Results:
    """Results that `evaluate` wrote into a folder.

    Attributes:
        folder: The folder.
        experiment: Record of the experiment.
        judge: Accuracy of the judges.
        rows: Measured rows, in the table's order.
        differences: Differences at the default scales, by baseline and row.
        equal: Differences at equal FID and fidelity, by baseline, row and figure of fidelity.
    """

    folder: Path
    experiment: dict[str, Any]
    judge: dict[str, Any]
    rows: list[dict[str, Any]]
    differences: dict[str, dict[str, Any]]
    equal: dict[str, dict[str, Any]]

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
        judge = _read(folder / "judge.json")
        return cls(folder, experiment, judge, rows, differences["from"], differences["equal"])

    @property
    def shown(self) -> dict[str, Better]:
        """Figures of fidelity to the targets, and which value is better."""
        shown: dict[str, Better] = self.experiment["shown"]
        return shown

    @property
    def fidelity(self) -> list[str]:
        """Figures of fidelity that are compared against FID."""
        return list(self.experiment["fidelity"])

    @property
    def guided(self) -> list[dict[str, Any]]:
        """Rows with guides."""
        return [row for row in self.rows if row.get("default") is not None]


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
    if not isinstance(value, dict) or value.get("format") not in (1, FORMAT):
        what = "there is no" if value is None else "another format has"
        raise AssetError(f"{what} {str(path)!r}", hint="`ppap evaluate` writes it")
    return _of_format_1(value) if value["format"] == 1 else value


def _of_format_1(value: dict[str, Any]) -> dict[str, Any]:
    """A file of format 1 as one of today."""
    if "from" in value:
        return {**value, "equal": {}}
    if "rows" in value:
        return {**value, "fidelity": value["objective"]}
    if chosen := value.get("chosen"):
        number = chosen["scale"]
        scale = number if number == "auto" else f"raw:{number:g}"
        points = [{"scale": scale, "figures": value["figures"]}]
        return {**value, "default": scale, "interval": chosen["interval"], "points": points}
    return value
