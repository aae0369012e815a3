r"""One step of a sampler: from a prediction at tau_i to the state at tau_{i-1}, or back.

Guidance g = -s dE/dx, a gradient of a log-likelihood at x_i, enters in one of two ways:

    mean shift:  mu + Sigma g                 (Dhariwal and Nichol 2021, arXiv 2105.05233, alg. 1)
    score:       eps - sqrt(1 - abar_i) g     (the same, alg. 2)

The x_0 that guidance has moved is not clipped again. Its shift is bounded if alpha_i is nearly 0;
see `_guided`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ppap_framework.components import Prediction
from ppap_framework.diffusion.process import Process, at_index
from ppap_framework.errors import UsageError

_REACH = 2.0


Step: TypeAlias = Callable[
    [Process, int, Prediction, Tensor, Tensor | None], tuple[Tensor, Prediction]
]
"""A step from tau_i to tau_{i-1}, such as `ddpm_step` or `ddim_step`.

Its arguments are the reverse process; the index i, in [0, S); the prediction at x_i, already
clipped; standard normal noise, (B, C, H, W), on any device; and g, (B, C, H, W), or None for no
guidance. It returns x_{i-1}, (B, C, H, W), and the prediction that it was made from.
"""


def ddpm_step(
    process: Process, index: int, prediction: Prediction, noise: Tensor, gradient: Tensor | None, /
) -> tuple[Tensor, Prediction]:
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, alg. 2), guided by a mean shift.

    The returned prediction stays unguided. See `Step`.
    """
    x_t = prediction.x_t
    x = process.posterior_mean(prediction.x0, x_t, index)
    variance, log_variance = process.reverse_variance(index, prediction.variance, x_t)
    if gradient is not None:
        x = x + variance * gradient
    if index > 0:
        x = x + torch.exp(0.5 * log_variance) * noise.to(x)
    return x, prediction


def ddim_step(
    process: Process,
    index: int,
    prediction: Prediction,
    noise: Tensor,
    gradient: Tensor | None,
    /,
    *,
    eta: float = 0.0,
) -> tuple[Tensor, Prediction]:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16), guided through the score.

    See `Step`. `eta` is in [0, 1], else UsageError: 0 is deterministic, 1 has the ancestral
    sampler's posterior variance.
    """
    if not 0.0 <= eta <= 1.0:
        raise UsageError(f"eta must lie between 0 and 1, not be {eta}")
    x_t = prediction.x_t
    abar = at_index(process.alphas_cumprod, index, x_t)
    abar_prev = at_index(process.alphas_cumprod_prev, index, x_t)
    sigma = eta * ((1.0 - abar_prev) / (1.0 - abar)).sqrt() * (1.0 - abar / abar_prev).sqrt()
    direction = (1.0 - abar_prev - sigma**2).clamp_min(0.0).sqrt()
    prediction = _guided(process, index, prediction, gradient, abar_prev.sqrt(), direction)
    x = abar_prev.sqrt() * prediction.x0 + direction * prediction.eps
    if sigma > 0.0:
        x = x + sigma * noise.to(x)
    return x, prediction


def ddim_inversion_step(
    process: Process, index: int, prediction: Prediction, noise: Tensor, gradient: Tensor | None, /
) -> tuple[Tensor, Prediction]:
    """The deterministic step to x_{i+1} instead (Dhariwal and Nichol 2021, appendix F); see `Step`.

    From the last index it leads to pure noise, eps.
    """
    abar_next = at_index(process.alphas_cumprod_next, index, prediction.x_t)
    alpha_next, sigma_next = abar_next.sqrt(), (1.0 - abar_next).sqrt()
    prediction = _guided(process, index, prediction, gradient, alpha_next, sigma_next)
    return alpha_next * prediction.x0 + sigma_next * prediction.eps, prediction


def _guided(
    process: Process,
    index: int,
    prediction: Prediction,
    gradient: Tensor | None,
    alpha_to: Tensor,
    sigma_to: Tensor,
) -> Prediction:
    """The prediction with its score shifted by g, for a step to alpha_to x_0 + sigma_to eps.

    Such a step moves the state by

        alpha_to dx_0 + sigma_to deps = (alpha_to sigma_i / alpha_i - sigma_to) sigma_i g

    The factor is about 1 or less on evenly spaced timesteps, but unbounded as alpha_i falls to 0.
    If it exceeds `_REACH`, g is reduced such that the factor is 1, as on evenly spaced timesteps.
    """
    if gradient is None:
        return prediction
    abar = at_index(process.alphas_cumprod, index, gradient)
    alpha, sigma = abar.sqrt(), (1.0 - abar).sqrt()
    reach = alpha_to * sigma - alpha * sigma_to  # alpha_i times the factor
    if reach > _REACH * alpha:
        return prediction.with_x0(prediction.x0 + sigma**2 / reach * gradient)
    shifted = prediction.with_eps(prediction.eps - sigma * gradient)
    # Under strong guidance x_0 and eps are large and nearly cancel, so the order of arithmetic
    # matters. As in the published samplers, eps is computed from x_0 again.
    return prediction.with_x0(shifted.x0)
