r"""What is compared of deep features, as one vector phi(x) whose squared distance is the energy.

F_l are the features of layer l of L, with f_p those at place p of P:

    perceptual   1/L sum_l mean_p |f_p / |f_p| - f*_p / |f*_p||^2     in [0, 4]
    style        1/L sum_l |G_l / |G_l| - G*_l / |G*_l||^2            in [0, 2], G = sum_p f_p f_p^T
    structure    1/L sum_l mean_pq (S_pq - S*_pq)^2                   in [0, 4], S = cos(f_p, f_q)

The first is the distance of Zhang et al. 2018 (LPIPS, arXiv 1801.03924, eq. 1) with equal weights
of channels. The second is that of Gatys et al. 2016 (arXiv 1508.06576, eq. 4 and 5) with Gram
matrices of norm 1, so that layers count alike. The third is that of Tumanyan et al. 2022 (Splicing
ViT features, arXiv 2201.00424, eq. 1 and 4), squared and averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["perceptual", "structure", "style"]


def perceptual(features: Sequence[Tensor]) -> Tensor:
    """phi, (B, sum_l C_l P_l), of features (B, C_l, P_l)."""
    parts = [F.normalize(f, dim=1) / math.sqrt(f.shape[2]) for f in features]
    return _joined(parts)


def style(features: Sequence[Tensor]) -> Tensor:
    """phi, (B, sum_l C_l^2), of features (B, C_l, P_l)."""
    grams = [f @ f.transpose(1, 2) / f.shape[2] for f in features]
    return _joined([F.normalize(gram.flatten(1), dim=1) for gram in grams])


def structure(features: Sequence[Tensor]) -> Tensor:
    """phi, (B, sum_l P_l^2), of features (B, C_l, P_l)."""
    units = [F.normalize(f, dim=1) for f in features]
    return _joined([f.transpose(1, 2) @ f / f.shape[2] for f in units])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten(1) for part in parts], 1) / math.sqrt(len(parts))
