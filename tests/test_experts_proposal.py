"""Where experts could begin, against closed forms and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppap_framework.diagnosis import MOST_EXPERTS, propose_boundaries, propose_number
from ppap_framework.diagnosis.proposal import rising_fit
from ppap_framework.errors import UsageError
from ppap_framework.experts import NoiseRanges
from ppap_framework.noise import cosine_schedule

numbers = st.floats(-1e6, 1e6)


@st.composite
def curves(draw: st.DrawFn) -> tuple[list[int], list[float], int, int]:
    """Timesteps, values, T and N."""
    length = draw(st.integers(1, 1200))
    timesteps = sorted(draw(st.sets(st.integers(0, length - 1), min_size=1, max_size=12)))
    values = draw(st.lists(numbers, min_size=len(timesteps), max_size=len(timesteps)))
    return timesteps, values, length, draw(st.integers(1, min(length, 25)))


def equal(length: int, experts: int) -> list[int]:
    """As in the paper: expert i begins at floor(i T / N)."""
    return [i * length // experts for i in range(1, experts)]


class TestRisingFit:
    @given(st.lists(numbers, min_size=1, max_size=9))
    def test_is_the_greatest_of_means_from_before_that_are_least_to_behind(
        self, values: list[float]
    ) -> None:
        """The max-min formula of isotonic regression (Robertson et al. 1988, theorem 1.4.4)."""
        n = len(values)
        expected = [
            max(
                min(math.fsum(values[j : k + 1]) / (k + 1 - j) for k in range(i, n))
                for j in range(i + 1)
            )
            for i in range(n)
        ]
        assert rising_fit(values) == pytest.approx(expected, abs=1e-6, rel=1e-9)

    def test_of_what_rises_is_the_same_and_of_what_falls_its_mean(self) -> None:
        assert rising_fit([1.0, 1.0, 2.0, 7.0]) == [1.0, 1.0, 2.0, 7.0]
        assert rising_fit([5.0, 3.0, 1.0]) == [3.0] * 3


class TestProposal:
    @given(curves())
    def test_ranges_are_as_many_as_asked_for_and_none_is_narrow(
        self, given_: tuple[list[int], list[float], int, int]
    ) -> None:
        timesteps, values, length, experts = given_
        starts = propose_boundaries(timesteps, values, length, experts)
        assert len(starts) == experts - 1
        widths = [b - a for a, b in itertools.pairwise([0, *starts, length])]
        assert min(widths) >= max(1.0, length / (4 * experts))
        schedule = cosine_schedule(length)
        owned = NoiseRanges.from_timesteps(schedule, starts).timesteps(schedule)
        assert [part.start for part in owned] == [0, *starts]

    @given(curves(), st.floats(0.5, 100.0), st.integers(-100, 100))
    def test_the_unit_and_the_zero_of_the_curve_do_not_matter(
        self, given_: tuple[list[int], list[float], int, int], unit: float, zero: int
    ) -> None:
        timesteps, values, length, experts = given_
        values = [float(round(value)) for value in values]  # so that sums stay exact enough
        scaled = [unit * value + zero for value in values]
        starts = propose_boundaries(timesteps, values, length, experts)
        others = propose_boundaries(timesteps, scaled, length, experts)
        # A boundary may fall on the edge between two timesteps, or on a stretch that is level but
        # for rounding.
        if len(set(rising_fit(values))) == len(values):
            assert all(abs(a - b) <= 1 for a, b in zip(starts, others, strict=True))

    @given(st.integers(1, 1500), st.data())
    def test_a_level_a_straight_and_a_falling_curve_give_equal_ranges(
        self, length: int, data: st.DataObject
    ) -> None:
        experts = data.draw(st.integers(1, min(length, 40)))
        expected = equal(length, experts)
        every = list(range(length))
        assert propose_boundaries([length // 2], [3.0], length, experts) == expected
        assert propose_boundaries(every, [2.0] * length, length, experts) == expected
        assert propose_boundaries(every, [0.1 * t for t in every], length, experts) == expected
        assert propose_boundaries(every, [-0.3 * t for t in every], length, experts) == expected

    @given(st.integers(100, 1500), st.integers(2, 20))
    def test_of_a_parabola_they_are_at_square_roots(self, length: int, experts: int) -> None:
        """(t / (T - 1))^2 has risen by k / N at sqrt(k / N)."""
        curve = [(t / (length - 1)) ** 2 for t in range(length)]
        starts = propose_boundaries(range(length), curve, length, experts)
        floor = math.ceil(length / (4 * experts))
        for k, start in enumerate(starts, 1):
            exact = k * floor + (length - experts * floor) * math.sqrt(k / experts)
            assert exact - 2 < start <= exact + 1  # straight lines between whole timesteps

    @given(st.integers(2, 8), st.integers(0, 2**32))
    def test_the_rise_is_the_same_within_all_ranges(self, experts: int, seed: int) -> None:
        """Of the cut before every expert is given its floor; so the largest is the least there is:
        N parts of a whole cannot all be less than one N-th of it.
        """
        random = np.random.default_rng(seed)
        steps = random.random(999) * np.linspace(1.0, 0.0, 999) ** 6  # most of it in the beginning
        curve = np.concatenate([[0.0], np.cumsum(steps)])
        starts = propose_boundaries(range(1000), curve.tolist(), 1000, experts)
        floor = math.ceil(1000 / (4 * experts))
        places = [(s - k * floor) / (1000 - experts * floor) for k, s in enumerate(starts, 1)]
        rises = np.diff(np.interp([0.0, *places, 1.0], np.arange(1000) / 999, curve))
        assert rises == pytest.approx(curve[-1] / experts, abs=3.0)  # whole timesteps, of up to 1
        assert curve[-1] / experts > 7.0

    def test_simple_curves(self) -> None:
        # 0 to 300 rises, 300 to 600 is level, 600 to 900 rises as much: cut in the middle.
        starts = propose_boundaries([0, 300, 600, 900], [0.0, 1.0, 1.0, 2.0], 901, 2)
        floor = math.ceil(901 / 8)
        assert starts == [floor + math.floor((901 - 2 * floor) * 0.5)]
        # A network that is lost at once has narrow ranges where it is.
        starts = propose_boundaries([0, 100, 999], [0.0, 9.0, 9.0], 1000, 5)
        assert starts == [k * 50 + math.floor(750 * k * 20 / 999) for k in range(1, 5)]
        # A dip is levelled with the peak before it: 1, 3, 2 is 1, 2.5, 2.5.
        timesteps = [0, 250, 500, 999]
        dip, level = [1, 3, 2, 4], [1, 2.5, 2.5, 4]
        cuts = [propose_boundaries(timesteps, curve, 1000, 4) for curve in (dip, level)]
        assert cuts[0] == cuts[1]

    @pytest.mark.parametrize(
        ("timesteps", "values", "length", "experts", "message"),
        [
            ([0], [1.0], 10, 0, "cannot share 10 timesteps among 0"),
            ([0], [1.0], 10, 11, "cannot share 10 timesteps among 11"),
            ([], [], 10, 2, "cannot be measured at timesteps"),
            ([3, 3], [1.0, 1.0], 10, 2, "cannot be measured at timesteps"),
            ([3, 10], [1.0, 1.0], 10, 2, "cannot be measured at timesteps"),
            ([-1, 3], [1.0, 1.0], 10, 2, "cannot be measured at timesteps"),
            ([1, 3], [1.0], 10, 2, "1 values at 2 timesteps"),
            ([1, 3], [1.0, math.nan], 10, 2, "at timestep 3 is nan"),
            ([1, 3], [math.inf, 1.0], 10, 2, "at timestep 1 is inf"),
        ],
    )
    def test_what_is_no_curve(
        self, timesteps: list[int], values: list[float], length: int, experts: int, message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            propose_boundaries(timesteps, values, length, experts)
        if experts == 2:
            with pytest.raises(UsageError, match=message):
                propose_number(timesteps, values, length)


class TestNumber:
    @given(curves())
    def test_is_the_smallest_that_leaves_a_quarter_of_the_rise_to_each(
        self, given: tuple[list[int], list[float], int, int]
    ) -> None:
        timesteps, values, length, _ = given
        rising = rising_fit(values)
        rise = rising[-1] - rising[0]
        found = propose_number(timesteps, values, length)
        most = min(MOST_EXPERTS, length)
        if rise <= 0.0:
            assert found == 1
            return

        def largest(experts: int) -> float:
            """The share of the rise in the hardest range."""
            starts = propose_boundaries(timesteps, values, length, experts)
            at = np.interp(starts, timesteps, rising)
            return float(np.diff([rising[0], *at, rising[-1]]).max() / rise)

        assert 1 <= found <= most
        assert found == most or largest(found) <= 0.26 + 1e-9
        assert all(largest(fewer) > 0.26 - 1e-9 for fewer in range(1, found))

    def test_of_simple_curves(self) -> None:
        assert propose_number([0, 999], [0.0, 1.0], 1000) == 4  # a straight line
        assert propose_number([0, 999], [3.0, 3.0], 1000) == 1
        assert propose_number([0, 999], [3.0, 2.0], 1000) == 1
        assert propose_number([0, 1], [0.0, 1.0], 2) == 2  # no more than there are timesteps
        # All at once: whatever range holds the rise has all of it.
        assert propose_number([499, 500], [0.0, 1.0], 1000) == MOST_EXPERTS
        # Half of the rise in a tenth of the timesteps takes more than a straight line does.
        steep = propose_number([0, 100, 999], [0.0, 1.0, 2.0], 1000)
        assert 4 < steep < MOST_EXPERTS
