"""Guidance: gradients of guides' energies at x_t or at the predicted clean image."""

from ppap_framework.guidance.energy import Conflicts, EnergyGuidance, Through
from ppap_framework.guidance.guide import Guide, Scale, check_calibrated, raw_scale, scale_problems
from ppap_framework.guidance.statistics import GuidanceStatistics, Tally

__all__ = [
    "Conflicts",
    "EnergyGuidance",
    "GuidanceStatistics",
    "Guide",
    "Scale",
    "Tally",
    "Through",
    "check_calibrated",
    "raw_scale",
    "scale_problems",
]
