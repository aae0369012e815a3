"""Predictions of any form."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ppap_framework.author import GuidanceModel, Target, TaskLoss
from ppap_framework.errors import PluginError
from ppap_framework.predictions import each_tensor, joined, squared_difference, widened


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


@pytest.mark.parametrize("before", ["bfloat16", "float16", "float32", "float64", "int64", "bool"])
def test_widened(before: str) -> None:
    after = getattr(torch, {"bfloat16": "float32", "float16": "float32"}.get(before, before))
    before = getattr(torch, before)
    boxes = widened(Boxes(torch.ones(2, dtype=before), torch.zeros(2, dtype=before)))
    assert isinstance(boxes, Boxes)
    assert (boxes.corners.dtype, boxes.scores.dtype) == (after, after)


@pytest.mark.parametrize("use", [widened, lambda prediction: joined([prediction, prediction])])
def test_anything_else_is_refused(use: Any) -> None:
    with pytest.raises(PluginError, match="a prediction has a str in it"):
        use({"logits": torch.zeros(1), "label": "cat"})


ONES, ONE = torch.ones(2, 3), torch.ones(2, 1)
NESTED = {"a": ONES, "b": [ONE, ONES.long()]}


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (ONES, torch.tensor([[0.0, 1, 3], [1, 1, 1]]), [5 / 3, 0]),
        (torch.zeros(2), torch.tensor([3.0, 4.0]), [9.0, 16.0]),
        # Over all numbers, so that the larger tensor weighs more; classes do not count.
        (NESTED, {"a": ONES, "b": [0 * ONE, ONES.long()]}, [1 / 4] * 2),
        (Boxes(ONES, ONES), Boxes(0 * ONES, ONES), [1 / 2] * 2),
    ],
)  # fmt: skip
def test_squared_difference(student: Any, teacher: Any, expected: list[float]) -> None:
    torch.testing.assert_close(squared_difference(student, teacher), torch.tensor(expected))


@pytest.mark.parametrize(
    "other", [torch.ones(2, 1), [ONES], {"logits": ONES}, None, Boxes(ONES, ONES)]
)
def test_predictions_of_other_forms_cannot_be_compared(other: Any) -> None:
    for pair in ([ONES, other], [other, ONES]):
        with pytest.raises(PluginError, match="cannot be compared") as raised:
            squared_difference(*pair)
        assert "transfer" in raised.value.hint


class Flat(GuidanceModel):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Flatten()

    def forward(self, images: Tensor, level: Any = None) -> Tensor:
        return self.network(images)

    def target(self, given: Any) -> Target:
        return Target(value=torch.tensor([given.number()]), label="")


class Height(TaskLoss):
    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        return prediction.mean(1) - target


class TestDefaults:
    def test_of_a_guider_and_a_loss(self) -> None:
        guide, images = Flat(), torch.rand(2, 3, 4, 4)
        assert guide.describe(guide(images).index_fill(1, torch.tensor(7), 2.0)) == ["most: 7"] * 2
        assert guide.describe(images) == guide.describe(images[:, 0, 0, :1]) == []
        assert guide.render(guide(images), images) is images
        for depth in (images[:, 0], images[:, :1]):
            shown = guide.render(depth, images)
            assert shown.shape == images.shape
            assert shown.amin((1, 2, 3)).tolist() == [-1, -1]
            assert shown.amax((1, 2, 3)).tolist() == [1, 1]
        assert torch.equal(guide.render(torch.ones(2, 4, 4), images), -torch.ones(2, 3, 4, 4))
        assert Height().metrics(ONES, ONES) == {}
        assert Height().transfer(ONES, 3 * ONES).tolist() == [4, 4]

    @pytest.mark.parametrize("missing", ["target", "forward", "energy"])
    def test_the_rest_is_abstract(self, missing: str) -> None:
        of = Height if missing == "energy" else Flat
        kept = {name: value for name, value in vars(of).items() if name != missing}
        with pytest.raises(TypeError, match=missing):
            type("Less", of.__bases__, kept)()
