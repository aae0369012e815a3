r"""What a scheduler's config says about a network, in the convention of `Prediction`.

Classic networks look at x_t = alpha x_0 + sigma eps and predict eps ("epsilon"), x_0 ("sample") or
alpha eps - sigma x_0 ("v_prediction"). Schedulers that keep x_t / alpha, such as Euler's, scale it
back before the network sees it, so their networks are classic ones.

Networks of flow matching look at y = (1 - s) x_0 + s eps and predict v = eps - x_0, so that x_0 is
y - s v. In the variance-preserving form y is c x_t with c = sqrt((1 - s)^2 + s^2). They are told
1000 s. Noise of another standard deviation k, y = (1 - s) x_0 + s k eps, is the same process at
r = k s / (1 + (k - 1) s), since y / (1 + (k - 1) s) = (1 - r) x_0 + r eps; base timesteps count r.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ppap_framework.author import (
    AssetError,
    FlowSchedule,
    NoiseSchedule,
    Prediction,
    UsageError,
    VarianceKind,
)

__all__ = ["Convention", "convention_of"]

_PREDICTS: dict[str, Callable[..., Prediction]] = {
    "epsilon": Prediction.from_eps,
    "sample": Prediction.from_x0,
    "v_prediction": Prediction.from_v,
}
_LEAST = 1e-6  # of what is above 0
_VARIANCES: dict[str | None, VarianceKind] = {
    None: "fixed_small",
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned_range",
}


class Convention(abc.ABC):
    """How a network is fed and read, and at which timesteps."""

    schedule: NoiseSchedule
    variance: VarianceKind = "fixed_small"
    final_abar: float = 1.0
    doubled: bool = False
    """Whether the network predicts a variance, too, and so has twice the channels."""

    @abc.abstractmethod
    def timesteps(self, steps: int) -> list[float] | None:
        """As `Stage.timesteps`; UsageError if there are none."""

    @abc.abstractmethod
    def fed(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The network's image, (B, C, H, W), and timestep, (B,), at base timesteps t, (B,)."""

    @abc.abstractmethod
    def prediction(self, output: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """Of the network's output, (B, C, H, W) or (B, 2C, H, W), float32."""

    @abc.abstractmethod
    def output(self, prediction: Prediction, t: Tensor) -> Tensor:
        """The network's output, (B, C, H, W), that would have meant this prediction."""

    @abc.abstractmethod
    def base(self, told: float) -> float:
        """The base timestep at which the network is told this number."""

    @abc.abstractmethod
    def scale(self, scheduler: Any, told: float | None) -> float:
        """c with x_t = c z for what the scheduler keeps, z, at this number; None for the end. Of a
        scheduler that counts its steps, at the current one.
        """

    def clip(self, x0: Tensor) -> Tensor:
        """The predicted clean state as samplers use it; by default as it is."""
        return x0

    def alpha_sigma(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Each (B, 1, 1, 1), float64 if the device has it."""
        wide = torch.float32 if x_t.device.type == "mps" else torch.float64
        abar = self.schedule.abar(t)[:, None, None, None]
        return abar.sqrt().to(x_t.device, wide), (1.0 - abar).sqrt().to(x_t.device, wide)


def convention_of(
    scheduler: Any,
    doubled: bool,
    tokens: int = 1,
    ends_with_steps: bool = False,
    noise: float = 1.0,
) -> Convention:
    """The convention of a pipeline's scheduler.

    Args:
        scheduler: Any scheduler of diffusers; only its config and betas are used.
        doubled: Whether the network predicts a variance, too, and so has twice the channels.
        tokens: Length of the sequence to which dynamic shifting refers.
        ends_with_steps: See `Family`.
        noise: Standard deviation k of the noise of flow matching.

    Raises:
        AssetError: If the scheduler's process or prediction type is unknown, or a value of its
            config is none.
    """
    name, config = type(scheduler).__name__, scheduler.config
    try:
        if name == "FlowMatchEulerDiscreteScheduler":
            return _Flow(config, tokens, ends_with_steps, noise)
        if isinstance(getattr(scheduler, "betas", None), Tensor):
            return _Classic(name, config, scheduler.betas, doubled)
    except (UsageError, ArithmeticError, TypeError, ValueError) as error:
        fault = f"the config of the scheduler {name} cannot be used: {error}"
        raise AssetError(fault, hint="correct its scheduler_config.json") from error
    raise AssetError(
        f"the scheduler {name} is of no process that backend 'diffusers' knows",
        hint="one with betas, such as DDIMScheduler, or FlowMatchEulerDiscreteScheduler",
    )


def _number(config: Mapping[str, Any], key: str, default: float, least: float = 0.0) -> float:
    """A number of a config, from `least` on; `default` for None. ValueError if it is none."""
    value = config.get(key)
    number = default if value is None else float(value)
    if not (math.isfinite(number) and number >= least):
        raise ValueError(f"its {key} is {value!r}")
    return number


@final
class _Classic(Convention):
    """A variance-preserving process with betas.

    Args:
        name: Name of the scheduler, for messages.
        config: Its config.
        betas: (T,).
        doubled: Whether the network predicts a variance, too.
    """

    def __init__(self, name: str, config: Mapping[str, Any], betas: Tensor, doubled: bool) -> None:
        self._config, self.doubled = config, doubled
        self._predicts = config.get("prediction_type", "epsilon")
        self._spacing = config.get("timestep_spacing", "leading")
        variance = config.get("variance_type") or ("learned_range" if doubled else None)
        for key, value, known in (
            ("prediction_type", self._predicts, _PREDICTS),
            ("timestep_spacing", self._spacing, ("leading", "linspace", "trailing")),
            ("variance_type", variance, _VARIANCES),
        ):
            if value not in known:
                words = ", ".join(str(each) for each in known if each)
                hint = f"backend 'diffusers' knows {words}"
                raise AssetError(f"the {key} of {name} is {value!r}", hint=hint)
        self.variance = _VARIANCES[variance]
        if self.variance == "learned_range" and not doubled:
            fault = f"{name} wants a learned variance, and the network predicts none"
            raise AssetError(fault, hint="give it another variance_type, such as fixed_small")
        self.schedule = NoiseSchedule(str(config.get("beta_schedule")), betas.double().cpu())
        self._offset = int(_number(config, "steps_offset", 0))
        self._range = _number(config, "clip_sample_range", 1.0, _LEAST)
        self._most = max(1.0, _number(config, "sample_max_value", 1.0))
        self._ratio = _number(config, "dynamic_thresholding_ratio", 0.995)
        if self._ratio > 1.0:
            raise ValueError(f"its dynamic_thresholding_ratio is {self._ratio}")
        one = config.get("set_alpha_to_one", True)
        if not one or config.get("final_sigmas_type", "zero") == "sigma_min":
            self.final_abar = float(self.schedule.alphas_cumprod[0])

    def timesteps(self, steps: int) -> list[float] | None:
        length = self.schedule.num_timesteps
        if steps == 1 or steps not in range(1, length + 1):
            return None
        if self._spacing == "linspace":
            kept = np.linspace(0, length - 1, steps).round()
        elif self._spacing == "leading":
            kept = np.arange(steps) * (length // steps) + self._offset
        else:
            kept = np.round(np.arange(length, 0, -length / steps))[:steps][::-1] - 1
        if kept[-1] >= length:
            hint = f"use {steps - 1} or fewer: the scheduler's steps_offset shifts them"
            raise UsageError(f"there are no {steps} of {length} timesteps to sample at", hint=hint)
        return [int(t) for t in kept]

    def clip(self, x0: Tensor) -> Tensor:
        """By the config: in a range, by dynamic thresholding (Saharia et al. 2022, arXiv
        2205.11487, section 2.3), or not at all.
        """
        config = self._config
        if config.get("thresholding"):
            largest = torch.quantile(x0.abs().flatten(1), self._ratio, dim=1)[:, None, None, None]
            bound = largest.clamp(1.0, self._most)
            return x0.clamp(-bound, bound) / bound
        if config.get("clip_sample"):
            return x0.clamp(-self._range, self._range)
        return x0

    def fed(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x_t, t

    def prediction(self, output: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        variance = None
        if self.doubled:
            output, variance = output.chunk(2, dim=1)
        variance = variance if self.variance == "learned_range" else None
        return _PREDICTS[self._predicts](output, x_t, *self.alpha_sigma(x_t, t), variance)

    def output(self, prediction: Prediction, t: Tensor) -> Tensor:
        if self._predicts == "epsilon":
            return prediction.eps
        if self._predicts == "sample":
            return prediction.x0
        eps, x0 = prediction.eps, prediction.x0
        return prediction.alpha.to(x0) * eps - prediction.sigma.to(x0) * x0

    def base(self, told: float) -> float:
        return min(max(round(told), 0), self.schedule.num_timesteps - 1)

    def scale(self, scheduler: Any, told: float | None) -> float:
        """Schedulers of Euler's kind keep x_t / alpha."""
        one = torch.ones(1, dtype=torch.float64)
        return float(scheduler.scale_model_input(one, 0.0 if told is None else told))


@final
class _Flow(Convention):
    """Flow matching.

    Args:
        config: Config of a `FlowMatchEulerDiscreteScheduler`.
        tokens, ends_with_steps, noise: See `convention_of`.

    Raises:
        AssetError: If the config asks for a spacing of its own, such as Karras'.
    """

    def __init__(
        self, config: Mapping[str, Any], tokens: int, ends_with_steps: bool, noise: float
    ) -> None:
        for key in (
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "invert_sigmas",
            "stochastic_sampling",
            "shift_terminal",
        ):
            if config.get(key):
                hint = "backend 'diffusers' knows shift and dynamic shifting"
                raise AssetError(f"the scheduler's {key} is {config[key]!r}", hint=hint)
        self.schedule = FlowSchedule(int(config.get("num_train_timesteps", 1000)))
        shift = _number(config, "shift", 1.0, _LEAST)
        self._ends_with_steps, self._last = ends_with_steps, 1.0 / self.schedule.num_timesteps
        if config.get("use_dynamic_shifting"):
            low, high = (
                _number(config, f"{of}_image_seq_len", n)
                for of, n in (("base", 256), ("max", 4096))
            )
            least, most = _number(config, "base_shift", 0.5), _number(config, "max_shift", 1.15)
            mu = least + (most - least) * (tokens - low) / (high - low)
            shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        else:
            self._last = _shifted(self._last, shift)
        self._shift, self._noise = shift, noise

    def timesteps(self, steps: int) -> list[float] | None:
        """Evenly spaced, then shifted to s = a u / (1 + (a - 1) u) (Esser et al. 2024, arXiv
        2403.03206, section 5.3.2).
        """
        length = self.schedule.num_timesteps
        if steps not in range(1, length + 1):
            return None
        last = 1.0 / steps if self._ends_with_steps else self._last
        even = np.linspace(1.0, last, steps)[::-1]
        return [self.base(length * _shifted(u, self._shift)) for u in even]

    def fed(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        s = self._s(x_t, t)
        told = self.schedule.num_timesteps * s.flatten()
        return self._c(s).to(x_t) * x_t, told.to(x_t)

    def prediction(self, output: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        s, (y, _) = self._s(x_t, t), self.fed(x_t, t)
        x0 = y - s.to(x_t) * output
        return Prediction.from_x0(x0, x_t, *self.alpha_sigma(x_t, t))

    def output(self, prediction: Prediction, t: Tensor) -> Tensor:
        s, (y, _) = self._s(prediction.x_t, t), self.fed(prediction.x_t, t)
        return (y - prediction.x0) / s.to(y)

    def base(self, told: float) -> float:
        length = self.schedule.num_timesteps
        return float(length * _shifted(told / length, self._noise) - 1.0)

    def scale(self, scheduler: Any, told: float | None) -> float:
        s = torch.tensor((told or 0.0) / self.schedule.num_timesteps, dtype=torch.float64)
        return 1.0 / float(self._c(s))

    def _c(self, s: Tensor) -> Tensor:
        return ((1.0 - s) ** 2 + (self._noise * s) ** 2).sqrt()

    def _s(self, x_t: Tensor, t: Tensor) -> Tensor:
        """At base timesteps t, (B,): (B, 1, 1, 1)."""
        wide = torch.float32 if x_t.device.type == "mps" else torch.float64
        r = (t.to(x_t.device, wide) + 1.0)[:, None, None, None] / self.schedule.num_timesteps
        s: Tensor = _shifted(r, 1.0 / self._noise)
        return s


def _shifted(u: Any, shift: float) -> Any:
    """A number or a tensor in [0, 1], shifted."""
    return shift * u / (1.0 + (shift - 1.0) * u)
