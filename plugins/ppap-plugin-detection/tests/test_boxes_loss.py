"""The loss of boxes against brute force, torchvision's GIoU, and what holds for any boxes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from ppap_plugin_detection.loss import Boxes, generalized_iou
from ppap_plugin_detection.options import BoxesOptions

QUERIES, CLASSES = 4, 3
quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def corners(generator: torch.Generator, *shape: int) -> Tensor:
    ends = torch.rand(*shape, 2, 2, generator=generator, dtype=torch.float64).sort(-2).values
    return ends.flatten(-2) * torch.tensor([0.9, 0.9, 0.9, 0.9]) + torch.tensor([0, 0, 0.1, 0.1])


def drawn(seed: int, batch: int = 2, queries: int = QUERIES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, queries, CLASSES + 1, generator=generator, dtype=torch.float64)
    return {"logits": 2 * logits, "boxes": corners(generator, batch, queries)}


def wanted(seed: int, number: int, padding: int = 0) -> Tensor:
    """(1, number + padding, 5)."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(CLASSES, (number, 1), generator=generator).double()
    rows = torch.cat([kinds, corners(generator, number)], 1)
    return torch.cat([rows, torch.full((padding, 5), -1.0).double()])[None]


@quick
@given(seeds)
def test_generalized_iou_is_that_of_torchvision(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = corners(generator, 5), corners(generator, 4)
    expected = generalized_box_iou(one, other)
    torch.testing.assert_close(generalized_iou(one[:, None], other), expected, atol=1e-6, rtol=1e-6)


def test_boxes_without_area_have_no_overlap() -> None:
    point = torch.tensor([0.3, 0.3, 0.3, 0.3], requires_grad=True)
    for other in (point.detach(), torch.tensor([0.1, 0.1, 0.5, 0.5])):
        value = generalized_iou(point, other)
        (slope,) = torch.autograd.grad(value, point)
        assert value.isfinite() and slope.isfinite().all() and value <= 0


@quick
@given(seeds, st.integers(1, 3), st.integers(0, 2))
def test_the_energy_is_that_of_the_best_of_all_assignments(
    seed: int, number: int, padding: int
) -> None:
    """By their definition: eq. 1 decides, eq. 2 with means counts."""
    prediction, target = drawn(seed), wanted(seed + 1, number, padding)
    found = Boxes().energy(prediction, target)
    for image in range(2):
        p = prediction["logits"][image].softmax(-1)
        boxes, rows = prediction["boxes"][image], target[0, :number]
        l1 = torch.cdist(*(box_convert(b, "xyxy", "cxcywh") for b in (rows[:, 1:], boxes)), p=1)
        apart = 5 * l1 + 2 * (1 - generalized_box_iou(rows[:, 1:], boxes))
        likely = p[:, rows[:, 0].long()].T
        options = list(itertools.permutations(range(QUERIES), number))
        costs = [
            sum(float(apart[i, q] - likely[i, q]) for i, q in enumerate(chosen))
            for chosen in options
        ]
        chosen = options[costs.index(min(costs))]
        own = sum(apart[i, q] - likely[i, q].log() for i, q in enumerate(chosen)) / number
        rest = [-p[q, -1].log() for q in range(QUERIES) if q not in chosen]
        expected = own + sum(rest) / len(rest)
        torch.testing.assert_close(found[image], expected, atol=1e-6, rtol=1e-6)


@quick
@given(seeds, st.permutations(range(QUERIES)))
def test_the_order_of_queries_and_of_boxes_does_not_matter(seed: int, order: list[int]) -> None:
    prediction, target = drawn(seed), wanted(seed, 3)
    mixed = {name: value[:, order] for name, value in prediction.items()}
    loss = Boxes()
    expected = loss.energy(prediction, target)
    torch.testing.assert_close(loss.energy(mixed, target), expected)
    torch.testing.assert_close(loss.energy(prediction, target.flip(1)), expected)
    for name, value in loss.metrics(prediction, target).items():
        torch.testing.assert_close(loss.metrics(mixed, target)[name], value)


def test_the_gradient_is_that_of_differences() -> None:
    target = wanted(5, 2)
    logits, boxes = (x.requires_grad_() for x in drawn(3).values())

    def energy(logits: Tensor, boxes: Tensor) -> Tensor:
        return Boxes().energy({"logits": logits, "boxes": boxes}, target)

    assert torch.autograd.gradcheck(energy, (logits, boxes))


def test_an_exact_answer_has_no_energy_and_full_figures() -> None:
    target = wanted(1, 3)
    logits = torch.full((1, QUERIES, CLASSES + 1), -40.0).double()
    logits[0, :3, :].scatter_(1, target[0, :, :1].long(), 40.0)
    logits[0, 3, -1] = 40.0
    boxes = torch.cat([target[..., 1:], target[:, :1, 1:]], 1)
    answer = {"logits": logits, "boxes": boxes}
    assert float(Boxes().energy(answer, target)) == pytest.approx(0, abs=1e-6)
    figures = Boxes().metrics(answer, target)
    assert float(figures["box_iou"]) == pytest.approx(1)
    assert float(figures["boxes_found"]) == 1
    other = target.clone()
    other[..., 0] = (other[..., 0] + 1) % CLASSES
    assert float(Boxes().metrics(answer, other)["boxes_found"]) < 1
    assert float(Boxes().energy(answer, other)) > 10


def test_no_wanted_box_asks_for_nothing() -> None:
    prediction, target = drawn(0), torch.full((1, 2, 5), -1.0).double()
    expected = -prediction["logits"].log_softmax(-1)[..., -1].mean(1)
    torch.testing.assert_close(Boxes().energy(prediction, target), expected)
    sure = {**prediction, "logits": torch.tensor([0.0, 0, 0, 9]).expand(2, QUERIES, 4)}
    assert Boxes().metrics(sure, target)["box_iou"].tolist() == [1, 1]
    assert Boxes(BoxesOptions(nothing_weight=0)).energy(prediction, target).tolist() == [0, 0]


@quick
@given(seeds, st.permutations(range(QUERIES)))
def test_transfer_is_least_for_the_teachers_answers(seed: int, order: list[int]) -> None:
    teacher, student = drawn(seed), drawn(seed + 1)
    mixed = {name: value[:, order] for name, value in teacher.items()}
    plain, matched = Boxes(), Boxes(BoxesOptions(match_experts=True))
    for loss in (plain, matched):
        assert loss.transfer(teacher, teacher).abs().max() < 1e-6
        assert (loss.transfer(student, teacher) > 1e-3).all()
    assert matched.transfer(mixed, teacher).abs().max() < 1e-6
    assert order == sorted(order) or (plain.transfer(mixed, teacher) > 1e-3).all()


def test_boxes_of_which_the_teacher_is_unsure_count_little() -> None:
    teacher = drawn(2, batch=1)
    moved = {**teacher, "boxes": teacher["boxes"].flip(1)}
    sure, unsure = (
        {**teacher, "logits": torch.eye(4)[index].mul(9).expand(1, QUERIES, 4).double()}
        for index in (0, 3)
    )
    near, far = (
        float(Boxes().transfer({**moved, "logits": each["logits"]}, each))
        for each in (unsure, sure)
    )
    assert 0 < near < 0.01 * far
