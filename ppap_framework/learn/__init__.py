"""Knowledge transfer without data: the diffusion model draws the training images.

data = synthesize(backend, num=2048, out="data")        # or SyntheticData("data"), if it exists
bundle = transfer(backend, "classifier", data, out="experts")
bundle = adapt(backend, "classifier", out="experts")    # both steps
"""

from __future__ import annotations

from ppap_framework.learn.calibration import calibrate
from ppap_framework.learn.plan import load_teacher
from ppap_framework.learn.recipe import Adapters, Boundaries, Recipe
from ppap_framework.learn.transfer import adapt, check_adapt, check_transfer, transfer

__all__ = [
    "Adapters",
    "Boundaries",
    "Recipe",
    "adapt",
    "calibrate",
    "check_adapt",
    "check_transfer",
    "load_teacher",
    "transfer",
]
