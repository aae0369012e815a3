"""The recipe of a training, and its phases.

With a shared start, one set of adapter parameters first learns from all noise levels, and every
expert continues from a copy of it in its own range. Experts of high noise levels benefit most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import attrs

from ppap_framework.diagnosis import MOST_EXPERTS
from ppap_framework.errors import UsageError
from ppap_framework.experts import NoiseRanges
from ppap_framework.noise import NoiseSchedule
from ppap_framework.run.settings import Rule, one_of, plain_numbers, unfit, whole
from ppap_framework.runtime import Precision

Adapters: TypeAlias = "Sequence[tuple[str, Mapping[str, Any]]] | None"
"""Adapters by name, with their options; None for the defaults of the installed plugins."""

Boundaries: TypeAlias = "Sequence[int] | str | None"
"""Base timesteps at which experts 1 to N - 1 begin; "auto" derives them; None: equal ranges."""

SHARED = -1
"""Value of `Phase.begins_with` for the shared start."""

_USUAL_EXPERTS = 5


def _number(test: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda x: type(x) in (int, float) and test(x)


def _is_part(value: Any) -> bool:
    pair = isinstance(value, Sequence) and [type(n) for n in value] == [int, int]
    return pair and 1 <= value[0] <= value[1]


_RULES: dict[str, Rule] = {
    "num_experts": whole(1, 5, None),
    "boundaries": (lambda b: not isinstance(b, str) or b == "auto", "be timesteps or auto", "auto"),
    "iterations": whole(1, 5000),
    "shared": (_number(lambda x: 0.0 <= x < 1.0), "lie in [0, 1)", 0.5),
    "chain": (lambda x: type(x) is bool, "be true or false", False),
    "batch": whole(1, 64),
    "learning_rate": (_number(lambda x: 0.0 < x < math.inf), "be above 0", 0.005),
    "weight_decay": (_number(lambda x: 0.0 <= x < math.inf), "be from 0", 0),
    "held_out": (_number(lambda x: 0.0 < x < 1.0), "lie between 0 and 1", 0.1),
    "validate_every": whole(1, 100),
    "patience": whole(0, 0),
    "precision": one_of(Precision),
    "seed": whole(-math.inf, 0, most=math.inf),
    "through": one_of(Literal["noisy", "detached"]),
    "begin_with": (lambda b: isinstance(b, str | None), "be a bundle's name", "shapes-depth-5"),
    "experts_of": (lambda p: p is None or _is_part(p), "be k of n, with k from 1 to n", (1, 5)),
}


@attrs.frozen
class Phase:
    """A part of training: one expert, at base timesteps, for a number of iterations, 0 if another
    training does it. It begins with a copy of another expert's parameters, by index, of the shared
    start for `SHARED`, or as attached for None; if `shared`, its result is the shared start.
    """

    expert: int
    timesteps: range
    iterations: int
    begins_with: int | None
    shared: bool = False

    @property
    def name(self) -> str:
        return "shared" if self.shared else f"expert {self.expert}"


@attrs.frozen(kw_only=True, field_transformer=plain_numbers)
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
        learning_rate: Peak learning rate of AdamW. It rises over the first tenth of a phase, at
            most 100 iterations, and then falls linearly to 0. `weight_decay` is AdamW's, too.
        held_out: Share of the images for validation, in (0, 1).
        validate_every: Iterations between two validations.
        patience: Validations without a new best after which a phase ends; 0 for no early stopping.
        precision: Precision of matrix products and convolutions in training.
        seed: Seed of image order and noise.
        through: What experts read: the "noisy" image, or with "detached" the predicted clean one,
            as `Sampling.through` has it.
        begin_with: A bundle of the same network, by name or path, perhaps for another backend, as
            which experts begin, with its ranges, adapters and `through`; None for new ones.
        experts_of: k and n to train only the kth of n parts of the experts, from 1, after the
            shared start. `ppap experts merge` joins the n bundles.
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
    through: str = "noisy"
    begin_with: str | None = None
    experts_of: tuple[int, int] | None = None

    def problems(self) -> Iterator[UsageError]:
        """All errors that do not depend on the schedule."""
        yield from unfit(attrs.asdict(self, recurse=False), _RULES)
        given, n = self.boundaries, self.num_experts
        if given is not None and not isinstance(given, str) and n not in (None, len(given) + 1):
            message = f"{len(given)} boundaries make {len(given) + 1} experts, not {n}"
            yield UsageError(message, hint="give only one of num_experts and boundaries")
        told = n or given or self.adapters or self.chain or self.through != "noisy"
        if self.begin_with and told:
            message = "experts that begin with a bundle have its number, boundaries and adapters"
            yield UsageError(message, hint="leave these out, and chain and through")
        if self.chain and self.experts_of is not None:
            message = "an expert of a chain begins as the one before it, perhaps of another part"
            yield UsageError(message, hint="leave out chain or experts_of")

    def part(self, n: int) -> list[int] | None:
        """The indices of the experts to train, of N = `n`; None for all."""
        return self.experts_of and [*range(self.experts_of[0] - 1, n, self.experts_of[1])]

    def record(self) -> dict[str, Any]:
        """JSON; without `through`, `begin_with` and `experts_of` where they are the defaults."""
        late = "through", "begin_with", "experts_of"
        return attrs.asdict(self, filter=lambda of, x: of.name not in late or x != of.default)

    def ranges(self, schedule: NoiseSchedule) -> NoiseRanges:
        """The noise levels of each expert, UsageError if the schedule is too short. For boundaries
        "auto", equal ranges of the largest N.
        """
        if self.boundaries is not None and not isinstance(self.boundaries, str):
            return NoiseRanges.from_timesteps(schedule, self.boundaries)
        most = min(MOST_EXPERTS, schedule.num_timesteps)
        usual = _USUAL_EXPERTS if self.boundaries is None else most
        return NoiseRanges.equal(schedule, self.num_experts or usual)

    def beginning_at(self, starts: Sequence[int]) -> Recipe:
        """The recipe with these boundaries, as timesteps."""
        return attrs.evolve(self, num_experts=len(starts) + 1, boundaries=tuple(starts))

    def phases(self, owned: Sequence[range]) -> tuple[Phase, ...]:
        """The phases of training, in order, for the base timesteps that each expert owns.
        UsageError if there are too few iterations, or an expert owns no timestep.
        """
        n = len(owned)
        for i, timesteps in enumerate(owned):
            if not timesteps:
                message = f"expert {i} owns no timestep of the schedule"
                raise UsageError(message, hint="use fewer experts")
        starts = n > 1 and not self.chain and self.begin_with is None
        shared = round(self.iterations * self.shared) if starts else 0
        left, part = self.iterations - shared, self.part(n)
        if part == []:
            message = f"{n} experts have no part {'/'.join(map(str, self.experts_of or ()))}"
            raise UsageError(message, hint=f"make at most {n} parts")
        if left < n:
            message = f"{left} iterations cannot be shared out among {n} experts"
            raise UsageError(message, hint=f"use --iterations {n * 100}, say")
        begins = [None, *range(n - 1)] if self.chain else [SHARED if shared else None] * n
        phases = [
            Phase(i, timesteps, (left // n + (i < left % n)) * (not part or i in part), begins[i])
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
