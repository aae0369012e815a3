"""Diagnosis of a guide at each noise level, and boundaries for experts."""

from __future__ import annotations

from ppap_framework.diagnosis.diagnose import diagnose as diagnose
from ppap_framework.diagnosis.diagnose import disagreement as disagreement
from ppap_framework.diagnosis.diagnose import evenly_spaced as evenly_spaced
from ppap_framework.diagnosis.diagnose import noised as noised
from ppap_framework.diagnosis.proposal import MOST_EXPERTS as MOST_EXPERTS
from ppap_framework.diagnosis.proposal import propose_boundaries as propose_boundaries
from ppap_framework.diagnosis.proposal import propose_number as propose_number
from ppap_framework.diagnosis.proposal import rising_fit as rising_fit
from ppap_framework.diagnosis.record import Diagnosis as Diagnosis
