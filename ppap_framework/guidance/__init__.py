"""Guidance: gradients of guides' energies at x_t or at the predicted clean image."""

from ppap_framework.guidance.energy import Conflicts as Conflicts
from ppap_framework.guidance.energy import EnergyGuidance as EnergyGuidance
from ppap_framework.guidance.guide import Guide as Guide
from ppap_framework.guidance.guide import Scale as Scale
from ppap_framework.guidance.guide import Through as Through
from ppap_framework.guidance.guide import raw_scale as raw_scale
from ppap_framework.guidance.guide import scale_problems as scale_problems
from ppap_framework.guidance.statistics import GuidanceStatistics as GuidanceStatistics
from ppap_framework.guidance.statistics import Tally as Tally
