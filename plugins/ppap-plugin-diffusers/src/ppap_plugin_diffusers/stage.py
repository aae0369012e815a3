"""A pipeline of diffusers as a stage: its networks, and what its scheduler's config says they mean.

The samplers of the pipeline are not used. Classifier-free guidance (Ho and Salimans 2022, arXiv
2207.12598) happens in `denoise`: the output is u + s (c - u), with c the network's for the prompt
and u that for the negative prompt. A learned variance is that for the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from ppap_framework.author import AssetError, Prediction, Stage, UsageError, each_tensor
from ppap_plugin_diffusers.convention import convention_of
from ppap_plugin_diffusers.families import Family
from ppap_plugin_diffusers.options import DiffusersOptions
from ppap_plugin_diffusers.prompts import Arguments

__all__ = ["Condition", "DiffusersStage", "with_guidance"]


@final
@attrs.frozen(eq=False)
class Condition:
    """The prompts of B images, classes or texts, and the negative ones; none without guidance."""

    prompts: Sequence[Any]
    negatives: Sequence[Any]
    _read: dict[str, Any] = attrs.field(factory=dict, init=False)

    def arguments(self, stage: DiffusersStage, device: torch.device) -> Arguments:
        """Arguments of the network, read once for all steps."""
        if str(device) not in self._read:
            with torch.no_grad():
                made = stage.family.arguments(stage, self.prompts, self.negatives)
            self._read[str(device)] = each_tensor(lambda x: x.to(device), made)
        found: Arguments = self._read[str(device)]
        return found


@final
class _Networks(nn.Module):
    """The networks of a stage, moved and counted together; called, it is the denoiser."""

    def __init__(self, denoiser: nn.Module, others: dict[str, nn.Module]) -> None:
        super().__init__()
        self.denoiser = denoiser
        for name, network in others.items():
            self.add_module(name, network)

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.denoiser(*given, **named)


@final
class DiffusersStage(Stage):
    """The denoiser of a pipeline, its scheduler's process, and its decoder.

    Args:
        pipe: The pipeline.
        family: Its family.
        options: Options of the backend.
        vae: Decoder in place of the pipeline's own, if any.
    """

    name = "base"

    def __init__(
        self, pipe: Any, family: Family, options: DiffusersOptions, vae: nn.Module | None = None
    ) -> None:
        parts: dict[str, Any] = {name: getattr(pipe, name, None) for name in family.networks}
        parts = {name: part for name, part in parts.items() if part or name not in family.optional}
        if missing := [name for name, part in parts.items() if part is None]:
            fault = f"the {type(pipe).__name__} has no {' and no '.join(missing)}"
            raise AssetError(fault, hint="load it with all its components")
        denoiser = parts.pop(family.denoiser)
        if vae is not None and family.decoder:
            parts[family.decoder] = vae
        self.pipe, self.family, self.options = pipe, family, options
        self.decoder = parts[family.decoder] if family.decoder else None
        self.network = _Networks(denoiser, parts) if parts else denoiser
        channels, height, width = family.shape(pipe, denoiser)
        factor, wanted, whose = 1, 3, "colour images"
        if self.decoder is not None:
            ratio = getattr(self.decoder, "spatial_compression_ratio", None)
            factor = int(ratio or 2 ** (len(self.decoder.config.block_out_channels) - 1))
            wanted, whose = self.decoder.config.latent_channels, "the latents of its decoder"
            scale = self.decoder.config.scaling_factor
            if not (isinstance(scale, int | float) and 0 < scale < math.inf):
                fault = f"the scaling_factor of the {type(self.decoder).__name__} is {scale}"
                raise AssetError(fault, hint="correct it in its config.json")
        token = family.patch * (denoiser.config.get("patch_size") or 1)
        patch = token
        if type(denoiser).__name__ == "UNet2DModel":  # its skips need even sides at each level
            patch *= 2 ** (len(denoiser.config.block_out_channels) - 1)
        if options.size is not None:
            height = width = options.size // factor
            if options.size % (factor * patch):
                hint = f"use a multiple of {factor * patch}"
                raise UsageError(f"images cannot have a side of {options.size}", hint=hint)
        if any(type(side) is not int or side < 1 or side % patch for side in (height, width)):
            fault = f"the {type(pipe).__name__} draws {height!r} x {width!r}, by its sample_size"
            hint = f"give the sides of its images, a multiple of {factor * patch}, as option size"
            raise AssetError(fault, hint=hint)
        self.image_shape = (3, factor * height, factor * width)
        if self.decoder is not None:
            self.latent_shape = (channels, height, width)
        if channels != wanted or getattr(denoiser.config, "time_cond_proj_dim", None):
            distilled = "is distilled to few steps, and told a guidance scale"
            fault = distilled if channels == wanted else f"denoises {channels} channels"
            hint = f"one for any number of steps, of {whose}, which have {wanted} channels"
            raise AssetError(f"this {type(pipe).__name__} {fault}", hint=hint)
        outputs = denoiser.config.get("out_channels") or denoiser.config.in_channels
        doubled = outputs == 2 * denoiser.config.in_channels
        noise = pipe.config.get("noise_scale", 1.0)
        if not (isinstance(noise, int | float) and 0 < noise < math.inf):
            fault = f"the noise_scale of the {type(pipe).__name__} is {noise!r}"
            raise AssetError(fault, hint="correct it in its model_index.json")
        how = (height // token) * (width // token), family.ends_with_steps, noise
        self.convention = convention_of(pipe.scheduler, doubled, *how)
        self.schedule, self.variance = self.convention.schedule, self.convention.variance
        self.final_abar = self.convention.final_abar

    @property
    def encoder_device(self) -> torch.device:
        """The device of the networks that read prompts."""
        encoders = (getattr(self.pipe, name) for name in self.family.encoders)
        device: torch.device = next(encoder.device for encoder in encoders if encoder is not None)
        return device

    @property
    def text_width(self) -> int | None:
        """Length of the vector of a token of a text, if the network has a layer for them."""
        width: int | None = getattr(self.pipe, self.family.denoiser).config.get("encoder_hid_dim")
        return width

    @property
    def cfg(self) -> float | None:
        """Scale of classifier-free guidance; None for a family without."""
        own = self.options.cfg
        return self.family.cfg if own is None or self.family.cfg is None else own

    def timesteps(self, steps: int) -> list[float] | None:
        """As the scheduler spaces them."""
        return self.convention.timesteps(steps)

    def clip(self, x0: Tensor) -> Tensor:
        """As the scheduler's config says."""
        return self.convention.clip(x0)

    def decode(self, x0: Tensor) -> Tensor:
        """Images, (B, 3, H, W), of clean latents, (B, C, h, w); of images, the images."""
        if self.decoder is None:
            return x0
        config, z = self.decoder.config, x0
        mean, std = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is not None and std is not None:
            z = z * z.new_tensor(std)[:, None, None]
        z = z / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        if mean is not None and std is not None:
            z = z + z.new_tensor(mean)[:, None, None]
        dtype = next(self.decoder.parameters()).dtype
        images: Tensor = self.decoder.decode(z.to(dtype), return_dict=False)[0]
        return images.float()

    def encode(self, images: Tensor) -> Tensor:
        """Clean latents, (B, C, h, w), of images, (B, 3, H, W): the mode, if they have a
        distribution; of a pixel pipeline the images.
        """
        if self.decoder is None:
            return images
        found = self.decoder.encode(images.to(next(self.decoder.parameters()).dtype))
        z: Tensor = found[0] if isinstance(found[0], Tensor) else found.latent_dist.mode()
        config, z = self.decoder.config, z.float()
        mean, std = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
        z = (z - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
        if mean is not None and std is not None:
            mean, std = (z.new_tensor(each)[:, None, None] for each in (mean, std))
            z = (z - mean * config.scaling_factor) / std
        return z

    def evaluations(self, condition: Condition) -> int:
        """Two if classifier-free guidance applies, else one."""
        return 2 if condition.negatives else 1

    def denoise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        """Predict the clean state and the noise.

        Args:
            x_t: (B, C, H, W), float32.
            t: (B,), base timesteps.
            condition: Condition of the B images.
        """
        arguments = condition.arguments(self, x_t.device)
        fed, told = self.convention.fed(x_t, t.to(x_t.device))
        if condition.negatives:
            fed, told = torch.cat([fed, fed]), torch.cat([told, told])
        dtype = next(self.network.parameters()).dtype
        output = self.family.call(self.network, fed.to(dtype), told, arguments).float()
        if condition.negatives:
            assert self.cfg is not None
            output = with_guidance(output, x_t.shape[1], self.cfg)
        return self.convention.prediction(output, x_t, t)


def with_guidance(both: Tensor, channels: int, scale: float) -> Tensor:
    """u + s (c - u), (B, C', H, W), of the outputs u and c, (2B, C', H, W), whose first `channels`
    are no variance.
    """
    without, output = both.chunk(2)
    mean = without[:, :channels] + scale * (output - without)[:, :channels]
    return torch.cat([mean, output[:, channels:]], dim=1)
