r"""Stems: experts of a guide read the noisy latent x_t itself, through a small network each.

The guide's network wants an image, and the decoder of latents is large. A stem makes an image of a
noisy latent, of the size of the decoded one, which the guide shows to its network as any other:

    stem_i(x_t) = shuffle( K * (alpha x_t) + r_i(x_t, alpha) )

with alpha of x_t's noise level. K, one convolution of 3 x 3 for all experts, is the least-squares
linear decoder, found on the diffusion model's own latents and images; alpha x_t is the best guess
at the clean latent if latents are standard normal. r_i, three convolutions, is trained: it begins
as 0, and learns with the expert's other adapters what the untouched network says about the decoded
clean image. `shuffle` makes f x f pixels of 3 f^2 channels (Shi et al. 2016, arXiv 1609.05158).

Sampling then needs no decoder and no gradient of the denoiser.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppap_framework.author import (
    AssetError,
    ExpertAdapter,
    GuidanceModel,
    NoiseLevel,
    Target,
    TargetInput,
    UsageError,
)
from ppap_plugin_diffusers.options import StemOptions

__all__ = ["Stem", "StemAdapter", "make_stem"]

_RIDGE = 1e-4  # share of the mean diagonal, so that few or flat images have a solution, too


def make_stem(options: StemOptions) -> ExpertAdapter:
    """The adapter `stem`."""
    return StemAdapter(options)


@final
class Stem(nn.Module):
    """One expert's stem.

    Args:
        options: Shapes and width.
        seed: Of the first parameters.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, options: StemOptions, seed: int) -> None:
        super().__init__()
        channels, *small = options.latents
        self.size, width = options.images[1:], options.width
        self.factor = max(math.ceil(b / a) for a, b in zip(small, self.size, strict=True))
        made = 3 * self.factor**2
        self.register_buffer("weight", torch.zeros(made, channels, 3, 3))
        self.register_buffer("bias", torch.zeros(made))
        layers = (channels + 1, width), (width, width), (width, made)
        first, second, last = (nn.Conv2d(a, b, 3, padding=1) for a, b in layers)
        self.correction = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last)
        generator = torch.Generator("cpu").manual_seed(seed)
        for parameter in self.correction.parameters():
            nn.init.zeros_(parameter)
        for layer in (first, second):
            spread = (2.0 / layer.weight[0].numel()) ** 0.5
            nn.init.normal_(layer.weight, std=spread, generator=generator)
        self.requires_grad_(False)

    def forward(self, x_t: Tensor, level: NoiseLevel, corrected: bool = True) -> Tensor:
        """Images, (B, 3, H, W), of latents (B, C, h, w) at B noise levels, with or without r_i."""
        alpha = level.alpha.to(x_t)[:, None, None, None]
        squares = F.conv2d(alpha * x_t, self.weight, self.bias, padding=1)
        if corrected:
            plane = alpha.expand(-1, 1, *x_t.shape[2:])
            squares = squares + self.correction(torch.cat([x_t, plane], 1))
        return self._sized(F.pixel_shuffle(squares, self.factor), self.size)

    def fit(self, latents: Tensor, images: Tensor) -> None:
        """Find K on B clean latents, (B, C, h, w), and their images, (B, 3, H, W)."""
        images = self._sized(images, [self.factor * side for side in latents.shape[2:]])
        count = self.weight[0].numel() + 1
        gram = torch.zeros(count, count, dtype=torch.float64)
        product = torch.zeros(count, len(self.weight), dtype=torch.float64)
        pairs = zip(torch.split(latents, 1), torch.split(images, 1), strict=True)
        for z, picture in pairs:
            patches = F.unfold(z.double().cpu(), 3, padding=1)[0]  # (9 C, h w)
            patches = torch.cat([patches, patches.new_ones(1, patches.shape[1])])
            squares = F.pixel_unshuffle(picture.double().cpu(), self.factor)[0].flatten(1)
            gram += patches @ patches.T
            product += patches @ squares.T
        ridge = _RIDGE * gram.diagonal().mean() * torch.eye(count, dtype=torch.float64)
        solution = torch.linalg.solve(gram + ridge, product).T
        self.weight.copy_(solution[:, :-1].reshape(self.weight.shape))
        self.bias.copy_(solution[:, -1])

    @staticmethod
    def _sized(images: Tensor, size: Any) -> Tensor:
        if tuple(images.shape[2:]) == tuple(size):
            return images
        return F.interpolate(images, tuple(size), mode="bilinear", antialias=True)


@final
class _Reader(GuidanceModel):
    """A guide that looks at noisy latents through the stem of the active expert; without one, it
    sees the least-squares image.
    """

    def __init__(self, model: GuidanceModel, adapter: StemAdapter) -> None:
        super().__init__()
        self.model, self.network, self.stems = model, model.network, adapter.stems
        self._adapter = [adapter]  # no module, and no attribute of one

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        """The prediction of latents, (B, C, h, w), at B noise levels."""
        assert level is not None  # experts always know theirs
        active = self._adapter[0].active
        stem = self.stems[active or 0]
        return self.model(stem(images, level, active is not None), level)

    def target(self, given: TargetInput) -> Target:
        """That of the guide."""
        return self.model.target(given)


@final
class StemAdapter(ExpertAdapter):
    """N stems, one for each expert; the guide's network is left as it is.

    Attributes:
        stems: The stems.
        active: Index of the expert that reads; None for none.
    """

    stems: nn.ModuleList
    active: int | None

    def __init__(self, options: StemOptions) -> None:
        self._options, self._trains = options, False
        self.stems, self.active = nn.ModuleList(), None

    def attach(self, network: nn.Module, experts: int) -> None:
        if self.stems:
            raise ValueError("the adapter is attached already; detach it first")
        if experts < 1:
            raise UsageError(f"cannot make {experts} experts", hint="make at least one")
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        stems = (Stem(self._options, seed) for seed in range(experts))
        self.stems = nn.ModuleList(stems).to(device)

    def student(self, model: GuidanceModel) -> GuidanceModel:
        """The guide, which reads latents."""
        return _Reader(model, self)

    @torch.no_grad()
    def prepare(self, states: Tensor, images: Tensor) -> None:
        """Find K."""
        self._stem(0).fit(states, images)
        for index in range(len(self.stems)):
            self._stem(index).weight.copy_(self._stem(0).weight)
            self._stem(index).bias.copy_(self._stem(0).bias)

    def activate(self, index: int | None) -> None:
        if self._trains:
            raise RuntimeError("experts cannot be merged while one is being trained")
        if index is not None:
            self._stem(index)
        self.active = index

    def training(self, index: int) -> contextlib.AbstractContextManager[None]:
        return self._training(self._stem(index))

    @contextlib.contextmanager
    def _training(self, stem: Stem) -> Iterator[None]:
        if self._trains:
            raise RuntimeError("the adapter trains an expert already")
        stem.requires_grad_(True)
        self.active, self._trains = [*self.stems].index(stem), True
        try:
            yield
        finally:
            stem.requires_grad_(False)
            self.active, self._trains = None, False

    def parameters(self, index: int) -> Iterator[nn.Parameter]:
        return self._stem(index).parameters()

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors of each stem; they share its memory."""
        return dict(self.stems.state_dict())

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        kinds = [
            {name: (tuple(x.shape), x.is_floating_point()) for name, x in each.items()}
            for each in (own, state)
        ]
        if different := sorted({name for name, _ in kinds[0].items() ^ kinds[1].items()}):
            fault = f"the stems do not fit: {', '.join(different[:3])}"
            raise AssetError(fault, hint="they are for other latents, or have other options")
        self.activate(None)
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def detach(self) -> None:
        self.activate(None)
        self.stems = nn.ModuleList()

    def _stem(self, index: int) -> Stem:
        if not 0 <= index < len(self.stems):
            raise IndexError(f"there is no expert {index} of {len(self.stems)}")
        stem: Any = self.stems[index]
        assert isinstance(stem, Stem)
        return stem
