"""Evaluation: rows of a table drawn, judged, timed, and reported with intervals."""

from __future__ import annotations

from ppap_framework.evaluation.cost import Cost
from ppap_framework.evaluation.diagnose import diagnose
from ppap_framework.evaluation.diagnosis import Clean, Diagnosis, Reading
from ppap_framework.evaluation.evaluate import bench, evaluate
from ppap_framework.evaluation.experiment import Experiment, Row, Timing, Tuning, read_experiment
from ppap_framework.evaluation.intervals import Interval
from ppap_framework.evaluation.pictures import Pictures, read_pictures
from ppap_framework.evaluation.report import report

__all__ = [
    "Clean",
    "Cost",
    "Diagnosis",
    "Experiment",
    "Interval",
    "Pictures",
    "Reading",
    "Row",
    "Timing",
    "Tuning",
    "bench",
    "diagnose",
    "evaluate",
    "read_experiment",
    "read_pictures",
    "report",
]
