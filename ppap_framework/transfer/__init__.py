"""Knowledge transfer without data: the diffusion model draws the images that it is done on.

data = synthesize(backend, num=2048, out="data")    # or SyntheticData("data"), if it is there
images = data.images([7, 3])                        # (2, 3, H, W), uint8
"""

from __future__ import annotations

from ppap_framework.transfer.synthesis import check_synthesis, synthesize
from ppap_framework.transfer.synthesis_data import Fault, SyntheticData

__all__ = ["Fault", "SyntheticData", "check_synthesis", "synthesize"]
