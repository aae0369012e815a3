"""The components that plugins supply: diffusion backends, guides, task losses and expert adapters.

Images are float tensors (B, 3, H, W) in [-1, 1]. Timesteps are those of the stage's base schedule,
int64; 0 is the least noisy. A method is abstract, final, or has a default that its docstring
states. Implementers set the attributes of a class.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, final

import attrs
import numpy as np
import torch
from attrs.validators import ge, gt, instance_of, le
from PIL import Image
from torch import Tensor, nn

from ppap_framework.errors import UsageError
from ppap_framework.known import Known
from ppap_framework.noise import NoiseLevel, NoiseSchedule, Prediction
from ppap_framework.origin import Origin
from ppap_framework.pixels import from_uint8
from ppap_framework.predictions import squared_difference

__all__ = [
    "CascadeSampling",
    "CascadedStage",
    "DiffusionBackend",
    "ExpertAdapter",
    "GuidanceModel",
    "Prediction",
    "Stage",
    "Target",
    "TargetInput",
    "TaskLoss",
    "VarianceKind",
]

VarianceKind = Literal["learned_range", "fixed_large", "fixed_small"]
"""The variance of p(x_{t-1} | x_t): Nichol and Dhariwal 2021 (arXiv 2102.09672), eq. 15; beta_t and
the posterior variance (Ho et al. 2020, section 3.2)."""


class Stage(abc.ABC):
    """One diffusion process of a backend: a denoiser, its schedule, and the shape of its images.

    Attributes:
        name: Name in messages and files, such as "base" or "upsampler".
        image_shape: (3, H, W), the shape of its images.
        latent_shape: (C, h, w) of x_t, if that is a latent, of which `decode` makes images; None if
            x_t is an image.
        schedule: The base schedule; `denoise` gets its timesteps.
        variance: How the variance of an ancestral step is chosen.
        final_abar: abar that the last step leads to, less than 1 if some noise is left.
        network: The denoising network, never called; for devices, counting and hashing.
    """

    name: str
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int] | None = None
    final_abar: float = 1.0
    schedule: NoiseSchedule
    variance: VarianceKind
    network: nn.Module

    @abc.abstractmethod
    def denoise(self, x_t: Tensor, t: Tensor, condition: Any) -> Prediction:
        """Predict in float32, with `variance` if and only if this stage's is "learned_range".

        From noisy images x_t, (B, C, H, W), float32; base timesteps t in [0, T), (B,), int64, or of
        a `FlowSchedule` perhaps fractional; and what `DiffusionBackend.encode` made for these B.
        """

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of x_t."""
        return self.latent_shape or self.image_shape

    def timesteps(self, steps: int) -> Sequence[float] | None:
        """Rising base timesteps of a walk in so many steps; by default None: evenly spaced."""
        return None

    def clip(self, x0: Tensor) -> Tensor:
        """Predicted clean images, (B, C, H, W), as samplers use them: by default in [-1, 1]."""
        return x0.clamp(-1.0, 1.0)

    def decode(self, x0: Tensor) -> Tensor:
        """Images of clean states, (B, 3, H, W), float32, differentiably; by default the states."""
        return x0

    def encode(self, images: Tensor) -> Tensor:
        """Clean states, (B, C, h, w), float32, that `decode` makes these images of, or nearly; by
        default the images, (B, 3, H, W) in [-1, 1], and UsageError if x_t is a latent. Experts
        learn from latents found so.
        """
        if self.latent_shape is not None:
            reason = f"stage {self.name!r} draws latents, and cannot make them of a picture"
            raise UsageError(reason, hint="its author implements `Stage.encode`")
        return images

    def evaluations(self, condition: Any) -> int:
        """Network evaluations per image in one `denoise`; by default one. Only for counting."""
        return 1


@final
@attrs.frozen(kw_only=True)
class CascadeSampling:
    """DDIM sampling of a later stage, whatever the sampler of the first one.

    `respacing` says which base timesteps are kept, as `diffusion.space_timesteps` reads it, such as
    "fast27"; `eta` is that of DDIM, in [0, 1]; `temperature` is the factor of the initial noise.
    """

    respacing: str = attrs.field(validator=instance_of(str))
    eta: float = attrs.field(default=0.0, validator=[ge(0.0), le(1.0)])
    temperature: float = attrs.field(default=1.0, validator=gt(0.0))


def check_readable(stage: Stage, hint: str) -> None:
    """UsageError if x_t is a latent, which guides without experts cannot look at."""
    if stage.latent_shape is not None:
        reason = f"stage {stage.name!r} draws latents {stage.latent_shape}, and guides read images"
        raise UsageError(reason, hint=hint)


class CascadedStage(Stage):
    """A stage that refines the images of the one before it, such as an upsampler (Ho et al. 2021,
    arXiv 2106.15282). No guide steers it.
    """

    sampling: CascadeSampling

    @abc.abstractmethod
    def conditioned(self, condition: Any, images: Tensor) -> Any:
        """The condition of `denoise`, from that of `DiffusionBackend.encode` and the images of the
        previous stage, (B, 3, H, W) in [-1, 1].
        """


class DiffusionBackend(abc.ABC):
    """A diffusion model."""

    stages: tuple[Stage, ...]
    """Stages in running order: the one that guides steer, then any `CascadedStage`s."""

    origin: Origin | None = None
    """Where it is from; `run.backend` sets it."""

    device: torch.device | None = None
    """The device of a run for which the user names none; None for a GPU if there is one."""

    @abc.abstractmethod
    def encode(self, prompts: Sequence[str] | None, batch: int) -> Any:
        """The condition of `Stage.denoise` for `batch` images, of as many prompts, or None for the
        unconditional one; UsageError if the model takes no prompts and gets some.
        """

    def inpainting(self, condition: Any, known: Known) -> Any:
        """The condition for networks that read the known pixels themselves, of a picture of the
        last stage's size; by default the condition of `encode`, as it is.
        """
        return condition


@final
@attrs.frozen(kw_only=True, eq=False)
class TargetInput:
    """A target as the user gave it, decoded: exactly one of text, image and array is set.

    Attributes:
        text: Words, a name or a number, as typed.
        image: Upright picture: RGB with 8 bits, single-channel with 16 (mode "I;16"), or indexed.
        array: Numbers that are no picture: (H, W) or (C, H, W), where NaN stands for unknown, or a
            finite vector.
        source: Where it came from, for messages.
        is_index: Whether the text is an index that was given as a number, so never a name.
        transparent: Whether the picture was transparent in places, which are white now.
    """

    text: str | None = None
    image: Image.Image | None = None
    array: Tensor | None = None
    source: str = ""
    is_index: bool = False
    transparent: bool = False

    def __attrs_post_init__(self) -> None:
        if sum(part is not None for part in (self.text, self.image, self.array)) != 1:
            raise ValueError("a target is exactly one of text, image and array")

    def number(self) -> float:
        """The number that was typed; UsageError if it is none."""
        try:
            return float(self.text or "")
        except ValueError:
            typed = self.text or self.source
            raise UsageError(f"{typed!r} is no number", hint="type a number") from None

    def pixels(self) -> Tensor:
        """The picture as (3, H, W), float32 in [-1, 1]; ValueError if the target is none."""
        if self.image is None:
            raise ValueError("the target is no picture")
        if self.image.mode == "I;16":
            grey = torch.from_numpy(np.asarray(self.image).astype(np.float32) / 65_535.0)
            return (2.0 * grey - 1.0).expand(3, -1, -1)
        return from_uint8(np.array(self.image.convert("RGB"))[None])[0]


@final
@attrs.frozen(kw_only=True, eq=False)
class Target:
    """The target of a guide: the value that its loss compares with, (B, ...), or (1, ...) for every
    image of a batch; a label of a few words for grids and logs; and a picture, (3, H, W) in
    [-1, 1], to show beside the results, or None.
    """

    value: Tensor
    label: str
    picture: Tensor | None = None

    def rows(self, start: int, stop: int) -> Target:
        """The target of images `start` to `stop` - 1 of a batch."""
        one = self.value.shape[0] == 1
        return self if one else attrs.evolve(self, value=self.value[start:stop])


class GuidanceModel(nn.Module, abc.ABC):
    """An off-the-shelf network that looks at images, with its resizing, normalization and names.

    It knows nothing of experts, guidance scale or sign. It must be differentiable in the images
    and treat each image of a batch independently in evaluation mode.
    """

    network: nn.Module
    """The network itself, to which expert adapters attach."""

    @abc.abstractmethod
    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        """The prediction, in the form that the task's losses expect: for classification logits
        (B, K), for depth (B, h, w), for segmentation logits (B, K, h, w).

        Images are nominally in [-1, 1] and of any size; noisy ones are in the variance-preserving
        form. Guides that are noise-aware get B noise levels; others ignore them.
        """

    @abc.abstractmethod
    def target(self, given: TargetInput) -> Target:
        """Make a target from the user's input, or raise UsageError that names what would do."""

    def render(self, prediction: Any, images: Tensor) -> Tensor:
        """Draw a prediction: (B, 3, h, w) in [-1, 1], of any one size; by default a map, (B, h, w)
        or (B, 1, h, w), in grey from its least to its largest value, else the images as they are.
        """
        if isinstance(prediction, Tensor) and prediction.ndim == 4 and prediction.shape[1] == 1:
            prediction = prediction[:, 0]
        if not isinstance(prediction, Tensor) or prediction.ndim != 3:
            return images
        low, high = prediction.amin((1, 2), keepdim=True), prediction.amax((1, 2), keepdim=True)
        grey: Tensor = (prediction - low) / (high - low).clamp_min(torch.finfo(high.dtype).tiny)
        return (2.0 * grey - 1.0)[:, None].expand(-1, 3, -1, -1)

    def describe(self, prediction: Any) -> list[str]:
        """A few words on each of the B predictions, such as "red cube 0.97", or an empty list; by
        default the index of the largest of K > 1 numbers, (B, K), and nothing for anything else.
        """
        if isinstance(prediction, Tensor) and prediction.ndim == 2 and prediction.shape[1] > 1:
            return [f"most: {index}" for index in prediction.argmax(1).tolist()]
        return []


class TaskLoss(abc.ABC):
    """A distance between predictions: guidance descends it and experts learn from it."""

    def __init__(self, options: None = None) -> None:  # a class without options is its own factory
        super().__init__()

    @abc.abstractmethod
    def energy(self, prediction: Any, target: Tensor) -> Tensor:
        """Distance of B predictions of `GuidanceModel.forward` from targets, (B, ...) or (1, ...):
        (B,), lower is closer; a mean over pixels.
        """

    def transfer(self, student: Any, teacher: Any) -> Tensor:
        """Distance of each student's prediction from its teacher's, (B,); by default the mean
        squared difference, which requires the same form and size.
        """
        return squared_difference(student, teacher)

    def metrics(self, prediction: Any, target: Tensor) -> dict[str, Tensor]:
        """Named figures for people, each (B,); none by default."""
        return {}


class ExpertAdapter(abc.ABC):
    """A few trainable parameters for each of N experts, attached to a frozen network.

    Several may be attached to one network if they change different tensors. Each is activated by
    itself, and their `training` contexts nest in any order. The network may be moved to another
    device between calls, but its tensors must not be replaced while any is attached. An index
    without an expert raises IndexError.
    """

    @abc.abstractmethod
    def attach(self, network: nn.Module, experts: int) -> None:
        """Make the parameters of N experts, each equal to no change; the network is not touched.
        UsageError if nothing can be adapted, or another adapter changes the same tensors.
        """

    def student(self, model: GuidanceModel) -> GuidanceModel:
        """The guide that experts read noisy states with, once attached to the network of `model`;
        by default `model` itself. An adapter for latents makes one that reads latents.
        """
        return model

    def prepare(self, states: Tensor, images: Tensor) -> None:  # noqa: B027  # not abstract
        """Learn from B clean latents, (B, C, h, w), and their images, (B, 3, H, W), before any
        expert is trained; by default nothing.
        """

    @abc.abstractmethod
    def activate(self, index: int | None) -> None:
        """Merge one expert into the weights, in place; None restores the network bit for bit.

        The network then costs what it cost before, plus at most one copy of the adapted tensors.
        RuntimeError while an expert of this network is being trained.
        """

    @abc.abstractmethod
    def training(self, index: int) -> AbstractContextManager[None]:
        """A context in which one expert is unmerged and trainable; only its own buffers change.

        Only the expert's parameters require gradients; the caller chooses the training mode.
        Before and afterwards no expert is merged. RuntimeError if this adapter trains one already.
        """

    @abc.abstractmethod
    def parameters(self, index: int) -> Iterator[nn.Parameter]:
        """The trainable parameters of one expert, always the same objects."""

    @abc.abstractmethod
    def state_dict(self) -> Mapping[str, Tensor]:
        """All experts' tensors as "INDEX.NAME"; NAME begins with that of an original tensor."""

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load all of a `state_dict`, or nothing and raise AssetError that says what differs. No
        expert is merged afterwards.
        """

    @abc.abstractmethod
    def detach(self) -> None:
        """Leave the network as it was found. The adapter can then be attached again."""
