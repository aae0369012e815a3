"""Reverse diffusion: which timesteps to visit, one step, the whole walk, and the bound that trains the variance."""

from ppap_framework.sampling.process import Process
from ppap_framework.sampling.vlb import hybrid_loss, variational_bound_term

__all__ = ["Process", "hybrid_loss", "variational_bound_term"]
