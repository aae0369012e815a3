"""The loss and its metrics against loops, closed forms and confusion matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppap_plugin_segmentation.loss import SegmentationCrossEntropy
from ppap_plugin_segmentation.options import SegmentationCrossEntropyOptions

seeds = st.integers(0, 2**31)


def logits_of(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def classes_of(seed: int, *shape: int, ignored: bool = True) -> Tensor:
    """Of four, and perhaps pixels that do not count."""
    generator = torch.Generator().manual_seed(seed + 1)
    classes = torch.randint(0, 4, shape, generator=generator)
    if ignored:
        classes[torch.rand(shape, generator=generator) < 0.2] = 255
        classes[torch.rand(shape, generator=generator) < 0.1] = -1
    return classes


class TestEnergy:
    @settings(max_examples=20)
    @given(seeds)
    def test_is_the_mean_of_minus_log_softmax_over_what_counts(self, seed: int) -> None:
        logits, classes = logits_of(seed, 2, 4, 3, 5), classes_of(seed, 2, 3, 5)
        wanted = []
        for image, mask in zip(logits.double().numpy(), classes.numpy(), strict=True):
            losses = []
            for place in np.ndindex(*mask.shape):
                scores = image[(slice(None), *place)]
                if 0 <= mask[place] < 4:
                    losses.append(np.log(np.exp(scores).sum()) - scores[mask[place]])
            wanted.append(np.mean(losses) if losses else 0.0)
        got = SegmentationCrossEntropy().energy(logits, classes)
        assert got.tolist() == pytest.approx(wanted, abs=1e-5)

    def test_one_target_serves_all(self) -> None:
        logits, classes = logits_of(0, 3, 4, 4, 4), classes_of(0, 1, 4, 4)
        loss = SegmentationCrossEntropy()
        each = torch.cat([loss.energy(image[None], classes) for image in logits])
        torch.testing.assert_close(loss.energy(logits, classes), each)

    def test_nothing_counts(self) -> None:
        logits = logits_of(0, 2, 4, 4, 4).requires_grad_()
        classes = classes_of(0, 2, 4, 4)
        classes[0] = 255
        energy = SegmentationCrossEntropy().energy(logits, classes)
        (gradient,) = torch.autograd.grad(energy.sum(), logits)
        assert energy[0] == 0
        assert not gradient[0].any()
        assert gradient[1].any()

    def test_what_does_not_count_has_no_say(self) -> None:
        logits, classes = logits_of(1, 1, 4, 6, 6), classes_of(1, 1, 6, 6)
        out = (classes < 0) | (classes > 3)
        changed = torch.where(out[:, None], -50.0, logits)
        loss = SegmentationCrossEntropy()
        torch.testing.assert_close(loss.energy(changed, classes), loss.energy(logits, classes))

    def test_coarse_logits_are_resized_bilinearly(self) -> None:
        # Two pixels beside each other become four: at a quarter and three quarters between them.
        logits = torch.tensor([[[[0.0, 4.0]], [[0.0, 0.0]]]])
        first = torch.tensor([0.0, 1.0, 3.0, 4.0])
        wanted = (1 + torch.exp(-first)).log().mean()
        got = SegmentationCrossEntropy().energy(logits, torch.zeros(1, 1, 4, dtype=torch.int64))
        torch.testing.assert_close(got, wanted[None])

    def test_coarse_targets_are_repeated(self) -> None:
        logits, classes = logits_of(2, 1, 4, 6, 6), classes_of(2, 1, 3, 2)
        repeated = classes.repeat_interleave(2, 1).repeat_interleave(3, 2)
        loss = SegmentationCrossEntropy()
        torch.testing.assert_close(loss.energy(logits, classes), loss.energy(logits, repeated))

    def test_a_thin_thing_is_not_lost(self) -> None:
        classes = torch.zeros(1, 16, 16, dtype=torch.int64)
        classes[0, 5, 5] = 1
        coarse = logits_of(3, 1, 2, 4, 4).requires_grad_()
        plain = SegmentationCrossEntropy().energy(coarse, torch.zeros_like(classes))
        assert SegmentationCrossEntropy().energy(coarse, classes) != plain


class TestTransfer:
    @settings(max_examples=20)
    @given(seeds, st.sampled_from([0.25, 1.0, 4.0]))
    def test_is_kl_from_the_sharpened_teacher(self, seed: int, temperature: float) -> None:
        student, teacher = logits_of(seed, 2, 4, 2, 3), logits_of(seed + 1, 2, 4, 2, 3)
        loss = SegmentationCrossEntropy(SegmentationCrossEntropyOptions(temperature=temperature))
        p = np.exp(teacher.double().numpy() / temperature)
        p /= p.sum(1, keepdims=True)
        q = np.exp(student.double().numpy())
        q /= q.sum(1, keepdims=True)
        wanted = np.where(p > 0, p * np.log(p / q), 0.0).sum(1).mean((1, 2))
        assert loss.transfer(student, teacher).tolist() == pytest.approx(wanted, abs=1e-4)

    @settings(max_examples=20)
    @given(seeds, st.integers(1, 9), st.integers(1, 9))
    def test_other_resolutions_are_resized_and_nothing_is_negative(
        self, seed: int, height: int, width: int
    ) -> None:
        student, teacher = logits_of(seed, 1, 4, 4, 6), logits_of(seed + 1, 1, 4, height, width)
        assert SegmentationCrossEntropy().transfer(student, teacher).item() >= -1e-6

    def test_nothing_to_learn_from_oneself(self) -> None:
        coarse = logits_of(0, 2, 4, 4, 4)
        fine = torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear")
        for teacher in (coarse + 3.0, fine):
            loss = SegmentationCrossEntropy().transfer(coarse, teacher)
            torch.testing.assert_close(loss, torch.zeros(2), atol=1e-6, rtol=0)

    def test_a_certain_teacher_gives_no_nan(self) -> None:
        student = torch.zeros(1, 2, 1, 1, requires_grad=True)
        teacher = torch.tensor([1000.0, -1000.0]).reshape(1, 2, 1, 1)
        loss = SegmentationCrossEntropy().transfer(student, teacher)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert loss.item() == pytest.approx(math.log(2))
        assert gradient.flatten().tolist() == [-0.5, 0.5]

    @pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
    def test_temperature_must_be_positive(self, temperature: float) -> None:
        with pytest.raises(ValueError, match="positive"):
            SegmentationCrossEntropyOptions(temperature=temperature)


class TestMetrics:
    @settings(max_examples=20)
    @given(seeds, st.booleans())
    def test_are_those_of_the_confusion_matrix(self, seed: int, ignored: bool) -> None:
        logits, classes = logits_of(seed, 3, 4, 4, 4), classes_of(seed, 3, 4, 4, ignored=ignored)
        classes[2] = classes[2].clamp(max=1)  # and hence classes that only the prediction has
        metrics = SegmentationCrossEntropy().metrics(logits, classes)
        for image in range(3):
            wanted, guessed = classes[image].flatten(), logits[image].argmax(0).flatten()
            counted = (wanted >= 0) & (wanted < 4)
            wanted, guessed = wanted[counted].numpy(), guessed[counted].numpy()
            confusion = np.zeros((4, 4))
            np.add.at(confusion, (wanted, guessed), 1)
            hits = confusion.diagonal()
            union = confusion.sum(0) + confusion.sum(1) - hits
            iou = (hits[union > 0] / union[union > 0]).mean() if union.any() else 0.0
            accuracy = hits.sum() / max(1, confusion.sum())
            assert metrics["mean_iou"][image].item() == pytest.approx(iou, abs=1e-6)
            assert metrics["pixel_accuracy"][image].item() == pytest.approx(accuracy, abs=1e-6)

    def test_at_the_targets_resolution(self) -> None:
        classes = torch.tensor([[[0, 0, 1, 1]]])
        logits = torch.tensor([[[[1.0, -1.0]], [[0.0, 0.0]]]])  # the edge lies in the middle
        metrics = SegmentationCrossEntropy().metrics(logits, classes)
        assert metrics["mean_iou"].tolist() == metrics["pixel_accuracy"].tolist() == [1.0]

    def test_nothing_counts(self) -> None:
        metrics = SegmentationCrossEntropy().metrics(
            logits_of(0, 1, 4, 2, 2), torch.full((1, 2, 2), 255)
        )
        assert metrics["mean_iou"].tolist() == metrics["pixel_accuracy"].tolist() == [0.0]
