"""Losses of trainings, drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ppap_figures.training import draw
from ppap_framework.errors import PpapError
from ppap_framework.figures import draw_figures
from ppap_framework.learn.recipe import Phase

PHASES = (
    Phase(0, range(100), 40, None, shared=True),
    *(Phase(i, range(20 * i, 20 * i + 20), 20, -1) for i in range(5)),
)


def lines(level: float = 1.0) -> Iterator[dict[str, Any]]:
    for phase in PHASES:
        for step in range(10, phase.iterations + 1, 10):
            yield {"phase": phase.name, "iteration": step, "loss": level / step}
            yield {"phase": phase.name, "iteration": step, "held_out": 2 * level / step}


def test_files(tmp_path: Path) -> None:
    written = []
    for number in range(2):
        path = tmp_path / str(number)
        paths = draw(list(lines()), PHASES, path)
        assert paths == [path.with_suffix(".svg"), path.with_suffix(".png")]
        with Image.open(paths[1]) as picture:
            picture.load()
            assert min(picture.size) > 200
        svg = paths[0].read_text()
        names = re.findall(r">((?:shared|expert \d)[^<]*)<", svg)
        assert [name.split(":")[0] for name in names] == [phase.name for phase in PHASES]
        written.append((paths[1].read_bytes(), svg))
    assert written[0] == written[1]


def test_the_core_finds_it(tmp_path: Path) -> None:
    paths = draw_figures("training", list(lines()), PHASES, tmp_path / "loss")
    assert paths == draw(list(lines()), PHASES, tmp_path / "loss")


@pytest.mark.parametrize(
    "few",
    [
        [],
        [{"phase": "shared", "iteration": 10, "held_out": None}],
        [{"phase": "shared", "iteration": 10, "loss": 0.0, "held_out": 0.0}],
        [{"phase": "shared", "iteration": 10, "loss": -1.0, "held_out": 3.0}],
    ],
)
def test_little_to_show(tmp_path: Path, few: list[dict[str, Any]]) -> None:
    draw(few, PHASES[:1], tmp_path / "loss")
    assert (tmp_path / "loss.png").exists()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "loss.svg").mkdir()
    with pytest.raises(PpapError, match=r"cannot write .*loss\.svg"):
        draw([], PHASES[:1], tmp_path / "loss")
