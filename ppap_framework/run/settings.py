"""How to sample: what can be settled before there is a backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, final, get_args

import attrs
import torch

from ppap_framework.errors import UsageError
from ppap_framework.guidance import Conflicts, Through
from ppap_framework.run.problems import Problems

__all__ = ["Precision", "SamplerName", "Settings", "find_device"]

SamplerName = Literal["ddim", "ddpm"]
Precision = Literal["float32", "bfloat16"]


@final
@attrs.frozen(kw_only=True)
class Settings:
    """How to sample.

    Attributes:
        num: How many images.
        steps: From noise to image, from 1 to the base length of the schedule.
        seed: Noise of image i comes from (seed, i) alone.
        sampler: "ddim", guided through the score, or "ddpm", guided by a mean shift.
        eta: Of DDIM, in [0, 1]: 0 is deterministic.
        through: Where guides look: at the "noisy" image, or at the predicted "clean" one.
        normalize: Whether each guide's gradient is brought to a root mean square of 1 first.
        conflicts: Whether to "keep" or "remove" what of a guide's pull points against another's.
        batch: How many images at once, or "auto" for as many as memory has room for; changes an
            image by rounding errors only.
        device: "auto", or as torch calls it, such as "cpu" or "cuda:1".
        precision: "bfloat16" computes the networks' products in it, which pays where the processor
            can; samplers and losses stay in float32.
        compare: Whether the same noise is also drawn without guides and, where experts guide, with
            the untouched networks in their place.
        prompt: What the backend is told: a text for all images, or one for each; None for nothing.
        stage: At which of the backend's stages to stop; None for the last.
        offload: Whether networks leave the device for the CPU while others work.
        compile: Whether torch compiles the networks first; changes images by rounding errors only.
    """

    num: int = 4
    steps: int = 25
    seed: int = 0
    sampler: SamplerName = "ddim"
    eta: float = 0.0
    through: Through = "noisy"
    normalize: bool = False
    conflicts: Conflicts = "keep"
    batch: int | Literal["auto"] = 8
    device: str = "auto"
    precision: Precision = "float32"
    compare: bool = False
    prompt: str | Sequence[str] | None = None
    stage: str | None = None
    offload: bool = False
    compile: bool = False

    @property
    def block(self) -> int:
        """The batch, where rounding errors matter.

        Raises:
            UsageError: Where it depends on the machine.
        """
        if self.batch == "auto":
            raise UsageError(
                "images cannot be drawn in blocks of 'auto': who is drawn beside whom decides on "
                "their last bits",
                hint="give a number",
            )
        return self.batch

    def prompts(self, rows: slice) -> list[str] | None:
        """The prompts of images `rows.start` to `rows.stop` - 1; None for no prompt."""
        if self.prompt is None:
            return None
        if isinstance(self.prompt, str):
            return [self.prompt] * (rows.stop - rows.start)
        return list(self.prompt[rows])

    def check(self) -> None:
        """Accept what can be right, whatever the backend and guides.

        Raises:
            UsageError: With everything that cannot.
        """
        problems = Problems()
        problems.errors += self._wrong_numbers()
        problems.errors += self._wrong_choices()
        with problems.collected():
            find_device(self.device)
        problems.check()

    def _wrong_numbers(self) -> Iterator[UsageError]:
        for name, usual in (("num", 4), ("steps", 25), ("batch", 8)):
            value = getattr(self, name)
            if name == "batch" and value == "auto":
                continue
            if not _is_whole(value) or value < 1:
                yield UsageError(
                    f"{name} must be a whole number from 1, not {value}",
                    hint=f"use {usual} for {name}, say",
                )
        if not _is_whole(self.seed):
            yield UsageError(f"seed must be a whole number, not {self.seed}", hint="use 0 for seed")
        if not 0.0 <= self.eta <= 1.0:
            yield UsageError(
                f"eta must lie between 0 and 1, not be {self.eta}",
                hint="0 adds no noise, 1 as much as ancestral sampling",
            )

    def _wrong_choices(self) -> Iterator[UsageError]:
        known = {
            "sampler": SamplerName,
            "through": Through,
            "conflicts": Conflicts,
            "precision": Precision,
        }
        for name, kind in known.items():
            choices = get_args(kind)
            if getattr(self, name) not in choices:
                yield UsageError(
                    f"{name} cannot be {getattr(self, name)!r}",
                    hint=f"choose one of {', '.join(choices)}",
                )
        if self.eta and self.sampler == "ddpm":
            yield UsageError(f"eta is {self.eta}, and sampler 'ddpm' has none", hint="use ddim")
        if self.prompt is None or isinstance(self.prompt, str):
            return
        each: Sequence[object] = self.prompt if isinstance(self.prompt, Sequence) else [self.prompt]
        if wrong := [prompt for prompt in each if not isinstance(prompt, str)]:
            yield UsageError(
                f"prompt must be a text, or one for each image, and {wrong[0]!r} is none",
                hint='as in prompt="3"',
            )
        elif each and len(each) != self.num:
            yield UsageError(
                f"{len(each)} prompts were given for {self.num} images",
                hint="give one for all, or one for each",
            )


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UsageError: Where there is none.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"torch knows no device {name!r}", hint="use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    try:
        torch.ones(1, device=device).item()  # `meta` can be asked for nothing
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = "it is not here, or computes nothing"
        if device.type == "cuda":  # of others torch speaks in backends and operators
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        raise UsageError(
            f"device {name!r} cannot be used: {reason}", hint=f"use {' or '.join(here)}"
        ) from error
    return device


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
