"""Which timesteps a process keeps, its constants and variances, and its guided steps, against
closed forms, brute force, and where a schedule's alpha is nearly, or exactly, 0.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppap_framework.components import Prediction, Stage
from ppap_framework.diffusion import (
    NoiseSource,
    Process,
    ddim_step,
    ddpm_step,
    space_timesteps,
    timesteps_for,
    trajectory,
)
from ppap_framework.errors import UsageError
from ppap_framework.noise import NoiseSchedule, cosine_schedule, linear_schedule

COSINE, LINEAR, SHORT = cosine_schedule(), linear_schedule(), cosine_schedule(50)
ZERO_SNR = NoiseSchedule("zero", torch.cat([COSINE.betas[:-1], torch.ones(1).double()]))
any_schedule = pytest.mark.parametrize(
    "schedule", [COSINE, LINEAR, ZERO_SNR], ids=lambda schedule: schedule.name
)


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


@st.composite
def processes(draw: st.DrawFn) -> Process:
    schedule = draw(st.sampled_from([LINEAR, SHORT]))
    kept = draw(st.sets(st.integers(0, schedule.num_timesteps - 1), min_size=1, max_size=9))
    return Process(schedule, sorted(kept))


@given(processes())
def test_kept_timesteps_keep_their_noise(process: Process) -> None:
    base = process.schedule.alphas_cumprod[list(process.timesteps)]
    torch.testing.assert_close(process.alphas_cumprod, base)
    level = process.level(len(process) - 1, 3)
    assert len(level.log_snr) == 3
    torch.testing.assert_close(level.alpha.square(), base[-1].expand(3))
    x0, x = torch.randn(2, 1, 3, 2, 2)
    torch.testing.assert_close(process.posterior_mean(x0, x, 0), x0)
    assert process.posterior_variance[0] == 0


@given(processes(), st.floats(-2, 2), st.floats(-2, 2))
@settings(max_examples=40)
def test_posterior_is_the_product_of_two_gaussians(process: Process, x0: float, x: float) -> None:
    """q(x_{i-1} | x_i, x_0) is proportional to q(x_i | x_{i-1}) q(x_{i-1} | x_0)."""
    for i in range(1, len(process)):
        beta, abar_prev = process.betas[i].item(), process.alphas_cumprod_prev[i].item()
        forward, backward = 1 / (1 - abar_prev), (1 - beta) / beta  # precisions
        mean = (forward * math.sqrt(abar_prev) * x0 + math.sqrt(1 - beta) / beta * x) / (
            forward + backward
        )
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        assert process.posterior_mean(x0 * one, x * one, i).item() == pytest.approx(mean)
        assert process.posterior_variance[i].item() == pytest.approx(1 / (forward + backward))


def test_an_index_per_image_is_as_one_by_one() -> None:
    process = Process(SHORT, range(50), "learned_range")
    x0, x, v = torch.randn(3, 4, 3, 2, 2)
    indices = torch.tensor([0, 1, 20, 49])
    mean = process.posterior_mean(x0, x, indices)
    variance, log_variance = process.reverse_variance(indices, v, x)
    for row, index in enumerate(indices.tolist()):
        one = slice(row, row + 1)
        torch.testing.assert_close(mean[one], process.posterior_mean(x0[one], x[one], index))
        alone = process.reverse_variance(index, v[one], x[one])
        torch.testing.assert_close((variance[one], log_variance[one]), alone)


@pytest.mark.parametrize("index", [0, 1, 7])
@pytest.mark.parametrize(("v", "share"), [(-1.0, 0.0), (1.0, 1.0), (0.0, 0.5), (3.0, 2.0)])
def test_learned_variance_lies_between_its_bounds_unclamped(
    index: int, v: float, share: float
) -> None:
    process = Process(LINEAR, range(0, 1000, 100), "learned_range")
    low, high = process.posterior_log_variance_clipped[index], process.betas.log()[index]
    _, found = process.reverse_variance(index, torch.full((1, 3, 1, 1), v), torch.zeros(1))
    wanted = (1 - share) * low + share * high
    torch.testing.assert_close(found, wanted.float().expand(1, 3, 1, 1))


def test_fixed_variances() -> None:
    small, large = (
        Process(LINEAR, range(0, 1000, 100), kind) for kind in ("fixed_small", "fixed_large")
    )
    like = torch.zeros(1, dtype=torch.float64)
    for index in (1, 9):
        assert small.reverse_variance(index, None, like)[0] == small.posterior_variance[index]
        assert large.reverse_variance(index, None, like)[0] == large.betas[index]
    assert small.reverse_variance(0, None, like)[0] == 0
    assert large.reverse_variance(0, None, like)[0] == large.posterior_variance[1]
    for process in (small, large):
        assert process.reverse_variance(0, None, like)[1] == process.posterior_variance[1].log()


def test_learned_variance_must_be_there() -> None:
    process = Process(LINEAR, [0, 1], "learned_range")
    with pytest.raises(ValueError, match="without one"):
        process.reverse_variance(0, None, torch.zeros(1))


@pytest.mark.parametrize("variance", ["learned_range", "fixed_large", "fixed_small"])
def test_a_single_step_has_finite_constants(variance) -> None:
    process = Process(LINEAR, [999], variance)
    for value in process.reverse_variance(0, torch.zeros(1, 3, 1, 1), torch.zeros(1)):
        assert bool(torch.isfinite(value).all())
    assert process.posterior_log_variance_clipped == process.betas.log()


@pytest.mark.parametrize("timesteps", [[], [3, 3], [5, 4], [-1, 2], [0, 1000]])
def test_bad_timesteps_are_refused(timesteps: list[int]) -> None:
    with pytest.raises(UsageError, match="rising"):
        Process(LINEAR, timesteps)


def moved(process: Process, index: int, step=ddim_step) -> float:
    """How far a step moves the state for each unit of g."""
    abar = process.alphas_cumprod[index]
    x_t = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    prediction = Prediction.from_x0(x_t, x_t, abar.sqrt(), (1 - abar).sqrt())
    x, _ = step(process, index, prediction, torch.zeros_like(x_t), torch.ones_like(x_t))
    return x.max().item()


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [(COSINE, range(1, 1001)), (LINEAR, range(1, 1001, 29)), (ZERO_SNR, range(1, 1001, 29))],
    ids=lambda value: value.name if isinstance(value, NoiseSchedule) else "",
)
def test_at_every_number_of_steps_the_first_step_follows_guidance_about_as_far_as_it_points(
    schedule: NoiseSchedule, counts: range
) -> None:
    for steps in counts:
        process = Process(schedule, timesteps_for(1000, steps))
        assert 0.0 <= moved(process, len(process) - 1) <= 2.0 + 1e-9, steps


@any_schedule
@pytest.mark.parametrize("steps", [2, 7, 60, 1000])
def test_no_step_follows_guidance_much_further_than_it_points(
    schedule: NoiseSchedule, steps: int
) -> None:
    process = Process(schedule, timesteps_for(1000, steps))
    for index in range(len(process)):
        assert 0.0 <= moved(process, index) <= 2.0 + 1e-9
        assert 0.0 <= moved(process, index, ddpm_step) <= 1.0 + 1e-9


class GreyStage(Stage):
    """Predicts grey, as a network does of pure noise."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def denoise(self, x_t: Tensor, t: Tensor, condition: object) -> Prediction:
        abar = self.schedule.alphas_cumprod[t][:, None, None, None]
        return Prediction.from_x0(0.1 * x_t, x_t, abar.sqrt(), (1 - abar).sqrt())


def pull(x_t, time, level, denoise):
    """A gradient as noisy guides have it: as large whatever the noise level."""
    return denoise(x_t), 0.2 * torch.sign(torch.sin(40.0 * x_t))


@pytest.mark.parametrize("step", [ddim_step, ddpm_step], ids=["ddim", "ddpm"])
@any_schedule
@pytest.mark.parametrize("steps", [2, 3, 7, 37, 45, 60, 150, 300])
def test_guided_images_are_about_as_saturated_as_unguided_ones(schedule, step, steps) -> None:
    stage, process = GreyStage(schedule), Process(schedule, timesteps_for(1000, steps))

    def saturated(guidance: object) -> float:
        noise = NoiseSource(0)
        start = noise((2, 3, 8, 8))
        *_, (x, _) = trajectory(stage, process, start, noise, step=step, guidance=guidance)
        assert x.isfinite().all()
        return (x.abs() >= 1.0).float().mean().item()

    assert saturated(pull) <= saturated(None) + 0.05


@pytest.mark.parametrize("steps", [10, 20, 25, 50, 100, 250])
def test_evenly_spaced_timesteps_are_not_affected(steps: int) -> None:
    process = Process(COSINE, timesteps_for(1000, steps))
    for index in range(len(process)):
        abar, before = process.alphas_cumprod[index], process.alphas_cumprod_prev[index]
        factor = (before * (1 - abar) / abar).sqrt() - (1 - before).sqrt()
        assert moved(process, index) == pytest.approx(((1 - abar).sqrt() * factor).item(), abs=1e-9)
