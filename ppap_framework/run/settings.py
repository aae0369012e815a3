"""The two records of a run: what determines its images, and how they are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, final, get_args

import attrs
import numpy as np
import torch

from ppap_framework.diffusion import Step, ddim_step, ddpm_step
from ppap_framework.errors import PpapError, Problems, UsageError, did_you_mean
from ppap_framework.guidance import Conflicts, Through
from ppap_framework.run.init_image import Picture, read_mask, read_picture
from ppap_framework.runtime import Precision, find_device

SamplerName: TypeAlias = Literal["ancestral", "ddpm", "ddim"]

_ETA = 1.5  # of the ancestral sampler

Rule: TypeAlias = tuple[Callable[[Any], bool], str, object]
"""The test of a value, what it must do, and a usual one."""


def whole(least: float, usual: int, *others: object, most: float = 2**31 - 1) -> Rule:
    """Whole numbers from `least` to `most`, usually to what C calls an int, and other values."""
    words = "be a whole number" + (f" from {least}" if math.isfinite(least) else "")
    words += f" to {most}" if most < 2**31 - 1 else ""
    return lambda x: (type(x) is int and least <= x <= most) or x in others, words, usual


def one_of(words: Any, *others: object) -> Rule:
    """The values of a `Literal`, the first of which is the usual one, and other values."""
    choices = get_args(words)
    return lambda x: x in choices or x in others, f"be {' or '.join(choices)}", choices[0]


def _rates(given: Any) -> bool:
    numbers = np.shape(given) == (2,) and all(isinstance(b, int | float) for b in given)
    return given is None or (numbers and all(0 <= b < 1 for b in given))


_NAMED = one_of(SamplerName)
_RULES: dict[str, Rule] = {
    "num": whole(1, 4),
    "steps": whole(1, 50),
    "sampler": (lambda x: callable(x) or _NAMED[0](x), *_NAMED[1:]),
    "eta": (lambda x: x is None or 0.0 <= x < math.inf, "be a number from 0", 1),
    "seed": whole(-math.inf, 0, most=math.inf),
    "strength": (lambda x: x is None or 0.0 < x <= 1.0, "lie above 0 and be at most 1", 0.6),
    "resample": whole(1, 5, None, most=1000),
    "jump_length": whole(1, 5),
    "through": one_of(Through, None),
    "conflicts": one_of(Conflicts),
    "moments": (_rates, "be two numbers from 0 to below 1", "0.9 and 0.999"),
    "guide_every": whole(1, 2),
    "precision": one_of(Precision),
    "batch": whole(1, 8, "auto"),
    "threads": whole(1, 1, None),
}


def unfit(values: Mapping[str, Any], rules: Mapping[str, Rule] = _RULES) -> Iterator[UsageError]:
    """Errors of values by name, by their rules."""
    for name, (accepts, words, usual) in rules.items():
        if name in values and not accepts(value := _plain(values[name])):
            hint = f"use {usual} for {name}, say"
            yield UsageError(f"{name} must {words}, not {value}", hint=hint)


def plain_numbers(_: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """A transformer of attrs fields that makes numpy's numbers and torch's dtypes plain values."""
    return [field.evolve(converter=field.converter or _plain) for field in fields]


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value.item() if isinstance(value, np.generic) else value


@final
@attrs.frozen(kw_only=True, field_transformer=plain_numbers)
class Sampling:
    """What determines an image, apart from the backend and the guides.

    Attributes:
        steps: From noise to image, from 1 to the base length of the schedule.
        sampler: "ancestral" or "ddim", guided through the score, which differ in `eta` alone;
            "ddpm", guided by a mean shift; or any `ppap_framework.diffusion.Step`.
        eta: Noise of a step, from 0, see `ddim_step`; None for 1.5 if "ancestral" and for 0 if
            "ddim". 0 adds none, 1 as much as DDPM.
        seed: The noise of image i is a function of (seed, i) alone.
        through: The image that guides look at: the "noisy" one; the predicted "clean" one,
            differentiated through the denoiser; or "detached", the same without that derivative.
            None for what each guide's experts read, and for "noisy" without experts.
        normalize: Scale each guide's gradient to a root mean square of 1 first.
        conflicts: "keep" or "remove" gradient components that oppose another guide.
        moments: Decay rates in [0, 1) of the `guidance.moments` of gradients, such as (0.9, 0.999).
        guide_every: Guides look at the first of so many steps at which they act; others repeat g.
        prompt: Text for all images, or one for each; None for an unconditional model.
        stage: Name of the backend's last stage to run; None for all.
        init_image: Picture to begin with; see `read_picture`. None for noise.
        strength: Share of the trajectory, in (0, 1], that it is noised to; 1 is noise alone. None
            for 1 with a mask, and 0.6 without.
        mask: White where it is drawn anew, black where it is kept; see `read_picture`.
        resample: With a mask, walks of each part of `jump_length` steps; None for 5, and 1 if the
            backend's networks read the mask.
    """

    steps: int = 50
    sampler: SamplerName | Step = "ancestral"
    eta: float | None = None
    seed: int = 0
    through: Through | None = None
    normalize: bool = False
    conflicts: Conflicts = "keep"
    moments: tuple[float, float] | None = None
    guide_every: int = 1
    prompt: str | Sequence[str] | None = None
    stage: str | None = None
    init_image: Picture | None = attrs.field(default=None, converter=read_picture)
    strength: float | None = None
    mask: Picture | None = attrs.field(default=None, converter=read_mask)
    resample: int | None = None
    jump_length: int = 5

    @property
    def share(self) -> float:
        """The share of the trajectory that is walked."""
        usual = 0.6 if self.init_image and not self.mask else 1.0
        return usual if self.strength is None else self.strength

    @property
    def step(self) -> Step:
        """The sampler's step."""
        if callable(self.sampler):
            return self.sampler
        return ddpm_step if self.sampler == "ddpm" else partial(ddim_step, eta=self.stochasticity)

    @property
    def stochasticity(self) -> float:
        """The `eta` of the sampler; 0 for one that has none."""
        return (_ETA if self.sampler == "ancestral" else 0.0) if self.eta is None else self.eta

    @property
    def sampler_name(self) -> str:
        """The sampler's name; that of the function for a step of the user's own."""
        step: Any = self.sampler.func if isinstance(self.sampler, partial) else self.sampler
        if isinstance(step, str):
            return step
        return getattr(step, "__qualname__", type(step).__qualname__)

    def prompts(self, images: range) -> list[str] | None:
        """Prompts of some images; None for no prompt."""
        if isinstance(self.prompt, str | None):
            return None if self.prompt is None else [self.prompt] * len(images)
        return list(self.prompt[images.start : images.stop])

    def record(self) -> dict[str, Any]:
        """JSON; images of equal records are equal."""
        each = None if isinstance(self.prompt, str | None) else list(self.prompt)
        sampler: Any = self.sampler_name  # a step may have fields of its own
        named = attrs.evolve(self, sampler=sampler, eta=self.stochasticity)
        left_out = ("pixels", *(() if self.init_image else _OF_INIT_IMAGE))
        left_out += ("guide_every",) * (self.guide_every == 1)  # as older records
        record = attrs.asdict(named, filter=lambda field, _: field.name not in left_out)
        record |= {"prompt": each or self.prompt}
        return record | ({"strength": self.share} if self.init_image else {})

    def problems(self, num: int) -> Iterator[UsageError]:
        """Errors of these settings for `num` images, whatever the backend."""
        yield from unfit(attrs.asdict(self, recurse=False))
        if self.eta and self.sampler not in ("ancestral", "ddim"):
            reason = f"eta is {self.eta}, and sampler {self.sampler_name!r} has none"
            yield UsageError(reason, hint="use ancestral or ddim")
        image, mask = self.init_image, self.mask
        for name, needed in {"strength": image, "mask": image, "resample": mask}.items():
            if needed is None and getattr(self, name) is not None:
                of = "a mask" if name == "resample" else "an init image"
                yield UsageError(f"{name} is for {of}, and there is none", hint="leave it out")
        if image and mask and image.pixels.shape[1:] != mask.pixels.shape[1:]:
            reason = f"mask {mask.source!r} has another size than the init image"
            yield UsageError(reason, hint="draw the mask over the picture, at the same size")
        if isinstance(self.prompt, str | None):
            return
        each: Any = self.prompt if isinstance(self.prompt, Sequence) else [self.prompt]
        if wrong := [prompt for prompt in each if not isinstance(prompt, str)]:
            yield UsageError(f"a prompt must be a text, and {wrong[0]!r} is none")
        elif len(each) != num:
            reason = f"{len(each)} prompts were given for {num} images"
            yield UsageError(reason, hint="give one for all, or one for each")


_OF_INIT_IMAGE = ("init_image", "strength", "mask", "resample", "jump_length")
UNGUIDED = Sampling(steps=25, sampler="ddim")
"""Default settings of pictures that nobody guides, such as synthetic sets."""


@final
@attrs.frozen(kw_only=True, field_transformer=plain_numbers)
class Compute:
    """How images are computed; it changes them by rounding errors only.

    Attributes:
        device: "auto", or as torch names it, such as "cpu" or "cuda:1", or a `torch.device`.
        precision: Precision of matrix products and convolutions, "float32" or "bfloat16" (or
            torch's dtypes); samplers and losses compute in float32.
        batch: Batch size, or "auto" for as many images as memory has room for.
        offload: Keep idle networks on the CPU: less memory on the device, more time.
        compile: Compile the networks with torch first.
        threads: Threads on the CPU; None for torch's own choice.
    """

    device: str | torch.device = "auto"
    precision: Precision = "float32"
    batch: int | Literal["auto"] = 8
    offload: bool = False
    compile: bool = False
    threads: int | None = None

    @property
    def place(self) -> torch.device:
        """The device; UsageError if it does not exist."""
        return find_device(self.device)

    @property
    def fixed_batch(self) -> int:
        """The batch size, if low-order bits matter; UsageError if it depends on the machine."""
        if self.batch != "auto":
            return self.batch
        reason = "the batch size changes low-order bits of images and cannot be 'auto' here"
        raise UsageError(reason, hint="give a number")

    def record(self) -> dict[str, Any]:
        """JSON."""
        return attrs.asdict(self) | {"device": str(self.device)}

    def problems(self) -> Iterator[PpapError]:
        """Errors of these settings."""
        problems = Problems()
        problems.attempt(find_device, self.device)
        yield from (*unfit(attrs.asdict(self)), *problems.errors)


def check(num: int, sampling: Sampling, compute: Compute) -> None:
    """Raise one UsageError with all invalid settings, whatever the backend and guides."""
    problems = Problems()
    problems.errors += [*unfit({"num": num}), *sampling.problems(num), *compute.problems()]
    problems.check()


def changed(changes: Mapping[str, Any], *records: Any) -> tuple[Any, ...]:
    """Records with fields changed by keyword; UsageError for a name that is no field. A name in
    several records changes the first.
    """
    left, result = dict(changes), []
    for record in records:
        own = {name: left.pop(name) for name in attrs.fields_dict(type(record)) if name in left}
        result.append(attrs.evolve(record, **own))
    for name in left:
        known = [field for record in records for field in attrs.fields_dict(type(record))]
        hint = did_you_mean(name, known) or f"choose from {', '.join(known)}"
        raise UsageError(f"there is no setting {name!r}", hint=hint)
    return tuple(result)
