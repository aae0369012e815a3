"""Predictions of any form."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ppap_framework.errors import PluginError
from ppap_framework.predictions import each_tensor, joined, widened


class Boxes(NamedTuple):
    corners: Tensor
    scores: Tensor


def forms(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A leaf, or any nesting of what predictions are made of."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3),
            st.tuples(inner, inner),
            st.builds(Boxes, inner, inner),
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1),
        ),
        max_leaves=6,
    )


def leaves_of(prediction: Any) -> list[Any]:
    if isinstance(prediction, dict):
        return [leaf for value in prediction.values() for leaf in leaves_of(value)]
    if isinstance(prediction, list | tuple):
        return [leaf for value in prediction for leaf in leaves_of(value)]
    return [prediction]


@given(forms(st.just(torch.arange(10.0)) | st.none()), st.integers(1, 9))
def test_what_was_taken_apart_is_joined_to_the_same(whole: Any, place: int) -> None:
    parts = [each_tensor(lambda t: t[:place], whole), each_tensor(lambda t: t[place:], whole)]
    again = joined(parts)
    assert type(again) is type(whole)
    assert len(leaves_of(again)) == len(leaves_of(whole))
    for mine, theirs in zip(leaves_of(again), leaves_of(whole), strict=True):
        assert mine is theirs is None or torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.int64),
        (torch.bool, torch.bool),
    ],
)
def test_widened(before: torch.dtype, after: torch.dtype) -> None:
    boxes = widened(Boxes(torch.ones(2, dtype=before), torch.zeros(2, dtype=before)))
    assert isinstance(boxes, Boxes)
    assert (boxes.corners.dtype, boxes.scores.dtype) == (after, after)


@pytest.mark.parametrize("use", [widened, lambda prediction: joined([prediction, prediction])])
def test_anything_else_is_refused(use: Any) -> None:
    with pytest.raises(PluginError, match="a prediction has a str in it"):
        use({"logits": torch.zeros(1), "label": "cat"})
