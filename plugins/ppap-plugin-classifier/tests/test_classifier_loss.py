"""Cross-entropy against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppap_plugin_classifier.loss import CrossEntropy
from ppap_plugin_classifier.options import CrossEntropyOptions

logits_of_four = st.lists(st.floats(-20, 20), min_size=4, max_size=4)


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(logits)) for value in logits]
    return [value / sum(exponentials) for value in exponentials]


class TestEnergy:
    def test_odds(self) -> None:
        logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
        energy = CrossEntropy().energy(logits, torch.tensor([0, 1]))
        assert energy.tolist() == pytest.approx([math.log(4), math.log(4 / 3)])

    @settings(max_examples=50, deadline=None)
    @given(logits_of_four, st.integers(0, 3))
    def test_is_minus_log_softmax(self, logits: list[float], target: int) -> None:
        energy = CrossEntropy().energy(torch.tensor([logits] * 2), torch.tensor([target]))
        expected = (
            max(logits)
            - logits[target]
            + math.log(sum(math.exp(value - max(logits)) for value in logits))
        )
        assert energy.tolist() == pytest.approx([expected] * 2, abs=1e-4)

    def test_gradient_is_softmax_minus_one_hot(self) -> None:
        logits = torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True)
        energy = CrossEntropy().energy(logits, torch.tensor([2]))
        (gradient,) = torch.autograd.grad(energy.sum(), logits)
        expected = logits.detach().softmax(-1) - torch.tensor([[0.0, 0.0, 1.0]])
        torch.testing.assert_close(gradient, expected)

    @settings(max_examples=50, deadline=None)
    @given(logits_of_four, st.integers(0, 3), st.floats(0.1, 3), st.floats(0.1, 3))
    def test_weighs_target_and_marginal(
        self, logits: list[float], target: int, joint: float, marginal: float
    ) -> None:
        loss = CrossEntropy(CrossEntropyOptions(joint=joint, marginal=marginal))
        energy = loss.energy(torch.tensor([logits] * 2), torch.tensor([target]))
        odds = [math.exp(marginal * (value - max(logits))) for value in logits]
        expected = math.log(sum(odds)) + marginal * max(logits) - joint * logits[target]
        assert energy.tolist() == pytest.approx([expected] * 2, abs=1e-4, rel=1e-5)


class TestTransfer:
    @settings(max_examples=50, deadline=None)
    @given(logits_of_four, logits_of_four, st.sampled_from([0.25, 1.0, 4.0]))
    def test_is_kl_from_the_sharpened_teacher(
        self, student: list[float], teacher: list[float], temperature: float
    ) -> None:
        loss = CrossEntropy(CrossEntropyOptions(temperature=temperature))
        p = softmax([value / temperature for value in teacher])
        q = softmax(student)
        expected = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)
        got = loss.transfer(torch.tensor([student] * 2), torch.tensor([teacher] * 2))
        assert got.tolist() == pytest.approx([expected] * 2, abs=1e-3)

    def test_nothing_to_learn_from_oneself(self) -> None:
        logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
        loss = CrossEntropy().transfer(logits, logits + 3.0)
        torch.testing.assert_close(loss, torch.zeros(5), atol=1e-6, rtol=0)

    def test_a_certain_teacher_gives_no_nan(self) -> None:
        student = torch.tensor([[0.0, 0.0]], requires_grad=True)
        loss = CrossEntropy().transfer(student, torch.tensor([[1000.0, -1000.0]]))
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert loss.item() == pytest.approx(math.log(2))
        torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.5]]))

    @pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
    def test_temperature_must_be_positive(self, temperature: float) -> None:
        with pytest.raises(ValueError, match="positive"):
            CrossEntropyOptions(temperature=temperature)


def test_metrics() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log().expand(3, 3)
    metrics = CrossEntropy().metrics(logits, torch.tensor([0, 1, 2]))
    assert metrics["rank"].tolist() == [3, 2, 1]
    assert metrics["accuracy"].tolist() == [0, 0, 1]
    torch.testing.assert_close(metrics["probability"], torch.tensor([0.1, 0.2, 0.7]))
    assert all(value.shape == (3,) for value in metrics.values())
    shared = CrossEntropy().metrics(logits, torch.tensor([1]))
    assert shared["rank"].tolist() == [2, 2, 2]
