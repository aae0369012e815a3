"""How a row gets its scale and interval: the candidate that does best on tuning seeds.

The hit rate alone rises with the scale for a while as quality and diversity fall. Therefore FID and
spread are recorded for every candidate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from ppap_framework.diagnosis.intervals import Interval, rounded
from ppap_plugin_bench.assessment import Observations, Reference, hit_shares, mean
from ppap_plugin_bench.experiment import Better
from ppap_plugin_bench.row import Candidate

__all__ = ["Trial", "choose", "trial"]


@attrs.frozen
class Trial:
    """The figures of a candidate.

    Attributes:
        candidate: Scale and interval.
        figures: Figures of fidelity by name.
        fid: FID of so few images, to compare candidates only; `spread` likewise.
    """

    candidate: Candidate
    figures: dict[str, Interval]
    fid: float
    spread: float

    def record(self) -> dict[str, Any]:
        """JSON."""
        return {
            "scale": self.candidate.scale,
            "interval": list(self.candidate.interval),
            **{name: figure.record() for name, figure in self.figures.items()},
            "fid": rounded(self.fid),
            "spread": rounded(self.spread),
        }


def trial(candidate: Candidate, seen: Observations, reference: Reference) -> Trial:
    """Measure a candidate by what judges see in its images."""
    figures = hit_shares(seen, reference.parts)
    figures |= {name: mean(values) for name, values in seen.of_scenes.items()}
    return Trial(candidate, figures, reference.fid(seen), reference.spread(seen))


def choose(trials: Sequence[Trial], objective: Mapping[str, Better]) -> Trial:
    """The first of the best trials.

    Args:
        trials: One at least.
        objective: Figures by name, and which value is better. The mean of several counts, those
            that are better low negated; a mean that is not finite is worst.
    """
    signs = {"lower": -1.0, "higher": 1.0}

    def score(made: Trial) -> float:
        values = [signs[better] * made.figures[name].value for name, better in objective.items()]
        found = float(np.mean(values))
        return found if math.isfinite(found) else -math.inf

    return max(trials, key=score)
