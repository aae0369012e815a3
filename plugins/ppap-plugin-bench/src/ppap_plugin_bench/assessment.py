"""Figures of images with their intervals, and paired differences of two rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_framework.diagnosis.intervals import (
    Floats,
    Interval,
    as_json,
    bootstrap,
    interval,
    rounded,
    share_interval,
)
from ppap_framework.diagnosis.record import provenance
from ppap_framework.errors import UsageError
from ppap_framework.files import replacing
from ppap_plugin_bench import metrics
from ppap_plugin_bench.judges import ClassJudge, Observations
from ppap_plugin_bench.pictures import Pictures

_SURE = 0.9  # confidence threshold
_MAX_FEATURES = 64


@attrs.frozen(eq=False)
class Assessment:
    """The figures of N images.

    Attributes:
        figures: Figures by name.
        resampled: Figures of resampled images by name, (R,); resamples depend only on N.
        images: Figures of each image by name, (N,), for those that are means.
    """

    figures: dict[str, Interval]
    resampled: dict[str, Floats]
    images: dict[str, Floats]

    def record(self) -> dict[str, Any]:
        """Figures as JSON, each with its interval and standard error."""
        return {
            name: {**as_json(figure), "error": rounded(float(self.resampled[name].std()))}
            for name, figure in self.figures.items()
        }

    def save(self, path: Path) -> None:
        """Write everything to an .npz file."""
        arrays: dict[str, Any] = {}
        for name, figure in self.figures.items():
            arrays[f"figures/{name}"] = np.array(attrs.astuple(figure))
        for kind, of in (("resampled", self.resampled), ("images", self.images)):
            arrays |= {f"{kind}/{name}": values for name, values in of.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Assessment:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            parts = [(*key.split("/", 1), array) for key, array in file.items()]
        found: dict[str, dict[str, Any]] = {"figures": {}, "resampled": {}, "images": {}}
        for kind, name, array in parts:
            found[kind][name] = Interval(*array.tolist()) if kind == "figures" else array
        return cls(**found)


def difference(row: Assessment, baseline: Assessment) -> dict[str, Any]:
    """Each figure of a row minus the baseline's, as JSON.

    Intervals are paired, since both have the same noise and targets, image by image.
    """
    return {
        name: as_json(
            interval(
                figure.value - baseline.figures[name].value,
                row.resampled[name] - baseline.resampled[name],
            )
        )
        for name, figure in row.figures.items()
    }


@attrs.frozen(eq=False)
class Reference:
    """Features and accuracy of the class judge on labelled pictures.

    Attributes:
        pictures: The M pictures.
        project: Function that reduces features; see `projection`.
        features: Projected features, (M, D).
        variances: Variances within classes, (K,).
        parts: Index of the word of each part in each class name, (K,), by part.
        record: Accuracy of the judge, as JSON.
    """

    pictures: Pictures
    project: Callable[[Floats], Floats]
    features: Floats
    variances: Floats
    parts: dict[str, NDArray[np.int64]]
    record: dict[str, Any]

    @classmethod
    def of(cls, pictures: Pictures, judge: ClassJudge, parts: Sequence[str]) -> Reference:
        """Evaluate the judge on the reference.

        Raises:
            UsageError: If a class name has another number of words than there are parts.
        """
        words = _words(pictures.names, parts)
        seen = Observations(*judge.look(pictures.images), pictures.labels)
        shares, counts = _shares(seen, words), bootstrap(len(pictures))
        classes, known = len(pictures.names), seen.classes >= 0
        confusion = np.zeros((classes, classes), np.int64)
        np.add.at(confusion, (pictures.labels[known], seen.classes[known]), 1)
        record = {
            "judge": provenance(judge.origin),
            "pictures": len(pictures),
            "sha256": pictures.sha256,
            "figures": {name: as_json(_share(hits, counts)) for name, hits in shares.items()},
            "class_names": list(pictures.names),
            "confusion": confusion.tolist(),  # rows are true classes, columns predictions
        }
        project = projection(seen.features)
        features = project(seen.features)
        variances = metrics.class_variances(features, pictures.labels, classes)
        return cls(pictures, project, features, variances, words, record)

    def assess(self, seen: Observations) -> Assessment:
        """The figures of images."""
        generated = self.project(seen.features)
        number = len(generated)
        manifold = self.features[:number]  # equal sizes, since precision and recall depend on them
        shares = _shares(seen, self.parts)
        shares["precision"] = metrics.within_manifold(generated, manifold).astype(np.float64)
        counts = bootstrap(number)
        figures = {name: _share(hits, counts) for name, hits in shares.items()}
        figures |= {name: mean(values) for name, values in seen.of_scenes.items()}
        images = {**shares, **seen.of_scenes}
        resampled = {name: counts @ values / number for name, values in images.items()}
        resampled |= {
            "fid": metrics.resampled_fid(generated, self.features, counts),
            "kid": metrics.resampled_kid(generated, self.features, counts),
            "recall": metrics.resampled_recall(generated, manifold, metrics.halves(number)),
            "spread": metrics.spread(generated, seen.classes, self.variances, counts),
        }
        _, recall = metrics.precision_recall(generated, manifold)
        once = np.ones((1, number))
        spread = float(metrics.spread(generated, seen.classes, self.variances, once)[0])
        figures |= {
            "fid": interval(metrics.fid(generated, self.features), resampled["fid"], 0.0),
            "kid": interval(metrics.kid(generated, self.features), resampled["kid"]),
            "recall": interval(recall, resampled["recall"], 0.0, 1.0),
            "spread": interval(spread, resampled["spread"], 0.0),
        }
        return Assessment(figures, resampled, images)


def projection(reference: Floats, limit: int = _MAX_FEATURES) -> Callable[[Floats], Floats]:
    """Projection of features, (N, D), to the first `limit` principal axes of a reference, (M, D).

    With many features, noise in the covariance dominates a Frechet distance.
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


def _share(hits: Floats, counts: Floats) -> Interval:
    return share_interval(hits, counts @ hits / len(hits))


def _shares(seen: Observations, parts: Mapping[str, NDArray[np.int64]]) -> dict[str, Floats]:
    """Hits of each image by name, (N,), 0 or 1."""
    classes, targets = seen.classes, seen.targets
    shares = {"hit": classes == targets}
    for name, words in parts.items():
        shares[f"hit_{name}"] = (classes >= 0) & (words[classes] == words[targets])
    shares["sure"] = seen.confidence > _SURE
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
        part: np.array([found.index(word) for word in found]) for part, found in columns.items()
    }
