"""Every timestep goes to the expert that the paper's formula gives it to, whatever the schedule."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    owners = ranges.index(schedule.level(torch.arange(length)))
    assert owners.dtype == torch.int64
    assert owners.tolist() == [paper(t, length, number) for t in range(length)]


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
    routed = [ranges.index(process.level(step, 2)).tolist() for step in range(len(process))]
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
    assert ranges.index(linear_schedule().level(t)).tolist() == [0, 0, 1, 1, 2, 3, 4, 4]
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
        owners = ranges.index(level(above, boundary, below)).tolist()
        assert owners == [expert - 1, expert - 1, expert]
    assert ranges.index(level(math.inf, -math.inf)).tolist() == [0, number - 1]


@quick
@given(
    st.sets(st.floats(-60, 60), max_size=12),
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=30),
)
def test_each_level_has_one_owner(boundaries: set[float], levels: list[float]) -> None:
    ranges = NoiseRanges(sorted(boundaries, reverse=True))
    ends = [math.inf, *ranges.boundaries, -math.inf]
    for value, owner in zip(levels, ranges.index(level(*levels)).tolist(), strict=True):
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
