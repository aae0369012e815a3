"""Knowledge transfer without data: the diffusion model draws the images that it is done on.

data = synthesize(backend, num=2048, out="data")    # or SyntheticData("data"), if it is there
bundle = transfer(backend, "classifier", data, out="experts")
bundle = adapt(backend, "classifier", out="experts")    # both in one
"""

from __future__ import annotations

from ppap_framework.learn.adapt import adapt, check_adapt
from ppap_framework.learn.boundaries import Boundaries
from ppap_framework.learn.calibration import Calibrated, Calibration, calibrate
from ppap_framework.learn.plan import DEFAULT_ADAPTERS, Adapters
from ppap_framework.learn.recipe import Phase, Recipe
from ppap_framework.learn.teacher import Teacher, teacher
from ppap_framework.learn.transfer import Learned, check_transfer, transfer

__all__ = [
    "DEFAULT_ADAPTERS",
    "Adapters",
    "Boundaries",
    "Calibrated",
    "Calibration",
    "Learned",
    "Phase",
    "Recipe",
    "Teacher",
    "adapt",
    "calibrate",
    "check_adapt",
    "check_transfer",
    "teacher",
    "transfer",
]
