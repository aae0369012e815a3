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
        "alphas_cumprod_next": process.alphas_cumprod_next,
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


@pytest.mark.parity("q_sample")
def test_forward(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    process = process_of(record)
    x0, t, noise = tensors["x_start"], tensors["t"], tensors["noise"]
    x_t = process.schedule.add_noise(x0, t, noise)
    abar = process.schedule.alphas_cumprod[t][:, None, None, None]
    eps = Prediction.from_eps(noise, x_t, abar.sqrt(), (1 - abar).sqrt())
    log_variance = process.posterior_log_variance(t, x_t)
    variance = process.posterior_variance[t].float()[:, None, None, None]
    ours = {
        "x_t": x_t,
        "posterior_mean": process.posterior_mean(x0, x_t, t),
        "posterior_variance": variance.expand_as(x0),
        "posterior_log_variance": log_variance.expand_as(x0),
        "xstart_from_eps": eps.x0,
    }
    for name, value in ours.items():
        theirs = tensors[name]
        assert (value - theirs).norm() <= record["tolerance"]["value"] * theirs.norm(), name
