"""The components that plugins supply: diffusion backends, guides, task losses and expert adapters.

Conventions, the same everywhere:

- Images are float tensors (B, 3, H, W) in [-1, 1].
- Timesteps are those of the stage's base schedule, int64, 0 being the least noisy.
- In a backend of several stages, each passes its images to the next; guides steer the first.

A method is abstract, final, or has a default that its docstring states; nobody asks whether an
object has it.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, final

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ppap_framework.noise import NoiseLevel, NoiseSchedule
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
"""How the variance of p(x_{t-1} | x_t) is chosen: Nichol and Dhariwal 2021 (arXiv 2102.09672), eq.
15, for the first; beta_t and the posterior variance (Ho et al. 2020, section 3.2) for the
others."""


@final
@attrs.frozen(eq=False)
class Prediction:
    r"""What a denoiser says about x_t = alpha x_0 + sigma eps: one of eps and x0 is stored, the
    other follows from it.

    Make it with `from_eps`, `from_x0` or `from_v`.

    Attributes:
        x_t: (B, C, H, W), the noisy image.
        alpha: (B, 1, 1, 1), the factor of the clean image at the timestep of each image,
            above 0; best float64, since x0 and eps divide by it.
        sigma: (B, 1, 1, 1), likewise, the standard deviation of the noise there.
        variance: (B, C, H, W) or None: the network's learned-range output v, nominally in [-1, 1],
            still to be decoded by the respaced process, on whose betas its meaning depends.
    """

    x_t: Tensor
    alpha: Tensor
    sigma: Tensor
    _eps: Tensor | None
    _x0: Tensor | None
    variance: Tensor | None = None

    @classmethod
    def from_eps(
        cls, eps: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, variance: Tensor | None = None
    ) -> Prediction:
        """From the predicted noise, (B, C, H, W)."""
        return cls(x_t, alpha, sigma, eps, None, variance)

    @classmethod
    def from_x0(
        cls, x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, variance: Tensor | None = None
    ) -> Prediction:
        """From the predicted clean image, (B, C, H, W)."""
        return cls(x_t, alpha, sigma, None, x0, variance)

    @classmethod
    def from_v(
        cls, v: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, variance: Tensor | None = None
    ) -> Prediction:
        """From v = alpha eps - sigma x0 (Salimans and Ho 2022, arXiv 2202.00512, appendix D), (B,
        C, H, W).
        """
        x0 = alpha.to(x_t) * x_t - sigma.to(x_t) * v
        return cls(x_t, alpha, sigma, None, x0, variance)

    @property
    def eps(self) -> Tensor:
        """(B, C, H, W), the predicted noise: (x_t - alpha x0) / sigma."""
        if self._eps is not None:
            return self._eps
        assert self._x0 is not None
        if not self.alpha.all():  # zero terminal SNR: x_t is noise alone
            return (self.x_t - self.alpha.to(self.x_t) * self._x0) / self.sigma.to(self.x_t)
        x_t, ratio = self.x_t, self.sigma / self.alpha
        return ((1.0 / self.alpha).to(x_t) * x_t - self._x0) / ratio.to(x_t)

    @property
    def x0(self) -> Tensor:
        """(B, C, H, W), the predicted clean image, not clipped: (x_t - sigma eps) / alpha."""
        if self._x0 is not None:
            return self._x0
        assert self._eps is not None
        x_t, ratio = self.x_t, self.sigma / self.alpha
        return (1.0 / self.alpha).to(x_t) * x_t - ratio.to(x_t) * self._eps

    def with_x0(self, x0: Tensor) -> Prediction:
        """The same x_t and variance with another x0, from which eps now follows."""
        return attrs.evolve(self, eps=None, x0=x0)

    def with_eps(self, eps: Tensor) -> Prediction:
        """The same x_t and variance with another eps, from which x0 now follows."""
        return attrs.evolve(self, eps=eps, x0=None)

    def detach(self) -> Prediction:
        """The same without a graph."""
        eps, x0, variance = (
            None if part is None else part.detach() for part in (self._eps, self._x0, self.variance)
        )
        return attrs.evolve(self, x_t=self.x_t.detach(), eps=eps, x0=x0, variance=variance)


class Stage(abc.ABC):
    """One diffusion process of a backend: a denoiser, its schedule, and the shape of what it
    draws.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """How the stage is called in messages and files, such as "base" or "upsampler"."""

    @property
    @abc.abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of x_t; C is 3."""

    @property
    @abc.abstractmethod
    def schedule(self) -> NoiseSchedule:
        """The base schedule, in whose timesteps `denoise` is asked."""

    @property
    @abc.abstractmethod
    def variance(self) -> VarianceKind:
        """How the variance of an ancestral step is chosen."""

    @property
    @abc.abstractmethod
    def network(self) -> nn.Module:
        """The denoising network, for moving between devices, counting and hashing; never for
        calling.
        """

    @abc.abstractmethod
    def denoise(self, x_t: Tensor, t: Tensor, condition: Any) -> Prediction:
        """Predict the clean image and the noise.

        Args:
            x_t: (B, C, H, W), float32 noisy images.
            t: (B,), int64 base timesteps in [0, T).
            condition: What `DiffusionBackend.encode` made for these B images.

        Returns:
            float32, with `variance` set if and only if this stage's is "learned_range".
        """

    def evaluations(self, condition: Any) -> int:
        """How often the network looks at each image for one `denoise` with that condition: once, if
        a stage does not say otherwise. Only for counting.

        Args:
            condition: What `DiffusionBackend.encode` made.
        """
        return 1


@final
@attrs.frozen(kw_only=True)
class CascadeSampling:
    """How a later stage is sampled, by DDIM, whatever was asked of the first one.

    Attributes:
        respacing: Which base timesteps are kept, as `sampling.space_timesteps` reads it, such as
            "fast27".
        eta: Of DDIM, in [0, 1]: 0 is deterministic.
        temperature: The factor of the initial noise.
    """

    respacing: str = attrs.field(validator=attrs.validators.instance_of(str))
    eta: float = attrs.field(
        default=0.0, validator=[attrs.validators.ge(0.0), attrs.validators.le(1.0)]
    )
    temperature: float = attrs.field(default=1.0, validator=attrs.validators.gt(0.0))


class CascadedStage(Stage):
    """A stage that goes on from what the one before it drew, such as an upsampler (Ho et al. 2021,
    arXiv 2106.15282). No guide steers it.
    """

    @property
    @abc.abstractmethod
    def sampling(self) -> CascadeSampling:
        """How it is sampled."""

    @abc.abstractmethod
    def conditioned(self, condition: Any, images: Tensor) -> Any:
        """The condition that `denoise` wants for these images.

        Args:
            condition: What `DiffusionBackend.encode` made for them.
            images: (B, 3, H, W) in [-1, 1], what the stage before drew.
        """


class DiffusionBackend(abc.ABC):
    """A diffusion model: one or more stages, of which the first is the one that guides steer."""

    @property
    @abc.abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """In the order in which they run: one, and any number of `CascadedStage`s behind it."""

    @abc.abstractmethod
    def encode(self, prompts: Sequence[str] | None, batch: int) -> Any:
        """Make the condition that `Stage.denoise` wants for `batch` images; no prompts is the
        unconditional one.

        Args:
            prompts: `batch` texts, or None.

        Raises:
            UsageError: Where the model takes no prompts and got some.
        """


@final
@attrs.frozen(kw_only=True, eq=False)
class TargetInput:
    """What a user gave as target, decoded: exactly one of these is set.

    Attributes:
        text: Words, a name or a number, as typed.
        image: A picture, upright, RGB with 8 bits or single-channel with 16 (mode "I;16"), indexed
            pictures as they are.
        array: Anything numeric that is no picture: (H, W), (C, H, W) or a vector. But for vectors
            NaN stands for what is not known, infinities having become that.
        source: Where it came from, for messages.
    """

    text: str | None = None
    image: Image.Image | None = None
    array: Tensor | None = None
    source: str = ""

    def __attrs_post_init__(self) -> None:
        if sum(part is not None for part in (self.text, self.image, self.array)) != 1:
            raise ValueError("a target is exactly one of text, image and array")

    def pixels(self) -> Tensor:
        """The picture as images are: (3, H, W), float32 in [-1, 1], all channels alike where it is
        grey.

        Raises:
            ValueError: Where the target is no picture.
        """
        if self.image is None:
            raise ValueError("the target is no picture")
        if self.image.mode == "I;16":
            grey = torch.from_numpy(np.asarray(self.image).astype(np.float32) / 65_535.0)
            return (2.0 * grey - 1.0).expand(3, -1, -1)
        return from_uint8(np.array(self.image.convert("RGB"))[None])[0]


@final
@attrs.frozen(kw_only=True, eq=False)
class Target:
    """What a guide is aimed at, in the form that its loss compares with.

    Attributes:
        value: (B, ...) or (1, ...), which serves every image of a batch.
        label: A few words for grids and logs.
        picture: (3, H, W) in [-1, 1] to show beside the results, or None.
    """

    value: Tensor
    label: str
    picture: Tensor | None = None

    def rows(self, start: int, stop: int) -> Target:
        """The target of images `start` to `stop` - 1 of a batch."""
        return (
            self if self.value.shape[0] == 1 else attrs.evolve(self, value=self.value[start:stop])
        )

    def to(self, device: torch.device | str) -> Target:
        """The same target with its value on `device`."""
        return attrs.evolve(self, value=self.value.to(device))


class GuidanceModel(nn.Module, abc.ABC):
    """An off-the-shelf network that looks at images, with what it needs around it: resizing,
    normalisation, names.

    It knows nothing of experts, guidance scale or sign. It must be differentiable in the images
    and treat each image of a batch by itself in evaluation mode.
    """

    @property
    @abc.abstractmethod
    def network(self) -> nn.Module:
        """The network itself, to which expert adapters attach."""

    @abc.abstractmethod
    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        """Look at images.

        Args:
            images: (B, 3, H, W), nominally in [-1, 1], of any size; noisy ones in the
                variance-preserving form.
            level: B noise levels, for guides that are noise-aware; others ignore it.

        Returns:
            The prediction, as the guide's task losses expect it: for classification logits (B, K),
            for depth (B, h, w), larger is farther or nearer as the loss says, for segmentation
            logits (B, K, h, w).
        """

    @abc.abstractmethod
    def target(self, given: TargetInput) -> Target:
        """Make a target of what the user gave.

        Raises:
            UsageError: Where it cannot be one; the message names it and what would do.
        """

    def render(self, prediction: Any, images: Tensor) -> Tensor:
        """Show a prediction to people: (B, 3, h, w) in [-1, 1], of any one size.

        By default a map, (B, h, w) or (B, 1, h, w), in grey from its least to its largest value,
        and the images for any other prediction.

        Args:
            prediction: What `forward` returned for `images`.
            images: (B, 3, H, W) in [-1, 1].
        """
        if not isinstance(prediction, Tensor):
            return images
        if prediction.ndim == 4 and prediction.shape[1] == 1:
            prediction = prediction[:, 0]
        if prediction.ndim != 3:
            return images
        low, high = prediction.amin((1, 2), keepdim=True), prediction.amax((1, 2), keepdim=True)
        grey: Tensor = (prediction - low) / (high - low).clamp_min(torch.finfo(high.dtype).tiny)
        return (2.0 * grey - 1.0)[:, None].expand(-1, 3, -1, -1)

    def describe(self, prediction: Any) -> list[str]:
        """A few words on each of the B predictions, such as "red cube 0.97"; empty if there is
        nothing short to say.

        By default the index of the largest of several numbers, (B, K), and nothing for any other
        prediction.
        """
        if isinstance(prediction, Tensor) and prediction.ndim == 2 and prediction.shape[1] > 1:
            return [f"most: {index}" for index in prediction.argmax(1).tolist()]
        return []


class TaskLoss(abc.ABC):
    """A distance between predictions: what guidance descends and what experts learn from."""

    @abc.abstractmethod
    def energy(self, prediction: Any, target: Tensor) -> Tensor:
        """How far each prediction is from its target.

        Args:
            prediction: Of B images.
            target: `Target.value`, (B, ...) or (1, ...).

        Returns:
            (B,), lower is closer; a mean over pixels where there are pixels.
        """

    def transfer(self, student: Any, teacher: Any) -> Tensor:
        """How far each student's answer is from its teacher's: (B,).

        By default the mean squared difference of their numbers, which asks for answers of the same
        form and size.
        """
        return squared_difference(student, teacher)

    def metrics(self, prediction: Any, target: Tensor) -> dict[str, Tensor]:
        """Figures for people by name, each (B,); none by default."""
        return {}


class ExpertAdapter(abc.ABC):
    """A few trainable parameters for each of N experts, attached to a frozen network that they
    leave as it was.

    Several may be attached to one network, where they change different tensors. Each is activated
    by itself, and their `training` contexts nest in any order. The network may be moved to another
    device between calls, but its tensors must not be exchanged for others while any is attached.
    """

    @abc.abstractmethod
    def attach(self, network: nn.Module, experts: int) -> None:
        """Find what to adapt in `network` and make the parameters of `experts` experts, each equal
        to no change. The network itself is not touched.

        Raises:
            UsageError: Where nothing in the network can be adapted, or another adapter changes it
                already.
        """

    @abc.abstractmethod
    def activate(self, index: int | None) -> None:
        """Merge one expert into the network's weights, in place; None restores the untouched
        network bit for bit, by copying.

        The network then costs what it cost before, and keeps beside itself at most one copy of the
        tensors that are adapted.

        Raises:
            IndexError: Where there is no such expert.
            RuntimeError: While an expert of this network is being trained.
        """

    @abc.abstractmethod
    def training(self, index: int) -> AbstractContextManager[None]:
        """A context in which one expert lives unmerged and gradients reach its parameters; only
        its own buffers move.

        Within, those of the network's parameters that ask for gradients are the expert's; whether
        the network is in training mode is the caller's choice. Before and afterwards this adapter
        leaves the network untouched: an expert that was merged no longer is.

        Raises:
            IndexError: Where there is no such expert.
            RuntimeError: Where this adapter trains one already.
        """

    @abc.abstractmethod
    def parameters(self, index: int) -> Iterator[nn.Parameter]:
        """The trainable parameters of one expert, the same objects at all times."""

    @abc.abstractmethod
    def state_dict(self) -> Mapping[str, Tensor]:
        """Everything that all experts hold, under names made of those that the network had before
        `attach`, each beginning with the expert's index and a dot.
        """

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave, all or nothing; a merged expert no longer is.

        Raises:
            AssetError: Where names or shapes differ; the message says which.
        """

    @abc.abstractmethod
    def detach(self) -> None:
        """Leave the network as it was found. The adapter can then be attached anew."""
