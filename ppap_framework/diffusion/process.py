r"""A diffusion process on a subset of a schedule's timesteps, and its reverse step.

The subset tau_0 < ... < tau_{S-1} of the T base timesteps is kept: an even stride from 0 (`ddimN`;
Song et al., appendix D), or equal sections, each thinned to its own count with its ends kept
(Nichol and Dhariwal, section 4). With abar_i at tau_i, and abar_{-1} = 1 or the process's `end`,

    beta_i  = 1 - abar_i / abar_{i-1}                               (Nichol and Dhariwal, section 4)
    beta~_i = beta_i (1 - abar_{i-1}) / (1 - abar_i)                (Ho et al., eq. 7)
    mu~_i   = sqrt(abar_{i-1}) beta_i / (1 - abar_i) x_0
              + sqrt(1 - beta_i) (1 - abar_{i-1}) / (1 - abar_i) x_i

are the process's betas, and the variance and mean of q(x_{i-1} | x_i, x_0). Constants are float64
and are cast on use. An `index` counts kept timesteps from the least noisy; `t` is a base timestep.

Ho et al. 2020: arXiv 2006.11239. Song et al. 2021: arXiv 2010.02502. Nichol and Dhariwal 2021:
arXiv 2102.09672.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise

import attrs
import torch
from torch import Tensor

from ppap_framework.components import CascadedStage, Stage, VarianceKind
from ppap_framework.errors import UsageError
from ppap_framework.noise import NoiseLevel, NoiseSchedule


@attrs.frozen(eq=False)
class Process:
    """The reverse process over kept timesteps.

    Attributes:
        schedule: The base schedule, of T timesteps.
        timesteps: The S kept timesteps in [0, T), rising; anything else raises UsageError. Those of
            a `FlowSchedule` may be fractional.
        variance: How the variance of a reverse step is chosen.
        end: abar_{-1}, which the last step leads to.
    """

    schedule: NoiseSchedule
    timesteps: Sequence[float] = attrs.field(converter=tuple[float, ...])
    variance: VarianceKind = "fixed_small"
    end: float = 1.0

    @classmethod
    def of(cls, stage: Stage, timesteps: Sequence[float]) -> Process:
        """The process of a stage over kept timesteps."""
        return cls(stage.schedule, timesteps, stage.variance, stage.final_abar)

    @classmethod
    def following(cls, stage: CascadedStage) -> Process:
        """The process of a later stage by its own sampling; UsageError if that cannot be."""
        length, respacing = stage.schedule.num_timesteps, stage.sampling.respacing
        return cls.of(stage, space_timesteps(length, respacing))

    def __attrs_post_init__(self) -> None:
        kept, length = self.timesteps, self.schedule.num_timesteps
        if not kept or any(a >= b for a, b in pairwise((-1, *kept, length))):
            must = f"must be rising numbers from 0 to {length - 1}"
            raise UsageError(f"kept timesteps {must}, not {kept[:8]}")

    @cached_property
    def betas(self) -> Tensor:
        """(S,), float64."""
        kept = self.schedule.abar(times(self.timesteps))
        return 1.0 - kept / torch.cat([kept.new_full((1,), self.end), kept[:-1]])

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(S,), float64: abar_i."""
        return self.end * torch.cumprod(1.0 - self.betas, dim=0)

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """(S,), float64: abar_{i-1}, beginning with `end`."""
        return torch.cat([self.betas.new_full((1,), self.end), self.alphas_cumprod[:-1]])

    @cached_property
    def posterior_variance(self) -> Tensor:
        """(S,), float64: beta~_i; 0 at index 0."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Tensor:
        """(S,), float64: log beta~_i, at index 0 that of index 1, or log beta_0 if S is 1."""
        return torch.cat([self._first_variance, self.posterior_variance[1:]]).log()

    @cached_property
    def posterior_mean_coef_x0(self) -> Tensor:
        """(S,), float64: the factor of x_0 in mu~_i."""
        return self.betas * self.alphas_cumprod_prev.sqrt() / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef_xt(self) -> Tensor:
        """(S,), float64: the factor of x_i in mu~_i."""
        kept = (1.0 - self.alphas_cumprod_prev) * (1.0 - self.betas).sqrt()
        return kept / (1.0 - self.alphas_cumprod)

    @property
    def _first_variance(self) -> Tensor:
        # The posterior of the last step is a point, whose logarithm is -inf. The variance of its
        # neighbor replaces it; without a neighbor, the step's own beta, an upper bound.
        return self.posterior_variance[1:2] if len(self) > 1 else self.betas

    def __len__(self) -> int:
        return len(self.timesteps)

    def level(self, index: int, batch: int) -> NoiseLevel:
        """The noise level of a kept timestep, the same for `batch` images."""
        level = self.schedule.level(times([self.timesteps[index]]))
        return NoiseLevel(level.log_snr.expand(batch))

    def posterior_mean(self, x0: Tensor, x_t: Tensor, index: int | Tensor) -> Tensor:
        """mu~, the mean of q(x_{i-1} | x_i, x_0), (B, C, H, W) like x_0 and x_i.

        `index` is in [0, S): one number for all images or, (B,) int64, one for each.
        """
        x0 = at_index(self.posterior_mean_coef_x0, index, x_t) * x0
        return x0 + at_index(self.posterior_mean_coef_xt, index, x_t) * x_t

    def reverse_variance(
        self, index: int | Tensor, learned: Tensor | None, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The variance of p(x_{i-1} | x_i) and its logarithm, broadcastable to (B, C, H, W).

        They do not match at index 0, where `fixed_small` is 0 and its logarithm is clipped. `index`
        is as in `posterior_mean`; the result has the type and device of `like`. For `learned_range`
        alone, `learned` is the network's v, (B, C, H, W), not clamped: (v + 1) / 2 interpolates
        between log beta~ and log beta (Nichol and Dhariwal 2021, eq. 15).
        """
        if self.variance == "learned_range":
            if learned is None:
                raise ValueError("a process with learned variance got a prediction without one")
            share = (learned + 1.0) / 2.0
            upper = at_index(self.betas.log(), index, like)
            lower = at_index(self.posterior_log_variance_clipped, index, like)
            log_variance = share * upper + (1.0 - share) * lower
            return log_variance.exp(), log_variance
        variances, log_variances = self.posterior_variance, self.posterior_log_variance_clipped
        if self.variance == "fixed_large":
            variances = torch.cat([self._first_variance, self.betas[1:]])
            log_variances = variances.log()
        return at_index(variances, index, like), at_index(log_variances, index, like)


def times(t: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """Base timesteps as a tensor: int64, or if they are fractional float64 (float32 on MPS)."""
    wide = torch.float32 if torch.device(device).type == "mps" else torch.float64
    whole = all(isinstance(each, int) for each in t)
    return torch.tensor(t, dtype=torch.int64 if whole else wide, device=device)


def at_index(constants: Tensor, index: int | Tensor, like: Tensor) -> Tensor:
    """Constants (S,) of B indices as (B, 1, 1, 1), or of one as a number, in the type of `like`."""
    # A number stays on the CPU: it enters kernels as an argument, and costs no transfer.
    if isinstance(index, int):
        return constants[index].to(like.dtype)
    return constants.to(like)[index.to(like.device)][:, None, None, None]


def space_timesteps(num_timesteps: int, respacing: str | Sequence[int]) -> list[int]:
    """The kept timesteps, rising; UsageError if T timesteps cannot be spaced so.

    Args:
        num_timesteps: T.
        respacing: "" for all; "25", "10,10,5" or [10, 10, 5] for the count in each of as many
            sections; "ddim25" for 25 at the smallest even stride; "fast27" for GLIDE's upsampler.
    """
    if respacing == "":
        return list(range(num_timesteps))
    if respacing == "fast27":
        kept = space_timesteps(num_timesteps, (10, 10, 3, 2, 2))
        return sorted({*kept[:-1], num_timesteps - 3})
    text = respacing if isinstance(respacing, str) else ",".join(map(str, respacing))
    even, counts = text.startswith("ddim"), text.removeprefix("ddim").split(",")
    # [0-9] only: `int` would also take signs, underscores and other scripts' digits.
    known = all(re.fullmatch(r"\s*[0-9]+\s*", count) for count in counts)
    if not known or (even and len(counts) > 1):
        hint = 'use counts such as "25" or "10,10,5", "ddim25", "fast27", or "" for all'
        raise UsageError(f"respacing {respacing!r} is not understood", hint=hint)
    if not even:
        return _sections(num_timesteps, [int(count) for count in counts])
    if kept := _evenly(num_timesteps, count := int(counts[0])):
        return kept
    fault = f"no even stride over {num_timesteps} timesteps gives {count}"
    raise UsageError(fault, hint=f"use {count} instead of {text}, or another number")


def timesteps_for(num_timesteps: int, steps: int) -> list[int]:
    """`steps` rising timesteps: at an even stride if there is one, else in one section.

    A single step begins at the noisiest timestep. UsageError if `steps` is not in [1, T].
    """
    if not 1 <= steps <= num_timesteps:
        hint = f"use a number from 1 to {num_timesteps}"
        raise UsageError(f"cannot sample in {steps} steps", hint=hint)
    if steps == 1:
        return [num_timesteps - 1]
    return _evenly(num_timesteps, steps) or _sections(num_timesteps, [steps])


def _evenly(num_timesteps: int, count: int) -> list[int]:
    """Two or more timesteps from 0 on, at the smallest even stride; empty if none gives `count`."""
    kept = list(range(0, num_timesteps, -(-num_timesteps // max(count, 1))))
    return kept if len(kept) == count > 1 else []


def _sections(num_timesteps: int, counts: list[int]) -> list[int]:
    if not any(counts):
        raise UsageError("a respacing must keep at least one timestep")
    size, longer = divmod(num_timesteps, len(counts))
    bounds = [section * size + min(section, longer) for section in range(len(counts) + 1)]
    kept: list[int] = []
    for (start, stop), count in zip(pairwise(bounds), counts, strict=True):
        if count > stop - start:
            fault = f"cannot keep {count} timesteps of a section that has {stop - start}"
            hint = f"the {num_timesteps} timesteps are cut into {len(counts)} sections"
            raise UsageError(fault, hint=hint)
        stride = (stop - start - 1) / (count - 1) if count > 1 else 1.0
        # Like the published spacings, which trained networks have seen: the stride is summed, not
        # multiplied, and halves are rounded to even.
        positions = accumulate([0.0] + [stride] * (count - 1))
        kept += [start + round(position) for position in positions][:count]
    return kept
