"""Resampling of Pillow that torch has not, or has without a gradient, as linear maps.

An image is resized by one matrix for each axis, first along its rows and then along its columns.
A filter k of support s is stretched by the factor of reduction f >= 1: the weight of input pixel j
in output pixel i is k((j - c_i) / f), divided by the sum over j, where c_i is the place of i in
the input. Pillow's documentation names the filters ("Concepts", "Filters").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate

import torch
from torch import Tensor

__all__ = ["KERNELS", "resampled"]

Kernel = Callable[[Tensor], Tensor]


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0)


def _box(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x <= 0.5)).to(x)


def _hamming(x: Tensor) -> Tensor:
    window = 0.54 + 0.46 * torch.cos(torch.pi * x)
    return torch.where(x.abs() < 1, torch.sinc(x) * window, 0)


KERNELS: Mapping[int, Kernel | None] = {0: None, 1: _lanczos, 4: _box, 5: _hamming}
"""By the numbers that Pillow and transformers give them; None takes the nearest pixel."""


def resampled(images: Tensor, size: tuple[int, int], kernel: Kernel | None) -> Tensor:
    """Resize images (..., H, W) to (..., *size); images of that size are returned as they are."""
    if images.shape[-2:] == size:
        return images
    if kernel is None:
        chosen_rows, chosen_columns = map(_nearest, images.shape[-2:], size)
        return images[..., chosen_rows, :][..., chosen_columns]
    rows, columns = (
        _weights(own, wanted, kernel).to(images)
        for own, wanted in zip(images.shape[-2:], size, strict=True)
    )
    resized: Tensor = rows @ (images @ columns.T)
    return resized


def _nearest(own: int, wanted: int) -> list[int]:
    """The pixel that each new one is taken from.

    Where two are equally near, the rounding errors of Pillow's running sum decide.
    """
    step = own / wanted
    places = accumulate([step] * (wanted - 1), initial=0.5 * step)
    return [min(int(place), own - 1) for place in places]


def _weights(own: int, wanted: int, kernel: Kernel) -> Tensor:
    """(wanted, own), rows of which sum to 1."""
    scale = own / wanted
    centres = (torch.arange(wanted, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(own, dtype=torch.float64) + 0.5
    weights = kernel((pixels - centres[:, None]) / max(scale, 1.0))
    return weights / weights.sum(1, keepdim=True)
