"""How a row gets its scale and interval: the candidate that does best on tuning seeds.

What is best is the experiment's to say: by default the hit rate. It alone is no free lunch: it
rises with the scale for a while as quality and diversity fall. That is why distance and spread
stand beside it for every candidate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_framework.diagnosis.intervals import Floats, Interval, rounded
from ppap_plugin_bench import metrics
from ppap_plugin_bench.assessment import Reference, hit_shares, mean
from ppap_plugin_bench.experiment import Best
from ppap_plugin_bench.judge import Verdict
from ppap_plugin_bench.row import Candidate

__all__ = ["Trial", "choose", "trial"]


@attrs.frozen
class Trial:
    """What came of a candidate.

    Attributes:
        candidate: Scale and interval.
        figures: How far images show what they aim at, by name.
        fid: Of so few images; to compare candidates by, and with nothing else.
        spread: Likewise.
    """

    candidate: Candidate
    figures: dict[str, Interval]
    fid: float
    spread: float

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "scale": self.candidate.scale,
            "interval": list(self.candidate.interval),
            **{name: figure.record() for name, figure in self.figures.items()},
            "fid": rounded(self.fid),
            "spread": rounded(self.spread),
        }


def trial(
    candidate: Candidate,
    verdict: Verdict,
    targets: NDArray[np.int64],
    reference: Reference,
    of_scenes: Mapping[str, Floats],
) -> Trial:
    """Measure a candidate by what judges see in N images.

    Args:
        candidate: That drew them.
        verdict: What the judge sees.
        targets: (N,), the class that each was to show.
        reference: Pictures of which the truth is known.
        of_scenes: By name, (N,): how judges of scenes judge them.
    """
    features = reference.projection(verdict.features)
    ones = np.ones((1, len(features)))
    return Trial(
        candidate,
        hit_shares(verdict, targets, reference.parts)
        | {name: mean(values) for name, values in of_scenes.items()},
        metrics.fid(features, reference.features),
        float(metrics.spread(features, verdict.classes, reference.variances, ones)[0]),
    )


def choose(trials: Sequence[Trial], objective: Mapping[str, Best]) -> Trial:
    """The one that does best, and of several such the first.

    Args:
        trials: One at least.
        objective: Figures, and which of two values is better. Of several figures the mean counts,
            those that are better low taken as negative; one that is not finite is worst.
    """

    def score(made: Trial) -> float:
        signs = {"lower": -1.0, "higher": 1.0}
        values = [signs[best] * made.figures[name].value for name, best in objective.items()]
        found = float(np.mean(values))
        return found if math.isfinite(found) else -math.inf

    return max(trials, key=score)
