"""The embedded diffusion model: an unconditional ADM at 32 x 32 with learned variance.

It predicts v = alpha eps - sigma x0 (Salimans and Ho 2022, arXiv 2202.00512), which stays well
conditioned at both ends of the cosine schedule: x0-hat from eps is (x_t - sigma eps) / alpha, so
that near the last timesteps a small network's error, divided by an alpha near zero, saturates the
colours. The variance learns from the variational bound (Nichol and Dhariwal 2021, arXiv
2102.09672, eq. 16).

The first level is 64 wide since the norms always have 32 groups: with 32 channels they would be
instance norms, and the head, which is normalised too, could not say how bright a picture is.

    python train_adm.py --state ~/ppap-train
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from publish import publish
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from training import (
    TEST_SEED,
    Plan,
    batch_option,
    bfloat16_option,
    compile_option,
    decay_option,
    halved,
    mirrored,
    record,
    rendered,
    state_option,
    to_images,
    train,
)
from variational_bound import variational_bound_term

from ppap_framework.components import Prediction
from ppap_framework.diffusion import Process
from ppap_framework.noise import noise_schedule
from ppap_plugin_adm import build

DATA_SEED, DATA_COUNT = 1, 30_000
TEST_COUNT, HELD_OUT = 10_000, 2_000
VLB_WEIGHT = 1e-3
OFFICIAL_CLASS = "guided_diffusion.unet.UNetModel"
CONFIG = {
    "image_size": 32,
    "in_channels": 3,
    "model_channels": 64,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": [4],
    "dropout": 0.0,
    "channel_mult": [1, 1, 2],
    "conv_resample": False,
    "num_head_channels": 32,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
}
PROCESS = {
    "schedule": "cosine",
    "timesteps": 1000,
    "predicts": "v",
    "variance": "learned_range",
    "rescale_timesteps": False,
}


@click.command()
@state_option
@click.option("--steps", default=20_000, show_default=True)
@decay_option
@batch_option
@compile_option
@bfloat16_option
def main(state: Path, steps: int, decay: int, batch: int, compiled: bool, bfloat16: bool) -> None:
    images, _ = rendered(state, DATA_SEED, DATA_COUNT)
    process = process_of()
    torch.manual_seed(0)
    network = build(OFFICIAL_CLASS, CONFIG).to(memory_format=torch.channels_last)
    forward = torch.compile(network) if compiled else network

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(images), (batch,), generator=generator)
        (x0,) = mirrored(generator, to_images(images[chosen]))
        return batch_loss(forward, process, x0, generator, bfloat16)

    plan = Plan(
        steps=steps, decay=decay, batch=batch, learning_rate=5e-4, seed=11, warmup=500, ema=0.999
    )
    average, seconds = train(network, plan, state / "adm", loss)
    network.load_state_dict(halved(average))
    metrics = held_out(network, process, rendered(state, TEST_SEED, TEST_COUNT)[0])
    precision = "bfloat16 products" if bfloat16 else "float32"
    notes = {"vlb_weight": VLB_WEIGHT, "precision": precision}
    training = record("train_adm.py", plan, seconds, (DATA_SEED, DATA_COUNT), **notes)
    path = publish(
        "shapes-adm",
        "adm",
        "backend",
        "Small scenes of solids, 32 x 32, unconditional",
        average,
        {"official_class": OFFICIAL_CLASS, "config": CONFIG, "process": PROCESS},
        training,
        metrics,
        default=True,
    )
    click.echo(f"{path}: {metrics}")


def process_of() -> Process:
    """The diffusion process with all timesteps."""
    schedule = noise_schedule(PROCESS["schedule"], PROCESS["timesteps"])
    return Process(schedule, range(schedule.num_timesteps), PROCESS["variance"])


def batch_loss(
    forward: Callable[[Tensor, Tensor], Tensor],
    process: Process,
    x0: Tensor,
    generator: torch.Generator,
    bfloat16: bool,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch, and figures for the log."""
    schedule, batch = process.schedule, len(x0)
    # One timestep from each of `batch` equal ranges: the same expectation as independent
    # draws, less variance.
    u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    t = (u * schedule.num_timesteps).long()
    noise = torch.randn(x0.shape, generator=generator).contiguous(memory_format=torch.channels_last)
    x_t = schedule.add_noise(x0, t, noise)
    # On CPU, attention's own bfloat16 kernel is several times slower than two plain products.
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), sdpa_kernel(SDPBackend.MATH):
        output = forward(x_t, t).float()
    v, variance = output.chunk(2, dim=1)
    abar = schedule.alphas_cumprod[t].float()[:, None, None, None]
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    prediction = Prediction.from_v(v, x_t, alpha, sigma, variance)
    simple = F.mse_loss(v, alpha * noise - sigma * x0)
    bound = variational_bound_term(process, x0, x_t, t, prediction).mean()
    value = simple + VLB_WEIGHT * len(process) * bound
    return value, {"mse": simple.item(), "bits": bound.item() * len(process)}


@torch.no_grad()
def held_out(network: nn.Module, process: Process, images: Tensor) -> dict[str, object]:
    """How well fresh renders are denoised, over all timesteps."""
    network.eval()
    schedule, squares, bits = process.schedule, [], []
    generator = torch.Generator().manual_seed(TEST_SEED)
    for block in images[:HELD_OUT].split(250):
        x0 = to_images(block)
        noise = torch.randn(x0.shape, generator=generator)
        t = (torch.arange(len(x0)) + 0.5) / len(x0) * schedule.num_timesteps
        t = t.long()[torch.randperm(len(x0), generator=generator)]
        x_t = schedule.add_noise(x0, t, noise)
        v, variance = network(x_t, t).chunk(2, dim=1)
        abar = schedule.alphas_cumprod[t].float()[:, None, None, None]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        prediction = Prediction.from_v(v, x_t, alpha, sigma, variance)
        squares.append(F.mse_loss(v, alpha * noise - sigma * x0).item())
        bits.append(variational_bound_term(process, x0, x_t, t, prediction).mean().item())
    return {
        "fresh_renders": HELD_OUT,
        "v_mse": round(sum(squares) / len(squares), 5),
        "bits_per_dimension": round(sum(bits) / len(bits) * len(process), 4),
    }


if __name__ == "__main__":
    main()
