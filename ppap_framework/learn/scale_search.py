"""The search for guidance scales: a common one first, then one for each range of noise levels.

Trials share their noise and targets, so that two sets of scales are compared trajectory by
trajectory: by the mean difference of their losses and its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, final

import attrs
from torch import Tensor

Scales: TypeAlias = "tuple[float, ...]"
"""One for each of N ranges."""

_DOUBLINGS, _HALVINGS = 8, 4
_PATIENCE = 2
_NEAR = 0.005
_SURE = 2.0


@final
@attrs.frozen(kw_only=True, eq=False)
class Loss:
    """How far M trajectories ended from where they should.

    Attributes:
        distance: (M,), from their targets.
        oddity: (M,), from what the diffusion model draws by itself.
    """

    distance: Tensor
    oddity: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum, (M,)."""
        return self.distance + self.oddity


@final
@attrs.frozen(kw_only=True, eq=False)
class Trial:
    """What became of one set of scales.

    Attributes:
        scales: N of them.
        loss: Of M trajectories.
        kept: Whether the search went on from there.
    """

    scales: Scales
    loss: Loss
    kept: bool = False

    def record(self) -> dict[str, Any]:
        """As JSON: means over trajectories, and the standard error of the sum's."""
        total = self.loss.total
        return {
            "scales": [float(f"{scale:.6g}") for scale in self.scales],
            "loss": round(total.mean().item(), 6),
            "standard_error": round(_error(total), 6),
            "distance": round(self.loss.distance.mean().item(), 6),
            "oddity": round(self.loss.oddity.mean().item(), 6),
            "kept": self.kept,
        }


def search(
    run: Callable[[Scales], Loss], first: float, ranges: int
) -> tuple[Scales, tuple[Trial, ...]]:
    """Find scales.

    A common scale is doubled from the first on, eight times at most, until the loss has got worse
    twice in a row. Of these the smallest is taken whose loss is within a standard error of the
    best, since a larger one costs quality and diversity that no loss sees (the one-standard-error
    rule of Breiman et al. 1984). Where that is the first, it is halved, four times at most, while
    the same rule takes the half. Then, range by range from the noisiest, half of the scale is
    tried, and if that is no better, twice of it; what is better by two standard errors stays.

    Args:
        run: Draws M trajectories with a scale for each range, always of the same noise and targets.
        first: Where to begin, above 0.
        ranges: N; range 0 is the least noisy.

    Returns:
        The scales, and every trial in order.
    """
    trials = _common(run, first, ranges)
    now = next(trial for trial in trials if trial.kept)
    for index in reversed(range(ranges if ranges > 1 else 0)):
        for factor in (0.5, 2.0):
            scales = tuple(
                scale * factor if k == index else scale for k, scale in enumerate(now.scales)
            )
            trial = _tried(run, scales)
            better = _is_better(trial, now)
            trials.append(attrs.evolve(trial, kept=better))
            if better:
                now = trial
                break
    return now.scales, tuple(trials)


def most_trials(ranges: int) -> int:
    """As many as `search` makes."""
    return _DOUBLINGS + 1 + _HALVINGS + (2 * ranges if ranges > 1 else 0)


def _common(run: Callable[[Scales], Loss], first: float, ranges: int) -> list[Trial]:
    """Trials of a scale for all ranges, in the order in which they were made; one is kept."""
    trials: list[Trial] = []
    worse = 0
    for k in range(_DOUBLINGS + 1):
        trials.append(_tried(run, (first * 2.0**k,) * ranges))
        worse = worse + 1 if k and _mean(trials[k]) > _mean(trials[k - 1]) else 0
        if worse == _PATIENCE:
            break
    for k in range(1, _HALVINGS + 1):
        if _smallest(trials).scales[0] > min(trial.scales[0] for trial in trials):
            break
        trials.append(_tried(run, (first / 2.0**k,) * ranges))
    chosen = _smallest(trials)
    return [attrs.evolve(trial, kept=trial is chosen) for trial in trials]


def _smallest(trials: list[Trial]) -> Trial:
    """That of the smallest scale whose loss is within a standard error of the best."""
    best = min(trials, key=_mean)
    return min(
        (trial for trial in trials if _is_near(trial, best)), key=lambda trial: trial.scales[0]
    )


def _tried(run: Callable[[Scales], Loss], scales: Scales) -> Trial:
    return Trial(scales=scales, loss=run(scales))


def _mean(trial: Trial) -> float:
    return trial.loss.total.mean().item()


def _is_near(trial: Trial, best: Trial) -> bool:
    apart = trial.loss.total - best.loss.total
    return apart.mean().item() <= max(_error(apart), _NEAR)


def _is_better(trial: Trial, now: Trial) -> bool:
    gained = now.loss.total - trial.loss.total
    return gained.mean().item() > max(_SURE * _error(gained), _NEAR)


def _error(values: Tensor) -> float:
    """The standard error of a mean."""
    return values.std().item() / math.sqrt(len(values))
