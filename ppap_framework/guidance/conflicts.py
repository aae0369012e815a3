"""Guides that pull against each other.

Two pulls conflict where their dot product over an image is negative: following one undoes part of
the other. Taking from each its component along the other leaves what both agree on (Yu et al. 2020,
"Gradient Surgery for Multi-Task Learning", arXiv 2001.06782, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Conflicts: TypeAlias = Literal["keep", "remove"]


def without_conflicts(pulls: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each pull, projected onto the plane normal to every other that it conflicts with.

    Each is compared with the original of the others, in the order given; the paper draws an order
    at random, but here an image depends on its seed alone.

    Args:
        pulls: K of (B, C, H, W), finite; each image is dealt with by itself.

    Returns:
        K pairs: the pull (B, C, H, W), unchanged to the bit where it conflicts with none, and where
        it was changed, (B, 1, 1, 1), bool. Of two pulls, each then has a dot product with the other
        one as it came that is not negative, but for rounding.
    """
    directions = [_direction(pull) for pull in pulls]
    results = []
    for k, pull in enumerate(pulls):
        changed = torch.zeros_like(pull[:, :1, :1, :1], dtype=torch.bool)
        for other, direction in enumerate(directions):
            if other == k:
                continue
            along = (pull * direction).sum((1, 2, 3), keepdim=True)
            against = along < 0
            pull = torch.where(against, pull - along * direction, pull)
            changed = changed | against
        results.append((pull, changed))
    return results


def _direction(pull: Tensor) -> Tensor:
    """Of unit length; 0 where there is none."""
    # By way of the largest element: squares of small gradients would vanish.
    largest = pull.abs().amax((1, 2, 3), keepdim=True)
    scaled = pull / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(scaled, dim=(1, 2, 3), keepdim=True)
    direction: Tensor = scaled / torch.where(length > 0, length, 1.0)
    return direction
