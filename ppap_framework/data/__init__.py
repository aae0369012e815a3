"""Training images: drawn by the diffusion model, or labelled ones from a file."""

from __future__ import annotations

from ppap_framework.data.images import Images, LabelledImages
from ppap_framework.data.reader import Fault, SyntheticData
from ppap_framework.data.synthesize import check_synthesis, synthesize

__all__ = ["Fault", "Images", "LabelledImages", "SyntheticData", "check_synthesis", "synthesize"]
