"""How experts are trained, and how their iterations are shared out.

Training has phases. With a shared start, one set of adapter parameters first learns from all noise
levels; every expert begins as a copy of it and goes on in its own range. Experts that need more
than their own budget to get anywhere, those of much noise above all, profit most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, final

import attrs

from ppap_framework.errors import UsageError
from ppap_framework.run import Problems

__all__ = ["Phase", "Recipe"]


@final
@attrs.frozen
class Phase:
    """A stretch of training.

    Attributes:
        expert: Whose parameters learn.
        timesteps: The base timesteps from which noise is drawn.
        iterations: How many.
        begins_with: The expert whose parameters are copied first; None for the untouched network,
            and -1 for the shared start.
        shared: Whether what is learned is the shared start itself.
    """

    expert: int
    timesteps: range
    iterations: int
    begins_with: int | None
    shared: bool = False

    @property
    def name(self) -> str:
        """For logs."""
        return "shared" if self.shared else f"expert {self.expert}"


SHARED = -1
"""As `Phase.begins_with`: the shared start."""


@final
@attrs.frozen(kw_only=True)
class Recipe:
    """How experts are trained.

    Attributes:
        iterations: In all, the shared start and all experts together, so that recipes with
            different numbers of experts cost the same.
        shared: The share of them that goes into a shared start, in [0, 1); 0 trains every expert
            from the untouched network. A single expert has no use for it.
        chain: Whether each expert begins as the one before it instead, as in the released code.
        batch: Images of an iteration.
        learning_rate: Of AdamW at its highest; it rises over the first tenth of a phase, at most
            100 iterations, and then falls linearly to 0.
        weight_decay: Of AdamW.
        held_out: The share of the images that is kept from training, in (0, 1).
        validate_every: Iterations between two looks at held-out images.
        patience: How many such looks without a new best end a phase; 0 for never.
        precision: "bfloat16" computes products in it, which pays where the processor can.
        seed: Of the order of images and of noise.

    Raises:
        UsageError: By `check`, with everything that cannot be.
    """

    iterations: int = 5000
    shared: float = 0.5
    chain: bool = False
    batch: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 0.0
    held_out: float = 0.1
    validate_every: int = 100
    patience: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def check(self) -> None:
        """Accept what can be right.

        Raises:
            UsageError: With everything that cannot.
        """
        problems = Problems()
        problems.errors += self._wrong()
        problems.check()

    def phases(self, owned: Sequence[range]) -> tuple[Phase, ...]:
        """What is done in which order.

        Args:
            owned: The base timesteps of each expert.

        Raises:
            UsageError: Where there are too few iterations, or an expert owns no timestep.
        """
        n = len(owned)
        if any(len(timesteps) == 0 for timesteps in owned):
            empty = [i for i, timesteps in enumerate(owned) if len(timesteps) == 0]
            raise UsageError(
                f"expert {empty[0]} owns no timestep of the schedule", hint="use fewer experts"
            )
        shared = round(self.iterations * self.shared) if n > 1 and not self.chain else 0
        left = self.iterations - shared
        if left < n:
            raise UsageError(
                f"{left} iterations cannot be shared out among {n} experts",
                hint=f"use --iterations {n * 100}, say",
            )
        begins = [SHARED if shared else None] * n
        if self.chain:
            begins = [None, *range(n - 1)]
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

    def _wrong(self) -> Iterator[UsageError]:
        for name, usual in (("iterations", 5000), ("batch", 64), ("validate_every", 100)):
            value = getattr(self, name)
            if not _is_whole(value) or value < 1:
                yield UsageError(
                    f"{name} must be a whole number from 1, not {value}", hint=f"use {usual}, say"
                )
        if not _is_whole(self.patience) or self.patience < 0:
            yield UsageError(
                f"patience must be a whole number from 0, not {self.patience}",
                hint="0 never stops early",
            )
        if not _is_whole(self.seed):
            yield UsageError(f"seed must be a whole number, not {self.seed}", hint="use 0, say")
        if self.chain not in (False, True):
            yield UsageError(f"chain must be true or false, not {self.chain}", hint="use false")
        if not _is_number(self.shared) or not 0.0 <= self.shared < 1.0:
            yield UsageError(
                f"shared must lie in [0, 1), not be {self.shared}",
                hint="0.5 gives half of the iterations to a start that all experts share",
            )
        if not _is_number(self.held_out) or not 0.0 < self.held_out < 1.0:
            yield UsageError(
                f"held_out must lie between 0 and 1, not be {self.held_out}", hint="use 0.1, say"
            )
        if not _is_number(self.learning_rate) or not 0.0 < self.learning_rate < math.inf:
            yield UsageError(
                f"learning_rate must be above 0, not {self.learning_rate}", hint="use 0.005, say"
            )
        if not _is_number(self.weight_decay) or not 0.0 <= self.weight_decay < math.inf:
            yield UsageError(f"weight_decay must be from 0, not {self.weight_decay}", hint="use 0")
        if self.precision not in ("float32", "bfloat16"):
            yield UsageError(
                f"precision cannot be {self.precision!r}", hint="choose float32 or bfloat16"
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
