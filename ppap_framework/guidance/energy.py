r"""Guidance by energies: g = -sum_k s_k dE_k/dx_t stands for the gradient of log p(target | x_t).

    noisy: g = -sum_k s_k dE_k(x_t)/dx_t
        each guide looks at the noisy image and is differentiated alone (Dhariwal and Nichol 2021,
        arXiv 2105.05233; for guides with experts Go et al. 2023, arXiv 2212.05973)
    clean: g = -(dx0/dx_t)^T sum_k s_k dE_k(x0)/dx0
        each guide looks at the predicted clean image x0 = x0(x_t), not clipped, and one backward
        pass through the denoiser serves all of them (Chung et al. 2023, arXiv 2209.14687; Bansal
        et al. 2023, arXiv 2302.07121)
    detached: g = -sum_k s_k dE_k(x0)/dx0
        each guide looks at x0, clipped to [-1, 1], and the denoiser is not differentiated (Ma et
        al. 2024, arXiv 2310.11311): g is the gradient at x0, applied at x_t

If x_t is a latent, guides look at its decoded image D(x0), and (dD/dx0)^T is applied as well.

Components of the pulls -s_k dE_k that oppose another guide can be removed (`without_conflicts`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

import attrs
import torch
from torch import Tensor

from ppap_framework.components import Prediction
from ppap_framework.errors import PluginError, calling
from ppap_framework.guidance.guide import Guide, Through
from ppap_framework.guidance.moments import Moments
from ppap_framework.guidance.statistics import Tally
from ppap_framework.noise import NoiseLevel
from ppap_framework.runtime import attending

Conflicts: TypeAlias = Literal["keep", "remove"]


@attrs.frozen(eq=False)
class EnergyGuidance:
    """Several guides at once, as the `Guidance` of one `ppap_framework.diffusion.trajectory`.

    Gradients that are not finite are left out and counted, image by image.

    Attributes:
        guides: Any number.
        normalize: Scale each guide's gradient of each image to a root mean square of 1, so that a
            guidance scale is a change of eps in units of sigma. Through "clean", the denoiser then
            rotates the sum of the gradients and keeps its length. A gradient of 0 stays 0.
        conflicts: "keep" or "remove" gradient components that oppose another guide; those that are
            led back through a denoiser or decoder are compared among themselves, at the image.
        evaluations: Forward passes of the denoiser's network for one `denoise`, for counting.
        tally: Counts; several guidances may share one.
        moments: Decay rates of each guide's `Moments`; None for the plain gradients.
        decode: `Stage.decode`, which makes images of the predicted clean states.
        every: Guides look at the first of so many steps that they act at; the others repeat g.
    """

    guides: Sequence[Guide]
    normalize: bool = False
    conflicts: Conflicts = "keep"
    evaluations: int = 1
    tally: Tally = attrs.field(factory=Tally)
    moments: tuple[float, float] | None = None
    decode: Callable[[Tensor], Tensor] = lambda x0: x0
    every: int = 1
    _moments: dict[int, Moments] = attrs.field(factory=dict, init=False)
    _given: list[Tensor] = attrs.field(factory=list, init=False)

    @torch.no_grad()
    def __call__(
        self, x_t: Tensor, time: float, level: NoiseLevel, denoise: Callable[[Tensor], Prediction]
    ) -> tuple[Prediction, Tensor | None]:
        """Denoise x_t and find g; see `ppap_framework.diffusion.Guidance`."""
        acts = any(guide.acts(time, level) for guide in self.guides)
        if acts and len(self._given) % self.every == 0:
            prediction, gradient = self._looked(x_t, time, level, denoise)
            self._given[:] = [gradient]
            return prediction, gradient
        self.tally.denoiser(len(x_t) * self.evaluations)
        self._given.extend(self._given[-1:] if acts else ())
        return denoise(x_t), self._given[-1] if acts else None

    def _looked(
        self, x_t: Tensor, time: float, level: NoiseLevel, denoise: Callable[[Tensor], Prediction]
    ) -> tuple[Prediction, Tensor]:
        looking: dict[Through, list[int]] = {}
        for k, guide in enumerate(self.guides):
            if guide.acts(time, level):
                looking.setdefault(guide.looks(level), []).append(k)
        pulls = partial(self._pulls, time=time, level=level)
        clean, count = NoiseLevel.clean(len(x_t)), len(x_t) * self.evaluations
        # What is pulled at x_t itself, by guide, and parts that something differentiated leads to.
        direct, parts = dict[int, Tensor](), list[Tensor]()
        if those := looking.get("clean"):
            x, x0, prediction = _differentiable(x_t, denoise)
            images = self._decoded(x0)
            pull = self._together(pulls(those, images.detach(), clean), time)
            part, skipped = self._led_back(pull, images, x, "the denoiser")
            parts.append(part)
            self.tally.denoiser(count, count, skipped)
        else:
            prediction = denoise(x_t)
            self.tally.denoiser(count)
        if those := looking.get("noisy"):
            direct |= pulls(those, x_t, level)
        if those := looking.get("detached"):
            x0 = prediction.x0.detach().requires_grad_()
            images = self._decoded(x0)
            found = pulls(those, images.detach().clamp(-1.0, 1.0), clean)
            if images is x0:
                direct |= found
            else:
                pull = self._together(found, time)
                parts.append(self._led_back(pull, images, x0, "the decoder")[0])
        if direct:
            parts.append(self._together(dict(sorted(direct.items())), time))
        return prediction, torch.stack(parts).sum(0)

    def _decoded(self, x0: Tensor) -> Tensor:
        with torch.enable_grad(), attending(x0.device):
            return self.decode(x0)

    def _led_back(
        self, pull: Tensor, images: Tensor, x: Tensor, whose: str
    ) -> tuple[Tensor, Tensor]:
        """A pull at images, differentiated to x, and how many images' are not finite, ()."""
        with calling(whose, "its backward pass"):
            (gradient,) = torch.autograd.grad(images, x, grad_outputs=pull)
        norms, pulled = _norms(gradient), _norms(pull)
        finite = torch.isfinite(norms)
        if self.normalize:
            gradient = _rescaled(gradient, norms, pulled * (x[0].numel() / pull[0].numel()) ** 0.5)
        return torch.where(finite, gradient, 0.0), (~finite & (pulled > 0)).sum()

    def _pulls(
        self, those: list[int], images: Tensor, seen: NoiseLevel, time: float, level: NoiseLevel
    ) -> dict[int, Tensor]:
        """-s_k dE_k/d images of guides k, (B, C, H, W) each, normalized if asked for.

        Guides see `images`, (B, C, H, W), at levels `seen`; `level` and `time` (t / T) are x_t's.
        """
        pulls, root = {}, images[0].numel() ** 0.5
        sigma = level.sigma.to(images)[:, None, None, None]
        for k in those:
            guide = self.guides[k]
            scale = guide.scale_at(level)
            scale = scale.to(images) if isinstance(scale, Tensor) else scale
            gradient = guide.gradient(images, seen if guide.experts is None else level)
            norms = _norms(gradient)
            # A norm is finite only if all elements are; its product with the scale must be, too.
            finite = torch.isfinite(norms * scale)
            change = sigma * scale * (root * (norms > 0) if self.normalize else norms) / root
            self.tally.guide(k, time, norms, finite, change.abs())
            if self.moments is not None:
                moments = self._moments.setdefault(k, Moments(self.moments))
                gradient = moments(torch.where(torch.isfinite(norms), gradient, 0.0))
                gradient = _rescaled(gradient, _norms(gradient), norms)
            if self.normalize:
                gradient = _rescaled(gradient, norms, root)
            pulls[k] = -scale * torch.where(finite, gradient, 0.0)
        return pulls

    def _together(self, pulls: dict[int, Tensor], time: float) -> Tensor:
        """The sum of pulls by guide, (B, C, H, W), without conflicts if asked for."""
        if self.conflicts == "remove":
            parted = without_conflicts(list(pulls.values()))
            for k, (pull, changed) in zip(pulls, parted, strict=True):
                self.tally.conflicts(k, time, changed)
                pulls = pulls | {k: pull}
        return torch.stack(list(pulls.values())).sum(0)


def _differentiable(
    x_t: Tensor, denoise: Callable[[Tensor], Prediction]
) -> tuple[Tensor, Tensor, Prediction]:
    """x_t, the x0 that is predicted of it, with a graph between them, and the prediction."""
    with torch.enable_grad(), attending(x_t.device):
        x = x_t.detach().requires_grad_()
        prediction = denoise(x)
        x0 = prediction.x0
        # The one of the two that was not predicted has a graph through x alone.
        differentiable = x0.requires_grad and prediction.eps.requires_grad
    if not differentiable:
        raise PluginError("the denoiser cannot be differentiated", hint="guide through noisy")
    return x, x0, prediction.detach()


def _norms(gradient: Tensor) -> Tensor:
    """Norm of each image: (B, C, H, W) to (B, 1, 1, 1)."""
    norms: Tensor = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)
    return norms


def _rescaled(gradient: Tensor, norms: Tensor, wanted: Tensor | float) -> Tensor:
    """Gradients of the given norms, with the wanted norms; a gradient of 0 stays 0."""
    return gradient / torch.where(norms > 0, norms, 1.0) * wanted


def without_conflicts(pulls: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each pull, projected onto the plane normal to every other pull that it conflicts with.

    Two pulls conflict if their dot product over an image is negative (Yu et al. 2020, "Gradient
    Surgery for Multi-Task Learning", arXiv 2001.06782, algorithm 1). The others are the original
    ones, in the order given; the paper draws a random order, but here an image depends on its seed
    alone. Each image is treated separately.

    Args:
        pulls: K of (B, C, H, W), finite.

    Returns:
        K pairs: the pull (B, C, H, W), bitwise unchanged without conflicts, and a bool mask
        (B, 1, 1, 1) of changed images. If K is 2, the dot product of a pull and the other original
        is not negative, up to rounding.
    """
    directions = [_direction(pull) for pull in pulls]
    results = []
    for k, pull in enumerate(pulls):
        changed = torch.zeros_like(pull[:, :1, :1, :1], dtype=torch.bool)
        for direction in directions[:k] + directions[k + 1 :]:
            along = (pull * direction).sum((1, 2, 3), keepdim=True)
            pull = torch.where(along < 0, pull - along * direction, pull)
            changed = changed | (along < 0)
        results.append((pull, changed))
    return results


def _direction(pull: Tensor) -> Tensor:
    # Divide by the largest element first: squares of small gradients would underflow.
    largest = pull.abs().amax((1, 2, 3), keepdim=True)
    scaled = pull / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(scaled, dim=(1, 2, 3), keepdim=True)
    return scaled / torch.where(length > 0, length, 1.0)
