"""The recipe of a training, and its phases.

With a shared start, one set of adapter parameters first learns from all noise levels, and every
expert continues from a copy of it in its own range. Experts of high noise levels benefit most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, final

import attrs

from ppap_framework.diagnosis import MOST_EXPERTS
from ppap_framework.errors import UsageError
from ppap_framework.experts import NoiseRanges
from ppap_framework.noise import NoiseSchedule
from ppap_framework.runtime import Precision

Adapters: TypeAlias = "Sequence[tuple[str, Mapping[str, Any]]] | None"
"""Adapters by name, with their options; None for the defaults of the installed plugins."""

Boundaries: TypeAlias = "Sequence[int] | str | None"
"""Base timesteps at which experts 1 to N - 1 begin; "auto" to derive them from the data; None for
ranges of equal width."""

SHARED = -1
"""Value of `Phase.begins_with` for the shared start."""

_USUAL_EXPERTS = 5

_WHOLE = {"iterations": (1, 5000), "batch": (1, 64), "validate_every": (1, 100), "patience": (0, 0)}
_NUMBERS: dict[str, tuple[Callable[[float], bool], str, float]] = {
    "shared": (lambda x: 0.0 <= x < 1.0, "lie in [0, 1)", 0.5),
    "held_out": (lambda x: 0.0 < x < 1.0, "lie between 0 and 1", 0.1),
    "learning_rate": (lambda x: 0.0 < x < math.inf, "be above 0", 0.005),
    "weight_decay": (lambda x: 0.0 <= x < math.inf, "be from 0", 0),
}


@final
@attrs.frozen
class Phase:
    """A part of training.

    Attributes:
        expert: Index of the trained expert.
        timesteps: Base timesteps of the noise.
        iterations: Number of iterations.
        begins_with: Index of the expert whose parameters are copied first; None for the untouched
            network, `SHARED` for the shared start.
        shared: Whether the result is the shared start.
    """

    expert: int
    timesteps: range
    iterations: int
    begins_with: int | None
    shared: bool = False

    @property
    def name(self) -> str:
        return "shared" if self.shared else f"expert {self.expert}"


@final
@attrs.frozen(kw_only=True)
class Recipe:
    """Everything that determines experts, except the guide, the backend and the images.

    Attributes:
        num_experts: N; None for the number that `boundaries` give, or 5.
        boundaries: See `Boundaries`. "auto" also derives N, if `num_experts` is None.
        adapters: See `Adapters`.
        iterations: Number of iterations of the shared start and all experts together, so that the
            cost does not depend on N.
        shared: Share of the iterations for a shared start, in [0, 1); with 0, or a single expert,
            experts begin as the untouched network.
        chain: Whether each expert begins as a copy of the one before it instead, as in the released
            code.
        batch: Batch size.
        learning_rate: Peak learning rate of AdamW. It rises over the first tenth of a phase, at
            most 100 iterations, and then falls linearly to 0.
        weight_decay: Weight decay of AdamW.
        held_out: Share of the images for validation, in (0, 1).
        validate_every: Iterations between two validations.
        patience: Validations without a new best after which a phase ends; 0 for no early stopping.
        precision: Precision of matrix products and convolutions in training.
        seed: Seed of image order and noise.
    """

    num_experts: int | None = None
    boundaries: Boundaries = None
    adapters: Adapters = None
    iterations: int = 5000
    shared: float = 0.5
    chain: bool = False
    batch: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 0.0
    held_out: float = 0.1
    validate_every: int = 100
    patience: int = 0
    precision: Precision = "float32"
    seed: int = 0

    def ranges(self, schedule: NoiseSchedule) -> NoiseRanges:
        """The noise levels of each expert; for boundaries "auto", equal ranges of the largest N.

        Raises:
            UsageError: If the schedule is too short.
        """
        if isinstance(self.boundaries, str):  # "auto": `problems` rejects others
            most = min(MOST_EXPERTS, schedule.num_timesteps)
            return NoiseRanges.equal(schedule, self.num_experts or most)
        if self.boundaries is None:
            return NoiseRanges.equal(schedule, self.num_experts or _USUAL_EXPERTS)
        return NoiseRanges.from_timesteps(schedule, self.boundaries)

    def beginning_at(self, starts: Sequence[int]) -> Recipe:
        """The recipe with these boundaries, as timesteps."""
        return attrs.evolve(self, num_experts=len(starts) + 1, boundaries=tuple(starts))

    def phases(self, owned: Sequence[range]) -> tuple[Phase, ...]:
        """The phases of training, in order, for the base timesteps that each expert owns.

        Raises:
            UsageError: If there are too few iterations, or an expert owns no timestep.
        """
        n = len(owned)
        for i, timesteps in enumerate(owned):
            if len(timesteps) == 0:
                message = f"expert {i} owns no timestep of the schedule"
                raise UsageError(message, hint="use fewer experts")
        shared = round(self.iterations * self.shared) if n > 1 and not self.chain else 0
        left = self.iterations - shared
        if left < n:
            raise UsageError(
                f"{left} iterations cannot be shared out among {n} experts",
                hint=f"use --iterations {n * 100}, say",
            )
        begins = [None, *range(n - 1)] if self.chain else [SHARED if shared else None] * n
        phases = [
            Phase(i, timesteps, left // n + (i < left % n), begins[i])
            for i, timesteps in enumerate(owned)
        ]
        if shared:
            everywhere = range(owned[0].start, owned[-1].stop)
            phases.insert(0, Phase(0, everywhere, shared, None, shared=True))
        return tuple(phases)

    def rate(self, phase: Phase, step: int) -> float:
        """The learning rate at an iteration of a phase, from 0."""
        rising = max(1, min(100, phase.iterations // 10))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * (phase.iterations - step) / max(1, phase.iterations - rising)

    def problems(self) -> Iterator[UsageError]:
        """All errors that do not depend on the schedule."""
        for name, (least, usual) in _WHOLE.items():
            value = getattr(self, name)
            if not _is_whole(value) or value < least:
                yield UsageError(
                    f"{name} must be a whole number from {least}, not {value}",
                    hint=f"use {usual} for {name}, say",
                )
        for name, (accepts, words, say) in _NUMBERS.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not accepts(value):
                yield UsageError(
                    f"{name} must {words}, not {value}", hint=f"use {say:g} for {name}, say"
                )
        if not _is_whole(self.seed):
            yield UsageError(f"seed must be a whole number, not {self.seed}", hint="use 0 for seed")
        if self.chain not in (False, True):
            yield UsageError(f"chain must be true or false, not {self.chain}", hint="use false")
        if self.precision not in ("float32", "bfloat16"):
            yield UsageError(
                f"precision cannot be {self.precision!r}", hint="choose float32 or bfloat16"
            )
        n, boundaries = self.num_experts, self.boundaries
        if n is not None and (not _is_whole(n) or n < 1):
            hint = f"use {_USUAL_EXPERTS}, say"
            yield UsageError(f"num_experts must be a whole number from 1, not {n}", hint=hint)
        if boundaries is None or boundaries == "auto":
            return
        if isinstance(boundaries, str):
            yield UsageError(f"boundaries cannot be {boundaries!r}", hint="give timesteps, or auto")
        elif n not in (None, len(boundaries) + 1):
            yield UsageError(
                f"{len(boundaries)} boundaries make {len(boundaries) + 1} experts, not {n}",
                hint="give only one of num_experts and boundaries",
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
