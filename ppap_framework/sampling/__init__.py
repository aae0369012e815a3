"""Reverse diffusion: which timesteps to visit, a step, the walk, and the variational bound."""

from ppap_framework.sampling.process import Process
from ppap_framework.sampling.vlb import hybrid_loss, variational_bound_term

__all__ = ["Process", "hybrid_loss", "variational_bound_term"]
