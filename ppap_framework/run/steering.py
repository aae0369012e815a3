"""Guidance inside a sampling loop of another library: see `steering`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch

from ppap_framework.components import DiffusionBackend, Prediction
from ppap_framework.diffusion import shifted, times
from ppap_framework.errors import UsageError
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel
from ppap_framework.run.drawing import attached, guidance_of, models
from ppap_framework.run.plan import plan
from ppap_framework.run.settings import Compute, Sampling, changed
from ppap_framework.runtime import frozen, isolated

Steer: TypeAlias = Callable[[Prediction, float, float | None], Prediction]
"""Moves the prediction of B states at a base timestep t, as guided DDIM does that steps to the base
timestep in the third place; None for the end."""


@contextlib.contextmanager
def steering(
    backend: DiffusionBackend | str | object, guides: Sequence[Guide], num: int, **changes: Any
) -> Iterator[Steer]:
    """A context in which guides steer a loop that denoises `num` images at once by itself.

    Experts are attached and networks frozen; all is restored on exit. `changes` are fields of
    `Sampling` and `Compute`. `through` cannot be "clean": the graph of the denoiser is not known
    here. Errors as of `sample`.
    """
    sampling, compute = changed(changes, Sampling(), Compute())
    if sampling.through == "clean":
        fault = "guides that look through the denoiser need a loop of ours"
        raise UsageError(fault, hint="use through detached, or `ppap_framework.sample`")
    run = plan(backend, guides, num, sampling, compute)
    stage, schedule = run.stage, run.stage.schedule
    networks = [stage.network, *(guide.model for guide in run.guides)]
    with frozen(networks, run.device, move=False), attached(run) as aimed:
        guidance = guidance_of(run, [guide.rows(0, num) for guide in aimed])
        for model in models(aimed):
            model.to(run.device)

        @isolated()
        def steer(prediction: Prediction, t: float, to: float | None) -> Prediction:
            now = schedule.abar(times([t]))
            end = now.new_tensor([stage.final_abar]) if to is None else schedule.abar(times([to]))
            level, place = NoiseLevel(torch.logit(now).expand(num)), t / schedule.num_timesteps
            _, gradient = guidance(prediction.x_t, place, level, lambda _: prediction)
            constants = torch.cat([now, end.sqrt(), (1.0 - end).sqrt()]).to(prediction.x_t)
            return shifted(prediction, gradient, *constants)

        yield steer
