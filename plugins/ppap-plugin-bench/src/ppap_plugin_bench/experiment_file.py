"""Experiments from files, with everything that is wrong told at once."""

from __future__ import annotations

import difflib
import importlib
import json
import sys
from pathlib import Path
from typing import Any, TypeVar

import attrs

from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import SUFFIX
from ppap_plugin_bench.experiment import (
    DenseJudge,
    Experiment,
    SceneFile,
    Timing,
    Tuning,
)
from ppap_plugin_bench.row import Row, RowGuide

__all__ = ["read_experiment"]

_T = TypeVar("_T")


def read_experiment(path: Path, **changes: str) -> Experiment:
    """Read an experiment's file.

    Args:
        path: TOML, or JSON where it ends so.
        changes: Values that go before the file's; paths among them from the current folder.

    Raises:
        AssetError: Where there is no such file.
        UsageError: For everything that is wrong with it, at once.
    """
    folder = path.parent
    given = {"name": path.stem.lower(), **_placed(_load(path), folder, "reference"), **changes}
    faults: list[str] = []
    for key, kind in (("tuning", Tuning), ("timing", Timing), ("scenes", SceneFile)):
        if key in given:
            given[key] = _build(kind, _placed(given[key], folder, "pictures"), f"[{key}]", faults)
    if isinstance(tables := given.get("judges"), list):
        given["judges"] = [
            _build(DenseJudge, table, _label("judge", table), faults) for table in tables
        ]
    tables = given.pop("rows", [])
    if isinstance(tables, list):
        given["rows"] = [_row(table, folder, faults) for table in tables]
    experiment = None if faults else _build(Experiment, given, "it", faults)
    if experiment is None:
        raise UsageError(
            f"experiment {str(path)!r}: {'; '.join(faults)}",
            hint="the documentation of ppap_plugin_bench.experiment shows one",
        )
    return experiment


def _load(path: Path) -> dict[str, Any]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        text = path.read_text(encoding="utf-8")
        tables = json.loads(text) if path.suffix == ".json" else toml.loads(text)
    except OSError as error:
        raise AssetError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{str(path)!r} is neither TOML nor JSON: {error}") from error
    if not isinstance(tables, dict):
        raise UsageError(f"{str(path)!r} holds no table", hint="it says backend, judge, rows ...")
    return tables


def _row(given: Any, folder: Path, faults: list[str]) -> Row | None:
    table = _placed(given, folder, "images")
    label = _label("row", table)
    if isinstance(table, dict):
        if isinstance(training := table.get("training"), str | list):
            paths = [training] if isinstance(training, str) else training
            table["training"] = [_path(path, folder) for path in paths]
        if isinstance(guides := table.get("guides"), list):
            placed = [_placed(guide, folder, "") for guide in guides]
            table["guides"] = [
                _build(RowGuide, guide, f"{label}, guide {number}", faults)
                for number, guide in enumerate(placed, 1)
            ]
    return _build(Row, table, label, faults)


def _path(path: Any, folder: Path) -> Any:
    return str(folder / Path(path).expanduser()) if isinstance(path, str) else path


def _placed(table: Any, folder: Path, key: str) -> Any:
    """The table with `key`, a checkpoint that is a file there, and experts, from the current
    folder.
    """
    if not isinstance(table, dict):
        return table
    placed = dict(table)
    if key in table:
        placed[key] = _path(table[key], folder)
    if isinstance(path := table.get("checkpoint"), str) and (folder / path).is_file():
        placed["checkpoint"] = str(folder / path)
    if isinstance(path := table.get("experts"), str) and _is_bundle_path(path):
        placed["experts"] = _path(path, folder)
    return placed


def _is_bundle_path(experts: str) -> bool:
    return experts.endswith(SUFFIX) or len(Path(experts).parts) > 1


def _label(what: str, table: Any) -> str:
    return f"{what} {table.get('name', '?')}" if isinstance(table, dict) else f"a {what}"


def _build(kind: type[_T], table: Any, where: str, faults: list[str]) -> _T | None:
    """An instance from a table; None with what is wrong noted."""
    if not isinstance(table, dict):
        faults.append(f"{where} is no table")
        return None
    fields = {field.name: field for field in attrs.fields(kind)}  # type: ignore[arg-type]  # an attrs class
    for key in sorted(set(table) - set(fields)):
        near = difflib.get_close_matches(key, fields, n=1)
        faults.append(f"{where} has {key!r}" + (f", not {near[0]!r}" if near else ", unknown"))
    required = (name for name, field in fields.items() if field.default is attrs.NOTHING)
    if missing := [name for name in required if name not in table]:
        faults.append(f"{where} has no {', '.join(missing)}")
    if missing or set(table) - set(fields):
        return None
    try:
        return kind(**table)
    except (TypeError, ValueError) as error:
        faults.append(f"{where} {error.args[0]}")
        return None
