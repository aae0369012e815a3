"""Experiments: draws, judges and times rows of a table, and reports them with intervals."""

from __future__ import annotations

from ppap_plugin_bench.evaluate import bench, evaluate
from ppap_plugin_bench.experiment import Experiment, JudgeSpec, SceneFile, Timing
from ppap_plugin_bench.experiment_file import read_experiment
from ppap_plugin_bench.pictures import Pictures, read_pictures
from ppap_plugin_bench.report import report
from ppap_plugin_bench.row import Row, row_guide

__all__ = [
    "Experiment",
    "JudgeSpec",
    "Pictures",
    "Row",
    "SceneFile",
    "Timing",
    "bench",
    "evaluate",
    "read_experiment",
    "read_pictures",
    "report",
    "row_guide",
]
