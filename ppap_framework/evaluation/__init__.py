"""Evaluation: rows of a table drawn, judged, timed, and reported with intervals."""

from __future__ import annotations

from ppap_framework.evaluation.cost import Cost
from ppap_framework.evaluation.diagnose import diagnose
from ppap_framework.evaluation.diagnosis import Clean, Diagnosis, Reading
from ppap_framework.evaluation.evaluate import bench, evaluate
from ppap_framework.evaluation.experiment import (
    DenseJudge,
    Experiment,
    SceneFile,
    Timing,
    Tuning,
)
from ppap_framework.evaluation.experiment_file import read_experiment
from ppap_framework.evaluation.intervals import Interval
from ppap_framework.evaluation.pictures import Pictures, Scenes, read_pictures, read_scenes
from ppap_framework.evaluation.report import report
from ppap_framework.evaluation.row import Row, RowGuide

__all__ = [
    "Clean",
    "Cost",
    "DenseJudge",
    "Diagnosis",
    "Experiment",
    "Interval",
    "Pictures",
    "Reading",
    "Row",
    "RowGuide",
    "SceneFile",
    "Scenes",
    "Timing",
    "Tuning",
    "bench",
    "diagnose",
    "evaluate",
    "read_experiment",
    "read_pictures",
    "read_scenes",
    "report",
]
