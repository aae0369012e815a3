"""Figures of a row with their intervals, and the paired differences of two rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_framework.diagnosis.environment import provenance
from ppap_framework.diagnosis.intervals import (
    Floats,
    Interval,
    bootstrap,
    halves,
    interval,
    share_interval,
)
from ppap_framework.errors import UsageError
from ppap_framework.files import replacing
from ppap_plugin_bench import metrics
from ppap_plugin_bench.judge import ClassJudge
from ppap_plugin_bench.pictures import Pictures

__all__ = [
    "SURE",
    "Assessment",
    "Observations",
    "Reference",
    "difference",
    "hit_shares",
    "mean",
    "projection",
]

SURE = 0.9
"""Confidence above which the judge counts as sure."""

_MAX_FEATURES = 64


@attrs.frozen(eq=False)
class Observations:
    """What judges see in N images.

    Attributes:
        features: (N, D), of the judge of classes.
        classes: (N,), the likeliest class; -1 for one without a name.
        confidence: (N,), its probability.
        targets: (N,), the class that each image is to show.
        of_scenes: By name, (N,): figures of the judges of scenes.
    """

    features: Floats
    classes: NDArray[np.int64]
    confidence: Floats
    targets: NDArray[np.int64]
    of_scenes: Mapping[str, Floats] = attrs.field(factory=dict)


@attrs.frozen(eq=False)
class Assessment:
    """The figures of N images.

    Attributes:
        figures: Figures by name.
        resampled: By name, (R,): figures of resampled images, in the same order for every N images.
    """

    figures: dict[str, Interval]
    resampled: dict[str, Floats]

    def record(self) -> dict[str, Any]:
        """The figures as JSON."""
        return {name: figure.record() for name, figure in self.figures.items()}

    def save(self, path: Path) -> None:
        """Write everything to an .npz file."""
        arrays: dict[str, Any] = {
            name: np.array([*attrs.astuple(figure), *self.resampled[name]])
            for name, figure in self.figures.items()
        }
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Assessment:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        return cls(
            {name: Interval(*array[:3].tolist()) for name, array in arrays.items()},
            {name: array[3:] for name, array in arrays.items()},
        )


def difference(row: Assessment, baseline: Assessment) -> dict[str, Any]:
    """Each figure of a row minus the baseline's, as JSON. The interval is the paired one: both have
    the same noise and targets, image by image.
    """
    return {
        name: interval(
            figure.value - baseline.figures[name].value,
            row.resampled[name] - baseline.resampled[name],
        ).record()
        for name, figure in row.figures.items()
    }


@attrs.frozen(eq=False)
class Reference:
    """What the judge of classes sees in pictures whose classes are known.

    Attributes:
        pictures: The pictures.
        projection: Reduces features, see the function of this name.
        features: (M, D), projected.
        variances: (K,), within classes.
        parts: By name, (K,): index of the word of this part in each class name.
        record: How well the judge does, as JSON.
    """

    pictures: Pictures
    projection: Callable[[Floats], Floats]
    features: Floats
    variances: Floats
    parts: dict[str, NDArray[np.int64]]
    record: dict[str, Any]

    @classmethod
    def of(cls, pictures: Pictures, judge: ClassJudge, parts: Sequence[str]) -> Reference:
        """Let the judge look at the reference.

        Raises:
            UsageError: If class names do not have as many words as there are parts.
        """
        features, classes, confidence = judge.look(pictures.images)
        seen = Observations(features, classes, confidence, pictures.labels)
        words = _words(pictures.names, parts)
        counts = bootstrap(len(pictures))
        record = {
            "judge": provenance(judge.origin),
            "pictures": len(pictures),
            "sha256": pictures.sha256,
            "figures": {
                name: _share(hits, counts).record() for name, hits in _shares(seen, words).items()
            },
            "class_names": list(pictures.names),
            "confusion": _confusion(pictures.labels, classes, len(pictures.names)),
        }
        project = projection(features)
        features = project(features)
        variances = metrics.class_variances(features, pictures.labels, len(pictures.names))
        return cls(pictures, project, features, variances, words, record)

    def assess(self, seen: Observations) -> Assessment:
        """The figures of images."""
        generated = self.projection(seen.features)
        number = len(generated)
        manifold = self.features[:number]  # precision and recall depend on sizes; these are equal
        shares = _shares(seen, self.parts)
        shares["precision"] = metrics.within_manifold(generated, manifold).astype(np.float64)
        counts = bootstrap(number)
        figures = {name: _share(hits, counts) for name, hits in shares.items()}
        figures |= {name: mean(values) for name, values in seen.of_scenes.items()}
        resampled = {
            name: counts @ values / number for name, values in {**shares, **seen.of_scenes}.items()
        }
        resampled |= {
            "fid": metrics.resampled_fid(generated, self.features, counts),
            "kid": metrics.resampled_kid(generated, self.features, counts),
            "recall": metrics.resampled_recall(generated, manifold, halves(number)),
            "spread": metrics.spread(generated, seen.classes, self.variances, counts),
        }
        _, recall = metrics.precision_recall(generated, manifold)
        figures |= {
            "fid": interval(self.fid(seen), resampled["fid"], 0.0),
            "kid": interval(metrics.kid(generated, self.features), resampled["kid"]),
            "recall": interval(recall, resampled["recall"], 0.0, 1.0),
            "spread": interval(self.spread(seen), resampled["spread"], 0.0),
        }
        return Assessment(figures, resampled)

    def fid(self, seen: Observations) -> float:
        """Frechet distance of images from the reference."""
        return metrics.fid(self.projection(seen.features), self.features)

    def spread(self, seen: Observations) -> float:
        """Diversity of images within their classes."""
        features = self.projection(seen.features)
        ones = np.ones((1, len(features)))
        return float(metrics.spread(features, seen.classes, self.variances, ones)[0])


def projection(reference: Floats, limit: int = _MAX_FEATURES) -> Callable[[Floats], Floats]:
    """A function that reduces features, (N, D), to the first `limit` principal axes of a reference,
    (M, D), if D is larger. A Frechet distance of many features is mostly noise of its covariance.
    """
    if reference.shape[1] <= limit:
        return lambda features: features
    center = reference.mean(0)
    _, vectors = np.linalg.eigh(np.cov(reference, rowvar=False))  # in ascending order
    axes: Floats = vectors[:, ::-1][:, :limit]
    return lambda features: (features - center) @ axes


def mean(values: Floats) -> Interval:
    """The mean of a figure over images, (N,)."""
    return interval(float(values.mean()), bootstrap(len(values)) @ values / len(values))


def hit_shares(seen: Observations, parts: Mapping[str, NDArray[np.int64]]) -> dict[str, Interval]:
    """Shares of images that the judge takes for their target, as a whole and by parts."""
    counts = bootstrap(len(seen.targets))
    shares = _shares(seen, parts).items()
    return {name: _share(hits, counts) for name, hits in shares if name != "sure"}


def _share(hits: Floats, counts: Floats) -> Interval:
    return share_interval(hits, counts @ hits / len(hits))


def _shares(seen: Observations, parts: Mapping[str, NDArray[np.int64]]) -> dict[str, Floats]:
    """By name, (N,) of 0 and 1."""
    classes, targets = seen.classes, seen.targets
    shares = {"hit": classes == targets}
    for name, words in parts.items():
        shares[f"hit_{name}"] = (classes >= 0) & (words[classes] == words[targets])
    shares["sure"] = seen.confidence > SURE
    return {name: share.astype(np.float64) for name, share in shares.items()}


def _words(names: Sequence[str], parts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    split = [name.split() for name in names]
    if parts and (odd := [words for words in split if len(words) != len(parts)]):
        raise UsageError(
            f"class {' '.join(odd[0])!r} does not have the {len(parts)} parts {', '.join(parts)}",
            hint="leave `parts` out of the experiment",
        )
    columns = {part: [words[k] for words in split] for k, part in enumerate(parts)}
    return {
        part: np.array([column.index(word) for word in column]) for part, column in columns.items()
    }


def _confusion(labels: NDArray[np.int64], seen: NDArray[np.int64], number: int) -> list[list[int]]:
    """Rows are true classes, columns what the judge sees."""
    known = seen >= 0
    table = np.bincount(labels[known] * number + seen[known], minlength=number * number)
    return table.reshape(number, number).tolist()
