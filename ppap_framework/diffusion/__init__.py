"""Reverse diffusion: which timesteps to visit, a step, and the walk."""

from ppap_framework.diffusion.process import Process as Process
from ppap_framework.diffusion.process import space_timesteps as space_timesteps
from ppap_framework.diffusion.process import times as times
from ppap_framework.diffusion.process import timesteps_for as timesteps_for
from ppap_framework.diffusion.walk import Guidance as Guidance
from ppap_framework.diffusion.walk import NoiseSource as NoiseSource
from ppap_framework.diffusion.walk import Step as Step
from ppap_framework.diffusion.walk import cascade as cascade
from ppap_framework.diffusion.walk import ddim_step as ddim_step
from ppap_framework.diffusion.walk import ddpm_step as ddpm_step
from ppap_framework.diffusion.walk import noised as noised
from ppap_framework.diffusion.walk import repeated as repeated
from ppap_framework.diffusion.walk import shifted as shifted
from ppap_framework.diffusion.walk import trajectory as trajectory
