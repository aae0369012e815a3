"""The families of pipelines, and what distinguishes them: one record each.

A family says which components of the pipeline denoise and decode, what a prompt is, by which
function of `prompts` it becomes arguments of the network, and how the network is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from ppap_framework.author import AssetError
from ppap_plugin_diffusers.prompts import (
    Arguments,
    aura_texts,
    chroma_texts,
    classes,
    flux_texts,
    listed_texts,
    masked_texts,
    prx_texts,
    sd3_texts,
    texts,
    xl_texts,
)

__all__ = [
    "FAMILIES",
    "UPSAMPLER",
    "Family",
    "class_names",
    "family_of",
    "packed",
    "unpacked",
]


def _plain(network: Any, x: Tensor, t: Tensor, arguments: Arguments) -> Tensor:
    output: Tensor = network(x, timestep=t, **arguments, return_dict=False)[0]
    return output


def _by_share(network: Any, x: Tensor, t: Tensor, arguments: Arguments) -> Tensor:
    """A network whose time is s."""
    return _plain(network, x, t / 1000.0, arguments)


def _by_clean_images(network: Any, x: Tensor, t: Tensor, arguments: Arguments) -> Tensor:
    """The velocity of a network that predicts x_0, (x - x_0) / s; s is at least 0.05 there."""
    x0, s = _by_share(network, x, t, arguments), (t / 1000.0)[:, None, None, None]
    return (x - x0) / s.clamp_min(0.05)


def _reversed(network: Any, x: Tensor, t: Tensor, arguments: Arguments) -> Tensor:
    """A network of lists of videos whose time is 1 - s, and which predicts x_0 - eps."""
    states = [*x.unsqueeze(2)]
    output = network(states, 1.0 - t / 1000.0, **arguments, return_dict=False)[0]
    return -torch.stack(output).squeeze(2)


def _packed(network: Any, x: Tensor, t: Tensor, arguments: Arguments) -> Tensor:
    """A network of tokens, each of which holds a square of 2 x 2; its time is s."""
    _, _, height, width = x.shape
    tokens = packed(x)
    places = torch.cartesian_prod(torch.arange(height // 2), torch.arange(width // 2)).to(x)
    places = nn.functional.pad(places, (1, 0))
    output = network(tokens, timestep=t / 1000.0, img_ids=places, **arguments, return_dict=False)
    return unpacked(output[0], height, width)


def packed(x: Tensor) -> Tensor:
    """Tokens, (B, H W / 4, 4 C), of a state, (B, C, H, W)."""
    return nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `packed`."""
    grid = tokens.transpose(1, 2).reshape(len(tokens), -1, height // 2, width // 2)
    return nn.functional.pixel_shuffle(grid, 2)


def _square(pipe: Any, denoiser: Any) -> tuple[int, int, int]:
    size = denoiser.config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return denoiser.config.in_channels, height, width


def _by_pipeline(pipe: Any, denoiser: Any) -> tuple[int, int, int]:
    own = pipe.config.get("default_sample_size")
    side = own or getattr(pipe, "default_sample_size", 1024)
    side //= pipe.vae_scale_factor
    return denoiser.config.in_channels, side, side


def _unpacked(pipe: Any, denoiser: Any) -> tuple[int, int, int]:
    return denoiser.config.in_channels // 4, pipe.default_sample_size, pipe.default_sample_size


@attrs.frozen(kw_only=True)
class Family:
    """Pipelines that are driven alike.

    Attributes:
        name: Name for people.
        pipelines: Class names of the pipelines.
        denoiser: Name of the component that denoises.
        decoder: Name of the component that makes images of latents; None if x_t is an image.
        prompt: What a prompt is; a pipeline of "classes" without any takes none.
        cfg: Default scale of classifier-free guidance; None for a family without.
        encoders: Names of the components that read prompts; the pipeline may lack the `optional`
            ones.
        arguments: Of a stage, B prompts, and as many negative ones or none, `Arguments`.
        call: Of the network, its images, timesteps and arguments, its output, (B, C', H, W).
        shape: Of the pipeline and its denoiser, (C, H, W) of x_t.
        ends_with_steps: Whether flow matching in n steps is spaced from s = 1 to 1 / n before it is
            shifted, and not to the first base timestep.
        patch: Sides of x_t are multiples of it, and of the network's `patch_size`, if any.
    """

    name: str
    pipelines: tuple[str, ...]
    denoiser: str = "unet"
    decoder: str | None = None
    prompt: Literal["classes", "text"] = "classes"
    cfg: float | None = None
    encoders: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    arguments: Callable[[Any, Sequence[Any], Sequence[Any]], Arguments] = classes
    call: Callable[[Any, Tensor, Tensor, Arguments], Tensor] = _plain
    shape: Callable[[Any, Any], tuple[int, int, int]] = _square
    ends_with_steps: bool = False
    patch: int = 1

    @property
    def packs(self) -> bool:
        """Whether the pipeline keeps x_t as tokens."""
        return self.call is _packed

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the components that are networks, the denoiser first."""
        decoder = () if self.decoder is None else (self.decoder,)
        return (self.denoiser, *decoder, *self.encoders, *self.optional)


FAMILIES = (
    Family(name="pixel U-Nets", pipelines=("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")),
    Family(name="latent diffusion (LDM)", pipelines=("LDMPipeline",), decoder="vqvae"),
    Family(
        name="DiT",
        pipelines=("DiTPipeline",),
        denoiser="transformer",
        decoder="vae",
        cfg=4.0,
    ),
    Family(
        name="Stable Diffusion 1 and 2",
        pipelines=("StableDiffusionPipeline",),
        decoder="vae",
        prompt="text",
        cfg=7.5,
        encoders=("text_encoder",),
        arguments=texts,
    ),
    Family(
        name="Stable Diffusion XL",
        pipelines=("StableDiffusionXLPipeline",),
        decoder="vae",
        prompt="text",
        cfg=5.0,
        encoders=("text_encoder", "text_encoder_2"),
        arguments=xl_texts,
    ),
    Family(
        name="PixArt",
        pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        denoiser="transformer",
        decoder="vae",
        prompt="text",
        cfg=4.5,
        encoders=("text_encoder",),
        arguments=masked_texts,
    ),
    Family(
        name="Stable Diffusion 3",
        pipelines=("StableDiffusion3Pipeline",),
        denoiser="transformer",
        decoder="vae",
        prompt="text",
        cfg=7.0,
        encoders=("text_encoder", "text_encoder_2"),
        optional=("text_encoder_3",),
        arguments=sd3_texts,
    ),
    Family(
        name="Flux",
        pipelines=("FluxPipeline",),
        denoiser="transformer",
        decoder="vae",
        patch=2,
        prompt="text",
        encoders=("text_encoder", "text_encoder_2"),
        arguments=flux_texts,
        call=_packed,
        shape=_unpacked,
        ends_with_steps=True,
    ),
    Family(
        name="Chroma",
        pipelines=("ChromaPipeline",),
        denoiser="transformer",
        decoder="vae",
        patch=2,
        prompt="text",
        cfg=5.0,
        encoders=("text_encoder",),
        arguments=chroma_texts,
        call=_packed,
        shape=_unpacked,
        ends_with_steps=True,
    ),
    Family(
        name="Z-Image",
        pipelines=("ZImagePipeline",),
        denoiser="transformer",
        decoder="vae",
        patch=2,
        prompt="text",
        cfg=6.0,
        encoders=("text_encoder",),
        arguments=listed_texts,
        call=_reversed,
        shape=_by_pipeline,
        ends_with_steps=True,
    ),
    Family(
        name="AuraFlow",
        pipelines=("AuraFlowPipeline",),
        denoiser="transformer",
        decoder="vae",
        prompt="text",
        cfg=3.5,
        encoders=("text_encoder",),
        arguments=aura_texts,
        call=_by_share,
    ),
    Family(
        name="PRX",
        pipelines=("PRXPipeline",),
        denoiser="transformer",
        decoder="vae",
        prompt="text",
        cfg=4.0,
        encoders=("text_encoder",),
        arguments=prx_texts,
        call=_by_share,
        shape=_by_pipeline,
    ),
    Family(
        name="PRX, pixels",
        pipelines=("PRXPixelPipeline",),
        denoiser="transformer",
        prompt="text",
        cfg=4.0,
        encoders=("text_encoder",),
        arguments=prx_texts,
        call=_by_clean_images,
        shape=_by_pipeline,
    ),
    Family(
        name="DeepFloyd IF, stage I",
        pipelines=("IFPipeline",),
        prompt="text",
        cfg=7.0,
        encoders=("text_encoder",),
        arguments=texts,
    ),
)


UPSAMPLER = Family(name="DeepFloyd IF, stage II", pipelines=("IFSuperResolutionPipeline",))
"""Goes on from the images of stage I, and draws nothing alone."""


def family_of(pipeline: str, also: Sequence[Family] = ()) -> Family:
    """The family of a pipeline class, by name, also from others; AssetError if none is built."""
    for family in (*FAMILIES, *also):
        if pipeline in family.pipelines:
            return family
    if pipeline in UPSAMPLER.pipelines:
        hint = "type STAGE1+STAGE2, with the folder or name of an IFPipeline before the '+'"
        raise AssetError(f"an {pipeline} draws nothing alone", hint=hint)
    built = "; ".join(f"{f.name} ({', '.join(f.pipelines)})" for f in FAMILIES)
    raise AssetError(f"{pipeline} is of no family that is built", hint=f"built are {built}")


def class_names(pipe: Any, denoiser: Any) -> tuple[tuple[str, ...], int | None]:
    """Names of the classes that a network was trained on, and the index of the empty one, if any;
    no names for an unconditional network.
    """
    config = denoiser.config
    count, empty = config.get("num_class_embeds") or 0, None
    if type(denoiser).__name__ == "DiTTransformer2DModel":
        count = empty = config.num_embeds_ada_norm
    named: dict[int, list[str]] = {}
    for name, index in getattr(pipe, "labels", {}).items():
        named.setdefault(index, []).append(name)
    return tuple(", ".join(named.get(k, [f"class {k}"])) for k in range(count)), empty
