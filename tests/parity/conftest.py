"""Finds the parity cases: `@pytest.mark.parity(kind)` runs a test once for each case of that kind.

A case is a JSON record with tensors beside it, both described in README.md. Cases are chosen by
what their records say, wherever they lie under `PPAP_PARITY_DIR` (by default, beside this file).
The marker's `official_class` narrows them to classes with one of the given prefixes.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(os.environ.get("PPAP_PARITY_DIR") or Path(__file__).parent)


@cache
def all_cases() -> dict[str, dict[str, Any]]:
    """Every record with a kind, by its path relative to the root and without suffix."""
    cases = {}
    for path in sorted(ROOT.rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict) and "kind" in record:
            cases[path.relative_to(ROOT).with_suffix("").as_posix()] = record
    return cases


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "parity(kind, official_class=()): run once for every parity case of this kind"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("parity")
    if marker is None:
        return
    kind, prefixes = marker.args[0], tuple(marker.kwargs.get("official_class", ()))
    names = [
        name
        for name, record in all_cases().items()
        if record["kind"] == kind
        and (not prefixes or record.get("official_class", "").startswith(prefixes))
    ]
    metafunc.parametrize("case", names, ids=names)


@pytest.fixture
def record(case: str) -> dict[str, Any]:
    """What the case's JSON says."""
    return all_cases()[case]


@pytest.fixture
def tensors(case: str) -> dict[str, Tensor]:
    """The case's tensors by name."""
    return load_file(ROOT / f"{case}.safetensors")
