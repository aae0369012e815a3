"""Which timesteps are kept, against the definitions and brute force."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppap_framework.diffusion import space_timesteps, timesteps_for
from ppap_framework.errors import UsageError


def smallest_even_stride(length: int, count: int) -> int | None:
    """By trying them all."""
    return next((i for i in range(1, length) if len(range(0, length, i)) == count), None)


@st.composite
def length_and_steps(draw: st.DrawFn) -> tuple[int, int]:
    length = draw(st.integers(1, 1200))
    return length, draw(st.integers(1, length))


@given(length_and_steps())
def test_any_number_of_steps(case: tuple[int, int]) -> None:
    length, steps = case
    kept = timesteps_for(length, steps)
    assert len(kept) == steps
    assert kept == sorted(set(kept))
    stride = smallest_even_stride(length, steps)
    if steps == 1:
        assert kept == [length - 1]
    elif stride is not None:
        assert kept == list(range(0, length, stride))
    else:
        assert (kept[0], kept[-1]) == (0, length - 1)
        gaps = [b - a for a, b in pairwise(kept)]
        assert max(gaps) - min(gaps) <= 1


@given(st.integers(1, 400), st.data())
def test_sections(length: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, min(6, length)))
    sizes = [length // number + (i < length % number) for i in range(number)]
    counts = [data.draw(st.integers(1, size)) for size in sizes]
    kept = space_timesteps(length, ",".join(map(str, counts)))
    assert kept == space_timesteps(length, counts) == space_timesteps(length, tuple(counts))
    assert kept == sorted(set(kept))
    start = 0
    for size, count in zip(sizes, counts, strict=True):
        section = [t for t in kept if start <= t < start + size]
        assert len(section) == count
        assert section[0] == start
        assert count == 1 or section[-1] == start + size - 1
        start += size


@given(st.integers(2, 400), st.integers(1, 400))
def test_even_strides(length: int, count: int) -> None:
    stride = smallest_even_stride(length, count)
    if stride is None:
        with pytest.raises(UsageError):
            space_timesteps(length, f"ddim{count}")
    else:
        assert space_timesteps(length, f"ddim{count}") == list(range(0, length, stride))


def test_known_spacings() -> None:
    assert space_timesteps(7, "") == list(range(7))
    assert space_timesteps(6, "3") == [0, 2, 5]  # at 0, 2.5 and 5: halves go to the even neighbor


@pytest.mark.parametrize(
    "respacing",
    ["0", "11", "-1", "2,", "ddim", "ddim0", "ddim7", "ddim5,7", "ten", "1e1", "1_0", "٣", "fast27",
     [], [0], [11], [-1], [2.5], [True], [5, 6]],
)  # fmt: skip
def test_bad_respacings_are_refused(respacing) -> None:
    with pytest.raises(UsageError):
        space_timesteps(10, respacing)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_bad_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match="1 to 1000") as caught:
        timesteps_for(1000, steps)
    assert str(steps) in caught.value.message
