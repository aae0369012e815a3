"""What is looked at in which iteration, and how iterations are shared out."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppap_framework.errors import UsageError
from ppap_framework.learn import Recipe
from ppap_framework.learn.batches import Batch, training_batch, validation_batch
from ppap_framework.learn.recipe import Phase

SEEDS = st.integers(-(2**63), 2**64)
RANGES = st.tuples(st.integers(0, 50), st.integers(1, 200)).map(lambda p: range(p[0], sum(p)))


def drawn(step: int = 3, *, seed: int = 0, phase: int = 0, **changes: Any) -> Batch:
    settings = {"size": 4, "count": 10, "timesteps": range(10, 50), "shape": (3, 2, 2), **changes}
    return training_batch((seed, phase), step, **settings)


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.timesteps, other.timesteps)
        and torch.equal(one.noise, other.noise)
    )


class TestTrainingBatch:
    @given(SEEDS, st.integers(0, 9), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
    def test_every_image_once_in_each_epoch(
        self, seed: int, phase: int, batch: int, count: int, epochs: int
    ) -> None:
        steps = range(math.ceil(count * epochs / batch))
        settings: dict[str, Any] = {"seed": seed, "phase": phase, "size": batch, "count": count}
        images = torch.cat([drawn(step, **settings).images for step in steps]).tolist()
        for epoch in range(epochs):
            assert sorted(images[epoch * count : (epoch + 1) * count]) == list(range(count))

    def test_in_another_order_each_time(self) -> None:
        orders = {
            tuple(drawn(step, phase=phase, size=30, count=30).images.tolist())
            for step in range(5)
            for phase in range(5)
        }
        assert len(orders) == 25
        assert tuple(range(30)) not in orders

    @given(SEEDS, st.integers(0, 10**6), st.integers(1, 64), RANGES)
    def test_a_timestep_from_each_of_equal_parts(
        self, seed: int, step: int, batch: int, timesteps: range
    ) -> None:
        found = drawn(step, seed=seed, size=batch, timesteps=timesteps).timesteps
        assert found.dtype == torch.int64
        assert found.shape == (batch,)
        width = len(timesteps)
        for part, offset in enumerate((found - timesteps.start).tolist()):
            assert part * width // batch <= offset < math.ceil((part + 1) * width / batch)

    def test_every_timestep_is_as_likely(self) -> None:
        counts = torch.zeros(10)
        for step in range(2000):
            found = drawn(step, size=3, timesteps=range(5, 15)).timesteps - 5
            counts += torch.bincount(found, minlength=10)
        expected, spread = 600, (6000 * 0.1 * 0.9) ** 0.5
        assert (counts - expected).abs().max() < 5 * spread

    def test_noise_is_standard_normal(self) -> None:
        noise = drawn(size=64, shape=(3, 20, 20)).noise
        assert noise.shape == (64, 3, 20, 20)
        assert noise.mean().abs() < 5 / noise.numel() ** 0.5
        assert (noise.var() - 1).abs() < 5 * (2 / noise.numel()) ** 0.5
        assert len({row.sum().item() for row in noise}) == 64

    def test_a_function_of_its_arguments_alone(self) -> None:
        first = drawn()
        for other in range(4):
            torch.manual_seed(other)
            drawn(other)
            state = torch.get_rng_state()
            assert same(drawn(), first)
            assert torch.equal(torch.get_rng_state(), state)  # and it takes nothing from others

    @given(
        st.lists(
            st.tuples(SEEDS.filter(lambda s: abs(s) < 2**32), *[st.integers(0, 2**20)] * 2),
            min_size=2,
            max_size=2,
            unique=True,
        )
    )
    def test_other_streams_differ(self, words: list[tuple[int, int, int]]) -> None:
        one, other = (drawn(step, seed=seed, phase=phase) for seed, phase, step in words)
        assert not torch.equal(one.noise, other.noise)


class TestValidationBatch:
    @given(SEEDS, st.integers(0, 9), st.integers(1, 60), RANGES)
    def test_every_image_once_over_the_whole_range(
        self, seed: int, phase: int, count: int, timesteps: range
    ) -> None:
        exam = validation_batch((seed, phase), count=count, timesteps=timesteps, shape=(3, 1, 1))
        assert exam.images.tolist() == list(range(count))
        offsets = sorted((exam.timesteps - timesteps.start).tolist())
        # In the middle of each of `count` equal parts.
        assert offsets == [(2 * i + 1) * len(timesteps) // (2 * count) for i in range(count)]
        assert exam.noise.shape == (count, 3, 1, 1)

    def test_is_always_the_same_and_no_training_batch(self) -> None:
        settings: dict[str, Any] = {"timesteps": range(90), "shape": (3, 2, 2), "count": 10}
        one = validation_batch((1, 2), **settings)
        torch.manual_seed(5)
        assert same(validation_batch((1, 2), **settings), one)
        assert not torch.equal(validation_batch((1, 3), **settings).noise, one.noise)
        assert not torch.equal(validation_batch((2, 2), **settings).timesteps, one.timesteps)
        assert not torch.equal(training_batch((1, 2), 0, 10, **settings).noise, one.noise)


class TestPhases:
    @given(
        st.lists(st.integers(1, 9), min_size=1, max_size=9),
        st.integers(1, 300),
        st.floats(0, 1, exclude_max=True),
        st.booleans(),
    )
    def test_iterations_add_up(
        self, widths: list[int], iterations: int, shared: float, chain: bool
    ) -> None:
        ends = [sum(widths[:i]) for i in range(len(widths) + 1)]
        owned = [range(first, end) for first, end in pairwise(ends)]
        recipe = Recipe(iterations=iterations, shared=shared, chain=chain)
        n = len(owned)
        common = 0 if chain or n == 1 else round(iterations * shared)
        if iterations - common < n:
            with pytest.raises(UsageError, match=f"cannot be shared out among {n} experts"):
                recipe.phases(owned)
            return
        phases = recipe.phases(owned)
        assert sum(phase.iterations for phase in phases) == iterations
        own = [phase for phase in phases if not phase.shared]
        assert [(phase.expert, phase.timesteps) for phase in own] == list(enumerate(owned))
        assert max(p.iterations for p in own) - min(p.iterations for p in own) <= 1
        if common:
            first = Phase(0, range(ends[-1]), common, None, shared=True)
            assert phases == (first, *own)
            assert {phase.begins_with for phase in own} == {-1}
        else:
            assert phases == tuple(own)
            before = [None, *range(n - 1)] if chain else [None] * n
            assert [phase.begins_with for phase in own] == before

    def test_names(self) -> None:
        phases = Recipe(iterations=10).phases([range(3), range(3, 5)])
        assert [phase.name for phase in phases] == ["shared", "expert 0", "expert 1"]

    def test_an_expert_without_timesteps(self) -> None:
        with pytest.raises(UsageError, match="expert 1 owns no timestep"):
            Recipe().phases([range(3), range(3, 3), range(3, 5)])


class TestRate:
    @given(st.integers(1, 3000), st.floats(1e-6, 1))
    def test_it_rises_and_then_falls_to_nothing(self, iterations: int, highest: float) -> None:
        phase = Phase(0, range(1), iterations, None)
        recipe = Recipe(learning_rate=highest)
        rates = [recipe.rate(phase, step) for step in range(iterations)]
        rising = max(1, min(100, iterations // 10))
        assert max(rates) == pytest.approx(highest)
        assert rates[:rising] == pytest.approx([highest * (i + 1) / rising for i in range(rising)])
        left = max(1, iterations - rising)
        falling = [highest * (left - i) / left for i in range(iterations - rising)]
        assert rates[rising:] == pytest.approx(falling)
        assert min(rates) > 0


BAD: list[tuple[str, Any]] = [
    *((name, value) for name in ("iterations", "batch", "validate_every") for value in (0, -1)),
    *((name, value) for name in ("iterations", "batch", "seed") for value in (1.5, True, "7")),
    *(("patience", value) for value in (-1, 0.5)),
    *(("shared", value) for value in (1.0, -0.1, math.nan, "half", None)),
    *(("held_out", value) for value in (0.0, 1.0, math.nan, "some")),
    *(("learning_rate", value) for value in (0.0, -1.0, math.inf, math.nan, "fast")),
    *(("weight_decay", value) for value in (-1.0, math.inf, math.nan)),
    *(("precision", value) for value in ("float16", None)),
    ("chain", "yes"),
    *(("num_experts", value) for value in (0, True, 2.0)),
    ("boundaries", "even"),
]


class TestProblems:
    @pytest.mark.parametrize(("name", "value"), BAD)
    def test_a_bad_value(self, name: str, value: Any) -> None:
        [error] = Recipe(**{name: value}).problems()
        assert error.message.startswith(name)
        assert repr(value).strip("'") in error.message
        assert error.hint

    def test_all_bad_values_at_once(self) -> None:
        bad = dict(BAD)
        errors = [str(error) for error in Recipe(**bad).problems()]
        assert not any("\n" in error for error in errors)
        assert {error.split()[0] for error in errors} == set(bad)

    def test_good_ones(self) -> None:
        assert not [*Recipe().problems()]
        good = {"shared": 0, "patience": 3, "seed": -5, "held_out": 0.5, "batch": 1}
        assert not [*Recipe(**good, precision="bfloat16", boundaries=[3, 9]).problems()]
