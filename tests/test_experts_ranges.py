"""Every timestep goes to the expert of the paper's formula, and where experts could begin."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppap_framework.diagnosis import MOST_EXPERTS, propose_boundaries, propose_number
from ppap_framework.diagnosis.proposal import rising_fit
from ppap_framework.diffusion import Process, space_timesteps, timesteps_for
from ppap_framework.errors import UsageError
from ppap_framework.experts import NoiseRanges
from ppap_framework.noise import NoiseLevel, NoiseSchedule, cosine_schedule, linear_schedule

quick = settings(max_examples=40)


@st.composite
def schedules(draw: st.DrawFn) -> NoiseSchedule:
    if draw(st.booleans()):
        schedule = linear_schedule(draw(st.integers(21, 1200)))
    else:
        schedule = cosine_schedule(draw(st.integers(1, 1200)))
    kept = draw(st.integers(1, schedule.num_timesteps))
    return NoiseSchedule(schedule.name, schedule.betas[:kept])


@st.composite
def cuts(draw: st.DrawFn) -> tuple[NoiseSchedule, int]:
    schedule = draw(schedules())
    return schedule, draw(st.integers(1, min(schedule.num_timesteps, 25)))


def level(*log_snr: float) -> NoiseLevel:
    return NoiseLevel(torch.tensor(log_snr, dtype=torch.float64))


def owners_of(ranges: NoiseRanges, levels: NoiseLevel) -> list[int]:
    return [ranges.owner(value) for value in levels.log_snr.tolist()]


def paper(t: int, length: int, number: int) -> int:
    """The one i with int(i T / N) <= t < int((i + 1) T / N)."""
    (owner,) = (
        i for i in range(number) if int(i * length / number) <= t < int((i + 1) * length / number)
    )
    return owner


@quick
@given(cuts())
def test_every_base_timestep_goes_where_the_formula_says(cut: tuple[NoiseSchedule, int]) -> None:
    schedule, number = cut
    ranges = NoiseRanges.equal(schedule, number)
    assert len(ranges) == number
    length = schedule.num_timesteps
    owners = owners_of(ranges, schedule.level(torch.arange(length)))
    assert owners == [paper(t, length, number) for t in range(length)]


@quick
@given(cuts(), st.data())
def test_a_process_on_the_schedule_is_routed_by_its_base_timesteps(
    cut: tuple[NoiseSchedule, int], data: st.DataObject
) -> None:
    schedule, number = cut
    length = schedule.num_timesteps
    ranges = NoiseRanges.equal(schedule, number)
    kind = data.draw(st.sampled_from(["ddpm", "steps", "sections", "any"]))
    kept = {
        "ddpm": lambda: list(range(length)),
        "steps": lambda: timesteps_for(length, data.draw(st.integers(1, length))),
        "sections": lambda: space_timesteps(
            length, ",".join(["1"] * data.draw(st.integers(1, min(length, 8))))
        ),
        "any": lambda: sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1))),
    }[kind]()
    process = Process(schedule, kept)
    routed = [owners_of(ranges, process.level(step, 2)) for step in range(len(process))]
    assert routed == [[paper(t, length, number)] * 2 for t in kept]


@pytest.mark.parametrize("respacing", ["", "25", "10,10,5", "ddim25", "ddim50", "fast27"])
@pytest.mark.parametrize("schedule", [linear_schedule(), cosine_schedule()], ids=["lin", "cos"])
@pytest.mark.parametrize("number", [1, 2, 3, 5, 7, 10])
def test_published_respacings(schedule: NoiseSchedule, respacing: str, number: int) -> None:
    kept = space_timesteps(1000, respacing)
    for expert, owned in enumerate(NoiseRanges.equal(schedule, number).timesteps(schedule)):
        assert [t for t in kept if t in owned] == [
            t for t in kept if paper(t, 1000, number) == expert
        ]


def test_released_boundaries_but_half_open() -> None:
    # Five experts of 1000 timesteps begin at 200 k; the released code gives 200 to expert 0.
    ranges = NoiseRanges.equal(linear_schedule(), 5)
    t = torch.tensor([0, 199, 200, 399, 400, 799, 800, 999])
    assert owners_of(ranges, linear_schedule().level(t)) == [0, 0, 1, 1, 2, 3, 4, 4]
    assert ranges.timesteps(linear_schedule()) == tuple(
        range(start, start + 200) for start in range(0, 1000, 200)
    )


@quick
@given(cuts())
def test_ranges_are_half_open_and_boundaries_lie_midway(cut: tuple[NoiseSchedule, int]) -> None:
    schedule, number = cut
    ranges = NoiseRanges.equal(schedule, number)
    lambdas = schedule.log_snr.tolist()
    for expert, boundary in enumerate(ranges.boundaries, start=1):
        start = int(expert * schedule.num_timesteps / number)
        assert boundary == (lambdas[start - 1] + lambdas[start]) / 2
        assert lambdas[start - 1] > boundary > lambdas[start]
        below, above = math.nextafter(boundary, -math.inf), math.nextafter(boundary, math.inf)
        owners = owners_of(ranges, level(above, boundary, below))
        assert owners == [expert - 1, expert - 1, expert]
    assert owners_of(ranges, level(math.inf, -math.inf)) == [0, number - 1]


@quick
@given(
    st.sets(st.floats(-60, 60), max_size=12),
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=30),
)
def test_each_level_has_one_owner(boundaries: set[float], levels: list[float]) -> None:
    ranges = NoiseRanges(sorted(boundaries, reverse=True))
    ends = [math.inf, *ranges.boundaries, -math.inf]
    for value, owner in zip(levels, owners_of(ranges, level(*levels)), strict=True):
        inside = [i for i in range(len(ranges)) if ends[i + 1] <= value < ends[i]]
        assert [owner] == inside or (value == math.inf and owner == 0)


@quick
@given(cuts(), schedules())
def test_ranges_serve_another_schedule_by_log_snr(
    cut: tuple[NoiseSchedule, int], other: NoiseSchedule
) -> None:
    ranges = NoiseRanges.equal(*cut)
    owned = ranges.timesteps(other)
    assert [t for timesteps in owned for t in timesteps] == list(range(other.num_timesteps))
    for expert, timesteps in enumerate(owned):
        for t in timesteps:
            value = other.log_snr[t].item()
            assert expert == sum(value < boundary for boundary in ranges.boundaries)


def test_linear_ranges_on_the_cosine_schedule() -> None:
    # Where the linear schedule is half way, t = 500, abar is 0.078; the cosine one gets there at
    # abar(u) = cos^2((u + 0.008) / 1.008 pi / 2) = 0.078, u = 0.819.
    linear, cosine = linear_schedule(), cosine_schedule()
    ranges = NoiseRanges.equal(linear, 2)
    abar = (linear.alphas_cumprod[499] * linear.alphas_cumprod[500]).sqrt().item()
    u = math.acos(math.sqrt(abar)) * 2 / math.pi * 1.008 - 0.008
    assert abs(ranges.timesteps(cosine)[1].start - u * 1000) < 1.5


def test_experts_at_chosen_timesteps() -> None:
    schedule = cosine_schedule(50)
    ranges = NoiseRanges.from_timesteps(schedule, [1, 10, 49])
    assert ranges.timesteps(schedule) == (range(1), range(1, 10), range(10, 49), range(49, 50))
    assert NoiseRanges.from_timesteps(schedule, []) == NoiseRanges(())


@pytest.mark.parametrize(
    ("boundaries", "words"),
    [([1.0, 1.0], "fall strictly"), ([0.0, 1.0], "fall strictly"), ([math.nan], "finite"),
     ([math.inf, 0.0], "finite")],
)  # fmt: skip
def test_boundaries_that_are_none(boundaries: list[float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        NoiseRanges(boundaries)


def test_numbers_and_starts_that_cannot_be() -> None:
    for number in (0, -1, 51):
        with pytest.raises(UsageError, match=f"50 timesteps among {number} experts"):
            NoiseRanges.equal(cosine_schedule(50), number)
    for starts in ([0], [50], [3, 3], [4, 3], [-1]):
        with pytest.raises(UsageError, match="rising numbers from 1 to 49"):
            NoiseRanges.from_timesteps(cosine_schedule(50), starts)


def test_timesteps_without_a_level_between() -> None:
    flat = NoiseSchedule("flat", torch.tensor([0.1, 1e-20, 0.1], dtype=torch.float64))
    with pytest.raises(UsageError, match="no noise level between timesteps 0 and 1"):
        NoiseRanges.from_timesteps(flat, [1])
    assert len(NoiseRanges.from_timesteps(flat, [2])) == 2


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
