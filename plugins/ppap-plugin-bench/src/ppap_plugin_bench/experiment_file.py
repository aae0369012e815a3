"""Reads an experiment's file and reports all its errors at once."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import SUFFIX
from ppap_plugin_bench.experiment import Experiment, JudgeSpec, SceneFile, Timing
from ppap_plugin_bench.row import Row, row_guide

_T = TypeVar("_T")

_GONE = {
    "tuning": "scales are drawn, not chosen: remove it",
    "objective": "it is `fidelity` of the experiment",
    "intervals": "it is `interval`, one pair",
}
_GUIDE_KEYS = tuple(name for name in inspect.signature(row_guide).parameters if name != "scale")


def read_experiment(path: Path, **changes: Any) -> Experiment:
    """Read an experiment's file.

    Args:
        path: A TOML file, or JSON with the suffix ".json".
        changes: Values that replace those of the file; their paths are relative to the current
            folder.

    Raises:
        AssetError: If the file cannot be read.
        UsageError: If the file is invalid; it lists all errors.
    """
    folder, problems = path.parent, list[str]()
    given = {"name": path.stem.lower(), **_placed(_load(path), folder, "reference"), **changes}
    if "block" in given:  # the older name
        given.setdefault("batch", given.pop("block"))
    for key, kind in (("timing", Timing), ("scenes", SceneFile)):
        if key in given:
            given[key] = _build(kind, _placed(given[key], folder, "pictures"), f"[{key}]", problems)
    if isinstance(tables := given.get("judges"), list):
        given["judges"] = [
            _build(JudgeSpec, table, _label("judge", table), problems) for table in tables
        ]
    tables = given.pop("rows", [])
    if isinstance(tables, list):
        given["rows"] = [_row(table, folder, problems) for table in tables]
    experiment = None if problems else _build(Experiment, given, "it", problems)
    if experiment is None:
        raise UsageError(
            f"experiment {str(path)!r}: {'; '.join(problems)}",
            hint="the README of ppap-plugin-bench shows one",
        )
    return experiment


def _load(path: Path) -> dict[str, Any]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        text = path.read_text(encoding="utf-8")
        tables = json.loads(text) if path.suffix == ".json" else toml.loads(text)
    except OSError as error:
        raise AssetError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{str(path)!r} is neither TOML nor JSON: {error}") from error
    if not isinstance(tables, dict):
        raise UsageError(f"{str(path)!r} is not a table", hint="it has backend, judge, rows ...")
    return tables


def _row(given: Any, folder: Path, problems: list[str]) -> Row | None:
    """A row; the keys of a single guide are in the table of the row."""
    table, label, before = _placed(given, folder, "images"), _label("row", given), len(problems)
    if isinstance(table, dict):
        if isinstance(training := table.get("training"), str | list):
            paths = [training] if isinstance(training, str) else training
            table["training"] = [_path(path, folder) for path in paths]
        single = {key: table.pop(key) for key in _GUIDE_KEYS if key in table}
        if single and "guider" not in single:
            problems.append(f"{label} has {', '.join(sorted(single))} and no guider")
        elif single and "guides" in table:
            problems.append(f"{label} has a guider and guides; it is one or the other")
        elif single:
            table["guides"] = [_build(row_guide, single, label, problems)]
        elif isinstance(guides := table.get("guides"), list):
            table["guides"] = [
                _build(row_guide, _placed(guide, folder), f"{label}, guide {number}", problems)
                for number, guide in enumerate(guides, 1)
            ]
    return _build(Row, table, label, problems, _GUIDE_KEYS) if len(problems) == before else None


def _path(path: Any, folder: Path) -> Any:
    return str(folder / Path(path).expanduser()) if isinstance(path, str) else path


def _placed(table: Any, folder: Path, key: str = "") -> Any:
    """Copy a table with paths relative to the current folder.

    Paths are those of `key` and of experts, and a checkpoint if it is an existing file.
    """
    if not isinstance(table, dict):
        return table
    placed = dict(table)
    if key in table:
        placed[key] = _path(table[key], folder)
    if isinstance(path := table.get("checkpoint"), str) and (folder / path).is_file():
        placed["checkpoint"] = str(folder / path)
    experts = table.get("experts")
    if isinstance(experts, str) and (experts.endswith(SUFFIX) or len(Path(experts).parts) > 1):
        placed["experts"] = _path(experts, folder)
    return placed


def _label(what: str, table: Any) -> str:
    return f"{what} {table.get('name', '?')}" if isinstance(table, dict) else f"a {what}"


def _build(
    kind: Callable[..., _T],
    table: Any,
    label: str,
    problems: list[str],
    other_keys: Sequence[str] = (),
) -> _T | None:
    """Call `kind` with the values of a table; on errors, append to `problems` and return None."""
    if not isinstance(table, dict):
        problems.append(f"{label} is not a table")
        return None
    parameters = inspect.signature(kind).parameters
    unknown = sorted(set(table) - set(parameters))
    for key in unknown:
        near = difflib.get_close_matches(key, [*parameters, *other_keys], n=1)
        why = f"not {near[0]!r}" if near else "unknown"
        problems.append(f"{label} has {key!r}, {_GONE.get(key, why)}")
    required = (name for name, p in parameters.items() if p.default is p.empty)
    if missing := [name for name in required if name not in table]:
        problems.append(f"{label} has no {', '.join(missing)}")
    if missing or unknown:
        return None
    try:
        return kind(**table)
    except (TypeError, ValueError) as error:
        problems.append(f"{label} {error.args[0]}")
        return None
