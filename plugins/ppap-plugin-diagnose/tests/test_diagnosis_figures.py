"""Curves of diagnoses, drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from experts_toy import Backend, TinyGuide, experts_of
from PIL import Image
from torch import Tensor

from ppap_figures.diagnosis import draw
from ppap_framework.components import Target, TaskLoss
from ppap_framework.guidance import Guide
from ppap_plugin_diagnose.diagnose import diagnose
from ppap_plugin_diagnose.diagnosis import Diagnosis


class Margin(TaskLoss):
    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        return -prediction[:, 1]


def found(number: int | None, *, classification: bool) -> Diagnosis:
    """The diagnosis of a guide with so many experts."""
    model = TinyGuide()
    experts = None if number is None else experts_of(model, number)
    target = Target(value=torch.tensor([1]), label="one")
    guide = Guide(name="known", model=model, loss=Margin(), target=target, experts=experts)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    how = {"levels": 3, "num_experts": 2, "classification": classification}
    return diagnose(Backend(), guide, images, **how)


@pytest.mark.parametrize(
    ("classification", "number"), [(True, None), (False, 1), (True, 3), (False, 3)]
)
def test_curves(tmp_path: Path, classification: bool, number: int | None) -> None:
    diagnosis = found(number, classification=classification)
    paths = draw(diagnosis, tmp_path / "diagnose")
    assert paths == [tmp_path / "diagnose.svg", tmp_path / "diagnose.png"]
    text = paths[0].read_text()
    assert "where 2 experts could begin" in text
    assert ("same class" in text) == classification
    assert ("where they begin" in text) == (number == 3)
    assert ("its one expert" in text) == (number == 1)
    assert ("its 3 experts" in text) == (number == 3)
    with Image.open(paths[1]) as image:
        assert min(image.size) > 400
        assert np.asarray(image.convert("L")).std() > 10  # something is drawn


def test_the_same_figures_give_the_same_bytes(tmp_path: Path) -> None:
    diagnosis = found(None, classification=False)
    first, second = ([p.read_bytes() for p in draw(diagnosis, tmp_path / n)] for n in ("a", "b"))
    assert first == second
