r"""A diffusion process on a subset of a schedule's timesteps, and its reverse step.

The subset tau_0 < ... < tau_{S-1} of the base timesteps is kept. With abar_i at tau_i, and
abar_{-1} = 1,

    beta_i  = 1 - abar_i / abar_{i-1}                               (Nichol and Dhariwal, section 4)
    beta~_i = beta_i (1 - abar_{i-1}) / (1 - abar_i)                (Ho et al., eq. 7)
    mu~_i   = sqrt(abar_{i-1}) beta_i / (1 - abar_i) x_0
              + sqrt(1 - beta_i) (1 - abar_{i-1}) / (1 - abar_i) x_i

are the process's betas, and the variance and mean of q(x_{i-1} | x_i, x_0). Constants are float64
and are cast on use. An `index` counts kept timesteps from the least noisy; `t` is a base timestep.

Ho et al. 2020: arXiv 2006.11239. Nichol and Dhariwal 2021: arXiv 2102.09672.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import attrs
import torch
from torch import Tensor

from ppap_framework.components import VarianceKind
from ppap_framework.errors import UsageError
from ppap_framework.noise import NoiseLevel, NoiseSchedule


def _tuple(timesteps: Iterable[int]) -> tuple[int, ...]:
    return tuple(timesteps)


@attrs.frozen(eq=False)
class Process:
    """The reverse process over kept timesteps.

    Attributes:
        schedule: The base schedule, of T timesteps.
        timesteps: The S kept timesteps in [0, T), rising; anything else raises UsageError.
        variance: How the variance of a reverse step is chosen.
    """

    schedule: NoiseSchedule
    timesteps: tuple[int, ...] = attrs.field(converter=_tuple)
    variance: VarianceKind = "fixed_small"

    betas: Tensor = attrs.field(init=False)
    """(S,), float64."""
    alphas_cumprod: Tensor = attrs.field(init=False)
    """(S,), float64: abar_i."""
    alphas_cumprod_prev: Tensor = attrs.field(init=False)
    """(S,), float64: abar_{i-1}, beginning with 1."""
    alphas_cumprod_next: Tensor = attrs.field(init=False)
    """(S,), float64: abar_{i+1}, ending with 0."""
    posterior_variance: Tensor = attrs.field(init=False)
    """(S,), float64: beta~_i; 0 at index 0."""
    posterior_log_variance_clipped: Tensor = attrs.field(init=False)
    """(S,), float64: log beta~_i, at index 0 that of index 1, or log beta_0 if S is 1."""
    posterior_mean_coef_x0: Tensor = attrs.field(init=False)
    """(S,), float64: the factor of x_0 in mu~_i."""
    posterior_mean_coef_xt: Tensor = attrs.field(init=False)
    """(S,), float64: the factor of x_i in mu~_i."""

    @betas.default
    def _betas(self) -> Tensor:
        # Checked here and not by a validator, which would run after this.
        _check_timesteps(self.timesteps, self.schedule.num_timesteps)
        kept = self.schedule.alphas_cumprod[list(self.timesteps)]
        return 1.0 - kept / torch.cat([kept.new_ones(1), kept[:-1]])

    @alphas_cumprod.default
    def _alphas_cumprod(self) -> Tensor:
        return torch.cumprod(1.0 - self.betas, dim=0)

    @alphas_cumprod_prev.default
    def _alphas_cumprod_prev(self) -> Tensor:
        return torch.cat([self.betas.new_ones(1), self.alphas_cumprod[:-1]])

    @alphas_cumprod_next.default
    def _alphas_cumprod_next(self) -> Tensor:
        return torch.cat([self.alphas_cumprod[1:], self.betas.new_zeros(1)])

    @posterior_variance.default
    def _posterior_variance(self) -> Tensor:
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @posterior_log_variance_clipped.default
    def _posterior_log_variance_clipped(self) -> Tensor:
        return torch.cat([self._first_variance, self.posterior_variance[1:]]).log()

    @posterior_mean_coef_x0.default
    def _posterior_mean_coef_x0(self) -> Tensor:
        return self.betas * self.alphas_cumprod_prev.sqrt() / (1.0 - self.alphas_cumprod)

    @posterior_mean_coef_xt.default
    def _posterior_mean_coef_xt(self) -> Tensor:
        return (
            (1.0 - self.alphas_cumprod_prev)
            * (1.0 - self.betas).sqrt()
            / (1.0 - self.alphas_cumprod)
        )

    @property
    def _first_variance(self) -> Tensor:
        # The posterior of the last step is a point, whose logarithm is -inf. The variance of its
        # neighbor replaces it; without a neighbor, the step's own beta, an upper bound.
        return self.posterior_variance[1:2] if len(self) > 1 else self.betas

    def __len__(self) -> int:
        return len(self.timesteps)

    def level(self, index: int, batch: int) -> NoiseLevel:
        """The noise level of a kept timestep, the same for `batch` images."""
        return NoiseLevel(self.schedule.log_snr[self.timesteps[index]].expand(batch))

    def posterior_mean(self, x0: Tensor, x_t: Tensor, index: int | Tensor) -> Tensor:
        """mu~, the mean of q(x_{i-1} | x_i, x_0), (B, C, H, W) like x_0 and x_i.

        `index` is in [0, S): one number for all images or, (B,) int64, one for each.
        """
        return (
            at_index(self.posterior_mean_coef_x0, index, x_t) * x0
            + at_index(self.posterior_mean_coef_xt, index, x_t) * x_t
        )

    def posterior_log_variance(self, index: int | Tensor, like: Tensor) -> Tensor:
        """log beta~, clipped at index 0, as `at_index` gives it."""
        return at_index(self.posterior_log_variance_clipped, index, like)

    def reverse_variance(
        self, index: int | Tensor, learned: Tensor | None, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The variance of p(x_{i-1} | x_i) and its logarithm, broadcastable to (B, C, H, W).

        They do not match at index 0, where `fixed_small` is 0 and its logarithm is clipped.

        Args:
            index: As in `posterior_mean`.
            learned: (B, C, H, W), the network's v for `learned_range`, not clamped: (v + 1) / 2
                interpolates between log beta~ and log beta (Nichol and Dhariwal 2021, eq. 15).
                The fixed kinds ignore it.
            like: Tensor whose type and device the result takes.
        """
        if self.variance == "learned_range":
            if learned is None:
                raise ValueError("a process with learned variance got a prediction without one")
            share = (learned + 1.0) / 2.0
            upper, lower = (
                at_index(self.betas.log(), index, like),
                self.posterior_log_variance(index, like),
            )
            log_variance = share * upper + (1.0 - share) * lower
            return log_variance.exp(), log_variance
        if self.variance == "fixed_large":
            variances = torch.cat([self._first_variance, self.betas[1:]])
            log_variances = variances.log()
        else:
            variances, log_variances = self.posterior_variance, self.posterior_log_variance_clipped
        return at_index(variances, index, like), at_index(log_variances, index, like)


def _check_timesteps(timesteps: tuple[int, ...], length: int) -> None:
    rising = all(a < b for a, b in pairwise(timesteps))
    if not timesteps or not rising or timesteps[0] < 0 or timesteps[-1] >= length:
        raise UsageError(
            f"kept timesteps must be rising numbers from 0 to {length - 1}, not {timesteps[:8]}"
        )


def at_index(constants: Tensor, index: int | Tensor, like: Tensor) -> Tensor:
    """Constants (S,) of B indices as (B, 1, 1, 1), or of one as a number, in the type of `like`."""
    # A number stays on the CPU: it enters kernels as an argument, and costs no transfer.
    if isinstance(index, int):
        return constants[index].to(like.dtype)
    return constants.to(like)[index.to(like.device)][:, None, None, None]
