"""A row's figures with their intervals, and the paired differences of two rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from ppap_plugin_bench import metrics
from ppap_plugin_bench.files import replacing
from ppap_plugin_bench.judge import Judge, Projection, Verdict
from ppap_plugin_bench.pictures import Pictures

__all__ = ["SURE", "Assessment", "Reference", "difference", "hit_shares", "mean"]

SURE = 0.9
"""The confidence above which the judge counts as sure."""


@attrs.frozen(eq=False)
class Assessment:
    """The figures of N images.

    Attributes:
        figures: By name.
        resampled: By name, (R,): the same of resampled images, in the same order for every set of
            as many.
    """

    figures: dict[str, Interval]
    resampled: dict[str, Floats]

    def record(self) -> dict[str, Any]:
        """The figures as JSON."""
        return {name: figure.record() for name, figure in self.figures.items()}

    def save(self, path: Path) -> None:
        """Keep the resampled figures in an .npz file."""
        arrays = {
            name: np.array([*attrs.astuple(figure), *self.resampled[name]])
            for name, figure in self.figures.items()
        }
        replacing(path, lambda partial: np.savez(partial, **arrays))  # type: ignore[arg-type]  # the stub means allow_pickle

    @classmethod
    def load(cls, path: Path) -> Assessment:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        return cls(
            {name: Interval(*array[:3].tolist()) for name, array in arrays.items()},
            {name: array[3:] for name, array in arrays.items()},
        )


def difference(row: Assessment, baseline: Assessment) -> dict[str, Any]:
    """How far each figure of a row is above the baseline's, as JSON.

    Both are of the same noise and targets, image by image: the interval is the paired one.
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
    """What the judge sees in pictures of which the truth is known.

    Attributes:
        features: (M, D), projected.
        projection: Which all features go through.
        variances: (K,), within classes.
        parts: By name, (K,): which word of this part each class's name has.
        record: How well the judge did, as JSON.
    """

    features: Floats
    projection: Projection
    variances: Floats
    parts: dict[str, NDArray[np.int64]]
    record: dict[str, Any]

    @classmethod
    def of(cls, pictures: Pictures, judge: Judge, parts: Sequence[str]) -> Reference:
        """Let the judge look at the reference.

        Raises:
            UsageError: Where names of classes do not have as many words as there are parts.
        """
        verdict = judge.look(pictures.images)
        projection = Projection.of(verdict.features)
        features = projection(verdict.features)
        words = _words(pictures.names, parts)
        shares = _shares(verdict, pictures.labels, words)
        counts = bootstrap(len(pictures))
        record = {
            "judge": provenance(judge.origin),
            "pictures": len(pictures),
            "sha256": pictures.sha256,
            "figures": {name: _share(hits, counts).record() for name, hits in shares.items()},
            "class_names": list(pictures.names),
            "confusion": _confusion(pictures.labels, verdict.classes, len(pictures.names)),
        }
        variances = metrics.class_variances(features, pictures.labels, len(pictures.names))
        return cls(features, projection, variances, words, record)

    def assess(
        self,
        verdict: Verdict,
        targets: NDArray[np.int64],
        of_scenes: Mapping[str, Floats] | None = None,
    ) -> Assessment:
        """Measure images.

        Args:
            verdict: On N of them.
            targets: (N,), the class that each was to show.
            of_scenes: By name, (N,): how judges of scenes judge them.
        """
        generated = self.projection(verdict.features)
        number = len(generated)
        manifold = self.features[:number]  # equal sizes, on which precision and recall depend
        shares = _shares(verdict, targets, self.parts)
        shares["precision"] = metrics.within_manifold(generated, manifold).astype(np.float64)
        counts = bootstrap(number)
        figures = {name: _share(hits, counts) for name, hits in shares.items()}
        resampled = {name: counts @ hits / number for name, hits in shares.items()}
        for name, values in (of_scenes or {}).items():
            figures[name], resampled[name] = mean(values), counts @ values / number
        resampled |= {
            "fid": metrics.resampled_fid(generated, self.features, counts),
            "kid": metrics.resampled_kid(generated, self.features, counts),
            "recall": metrics.resampled_recall(generated, manifold, halves(number)),
            "spread": metrics.spread(generated, verdict.classes, self.variances, counts),
        }
        distance = metrics.fid(generated, self.features)
        kernel = metrics.kid(generated, self.features)
        _, recall = metrics.precision_recall(generated, manifold)
        ones = np.ones((1, number))
        (spread,) = metrics.spread(generated, verdict.classes, self.variances, ones)
        figures |= {
            "fid": interval(distance, resampled["fid"], 0.0),
            "kid": interval(kernel, resampled["kid"]),
            "recall": interval(recall, resampled["recall"], 0.0, 1.0),
            "spread": interval(spread, resampled["spread"], 0.0),
        }
        return Assessment(figures, resampled)


def mean(values: Floats) -> Interval:
    """The mean of a figure over images, (N,)."""
    counts = bootstrap(len(values))
    return interval(float(values.mean()), counts @ values / len(values))


def hit_shares(
    verdict: Verdict, targets: NDArray[np.int64], parts: Mapping[str, NDArray[np.int64]]
) -> dict[str, Interval]:
    """The shares of images that the judge takes for their target, as a whole and by parts."""
    shares = _shares(verdict, targets, parts)
    counts = bootstrap(len(targets))
    return {name: _share(hits, counts) for name, hits in shares.items() if name != "sure"}


def _share(hits: Floats, counts: Floats) -> Interval:
    return share_interval(hits, counts @ hits / len(hits))


def _shares(
    verdict: Verdict, targets: NDArray[np.int64], parts: Mapping[str, NDArray[np.int64]]
) -> dict[str, Floats]:
    """By name, (N,) of 0 and 1."""
    seen = verdict.classes
    shares = {"hit": seen == targets}
    for name, words in parts.items():
        shares[f"hit_{name}"] = (seen >= 0) & (words[seen] == words[targets])
    shares["sure"] = verdict.confidence > SURE
    return {name: share.astype(np.float64) for name, share in shares.items()}


def _words(names: Sequence[str], parts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    split = [name.split() for name in names]
    if parts and (
        odd := [name for name, words in zip(names, split, strict=True) if len(words) != len(parts)]
    ):
        raise UsageError(
            f"class {odd[0]!r} does not have the {len(parts)} parts {', '.join(parts)}",
            hint="leave `parts` out of the experiment",
        )
    found = {}
    for position, part in enumerate(parts):
        column = [words[position] for words in split]
        found[part] = np.array([column.index(word) for word in column])
    return found


def _confusion(labels: NDArray[np.int64], seen: NDArray[np.int64], number: int) -> list[list[int]]:
    """Rows are what there is, columns what is seen."""
    known = seen >= 0
    table = np.bincount(labels[known] * number + seen[known], minlength=number * number)
    return table.reshape(number, number).tolist()
