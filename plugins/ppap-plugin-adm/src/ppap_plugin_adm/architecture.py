"""The architecture record of a checkpoint, and the network built from it.

{"official_class": "guided_diffusion.unet.UNetModel",
 "config": {...},                                      the constructor's arguments
 "process": {"schedule": "linear", "timesteps": 1000,  the process that it was trained on
             "predicts": "eps", "variance": "learned_range", "rescale_timesteps": false},
 "class_names": ["tench", ...],                        optional
 "upsampler": {"official_class": "guided_diffusion.unet.SuperResModel", optional
               "config": {...}, "process": {...},
               "recipe": {"respacing": "250", "eta": 1.0, "temperature": 1.0}}}

Names of the upsampler's weights begin with "upsampler.". Its recipe is optional; the default, shown
here, is the published one: ancestral sampling, but with the variance beta~ (see `CascadeSampling`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import attrs
import torch
from attrs.validators import deep_iterable, in_, instance_of, optional
from torch import nn

from ppap_framework.author import (
    AssetError,
    CascadeSampling,
    Checkpoint,
    NoiseSchedule,
    UsageError,
    VarianceKind,
    load_into,
    noise_schedule,
    read_architecture,
)
from ppap_plugin_adm._build import build
from ppap_plugin_adm.trunk import Trunk

__all__ = [
    "Architecture",
    "Predicts",
    "Process",
    "UpsamplerArchitecture",
    "class_names",
    "load_network",
    "load_with_upsampler",
]

_UPSAMPLER = "guided_diffusion.unet.SuperResModel"

Predicts = Literal["eps", "x0", "v"]


@attrs.frozen(kw_only=True)
class Process:
    """The diffusion process that a network was trained on.

    Attributes:
        schedule: Name of its noise schedule.
        timesteps: T, the number of base timesteps.
        predicts: Meaning of the network's first three output channels.
        variance: Variance of an ancestral step; "learned_range" takes three more output channels.
        rescale_timesteps: Whether the input of the network is t 1000 / T instead of t.
    """

    schedule: str = attrs.field(validator=instance_of(str))
    timesteps: int = attrs.field(validator=instance_of(int))
    predicts: Predicts = attrs.field(default="eps", validator=in_(get_args(Predicts)))
    variance: VarianceKind = attrs.field(
        default="learned_range", validator=in_(get_args(VarianceKind))
    )
    rescale_timesteps: bool = attrs.field(default=False, validator=instance_of(bool))

    def noise_schedule(self) -> NoiseSchedule:
        """The noise schedule.

        Raises:
            UsageError: If no schedule has that name and length.
        """
        return noise_schedule(self.schedule, self.timesteps)

    def network_timesteps(self, t: torch.Tensor) -> torch.Tensor:
        """Input of the network for base timesteps (B,)."""
        return t * (1000.0 / self.timesteps) if self.rescale_timesteps else t


def _process(value: Any) -> Process:
    if not isinstance(value, Mapping):
        raise TypeError(f"'process' must be an object, not {value!r}")
    process = Process(**value)
    process.noise_schedule()
    return process


def _recipe(value: Any) -> CascadeSampling:
    if isinstance(value, CascadeSampling):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"'recipe' must be an object, not {value!r}")
    return CascadeSampling(**value)


@attrs.frozen(kw_only=True)
class UpsamplerArchitecture:
    """An upsampler, its diffusion process and its sampling."""

    official_class: str = attrs.field(validator=in_((_UPSAMPLER,)))
    config: Mapping[str, Any] = attrs.field(validator=instance_of(dict))
    process: Process = attrs.field(converter=_process)
    recipe: CascadeSampling = attrs.field(
        default=CascadeSampling(respacing="250", eta=1.0), converter=_recipe
    )


def _upsampler(value: Any) -> UpsamplerArchitecture | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return UpsamplerArchitecture(**value)
    raise TypeError(f"'upsampler' must be an object, not {value!r}")


@attrs.frozen(kw_only=True)
class Architecture:
    """A network and its diffusion process; see the module docstring."""

    official_class: str = attrs.field(validator=instance_of(str))
    config: Mapping[str, Any] = attrs.field(validator=instance_of(dict))
    process: Process = attrs.field(converter=_process)
    class_names: Sequence[str] | None = attrs.field(
        default=None, validator=optional(deep_iterable(instance_of(str), instance_of(list)))
    )
    upsampler: UpsamplerArchitecture | None = attrs.field(default=None, converter=_upsampler)


def load_network(checkpoint: Checkpoint, expected: str) -> tuple[Trunk, Architecture]:
    """Build the network of a checkpoint and load it, frozen and in evaluation mode.

    Args:
        checkpoint: Checkpoint with an architecture record.
        expected: Published class that the caller requires.

    Raises:
        AssetError: If the architecture is not stated or cannot be built, is of another class, or
            the weights do not fit it.
    """
    network, architecture, _ = load_with_upsampler(checkpoint, expected)
    return network, architecture


def load_with_upsampler(
    checkpoint: Checkpoint, expected: str
) -> tuple[Trunk, Architecture, Trunk | None]:
    """As `load_network`, with the upsampler that the checkpoint holds, too, if it does."""
    architecture = read_architecture(checkpoint, Architecture)
    if architecture.official_class != expected:
        raise AssetError(
            f"{checkpoint.name!r} is a {architecture.official_class}",
            hint=f"a checkpoint of {expected} is wanted",
        )
    try:
        with torch.device("meta"):  # no initialisation: the weights replace it
            network = build(architecture.official_class, architecture.config)
            second = architecture.upsampler
            upsampler = None if second is None else build(second.official_class, second.config)
    except UsageError as error:
        raise AssetError(f"{checkpoint.name!r}: {error.message}", hint=error.hint) from error
    together: nn.Module = network
    if upsampler is not None:
        # The names of the base's weights have no prefix.
        together = nn.Module()
        for name, part in (*network.named_children(), ("upsampler", upsampler)):
            together.add_module(name, part)
    for each in filter(None, (network, upsampler)):
        if checkpoint.dtype is not None:
            each.cast_torso(checkpoint.dtype)  # on the meta device: weights are cast on loading
    load_into(together, checkpoint, channels_last=True)
    for each in filter(None, (network, upsampler)):
        each.requires_grad_(False).eval()
    return network, architecture, upsampler


def class_names(architecture: Architecture, count: int, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of a network's `count` classes; numbers if none are stated.

    Raises:
        AssetError: If the number of names is not `count`.
    """
    if architecture.class_names is None:
        return tuple(f"class {index}" for index in range(count))
    if len(architecture.class_names) != count:
        raise AssetError(
            f"{checkpoint.name!r} has {count} classes and names {len(architecture.class_names)}",
            hint="its architecture is stated wrongly",
        )
    return tuple(architecture.class_names)
