r"""DPM-Solver++(2M), a multistep solver, deterministic or stochastic.

With lambda = log(alpha / sigma), h = lambda_{i-1} - lambda_i and the x_0 of the step before,

    D = x_0 + h / (2 h') (x_0 - x_0')

    ODE:  x_{i-1} = (sigma_{i-1} / sigma_i) x_i + alpha_{i-1} (1 - e^-h) D
    SDE:  x_{i-1} = (sigma_{i-1} / sigma_i) e^-h x_i + alpha_{i-1} (1 - e^-2h) D
                    + sigma_{i-1} sqrt(1 - e^-2h) z

(Lu et al. 2022, arXiv 2211.01095, algorithm 2 and section 6). Without a step before, and in a step
to an image without noise, D is x_0: the first orders are DDIM, and the SDE's ancestral sampling.
"""

from __future__ import annotations

from typing import final

import attrs
import torch
from torch import Tensor

from ppap_framework.components import Prediction
from ppap_framework.diffusion.process import Process
from ppap_framework.diffusion.walk import shifted


@final
@attrs.define(eq=False)
class DPMSolver:
    """A `Step` of second order that remembers the last one, guided through the score.

    It may serve one walk after another: a step that does not follow the last one has the first
    order.

    Attributes:
        stochastic: Solve the SDE, not the probability flow ODE.
    """

    stochastic: bool = False
    _last: tuple[Process, int, Tensor, Tensor] | None = attrs.field(default=None, init=False)

    def __call__(
        self,
        process: Process,
        index: int,
        prediction: Prediction,
        noise: Tensor,
        gradient: Tensor | None,
        /,
    ) -> tuple[Tensor, Prediction]:
        """See `ppap_framework.diffusion.Step`."""
        x_t = prediction.x_t
        abar, to = process.alphas_cumprod[index], process.alphas_cumprod_prev[index]
        decay = (abar * (1.0 - to) / ((1.0 - abar) * to)).sqrt()  # e^-h
        kept = ((1.0 - to) / (1.0 - abar)).sqrt() * (decay if self.stochastic else 1.0)
        drawn = 1.0 - (decay**2 if self.stochastic else decay)
        gained = (to.sqrt() * drawn).to(x_t.dtype)
        # The state moves with x_0 by `gained` alone, whether noise is added or not.
        prediction = shifted(
            prediction, gradient, abar.to(gained), gained, torch.zeros_like(gained)
        )
        x0, step = prediction.x0, (torch.logit(to) - torch.logit(abar)) / 2.0
        last, self._last = self._last, (process, index, step, x0)
        if last is not None and last[:2] == (process, index + 1) and to < 1.0:
            x0 = x0 + (step / (2.0 * last[2])).to(x0.dtype) * (x0 - last[3])
        x = kept.to(x_t.dtype) * x_t + gained * x0
        if self.stochastic and to < 1.0:
            x = x + ((1.0 - to) * drawn).sqrt().to(x_t.dtype) * noise.to(x)
        return x, prediction
