"""The classic baseline: ADM's encoder trained with labels on noised renders (Dhariwal and Nichol
2021, section 4).

It sees every timestep of the schedule that the embedded diffusion model has.

    python train_adm_classifier.py --state ~/ppap-train
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
import torch.nn.functional as F
from publish import publish
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_adm import PROCESS
from training import (
    TEST_SEED,
    Plan,
    bfloat16_option,
    compile_option,
    halved,
    mirrored,
    record,
    rendered,
    state_option,
    to_images,
    train,
)

from ppap_framework.noise import noise_schedule
from ppap_plugin_adm import build
from ppap_plugin_shapes.world import CLASS_NAMES

DATA_SEED, DATA_COUNT = 4, 20_000
TEST_COUNT = 10_000
OFFICIAL_CLASS = "guided_diffusion.unet.EncoderUNetModel"
CONFIG = {
    "image_size": 32,
    "in_channels": 3,
    "model_channels": 64,
    "out_channels": len(CLASS_NAMES),
    "num_res_blocks": 1,
    "attention_resolutions": [4],
    "channel_mult": [1, 1, 2],
    "conv_resample": False,
    "num_head_channels": 32,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "pool": "attention",
}
PLAN = Plan(
    steps=2000, decay=1400, batch=64, learning_rate=1e-3, seed=41, weight_decay=0.05, ema=0.995
)


@click.command()
@state_option
@compile_option
@bfloat16_option
def main(state: Path, compiled: bool, bfloat16: bool) -> None:
    images, labels = rendered(state, DATA_SEED, DATA_COUNT)
    schedule = noise_schedule(PROCESS["schedule"], PROCESS["timesteps"])
    torch.manual_seed(PLAN.seed)
    network = build(OFFICIAL_CLASS, CONFIG).to(memory_format=torch.channels_last)
    forward = torch.compile(network) if compiled else network

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(images), (PLAN.batch,), generator=generator)
        (x0,), y = mirrored(generator, to_images(images[chosen])), labels[chosen]
        u = (torch.arange(PLAN.batch) + torch.rand(PLAN.batch, generator=generator)) / PLAN.batch
        t = (u * schedule.num_timesteps).long()
        noise = torch.randn(x0.shape, generator=generator).contiguous(
            memory_format=torch.channels_last
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), sdpa_kernel(SDPBackend.MATH):
            logits = forward(schedule.add_noise(x0, t, noise), t).float()
        accuracy = (logits.argmax(1) == y).float().mean().item()
        return F.cross_entropy(logits, y), {"accuracy": accuracy}

    average, seconds = train(network, PLAN, state / "adm-classifier", loss)
    network.load_state_dict(halved(average))
    network.eval()
    test_images, test_labels = rendered(state, TEST_SEED, TEST_COUNT)
    metrics: dict[str, object] = {"fresh_renders": 2000}
    with torch.no_grad():
        for t in range(0, schedule.num_timesteps, 100):
            noise = torch.randn(2000, 3, 32, 32, generator=torch.Generator().manual_seed(t))
            right = 0
            for block in torch.arange(2000).split(250):
                level = torch.full((len(block),), t)
                x_t = schedule.add_noise(to_images(test_images[block]), level, noise[block])
                right += int((network(x_t, level).argmax(1) == test_labels[block]).sum())
            metrics[f"accuracy_at_t_{t}"] = right / 2000
    architecture = {
        "official_class": OFFICIAL_CLASS,
        "config": CONFIG,
        "class_names": CLASS_NAMES,
        "process": {key: PROCESS[key] for key in ("schedule", "timesteps")},
    }
    precision = "bfloat16 products" if bfloat16 else "float32"
    data = DATA_SEED, DATA_COUNT
    training = record("train_adm_classifier.py", PLAN, seconds, data, precision=precision)
    path = publish(
        "shapes-adm-classifier",
        "adm-classifier",
        "guider",
        "ADM's encoder, trained with labels on noised renders",
        average,
        architecture,
        training,
        metrics,
        default=True,
    )
    click.echo(f"{path}: {metrics}")


if __name__ == "__main__":
    main()
