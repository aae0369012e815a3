"""Perceptually uniform colours for depth maps.

Colours run from dark violet through red to light yellow with linear lightness in Oklab (B.
Ottosson, "A perceptual color space for image processing", 2020; matrices below). Since lightness
increases monotonically, maps are readable in grey and by the colour-blind.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["colour_map", "colour_table"]

_STEPS = 256
_LIGHTNESS = (0.18, 0.95)  # of the farthest and the nearest point
_HUES = (-75.0, 105.0)  # degrees: violet, through red at about 25, yellow
_CHROMA = 0.19  # upper bound; reduced to the sRGB gamut

_TO_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def colour_map(maps: Tensor) -> Tensor:
    """Colours for maps, each scaled from its minimum to its maximum.

    Args:
        maps: (B, h, w); NaN becomes grey.

    Returns:
        (B, 3, h, w), float32 in [-1, 1], on the CPU. A constant map has the darkest colour.
    """
    values = maps.detach().float().cpu()
    known = values.isfinite()
    low = values.masked_fill(~known, torch.inf).amin((1, 2), keepdim=True)
    high = values.masked_fill(~known, -torch.inf).amax((1, 2), keepdim=True)
    share = (values - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    step = (share.nan_to_num(0.0, 0.0, 0.0).clamp(0, 1) * (_STEPS - 1)).round().long()
    colours = torch.from_numpy(colour_table())[step]  # (B, h, w, 3)
    colours = torch.where(known[..., None], colours, torch.tensor(0.5))
    return colours.permute(0, 3, 1, 2).float() * 2 - 1


@cache
def colour_table() -> NDArray[np.float32]:
    """(256, 3), sRGB in [0, 1], from the farthest to the nearest."""
    share = np.linspace(0.0, 1.0, _STEPS)
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * share
    hue = np.deg2rad(_HUES[0] + (_HUES[1] - _HUES[0]) * share)
    low, high = np.zeros(_STEPS), np.full(_STEPS, _CHROMA)
    for _ in range(30):  # bisection for the largest chroma in sRGB
        middle = (low + high) / 2
        linear = _linear_rgb(lightness, middle, hue)
        inside = ((linear >= 0) & (linear <= 1)).all(1)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    linear = _linear_rgb(lightness, low, hue).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return srgb.astype(np.float32)


def _linear_rgb(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]
) -> NDArray[np.float64]:
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    rgb: NDArray[np.float64] = (lab @ _TO_LMS.T) ** 3 @ _TO_RGB.T
    return rgb
