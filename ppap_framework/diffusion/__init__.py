"""Reverse diffusion: which timesteps to visit, a step, and the walk."""

from ppap_framework.diffusion.process import Process, space_timesteps, timesteps_for
from ppap_framework.diffusion.steps import Step, ddim_step, ddpm_step
from ppap_framework.diffusion.walk import (
    Continuation,
    Guidance,
    NoiseSource,
    State,
    cascade,
    inversion,
    trajectory,
)

__all__ = [
    "Continuation",
    "Guidance",
    "NoiseSource",
    "Process",
    "State",
    "Step",
    "cascade",
    "ddim_step",
    "ddpm_step",
    "inversion",
    "space_timesteps",
    "timesteps_for",
    "trajectory",
]
