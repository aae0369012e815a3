"""Figures and their intervals, against closed forms, brute force and torch-fidelity."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_fidelity.metric_kid import kid_features_to_metric

from ppap_framework.diagnosis.intervals import (
    Floats,
    Interval,
    as_json,
    bootstrap,
    interval,
    share_interval,
)
from ppap_plugin_bench import metrics
from ppap_plugin_bench.metrics import halves

seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, number: int, width: int = 3) -> Floats:
    return np.random.default_rng(seed).standard_normal((number, width))


def exactly(mean: Floats, deviations: Floats, number: int = 50, seed: int = 0) -> Floats:
    """Points whose mean and covariance are these to the last digit; the covariance is diagonal."""
    x = normal(seed, number, len(mean))
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return white * deviations + mean


class TestFrechetDistance:
    def test_of_two_gaussians_is_the_closed_form(self) -> None:
        one = np.array([1.0, -2.0, 0.5]), np.array([1.0, 2.0, 0.1])
        other = np.array([0.0, 0.0, 3.0]), np.array([3.0, 0.5, 0.1])
        a, b = exactly(*one, seed=0), exactly(*other, seed=1)
        wanted = sum(((x - y) ** 2).sum() for x, y in zip(one, other, strict=True))
        assert metrics.fid(a, b) == pytest.approx(wanted, rel=1e-9)
        assert metrics.resampled_fid(a, b, np.ones((1, 50))) == pytest.approx(wanted, rel=1e-9)
        assert metrics.fid(a, a) == pytest.approx(0.0, abs=1e-6)

    @given(seeds)
    def test_of_an_image_taken_twice_is_that_of_two_such_images(self, seed: int) -> None:
        a, b = normal(seed, 12), normal(seed + 1, 20) * 2 + 1
        counts = np.random.default_rng(seed).integers(0, 4, (1, 12)).astype(float) + np.eye(1, 12)
        counts[0, :4] += 1.0  # enough different ones
        repeated = np.repeat(a, counts[0].astype(int), axis=0)
        assert metrics.resampled_fid(a, b, counts)[0] == pytest.approx(
            metrics.fid(repeated, b), rel=1e-6, abs=1e-6
        )


class TestKernelDistance:
    def test_is_the_libraries_over_all_images(self) -> None:
        a, b = normal(0, 30), normal(1, 30) + 0.5
        settings = {"kid_subsets": 1, "kid_subset_size": 30, "verbose": False}
        figures = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), **settings)
        wanted = figures["kernel_inception_distance_mean"]
        assert metrics.resampled_kid(a, b, np.ones((1, 30)))[0] == pytest.approx(wanted, rel=1e-9)
        assert metrics.kid(a, b) == pytest.approx(wanted, rel=1e-9)  # every subset is the whole

    def test_of_repeated_images_is_over_all_pairs_of_different_ones(self) -> None:
        a, b = normal(2, 6), normal(3, 9)
        counts = np.array([[2.0, 0.0, 1.0, 3.0, 0.0, 0.0]])

        def mean(pairs: list[tuple[Floats, Floats]]) -> float:
            return float(np.mean([(x @ y / 3 + 1) ** 3 for x, y in pairs]))

        taken = [i for i, count in enumerate(counts[0]) for _ in range(int(count))]
        own = [(a[i], a[j]) for i in taken for j in taken if i != j]
        wanted = (
            mean(own)
            + mean([(b[i], b[j]) for i, j in itertools.permutations(range(9), 2)])
            - 2 * mean([(a[i], y) for i in taken for y in b])
        )
        assert metrics.resampled_kid(a, b, counts)[0] == pytest.approx(wanted, rel=1e-9)

    def test_is_nothing_for_one_distribution_and_something_for_two(self) -> None:
        a, b = normal(4, 400), normal(5, 400)
        assert abs(metrics.kid(a, b)) < 0.03 < 0.1 < metrics.kid(a, b + 0.5)


class TestManifolds:
    def test_share_all_nothing_or_some(self) -> None:
        x = normal(0, 50)
        assert metrics.precision_recall(x, x) == (1.0, 1.0)
        assert metrics.within_manifold(x, x).all()
        assert metrics.precision_recall(x, x + 100.0) == (0.0, 0.0)
        collapsed, reference = normal(2, 300, 2) * 0.01, normal(1, 300, 2)
        precision, recall = metrics.precision_recall(collapsed, reference)
        assert precision == 1.0
        assert recall < 0.05

    @given(seeds)
    def test_are_the_libraries(self, seed: int) -> None:
        a, b = normal(seed, 40), normal(seed + 1, 40) * 1.5
        precision, recall = metrics.precision_recall(a, b)
        assert metrics.within_manifold(a, b).mean() == pytest.approx(precision)
        everything = np.arange(40)[None]
        assert metrics.resampled_recall(a, b, everything)[0] == pytest.approx(recall)

    def test_of_a_half_are_those_of_its_images(self) -> None:
        a, b, chosen = normal(7, 40), normal(8, 40), halves(40, 3)
        wanted = [metrics.precision_recall(a[rows], b)[1] for rows in chosen]
        assert metrics.resampled_recall(a, b, chosen) == pytest.approx(wanted)


class TestSpread:
    classes = np.arange(600) % 3
    variances = metrics.class_variances(normal(0, 600) + classes[:, None] * 9.0, classes, 3)

    def of(self, features: Floats, counts: Floats | None = None) -> Floats:
        ones = np.ones((1, len(features)))
        classes = self.classes[: len(features)]
        return metrics.spread(features, classes, self.variances, ones if counts is None else counts)

    def test_of_other_images_of_the_classes_is_one(self) -> None:
        away = normal(1, 600) - self.classes[:, None] * 5.0  # where classes lie does not matter
        assert self.of(away)[0] == pytest.approx(1.0, abs=0.1)

        x = normal(2, 600)  # it grows with the square of distances
        assert self.of(0.5 * x)[0] == pytest.approx(0.25 * self.of(x)[0])
        same = self.classes[:, None] * np.ones(3)  # one image for each class
        assert self.of(same)[0] == pytest.approx(0.0, abs=1e-12)

    def test_counts_an_image_as_often_as_it_is_taken(self) -> None:
        x, counts = normal(3, 12), bootstrap(12, 1)
        rows = np.repeat(np.arange(12), counts[0].astype(int))
        ones, classes = np.ones((1, len(rows))), self.classes[:12][rows]
        wanted = metrics.spread(x[rows], classes, self.variances, ones)
        assert self.of(x, counts) == pytest.approx(wanted)

    def test_leaves_out_what_cannot_be_compared(self) -> None:
        unknown = metrics.class_variances(normal(0, 4), np.array([0, 0, 0, 1]), 3)
        assert np.isfinite(unknown).tolist() == [True, False, False]
        assert np.isnan(metrics.spread(normal(1, 4), np.full(4, -1), unknown, np.ones((1, 4))))


class TestIntervals:
    def test_of_a_mean_is_the_percentile_interval(self) -> None:
        x = normal(0, 100, 1)[:, 0]
        resampled = bootstrap(100) @ x / 100
        shifted = resampled - resampled.mean() + x.mean()
        found = interval(x.mean(), shifted)
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(shifted, [0.025, 0.975])))

    def test_of_a_mean_is_as_wide_as_its_standard_error_says(self) -> None:
        x = normal(1, 400, 1)[:, 0]
        wanted = 2 * 1.96 * x.std() / math.sqrt(400)
        for resampled in (bootstrap(400) @ x / 400, x[halves(400, 1000)].mean(1)):
            found = interval(x.mean(), resampled)
            assert found.high - found.low == pytest.approx(wanted, rel=0.1)

    def test_covers_a_share_in_95_of_100_experiments(self) -> None:
        rng, counts, share = np.random.default_rng(0), bootstrap(200), 0.3
        covered = 0
        for hits in rng.random((400, 200)) < share:
            found = share_interval(hits, counts @ hits / 200)
            covered += found.low <= share <= found.high
        assert 0.92 < covered / 400 < 0.975

    def test_covers_the_distance_that_so_many_images_have(self) -> None:
        """The interval is for the figure at this number of images, bias included."""
        reference, counts = normal(0, 4000, 2), bootstrap(100, 200)
        found = []
        for seed in range(1, 201):
            x = normal(seed, 100, 2) * 1.2
            distance = metrics.fid(x, reference)
            found.append(interval(distance, metrics.resampled_fid(x, reference, counts), 0.0))
        expected = np.mean([figure.value for figure in found])
        covered = np.mean([figure.low <= expected <= figure.high for figure in found])
        assert 0.9 < covered < 0.995

    def test_of_a_paired_difference_is_narrower_where_rows_agree(self) -> None:
        rng, counts = np.random.default_rng(3), bootstrap(300)
        common = rng.random(300)
        a, b = ((common + 0.1 * rng.random(300) > bar).astype(float) for bar in (0.5, 0.57))
        one, other = (counts @ hits / 300 for hits in (a, b))
        paired = interval((a - b).mean(), one - other)
        alone = [share_interval(hits, means) for hits, means in ((a, one), (b, other))]
        unpaired = math.hypot(*(found.high - found.low for found in alone))
        assert paired.high - paired.low < 0.6 * unpaired
        assert paired.low > 0.0  # although the two intervals by themselves overlap
        assert alone[1].high > alone[0].low

    @pytest.mark.parametrize("hit", [0.0, 1.0])
    def test_of_a_share_without_doubt_is_exact(self, hit: float) -> None:
        hits = np.full(1000, hit)
        found = share_interval(hits, bootstrap(1000, 10) @ hits / 1000)
        away = found.high if hit == 0.0 else 1.0 - found.low
        assert (1.0 - away) ** 1000 == pytest.approx(0.025)
        assert found.value == hit

    def test_holds_the_value_and_keeps_to_what_can_be(self) -> None:
        rarely = np.zeros(200)
        rarely[0] = 1.0  # the mean of the resamples lies above both of their quantiles
        assert interval(0.0, rarely, 0.0, 1.0) == Interval(0.0, 0.0, 0.0)
        assert interval(0.99, normal(0, 200, 1)[:, 0], 0.0, 1.0).high == 1.0

    def test_resamples_are_the_same_every_time(self) -> None:
        assert (bootstrap(20, 5) == bootstrap(20, 5)).all()
        assert (bootstrap(20, 5).sum(1) == 20).all()
        assert all(len(set(rows)) == 10 for rows in halves(20, 5))

    def test_is_null_in_files_where_it_is_not_finite(self) -> None:
        found = interval(math.nan, np.full(5, np.nan))
        assert as_json(found) == {"value": None, "low": None, "high": None}
        some = interval(0.5, np.array([0.4, np.nan, 0.6]))
        assert as_json(some) == {"value": 0.5, "low": None, "high": None}
