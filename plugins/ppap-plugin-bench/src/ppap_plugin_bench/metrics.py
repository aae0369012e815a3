"""Fidelity, quality and diversity of images, from features of a judge.

Features are float64: (N, D) of generated images, (M, D) of the reference. Published figures come
from torch-fidelity, on these features instead of Inception's. The functions `resampled_*` compute
the same figures of R resamples, only for intervals; tests compare the two.

    FID        Frechet distance of two Gaussians (Heusel et al. 2017, arXiv 1706.08500)
    KID        unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018,
               arXiv 1801.01401)
    precision  share of generated images inside the manifold of the reference
    recall     share of the reference inside the manifold of generated images; a manifold is the
               union of balls that reach to the third neighbor (Kynkaanniemi et al. 2019,
               arXiv 1904.06991)
    spread     variance of features within a class, relative to that of the reference's class
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ppap_plugin_diagnose.intervals import SEED, Floats

NEIGHBORS = 3
_KID_SUBSET = 1000

# torch-fidelity imports torchvision, so it is imported only when needed.


def fid(generated: Floats, reference: Floats) -> float:
    """Frechet distance of two sets of features."""
    from torch_fidelity import metric_fid

    one, other = (
        metric_fid.fid_features_to_statistics(torch.from_numpy(features))
        for features in (generated, reference)
    )
    found = metric_fid.fid_statistics_to_metric(one, other, False)
    return float(found[metric_fid.KEY_METRIC_FID])


def kid(generated: Floats, reference: Floats) -> float:
    """Kernel distance: mean over 100 seeded subsets of at most 1,000 images."""
    from torch_fidelity import metric_kid

    found = metric_kid.kid_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(reference),
        kid_subset_size=min(_KID_SUBSET, len(generated), len(reference)),
        verbose=False,
    )
    return float(found[metric_kid.KEY_METRIC_KID_MEAN])


def precision_recall(generated: Floats, reference: Floats) -> tuple[float, float]:
    """Precision and recall. Both depend on the sizes of the sets, which should be equal."""
    from torch_fidelity import metric_prc

    found = metric_prc.prc_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(reference),
        prc_neighborhood=NEIGHBORS,
        verbose=False,
    )
    return found[metric_prc.KEY_METRIC_PRECISION], found[metric_prc.KEY_METRIC_RECALL]


def resampled_fid(generated: Floats, reference: Floats, counts: Floats) -> Floats:
    """FID, (R,), with `counts`, (R, N), as the multiplicities of generated images."""
    mean, covariance = reference.mean(0), np.atleast_2d(np.cov(reference, rowvar=False))
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(0.0)) @ vectors.T  # (D, D)
    x = generated - mean  # (N, D)
    distances = []
    for weights in counts:
        total = weights.sum()
        shift = weights @ x / total  # (D,)
        centered = x - shift
        other = (centered * weights[:, None]).T @ centered / (total - 1.0)  # (D, D)
        # tr (S1 S2)^(1/2) equals that of the symmetric S2^(1/2) S1 S2^(1/2).
        eigenvalues = np.linalg.eigvalsh(root @ other @ root)
        common = np.sqrt(eigenvalues.clip(0.0)).sum()
        distances.append(shift @ shift + np.trace(other) + np.trace(covariance) - 2.0 * common)
    return np.array(distances)


def resampled_kid(generated: Floats, reference: Floats, counts: Floats) -> Floats:
    """KID, (R,), over all pairs of different images; `counts` as for `resampled_fid`."""
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


def halves(images: int, resamples: int = 200) -> NDArray[np.intp]:
    """Indices of images without replacement: (resamples, images // 2).

    k-nearest-neighbor figures break down if images are repeated, as in the bootstrap. The means of
    halves vary as much: the finite population correction, 1 / (N / 2) (1 - 1 / 2) = 1 / N.
    """
    rng = np.random.default_rng([SEED, images])
    return np.stack([rng.permutation(images)[: images // 2] for _ in range(resamples)])


def resampled_recall(generated: Floats, reference: Floats, chosen: NDArray[np.intp]) -> Floats:
    """Recall, (R,), of the generated images with the indices `chosen`, (R, n)."""
    own, across = _distances(generated, generated), _distances(reference, generated)
    figures = []
    for rows in chosen:
        radii = np.partition(own[np.ix_(rows, rows)], NEIGHBORS, axis=1)[:, NEIGHBORS]  # (n,)
        figures.append((across[:, rows] <= radii).any(1).mean())
    return np.array(figures)


def within_manifold(images: Floats, manifold: Floats) -> NDArray[np.bool_]:
    """Whether each image lies within the manifold, (N,); the mean is precision."""
    radii = np.partition(_distances(manifold, manifold), NEIGHBORS, axis=1)[:, NEIGHBORS]  # (M,)
    inside: NDArray[np.bool_] = np.asarray((_distances(images, manifold) <= radii).any(1))
    return inside


def class_variances(features: Floats, classes: NDArray[np.int64], number: int) -> Floats:
    """Trace of each class's covariance, (number,); NaN for classes with fewer than two images."""
    members = [features[classes == index] for index in range(number)]
    return np.array([m.var(0, ddof=1).sum() if len(m) > 1 else np.nan for m in members])


def spread(
    features: Floats, classes: NDArray[np.int64], variances: Floats, counts: Floats
) -> Floats:
    """Diversity within classes, relative to the reference.

        sum_c sum_(i in c) |f_i - mean_c|^2 / sum_c (n_c - 1) v_c

    Args:
        features: (N, D).
        classes: (N,), predicted by the judge; classes without a finite v_c are left out.
        variances: Variances v_c of the reference, (K,).
        counts: Multiplicity of each image, (R, N); ones for the figure itself.

    Returns:
        (R,); NaN if no class has two images.
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
    """Mean over b, (len(a),), computed in parts to save memory."""
    parts = np.array_split(a, -(-len(a) // 512))
    return np.concatenate([_kernel(part, b).mean(1) for part in parts])


def _distances(a: Floats, b: Floats) -> NDArray[np.float32]:
    x, y = torch.from_numpy(a).float(), torch.from_numpy(b).float()
    exact = "donot_use_mm_for_euclid_dist"  # a product would lose precision for near neighbors
    distances: NDArray[np.float32] = torch.cdist(x, y, compute_mode=exact).numpy()
    return distances
