"""Pipelines of diffusers with tiny random networks, and what they draw by themselves."""

from __future__ import annotations

import contextlib
import importlib
import string
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import Tensor, nn

from ppap_framework.diffusion import NoiseSource

SIZE = 8
TOKENS = 12
PROMPTS = ["a red cube", "two cats"]

LATENT = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
"""What the schedulers of Stable Diffusion say."""


def randomised(network: nn.Module) -> Any:
    """Without the zeroed layers of a fresh network, which would make its output trivial."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return network.eval()


def made(kind: Callable[..., nn.Module], **config: Any) -> Any:
    torch.manual_seed(0)
    return randomised(kind(**config))


@contextlib.contextmanager
def outdated() -> Iterator[None]:
    """A context in which diffusers uses what it deprecates itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unet(**changed: Any) -> Any:
    """A small `UNet2DModel` for images of 8 x 8."""
    config = {
        "sample_size": SIZE,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    return made(UNet2DModel, **{**config, **changed})


def text_unet(**changed: Any) -> Any:
    """A small `UNet2DConditionModel` for states of 8 x 8."""
    config = {
        "sample_size": SIZE,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
    }
    return made(UNet2DConditionModel, **{**config, **changed})


def vae(**changed: Any) -> Any:
    config = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    return made(AutoencoderKL, **{**config, **changed})


def tiny_vae(**changed: Any) -> Any:
    """Another decoder of the latents of `vae`."""
    config = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return made(diffusers.AutoencoderTiny, **config, **blocks, **changed)


def clip(kind: Any = transformers.CLIPTextModel) -> tuple[Any, Any]:
    """A text encoder and its tokenizer."""
    words = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {word: k for k, word in enumerate(["<|startoftext|>", *words, "<|endoftext|>"])}
    tokenizer = transformers.CLIPTokenizer(vocabulary, [], model_max_length=TOKENS)
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=len(vocabulary) - 1,
    )
    return made(kind, config=config), tokenizer


def t5(width: int = 16) -> tuple[Any, Any]:
    """A text encoder and its tokenizer."""
    words = ["<pad>", "</s>", "<unk>", "\u2581", *string.ascii_lowercase]
    tokenizer = transformers.T5Tokenizer([(word, -1.0) for word in words], extra_ids=0)
    config = transformers.T5Config(
        vocab_size=len(words), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return made(transformers.T5EncoderModel, config=config), tokenizer


def pixel(scheduler: Any = None, **changed: Any) -> Any:
    """A `DDIMPipeline`."""
    return quiet(diffusers.DDIMPipeline(unet(**changed), scheduler or DDIMScheduler()))


def ldm() -> Any:
    config = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "num_vq_embeddings": 64,
        "latent_channels": 3,
    }
    vqvae = made(diffusers.VQModel, **config)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    return quiet(diffusers.LDMPipeline(vqvae=vqvae, unet=unet(), scheduler=scheduler))


def dit() -> Any:
    transformer = made(
        diffusers.DiTTransformer2DModel,
        sample_size=SIZE,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_embeds_ada_norm=1000,
    )
    labels = {k: f"class {k}" for k in range(1000)} | {207: "golden retriever, retriever"}
    pipe = diffusers.DiTPipeline(transformer, vae(), DDIMScheduler(clip_sample=False), labels)
    return quiet(pipe)


def stable_diffusion(scheduler: Any = None, **changed: Any) -> Any:
    encoder, tokenizer = clip()
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=text_unet(**changed),
        scheduler=scheduler or DDIMScheduler(beta_schedule="scaled_linear", **LATENT),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return quiet(pipe)


def stable_diffusion_xl() -> Any:
    encoder, tokenizer = clip()
    second, _ = clip(transformers.CLIPTextModelWithProjection)
    network = text_unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13),
        text_encoder=encoder,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=network,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", **LATENT),
        add_watermarker=False,
    )
    return quiet(pipe)


def pixart() -> Any:
    encoder, tokenizer = t5()
    transformer = made(
        diffusers.PixArtTransformer2DModel,
        sample_size=SIZE,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        in_channels=4,
        out_channels=8,
    )
    scheduler = DDIMScheduler(clip_sample=False)
    pipe = diffusers.PixArtAlphaPipeline(tokenizer, encoder, vae(), transformer, scheduler)
    return quiet(pipe)


def stable_diffusion_3(**scheduler: Any) -> Any:
    encoders = [clip(transformers.CLIPTextModelWithProjection) for _ in range(2)]
    third, third_tokenizer = t5(32)
    transformer = made(
        diffusers.SD3Transformer2DModel,
        sample_size=SIZE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=SIZE,
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=vae(shift_factor=0.06),
        text_encoder=encoders[0][0],
        tokenizer=encoders[0][1],
        text_encoder_2=encoders[1][0],
        tokenizer_2=encoders[1][1],
        text_encoder_3=third,
        tokenizer_3=third_tokenizer,
    )
    return quiet(pipe)


def flux() -> Any:
    encoder, tokenizer = clip()
    second, second_tokenizer = t5()
    transformer = made(
        diffusers.FluxTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    pipe = diffusers.FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae(shift_factor=0.11),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=second_tokenizer,
        transformer=transformer,
    )
    pipe.default_sample_size = SIZE
    return quiet(pipe)


def chroma() -> Any:
    encoder, tokenizer = t5()
    with outdated():
        transformer = made(
            diffusers.ChromaTransformer2DModel,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=16,
            approximator_hidden_dim=16,
            approximator_layers=1,
        )
    pipe = diffusers.ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.11),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipe.default_sample_size = SIZE
    return quiet(pipe)


def qwen() -> tuple[Any, Any]:
    """A text encoder and its tokenizer."""
    words = [*string.ascii_lowercase, "\u0120", "<|endoftext|>"]
    tokenizer = transformers.Qwen2Tokenizer({word: k for k, word in enumerate(words)}, [])
    tokenizer.chat_template = "{% for message in messages %}user {{ message.content }}{% endfor %}"
    config = transformers.Qwen3VLTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    )
    return made(transformers.Qwen3VLTextModel, config=config), tokenizer


def z_image() -> Any:
    encoder, tokenizer = qwen()
    transformer = made(
        diffusers.ZImageTransformer2DModel,
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[512, 32, 32],
    )
    pipe = diffusers.ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.11),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipe.default_sample_size = 2 * SIZE  # of its own it draws 1024 x 1024
    return quiet(pipe)


def auraflow() -> Any:
    encoder, tokenizer = t5()
    transformer = made(
        diffusers.AuraFlowTransformer2DModel,
        sample_size=SIZE,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.73)
    return quiet(diffusers.AuraFlowPipeline(tokenizer, encoder, vae(), transformer, scheduler))


def prx_transformer(**changed: Any) -> Any:
    config = {
        "in_channels": 4,
        "context_in_dim": 16,
        "hidden_size": 16,
        "num_heads": 2,
        "depth": 2,
        "axes_dim": [4, 4],
    }
    return made(diffusers.PRXTransformer2DModel, **{**config, **changed})


def prx(decoder: Any = None) -> Any:
    encoder, tokenizer = qwen()
    transformer, scheduler = prx_transformer(), FlowMatchEulerDiscreteScheduler(shift=3.0)
    autoencoder = decoder or vae(shift_factor=0.11)
    parts = (transformer, scheduler, encoder, tokenizer, autoencoder)
    with outdated():
        pipe = diffusers.PRXPipeline(*parts, default_sample_size=2 * SIZE)
    tokenizer.model_max_length = TOKENS
    return quiet(pipe)


def prx_pixel(**config: Any) -> Any:
    encoder, tokenizer = qwen()
    pipe = diffusers.PRXPixelPipeline(
        prx_transformer(in_channels=3, bottleneck_size=8, resolution_embeds=True),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        encoder,
        tokenizer,
        **{"default_sample_size": SIZE, "prompt_max_tokens": TOKENS, **config},
    )
    return quiet(pipe)


def deepfloyd() -> Any:
    encoder, tokenizer = t5()
    network = text_unet(in_channels=3, out_channels=6, encoder_hid_dim=16)
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        sample_max_value=1.5,
        dynamic_thresholding_ratio=0.95,
    )
    scheduler.register_to_config(variance_type="fixed_small")
    pipe = diffusers.IFPipeline(
        tokenizer, encoder, network, scheduler, None, None, None, requires_safety_checker=False
    )
    return quiet(pipe)


def deepfloyd_upsampler(**changed: Any) -> Any:
    """Stage II of `deepfloyd`, for images of 16 x 16, with a classic DDIM scheduler."""
    network = text_unet(
        **{"sample_size": 2 * SIZE, "in_channels": 6, "out_channels": 6, "encoder_hid_dim": 16}
        | {"class_embed_type": "timestep", **changed}
    )
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    scheduler.register_to_config(variance_type="fixed_small")
    noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    more = {"requires_safety_checker": False}
    pipe = diffusers.IFSuperResolutionPipeline(
        None, None, network, scheduler, noising, None, None, None, **more
    )
    return quiet(pipe)


TINY: dict[str, Callable[[], Any]] = {
    "pixel U-Nets": pixel,
    "latent diffusion (LDM)": ldm,
    "DiT": dit,
    "Stable Diffusion 1 and 2": stable_diffusion,
    "Stable Diffusion XL": stable_diffusion_xl,
    "PixArt": pixart,
    "Stable Diffusion 3": stable_diffusion_3,
    "Flux": flux,
    "Chroma": chroma,
    "Z-Image": z_image,
    "AuraFlow": auraflow,
    "PRX": prx,
    "PRX, pixels": prx_pixel,
    "DeepFloyd IF, stage I": deepfloyd,
}
"""A pipeline of each family, by the family's name."""


@contextlib.contextmanager
def beginning(pipe: Any, noise: Tensor) -> Iterator[None]:
    """A context in which a pipeline begins with this noise."""
    module = importlib.import_module(type(pipe).__module__)
    with mock.patch.object(module, "randn_tensor", side_effect=lambda *_, **__: noise.clone()):
        yield


def drawn(pipe: Any, noise: Tensor, steps: int, **how: Any) -> Tensor:
    """What a pipeline draws by itself from noise, (B, 3, H, W) in [0, 1]."""
    kind, size = type(pipe).__name__, {}
    if kind.startswith("PRX"):
        size = {"use_resolution_binning": False}
        if len(noise) > 1:  # it cannot draw several images with classifier-free guidance
            each = zip(noise.split(1), how.pop("prompt"), strict=True)
            return torch.cat([drawn(pipe, x, steps, prompt=[text], **how) for x, text in each])
    if kind in ("DDIMPipeline", "LDMPipeline"):
        how |= {"batch_size": len(noise)}
    if kind == "DDIMPipeline":
        how |= {"use_clipped_model_output": True}
    if kind == "PixArtAlphaPipeline":
        size = {"use_resolution_binning": False, "clean_caption": False}
    if kind in ("FluxPipeline", "ChromaPipeline", "ZImagePipeline"):
        size = {"height": 2 * SIZE, "width": 2 * SIZE}
    step = pipe.scheduler.step
    if kind == "IFPipeline":  # it thresholds, and has no argument for what becomes of eps
        step = partial(step, use_clipped_model_output=True)
    with beginning(pipe, noise), mock.patch.object(pipe.scheduler, "step", step):
        images = pipe(num_inference_steps=steps, output_type="pt", **size, **how).images
    if kind in ("IFPipeline", "PRXPixelPipeline"):  # which leave tensors in [-1, 1]
        images = (images.clamp(-1.0, 1.0) + 1.0) / 2.0
    found: Tensor = images if isinstance(images, Tensor) else torch.from_numpy(images)
    return found if found.shape[1] == 3 else found.permute(0, 3, 1, 2)


def noise_of(shape: tuple[int, ...], batch: int = 2) -> Tensor:
    """The initial noise of images 0 to `batch` - 1 with seed 0."""
    return NoiseSource(0)((batch, *shape))


def told(pipe: Any) -> tuple[list[str] | None, dict[str, Any]]:
    """Prompts of two images for our backend, and arguments of the pipeline that mean the same."""
    kind = type(pipe).__name__
    if kind == "DiTPipeline":
        return ["207", "class 3"], {"class_labels": [207, 3]}
    if kind in ("DDIMPipeline", "LDMPipeline"):
        return None, {}
    return PROMPTS, {"prompt": [*PROMPTS]}
