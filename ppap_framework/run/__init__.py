"""Runs from Python: `backend`, `guide` and `sample`; plans, the image loop, run folders."""

from __future__ import annotations

from ppap_framework.run.backend import FoundBackend, LoadedBackend, backend, find_backend
from ppap_framework.run.drawing import Drawing, drawing
from ppap_framework.run.estimate import Counts, counts_of, first_batch
from ppap_framework.run.folder import RunFolder, check_folder, check_writable, fresh_folder
from ppap_framework.run.plan import Plan, guide_origin, option_words, plan, scale_words
from ppap_framework.run.request import FunctionLoss, GuideRequest, Loss, ModuleGuide, guide
from ppap_framework.run.sample import Result, draw, sample
from ppap_framework.run.settings import Compute, Sampling, changed, check, settle

__all__ = [
    "Compute",
    "Counts",
    "Drawing",
    "FoundBackend",
    "FunctionLoss",
    "GuideRequest",
    "LoadedBackend",
    "Loss",
    "ModuleGuide",
    "Plan",
    "Result",
    "RunFolder",
    "Sampling",
    "backend",
    "changed",
    "check",
    "check_folder",
    "check_writable",
    "counts_of",
    "draw",
    "drawing",
    "find_backend",
    "first_batch",
    "fresh_folder",
    "guide",
    "guide_origin",
    "option_words",
    "plan",
    "sample",
    "scale_words",
    "settle",
]
