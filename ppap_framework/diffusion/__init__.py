"""Reverse diffusion: which timesteps to visit, a step, the walk, and the variational bound."""

from ppap_framework.diffusion.cascade import Continuation, cascade
from ppap_framework.diffusion.process import Process
from ppap_framework.diffusion.random import NoiseSource
from ppap_framework.diffusion.respacing import space_timesteps, timesteps_for
from ppap_framework.diffusion.steps import Step, ddim_inversion_step, ddim_step, ddpm_step
from ppap_framework.diffusion.vlb import hybrid_loss, variational_bound_term
from ppap_framework.diffusion.walk import Guidance, State, inversion, sample, trajectory

__all__ = [
    "Continuation",
    "Guidance",
    "NoiseSource",
    "Process",
    "State",
    "Step",
    "cascade",
    "ddim_inversion_step",
    "ddim_step",
    "ddpm_step",
    "hybrid_loss",
    "inversion",
    "sample",
    "space_timesteps",
    "timesteps_for",
    "trajectory",
    "variational_bound_term",
]
