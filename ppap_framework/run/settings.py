"""The two records of a run: what determines its images, and how they are computed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, final, get_args

import attrs
import torch

from ppap_framework.diffusion import Step, ddim_step, ddpm_step
from ppap_framework.errors import Problems, UsageError
from ppap_framework.guidance import Conflicts, Through
from ppap_framework.runtime import Precision, find_device

SamplerName: TypeAlias = Literal["ddim", "ddpm"]


@final
@attrs.frozen(kw_only=True)
class Sampling:
    """What determines an image, apart from the backend and the guides.

    Attributes:
        steps: From noise to image, from 1 to the base length of the schedule.
        sampler: "ddim", guided through the score; "ddpm", guided by a mean shift; or any
            `ppap_framework.diffusion.Step`.
        eta: Stochasticity of DDIM, in [0, 1]; 0 is deterministic.
        seed: The noise of image i is a function of (seed, i) alone.
        through: The image that guides look at: the "noisy" one, or the predicted "clean" one, then
            differentiated through the denoiser.
        normalize: Scale each guide's gradient to a root mean square of 1 first.
        conflicts: "keep" or "remove" gradient components that oppose another guide.
        prompt: Text for all images, or one for each; None for an unconditional model.
        stage: Name of the backend's last stage to run; None for all.
    """

    steps: int = 25
    sampler: SamplerName | Step = "ddim"
    eta: float = 0.0
    seed: int = 0
    through: Through = "noisy"
    normalize: bool = False
    conflicts: Conflicts = "keep"
    prompt: str | Sequence[str] | None = None
    stage: str | None = None

    @property
    def step(self) -> Step:
        """The sampler's step."""
        if callable(self.sampler):
            return self.sampler
        return ddpm_step if self.sampler == "ddpm" else partial(ddim_step, eta=self.eta)

    @property
    def sampler_name(self) -> str:
        """The sampler's name; that of the function for a step of the user's own."""
        if isinstance(self.sampler, str):
            return self.sampler
        function = self.sampler.func if isinstance(self.sampler, partial) else self.sampler
        return getattr(function, "__qualname__", type(function).__qualname__)

    def prompts(self, images: range) -> list[str] | None:
        """Prompts of some images; None for no prompt."""
        if self.prompt is None:
            return None
        if isinstance(self.prompt, str):
            return [self.prompt] * len(images)
        return list(self.prompt[images.start : images.stop])

    def record(self) -> dict[str, Any]:
        """JSON; two records are equal if the images are."""
        prompt = self.prompt
        return attrs.asdict(self) | {
            "sampler": self.sampler_name,
            "prompt": prompt if isinstance(prompt, str | None) else list(prompt),
        }

    def problems(self, num: int) -> Iterator[UsageError]:
        """Errors of these settings for `num` images, whatever the backend."""
        yield from _whole("steps", self.steps, 1, 25)
        if not _is_whole(self.seed):
            yield UsageError(f"seed must be a whole number, not {self.seed}", hint="use 0 for seed")
        if not 0.0 <= self.eta <= 1.0:
            yield UsageError(
                f"eta must lie between 0 and 1, not be {self.eta}",
                hint="0 adds no noise, 1 as much as ancestral sampling",
            )
        if not callable(self.sampler):
            yield from _choice("sampler", self.sampler, SamplerName)
        yield from _choice("through", self.through, Through)
        yield from _choice("conflicts", self.conflicts, Conflicts)
        if self.eta and self.sampler != "ddim":
            yield UsageError(
                f"eta is {self.eta}, and sampler {self.sampler_name!r} has none", hint="use ddim"
            )
        if self.prompt is None or isinstance(self.prompt, str):
            return
        each: Sequence[object] = self.prompt if isinstance(self.prompt, Sequence) else [self.prompt]
        if wrong := [prompt for prompt in each if not isinstance(prompt, str)]:
            yield UsageError(
                f"prompt must be a text, or one for each image, and {wrong[0]!r} is none",
                hint='as in prompt="3"',
            )
        elif len(each) != num:
            yield UsageError(
                f"{len(each)} prompts were given for {num} images",
                hint="give one for all, or one for each",
            )


def _precision(value: Any) -> Any:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


@final
@attrs.frozen(kw_only=True)
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
    precision: Precision = attrs.field(default="float32", converter=_precision)
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
        if self.batch == "auto":
            raise UsageError(
                "the batch size changes low-order bits of images and cannot be 'auto' here",
                hint="give a number",
            )
        return self.batch

    def record(self) -> dict[str, Any]:
        """JSON."""
        return attrs.asdict(self) | {"device": str(self.device)}

    def problems(self) -> Iterator[UsageError]:
        """Errors of these settings."""
        if self.batch != "auto":
            yield from _whole("batch", self.batch, 1, 8)
        if self.threads is not None:
            yield from _whole("threads", self.threads, 1, 1)
        yield from _choice("precision", self.precision, Precision)
        try:
            find_device(self.device)
        except UsageError as error:
            yield error


def settle(
    sampling: Sampling | None,
    compute: Compute | None,
    changes: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Sampling, Compute]:
    """Both records, None for the defaults, with fields changed by keyword.

    Args:
        sampling: What determines the images.
        compute: How they are computed.
        changes: Values of fields of either record, by name; UsageError for other names.
        defaults: Other default values of fields, for a record that is None.
    """
    fields = defaults or {}
    sampling = sampling or Sampling(**_of(Sampling, fields))
    compute = compute or Compute(**_of(Compute, fields))
    return changed(changes, sampling, compute)


def changed(changes: Mapping[str, Any], *records: Any) -> tuple[Any, ...]:
    """Records with fields changed by keyword; UsageError for a name that is no field.

    A name in several records changes the first.
    """
    left = dict(changes)
    result = []
    for record in records:
        own = _of(type(record), left)
        result.append(attrs.evolve(record, **own))
        left = {name: value for name, value in left.items() if name not in own}
    for name in left:
        known = [field for record in records for field in attrs.fields_dict(type(record))]
        near = difflib.get_close_matches(name, known, n=1)
        raise UsageError(
            f"there is no setting {name!r}",
            hint=f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}",
        )
    return tuple(result)


def _of(record: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are fields of a record, by name."""
    return {name: value for name, value in values.items() if name in attrs.fields_dict(record)}


def check(num: int, sampling: Sampling, compute: Compute) -> None:
    """Raise one UsageError with all invalid settings, whatever the backend and guides."""
    problems = Problems()
    problems.errors += _whole("num", num, 1, 4)
    problems.errors += sampling.problems(num)
    problems.errors += compute.problems()
    problems.check()


def _whole(name: str, value: object, least: int, usual: int) -> Iterator[UsageError]:
    if not _is_whole(value) or value < least:  # type: ignore[operator]  # it is a whole number
        yield UsageError(
            f"{name} must be a whole number from {least}, not {value}",
            hint=f"use {usual} for {name}, say",
        )


def _choice(name: str, value: object, kind: Any) -> Iterator[UsageError]:
    choices = get_args(kind)
    if value not in choices:
        yield UsageError(f"{name} cannot be {value!r}", hint=f"choose one of {', '.join(choices)}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
