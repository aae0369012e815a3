"""The embedded latent world: an autoencoder of scenes of 64 x 64, and a diffusion model of its
latents, published as a pipeline of diffusers, the default checkpoint of backend `diffusers`.

The autoencoder is an `AutoencoderKL` to 4 x 16 x 16; its loss is the mean absolute error plus a
small share of the Kullback-Leibler divergence (Rombach et al. 2022, arXiv 2112.10752, section 3.1),
without a discriminator. The denoiser is a `UNet2DModel` that predicts v on the cosine schedule, as
the other embedded models do. Both trainings go on from the state of a killed one.

    python train_latent.py autoencoder --state ~/ppap-train/latent --batch 16
    python train_latent.py denoiser --state ~/ppap-train/latent --steps 7000 --batch 32
    ppap run --backend diffusers
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import diffusers
import torch
import torch.nn.functional as F
from publish import publish_pipeline
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from training import (
    TEST_SEED,
    Plan,
    batch_option,
    bfloat16_option,
    compile_option,
    mirrored,
    record,
    rendered,
    state_option,
    to_images,
    train,
)

from ppap_framework.noise import cosine_schedule

DATA_SEED, SIZE = 1, 64
TEST_COUNT = 500
SUMMARY = "The embedded world at 64 x 64 in latents of 4 x 16 x 16, as a pipeline of diffusers"
KL_WEIGHT = 1e-4  # of the divergence a number of the image
AUTOENCODER = {
    "sample_size": SIZE,
    "block_out_channels": (16, 32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "latent_channels": 4,
    "norm_num_groups": 8,
}
DENOISER = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (64, 96, 128),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 32,
    "norm_num_groups": 16,
}
SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
}

count_option = click.option("--count", default=8_000, show_default=True, help="Scenes to learn.")
steps_option = click.option("--steps", default=6_000, show_default=True)


@click.group()
def main() -> None:
    """Train the parts of the latent world one after the other."""


@main.command()
@state_option
@count_option
@steps_option
@batch_option
@bfloat16_option
@compile_option
def autoencoder(
    state: Path, count: int, steps: int, batch: int, bfloat16: bool, compiled: bool
) -> None:
    """Train the autoencoder, and keep it with the scale of its latents in STATE/vae."""
    images, _ = rendered(state, DATA_SEED, count, SIZE)
    torch.manual_seed(0)
    network = diffusers.AutoencoderKL(**AUTOENCODER).to(memory_format=torch.channels_last)

    def coded(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        posterior = network.encode(x).latent_dist
        return network.decode(posterior.mean + posterior.std * noise).sample, posterior.kl()

    forward = torch.compile(coded, dynamic=False) if compiled else coded

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(images), (batch,), generator=generator)
        (x,) = mirrored(generator, to_images(images[chosen]))
        noise = torch.randn((batch, 4, SIZE // 4, SIZE // 4), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), sdpa_kernel(SDPBackend.MATH):
            decoded, divergence = forward(x, noise)
        error, kl = F.l1_loss(decoded.float(), x), divergence.float().mean()
        return error + KL_WEIGHT * kl / x[0].numel(), {"l1": error.item(), "kl": kl.item()}

    average, seconds = train(network, plan_of(steps, batch, 1e-3), state / "autoencoder", loss)
    network.load_state_dict(average)
    network.eval()
    latents = encoded(network, images)
    network.register_to_config(scaling_factor=1.0 / latents.std().item())
    network.half().save_pretrained(state / "vae")
    torch.save(latents, state / "latents.pt")
    (state / "vae.json").write_text(json.dumps({"steps": steps, "seconds": round(seconds)}))
    click.echo(f"{seconds:.0f} s; fresh scenes: PSNR {psnr(network.float(), state):.2f} dB")


@torch.no_grad()
def psnr(network: diffusers.AutoencoderKL, state: Path) -> float:
    """Peak signal-to-noise ratio of decoded fresh scenes, in dB."""
    test = to_images(rendered(state, TEST_SEED, TEST_COUNT, SIZE)[0])
    parts = [network.decode(network.encode(x).latent_dist.mode()).sample for x in test.split(50)]
    error = (torch.cat(parts).clamp(-1, 1) - test).square().mean() / 4
    return -10 * error.log10().item()


@torch.no_grad()
def encoded(network: diffusers.AutoencoderKL, images: Tensor) -> Tensor:
    """Modes of the latents of scenes (N, 3, H, W), uint8, and of their mirror images: (2N, ...)."""
    parts = []
    for flip in (False, True):
        for part in images.split(100):
            x = to_images(part.flip(-1) if flip else part)
            parts.append(network.encode(x).latent_dist.mode())
    return torch.cat(parts)


@main.command()
@state_option
@steps_option
@batch_option
@bfloat16_option
@compile_option
def denoiser(state: Path, steps: int, batch: int, bfloat16: bool, compiled: bool) -> None:
    """Train the denoiser of the autoencoder's latents, and publish the pipeline."""
    vae = diffusers.AutoencoderKL.from_pretrained(state / "vae")
    latents = torch.load(state / "latents.pt", weights_only=True) * vae.config.scaling_factor
    schedule = cosine_schedule(1000)
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**DENOISER).to(memory_format=torch.channels_last)
    forward = torch.compile(network, dynamic=False) if compiled else network

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x0 = latents[torch.randint(len(latents), (batch,), generator=generator)]
        u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = (u * schedule.num_timesteps).long()
        noise = torch.randn(x0.shape, generator=generator)
        alpha = schedule.alphas_cumprod[t].sqrt().float()[:, None, None, None]
        sigma = (1.0 - alpha**2).sqrt()
        x_t = (alpha * x0 + sigma * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), sdpa_kernel(SDPBackend.MATH):
            v = forward(x_t, t).sample
        value = F.mse_loss(v.float(), alpha * noise - sigma * x0)
        return value, {}

    plan = plan_of(steps, batch, 5e-4)
    average, seconds = train(network, plan, state / "denoiser", loss)
    network.load_state_dict(average)
    scheduler = diffusers.DDIMScheduler(**SCHEDULER)
    pipe = diffusers.LDMPipeline(vqvae=vae, unet=network.eval(), scheduler=scheduler)
    notes = {"autoencoder": json.loads((state / "vae.json").read_text())}
    training = record("train_latent.py", plan, seconds, (DATA_SEED, len(latents) // 2), **notes)
    metrics = {"fresh_renders": TEST_COUNT, "psnr": psnr(vae, state)}
    click.echo(publish_pipeline("shapes-latent", SUMMARY, pipe, "unet", SIZE, training, metrics))


def plan_of(steps: int, batch: int, learning_rate: float) -> Plan:
    """The last fifth of the steps lowers the learning rate."""
    how = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "decay": steps // 5}
    return Plan(**how, seed=21, ema=0.998)


if __name__ == "__main__":
    main()
