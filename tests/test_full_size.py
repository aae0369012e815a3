"""Released networks at their full size, with random weights: what docs/checkpoints.md says of them.

`make full-size` measures the same and writes the page.
"""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from distributions import REPOSITORY


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "docs" / "make_checkpoints.py"))


def within_bounds(row: dict[str, Any]) -> None:
    size, plain, cast = row["file_bytes"], row["float32"], row["bfloat16"]
    assert size > 4 * row["parameters"]
    assert plain["loaded"] <= 1.15 * size  # Python and torch included
    assert 0.95 * size <= plain["read"] - plain["loaded"] <= 1.05 * size
    assert cast["peak"] < plain["read"]  # although it also has what a step computes


def test_the_page_is_that_of_the_record(made: dict[str, Any]) -> None:
    rows = json.loads(made["RECORD"].read_text())
    assert [row["name"] for row in rows] == list(made["NAMES"])
    between = re.search(f"{made['MARK']}(.*){made['END']}", made["PAGE"].read_text(), re.DOTALL)
    assert between is not None
    assert between[1].splitlines() == made["table"](rows)
    for row in rows:
        within_bounds(row)


@pytest.mark.slow  # writes 2.2 GB, and takes minutes
@pytest.mark.parametrize("name", ["adm-256-uncond", "glide-base"])
def test_loading_and_a_guided_step(
    made: dict[str, Any], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = made["measure"](name, tmp_path)
    with capsys.disabled():
        print(f"\n{json.dumps(row)}")
    within_bounds(row)
