"""Schedules, respacing and forward noising, against arrays of the published code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppap_framework.components import Prediction
from ppap_framework.diffusion import Process, space_timesteps
from ppap_framework.diffusion.process import at_index
from ppap_framework.errors import UsageError
from ppap_framework.noise import noise_schedule

ROOT = Path(os.environ.get("PPAP_PARITY_DIR") or Path(__file__).parent)


def process_of(record: dict[str, Any]) -> Process:
    given = record["process"]
    length = given["base_steps"]
    kept = space_timesteps(length, given["respacing"])
    return Process(noise_schedule(given["schedule"], length), kept)


@pytest.mark.parity("constants")
def test_constants(case: str, record: dict[str, Any]) -> None:
    process = process_of(record)
    abar = process.alphas_cumprod
    ours = {
        "betas": process.betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": process.alphas_cumprod_prev,
        "alphas_cumprod_next": torch.cat([abar[1:], torch.zeros(1, dtype=abar.dtype)]),
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_variance": process.posterior_variance,
        "posterior_log_variance_clipped": process.posterior_log_variance_clipped,
        "posterior_mean_coef1": process.posterior_mean_coef_x0,
        "posterior_mean_coef2": process.posterior_mean_coef_xt,
        "timestep_map": torch.tensor(process.timesteps),
    }
    with np.load(ROOT / f"{case}.npz") as theirs:
        assert set(theirs.files) == set(ours)
        for name in theirs.files:
            tolerance = record["tolerance"]["value"]
            np.testing.assert_allclose(ours[name], theirs[name], rtol=tolerance, atol=0)


@pytest.mark.parity("spacings")
def test_spacings(record: dict[str, Any]) -> None:
    for spacing in record["cases"]:
        length, counts = spacing["num_timesteps"], spacing["section_counts"]
        if isinstance(spacing["timesteps"], list):
            assert space_timesteps(length, counts) == spacing["timesteps"]
        else:  # the published function raised
            with pytest.raises(UsageError):
                space_timesteps(length, counts)


def forward(process: Process, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our forward noising and its posterior; t indexes the kept timesteps."""
    x0, t, noise = tensors["x_start"], tensors["t"], tensors["noise"]
    x_t = process.schedule.add_noise(x0, torch.tensor(process.timesteps)[t], noise)
    abar = process.alphas_cumprod[t][:, None, None, None]
    variance = at_index(process.posterior_variance, t, x_t)
    log_variance = at_index(process.posterior_log_variance_clipped, t, x_t)
    return {
        "x_t": x_t,
        "posterior_mean": process.posterior_mean(x0, x_t, t),
        "posterior_variance": variance.expand_as(x0),
        "posterior_log_variance": log_variance.expand_as(x0),
        "xstart_from_eps": Prediction.from_eps(noise, x_t, abar.sqrt(), (1 - abar).sqrt()).x0,
    }


def check_forward(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for name, value in forward(process_of(record), tensors).items():
        theirs = tensors[name]
        assert (value - theirs).norm() <= record["tolerance"]["value"] * theirs.norm(), name


@pytest.mark.parity("q_sample")
def test_forward(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    check_forward(record, tensors)


@pytest.mark.parametrize("respacing", ["ddim25", "10,10,5", [10, 10, 5]])
def test_forward_of_a_case_that_is_respaced(respacing: str | list[int]) -> None:
    """No case is so far; this one is made of the facts' formulas, one image at a time."""
    process = {"schedule": "linear", "base_steps": 1000, "respacing": respacing}
    record = {"process": process, "tolerance": {"metric": "relative L2", "value": 1e-6}}
    kept = space_timesteps(1000, respacing)
    base = noise_schedule("linear", 1000).alphas_cumprod.tolist()
    x0, noise = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    t = [0, 1, 7, 12]
    made: dict[str, list[Tensor]] = {}
    for row, i in enumerate(t):
        abar, before = base[kept[i]], base[kept[i - 1]] if i else 1.0
        beta = 1 - abar / before
        x_t = abar**0.5 * x0[row] + (1 - abar) ** 0.5 * noise[row]
        mean = beta * before**0.5 * x0[row] + (1 - before) * (1 - beta) ** 0.5 * x_t
        variance = beta * (1 - before) / (1 - abar)
        first, second = base[kept[0]], base[kept[1]]  # log 0 is replaced by that of index 1
        clipped = variance or (1 - second / first) * (1 - first) / (1 - second)
        for name, value in {
            "x_t": x_t,
            "posterior_mean": mean / (1 - abar),
            "posterior_variance": torch.full_like(x_t, variance),
            "posterior_log_variance": torch.full_like(x_t, clipped).log(),
            "xstart_from_eps": x0[row],
        }.items():
            made.setdefault(name, []).append(value)
    tensors = {name: torch.stack(values).float() for name, values in made.items()}
    given = {"x_start": x0.float(), "noise": noise.float(), "t": torch.tensor(t)}
    check_forward(record, tensors | given)
