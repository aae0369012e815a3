"""Guidance: gradients of guides' energies at x_t or at the predicted clean image."""

from ppap_framework.guidance.energy import EnergyGuidance, Through
from ppap_framework.guidance.guide import Guide
from ppap_framework.guidance.statistics import GuidanceStatistics, GuideStatistics

__all__ = ["EnergyGuidance", "GuidanceStatistics", "Guide", "GuideStatistics", "Through"]
