"""The framework from Python: `backend`, `guide`, `sample`, and what `ppap run` needs of them."""

from __future__ import annotations

from ppap_framework.api._backend import FoundBackend, LoadedBackend, backend, find_backend
from ppap_framework.api._batches import first_batch
from ppap_framework.api._cost import Cost
from ppap_framework.api._drawing import Batch, Progress
from ppap_framework.api._estimate import Estimate, Look, estimate
from ppap_framework.api._experts import ChosenExperts, ExpertRequest, ExpertSource
from ppap_framework.api._folder import RunFolder, check_folder, check_writable, fresh_folder
from ppap_framework.api._found_guide import (
    DEFAULT_SCALE,
    FoundGuide,
    LoadedGuide,
    Loss,
    Scale,
    find_guide,
)
from ppap_framework.api._guide import guide
from ppap_framework.api._in_use import frozen, peak_memory, products_in
from ppap_framework.api._module_guide import FunctionLoss, ModuleGuide
from ppap_framework.api._origin import Origin
from ppap_framework.api._pictures import to_pictures
from ppap_framework.api._plan import Plan, check_backend, option_words, plan, scale_words
from ppap_framework.api._problems import Problems
from ppap_framework.api._result import Drawn, Result, Seen, Stats
from ppap_framework.api._sample import draw, sample
from ppap_framework.api._settings import Precision, SamplerName, Settings, find_device

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
