"""The page on the cost of the full recipe: its numbers are those of the record."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs"


def test_the_cost_is_that_of_the_record() -> None:
    made = runpy.run_path(str(DOCS / "make_cost.py"))
    record = json.loads((DOCS / "cost" / "full-recipe.json").read_text())
    page = (DOCS / "cost.md").read_text(encoding="utf-8")
    assert "\n".join(made["lines"](record)) in page


def test_the_arithmetic_of_the_cost() -> None:
    """By hand, for round numbers."""
    made = runpy.run_path(str(DOCS / "make_cost.py"))
    unit = {"flops": 10**9, "cpu_seconds": 1.0}
    names = {"backend": "adm-256-uncond", "guide": "g", "processor": "p", "torch": "t"}
    record = {**names, "denoiser": unit, "teacher": unit, "student": unit}
    text = "\n".join(made["lines"](record))
    looks = 500_000 * 25 + 500_000 + 300_000 * 256
    hours = looks * 1e9 / 312e12 / 0.3 / 8 / 3600
    [row] = [line for line in text.splitlines() if line.startswith("| together | 8 |")]
    assert float(row.split("|")[4]) == pytest.approx(hours, rel=0.05)
