r"""The variational bound, by which the diffusion models learn the variance of reverse steps.

    L_i = KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i))  for i > 0,      L_0 = -log p(x_0 | x_1)

(Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 4 to 7); p(x_0 | x_1) is the Gaussian's mass in
the 1/127.5 wide bin of an 8-bit pixel (Ho et al. 2020, arXiv 2006.11239, eq. 13).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppap_framework.components import Prediction
from ppap_framework.diffusion.process import Process, at_index

_HALF_BIN = 1.0 / 255.0
_FAR = 500.0  # standard deviations, beyond which the gradient of log_ndtr is rounding errors
_LEAST_SHARE = 1e-30  # of single precision, so that a bin too narrow for it stays finite


def variational_bound_term(
    process: Process, x0: Tensor, x_t: Tensor, index: Tensor, prediction: Prediction
) -> Tensor:
    """L_i of each image, (B,), in bits per dimension; S L_i estimates the whole bound.

    Its gradient reaches only the variance, so it is added to another loss (eq. 16).

    Args:
        process: The process to train for, usually of all T timesteps.
        x0: (B, C, H, W), clean images in [-1, 1].
        x_t: (B, C, H, W), x_i.
        index: (B,), int64, i in [0, S), uniformly drawn.
        prediction: The network's prediction at x_t, with its graph and its x_0 not clipped.
    """
    true_mean = process.posterior_mean(x0, x_t, index)
    mean = process.posterior_mean(prediction.x0.detach(), x_t, index)
    _, log_variance = process.reverse_variance(index, prediction.variance, x_t)
    true_log_variance = at_index(process.posterior_log_variance_clipped, index, x_t)
    nats = gaussian_kl(true_mean, true_log_variance, mean, log_variance)
    nats = nats.flatten(1).mean(1)
    last = index == 0  # few of a batch, if any
    likelihood = discretised_gaussian_nll(x0[last], mean[last], log_variance[last])
    nats[last] = likelihood.flatten(1).mean(1)
    return nats / math.log(2.0)


def gaussian_kl(
    mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor
) -> Tensor:
    """KL(N(mean, variance) || N(other_mean, other_variance)) of each element, in nats."""
    difference = log_variance - other_log_variance
    squared = (mean - other_mean).square() * torch.exp(-other_log_variance)
    return 0.5 * (torch.exp(difference) - difference - 1.0 + squared)


def discretised_gaussian_nll(pixels: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the mass of N(mean, variance) in the bin of each 8-bit pixel, in nats.

    `pixels` is (B, C, H, W), in [-1, 1]; the others broadcast to it. Outermost bins are unbounded.
    """
    precision = torch.exp(-0.5 * log_variance)
    upper = ((pixels - mean + _HALF_BIN) * precision).clamp(-_FAR, _FAR)
    lower = ((pixels - mean - _HALF_BIN) * precision).clamp(-_FAR, _FAR)
    # Logarithms keep their digits below the mean only; a bin above it is mirrored.
    above = pixels > mean
    near = torch.special.log_ndtr(torch.where(above, -lower, upper))
    far = torch.special.log_ndtr(torch.where(above, -upper, lower))
    inner = near + (-torch.expm1(far - near)).clamp_min(_LEAST_SHARE).log()
    first, last = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    darkest, brightest = pixels < -1.0 + _HALF_BIN, pixels > 1.0 - _HALF_BIN
    return -torch.where(darkest, first, torch.where(brightest, last, inner))
