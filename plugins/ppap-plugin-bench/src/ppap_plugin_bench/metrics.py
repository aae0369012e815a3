"""Fidelity, quality and diversity of images, from what a judge sees in them.

Features are (N, D), float64. Published figures come from torch-fidelity, on these features instead
of Inception's. The functions `resampled_*` give the same figures of weighted or chosen images, for
intervals alone; tests hold the two against each other.

    FID        Frechet distance of two Gaussians (Heusel et al. 2017, arXiv 1706.08500)
    KID        unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018,
               arXiv 1801.01401)
    precision  share of generated images inside the manifold of the reference
    recall     share of the reference inside the manifold of generated images; a manifold is the
               union of balls that reach to the third neighbour (Kynkaanniemi et al. 2019,
               arXiv 1904.06991)
    spread     variance of features within a class, relative to that of the reference's class
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppap_framework.diagnosis.intervals import Floats
from ppap_framework.errors import PpapError

__all__ = [
    "class_variances",
    "fid",
    "kid",
    "precision_recall",
    "resampled_fid",
    "resampled_kid",
    "resampled_recall",
    "spread",
    "within_manifold",
]

NEIGHBOURS = 3
_KID_SUBSET = 1000


def fid(generated: Floats, reference: Floats) -> float:
    """The Frechet distance of two sets of features."""
    library = _fidelity("metric_fid")
    statistics = [
        library.fid_features_to_statistics(torch.from_numpy(features))
        for features in (generated, reference)
    ]
    return float(library.fid_statistics_to_metric(*statistics, False)[library.KEY_METRIC_FID])


def kid(generated: Floats, reference: Floats) -> float:
    """The kernel distance: mean over 100 seeded subsets of 1,000, or of all of fewer."""
    library = _fidelity("metric_kid")
    figures = library.kid_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(reference),
        kid_subset_size=min(_KID_SUBSET, len(generated), len(reference)),
        verbose=False,
    )
    return float(figures[library.KEY_METRIC_KID_MEAN])


def precision_recall(generated: Floats, reference: Floats) -> tuple[float, float]:
    """Precision and recall; both depend on the sizes of the sets, which are best equal."""
    library = _fidelity("metric_prc")
    figures = library.prc_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(reference),
        prc_neighborhood=NEIGHBOURS,
        verbose=False,
    )
    return figures[library.KEY_METRIC_PRECISION], figures[library.KEY_METRIC_RECALL]


def resampled_fid(generated: Floats, reference: Floats, counts: Floats) -> Floats:
    """FID with each generated image taken so many times.

    Args:
        generated: (N, D).
        reference: (M, D), as it is.
        counts: (R, N).

    Returns:
        (R,).
    """
    mean, covariance = reference.mean(0), np.atleast_2d(np.cov(reference, rowvar=False))
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(0.0)) @ vectors.T  # (D, D)
    x = generated - mean  # (N, D)
    distances = []
    for weights in counts:
        total = weights.sum()
        shift = weights @ x / total  # (D,)
        centred = x - shift
        other = (centred * weights[:, None]).T @ centred / (total - 1.0)  # (D, D)
        # tr (S1 S2)^(1/2) is that of the symmetric S2^(1/2) S1 S2^(1/2).
        eigenvalues = np.linalg.eigvalsh(root @ other @ root)
        common = np.sqrt(eigenvalues.clip(0.0)).sum()
        distances.append(shift @ shift + np.trace(other) + np.trace(covariance) - 2.0 * common)
    return np.array(distances)


def resampled_kid(generated: Floats, reference: Floats, counts: Floats) -> Floats:
    """KID over all pairs but those of an image with itself, each image taken so many times.

    Args:
        generated: (N, D).
        reference: (M, D), as it is.
        counts: (R, N).

    Returns:
        (R,).
    """
    own = _kernel(generated, generated)
    np.fill_diagonal(own, 0.0)
    across = _mean_kernel(generated, reference)  # (N,)
    of_reference = _mean_kernel(reference, reference)
    itself = (reference * reference).sum(1) / reference.shape[1] + 1.0
    size = len(reference)
    constant = (of_reference.sum() * size - (itself**3).sum()) / (size * (size - 1.0))
    totals = counts.sum(1)
    pairs = totals**2 - (counts**2).sum(1)
    figures: Floats = (
        ((counts @ own) * counts).sum(1) / pairs - 2.0 * (counts @ across) / totals + constant
    )
    return figures


def resampled_recall(generated: Floats, reference: Floats, chosen: NDArray[np.intp]) -> Floats:
    """Recall of chosen generated images.

    Args:
        generated: (N, D).
        reference: (M, D), as it is.
        chosen: (R, n), indices into the N.

    Returns:
        (R,).
    """
    own, across = _distances(generated, generated), _distances(reference, generated)
    figures = []
    for rows in chosen:
        radii = np.partition(own[np.ix_(rows, rows)], NEIGHBOURS, axis=1)[:, NEIGHBOURS]  # (n,)
        figures.append((across[:, rows] <= radii).any(1).mean())
    return np.array(figures)


def within_manifold(images: Floats, manifold: Floats) -> NDArray[np.bool_]:
    """Whether each image lies within the manifold of others, (N,): the mean is precision."""
    radii = np.partition(_distances(manifold, manifold), NEIGHBOURS, axis=1)[:, NEIGHBOURS]  # (M,)
    inside: NDArray[np.bool_] = np.asarray((_distances(images, manifold) <= radii).any(1))
    return inside


def class_variances(features: Floats, classes: NDArray[np.int64], number: int) -> Floats:
    """The trace of each class's covariance, (number,); nan for a class of less than two images."""
    members = [features[classes == index] for index in range(number)]
    return np.array([m.var(0, ddof=1).sum() if len(m) > 1 else np.nan for m in members])


def spread(
    features: Floats, classes: NDArray[np.int64], variances: Floats, counts: Floats
) -> Floats:
    """How diverse images are within their classes: 1 is as diverse as the reference.

        sum_c sum_(i in c) |f_i - mean_c|^2 / sum_c (n_c - 1) v_c

    Args:
        features: (N, D).
        classes: (N,), where the judge puts each image; what is in no class, or in one that the
            reference has no variance of, is left out.
        variances: (K,), v_c of the reference.
        counts: (R, N), how often each image is taken; ones for the figure itself.

    Returns:
        (R,); nan where no class has two images.
    """
    x = features - features.mean(0)
    squares = (x * x).sum(1)  # (N,)
    within, expected = np.zeros(len(counts)), np.zeros(len(counts))
    for index in np.flatnonzero(np.isfinite(variances)):
        members = np.flatnonzero(classes == index)
        weights = counts[:, members]  # (R, n)
        total = weights.sum(1)
        shift = weights @ x[members]  # (R, D)
        within += weights @ squares[members] - (shift**2).sum(1) / total.clip(1.0)
        expected += (total - 1.0).clip(0.0) * variances[index]
    ratios: Floats = np.full(len(counts), np.nan)
    return np.divide(within, expected, out=ratios, where=expected > 0)


def _kernel(a: Floats, b: Floats) -> Floats:
    root: Floats = a @ b.T / a.shape[1] + 1.0
    return root * root * root  # several times faster than ** 3


def _mean_kernel(a: Floats, b: Floats) -> Floats:
    """Over b, (len(a),); by parts, since the whole kernel is large."""
    return np.concatenate(
        [_kernel(part, b).mean(1) for part in np.array_split(a, -(-len(a) // 512))]
    )


def _distances(a: Floats, b: Floats) -> NDArray[np.float32]:
    x, y = torch.from_numpy(a).float(), torch.from_numpy(b).float()
    # Not by a product of matrices, which loses what is near: an image is at 0 from itself.
    distances: NDArray[np.float32] = torch.cdist(
        x, y, compute_mode="donot_use_mm_for_euclid_dist"
    ).numpy()
    return distances


def _fidelity(module: str) -> Any:
    """A module of torch-fidelity, which brings torchvision and is imported by nothing else."""
    try:
        return importlib.import_module(f"torch_fidelity.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch_fidelity":
            raise
        raise PpapError(
            "torch-fidelity is not installed, or is older than 0.4",
            hint='pip install "ppap-framework[eval]"',
        ) from error
