"""How a row gets its scale and interval: the candidate with the highest hit rate on tuning seeds.

Hit rate alone is no free lunch: it rises with the scale for a while as quality and diversity fall.
That is why distance and spread stand beside it for every candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_framework.evaluation import metrics
from ppap_framework.evaluation.assessment import Reference, hit_share
from ppap_framework.evaluation.experiment import Candidate
from ppap_framework.evaluation.intervals import Interval, rounded
from ppap_framework.evaluation.judge import Verdict

__all__ = ["OBJECTIVE", "Trial", "choose", "trial"]

OBJECTIVE = "hit"


@attrs.frozen
class Trial:
    """What came of a candidate.

    Attributes:
        candidate: Scale and interval.
        hit: The share of images that the judge takes for their target.
        fid: Of so few images; to compare candidates by, and with nothing else.
        spread: Likewise.
    """

    candidate: Candidate
    hit: Interval
    fid: float
    spread: float

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "scale": self.candidate.scale,
            "interval": list(self.candidate.interval),
            "hit": self.hit.record(),
            "fid": rounded(self.fid),
            "spread": rounded(self.spread),
        }


def trial(
    candidate: Candidate, verdict: Verdict, targets: NDArray[np.int64], reference: Reference
) -> Trial:
    """Measure a candidate by what the judge sees in N images, which aimed at `targets`, (N,)."""
    features = reference.projection(verdict.features)
    ones = np.ones((1, len(features)))
    return Trial(
        candidate,
        hit_share(verdict, targets),
        metrics.fid(features, reference.features),
        float(metrics.spread(features, verdict.classes, reference.variances, ones)[0]),
    )


def choose(trials: Sequence[Trial]) -> Trial:
    """The one with the highest hit rate, and of several such the first."""
    return max(trials, key=lambda made: made.hit.value)
