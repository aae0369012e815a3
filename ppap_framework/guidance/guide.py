"""A guide: a network, a target and a guidance scale."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import attrs
import torch
from torch import Tensor

from ppap_framework.border import maker
from ppap_framework.components import DiffusionBackend, GuidanceModel, Target, TaskLoss
from ppap_framework.errors import PluginError, PpapError, UsageError, calling
from ppap_framework.experts import BundleFile, ExpertSet, ScaleCurve, WantedExperts, choose_experts
from ppap_framework.noise import NoiseLevel
from ppap_framework.origin import Origin
from ppap_framework.predictions import widened
from ppap_framework.runtime import attending

Scale: TypeAlias = "float | str | None"
"""Guidance scale: a number multiplies the calibrated curve of the guide's experts, and is absolute
if they have none; "raw:NUMBER" is absolute; "auto" is the default multiplier of a curve; None
is "auto" if the experts are calibrated, and otherwise 4."""


Through: TypeAlias = Literal["noisy", "clean", "detached"]


def raw_scale(scale: Scale) -> float | None:
    """The number of "raw:NUMBER"; None for any other scale."""
    if not isinstance(scale, str) or not scale.startswith("raw:"):
        return None
    try:
        return float(scale[4:])
    except ValueError:
        return math.nan


def scale_problems(name: str, scale: Scale, interval: tuple[float, float]) -> Iterator[UsageError]:
    """Everything that is wrong with a guide's scale and interval; see `Guide`."""
    number = raw_scale(scale) if isinstance(scale, str) else scale
    if isinstance(scale, str) and number is None and scale != "auto":
        hint = "give a number, raw:NUMBER, or auto"
        yield UsageError(f"the scale {scale!r} is no number", hint=hint)
    elif number is not None and not math.isfinite(number):
        reason = f"the scale of guide {name!r} must be finite, not {scale}"
        yield UsageError(reason, hint="use a scale of 4, say")
    low, high = interval
    if not 0.0 <= low < high <= 1.0:
        hint = "an interval is t / T from low to high, between 0 and 1, such as 0.2-0.9"
        yield UsageError(f"guide {name!r} cannot act from {low} to {high}", hint=hint)


@attrs.frozen(kw_only=True, eq=False)
class Guide:
    """One energy E(x) for each image of a batch, lower if the guide sees its target.

    A guide is loaded; a plan then settles its scale and experts; drawing attaches the experts.

    Attributes:
        name: Name in messages and files.
        model: The network, in evaluation mode. Frozen parameters save memory.
        loss: Distance between the model's output and the target.
        target: The target; None for a guide that only teaches experts.
        scale: See `Scale`; 0 switches the guide off. A plan settles it to a number or
            "raw:NUMBER".
        interval: (lo, hi) with 0 <= lo < hi <= 1; the guide acts if lo <= t / T < hi.
        through: The image that it looks at, see `Sampling.through`; a tuple of one for each expert
            if they read different ones. A plan settles it.
        curve: s(l) in g = -scale s(l) dE/dx, as `learn.calibrate` finds it; None for 1. A plan
            takes that of the experts if none is set, and none for a scale "raw:NUMBER".
        experts: Experts that read noisy images in the model's place: while images are drawn, None
            or an attached `ExpertSet` of this model; before, see `experts.WantedExperts`.
        allow_mismatch: Accepted differences of a bundle: "backend", "resolution".
        noise_aware: Whether the model itself reads noise and takes no experts.
        offline: Raise instead of downloading a bundle.
        origin: Source of the model; None for an object of the user's own.
        loss_name: Name of the loss; `loss_options` are its options.
        target_source: The target as given; `target_is_default` if none was.

    UsageError if the scale, the interval or the experts are invalid.
    """

    name: str
    model: GuidanceModel
    loss: TaskLoss
    target: Target | None
    scale: Scale = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    through: Through | tuple[Through, ...] = "noisy"
    curve: ScaleCurve | None = None
    experts: WantedExperts = None
    allow_mismatch: tuple[str, ...] = ()
    noise_aware: bool = False
    offline: bool = False
    origin: Origin | None = None
    loss_name: str = ""
    loss_options: dict[str, Any] = attrs.field(factory=dict)
    target_source: str = ""
    target_is_default: bool = False

    def __attrs_post_init__(self) -> None:
        for problem in scale_problems(self.name, self.scale, self.interval):
            raise problem
        if isinstance(self.experts, ExpertSet) and self.experts.model is not self.model:
            reason = f"the experts of guide {self.name!r} are of another model"
            raise UsageError(reason, hint="make the guide of `experts.model`")

    @property
    def chosen(self) -> BundleFile | ExpertSet | None:
        """The experts, once a plan has chosen them."""
        assert self.experts is None or isinstance(self.experts, BundleFile | ExpertSet)
        return self.experts

    def with_experts(self, backend: DiffusionBackend, through: Through | None = "noisy") -> Guide:
        """The guide with its experts for a backend. It looks at the image `through`, else at what a
        bundle's experts read; errors as of `choose_experts`.
        """
        how: dict[str, Any] = {"noise_aware": self.noise_aware, "through": through}
        how |= {"allow_mismatch": self.allow_mismatch, "offline": self.offline}
        how |= {"options": self.compared_options(backend), "loss": self.loss_record}
        experts = choose_experts(self.experts, self.name, self.model, backend, **how)
        read: Any = experts.info.reads if isinstance(experts, BundleFile) else self.through
        return attrs.evolve(self, experts=experts, through=through or read)

    def compared_options(self, backend: DiffusionBackend) -> dict[str, Any]:
        """Options by which experts are compared, as JSON; those of a user's objects are unknown."""
        origins = {"guide": self.origin, "backend": backend.origin}.items()
        return {f"{of}.{k}": value for of, o in origins if o for k, value in o.compared.items()}

    @property
    def loss_record(self) -> dict[str, Any]:
        """Name and options of the loss, JSON."""
        return {"name": self.loss_name or type(self.loss).__name__, "options": self.loss_options}

    @property
    def factor(self) -> float:
        """The number in the scale, once a plan has settled it."""
        number = raw_scale(self.scale) if isinstance(self.scale, str) else self.scale
        assert number is not None
        return number

    def at(self, level: NoiseLevel) -> Callable[[Tensor, NoiseLevel], Any]:
        """The function that reads images of these levels until the next call; see `ExpertSet`."""
        return self.experts.at(level) if isinstance(self.experts, ExpertSet) else self.model

    def read(self, images: Tensor, level: NoiseLevel) -> Any:
        """The prediction of images, (B, 3, H, W), at B noise levels. A network that fails is a
        UsageError if it is the user's own, else a PluginError.
        """
        look = self.at(level)
        try:
            with calling(f"guide {self.name!r}", "forward", (images,), own=True):
                return look(images, level)
        except PpapError as error:
            if channels := re.search(r"to have (\d+) channels, but got 3 channels", error.message):
                hint = "convert images in its forward, as by images.mean(1, keepdim=True)"
                takes = f"takes {channels[1]} channel{'s'[: channels[1] != '1']}, and images have 3"
                raise type(error)(f"guide {self.name!r} {takes}", hint=hint) from error
            raise

    def scale_at(self, level: NoiseLevel) -> float | Tensor:
        """s at B noise levels: one for all, or (B, 1, 1, 1) on the CPU if there is a curve."""
        return self.factor if self.curve is None else self.factor * self.curve.at(level)

    def acts(self, time: float, level: NoiseLevel) -> bool:
        """Whether the guide acts at t / T = `time` on images of these noise levels."""
        low, high = self.interval
        return low <= time < high and bool(torch.as_tensor(self.scale_at(level)).any())

    @property
    def each_through(self) -> tuple[Through, ...]:
        """The images that it looks at, at one noise level or another."""
        return (self.through,) if isinstance(self.through, str) else self.through

    def looks(self, level: NoiseLevel) -> Through:
        """The image that it looks at, at B equal noise levels."""
        if isinstance(self.through, str):
            return self.through
        assert self.chosen is not None  # they read different images
        return self.through[self.chosen.ranges.owner(level.log_snr[0].item())]

    def rows(self, start: int, stop: int) -> Guide:
        """The guide of images `start` to `stop` - 1 of a run."""
        target = None if self.target is None else self.target.rows(start, stop)
        return attrs.evolve(self, target=target)

    def energy(self, images: Tensor, level: NoiseLevel) -> Tensor:
        """E of images, (B, 3, H, W), at B noise levels: (B,); errors as of `gradient`."""
        assert self.target is not None  # only teachers have none
        prediction, target = widened(self.read(images, level)), self.target.value.to(images.device)
        try:
            with torch.autocast(images.device.type, enabled=False):
                energy = self.loss.energy(prediction, target)
        except (IndexError, RuntimeError, PluginError) as error:
            if "out of bounds" not in str(error):
                raise
            reason = f"the target {self.target.label!r} of guide {self.name!r} is out of range"
            hint = "give an index below the number of its outputs"
            raise UsageError(reason, hint=hint) from error
        if energy.shape != images.shape[:1]:
            raise self._unfit(energy, "")
        return energy

    def _unfit(self, energy: Tensor, more: str) -> PluginError:
        return PluginError(
            f"the energy of guide {self.name!r} has shape {tuple(energy.shape)}{more}",
            hint="it must be (B,), one for each image, and differentiable in the images",
        )

    def gradient(self, images: Tensor, level: NoiseLevel) -> Tensor:
        """dE/dx, without the scale, of images (B, 3, H, W) in the variance-preserving form: of the
        same shape, possibly not finite; each image's gradient depends on this image alone.

        PluginError if the energies are not (B,) or do not depend on the images, UsageError if the
        target is an index beyond the model's outputs, and errors as of `read`.
        """
        with torch.enable_grad(), attending(images.device):
            x = images.detach().requires_grad_()
            energy = self.energy(x, level)
            gradient = None
            if energy.requires_grad:
                with calling(maker(self.model), "its backward pass"):
                    (gradient,) = torch.autograd.grad(energy.sum(), x, allow_unused=True)
        if gradient is None:
            raise self._unfit(energy, " and no gradient")
        return gradient
