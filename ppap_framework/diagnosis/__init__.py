"""Diagnosis of a guide at each noise level, and boundaries for experts."""

from __future__ import annotations

from ppap_framework.diagnosis.diagnose import diagnose, disagreement, evenly_spaced, noised
from ppap_framework.diagnosis.proposal import (
    MOST_EXPERTS,
    propose_boundaries,
    propose_number,
    rising_fit,
)
from ppap_framework.diagnosis.record import Diagnosis, Reading

__all__ = [
    "MOST_EXPERTS",
    "Diagnosis",
    "Reading",
    "diagnose",
    "disagreement",
    "evenly_spaced",
    "noised",
    "propose_boundaries",
    "propose_number",
    "rising_fit",
]
