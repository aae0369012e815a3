"""Knowledge transfer without data: the diffusion model draws the images that it is done on.

data = synthesize(backend, num=2048, out="data")    # or SyntheticData("data"), if it is there
bundle = transfer(backend, "classifier", data, out="experts")
bundle = adapt(backend, "classifier", out="experts")    # both in one
"""

from __future__ import annotations

from ppap_framework.transfer.adapt import adapt, check_adapt
from ppap_framework.transfer.boundaries import Boundaries
from ppap_framework.transfer.calibration import Calibrated, Calibration, calibrate
from ppap_framework.transfer.images import Images, LabelledImages
from ppap_framework.transfer.recipe import Phase, Recipe
from ppap_framework.transfer.synthesis import check_synthesis, synthesize
from ppap_framework.transfer.synthesis_data import Fault, SyntheticData
from ppap_framework.transfer.teacher import Teacher, teacher
from ppap_framework.transfer.transfer import Learned, check_transfer, transfer
from ppap_framework.transfer.transfer_plan import DEFAULT_ADAPTERS, Adapters

__all__ = [
    "DEFAULT_ADAPTERS",
    "Adapters",
    "Boundaries",
    "Calibrated",
    "Calibration",
    "Fault",
    "Images",
    "LabelledImages",
    "Learned",
    "Phase",
    "Recipe",
    "SyntheticData",
    "Teacher",
    "adapt",
    "calibrate",
    "check_adapt",
    "check_synthesis",
    "check_transfer",
    "synthesize",
    "teacher",
    "transfer",
]
