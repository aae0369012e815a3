"""The search for scales, on losses whose least is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ppap_framework.learn.scale_search import Loss, Scales, most_trials, search


def losses(mean: Callable[[Scales], float], noise: float = 0.0, seed: int = 0) -> Callable:
    """64 trajectories that have their own mean, and noise of each trial's own."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(64, generator=generator, dtype=torch.float64)

    def run(scales: Scales) -> Loss:
        own = torch.randn(64, generator=generator, dtype=torch.float64)
        distance = mean(scales) + shared + noise * (own - own.mean())
        return Loss(distance=distance, oddity=torch.zeros_like(distance))

    return run


def bowl(*best: float) -> Callable[[Scales], float]:
    """Least at these scales."""
    return lambda scales: sum(math.log2(s / b) ** 2 for s, b in zip(scales, best, strict=True))


@given(st.integers(-4, 8), st.integers(-4, 4))
def test_a_common_scale_is_found_on_the_grid(place: int, power: int) -> None:
    first = 3.0 * 2.0**power
    scales, trials = search(losses(bowl(first * 2.0**place)), first, 1)
    assert scales == (first * 2.0**place,)
    up = min(9, max(place, 0) + 3)  # worse twice in a row, and it ends
    down = min(4, 1 - place) if place <= 0 else 0  # one beyond, and it ends
    tried = [*range(up), *range(-1, -1 - down, -1)]
    assert [trial.scales[0] for trial in trials] == [first * 2.0**k for k in tried]
    assert [trial.scales for trial in trials if trial.kept] == [scales]


def test_the_smallest_that_is_within_a_standard_error() -> None:
    table = {0.5: 3.0, 1.0: 1.0, 2.0: 0.5, 4.0: 0.3, 8.0: 0.29, 16.0: 0.28}

    def mean(scales: Scales) -> float:
        return table.get(scales[0], 2.0)

    assert search(losses(mean), 1.0, 1)[0] == (16.0,)  # differences are exact
    # The difference of two trials has a standard error of 0.3 sqrt(2) / sqrt(64) = 0.053.
    assert search(losses(mean, noise=0.3), 1.0, 1)[0] == (4.0,)


def test_what_trajectories_have_in_common_is_no_error() -> None:
    """Only differences count: the shared spread of 1 would make all of these alike."""
    assert search(losses(lambda s: 0.05 * abs(math.log2(s[0] / 4))), 1.0, 1)[0] == (4.0,)


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=2, max_size=5))
def test_each_range_may_have_half_or_twice(moves: list[int]) -> None:
    best = [8.0 * 2.0**move for move in moves]
    scales, trials = search(losses(bowl(*best)), 1.0, len(best))
    start = next(trial for trial in trials if trial.kept).scales
    common = start[0]
    assert start == (common,) * len(best)
    # From the common scale each may come a factor of 2 closer, and never goes farther away.
    for found, wanted in zip(scales, best, strict=True):
        expected = min(
            (common, common / 2, common * 2),
            key=lambda s: (abs(math.log2(s / wanted)), s != common),
        )
        assert found == expected


def test_noise_moves_nothing() -> None:
    """Ten comparisons of what is equal: two standard errors let one in 44 pass."""
    moved = sum(
        len(set(search(losses(lambda _: 0.0, noise=1.0, seed=seed), 1.0, 5)[0])) > 1
        for seed in range(20)
    )
    assert moved <= 8


@pytest.mark.parametrize("ranges", [1, 2, 5])
def test_how_many_trials_there_are(ranges: int) -> None:
    calls = []

    def run(scales: Scales) -> Loss:
        calls.append(scales)
        zeros = torch.zeros(8, dtype=torch.float64)
        return Loss(distance=zeros, oddity=zeros)

    scales, trials = search(run, 0.5, ranges)
    assert scales == (0.5 / 2**4,) * ranges  # nothing is gained by more
    assert calls == [trial.scales for trial in trials]
    assert len(calls) == most_trials(ranges) == 13 + (2 * ranges if ranges > 1 else 0)


def test_the_record() -> None:
    values: Tensor = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)

    def run(scales: Scales) -> Loss:
        return Loss(distance=values + scales[0], oddity=torch.full_like(values, 0.25))

    _, trials = search(run, 1.0, 1)
    assert trials[0].record() == {
        "scales": [1.0],
        "loss": 2.75,
        "standard_error": round(math.sqrt(5 / 3) / 2, 6),
        "distance": 2.5,
        "oddity": 0.25,
        "kept": False,  # less would do
    }
