"""Drawings of the likeliest classes."""

from __future__ import annotations

import pytest
import torch

from ppap_figures.classes import draw_top_classes

NAMES = ["red sphere", "light blue sphere", "red cube", "blue cube", "red cone, pylon", "blue cone"]
LOGITS = torch.tensor([[0.0, 9.0, 1.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0, 5.0, 0.0]])


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (300, 200)])
def test_shape_range_and_picture(size: tuple[int, int]) -> None:
    images = torch.full((2, 3, *size), -3.0)
    images[1] = 3.0
    drawn = draw_top_classes(LOGITS, images, NAMES)
    assert drawn.shape == (2, 3, 144, 288)
    assert drawn.min() >= -1
    assert drawn.max() <= 1
    assert (drawn[0, :, 60:80, 40:90] == -1).all()  # black, where the picture is
    assert (drawn[1, :, 60:80, 40:90] == 1).all()


def test_bars_are_as_long_as_probabilities() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]])
    drawn = draw_top_classes(probabilities.log(), torch.zeros(1, 3, 8, 8), list("abcde"))
    blue = (drawn[0, 2] - drawn[0, 0] > 0.5)[:, 144:]  # right of the picture
    lengths = blue.sum(1)
    rows = [int(lengths[8 + i * 26 : 8 + (i + 1) * 26].max()) for i in range(5)]
    full = 288 - 8 - 144
    expected = [round(p * full) for p in (0.5, 0.25, 0.125, 0.0625, 0.0625)]
    assert rows == pytest.approx(expected, abs=1.5)


def test_long_names_stay_off_the_figures_of_fewer_classes() -> None:
    drawn = [
        draw_top_classes(torch.zeros(1, 2), torch.zeros(1, 3, 8, 8), [name, "b"])
        for name in ("a", "w" * 200)
    ]
    assert drawn[0].shape[0] == 1
    difference = drawn[0] != drawn[1]
    assert difference[..., :144].sum() == 0
    assert difference[..., 288 - 8 - 26 :].sum() == 0
    # Gradients and half precision do no harm.
    logits = LOGITS.half().requires_grad_()
    images = torch.zeros(2, 3, 8, 8, requires_grad=True)
    assert not draw_top_classes(logits, images, NAMES).requires_grad
