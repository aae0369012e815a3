r"""Noise schedules, noise levels, and what a denoiser predicts.

The forward process is variance preserving (Ho et al. 2020, arXiv 2006.11239, eq. 4):

    x_t = alpha_t x_0 + sigma_t eps,   alpha_t^2 = abar_t,   sigma_t^2 = 1 - abar_t,   eps ~ N(0, I)

with abar_t the running product of 1 - beta_s. A schedule is the array of abar over T base
timesteps t = 0 .. T-1; t = 0 is the least noisy. A noise level, independent of any schedule, is
its log-SNR,

    lambda = log(alpha^2 / sigma^2) = log(abar / (1 - abar))

which falls as noise grows (Kingma et al. 2021, arXiv 2107.00630). Experts and noise-aware guides
use levels, because these hold for any schedule.

Flow matching (Lipman et al. 2023, arXiv 2210.02747) draws a straight line, y = (1 - s) x_0 + s eps
with s in (0, 1], and predicts eps - x_0. In the variance-preserving form it is a schedule like the
others: x = y / sqrt((1 - s)^2 + s^2), at the log-SNR 2 log((1 - s) / s). A DDIM step of x is then
the Euler step of y.
"""

from __future__ import annotations

import math
from functools import cached_property
from itertools import pairwise
from typing import final

import attrs
import torch
from torch import Tensor

from ppap_framework.errors import UsageError

__all__ = [
    "FlowSchedule",
    "NoiseLevel",
    "NoiseSchedule",
    "Prediction",
    "cosine_schedule",
    "linear_schedule",
    "noise_schedule",
]


@attrs.frozen(eq=False)
class NoiseLevel:
    """The noise level of each image of a batch."""

    log_snr: Tensor
    """(B,), float64: log(alpha^2 / sigma^2), larger is cleaner."""

    @classmethod
    def clean(cls, batch: int) -> NoiseLevel:
        """The level of `batch` images without noise: log-SNR inf."""
        return cls(torch.full((batch,), torch.inf, dtype=torch.float64, device="cpu"))

    @property
    def alpha(self) -> Tensor:
        """(B,), float64: the factor of the clean image in the variance-preserving form."""
        return torch.sigmoid(self.log_snr).sqrt()

    @property
    def sigma(self) -> Tensor:
        """(B,), float64: the standard deviation of the noise in the variance-preserving form."""
        return torch.sigmoid(-self.log_snr).sqrt()


@attrs.frozen(eq=False)
class NoiseSchedule:
    """A variance-preserving noise schedule over T base timesteps.

    Attributes:
        name: Name in files and messages.
        betas: (T,), float64, each in (0, 1), else UsageError; the last may be 1 (zero terminal SNR,
            Lin et al. 2023, arXiv 2305.08891).
    """

    name: str
    betas: Tensor

    def __attrs_post_init__(self) -> None:
        b = self.betas
        array = b.ndim == 1 and b.shape[0] > 0 and b.dtype == torch.float64
        if not array or not bool((b > 0).all() & (b[:-1] < 1).all() & (b[-1] <= 1)):
            must = "must be a one-dimensional float64 array of numbers in (0, 1)"
            found = f"{tuple(b.shape)} of {b.dtype}"
            raise UsageError(f"the betas of schedule {self.name!r} {must}, not {found}")

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(T,), float64: abar_t, strictly falling."""
        return torch.cumprod(1.0 - self.betas, dim=0)

    @property
    def num_timesteps(self) -> int:
        return self.betas.shape[0]

    @property
    def log_snr(self) -> Tensor:
        """(T,), float64: log(abar_t / (1 - abar_t))."""
        return torch.logit(self.alphas_cumprod)

    def abar(self, t: Tensor) -> Tensor:
        """abar at base timesteps t, (B,), int64, in [0, T): (B,), float64."""
        return self.alphas_cumprod[t.cpu()]

    def level(self, t: Tensor) -> NoiseLevel:
        """The noise level at base timesteps t, as of `abar`."""
        return NoiseLevel(torch.logit(self.abar(t)))

    def nearest_timestep(self, level: NoiseLevel) -> Tensor:
        """The base timestep nearest to each of B levels of any schedule: (B,), int64, in [0, T)."""
        rising = -self.log_snr  # (T,), searchsorted wants it ascending
        wanted = -level.log_snr.to(rising)  # (B,)
        right = torch.searchsorted(rising, wanted).clamp(0, self.num_timesteps - 1)  # (B,)
        left = (right - 1).clamp_min(0)
        return torch.where(wanted - rising[left] <= rising[right] - wanted, left, right)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw x_t given x_0, (B, C, H, W), timesteps t, (B,), int64, and eps like x_0."""
        abar = self.abar(t)[:, None, None, None]
        return abar.sqrt().to(x0) * x0 + (1.0 - abar).sqrt().to(x0) * noise


class FlowSchedule(NoiseSchedule):
    """Flow matching at s = (t + 1) / T; t may be fractional, in (-1, T - 1]."""

    def __init__(self, num_timesteps: int = 1000) -> None:
        kept = _flow_abar(torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps)
        super().__init__("flow", 1.0 - kept / torch.cat([kept.new_ones(1), kept[:-1]]))

    def abar(self, t: Tensor) -> Tensor:
        """abar at base timesteps t, (B,), whole or fractional: (B,), float64."""
        return _flow_abar((t.cpu().double() + 1.0) / self.num_timesteps)


def _flow_abar(s: Tensor) -> Tensor:
    return (1.0 - s) ** 2 / ((1.0 - s) ** 2 + s**2)


def linear_schedule(num_timesteps: int = 1000) -> NoiseSchedule:
    """beta from 1e-4 to 0.02 at T = 1000 (Ho et al. 2020, section 4), scaled by 1000 / T."""
    if num_timesteps <= 20:
        fault = f"the linear schedule needs more than 20 base timesteps, not {num_timesteps}"
        raise UsageError(fault, hint="use a longer base length, or the cosine schedule")
    scale = 1000.0 / num_timesteps
    betas = torch.linspace(1e-4 * scale, 0.02 * scale, num_timesteps, dtype=torch.float64)
    return NoiseSchedule("linear", betas)


def cosine_schedule(num_timesteps: int = 1000) -> NoiseSchedule:
    """abar(u) = cos^2((u + 0.008) / 1.008 * pi / 2), betas to 0.999 (arXiv 2102.09672, eq. 17)."""
    if num_timesteps < 1:
        fault = f"the cosine schedule needs base timesteps, not {num_timesteps}"
        raise UsageError(fault, hint="use 1000, say")
    shares = [(i / num_timesteps + 0.008) / 1.008 for i in range(num_timesteps + 1)]
    abar = [math.cos(share * math.pi / 2) ** 2 for share in shares]
    betas = [min(1.0 - after / before, 0.999) for before, after in pairwise(abar)]
    return NoiseSchedule("cosine", torch.tensor(betas, dtype=torch.float64))


def noise_schedule(name: str, num_timesteps: int = 1000) -> NoiseSchedule:
    """The schedule of that name, else UsageError; `squaredcos_cap_v2` is GLIDE's for "cosine"."""
    makers = {"linear": linear_schedule, "cosine": cosine_schedule}
    makers["squaredcos_cap_v2"] = cosine_schedule
    if name in makers:
        return makers[name](num_timesteps)
    hint = f"choose one of {', '.join(makers)}"
    raise UsageError(f"no noise schedule is called {name!r}", hint=hint)


@final
@attrs.frozen(eq=False)
class Prediction:
    """A denoiser's output for x_t = alpha x_0 + sigma eps.

    `from_eps`, `from_x0` and `from_v` make it. One of eps and x0 is stored; the other follows.

    Attributes:
        x_t: (B, C, H, W), the noisy image.
        alpha: (B, 1, 1, 1), the factor of the clean image at each image's timestep, above 0; best
            float64, since x0 and eps divide by it.
        sigma: (B, 1, 1, 1), the standard deviation of the noise there.
        variance: (B, C, H, W) or None: the network's learned-range output, nominally in [-1, 1],
            decoded by the respaced process, on whose betas its meaning depends.
    """

    x_t: Tensor
    alpha: Tensor
    sigma: Tensor
    _eps: Tensor | None
    _x0: Tensor | None
    variance: Tensor | None = None

    @classmethod
    def from_eps(
        cls, eps: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, variance: Tensor | None = None
    ) -> Prediction:
        """From the predicted noise, (B, C, H, W)."""
        return cls(x_t, alpha, sigma, eps, None, variance)

    @classmethod
    def from_x0(
        cls, x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, variance: Tensor | None = None
    ) -> Prediction:
        """From the predicted clean image, (B, C, H, W)."""
        return cls(x_t, alpha, sigma, None, x0, variance)

    @classmethod
    def from_v(
        cls, v: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, variance: Tensor | None = None
    ) -> Prediction:
        """From v = alpha eps - sigma x0 (arXiv 2202.00512, appendix D), (B, C, H, W)."""
        x0 = alpha.to(x_t) * x_t - sigma.to(x_t) * v
        return cls.from_x0(x0, x_t, alpha, sigma, variance)

    @property
    def eps(self) -> Tensor:
        """(B, C, H, W), the predicted noise: (x_t - alpha x0) / sigma."""
        if self._eps is not None:
            return self._eps
        x_t, x0, alpha, ratio = self.x_t, self.x0, self.alpha.to(self.x_t), self.sigma / self.alpha
        eps = ((1.0 / self.alpha).to(x_t) * x_t - x0) / ratio.to(x_t)
        # At zero terminal SNR alpha is 0. Branching on it would synchronize with the device.
        return torch.where(alpha > 0.0, eps, (x_t - alpha * x0) / self.sigma.to(x_t))

    @property
    def x0(self) -> Tensor:
        """(B, C, H, W), the predicted clean image, not clipped: (x_t - sigma eps) / alpha."""
        if self._x0 is not None:
            return self._x0
        assert self._eps is not None
        x_t, ratio = self.x_t, self.sigma / self.alpha
        return (1.0 / self.alpha).to(x_t) * x_t - ratio.to(x_t) * self._eps

    def with_x0(self, x0: Tensor) -> Prediction:
        """The same x_t and variance with another x0, from which eps follows."""
        return attrs.evolve(self, eps=None, x0=x0)

    def with_eps(self, eps: Tensor) -> Prediction:
        """The same x_t and variance with another eps, from which x0 follows."""
        return attrs.evolve(self, eps=eps, x0=None)

    def detach(self) -> Prediction:
        """The same prediction without a graph."""
        parts = (self._eps, self._x0, self.variance)
        eps, x0, variance = (part if part is None else part.detach() for part in parts)
        return attrs.evolve(self, x_t=self.x_t.detach(), eps=eps, x0=x0, variance=variance)
