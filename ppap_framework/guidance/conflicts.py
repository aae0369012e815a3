"""Gradient components that oppose another guide.

Two pulls conflict if their dot product over an image is negative. Each then loses its component
along the other (Yu et al. 2020, "Gradient Surgery for Multi-Task Learning", arXiv 2001.06782,
algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Conflicts: TypeAlias = Literal["keep", "remove"]


def without_conflicts(pulls: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each pull, projected onto the plane normal to every other pull that it conflicts with.

    The others are the original ones, in the order given; the paper draws a random order, but here
    an image depends on its seed alone. Each image is treated separately.

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
    direction: Tensor = scaled / torch.where(length > 0, length, 1.0)
    return direction
