"""Evaluation: rows of a table drawn, judged, timed, and reported with intervals."""

from __future__ import annotations

from ppap_framework.diagnosis.diagnose import diagnose
from ppap_framework.diagnosis.intervals import Interval
from ppap_framework.diagnosis.record import Clean, Diagnosis, Reading
from ppap_plugin_bench.cost import Cost
from ppap_plugin_bench.evaluate import bench, evaluate
from ppap_plugin_bench.experiment import (
    DenseJudge,
    Experiment,
    SceneFile,
    Timing,
    Tuning,
)
from ppap_plugin_bench.experiment_file import read_experiment
from ppap_plugin_bench.pictures import Pictures, Scenes, read_pictures, read_scenes
from ppap_plugin_bench.report import report
from ppap_plugin_bench.row import Row, RowGuide

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
