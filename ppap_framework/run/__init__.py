"""The framework from Python: `backend`, `guide`, `sample`, and what `ppap run` needs of them."""

from __future__ import annotations

from ppap_framework.run.backend import FoundBackend, LoadedBackend, backend, find_backend
from ppap_framework.run.batches import first_batch
from ppap_framework.run.cost import Cost
from ppap_framework.run.drawing import Batch, Progress
from ppap_framework.run.estimate import Estimate, Look, estimate
from ppap_framework.run.experts import ChosenExperts, ExpertRequest, ExpertSource
from ppap_framework.run.folder import RunFolder, check_folder, check_writable, fresh_folder
from ppap_framework.run.found_guide import (
    DEFAULT_SCALE,
    FoundGuide,
    LoadedGuide,
    Loss,
    Scale,
    find_guide,
)
from ppap_framework.run.guide import guide
from ppap_framework.run.in_use import frozen, peak_memory, products_in
from ppap_framework.run.module_guide import FunctionLoss, ModuleGuide
from ppap_framework.run.origin import Origin
from ppap_framework.run.pictures import to_pictures
from ppap_framework.run.plan import Plan, check_backend, option_words, plan, scale_words
from ppap_framework.run.problems import Problems
from ppap_framework.run.result import Drawn, Result, Seen, Stats
from ppap_framework.run.sample import draw, sample
from ppap_framework.run.settings import Precision, SamplerName, Settings, find_device

__all__ = [
    "DEFAULT_SCALE",
    "Batch",
    "ChosenExperts",
    "Cost",
    "Drawn",
    "Estimate",
    "ExpertRequest",
    "ExpertSource",
    "FoundBackend",
    "FoundGuide",
    "FunctionLoss",
    "LoadedBackend",
    "LoadedGuide",
    "Look",
    "Loss",
    "ModuleGuide",
    "Origin",
    "Plan",
    "Precision",
    "Problems",
    "Progress",
    "Result",
    "RunFolder",
    "SamplerName",
    "Scale",
    "Seen",
    "Settings",
    "Stats",
    "backend",
    "check_backend",
    "check_folder",
    "check_writable",
    "draw",
    "estimate",
    "find_backend",
    "find_device",
    "find_guide",
    "first_batch",
    "fresh_folder",
    "frozen",
    "guide",
    "option_words",
    "peak_memory",
    "plan",
    "products_in",
    "sample",
    "scale_words",
    "to_pictures",
]
